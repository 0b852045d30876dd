//! What benchmarks ask of the device: times of launches by its own clock, and what it can do at most.

use std::time::{Duration, Instant};

use omniflash_core::measure::Peaks;
use omniflash_core::{Backend as _, DType, Result, Stream};
use omniflash_device::{Launch, PeakKernel, PeakParameters, PeakWork};

use crate::backend::GpuBackend;
use crate::driver::Driver;
use crate::event::Event;
use crate::memory::DeviceMemory;
use crate::module::Module;
use crate::vendor::Vendor;

/// Bytes written before each launch that is timed: more than any second-level cache.
const FLUSH_BYTES: usize = 256 << 20;
/// Bytes that are read, and of each side of a copy, where the device has many times as much.
const STREAM_BYTES: u64 = 1 << 30;
const BLOCKS_PER_MULTIPROCESSOR: u32 = 4;
/// Rounds of a first, short launch.
const FEW_ROUNDS: i32 = 1000;
const FEWEST_LAUNCHES: usize = 3;
/// A NaN that no arithmetic gives, and that memory without a pattern does not add up to.
const NEVER: u32 = 0xffb1_a5e5;

impl<V: Vendor> GpuBackend<V> {
    /// Milliseconds of each of `repeats` runs of what `replay` enqueues, the second-level cache overwritten before each.
    pub(crate) fn time(
        &self,
        stream: &Stream,
        repeats: usize,
        replay: impl Fn() -> Result<()>,
    ) -> Result<Vec<f64>> {
        let flush = DeviceMemory::new(self.driver(), FLUSH_BYTES, stream)?;
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
        let mut flops = Vec::new();
        for dtype in [DType::BF16, DType::F16] {
            if let Some(rate) = self.arithmetic(PeakWork::Product(dtype), stream, budget)? {
                flops.push((dtype, rate));
            }
        }
        if let Some(rate) = self.float_arithmetic(stream, budget)? {
            flops.push((DType::F32, rate));
        }
        let bytes = (STREAM_BYTES.min(self.info().memory_bytes / 16) & !0xffff) as usize;
        let source = DeviceMemory::new(self.driver(), bytes, stream)?;
        let target = DeviceMemory::new(self.driver(), bytes, stream)?;
        let parameters = PeakParameters {
            source: source.address(),
            target: source.address(),
            vectors: (bytes / 16) as i64,
            rounds: 0,
            blocks: self.peak_blocks(),
            never: NEVER,
            unused: 0,
        };
        self.fastest_of(PeakWork::Fill, &parameters, stream, Duration::ZERO)?;
        let parameters = PeakParameters { target: target.address(), ..parameters };
        let rate = |moved: usize, seconds: Option<f64>| seconds.map(|seconds| moved as f64 / seconds);
        let read = rate(bytes, self.fastest_of(PeakWork::Read, &parameters, stream, budget)?);
        let copy = rate(2 * bytes, self.fastest_of(PeakWork::Copy, &parameters, stream, budget)?);
        Ok(Peaks { flops, read, copy })
    }

    /// Full f32 is multiply-adds, or what a vendor's matrix unit makes of it.
    fn float_arithmetic(&self, stream: &Stream, budget: Duration) -> Result<Option<f64>> {
        let fma = self.arithmetic(PeakWork::MultiplyAdd, stream, budget)?;
        let product = self.arithmetic(PeakWork::Product(DType::F32), stream, budget)?;
        let product = product.map(|rate| rate / V::PRODUCTS_OF_F32);
        Ok(fma.into_iter().chain(product).reduce(f64::max))
    }

    /// Operations a second, all multiprocessors at work; `None` for work that the device has no instructions for.
    fn arithmetic(&self, work: PeakWork, stream: &Stream, budget: Duration) -> Result<Option<f64>> {
        let Some((peak, module)) = self.peak(work)? else { return Ok(None) };
        let blocks = self.peak_blocks();
        let target = DeviceMemory::new(self.driver(), 16 * peak.block_threads as usize, stream)?;
        let mut parameters = PeakParameters {
            source: 0,
            target: target.address(),
            vectors: 0,
            rounds: FEW_ROUNDS,
            blocks,
            never: NEVER,
            unused: 0,
        };
        let launch = self.peak_launch(&peak);
        let short = self.fastest(&module, &launch, &parameters, stream, Duration::ZERO)?;
        // Launches of some milliseconds, beside which starting one is nothing.
        let rounds = f64::from(FEW_ROUNDS) * (5e-3 / short).clamp(1.0, 1000.0);
        parameters.rounds = rounds as i32;
        let seconds = self.fastest(&module, &launch, &parameters, stream, budget)?;
        Ok(Some(f64::from(blocks) * f64::from(parameters.rounds) * peak.flops_of_round / seconds))
    }

    /// Seconds of the fastest launch of some work in about `budget`.
    fn fastest_of(
        &self,
        work: PeakWork,
        parameters: &PeakParameters,
        stream: &Stream,
        budget: Duration,
    ) -> Result<Option<f64>> {
        let Some((peak, module)) = self.peak(work)? else { return Ok(None) };
        self.fastest(&module, &self.peak_launch(&peak), parameters, stream, budget).map(Some)
    }

    fn fastest(
        &self,
        module: &Module<V::Driver>,
        launch: &Launch,
        parameters: &PeakParameters,
        stream: &Stream,
        budget: Duration,
    ) -> Result<f64> {
        let (begin, end) = (self.event()?, self.event()?);
        let entered = self.driver().enter()?;
        let until = Instant::now() + budget;
        let (mut fastest, mut launches) = (f64::INFINITY, 0);
        while launches < FEWEST_LAUNCHES || Instant::now() < until {
            let milliseconds = elapsed(&begin, &end, stream, || {
                // SAFETY: the kernel's only parameter is this struct; its memory is the caller's and outlives the
                // launch, for which `elapsed` waits.
                unsafe { module.launch(launch, &[bytemuck::bytes_of(parameters)], stream, &entered) }
            })?;
            fastest = fastest.min(milliseconds * 1e-3);
            launches += 1;
        }
        Ok(fastest)
    }

    fn peak(&self, work: PeakWork) -> Result<Option<(PeakKernel, Module<V::Driver>)>> {
        let Some(peak) = V::peak(self.facts(), work) else { return Ok(None) };
        let kernel = self.planner().peak_kernel(&format!("{work:?}"), &peak)?;
        let module = Module::load(self.driver(), &kernel.image, peak.unit.entry, 0)?;
        Ok(Some((peak, module)))
    }

    fn peak_blocks(&self) -> u32 {
        self.info().units as u32 * BLOCKS_PER_MULTIPROCESSOR
    }

    fn peak_launch(&self, peak: &PeakKernel) -> Launch {
        Launch { grid: [self.peak_blocks(), 1, 1], block_threads: peak.block_threads, shared_memory_bytes: 0 }
    }
}

/// Milliseconds on the device from before to after what `enqueue` enqueues; waits for it.
fn elapsed<D: Driver>(
    begin: &Event<D>,
    end: &Event<D>,
    stream: &Stream,
    enqueue: impl Fn() -> Result<()>,
) -> Result<f64> {
    begin.record(stream)?;
    enqueue()?;
    end.record(stream)?;
    begin.elapsed_ms(end).map(f64::from)
}
