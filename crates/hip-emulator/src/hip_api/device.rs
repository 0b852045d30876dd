//! Devices: how many, which one, what they are.

use std::ffi::{c_char, c_int, c_uint, c_void};

use super::call::{hip_functions, put};
use super::error;
use super::properties;
use super::runtime::{self, with};

/// ROCm 6.4, encoded as HIP encodes versions.
const VERSION: c_int = 60_443_482;

hip_functions! {
    /// Initialises the runtime.
    fn hipInit(flags: c_uint) {
        if flags != 0 {
            return Err(error::INVALID_VALUE);
        }
        with(|runtime| runtime.current().map(drop))
    }

    /// The driver's version.
    fn hipDriverGetVersion(version: *mut c_int) {
        // SAFETY: the caller's promise.
        unsafe { put(version, VERSION) }
    }

    /// The runtime's version.
    fn hipRuntimeGetVersion(version: *mut c_int) {
        // SAFETY: the caller's promise.
        unsafe { put(version, VERSION) }
    }

    /// The number of devices.
    fn hipGetDeviceCount(count: *mut c_int) {
        let devices = with(|runtime| Ok(runtime.devices.len()))?;
        // SAFETY: the caller's promise.
        unsafe { put(count, devices as c_int) }?;
        if devices == 0 { Err(error::NO_DEVICE) } else { Ok(()) }
    }

    /// Makes a device this thread's current one.
    fn hipSetDevice(device: c_int) {
        with(|runtime| runtime.set_current(device))
    }

    /// This thread's current device.
    fn hipGetDevice(device: *mut c_int) {
        let current = with(|runtime| runtime.current())?;
        // SAFETY: the caller's promise.
        unsafe { put(device, current as c_int) }
    }

    /// The handle of a device, which is its number.
    fn hipDeviceGet(device: *mut c_int, ordinal: c_int) {
        let index = with(|runtime| runtime.device_index(ordinal))?;
        // SAFETY: the caller's promise.
        unsafe { put(device, index as c_int) }
    }

    /// The device's name, cut to `length` bytes with a zero at the end.
    fn hipDeviceGetName(name: *mut c_char, length: c_int, device: c_int) {
        let target = with(|runtime| Ok(runtime.devices[runtime.device_index(device)?].target()))?;
        if name.is_null() || length < 1 {
            return Err(error::INVALID_VALUE);
        }
        let text = properties::product_name(target);
        let count = text.len().min(length as usize - 1);
        // SAFETY: the caller's buffer has `length` bytes, more than `count`.
        unsafe {
            name.cast::<u8>().copy_from_nonoverlapping(text.as_ptr(), count);
            name.add(count).write(0);
        }
        Ok(())
    }

    /// The device's memory in bytes.
    fn hipDeviceTotalMem(bytes: *mut usize, device: c_int) {
        let target = with(|runtime| Ok(runtime.devices[runtime.device_index(device)?].target()))?;
        // SAFETY: the caller's promise.
        unsafe { put(bytes, target.memory_bytes() as usize) }
    }

    /// One property of a device by its number.
    fn hipDeviceGetAttribute(value: *mut c_int, attribute: c_int, device: c_int) {
        let target = with(|runtime| Ok(runtime.devices[runtime.device_index(device)?].target()))?;
        let found = properties::attribute(target, attribute, device).ok_or(error::INVALID_VALUE)?;
        // SAFETY: the caller's promise.
        unsafe { put(value, found) }
    }

    /// The properties in the layout of ROCm 6 and later, 1472 bytes.
    fn hipGetDevicePropertiesR0600(properties: *mut c_void, device: c_int) {
        let target = with(|runtime| Ok(runtime.devices[runtime.device_index(device)?].target()))?;
        // SAFETY: the caller's promise.
        unsafe { put(properties.cast(), properties::r0600(target, device)) }
    }

    /// The properties in the layout before ROCm 6, 792 bytes.
    fn hipGetDeviceProperties(properties: *mut c_void, device: c_int) {
        let target = with(|runtime| Ok(runtime.devices[runtime.device_index(device)?].target()))?;
        // SAFETY: the caller's promise.
        unsafe { put(properties.cast(), properties::r0000(target, device)) }
    }

    /// The device's address on the bus, `dddd:bb:dd.0`.
    fn hipDeviceGetPCIBusId(text: *mut c_char, length: c_int, device: c_int) {
        with(|runtime| runtime.device_index(device))?;
        let address = format!("0000:{:02x}:00.0", device + 1);
        if text.is_null() || (length as usize) <= address.len() {
            return Err(error::INVALID_VALUE);
        }
        // SAFETY: the caller's buffer has `length` bytes, more than the address.
        unsafe {
            text.cast::<u8>().copy_from_nonoverlapping(address.as_ptr(), address.len());
            text.add(address.len()).write(0);
        }
        Ok(())
    }

    /// Waits for all work of this thread's device.
    fn hipDeviceSynchronize() {
        with(|runtime| {
            runtime.require_no_capture()?;
            let device = runtime.current()?;
            runtime.synchronize(device)
        })
    }

    /// Drops the work, streams, modules and memory of this thread's device.
    fn hipDeviceReset() {
        with(|runtime| {
            let device = runtime.current()?;
            let streams: Vec<u64> =
                runtime.streams.iter().filter(|(_, stream)| stream.device == device).map(|(&key, _)| key).collect();
            for key in streams {
                runtime.streams.remove(&key);
            }
            runtime.modules.retain(|_, (owner, _)| *owner != device);
            let modules = &runtime.modules;
            runtime.functions.retain(|_, function| modules.contains_key(&function.module));
            runtime.captures.clear();
            runtime.pending_error[device] = None;
            let (target, configuration) = (runtime.devices[device].target(), runtime.devices[device].configuration());
            runtime.devices[device] = crate::device::Device::new(target, configuration);
            Ok(())
        })
    }

    /// Whether one device can access another's memory: never here.
    fn hipDeviceCanAccessPeer(can: *mut c_int, device: c_int, peer: c_int) {
        with(|runtime| runtime.device_index(device).and_then(|_| runtime.device_index(peer)).map(drop))?;
        // SAFETY: the caller's promise.
        unsafe { put(can, 0) }
    }

    /// The range of stream priorities.
    fn hipDeviceGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) {
        // SAFETY: the caller's promise.
        unsafe {
            put(least, 1)?;
            put(greatest, -1)
        }
    }

    /// Free and total memory of this thread's device.
    fn hipMemGetInfo(free: *mut usize, total: *mut usize) {
        let (used, target) = with(|runtime| {
            let device = runtime.current_device()?;
            Ok((device.memory.live().1, device.target()))
        })?;
        let bytes = target.memory_bytes();
        // SAFETY: the caller's promise.
        unsafe {
            put(free, bytes.saturating_sub(used) as usize)?;
            put(total, bytes as usize)
        }
    }
}

/// Keeps `runtime::handle_pointer` the only way a handle becomes a pointer.
pub(crate) fn out_handle(pointer: *mut *mut c_void, handle: u64) -> Result<(), error::HipError> {
    // SAFETY: the callers are API functions and pass their caller's pointer on.
    unsafe { put(pointer, runtime::handle_pointer(handle)) }
}
