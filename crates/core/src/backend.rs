//! The one trait that every backend implements.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::AttentionConfig;
use crate::device::{Buffer, DeviceId, Stream};
use crate::error::{Error, Result};
use crate::kv_append::KvAppend;
use crate::measure::Peaks;
use crate::plan::AttentionPlan;
use crate::problem::AttentionProblem;

/// A way to compute attention on a device, chosen at run time; use it as `&dyn Backend` or `Arc<dyn Backend>`.
///
/// A backend never validates shapes: an [`AttentionProblem`] is valid by existing. It says through
/// [`supports`](Backend::supports) what it lacks, and never silently hands work to another backend.
pub trait Backend: Send + Sync + fmt::Debug {
    /// Who computes, and where.
    fn info(&self) -> &BackendInfo;

    /// Whether this backend can compute the problem, decided from sizes, dtypes, mask and configuration.
    fn supports(&self, problem: &AttentionProblem<'_>) -> Support;

    /// Decides how to compute the problem; calls no driver and reads no tensor.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when [`supports`](Backend::supports) says no, [`Error::Value`] for an impossible
    /// configuration, [`Error::NoKernel`] when no kernel can be had.
    fn plan(&self, problem: &AttentionProblem<'_>) -> Result<AttentionPlan>;

    /// Zeroed memory on the device.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] or [`Error::Driver`].
    fn alloc(&self, bytes: usize, stream: &Stream) -> Result<Buffer>;

    /// Copies host bytes to the start of a buffer; the source may be reused when the call returns.
    ///
    /// # Errors
    /// [`Error::Shape`] when the buffer is smaller than the source, [`Error::Driver`].
    fn copy_to_device(&self, source: &[u8], target: &mut Buffer, stream: &Stream) -> Result<()>;

    /// Copies the start of a buffer to the host, after all work on the stream; complete when the call returns.
    ///
    /// # Errors
    /// [`Error::Shape`] when the buffer is smaller than the target, [`Error::Driver`].
    fn copy_to_host(&self, source: &Buffer, target: &mut [u8], stream: &Stream) -> Result<()>;

    /// A new stream of the device.
    ///
    /// # Errors
    /// [`Error::Driver`].
    fn stream(&self) -> Result<Stream>;

    /// Waits until all work on the stream is done.
    ///
    /// # Errors
    /// [`Error::Driver`], also for faults of earlier launches.
    fn synchronize(&self, stream: &Stream) -> Result<()>;

    /// Enqueues the computation. On a GPU: allocates nothing, waits for nothing and reads no device memory on the
    /// host, so it can be captured in a graph.
    ///
    /// # Errors
    /// [`Error::Value`] for lengths, offsets and ids that a host backend finds out of range, [`Error::Driver`].
    ///
    /// # Safety
    /// - `plan` was made by this backend for a problem of the same kind.
    /// - All tensors of `problem` stay allocated until the stream has passed this launch.
    /// - Until then nothing writes what it reads, and nothing else reads or writes what it writes.
    unsafe fn launch(
        &self,
        plan: &AttentionPlan,
        problem: &AttentionProblem<'_>,
        stream: &Stream,
    ) -> Result<()>;

    /// Enqueues the writing of new keys and values into a cache. On a GPU it can be captured, as
    /// [`launch`](Backend::launch) can.
    ///
    /// # Errors
    /// [`Error::Value`] for lengths, positions and ids that a host backend finds out of range, before anything is
    /// written (a GPU leaves such rows out); [`Error::Unsupported`] where a backend lacks it, [`Error::NoKernel`],
    /// [`Error::Driver`].
    ///
    /// # Safety
    /// - All tensors of `append` stay allocated until the stream has passed this work.
    /// - Until then nothing writes what it reads, and nothing else reads or writes the positions that it writes.
    unsafe fn kv_append(&self, append: &KvAppend<'_>, _stream: &Stream) -> Result<()> {
        let shape = append.shape();
        Err(Error::unsupported(
            &self.info().name,
            format!("kv_append of {} heads of {}", shape.num_kv_heads, shape.dtype),
            "it has no kernel for it",
            "write the rows by the means of the library that owns the cache",
        ))
    }

    /// Milliseconds of each of `repeats` launches by the device's own clock, its caches displaced before each; waits for
    /// them. `None`, as here, where the device has no clock of its own: then the host's is as good.
    ///
    /// # Errors
    /// Those of [`launch`](Backend::launch), [`Error::OutOfMemory`].
    ///
    /// # Safety
    /// - The duties of [`launch`](Backend::launch).
    unsafe fn time_launches(
        &self,
        _plan: &AttentionPlan,
        _problem: &AttentionProblem<'_>,
        _stream: &Stream,
        _repeats: usize,
    ) -> Result<Option<Vec<f64>>> {
        Ok(None)
    }

    /// Configurations of a problem that are worth measuring against each other, the plan's own choice (nothing fixed)
    /// first; compiles nothing. Only that one, as here, where there is nothing to choose from.
    ///
    /// # Errors
    /// Those of [`plan`](Backend::plan) but [`Error::NoKernel`].
    fn alternatives(&self, _problem: &AttentionProblem<'_>) -> Result<Vec<AttentionConfig>> {
        Ok(vec![AttentionConfig::default()])
    }

    /// Keeps one of [`alternatives`](Backend::alternatives) for problems of this kind: from now on plans take it where
    /// the caller fixes nothing, in this process and in later ones on such a device. Answers with the file that keeps it.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where there is nothing to choose from or no place to keep it, those of
    /// [`plan`](Backend::plan) for an impossible configuration.
    fn keep_choice(&self, _problem: &AttentionProblem<'_>, _config: &AttentionConfig) -> Result<PathBuf> {
        Err(Error::unsupported(
            &self.info().name,
            "keeping a configuration",
            "its plans have no alternatives",
            "give the configuration with each call (AttentionOptions::config)",
        ))
    }

    /// Measures what the device can do at most, in about `budget` for each figure; a backend that measures nothing, as
    /// here, knows no peak.
    ///
    /// # Errors
    /// [`Error::NoKernel`], [`Error::OutOfMemory`], [`Error::Driver`].
    fn measure_peaks(&self, _stream: &Stream, _budget: Duration) -> Result<Peaks> {
        Ok(Peaks::default())
    }
}

/// Plans, launches and waits.
///
/// # Errors
/// Those of [`Backend::plan`], [`Backend::launch`] and [`Backend::synchronize`].
pub fn run(backend: &dyn Backend, problem: &AttentionProblem<'_>, stream: &Stream) -> Result<()> {
    check_device(backend, problem)?;
    let plan = backend.plan(problem)?;
    // SAFETY: the plan is this backend's for this problem; the problem borrows its tensors, the outputs exclusively,
    // and they stay borrowed until the stream is done, below.
    let launched = unsafe { backend.launch(&plan, problem, stream) };
    // Even after an error: part of the launch may be under way.
    let synchronized = backend.synchronize(stream);
    launched.and(synchronized)
}

/// Writes new keys and values into a cache and waits.
///
/// # Errors
/// Those of [`Backend::kv_append`] and [`Backend::synchronize`], [`Error::Device`] for tensors elsewhere.
pub fn run_kv_append(backend: &dyn Backend, append: &KvAppend<'_>, stream: &Stream) -> Result<()> {
    check_append_device(backend, append)?;
    // SAFETY: `append` borrows its tensors, the cache exclusively, and they stay borrowed until the stream is done,
    // below.
    let enqueued = unsafe { backend.kv_append(append, stream) };
    let synchronized = backend.synchronize(stream);
    enqueued.and(synchronized)
}

/// Checks that the tensors of an append are in the memory of a backend.
///
/// # Errors
/// [`Error::Device`].
pub fn check_append_device(backend: &dyn Backend, append: &KvAppend<'_>) -> Result<()> {
    check_is_of("new_k", append.shape().device, backend)
}

/// Checks that a problem's tensors are in the memory of a backend.
///
/// # Errors
/// [`Error::Device`].
pub fn check_device(backend: &dyn Backend, problem: &AttentionProblem<'_>) -> Result<()> {
    check_is_of("q", problem.shape().device, backend)
}

fn check_is_of(argument: &str, found: DeviceId, backend: &dyn Backend) -> Result<()> {
    let expected = backend.info().device;
    if found == expected {
        return Ok(());
    }
    Err(Error::Device {
        argument: argument.into(),
        found: found.to_string(),
        expected: format!("{expected}, the memory of backend {}", backend.info().name),
    })
}

/// Who computes, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendInfo {
    /// The backend's name, by which a registry finds it: `cpu`, `reference`, `cuda:0`, `hip:1`.
    pub name: String,
    /// Whose memory its tensors are in.
    pub device: DeviceId,
    /// The device's maker.
    pub vendor: String,
    /// The device's name.
    pub device_name: String,
    /// The instruction set that kernels are chosen by: `avx512-bf16`, `sm_90a`, `gfx942`.
    pub arch: String,
    /// Memory of the device in bytes; 0 where it is not known.
    pub memory_bytes: u64,
    /// Units that work in parallel: threads, streaming multiprocessors, compute units.
    pub units: usize,
    /// The driver's version, where there is a driver.
    pub driver: Option<String>,
}

/// Whether a backend can compute a problem.
#[derive(Clone, Debug, PartialEq)]
pub enum Support {
    /// It can.
    Yes,
    /// It can, but not at the speed of its best kernels; says why.
    Slow(String),
    /// It cannot: an [`Error::Unsupported`] that names the nearest thing that works.
    No(Error),
}

impl Support {
    /// An error iff unsupported.
    ///
    /// # Errors
    /// The error of [`Support::No`].
    pub fn into_result(self) -> Result<()> {
        match self {
            Support::Yes | Support::Slow(_) => Ok(()),
            Support::No(error) => Err(error),
        }
    }
}

/// Copies into host memory: the shared part of backends whose device is the CPU.
///
/// # Errors
/// [`Error::Shape`] when the target is too small, [`Error::Device`] when it is not host memory.
pub fn copy_to_host_buffer(source: &[u8], target: &mut Buffer) -> Result<()> {
    let (bytes, device) = (target.bytes(), target.device());
    let memory = target.as_host_bytes_mut().ok_or_else(|| not_host("target", device))?;
    memory
        .get_mut(..source.len())
        .ok_or_else(|| Error::shape("target", format!("{bytes} bytes, expected {}", source.len())))?
        .copy_from_slice(source);
    Ok(())
}

/// Copies out of host memory: the shared part of backends whose device is the CPU.
///
/// # Errors
/// [`Error::Shape`] when the source is too small, [`Error::Device`] when it is not host memory.
pub fn copy_from_host_buffer(source: &Buffer, target: &mut [u8]) -> Result<()> {
    let memory = source.as_host_bytes().ok_or_else(|| not_host("source", source.device()))?;
    let memory = memory.get(..target.len()).ok_or_else(|| {
        Error::shape("source", format!("{} bytes, expected {}", source.bytes(), target.len()))
    })?;
    target.copy_from_slice(memory);
    Ok(())
}

fn not_host(argument: &str, device: DeviceId) -> Error {
    Error::Device {
        argument: argument.into(),
        found: device.to_string(),
        expected: DeviceId::Cpu.to_string(),
    }
}
