//! From a plan and a problem to work on a stream.
//!
//! A launch allocates, loads and copies nothing once its plan has been launched on the stream before, or prepared; it
//! never waits and never reads device memory.

use std::sync::Arc;

use bytemuck::NoUninit;
use omniflash_core::lower::FunctorSpec;
use omniflash_core::{AttentionProblem, Result, Stream};
use omniflash_device::parameters::{AttentionParameters, DeviceAddress};

use crate::driver::Driver;
use crate::packing;
use crate::parameters;
use crate::planner::{Planned, Planner};
use crate::stream_state::{StreamState, StreamStates, StreamUse, lock};
use crate::vendor::{KernelInstance as _, Vendor};

/// What launches of one backend share.
#[derive(Debug)]
pub(crate) struct Launcher<V: Vendor> {
    driver: Arc<V::Driver>,
    states: Arc<StreamStates<V::Driver>>,
}

impl<V: Vendor> Launcher<V> {
    pub(crate) fn new(driver: Arc<V::Driver>) -> Self {
        Launcher { driver, states: Arc::default() }
    }

    pub(crate) fn driver(&self) -> &Arc<V::Driver> {
        &self.driver
    }

    pub(crate) fn states(&self) -> &Arc<StreamStates<V::Driver>> {
        &self.states
    }

    /// Loads, allocates and copies what launches of the plan on the stream will use.
    pub(crate) fn prepare(
        &self,
        planner: &Planner<V>,
        planned: &Planned<V>,
        problem: &AttentionProblem<'_>,
        stream: &Stream,
    ) -> Result<()> {
        let mut functors = planner.functors(problem)?;
        planned.key.check(problem, &functors)?;
        let entered = self.driver.enter()?;
        let launch = StreamUse::new(&self.driver, stream, &entered)?;
        planned.kernels().try_for_each(|kernel| kernel.load(&launch))?;
        let state = self.states.of(&launch)?;
        let mut state = lock(&state);
        state.set_tables(problem, &mut functors, &launch)?;
        Kept::of(planned, &mut state, &launch).map(drop)
    }

    /// Enqueues the kernels of a plan.
    ///
    /// # Safety
    /// Those of [`Backend::launch`](omniflash_core::Backend::launch).
    pub(crate) unsafe fn launch(
        &self,
        planner: &Planner<V>,
        planned: &Planned<V>,
        problem: &AttentionProblem<'_>,
        stream: &Stream,
    ) -> Result<()> {
        let mut functors = planner.functors(problem)?;
        planned.key.check(problem, &functors)?;
        // Once for all that follows.
        let entered = self.driver.enter()?;
        let needs_state = planned.workspace.partial_bytes() > 0
            || planned.instance.counts_tiles()
            || !functors.tables.is_empty()
            || !functors.packed.is_empty();
        if !needs_state && planned.is_loaded() {
            // SAFETY: the caller's duties, for a launch that uses the problem's memory only.
            return unsafe {
                self.enqueue(planned, problem, &mut functors, Kept::default(), stream, &entered)
            };
        }
        let launch = StreamUse::new(&self.driver, stream, &entered)?;
        planned.kernels().try_for_each(|kernel| kernel.load(&launch))?;
        let state = self.states.of(&launch)?;
        // Held until all kernels are enqueued: the next launch on this stream must not come between them, since it
        // uses the same workspace.
        let mut state = lock(&state);
        state.set_tables(problem, &mut functors, &launch)?;
        let kept = Kept::of(planned, &mut state, &launch)?;
        // SAFETY: the caller's duties; the workspace is as large as the plan says, and used in the stream's order, as
        // is the counter.
        unsafe { self.enqueue(planned, problem, &mut functors, kept, stream, &entered) }
    }

