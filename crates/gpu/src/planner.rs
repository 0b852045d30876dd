//! Plans with their kernels: the choice of a vendor's plan, the kernels from the store, and a cache of both.
//!
//! Needs no driver, so that kernels for a device can be built on a machine without one.

use std::borrow::Cow;
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use omniflash_core::lower::FunctorSpec;
use omniflash_core::{
    Algorithm, AttentionConfig, AttentionPlan, AttentionProblem, Error, ProblemShape, Result, Stream, Support,
};
use omniflash_device::parameters::{AttentionParameters, VerifyParameters};
use omniflash_device::{Launch, PeakKernel, TranslationUnit, Workspace, pack_mask, pack_mask_launch};
use omniflash_kernel_store::{Kernel, KernelSource, KernelStore, prebuilt_tag};

use crate::driver::Driver;
use crate::key_map::KeyMap;
use crate::module::{LazyModule, Module, Modules};
use crate::packing::Packing;
use crate::parameters::Cut;
use crate::plan::{Choice, PlanKey, Wanted, functors, kernel_id};
use crate::stream_state::{StreamUse, lock};
use crate::tuned::{KeptChoice, TunedChoices};
use crate::vendor::{KernelInstance, Vendor};

/// Plans kept; a caller with more shapes than this plans anew now and then.
const MOST_PLANS: usize = 4096;

/// Plans for one device.
#[derive(Debug)]
pub struct Planner<V: Vendor> {
    name: String,
    facts: V::Facts,
    store: Arc<KernelStore>,
    plans: Mutex<KeyMap<(PlanKey, V::Fit), AttentionPlan>>,
    kernels: Mutex<FoundKernels<V::Kernel>>,
    modules: Modules<V::Driver>,
    tuned: TunedChoices,
}

