//! Finds the driver and its devices; what is missing is data, never a panic.
//!
//! Nothing else of this crate runs before the probe has found a driver library, every entry point that the backend
//! uses, a driver that is new enough, and a device.

use std::ffi::{CStr, c_int};
use std::path::PathBuf;
use std::sync::Arc;

use libloading::Library;
use omniflash_core::Error;
use omniflash_gpu::library::{open_first, path_variable};

use crate::driver::{self, Api, Context};

/// Names another driver library than the system's.
pub const LIBRARY_VARIABLE: &str = "OMNIFLASH_CUDA_LIBRARY";

/// The oldest driver interface that has all of what the backend uses: 12.0.
const OLDEST_DRIVER: c_int = 12_000;

/// `CUDA_ERROR_NO_DEVICE`.
const NO_DEVICE: i64 = 100;

/// Why NVIDIA GPUs cannot be used on this machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Absent {
    /// No driver library can be loaded.
    #[error(
        "the driver library cannot be loaded ({0}); install the NVIDIA driver, or name the library in {LIBRARY_VARIABLE}"
    )]
    NoLibrary(String),
    /// The driver is older than the backend needs.
    #[error("the driver's CUDA version is {have}, the oldest supported is {need}; update the NVIDIA driver")]
    DriverTooOld {
        /// The version found.
        have: String,
        /// The oldest version that works.
        need: String,
    },
    /// The library lacks an entry point.
    #[error("the driver library has no function {0}; update the NVIDIA driver")]
    MissingSymbol(String),
    /// The driver refused to start.
    #[error("the driver failed to initialise: {0}")]
    InitFailed(String),
    /// There is a driver, but no device is visible.
    #[error("the driver sees no device; check CUDA_VISIBLE_DEVICES and nvidia-smi")]
    NoDevice,
}

impl From<Absent> for Error {
    fn from(absent: Absent) -> Self {
        Error::Absent { backend: "cuda".into(), reason: absent.to_string() }
    }
}

/// What the driver says of one device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceFacts {
    /// The CUDA ordinal.
    pub ordinal: u32,
    /// The device's name.
    pub name: String,
    /// Compute capability, major and minor.
    pub compute_capability: (u32, u32),
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Streaming multiprocessors.
    pub multiprocessors: usize,
    /// Bytes of shared memory that one block can ask for.
    pub shared_memory_bytes: usize,
    /// Bytes of the second-level cache.
    pub l2_bytes: usize,
    /// Whether memory can be allocated in the order of a stream.
    pub has_memory_pools: bool,
    /// The version of CUDA that the driver speaks, as `13.0`.
    pub driver: String,
}

/// A driver that works, and its devices.
#[derive(Clone, Debug)]
pub(crate) struct Probe {
    pub(crate) api: Arc<Api>,
    pub(crate) devices: Vec<DeviceFacts>,
}

impl Probe {
    /// Its devices, ready for use; those that cannot be used are left out with a warning.
    pub(crate) fn into_contexts(self) -> Vec<Arc<Context>> {
        let Probe { api, devices } = self;
        omniflash_gpu::driver::usable(devices.into_iter().map(|facts| {
            let ordinal = facts.ordinal;
            (ordinal, Context::new(Arc::clone(&api), facts))
        }))
    }
}

/// The devices of this machine, by ordinal.
///
/// # Errors
/// [`Absent`] when there is none that the backend could use.
pub fn devices() -> Result<Vec<DeviceFacts>, Absent> {
    probe().map(|probe| probe.devices)
}

/// Looks for the driver in [`LIBRARY_VARIABLE`], else by its usual names.
pub(crate) fn probe() -> Result<Probe, Absent> {
    probe_libraries(&match path_variable(LIBRARY_VARIABLE) {
        Some(path) => vec![path],
        None => ["libcuda.so.1", "libcuda.so", "nvcuda.dll"].map(PathBuf::from).to_vec(),
    })
}

