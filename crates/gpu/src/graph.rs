//! Graphs: work captured from a stream once and replayed at little cost.

use std::sync::Arc;

use omniflash_core::{Result, Stream};

use crate::driver::{Driver, release};

/// Work captured from a stream, ready to be replayed.
///
/// What it addresses stays its user's duty: tensors captured, and the workspace of the stream it was captured from,
/// which the backend keeps. Graphs captured from one stream share that workspace, so replay them one after another.
#[derive(Debug)]
pub struct Graph<D: Driver> {
    driver: Arc<D>,
    raw: D::Graph,
}

// SAFETY: a driver's handles may be used from any thread.
unsafe impl<D: Driver> Send for Graph<D> {}
// SAFETY: as above, by several at a time.
unsafe impl<D: Driver> Sync for Graph<D> {}

impl<D: Driver> Graph<D> {
    /// Captures what `enqueue` puts on the stream, instead of doing it.
    pub(crate) fn capture(
        driver: &Arc<D>,
        on: &Stream,
        enqueue: impl FnOnce() -> Result<()>,
    ) -> Result<Self> {
        let _entered = driver.enter()?;
        driver.begin_capture(on)?;
        let enqueued = enqueue();
        // Ended even after an error: the stream must not stay in capture.
        let captured = match (enqueued, driver.end_capture(on)) {
            (Ok(()), Ok(captured)) => captured,
            (Err(error), Ok(captured)) => {
                // SAFETY: the capture ended with it, and nobody else has it.
                unsafe { driver.destroy_captured_graph(captured) }?;
                return Err(error);
            }
            (Err(error), Err(_)) | (Ok(()), Err(error)) => return Err(error),
        };
        // SAFETY: the capture ended with it.
        let instantiated = unsafe { driver.instantiate_graph(captured) };
        let graph = instantiated.map(|raw| Graph { driver: Arc::clone(driver), raw });
        // SAFETY: as above; what is instantiated from it lives on.
        unsafe { driver.destroy_captured_graph(captured) }?;
        graph
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
        let _entered = self.driver.enter()?;
        // SAFETY: the graph is alive; its memory is the caller's duty.
        unsafe { self.driver.launch_graph(self.raw, on) }
    }
}

impl<D: Driver> Drop for Graph<D> {
    fn drop(&mut self) {
        // SAFETY: instantiated in `capture`, destroyed only here.
        release(&*self.driver, "a graph", |driver| unsafe { driver.destroy_graph(self.raw) });
    }
}
