//! From a plan and a problem to work on a stream.
//!
//! A launch allocates, loads and copies nothing once its plan has been launched on the stream before, or
//! [prepared](crate::CudaBackend::prepare); it never waits and never reads device memory.

pub(crate) mod tensor_map;

use std::sync::Arc;

use omniflash_core::lower::FunctorSpec;
use omniflash_core::{AttentionProblem, Error, Result, Stream};
use omniflash_device::parameters::DeviceAddress;
use omniflash_gpu::{StreamState, StreamStates, StreamUse, lock, parameters};
use omniflash_kernels_cuda::{HopperConfig, HopperParameters};

use crate::driver::{Context, Module, encode_tensor_map};
use crate::planner::{Planned, PlannedKernel, Planner};
use tensor_map::TensorBoxes;

/// What launches of one backend share.
#[derive(Debug)]
pub(crate) struct Launcher {
    context: Arc<Context>,
    states: Arc<StreamStates<Context>>,
}

impl Launcher {
    pub(crate) fn new(context: Arc<Context>) -> Self {
        Launcher { context, states: Arc::default() }
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    pub(crate) fn states(&self) -> &Arc<StreamStates<Context>> {
        &self.states
    }

    /// Loads, allocates and copies what launches of the plan on the stream will use.
    pub(crate) fn prepare(
        &self,
        planner: &Planner,
        planned: &Planned,
        problem: &AttentionProblem<'_>,
        stream: &Stream,
    ) -> Result<()> {
        let mut functors = planner.functors(problem)?;
        planned.key.check(problem, &functors)?;
        let launch = StreamUse::new(&self.context, stream)?;
        self.load(planned, &launch)?;
        let state = self.states.of(&launch)?;
        let mut state = lock(&state);
        state.set_tables(problem, &mut functors, &launch)?;
        workspace(planned, &mut state, &launch)?;
        if planned.hopper.is_some() {
            state.counter(&launch)?;
        }
        Ok(())
    }

    /// Enqueues the kernels of a plan.
    ///
    /// # Safety
    /// Those of [`Backend::launch`](omniflash_core::Backend::launch).
    pub(crate) unsafe fn launch(
        &self,
        planner: &Planner,
        planned: &Planned,
        problem: &AttentionProblem<'_>,
        stream: &Stream,
    ) -> Result<()> {
        let mut functors = planner.functors(problem)?;
        planned.key.check(problem, &functors)?;
        let needs_state =
            planned.workspace_bytes() > 0 || planned.hopper.is_some() || !functors.tables.is_empty();
        if !needs_state && planned.is_loaded() {
            // SAFETY: the caller's duties, for a launch that uses the problem's memory only.
            return unsafe { enqueue(planned, problem, &functors, Workspace::default(), None, stream) };
        }
        let launch = StreamUse::new(&self.context, stream)?;
        self.load(planned, &launch)?;
        let state = self.states.of(&launch)?;
        // Held until all kernels are enqueued: the next launch on this stream must not come between them, since it
        // uses the same workspace.
        let mut state = lock(&state);
        state.set_tables(problem, &mut functors, &launch)?;
        let workspace = workspace(planned, &mut state, &launch)?;
        let hopper = match &planned.hopper {
            Some(tile) => Some(self.hopper_parameters(planned, tile, problem, state.counter(&launch)?)?),
            None => None,
        };
        // SAFETY: the caller's duties; the workspace is as large as the plan says, and used in the stream's order, as
        // is the counter.
        unsafe { enqueue(planned, problem, &functors, workspace, hopper.as_ref(), stream) }
    }

    /// What the Hopper kernel is given beside the parameters of all kernels.
    fn hopper_parameters(
        &self,
        planned: &Planned,
        tile: &HopperConfig,
        problem: &AttentionProblem<'_>,
        counter: u64,
    ) -> Result<HopperParameters> {
        let heads_per_tile = planned.cut.heads_per_tile;
        let boxes = TensorBoxes::new(problem, tile, heads_per_tile)
            .filter(|_| problem.softmax_scale() > 0.0)
            .ok_or_else(|| {
                Error::value(
                    "plan",
                    "made for strides that tensor maps describe and a positive softmax_scale",
                    "one made for a problem of the same shape, strides and scale",
                )
            })?;
        let shape = problem.shape();
        let pairs = shape.batch * (shape.num_heads / heads_per_tile);
        let encode = |what| encode_tensor_map(&self.context, what);
        Ok(HopperParameters {
            q: encode(&boxes.q.0)?,
            k: encode(&boxes.k.0)?,
            v: encode(&boxes.v.0)?,
            out: encode(&boxes.out.0)?,
            counter,
            num_tiles: pairs as u32 * planned.cut.num_row_tiles,
            q_batch_rows: boxes.q.1,
            k_batch_rows: boxes.k.1,
            v_batch_rows: boxes.v.1,
            out_batch_rows: boxes.out.1,
            ..HopperParameters::default()
        })
    }

    /// Loads the kernels of a plan.
    fn load(&self, planned: &Planned, launch: &StreamUse<'_, Context>) -> Result<()> {
        planned.kernels().try_for_each(|kernel| self.load_kernel(kernel, launch))
    }

    fn load_kernel(&self, kernel: &PlannedKernel, launch: &StreamUse<'_, Context>) -> Result<()> {
        if kernel.module.get().is_some() {
            return Ok(());
        }
        launch.check_may_allocate("the first launch of a plan")?;
        let shared = kernel.launch.shared_memory_bytes;
        let module = Module::load(&self.context, &kernel.kernel.image, kernel.entry, shared)?;
        kernel.module.get_or_init(|| Arc::new(module));
        Ok(())
    }
}

/// Where a launch keeps parts of what it computes.
#[derive(Clone, Copy, Default)]
struct Workspace {
    partials: u64,
    counters: u64,
}

/// The workspace of a plan on its stream.
fn workspace(
    planned: &Planned,
    state: &mut StreamState<Context>,
    launch: &StreamUse<'_, Context>,
) -> Result<Workspace> {
    let mut workspace = Workspace::default();
    if planned.workspace_bytes() > 0 {
        workspace.partials = state.workspace(planned.workspace_bytes(), launch)?;
    }
    if planned.workspace.counters > 0 {
        workspace.counters = state.part_counters(planned.workspace.counters, launch)?;
    }
    Ok(workspace)
}

/// Enqueues the kernels of a plan, all of them loaded.
///
/// # Safety
/// - The tensors of `problem` are valid until the stream has passed the kernels, and used by nothing else in a way
///   that conflicts.
/// - `workspace` has the bytes that the plan asks for, and only work of this stream uses it.
/// - `hopper` is given iff the forward kernel is Hopper's, and made for this problem; only work of this stream uses its
///   counter.
unsafe fn enqueue(
    planned: &Planned,
    problem: &AttentionProblem<'_>,
    functors: &FunctorSpec<'_>,
    workspace: Workspace,
    hopper: Option<&HopperParameters>,
    stream: &Stream,
) -> Result<()> {
    let mut parameters = parameters::attention(problem, &planned.cut);
    parameters.partial_out = DeviceAddress(workspace.partials);
    parameters.partial_lse = DeviceAddress(workspace.partials + planned.workspace.partial_out as u64);
    parameters.counters = DeviceAddress(workspace.counters);
    let arguments =
        [bytemuck::bytes_of(&parameters), &functors.parameters, hopper.map_or(&[], bytemuck::bytes_of)];
    let arguments = &arguments[..if hopper.is_some() { 3 } else { 2 }];
    // SAFETY: the kernel's parameters are this struct, the functors' bytes and Hopper's own; what they address is the
    // caller's duty.
    unsafe { planned.forward.enqueue(arguments, stream) }?;
    if let Some(combine) = &planned.combine {
        // SAFETY: as above; this kernel's only parameter is the struct.
        unsafe { combine.enqueue(&arguments[..1], stream) }?;
    }
    if let Some((short, cut)) = &planned.short {
        cut.apply(&mut parameters);
        let arguments = [bytemuck::bytes_of(&parameters), &functors.parameters];
        // SAFETY: as for the first kernel; this one writes other rows.
        unsafe { short.enqueue(&arguments, stream) }?;
    }
    Ok(())
}
