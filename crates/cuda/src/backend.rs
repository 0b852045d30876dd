//! The backend: what of it is NVIDIA's.

use std::path::PathBuf;
use std::sync::Arc;

use omniflash_core::{
    AttentionConfig, AttentionProblem, Backend, BackendInfo, DType, DeviceId, Query, Result,
};
use omniflash_device::parameters::{AttentionParameters, KvAppendParameters, VerifyParameters};
use omniflash_device::{Launch, PeakKernel, PeakWork, TranslationUnit};
use omniflash_gpu::parameters::Cut;
use omniflash_gpu::{GpuBackend, PlanKey, Vendor};
use omniflash_kernel_store::KernelStore;
use omniflash_kernels_cuda as kernels;
use omniflash_kernels_cuda::{HOPPER_ARCH, HopperParameters};

use crate::driver::Context;
use crate::kernel_store::kernel_store;
use crate::launch::tensor_map::{is_mappable, key_boxes};
use crate::launch::{decode_parameters, hopper_parameters};
use crate::plan::{self, Choice, HopperFit, KernelChoice, Request, arch, arch_family};
use crate::probe::{self, Absent, DeviceFacts};

/// One NVIDIA GPU.
pub type CudaBackend = GpuBackend<Cuda>;

/// The GPUs of this machine, by ordinal, sharing one kernel store.
///
/// # Errors
/// [`Absent`] says why there is none; a device that cannot be used is left out with a warning.
pub fn discover() -> Result<Vec<Arc<dyn Backend>>, Absent> {
    let backends = CudaBackend::discover()?;
    Ok(backends.into_iter().map(|backend| Arc::new(backend) as Arc<dyn Backend>).collect())
}

/// NVIDIA's GPUs, as `omniflash-gpu` knows vendors.
#[derive(Debug)]
pub enum Cuda {}

impl Vendor for Cuda {
    type Driver = Context;
    type Facts = DeviceFacts;
    type Absent = Absent;
    type Kernel = KernelChoice;
    type Fit = HopperFit;
    type Beside = HopperParameters;

    /// No fast-math option, for infinities have a meaning.
    const COMPILER_OPTIONS: &'static [&'static str] = &["--std=c++20"];
    /// f32 is the sum of two TF32.
    const PRODUCTS_OF_F32: f64 = 3.0;
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
        let device = DeviceId::Cuda(facts.ordinal);
        BackendInfo {
            name: device.to_string(),
            device,
            vendor: "NVIDIA".into(),
            device_name: facts.name.clone(),
            arch: arch(facts),
            memory_bytes: facts.memory_bytes,
            units: facts.multiprocessors,
            driver: Some(format!("CUDA {}", facts.driver)),
        }
    }

    fn arch(facts: &DeviceFacts) -> String {
        arch(facts)
    }

    fn arch_family(facts: &DeviceFacts, arch: &str) -> Vec<String> {
        // Machine code of Hopper's own instructions runs there only.
        if arch == HOPPER_ARCH { vec![arch.into()] } else { arch_family(facts).collect() }
    }

    fn multiprocessors(facts: &DeviceFacts) -> usize {
        facts.multiprocessors
    }

    /// Looked at on devices that have the family only: plans of others do not depend on it.
    fn fit(facts: &DeviceFacts, problem: &AttentionProblem<'_>) -> HopperFit {
        if facts.compute_capability.0 != 9 {
            return HopperFit::default();
        }
        HopperFit {
            is_mappable: is_mappable(problem),
            has_all_rows: matches!(problem.query(), Query::Padded { lengths: None, .. }),
            has_key_boxes: key_boxes(problem).is_some(),
            has_positive_scale: problem.softmax_scale() > 0.0,
        }
    }

    fn choose(backend: &str, facts: &DeviceFacts, key: &PlanKey, fit: &HopperFit) -> Result<Choice> {
        plan::choose(&Request {
            backend,
            facts,
            shape: &key.shape,
            config: &key.config,
            mask_type: &key.mask_type,
            score_mod_type: &key.score_mod_type,
            is_aligned: key.is_aligned,
            hopper: *fit,
        })
    }

    fn alternatives(facts: &DeviceFacts, key: &PlanKey) -> Vec<AttentionConfig> {
        plan::alternatives(facts, key)
    }

    fn beside(
        driver: &Context,
        kernel: &KernelChoice,
        cut: &Cut,
        problem: &AttentionProblem<'_>,
        counter: Option<u64>,
    ) -> Result<Option<HopperParameters>> {
        match (kernel, counter) {
            (KernelChoice::Hopper(tile), Some(counter)) => {
                hopper_parameters(driver, tile, cut, problem, counter).map(Some)
            }
            (KernelChoice::Decode(tile), _) if tile.boxes => decode_parameters(driver, problem).map(Some),
            _ => Ok(None),
        }
    }

    fn combine(
        _facts: &DeviceFacts,
        dtype: DType,
        sizes: &AttentionParameters,
    ) -> Result<(TranslationUnit, Launch)> {
        Ok((kernels::combine(dtype), kernels::combine_launch(sizes)?))
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
        Some(kernels::peak(work, &arch(facts)))
    }
}
