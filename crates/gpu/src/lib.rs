//! What the GPU backends share, whoever made the GPU: everything but the driver's calls, the kernels and how they are
//! chosen.
//!
//! A backend is a [`Vendor`]: its [`Driver`], its kernels as [`KernelInstance`]s, its choice among them. From that,
//! [`GpuBackend`] plans, compiles, launches, appends to caches and measures. A caller of attention needs none of it.
//!
//! | module | what it does |
//! |---|---|
//! | [`vendor`], [`driver`] | what a backend has to answer |
//! | `backend` | one device behind the trait [`Backend`](omniflash_core::Backend) |
//! | `planner` | finds or compiles the chosen kernels, keeps plans |
//! | `launcher`, [`parameters`] | from a problem to parameters, and onto the stream |
//! | `kv_append` | new rows of a cache |
//! | `measure` | times by the device's clock, and its peaks |
//! | `stream_state`, `mask_table` | what is kept for a stream |
//! | [`compiler`], [`library`] | calls compilers, loads libraries |
//! | [`plan`], [`split`], [`check`] | the pure parts of planning |
//! | `tuned` | what was measured to be the fastest, kept in the user's cache |
//! | `memory`, `stream`, `event`, `graph`, `module` | own what the driver made, and give it back |

mod backend;
pub mod check;
pub mod compiler;
pub mod driver;
mod event;
mod graph;
mod key_map;
mod kv_append;
mod launcher;
pub mod library;
mod mask_table;
mod measure;
mod memory;
mod module;
pub mod packing;
pub mod parameters;
pub mod plan;
mod planner;
pub mod split;
mod stream;
mod stream_state;
mod tuned;
pub mod vendor;

pub use backend::GpuBackend;
pub use driver::Driver;
pub use event::Event;
pub use graph::Graph;
pub use plan::{Choice, PlanKey};
pub use planner::Planner;
pub use vendor::{KernelInstance, Vendor};
