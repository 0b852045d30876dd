//! What the GPU backends share on the host, whoever made the GPU: filling the kernels' parameters, what is kept for a
//! stream, tables of closures, and the pure parts of planning.
//!
//! It links no driver: [`Driver`] names the calls that it needs of one, and each backend's `driver` module makes them.

pub mod check;
pub mod driver;
mod event;
mod graph;
pub mod library;
mod mask_table;
pub mod memory;
mod module;
pub mod parameters;
pub mod plan;
pub mod split;
pub mod stream;
pub mod stream_state;

pub use driver::{Driver, Launch};
pub use event::Event;
pub use graph::Graph;
pub use memory::DeviceMemory;
pub use module::Module;
pub use plan::{PlanKey, functors};
pub use stream_state::{StreamState, StreamStates, StreamUse, lock};
