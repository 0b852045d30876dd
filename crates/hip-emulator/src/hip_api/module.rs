//! Modules and their functions.

use std::ffi::{c_char, c_int, c_uint, c_void};

use super::call::{hip_functions, put};
use super::device::out_handle;
use super::error::{self, HipError};
use super::memory::text_of;
use super::runtime::{Function, Runtime, with};
use crate::code_object::{KernelDescriptor, image_length};
use crate::fault::LoadError;

fn load(runtime: &mut Runtime, image: &[u8]) -> Result<u64, HipError> {
    runtime.require_no_capture()?;
    let device = runtime.current()?;
    match runtime.devices[device].load(image) {
        Ok(module) => {
            let handle = runtime.new_handle();
            runtime.modules.insert(handle, (device, module));
            Ok(handle)
        }
        Err(error) => {
            runtime.report(error.to_string());
            Err(match error {
                LoadError::WrongTarget { .. } => error::NO_BINARY_FOR_GPU,
                LoadError::Malformed(_) => error::INVALID_IMAGE,
                LoadError::Disassembler { .. } => error::UNKNOWN,
            })
        }
    }
}

/// The descriptor behind a function handle.
pub(crate) fn descriptor(runtime: &Runtime, function: *const c_void) -> Result<KernelDescriptor, HipError> {
    let function = runtime.functions.get(&(function.addr() as u64)).ok_or(error::INVALID_DEVICE_FUNCTION)?;
    let (_, module) = runtime.modules.get(&function.module).ok_or(error::INVALID_DEVICE_FUNCTION)?;
    module.program.code.kernels.get(&function.name).cloned().ok_or(error::INVALID_DEVICE_FUNCTION)
}

/// Workgroups of `block_size` items that fit on a compute unit: bounded by LDS and by wave slots.
fn resident_workgroups(
    runtime: &mut Runtime,
    function: *const c_void,
    block_size: u32,
    dynamic_lds: usize,
) -> Result<u32, HipError> {
    let descriptor = descriptor(runtime, function)?;
    let target = runtime.current_device()?.target();
    if block_size == 0 || block_size > 1024 {
        return Err(error::INVALID_VALUE);
    }
    let waves = block_size.div_ceil(target.wave_size() as u32);
    // Registers of a SIMD divided among waves, four SIMDs a unit.
    let registers = descriptor.metadata.vgprs.max(8).next_multiple_of(8);
    let waves_of_unit = 4 * (512 / registers).clamp(1, 8);
    let by_waves = waves_of_unit / waves;
    let lds = descriptor.lds_bytes as usize + dynamic_lds;
    let by_lds = target.lds_bytes().checked_div(lds).map_or(u32::MAX, |count| count as u32);
    Ok(by_waves.min(by_lds))
}

