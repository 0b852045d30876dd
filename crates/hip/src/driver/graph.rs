//! Graphs: work captured from a stream once and replayed at little cost.

use std::ptr;
use std::sync::Arc;

use omniflash_core::{Result, Stream};

use super::api::{HipGraphExec, constant};
use super::{Context, stream};

/// Work captured from a stream, ready to be replayed.
///
/// What it addresses stays its user's duty: tensors captured, and the workspace of the stream it was captured from,
/// which the backend keeps. Graphs captured from one stream share that workspace, so replay them one after another.
#[derive(Debug)]
pub struct Graph {
    context: Arc<Context>,
    raw: HipGraphExec,
}

// SAFETY: executable graphs may be used from any thread; launches of one graph are serialised by the driver. The
// handle is only an address.
unsafe impl Send for Graph {}
// SAFETY: as above.
unsafe impl Sync for Graph {}

impl Graph {
    /// Captures what `enqueue` puts on the stream, instead of doing it.
    pub(crate) fn capture(
        context: &Arc<Context>,
        on: &Stream,
        enqueue: impl FnOnce() -> Result<()>,
    ) -> Result<Self> {
        let _entered = context.enter()?;
        let api = context.api();
        // SAFETY: whoever made the stream vouched for its handle.
        unsafe { api.hipStreamBeginCapture(stream::handle(on), constant::CAPTURE_MODE_THREAD_LOCAL) }?;
        let enqueued = enqueue();
        let mut graph = ptr::null_mut();
        // Ended even after an error: the stream must not stay in capture.
        // SAFETY: `graph` is writable, and the capture was begun above on this thread.
        let ended = unsafe { api.hipStreamEndCapture(stream::handle(on), &raw mut graph) };
        let instantiated = enqueued.and(ended).and_then(|()| {
            let mut raw = ptr::null_mut();
            // SAFETY: `raw` is writable and `graph` is alive; neither the failing node nor a log is asked for.
            unsafe { api.hipGraphInstantiate(&raw mut raw, graph, ptr::null_mut(), ptr::null_mut(), 0) }?;
            Ok(Graph { context: Arc::clone(context), raw })
        });
        if !graph.is_null() {
            // SAFETY: the graph came from the capture; what is instantiated from it lives on.
            unsafe { api.hipGraphDestroy(graph) }?;
        }
        instantiated
    }

    /// Enqueues the captured work.
    ///
    /// # Errors
    /// [`Error::Driver`](omniflash_core::Error::Driver).
    ///
    /// # Safety
    /// - Every tensor captured is still allocated, and until the stream has passed this replay nothing else writes
    ///   what it reads, or touches what it writes.
    pub unsafe fn replay(&self, on: &Stream) -> Result<()> {
        let _entered = self.context.enter()?;
        // SAFETY: the graph is alive; its memory is the caller's duty.
        unsafe { self.context.api().hipGraphLaunch(self.raw, stream::handle(on)) }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: instantiated in `capture`, destroyed only here.
        self.context.release("a graph", |api| unsafe { api.hipGraphExecDestroy(self.raw) });
    }
}
