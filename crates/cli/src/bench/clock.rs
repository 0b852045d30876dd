//! Timing calls.

use std::time::{Duration, Instant};

use omniflash::{AttentionProblem, Backend, Result, Stream, run};

/// One call to time.
pub(crate) struct Call<'c, 'a> {
    pub(crate) backend: &'c dyn Backend,
    pub(crate) problem: &'c AttentionProblem<'a>,
    pub(crate) stream: &'c Stream,
}

impl Call<'_, '_> {
    fn run(&self) -> Result<()> {
        run(self.backend, self.problem, self.stream)
    }
}

/// A way to time calls: each kind of device has its own.
pub(crate) trait Clock {
    /// How, in a few words.
    fn method(&self) -> &'static str;

    /// Times calls one by one until the budget is spent.
    fn time(&self, call: &Call<'_, '_>, budget: Duration) -> Result<Samples>;
}

/// The clock for a backend's device.
pub(crate) fn clock_of(_backend: &dyn Backend) -> &'static dyn Clock {
    &HostClock
}

/// The host's clock around whole calls: plan, launch and synchronisation, as a caller sees them.
struct HostClock;

/// Fewer samples say nothing of their spread.
const FEWEST_SAMPLES: usize = 3;

impl Clock for HostClock {
    fn method(&self) -> &'static str {
        "host clock, median"
    }

    fn time(&self, call: &Call<'_, '_>, budget: Duration) -> Result<Samples> {
        call.run()?;
        let mut milliseconds = Vec::new();
        let end = Instant::now() + budget;
        while milliseconds.len() < FEWEST_SAMPLES || Instant::now() < end {
            let start = Instant::now();
            call.run()?;
            milliseconds.push(start.elapsed().as_secs_f64() * 1e3);
            // The slowest cases stop at one sample beyond their budget.
            if Instant::now() > end + budget {
                break;
            }
        }
        Ok(Samples { milliseconds })
    }
}

/// Times of single calls.
#[derive(Clone, Debug)]
pub(crate) struct Samples {
    /// In the order of the calls; not empty.
    pub(crate) milliseconds: Vec<f64>,
}

impl Samples {
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
        let samples = Samples { milliseconds: vec![4.0, 1.0, 2.0, 3.0] };
        assert_eq!((samples.median(), samples.fastest()), (2.5, 1.0));
        assert_eq!(samples.relative_spread(), 1.5 / 2.5);
        assert_eq!(Samples { milliseconds: vec![7.0] }.median(), 7.0);
    }
}
