//! The HIP C API. Every function returns an integer error code and goes through [`call`], which injects faults,
//! remembers the last error and keeps a panic from crossing into C.

pub mod call;
pub mod control;
pub mod device;
pub mod error;
pub mod event;
pub mod graph;
pub mod hiprtc;
pub mod launch;
pub mod memory;
pub mod module;
pub mod properties;
pub mod runtime;
pub mod stream;
pub mod work;

pub use control::{counters, inject, reset, set_configuration, set_devices};
