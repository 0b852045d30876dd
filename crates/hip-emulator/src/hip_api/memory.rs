//! Allocation, copies and fills.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::Arc;

use super::call::{hip_functions, put};
use super::error::{self, HipError};
use super::runtime::{Runtime, with};
use super::work::{self, Source, Work};
use crate::memory::{DEVICE_OFFSET, FreeError, Origin};

fn allocate(runtime: &mut Runtime, bytes: usize, origin: Origin) -> Result<u64, HipError> {
    let device = runtime.current_device()?;
    if origin == Origin::Device && device.memory.live().1 + bytes as u64 > device.target().memory_bytes() {
        return Err(error::OUT_OF_MEMORY);
    }
    device.memory.allocate(bytes, origin).ok_or(error::OUT_OF_MEMORY)
}

/// Frees an allocation of whichever device owns it.
fn free(runtime: &mut Runtime, address: u64, origin: Origin) -> Result<(), HipError> {
    let owner = (0..runtime.devices.len())
        .find(|&device| matches!(runtime.devices[device].memory.find(address), Some((start, ..)) if start == address))
        .ok_or(error::INVALID_VALUE)?;
    // Work that is still queued may use the memory: freeing waits, as on a real device.
    runtime.drain(|stream| stream.device == owner)?;
    match runtime.devices[owner].memory.free(address, origin) {
        Ok(()) => Ok(()),
        Err(FreeError::Unknown) => Err(error::INVALID_VALUE),
        Err(FreeError::GuardOverwritten) => {
            runtime.report(format!("the guard zone of {address:#x} was overwritten by host code"));
            Err(error::INVALID_VALUE)
        }
    }
}

fn address_of(pointer: *const c_void) -> u64 {
    pointer.expose_provenance() as u64
}

/// A copy as a caller describes it.
struct Copy {
    destination: u64,
    source: u64,
    row_bytes: usize,
    rows: usize,
    destination_pitch: usize,
    source_pitch: usize,
    kind: c_int,
}

impl Copy {
    fn plain(destination: *mut c_void, source: *const c_void, bytes: usize, kind: c_int) -> Copy {
        Copy {
            destination: address_of(destination),
            source: address_of(source),
            row_bytes: bytes,
            rows: 1,
            destination_pitch: bytes,
            source_pitch: bytes,
            kind,
        }
    }

    fn check(&self, runtime: &Runtime) -> Result<(), HipError> {
        if self.row_bytes == 0 || self.rows == 0 {
            return Ok(());
        }
        if self.destination == 0
            || self.source == 0
            || self.row_bytes > self.destination_pitch.min(self.source_pitch)
        {
            return Err(error::INVALID_VALUE);
        }
        let is_device = |address: u64| address >= DEVICE_OFFSET;
        // hipMemcpyKind: host to host, host to device, device to host, device to device, default.
        let fits = match self.kind {
            0 => !is_device(self.source) && !is_device(self.destination),
            1 => !is_device(self.source),
            2 => !is_device(self.destination),
            3 | 4 => true,
            _ => return Err(error::INVALID_MEMCPY_DIRECTION),
        };
        if !fits {
            return Err(error::INVALID_MEMCPY_DIRECTION);
        }
        runtime.check_range(self.source, work::span(self.row_bytes, self.rows, self.source_pitch)?)?;
        runtime.check_range(self.destination, work::span(self.row_bytes, self.rows, self.destination_pitch)?)
    }

    fn is_pageable(runtime: &Runtime, address: u64) -> bool {
        address < DEVICE_OFFSET && !runtime.is_pinned(address)
    }

    /// Enqueues the copy; pageable host memory is read, or written, before this returns.
    fn enqueue(&self, runtime: &mut Runtime, stream: u64) -> Result<(), HipError> {
        self.check(runtime)?;
        let bytes = work::span(self.row_bytes, self.rows, self.source_pitch)?;
        if self.row_bytes == 0 || self.rows == 0 {
            return Ok(());
        }
        let is_capturing = runtime.streams.get(&stream).is_some_and(|stream| stream.capture.is_some());
        let source = if Copy::is_pageable(runtime, self.source) && !is_capturing {
            let start: *const u8 = std::ptr::with_exposed_provenance(self.source as usize);
            // SAFETY: the caller promises that the source is readable.
            Source::Staged(Arc::new(unsafe { std::slice::from_raw_parts(start, bytes) }.to_vec()))
        } else {
            Source::Address(self.source)
        };
        let Copy { destination, row_bytes, rows, destination_pitch, source_pitch, .. } = *self;
        runtime.enqueue(
            stream,
            Work::Copy { destination, source, row_bytes, rows, destination_pitch, source_pitch },
        )?;
        if Copy::is_pageable(runtime, self.destination) && !is_capturing {
            runtime.drain_stream(stream)?;
            let device = runtime.current()?;
            return runtime.take_error(device);
        }
        Ok(())
    }

