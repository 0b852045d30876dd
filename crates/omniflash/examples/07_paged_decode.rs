//! Generation over a paged cache: each step writes one key and value into a page and attends to all before it.
#![allow(clippy::print_stdout)]

use omniflash::{
    AttentionOptions, KvCache, Mask, Query, Registry, Result, Tensor, TensorRef, attention, attention_into,
};

fn main() -> Result<()> {
    // The cache is host memory here, so this example asks for the CPU; on a GPU the pages live on the device.
    let backend = Registry::discover().get("cpu")?;
    let stream = backend.stream()?;
    let (heads, kv_heads, head_dim, page_size, steps) = (8, 2, 64, 16, 40);
    let token = |step: usize, salt: f32, n: usize| -> Vec<f32> {
        (0..n).map(|i| (step as f32 * 1.7 + i as f32 * 0.37 + salt).sin()).collect()
    };
    let row = kv_heads * head_dim;
    // Eight pages, handed out in no particular order; unused ones may hold anything.
    let mut pages_k = vec![f32::NAN; 8 * page_size * row];
    let mut pages_v = pages_k.clone();
    let table = [5i32, 2, 7, -1, -1];
    let (mut all_k, mut all_v) = (Vec::new(), Vec::new());

    for step in 0..steps {
        let (k, v) = (token(step, 1.0, row), token(step, 2.0, row));
        let slot = (table[step / page_size] as usize * page_size + step % page_size) * row;
        pages_k[slot..slot + row].copy_from_slice(&k);
        pages_v[slot..slot + row].copy_from_slice(&v);
        all_k.extend(k);
        all_v.extend(v);

        let q = token(step, 3.0, heads * head_dim);
        let lengths = [step as u32 + 1];
        let kv = KvCache::Paged {
            k: TensorRef::from_slice(&pages_k, &[8, page_size, kv_heads, head_dim])?,
            v: TensorRef::from_slice(&pages_v, &[8, page_size, kv_heads, head_dim])?,
            page_table: TensorRef::from_slice(&table, &[1, 5])?,
            lengths: TensorRef::from_slice(&lengths, &[1])?,
            max_seqlen: None,
        };
        let mut out = vec![0.0f32; heads * head_dim];
        attention_into(
            &*backend,
            Query::padded(TensorRef::from_slice(&q, &[1, 1, heads, head_dim])?),
            kv,
            omniflash::TensorMut::from_slice(&mut out, &[1, 1, heads, head_dim])?,
            None,
            &AttentionOptions::new().mask(Mask::Causal),
        )?;

        if step + 1 == steps {
            let shape = [1, steps, kv_heads, head_dim];
            let q = Tensor::from_slice(&*backend, &q, &[1, 1, heads, head_dim], &stream)?;
            let k = Tensor::from_slice(&*backend, &all_k, &shape, &stream)?;
            let v = Tensor::from_slice(&*backend, &all_v, &shape, &stream)?;
            let dense = attention(&*backend, &q, (&k, &v), &AttentionOptions::new())?;
            let dense = dense.out.to_vec::<f32>(&*backend, &stream)?;
            let error = out.iter().zip(&dense).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            println!("{steps} steps; paged and dense differ by at most {error:e}");
            assert!(error < 1e-5);
        }
    }
    Ok(())
}
