//! The generated parts of a README: what was measured, and what each backend supports.
//!
//! They stand between `<!-- generated: NAME -->` and `<!-- /generated -->`; everything else is left as it is.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::comparison::{Cell, cells, summary};
use super::kernels;
use super::page::{self, Sized, Systems, charted};
use crate::Verdict;
use crate::results::{CaseName, Results};
use crate::support;
use crate::terminal::{self, three_digits};

/// Beside a README: where results and their charts are.
const RESULTS: &str = "benches/results";
const CHARTS: &str = "benches/charts";
const END: &str = "<!-- /generated -->";
/// Of the curves of a file, those of this head_dim are in the README; a report has all.
const HEAD_DIM: &str = "head_dim 128";

/// Writes the generated parts, or says with exit code 1 that they are not current.
pub(super) fn run(readme: &Path, files: &[PathBuf], check: bool) -> anyhow::Result<Verdict> {
    let root = readme.parent().unwrap_or(Path::new(""));
    let files = if files.is_empty() { result_files(&root.join(RESULTS))? } else { files.to_vec() };
    let results = super::read(&files)?;
    let mut outputs = charts(&results)?
        .into_iter()
        .map(|(name, svg)| (root.join(CHARTS).join(name), svg))
        .collect::<Vec<_>>();
    let text =
        std::fs::read_to_string(readme).with_context(|| format!("cannot read {}", readme.display()))?;
    let text = replaced(&text, "measured", &measured(&results)?)?;
    let text = replaced(&text, "support", &support::markdown()?)?;
    outputs.push((readme.to_owned(), text));
    let stale: Vec<&(PathBuf, String)> = outputs
        .iter()
        .filter(|(path, text)| std::fs::read_to_string(path).ok().as_ref() != Some(text))
        .collect();
    for (path, text) in &stale {
        if check {
            terminal::print_line(format_args!("{} is not current", path.display()))?;
        } else {
            let folder = path.parent().unwrap_or(root);
            std::fs::create_dir_all(folder)
                .and_then(|()| std::fs::write(path, text))
                .with_context(|| format!("cannot write {}", path.display()))?;
            terminal::print_line(path.display())?;
        }
    }
    Ok(if check && !stale.is_empty() { Verdict::OutOfTolerance } else { Verdict::Passed })
}

/// The result files of a folder, newest first: their names begin with their dates.
fn result_files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let context = || format!("cannot list {}", folder.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(context)? {
        let path = entry.with_context(context)?.path();
        if path.extension().is_some_and(|extension| extension == "jsonl") {
            files.push(path);
        }
    }
    files.sort();
    files.reverse();
    Ok(files)
}

/// The text with what stands between the markers of `name` replaced.
fn replaced(text: &str, name: &str, with: &str) -> anyhow::Result<String> {
    let begin = format!("<!-- generated: {name} -->\n");
    let missing = || format!("the README has no line {} with {END} after it", begin.trim());
    let (before, rest) = text.split_once(&begin).with_context(missing)?;
    let (_, after) = rest.split_once(END).with_context(missing)?;
    Ok(format!("{before}{begin}{}\n{END}{after}", with.trim_end()))
}

/// Names and pictures of the curves that the README shows.
fn charts(results: &[Results]) -> anyhow::Result<Vec<(String, String)>> {
    let mut pictures = Vec::new();
    for file in results {
        let records = charted(file);
        let sized: Vec<Sized<'_>> = records.into_iter().filter_map(Sized::new).collect();
        let charts = page::throughput(&sized, &Systems::of(file));
        for chart in charts.into_iter().filter(|chart| chart.title.contains(HEAD_DIM)) {
            let words: Vec<String> = chart
                .title
                .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                .filter(|word| !word.is_empty())
                .map(str::to_lowercase)
                .collect();
            pictures.push((format!("{}-{}.svg", stem(file), words.join("-")), page::svg(&chart)?));
        }
    }
    Ok(pictures)
}

/// What the names of a file's pictures begin with.
fn stem(file: &Results) -> String {
    let name = file.name.strip_suffix(".jsonl").unwrap_or(&file.name);
    if file.part == 0 { name.into() } else { format!("{name}-{}", file.part) }
}

/// How each file with others stands against the best of them, and under it, folded, its tables; what kernels take.
fn measured(results: &[Results]) -> anyhow::Result<String> {
    let pictures = charts(results)?;
    let mut text = String::new();
    for (name, _) in &pictures {
        writeln!(text, "<img src=\"{CHARTS}/{name}\" width=\"49%\" alt=\"throughput by length\">")?;
    }
    for file in results {
        let cells: Vec<(usize, Cell)> = runs(file);
        if cells.is_empty() && file.kernels.is_empty() {
            continue;
        }
        let origin = |name| file.origin(name).unwrap_or("unknown");
        let (device, date, commit) = (origin("device"), origin("date"), origin("commit"));
        writeln!(text, "\n**{device}**, {date}, commit {commit}: `{RESULTS}/{}`\n", file.name)?;
        for architecture in kernels::architectures(file) {
            writeln!(text, "- {}: {}", architecture.name, architecture.summary)?;
        }
        let last = cells.iter().map(|(run, _)| *run).max().unwrap_or(0);
        for run in 0..=last {
            let of_run: Vec<&Cell> =
                cells.iter().filter(|(of, _)| *of == run).map(|(_, cell)| cell).collect();
            if !of_run.is_empty() {
                compared(&mut text, file, run, &of_run)?;
            }
        }
    }
    Ok(text)
}

