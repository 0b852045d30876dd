//! Device memory, allocated and freed in the order of a stream.

use std::sync::Arc;

use cudarc::driver::sys::CUdeviceptr;
use omniflash_core::{Error, Result, Stream};
use omniflash_gpu::StreamMemory;

use super::api::OUT_OF_MEMORY;
use super::{Context, stream};

/// Owned device memory, freed on drop.
#[derive(Debug)]
pub(crate) struct DeviceMemory {
    context: Arc<Context>,
    /// The stream after whose work the memory is freed; after all work of the device where there is none.
    stream: Option<Stream>,
    address: CUdeviceptr,
    bytes: usize,
}

impl DeviceMemory {
    /// Memory that is freed after all work then on `stream`, which is kept alive for that.
    ///
    /// The contents are undefined; usable by work enqueued on `stream` from now on.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] or [`Error::Driver`].
    pub(crate) fn new(context: &Arc<Context>, bytes: usize, stream: &Stream) -> Result<Self> {
        let memory = DeviceMemory::kept(context, bytes, stream)?;
        Ok(memory.bound_to(stream))
    }

    /// As [`new`](DeviceMemory::new), for memory that may outlive the stream: dropped, it waits for the device.
    ///
    /// # Errors
    /// As [`new`](DeviceMemory::new).
    pub(crate) fn kept(context: &Arc<Context>, bytes: usize, stream: &Stream) -> Result<Self> {
        let _entered = context.enter()?;
        let mut address = 0;
        // An empty tensor still has an address of its own.
        let size = bytes.max(1);
        let allocated = if context.facts().has_memory_pools {
            // SAFETY: `address` is writable; whoever made the stream vouched for its handle.
            unsafe { context.api().cuMemAllocAsync(&raw mut address, size, stream::handle(stream)) }
        } else {
            // SAFETY: `address` is writable and the context is current.
            unsafe { context.api().cuMemAlloc(&raw mut address, size) }
        };
        allocated.map_err(|error| match error {
            Error::Driver { code: OUT_OF_MEMORY, .. } => {
                Error::OutOfMemory { device: stream.device().to_string(), bytes }
            }
            error => error,
        })?;
        Ok(DeviceMemory { context: Arc::clone(context), stream: None, address, bytes })
    }

    fn bound_to(mut self, stream: &Stream) -> Self {
        self.stream = Some(stream.clone());
        self
    }

    /// The address of the first byte.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// Fills the memory with zeros, in the order of the stream.
    pub(crate) fn zero(&self, stream: &Stream) -> Result<()> {
        if self.bytes == 0 {
            return Ok(());
        }
        let _entered = self.context.enter()?;
        // SAFETY: the memory is `bytes` long; whoever made the stream vouched for its handle.
        unsafe { self.context.api().cuMemsetD8Async(self.address, 0, self.bytes, stream::handle(stream)) }
    }

    /// Copies host bytes to the start, and waits until the source has been read.
    pub(crate) fn write(&self, source: &[u8], stream: &Stream) -> Result<()> {
        debug_assert!(source.len() <= self.bytes);
        // SAFETY: the memory is this value's own, at least as long as the source.
        unsafe { copy_to_device(&self.context, source, self.address, stream) }
    }
}

impl StreamMemory for DeviceMemory {
    fn address(&self) -> u64 {
        self.address
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn write(&self, source: &[u8], stream: &Stream) -> Result<()> {
        DeviceMemory::write(self, source, stream)
    }

    fn free_on(self, stream: &Stream) {
        drop(self.bound_to(stream));
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        let freed = self.context.enter().and_then(|_entered| match &self.stream {
            Some(stream) if self.context.facts().has_memory_pools => {
                // SAFETY: allocated in `kept` and freed only here; the stream is kept alive.
                unsafe { self.context.api().cuMemFreeAsync(self.address, stream::handle(stream)) }
            }
            _ => {
                // The driver frees memory of a pool at once, whoever still uses it.
                // SAFETY: the context is current.
                unsafe { self.context.api().cuCtxSynchronize() }?;
                // SAFETY: allocated in `kept`, freed only here, and no work uses it any more.
                unsafe { self.context.api().cuMemFree(self.address) }
            }
        });
        if let Err(error) = freed {
            tracing::debug!(%error, "freeing device memory");
        }
    }
}

/// Copies host bytes to the device and waits until they have been read.
///
/// # Safety
/// - `target` is device memory of at least the source's length.
pub(crate) unsafe fn copy_to_device(
    context: &Context,
    source: &[u8],
    target: CUdeviceptr,
    on: &Stream,
) -> Result<()> {
    if source.is_empty() {
        return Ok(());
    }
    let _entered = context.enter()?;
    // SAFETY: the source is valid for its length until the synchronisation below, the target by the caller's word.
    let copied = unsafe {
        context.api().cuMemcpyHtoDAsync(target, source.as_ptr().cast(), source.len(), stream::handle(on))
    };
    copied.and(stream::synchronize(context, on))
}

/// Copies device memory to the host, after all work on the stream, and waits for it.
///
/// # Safety
/// - `source` is device memory of at least the target's length.
pub(crate) unsafe fn copy_to_host(
    context: &Context,
    source: CUdeviceptr,
    target: &mut [u8],
    on: &Stream,
) -> Result<()> {
    if target.is_empty() {
        return Ok(());
    }
    let _entered = context.enter()?;
    // SAFETY: the target is valid for its length until the synchronisation below, the source by the caller's word.
    let copied = unsafe {
        context.api().cuMemcpyDtoHAsync(target.as_mut_ptr().cast(), source, target.len(), stream::handle(on))
    };
    copied.and(stream::synchronize(context, on))
}
