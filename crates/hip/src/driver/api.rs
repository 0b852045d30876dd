//! The driver's entry points, looked up once: holding an [`Api`] proves that every one of them exists.
//!
//! The table is our own, and so are its types. ROCm is not needed to build, a program starts where the library is
//! absent, and one binary takes several versions of it: the functions are those that ROCm 5.2 has already. Error codes
//! and statuses are integers, since a newer library knows values that an enum of these bindings would not.

#![allow(non_snake_case, reason = "methods have the names of HIP's functions")]

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::mem::ManuallyDrop;

use libloading::Library;
use omniflash_core::{Error, Result};

/// What a function returns; 0 is success. An integer, since libraries know codes that these bindings do not.
pub(crate) type Code = c_uint;

/// `hipErrorOutOfMemory`.
pub(crate) const OUT_OF_MEMORY: i64 = 2;

/// An address in the memory of a device, in place of C's `void *`.
pub(crate) type DevicePointer = u64;

const _: () = assert!(size_of::<DevicePointer>() == size_of::<*mut c_void>(), "HIP exists on 64 bits only");

/// What the handles of HIP point at.
pub(crate) mod opaque {
    macro_rules! opaque {
        ($($name:ident),*) => {$(
            #[allow(unreachable_pub, reason = "most are associated types of a public trait's implementation")]
            #[repr(C)]
            pub struct $name {
                _private: [u8; 0],
            }
        )*};
    }
    opaque!(Stream, Event, Graph, GraphExec, GraphNode, MemPool, Module, Function);
}

pub(crate) type HipStream = *mut opaque::Stream;
pub(crate) type HipEvent = *mut opaque::Event;
pub(crate) type HipGraph = *mut opaque::Graph;
pub(crate) type HipGraphExec = *mut opaque::GraphExec;
pub(crate) type HipGraphNode = *mut opaque::GraphNode;
pub(crate) type HipMemPool = *mut opaque::MemPool;
pub(crate) type HipModule = *mut opaque::Module;
pub(crate) type HipFunction = *mut opaque::Function;

type GetProperties = unsafe extern "C" fn(*mut c_void, c_int) -> Code;
type GetStreamId = unsafe extern "C" fn(HipStream, *mut u64) -> Code;

/// Numbers of the C headers.
pub(crate) mod constant {
    use std::ffi::{c_int, c_uint};

    /// `hipDeviceAttributeL2CacheSize`.
    pub(crate) const ATTRIBUTE_L2_CACHE_SIZE: c_uint = 19;
    /// `hipDeviceAttributeMultiprocessorCount`.
    pub(crate) const ATTRIBUTE_MULTIPROCESSOR_COUNT: c_uint = 63;
    /// `hipDeviceAttributeMaxSharedMemoryPerBlock`.
    pub(crate) const ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: c_uint = 74;
    /// `hipDeviceAttributeWarpSize`.
    pub(crate) const ATTRIBUTE_WARP_SIZE: c_uint = 87;
    /// `hipDeviceAttributeMemoryPoolsSupported`.
    pub(crate) const ATTRIBUTE_MEMORY_POOLS_SUPPORTED: c_uint = 88;
    /// `hipStreamNonBlocking`.
    pub(crate) const STREAM_NON_BLOCKING: c_uint = 1;
    /// `hipStreamCaptureModeThreadLocal`.
    pub(crate) const CAPTURE_MODE_THREAD_LOCAL: c_uint = 1;
    /// `hipMemPoolAttrReleaseThreshold`.
    pub(crate) const POOL_RELEASE_THRESHOLD: c_uint = 4;
    /// `HIP_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES`.
    pub(crate) const FUNCTION_LOCAL_BYTES: c_uint = 3;
    /// `HIP_FUNC_ATTRIBUTE_NUM_REGS`.
    pub(crate) const FUNCTION_REGISTERS: c_uint = 4;
    /// `hipErrorInvalidDevice`, which ROCm 5 also answers where there is none.
    pub(crate) const INVALID_DEVICE: c_int = 101;
    /// `hipErrorNoDevice`.
    pub(crate) const NO_DEVICE: c_int = 100;
}

/// A type for the compiler to find out.
#[cfg(feature = "hip-link")]
macro_rules! inferred {
    ($argument:ident) => {
        _
    };
}

