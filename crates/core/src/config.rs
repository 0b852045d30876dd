//! Tuning: what a caller may fix and a plan otherwise chooses.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// Which algorithm computes attention.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Algorithm {
    /// The plan chooses.
    #[default]
    Auto,
    /// One pass over materialised rows of scores; slow, for checking.
    Naive,
    /// Tiles and an online softmax (Dao 2023, "FlashAttention-2").
    Flash2,
    /// Flash2 with asynchronous copies and matrix products (Shah et al. 2024, "FlashAttention-3"); sm_90 only.
    Flash3,
}

impl FromStr for Algorithm {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "auto" => Ok(Algorithm::Auto),
            "naive" => Ok(Algorithm::Naive),
            "flash2" => Ok(Algorithm::Flash2),
            "flash3" => Ok(Algorithm::Flash3),
            _ => Err(Error::value("config.algorithm", name, "auto, naive, flash2 or flash3")),
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Algorithm::Auto => "auto",
            Algorithm::Naive => "naive",
            Algorithm::Flash2 => "flash2",
            Algorithm::Flash3 => "flash3",
        })
    }
}

/// How tiles are laid out in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Swizzle {
    /// Rows as they are.
    None,
    /// 32-byte pattern.
    B32,
    /// 64-byte pattern.
    B64,
    /// 128-byte pattern.
    B128,
}

impl Swizzle {
    /// The pattern's width, 0 for none.
    pub const fn bytes(self) -> usize {
        match self {
            Swizzle::None => 0,
            Swizzle::B32 => 32,
            Swizzle::B64 => 64,
            Swizzle::B128 => 128,
        }
    }
}

impl FromStr for Swizzle {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "none" => Ok(Swizzle::None),
            "b32" => Ok(Swizzle::B32),
            "b64" => Ok(Swizzle::B64),
            "b128" => Ok(Swizzle::B128),
            _ => Err(Error::value("config.swizzle", name, "none, b32, b64 or b128")),
        }
    }
}

/// The least precise products of f32 that a caller accepts. A backend may be more precise: a CPU computes in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum F32Arithmetic {
    /// f32 by fused multiply-add, without tensor cores where these have no f32.
    Exact,
    /// Each number as the sum of two TF32, three products: an error near that of f32.
    Tf32x3,
    /// Numbers rounded to TF32, ten bits of mantissa.
    Tf32,
}

impl FromStr for F32Arithmetic {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "exact" => Ok(F32Arithmetic::Exact),
            "tf32x3" => Ok(F32Arithmetic::Tf32x3),
            "tf32" => Ok(F32Arithmetic::Tf32),
            _ => Err(Error::value("config.f32_arithmetic", name, "exact, tf32x3 or tf32")),
        }
    }
}

impl fmt::Display for F32Arithmetic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            F32Arithmetic::Exact => "exact",
            F32Arithmetic::Tf32x3 => "tf32x3",
            F32Arithmetic::Tf32 => "tf32",
        })
    }
}

/// Tuning of one call. Every field is optional, and by default the plan chooses.
///
/// A value that a backend cannot honour is an error that lists what is possible; none is ignored.
/// The names of Modular's `MHAConfig` are given where they differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct AttentionConfig {
    /// The algorithm.
    pub algorithm: Algorithm,
    /// Query rows of a tile (`num_queries_per_block`).
    pub block_m: Option<usize>,
    /// Keys of a tile (`num_keys_per_block`).
    pub block_n: Option<usize>,
    /// Slice of head_dim that one step of the first product takes (`BK`).
    pub block_k: Option<usize>,
    /// Query rows of one warp (`WM`).
    pub warp_m: Option<usize>,
    /// Keys of one warp (`WN`).
    pub warp_n: Option<usize>,
    /// Tiles of keys and values in flight.
    pub num_pipeline_stages: Option<usize>,
    /// Slices of `block_k` that are loaded together.
    pub k_group_size: Option<usize>,
    /// Shared memory layout (`swizzle_mode`).
    pub swizzle: Option<Swizzle>,
    /// Pieces into which each sequence's keys are split for decoding; fixing it makes results independent of the
    /// rest of the batch.
    pub num_partitions: Option<usize>,
    /// Splits keys among the warps of a block and joins them at the end (`decoding_warp_split_k`).
    pub split_within_block: Option<bool>,
    /// How products of f32 may be computed; by default in f32, or as three products of TF32. Without a meaning for other
    /// types.
    pub f32_arithmetic: Option<F32Arithmetic>,
}

impl AttentionConfig {
    /// Checks what no backend could honour.
    pub(crate) fn check(&self) -> Result<()> {
        let sizes = [
            ("block_m", self.block_m),
            ("block_n", self.block_n),
            ("block_k", self.block_k),
            ("warp_m", self.warp_m),
            ("warp_n", self.warp_n),
            ("num_pipeline_stages", self.num_pipeline_stages),
            ("k_group_size", self.k_group_size),
            ("num_partitions", self.num_partitions),
        ];
        for (name, size) in sizes {
            if size == Some(0) {
                return Err(Error::value(format!("config.{name}"), 0, "at least 1"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_algorithm_parses_back() {
        for algorithm in [Algorithm::Auto, Algorithm::Naive, Algorithm::Flash2, Algorithm::Flash3] {
            assert_eq!(algorithm.to_string().parse::<Algorithm>().unwrap(), algorithm);
        }
        assert!("flash1".parse::<Algorithm>().is_err());
    }

    #[test]
    fn every_arithmetic_parses_back() {
        for arithmetic in [F32Arithmetic::Exact, F32Arithmetic::Tf32x3, F32Arithmetic::Tf32] {
            assert_eq!(arithmetic.to_string().parse::<F32Arithmetic>().unwrap(), arithmetic);
        }
        assert!("f32".parse::<F32Arithmetic>().is_err());
    }

    #[test]
    fn every_swizzle_is_known_by_its_width() {
        for (name, bytes) in [("none", 0), ("b32", 32), ("b64", 64), ("b128", 128)] {
            assert_eq!(name.parse::<Swizzle>().unwrap().bytes(), bytes);
        }
        assert!("128".parse::<Swizzle>().is_err());
    }
}
