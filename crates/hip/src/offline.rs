//! Plans and kernels for devices that this machine does not have.

use std::sync::Arc;

use omniflash_core::{AttentionPlan, AttentionProblem, Result, Support};
use omniflash_gpu::Planner;
use omniflash_kernel_store::KernelStore;
use omniflash_kernels_hip::Architecture;

use crate::backend::Hip;
use crate::probe::DeviceFacts;

/// Makes the plans that a backend on a device of some architecture would make, and finds or builds their kernels,
/// with no driver and no device: to fill a kernel cache ahead of time, or to see what a GPU would do.
///
/// Kernels depend on the architecture only; numbers of partitions also on the device's size, for which that of a
/// typical device stands.
#[derive(Debug)]
pub struct OfflinePlanner {
    planner: Planner<Hip>,
}

impl OfflinePlanner {
    /// A planner for an architecture, with the kernels of `store`.
    pub fn new(architecture: Architecture, store: Arc<KernelStore>) -> Self {
        OfflinePlanner {
            planner: Planner::new(format!("hip {architecture}"), typical_device(architecture), store),
        }
    }

    /// Whether a backend on such a device could compute a problem, whose tensors may be anywhere; compiles nothing.
    pub fn supports(&self, problem: &AttentionProblem<'_>) -> Support {
        self.planner.supports(problem)
    }

    /// The plan of a problem, whose tensors may be anywhere: they are not read.
    ///
    /// # Errors
    /// Those of [`Backend::plan`](omniflash_core::Backend::plan), but for the device of the tensors.
    pub fn plan(&self, problem: &AttentionProblem<'_>) -> Result<AttentionPlan> {
        self.planner.plan(problem)
    }
}

pub(crate) fn typical_device(architecture: Architecture) -> DeviceFacts {
    let (name, multiprocessors, l2_mib, memory_gib) = match architecture {
        Architecture::Gfx90a => ("MI250X", 110, 8, 64),
        Architecture::Gfx942 => ("MI300X", 304, 4, 192),
        Architecture::Gfx950 => ("MI355X", 256, 4, 288),
        Architecture::Gfx1100 => ("RX 7900 XTX", 96, 6, 24),
        Architecture::Gfx1200 => ("RX 9060 XT", 32, 4, 16),
        Architecture::Gfx1201 => ("RX 9070 XT", 64, 8, 16),
    };
    DeviceFacts {
        ordinal: 0,
        name: name.into(),
        architecture,
        arch_name: architecture.name().into(),
        memory_bytes: memory_gib << 30,
        multiprocessors,
        wave_size: architecture.wave_size(),
        shared_memory_bytes: architecture.shared_memory(),
        l2_bytes: l2_mib << 20,
        has_memory_pools: true,
        driver: "none".into(),
    }
}
