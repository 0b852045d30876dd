//! The CPU as a [`Backend`].

use std::time::Duration;

use half::{bf16, f16};
use omniflash_core::backend::{copy_from_host_buffer, copy_to_host_buffer};
use omniflash_core::measure::Peaks;
use omniflash_core::{
    AttentionPlan, AttentionProblem, Backend, BackendInfo, Buffer, DType, DeviceId, Error, KvAppend, Result,
    Stream, Support,
};

use crate::isa::Isa;
use crate::plan::{self, Route};
use crate::rows::Sequence;
use crate::{decode, kv_append, naive, peaks, prefill};

/// Attention on this machine's processor.
///
/// Work runs on the rayon pool of the caller: inside `pool.install(..)` on that pool, elsewhere on rayon's global
/// one. Results are bitwise the same for any number of threads.
///
/// ```
/// use omniflash_core::{AttentionOptions, AttentionProblem, KvCache, Query, Stream, TensorMut, TensorRef, run};
/// use omniflash_cpu::CpuBackend;
///
/// let (q, k, v) = ([1.0f32; 8], [1.0f32; 24], [2.0f32; 24]);
/// let mut out = [0.0f32; 8];
/// let problem = AttentionProblem::new(
///     Query::padded(TensorRef::from_slice(&q, &[1, 1, 1, 8])?),
///     KvCache::dense(TensorRef::from_slice(&k, &[1, 3, 1, 8])?, TensorRef::from_slice(&v, &[1, 3, 1, 8])?),
///     TensorMut::from_slice(&mut out, &[1, 1, 1, 8])?,
///     None,
///     &AttentionOptions::new(),
/// )?;
/// run(&CpuBackend::new()?, &problem, &Stream::host())?;
/// drop(problem); // it borrows `out`
/// assert_eq!(out, [2.0; 8]);
/// # Ok::<(), omniflash_core::Error>(())
/// ```
#[derive(Debug)]
pub struct CpuBackend {
    info: BackendInfo,
    isa: Isa,
}

impl CpuBackend {
    /// The processor with its best instruction set, or the one that [`OMNIFLASH_CPU_ISA`](crate::ISA_VARIABLE) names.
    ///
    /// # Errors
    /// [`Error::Value`] when the variable names no instruction set, [`Error::Absent`] when this processor lacks it.
    pub fn new() -> Result<Self> {
        CpuBackend::with_isa(Isa::from_environment()?)
    }

    /// The processor with one of its instruction sets.
    ///
    /// # Errors
    /// [`Error::Absent`] when this processor lacks it.
    pub fn with_isa(isa: Isa) -> Result<Self> {
        let isa = isa.checked()?;
        let info = BackendInfo {
            name: "cpu".into(),
            device: DeviceId::Cpu,
            vendor: processor::vendor(),
            device_name: processor::name(),
            arch: isa.name().into(),
            memory_bytes: processor::memory_bytes(),
            units: rayon::current_num_threads(),
            driver: None,
        };
        Ok(CpuBackend { info, isa })
    }

    /// The instruction set that kernels use.
    pub fn isa(&self) -> Isa {
        self.isa
    }
}

impl Backend for CpuBackend {
    fn info(&self) -> &BackendInfo {
        &self.info
    }

    fn supports(&self, problem: &AttentionProblem<'_>) -> Support {
        match plan::plan(problem, self.isa, rayon::current_num_threads()) {
            Err(error) => Support::No(error),
            Ok(plan) if route_of(&plan) == Ok(Route::Rows) => {
                Support::Slow("the naive algorithm checks others and is not made for speed".into())
            }
            Ok(_) => Support::Yes,
        }
    }

    fn plan(&self, problem: &AttentionProblem<'_>) -> Result<AttentionPlan> {
        plan::plan(problem, self.isa, rayon::current_num_threads())
    }

    fn alloc(&self, bytes: usize, _stream: &Stream) -> Result<Buffer> {
        Buffer::host(bytes)
    }

    fn copy_to_device(&self, source: &[u8], target: &mut Buffer, _stream: &Stream) -> Result<()> {
        copy_to_host_buffer(source, target)
    }

    fn copy_to_host(&self, source: &Buffer, target: &mut [u8], _stream: &Stream) -> Result<()> {
        copy_from_host_buffer(source, target)
    }

    fn stream(&self) -> Result<Stream> {
        Ok(Stream::host())
    }

    fn synchronize(&self, _stream: &Stream) -> Result<()> {
        Ok(())
    }

    unsafe fn launch(
        &self,
        plan: &AttentionPlan,
        problem: &AttentionProblem<'_>,
        _stream: &Stream,
    ) -> Result<()> {
        let route = route_of(plan)?;
        // SAFETY: the caller's duty: nothing else uses the outputs during the call.
        unsafe {
            match problem.shape().dtype {
                DType::F32 => self.compute::<f32>(route, problem),
                DType::F16 => self.compute::<f16>(route, problem),
                DType::BF16 => self.compute::<bf16>(route, problem),
                dtype => Err(Error::dtype("q", dtype, "f32, f16 or bf16")),
            }
        }
    }

    unsafe fn kv_append(&self, append: &KvAppend<'_>, _stream: &Stream) -> Result<()> {
        // SAFETY: the caller's duties are the same.
        unsafe { kv_append::kv_append(append) }
    }

    fn measure_peaks(&self, _stream: &Stream, budget: Duration) -> Result<Peaks> {
        peaks::measure(self.isa, budget)
    }
}

impl CpuBackend {
    /// # Safety
    /// Nothing else reads or writes the outputs.
    unsafe fn compute<T: crate::simd::Storage>(
        &self,
        route: Route,
        problem: &AttentionProblem<'_>,
    ) -> Result<()> {
        // SAFETY: the caller's duty.
        unsafe {
            match route {
                Route::Tiles(tiling) => {
                    prefill::attention::<T>(problem, &tiling, self.isa)?;
                    if tiling.leaves_short {
                        let group_size = problem.shape().group_size();
                        let is_short = |sequence: &Sequence| decode::is_short(sequence.q_len, group_size);
                        decode::attention(self.isa, problem, is_short)?;
                    }
                    Ok(())
                }
                Route::Stream => decode::attention(self.isa, problem, |_| true),
                Route::Rows => naive::attention::<T>(problem),
            }
        }
    }
}

fn route_of(plan: &AttentionPlan) -> Result<Route> {
    let detail = plan.detail.as_ref().and_then(|detail| detail.downcast_ref::<Route>());
    detail.copied().ok_or_else(|| Error::value("plan", &plan.kernel_id, "a plan of the cpu backend"))
}

/// What the operating system says of the processor.
mod processor {
    use std::fs;

    pub(super) fn vendor() -> String {
        field("/proc/cpuinfo", "vendor_id").unwrap_or_else(|| std::env::consts::ARCH.into())
    }

    pub(super) fn name() -> String {
        field("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.into())
    }

    pub(super) fn memory_bytes() -> u64 {
        let kilobytes = field("/proc/meminfo", "MemTotal")
            .and_then(|size| size.split_whitespace().next().and_then(|kilobytes| kilobytes.parse().ok()));
        kilobytes.unwrap_or(0u64) * 1024
    }

    fn field(path: &str, name: &str) -> Option<String> {
        let text = fs::read_to_string(path).ok()?;
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    }
}
