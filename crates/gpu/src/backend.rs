//! The backend: one device behind the trait.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use omniflash_core::measure::Peaks;
use omniflash_core::{
    AttentionConfig, AttentionPlan, AttentionProblem, Backend, BackendInfo, Buffer, DeviceId, Error,
    KvAppend, Result, Stream, Support,
};
use omniflash_kernel_store::{KernelStore, Origin};

use crate::check::{check_room, check_table_report};
use crate::driver::Driver as _;
use crate::event::Event;
use crate::graph::Graph;
use crate::kv_append::AppendKernels;
use crate::launcher::Launcher;
use crate::memory::{self, DeviceMemory};
use crate::parameters;
use crate::planner::{Planned, Planner};
use crate::stream;
use crate::vendor::Vendor;

/// One GPU.
///
/// Kernels come from the [kernel store](KernelStore); a plan that needs one that is not there yet compiles it. The
/// first launch of a plan on a stream loads its kernels and allocates its workspace; later ones allocate nothing,
/// wait for nothing, and can be captured in a graph.
#[derive(Debug)]
pub struct GpuBackend<V: Vendor> {
    info: BackendInfo,
    planner: Planner<V>,
    launcher: Launcher<V>,
    append: AppendKernels<V>,
}

impl<V: Vendor> GpuBackend<V> {
    /// The GPUs of this machine, by ordinal, sharing one kernel store.
    ///
    /// # Errors
    /// Why there is none; a device that cannot be used is left out with a warning.
    pub fn discover() -> Result<Vec<Self>, V::Absent> {
        Ok(Self::of_devices(V::discover(None)?, &Arc::new(V::kernel_store())))
    }

    /// As [`discover`](GpuBackend::discover), with this driver library and these kernels: for tests, and for
    /// programs that bring their own.
    ///
    /// # Errors
    /// As [`discover`](GpuBackend::discover).
    pub fn discover_in(library: &Path, store: &Arc<KernelStore>) -> Result<Vec<Self>, V::Absent> {
        Ok(Self::of_devices(V::discover(Some(&[library.to_path_buf()]))?, store))
    }

    /// The backends of devices that were found.
    pub fn of_devices(devices: Vec<Arc<V::Driver>>, store: &Arc<KernelStore>) -> Vec<Self> {
        devices.into_iter().map(|driver| Self::new(driver, Arc::clone(store))).collect()
    }

    fn new(driver: Arc<V::Driver>, store: Arc<KernelStore>) -> Self {
        let facts = V::facts(&driver).clone();
        let info = V::info(&facts);
        let planner = Planner::new(info.name.clone(), facts, store);
        GpuBackend { info, planner, launcher: Launcher::new(driver), append: AppendKernels::default() }
    }

    /// What the driver says of the device.
    pub fn facts(&self) -> &V::Facts {
        self.planner.facts()
    }

    /// Where kernels come from.
    pub fn kernel_store(&self) -> &KernelStore {
        self.planner.store()
    }

    /// Loads the kernels of a plan and allocates what its launches on the stream will use, so that the first launch
    /// can already be captured.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the stream is being captured already, [`Error::OutOfMemory`], [`Error::Driver`].
    pub fn prepare(
        &self,
        plan: &AttentionPlan,
        problem: &AttentionProblem<'_>,
        stream: &Stream,
    ) -> Result<()> {
        self.check_stream(stream)?;
        match self.planned(plan, problem)? {
            Some(planned) => self.launcher.prepare(&self.planner, planned, problem, stream),
            None => Ok(()),
        }
    }

    /// Loads what [`kv_append`](Backend::kv_append) with such tensors needs, so that the first one can already be
    /// captured.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the stream is being captured already, [`Error::NoKernel`], [`Error::Driver`].
    pub fn prepare_kv_append(&self, append: &KvAppend<'_>, stream: &Stream) -> Result<()> {
        self.check_append(append, stream)?;
        self.append.prepare(&self.planner, self.driver(), append, stream)
    }

    fn check_append(&self, append: &KvAppend<'_>, stream: &Stream) -> Result<()> {
        self.check_memory("new_k", append.shape().device)?;
        self.check_stream(stream)
    }

