//! The page: which charts and tables a set of result files gives.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use anyhow::Context;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Value, context};
use serde::Serialize;

use super::chart::{BarValue, Bars, Chart, Plot, Scale, Series};
use super::comparison::{Cell, cells, summary};
use super::kernels::{Architecture, architectures};
use crate::results::{CaseName, Record, Results};
use crate::terminal::{milliseconds, three_digits};

/// The colours of the page; a system beyond them shares one.
const COLOURS: usize = 8;

const TEMPLATES: [(&str, &str); 4] = [
    ("page.html", include_str!("page.html")),
    ("chart.html", include_str!("chart.html")),
    ("style.css", include_str!("style.css")),
    ("picture.svg", include_str!("picture.svg")),
];

/// Everything that one file shows.
#[derive(Debug, Serialize)]
struct Section {
    name: String,
    device: String,
    origin: Vec<(String, String)>,
    throughput: Vec<Chart>,
    shapes: Vec<Bars>,
    decode: Vec<Bars>,
    rooflines: Vec<Chart>,
    errors: Vec<Bars>,
    cells: Vec<CellRow>,
    /// Geometric mean and smallest ratio.
    summary: Option<(String, String)>,
    /// The most threads, whose runs the charts show; none where records do not say.
    threads: Option<u64>,
    steps: Vec<StepRow>,
    architectures: Vec<Architecture>,
    skipped: Vec<String>,
}

#[derive(Debug, Serialize)]
struct CellRow {
    case: String,
    dtype: String,
    threads: Option<u64>,
    ours: String,
    best: String,
    best_system: String,
    ratio: String,
    /// `ahead`, `level` or `behind`.
    verdict: &'static str,
}

#[derive(Debug, Serialize)]
struct StepRow {
    system: String,
    case: String,
    median: String,
    spread: String,
}

/// The page of some result files, as one HTML text that needs nothing else.
pub(super) fn html(files: &[Results]) -> anyhow::Result<String> {
    let sections: Vec<Section> = files.iter().map(section).collect();
    rendered(
        "page.html",
        context! {
            sections => Value::from(Serde(&sections)),
            version => env!("CARGO_PKG_VERSION"),
        },
    )
}

/// One chart as a picture by itself.
pub(super) fn svg(chart: &Chart) -> anyhow::Result<String> {
    rendered("picture.svg", context! { chart => Value::from(Serde(chart)) })
}

fn rendered(template: &str, context: Value) -> anyhow::Result<String> {
    let render = || -> Result<String, minijinja::Error> {
        let mut environment = Environment::new();
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        for (name, text) in TEMPLATES {
            environment.add_template(name, text)?;
        }
        environment.get_template(template)?.render(context)
    };
    render().with_context(|| format!("template {template}"))
}

/// The numbers of the systems of a file, ours first: a number is a colour.
pub(super) struct Systems(Vec<String>);

impl Systems {
    pub(super) fn of(file: &Results) -> Self {
        let (ours, peers): (Vec<&Record>, Vec<&Record>) =
            file.records.iter().partition(|record| record.is_ours());
        let mut names: Vec<String> = Vec::new();
        for record in ours.into_iter().chain(peers) {
            if !names.contains(&record.system) {
                names.push(record.system.clone());
            }
        }
        Systems(names)
    }

    fn number(&self, name: &str) -> usize {
        self.0.iter().position(|found| found == name).unwrap_or_default() % COLOURS
    }
}

fn section(file: &Results) -> Section {
    let systems = &Systems::of(file);
    let sized: Vec<Sized<'_>> = charted(file).into_iter().filter_map(Sized::new).collect();
    let cells = cells(file);
    let summary = summary(&cells).map(|(mean, smallest)| (three_digits(mean), three_digits(smallest)));
    Section {
        name: file.name.clone(),
        device: file.origin("device").unwrap_or_default().into(),
        origin: file.origin.clone(),
        throughput: throughput(&sized, systems),
        shapes: shapes(&sized, systems),
        decode: decode(&sized, systems),
        rooflines: rooflines(&sized, systems),
        errors: errors(file, systems),
        cells: cells.iter().map(cell_row).collect(),
        summary,
        threads: most_threads(file),
        steps: file
            .records
            .iter()
            .filter(|record| CaseName::parse(&record.case).is_none())
            .map(step_row)
            .collect(),
        architectures: architectures(file),
        skipped: file.skipped.clone(),
    }
}

