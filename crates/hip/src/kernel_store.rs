//! The store of HIP kernels: where the neutral store looks on a machine with an AMD GPU.

use omniflash_gpu::library::path_variable;
use omniflash_kernel_store::{DiskCache, KERNELS_VARIABLE, KernelStore, StoreOptions};

use crate::compiler::{Clang, Hiprtc};

// `EMBEDDED`: the names and images of what `OMNIFLASH_EMBED_HIP_KERNELS` held at build, usually nothing.
include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

const ADVICE: &str = "install hipRTC (a part of ROCm), or clang 20 or later with lld and the AMDGPU target, or name a directory \
    with kernels built by `cargo xtask kernels hip` in OMNIFLASH_KERNELS";

/// The store that all HIP backends of a process share: `OMNIFLASH_KERNELS`, embedded kernels, the user's cache,
/// hipRTC, clang.
pub fn kernel_store() -> KernelStore {
    KernelStore::new(StoreOptions {
        directory: path_variable(KERNELS_VARIABLE),
        embedded: EMBEDDED,
        cache: DiskCache::of_user("hip"),
        compilers: vec![Box::new(Hiprtc::of_system()), Box::new(Clang::of_system())],
        advice: ADVICE.into(),
    })
}
