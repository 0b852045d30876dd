//! The backend: one device behind the trait.

use std::sync::Arc;
use std::time::Duration;

use omniflash_core::measure::Peaks;
use omniflash_core::{
    AttentionPlan, AttentionProblem, Backend, BackendInfo, Buffer, DeviceId, Error, KvAppend, Result, Stream,
    Support,
};
use omniflash_gpu::check::{check_room, check_table_report};
use omniflash_gpu::{Launch, memory, parameters, stream};
use omniflash_kernel_store::KernelStore;
use omniflash_kernels_cuda::verify_page_table_launch;

use crate::driver::{Context, DeviceMemory, Event, Graph, Module};
use crate::kernel_store::kernel_store;
use crate::kv_append::AppendKernels;
use crate::launch::Launcher;
use crate::plan::arch;
use crate::planner::{Planned, Planner};
use crate::probe::{self, Absent, DeviceFacts};

/// One NVIDIA GPU.
///
/// Kernels come from the [kernel store](KernelStore); a plan that needs one that is not there yet compiles it. The
/// first launch of a plan on a stream loads its kernels and allocates its workspace; later ones allocate nothing,
/// wait for nothing, and can be captured in a graph.
#[derive(Debug)]
pub struct CudaBackend {
    info: BackendInfo,
    planner: Planner,
    launcher: Launcher,
    append: AppendKernels,
}

/// The GPUs of this machine, by ordinal, sharing one kernel store.
///
/// # Errors
/// [`Absent`] says why there is none; a device that cannot be used is left out with a warning.
pub fn discover() -> Result<Vec<Arc<dyn Backend>>, Absent> {
    let backends = CudaBackend::discover()?;
    Ok(backends.into_iter().map(|backend| Arc::new(backend) as Arc<dyn Backend>).collect())
}

impl CudaBackend {
    /// The GPUs of this machine, by ordinal, sharing one kernel store.
    ///
    /// # Errors
    /// As [`discover`].
    pub fn discover() -> Result<Vec<Self>, Absent> {
        Ok(CudaBackend::of_probe(probe::probe()?, &Arc::new(kernel_store())))
    }

    pub(crate) fn of_probe(probe: probe::Probe, store: &Arc<KernelStore>) -> Vec<Self> {
        let mut backends = Vec::new();
        for facts in probe.devices {
            let ordinal = facts.ordinal;
            match Context::new(Arc::clone(&probe.api), facts) {
                Ok(context) => backends.push(CudaBackend::new(context, Arc::clone(store))),
                Err(error) => tracing::warn!(ordinal, %error, "a GPU cannot be used"),
            }
        }
        backends
    }

    fn new(context: Arc<Context>, store: Arc<KernelStore>) -> Self {
        let info = info(context.facts());
        let planner = Planner::new(info.name.clone(), context.facts().clone(), store);
        CudaBackend { info, planner, launcher: Launcher::new(context), append: AppendKernels::default() }
    }

    /// What the driver says of the device.
    pub fn facts(&self) -> &DeviceFacts {
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
        self.append.prepare(&self.planner, self.context(), append, stream)
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
        let report = DeviceMemory::new(self.context(), 16, stream)?;
        let Some(parameters) = parameters::verify(problem, report.address()) else {
            return Ok(());
        };
        if parameters.batch == 0 {
            return Ok(());
        }
        report.write(&[0xff; 16], stream)?;
        let (kernel, entry) = self.planner.verify_kernel()?;
        let launch = verify_page_table_launch(&parameters);
        let module = Module::load(self.context(), &kernel.image, entry, launch.shared_memory_bytes)?;
        let launch = Launch {
            grid: launch.grid,
            block_threads: launch.block_threads,
            shared_memory_bytes: launch.shared_memory_bytes,
        };
        // SAFETY: the kernel's only parameter is this struct; the tables are the caller's duty, the report is ours.
        unsafe { module.launch(&launch, &[bytemuck::bytes_of(&parameters)], stream) }?;
        let mut answer = [u64::MAX; 2];
        let bytes = bytemuck::must_cast_slice_mut(&mut answer);
        // SAFETY: the report has 16 bytes; the copy waits for the kernel.
        unsafe { memory::copy_to_host(&**self.context(), report.address(), bytes, stream) }?;
        check_table_report(answer, problem)
    }

    /// A mark in a stream, for timing.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub fn event(&self) -> Result<Event> {
        Event::new(self.context())
    }

    /// Captures what `enqueue` launches on the stream in a graph, instead of doing it. What it launches must have
    /// been launched on this stream before, or [prepared](CudaBackend::prepare).
    ///
    /// # Errors
    /// Those of `enqueue`, [`Error::Driver`].
    pub fn capture(&self, stream: &Stream, enqueue: impl FnOnce() -> Result<()>) -> Result<Graph> {
        self.check_stream(stream)?;
        Graph::capture(self.context(), stream, enqueue)
    }

    /// Registers of a thread, bytes of local memory of a thread, and blocks that fit on a multiprocessor, of the main
    /// kernel of a plan; `None` for a plan without work.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub fn occupancy(&self, plan: &AttentionPlan) -> Result<Option<(usize, usize, usize)>> {
        let Some(planned) = detail(plan)? else { return Ok(None) };
        let forward = &planned.forward;
        let shared = forward.launch.shared_memory_bytes;
        let module = Module::load(self.context(), &forward.kernel.image, forward.entry, shared)?;
        let (registers, local) = module.registers_and_local_bytes()?;
        Ok(Some((registers, local, module.blocks_per_multiprocessor(&forward.launch)?)))
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        self.launcher.context()
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
    ) -> Result<Option<&'p Planned>> {
        self.check_device(problem)?;
        if problem.shape().is_empty() { Ok(None) } else { detail(plan) }
    }
}

fn detail(plan: &AttentionPlan) -> Result<Option<&Planned>> {
    match &plan.detail {
        None => Ok(None),
        Some(detail) => match detail.downcast_ref::<Planned>() {
            Some(planned) => Ok(Some(planned)),
            None => Err(Error::value("plan", &plan.kernel_id, "a plan of this backend")),
        },
    }
}

impl Backend for CudaBackend {
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
        let memory = DeviceMemory::new(self.context(), bytes, stream)?;
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
        unsafe { memory::copy_to_device(&**self.context(), source, address, stream) }
    }

    fn copy_to_host(&self, source: &Buffer, target: &mut [u8], stream: &Stream) -> Result<()> {
        self.check_stream(stream)?;
        self.check_memory("source", source.device())?;
        check_room("source", source.bytes(), target.len())?;
        let address = source.as_ptr().expose_provenance() as u64;
        // SAFETY: the buffer is device memory at least as long as the target.
        unsafe { memory::copy_to_host(&**self.context(), address, target, stream) }
    }

    fn stream(&self) -> Result<Stream> {
        stream::owned(self.context(), self.info.device, self.launcher.states())
    }

    fn synchronize(&self, stream: &Stream) -> Result<()> {
        self.check_stream(stream)?;
        stream::synchronize(&**self.context(), stream)
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
        unsafe { self.append.launch(&self.planner, self.context(), append, stream) }
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

    fn measure_peaks(&self, stream: &Stream, budget: Duration) -> Result<Peaks> {
        self.check_stream(stream)?;
        self.peaks(stream, budget)
    }
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
