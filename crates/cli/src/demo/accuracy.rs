//! How a step went: its time, its rate, its errors.

use comfy_table::{Cell, Table};
use omniflash::{Deviation, Tolerance};
use serde_json::{Value, json};

use crate::terminal;

/// How far a result is from what it is compared with, and how far it may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Accuracy {
    pub(super) deviation: Deviation,
    pub(super) tolerance: Tolerance,
}

impl Accuracy {
    pub(super) fn passed(&self) -> bool {
        self.deviation.is_within(&self.tolerance)
    }

    /// Of two samples the one nearer to its bounds, or further beyond them.
    pub(super) fn worse(self, other: Accuracy) -> Accuracy {
        if other.fraction() > self.fraction() { other } else { self }
    }

    fn fraction(&self) -> f64 {
        let of = |found: f64, allowed: f64| if found == 0.0 { 0.0 } else { found / allowed };
        of(self.deviation.relative_rms, self.tolerance.relative_rms)
            .max(of(self.deviation.max_error, self.deviation.max_error_bound))
    }
}

/// A rate of work.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rate {
    /// Of arithmetic, in floating-point operations.
    Flops(f64),
    /// Of memory, in bytes.
    Bytes(f64),
}

/// One step of the demonstration.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) name: String,
    /// Median or fastest time of a call; absent when the step only compares.
    pub(super) seconds: Option<f64>,
    /// Work of a call.
    pub(super) work: Option<Rate>,
    pub(super) accuracy: Accuracy,
    pub(super) plan: Option<String>,
}

impl Step {
    pub(super) fn add_to(&self, table: &mut Table) {
        let Accuracy { deviation, tolerance } = &self.accuracy;
        let errors = |rms: f64, max: f64| {
            format!("rms {}\nmax {}", terminal::error_value(rms), terminal::error_value(max))
        };
        table.add_row([
            Cell::new(&self.name),
            Cell::new(self.seconds.map_or_else(String::new, |seconds| terminal::milliseconds(seconds * 1e3))),
            Cell::new(self.rate().unwrap_or_default()),
            Cell::new(errors(deviation.relative_rms, deviation.max_error)),
            Cell::new(errors(tolerance.relative_rms, deviation.max_error_bound)),
            terminal::verdict_cell(self.accuracy.passed()),
        ]);
    }

    fn rate(&self) -> Option<String> {
        let seconds = self.seconds?;
        Some(match self.work? {
            Rate::Flops(flops) => terminal::flops_rate(flops / seconds),
            Rate::Bytes(bytes) => terminal::bytes_rate(bytes / seconds),
        })
    }

    pub(super) fn to_json(&self) -> Value {
        let Accuracy { deviation, tolerance } = &self.accuracy;
        let mut step = json!({
            "step": self.name,
            "ms": self.seconds.map(|seconds| seconds * 1e3),
            "rms_error": deviation.relative_rms,
            "rms_tolerance": tolerance.relative_rms,
            "max_error": deviation.max_error,
            "max_tolerance": deviation.max_error_bound,
            "passed": self.accuracy.passed(),
            "plan": self.plan,
        });
        match (self.seconds, self.work) {
            (Some(seconds), Some(Rate::Flops(flops))) => step["gflops"] = (flops / seconds / 1e9).into(),
            (Some(seconds), Some(Rate::Bytes(bytes))) => step["gbps"] = (bytes / seconds / 1e9).into(),
            _ => {}
        }
        step
    }
}