/// A record whose name says its sizes.
pub(super) struct Sized<'r> {
    record: &'r Record,
    case: CaseName,
}

impl<'r> Sized<'r> {
    pub(super) fn new(record: &'r Record) -> Option<Self> {
        Some(Sized { case: CaseName::parse(&record.case)?, record })
    }

    fn is_curve(&self) -> bool {
        !self.case.is_decode && !self.case.is_ragged && matches!(self.case.form.as_str(), "full" | "causal")
    }
}

fn most_threads(file: &Results) -> Option<u64> {
    file.records.iter().filter_map(|record| record.threads).max()
}

/// The records that charts show: those of the most threads, and the last where runs repeat a case.
pub(super) fn charted(file: &Results) -> Vec<&Record> {
    let most = most_threads(file);
    let mut last: Vec<&Record> = Vec::new();
    for record in file.records.iter().filter(|record| record.threads.is_none() || record.threads == most) {
        match last.iter_mut().find(|other| other.key() == record.key()) {
            Some(other) => *other = record,
            None => last.push(record),
        }
    }
    last
}

/// Operations a second in a unit that gives readable numbers: the factor from 10^12, and its name.
fn unit(largest: f64, giga: &'static str, tera: &'static str) -> (f64, &'static str) {
    if largest < 1.0 { (1e3, giga) } else { (1.0, tera) }
}

fn largest(rates: impl Iterator<Item = f64>) -> f64 {
    rates.fold(0.0, f64::max)
}

/// Rates over lengths, a chart for each dtype, head shape and mask of which there are several lengths.
pub(super) fn throughput(sized: &[Sized<'_>], systems: &Systems) -> Vec<Chart> {
    // Full before causal.
    let mut families: BTreeMap<(String, usize, bool, String), Vec<&Sized<'_>>> = BTreeMap::new();
    for one in sized.iter().filter(|one| one.is_curve()) {
        let is_causal = one.case.form == "causal";
        let key = (one.record.dtype.clone(), one.case.head_dim, is_causal, one.case.family());
        families.entry(key).or_default().push(one);
    }
    families.retain(|_, of| of.iter().any(|one| one.case.seqlen_k != of[0].case.seqlen_k));
    let (factor, unit) =
        unit(largest(families.values().flatten().filter_map(|one| one.record.tflops)), "GFLOP/s", "TFLOP/s");
    families
        .into_iter()
        .map(|((dtype, _, _, family), mut of)| {
            // A curve has one point a length, that of the largest batch.
            of.sort_by_key(|one| Reverse(one.case.batch));
            let mut by_system: BTreeMap<&str, Vec<(f64, f64, String)>> = BTreeMap::new();
            for one in of {
                let Some(rate) = one.record.tflops else { continue };
                let text = format!(
                    "{}: {} {unit}, {}",
                    one.record.system,
                    three_digits(rate * factor),
                    one.record.case
                );
                let point = (one.case.seqlen_k as f64, rate * factor, text);
                by_system.entry(&one.record.system).or_default().push(point);
            }
            let series = by_system.into_iter().map(|(name, mut points)| {
                points.sort_by(|a, b| a.0.total_cmp(&b.0));
                points.dedup_by_key(|point| point.0);
                Series { system: systems.number(name), name: name.into(), points, is_joined: true }
            });
            Plot {
                title: format!("{dtype}, {family}"),
                x: (Scale::Log2, "sequence length"),
                y: (Scale::Linear, unit),
                series: series.collect(),
                guides: Vec::new(),
            }
            .chart()
        })
        .collect()
}

/// Prefill cases that no curve shows, as bars: single shapes, masks, ragged batches.
fn shapes(sized: &[Sized<'_>], systems: &Systems) -> Vec<Bars> {
    let lengths_of = |one: &Sized<'_>| {
        let same = |other: &&Sized<'_>| {
            other.is_curve()
                && other.case.family() == one.case.family()
                && other.record.dtype == one.record.dtype
        };
        let mut lengths: Vec<usize> = sized.iter().filter(same).map(|other| other.case.seqlen_k).collect();
        lengths.sort_unstable();
        lengths.dedup();
        lengths.len()
    };
    let chosen: Vec<&Sized<'_>> =
        sized.iter().filter(|one| !one.case.is_decode && (!one.is_curve() || lengths_of(one) < 2)).collect();
    bars_by_dtype(&chosen, systems, |record| record.tflops, ("GFLOP/s", "TFLOP/s"), |_| Vec::new())
}

