//! Marks in a stream, for timing.

use std::ptr;
use std::sync::Arc;

use omniflash_core::{Result, Stream};

use super::api::HipEvent;
use super::{Context, stream};

/// A mark in a stream, with the time at which work reached it.
#[derive(Debug)]
pub struct Event {
    context: Arc<Context>,
    raw: HipEvent,
}

// SAFETY: events may be used from any thread; the handle is only an address.
unsafe impl Send for Event {}
// SAFETY: as above; the driver locks what it shares.
unsafe impl Sync for Event {}

impl Event {
    pub(crate) fn new(context: &Arc<Context>) -> Result<Self> {
        let _entered = context.enter()?;
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` is writable and the device is current.
        unsafe { context.api().hipEventCreateWithFlags(&raw mut raw, 0) }?;
        Ok(Event { context: Arc::clone(context), raw })
    }

    /// Sets the mark after all work now on the stream.
    ///
    /// # Errors
    /// [`Error::Driver`](omniflash_core::Error::Driver).
    pub fn record(&self, on: &Stream) -> Result<()> {
        let _entered = self.context.enter()?;
        // SAFETY: the event is alive; whoever made the stream vouched for its handle.
        unsafe { self.context.api().hipEventRecord(self.raw, stream::handle(on)) }
    }

    /// Milliseconds from `self` to `end`; waits for both.
    ///
    /// # Errors
    /// [`Error::Driver`](omniflash_core::Error::Driver), also when one was never recorded.
    pub fn elapsed_ms(&self, end: &Event) -> Result<f32> {
        let _entered = self.context.enter()?;
        let api = self.context.api();
        // SAFETY: the event is alive.
        unsafe { api.hipEventSynchronize(self.raw) }?;
        // SAFETY: the event is alive.
        unsafe { api.hipEventSynchronize(end.raw) }?;
        let mut elapsed_ms = 0.0;
        // SAFETY: `elapsed_ms` is writable, both events are alive.
        unsafe { api.hipEventElapsedTime(&raw mut elapsed_ms, self.raw, end.raw) }?;
        Ok(elapsed_ms)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed only here.
        self.context.release("an event", |api| unsafe { api.hipEventDestroy(self.raw) });
    }
}
