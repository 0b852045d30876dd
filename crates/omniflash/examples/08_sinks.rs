//! Attention sinks: one more logit a head, that takes its share of the softmax and gives nothing.
#![allow(clippy::print_stdout)]

use omniflash::{AttentionOptions, Registry, Result, Tensor, attention};

fn main() -> Result<()> {
    let backend = Registry::discover().best()?;
    let stream = backend.stream()?;
    let ones = vec![1.0f32; 64 * 2 * 128];
    let q = Tensor::from_slice(&*backend, &ones[..8 * 2 * 128], &[1, 8, 2, 128], &stream)?;
    let kv = Tensor::from_slice(&*backend, &ones, &[1, 64, 2, 128], &stream)?;
    let sinks = Tensor::from_slice(&*backend, &[5.0f32, 3.0], &[2], &stream)?;

    // With scale 0 every key weighs 1 and the sink e^sink: all outputs are 64 / (64 + e^sink).
    let options = AttentionOptions::new().softmax_scale(0.0).sinks(sinks.view());
    let out = attention(&*backend, &q, (&kv, &kv), &options)?.out.to_vec::<f32>(&*backend, &stream)?;
    for (head, sink) in [5f32, 3.0].into_iter().enumerate() {
        let expected = 64.0 / (64.0 + sink.exp());
        println!("head {head}: {} (expected {expected})", out[head * 128]);
        assert!((out[head * 128] - expected).abs() < 1e-5);
    }
    Ok(())
}
