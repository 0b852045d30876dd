//! Names of architectures and kernels.

use omniflash_gpu::plan::functor_name;
use omniflash_kernels_cuda::HOPPER_ARCH;

use super::KernelChoice;
use crate::probe::DeviceFacts;

/// The architecture that kernels are compiled for: `sm_90`.
pub(crate) fn arch(facts: &DeviceFacts) -> String {
    let (major, minor) = facts.compute_capability;
    format!("sm_{major}{minor}")
}

/// Architectures whose machine code runs on this device: its own, then the older ones of its generation.
pub(crate) fn arch_family(facts: &DeviceFacts) -> impl Iterator<Item = String> {
    let (major, minor) = facts.compute_capability;
    (0..=minor).rev().map(move |minor| format!("sm_{major}{minor}"))
}

/// `fwd-{arch}-{dtype}-d{head_dim}-{tile}-{kv}-{mask}-{score modification}`.
pub(crate) fn kernel_id(kernel: &KernelChoice, arch: &str, mask_type: &str, score_mod_type: &str) -> String {
    let instance = match kernel {
        KernelChoice::Forward(config) => format!("fwd-{arch}-{config}"),
        KernelChoice::Decode(config) => format!("dec-{arch}-{config}"),
        KernelChoice::Hopper(config) => format!("fwd-{HOPPER_ARCH}-{config}"),
        KernelChoice::Naive(config) => {
            format!("naive-{arch}-{}-{}", config.dtype, if config.paged { "paged" } else { "strided" })
        }
    };
    format!("{instance}-{}-{}", functor_name(mask_type), functor_name(score_mod_type))
}
