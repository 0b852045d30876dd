//! Compiled kernels on a device, and their launch.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::ptr;
use std::sync::{Arc, Mutex, OnceLock, Weak};

use omniflash_core::{Error, Result, Stream};
use omniflash_device::Launch;

use crate::driver::{Driver, release};
use crate::stream_state::lock;

/// The most parameters of a kernel: the struct, the functors, and what a kernel of one vendor takes beside them.
const MOST_PARAMETERS: usize = 3;

/// One kernel of a loaded image.
#[derive(Debug)]
pub(crate) struct Module<D: Driver> {
    driver: Arc<D>,
    raw: D::Module,
    function: D::Function,
    /// The driver may go on reading the image that it was given.
    _image: Arc<[u8]>,
}

// SAFETY: a driver's handles may be used from any thread.
unsafe impl<D: Driver> Send for Module<D> {}
// SAFETY: as above, by several at a time.
unsafe impl<D: Driver> Sync for Module<D> {}

impl<D: Driver> Module<D> {
    /// Loads an image and finds a kernel in it, with `shared_memory_bytes` of dynamic shared memory allowed.
    ///
    /// # Errors
    /// Those of [`Driver::load_module`].
    pub(crate) fn load(
        driver: &Arc<D>,
        image: &Arc<[u8]>,
        kernel: &str,
        shared_memory_bytes: usize,
    ) -> Result<Self> {
        let name =
            CString::new(kernel).map_err(|_| Error::value("kernel", kernel, "a name without zeros"))?;
        let _entered = driver.enter()?;
        let raw = driver.load_module(image)?;
        // SAFETY: the module is loaded.
        match unsafe { driver.function(raw, &name, shared_memory_bytes) } {
            Ok(function) => {
                Ok(Module { driver: Arc::clone(driver), raw, function, _image: Arc::clone(image) })
            }
            Err(error) => {
                // SAFETY: loaded above, and nothing of it was ever launched.
                release(&**driver, "a module", |driver| unsafe { driver.unload_module(raw) });
                Err(error)
            }
        }
    }

    /// Blocks of the kernel that fit on one multiprocessor, or compute unit, at a time.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub(crate) fn blocks_per_multiprocessor(&self, launch: &Launch) -> Result<usize> {
        let _entered = self.driver.enter()?;
        // SAFETY: the module is loaded.
        unsafe { self.driver.blocks_per_multiprocessor(self.function, launch) }
    }

    /// Registers of a thread, and its bytes of local memory: what a kernel spills.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub(crate) fn registers_and_local_bytes(&self) -> Result<(usize, usize)> {
        let _entered = self.driver.enter()?;
        // SAFETY: the module is loaded.
        unsafe { self.driver.registers_and_local_bytes(self.function) }
    }

    /// Enqueues the kernel; the driver copies the parameters before the call returns.
    ///
    /// # Errors
    /// [`Error::Driver`].
    ///
    /// # Safety
    /// - Each of `parameters`, at most three, is the bytes of the kernel's parameter at its place, at least as long
    ///   and as aligned.
    /// - What those bytes address is valid until the stream has passed the launch, and used by nothing else in a
    ///   way that conflicts.
    pub(crate) unsafe fn launch(
        &self,
        launch: &Launch,
        parameters: &[&[u8]],
        on: &Stream,
        _entered: &D::Entered<'_>,
    ) -> Result<()> {
        let mut pointers = [ptr::null_mut::<c_void>(); MOST_PARAMETERS];
        let pointers = &mut pointers[..parameters.len()];
        for (pointer, parameter) in pointers.iter_mut().zip(parameters) {
            *pointer = parameter.as_ptr().cast_mut().cast();
        }
        // SAFETY: the module is loaded, the parameters are the caller's duty.
        unsafe { self.driver.launch(self.function, launch, pointers, on) }
    }
}

impl<D: Driver> Drop for Module<D> {
    fn drop(&mut self) {
        release(&*self.driver, "a module", |driver| {
            // Kernels of the module may still be running.
            let waited = driver.synchronize_device();
            // Even after a fault, which ends the work too.
            // SAFETY: loaded in `load`, unloaded only here, and no kernel of it is running any more.
            unsafe { driver.unload_module(self.raw) }.and(waited)
        });
    }
}

/// A module from its first launch on.
pub(crate) type LazyModule<D> = OnceLock<Module<D>>;

/// The modules of all plans that are kept: a step of generation has a plan of its own, for one more key, but launches the
/// kernel of the step before, and loading that anew would take longer than the step.
#[derive(Debug)]
pub(crate) struct Modules<D: Driver>(Mutex<HashMap<ModuleKey, Weak<LazyModule<D>>>>);

/// Where the image lies, which its plans keep there; the kernel; dynamic shared memory.
type ModuleKey = (usize, &'static str, usize);

impl<D: Driver> Default for Modules<D> {
    fn default() -> Self {
        Modules(Mutex::default())
    }
}

impl<D: Driver> Modules<D> {
    /// The module of a kernel, which all that launch it share. Whoever keeps it keeps the image, too.
    pub(crate) fn of(
        &self,
        image: &Arc<[u8]>,
        entry: &'static str,
        shared_memory_bytes: usize,
    ) -> Arc<LazyModule<D>> {
        let key = (image.as_ptr().addr(), entry, shared_memory_bytes);
        let mut modules = lock(&self.0);
        if let Some(module) = modules.get(&key).and_then(Weak::upgrade) {
            return module;
        }
        modules.retain(|_, module| module.strong_count() > 0);
        let module = Arc::new(LazyModule::new());
        modules.insert(key, Arc::downgrade(&module));
        module
    }
}
