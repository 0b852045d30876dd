//! NVIDIA's compilers, where this machine has them.

mod nvcc;
mod nvrtc;

pub use nvcc::Nvcc;
pub use nvrtc::{NVRTC_VARIABLE, Nvrtc};

use std::path::PathBuf;

/// Where toolkits may be installed.
fn toolkits() -> Vec<PathBuf> {
    let named = ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(std::env::var_os).map(PathBuf::from);
    named.chain([PathBuf::from("/usr/local/cuda")]).collect()
}

#[cfg(test)]
mod tests;
