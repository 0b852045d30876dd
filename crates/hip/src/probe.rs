//! Finds the driver and its devices; what is missing is data, never a panic.
//!
//! Nothing else of this crate runs before the probe has found a driver library, every entry point that the backend
//! uses, a driver that is new enough, and a device that kernels exist for.

use std::ffi::c_int;
use std::path::PathBuf;
use std::sync::Arc;

use libloading::Library;
use omniflash_core::Error;
use omniflash_gpu::library::{open_first, path_variable};
use omniflash_kernels_hip::Architecture;

use crate::driver::{Api, Context, DeviceStrings, constant};

/// Names another driver library than the system's.
pub const LIBRARY_VARIABLE: &str = "OMNIFLASH_HIP_LIBRARY";

/// The oldest HIP that has all of what the backend uses: 5.2.
const OLDEST_DRIVER: c_int = 50_200_000;

/// Why AMD GPUs cannot be used on this machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Absent {
    /// No driver library can be loaded.
    #[error(
        "the driver library cannot be loaded ({0}); install ROCm, or name the library in {LIBRARY_VARIABLE}"
    )]
    NoLibrary(String),
    /// The driver is older than the backend needs.
    #[error("the driver's HIP version is {have}, the oldest supported is {need}; update ROCm")]
    DriverTooOld {
        /// The version found.
        have: String,
        /// The oldest version that works.
        need: String,
    },
    /// The library lacks an entry point.
    #[error("the driver library has no function {0}; update ROCm")]
    MissingSymbol(String),
    /// The driver refused to start.
    #[error("the driver failed to initialise: {0}")]
    InitFailed(String),
    /// There is a driver, but no device is visible.
    #[error(
        "the driver sees no device; check rocminfo, HIP_VISIBLE_DEVICES, ROCR_VISIBLE_DEVICES, and that the user may \
         open /dev/kfd (groups render and video)"
    )]
    NoDevice,
    /// There are devices, but kernels for none of them.
    #[error("there are no kernels for {0}; kernels exist for {known}", known = known_architectures())]
    UnknownArchitecture(String),
}

fn known_architectures() -> String {
    Architecture::ALL.map(Architecture::name).join(", ")
}

impl From<Absent> for Error {
    fn from(absent: Absent) -> Self {
        Error::Absent { backend: "hip".into(), reason: absent.to_string() }
    }
}

/// What the driver says of one device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceFacts {
    /// The HIP ordinal.
    pub ordinal: u32,
    /// The device's name.
    pub name: String,
    /// The architecture that kernels are compiled for.
    pub architecture: Architecture,
    /// `gcnArchName` with its features: `gfx942:sramecc+:xnack-`.
    pub arch_name: String,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Compute units, or the pairs of them that the driver counts.
    pub multiprocessors: usize,
    /// Lanes of a wave.
    pub wave_size: usize,
    /// Bytes of LDS that one block can have.
    pub shared_memory_bytes: usize,
    /// Bytes of the second-level cache.
    pub l2_bytes: usize,
    /// Whether memory can be allocated in the order of a stream.
    pub has_memory_pools: bool,
    /// The version of HIP that the driver speaks, as `6.4`.
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

/// The devices of this machine, by ordinal; those that no kernels exist for are left out with a warning.
///
/// # Errors
/// [`Absent`] when there is none that the backend could use.
pub fn devices() -> Result<Vec<DeviceFacts>, Absent> {
    probe().map(|probe| probe.devices)
}

/// Looks for the driver in [`LIBRARY_VARIABLE`], else by its usual names; a program that is linked with it uses that.
pub(crate) fn probe() -> Result<Probe, Absent> {
    if let Some(path) = path_variable(LIBRARY_VARIABLE) {
        return probe_libraries(&[path]);
    }
    #[cfg(feature = "hip-link")]
    return probe_api(Api::linked());
    #[cfg(not(feature = "hip-link"))]
    probe_libraries(&usual_names())
}

