//! Streams: our own, and what is asked of any.

use std::ptr;
use std::sync::Arc;

use omniflash_core::{DeviceId, Result, Stream};

use super::Context;
use super::api::{HipStream, constant};

/// A stream that is destroyed on drop; work already in it is still done.
#[derive(Debug)]
pub(crate) struct StreamHandle {
    context: Arc<Context>,
    raw: HipStream,
}

// SAFETY: streams may be used from any thread; the handle is only an address.
unsafe impl Send for StreamHandle {}
// SAFETY: as above; the driver locks what it shares.
unsafe impl Sync for StreamHandle {}

impl StreamHandle {
    /// A stream that does not wait for the default stream.
    pub(crate) fn new(context: &Arc<Context>) -> Result<Self> {
        let _entered = context.enter()?;
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` is writable and the device is current.
        unsafe { context.api().hipStreamCreateWithFlags(&raw mut raw, constant::STREAM_NON_BLOCKING) }?;
        Ok(StreamHandle { context: Arc::clone(context), raw })
    }

    /// The handle as an integer.
    pub(crate) fn raw(&self) -> u64 {
        self.raw.expose_provenance() as u64
    }
}

impl Drop for StreamHandle {
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed only here.
        self.context.release("a stream", |api| unsafe { api.hipStreamDestroy(self.raw) });
    }
}

/// The driver's handle of a stream.
pub(crate) fn handle(stream: &Stream) -> HipStream {
    debug_assert!(matches!(stream.device(), DeviceId::Hip(_)), "{stream:?} is no stream of this backend");
    ptr::with_exposed_provenance_mut(stream.raw() as usize)
}

/// Whether work on the stream is being captured in a graph rather than done.
pub(crate) fn is_capturing(context: &Context, stream: &Stream) -> Result<bool> {
    // Null is the current device's stream.
    let _entered = context.enter()?;
    let mut status = 0;
    // SAFETY: `status` is writable; whoever made the stream vouched for its handle.
    unsafe { context.api().hipStreamIsCapturing(handle(stream), &raw mut status) }?;
    Ok(status != 0)
}

/// The driver's id of a stream; of a driver without ids the handle, which a later stream can have again.
pub(crate) fn stream_id(context: &Context, stream: &Stream) -> Result<u64> {
    /// No address has this bit, and no count of streams reaches it: 0 names no stream, and ids are no handles.
    const HANDLE: u64 = 1 << 63;
    let _entered = context.enter()?;
    // SAFETY: the device is current; whoever made the stream vouched for its handle.
    let id = unsafe { context.api().stream_id(handle(stream)) }?;
    Ok(match id {
        Some(id) => id + 1,
        None => stream.raw() | HANDLE,
    })
}

/// Waits for all work on the stream; faults of earlier launches are reported here.
pub(crate) fn synchronize(context: &Context, stream: &Stream) -> Result<()> {
    let _entered = context.enter()?;
    // SAFETY: whoever made the stream vouched for its handle.
    unsafe { context.api().hipStreamSynchronize(handle(stream)) }
}
