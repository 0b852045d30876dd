//! Runs AMD GPU code objects on a CPU behind the HIP C API. Test only.

mod checker;
mod code_object;
mod configuration;
mod counters;
mod device;
mod disassembly;
mod fault;
#[allow(non_snake_case, reason = "the functions are named by HIP")]
pub mod hip_api;
mod instruction;
mod memory;
mod program;
mod target;
mod wave;
mod workgroup;

pub use checker::Checks;
pub use configuration::{Configuration, ConfigurationError};
pub use counters::{CLASSES, Class, Counters};
pub use device::{Device, Dimensions, MemoryError, Module};
pub use fault::{Fault, LaunchError, LoadError, Violation};
pub use target::{Target, UnknownTarget};