    /// Enqueues the kernels of a plan, all of them loaded.
    ///
    /// # Safety
    /// - The tensors of `problem` are valid until the stream has passed the kernels, and used by nothing else in a way
    ///   that conflicts.
    /// - `kept` is what the plan asks for, and only work of this stream uses it.
    unsafe fn enqueue(
        &self,
        planned: &Planned<V>,
        problem: &AttentionProblem<'_>,
        functors: &mut FunctorSpec<'_>,
        kept: Kept,
        stream: &Stream,
        entered: &<V::Driver as Driver>::Entered<'_>,
    ) -> Result<()> {
        let mut parameters = parameters::attention(problem, &planned.cut);
        parameters.partial_out = DeviceAddress(kept.partials);
        parameters.partial_lse = DeviceAddress(kept.partials + planned.workspace.partial_out as u64);
        parameters.counters = DeviceAddress(kept.part_counters);
        // SAFETY: the caller's duties; packed masks have a place of their own.
        unsafe { pack(planned, functors, &parameters, kept.packed, stream, entered) }?;
        let beside = V::beside(&self.driver, &planned.instance, &planned.cut, problem, kept.tile_counter)?;
        let arguments = Arguments::new(&parameters, functors, beside.as_ref());
        // SAFETY: the kernel's parameters are this struct, the functors' bytes and what it takes beside; what they
        // address is the caller's duty.
        unsafe { planned.forward.enqueue(arguments.of_kernel(), stream, entered) }?;
        if let Some(combine) = &planned.combine {
            // SAFETY: as above; this kernel's only parameter is the struct.
            unsafe { combine.enqueue(&arguments.of_kernel()[..1], stream, entered) }?;
        }
        if let Some(short) = &planned.short {
            short.cut.apply(&mut parameters);
            let beside = V::beside(&self.driver, &short.instance, &short.cut, problem, None)?;
            let arguments = Arguments::new(&parameters, functors, beside.as_ref());
            // SAFETY: as for the first kernel; this one writes other rows.
            unsafe { short.kernel.enqueue(arguments.of_kernel(), stream, entered) }?;
        }
        Ok(())
    }
}

/// The bytes of a kernel's parameters.
struct Arguments<'a> {
    all: [&'a [u8]; 3],
    count: usize,
}

impl<'a> Arguments<'a> {
    fn new<B: NoUninit>(
        parameters: &'a AttentionParameters,
        functors: &'a FunctorSpec<'_>,
        beside: Option<&'a B>,
    ) -> Self {
        let all = [
            bytemuck::bytes_of(parameters),
            functors.parameters.as_slice(),
            beside.map_or(&[], bytemuck::bytes_of),
        ];
        Arguments { all, count: if beside.is_some() { 3 } else { 2 } }
    }

    fn of_kernel(&self) -> &[&'a [u8]] {
        &self.all[..self.count]
    }
}

/// Packs the mask tensors of a launch from `address` on, and names them in the functors' parameters.
///
/// # Safety
/// Those of [`Launcher::enqueue`]; from `address` on there is room for all of them.
unsafe fn pack<V: Vendor>(
    planned: &Planned<V>,
    functors: &mut FunctorSpec<'_>,
    parameters: &AttentionParameters,
    mut address: u64,
    stream: &Stream,
    entered: &<V::Driver as Driver>::Entered<'_>,
) -> Result<()> {
    for (slot, (packer, packing)) in planned.packers.iter().zip(&planned.key.packings).enumerate() {
        let packed = packing::parameters(&functors.packed[slot], address);
        let arguments = [bytemuck::bytes_of(parameters), bytemuck::bytes_of(&packed)];
        // SAFETY: the kernel's parameters are these structs; what they address is the caller's duty.
        unsafe { packer.enqueue(&arguments, stream, entered) }?;
        functors.set_packed(slot, address);
        address += packing.bytes() as u64;
    }
    Ok(())
}

/// What a launch uses of what is kept for its stream: addresses, 0 where it needs none.
#[derive(Clone, Copy, Default)]
struct Kept {
    packed: u64,
    partials: u64,
    part_counters: u64,
    tile_counter: Option<u64>,
}

impl Kept {
    fn of<V: Vendor>(
        planned: &Planned<V>,
        state: &mut StreamState<V::Driver>,
        launch: &StreamUse<'_, V::Driver>,
    ) -> Result<Kept> {
        let mut kept = Kept::default();
        if planned.packed_bytes() > 0 {
            kept.packed = state.packed(planned.packed_bytes(), launch)?;
        }
        if planned.workspace.partial_bytes() > 0 {
            kept.partials = state.workspace(planned.workspace.partial_bytes(), launch)?;
        }
        if planned.workspace.counters > 0 {
            kept.part_counters = state.part_counters(planned.workspace.counters, launch)?;
        }
        if planned.instance.counts_tiles() {
            kept.tile_counter = Some(state.counter(launch)?);
        }
        Ok(kept)
    }
}