macro_rules! api {
    ($($name:ident($($argument:ident: $type:ty),*);)*) => {
        /// The functions of one driver library.
        pub(crate) struct Api {
            $($name: unsafe extern "C" fn($($type),*) -> Code,)*
            /// The layouts of ROCm 6 and later, and of ROCm 5: the first that the library has.
            get_properties: (PropertyLayout, GetProperties),
            /// Since HIP 7.1.
            stream_id: Option<GetStreamId>,
            get_error_name: unsafe extern "C" fn(Code) -> *const c_char,
            get_error_string: unsafe extern "C" fn(Code) -> *const c_char,
            get_last_error: unsafe extern "C" fn() -> Code,
            /// Keeps the functions loaded, for ever: the runtime has threads of its own that outlive its users.
            _library: Option<ManuallyDrop<Library>>,
        }

        impl Api {
            /// Looks every function up.
            ///
            /// # Errors
            /// The name of the first one that the library lacks.
            pub(crate) fn from_library(library: Library) -> Result<Self, &'static str> {
                // SAFETY: the types of these functions are those of HIP's documentation.
                unsafe {
                    Ok(Api {
                        $($name: symbol(&library, stringify!($name)).ok_or(stringify!($name))?,)*
                        get_properties: match symbol(&library, "hipGetDevicePropertiesR0600") {
                            Some(function) => (PropertyLayout::R0600, function),
                            None => {
                                const OLD: &str = "hipGetDeviceProperties";
                                (PropertyLayout::R0000, symbol(&library, OLD).ok_or(OLD)?)
                            }
                        },
                        stream_id: symbol(&library, "hipStreamGetId"),
                        get_error_name: symbol(&library, "hipGetErrorName").ok_or("hipGetErrorName")?,
                        get_error_string: symbol(&library, "hipGetErrorString").ok_or("hipGetErrorString")?,
                        get_last_error: symbol(&library, "hipGetLastError").ok_or("hipGetLastError")?,
                        _library: Some(ManuallyDrop::new(library)),
                    })
                }
            }

            /// The functions that this program was linked with.
            #[cfg(feature = "hip-link")]
            pub(crate) fn linked() -> Self {
                use hip_sys::hiprt;
                // SAFETY: a pointer to the same C function with C types of the same representation, which is asserted below;
                // codes and statuses become integers.
                unsafe {
                    Api {
                        $($name: std::mem::transmute::<*const (), unsafe extern "C" fn($($type),*) -> Code>(
                            hiprt::$name as *const (),
                        ),)*
                        get_properties: (
                            PropertyLayout::R0000,
                            std::mem::transmute::<*const (), GetProperties>(hiprt::hipGetDeviceProperties as *const ()),
                        ),
                        stream_id: None,
                        get_error_name: std::mem::transmute::<*const (), unsafe extern "C" fn(Code) -> *const c_char>(
                            hiprt::hipGetErrorName as *const (),
                        ),
                        get_error_string: std::mem::transmute::<*const (), unsafe extern "C" fn(Code) -> *const c_char>(
                            hiprt::hipGetErrorString as *const (),
                        ),
                        get_last_error: std::mem::transmute::<*const (), unsafe extern "C" fn() -> Code>(
                            hiprt::hipGetLastError as *const (),
                        ),
                        _library: None,
                    }
                }
            }

            $(
                #[doc = concat!("`", stringify!($name), "`.")]
                ///
                /// # Safety
                /// What HIP's documentation asks of the arguments.
                #[allow(clippy::too_many_arguments, reason = "HIP's signature")]
                pub(crate) unsafe fn $name(&self, $($argument: $type),*) -> Result<()> {
                    // SAFETY: the caller's duty.
                    let code = unsafe { (self.$name)($($argument),*) };
                    self.checked(stringify!($name), code)
                }
            )*

            /// The symbols that every library must have.
            pub(crate) const SYMBOLS: &[&str] = &[$(stringify!($name)),*];
        }

        $(
            #[cfg(feature = "hip-link")]
            const _: () = assert!(
                super::conformance::is_same::<unsafe extern "C" fn($($type),*) -> Code, _>(
                    hip_sys::hiprt::$name as unsafe extern "C" fn($(inferred!($argument)),*) -> _,
                ),
                concat!(stringify!($name), " has another signature in hip-sys")
            );
        )*
    };
}

