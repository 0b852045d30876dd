//! Plans with their kernels: the choice of [`plan`](crate::plan), the kernels from the store, and a cache of both.
//!
//! Needs no driver, so that kernels for a device can be built on a machine without one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};

use omniflash_core::lower::FunctorSpec;
use omniflash_core::{Algorithm, AttentionPlan, AttentionProblem, DType, ProblemShape, Result, Support};
use omniflash_device::TranslationUnit;
use omniflash_device::parameters::AttentionParameters;
use omniflash_gpu::parameters::Cut;
use omniflash_gpu::{Launch, PlanKey, lock};
use omniflash_kernel_store::{Kernel, KernelSource, KernelStore, prebuilt_tag};
use omniflash_kernels_hip::{
    COMPILER_OPTIONS, ForwardConfig, NaiveConfig, combine, combine_launch, verify_page_table,
};

use crate::driver::Module;
use crate::plan::{self, Choice, KernelChoice, Request, arch, kernel_id};
use crate::probe::DeviceFacts;

/// Plans kept; a caller with more shapes than this plans anew now and then.
const MOST_PLANS: usize = 4096;

/// Plans for one device.
#[derive(Debug)]
pub(crate) struct Planner {
    name: String,
    facts: DeviceFacts,
    store: Arc<KernelStore>,
    plans: Mutex<HashMap<PlanKey, AttentionPlan>>,
}

/// What a plan keeps for its launches.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(crate) key: PlanKey,
    pub(crate) cut: Cut,
    pub(crate) forward: PlannedKernel,
    /// Joins partitions.
    pub(crate) combine: Option<PlannedKernel>,
    /// Bytes of partial outputs, and of the partial sums after them.
    pub(crate) workspace_bytes: (usize, usize),
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
        Ok((self.choose_for(&key)?, key))
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

    fn choose_for(&self, key: &PlanKey) -> Result<Choice> {
        plan::choose(&Request {
            backend: &self.name,
            facts: &self.facts,
            shape: &key.shape,
            config: &key.config,
            mask_type: &key.mask_type,
            is_aligned: key.is_aligned,
        })
    }

    /// Mask and score modification as the kernels take them.
    pub(crate) fn functors<'p>(&self, problem: &'p AttentionProblem<'_>) -> Result<FunctorSpec<'p>> {
        omniflash_gpu::functors(problem, &self.name)
    }

    /// A plan with its kernels.
    pub(crate) fn plan(&self, problem: &AttentionProblem<'_>) -> Result<AttentionPlan> {
        let key = PlanKey::new(problem, self.functors(problem)?);
        if let Some(plan) = lock(&self.plans).get(&key) {
            return Ok(plan.clone());
        }
        let choice = self.choose_for(&key)?;
        let plan = self.plan_with(&key, choice, &self.functors(problem)?)?;
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
        let kernel_id = kernel_id(&choice.kernel, arch, &key.mask_type, &key.score_mod_type);
        let sizes = sizes(&key.shape, &choice);
        let (unit, launch, workspace) = match &choice.kernel {
            KernelChoice::Forward(config) => {
                let launch = Launch {
                    grid: if key.shape.is_empty() { [0, 1, 1] } else { config.grid(&sizes)? },
                    block_threads: config.block_threads(),
                    shared_memory_bytes: config.shared_memory_bytes(),
                };
                (config.translation_unit(functors), launch, ForwardConfig::workspace_bytes(&sizes))
            }
            KernelChoice::Naive(config) => {
                (config.translation_unit(functors), launch_of(NaiveConfig::launch(&sizes)?), (0, 0))
            }
        };
        let detail = if key.shape.is_empty() {
            // Nothing is launched, and nothing has to be compiled for it.
            None
        } else {
            Some(self.planned(key, &choice, &unit, &kernel_id, launch, &sizes, workspace)?)
        };
        let (algorithm, block_m, block_n, stages) = match &choice.kernel {
            KernelChoice::Forward(config) => {
                (Algorithm::Flash2, config.block_m, config.block_n, config.stages)
            }
            KernelChoice::Naive(_) => (Algorithm::Naive, 1, key.shape.seqlen_k.max(1), 1),
        };
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
            workspace_bytes: workspace.0 + workspace.1,
            num_partitions: choice.num_partitions,
            reason: choice.reason,
            detail: detail.map(|planned| Arc::new(planned) as _),
        })
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one plan, named where they are made")]
    fn planned(
        &self,
        key: &PlanKey,
        choice: &Choice,
        unit: &TranslationUnit,
        kernel_id: &str,
        launch: Launch,
        sizes: &AttentionParameters,
        workspace_bytes: (usize, usize),
    ) -> Result<Planned> {
        let forward = PlannedKernel::new(self.kernel(kernel_id, unit, &key.functor())?, unit.entry, launch);
        let combine = if choice.num_partitions > 1 {
            let (unit, launch) =
                (combine(key.shape.dtype), launch_of(combine_launch(self.facts.architecture, sizes)?));
            let id = combine_id(arch(&self.facts), key.shape.dtype);
            Some(PlannedKernel::new(self.kernel(&id, &unit, "")?, unit.entry, launch))
        } else {
            None
        };
        Ok(Planned { key: key.clone(), cut: cut(sizes), forward, combine, workspace_bytes })
    }

    /// The kernel that checks page tables.
    pub(crate) fn verify_kernel(&self) -> Result<(Kernel, &'static str)> {
        let unit = verify_page_table();
        let id = format!("verify-page-table-{}", arch(&self.facts));
        Ok((self.kernel(&id, &unit, "")?, unit.entry))
    }

    fn kernel(&self, id: &str, unit: &TranslationUnit, functor: &str) -> Result<Kernel> {
        let (source, arch) = (unit.source(), arch(&self.facts));
        let tags = [prebuilt_tag(arch, &source)];
        self.store.kernel(&KernelSource {
            id,
            arch,
            functor,
            source: &source,
            options: COMPILER_OPTIONS,
            prebuilt_tags: &tags,
        })
    }
}

/// The sizes that grids and workspaces depend on.
fn sizes(shape: &ProblemShape, choice: &Choice) -> AttentionParameters {
    let num_row_tiles = match &choice.kernel {
        KernelChoice::Forward(config) => config.num_row_tiles(shape.seqlen_q, choice.heads_per_tile),
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
        ..AttentionParameters::default()
    }
}

fn cut(sizes: &AttentionParameters) -> Cut {
    Cut {
        heads_per_tile: sizes.heads_per_tile as usize,
        num_row_tiles: sizes.num_row_tiles,
        section: sizes.section as usize,
        num_partitions: sizes.num_partitions as usize,
        num_workers: 0,
        least_q_len: 0,
    }
}

fn launch_of(launch: omniflash_kernels_hip::Launch) -> Launch {
    Launch {
        grid: launch.grid,
        block_threads: launch.block_threads,
        shared_memory_bytes: launch.shared_memory_bytes,
    }
}

fn combine_id(arch: &str, dtype: DType) -> String {
    format!("combine-{arch}-{dtype}")
}
