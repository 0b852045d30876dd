//! `omniflash bench`: how fast the backends of this machine are, as shares of what its devices can do.

use std::fs::OpenOptions;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use indicatif::ProgressBar;
use omniflash::measure::Peaks;
use omniflash::{Backend, DType, Error, Registry};
use serde_json::json;

use crate::Verdict;
use crate::arguments::{BenchArguments, SingleCaseArguments};
use crate::results::Record;
use crate::{report, terminal};

mod clock;
mod compare;
mod grid;
mod measure;
mod mode;
mod peers;
mod schedule;
mod single;
mod steps;
mod table;
mod workload;

pub(crate) use clock::time;
use compare::Baseline;
pub(crate) use grid::Group;
use grid::grid;
use measure::{record, record_of_case, take_in_turns};
pub(crate) use mode::Mode;
use schedule::Schedule;
use workload::dtype_name;
pub(crate) use workload::{BenchCase, Form, Workload};

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
    let backends = backends(&arguments.backend)?;
    Mode::check(arguments.mode, &backends)?;
    check_algorithm(arguments)?;
    peers::check_systems(arguments, &backends)?;
    let baseline = match &arguments.compare {
        Some(path) => Some(Baseline::read(path, arguments.threshold / 100.0)?),
        None => None,
    };
    let mut bench = Bench {
        arguments,
        schedule: Schedule::new(arguments),
        dtypes: if arguments.dtype.is_empty() { vec![DType::BF16] } else { arguments.dtype.clone() },
        as_json: arguments.json || !terminal::is_terminal(),
        baseline,
        records: Vec::new(),
        bar: terminal::progress(0),
    };
    bench.check_filter(&backends)?;
    bench.schedule.begin(backends.iter().map(|backend| bench.steps(&**backend)).sum())?;
    for backend in &backends {
        bench.measure(&**backend)?;
    }
    if arguments.peers {
        bench.bar.finish_and_clear();
        let mut taken = Vec::new();
        let limit = bench.schedule.limit_of_peers(peers::known(&backends));
        peers::run(arguments, &backends, limit, |record| {
            bench.emit(&record)?;
            taken.push(record);
            Ok(())
        })?;
        if !bench.as_json {
            table::print_peers(&taken)?;
        }
    }
    if let (Some(page), Some(lines)) = (&arguments.page, &arguments.out) {
        terminal::print_note(report::write_page(std::slice::from_ref(lines), page)?)?;
    }
    match &bench.baseline {
        Some(baseline) if baseline.conclude(&bench.records, !bench.as_json)? => Ok(Verdict::OutOfTolerance),
        _ => Ok(Verdict::Passed),
    }
}

/// Refuses a group by name that times no family of kernels.
fn check_algorithm(arguments: &BenchArguments) -> anyhow::Result<()> {
    let algorithm = arguments.algorithm;
    match arguments.groups.iter().find(|group| !group.takes(algorithm)) {
        Some(group) => {
            anyhow::bail!("--algorithm is {algorithm}, expected auto for the group {}", group.name())
        }
        None => Ok(()),
    }
}

/// The backends of these names; `all` is every one but the reference, which is not made for speed.
fn backends(names: &[String]) -> anyhow::Result<Vec<Arc<dyn Backend>>> {
    let registry = Registry::discover();
    let mut found: Vec<Arc<dyn Backend>> = Vec::new();
    for name in names {
        let named = match name.as_str() {
            "all" => registry
                .backends()
                .iter()
                .filter(|backend| backend.info().name != "reference")
                .cloned()
                .collect(),
            "auto" => vec![registry.best()?],
            name => vec![registry.get(name)?],
        };
        for backend in named {
            if found.iter().all(|other| other.info().name != backend.info().name) {
                found.push(backend);
            }
        }
    }
    Ok(found)
}

/// A run over the grids.
struct Bench<'a> {
    arguments: &'a BenchArguments,
    schedule: Schedule,
    dtypes: Vec<DType>,
    as_json: bool,
    baseline: Option<Baseline>,
    records: Vec<Record>,
    bar: ProgressBar,
}

