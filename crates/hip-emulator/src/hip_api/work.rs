//! What a stream executes: kernels, copies, fills, events, host functions.

use std::ffi::c_void;
use std::sync::Arc;

use super::error::{self, HipError};
use crate::device::{Dimensions, Module};
use crate::memory::{DEVICE_OFFSET, host_pointer};

/// A host address that a stream will use later.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostAddress(pub(crate) *mut c_void);

// SAFETY: the address is only dereferenced when the work runs; that it is valid then is the HIP caller's duty.
unsafe impl Send for HostAddress {}

/// The bytes a copy reads.
#[derive(Clone)]
pub(crate) enum Source {
    /// A device or pinned address, read when the copy runs.
    Address(u64),
    /// Pageable host memory, which the runtime stages before the call returns.
    Staged(Arc<Vec<u8>>),
}

/// One unit of work.
#[derive(Clone)]
pub(crate) enum Work {
    Kernel {
        module: Module,
        name: Arc<str>,
        dimensions: Dimensions,
        arguments: Arc<Vec<u8>>,
    },
    /// Rows of a copy; a plain copy is one row.
    Copy {
        destination: u64,
        source: Source,
        row_bytes: usize,
        rows: usize,
        destination_pitch: usize,
        source_pitch: usize,
    },
    /// `count` elements of one, two or four bytes.
    Fill {
        address: u64,
        value: u32,
        element_bytes: usize,
        count: usize,
    },
    Record {
        event: u64,
        generation: u64,
    },
    Wait {
        event: u64,
        generation: u64,
    },
    Free {
        address: u64,
    },
    HostFunction {
        function: unsafe extern "C" fn(*mut c_void),
        data: HostAddress,
    },
}

/// Copies rows of bytes whose ranges have been checked.
///
/// # Safety
/// Every row must lie in live memory on both sides.
pub(crate) unsafe fn copy_rows(
    destination: u64,
    source: &Source,
    row_bytes: usize,
    rows: usize,
    (destination_pitch, source_pitch): (usize, usize),
) {
    for row in 0..rows {
        let to = pointer(destination).wrapping_add(row * destination_pitch);
        let from = match source {
            Source::Address(address) => pointer(*address).cast_const(),
            Source::Staged(bytes) => bytes.as_ptr(),
        };
        // SAFETY: live on both sides by the caller's promise; `copy` allows overlap.
        unsafe { std::ptr::copy(from.wrapping_add(row * source_pitch), to, row_bytes) };
    }
}

/// Fills elements whose range has been checked.
///
/// # Safety
/// The range must lie in live memory.
pub(crate) unsafe fn fill(address: u64, value: u32, element_bytes: usize, count: usize) {
    let bytes = value.to_le_bytes();
    for element in 0..count {
        let to = pointer(address).wrapping_add(element * element_bytes);
        // SAFETY: live by the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, element_bytes) };
    }
}

/// The host pointer behind a device or host address.
fn pointer(address: u64) -> *mut u8 {
    if address >= DEVICE_OFFSET {
        host_pointer(address)
    } else {
        std::ptr::with_exposed_provenance_mut(address as usize)
    }
}

/// Bytes that `rows` rows span.
pub(crate) fn span(row_bytes: usize, rows: usize, pitch: usize) -> Result<usize, HipError> {
    match rows.checked_sub(1) {
        None => Ok(0),
        Some(before) => before
            .checked_mul(pitch)
            .and_then(|bytes| bytes.checked_add(row_bytes))
            .ok_or(error::INVALID_VALUE),
    }
}