pub(crate) fn probe_libraries(candidates: &[PathBuf]) -> Result<Probe, Absent> {
    let (library, _) = open_first(candidates).map_err(Absent::NoLibrary)?;
    // The version first: an old driver lacks symbols, and its age is the better explanation.
    let version = driver_version(&library)?;
    if version < OLDEST_DRIVER {
        return Err(Absent::DriverTooOld { have: version_text(version), need: version_text(OLDEST_DRIVER) });
    }
    let api = Api::from_library(library).map_err(|symbol| Absent::MissingSymbol(symbol.into()))?;
    let failed = |error: Error| match error {
        Error::Driver { code: NO_DEVICE, .. } => Absent::NoDevice,
        error => Absent::InitFailed(error.to_string()),
    };
    // SAFETY: 0 is the only flag there is.
    unsafe { api.cuInit(0) }.map_err(failed)?;
    let mut count = 0;
    // SAFETY: `count` is writable.
    unsafe { api.cuDeviceGetCount(&raw mut count) }.map_err(failed)?;
    let devices = (0..count)
        .map(|ordinal| facts(&api, ordinal, version))
        .collect::<Result<Vec<_>, Error>>()
        .map_err(failed)?;
    if devices.is_empty() {
        return Err(Absent::NoDevice);
    }
    Ok(Probe { api: Arc::new(api), devices })
}

fn driver_version(library: &Library) -> Result<c_int, Absent> {
    const SYMBOL: &str = "cuDriverGetVersion";
    // SAFETY: the function's documented type.
    let function = unsafe { library.get::<unsafe extern "C" fn(*mut c_int) -> driver::Code>(SYMBOL) }
        .map_err(|_| Absent::MissingSymbol(SYMBOL.into()))?;
    let mut version = 0;
    // SAFETY: `version` is writable; this function may be called before initialisation.
    match unsafe { function(&raw mut version) } {
        0 => Ok(version),
        code => Err(Absent::InitFailed(format!("{SYMBOL} returned {code}"))),
    }
}

/// 13020 is 13.2.
fn version_text(version: c_int) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

fn facts(api: &Api, ordinal: c_int, version: c_int) -> Result<DeviceFacts, Error> {
    use cudarc::driver::sys::CUdevice_attribute as Attribute;
    let mut device = 0;
    // SAFETY: `device` is writable.
    unsafe { api.cuDeviceGet(&raw mut device, ordinal) }?;
    let mut name = [0u8; 256];
    // SAFETY: `name` has room for the length passed, and the driver ends the string with a zero.
    unsafe { api.cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as c_int, device) }?;
    let mut memory_bytes = 0;
    // SAFETY: `memory_bytes` is writable.
    unsafe { api.cuDeviceTotalMem(&raw mut memory_bytes, device) }?;
    let attribute = |attribute: Attribute| -> Result<usize, Error> {
        let mut value = 0;
        // SAFETY: `value` is writable.
        unsafe { api.cuDeviceGetAttribute(&raw mut value, attribute as u32, device) }?;
        Ok(usize::try_from(value).unwrap_or(0))
    };
    Ok(DeviceFacts {
        ordinal: ordinal as u32,
        name: CStr::from_bytes_until_nul(&name)
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default(),
        compute_capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? as u32,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)? as u32,
        ),
        memory_bytes: memory_bytes as u64,
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_memory_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        l2_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
        has_memory_pools: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)? != 0,
        driver: version_text(version),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_data_that_names_what_was_tried() {
        let Err(Absent::NoLibrary(reason)) = probe_libraries(&["/nowhere/libcuda.so.1".into()]) else {
            panic!("there is no such library");
        };
        assert!(reason.contains("/nowhere/libcuda.so.1"), "{reason}");
    }

    #[test]
    fn absence_is_an_error_that_advises() {
        let error = Error::from(Absent::NoDevice);
        assert!(
            error.to_string().starts_with("backend cuda is absent: the driver sees no device"),
            "{error}"
        );
    }

    #[test]
    fn versions_print_as_the_toolkit_names_them() {
        assert_eq!([12_000, 12_080, 13_020].map(version_text), ["12.0", "12.8", "13.2"]);
    }
}
