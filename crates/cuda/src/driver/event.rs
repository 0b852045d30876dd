//! Marks in a stream, for timing.

use std::ptr;
use std::sync::Arc;

use cudarc::driver::sys::CUevent;
use omniflash_core::{Result, Stream};

use super::{Context, stream};

/// A mark in a stream, with the time at which work reached it.
#[derive(Debug)]
pub struct Event {
    context: Arc<Context>,
    raw: CUevent,
}

// SAFETY: events may be used from any thread; the handle is only an address.
unsafe impl Send for Event {}
// SAFETY: as above; the driver locks what it shares.
unsafe impl Sync for Event {}

impl Event {
    pub(crate) fn new(context: &Arc<Context>) -> Result<Self> {
        let _entered = context.enter()?;
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` is writable and the context is current.
        unsafe { context.api().cuEventCreate(&raw mut raw, 0) }?;
        Ok(Event { context: Arc::clone(context), raw })
    }

    /// Sets the mark after all work now on the stream.
    ///
    /// # Errors
    /// [`Error::Driver`](omniflash_core::Error::Driver).
    pub fn record(&self, on: &Stream) -> Result<()> {
        let _entered = self.context.enter()?;
        // SAFETY: the event is alive; whoever made the stream vouched for its handle.
        unsafe { self.context.api().cuEventRecord(self.raw, stream::handle(on)) }
    }

    /// Milliseconds from `self` to `end`; waits for both.
    ///
    /// # Errors
    /// [`Error::Driver`](omniflash_core::Error::Driver), also when one was never recorded.
    pub fn elapsed_ms(&self, end: &Event) -> Result<f32> {
        let _entered = self.context.enter()?;
        for event in [self, end] {
            // SAFETY: the event is alive.
            unsafe { self.context.api().cuEventSynchronize(event.raw) }?;
        }
        let mut milliseconds = 0.0;
        // SAFETY: `milliseconds` is writable and both events are alive.
        unsafe { self.context.api().cuEventElapsedTime(&raw mut milliseconds, self.raw, end.raw) }?;
        Ok(milliseconds)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let destroyed = self.context.enter().and_then(|_entered| {
            // SAFETY: created in `new`, destroyed only here.
            unsafe { self.context.api().cuEventDestroy(self.raw) }
        });
        if let Err(error) = destroyed {
            tracing::debug!(%error, "destroying an event");
        }
    }
}