    /// Checks on the device that every length, page and block id that a launch would use is in range; waits for the
    /// answer. The launch itself trusts them.
    ///
    /// # Errors
    /// [`Error::Value`] naming the first bad entry, [`Error::NoKernel`], [`Error::Driver`].
    ///
    /// # Safety
    /// - The tables and lengths of `problem` are allocated and written as their shapes say.
    pub unsafe fn verify_page_table(&self, problem: &AttentionProblem<'_>, stream: &Stream) -> Result<()> {
        self.check_device(problem)?;
        self.check_stream(stream)?;
        let report = DeviceMemory::new(self.driver(), 16, stream)?;
        let Some(parameters) = parameters::verify(problem, report.address()) else {
            return Ok(());
        };
        if parameters.batch == 0 {
            return Ok(());
        }
        report.write(&[0xff; 16], stream)?;
        let kernel = self.planner.verify_kernel(&parameters)?;
        let module = kernel.module(self.driver())?;
        let entered = self.driver().enter()?;
        // SAFETY: the kernel's only parameter is this struct; the tables are the caller's duty, the report is ours.
        unsafe { module.launch(&kernel.launch, &[bytemuck::bytes_of(&parameters)], stream, &entered) }?;
        drop(entered);
        let mut answer = [u64::MAX; 2];
        let bytes = bytemuck::must_cast_slice_mut(&mut answer);
        // SAFETY: the report has 16 bytes; the copy waits for the kernel.
        unsafe { memory::copy_to_host(&**self.driver(), report.address(), bytes, stream) }?;
        check_table_report(answer, problem)
    }

    /// A mark in a stream, for timing.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub fn event(&self) -> Result<Event<V::Driver>> {
        Event::new(self.driver())
    }

    /// Captures what `enqueue` launches on the stream in a graph, instead of doing it. What it launches must have
    /// been launched on this stream before, or [prepared](GpuBackend::prepare).
    ///
    /// # Errors
    /// Those of `enqueue`, [`Error::Driver`].
    pub fn capture(&self, stream: &Stream, enqueue: impl FnOnce() -> Result<()>) -> Result<Graph<V::Driver>> {
        self.check_stream(stream)?;
        Graph::capture(self.driver(), stream, enqueue)
    }

    /// Registers of a thread, bytes of local memory of a thread, and blocks that fit on a multiprocessor, or compute
    /// unit, of the main kernel of a plan; `None` for a plan without work.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub fn occupancy(&self, plan: &AttentionPlan) -> Result<Option<(usize, usize, usize)>> {
        let Some(planned) = detail::<V>(plan)? else { return Ok(None) };
        let module = planned.forward.module(self.driver())?;
        let (registers, local) = module.registers_and_local_bytes()?;
        Ok(Some((registers, local, module.blocks_per_multiprocessor(&planned.forward.launch)?)))
    }

    /// Where the main kernel of a plan came from; `None` for a plan without work.
    ///
    /// # Errors
    /// [`Error::Value`] for a plan of another backend.
    pub fn origin<'p>(&self, plan: &'p AttentionPlan) -> Result<Option<&'p Origin>> {
        Ok(detail::<V>(plan)?.map(|planned| &planned.forward.kernel.origin))
    }

    pub(crate) fn planner(&self) -> &Planner<V> {
        &self.planner
    }

    pub(crate) fn driver(&self) -> &Arc<V::Driver> {
        self.launcher.driver()
    }

    fn check_stream(&self, stream: &Stream) -> Result<()> {
        self.check_memory("stream", stream.device())
    }

    fn check_device(&self, problem: &AttentionProblem<'_>) -> Result<()> {
        self.check_memory("q", problem.shape().device)
    }

    fn check_memory(&self, argument: &str, found: DeviceId) -> Result<()> {
        if found == self.info.device {
            return Ok(());
        }
        Err(Error::Device {
            argument: argument.into(),
            found: found.to_string(),
            expected: self.info.device.to_string(),
        })
    }

    /// What a plan keeps for launches of a problem; `None` when there is nothing to compute.
    fn planned<'p>(
        &self,
        plan: &'p AttentionPlan,
        problem: &AttentionProblem<'_>,
    ) -> Result<Option<&'p Planned<V>>> {
        self.check_device(problem)?;
        if problem.shape().is_empty() { Ok(None) } else { detail(plan) }
    }
}

fn detail<V: Vendor>(plan: &AttentionPlan) -> Result<Option<&Planned<V>>> {
    match &plan.detail {
        None => Ok(None),
        Some(detail) => match detail.downcast_ref::<Planned<V>>() {
            Some(planned) => Ok(Some(planned)),
            None => Err(Error::value("plan", &plan.kernel_id, "a plan of this backend")),
        },
    }
}

