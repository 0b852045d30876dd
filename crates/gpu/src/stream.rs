//! Streams of our own.

use std::sync::Arc;

use omniflash_core::{DeviceId, Result, Stream};

use crate::driver::{Driver, release};
use crate::stream_state::StreamStates;

/// A stream that is destroyed on drop; work already in it is still done.
#[derive(Debug)]
struct StreamHandle<D: Driver> {
    driver: Arc<D>,
    raw: u64,
}

impl<D: Driver> Drop for StreamHandle<D> {
    fn drop(&mut self) {
        // SAFETY: created in `owned`, destroyed only here.
        release(&*self.driver, "a stream", |driver| unsafe { driver.destroy_stream(self.raw) });
    }
}

/// A stream of ours, with what is kept for it.
struct OwnedStream<D: Driver> {
    device: DeviceId,
    states: Arc<StreamStates<D>>,
    handle: StreamHandle<D>,
}

impl<D: Driver> Drop for OwnedStream<D> {
    fn drop(&mut self) {
        // SAFETY: the stream is alive until `handle` is dropped, after this.
        let stream = unsafe { Stream::from_raw(self.device, self.handle.raw) };
        if let Err(error) = self.states.forget(&*self.handle.driver, &stream) {
            tracing::debug!(%error, "freeing what a stream used");
        }
    }
}

/// A new stream of a device; with it goes what is kept for it.
///
/// # Errors
/// [`Error::Driver`](omniflash_core::Error::Driver).
pub(crate) fn owned<D: Driver>(
    driver: &Arc<D>,
    device: DeviceId,
    states: &Arc<StreamStates<D>>,
) -> Result<Stream> {
    let _entered = driver.enter()?;
    let handle = StreamHandle { raw: driver.create_stream()?, driver: Arc::clone(driver) };
    let raw = handle.raw;
    let owner = OwnedStream { device, states: Arc::clone(states), handle };
    // SAFETY: the stream is this device's and is destroyed with its owner.
    Ok(unsafe { Stream::from_owner(device, raw, Arc::new(owner)) })
}
