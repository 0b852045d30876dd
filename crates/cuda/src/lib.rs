//! The NVIDIA backend.

pub mod compiler;
pub mod driver;
mod kernel_store;
mod plan;
pub mod probe;
