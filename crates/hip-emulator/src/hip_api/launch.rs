//! Kernel launches with packed arguments (`extra`) or with one pointer an argument (`kernelParams`).

use std::ffi::{c_uint, c_void};
use std::sync::Arc;

use super::call::hip_functions;
use super::error::{self, HipError};
use super::module::descriptor;
use super::runtime::with;
use super::work::Work;
use crate::code_object::KernelDescriptor;
use crate::device::{Dimensions, explicit_bytes};

/// Markers in `extra`.
const BUFFER_POINTER: usize = 1;
const BUFFER_SIZE: usize = 2;
const END: usize = 3;

/// The arguments as the kernel reads them.
///
/// # Safety
/// `parameters` and `extra` must be null or what `hipModuleLaunchKernel` documents for this kernel.
unsafe fn pack(
    descriptor: &KernelDescriptor,
    parameters: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> Result<Vec<u8>, HipError> {
    let needed = explicit_bytes(descriptor);
    if !extra.is_null() {
        if !parameters.is_null() {
            return Err(error::INVALID_VALUE);
        }
        // SAFETY: the caller's promise.
        return unsafe { packed(extra, needed) };
    }
    if parameters.is_null() {
        return if needed == 0 { Ok(Vec::new()) } else { Err(error::INVALID_VALUE) };
    }
    let mut bytes = vec![0; needed];
    let explicit = descriptor.metadata.arguments.iter().filter(|argument| !argument.is_hidden());
    for (index, argument) in explicit.enumerate() {
        // SAFETY: the array has one pointer for each argument, by the caller's promise.
        let value = unsafe { parameters.add(index).read_unaligned() };
        if value.is_null() {
            return Err(error::INVALID_VALUE);
        }
        // SAFETY: each pointer leads to a value of the argument's size, by the caller's promise.
        let value = unsafe { std::slice::from_raw_parts(value.cast::<u8>(), argument.bytes) };
        bytes[argument.offset..argument.offset + argument.bytes].copy_from_slice(value);
    }
    Ok(bytes)
}

/// # Safety
/// `extra` must be a list of markers and values that ends in `HIP_LAUNCH_PARAM_END`.
unsafe fn packed(extra: *mut *mut c_void, needed: usize) -> Result<Vec<u8>, HipError> {
    let (mut buffer, mut size) = (std::ptr::null::<u8>(), None);
    let mut at = 0;
    loop {
        // SAFETY: the list has not ended yet.
        let (marker, value) = unsafe { (extra.add(at).read_unaligned(), extra.add(at + 1)) };
        match marker.addr() {
            END => break,
            // SAFETY: a marker is followed by its value.
            BUFFER_POINTER => buffer = unsafe { value.read_unaligned() }.cast_const().cast(),
            BUFFER_SIZE => {
                // SAFETY: the value of this marker is a pointer to the size.
                size = Some(unsafe { value.read_unaligned().cast::<usize>().read_unaligned() });
            }
            _ => return Err(error::INVALID_VALUE),
        }
        at += 2;
    }
    let size = size.ok_or(error::INVALID_VALUE)?;
    if size < needed || size > 4096 || buffer.is_null() && size > 0 {
        return Err(error::INVALID_VALUE);
    }
    // SAFETY: the buffer has the size that the list gives.
    Ok(if size == 0 { Vec::new() } else { unsafe { std::slice::from_raw_parts(buffer, size) }.to_vec() })
}

hip_functions! {
    /// Launches a kernel in a stream's order.
    fn hipModuleLaunchKernel(
        function: *mut c_void,
        grid_x: c_uint,
        grid_y: c_uint,
        grid_z: c_uint,
        block_x: c_uint,
        block_y: c_uint,
        block_z: c_uint,
        dynamic_lds: c_uint,
        stream: *mut c_void,
        parameters: *mut *mut c_void,
        extra: *mut *mut c_void,
    ) {
        with(|runtime| {
            let key = runtime.stream_key(stream)?;
            let descriptor = descriptor(runtime, function)?;
            let function = runtime.functions[&(function.addr() as u64)].clone();
            let (owner, module) = runtime.modules.get(&function.module).cloned().ok_or(error::INVALID_HANDLE)?;
            if runtime.streams[&key].device != owner {
                return Err(error::INVALID_HANDLE);
            }
            let dimensions = Dimensions {
                grid: [grid_x, grid_y, grid_z],
                block: [block_x, block_y, block_z],
                dynamic_lds_bytes: dynamic_lds,
            };
            if let Err(refusal) = runtime.devices[owner].check(&function.name, &descriptor, dimensions) {
                runtime.report(refusal.to_string());
                return Err(error::INVALID_CONFIGURATION);
            }
            // SAFETY: the caller's promise.
            let arguments = unsafe { pack(&descriptor, parameters, extra) }?;
            if arguments.len() > descriptor.kernarg_bytes as usize {
                return Err(error::INVALID_VALUE);
            }
            let work = Work::Kernel { module, name: function.name.into(), dimensions, arguments: Arc::new(arguments) };
            runtime.enqueue(key, work)
        })
    }
}
