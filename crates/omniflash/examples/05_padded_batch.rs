//! A padded batch of texts of different lengths: what lies in the padding is neither seen nor written.
#![allow(clippy::print_stdout)]

use omniflash::{AttentionOptions, KvCache, Query, Registry, Result, Tensor, attention};

fn main() -> Result<()> {
    let backend = Registry::discover().best()?;
    let stream = backend.stream()?;
    let (batch, seqlen, heads, head_dim) = (3, 40, 4, 32);
    let lengths = [40u32, 17, 5];
    let mut numbers: Vec<f32> =
        (0..batch * seqlen * heads * head_dim).map(|i| (i as f32 * 0.37).sin()).collect();
    for (b, &length) in lengths.iter().enumerate() {
        let padding = (b * seqlen + length as usize) * heads * head_dim..(b + 1) * seqlen * heads * head_dim;
        numbers[padding].fill(f32::NAN);
    }
    let x = Tensor::from_slice(&*backend, &numbers, &[batch, seqlen, heads, head_dim], &stream)?;
    let lengths = Tensor::from_slice(&*backend, &lengths, &[batch], &stream)?;

    let query = Query::Padded { q: x.view(), lengths: Some(lengths.view()) };
    let kv = KvCache::Dense { k: x.view(), v: x.view(), lengths: Some(lengths.view()) };
    let result = attention(&*backend, query, kv, &AttentionOptions::new())?;
    let out = result.out.to_vec::<f32>(&*backend, &stream)?;
    assert!(out.iter().all(|x| x.is_finite()), "no NaN of the padding leaks");
    println!("{:?}, every number finite", result.out.shape());
    Ok(())
}
