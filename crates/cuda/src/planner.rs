//! Plans with their kernels: the choice of [`plan`](crate::plan), the kernels from the store, and a cache of both.
//!
//! Needs no driver, so that kernels for a device can be built on a machine without one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};

use omniflash_core::lower::FunctorSpec;
use omniflash_core::{
    Algorithm, AttentionPlan, AttentionProblem, DType, ProblemShape, Result, Stream, Support,
};
use omniflash_device::TranslationUnit;
use omniflash_device::parameters::AttentionParameters;
use omniflash_gpu::parameters::Cut;
use omniflash_gpu::{Launch, PlanKey, lock};
use omniflash_kernel_store::{Kernel, KernelSource, KernelStore, prebuilt_tag};
use omniflash_kernels_cuda::{
    DecodeWorkspace, ForwardConfig, HOPPER_ARCH, HopperConfig, NaiveConfig, combine, combine_launch,
    kv_append, verify_page_table,
};

use crate::driver::Module;
use crate::launch::tensor_map::is_mappable;
use crate::plan::{self, Choice, HopperFit, KernelChoice, Request, arch, arch_family, kernel_id};
use crate::probe::DeviceFacts;

/// Compiler options of all kernels; no fast-math option, for infinities have a meaning.
const OPTIONS: &[&str] = &["--std=c++20"];

/// Plans kept; a caller with more shapes than this plans anew now and then.
const MOST_PLANS: usize = 4096;

/// Plans for one device.
#[derive(Debug)]
pub(crate) struct Planner {
    name: String,
    facts: DeviceFacts,
    store: Arc<KernelStore>,
    plans: Mutex<HashMap<(PlanKey, HopperFit), AttentionPlan>>,
}

/// What a plan keeps for its launches.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(crate) key: PlanKey,
    pub(crate) cut: Cut,
    pub(crate) forward: PlannedKernel,
    /// The tile, where the forward kernel is Hopper's: what its tensor maps are made for.
    pub(crate) hopper: Option<HopperConfig>,
    /// Joins partitions.
    pub(crate) combine: Option<PlannedKernel>,
    /// Computes the short sequences of a batch that has both kinds, with their cut.
    pub(crate) short: Option<(PlannedKernel, Cut)>,
    /// Bytes of partial outputs, of the partial sums after them, and of counters.
    pub(crate) workspace: DecodeWorkspace,
}

/// A kernel and its launch, loaded when first launched.
#[derive(Debug)]
pub(crate) struct PlannedKernel {
    pub(crate) kernel: Kernel,
    pub(crate) entry: &'static str,
    pub(crate) launch: Launch,
    pub(crate) module: OnceLock<Arc<Module>>,
}

impl PlannedKernel {
    fn new(kernel: Kernel, entry: &'static str, launch: Launch) -> Self {
        PlannedKernel { kernel, entry, launch, module: OnceLock::new() }
    }

    /// Enqueues the kernel, which has been loaded.
    ///
    /// # Safety
    /// Those of [`Module::launch`].
    pub(crate) unsafe fn enqueue(&self, arguments: &[&[u8]], stream: &Stream) -> Result<()> {
        let module = self.module.get().expect("loaded before it is enqueued");
        // SAFETY: the caller's duties.
        unsafe { module.launch(&self.launch, arguments, stream) }
    }
}

impl Planner {
    pub(crate) fn new(name: String, facts: DeviceFacts, store: Arc<KernelStore>) -> Self {
        Planner { name, facts, store, plans: Mutex::default() }
    }

    pub(crate) fn facts(&self) -> &DeviceFacts {
        &self.facts
    }

    pub(crate) fn store(&self) -> &KernelStore {
        &self.store
    }

    /// The kernel that a problem would be computed by; finds and compiles none.
    pub(crate) fn choose(&self, problem: &AttentionProblem<'_>) -> Result<(Choice, PlanKey)> {
        let key = PlanKey::new(problem, self.functors(problem)?);
        Ok((self.choose_for(&key, self.hopper_fit(problem))?, key))
    }

