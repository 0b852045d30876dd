//! AMD's run-time compiler and clang, where this machine has them.

mod batch;
mod clang;
mod hiprtc;

pub use clang::{CLANG_VARIABLE, Clang};
#[cfg(test)]
pub(crate) use hiprtc::SYMBOLS as HIPRTC_SYMBOLS;
pub use hiprtc::{HIPRTC_VARIABLE, Hiprtc};

use std::path::PathBuf;

use omniflash_gpu::library::path_variable;

/// Where ROCm may be installed.
fn toolkits() -> Vec<PathBuf> {
    let named = ["ROCM_PATH", "HIP_PATH"].into_iter().filter_map(path_variable);
    named.chain([PathBuf::from("/opt/rocm")]).collect()
}

#[cfg(test)]
mod tests;
