//! `omniflash report`: result files as a page, as tables, and as the figures of a README.

mod chart;
mod comparison;
mod kernels;
mod page;
mod readme;

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::Verdict;
use crate::arguments::ReportArguments;
use crate::results::{Record, Results};
use crate::terminal;
use comparison::{cells, summary};

pub(crate) fn run(arguments: &ReportArguments) -> anyhow::Result<Verdict> {
    if let Some(path) = &arguments.readme {
        return readme::run(path, &arguments.files, arguments.check);
    }
    anyhow::ensure!(!arguments.files.is_empty(), "FILES are missing: the JSON lines of `omniflash bench`");
    match &arguments.out {
        Some(path) => terminal::print_line(write_page(&arguments.files, path)?)?,
        None => read(&arguments.files)?.iter().try_for_each(print)?,
    }
    Ok(Verdict::Passed)
}

/// Writes the page of these files, and says how large it is.
pub(crate) fn write_page(files: &[PathBuf], path: &Path) -> anyhow::Result<String> {
    let html = page::html(&read(files)?)?;
    std::fs::write(path, &html).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(format!("{}: {} KiB", path.display(), html.len() / 1024))
}

/// The files, a part for each device.
fn read(paths: &[PathBuf]) -> anyhow::Result<Vec<Results>> {
    let files = paths.iter().map(|path| Results::read(path)).collect::<anyhow::Result<Vec<_>>>()?;
    Ok(files.into_iter().flat_map(Results::by_device).collect())
}

/// A file as a table: ours beside the best of the others where there is one, else ours by itself.
fn print(file: &Results) -> anyhow::Result<()> {
    let device = file
        .origin("device")
        .map(String::from)
        .or_else(|| file.records.iter().find_map(|r| r.device.clone()));
    terminal::print_line(format_args!(
        "{} {}",
        terminal::heading(&file.name),
        terminal::faint(device.unwrap_or_default())
    ))?;
    for architecture in kernels::architectures(file) {
        print_architecture(&architecture)?;
    }
    if file.records.is_empty() && file.verifications.is_empty() {
        return Ok(());
    }
    let cells = cells(file);
    let has_peers = !cells.is_empty();
    let has_shares = file.records.iter().any(|record| record.is_ours() && record.share.is_some());
    let has_threads = file.records.iter().any(|record| record.threads.is_some());
    let header = [
        (true, "case"),
        (true, "dtype"),
        (has_threads, "threads"),
        (true, "omniflash"),
        (has_shares, "of peak"),
        (has_peers, "best other"),
        (has_peers, ""),
        (has_peers, "ratio"),
    ];
    let shown = |cells: [String; 8]| -> Vec<String> {
        cells.into_iter().zip(header).filter(|(_, (is_shown, _))| *is_shown).map(|(cell, _)| cell).collect()
    };
    let percent =
        |share: Option<f64>| share.map_or_else(String::new, |share| format!("{:.0} %", 100.0 * share));
    let count = |threads: Option<u64>| threads.map_or_else(String::new, |threads| threads.to_string());
    let names: Vec<&str> = header.iter().filter(|(is_shown, _)| *is_shown).map(|(_, name)| *name).collect();
    let mut table = terminal::table(&names);
    for cell in &cells {
        table.add_row(shown([
            cell.case.clone(),
            cell.dtype.clone(),
            count(cell.threads),
            page::rate_text(cell.ours, cell.is_decode),
            percent(cell.share),
            page::rate_text(cell.best, cell.is_decode),
            cell.best_system.clone(),
            format!("{:.2}", cell.ratio),
        ]));
    }
    let is_alone = |record: &&Record| {
        record.is_ours() && !cells.iter().any(|cell| cell.case == record.case && cell.dtype == record.dtype)
    };
    for record in file.records.iter().filter(is_alone) {
        let rate = record.rate().map(|rate| page::rate_text(rate, record.tflops.is_none()));
        let time = || record.ms.map(terminal::milliseconds).unwrap_or_default();
        let (rate, share) = (rate.unwrap_or_else(time), percent(record.share));
        let mut row = [const { String::new() }; 8];
        [row[0], row[1], row[2], row[3], row[4]] =
            [record.case.clone(), record.dtype.clone(), count(record.threads), rate, share];
        table.add_row(shown(row));
    }
    terminal::align_numbers(&mut table, 2..8);
    terminal::print_line(table)?;
    for verification in &file.verifications {
        terminal::print_line(format_args!(
            "{} {}: RMS {} of {}",
            terminal::verdict(verification.passed),
            verification.case,
            terminal::error_value(verification.rms_error),
            terminal::error_value(verification.rms_tolerance)
        ))?;
    }
    if let Some((mean, smallest)) = summary(&cells) {
        terminal::print_line(format_args!(
            "{} cells against the best other of the same run: geometric mean {mean:.2}, smallest {smallest:.2}\n",
            cells.len()
        ))?;
    }
    Ok(())
}

/// What the kernels of an architecture take of it.
fn print_architecture(architecture: &kernels::Architecture) -> anyhow::Result<()> {
    let mut table = terminal::table(&["kernel", "threads", "registers", "spilled", "shared", "image"]);
    for row in &architecture.kernels {
        let (threads, registers) = (row.threads.to_string(), row.registers.to_string());
        table.add_row([&row.kernel, &threads, &registers, &row.spilled, &row.shared, &row.image]);
    }
    terminal::align_numbers(&mut table, 1..6);
    terminal::print_line(format_args!(
        "{}: {}\n{table}",
        terminal::heading(&architecture.name),
        architecture.summary
    ))
}