    /// Whether a problem can be computed; compiles nothing.
    pub(crate) fn supports(&self, problem: &AttentionProblem<'_>) -> Support {
        match self.choose(problem) {
            Ok(_) if problem.config().algorithm == Algorithm::Naive => {
                Support::Slow("algorithm naive computes one row a block".into())
            }
            Ok((_, key)) if !key.is_aligned => {
                Support::Slow("rows that are not multiples of 16 bytes are loaded element by element".into())
            }
            Ok(_) => Support::Yes,
            Err(error) => Support::No(error),
        }
    }

    fn choose_for(&self, key: &PlanKey, hopper: HopperFit) -> Result<Choice> {
        plan::choose(&Request {
            backend: &self.name,
            facts: &self.facts,
            shape: &key.shape,
            config: &key.config,
            mask_type: &key.mask_type,
            is_aligned: key.is_aligned,
            hopper,
        })
    }

    /// Looked at on devices that have the family only: plans of others do not depend on it.
    fn hopper_fit(&self, problem: &AttentionProblem<'_>) -> HopperFit {
        if self.facts.compute_capability.0 != 9 {
            return HopperFit::default();
        }
        HopperFit { is_mappable: is_mappable(problem), has_positive_scale: problem.softmax_scale() > 0.0 }
    }

    /// Mask and score modification as the kernels take them.
    pub(crate) fn functors<'p>(&self, problem: &'p AttentionProblem<'_>) -> Result<FunctorSpec<'p>> {
        omniflash_gpu::functors(problem, &self.name)
    }

    /// A plan with its kernels.
    pub(crate) fn plan(&self, problem: &AttentionProblem<'_>) -> Result<AttentionPlan> {
        let key = (PlanKey::new(problem, self.functors(problem)?), self.hopper_fit(problem));
        if let Some(plan) = lock(&self.plans).get(&key) {
            return Ok(plan.clone());
        }
        let choice = self.choose_for(&key.0, key.1)?;
        let plan = self.plan_with(&key.0, choice, &self.functors(problem)?)?;
        let mut plans = lock(&self.plans);
        if plans.len() >= MOST_PLANS {
            plans.clear();
        }
        plans.insert(key, plan.clone());
        Ok(plan)
    }

    fn plan_with(&self, key: &PlanKey, choice: Choice, functors: &FunctorSpec<'_>) -> Result<AttentionPlan> {
        let _span = tracing::debug_span!("plan", backend = %self.name).entered();
        let arch = arch(&self.facts);
        let kernel_id = kernel_id(&choice.kernel, &arch, &key.mask_type, &key.score_mod_type);
        let part = part(key, &choice, functors, self.facts.multiprocessors)?;
        let launch = part.launch;
        let detail = if key.shape.is_empty() {
            // Nothing is launched, and nothing has to be compiled for it.
            None
        } else {
            Some(self.planned(key, &choice, part, functors)?)
        };
        let (algorithm, block_m, block_n, stages) = match &choice.kernel {
            KernelChoice::Forward(config) => {
                (Algorithm::Flash2, config.block_m, config.block_n, config.stages)
            }
            KernelChoice::Decode(config) => {
                (Algorithm::Flash2, config.block_m, config.block_n(), config.stages)
            }
            KernelChoice::Hopper(config) => {
                (Algorithm::Flash3, config.block_m, config.block_n, config.stages())
            }
            KernelChoice::Naive(_) => (Algorithm::Naive, 1, key.shape.seqlen_k.max(1), 1),
        };
        let workspace_bytes = detail.as_ref().map_or(0, Planned::workspace_bytes);
        let origin =
            detail.as_ref().map_or("no work".into(), |planned| planned.forward.kernel.origin.to_string());
        tracing::debug!(id = %kernel_id, reason = %choice.reason, origin, "planned");
        Ok(AttentionPlan {
            kernel_id,
            algorithm,
            grid: launch.grid,
            block_threads: launch.block_threads,
            block_m,
            block_n,
            num_pipeline_stages: stages,
            shared_memory_bytes: launch.shared_memory_bytes,
            workspace_bytes,
            num_partitions: choice.num_partitions,
            reason: choice.reason,
            detail: detail.map(|planned| Arc::new(planned) as _),
        })
    }

