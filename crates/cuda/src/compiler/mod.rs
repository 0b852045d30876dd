//! NVIDIA's compilers, where this machine has them.

mod nvcc;
mod nvrtc;

pub use nvcc::Nvcc;
pub use nvrtc::{NVRTC_VARIABLE, Nvrtc};

use std::path::PathBuf;

use omniflash_gpu::library::path_variable;

/// Where toolkits may be installed.
fn toolkits() -> Vec<PathBuf> {
    let named = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(path_variable);
    named.chain([PathBuf::from("/usr/local/cuda")]).collect()
}

#[cfg(test)]
mod tests;
