//! A mask of one's own in one line: any closure of (batch, head, q, k), joined with the built-in ones.
#![allow(clippy::print_stdout)]

use omniflash::{
    AttentionOptions, Mask, MaskFunction, Registry, Result, Tensor, Tile, TileStatus, attention,
};

/// The same idea as a type, which can also say which tiles need no work.
struct Dilated {
    step: i64,
}

impl MaskFunction for Dilated {
    fn visible(&self, _batch: usize, _head: usize, q: i64, k: i64) -> bool {
        k <= q && (q - k) % self.step == 0
    }

    fn tile_status(&self, tile: &Tile) -> TileStatus {
        if tile.k_begin >= tile.q_end { TileStatus::Skip } else { TileStatus::Unknown }
    }
}

fn main() -> Result<()> {
    let backend = Registry::discover().best()?;
    let stream = backend.stream()?;
    let numbers: Vec<f32> = (0..256 * 2 * 64).map(|i| (i as f32 * 0.37).sin()).collect();
    let x = Tensor::from_slice(&*backend, &numbers, &[1, 256, 2, 64], &stream)?;

    // The last 64 positions, and the first four for all.
    let closure = Mask::SlidingWindow { left: 63, right: 0 }.or(Mask::from_fn(|_, _, q, k| k < 4 && k <= q));
    let windowed = attention(&*backend, &x, (&x, &x), &AttentionOptions::new().mask(closure))?;

    let by_closure = Mask::from_fn(|_, _, q, k| k <= q && (q - k) % 3 == 0);
    let by_type = Mask::custom(Dilated { step: 3 });
    let [a, b] = [by_closure, by_type].map(|mask| {
        let result = attention(&*backend, &x, (&x, &x), &AttentionOptions::new().mask(mask))?;
        result.out.to_vec::<f32>(&*backend, &stream)
    });
    assert_eq!(a?, b?, "skipping tiles changes no bit");
    println!("windowed with four global keys: {:?}", windowed.out.shape());
    Ok(())
}