/// Kernels by what their sources depend on, with the names of their entries.
type FoundKernels<K> = KeyMap<SourceKey<K>, (Kernel, &'static str)>;

/// What a kernel's source depends on. A step of generation has a plan of its own, for one more key, but its kernel is found
/// without writing the source again.
#[derive(Debug, PartialEq, Eq, Hash)]
struct SourceKey<K> {
    kernel: K,
    mask_type: Cow<'static, str>,
    score_mod_type: Cow<'static, str>,
    sources: Vec<String>,
}

/// What a plan keeps for its launches.
#[derive(Debug)]
pub(crate) struct Planned<V: Vendor> {
    pub(crate) key: PlanKey,
    pub(crate) cut: Cut,
    pub(crate) instance: V::Kernel,
    pub(crate) forward: PlannedKernel<V::Driver>,
    /// Joins partitions.
    pub(crate) combine: Option<PlannedKernel<V::Driver>>,
    /// Computes the short sequences of a batch that has both kinds.
    pub(crate) short: Option<PlannedShort<V>>,
    /// Pack mask tensors, in the order of the functors' slots.
    pub(crate) packers: Vec<PlannedKernel<V::Driver>>,
    pub(crate) workspace: Workspace,
}

/// What computes the short sequences of a batch.
#[derive(Debug)]
pub(crate) struct PlannedShort<V: Vendor> {
    pub(crate) instance: V::Kernel,
    pub(crate) kernel: PlannedKernel<V::Driver>,
    pub(crate) cut: Cut,
}

/// A kernel and its launch, loaded when first launched.
#[derive(Debug)]
pub(crate) struct PlannedKernel<D: Driver> {
    pub(crate) kernel: Kernel,
    pub(crate) entry: &'static str,
    pub(crate) launch: Launch,
    /// Shared with other plans of the kernel.
    module: Arc<LazyModule<D>>,
}

/// A kernel of a plan before it is found.
struct Part {
    sizes: AttentionParameters,
    launch: Launch,
    workspace: Workspace,
}

impl<V: Vendor> Planner<V> {
    /// A planner for a device, with the kernels of a store; errors call its backend `name`.
    pub fn new(name: String, facts: V::Facts, store: Arc<KernelStore>) -> Self {
        let tuned = TunedChoices::in_cache(store.cache());
        Planner {
            name,
            facts,
            store,
            plans: Mutex::default(),
            kernels: Mutex::default(),
            modules: Modules::default(),
            tuned,
        }
    }

    /// What the driver says of the device.
    pub fn facts(&self) -> &V::Facts {
        &self.facts
    }

    /// Where kernels come from.
    pub fn store(&self) -> &KernelStore {
        &self.store
    }

    /// Whether a problem can be computed; compiles nothing.
    pub fn supports(&self, problem: &AttentionProblem<'_>) -> Support {
        let chosen = self.key(problem).and_then(|(key, fit)| {
            V::choose(&self.name, &self.facts, &key, &fit)?;
            Ok(key)
        });
        match chosen {
            Ok(_) if problem.config().algorithm == Algorithm::Naive => {
                Support::Slow("algorithm naive computes one row a block".into())
            }
            Ok(key) if !key.is_aligned => {
                Support::Slow("rows that are not multiples of 16 bytes are loaded element by element".into())
            }
            Ok(_) => Support::Yes,
            Err(error) => Support::No(error),
        }
    }

    /// Mask and score modification as the kernels take them.
    pub(crate) fn functors<'p>(&self, problem: &'p AttentionProblem<'_>) -> Result<FunctorSpec<'p>> {
        functors(problem, &self.name)
    }

    fn key(&self, problem: &AttentionProblem<'_>) -> Result<(PlanKey, V::Fit)> {
        Ok((PlanKey::new(problem, self.functors(problem)?), V::fit(&self.facts, problem)))
    }

    /// A plan with its kernels.
    ///
    /// # Errors
    /// Those of [`Vendor::choose`], [`Error::NoKernel`](omniflash_core::Error::NoKernel).
    pub fn plan(&self, problem: &AttentionProblem<'_>) -> Result<AttentionPlan> {
        let functors = self.functors(problem)?;
        let wanted = Wanted { problem, functors: &functors, fit: V::fit(&self.facts, problem) };
        if let Some(plan) = lock(&self.plans).get(&wanted) {
            return Ok(plan.clone());
        }
        let key = (PlanKey::new(problem, functors.clone()), wanted.fit);
        let choice = self.choose(&key, &functors)?;
        let plan = self.plan_with(&key.0, choice, &functors)?;
        let mut plans = lock(&self.plans);
        if plans.len() >= MOST_PLANS {
            plans.clear();
            lock(&self.kernels).clear();
        }
        plans.insert(key, plan.clone());
        Ok(plan)
    }

    /// The vendor's choice, or what was measured to be faster for such problems where the caller fixes nothing.
    fn choose(&self, key: &(PlanKey, V::Fit), functors: &FunctorSpec<'_>) -> Result<Choice<V::Kernel>> {
        match self.kept(key, functors) {
            Some(choice) => Ok(choice),
            None => V::choose(&self.name, &self.facts, &key.0, &key.1),
        }
    }

    fn kept(&self, key: &(PlanKey, V::Fit), functors: &FunctorSpec<'_>) -> Option<Choice<V::Kernel>> {
        if key.0.config != AttentionConfig::default() {
            return None;
        }
        let kept = self.tuned.find(&V::info(&self.facts).device_name, &key.0)?;
        let choice = kept.config().and_then(|config| {
            let choice = V::choose(&self.name, &self.facts, &PlanKey { config, ..key.0.clone() }, &key.1)?;
            if kept.source_tag != self.source_tag(&choice.kernel, functors) {
                return Err(Error::value("source_tag", &kept.source_tag, "that of this version's kernels"));
            }
            Ok(choice)
        });
        match choice {
            Ok(mut choice) => {
                choice.reason = format!("{}; measured to be the fastest here", choice.reason);
                Some(choice)
            }
            Err(error) => {
                tracing::warn!(kind = %kept.kind, %error, "a tuned choice is stale and left out; tune again");
                None
            }
        }
    }

    /// Says which source a kernel is compiled from, so that a measurement of another one is not taken for it.
    fn source_tag(&self, kernel: &V::Kernel, functors: &FunctorSpec<'_>) -> String {
        prebuilt_tag(&kernel.arch(&V::arch(&self.facts)), &kernel.translation_unit(functors).source())
    }

    /// The configurations to measure for a problem, as if nothing were fixed; the plan's own choice first.
    ///
    /// # Errors
    /// Those of [`Vendor::choose`].
    pub fn alternatives(&self, problem: &AttentionProblem<'_>) -> Result<Vec<AttentionConfig>> {
        let functors = self.functors(problem)?;
        let (key, fit) = self.key(problem)?;
        let mut key = (PlanKey { config: AttentionConfig::default(), ..key }, fit);
        let own = self.choose(&key, &functors)?;
        let mut seen = HashSet::from([self.kernel_id(&own.kernel, &key.0)]);
        let mut configs = vec![key.0.config];
        for config in V::alternatives(&self.facts, &key.0) {
            key.0.config = config;
            let Ok(choice) = V::choose(&self.name, &self.facts, &key.0, &key.1) else { continue };
            if seen.insert(self.kernel_id(&choice.kernel, &key.0)) {
                configs.push(config);
            }
        }
        Ok(configs)
    }

    /// Keeps a configuration for problems of this kind on such a device.
    ///
    /// # Errors
    /// Those of [`Vendor::choose`], [`Error::Unsupported`] where there is no place to keep it.
    pub fn keep_choice(
        &self,
        device_name: &str,
        problem: &AttentionProblem<'_>,
        config: &AttentionConfig,
    ) -> Result<PathBuf> {
        let functors = self.functors(problem)?;
        let (key, fit) = self.key(problem)?;
        let key = PlanKey { config: *config, ..key };
        let choice = V::choose(&self.name, &self.facts, &key, &fit)?;
        let tag = self.source_tag(&choice.kernel, &functors);
        let path = self.tuned.keep(KeptChoice::new(device_name, &key, tag), &self.name)?;
        lock(&self.plans).clear();
        Ok(path)
    }

    fn plan_with(
        &self,
        key: &PlanKey,
        choice: Choice<V::Kernel>,
        functors: &FunctorSpec<'_>,
    ) -> Result<AttentionPlan> {
        let _span = tracing::debug_span!("plan", backend = %self.name).entered();
        let kernel_id = self.kernel_id(&choice.kernel, key);
        let part = self.part(key, &choice)?;
        let launch = part.launch;
        let planned = if key.shape.is_empty() {
            // Nothing is launched, and nothing has to be compiled for it.
            None
        } else {
            Some(self.planned(key, &choice, part, functors)?)
        };
        let [block_m, block_n, num_pipeline_stages] =
            choice.kernel.tile().unwrap_or([1, key.shape.seqlen_k.max(1), 1]);
        let reason = match key.packings.len() {
            0 => choice.reason,
            packed => format!("{}, after {packed} mask tensor(s) packed on the device", choice.reason),
        };
        let origin =
            planned.as_ref().map_or("no work".into(), |planned| planned.forward.kernel.origin.to_string());
        tracing::debug!(id = %kernel_id, reason = %reason, origin, "planned");
        Ok(AttentionPlan {
            kernel_id: kernel_id.into(),
            algorithm: choice.kernel.algorithm(),
            grid: launch.grid,
            block_threads: launch.block_threads,
            block_m,
            block_n,
            num_pipeline_stages,
            shared_memory_bytes: launch.shared_memory_bytes,
            workspace_bytes: planned
                .as_ref()
                .map_or(0, |planned| planned.workspace.partial_bytes() + planned.packed_bytes()),
            num_partitions: choice.num_partitions,
            reason: reason.into(),
            detail: planned.map(|planned| Arc::new(planned) as _),
        })
    }

    fn planned(
        &self,
        key: &PlanKey,
        choice: &Choice<V::Kernel>,
        main: Part,
        functors: &FunctorSpec<'_>,
    ) -> Result<Planned<V>> {
        let mut workspace = main.workspace;
        let combine = if choice.num_partitions > 1 && !choice.kernel.joins_partitions() {
            let (unit, launch) = V::combine(&self.facts, key.shape.dtype, &main.sizes)?;
            let arch = V::arch(&self.facts);
            let id = format!("combine-{arch}-{}", key.shape.dtype);
            Some(self.launched(self.kernel(&id, &arch, &unit, "")?, unit.entry, launch))
        } else {
            None
        };
        let short = match &choice.short {
            Some(short) => {
                let part = self.part(key, short)?;
                // Where two kernels share a batch, the one for long sequences cuts none.
                workspace = part.workspace;
                let kernel = self.planned_kernel(key, short, &part, functors)?;
                Some(PlannedShort { instance: short.kernel.clone(), kernel, cut: cut(&part.sizes) })
            }
            None => None,
        };
        Ok(Planned {
            key: key.clone(),
            cut: cut(&main.sizes),
            instance: choice.kernel.clone(),
            forward: self.planned_kernel(key, choice, &main, functors)?,
            combine,
            short,
            packers: key.packings.iter().map(|packing| self.packer(packing)).collect::<Result<_>>()?,
            workspace,
        })
    }

    /// The kernel that packs a mask tensor, and its launch.
    fn packer(&self, packing: &Packing) -> Result<PlannedKernel<V::Driver>> {
        let (arch, unit) = (V::arch(&self.facts), pack_mask(packing.dtype, packing.unit_bytes));
        let id = format!("pack-mask-{arch}-{}-{}", packing.dtype, packing.unit_bytes);
        let launch = pack_mask_launch(&packing.grid_parameters());
        Ok(self.launched(self.kernel(&id, &arch, &unit, "")?, unit.entry, launch))
    }

    fn part(&self, key: &PlanKey, choice: &Choice<V::Kernel>) -> Result<Part> {
        let sizes = sizes(&key.shape, choice);
        let mut launch = choice.kernel.launch(&sizes, V::multiprocessors(&self.facts))?;
        if key.shape.is_empty() {
            launch.grid = [0, 1, 1];
        }
        let workspace = choice.kernel.workspace(&sizes);
        Ok(Part { sizes, launch, workspace })
    }

    fn planned_kernel(
        &self,
        key: &PlanKey,
        choice: &Choice<V::Kernel>,
        part: &Part,
        functors: &FunctorSpec<'_>,
    ) -> Result<PlannedKernel<V::Driver>> {
        let source_key = SourceKey {
            kernel: choice.kernel.clone(),
            mask_type: key.mask_type.clone(),
            score_mod_type: key.score_mod_type.clone(),
            sources: key.sources.clone(),
        };
        let found = lock(&self.kernels).get(&source_key).cloned();
        let (kernel, entry) = match found {
            Some(found) => found,
            None => {
                let unit = choice.kernel.translation_unit(functors);
                let arch = choice.kernel.arch(&V::arch(&self.facts));
                let id = self.kernel_id(&choice.kernel, key);
                let found = (self.kernel(&id, &arch, &unit, &key.functor())?, unit.entry);
                lock(&self.kernels).insert(source_key, found.clone());
                found
            }
        };
        Ok(self.launched(kernel, entry, part.launch))
    }

    fn launched(&self, kernel: Kernel, entry: &'static str, launch: Launch) -> PlannedKernel<V::Driver> {
        let module = self.modules.of(&kernel.image, entry, launch.shared_memory_bytes);
        PlannedKernel { kernel, entry, launch, module }
    }

    fn kernel_id(&self, kernel: &V::Kernel, key: &PlanKey) -> String {
        kernel_id(kernel, &V::arch(&self.facts), &key.mask_type, &key.score_mod_type)
    }

    /// The kernel that checks page tables, and its launch.
    pub(crate) fn verify_kernel(&self, parameters: &VerifyParameters) -> Result<PlannedKernel<V::Driver>> {
        let (unit, launch) = V::verify_page_table(parameters);
        let arch = V::arch(&self.facts);
        let id = format!("verify-page-table-{arch}");
        Ok(self.launched(self.kernel(&id, &arch, &unit, "")?, unit.entry, launch))
    }

    /// The kernel that writes new rows into a cache, so many bytes at a time.
    pub(crate) fn append_kernel(&self, unit_bytes: usize) -> Result<(Kernel, &'static str)> {
        let (unit, arch) = (V::kv_append(unit_bytes), V::arch(&self.facts));
        let id = format!("kv-append-{arch}-{unit_bytes}");
        Ok((self.kernel(&id, &arch, &unit, "")?, unit.entry))
    }

    /// A kernel that measures.
    pub(crate) fn peak_kernel(&self, name: &str, peak: &PeakKernel) -> Result<Kernel> {
        self.kernel(&format!("peak-{}-{name}", peak.arch), &peak.arch, &peak.unit, "")
    }

    fn kernel(&self, id: &str, arch: &str, unit: &TranslationUnit, functor: &str) -> Result<Kernel> {
        let source = unit.source();
        let tags: Vec<String> =
            V::arch_family(&self.facts, arch).iter().map(|arch| prebuilt_tag(arch, &source)).collect();
        self.store.kernel(&KernelSource {
            id,
            arch,
            functor,
            source: &source,
            options: V::COMPILER_OPTIONS,
            prebuilt_tags: &tags,
        })
    }
}

impl<V: Vendor> Planned<V> {
    /// All kernels.
    pub(crate) fn kernels(&self) -> impl Iterator<Item = &PlannedKernel<V::Driver>> {
        let short = self.short.as_ref().map(|short| &short.kernel);
        std::iter::once(&self.forward).chain(&self.combine).chain(short).chain(&self.packers)
    }

    /// Bytes of all packed masks.
    pub(crate) fn packed_bytes(&self) -> usize {
        self.key.packings.iter().map(Packing::bytes).sum()
    }

    pub(crate) fn is_loaded(&self) -> bool {
        self.kernels().all(|kernel| kernel.module.get().is_some())
    }
}

impl<D: Driver> PlannedKernel<D> {
    /// The kernel, loaded anew.
    pub(crate) fn module(&self, driver: &Arc<D>) -> Result<Module<D>> {
        Module::load(driver, &self.kernel.image, self.entry, self.launch.shared_memory_bytes)
    }

    /// Loads the kernel unless it is loaded.
    pub(crate) fn load(&self, launch: &StreamUse<'_, D>) -> Result<()> {
        if self.module.get().is_none() {
            launch.check_may_allocate("the first launch of a plan")?;
            let module = self.module(launch.driver)?;
            self.module.get_or_init(|| module);
        }
        Ok(())
    }

    /// Enqueues the kernel, which has been loaded.
    ///
    /// # Safety
    /// Those of [`Module::launch`].
    pub(crate) unsafe fn enqueue(
        &self,
        arguments: &[&[u8]],
        stream: &Stream,
        entered: &D::Entered<'_>,
    ) -> Result<()> {
        let module = self.module.get().expect("loaded before it is enqueued");
        // SAFETY: the caller's duties.
        unsafe { module.launch(&self.launch, arguments, stream, entered) }
    }
}

/// The sizes that grids and workspaces depend on.
fn sizes<K: KernelInstance>(shape: &ProblemShape, choice: &Choice<K>) -> AttentionParameters {
    AttentionParameters {
        total_q: shape.total_q as i64,
        batch: shape.batch as u32,
        num_heads: shape.num_heads as u32,
        value_dim: shape.value_dim as u32,
        seqlen_q: shape.seqlen_q as u32,
        heads_per_tile: choice.heads_per_tile as u32,
        num_row_tiles: choice.kernel.num_row_tiles(shape.seqlen_q, choice.heads_per_tile),
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
