//! Our signatures, constants and layouts against those of hip-sys, and a program that is linked with the driver.

use std::mem::offset_of;

use hip_sys::hiprt;

use super::api::{self, OUT_OF_MEMORY, PropertyLayout, constant};

/// A function as C passes it: size and alignment of each parameter, then of the result.
pub(super) trait Signature {
    fn layout() -> Vec<(usize, usize)>;
}

macro_rules! signatures {
    ($(($($argument:ident),*))*) => {$(
        impl<R, $($argument),*> Signature for unsafe extern "C" fn($($argument),*) -> R {
            fn layout() -> Vec<(usize, usize)> {
                vec![$((size_of::<$argument>(), align_of::<$argument>()),)* (size_of::<R>(), align_of::<R>())]
            }
        }
    )*};
}
signatures! {
    () (A) (A, B) (A, B, C) (A, B, C, D) (A, B, C, D, E) (A, B, C, D, E, F, G, H, I, J, K)
}

/// Fails unless both functions pass the same in the same places.
pub(super) fn assert_same<A: Signature, B: Signature>(name: &str, _ours: Option<A>, _theirs: B) {
    assert_eq!(A::layout(), B::layout(), "{name}");
}

#[test]
fn every_function_passes_what_hip_sys_says() {
    api::assert_signatures();
}

#[test]
fn every_constant_is_that_of_hip_sys() {
    use hiprt::{
        hipDeviceAttribute_t as Attribute, hipError_t as Error, hipFunction_attribute as FunctionAttribute,
        hipMemPoolAttr, hipStreamCaptureMode,
    };
    let attributes = [
        (constant::ATTRIBUTE_L2_CACHE_SIZE, Attribute::hipDeviceAttributeL2CacheSize),
        (constant::ATTRIBUTE_MULTIPROCESSOR_COUNT, Attribute::hipDeviceAttributeMultiprocessorCount),
        (
            constant::ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK,
            Attribute::hipDeviceAttributeMaxSharedMemoryPerBlock,
        ),
        (constant::ATTRIBUTE_WARP_SIZE, Attribute::hipDeviceAttributeWarpSize),
        (constant::ATTRIBUTE_MEMORY_POOLS_SUPPORTED, Attribute::hipDeviceAttributeMemoryPoolsSupported),
    ];
    for (ours, theirs) in attributes {
        assert_eq!(ours, theirs as u32, "{theirs:?}");
    }
    assert_eq!(constant::STREAM_NON_BLOCKING, hiprt::hipStreamNonBlocking);
    assert_eq!(
        constant::CAPTURE_MODE_THREAD_LOCAL,
        hipStreamCaptureMode::hipStreamCaptureModeThreadLocal as u32
    );
    assert_eq!(constant::POOL_RELEASE_THRESHOLD, hipMemPoolAttr::hipMemPoolAttrReleaseThreshold as u32);
    assert_eq!(constant::FUNCTION_LOCAL_BYTES, FunctionAttribute::HIP_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES as u32);
    assert_eq!(constant::FUNCTION_REGISTERS, FunctionAttribute::HIP_FUNC_ATTRIBUTE_NUM_REGS as u32);
    assert_eq!(constant::NO_DEVICE as u32, Error::hipErrorNoDevice as u32);
    assert_eq!(constant::INVALID_DEVICE as u32, Error::hipErrorInvalidDevice as u32);
    assert_eq!(OUT_OF_MEMORY as u32, Error::hipErrorOutOfMemory as u32);
}

#[test]
fn properties_are_read_where_hip_sys_has_them() {
    assert_eq!(size_of::<hiprt::hipDeviceProp_t>(), 792);
    assert_eq!(offset_of!(hiprt::hipDeviceProp_t, name), 0);
    assert_eq!(offset_of!(hiprt::hipDeviceProp_t, gcnArchName), PropertyLayout::R0000.arch_name_offset());
}

/// The library linked is the emulator, whose machine has one gfx942 unless the environment says otherwise.
#[test]
fn a_linked_driver_is_found_without_loading_any() {
    let devices = crate::probe::devices().unwrap();
    assert_eq!((devices[0].arch_name.as_str(), devices[0].wave_size), ("gfx942:sramecc+:xnack-", 64));
}
