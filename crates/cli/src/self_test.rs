//! `omniflash verify --self-test`: built-in cases on every device of a backend, as a report from a machine that the
//! authors do not have.

mod cases;

use omniflash::{Backend, BackendInfo, Error, Registry};
use serde_json::{Value, json};

use crate::Verdict;
use crate::case_file::Fault;
use crate::terminal;
use crate::verify::{Checked, check};
use cases::{SelfTestCase, cases};

pub(crate) fn run(name: &str, json: bool) -> anyhow::Result<Verdict> {
    let registry = Registry::discover();
    let prefix = format!("{name}:");
    let mut backends: Vec<_> = registry
        .backends()
        .iter()
        .filter(|backend| backend.info().name.starts_with(&prefix))
        .cloned()
        .collect();
    if backends.is_empty() {
        // One backend by its own name, or the reason of its absence.
        backends.push(registry.get(name)?);
    }
    let cases = cases()?;
    let bar = terminal::progress(backends.len() * cases.len());
    let mut reports = Vec::new();
    for backend in &backends {
        let mut outcomes = Vec::new();
        for case in &cases {
            bar.set_message(format!("{} on {}", case.name, backend.info().name));
            outcomes.push((case.name.as_str(), Outcome::of(&**backend, case)));
            bar.inc(1);
        }
        reports.push((backend, outcomes));
    }
    bar.finish_and_clear();
    if json {
        let devices: Vec<Value> =
            reports.iter().map(|(backend, outcomes)| device_json(&***backend, outcomes)).collect();
        terminal::print_json(&json!({
            "omniflash": env!("CARGO_PKG_VERSION"),
            "self_test": name,
            "system": format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            "devices": devices,
        }))?;
    } else {
        for (backend, outcomes) in &reports {
            print(backend.info(), outcomes)?;
        }
    }
    let all_passed = reports.iter().flat_map(|(_, outcomes)| outcomes).all(|(_, outcome)| outcome.is_well());
    Ok(if all_passed { Verdict::Passed } else { Verdict::OutOfTolerance })
}

/// What came of a case on a device.
enum Outcome {
    Computed(Box<Checked>),
    /// A typed refusal: the device can do without.
    Unsupported(Error),
    Failed(Fault),
}

impl Outcome {
    fn of(backend: &dyn Backend, case: &SelfTestCase) -> Self {
        match check(backend, &case.case) {
            Ok(checked) => Outcome::Computed(Box::new(checked)),
            Err(Fault::Attention(error @ Error::Unsupported { .. })) => Outcome::Unsupported(error),
            Err(fault) => Outcome::Failed(fault),
        }
    }

    fn is_well(&self) -> bool {
        match self {
            Outcome::Computed(checked) => checked.passed(),
            Outcome::Unsupported(_) => true,
            Outcome::Failed(_) => false,
        }
    }

    fn word(&self) -> &'static str {
        match self {
            Outcome::Computed(checked) if checked.passed() => "passed",
            Outcome::Computed(_) => "out of tolerance",
            Outcome::Unsupported(_) => "unsupported",
            Outcome::Failed(_) => "failed",
        }
    }

    /// Why there is no result.
    fn reason(&self) -> Option<String> {
        match self {
            Outcome::Computed(_) => None,
            Outcome::Unsupported(error) => Some(error.to_string()),
            Outcome::Failed(fault) => Some(fault.to_string()),
        }
    }
}

fn device_json(backend: &dyn Backend, outcomes: &[(&str, Outcome)]) -> Value {
    let info = backend.info();
    let count = |word: &str| outcomes.iter().filter(|(_, outcome)| outcome.word() == word).count();
    let cases: Vec<Value> = outcomes
        .iter()
        .map(|(name, outcome)| {
            let mut value = match outcome {
                Outcome::Computed(checked) => checked.to_json(name, backend),
                _ => json!({"case": name, "reason": outcome.reason()}),
            };
            value["outcome"] = outcome.word().into();
            value
        })
        .collect();
    json!({
        "backend": info.name,
        "vendor": info.vendor,
        "device": info.device_name,
        "arch": info.arch,
        "units": info.units,
        "memory_bytes": info.memory_bytes,
        "driver": info.driver,
        "passed": count("passed"),
        "out_of_tolerance": count("out of tolerance"),
        "unsupported": count("unsupported"),
        "failed": count("failed"),
        "cases": cases,
    })
}

fn print(info: &BackendInfo, outcomes: &[(&str, Outcome)]) -> anyhow::Result<()> {
    let mut table = terminal::table(&["case", "time", "RMS error / allowed", "outcome"]);
    for (name, outcome) in outcomes {
        let (time, error) = match outcome {
            Outcome::Computed(checked) => checked.time_and_error(),
            _ => ("-".into(), "-".into()),
        };
        let text = outcome.reason().unwrap_or_else(|| outcome.word().into());
        table.add_row([(*name).to_owned(), time, error, text]);
    }
    terminal::align_numbers(&mut table, 1..3);
    terminal::print_line(format_args!(
        "{} ({}, {})\n{table}",
        terminal::heading(&info.name),
        info.device_name,
        info.arch
    ))?;
    let passed = outcomes.iter().filter(|(_, outcome)| outcome.word() == "passed").count();
    terminal::print_line(format_args!("{passed} of {} cases passed\n", outcomes.len()))
}
