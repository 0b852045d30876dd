//! The driver: the only modules that call foreign functions.
//!
//! A thin layer: a table of functions, and [`Driver`](omniflash_gpu::Driver) in terms of them, each method one or two
//! calls, each failure an [`Error`](omniflash_core::Error) with the function, the code and the driver's text. What is
//! made here is owned, and given back on drop, by the types of `omniflash-gpu`.

mod api;
mod calls;
#[cfg(feature = "hip-link")]
mod conformance;
mod context;

pub(crate) use api::{Api, DeviceStrings, constant};
pub(crate) use context::Context;

/// A mark in a stream, with the time at which work reached it.
pub type Event = omniflash_gpu::Event<Context>;
/// Work captured from a stream, ready to be replayed.
pub type Graph = omniflash_gpu::Graph<Context>;
