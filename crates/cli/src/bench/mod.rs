//! `omniflash bench`: how fast a backend is.

use std::time::Duration;

use anyhow::Context;
use omniflash::{Backend, DType};
use serde_json::json;

use crate::Verdict;
use crate::arguments::{BenchArguments, SingleCaseArguments};
use crate::execution::choose;
use crate::report;

mod clock;
mod grid;
mod measure;
mod single;
mod workload;

use clock::clock_of;
pub(crate) use grid::Group;
use grid::grid;
use measure::Measurement;
use workload::{BenchCase, Form};

pub(crate) fn run(arguments: &BenchArguments) -> anyhow::Result<Verdict> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(arguments.threads.map_or(0, usize::from))
        .build()
        .context("cannot start threads")?;
    pool.install(|| match single_case(&arguments.single) {
        Some(case) => single::run(arguments, &case),
        None => run_grid(arguments),
    })
}

fn run_grid(arguments: &BenchArguments) -> anyhow::Result<Verdict> {
    let backend = choose(&arguments.backend.backend)?;
    let budget = Duration::from_secs_f64(arguments.budget.unwrap_or(if arguments.quick { 0.2 } else { 1.0 }));
    let dtypes = if arguments.dtype.is_empty() { &[DType::BF16][..] } else { &arguments.dtype };
    let cases = selected(arguments, &*backend)?;
    let as_json = arguments.json || !report::is_terminal();
    let bar = report::progress(cases.len() * dtypes.len());
    let mut measured = Vec::new();
    for dtype in dtypes {
        for case in &cases {
            bar.set_message(format!("{} {dtype}", case.name()));
            let measurement = Measurement::take(&*backend, case, *dtype, budget);
            bar.suspend(|| match measurement {
                Ok(measurement) if as_json => report::print_json(&measurement.to_json(&*backend)),
                Ok(measurement) => {
                    measured.push(measurement);
                    Ok(())
                }
                // One case that a backend cannot do does not end the others.
                Err(error @ omniflash::Error::Unsupported { .. }) if as_json => report::print_json(
                    &json!({"case": case.name(), "dtype": workload::dtype_name(*dtype), "skip": error.to_string()}),
                ),
                Err(error @ omniflash::Error::Unsupported { .. }) => {
                    report::print_line(format_args!("{} skipped: {error}", case.name()))
                }
                Err(error) => Err(anyhow::Error::new(error).context(case.name())),
            })?;
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    if !as_json {
        print_table(&*backend, &measured)?;
    }
    Ok(Verdict::Passed)
}

fn selected(arguments: &BenchArguments, backend: &dyn Backend) -> anyhow::Result<Vec<BenchCase>> {
    let is_wanted = |group: Group| arguments.groups.is_empty() || arguments.groups.contains(&group);
    let mut cases: Vec<BenchCase> = Group::ALL
        .iter()
        .filter(|&&g| is_wanted(g))
        .flat_map(|&g| grid(g, backend, arguments.quick))
        .collect();
    if let Some(text) = &arguments.case {
        let names: Vec<String> = cases.iter().map(BenchCase::name).collect();
        cases.retain(|case| case.name().contains(text.as_str()));
        anyhow::ensure!(
            !cases.is_empty(),
            "--case is {text}, expected a part of one of {}",
            names.join(", ")
        );
    }
    Ok(cases)
}

fn print_table(backend: &dyn Backend, measured: &[Measurement]) -> anyhow::Result<()> {
    let mut table = report::table(&["case", "dtype", "median", "spread", "rate"]);
    for measurement in measured {
        let arithmetic = measurement.tflops().map(|tflops| report::flops_rate(tflops * 1e12));
        let memory = measurement.tbps().map(|tbps| report::bytes_rate(tbps * 1e12));
        table.add_row([
            measurement.case.name(),
            measurement.dtype.to_string(),
            report::milliseconds(measurement.samples.median()),
            format!("± {:.1} %", 50.0 * measurement.samples.relative_spread()),
            arithmetic.or(memory).unwrap_or_default(),
        ]);
    }
    report::align_numbers(&mut table, 2..5);
    let info = backend.info();
    report::print_line(format_args!(
        "{} ({}, {}), {}",
        report::heading(&info.name),
        info.device_name,
        info.arch,
        clock_of(backend).method()
    ))?;
    report::print_line(table)
}

/// The one case that the arguments describe, if they do.
fn single_case(arguments: &SingleCaseArguments) -> Option<BenchCase> {
    // The parser has made sure that all are there or none.
    Some(BenchCase {
        batch: arguments.b?,
        seqlen_q: arguments.sq?,
        seqlen_k: arguments.skv?,
        num_heads: arguments.hq?,
        num_kv_heads: arguments.hkv?,
        head_dim: arguments.d?,
        form: if arguments.causal? == 1 { Form::Causal } else { Form::Full },
    })
}
