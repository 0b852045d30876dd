//! Measuring one case.

use std::time::Duration;

use omniflash::{AttentionOptions, AttentionProblem, Backend, DType, Result, Tensor};
use serde_json::{Value, json};

use super::clock::{Call, Samples, clock_of};
use super::workload::{BenchCase, Workload, dtype_name};

/// One case, measured.
pub(super) struct Measurement {
    pub(super) case: BenchCase,
    pub(super) dtype: DType,
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
        let options = AttentionOptions::new().mask(case.mask());
        let shape = AttentionProblem::output_shape(&workload.query(), &workload.kv())?;
        let mut out = Tensor::zeros(backend, shape.dtype, &shape.out, &stream)?;
        let problem = AttentionProblem::new(workload.query(), workload.kv(), out.view_mut(), None, &options)?;
        let samples =
            clock_of(backend).time(&Call { backend, problem: &problem, stream: &stream }, budget)?;
        drop(problem);
        Ok(Measurement { case: *case, dtype, samples, out })
    }

    /// Of prefill, where arithmetic is the limit.
    pub(super) fn tflops(&self) -> Option<f64> {
        (!self.case.is_decode()).then(|| self.case.flops() / self.samples.median() / 1e9)
    }

    /// Of decode, where memory is the limit: keys and values once.
    pub(super) fn tbps(&self) -> Option<f64> {
        self.case.is_decode().then(|| self.case.kv_bytes(self.dtype) / self.samples.median() / 1e9)
    }

    /// The line of SPEC: system, case, dtype, ms and the rate; beside them the fastest sample, the distance of the
    /// quartiles by the median, and how many samples there are.
    pub(super) fn to_json(&self, backend: &dyn Backend) -> Value {
        let kind = backend.info().name.split(':').next().unwrap_or_default().to_owned();
        let mut line = json!({
            "system": format!("omniflash-{kind}"),
            "case": self.case.name(),
            "dtype": dtype_name(self.dtype),
            "ms": rounded(self.samples.median()),
        });
        if let Some(tflops) = self.tflops() {
            line["tflops"] = rounded(tflops).into();
        }
        if let Some(tbps) = self.tbps() {
            line["tbps"] = rounded(tbps).into();
        }
        line["min_ms"] = rounded(self.samples.fastest()).into();
        line["spread"] = rounded(self.samples.relative_spread()).into();
        line["n"] = self.samples.milliseconds.len().into();
        line["threads"] = rayon::current_num_threads().into();
        line
    }
}

/// Five significant digits: more than a measurement has.
fn rounded(value: f64) -> f64 {
    format!("{value:.4e}").parse().expect("a number that was just written")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_rates_keep_their_digits() {
        assert_eq!(rounded(0.000_012_345_678), 0.000_012_346);
        assert_eq!(rounded(123_456.7), 123_460.0);
    }
}
