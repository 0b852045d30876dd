//! Timing calls.

use std::time::{Duration, Instant};

use omniflash::measure::{time_enqueue, time_on_device};
use omniflash::{AttentionProblem, Backend, Result, Stream, run};

use super::mode::Mode;

/// Fewer samples say nothing of their spread.
const FEWEST_SAMPLES: usize = 3;
const MOST_SAMPLES: f64 = 200.0;
/// What displacing the caches of a device costs beside each call.
const DISPLACE_MS: f64 = 0.2;

/// Times of single calls, and how they were taken.
#[derive(Clone, Debug)]
pub(crate) struct Samples {
    /// In the order of the calls; not empty.
    pub(crate) milliseconds: Vec<f64>,
    pub(crate) method: &'static str,
}

/// Times calls one by one until the budget is spent: by the clock of the device where it has one, after its caches were
/// displaced, in the mode; else by the host's, plan, launch and synchronisation as a caller sees them.
pub(crate) fn time(
    backend: &dyn Backend,
    problem: &AttentionProblem<'_>,
    stream: &Stream,
    budget: Duration,
    mode: Option<Mode>,
) -> Result<Samples> {
    match time_on_device(backend, problem, stream, FEWEST_SAMPLES)? {
        None => Samples::by_host("host clock", budget, || run(backend, problem, stream)),
        Some(few) => {
            let fastest = few.iter().copied().fold(f64::INFINITY, f64::min);
            let calls = |time: Duration, one: f64| time.as_secs_f64() * 1e3 / one;
            let mut budget = budget;
            if let Some(mode) = mode {
                budget = mode.burst(budget);
                mode.begin(|long| {
                    time_enqueue(backend, problem, stream, calls(long, fastest).ceil() as u32).map(drop)
                })?;
            }
            let repeats = calls(budget, fastest + DISPLACE_MS).clamp(FEWEST_SAMPLES as f64, MOST_SAMPLES);
            let milliseconds = time_on_device(backend, problem, stream, repeats as usize)?.unwrap_or(few);
            Ok(Samples { milliseconds, method: mode.map_or("device clock, cold L2", Mode::method) })
        }
    }
}

impl Samples {
    /// Times `call` by the host's clock, after one call to warm up.
    pub(crate) fn by_host(
        method: &'static str,
        budget: Duration,
        mut call: impl FnMut() -> Result<()>,
    ) -> Result<Self> {
        call()?;
        let mut milliseconds = Vec::new();
        let end = Instant::now() + budget;
        while milliseconds.len() < FEWEST_SAMPLES || Instant::now() < end {
            let start = Instant::now();
            call()?;
            milliseconds.push(start.elapsed().as_secs_f64() * 1e3);
            // The slowest cases stop at one sample beyond their budget.
            if Instant::now() > end + budget {
                break;
            }
        }
        Ok(Samples { milliseconds, method })
    }

    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    pub(crate) fn fastest(&self) -> f64 {
        self.quantile(0.0)
    }

    /// The distance of the quartiles, by the median.
    pub(crate) fn relative_spread(&self) -> f64 {
        (self.quantile(0.75) - self.quantile(0.25)) / self.median()
    }

    fn quantile(&self, fraction: f64) -> f64 {
        let mut sorted = self.milliseconds.clone();
        sorted.sort_by(f64::total_cmp);
        let place = fraction * (sorted.len() - 1) as f64;
        let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
        below + (above - below) * place.fract()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_interpolate_between_samples() {
        let samples = Samples { milliseconds: vec![4.0, 1.0, 2.0, 3.0], method: "" };
        assert_eq!((samples.median(), samples.fastest()), (2.5, 1.0));
        assert_eq!(samples.relative_spread(), 1.5 / 2.5);
        assert_eq!(Samples { milliseconds: vec![7.0], method: "" }.median(), 7.0);
    }

    #[test]
    fn a_failing_call_ends_the_timing() {
        let mut calls = 0;
        let failed = Samples::by_host("", Duration::from_secs(60), || {
            calls += 1;
            if calls < 2 { Ok(()) } else { Err(omniflash::Error::value("a", 1, "2")) }
        });
        assert!(failed.is_err() && calls == 2);
    }
}
