//! From a plan and a problem to work on a stream.
//!
//! A launch allocates, loads and copies nothing once its plan has been launched on the stream before, or
//! [prepared](crate::CudaBackend::prepare); it never waits and never reads device memory.

pub(crate) mod parameters;

use std::sync::Arc;

use omniflash_core::lower::FunctorSpec;
use omniflash_core::{AttentionProblem, Result, Stream};
use omniflash_device::parameters::DeviceAddress;

use crate::driver::{Context, Module};
use crate::planner::{Planned, PlannedKernel, Planner};
use crate::stream_state::{StreamState, StreamStates, StreamUse, lock};

/// What launches of one backend share.
#[derive(Debug)]
pub(crate) struct Launcher {
    context: Arc<Context>,
    states: Arc<StreamStates>,
}

impl Launcher {
    pub(crate) fn new(context: Arc<Context>) -> Self {
        Launcher { context, states: Arc::default() }
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    pub(crate) fn states(&self) -> &Arc<StreamStates> {
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
        planned.check(problem, &functors)?;
        let launch = StreamUse::new(&self.context, stream)?;
        self.load(planned, &launch)?;
        let state = self.states.of(&launch)?;
        let mut state = lock(&state);
        state.set_tables(problem, &mut functors, &launch)?;
        workspace(planned, &mut state, &launch)?;
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
        planned.check(problem, &functors)?;
        if planned.workspace_bytes() == 0 && functors.tables.is_empty() && planned.is_loaded() {
            // SAFETY: the caller's duties, for a launch that uses the problem's memory only.
            return unsafe { enqueue(planned, problem, &functors, Workspace::default(), stream) };
        }
        let launch = StreamUse::new(&self.context, stream)?;
        self.load(planned, &launch)?;
        let state = self.states.of(&launch)?;
        // Held until all kernels are enqueued: the next launch on this stream must not come between them, since it
        // uses the same workspace.
        let mut state = lock(&state);
        state.set_tables(problem, &mut functors, &launch)?;
        let workspace = workspace(planned, &mut state, &launch)?;
        // SAFETY: the caller's duties; the workspace is as large as the plan says, and used in the stream's order.
        unsafe { enqueue(planned, problem, &functors, workspace, stream) }
    }

    /// Loads the kernels of a plan.
    fn load(&self, planned: &Planned, launch: &StreamUse<'_>) -> Result<()> {
        planned.kernels().try_for_each(|kernel| self.load_kernel(kernel, launch))
    }

    fn load_kernel(&self, kernel: &PlannedKernel, launch: &StreamUse<'_>) -> Result<()> {
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
fn workspace(planned: &Planned, state: &mut StreamState, launch: &StreamUse<'_>) -> Result<Workspace> {
    let mut workspace = Workspace::default();
    if planned.workspace_bytes() > 0 {
        workspace.partials = state.workspace(planned.workspace_bytes(), launch)?;
    }
    if planned.workspace.counters > 0 {
        workspace.counters = state.counters(planned.workspace.counters, launch)?;
    }
    Ok(workspace)
}

/// Enqueues the kernels of a plan, all of them loaded.
///
/// # Safety
/// - The tensors of `problem` are valid until the stream has passed the kernels, and used by nothing else in a way
///   that conflicts.
/// - `workspace` has the bytes that the plan asks for, and only work of this stream uses it.
unsafe fn enqueue(
    planned: &Planned,
    problem: &AttentionProblem<'_>,
    functors: &FunctorSpec<'_>,
    workspace: Workspace,
    stream: &Stream,
) -> Result<()> {
    let mut parameters = parameters::attention(problem, &planned.cut);
    parameters.partial_out = DeviceAddress(workspace.partials);
    parameters.partial_lse = DeviceAddress(workspace.partials + planned.workspace.partial_out as u64);
    parameters.counters = DeviceAddress(workspace.counters);
    let arguments = [bytemuck::bytes_of(&parameters), &functors.parameters];
    // SAFETY: the kernel's parameters are this struct and the functors' bytes; what they address is the caller's duty.
    unsafe { planned.forward.enqueue(&arguments, stream) }?;
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
