//! What a test can ask of the process-wide emulator, from Rust or, through a loaded library, from C.

use std::ffi::{c_char, c_int};
use std::sync::PoisonError;

use super::call::{FAULTS, put};
use super::error;
use super::memory::text_of;
use super::runtime::{self, with};
use crate::configuration::Configuration;
use crate::counters::Counters;
use crate::disassembly::disassembler_absence;
use crate::target::Target;

/// What kernels of the C API did on a device since the last reset; zeros for a device that does not exist.
pub fn counters(device: usize) -> Counters {
    with(|runtime| Ok(runtime.devices.get(device).map(|device| device.counters()).unwrap_or_default()))
        .unwrap_or_default()
}

/// Replaces the process's devices; every handle and allocation of the C API is gone.
pub fn set_devices(targets: &[Target], configuration: Configuration) {
    runtime::replace(targets, configuration);
}

/// Changes how the process's devices execute kernels.
pub fn set_configuration(configuration: Configuration) {
    reconfigure(|_| configuration);
}

/// Whether modules can be loaded: 0 where LLVM's library, which disassembles them, is not found.
#[unsafe(no_mangle)]
pub extern "C" fn omniflash_emulator_loads_modules() -> c_int {
    c_int::from(disassembler_absence().is_none())
}

/// Draws the order of waves from another seed, from the next launch on.
#[unsafe(no_mangle)]
pub extern "C" fn omniflash_emulator_set_seed(seed: u64) {
    reconfigure(|before| Configuration { seed, ..before });
}

/// Executes workgroups by so many threads, from the next launch on.
#[unsafe(no_mangle)]
pub extern "C" fn omniflash_emulator_set_threads(threads: usize) {
    reconfigure(|before| Configuration { threads: threads.max(1), ..before });
}

fn reconfigure(change: impl Fn(Configuration) -> Configuration) {
    // Without a device there is nothing to configure.
    let _ = with(|runtime| {
        runtime.devices.iter_mut().for_each(|device| device.configure(change(device.configuration())));
        Ok(())
    });
}

/// Replaces the faults to inject, in the form of `OMNIFLASH_EMULATOR_FAIL`, and counts calls anew.
pub fn inject(faults: &str) {
    FAULTS.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default().set(faults);
}

/// Sets the counters of every device to zero.
pub fn reset() {
    let _ = with(|runtime| {
        runtime.devices.iter_mut().for_each(|device| device.reset_counters());
        Ok(())
    });
}

/// The state of one device, for a test that loads the library.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Statistics {
    /// What kernels did.
    pub counters: Counters,
    /// Allocations that were not freed, pinned host memory included.
    pub live_allocations: u64,
    /// Their bytes.
    pub live_bytes: u64,
    /// The most bytes that were allocated at once.
    pub peak_bytes: u64,
}

/// Writes a device's [`Statistics`].
///
/// # Safety
/// `statistics` must be null or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn omniflash_emulator_statistics(device: c_int, statistics: *mut Statistics) -> c_int {
    let found = with(|runtime| {
        let device = &runtime.devices[runtime.device_index(device)?];
        let (live_allocations, live_bytes) = device.memory.live();
        let (counters, peak_bytes) = (device.counters(), device.memory.peak_bytes());
        Ok(Statistics { counters, live_allocations: live_allocations as u64, live_bytes, peak_bytes })
    });
    // SAFETY: the caller's promise.
    let written = found.and_then(|found| unsafe { put(statistics, found) });
    written.err().map_or(0, |error| error.0)
}

/// Sets the counters of every device to zero.
#[unsafe(no_mangle)]
pub extern "C" fn omniflash_emulator_reset() {
    reset();
}

/// Replaces the faults to inject, in the form of `OMNIFLASH_EMULATOR_FAIL`.
///
/// # Safety
/// `faults` must be null or a string that ends in zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn omniflash_emulator_inject(faults: *const c_char) -> c_int {
    // SAFETY: the caller's promise.
    match unsafe { text_of(faults) } {
        Ok(text) => {
            inject(&text);
            0
        }
        Err(error) => error.0,
    }
}

/// Replaces the devices by a list such as `gfx942,gfx1100`; every handle and allocation is gone.
///
/// # Safety
/// `devices` must be null or a string that ends in zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn omniflash_emulator_set_devices(devices: *const c_char) -> c_int {
    // SAFETY: the caller's promise.
    let Ok(text) = (unsafe { text_of(devices) }) else { return error::INVALID_VALUE.0 };
    let targets: Result<Vec<Target>, _> =
        text.split(',').filter(|name| !name.is_empty()).map(str::parse).collect();
    match (targets, Configuration::from_environment()) {
        (Ok(targets), Ok(configuration)) => {
            set_devices(&targets, configuration);
            0
        }
        _ => error::INVALID_VALUE.0,
    }
}

/// Copies the text of the last fault, cut to `bytes` with a zero at the end; returns its whole length.
///
/// # Safety
/// `buffer` must be null or valid for `bytes` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn omniflash_emulator_message(buffer: *mut c_char, bytes: usize) -> usize {
    let message = with(|runtime| Ok(runtime.message.clone())).unwrap_or_default();
    if !buffer.is_null() && bytes > 0 {
        let count = message.len().min(bytes - 1);
        // SAFETY: the buffer has more than `count` bytes.
        unsafe {
            buffer.cast::<u8>().copy_from_nonoverlapping(message.as_ptr(), count);
            buffer.add(count).write(0);
        }
    }
    message.len()
}