/// The newest first.
#[cfg(not(feature = "hip-link"))]
fn usual_names() -> Vec<PathBuf> {
    let names: &[&str] = if cfg!(windows) {
        &["amdhip64_7.dll", "amdhip64_6.dll", "amdhip64.dll"]
    } else {
        &["libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so.5", "libamdhip64.so"]
    };
    let in_rocm = names.iter().map(|name| PathBuf::from("/opt/rocm/lib").join(name));
    names.iter().map(PathBuf::from).chain(in_rocm.filter(|_| cfg!(unix))).collect()
}

pub(crate) fn probe_libraries(candidates: &[PathBuf]) -> Result<Probe, Absent> {
    let (library, _) = open_first(candidates).map_err(Absent::NoLibrary)?;
    // The version first: an old driver lacks symbols, and its age is the better explanation.
    check_version(driver_version(&library)?)?;
    probe_api(Api::from_library(library).map_err(|symbol| Absent::MissingSymbol(symbol.into()))?)
}

fn probe_api(api: Api) -> Result<Probe, Absent> {
    let failed = |error: Error| match error {
        Error::Driver { code, .. } if code == i64::from(constant::NO_DEVICE) => Absent::NoDevice,
        error => Absent::InitFailed(error.to_string()),
    };
    let mut count = 0;
    // Before `hipInit`, which in ROCm 5 calls a machine without a device an invalid device.
    // SAFETY: `count` is writable; the function initialises the driver.
    unsafe { api.hipGetDeviceCount(&raw mut count) }.map_err(failed)?;
    if count == 0 {
        return Err(Absent::NoDevice);
    }
    // SAFETY: 0 is the only flag there is.
    unsafe { api.hipInit(0) }.map_err(failed)?;
    let mut version = 0;
    // SAFETY: `version` is writable.
    unsafe { api.hipRuntimeGetVersion(&raw mut version) }.map_err(failed)?;
    check_version(version)?;
    let strings = (0..count).map(|ordinal| api.device_strings(ordinal)).collect::<Result<Vec<_>, Error>>();
    let devices = with_kernels(strings.map_err(failed)?)?
        .into_iter()
        .map(|device| facts(&api, version, device))
        .collect::<Result<Vec<_>, Error>>()
        .map_err(failed)?;
    Ok(Probe { api: Arc::new(api), devices })
}

/// A device that kernels exist for.
#[derive(Debug)]
struct Known {
    ordinal: c_int,
    architecture: Architecture,
    strings: DeviceStrings,
}

/// The devices that kernels exist for; the ordinal of each is its place.
fn with_kernels(devices: Vec<DeviceStrings>) -> Result<Vec<Known>, Absent> {
    let (mut known, mut unknown) = (Vec::new(), Vec::new());
    for (ordinal, strings) in (0..).zip(devices) {
        match strings.arch.parse() {
            Ok(architecture) => known.push(Known { ordinal, architecture, strings }),
            Err(_) => {
                tracing::warn!(ordinal, name = strings.name, arch = strings.arch, "no kernels for this GPU");
                unknown.push(format!("{} ({})", strings.arch, strings.name));
            }
        }
    }
    if known.is_empty() { Err(Absent::UnknownArchitecture(unknown.join(", "))) } else { Ok(known) }
}

fn driver_version(library: &Library) -> Result<c_int, Absent> {
    const SYMBOL: &str = "hipRuntimeGetVersion";
    // SAFETY: the function's documented type.
    let function = unsafe { library.get::<unsafe extern "C" fn(*mut c_int) -> u32>(SYMBOL) }
        .map_err(|_| Absent::MissingSymbol(SYMBOL.into()))?;
    let mut version = 0;
    // SAFETY: `version` is writable; this function may be called before initialisation.
    match unsafe { function(&raw mut version) } {
        0 => Ok(version),
        // ROCm 5 says here already that there is no device.
        code if code == constant::NO_DEVICE as u32 || code == constant::INVALID_DEVICE as u32 => {
            Err(Absent::NoDevice)
        }
        code => Err(Absent::InitFailed(format!("{SYMBOL} returned {code}"))),
    }
}

