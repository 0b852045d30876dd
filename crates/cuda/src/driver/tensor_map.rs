//! Maps of tensors, for copies by the tensor memory accelerator.

use std::ptr;

use cudarc::driver::sys::{
    CUtensorMapDataType as ElementType, CUtensorMapFloatOOBfill as Outside,
    CUtensorMapInterleave as Interleave, CUtensorMapL2promotion as Promotion, CUtensorMapSwizzle as Swizzle,
};
use omniflash_core::{DType, Result};
use omniflash_kernels_cuda::TensorMap;

use super::Context;

/// What a map says: a tensor of five axes, and the boxes that copies take of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TensorBox {
    pub(crate) dtype: DType,
    pub(crate) address: u64,
    /// Elements along each axis.
    pub(crate) extents: [u64; 5],
    /// Bytes between neighbours along each axis but the first.
    pub(crate) strides: [u64; 4],
    /// Elements that a copy takes along each axis.
    pub(crate) sizes: [u32; 5],
    /// Bytes that the second-level cache fetches where a copy asks for some of them.
    pub(crate) fetched: Fetched,
}

/// How much the second-level cache fetches at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fetched {
    Bytes128,
    Bytes256,
}

/// Encodes a map whose boxes lie in shared memory with the 128-byte swizzle and are 0 outside of the tensor. Called while the
/// context is the thread's.
///
/// # Errors
/// [`Error::Driver`](omniflash_core::Error::Driver) for a tensor that no map can describe.
pub(crate) fn encode_tensor_map(context: &Context, what: &TensorBox) -> Result<TensorMap> {
    let element = match what.dtype {
        DType::F16 => ElementType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        _ => ElementType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
    };
    let mut map = TensorMap::default();
    // SAFETY: the map is writable, 128 bytes and aligned to 64 as the driver asks; the arrays have the rank's length. The
    // address is written down, not read.
    unsafe {
        context.api().cuTensorMapEncodeTiled(
            (&raw mut map).cast(),
            element as u32,
            what.extents.len() as u32,
            ptr::without_provenance_mut(what.address as usize),
            what.extents.as_ptr(),
            what.strides.as_ptr(),
            what.sizes.as_ptr(),
            [1; 5].as_ptr(),
            Interleave::CU_TENSOR_MAP_INTERLEAVE_NONE as u32,
            Swizzle::CU_TENSOR_MAP_SWIZZLE_128B as u32,
            match what.fetched {
                Fetched::Bytes128 => Promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                Fetched::Bytes256 => Promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            } as u32,
            Outside::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE as u32,
        )
    }?;
    Ok(map)
}
