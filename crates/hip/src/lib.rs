//! The AMD backend of omniflash: found, compiled for and launched at run time.
//!
//! ROCm is not needed to build it, nor a GPU to run a program that contains it: [`discover`] answers with the GPUs or
//! with [`Absent`], which says what is missing.
//!
//! It was never run on AMD hardware by its authors: the code objects that it would ship run in an emulator of the
//! instruction set, behind this very backend. See `README.md` of `omniflash-kernels-hip`.
//!
//! | module | what it does |
//! |---|---|
//! | [`probe`] | looks for the driver and its devices |
//! | [`driver`] | the only foreign calls |
//! | `plan` | chooses kernel, tiles and partitions: pure, host only |
//! | `planner` | finds or compiles the chosen kernels, keeps plans |
//! | `offline` | plans and builds kernels for a device that is not here |
//! | `launch` | from a problem to parameters, and onto the stream |
//! | [`compiler`] | hipRTC and clang, for kernels that no directory and no cache holds |
//! | [`interop`] | memory and streams of other libraries |

mod backend;
pub mod compiler;
pub mod driver;
pub mod interop;
mod kernel_store;
mod launch;
mod offline;
mod plan;
mod planner;
pub mod probe;
#[cfg(test)]
mod tests;

pub use backend::{HipBackend, discover};
pub use kernel_store::kernel_store;
pub use offline::OfflinePlanner;
pub use probe::Absent;
