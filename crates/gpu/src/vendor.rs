//! What tells the GPU backends apart: the driver, the devices, the kernels and how they are chosen.

use std::error::Error as StdError;
use std::fmt::Debug;
use std::hash::Hash;
use std::path::PathBuf;
use std::sync::Arc;

use bytemuck::NoUninit;
use omniflash_core::lower::FunctorSpec;
use omniflash_core::{Algorithm, AttentionConfig, AttentionProblem, BackendInfo, DType, Result};
use omniflash_device::parameters::{AttentionParameters, KvAppendParameters, VerifyParameters};
use omniflash_device::{Launch, PeakKernel, PeakWork, TranslationUnit, Workspace};
use omniflash_kernel_store::KernelStore;

use crate::driver::Driver;
use crate::parameters::Cut;
use crate::plan::{Choice, PlanKey};

/// A maker of GPUs. Everything else about a backend is in this crate: it plans, compiles, launches and measures by
/// what is answered here.
pub trait Vendor: Debug + Sized + Send + Sync + 'static {
    /// The driver on one device.
    type Driver: Driver;
    /// What the driver says of a device.
    type Facts: Clone + Debug + Send + Sync;
    /// Why there is no device.
    type Absent: StdError;
    /// An instance of a kernel family.
    type Kernel: KernelInstance;
    /// What a choice depends on beside its [`PlanKey`].
    type Fit: Clone + Debug + Eq + Hash + Send + Sync;
    /// What some kernel takes beside the parameters of all kernels.
    type Beside: NoUninit;

    /// Compiler options of all kernels.
    const COMPILER_OPTIONS: &'static [&'static str];
    /// Matrix products of f32 operands, as [`PeakWork::Product`] makes them, that make one product of full f32.
    const PRODUCTS_OF_F32: f64;
    /// The bytes that a thread of the append kernel can copy at once, the best first; the last divides every element.
    const KV_APPEND_UNITS: [usize; 3];

    /// The devices of this machine, by ordinal, of the first of these driver libraries that loads, or of the system's.
    ///
    /// # Errors
    /// Why there is none; a device that cannot be used is left out with a warning.
    fn discover(libraries: Option<&[PathBuf]>) -> Result<Vec<Arc<Self::Driver>>, Self::Absent>;

    /// The store that all backends of this process share.
    fn kernel_store() -> KernelStore;

    /// What was found of a device.
    fn facts(driver: &Self::Driver) -> &Self::Facts;

    /// What a device tells of itself.
    fn info(facts: &Self::Facts) -> BackendInfo;

    /// The architecture that kernels are compiled for.
    fn arch(facts: &Self::Facts) -> String;

    /// Architectures whose machine code runs on a device where kernels are compiled for `arch`, the best first.
    fn arch_family(facts: &Self::Facts, arch: &str) -> Vec<String>;

    /// Multiprocessors, or compute units.
    fn multiprocessors(facts: &Self::Facts) -> usize;

    /// What the choice for a problem depends on beside its key.
    fn fit(facts: &Self::Facts, problem: &AttentionProblem<'_>) -> Self::Fit;

    /// Chooses a kernel and its launch, for a backend of this name.
    ///
    /// # Errors
    /// [`Error::Unsupported`](omniflash_core::Error::Unsupported) for what no kernel can do,
    /// [`Error::Value`](omniflash_core::Error::Value) for an impossible configuration.
    fn choose(
        backend: &str,
        facts: &Self::Facts,
        key: &PlanKey,
        fit: &Self::Fit,
    ) -> Result<Choice<Self::Kernel>>;

    /// Configurations that may be faster for a problem than what [`choose`](Vendor::choose) answers where nothing is
    /// fixed. Those that cannot be, or make the same kernel, are left out by the caller; none, as here, where no
    /// choice was ever found to matter.
    fn alternatives(_facts: &Self::Facts, _key: &PlanKey) -> Vec<AttentionConfig> {
        Vec::new()
    }

    /// What `kernel` takes beside the parameters of all kernels. `counter` is the address of its counter of tiles,
    /// where it [counts tiles](KernelInstance::counts_tiles). Asked for while the device is the thread's.
    ///
    /// # Errors
    /// [`Error::Value`](omniflash_core::Error::Value) for a problem of another kind than the plan's,
    /// [`Error::Driver`](omniflash_core::Error::Driver).
    fn beside(
        driver: &Self::Driver,
        kernel: &Self::Kernel,
        cut: &Cut,
        problem: &AttentionProblem<'_>,
        counter: Option<u64>,
    ) -> Result<Option<Self::Beside>>;

    /// The kernel that joins partitions, for outputs of `dtype`, and its launch.
    ///
    /// # Errors
    /// [`Error::Value`](omniflash_core::Error::Value) when there are more blocks than a launch can have.
    fn combine(
        facts: &Self::Facts,
        dtype: DType,
        sizes: &AttentionParameters,
    ) -> Result<(TranslationUnit, Launch)>;

    /// The kernel that checks page and lookup tables, and its launch.
    fn verify_page_table(parameters: &VerifyParameters) -> (TranslationUnit, Launch);

    /// The kernel that writes new keys and values into a cache, one of
    /// [`KV_APPEND_UNITS`](Vendor::KV_APPEND_UNITS) at a time.
    fn kv_append(unit_bytes: usize) -> TranslationUnit;

    /// Its launch.
    ///
    /// # Errors
    /// [`Error::Value`](omniflash_core::Error::Value) when there are more blocks than a launch can have.
    fn kv_append_launch(parameters: &KvAppendParameters) -> Result<Launch>;

    /// The kernel that does some work over and over; `None` for what a device has no instructions for.
    fn peak(facts: &Self::Facts, work: PeakWork) -> Option<PeakKernel>;
}

/// An instance of a kernel family, as planning sees it.
pub trait KernelInstance: Clone + Debug + Eq + Hash + Send + Sync {
    /// Its name, mask and score modification left out: `fwd-{arch}-{dtype}-d{head_dim}-{tile}-{kv}`.
    fn id(&self, arch: &str) -> String;

    /// The architecture that it is compiled for, on a device of `arch`.
    fn arch(&self, arch: &str) -> String {
        arch.into()
    }

    /// The algorithm it implements.
    fn algorithm(&self) -> Algorithm;

    /// Query rows and keys of a tile, and its pipeline stages; `None` where it has no tiles.
    fn tile(&self) -> Option<[usize; 3]>;

    /// Tiles of rows of a sequence of `seqlen_q` queries whose heads are interleaved.
    fn num_row_tiles(&self, seqlen_q: usize, heads_per_tile: usize) -> u32;

    /// The source.
    fn translation_unit(&self, functors: &FunctorSpec<'_>) -> TranslationUnit;

    /// The launch, on so many multiprocessors.
    ///
    /// # Errors
    /// [`Error::Value`](omniflash_core::Error::Value) when there are more blocks than a launch can have.
    fn launch(&self, sizes: &AttentionParameters, multiprocessors: usize) -> Result<Launch>;

    /// What it keeps of partitions.
    fn workspace(&self, sizes: &AttentionParameters) -> Workspace;

    /// Whether it joins partitions itself.
    fn joins_partitions(&self) -> bool {
        false
    }

    /// Whether its blocks take their tiles by a counter.
    fn counts_tiles(&self) -> bool {
        false
    }
}
