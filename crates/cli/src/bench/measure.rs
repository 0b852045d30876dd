//! Measuring one case.

use std::time::Duration;

use omniflash::measure::Peaks;
use omniflash::{Algorithm, AttentionConfig, AttentionProblem, Backend, DType, Result, Stream, Tensor};

use super::clock::{Samples, time};
use super::mode::Mode;
use super::workload::{BenchCase, Workload, dtype_name};
use crate::results::{Record, rounded};

/// Types that are compared take so many turns at being timed.
const ROUNDS: usize = 3;

/// One case, to be measured on data that are never all zero.
pub(super) struct Measurement {
    workload: Workload,
    algorithm: Algorithm,
    stream: Stream,
    /// The result, so that others can compare it.
    pub(super) out: Tensor,
}

impl Measurement {
    pub(super) fn new(
        backend: &dyn Backend,
        case: &BenchCase,
        dtype: DType,
        algorithm: Algorithm,
    ) -> Result<Self> {
        let stream = backend.stream()?;
        let workload = Workload::new(backend, case, dtype, &stream)?;
        let shape = AttentionProblem::output_shape(&workload.query(), &workload.kv())?;
        let out = Tensor::zeros(backend, shape.dtype, &shape.out, &stream)?;
        Ok(Measurement { workload, algorithm, stream, out })
    }

    pub(super) fn time(
        &mut self,
        backend: &dyn Backend,
        budget: Duration,
        mode: Option<Mode>,
    ) -> Result<Samples> {
        let Measurement { workload, algorithm, stream, out } = self;
        let config = AttentionConfig { algorithm: *algorithm, ..AttentionConfig::default() };
        let options = workload.options().config(config);
        let problem = AttentionProblem::new(workload.query(), workload.kv(), out.view_mut(), None, &options)?;
        time(backend, &problem, stream, budget, mode)
    }
}

/// Measures a case in each of some types, `budget` for each: several take turns, another first in each round, for the clock
/// of a device changes with time.
pub(super) fn take_in_turns(
    backend: &dyn Backend,
    case: &BenchCase,
    dtypes: &[DType],
    algorithm: Algorithm,
    budget: Duration,
    mode: Option<Mode>,
) -> Vec<Result<Samples>> {
    let rounds = if dtypes.len() > 1 { ROUNDS } else { 1 };
    let mut measurements: Vec<Result<Measurement>> =
        dtypes.iter().map(|&dtype| Measurement::new(backend, case, dtype, algorithm)).collect();
    let mut taken: Vec<Option<Samples>> = dtypes.iter().map(|_| None).collect();
    for round in 0..rounds {
        for turn in 0..dtypes.len() {
            let place = (turn + round) % dtypes.len();
            let Ok(measurement) = &mut measurements[place] else { continue };
            match measurement.time(backend, budget / rounds as u32, mode) {
                Ok(samples) => match &mut taken[place] {
                    Some(taken) => taken.milliseconds.extend(samples.milliseconds),
                    none => *none = Some(samples),
                },
                Err(error) => measurements[place] = Err(error),
            }
        }
    }
    let samples_of = |(measurement, samples): (Result<Measurement>, Option<Samples>)| {
        measurement.map(|_| samples.expect("one that never failed was timed in every round"))
    };
    measurements.into_iter().zip(taken).map(samples_of).collect()
}

/// The line of a case: its rate and the share of the peak that limits it.
pub(super) fn record_of_case(
    backend: &dyn Backend,
    case: &BenchCase,
    dtype: DType,
    algorithm: Algorithm,
    samples: &Samples,
    peaks: &Peaks,
) -> Record {
    let (median, tera) = (samples.median(), 1e-9);
    let mut record = record(backend, &case.name(), dtype, samples);
    record.system = system(backend, algorithm);
    let (rate, peak) = if case.is_decode() {
        let rate = case.kv_bytes(dtype) / median * tera;
        record.tbps = Some(rounded(rate));
        (rate, peaks.read)
    } else {
        let rate = case.flops() / median * tera;
        record.tflops = Some(rounded(rate));
        (rate, peaks.flops_of(dtype))
    };
    let in_tera = |peak: f64| rounded(peak * 1e-12);
    record.share = peak.map(|peak| rounded(rate / (peak * 1e-12)));
    record.peak_tflops = peaks.flops_of(dtype).map(in_tera);
    record.peak_read_tbps = peaks.read.map(in_tera);
    record.peak_copy_tbps = peaks.copy.map(in_tera);
    record
}

/// What a backend is called among systems; a family of kernels that was asked for is one of its own.
pub(super) fn system(backend: &dyn Backend, algorithm: Algorithm) -> String {
    let kind = backend.info().name.split(':').next().unwrap_or_default();
    match algorithm {
        Algorithm::Auto => format!("omniflash-{kind}"),
        algorithm => format!("omniflash-{kind}-{algorithm}"),
    }
}

/// The line of anything that was timed.
pub(super) fn record(backend: &dyn Backend, case: &str, dtype: DType, samples: &Samples) -> Record {
    let info = backend.info();
    let is_cpu = info.device == omniflash::DeviceId::Cpu;
    Record {
        system: system(backend, Algorithm::Auto),
        case: case.into(),
        dtype: dtype_name(dtype).into(),
        ms: Some(rounded(samples.median())),
        min_ms: Some(rounded(samples.fastest())),
        spread: Some(rounded(samples.relative_spread())),
        n: Some(samples.milliseconds.len() as u64),
        threads: is_cpu.then(|| rayon::current_num_threads() as u64),
        backend: Some(info.name.clone()),
        device: Some(info.device_name.clone()),
        method: Some(samples.method.into()),
        ..Record::default()
    }
}
