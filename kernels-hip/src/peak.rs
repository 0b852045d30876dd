//! Instances of the kernel that measures what a device can do at most.

use omniflash_core::DType;
use omniflash_device::{PeakKernel, PeakWork, TranslationUnit};

use crate::{Architecture, LIBRARY, PEAK};

/// Threads of a block, as `peak.hip` has them.
const THREADS: u32 = 256;
/// Registers of a thread that a wave's independent accumulators take.
const ACCUMULATORS: usize = 64;

/// The instance of `peak.hip` for some work; `None` for products that the matrix unit of the architecture lacks.
pub fn peak(work: PeakWork, architecture: Architecture) -> Option<PeakKernel> {
    if work == PeakWork::Product(DType::F32) && !architecture.is_cdna() {
        return None;
    }
    let (kind, operand) = match work {
        PeakWork::Product(DType::BF16) => (0, 0),
        PeakWork::Product(DType::F16) => (0, 1),
        PeakWork::Product(_) => (0, 2),
        PeakWork::MultiplyAdd => (1, 0),
        PeakWork::Fill => (2, 0),
        PeakWork::Read => (3, 0),
        PeakWork::Copy => (4, 0),
    };
    Some(PeakKernel {
        unit: TranslationUnit::new(PEAK, LIBRARY, "omniflash_peak")
            .with_constant("kWork", kind)
            .with_constant("kOperand", operand),
        arch: architecture.name().into(),
        block_threads: THREADS,
        flops_of_round: flops_of_round(work, architecture),
    })
}

/// Floating-point operations of a block in one round.
fn flops_of_round(work: PeakWork, architecture: Architecture) -> f64 {
    let (tile, wave) = (architecture.wave_rows(), architecture.wave_size());
    let waves = THREADS as usize / wave;
    let flops = match work {
        PeakWork::Product(dtype) => {
            let chains = ACCUMULATORS / (tile * tile / wave);
            let positions = if dtype == DType::F32 { 2 } else { 16 };
            2 * waves * chains * tile * tile * positions
        }
        // Sixteen chains a thread.
        PeakWork::MultiplyAdd => 2 * THREADS as usize * 16,
        PeakWork::Fill | PeakWork::Read | PeakWork::Copy => 0,
    };
    flops as f64
}
