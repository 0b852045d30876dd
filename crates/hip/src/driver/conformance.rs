//! Our signatures, constants and layouts against those of hip-sys: where one differs, a program that would be linked with
//! the driver does not compile.

use std::mem::offset_of;

use hip_sys::hiprt::{
    self, hipDeviceAttribute_t as Attribute, hipDeviceProp_t as Properties, hipError_t as Error,
    hipFunction_attribute as FunctionAttribute, hipMemPoolAttr as PoolAttribute,
    hipStreamCaptureMode as CaptureMode,
};

use super::api::{OUT_OF_MEMORY, PropertyLayout, constant};

/// A function as C passes it: size and alignment of each parameter, then of the result.
pub(super) trait Signature: Copy {
    const LAYOUT: &'static [(usize, usize)];
}

macro_rules! signatures {
    ($(($($argument:ident),*))*) => {$(
        impl<R, $($argument),*> Signature for unsafe extern "C" fn($($argument),*) -> R {
            const LAYOUT: &'static [(usize, usize)] =
                &[$((size_of::<$argument>(), align_of::<$argument>()),)* (size_of::<R>(), align_of::<R>())];
        }
    )*};
}
signatures! {
    () (A) (A, B) (A, B, C) (A, B, C, D) (A, B, C, D, E) (A, B, C, D, E, F, G, H, I, J, K)
}

/// Whether both functions pass the same in the same places; the second one's type is inferred from its value.
pub(super) const fn is_same<A: Signature, B: Signature>(_theirs: B) -> bool {
    let (ours, theirs) = (A::LAYOUT, B::LAYOUT);
    let mut at = 0;
    while at < ours.len() {
        if ours[at].0 != theirs[at].0 || ours[at].1 != theirs[at].1 {
            return false;
        }
        at += 1;
    }
    ours.len() == theirs.len()
}

/// Compares pairs of integers and of the enumerators that they stand for.
macro_rules! assert_equal {
    ($($ours:expr => $theirs:expr,)*) => {$(
        const _: () = assert!($ours as u32 == $theirs as u32, concat!(stringify!($ours), " is not ", stringify!($theirs)));
    )*};
}
assert_equal! {
    constant::ATTRIBUTE_L2_CACHE_SIZE => Attribute::hipDeviceAttributeL2CacheSize,
    constant::ATTRIBUTE_MULTIPROCESSOR_COUNT => Attribute::hipDeviceAttributeMultiprocessorCount,
    constant::ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK => Attribute::hipDeviceAttributeMaxSharedMemoryPerBlock,
    constant::ATTRIBUTE_WARP_SIZE => Attribute::hipDeviceAttributeWarpSize,
    constant::ATTRIBUTE_MEMORY_POOLS_SUPPORTED => Attribute::hipDeviceAttributeMemoryPoolsSupported,
    constant::STREAM_NON_BLOCKING => hiprt::hipStreamNonBlocking,
    constant::CAPTURE_MODE_THREAD_LOCAL => CaptureMode::hipStreamCaptureModeThreadLocal,
    constant::POOL_RELEASE_THRESHOLD => PoolAttribute::hipMemPoolAttrReleaseThreshold,
    constant::FUNCTION_LOCAL_BYTES => FunctionAttribute::HIP_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES,
    constant::FUNCTION_REGISTERS => FunctionAttribute::HIP_FUNC_ATTRIBUTE_NUM_REGS,
    constant::NO_DEVICE => Error::hipErrorNoDevice,
    constant::INVALID_DEVICE => Error::hipErrorInvalidDevice,
    OUT_OF_MEMORY => Error::hipErrorOutOfMemory,
}

const _: () = assert!(size_of::<Properties>() == 792 && offset_of!(Properties, name) == 0);
const _: () = assert!(offset_of!(Properties, gcnArchName) == PropertyLayout::R0000.arch_name_offset());