impl Bench<'_> {
    fn groups(&self) -> impl Iterator<Item = Group> {
        let BenchArguments { groups: wanted, algorithm, .. } = self.arguments;
        let is_wanted = move |group: &Group| wanted.is_empty() || wanted.contains(group);
        Group::ALL.into_iter().filter(is_wanted).filter(|group| group.takes(*algorithm))
    }

    fn cases(&self, backend: &dyn Backend) -> Vec<(Group, BenchCase)> {
        let filter = self.arguments.case.as_deref().unwrap_or_default();
        self.groups()
            .flat_map(|group| {
                grid(group, backend, self.arguments.quick).into_iter().map(move |case| (group, case))
            })
            .filter(|(_, case)| case.name().contains(filter))
            .collect()
    }

    /// How many budgets the backend's cases and steps take.
    fn steps(&self, backend: &dyn Backend) -> usize {
        let timed = self.groups().filter(|group| !group.is_throughput() && self.arguments.case.is_none());
        self.cases(backend).len() * self.dtypes.len() + timed.map(Group::budgets).sum::<usize>()
    }

    /// Refuses a `--case` that selects nothing.
    fn check_filter(&self, backends: &[Arc<dyn Backend>]) -> anyhow::Result<()> {
        let Some(text) = &self.arguments.case else { return Ok(()) };
        if backends.iter().any(|backend| !self.cases(&**backend).is_empty()) {
            return Ok(());
        }
        let all = backends.iter().flat_map(|backend| {
            self.groups().flat_map(|group| grid(group, &**backend, self.arguments.quick))
        });
        let names: Vec<String> = all.map(|case| case.name()).collect();
        anyhow::bail!("--case is {text}, expected a part of one of {}", names.join(", "))
    }

    fn measure(&mut self, backend: &dyn Backend) -> anyhow::Result<()> {
        let cases = self.cases(backend);
        let peaks = self.peaks(backend, &cases)?;
        let first = self.records.len();
        self.bar = terminal::progress(cases.len() * self.dtypes.len());
        let (dtypes, mode) = (self.dtypes.clone(), Mode::of(backend, self.arguments.mode));
        let algorithm = self.arguments.algorithm;
        for (group, case) in &cases {
            self.bar.set_message(format!("{} {}", backend.info().name, case.name()));
            let budget = self.schedule.next(*group, dtypes.len());
            let measured = take_in_turns(backend, case, &dtypes, algorithm, budget, mode);
            for (dtype, samples) in dtypes.iter().copied().zip(measured) {
                let record = samples.map(|samples| {
                    let mut record = record_of_case(backend, case, dtype, algorithm, &samples, &peaks);
                    record.mode = mode.map(|mode| mode.name().into());
                    vec![record]
                });
                self.take(backend, *group, &case.name(), dtype, record)?;
                self.bar.inc(1);
            }
        }
        if self.arguments.case.is_none() {
            for group in self.groups().filter(|group| !group.is_throughput()).collect::<Vec<_>>() {
                self.bar.set_message(format!("{} {}", backend.info().name, group.name()));
                let budget = self.schedule.next(group, group.budgets());
                let steps = match group {
                    Group::Jit => steps::first_use(&backend.info().name),
                    _ => steps::overhead(backend, budget),
                };
                let records = steps.map(|steps| {
                    let of_step = |(name, samples)| record(backend, name, DType::BF16, &samples);
                    steps.into_iter().map(of_step).collect()
                });
                self.take(backend, group, group.name(), DType::BF16, records)?;
            }
        }
        self.bar.finish_and_clear();
        self.schedule.tell(&backend.info().name)?;
        if !self.as_json {
            table::print(backend, &peaks, &self.records[first..])?;
        }
        Ok(())
    }

    /// The peaks that the cases need.
    fn peaks(&mut self, backend: &dyn Backend, cases: &[(Group, BenchCase)]) -> anyhow::Result<Peaks> {
        if cases.is_empty() {
            return Ok(Peaks::default());
        }
        self.bar.set_message(format!("{} peaks", backend.info().name));
        let stream = backend.stream()?;
        match backend.measure_peaks(&stream, self.arguments.budget().min(Duration::from_millis(300))) {
            Ok(peaks) => Ok(peaks),
            // Figures without a share are still figures.
            Err(error) => {
                terminal::print_note(format_args!("{}: no peaks: {error}", backend.info().name))?;
                Ok(Peaks::default())
            }
        }
    }

    /// Keeps and writes what a case gave. One that a backend cannot do does not end the others.
    fn take(
        &mut self,
        backend: &dyn Backend,
        group: Group,
        case: &str,
        dtype: DType,
        records: omniflash::Result<Vec<Record>>,
    ) -> anyhow::Result<()> {
        match records {
            Ok(records) => {
                for mut record in records {
                    record.group = Some(group.name().into());
                    if let Some(baseline) = &self.baseline {
                        baseline.mark(&mut record);
                    }
                    self.emit(&record)?;
                    self.records.push(record);
                }
                Ok(())
            }
            Err(error @ (Error::Unsupported { .. } | Error::NoKernel { .. } | Error::OutOfMemory { .. })) => {
                let skip = json!({
                    "case": case,
                    "dtype": dtype_name(dtype),
                    "backend": backend.info().name,
                    "skip": error.to_string(),
                });
                self.save(&skip.to_string())?;
                self.bar.suspend(|| match self.as_json {
                    true => terminal::print_json(&skip),
                    false => terminal::print_line(format_args!("{case} skipped: {error}")),
                })
            }
            Err(error) => Err(anyhow::Error::new(error).context(case.to_owned())),
        }
    }

    fn emit(&self, record: &Record) -> anyhow::Result<()> {
        let line = serde_json::to_string(record).context("a measurement cannot be written as JSON")?;
        self.save(&line)?;
        if self.as_json { self.bar.suspend(|| terminal::print_line(&line)) } else { Ok(()) }
    }

    /// Appends a line to the file that was asked for.
    fn save(&self, line: &str) -> anyhow::Result<()> {
        let Some(path) = &self.arguments.out else { return Ok(()) };
        let context = || format!("cannot write {}", path.display());
        let mut file = OpenOptions::new().create(true).append(true).open(path).with_context(context)?;
        writeln!(file, "{line}").with_context(context)
    }
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
        form: arguments.form.unwrap_or(if arguments.causal? == 1 { Form::Causal } else { Form::Full }),
    })
}