api! {
    hipRuntimeGetVersion(version: *mut c_int);
    hipInit(flags: c_uint);
    hipGetDeviceCount(count: *mut c_int);
    hipGetDevice(ordinal: *mut c_int);
    hipSetDevice(ordinal: c_int);
    hipDeviceTotalMem(bytes: *mut usize, device: c_int);
    hipDeviceGetAttribute(value: *mut c_int, attribute: c_uint, ordinal: c_int);
    hipDeviceGetDefaultMemPool(pool: *mut HipMemPool, ordinal: c_int);
    hipMemPoolSetAttribute(pool: HipMemPool, attribute: c_uint, value: *mut c_void);
    hipDeviceSynchronize();
    hipStreamCreateWithFlags(stream: *mut HipStream, flags: c_uint);
    hipStreamDestroy(stream: HipStream);
    hipStreamSynchronize(stream: HipStream);
    hipStreamIsCapturing(stream: HipStream, status: *mut c_uint);
    hipStreamBeginCapture(stream: HipStream, mode: c_uint);
    hipStreamEndCapture(stream: HipStream, graph: *mut HipGraph);
    hipGraphInstantiate(
        exec: *mut HipGraphExec, graph: HipGraph, error_node: *mut HipGraphNode, log: *mut c_char, log_bytes: usize
    );
    hipGraphLaunch(exec: HipGraphExec, stream: HipStream);
    hipGraphExecDestroy(exec: HipGraphExec);
    hipGraphDestroy(graph: HipGraph);
    hipEventCreateWithFlags(event: *mut HipEvent, flags: c_uint);
    hipEventRecord(event: HipEvent, stream: HipStream);
    hipEventSynchronize(event: HipEvent);
    hipEventElapsedTime(milliseconds: *mut f32, start: HipEvent, end: HipEvent);
    hipEventDestroy(event: HipEvent);
    hipMalloc(pointer: *mut DevicePointer, bytes: usize);
    hipFree(pointer: DevicePointer);
    hipMallocAsync(pointer: *mut DevicePointer, bytes: usize, stream: HipStream);
    hipFreeAsync(pointer: DevicePointer, stream: HipStream);
    hipMemsetD8Async(pointer: DevicePointer, value: u8, bytes: usize, stream: HipStream);
    hipMemcpyHtoDAsync(to: DevicePointer, from: *const c_void, bytes: usize, stream: HipStream);
    hipMemcpyDtoHAsync(to: *mut c_void, from: DevicePointer, bytes: usize, stream: HipStream);
    hipModuleLoadData(module: *mut HipModule, image: *const c_void);
    hipModuleUnload(module: HipModule);
    hipModuleGetFunction(function: *mut HipFunction, module: HipModule, name: *const c_char);
    hipFuncGetAttribute(value: *mut c_int, attribute: c_uint, function: HipFunction);
    hipModuleOccupancyMaxActiveBlocksPerMultiprocessor(
        blocks: *mut c_int, function: HipFunction, block_threads: c_int, shared_bytes: usize
    );
    hipModuleLaunchKernel(
        function: HipFunction, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint, block_y: c_uint,
        block_z: c_uint, shared_bytes: c_uint, stream: HipStream, parameters: *mut *mut c_void, extra: *mut *mut c_void
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

/// Which of its two layouts a library fills `hipDeviceProp_t` in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PropertyLayout {
    /// ROCm 5: 792 bytes.
    R0000,
    /// Since ROCm 6: 1472 bytes.
    R0600,
}

impl PropertyLayout {
    /// Where `gcnArchName`, 256 characters, begins.
    pub(crate) const fn arch_name_offset(self) -> usize {
        match self {
            PropertyLayout::R0000 => 396,
            PropertyLayout::R0600 => 1160,
        }
    }
}

/// More than the larger layout has, should a library's be longer.
const PROPERTY_BYTES: usize = 4096;

/// Two strings of `hipDeviceProp_t`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeviceStrings {
    pub(crate) name: String,
    pub(crate) arch: String,
}

impl Api {
    /// The names of a device and of its architecture.
    pub(crate) fn device_strings(&self, ordinal: c_int) -> Result<DeviceStrings> {
        let (layout, function) = self.get_properties;
        // Words, for the struct is aligned to eight bytes.
        let mut words = [0u64; PROPERTY_BYTES / 8];
        // SAFETY: the struct of this layout fits, with room to spare.
        let code = unsafe { function(words.as_mut_ptr().cast(), ordinal) };
        self.checked("hipGetDeviceProperties", code)?;
        let bytes: &[u8] = bytemuck::must_cast_slice(&words);
        let text = |offset: usize| {
            let text = CStr::from_bytes_until_nul(&bytes[offset..offset + 256]).unwrap_or_default();
            text.to_string_lossy().into_owned()
        };
        Ok(DeviceStrings { name: text(0), arch: text(layout.arch_name_offset()) })
    }

    /// The id of a stream, where the library knows ids: never the same for two streams of a process.
    ///
    /// # Safety
    /// - `stream` is a stream of the current device.
    pub(crate) unsafe fn stream_id(&self, stream: HipStream) -> Result<Option<u64>> {
        let Some(function) = self.stream_id else { return Ok(None) };
        let mut id = 0;
        // SAFETY: `id` is writable, the stream is the caller's duty.
        let code = unsafe { function(stream, &raw mut id) };
        self.checked("hipStreamGetId", code)?;
        Ok(Some(id))
    }

    /// A return code as a result.
    fn checked(&self, function: &'static str, code: Code) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        // HIP remembers the failure for whoever asks for the thread's last error, often another library that would take
        // it for its own: it is reported here, and so forgotten there.
        // SAFETY: takes nothing.
        unsafe { (self.get_last_error)() };
        Err(Error::Driver { api: function.into(), code: i64::from(code), text: self.describe(code) })
    }

    /// HIP's name and text of an error code.
    fn describe(&self, code: Code) -> String {
        let text = |function: unsafe extern "C" fn(Code) -> *const c_char| {
            // SAFETY: takes any code and returns a static string or null.
            let text = unsafe { function(code) };
            // SAFETY: a static, zero-terminated string where it is not null.
            (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
        };
        match (text(self.get_error_name), text(self.get_error_string)) {
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
