//! Streams: our own, and what is asked of any.

use std::ptr;
use std::sync::Arc;

use cudarc::driver::sys::{CUstream, CUstream_flags};
use omniflash_core::{DeviceId, Result, Stream};

use super::Context;

/// A stream that is destroyed on drop; work already in it is still done.
#[derive(Debug)]
pub(crate) struct StreamHandle {
    context: Arc<Context>,
    raw: CUstream,
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
        let flags = CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: `raw` is writable and the context is current.
        unsafe { context.api().cuStreamCreate(&raw mut raw, flags) }?;
        Ok(StreamHandle { context: Arc::clone(context), raw })
    }

    /// The handle as an integer.
    pub(crate) fn raw(&self) -> u64 {
        self.raw.expose_provenance() as u64
    }
}

impl Drop for StreamHandle {
    fn drop(&mut self) {
        let destroyed = self.context.enter().and_then(|_entered| {
            // SAFETY: created in `new`, destroyed only here.
            unsafe { self.context.api().cuStreamDestroy(self.raw) }
        });
        if let Err(error) = destroyed {
            tracing::debug!(%error, "destroying a stream");
        }
    }
}

/// The driver's handle of a stream.
pub(crate) fn handle(stream: &Stream) -> CUstream {
    debug_assert!(matches!(stream.device(), DeviceId::Cuda(_)), "{stream:?} is no stream of this backend");
    ptr::with_exposed_provenance_mut(stream.raw() as usize)
}

/// Whether work on the stream is being captured in a graph rather than done.
pub(crate) fn is_capturing(context: &Context, stream: &Stream) -> Result<bool> {
    let mut status = 0;
    // SAFETY: `status` is writable; whoever made the stream vouched for its handle.
    unsafe { context.api().cuStreamIsCapturing(handle(stream), &raw mut status) }?;
    Ok(status != 0)
}

/// The driver's id of a stream, unique in the life of the process.
pub(crate) fn stream_id(context: &Context, stream: &Stream) -> Result<u64> {
    let _entered = context.enter()?;
    let mut id = 0;
    // SAFETY: `id` is writable; whoever made the stream vouched for its handle.
    unsafe { context.api().cuStreamGetId(handle(stream), &raw mut id) }?;
    Ok(id)
}

/// Waits for all work on the stream; faults of earlier launches are reported here.
pub(crate) fn synchronize(context: &Context, stream: &Stream) -> Result<()> {
    let _entered = context.enter()?;
    // SAFETY: whoever made the stream vouched for its handle.
    unsafe { context.api().cuStreamSynchronize(handle(stream)) }
}
