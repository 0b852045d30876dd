//! The NVIDIA backend of omniflash: found, compiled for and launched at run time.
//!
//! No toolkit is needed to build it, and no GPU to run a program that contains it: [`discover`] answers with the GPUs
//! or with [`Absent`], which says what is missing.
//!
//! | module | what it does |
//! |---|---|
//! | [`probe`] | looks for the driver and its devices |
//! | [`driver`] | the only foreign calls |
//! | `plan` | chooses kernel, tiles and partitions: pure, host only |
//! | `planner` | finds or compiles the chosen kernels, keeps plans |
//! | `offline` | plans and builds kernels for a device that is not here |
//! | `launch` | from a problem to parameters, and onto the stream |
//! | `measure` | times by the device's clock, and its peaks |
//! | [`compiler`] | NVRTC and nvcc, for kernels that no directory and no cache holds |
//! | [`interop`] | memory and streams of other libraries |

#[cfg(test)]
extern crate self as omniflash_cuda;

mod backend;
pub mod compiler;
pub mod driver;
pub mod interop;
mod kernel_store;
mod kv_append;
mod launch;
mod measure;
mod offline;
mod plan;
mod planner;
pub mod probe;
#[cfg(test)]
mod tests;

pub use backend::{CudaBackend, discover};
pub use kernel_store::kernel_store;
pub use offline::OfflinePlanner;
pub use probe::Absent;
