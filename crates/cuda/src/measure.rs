//! What benchmarks ask of the device: times of launches by its own clock, and what it can do at most.

use std::time::{Duration, Instant};

use omniflash_core::measure::Peaks;
use omniflash_core::{DType, Result, Stream};
use omniflash_gpu::Launch;
use omniflash_kernel_store::KernelSource;
use omniflash_kernels_cuda::{PeakParameters, PeakWork};

use crate::backend::CudaBackend;
use crate::driver::{DeviceMemory, Event, Module};
use crate::plan::arch;

/// Bytes written before each launch that is timed: more than any second-level cache.
const FLUSH_BYTES: usize = 256 << 20;
/// Bytes that are read, and of each side of a copy, where the device has many times as much.
const STREAM_BYTES: u64 = 1 << 30;
const BLOCKS_PER_MULTIPROCESSOR: u32 = 4;
/// Rounds of a first, short launch.
const FEW_ROUNDS: i32 = 1000;
const FEWEST_LAUNCHES: usize = 3;

impl CudaBackend {
    /// Milliseconds of each of `repeats` runs of what `replay` enqueues, the second-level cache overwritten before each.
    pub(crate) fn time(
        &self,
        stream: &Stream,
        repeats: usize,
        replay: impl Fn() -> Result<()>,
    ) -> Result<Vec<f64>> {
        let flush = DeviceMemory::new(self.context(), FLUSH_BYTES, stream)?;
        let (begin, end) = (self.event()?, self.event()?);
        (0..repeats)
            .map(|_| {
                flush.zero(stream)?;
                elapsed(&begin, &end, stream, &replay)
            })
            .collect()
    }

    /// The peaks of this device, in about `budget` each.
    pub(crate) fn peaks(&self, stream: &Stream, budget: Duration) -> Result<Peaks> {
        let [bf16, f16, tf32] = [DType::BF16, DType::F16, DType::F32].map(PeakWork::Product);
        let fma = self.arithmetic(PeakWork::MultiplyAdd, stream, budget)?;
        // Full f32 is either multiply-adds, or three products of TF32.
        let f32 = fma.max(self.arithmetic(tf32, stream, budget)? / 3.0);
        let flops = vec![
            (DType::BF16, self.arithmetic(bf16, stream, budget)?),
            (DType::F16, self.arithmetic(f16, stream, budget)?),
            (DType::F32, f32),
        ];
        let bytes = (STREAM_BYTES.min(self.facts().memory_bytes / 16) & !0xffff) as usize;
        let source = DeviceMemory::new(self.context(), bytes, stream)?;
        let target = DeviceMemory::new(self.context(), bytes, stream)?;
        let parameters = PeakParameters {
            source: source.address(),
            target: source.address(),
            vectors: (bytes / 16) as i64,
            rounds: 0,
            unused: 0,
        };
        self.fastest(PeakWork::Fill, &parameters, stream, Duration::ZERO)?;
        let parameters = PeakParameters { target: target.address(), ..parameters };
        let read = bytes as f64 / self.fastest(PeakWork::Read, &parameters, stream, budget)?;
        let copy = 2.0 * bytes as f64 / self.fastest(PeakWork::Copy, &parameters, stream, budget)?;
        Ok(Peaks { flops, read: Some(read), copy: Some(copy) })
    }

    /// Operations a second, all multiprocessors at work.
    fn arithmetic(&self, work: PeakWork, stream: &Stream, budget: Duration) -> Result<f64> {
        let mut parameters =
            PeakParameters { source: 0, target: 0, vectors: 0, rounds: FEW_ROUNDS, unused: 0 };
        let short = self.fastest(work, &parameters, stream, Duration::ZERO)?;
        // Launches of some milliseconds, beside which starting one is nothing.
        let rounds = f64::from(FEW_ROUNDS) * (5e-3 / short).clamp(1.0, 1000.0);
        parameters.rounds = rounds as i32;
        let seconds = self.fastest(work, &parameters, stream, budget)?;
        let blocks = f64::from(self.peak_launch().grid[0]);
        let of_round = work.flops_of_round(&work.arch(&arch(self.facts())));
        Ok(blocks * f64::from(parameters.rounds) * of_round / seconds)
    }

    /// Seconds of the fastest launch in about `budget`.
    fn fastest(
        &self,
        work: PeakWork,
        parameters: &PeakParameters,
        stream: &Stream,
        budget: Duration,
    ) -> Result<f64> {
        let unit = work.translation_unit();
        let (arch, source) = (work.arch(&arch(self.facts())), unit.source());
        let kernel = self.kernel_store().kernel(&KernelSource {
            id: &format!("peak-{arch}-{work:?}"),
            arch: &arch,
            functor: "",
            source: &source,
            options: &["--std=c++20"],
            prebuilt_tags: &[],
        })?;
        let module = Module::load(self.context(), &kernel.image, unit.entry, 0)?;
        let launch = self.peak_launch();
        let (begin, end) = (self.event()?, self.event()?);
        let until = Instant::now() + budget;
        let (mut fastest, mut launches) = (f64::INFINITY, 0);
        while launches < FEWEST_LAUNCHES || Instant::now() < until {
            let milliseconds = elapsed(&begin, &end, stream, || {
                // SAFETY: the kernel's only parameter is this struct; its memory is the caller's and outlives the
                // launch, for which `elapsed` waits.
                unsafe { module.launch(&launch, &[bytemuck::bytes_of(parameters)], stream) }
            })?;
            fastest = fastest.min(milliseconds * 1e-3);
            launches += 1;
        }
        Ok(fastest)
    }

    fn peak_launch(&self) -> Launch {
        Launch {
            grid: [self.facts().multiprocessors as u32 * BLOCKS_PER_MULTIPROCESSOR, 1, 1],
            block_threads: PeakWork::THREADS,
            shared_memory_bytes: 0,
        }
    }
}

/// Milliseconds on the device from before to after what `enqueue` enqueues; waits for it.
fn elapsed(begin: &Event, end: &Event, stream: &Stream, enqueue: impl Fn() -> Result<()>) -> Result<f64> {
    begin.record(stream)?;
    enqueue()?;
    end.record(stream)?;
    begin.elapsed_ms(end).map(f64::from)
}
