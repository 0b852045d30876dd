//! The table, and the way a backend goes through it.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use omniflash_core::{Backend, Error};

use crate::case::{Case, Outcome};
use crate::expectations::{self, EXPECTATIONS, Expectation, Expected};
use crate::spec::Spec;
use crate::tolerance::{Oracle, Precision, Violation, difference, first_sequence};

mod f1_core;
mod f2_odd_dims;
mod f3_strides;
mod f4_masks;
mod f5_mods;
mod f6_varlen;
mod f7_decode;
mod f8_extremes;
mod seed;

/// One row of the table: a question and the cases that answer it.
#[derive(Clone, Copy)]
pub struct Row {
    /// Start of the names of its cases.
    pub name: &'static str,
    /// What it asks.
    pub question: &'static str,
    /// Its cases.
    pub cases: fn() -> Vec<Spec>,
}

/// The table.
pub const TABLE: &[Row] = &[
    Row { name: "f1", question: "sizes, types, groups, causal and not", cases: f1_core::cases },
    Row { name: "f2", question: "head_dim and value_dim off the beaten track", cases: f2_odd_dims::cases },
    Row { name: "f3", question: "strides of every kind", cases: f3_strides::cases },
    Row { name: "f4", question: "masks and positions", cases: f4_masks::cases },
    Row { name: "f5", question: "score modifications and sinks", cases: f5_mods::cases },
    Row { name: "f6", question: "sequences of different lengths", cases: f6_varlen::cases },
    Row { name: "f7", question: "caches, pages, decoding, partitions", cases: f7_decode::cases },
    Row { name: "f8", question: "extreme numbers and sizes", cases: f8_extremes::cases },
    Row { name: "seed", question: "the cases of the seed's own tests", cases: seed::cases },
];

/// Which part of the table to run.
#[derive(Clone, Debug)]
pub struct Filter {
    /// Pattern of the names of cases; `*` is any text.
    pub pattern: String,
    /// Multiplications to spend, shared equally by the rows and spent on the cheapest cases first.
    pub budget: Option<u64>,
    /// Runs a case a second time, to compare bits, up to this cost.
    pub repeat_up_to: u64,
    /// Leaves out every case that costs more.
    pub most: u64,
    /// Keeps one part of so many: the same cases whatever else is in the table.
    pub share: (u64, u64),
}

impl Filter {
    /// The whole table, every case run twice.
    pub fn all() -> Self {
        Filter { pattern: "*".into(), budget: None, repeat_up_to: u64::MAX, most: u64::MAX, share: (0, 1) }
    }

    /// The cases whose names match a pattern.
    pub fn only(pattern: impl Into<String>) -> Self {
        Filter { pattern: pattern.into(), ..Filter::all() }
    }

    /// A reduced table, for emulators and sanitizers: see [`Filter::budget`].
    pub fn budget(mut self, multiplications: u64) -> Self {
        self.budget = Some(multiplications);
        self
    }

    /// Repeats only cheap cases.
    pub fn repeat_up_to(mut self, multiplications: u64) -> Self {
        self.repeat_up_to = multiplications;
        self
    }

    /// Only cases of at most this cost.
    pub fn up_to(mut self, multiplications: u64) -> Self {
        self.most = multiplications;
        self
    }

    /// Part `part` of `parts` that together are all cases; which case is in which depends on its name alone.
    pub fn share(mut self, part: u64, parts: u64) -> Self {
        self.share = (part, parts);
        self
    }

    fn is_ours(&self, name: &str) -> bool {
        let (part, parts) = self.share;
        name_hash(name) % parts == part
    }

    /// The cases of a row that it keeps, in their order.
    pub fn select(&self, row: &Row) -> Vec<Spec> {
        let mut cases: Vec<Spec> = (row.cases)();
        cases.retain(|spec| {
            expectations::matches(&self.pattern, &spec.name)
                && spec.cost() <= self.most
                && self.is_ours(&spec.name)
        });
        let Some(budget) = self.budget else { return cases };
        let mut by_cost: Vec<(u64, usize)> =
            cases.iter().enumerate().map(|(at, spec)| (spec.cost(), at)).collect();
        by_cost.sort_unstable();
        let mut left = budget / TABLE.len() as u64;
        let mut kept = vec![false; cases.len()];
        for (cost, at) in by_cost {
            if cost > left {
                break;
            }
            left -= cost;
            kept[at] = true;
        }
        let mut kept = kept.into_iter();
        cases.retain(|_| kept.next().unwrap_or(false));
        cases
    }
}

/// What came of one row.
#[derive(Clone, Debug, Default)]
pub struct RowSummary {
    /// The row's name.
    pub name: String,
    /// The row's question.
    pub question: String,
    /// Cases run.
    pub cases: usize,
    /// Cases that passed.
    pub passed: usize,
    /// Reasons for cases that are expected not to pass, and how many each explains.
    pub skipped: BTreeMap<&'static str, usize>,
    /// Time spent in the backend.
    pub elapsed: Duration,
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Summary {
    /// The backend's name and architecture.
    pub backend: String,
    /// Row by row.
    pub rows: Vec<RowSummary>,
    /// All that is wrong: the case, its seed, and what.
    pub violations: Vec<(String, String, Violation)>,
}

impl Summary {
    /// Cases that passed.
    pub fn passed(&self) -> usize {
        self.rows.iter().map(|row| row.passed).sum()
    }

    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.violations.is_empty()
    }

