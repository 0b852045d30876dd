//! A device, shared with every other library of the process.

use std::ffi::c_int;
use std::marker::PhantomData;
use std::ptr;
use std::sync::Arc;

use omniflash_core::Result;

use super::Api;
use super::api::constant;
use crate::probe::DeviceFacts;

/// A device's primary context, which HIP makes and keeps itself.
#[derive(Debug)]
pub struct Context {
    api: Arc<Api>,
    facts: DeviceFacts,
}

impl Context {
    /// Lets the memory pool of a device keep what is freed.
    pub(crate) fn new(api: Arc<Api>, facts: DeviceFacts) -> Result<Arc<Self>> {
        let context = Context { api, facts };
        if context.facts.has_memory_pools {
            context.keep_freed_memory()?;
        }
        Ok(Arc::new(context))
    }

    /// By default a pool returns everything to the system at each synchronisation, and the next allocation is slow.
    fn keep_freed_memory(&self) -> Result<()> {
        let mut pool = ptr::null_mut();
        // SAFETY: `pool` is writable.
        unsafe { self.api.hipDeviceGetDefaultMemPool(&raw mut pool, self.ordinal()) }?;
        let mut threshold = u64::MAX;
        // SAFETY: this attribute is read from a u64.
        unsafe {
            self.api.hipMemPoolSetAttribute(
                pool,
                constant::POOL_RELEASE_THRESHOLD,
                (&raw mut threshold).cast(),
            )
        }
    }

    pub(crate) fn api(&self) -> &Api {
        &self.api
    }

    pub(crate) fn facts(&self) -> &DeviceFacts {
        &self.facts
    }

    fn ordinal(&self) -> c_int {
        self.facts.ordinal as c_int
    }

    /// Makes the device this thread's, until the guard is dropped: the caller's own choice comes back.
    pub(crate) fn enter(&self) -> Result<Entered<'_>> {
        let mut current = 0;
        // SAFETY: `current` is writable.
        unsafe { self.api.hipGetDevice(&raw mut current) }?;
        if current == self.ordinal() {
            return Ok(Entered { context: self, previous: None, of_this_thread: PhantomData });
        }
        // SAFETY: the device exists.
        unsafe { self.api.hipSetDevice(self.ordinal()) }?;
        Ok(Entered { context: self, previous: Some(current), of_this_thread: PhantomData })
    }
}

/// Proof that the device is current on this thread.
pub struct Entered<'c> {
    context: &'c Context,
    previous: Option<c_int>,
    /// What is current is a thread's own: the guard must not leave it.
    of_this_thread: PhantomData<*const ()>,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let Some(previous) = self.previous else { return };
        // SAFETY: the device was current before.
        if let Err(error) = unsafe { self.context.api.hipSetDevice(previous) } {
            tracing::debug!(%error, "returning to another device");
        }
    }
}
