//! Score modifications apply in the order given: here softcap, then ALiBi.
#![allow(clippy::print_stdout)]

use omniflash::{AttentionOptions, Mask, Registry, Result, ScoreMod, Tensor, alibi_slopes, attention};

fn main() -> Result<()> {
    let backend = Registry::discover().best()?;
    let stream = backend.stream()?;
    let numbers: Vec<f32> = (0..128 * 8 * 64).map(|i| 3.0 * (i as f32 * 0.37).sin()).collect();
    let x = Tensor::from_slice(&*backend, &numbers, &[1, 128, 8, 64], &stream)?;
    let slopes = Tensor::from_slice(&*backend, &alibi_slopes(8), &[8], &stream)?;

    let options = AttentionOptions::new()
        .mask(Mask::Causal)
        .score_mod(ScoreMod::Softcap { cap: 30.0 })
        .score_mod(ScoreMod::Alibi { slopes: Some(slopes.view()) });
    let result = attention(&*backend, &x, (&x, &x), &options)?;
    println!("slopes {:?}", alibi_slopes(8));
    println!("{:?}", &result.out.to_vec::<f32>(&*backend, &stream)?[..4]);
    Ok(())
}
