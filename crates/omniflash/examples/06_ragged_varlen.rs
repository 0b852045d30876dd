//! A ragged batch: sequences one after the other, with no padding at all.
#![allow(clippy::print_stdout)]

use omniflash::{AttentionOptions, KvCache, Mask, Query, Registry, Result, Tensor, attention};

fn main() -> Result<()> {
    let backend = Registry::discover().best()?;
    let stream = backend.stream()?;
    let (heads, head_dim) = (4, 64);
    let offsets = [0u32, 100, 100, 107, 256]; // the second sequence is empty
    let total = 256;
    let numbers: Vec<f32> = (0..total * heads * head_dim).map(|i| (i as f32 * 0.37).sin()).collect();
    let x = Tensor::from_slice(&*backend, &numbers, &[total, heads, head_dim], &stream)?;
    let cu_seqlens = Tensor::from_slice(&*backend, &offsets, &[5], &stream)?;

    let query = Query::Ragged { q: x.view(), cu_seqlens: cu_seqlens.view(), max_seqlen: Some(149) };
    let kv =
        KvCache::Ragged { k: x.view(), v: x.view(), cu_seqlens: cu_seqlens.view(), max_seqlen: Some(149) };
    let result = attention(&*backend, query, kv, &AttentionOptions::new().mask(Mask::Causal).lse(true))?;
    println!("out {:?}, lse {:?}", result.out.shape(), result.lse.as_ref().map(Tensor::shape));
    // Each sequence's first query sees itself only.
    let out = result.out.to_vec::<f32>(&*backend, &stream)?;
    let row = 100 * heads * head_dim;
    assert!((out[row] - numbers[row]).abs() < 1e-6);
    Ok(())
}