hip_functions! {
    /// Loads a code object or bundle from memory; its own headers say how long it is.
    fn hipModuleLoadData(module: *mut *mut c_void, image: *const c_void) {
        if module.is_null() || image.is_null() {
            return Err(error::INVALID_VALUE);
        }
        // SAFETY: the caller passes a whole image.
        let length = unsafe { image_length(image.cast()) }.map_err(|_| error::INVALID_IMAGE)?;
        // SAFETY: as above; the headers gave the length.
        let bytes = unsafe { std::slice::from_raw_parts(image.cast::<u8>(), length) };
        let handle = with(|runtime| load(runtime, bytes))?;
        out_handle(module, handle)
    }

    /// As `hipModuleLoadData`; there is no compiler to give the options to.
    fn hipModuleLoadDataEx(module: *mut *mut c_void, image: *const c_void, _count: c_uint, _options: *mut c_int, _values: *mut *mut c_void) {
        // SAFETY: the caller's promise.
        match unsafe { hipModuleLoadData(module, image) } {
            0 => Ok(()),
            code => Err(HipError(code)),
        }
    }

    /// Loads a code object or bundle from a file.
    fn hipModuleLoad(module: *mut *mut c_void, path: *const c_char) {
        // SAFETY: the caller's promise.
        let path = unsafe { text_of(path) }?;
        let bytes = std::fs::read(path).map_err(|_| error::FILE_NOT_FOUND)?;
        let handle = with(|runtime| load(runtime, &bytes))?;
        out_handle(module, handle)
    }

    /// Unloads a module after all work of its device.
    fn hipModuleUnload(module: *mut c_void) {
        with(|runtime| {
            runtime.require_no_capture()?;
            let handle = module.addr() as u64;
            let (device, module) = runtime.modules.remove(&handle).ok_or(error::INVALID_HANDLE)?;
            runtime.functions.retain(|_, function| function.module != handle);
            runtime.drain(|stream| stream.device == device)?;
            runtime.devices[device].unload(module).map_err(|_| error::INVALID_HANDLE)
        })
    }

    /// Finds a kernel by its name.
    fn hipModuleGetFunction(function: *mut *mut c_void, module: *mut c_void, name: *const c_char) {
        // SAFETY: the caller's promise.
        let name = unsafe { text_of(name) }?;
        let handle = with(|runtime| {
            let module = module.addr() as u64;
            let (_, loaded) = runtime.modules.get(&module).ok_or(error::INVALID_HANDLE)?;
            if !loaded.program.code.kernels.contains_key(&name) {
                return Err(error::NOT_FOUND);
            }
            let known = runtime.functions.iter().find(|(_, function)| function.module == module && function.name == name);
            if let Some((&handle, _)) = known {
                return Ok(handle);
            }
            let handle = runtime.new_handle();
            runtime.functions.insert(handle, Function { module, name });
            Ok(handle)
        })?;
        out_handle(function, handle)
    }

    /// Finds a device variable: its address and bytes.
    fn hipModuleGetGlobal(pointer: *mut *mut c_void, bytes: *mut usize, module: *mut c_void, name: *const c_char) {
        // SAFETY: the caller's promise.
        let name = unsafe { text_of(name) }?;
        let (address, size) = with(|runtime| {
            let (_, loaded) = runtime.modules.get(&(module.addr() as u64)).ok_or(error::INVALID_HANDLE)?;
            let variable = loaded.program.code.variables.get(&name).ok_or(error::NOT_FOUND)?;
            Ok((loaded.program.base + variable.address, variable.bytes))
        })?;
        // SAFETY: the caller's promise; both results are optional.
        unsafe {
            if !pointer.is_null() {
                put(pointer, std::ptr::with_exposed_provenance_mut(address as usize))?;
            }
            if bytes.is_null() { Ok(()) } else { put(bytes, size as usize) }
        }
    }

    /// A fact about a kernel: 0 work items a block, 1 LDS, 3 scratch a lane, 4 registers, 8 dynamic LDS at most.
    fn hipFuncGetAttribute(value: *mut c_int, attribute: c_int, function: *mut c_void) {
        let found = with(|runtime| {
            let descriptor = descriptor(runtime, function)?;
            let target = runtime.current_device()?.target();
            Ok(match attribute {
                0 => match descriptor.metadata.max_workgroup_size {
                    0 => 1024,
                    limit => limit.min(1024) as c_int,
                },
                1 => descriptor.lds_bytes as c_int,
                2 | 7 | 9 => 0,
                3 => descriptor.scratch_bytes as c_int,
                4 => descriptor.metadata.vgprs as c_int,
                5 | 6 => 10 * target.version().0 + target.version().1,
                8 => (target.lds_bytes() as u32).saturating_sub(descriptor.lds_bytes) as c_int,
                _ => return Err(error::INVALID_VALUE),
            })
        })?;
        // SAFETY: the caller's promise.
        unsafe { put(value, found) }
    }

    /// Accepts a kernel's limit of dynamic LDS (8), which a launch checks anyway, and its cache preference (9).
    fn hipFuncSetAttribute(function: *const c_void, attribute: c_int, value: c_int) {
        with(|runtime| {
            let descriptor = descriptor(runtime, function)?;
            let target = runtime.current_device()?.target();
            let limit = (target.lds_bytes() as u32).saturating_sub(descriptor.lds_bytes);
            match attribute {
                8 if value >= 0 && value as u32 <= limit => Ok(()),
                9 => Ok(()),
                _ => Err(error::INVALID_VALUE),
            }
        })
    }

    /// Workgroups of a kernel that a compute unit holds at once.
    fn hipModuleOccupancyMaxActiveBlocksPerMultiprocessor(count: *mut c_int, function: *mut c_void, block_size: c_int, dynamic_lds: usize) {
        let found = with(|runtime| resident_workgroups(runtime, function, block_size.max(0) as u32, dynamic_lds))?;
        // SAFETY: the caller's promise.
        unsafe { put(count, found as c_int) }
    }

    /// As the function without flags.
    fn hipModuleOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(count: *mut c_int, function: *mut c_void, block_size: c_int, dynamic_lds: usize, _flags: c_uint) {
        let found = with(|runtime| resident_workgroups(runtime, function, block_size.max(0) as u32, dynamic_lds))?;
        // SAFETY: the caller's promise.
        unsafe { put(count, found as c_int) }
    }
}
