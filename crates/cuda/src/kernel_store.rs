//! The store of CUDA kernels: where the neutral store looks on a machine with an NVIDIA GPU.

use omniflash_gpu::library::path_variable;
use omniflash_kernel_store::{DiskCache, KERNELS_VARIABLE, KernelStore, StoreOptions};

use crate::compiler::{Nvcc, Nvrtc};

// `EMBEDDED`: the names and images of what `OMNIFLASH_EMBED_CUDA_KERNELS` held at build, usually nothing.
include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

const ADVICE: &str = "install NVRTC (the package nvidia-cuda-nvrtc, or a CUDA toolkit), or name a directory with kernels \
    built by `cargo xtask kernels cuda` in OMNIFLASH_KERNELS";

/// The store that all CUDA backends of a process share: `OMNIFLASH_KERNELS`, embedded kernels, the user's cache,
/// NVRTC, nvcc.
pub fn kernel_store() -> KernelStore {
    KernelStore::new(StoreOptions {
        directory: path_variable(KERNELS_VARIABLE),
        embedded: EMBEDDED,
        cache: DiskCache::of_user("cuda"),
        compilers: vec![Box::new(Nvrtc::of_system()), Box::new(Nvcc::of_system())],
        advice: ADVICE.into(),
    })
}
