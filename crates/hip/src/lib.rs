//! The AMD backend of omniflash: found, compiled for and launched at run time.
//!
//! ROCm is not needed to build it, nor a GPU to run a program that contains it: [`discover`] answers with the GPUs or
//! with [`Absent`], which says what is missing.
//!
//! It was never run on AMD hardware by its authors: the code objects that it would ship run in an emulator of the
//! instruction set, behind this very backend. See `README.md` of `omniflash-kernels-hip`.
//!
//! ```
//! match omniflash_hip::discover() {
//!     Ok(backends) => println!("{} GPUs", backends.len()),
//!     Err(absent) => println!("no HIP here: {absent}"),
//! }
//! ```
//!
//! | module | what it does |
//! |---|---|
//! | [`probe`] | looks for the driver and its devices |
//! | [`driver`] | the only foreign calls |
//! | `plan` | chooses kernel, tiles and partitions: pure, host only |
//! | `backend` | the vendor, as `omniflash-gpu` asks for it: all that is not here is there, once for all vendors |
//! | `offline` | plans and builds kernels for a device that is not here |
//! | [`compiler`] | hipRTC and clang, for kernels that no directory and no cache holds |
//! | [`interop`] | memory and streams of other libraries |

mod backend;
pub mod compiler;
pub mod driver;
pub mod interop;
mod kernel_store;
mod offline;
mod plan;
pub mod probe;
#[cfg(test)]
mod tests;

pub use backend::{Hip, HipBackend, discover};
pub use kernel_store::kernel_store;
pub use offline::OfflinePlanner;
pub use omniflash_kernels_hip::Architecture;
pub use probe::Absent;