/// One run: what it says in a line, and its tables.
fn compared(text: &mut String, file: &Results, run: usize, cells: &[&Cell]) -> anyhow::Result<()> {
    let mut others: Vec<&str> = file
        .records
        .iter()
        .filter(|record| record.run == run && !record.is_ours())
        .filter(|record| cells.iter().any(|cell| cell.case == record.case))
        .map(|record| record.system.as_str())
        .collect();
    others.sort_unstable();
    others.dedup();
    let owned: Vec<Cell> = cells.iter().map(|cell| (*cell).clone()).collect();
    let (mean, smallest) = summary(&owned).unwrap_or((1.0, 1.0));
    writeln!(
        text,
        "<details><summary>{} cells beside {}: <b>{mean:.2}</b> times the best other (geometric mean), {smallest:.2} at \
         least</summary>\n",
        cells.len(),
        others.join(", ")
    )?;
    prefill(text, cells)?;
    decode(text, cells)?;
    writeln!(text, "</details>")?;
    Ok(())
}

/// The cells of the most threads, with their runs.
fn runs(file: &Results) -> Vec<(usize, Cell)> {
    let most = file.records.iter().filter_map(|record| record.threads).max();
    let last = file.records.iter().map(|record| record.run).max().unwrap_or(0);
    let mut all = Vec::new();
    for run in 0..=last {
        let records = file.records.iter().filter(|record| record.run == run).cloned().collect();
        let part = Results { records, ..Results::default() };
        let of_most = cells(&part).into_iter().filter(|cell| cell.threads.is_none() || cell.threads == most);
        all.extend(of_most.map(|cell| (run, cell)));
    }
    all
}

fn figure(cell: &Cell, factor: f64) -> String {
    let rate = three_digits(cell.ours * factor);
    let ratio = format!("{:.2}", cell.ratio);
    if cell.ratio >= 1.0 { format!("**{rate}** ({ratio})") } else { format!("{rate} ({ratio})") }
}

/// Rows are head shapes and masks, columns lengths.
fn prefill(text: &mut String, cells: &[&Cell]) -> anyhow::Result<()> {
    let mut rows: BTreeMap<(String, usize, bool, String), BTreeMap<usize, &Cell>> = BTreeMap::new();
    for cell in cells.iter().filter(|cell| !cell.is_decode) {
        if let Some(case) = CaseName::parse(&cell.case) {
            let row = (cell.dtype.clone(), case.head_dim, case.form == "causal", case.family());
            rows.entry(row).or_default().insert(case.seqlen_k, cell);
        }
    }
    if rows.is_empty() {
        return Ok(());
    }
    let largest = rows.values().flat_map(|row| row.values()).map(|cell| cell.ours).fold(0.0, f64::max);
    let (factor, unit) = if largest < 1.0 { (1e3, "GFLOP/s") } else { (1.0, "TFLOP/s") };
    let mut lengths: Vec<usize> = rows.values().flat_map(|row| row.keys().copied()).collect();
    lengths.sort_unstable();
    lengths.dedup();
    write!(text, "| {unit} (by the best other), S = |")?;
    lengths.iter().try_for_each(|length| write!(text, " {length} |"))?;
    writeln!(text, "\n|---|{}", "---:|".repeat(lengths.len()))?;
    for ((dtype, _, _, family), row) in rows {
        write!(text, "| {dtype}, {family} |")?;
        for length in &lengths {
            write!(text, " {} |", row.get(length).map(|cell| figure(cell, factor)).unwrap_or_default())?;
        }
        writeln!(text)?;
    }
    writeln!(text)?;
    Ok(())
}

/// A row a case.
fn decode(text: &mut String, cells: &[&Cell]) -> anyhow::Result<()> {
    let cells: Vec<&&Cell> = cells.iter().filter(|cell| cell.is_decode).collect();
    let Some(largest) = cells.iter().map(|cell| cell.ours).max_by(f64::total_cmp) else { return Ok(()) };
    let (factor, unit) = if largest < 1.0 { (1e3, "GB/s") } else { (1.0, "TB/s") };
    writeln!(
        text,
        "| decode, {unit} of keys and values once | omniflash (by the best other) | best other |\n|---|---:|---:|"
    )?;
    for cell in cells {
        let name = match CaseName::parse(&cell.case) {
            Some(case) => format!(
                "{}, B={}, {}/{} heads, head_dim {}, {} keys",
                cell.dtype, case.batch, case.num_heads, case.num_kv_heads, case.head_dim, case.seqlen_k
            ),
            None => cell.case.clone(),
        };
        let best = three_digits(cell.best * factor);
        writeln!(text, "| {name} | {} | {best} {} |", figure(cell, factor), cell.best_system)?;
    }
    writeln!(text)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_between_the_markers_changes() {
        let text = "a\n<!-- generated: x -->\nold\n<!-- /generated -->\nb\n<!-- generated: y -->\n<!-- /generated -->\n";
        let new = replaced(text, "x", "new\n").unwrap();
        assert_eq!(new, text.replace("old", "new"));
        assert_eq!(replaced(&new, "x", "new").unwrap(), new);
        let error = replaced(text, "z", "").unwrap_err().to_string();
        assert!(error.contains("generated: z"), "{error}");
    }
}
