//! The NVIDIA backend of omniflash: found, compiled for and launched at run time.
//!
//! No toolkit is needed to build it, and no GPU to run a program that contains it: [`discover`] answers with the GPUs
//! or with [`Absent`], which says what is missing.
//!
//! ```
//! match omniflash_cuda::discover() {
//!     Ok(backends) => println!("{} GPUs", backends.len()),
//!     Err(absent) => println!("no CUDA here: {absent}"),
//! }
//! ```
//!
//! Plans need no GPU either: [`OfflinePlanner`] makes them, and builds their kernels, for one that is elsewhere.
//!
//! | module | what it does |
//! |---|---|
//! | [`probe`] | looks for the driver and its devices |
//! | [`driver`] | the only foreign calls |
//! | `plan` | chooses kernel, tiles and partitions: pure, host only |
//! | `backend` | the vendor, as `omniflash-gpu` asks for it: all that is not here is there, once for all vendors |
//! | `offline` | plans and builds kernels for a device that is not here |
//! | `launch` | what Hopper's kernel is given beside the parameters of all kernels |
//! | [`compiler`] | NVRTC and nvcc, for kernels that no directory and no cache holds |
//! | [`interop`] | memory and streams of other libraries |

#[cfg(test)]
extern crate self as omniflash_cuda;

mod backend;
pub mod compiler;
pub mod driver;
pub mod interop;
mod kernel_store;
mod launch;
mod offline;
mod plan;
pub mod probe;
#[cfg(test)]
mod tests;

pub use backend::{Cuda, CudaBackend, discover};
pub use kernel_store::kernel_store;
pub use offline::OfflinePlanner;
pub use probe::Absent;