    /// Copies on the null stream and waits.
    fn run(&self) -> Result<(), HipError> {
        with(|runtime| {
            let stream = runtime.stream_key(std::ptr::null_mut())?;
            runtime.require_no_capture()?;
            self.enqueue(runtime, stream)?;
            runtime.drain_stream(stream)?;
            let device = runtime.current()?;
            runtime.take_error(device)
        })
    }

    fn run_async(&self, stream: *mut c_void) -> Result<(), HipError> {
        with(|runtime| {
            let stream = runtime.stream_key(stream)?;
            self.enqueue(runtime, stream)
        })
    }
}

fn fill(
    pointer: *mut c_void,
    value: u32,
    element_bytes: usize,
    count: usize,
    stream: *mut c_void,
    waits: bool,
) -> Result<(), HipError> {
    with(|runtime| {
        let key = runtime.stream_key(stream)?;
        if waits {
            runtime.require_no_capture()?;
        }
        let address = address_of(pointer);
        let bytes = element_bytes.checked_mul(count).ok_or(error::INVALID_VALUE)?;
        if address == 0 || !address.is_multiple_of(element_bytes as u64) {
            return Err(error::INVALID_VALUE);
        }
        if address < DEVICE_OFFSET && !runtime.is_pinned(address) {
            return Err(error::INVALID_VALUE);
        }
        runtime.check_range(address, bytes)?;
        if count == 0 {
            return Ok(());
        }
        runtime.enqueue(key, Work::Fill { address, value, element_bytes, count })?;
        if waits { runtime.drain_stream(key) } else { Ok(()) }
    })
}

fn device_pointer(address: u64) -> *mut c_void {
    std::ptr::with_exposed_provenance_mut(address as usize)
}

