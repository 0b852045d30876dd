//! The driver's entry points, looked up once: holding an [`Api`] proves that every one of them exists.
//!
//! Handles and constants are cudarc's; the table is our own, for three reasons. cudarc's loader panics where the
//! library or a symbol is missing. Its bindings follow the newest toolkit, so that an older driver lacks entry points
//! which its safe layer calls (`cuEventElapsedTime_v2`); this table names those that every supported driver has. And
//! its results are Rust enums, which a newer driver's error code must not be read into.

#![allow(non_snake_case, reason = "methods have the names of the driver's functions")]

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::mem::ManuallyDrop;

use cudarc::driver::sys::{
    CUcontext, CUdevice, CUdeviceptr, CUevent, CUfunction, CUgraph, CUgraphExec, CUmemoryPool, CUmodule,
    CUstream, CUtensorMap,
};
use libloading::Library;
use omniflash_core::{Error, Result};

/// What a driver function returns; 0 is success. An integer, since drivers know codes that these bindings do not.
pub(crate) type Code = c_uint;

/// `CUDA_ERROR_OUT_OF_MEMORY`.
pub(crate) const OUT_OF_MEMORY: i64 = 2;

macro_rules! api {
    ($($name:ident = $symbol:literal ($($argument:ident: $type:ty),*);)*) => {
        /// The functions of one loaded driver library.
        pub(crate) struct Api {
            $($name: unsafe extern "C" fn($($type),*) -> Code,)*
            /// Keeps the functions loaded, for ever: the driver has threads of its own that outlive its users.
            _library: ManuallyDrop<Library>,
        }

        impl Api {
            /// Looks every function up.
            ///
            /// # Errors
            /// The name of the first one that the library lacks.
            pub(crate) fn from_library(library: Library) -> Result<Self, &'static str> {
                Ok(Api {
                    // SAFETY: the types are those of the driver's documentation, for the version named by the symbol.
                    $($name: unsafe { symbol(&library, $symbol) }.ok_or($symbol)?,)*
                    _library: ManuallyDrop::new(library),
                })
            }

            $(
                #[doc = concat!("`", $symbol, "`.")]
                ///
                /// # Safety
                /// What the driver's documentation asks of the arguments.
                #[allow(clippy::too_many_arguments, reason = "the driver's signature")]
                #[allow(dead_code, reason = "those that describe errors are called below, without this check")]
                pub(crate) unsafe fn $name(&self, $($argument: $type),*) -> Result<()> {
                    // SAFETY: the caller's duty.
                    let code = unsafe { (self.$name)($($argument),*) };
                    self.checked($symbol, code)
                }
            )*

            /// The symbols looked up.
            pub(crate) const SYMBOLS: &[&str] = &[$($symbol),*];
        }
    };
}

