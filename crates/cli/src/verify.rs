//! `omniflash verify`: a backend against the float64 reference.

use std::path::Path;

use omniflash::reference::ReferenceOutput;
use omniflash::{
    AttentionProblem, Backend, DType, Deviation, Expectation, Layout, ReferenceBackend, Stream, Tensor,
    Tolerance,
};
use serde_json::{Value, json};

use crate::Verdict;
use crate::arguments::VerifyArguments;
use crate::attend::compute;
use crate::case_file::{Case, Fault};
use crate::execution::{Execution, choose};
use crate::terminal;

pub(crate) fn run(arguments: &VerifyArguments) -> anyhow::Result<Verdict> {
    let backend = choose(&arguments.backend.backend)?;
    let bar = terminal::progress(arguments.cases.len());
    let mut failed = 0;
    for path in &arguments.cases {
        bar.set_message(format!("{} on {}", path.display(), backend.info().name));
        let case = Case::read(path, arguments.options.as_deref())?;
        let checked = check(&*backend, &case).map_err(|fault| fault.in_file(path.display().to_string()))?;
        failed += usize::from(!checked.passed());
        bar.suspend(|| match arguments.json {
            true => terminal::print_json(&checked.to_json(path, &*backend)),
            false => checked.print(path, &*backend),
        })?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    if !arguments.json && arguments.cases.len() > 1 {
        let passed = arguments.cases.len() - failed;
        terminal::print_line(format_args!(
            "{passed} of {} cases are within tolerance",
            arguments.cases.len()
        ))?;
    }
    Ok(if failed == 0 { Verdict::Passed } else { Verdict::OutOfTolerance })
}

/// A result and how far it is from the reference.
struct Checked {
    execution: Execution,
    deviation: Deviation,
    tolerance: Tolerance,
    /// Whether a second run gave the same bits.
    repeats: bool,
}

fn check(backend: &dyn Backend, case: &Case) -> Result<Checked, Fault> {
    let execution = compute(backend, case, 1)?;
    let again = compute(backend, case, 1)?;
    let repeats = execution.out == again.out && execution.lse == again.lse;
    let (deviation, tolerance) = compare(case, &execution)?;
    Ok(Checked {
        execution: Execution { elapsed: execution.elapsed.min(again.elapsed), ..execution },
        deviation,
        tolerance,
        repeats,
    })
}

/// Compares a result with the reference, in host memory.
fn compare(case: &Case, execution: &Execution) -> omniflash::Result<(Deviation, Tolerance)> {
    let shape = &execution.shape;
    if execution.out.is_empty() {
        let nothing = ReferenceOutput { out: Vec::new(), lse: Vec::new() };
        return Ok((Deviation::default(), Tolerance::new(shape.dtype, &nothing, &nothing)));
    }
    let found = on_host(&execution.out, shape.dtype, &shape.out)?;
    let lse = execution.lse.as_ref().map(|lse| on_host(lse, DType::F32, &shape.lse)).transpose()?;
    with_host_problem(case, |problem| {
        let expectation = Expectation::of(problem)?;
        let lse = lse.as_ref().map(Tensor::view);
        Ok((expectation.compare(problem, &found.view(), lse.as_ref()), expectation.tolerance))
    })
}

/// Calls `ask` with the problem of a case in host memory.
pub(crate) fn with_host_problem<T>(
    case: &Case,
    ask: impl FnOnce(&AttentionProblem<'_>) -> omniflash::Result<T>,
) -> omniflash::Result<T> {
    let arguments = case.arguments();
    let shape = arguments.output_shape()?;
    let mut out = Tensor::zeros(&ReferenceBackend::new(), shape.dtype, &shape.out, &Stream::host())?;
    let options = arguments.attention_options().lse(false);
    ask(&AttentionProblem::new(arguments.query(), arguments.kv(), out.view_mut(), None, &options)?)
}

/// A row-major tensor in host memory.
pub(crate) fn on_host(bytes: &[u8], dtype: DType, shape: &[usize]) -> omniflash::Result<Tensor> {
    let layout = Layout::contiguous(shape)?;
    Tensor::from_memory(&ReferenceBackend::new(), bytes, dtype, layout, &Stream::host())
}

impl Checked {
    fn passed(&self) -> bool {
        self.repeats && self.deviation.is_within(&self.tolerance)
    }

    fn print(&self, path: &Path, backend: &dyn Backend) -> anyhow::Result<()> {
        let (deviation, tolerance) = (&self.deviation, &self.tolerance);
        let mut table = terminal::table(&["error", "found", "allowed", ""]);
        let mut row = |name: &str, found: f64, allowed: String, passed: bool| {
            table.add_row(vec![
                name.into(),
                terminal::error_value(found).into(),
                allowed.into(),
                terminal::verdict_cell(passed),
            ]);
        };
        let (rms, max) = (tolerance.relative_rms, deviation.max_error_bound);
        let rms_passed = deviation.relative_rms <= rms;
        row("RMS of out, relative", deviation.relative_rms, terminal::error_value(rms), rms_passed);
        row("max of out", deviation.max_error, terminal::error_value(max), deviation.max_error <= max);
        if self.execution.lse.is_some() {
            let allowed = format!(
                "{} + {} |lse|",
                terminal::error_value(tolerance.lse_absolute),
                terminal::error_value(tolerance.lse_relative)
            );
            row("max of lse", deviation.lse_error, allowed, deviation.lse_fraction <= 1.0);
        }
        let repeats = if self.repeats { "equal bit for bit" } else { "different" };
        table.add_row(vec![
            "second run".into(),
            repeats.into(),
            "equal bit for bit".into(),
            terminal::verdict_cell(self.repeats),
        ]);
        let info = backend.info();
        terminal::print_line(format_args!(
            "{} on {} in {}",
            terminal::heading(&path.display().to_string()),
            info.name,
            terminal::time(self.execution.elapsed)
        ))?;
        terminal::print_line(table)?;
        terminal::print_plan(&self.execution.plan)?;
        if deviation.max_error > max {
            let place = place(deviation.max_error_at, &self.execution.shape.out);
            terminal::print_line(format_args!("the worst element is out{place:?}"))?;
        }
        terminal::print_line("")
    }

    fn to_json(&self, path: &Path, backend: &dyn Backend) -> Value {
        let (deviation, tolerance) = (&self.deviation, &self.tolerance);
        let lse = self.execution.lse.as_ref().map(|_| {
            json!({
                "error": deviation.lse_error,
                "fraction": deviation.lse_fraction,
                "absolute_tolerance": tolerance.lse_absolute,
                "relative_tolerance": tolerance.lse_relative,
            })
        });
        json!({
            "case": path.display().to_string(),
            "backend": backend.info().name,
            "ms": self.execution.elapsed.as_secs_f64() * 1e3,
            "plan": self.execution.plan.to_string(),
            "rms_error": deviation.relative_rms,
            "rms_tolerance": tolerance.relative_rms,
            "max_error": deviation.max_error,
            "max_error_at": place(deviation.max_error_at, &self.execution.shape.out),
            "max_tolerance": deviation.max_error_bound,
            "lse": lse,
            "repeats": self.repeats,
            "passed": self.passed(),
        })
    }
}

/// The index of a row-major element.
fn place(flat: usize, shape: &[usize]) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    let mut rest = flat;
    for (i, extent) in index.iter_mut().zip(shape).rev() {
        *i = rest % extent.max(&1);
        rest /= extent.max(&1);
    }
    index
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case_file::{NamedTensor, Options, to_bytes};

    fn case() -> Case {
        let values: Vec<f32> = (0..64u16).map(|i| (f32::from(i) * 0.7).sin()).collect();
        let tensors: Vec<NamedTensor> =
            ["q", "k", "v"].iter().map(|name| NamedTensor::new(name, &[1, 4, 2, 8], &values)).collect();
        let options = Options { lse: Some(true), ..Options::default() };
        Case::from_bytes(&to_bytes(&tensors).unwrap(), options).unwrap()
    }

    /// The verdict on a result of which one byte was changed.
    fn passes_with(change: impl Fn(&mut Execution)) -> bool {
        let case = case();
        let mut execution = compute(&ReferenceBackend::new(), &case, 1).unwrap();
        change(&mut execution);
        let (deviation, tolerance) = compare(&case, &execution).unwrap();
        Checked { execution, deviation, tolerance, repeats: true }.passed()
    }

    #[test]
    fn a_wrong_element_of_out_or_lse_is_out_of_tolerance() {
        assert!(passes_with(|_| {}));
        // The sign and exponent of the last element.
        assert!(!passes_with(|execution| *execution.out.last_mut().unwrap() ^= 0x81));
        assert!(!passes_with(|execution| *execution.lse.as_mut().unwrap().last_mut().unwrap() ^= 0x80));
    }

    #[test]
    fn a_place_is_the_index_of_a_row_major_element() {
        assert_eq!(place(23, &[2, 3, 4]), [1, 2, 3]);
        assert_eq!(place(5, &[2, 3, 4]), [0, 1, 1]);
    }
}
