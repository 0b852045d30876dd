//! The backend: what of it is AMD's.

use std::path::PathBuf;
use std::sync::Arc;

use omniflash_core::{AttentionProblem, Backend, BackendInfo, DType, DeviceId, Result};
use omniflash_device::parameters::{AttentionParameters, KvAppendParameters, VerifyParameters};
use omniflash_device::{Launch, PeakKernel, PeakWork, TranslationUnit};
use omniflash_gpu::parameters::Cut;
use omniflash_gpu::{GpuBackend, PlanKey, Vendor};
use omniflash_kernel_store::KernelStore;
use omniflash_kernels_hip as kernels;

use crate::driver::Context;
use crate::kernel_store::kernel_store;
use crate::plan::{self, Choice, KernelChoice, Request};
use crate::probe::{self, Absent, DeviceFacts};

/// One AMD GPU.
pub type HipBackend = GpuBackend<Hip>;

/// The GPUs of this machine, by ordinal, sharing one kernel store.
///
/// # Errors
/// [`Absent`] says why there is none; a device that cannot be used is left out with a warning.
pub fn discover() -> Result<Vec<Arc<dyn Backend>>, Absent> {
    let backends = HipBackend::discover()?;
    Ok(backends.into_iter().map(|backend| Arc::new(backend) as Arc<dyn Backend>).collect())
}

/// AMD's GPUs, as `omniflash-gpu` knows vendors.
#[derive(Debug)]
pub enum Hip {}

impl Vendor for Hip {
    type Driver = Context;
    type Facts = DeviceFacts;
    type Absent = Absent;
    type Kernel = KernelChoice;
    type Fit = ();
    type Beside = ();

    const COMPILER_OPTIONS: &'static [&'static str] = kernels::COMPILER_OPTIONS;
    /// The matrix units that take f32 take all of it.
    const PRODUCTS_OF_F32: f64 = 1.0;
    const KV_APPEND_UNITS: [usize; 3] = kernels::KV_APPEND_UNITS;

    fn discover(libraries: Option<&[PathBuf]>) -> Result<Vec<Arc<Context>>, Absent> {
        let probe = match libraries {
            Some(libraries) => probe::probe_libraries(libraries),
            None => probe::probe(),
        };
        Ok(probe?.into_contexts())
    }

    fn kernel_store() -> KernelStore {
        kernel_store()
    }

    fn facts(driver: &Context) -> &DeviceFacts {
        driver.facts()
    }

    fn info(facts: &DeviceFacts) -> BackendInfo {
        let device = DeviceId::Hip(facts.ordinal);
        BackendInfo {
            name: device.to_string(),
            device,
            vendor: "AMD".into(),
            device_name: facts.name.clone(),
            arch: facts.architecture.name().into(),
            memory_bytes: facts.memory_bytes,
            units: facts.multiprocessors,
            driver: Some(format!("HIP {}", facts.driver)),
        }
    }

    fn arch(facts: &DeviceFacts) -> String {
        facts.architecture.name().into()
    }

    /// Code objects run on their own processor only.
    fn arch_family(_facts: &DeviceFacts, arch: &str) -> Vec<String> {
        vec![arch.into()]
    }

    fn multiprocessors(facts: &DeviceFacts) -> usize {
        facts.multiprocessors
    }

    fn fit(_facts: &DeviceFacts, _problem: &AttentionProblem<'_>) {}

    fn choose(backend: &str, facts: &DeviceFacts, key: &PlanKey, (): &()) -> Result<Choice> {
        plan::choose(&Request {
            backend,
            facts,
            shape: &key.shape,
            config: &key.config,
            mask_type: &key.mask_type,
            is_aligned: key.is_aligned,
        })
    }

    /// Its kernels take the parameters of all kernels only.
    fn beside(
        _driver: &Context,
        _kernel: &KernelChoice,
        _cut: &Cut,
        _problem: &AttentionProblem<'_>,
        _counter: Option<u64>,
    ) -> Result<Option<()>> {
        Ok(None)
    }

    fn combine(
        facts: &DeviceFacts,
        dtype: DType,
        sizes: &AttentionParameters,
    ) -> Result<(TranslationUnit, Launch)> {
        Ok((kernels::combine(dtype), kernels::combine_launch(facts.architecture, sizes)?))
    }

    fn verify_page_table(parameters: &VerifyParameters) -> (TranslationUnit, Launch) {
        (kernels::verify_page_table(), kernels::verify_page_table_launch(parameters))
    }

    fn kv_append(unit_bytes: usize) -> TranslationUnit {
        kernels::kv_append(unit_bytes)
    }

    fn kv_append_launch(parameters: &KvAppendParameters) -> Result<Launch> {
        kernels::kv_append_launch(parameters)
    }

    fn peak(facts: &DeviceFacts, work: PeakWork) -> Option<PeakKernel> {
        kernels::peak(work, facts.architecture)
    }
}
