//! From a plan and a problem to work on a stream.
//!
//! A launch allocates, loads and copies nothing once its plan has been launched on the stream before, or
//! [prepared](crate::HipBackend::prepare); it never waits and never reads device memory.

use std::sync::Arc;

use omniflash_core::lower::FunctorSpec;
use omniflash_core::{AttentionProblem, Result, Stream};
use omniflash_device::parameters::DeviceAddress;
use omniflash_gpu::{StreamStates, StreamUse, lock, parameters};

use crate::driver::{Context, Module};
use crate::planner::{Planned, PlannedKernel, Planner};

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
        if planned.combine.is_some() {
            state.workspace(planned.workspace_bytes.0 + planned.workspace_bytes.1, &launch)?;
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
        if planned.combine.is_none() && functors.tables.is_empty() {
            let forward = match planned.forward.module.get() {
                Some(module) => module,
                None => self.load(planned, &StreamUse::new(&self.context, stream)?)?.0,
            };
            // SAFETY: the caller's duties, for a launch that uses the problem's memory only.
            return unsafe { enqueue(planned, (forward, None), problem, &functors, 0, stream) };
        }
        let launch = StreamUse::new(&self.context, stream)?;
        let modules = self.load(planned, &launch)?;
        let state = self.states.of(&launch)?;
        // Held until all kernels are enqueued: the next launch on this stream must not come between them, since it
        // uses the same workspace.
        let mut state = lock(&state);
        state.set_tables(problem, &mut functors, &launch)?;
        let workspace = match planned.combine {
            Some(_) => state.workspace(planned.workspace_bytes.0 + planned.workspace_bytes.1, &launch)?,
            None => 0,
        };
        // SAFETY: the caller's duties; the workspace is as large as the plan says, and used in the stream's order.
        unsafe { enqueue(planned, modules, problem, &functors, workspace, stream) }
    }

    /// The kernels of a plan, loaded.
    fn load<'p>(
        &self,
        planned: &'p Planned,
        launch: &StreamUse<'_, Context>,
    ) -> Result<(&'p Arc<Module>, Option<&'p Arc<Module>>)> {
        let forward = self.loaded(&planned.forward, launch)?;
        let combine = planned.combine.as_ref().map(|kernel| self.loaded(kernel, launch)).transpose()?;
        Ok((forward, combine))
    }

    fn loaded<'p>(
        &self,
        kernel: &'p PlannedKernel,
        launch: &StreamUse<'_, Context>,
    ) -> Result<&'p Arc<Module>> {
        if let Some(module) = kernel.module.get() {
            return Ok(module);
        }
        launch.check_may_allocate("the first launch of a plan")?;
        let shared = kernel.launch.shared_memory_bytes;
        let module = Module::load(&self.context, &kernel.kernel.image, kernel.entry, shared)?;
        Ok(kernel.module.get_or_init(|| Arc::new(module)))
    }
}

/// Enqueues the forward kernel, and the one that joins partitions.
///
/// # Safety
/// - The tensors of `problem` are valid until the stream has passed the kernels, and used by nothing else in a way
///   that conflicts.
/// - `workspace` has the bytes that the plan asks for, and only work of this stream uses it.
unsafe fn enqueue(
    planned: &Planned,
    (forward, combine): (&Arc<Module>, Option<&Arc<Module>>),
    problem: &AttentionProblem<'_>,
    functors: &FunctorSpec<'_>,
    workspace: u64,
    stream: &Stream,
) -> Result<()> {
    let mut parameters = parameters::attention(problem, &planned.cut);
    parameters.partial_out = DeviceAddress(workspace);
    parameters.partial_lse = DeviceAddress(workspace + planned.workspace_bytes.0 as u64);
    let bytes = bytemuck::bytes_of(&parameters);
    // SAFETY: the kernel's parameters are this struct and the functors' bytes; what they address is the caller's duty.
    unsafe { forward.launch(&planned.forward.launch, &[bytes, &functors.parameters], stream) }?;
    if let (Some(module), Some(kernel)) = (combine, &planned.combine) {
        // SAFETY: as above; this kernel's only parameter is the struct.
        unsafe { module.launch(&kernel.launch, &[bytes], stream) }?;
    }
    Ok(())
}
