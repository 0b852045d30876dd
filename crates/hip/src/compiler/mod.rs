//! AMD's run-time compiler and clang, where this machine has them.

mod clang;
mod hiprtc;

pub use clang::{CLANG_VARIABLE, Clang};
pub use hiprtc::{HIPRTC_VARIABLE, Hiprtc};

use std::path::PathBuf;

/// Where ROCm may be installed.
fn toolkits() -> Vec<PathBuf> {
    let named = ["ROCM_PATH", "HIP_PATH"].iter().filter_map(std::env::var_os).map(PathBuf::from);
    named.chain([PathBuf::from("/opt/rocm")]).collect()
}

#[cfg(test)]
mod tests;