fn check_version(version: c_int) -> Result<(), Absent> {
    if version >= OLDEST_DRIVER {
        return Ok(());
    }
    Err(Absent::DriverTooOld { have: version_text(version), need: version_text(OLDEST_DRIVER) })
}

/// 60443482 is 6.4.
fn version_text(version: c_int) -> String {
    format!("{}.{}", version / 10_000_000, version / 100_000 % 100)
}

fn facts(api: &Api, version: c_int, device: Known) -> Result<DeviceFacts, Error> {
    let Known { ordinal, architecture, strings } = device;
    let mut memory_bytes = 0;
    // SAFETY: `memory_bytes` is writable; a device's handle is its ordinal.
    unsafe { api.hipDeviceTotalMem(&raw mut memory_bytes, ordinal) }?;
    let attribute = |attribute: u32| -> Result<usize, Error> {
        let mut value = 0;
        // SAFETY: `value` is writable.
        unsafe { api.hipDeviceGetAttribute(&raw mut value, attribute, ordinal) }?;
        Ok(usize::try_from(value).unwrap_or(0))
    };
    Ok(DeviceFacts {
        ordinal: ordinal as u32,
        name: strings.name,
        architecture,
        arch_name: strings.arch,
        memory_bytes: memory_bytes as u64,
        multiprocessors: attribute(constant::ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        wave_size: attribute(constant::ATTRIBUTE_WARP_SIZE)?,
        shared_memory_bytes: attribute(constant::ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK)?,
        l2_bytes: attribute(constant::ATTRIBUTE_L2_CACHE_SIZE)?,
        has_memory_pools: attribute(constant::ATTRIBUTE_MEMORY_POOLS_SUPPORTED)? != 0,
        driver: version_text(version),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_data_that_names_what_was_tried() {
        let Err(Absent::NoLibrary(reason)) = probe_libraries(&["/nowhere/libamdhip64.so.6".into()]) else {
            panic!("there is no such library");
        };
        assert!(reason.contains("/nowhere/libamdhip64.so.6"), "{reason}");
    }

    #[test]
    fn a_library_that_is_no_driver_is_data_that_names_what_it_lacks() {
        // Every Unix program has this one loaded.
        if let Err(absent) = probe_libraries(&["libc.so.6".into()]) {
            assert!(matches!(&absent, Absent::MissingSymbol(_) | Absent::NoLibrary(_)), "{absent}");
        } else {
            panic!("libc drives no GPU");
        }
    }

    #[test]
    fn absence_is_an_error_that_advises() {
        let error = Error::from(Absent::NoDevice);
        assert!(error.to_string().starts_with("backend hip is absent: the driver sees no device"), "{error}");
        let error = Absent::UnknownArchitecture("gfx803 (R9 Fury)".into()).to_string();
        assert!(error.contains("gfx803") && error.contains("gfx942"), "{error}");
    }

    #[test]
    fn devices_without_kernels_are_left_out_and_alone_they_are_the_reason() {
        let device = |arch: &str| DeviceStrings { name: "a card".into(), arch: arch.into() };
        let known = with_kernels(vec![device("gfx803"), device("gfx942:sramecc+:xnack-")]).unwrap();
        assert_eq!(known.len(), 1);
        assert_eq!((known[0].ordinal, known[0].architecture), (1, Architecture::Gfx942));
        let absent = with_kernels(vec![device("gfx803"), device("gfx94")]).unwrap_err();
        assert_eq!(absent, Absent::UnknownArchitecture("gfx803 (a card), gfx94 (a card)".into()));
    }

    #[test]
    fn versions_print_as_rocm_names_them() {
        assert_eq!([50_222_804, 60_443_482, 71_051_831].map(version_text), ["5.2", "6.4", "7.10"]);
    }
}
