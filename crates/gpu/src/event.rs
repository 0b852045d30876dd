//! Marks in a stream, for timing.

use std::sync::Arc;

use omniflash_core::{Result, Stream};

use crate::driver::{Driver, release};

/// A mark in a stream, with the time at which work reached it.
#[derive(Debug)]
pub struct Event<D: Driver> {
    driver: Arc<D>,
    raw: D::Event,
}

// SAFETY: a driver's handles may be used from any thread.
unsafe impl<D: Driver> Send for Event<D> {}
// SAFETY: as above, by several at a time.
unsafe impl<D: Driver> Sync for Event<D> {}

impl<D: Driver> Event<D> {
    /// A mark that no work has reached.
    pub(crate) fn new(driver: &Arc<D>) -> Result<Self> {
        let _entered = driver.enter()?;
        Ok(Event { raw: driver.create_event()?, driver: Arc::clone(driver) })
    }

    /// Sets the mark after all work now on the stream.
    ///
    /// # Errors
    /// [`Error::Driver`](omniflash_core::Error::Driver).
    pub fn record(&self, on: &Stream) -> Result<()> {
        let _entered = self.driver.enter()?;
        // SAFETY: the event is alive.
        unsafe { self.driver.record_event(self.raw, on) }
    }

    /// Milliseconds from `self` to `end`; waits for both.
    ///
    /// # Errors
    /// [`Error::Driver`](omniflash_core::Error::Driver), also when one was never recorded.
    pub fn elapsed_ms(&self, end: &Self) -> Result<f32> {
        let _entered = self.driver.enter()?;
        for event in [self, end] {
            // SAFETY: the event is alive.
            unsafe { self.driver.synchronize_event(event.raw) }?;
        }
        // SAFETY: both events are alive.
        unsafe { self.driver.elapsed_ms(self.raw, end.raw) }
    }
}

impl<D: Driver> Drop for Event<D> {
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed only here.
        release(&*self.driver, "an event", |driver| unsafe { driver.destroy_event(self.raw) });
    }
}
