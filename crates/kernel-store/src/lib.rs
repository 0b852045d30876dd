//! Finds, compiles and caches device kernels, for any vendor.
//!
//! A [`KernelStore`] answers a [`KernelSource`] with a compiled [`Kernel`] from, in this order: a directory of
//! prebuilt kernels or a [`KernelPack`] of them, packs installed in the user's cache directory, kernels embedded in the
//! program, what was compiled into the cache before, the first [`Compiler`] that is present. One compilation of a kernel runs at a time, in a process and among processes; what a cache holds is
//! verified before it is used; a cache that cannot be written costs time, never an answer.
//!
//! ```
//! use omniflash_kernel_store::{KernelSource, KernelStore, StoreOptions};
//!
//! // Nothing is built in, and there is neither a cache nor a compiler: the error says what to do.
//! let store = KernelStore::new(StoreOptions {
//!     embedded: &[],
//!     advice: "install a compiler".into(),
//!     ..StoreOptions::default()
//! });
//! let source = KernelSource {
//!     id: "fwd",
//!     arch: "sm_90",
//!     functor: "Causal",
//!     source: "extern \"C\" __global__ void fwd() {}",
//!     options: &[],
//!     prebuilt_tags: &[],
//! };
//! let error = store.kernel(&source).unwrap_err().to_string();
//! assert!(error.contains("no kernel fwd for sm_90") && error.contains("install a compiler"));
//! ```
//!
//! It is a crate of its own, below the GPU backends, because all of its logic is the same for each of them and can
//! be tested with no GPU and no compiler: a backend adds its compilers and its advice.

mod cache;
mod compiler;
mod entry;
mod kernel;
mod listing;
mod pack;
mod source_list;
mod store;

pub use cache::{CACHE_VARIABLE, DiskCache};
pub use compiler::{CompileError, Compiler};
pub use entry::CacheEntry;
pub use kernel::{Kernel, KernelSource, Origin, prebuilt_name, prebuilt_tag};
pub use pack::{KernelPack, PackError};
pub use source_list::{ListedSource, SourceList};
pub use store::{KERNELS_VARIABLE, KernelStore, StoreOptions};
