//! A mask of one's own that a GPU computes itself: the same rule in Rust and, for a run-time compiler, in C++.
//!
//! Without the C++ a GPU gets the mask as bits that the host computes, which any closure allows; with it positions that
//! only the device knows are possible, and nothing is sent.
#![allow(clippy::print_stdout)]

use omniflash::{
    AttentionOptions, DeviceSource, Error, Mask, MaskFunction, Registry, Result, Tensor, Tile, TileStatus,
    attention,
};

/// Causal, and of what lies further back than `near` only every `step`-th key.
struct Strided {
    near: i32,
    step: i32,
}

const SOURCE: &str = "
struct Strided {
  int near, step;
  OMNIFLASH_DEVICE bool keep(const ScoreIndex& at) const {
    return at.k <= at.q && (at.q - at.k < near || at.k % step == 0);
  }
};";

impl MaskFunction for Strided {
    fn visible(&self, _batch: usize, _head: usize, q: i64, k: i64) -> bool {
        k <= q && (q - k < i64::from(self.near) || k % i64::from(self.step) == 0)
    }

    fn tile_status(&self, tile: &Tile) -> TileStatus {
        if tile.k_begin >= tile.q_end { TileStatus::Skip } else { TileStatus::Unknown }
    }

    fn device_source(&self) -> Option<DeviceSource> {
        // The members as the device lays them out.
        Some(DeviceSource::new("Strided", SOURCE, &[self.near, self.step]))
    }
}

fn main() -> Result<()> {
    let backend = Registry::discover().best()?;
    let stream = backend.stream()?;
    let numbers: Vec<f32> = (0..256 * 2 * 64).map(|i| (i as f32 * 0.37).sin()).collect();
    let x = Tensor::from_slice(&*backend, &numbers, &[1, 256, 2, 64], &stream)?;
    let run = |mask| -> Result<Vec<f32>> {
        let result = attention(&*backend, &x, (&x, &x), &AttentionOptions::new().mask(mask))?;
        result.out.to_vec::<f32>(&*backend, &stream)
    };
    let by_source = match run(Mask::custom(Strided { near: 32, step: 8 })) {
        // Only where a GPU is, and neither NVRTC nor nvcc.
        Err(Error::NoKernel { hint, .. }) => {
            println!("skipped: {hint}");
            return Ok(());
        }
        result => result?,
    };
    let by_closure = run(Mask::from_fn(|_, _, q, k| k <= q && (q - k < 32 || k % 8 == 0)))?;
    let furthest = by_source.iter().zip(&by_closure).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(furthest < 1e-5, "the C++ and the Rust of the mask differ: {furthest}");
    println!("{} gives the same by source and by closure", backend.info().name);
    Ok(())
}
