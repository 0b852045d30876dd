//! The driver: the only modules that call foreign functions.
//!
//! A thin layer: each type owns one driver object and frees it on drop, each method is one or two driver calls, each
//! failure an [`Error`](omniflash_core::Error) with the function, the code and the driver's text.

mod api;
mod context;
mod event;
mod graph;
mod memory;
mod module;
mod stream;
mod tensor_map;

pub(crate) use api::{Api, Code};
pub(crate) use context::Context;
pub use event::Event;
pub use graph::Graph;
pub(crate) use memory::{DeviceMemory, copy_to_device, copy_to_host};
pub(crate) use module::{Launch, Module};
pub(crate) use stream::{StreamHandle, synchronize};
pub(crate) use tensor_map::{TensorBox, encode_tensor_map};
