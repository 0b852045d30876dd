//! The emulator as the machine's driver library, and kernels compiled by clang.
//!
//! It imitates one machine for the whole process, so a test holds it alone.

use std::ffi::{CString, c_char, c_int};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use libloading::Library;
use omniflash_hip_emulator::hip_api::control::Statistics;
use omniflash_kernel_store::{Compiler as _, KernelStore, StoreOptions};

use crate::HipBackend;
use crate::compiler::Clang;

static MACHINE: Mutex<()> = Mutex::new(());

/// Compiles each kernel once a process.
pub(super) static STORE: LazyLock<Arc<KernelStore>> = LazyLock::new(|| {
    let compilers = vec![Box::new(Clang::of_system()) as _];
    Arc::new(KernelStore::new(StoreOptions { compilers, ..StoreOptions::default() }))
});

/// The emulated machine.
pub(super) struct Emulator {
    library: Library,
    path: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

impl Emulator {
    /// A machine with these devices, such as `gfx942,gfx1100`, none of whose calls fail. `None`, with the reason
    /// printed, where no kernels can be compiled or disassembled.
    pub(super) fn with(devices: &str) -> Option<Self> {
        if let Err(reason) = Clang::of_system().version() {
            println!("skipped: {reason}");
            return None;
        }
        let emulator = Emulator::without_kernels();
        if !emulator.loads_modules() {
            println!("skipped: the emulator does not find LLVM's library");
            return None;
        }
        emulator.set_devices(devices);
        Some(emulator)
    }

    /// A machine without a device, for tests that need no kernels.
    pub(super) fn without_kernels() -> Self {
        let alone = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
        let program = std::env::current_exe().unwrap();
        let path = program.parent().unwrap().join("libomniflash_hip_emulator.so");
        // SAFETY: the emulator has no initialisers.
        let library = unsafe { Library::new(&path) }.unwrap();
        let emulator = Emulator { library, path, _alone: alone };
        emulator.set_devices("");
        emulator.fail("");
        emulator
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Replaces the machine's devices; what belonged to the old ones is gone.
    pub(super) fn set_devices(&self, devices: &str) {
        self.call("omniflash_emulator_set_devices", devices);
    }

    /// Lets calls fail: `hipMalloc:3` the third, `hipFree:1=719` the first, with this code.
    pub(super) fn fail(&self, faults: &str) {
        self.call("omniflash_emulator_inject", faults);
    }

    fn call(&self, function: &str, text: &str) {
        let text = CString::new(text).unwrap();
        // SAFETY: the function's type.
        let function =
            unsafe { self.library.get::<unsafe extern "C" fn(*const c_char) -> c_int>(function) }.unwrap();
        // SAFETY: a zero-terminated string.
        assert_eq!(unsafe { function(text.as_ptr()) }, 0);
    }

    /// Whether it finds what it disassembles kernels by.
    fn loads_modules(&self) -> bool {
        type LoadsModules = unsafe extern "C" fn() -> c_int;
        // SAFETY: the function's type.
        let function =
            unsafe { self.library.get::<LoadsModules>("omniflash_emulator_loads_modules") }.unwrap();
        // SAFETY: it takes nothing.
        unsafe { function() != 0 }
    }

    /// Allocations of a device that were not freed, and their bytes; images of modules are among them.
    pub(super) fn live(&self, device: c_int) -> (u64, u64) {
        type WriteStatistics = unsafe extern "C" fn(c_int, *mut Statistics) -> c_int;
        // SAFETY: the function's type, by the crate that the library is built from.
        let function =
            unsafe { self.library.get::<WriteStatistics>("omniflash_emulator_statistics") }.unwrap();
        let mut statistics = Statistics::default();
        // SAFETY: the statistics are writable.
        assert_eq!(unsafe { function(device, &raw mut statistics) }, 0);
        (statistics.live_allocations, statistics.live_bytes)
    }

    /// Programs of the run-time compiler that were not destroyed.
    pub(super) fn live_programs(&self) -> usize {
        type Count = unsafe extern "C" fn() -> usize;
        // SAFETY: the function's type.
        let count = unsafe { self.library.get::<Count>("omniflash_emulator_live_programs") }.unwrap();
        // SAFETY: it takes nothing.
        unsafe { count() }
    }

    /// The backends of its devices.
    pub(super) fn backends(&self) -> Vec<HipBackend> {
        self.backends_with(&STORE)
    }

    /// As [`backends`](Emulator::backends), with other kernels.
    pub(super) fn backends_with(&self, store: &Arc<KernelStore>) -> Vec<HipBackend> {
        HipBackend::discover_in(&self.path, store).unwrap()
    }
}