api! {
    cuGetErrorName = "cuGetErrorName"(code: Code, name: *mut *const c_char);
    cuGetErrorString = "cuGetErrorString"(code: Code, text: *mut *const c_char);
    cuInit = "cuInit"(flags: c_uint);
    cuDeviceGetCount = "cuDeviceGetCount"(count: *mut c_int);
    cuDeviceGet = "cuDeviceGet"(device: *mut CUdevice, ordinal: c_int);
    cuDeviceGetName = "cuDeviceGetName"(name: *mut c_char, length: c_int, device: CUdevice);
    cuDeviceTotalMem = "cuDeviceTotalMem_v2"(bytes: *mut usize, device: CUdevice);
    cuDeviceGetAttribute = "cuDeviceGetAttribute"(value: *mut c_int, attribute: c_uint, device: CUdevice);
    cuDeviceGetDefaultMemPool = "cuDeviceGetDefaultMemPool"(pool: *mut CUmemoryPool, device: CUdevice);
    cuMemPoolSetAttribute = "cuMemPoolSetAttribute"(pool: CUmemoryPool, attribute: c_uint, value: *mut c_void);
    cuDevicePrimaryCtxRetain = "cuDevicePrimaryCtxRetain"(context: *mut CUcontext, device: CUdevice);
    cuDevicePrimaryCtxRelease = "cuDevicePrimaryCtxRelease_v2"(device: CUdevice);
    cuCtxGetCurrent = "cuCtxGetCurrent"(context: *mut CUcontext);
    cuCtxPushCurrent = "cuCtxPushCurrent_v2"(context: CUcontext);
    cuCtxPopCurrent = "cuCtxPopCurrent_v2"(context: *mut CUcontext);
    cuCtxSynchronize = "cuCtxSynchronize"();
    cuStreamCreate = "cuStreamCreate"(stream: *mut CUstream, flags: c_uint);
    cuStreamDestroy = "cuStreamDestroy_v2"(stream: CUstream);
    cuStreamGetId = "cuStreamGetId"(stream: CUstream, id: *mut u64);
    cuStreamSynchronize = "cuStreamSynchronize"(stream: CUstream);
    cuStreamIsCapturing = "cuStreamIsCapturing"(stream: CUstream, status: *mut c_uint);
    cuStreamBeginCapture = "cuStreamBeginCapture_v2"(stream: CUstream, mode: c_uint);
    cuStreamEndCapture = "cuStreamEndCapture"(stream: CUstream, graph: *mut CUgraph);
    cuGraphInstantiateWithFlags = "cuGraphInstantiateWithFlags"(exec: *mut CUgraphExec, graph: CUgraph, flags: u64);
    cuGraphLaunch = "cuGraphLaunch"(exec: CUgraphExec, stream: CUstream);
    cuGraphExecDestroy = "cuGraphExecDestroy"(exec: CUgraphExec);
    cuGraphDestroy = "cuGraphDestroy"(graph: CUgraph);
    cuEventCreate = "cuEventCreate"(event: *mut CUevent, flags: c_uint);
    cuEventRecord = "cuEventRecord"(event: CUevent, stream: CUstream);
    cuEventSynchronize = "cuEventSynchronize"(event: CUevent);
    cuEventElapsedTime = "cuEventElapsedTime"(milliseconds: *mut f32, start: CUevent, end: CUevent);
    cuEventDestroy = "cuEventDestroy_v2"(event: CUevent);
    cuMemAlloc = "cuMemAlloc_v2"(pointer: *mut CUdeviceptr, bytes: usize);
    cuMemFree = "cuMemFree_v2"(pointer: CUdeviceptr);
    cuMemAllocAsync = "cuMemAllocAsync"(pointer: *mut CUdeviceptr, bytes: usize, stream: CUstream);
    cuMemFreeAsync = "cuMemFreeAsync"(pointer: CUdeviceptr, stream: CUstream);
    cuMemsetD8Async = "cuMemsetD8Async"(pointer: CUdeviceptr, value: u8, bytes: usize, stream: CUstream);
    cuMemcpyHtoDAsync = "cuMemcpyHtoDAsync_v2"(to: CUdeviceptr, from: *const c_void, bytes: usize, stream: CUstream);
    cuMemcpyDtoHAsync = "cuMemcpyDtoHAsync_v2"(to: *mut c_void, from: CUdeviceptr, bytes: usize, stream: CUstream);
    cuModuleLoadDataEx = "cuModuleLoadDataEx"(
        module: *mut CUmodule, image: *const c_void, count: c_uint, options: *mut c_uint, values: *mut *mut c_void
    );
    cuModuleUnload = "cuModuleUnload"(module: CUmodule);
    cuModuleGetFunction = "cuModuleGetFunction"(function: *mut CUfunction, module: CUmodule, name: *const c_char);
    cuFuncSetAttribute = "cuFuncSetAttribute"(function: CUfunction, attribute: c_uint, value: c_int);
    cuFuncGetAttribute = "cuFuncGetAttribute"(value: *mut c_int, attribute: c_uint, function: CUfunction);
    cuOccupancyMaxActiveBlocksPerMultiprocessor = "cuOccupancyMaxActiveBlocksPerMultiprocessor"(
        blocks: *mut c_int, function: CUfunction, block_threads: c_int, shared_bytes: usize
    );
    cuTensorMapEncodeTiled = "cuTensorMapEncodeTiled"(
        map: *mut CUtensorMap, element: c_uint, rank: c_uint, address: *mut c_void, extents: *const u64,
        strides: *const u64, sizes: *const c_uint, steps: *const c_uint, interleave: c_uint, swizzle: c_uint,
        promotion: c_uint, outside: c_uint
    );
    cuLaunchKernel = "cuLaunchKernel"(
        function: CUfunction, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint, block_y: c_uint,
        block_z: c_uint, shared_bytes: c_uint, stream: CUstream, parameters: *mut *mut c_void, extra: *mut *mut c_void
    );
}

/// A function of a library.
///
/// # Safety
/// - `F` is the function's type.
unsafe fn symbol<F: Copy>(library: &Library, name: &str) -> Option<F> {
    // SAFETY: the caller's duty.
    unsafe { library.get::<F>(name) }.ok().map(|function| *function)
}

impl Api {
    /// A driver's return code as a result.
    fn checked(&self, function: &'static str, code: Code) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        Err(Error::Driver { api: function.into(), code: i64::from(code), text: self.describe(code) })
    }

    /// The driver's name and text of an error code.
    fn describe(&self, code: Code) -> String {
        let text = |function: unsafe extern "C" fn(Code, *mut *const c_char) -> Code| {
            let mut text = std::ptr::null();
            // SAFETY: `text` is writable; on success the driver points it at a static string.
            let known = unsafe { function(code, &raw mut text) } == 0 && !text.is_null();
            // SAFETY: a static, zero-terminated string, as above.
            known.then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
        };
        match (text(self.cuGetErrorName), text(self.cuGetErrorString)) {
            (Some(name), Some(text)) => format!("{name}: {text}"),
            (Some(text), None) | (None, Some(text)) => text,
            (None, None) => "an error that the driver does not describe".into(),
        }
    }
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Api({} functions)", Api::SYMBOLS.len())
    }
}