    fn planned(
        &self,
        key: &PlanKey,
        choice: &Choice,
        main: Part,
        functors: &FunctorSpec<'_>,
    ) -> Result<Planned> {
        let mut workspace = main.workspace;
        let combine = if main.needs_combine {
            let (unit, launch) = (combine(key.shape.dtype), launch_of(combine_launch(&main.sizes)?));
            let arch = arch(&self.facts);
            let id = combine_id(&arch, key.shape.dtype);
            Some(PlannedKernel::new(self.kernel(&id, &arch, &unit, "")?, unit.entry, launch))
        } else {
            None
        };
        let short = match &choice.short {
            Some(short) => {
                let part = part(key, short, functors, self.facts.multiprocessors)?;
                // Where two kernels share a batch, the one for long sequences cuts none.
                workspace = part.workspace;
                Some((self.planned_kernel(key, short, &part)?, cut(&part.sizes)))
            }
            None => None,
        };
        let forward = self.planned_kernel(key, choice, &main)?;
        let hopper = match choice.kernel {
            KernelChoice::Hopper(config) => Some(config),
            _ => None,
        };
        Ok(Planned { key: key.clone(), cut: cut(&main.sizes), forward, hopper, combine, short, workspace })
    }

    fn planned_kernel(&self, key: &PlanKey, choice: &Choice, part: &Part) -> Result<PlannedKernel> {
        let id = kernel_id(&choice.kernel, &arch(&self.facts), &key.mask_type, &key.score_mod_type);
        let arch = match choice.kernel {
            KernelChoice::Hopper(_) => HOPPER_ARCH.into(),
            _ => arch(&self.facts),
        };
        let kernel = self.kernel(&id, &arch, &part.unit, &key.functor())?;
        Ok(PlannedKernel::new(kernel, part.unit.entry, part.launch))
    }

    /// The kernel that checks page tables.
    pub(crate) fn verify_kernel(&self) -> Result<(Kernel, &'static str)> {
        let unit = verify_page_table();
        let arch = arch(&self.facts);
        let id = format!("verify-page-table-{arch}");
        Ok((self.kernel(&id, &arch, &unit, "")?, unit.entry))
    }

    /// The kernel that writes new rows into a cache, so many bytes at a time.
    pub(crate) fn append_kernel(&self, unit_bytes: usize) -> Result<(Kernel, &'static str)> {
        let (unit, arch) = (kv_append(unit_bytes), arch(&self.facts));
        let id = format!("kv-append-{arch}-{unit_bytes}");
        Ok((self.kernel(&id, &arch, &unit, "")?, unit.entry))
    }

    fn kernel(&self, id: &str, arch: &str, unit: &TranslationUnit, functor: &str) -> Result<Kernel> {
        let source = unit.source();
        // Machine code of Hopper's own instructions runs there only.
        let family: Vec<String> =
            if arch == HOPPER_ARCH { vec![arch.into()] } else { arch_family(&self.facts).collect() };
        let tags: Vec<String> = family.iter().map(|arch| prebuilt_tag(arch, &source)).collect();
        self.store.kernel(&KernelSource {
            id,
            arch,
            functor,
            source: &source,
            options: OPTIONS,
            prebuilt_tags: &tags,
        })
    }
}

/// A kernel of a plan before it is found.
struct Part {
    unit: TranslationUnit,
    sizes: AttentionParameters,
    launch: Launch,
    workspace: DecodeWorkspace,
    needs_combine: bool,
}

