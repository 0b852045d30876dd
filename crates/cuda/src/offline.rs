//! Plans and kernels for devices that this machine does not have.

use std::sync::Arc;

use omniflash_core::{AttentionPlan, AttentionProblem, Error, Result, Support};
use omniflash_gpu::Planner;
use omniflash_kernel_store::KernelStore;

use crate::backend::Cuda;
use crate::probe::DeviceFacts;

/// Makes the plans that a backend on a device of some architecture would make, and finds or builds their kernels,
/// with no driver and no device: to fill a kernel cache ahead of time, or to see what a GPU would do.
///
/// Kernels depend on the architecture only; numbers of partitions also on the device's size, for which that of a
/// typical device stands.
#[derive(Debug)]
pub struct OfflinePlanner {
    planner: Planner<Cuda>,
}

impl OfflinePlanner {
    /// A planner for `arch`, such as `sm_90`, with the kernels of `store`.
    ///
    /// # Errors
    /// [`Error::Value`] for an architecture that is not known.
    pub fn new(arch: &str, store: Arc<KernelStore>) -> Result<Self> {
        let facts = typical_device(arch).ok_or_else(|| {
            let known: Vec<&str> = TYPICAL_DEVICES.iter().map(|device| device.arch).collect();
            Error::value("arch", arch, format!("one of {}", known.join(", ")))
        })?;
        Ok(OfflinePlanner { planner: Planner::new(format!("cuda {arch}"), facts, store) })
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

/// What plans look at in a device.
struct TypicalDevice {
    arch: &'static str,
    compute_capability: (u32, u32),
    name: &'static str,
    multiprocessors: usize,
    shared_memory_kib: usize,
    l2_mib: usize,
    memory_gib: u64,
}

#[rustfmt::skip]
const TYPICAL_DEVICES: &[TypicalDevice] = &[
    TypicalDevice { arch: "sm_80", compute_capability: (8, 0), name: "A100", multiprocessors: 108, shared_memory_kib: 163, l2_mib: 40, memory_gib: 80 },
    TypicalDevice { arch: "sm_86", compute_capability: (8, 6), name: "A10", multiprocessors: 72, shared_memory_kib: 99, l2_mib: 6, memory_gib: 24 },
    TypicalDevice { arch: "sm_89", compute_capability: (8, 9), name: "L40S", multiprocessors: 142, shared_memory_kib: 99, l2_mib: 96, memory_gib: 48 },
    TypicalDevice { arch: "sm_90", compute_capability: (9, 0), name: "H100", multiprocessors: 132, shared_memory_kib: 227, l2_mib: 50, memory_gib: 80 },
    TypicalDevice { arch: "sm_100", compute_capability: (10, 0), name: "B200", multiprocessors: 148, shared_memory_kib: 227, l2_mib: 126, memory_gib: 180 },
    TypicalDevice { arch: "sm_120", compute_capability: (12, 0), name: "RTX 5090", multiprocessors: 170, shared_memory_kib: 99, l2_mib: 96, memory_gib: 32 },
];

fn typical_device(arch: &str) -> Option<DeviceFacts> {
    let device = TYPICAL_DEVICES.iter().find(|device| device.arch == arch)?;
    Some(DeviceFacts {
        ordinal: 0,
        name: device.name.into(),
        compute_capability: device.compute_capability,
        memory_bytes: device.memory_gib << 30,
        multiprocessors: device.multiprocessors,
        shared_memory_bytes: device.shared_memory_kib << 10,
        l2_bytes: device.l2_mib << 20,
        has_memory_pools: true,
        driver: "none".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::arch;

    #[test]
    fn every_typical_device_has_the_architecture_it_stands_for() {
        for device in TYPICAL_DEVICES {
            assert_eq!(arch(&typical_device(device.arch).unwrap()), device.arch);
        }
    }

    #[test]
    fn an_unknown_architecture_is_told_the_known_ones() {
        let error = OfflinePlanner::new("sm_42", Arc::new(crate::kernel_store())).unwrap_err();
        assert!(error.to_string().contains("sm_80, sm_86"), "{error}");
    }
}
