//! Attention on the best backend of the machine, in ten lines.
#![allow(clippy::print_stdout)]

use omniflash::{AttentionOptions, Mask, Registry, Result, Tensor, attention};

fn main() -> Result<()> {
    let registry = Registry::discover();
    let backend = registry.best()?;
    let stream = backend.stream()?;

    // [batch, seqlen, heads, head_dim]; four query heads share one key head.
    let numbers: Vec<f32> = (0..2 * 16 * 8 * 64).map(|i| (i as f32 * 0.37).sin()).collect();
    let q = Tensor::from_slice(&*backend, &numbers, &[2, 16, 8, 64], &stream)?;
    let k = Tensor::from_slice(&*backend, &numbers[..4096], &[2, 16, 2, 64], &stream)?;
    let v = Tensor::from_slice(&*backend, &numbers[4096..8192], &[2, 16, 2, 64], &stream)?;

    let result = attention(&*backend, &q, (&k, &v), &AttentionOptions::new().mask(Mask::Causal).lse(true))?;

    let out = result.out.to_vec::<f32>(&*backend, &stream)?;
    println!("{} computed {:?}: {:?} ...", backend.info().name, result.out.shape(), &out[..4]);
    // The first query of a causal sequence sees one key only: its output is that key's value.
    assert!((out[0] - numbers[4096]).abs() < 1e-6);
    Ok(())
}
