//! The NVIDIA backend.

pub mod compiler;
pub mod driver;
mod kernel_store;
pub mod probe;