impl<V: Vendor> Backend for GpuBackend<V> {
    fn info(&self) -> &BackendInfo {
        &self.info
    }

    fn supports(&self, problem: &AttentionProblem<'_>) -> Support {
        match self.check_device(problem) {
            Ok(()) => self.planner.supports(problem),
            Err(error) => Support::No(error),
        }
    }

    fn plan(&self, problem: &AttentionProblem<'_>) -> Result<AttentionPlan> {
        self.check_device(problem)?;
        self.planner.plan(problem)
    }

    fn alloc(&self, bytes: usize, stream: &Stream) -> Result<Buffer> {
        self.check_stream(stream)?;
        let memory = DeviceMemory::new(self.driver(), bytes, stream)?;
        memory.zero(stream)?;
        let address = memory.address();
        // SAFETY: the memory is `bytes` long, exclusively the buffer's, and freed with its owner.
        Ok(unsafe { Buffer::from_owner(address, bytes, self.info.device, Box::new(memory)) })
    }

    fn copy_to_device(&self, source: &[u8], target: &mut Buffer, stream: &Stream) -> Result<()> {
        self.check_stream(stream)?;
        self.check_memory("target", target.device())?;
        check_room("target", target.bytes(), source.len())?;
        let address = target.as_ptr().expose_provenance() as u64;
        // SAFETY: the buffer is device memory at least as long as the source, and borrowed exclusively.
        unsafe { memory::copy_to_device(&**self.driver(), source, address, stream) }
    }

    fn copy_to_host(&self, source: &Buffer, target: &mut [u8], stream: &Stream) -> Result<()> {
        self.check_stream(stream)?;
        self.check_memory("source", source.device())?;
        check_room("source", source.bytes(), target.len())?;
        let address = source.as_ptr().expose_provenance() as u64;
        // SAFETY: the buffer is device memory at least as long as the target.
        unsafe { memory::copy_to_host(&**self.driver(), address, target, stream) }
    }

    fn stream(&self) -> Result<Stream> {
        stream::owned(self.driver(), self.info.device, self.launcher.states())
    }

    fn synchronize(&self, stream: &Stream) -> Result<()> {
        self.check_stream(stream)?;
        let _entered = self.driver().enter()?;
        self.driver().synchronize(stream)
    }

    unsafe fn launch(
        &self,
        plan: &AttentionPlan,
        problem: &AttentionProblem<'_>,
        stream: &Stream,
    ) -> Result<()> {
        self.check_stream(stream)?;
        match self.planned(plan, problem)? {
            // SAFETY: the caller's duties are the same.
            Some(planned) => unsafe { self.launcher.launch(&self.planner, planned, problem, stream) },
            None => Ok(()),
        }
    }

    unsafe fn kv_append(&self, append: &KvAppend<'_>, stream: &Stream) -> Result<()> {
        self.check_append(append, stream)?;
        // SAFETY: the caller's duties are the same.
        unsafe { self.append.launch(&self.planner, self.driver(), append, stream) }
    }

    unsafe fn time_launches(
        &self,
        plan: &AttentionPlan,
        problem: &AttentionProblem<'_>,
        stream: &Stream,
        repeats: usize,
    ) -> Result<Option<Vec<f64>>> {
        self.prepare(plan, problem, stream)?;
        // SAFETY: the caller's duties are the same.
        let graph = self.capture(stream, || unsafe { self.launch(plan, problem, stream) })?;
        // SAFETY: the caller keeps the tensors; replays on one stream run one after another.
        self.time(stream, repeats, || unsafe { graph.replay(stream) }).map(Some)
    }

    fn alternatives(&self, problem: &AttentionProblem<'_>) -> Result<Vec<AttentionConfig>> {
        self.check_device(problem)?;
        self.planner.alternatives(problem)
    }

    fn keep_choice(&self, problem: &AttentionProblem<'_>, config: &AttentionConfig) -> Result<PathBuf> {
        self.check_device(problem)?;
        self.planner.keep_choice(&self.info.device_name, problem, config)
    }

    fn measure_peaks(&self, stream: &Stream, budget: Duration) -> Result<Peaks> {
        self.check_stream(stream)?;
        self.peaks(stream, budget)
    }
}
