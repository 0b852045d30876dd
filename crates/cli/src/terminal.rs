//! Writing to the terminal: plain text, tables, JSON, progress.

use std::fmt::Display;
use std::io::{ErrorKind, IsTerminal, Write};
use std::time::Duration;

use anyhow::Context;
use comfy_table::{Attribute, Cell, CellAlignment, Color, ContentArrangement, LineStyle, Table, TableStyle};
use console::{Term, measure_text_width, style};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

/// The reader of standard output has gone away, as `head` does when it has its lines: nothing is wrong, and nobody is
/// left to work for.
#[derive(Debug)]
pub(crate) struct ReaderGone;

impl Display for ReaderGone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the reader of standard output has gone away")
    }
}

impl std::error::Error for ReaderGone {}

/// Writes to standard output. A reader that has gone away is the error [`ReaderGone`], not a panic.
pub(crate) fn print(text: impl Display) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match write!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(ReaderGone.into()),
        result => result.context("cannot write to standard output"),
    }
}

/// As [`print`], with a line break.
pub(crate) fn print_line(text: impl Display) -> anyhow::Result<()> {
    print(format_args!("{text}\n"))
}

/// Writes a JSON value as one line.
pub(crate) fn print_json(value: &Value) -> anyhow::Result<()> {
    print_line(value)
}

/// Writes a remark to standard error, beside results on standard output.
pub(crate) fn print_note(text: impl Display) -> anyhow::Result<()> {
    writeln!(std::io::stderr(), "{text}").context("cannot write to standard error")
}

/// Whether standard output is read by a person.
pub(crate) fn is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// Columns to fill: those of the terminal, and 100 where there is none.
pub(crate) fn width() -> usize {
    Term::stdout().size_checked().map_or(100, |(_, columns)| usize::from(columns)).clamp(40, 120)
}

/// A heading.
pub(crate) fn heading(text: &str) -> String {
    style(text).bold().to_string()
}

/// Text of lesser weight.
pub(crate) fn faint(text: impl Display) -> String {
    style(text).dim().to_string()
}

/// `ok` or `FAILED`, in its colour.
pub(crate) fn verdict(passed: bool) -> String {
    match passed {
        true => style("ok").green().bold().to_string(),
        false => style("FAILED").red().bold().to_string(),
    }
}

/// The cell of a verdict.
pub(crate) fn verdict_cell(passed: bool) -> Cell {
    let (text, color) = if passed { ("ok", Color::Green) } else { ("FAILED", Color::Red) };
    Cell::new(text).fg(color).add_attribute(Attribute::Bold)
}

/// A rule under the header and nothing else.
const RULED_HEADER: TableStyle =
    TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));

/// An empty table with a header, no wider than the terminal.
pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(RULED_HEADER)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(width() as u16)
        .set_header(header.iter().map(|name| Cell::new(name).add_attribute(Attribute::Bold)));
    if console::colors_enabled() {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    table
}

/// Sets the columns from `first` on flush right, as numbers stand.
pub(crate) fn align_numbers(table: &mut Table, columns: std::ops::Range<usize>) {
    for column in columns {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

/// A bar on standard error that is gone when it is done; hidden when no terminal is there.
pub(crate) fn progress(steps: usize) -> ProgressBar {
    let bar = ProgressBar::new(steps as u64);
    let template = "{spinner:.cyan} {wide_msg} [{bar:24.cyan/dim}] {pos}/{len} {elapsed:>4}";
    bar.set_style(ProgressStyle::with_template(template).expect("a valid template").progress_chars("━━ "));
    bar.enable_steady_tick(Duration::from_millis(80));
    bar
}

/// Writes how a call was planned, indented and faint.
pub(crate) fn print_plan(plan: impl Display) -> anyhow::Result<()> {
    let lines = wrapped(&format!("plan: {plan}"), width() - 4);
    lines.iter().try_for_each(|line| print_line(format_args!("  {}", faint(line))))
}

/// Text broken between words into lines of at most `width` columns, where its words allow it.
pub(crate) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if measure_text_width(line) + 1 + measure_text_width(word) <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.into()),
        }
    }
    lines
}

/// A duration with three digits and its unit.
pub(crate) fn time(elapsed: Duration) -> String {
    milliseconds(elapsed.as_secs_f64() * 1e3)
}

/// Milliseconds with three digits and their unit.
pub(crate) fn milliseconds(ms: f64) -> String {
    match ms {
        ms if ms < 1.0 => format!("{} µs", three_digits(ms * 1e3)),
        ms if ms < 1e3 => format!("{} ms", three_digits(ms)),
        ms => format!("{} s", three_digits(ms / 1e3)),
    }
}

/// A rate of arithmetic with three digits and its unit.
pub(crate) fn flops_rate(flops_per_second: f64) -> String {
    scaled(flops_per_second, ["GFLOP/s", "TFLOP/s"])
}

/// A rate of memory with three digits and its unit.
pub(crate) fn bytes_rate(bytes_per_second: f64) -> String {
    scaled(bytes_per_second, ["GB/s", "TB/s"])
}

/// A rate in the units of 10^9 and 10^12.
fn scaled(per_second: f64, [giga, tera]: [&str; 2]) -> String {
    match per_second {
        rate if rate < 1e13 => format!("{} {giga}", three_digits(rate / 1e9)),
        rate => format!("{} {tera}", three_digits(rate / 1e12)),
    }
}

/// A number with three significant digits, in decimal notation.
pub(crate) fn three_digits(value: f64) -> String {
    match value.abs() {
        magnitude if magnitude < 9.995 => format!("{value:.2}"),
        magnitude if magnitude < 99.95 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// An error bound or an error: two significant digits.
pub(crate) fn error_value(value: f64) -> String {
    if value == 0.0 { "0".into() } else { format!("{value:.1e}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_wraps_between_words() {
        assert_eq!(wrapped("a bb ccc dddd-eeee f", 6), ["a bb", "ccc", "dddd-eeee", "f"]);
    }

    #[test]
    fn times_have_three_digits_and_a_unit() {
        assert_eq!(milliseconds(0.0123), "12.3 µs");
        assert_eq!(milliseconds(7.0), "7.00 ms");
        assert_eq!(milliseconds(12345.0), "12.3 s");
        assert_eq!(three_digits(1234.5), "1234");
    }

    #[test]
    fn rates_take_the_unit_that_fits() {
        assert_eq!(flops_rate(84.2e9), "84.2 GFLOP/s");
        assert_eq!(flops_rate(650e12), "650 TFLOP/s");
        assert_eq!(bytes_rate(3.35e12), "3350 GB/s");
    }
}