    /// Fails a test with the list of violations.
    ///
    /// # Panics
    /// When something is wrong, or when no case was run.
    pub fn assert_clean(&self) {
        assert!(self.is_clean(), "{self}");
        assert!(self.rows.iter().any(|row| row.cases > 0), "no case was selected: {self}");
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.backend)?;
        for row in self.rows.iter().filter(|row| row.cases > 0) {
            write!(
                f,
                "  {:<5} {:>4} cases {:>4} passed {:>7.2} s  {}",
                row.name,
                row.cases,
                row.passed,
                row.elapsed.as_secs_f64(),
                row.question
            )?;
            for (reason, count) in &row.skipped {
                write!(f, "; {count} expected not to: {reason}")?;
            }
            writeln!(f)?;
        }
        for (case, seed, violation) in &self.violations {
            write!(f, "  {case}")?;
            if seed != case {
                write!(f, " (seed {seed})")?;
            }
            writeln!(f, ": {violation}")?;
        }
        Ok(())
    }
}

/// Takes a backend through the table.
///
/// # Panics
/// When a case itself is invalid: a mistake in the table.
pub fn run(backend: &dyn Backend, filter: &Filter) -> Summary {
    run_all(&[backend], filter, EXPECTATIONS).pop().expect("one backend, one summary")
}

/// Takes several backends through the table together: references are computed once.
///
/// # Panics
/// As [`run`].
pub fn run_all(backends: &[&dyn Backend], filter: &Filter, expectations: &[Expectation]) -> Vec<Summary> {
    run_scheduled(backends, filter, expectations, &InOrder)
}

/// Which cases run where, in which order, by how many threads.
pub trait Schedule: Sync {
    /// The forms in which a case runs, each under a name of its own: itself, unless a schedule has shorter ones too.
    fn forms(&self, spec: Spec) -> Vec<Spec> {
        vec![spec]
    }

    /// Whether a backend, by its index, runs a case.
    fn is_chosen(&self, spec: &Spec, backend: usize) -> bool;

    /// Threads that take up groups, one after the other.
    fn threads(&self) -> usize;

    /// Cases that one thread runs one after the other, in groups: the indices of all.
    fn groups(&self, specs: &[Spec]) -> Vec<Vec<usize>>;

    /// Called by the thread that takes up a group, before its first case.
    fn begin(&self, group: &[&Spec]);
}

/// Every case on every backend, in the order of the table.
struct InOrder;

impl Schedule for InOrder {
    fn is_chosen(&self, _: &Spec, _: usize) -> bool {
        true
    }

    fn threads(&self) -> usize {
        1
    }

    fn groups(&self, specs: &[Spec]) -> Vec<Vec<usize>> {
        vec![(0..specs.len()).collect()]
    }

    fn begin(&self, _: &[&Spec]) {}
}

/// As [`run_all`], as a schedule has it.
///
/// # Panics
/// As [`run`].
pub fn run_scheduled(
    backends: &[&dyn Backend],
    filter: &Filter,
    expectations: &[Expectation],
    schedule: &dyn Schedule,
) -> Vec<Summary> {
    let (rows, specs): (Vec<usize>, Vec<Spec>) = (0..)
        .zip(TABLE)
        .flat_map(|(row, of)| {
            filter.select(of).into_iter().flat_map(|spec| schedule.forms(spec)).map(move |spec| (row, spec))
        })
        .filter(|(_, spec)| (0..backends.len()).any(|at| schedule.is_chosen(spec, at)))
        .unzip();
    let groups = schedule.groups(&specs);
    let runners: Vec<Runner<'_>> =
        backends.iter().map(|backend| Runner::new(*backend, expectations)).collect();
    let run = |at: usize| {
        let (row, spec) = (rows[at], &specs[at]);
        let case = spec.build();
        let oracle = Oracle::new(&case)
            .unwrap_or_else(|error| panic!("the table is wrong: case {} is invalid: {error}", case.name));
        let yardstick = oracle.check_yardstick(&case, if spec.extreme { 1e5 } else { 16.0 });
        for (_, runner) in (0..).zip(&runners).filter(|(at, _)| schedule.is_chosen(spec, *at)) {
            runner.run(row, spec, &case, &oracle, spec.cost() <= filter.repeat_up_to);
            runner.complain(&case, yardstick.clone());
        }
    };
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(group) = groups.get(next.fetch_add(1, Ordering::Relaxed)) {
            schedule.begin(&group.iter().map(|&at| &specs[at]).collect::<Vec<_>>());
            group.iter().for_each(|&at| run(at));
        }
    };
    match schedule.threads() {
        1 => work(),
        threads => std::thread::scope(|scope| (0..threads).for_each(|_| _ = scope.spawn(work))),
    }
    runners.into_iter().map(Runner::into_summary).collect()
}

