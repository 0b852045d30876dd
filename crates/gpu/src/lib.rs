//! What the GPU backends share on the host, whoever made the GPU: filling the kernels' parameters, what is kept for a
//! stream, tables of closures, and the pure parts of planning.
//!
//! It calls no driver. Where kept state needs one, the backend's driver comes in through [`StreamDriver`] and
//! [`StreamMemory`], so that both backends keep the same state by the same rules.

pub mod check;
pub mod library;
pub mod mask_table;
pub mod parameters;
pub mod plan;
pub mod split;
pub mod stream_state;

pub use plan::{PlanKey, functors};
pub use stream_state::{StreamDriver, StreamMemory, StreamState, StreamStates, StreamUse, lock};
