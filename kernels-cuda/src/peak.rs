//! Instances of the kernel that measures what a device can do at most.

use bytemuck::NoUninit;
use omniflash_core::DType;
use omniflash_device::TranslationUnit;

use crate::{LIBRARY, PEAK};

/// What `peak.cu` does over and over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PeakWork {
    /// Matrix products of operands of a dtype; f32 is TF32.
    Product(DType),
    /// Multiply-adds of f32.
    MultiplyAdd,
    /// Writes numbers without a pattern.
    Fill,
    /// Reads memory.
    Read,
    /// Copies memory.
    Copy,
}

/// The kernel's parameters, as `peak.cu` declares them.
#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
pub struct PeakParameters {
    /// Address that is read from, aligned to 16 bytes.
    pub source: u64,
    /// Address that is written to, aligned to 16 bytes.
    pub target: u64,
    /// Pieces of 16 bytes to fill, read or copy.
    pub vectors: i64,
    /// Rounds of products or multiply-adds.
    pub rounds: i32,
    /// 0.
    pub unused: i32,
}

impl PeakWork {
    /// Threads of a block.
    pub const THREADS: u32 = 256;

    /// The source of the instance.
    pub fn translation_unit(self) -> TranslationUnit {
        let (work, operand) = match self {
            PeakWork::Product(DType::BF16) => (0, 0),
            PeakWork::Product(DType::F16) => (0, 1),
            PeakWork::Product(_) => (0, 2),
            PeakWork::MultiplyAdd => (1, 0),
            PeakWork::Fill => (2, 0),
            PeakWork::Read => (3, 0),
            PeakWork::Copy => (4, 0),
        };
        TranslationUnit::new(PEAK, LIBRARY, "omniflash_peak")
            .with_constant("kWork", work)
            .with_constant("kOperand", operand)
    }

    /// The architecture to compile for, which products on Hopper need all features of.
    pub fn arch(self, arch: &str) -> String {
        match (self, arch) {
            (PeakWork::Product(_), "sm_90") => "sm_90a".into(),
            _ => arch.into(),
        }
    }

    /// Floating-point operations of a block in one round, compiled for `arch`.
    pub fn flops_of_round(self, arch: &str) -> f64 {
        let warps = f64::from(Self::THREADS / 32);
        match self {
            // Two groups of four warps, four steps of k, 64 x 128 x 16 or 8.
            PeakWork::Product(dtype) if arch == "sm_90a" => {
                2.0 * 2.0 * 4.0 * 64.0 * 128.0 * (32 / dtype.size()) as f64
            }
            // Eight accumulators a warp, 16 x 8 x 16 or 8.
            PeakWork::Product(dtype) => 2.0 * warps * 8.0 * 16.0 * 8.0 * (32 / dtype.size()) as f64,
            PeakWork::MultiplyAdd => 2.0 * warps * 32.0 * 16.0,
            PeakWork::Fill | PeakWork::Read | PeakWork::Copy => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_count_what_their_instructions_do() {
        assert_eq!(PeakWork::Product(DType::BF16).arch("sm_90"), "sm_90a");
        assert_eq!(PeakWork::Read.arch("sm_90"), "sm_90");
        // 2 groups x 4 steps of m64n128k16, and 8 warps x 8 of m16n8k16.
        assert_eq!(PeakWork::Product(DType::BF16).flops_of_round("sm_90a"), 8.0 * 262_144.0);
        assert_eq!(PeakWork::Product(DType::F16).flops_of_round("sm_80"), 64.0 * 4096.0);
        assert_eq!(PeakWork::Product(DType::F32).flops_of_round("sm_80"), 64.0 * 2048.0);
    }
}
