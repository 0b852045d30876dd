//! Names of architectures and kernels.

use omniflash_gpu::plan::functor_name;

use super::KernelChoice;
use crate::probe::DeviceFacts;

/// The architecture that kernels are compiled for: `gfx942`.
pub(crate) fn arch(facts: &DeviceFacts) -> &'static str {
    facts.architecture.name()
}

/// `fwd-{arch}-{dtype}-d{head_dim}-{tile}-{kv}-{mask}-{score modification}`.
pub(crate) fn kernel_id(kernel: &KernelChoice, arch: &str, mask_type: &str, score_mod_type: &str) -> String {
    let instance = match kernel {
        KernelChoice::Forward(config) => format!("fwd-{arch}-{config}"),
        KernelChoice::Naive(config) => {
            format!("naive-{arch}-{}-{}", config.dtype, if config.paged { "paged" } else { "strided" })
        }
    };
    format!("{instance}-{}-{}", functor_name(mask_type), functor_name(score_mod_type))
}