/// A number that depends on a name alone.
fn name_hash(name: &str) -> u64 {
    let hash = blake3::hash(name.as_bytes());
    u64::from_le_bytes(*hash.as_bytes().first_chunk().expect("a hash has 32 bytes"))
}

/// One backend on its way through the table.
struct Runner<'r> {
    backend: &'r dyn Backend,
    expectations: &'r [Expectation],
    twins: Mutex<HashMap<String, (String, TwinBits)>>,
    summary: Mutex<Summary>,
}

type TwinBits = Vec<(&'static str, Vec<Vec<u8>>)>;

impl<'r> Runner<'r> {
    fn new(backend: &'r dyn Backend, expectations: &'r [Expectation]) -> Self {
        let info = backend.info();
        let rows = TABLE.iter().map(|row| RowSummary {
            name: row.name.into(),
            question: row.question.into(),
            ..RowSummary::default()
        });
        Runner {
            backend,
            expectations,
            twins: Mutex::default(),
            summary: Mutex::new(Summary {
                backend: format!("{} ({}, {})", info.name, info.device_name, info.arch),
                rows: rows.collect(),
                violations: Vec::new(),
            }),
        }
    }

    /// The summary, its violations in the order of their cases' names.
    fn into_summary(self) -> Summary {
        let mut summary = self.summary.into_inner().unwrap_or_else(PoisonError::into_inner);
        summary.violations.sort_by(|one, other| one.0.cmp(&other.0));
        summary
    }

    fn summary(&self) -> MutexGuard<'_, Summary> {
        self.summary.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn complain(&self, case: &Case, violations: impl IntoIterator<Item = Violation>) {
        let named = violations.into_iter().map(|violation| (case.name.clone(), case.seed.clone(), violation));
        self.summary().violations.extend(named);
    }

    fn run(&self, row: usize, spec: &Spec, case: &Case, oracle: &Oracle, repeat: bool) {
        let expectation = expectations::lookup(self.expectations, self.backend.info(), &case.name).copied();
        let started = Instant::now();
        let violations = match (case.run(self.backend), expectation.map(|line| line.expected)) {
            (Err(Error::Unsupported { .. }), Some(Expected::Unsupported)) => None,
            (Err(error @ Error::Unsupported { .. }), _) => Some(vec![Violation::Unlisted(error)]),
            (Err(error), _) => Some(vec![Violation::Failed(error)]),
            (Ok(outcome), _) => Some(self.judge(spec, case, oracle, &outcome, repeat)),
        };
        let mut summary = self.summary();
        let row = &mut summary.rows[row];
        row.elapsed += started.elapsed();
        row.cases += 1;
        let report = match (violations, expectation) {
            (None, Some(line)) => {
                *row.skipped.entry(line.reason).or_default() += 1;
                Vec::new()
            }
            (Some(violations), Some(line)) if violations.is_empty() => {
                vec![Violation::UnexpectedPass { reason: line.reason }]
            }
            (Some(_), Some(line)) if line.expected == Expected::Failure => {
                *row.skipped.entry(line.reason).or_default() += 1;
                Vec::new()
            }
            (Some(violations), _) => {
                row.passed += usize::from(violations.is_empty());
                violations
            }
            (None, None) => unreachable!("only an expectation excuses"),
        };
        drop(summary);
        self.complain(case, report);
    }

    fn judge(
        &self,
        spec: &Spec,
        case: &Case,
        oracle: &Oracle,
        outcome: &Outcome,
        repeat: bool,
    ) -> Vec<Violation> {
        let mut violations = oracle.judge(case, outcome, Precision::of(self.backend.info()));
        if repeat {
            match case.run(self.backend) {
                Ok(again) => violations.extend(difference(outcome, &again)),
                Err(error) => violations.push(Violation::Failed(error)),
            }
        }
        if let Some(group) = &spec.twin {
            let bits = first_sequence(case, outcome);
            let mut twins = self.twins.lock().unwrap_or_else(PoisonError::into_inner);
            match twins.get(group) {
                Some((other, expected)) => violations.extend(twin_difference(other, expected, &bits)),
                None => {
                    twins.insert(group.clone(), (case.name.clone(), bits));
                }
            }
        }
        violations
    }
}

fn twin_difference(other: &str, expected: &TwinBits, found: &TwinBits) -> Option<Violation> {
    expected.iter().zip(found).find_map(|((tensor, expected), (_, found))| {
        let row = (0..expected.len().max(found.len())).find(|&row| expected.get(row) != found.get(row))?;
        Some(Violation::NotTwin { tensor, row, other: other.into() })
    })
}

/// Names of the table and of what it selects, for listings.
pub fn names() -> Vec<String> {
    TABLE.iter().flat_map(|row| (row.cases)()).map(|spec| spec.name).collect()
}

#[cfg(test)]
mod tests;
