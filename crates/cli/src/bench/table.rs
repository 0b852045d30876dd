//! Measurements as tables for a terminal.

use omniflash::measure::Peaks;
use omniflash::{Backend, DType};

use crate::results::Record;
use crate::terminal;

/// One backend's measurements, under what its device can do at most.
pub(super) fn print(backend: &dyn Backend, peaks: &Peaks, records: &[Record]) -> anyhow::Result<()> {
    let info = backend.info();
    terminal::print_line(format_args!(
        "{} ({}, {})",
        terminal::heading(&info.name),
        info.device_name,
        info.arch
    ))?;
    let mut found = Vec::new();
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        found.extend(peaks.flops_of(dtype).map(|rate| format!("{dtype} {}", terminal::flops_rate(rate))));
    }
    found.extend(peaks.read.map(|rate| format!("read {}", terminal::bytes_rate(rate))));
    found.extend(peaks.copy.map(|rate| format!("copy {}", terminal::bytes_rate(rate))));
    if !found.is_empty() {
        terminal::print_line(terminal::faint(format_args!("measured peaks: {}", found.join(", "))))?;
    }
    let compares = records.iter().any(|record| record.was_ms.is_some());
    let mut header = vec!["case", "dtype", "median", "spread", "rate", "of peak"];
    header.extend(compares.then_some("before"));
    let mut table = terminal::table(&header);
    for record in records {
        let mut row = vec![
            record.case.clone(),
            record.dtype.clone(),
            record.ms.map(terminal::milliseconds).unwrap_or_default(),
            record.spread.map(|spread| format!("± {:.1} %", 50.0 * spread)).unwrap_or_default(),
            rate(record),
            record.share.map(|share| format!("{:.0} %", 100.0 * share)).unwrap_or_default(),
        ];
        if compares {
            row.push(record.was_ms.map(terminal::milliseconds).unwrap_or_default());
        }
        table.add_row(row);
    }
    terminal::align_numbers(&mut table, 2..header.len());
    terminal::print_line(table)
}

/// Ours and the peers', as the peers' scripts measured them in turns.
pub(super) fn print_peers(records: &[Record]) -> anyhow::Result<()> {
    let mut table = terminal::table(&["case", "dtype", "system", "median", "rate"]);
    for record in records {
        table.add_row([
            record.case.clone(),
            record.dtype.clone(),
            record.system.clone(),
            record.ms.map(terminal::milliseconds).unwrap_or_default(),
            rate(record),
        ]);
    }
    terminal::align_numbers(&mut table, 3..5);
    terminal::print_line(format_args!("{}\n{table}", terminal::heading("peers, in turns")))
}

fn rate(record: &Record) -> String {
    let arithmetic = record.tflops.map(|tflops| terminal::flops_rate(tflops * 1e12));
    arithmetic.or(record.tbps.map(|tbps| terminal::bytes_rate(tbps * 1e12))).unwrap_or_default()
}
