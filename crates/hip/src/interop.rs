//! Memory and streams of other libraries.
//!
//! HIP has one context a device, which every library of a process uses, so the pointers and streams of torch, of
//! candle or of a program of one's own are valid here as they are:
//!
//! - **Memory** enters as [`TensorRef::from_raw`](omniflash_core::TensorRef::from_raw) and
//!   [`TensorMut::from_raw`](omniflash_core::TensorMut::from_raw) with the device address and
//!   [`DeviceId::Hip`]. It is borrowed: its owner frees it, after the stream has
//!   passed the launch.
//! - **Streams** enter through [`stream`]. They are borrowed too. Work of the caller on other streams is not waited
//!   for; the caller orders it with events, as for any kernel. Before HIP 7.1 streams have no ids: let the work of a
//!   stream end before it is destroyed, for a new stream can have its handle and would take over its workspace.
//! - **Buffers** that [`Backend::alloc`](omniflash_core::Backend::alloc) made on a foreign stream are freed in the
//!   order of that stream, so they must be dropped before it is destroyed.
//! - **Graphs.** A caller that captures its own stream launches the plan on it once before, or calls
//!   [`HipBackend::prepare`](crate::HipBackend::prepare); what the launch uses beside the tensors (workspace, tables
//!   of closures) is then kept as long as the backend. Graphs captured from one stream share its workspace: their
//!   replays must not overlap.

use std::ffi::c_void;

use omniflash_core::{DeviceId, Stream};

/// Borrows a `hipStream_t` of the GPU with this ordinal; null is the default stream.
///
/// # Safety
/// - `raw` is a stream of that device, and outlives the result and its clones.
pub unsafe fn stream(ordinal: u32, raw: *mut c_void) -> Stream {
    // SAFETY: the caller's duty.
    unsafe { Stream::from_raw(DeviceId::Hip(ordinal), raw.expose_provenance() as u64) }
}
