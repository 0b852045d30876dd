//! Instances of the kernel that measures what a device can do at most.

use omniflash_core::DType;
use omniflash_device::{PeakKernel, PeakWork, TranslationUnit};

use crate::{LIBRARY, PEAK};

/// Threads of a block, as `peak.cu` has them.
const THREADS: u32 = 256;

/// The instance of `peak.cu` for some work, on a device of `arch`. Products of f32 are of TF32.
pub fn peak(work: PeakWork, arch: &str) -> PeakKernel {
    let (kind, operand) = match work {
        PeakWork::Product(DType::BF16) => (0, 0),
        PeakWork::Product(DType::F16) => (0, 1),
        PeakWork::Product(_) => (0, 2),
        PeakWork::MultiplyAdd => (1, 0),
        PeakWork::Fill => (2, 0),
        PeakWork::Read => (3, 0),
        PeakWork::Copy => (4, 0),
    };
    // Products on Hopper need all of its features.
    let arch = match (work, arch) {
        (PeakWork::Product(_), "sm_90") => "sm_90a",
        _ => arch,
    };
    PeakKernel {
        unit: TranslationUnit::new(PEAK, LIBRARY, "omniflash_peak")
            .with_constant("kWork", kind)
            .with_constant("kOperand", operand),
        arch: arch.into(),
        block_threads: THREADS,
        flops_of_round: flops_of_round(work, arch),
    }
}

/// Floating-point operations of a block in one round.
fn flops_of_round(work: PeakWork, arch: &str) -> f64 {
    let warps = f64::from(THREADS / 32);
    match work {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_count_what_their_instructions_do() {
        let flops = |dtype, arch| peak(PeakWork::Product(dtype), arch).flops_of_round;
        assert_eq!(peak(PeakWork::Product(DType::BF16), "sm_90").arch, "sm_90a");
        assert_eq!(peak(PeakWork::Read, "sm_90").arch, "sm_90");
        // 2 groups x 4 steps of m64n128k16, and 8 warps x 8 of m16n8k16.
        assert_eq!(flops(DType::BF16, "sm_90"), 8.0 * 262_144.0);
        assert_eq!(flops(DType::F16, "sm_80"), 64.0 * 4096.0);
        assert_eq!(flops(DType::F32, "sm_80"), 64.0 * 2048.0);
    }
}
