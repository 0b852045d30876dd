//! The primary context of a device, shared with every other library of the process.

use std::ffi::c_int;
use std::marker::PhantomData;
use std::ptr;
use std::sync::Arc;

use cudarc::driver::sys::{CUcontext, CUdevice, CUmemPool_attribute, CUmemoryPool};
use omniflash_core::Result;

use super::Api;
use crate::probe::DeviceFacts;

/// A retained primary context.
#[derive(Debug)]
pub struct Context {
    api: Arc<Api>,
    device: CUdevice,
    raw: CUcontext,
    facts: DeviceFacts,
}

// SAFETY: contexts may be used from any thread; the handle is only an address.
unsafe impl Send for Context {}
// SAFETY: as above; the driver locks what it shares.
unsafe impl Sync for Context {}

impl Context {
    /// Retains the primary context of a device, and lets its memory pool keep what is freed.
    pub(crate) fn new(api: Arc<Api>, facts: DeviceFacts) -> Result<Arc<Self>> {
        let (mut device, mut raw) = (0, ptr::null_mut());
        // SAFETY: `device` is writable.
        unsafe { api.cuDeviceGet(&raw mut device, facts.ordinal as c_int) }?;
        // SAFETY: `raw` is writable, the device exists; released on drop.
        unsafe { api.cuDevicePrimaryCtxRetain(&raw mut raw, device) }?;
        let context = Context { api, device, raw, facts };
        if context.facts.has_memory_pools {
            context.keep_freed_memory()?;
        }
        Ok(Arc::new(context))
    }

    /// By default a pool returns everything to the system at each synchronisation, and the next allocation is slow.
    fn keep_freed_memory(&self) -> Result<()> {
        let mut pool: CUmemoryPool = ptr::null_mut();
        // SAFETY: `pool` is writable.
        unsafe { self.api.cuDeviceGetDefaultMemPool(&raw mut pool, self.device) }?;
        let mut threshold = u64::MAX;
        let attribute = CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD as u32;
        // SAFETY: this attribute is read from a u64.
        unsafe { self.api.cuMemPoolSetAttribute(pool, attribute, (&raw mut threshold).cast()) }
    }

    pub(crate) fn api(&self) -> &Api {
        &self.api
    }

    pub(crate) fn facts(&self) -> &DeviceFacts {
        &self.facts
    }

    /// Makes the context this thread's, until the guard is dropped: the caller's own choice of device comes back.
    pub(crate) fn enter(&self) -> Result<Entered<'_>> {
        let mut current = ptr::null_mut();
        // SAFETY: `current` is writable.
        unsafe { self.api.cuCtxGetCurrent(&raw mut current) }?;
        let pushed = current != self.raw;
        if pushed {
            // SAFETY: the context is retained for as long as `self`.
            unsafe { self.api.cuCtxPushCurrent(self.raw) }?;
        }
        Ok(Entered { context: self, pushed, of_this_thread: PhantomData })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once, in `new`.
        if let Err(error) = unsafe { self.api.cuDevicePrimaryCtxRelease(self.device) } {
            tracing::debug!(%error, "releasing a context");
        }
    }
}

/// Proof that the context is current on this thread.
pub struct Entered<'c> {
    context: &'c Context,
    pushed: bool,
    /// What is current is a thread's own: the guard must not leave it.
    of_this_thread: PhantomData<*const ()>,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        if self.pushed {
            let mut popped = ptr::null_mut();
            // SAFETY: `popped` is writable, and the context was pushed on this thread: the guard is not Send.
            if let Err(error) = unsafe { self.context.api.cuCtxPopCurrent(&raw mut popped) } {
                tracing::debug!(%error, "leaving a context");
            }
        }
    }
}