/// Bytes a second of decode cases, beside what the device reads: whole caches, then pages.
fn decode(sized: &[Sized<'_>], systems: &Systems) -> Vec<Bars> {
    let (paged, dense): (Vec<&Sized<'_>>, Vec<_>) =
        sized.iter().filter(|one| one.case.is_decode).partition(|one| !one.case.form.is_empty());
    let mut charts = decode_bars(&dense, systems);
    charts.extend(decode_bars(&paged, systems).into_iter().map(|mut bars| {
        bars.title.push_str(", from pages and otherwise");
        bars
    }));
    charts
}

fn decode_bars(chosen: &[&Sized<'_>], systems: &Systems) -> Vec<Bars> {
    bars_by_dtype(
        chosen,
        systems,
        |record| record.tbps,
        ("GB/s", "TB/s"),
        |of| {
            of.iter()
                .find_map(|one| one.record.peak_read_tbps)
                .map(|peak| (peak, "measured read".into()))
                .into_iter()
                .collect()
        },
    )
}

fn bars_by_dtype(
    chosen: &[&Sized<'_>],
    systems: &Systems,
    rate: impl Fn(&Record) -> Option<f64>,
    units: (&'static str, &'static str),
    marks: impl Fn(&[&Sized<'_>]) -> Vec<(f64, String)>,
) -> Vec<Bars> {
    let (factor, unit) = unit(largest(chosen.iter().filter_map(|one| rate(one.record))), units.0, units.1);
    let mut by_dtype: BTreeMap<&str, Vec<&Sized<'_>>> = BTreeMap::new();
    for one in chosen {
        by_dtype.entry(&one.record.dtype).or_default().push(one);
    }
    by_dtype
        .into_iter()
        .map(|(dtype, of)| {
            let mut groups: Vec<(String, Vec<BarValue>)> = Vec::new();
            for one in &of {
                let Some(found) = rate(one.record) else { continue };
                let bar = bar(systems, &one.record.system, found * factor, &three_digits(found * factor));
                let name = one.record.case.clone();
                match groups.iter_mut().find(|group| group.0 == name) {
                    Some(group) => group.1.push(bar),
                    None => groups.push((name, vec![bar])),
                }
            }
            groups.iter_mut().for_each(|group| group.1.sort_by_key(|bar| bar.0));
            let marks = marks(&of).into_iter().map(|(value, text)| (value * factor, text)).collect();
            Bars::new(format!("{dtype}, {unit}"), groups, marks)
        })
        .collect()
}

fn bar(systems: &Systems, system: &str, value: f64, text: &str) -> BarValue {
    (systems.number(system), system.into(), value, text.into())
}

/// Rates over operations a byte, under what the device can do, a chart for each device and dtype.
fn rooflines(sized: &[Sized<'_>], systems: &Systems) -> Vec<Chart> {
    let mut by_device: BTreeMap<(&str, &str), Vec<&Sized<'_>>> = BTreeMap::new();
    for one in sized.iter().filter(|one| one.record.peak_tflops.is_some() && !one.case.is_ragged) {
        let device = one.record.device.as_deref().unwrap_or_default();
        by_device.entry((device, &one.record.dtype)).or_default().push(one);
    }
    let roofline = |((device, dtype), of): ((&str, &str), Vec<&Sized<'_>>)| {
        let peak = of.iter().find_map(|one| one.record.peak_tflops)?;
        let read = of.iter().find_map(|one| one.record.peak_read_tbps)?;
        let (factor, unit) = unit(peak / 10.0, "GFLOP/s", "TFLOP/s");
        let bytes = if dtype == "float32" { 4 } else { 2 };
        let mut by_system: BTreeMap<&str, Vec<(f64, f64, String)>> = BTreeMap::new();
        for one in &of {
            let Some(ms) = one.record.ms.filter(|_| !one.case.form.ends_with("mixed")) else { continue };
            // Masks count the share that is seen, as their own rate does.
            let rate = one.record.tflops.unwrap_or(one.case.operations() / ms * 1e-9);
            let text =
                format!("{}: {} {unit}, {}", one.record.system, three_digits(rate * factor), one.record.case);
            by_system.entry(&one.record.system).or_default().push((
                one.case.intensity(bytes),
                rate * factor,
                text,
            ));
        }
        let series: Vec<Series> = by_system
            .into_iter()
            .map(|(name, points)| Series {
                system: systems.number(name),
                name: name.into(),
                points,
                is_joined: false,
            })
            .collect();
        let intensities = || series.iter().flat_map(|series| series.points.iter().map(|point| point.0));
        let ridge = peak / read;
        let low = intensities().fold(ridge / 4.0, f64::min);
        let high = intensities().fold(ridge * 4.0, f64::max);
        let roof = vec![(low, low * read * factor), (ridge, peak * factor), (high, peak * factor)];
        let text = format!("{}, {}", rate_text(peak, false), rate_text(read, true));
        Some(
            Plot {
                title: format!("{device}, {dtype}"),
                x: (Scale::Log2, "operations a byte"),
                y: (Scale::Log10, unit),
                series,
                guides: vec![(roof, text)],
            }
            .chart(),
        )
    };
    by_device.into_iter().filter_map(roofline).collect()
}

/// Errors as parts of what they may be: the worst of each system and dtype, and every verified case.
fn errors(file: &Results, systems: &Systems) -> Vec<Bars> {
    let bound = || vec![(100.0, "tolerance".to_owned())];
    let percent = |part: f64| format!("{} %", three_digits(100.0 * part));
    let mut worst: BTreeMap<&str, BTreeMap<&str, f64>> = BTreeMap::new();
    for record in &file.records {
        if let (Some(err), Some(tolerance)) = (record.err, record.err_tolerance) {
            let found = worst.entry(&record.dtype).or_default().entry(&record.system).or_default();
            *found = found.max(err / tolerance);
        }
    }
    let of_dtype = |(dtype, parts): (&str, BTreeMap<&str, f64>)| {
        let bars = parts.into_iter().map(|(system, part)| bar(systems, system, 100.0 * part, &percent(part)));
        (dtype.to_owned(), bars.collect())
    };
    let groups: Vec<(String, Vec<BarValue>)> = worst.into_iter().map(of_dtype).collect();
    let mut charts = Vec::new();
    if !groups.is_empty() {
        charts.push(Bars::new("largest error of all cases, by what it may be".into(), groups, bound()));
    }
    let of_case = |verification: &crate::results::Verification| {
        let parts = [
            ("RMS", verification.rms_error / verification.rms_tolerance),
            ("max", verification.max_error / verification.max_tolerance),
        ];
        let bars = parts.map(|(name, part)| {
            (0, verification.backend.clone(), 100.0 * part, format!("{name} {}", percent(part)))
        });
        let verdict = if verification.passed { "" } else { ": FAILED" };
        (format!("{}{verdict}", verification.case), bars.into())
    };
    if !file.verifications.is_empty() {
        let groups = file.verifications.iter().map(of_case).collect();
        charts.push(Bars::new("verified cases, errors by what they may be".into(), groups, bound()));
    }
    charts
}

/// A rate with its unit, as tables have it.
pub(super) fn rate_text(rate: f64, is_decode: bool) -> String {
    let (giga, tera) = if is_decode { ("GB/s", "TB/s") } else { ("GFLOP/s", "TFLOP/s") };
    let (factor, unit) = unit(rate, giga, tera);
    format!("{} {unit}", three_digits(rate * factor))
}

fn cell_row(cell: &Cell) -> CellRow {
    CellRow {
        case: cell.case.clone(),
        dtype: cell.dtype.clone(),
        threads: cell.threads,
        ours: rate_text(cell.ours, cell.is_decode),
        best: rate_text(cell.best, cell.is_decode),
        best_system: cell.best_system.clone(),
        ratio: format!("{:.2}", cell.ratio),
        verdict: match cell.ratio {
            ratio if ratio >= 1.02 => "ahead",
            ratio if ratio > 0.98 => "level",
            _ => "behind",
        },
    }
}

fn step_row(record: &Record) -> StepRow {
    StepRow {
        system: record.system.clone(),
        case: record.case.clone(),
        median: match (record.ms, record.rate()) {
            (Some(ms), _) => milliseconds(ms),
            (None, Some(rate)) => rate_text(rate, record.tflops.is_none()),
            _ => String::new(),
        },
        spread: record.spread.map(|spread| format!("± {:.1} %", 50.0 * spread)).unwrap_or_default(),
    }
}
