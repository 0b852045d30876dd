//! Device memory, allocated and freed in the order of a stream.

use std::sync::Arc;

use omniflash_core::{Error, Result, Stream};

use crate::driver::{Driver, release};

/// Owned device memory, freed on drop.
#[derive(Debug)]
pub(crate) struct DeviceMemory<D: Driver> {
    driver: Arc<D>,
    /// The stream after whose work the memory is freed; after all work of the device where there is none.
    stream: Option<Stream>,
    address: u64,
    bytes: usize,
}

impl<D: Driver> DeviceMemory<D> {
    /// Memory that is freed after all work then on `stream`, which is kept alive for that.
    ///
    /// The contents are undefined; usable by work enqueued on `stream` from now on.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] or [`Error::Driver`].
    pub(crate) fn new(driver: &Arc<D>, bytes: usize, stream: &Stream) -> Result<Self> {
        let memory = DeviceMemory::kept(driver, bytes, stream)?;
        Ok(memory.bound_to(stream))
    }

    /// As [`new`](DeviceMemory::new), for memory that may outlive the stream: dropped, it waits for the device.
    ///
    /// # Errors
    /// As [`new`](DeviceMemory::new).
    pub(crate) fn kept(driver: &Arc<D>, bytes: usize, stream: &Stream) -> Result<Self> {
        let _entered = driver.enter()?;
        // An empty tensor still has an address of its own.
        let size = bytes.max(1);
        let allocated =
            if driver.has_memory_pools() { driver.allocate_on(size, stream) } else { driver.allocate(size) };
        let address = allocated.map_err(|error| match error {
            Error::Driver { code, .. } if code == D::OUT_OF_MEMORY => {
                Error::OutOfMemory { device: stream.device().to_string(), bytes }
            }
            error => error,
        })?;
        Ok(DeviceMemory { driver: Arc::clone(driver), stream: None, address, bytes })
    }

    fn bound_to(mut self, stream: &Stream) -> Self {
        self.stream = Some(stream.clone());
        self
    }

    /// The address of the first byte.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// The size in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Fills the memory with zeros, in the order of the stream.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub(crate) fn zero(&self, stream: &Stream) -> Result<()> {
        if self.bytes == 0 {
            return Ok(());
        }
        let _entered = self.driver.enter()?;
        // SAFETY: the memory is `bytes` long, and this value's own.
        unsafe { self.driver.zero(self.address, self.bytes, stream) }
    }

    /// Copies host bytes to the start, and waits until the source has been read.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub(crate) fn write(&self, source: &[u8], stream: &Stream) -> Result<()> {
        debug_assert!(source.len() <= self.bytes);
        // SAFETY: the memory is this value's own, at least as long as the source.
        unsafe { copy_to_device(&*self.driver, source, self.address, stream) }
    }

    /// Frees the memory after all work now on `stream`.
    pub(crate) fn free_on(self, stream: &Stream) {
        drop(self.bound_to(stream));
    }
}

impl<D: Driver> Drop for DeviceMemory<D> {
    fn drop(&mut self) {
        release(&*self.driver, "device memory", |driver| match &self.stream {
            Some(stream) if driver.has_memory_pools() => {
                // SAFETY: allocated in `kept` and freed only here; the stream is kept alive.
                unsafe { driver.free_on(self.address, stream) }
            }
            // SAFETY: allocated in `kept`, freed only here.
            _ => unsafe { driver.free(self.address) },
        });
    }
}

/// Copies host bytes to the device and waits until they have been read.
///
/// # Safety
/// - `target` is device memory of at least the source's length.
pub(crate) unsafe fn copy_to_device<D: Driver>(
    driver: &D,
    source: &[u8],
    target: u64,
    on: &Stream,
) -> Result<()> {
    if source.is_empty() {
        return Ok(());
    }
    let _entered = driver.enter()?;
    // SAFETY: the source is valid for its length until the synchronisation below, the target by the caller's word.
    let copied = unsafe { driver.copy_to_device(source, target, on) };
    copied.and(driver.synchronize(on))
}

/// Copies device memory to the host, after all work on the stream, and waits for it.
///
/// # Safety
/// - `source` is device memory of at least the target's length.
pub(crate) unsafe fn copy_to_host<D: Driver>(
    driver: &D,
    source: u64,
    target: &mut [u8],
    on: &Stream,
) -> Result<()> {
    if target.is_empty() {
        return Ok(());
    }
    let _entered = driver.enter()?;
    // SAFETY: the target is valid for its length until the synchronisation below, the source by the caller's word.
    let copied = unsafe { driver.copy_to_host(source, target, on) };
    copied.and(driver.synchronize(on))
}
