//! Ours against the best of the others, cell by cell.

use serde::Serialize;

use crate::results::{Record, Results};

/// One case where ours and a peer were measured in the same run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Cell {
    pub(crate) case: String,
    pub(crate) dtype: String,
    pub(crate) threads: Option<u64>,
    pub(crate) is_decode: bool,
    /// 10^12 operations or bytes a second.
    pub(crate) ours: f64,
    pub(crate) share: Option<f64>,
    pub(crate) best: f64,
    pub(crate) best_system: String,
    /// Ours by the best.
    pub(crate) ratio: f64,
}

/// The cells of a file, in its order.
pub(crate) fn cells(results: &Results) -> Vec<Cell> {
    let ours = results.records.iter().filter(|record| record.is_ours());
    ours.filter_map(|ours| {
        let is_peer =
            |other: &&Record| !other.is_ours() && other.cell() == ours.cell() && other.run == ours.run;
        let peers = results.records.iter().filter(is_peer).filter_map(|peer| Some((peer, peer.rate()?)));
        let (peer, best) = peers.max_by(|a, b| a.1.total_cmp(&b.1))?;
        let rate = ours.rate()?;
        Some(Cell {
            case: ours.case.clone(),
            dtype: ours.dtype.clone(),
            threads: ours.threads,
            is_decode: ours.tflops.is_none(),
            ours: rate,
            share: ours.share,
            best,
            best_system: peer.system.clone(),
            ratio: rate / best,
        })
    })
    .collect()
}

/// The geometric mean of the ratios, and the smallest; `None` of no cells.
pub(crate) fn summary(cells: &[Cell]) -> Option<(f64, f64)> {
    let smallest = cells.iter().map(|cell| cell.ratio).min_by(f64::total_cmp)?;
    let logarithms: f64 = cells.iter().map(|cell| cell.ratio.ln()).sum();
    Some(((logarithms / cells.len() as f64).exp(), smallest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_is_compared_with_the_best_of_the_same_run_only() {
        let record = |system: &str, run, tflops| Record {
            system: system.into(),
            case: "c".into(),
            tflops: Some(tflops),
            run,
            ..Record::default()
        };
        let records = vec![
            record("a", 0, 1.0),
            record("b", 0, 2.0),
            record("omniflash-cpu", 0, 4.0),
            record("a", 1, 8.0),
            record("omniflash-cpu", 1, 4.0),
        ];
        let cells = cells(&Results { records, ..Results::default() });
        let found: Vec<(f64, &str)> =
            cells.iter().map(|cell| (cell.ratio, cell.best_system.as_str())).collect();
        assert_eq!(found, [(2.0, "b"), (0.5, "a")]);
        assert_eq!(summary(&cells), Some((1.0, 0.5)));
        assert_eq!(summary(&[]), None);
    }
}