fn part(key: &PlanKey, choice: &Choice, functors: &FunctorSpec<'_>, multiprocessors: usize) -> Result<Part> {
    let sizes = sizes(&key.shape, choice);
    let (unit, launch, workspace, needs_combine) = match &choice.kernel {
        KernelChoice::Forward(config) => {
            let launch = Launch {
                grid: if key.shape.is_empty() { [0, 1, 1] } else { ForwardConfig::grid(&sizes)? },
                block_threads: config.block_threads(),
                shared_memory_bytes: config.shared_memory_bytes(),
            };
            let (partial_out, partial_lse) = ForwardConfig::workspace_bytes(&sizes);
            let workspace = DecodeWorkspace { partial_out, partial_lse, counters: 0 };
            (config.translation_unit(functors), launch, workspace, choice.num_partitions > 1)
        }
        KernelChoice::Decode(config) => {
            let mut launch = launch_of(config.launch(&sizes)?);
            if key.shape.is_empty() {
                launch.grid = [0, 1, 1];
            }
            (config.translation_unit(functors), launch, config.workspace(&sizes), false)
        }
        KernelChoice::Hopper(config) => {
            let num_tiles = sizes.num_row_tiles as usize
                * key.shape.batch
                * (key.shape.num_heads / choice.heads_per_tile);
            let launch = Launch {
                grid: [num_tiles.min(multiprocessors) as u32, 1, 1],
                block_threads: config.block_threads(),
                shared_memory_bytes: config.shared_memory_bytes(),
            };
            (config.translation_unit(functors), launch, DecodeWorkspace::default(), false)
        }
        KernelChoice::Naive(config) => {
            let launch = launch_of(NaiveConfig::launch(&sizes)?);
            (config.translation_unit(functors), launch, DecodeWorkspace::default(), false)
        }
    };
    Ok(Part { unit, sizes, launch, workspace, needs_combine })
}

impl Planned {
    /// All kernels.
    pub(crate) fn kernels(&self) -> impl Iterator<Item = &PlannedKernel> {
        let short = self.short.as_ref().map(|(kernel, _)| kernel);
        std::iter::once(&self.forward).chain(&self.combine).chain(short)
    }

    pub(crate) fn is_loaded(&self) -> bool {
        self.kernels().all(|kernel| kernel.module.get().is_some())
    }

    /// Bytes of partial outputs and sums.
    pub(crate) fn workspace_bytes(&self) -> usize {
        self.workspace.partial_out + self.workspace.partial_lse
    }
}

/// The sizes that grids and workspaces depend on.
fn sizes(shape: &ProblemShape, choice: &Choice) -> AttentionParameters {
    let num_row_tiles = match &choice.kernel {
        KernelChoice::Forward(config) => config.num_row_tiles(shape.seqlen_q, choice.heads_per_tile),
        KernelChoice::Decode(_) => 1,
        KernelChoice::Hopper(config) => config.num_row_tiles(shape.seqlen_q, choice.heads_per_tile),
        KernelChoice::Naive(_) => shape.seqlen_q as u32,
    };
    AttentionParameters {
        total_q: shape.total_q as i64,
        batch: shape.batch as u32,
        num_heads: shape.num_heads as u32,
        value_dim: shape.value_dim as u32,
        seqlen_q: shape.seqlen_q as u32,
        heads_per_tile: choice.heads_per_tile as u32,
        num_row_tiles,
        section: choice.section as u32,
        num_partitions: choice.num_partitions as u32,
        num_workers: choice.workers as u32,
        least_q_len: choice.least_q_len as u32,
        ..AttentionParameters::default()
    }
}

fn cut(sizes: &AttentionParameters) -> Cut {
    Cut {
        heads_per_tile: sizes.heads_per_tile as usize,
        num_row_tiles: sizes.num_row_tiles,
        section: sizes.section as usize,
        num_partitions: sizes.num_partitions as usize,
        num_workers: sizes.num_workers,
        least_q_len: sizes.least_q_len,
    }
}

fn launch_of(launch: omniflash_kernels_cuda::Launch) -> Launch {
    Launch {
        grid: launch.grid,
        block_threads: launch.block_threads,
        shared_memory_bytes: launch.shared_memory_bytes,
    }
}

fn combine_id(arch: &str, dtype: DType) -> String {
    format!("combine-{arch}-{dtype}")
}
