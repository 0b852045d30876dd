//! Measuring one case.

use std::time::Duration;

use omniflash::measure::Peaks;
use omniflash::{AttentionProblem, Backend, DType, Result, Tensor};

use super::clock::{Samples, time};
use super::workload::{BenchCase, Workload, dtype_name};
use crate::results::{Record, rounded};

/// One case, measured.
pub(super) struct Measurement {
    pub(super) samples: Samples,
    /// The result, so that others can compare it.
    pub(super) out: Tensor,
}

impl Measurement {
    /// Measures a case on data that are never all zero.
    pub(super) fn take(
        backend: &dyn Backend,
        case: &BenchCase,
        dtype: DType,
        budget: Duration,
    ) -> Result<Self> {
        let stream = backend.stream()?;
        let workload = Workload::new(backend, case, dtype, &stream)?;
        let options = workload.options();
        let shape = AttentionProblem::output_shape(&workload.query(), &workload.kv())?;
        let mut out = Tensor::zeros(backend, shape.dtype, &shape.out, &stream)?;
        let problem = AttentionProblem::new(workload.query(), workload.kv(), out.view_mut(), None, &options)?;
        let samples = time(backend, &problem, &stream, budget)?;
        drop(problem);
        Ok(Measurement { samples, out })
    }
}

/// The line of a case: its rate and the share of the peak that limits it.
pub(super) fn record_of_case(
    backend: &dyn Backend,
    case: &BenchCase,
    dtype: DType,
    samples: &Samples,
    peaks: &Peaks,
) -> Record {
    let (median, tera) = (samples.median(), 1e-9);
    let mut record = record(backend, &case.name(), dtype, samples);
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

/// The line of anything that was timed.
pub(super) fn record(backend: &dyn Backend, case: &str, dtype: DType, samples: &Samples) -> Record {
    let info = backend.info();
    let kind = info.name.split(':').next().unwrap_or_default();
    let is_cpu = info.device == omniflash::DeviceId::Cpu;
    Record {
        system: format!("omniflash-{kind}"),
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