hip_functions! {
    /// Allocates device memory, filled with NaN and between guard zones.
    fn hipMalloc(pointer: *mut *mut c_void, bytes: usize) {
        if pointer.is_null() {
            return Err(error::INVALID_VALUE);
        }
        let address = with(|runtime| {
            runtime.require_no_capture()?;
            if bytes == 0 { Ok(0) } else { allocate(runtime, bytes, Origin::Device) }
        })?;
        // SAFETY: the caller's promise.
        unsafe { put(pointer, device_pointer(address)) }
    }

    /// Frees device memory after all work of its device.
    fn hipFree(pointer: *mut c_void) {
        if pointer.is_null() {
            return Ok(());
        }
        with(|runtime| {
            runtime.require_no_capture()?;
            free(runtime, address_of(pointer), Origin::Device)
        })
    }

    /// Allocates in a stream's order.
    fn hipMallocAsync(pointer: *mut *mut c_void, bytes: usize, stream: *mut c_void) {
        let address = with(|runtime| {
            let key = runtime.stream_key(stream)?;
            runtime.require_not_capturing(key)?;
            if bytes == 0 { Ok(0) } else { allocate(runtime, bytes, Origin::Device) }
        })?;
        // SAFETY: the caller's promise.
        unsafe { put(pointer, device_pointer(address)) }
    }

    /// Frees in a stream's order: work enqueued before may still use the memory, work after may not.
    fn hipFreeAsync(pointer: *mut c_void, stream: *mut c_void) {
        if pointer.is_null() {
            return Ok(());
        }
        with(|runtime| {
            let key = runtime.stream_key(stream)?;
            runtime.require_not_capturing(key)?;
            let address = address_of(pointer);
            let device = runtime.streams[&key].device;
            match runtime.devices[device].memory.find(address) {
                Some((start, _, Origin::Device)) if start == address => runtime.enqueue(key, Work::Free { address }),
                _ => Err(error::INVALID_VALUE),
            }
        })
    }

    /// Allocates pinned host memory, which kernels may use at the same address.
    fn hipHostMalloc(pointer: *mut *mut c_void, bytes: usize, _flags: c_uint) {
        let address = with(|runtime| {
            runtime.require_no_capture()?;
            allocate(runtime, bytes, Origin::Pinned)
        })?;
        // SAFETY: the caller's promise.
        unsafe { put(pointer, device_pointer(address)) }
    }

    /// Frees pinned host memory.
    fn hipHostFree(pointer: *mut c_void) {
        if pointer.is_null() {
            return Ok(());
        }
        with(|runtime| free(runtime, address_of(pointer), Origin::Pinned))
    }

    /// The device's address of pinned host memory, which is the same.
    fn hipHostGetDevicePointer(device: *mut *mut c_void, host: *mut c_void, _flags: c_uint) {
        with(|runtime| if runtime.is_pinned(address_of(host)) { Ok(()) } else { Err(error::INVALID_VALUE) })?;
        // SAFETY: the caller's promise.
        unsafe { put(device, host) }
    }

    /// Copies and waits.
    fn hipMemcpy(destination: *mut c_void, source: *const c_void, bytes: usize, kind: c_int) {
        Copy::plain(destination, source, bytes, kind).run()
    }

    /// Copies in a stream's order and waits.
    fn hipMemcpyWithStream(destination: *mut c_void, source: *const c_void, bytes: usize, kind: c_int, stream: *mut c_void) {
        Copy::plain(destination, source, bytes, kind).run_async(stream)?;
        with(|runtime| {
            let key = runtime.stream_key(stream)?;
            runtime.drain_stream(key)
        })
    }

    /// Copies in a stream's order. Pageable host memory makes it wait.
    fn hipMemcpyAsync(destination: *mut c_void, source: *const c_void, bytes: usize, kind: c_int, stream: *mut c_void) {
        Copy::plain(destination, source, bytes, kind).run_async(stream)
    }

    /// Copies from host to device and waits.
    fn hipMemcpyHtoD(destination: *mut c_void, source: *const c_void, bytes: usize) {
        Copy::plain(destination, source, bytes, 1).run()
    }

    /// Copies from device to host and waits.
    fn hipMemcpyDtoH(destination: *mut c_void, source: *const c_void, bytes: usize) {
        Copy::plain(destination, source, bytes, 2).run()
    }

    /// Copies from device to device and waits.
    fn hipMemcpyDtoD(destination: *mut c_void, source: *const c_void, bytes: usize) {
        Copy::plain(destination, source, bytes, 3).run()
    }

    /// Copies from host to device in a stream's order.
    fn hipMemcpyHtoDAsync(destination: *mut c_void, source: *const c_void, bytes: usize, stream: *mut c_void) {
        Copy::plain(destination, source, bytes, 1).run_async(stream)
    }

    /// Copies from device to host in a stream's order.
    fn hipMemcpyDtoHAsync(destination: *mut c_void, source: *const c_void, bytes: usize, stream: *mut c_void) {
        Copy::plain(destination, source, bytes, 2).run_async(stream)
    }

    /// Copies from device to device in a stream's order.
    fn hipMemcpyDtoDAsync(destination: *mut c_void, source: *const c_void, bytes: usize, stream: *mut c_void) {
        Copy::plain(destination, source, bytes, 3).run_async(stream)
    }

    /// Copies rows and waits; pitches are in bytes.
    fn hipMemcpy2D(destination: *mut c_void, destination_pitch: usize, source: *const c_void, source_pitch: usize, width: usize, height: usize, kind: c_int) {
        let plain = Copy::plain(destination, source, width, kind);
        Copy { rows: height, destination_pitch, source_pitch, ..plain }.run()
    }

    /// Copies rows in a stream's order; pitches are in bytes.
    fn hipMemcpy2DAsync(destination: *mut c_void, destination_pitch: usize, source: *const c_void, source_pitch: usize, width: usize, height: usize, kind: c_int, stream: *mut c_void) {
        let plain = Copy::plain(destination, source, width, kind);
        Copy { rows: height, destination_pitch, source_pitch, ..plain }.run_async(stream)
    }

    /// Fills bytes and waits.
    fn hipMemset(pointer: *mut c_void, value: c_int, bytes: usize) {
        fill(pointer, value as u32, 1, bytes, std::ptr::null_mut(), true)
    }

    /// Fills bytes in a stream's order.
    fn hipMemsetAsync(pointer: *mut c_void, value: c_int, bytes: usize, stream: *mut c_void) {
        fill(pointer, value as u32, 1, bytes, stream, false)
    }

    /// Fills bytes and waits.
    fn hipMemsetD8(pointer: *mut c_void, value: u8, count: usize) {
        fill(pointer, u32::from(value), 1, count, std::ptr::null_mut(), true)
    }

    /// Fills 16-bit elements and waits.
    fn hipMemsetD16(pointer: *mut c_void, value: u16, count: usize) {
        fill(pointer, u32::from(value), 2, count, std::ptr::null_mut(), true)
    }

    /// Fills 32-bit elements and waits.
    fn hipMemsetD32(pointer: *mut c_void, value: c_int, count: usize) {
        fill(pointer, value as u32, 4, count, std::ptr::null_mut(), true)
    }

    /// Fills bytes in a stream's order.
    fn hipMemsetD8Async(pointer: *mut c_void, value: u8, count: usize, stream: *mut c_void) {
        fill(pointer, u32::from(value), 1, count, stream, false)
    }

    /// Fills 16-bit elements in a stream's order.
    fn hipMemsetD16Async(pointer: *mut c_void, value: u16, count: usize, stream: *mut c_void) {
        fill(pointer, u32::from(value), 2, count, stream, false)
    }

    /// Fills 32-bit elements in a stream's order.
    fn hipMemsetD32Async(pointer: *mut c_void, value: c_int, count: usize, stream: *mut c_void) {
        fill(pointer, value as u32, 4, count, stream, false)
    }

    /// What an address is: `{int type, int device, void* device, void* host, int managed, unsigned flags}`, where type
    /// is 1 for host and 2 for device memory.
    fn hipPointerGetAttributes(attributes: *mut PointerAttributes, pointer: *const c_void) {
        let address = address_of(pointer);
        let found = with(|runtime| {
            let owner = (0..runtime.devices.len())
                .find_map(|device| runtime.devices[device].memory.find(address).map(|(.., origin)| (device, origin)));
            owner.ok_or(error::INVALID_VALUE)
        })?;
        let (device, origin) = found;
        let is_pinned = origin == Origin::Pinned;
        let value = PointerAttributes {
            memory_type: if is_pinned { 1 } else { 2 },
            device: device as c_int,
            device_pointer: pointer,
            host_pointer: if is_pinned { pointer } else { std::ptr::null() },
            is_managed: 0,
            allocation_flags: 0,
        };
        // SAFETY: the caller's promise.
        unsafe { put(attributes, value) }
    }

    /// The start and the size of the allocation that contains an address.
    fn hipMemGetAddressRange(start: *mut *mut c_void, bytes: *mut usize, pointer: *mut c_void) {
        let address = address_of(pointer);
        let (first, size, _) = with(|runtime| {
            runtime.devices.iter().find_map(|device| device.memory.find(address)).ok_or(error::NOT_FOUND)
        })?;
        // SAFETY: the caller's promise; both results are optional.
        unsafe {
            if !start.is_null() {
                put(start, device_pointer(first))?;
            }
            if bytes.is_null() { Ok(()) } else { put(bytes, size) }
        }
    }

    /// The memory pool of a device, which has one.
    fn hipDeviceGetDefaultMemPool(pool: *mut *mut c_void, device: c_int) {
        let index = with(|runtime| runtime.device_index(device))?;
        super::device::out_handle(pool, POOL + index as u64)
    }

    /// The memory pool of a device, which has one.
    fn hipDeviceGetMemPool(pool: *mut *mut c_void, device: c_int) {
        let index = with(|runtime| runtime.device_index(device))?;
        super::device::out_handle(pool, POOL + index as u64)
    }

    /// Accepts a pool's settings: freed memory goes back to the host at once whatever they say.
    fn hipMemPoolSetAttribute(pool: *mut c_void, _attribute: c_int, value: *mut c_void) {
        if value.is_null() { Err(error::INVALID_VALUE) } else { pool_device(pool).map(drop) }
    }

    /// A pool's statistic: 5 and 7 are the bytes reserved and in use now, 6 and 8 the most so far.
    fn hipMemPoolGetAttribute(pool: *mut c_void, attribute: c_int, value: *mut c_void) {
        let device = pool_device(pool)?;
        let statistic = with(|runtime| {
            let memory = &runtime.devices[device].memory;
            match attribute {
                5 | 7 => Ok(memory.live().1),
                6 | 8 => Ok(memory.peak_bytes()),
                // Reuse policies are 32-bit booleans, the release threshold is zero.
                1..=4 => Ok(0),
                _ => Err(error::INVALID_VALUE),
            }
        })?;
        // SAFETY: the caller's promise: 64 bits for sizes, 32 for policies.
        unsafe { if attribute < 4 { put(value.cast(), 0u32) } else { put(value.cast(), statistic) } }
    }

    /// Gives unused memory back, of which there is none.
    fn hipMemPoolTrimTo(pool: *mut c_void, _bytes: usize) {
        pool_device(pool).map(drop)
    }
}

/// `hipPointerAttribute_t` of ROCm 6.
#[repr(C)]
pub struct PointerAttributes {
    memory_type: c_int,
    device: c_int,
    device_pointer: *const c_void,
    host_pointer: *const c_void,
    is_managed: c_int,
    allocation_flags: c_uint,
}

/// Handles of the pools, one a device.
const POOL: u64 = 0x400;

fn pool_device(pool: *mut c_void) -> Result<usize, HipError> {
    let index = (pool.addr() as u64).checked_sub(POOL).ok_or(error::INVALID_VALUE)?;
    with(|runtime| runtime.device_index(c_int::try_from(index).unwrap_or(-1)))
}

/// A C string as text.
///
/// # Safety
/// `text` must be null or a string that ends in zero.
pub(crate) unsafe fn text_of(text: *const c_char) -> Result<String, HipError> {
    if text.is_null() {
        return Err(error::INVALID_VALUE);
    }
    // SAFETY: the caller's promise.
    Ok(unsafe { std::ffi::CStr::from_ptr(text) }.to_string_lossy().into_owned())
}
