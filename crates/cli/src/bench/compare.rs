//! Comparing a run with an earlier one.

use std::collections::HashMap;
use std::path::Path;

use crate::results::{Key, Record, Results};
use crate::terminal::{self, milliseconds};

/// The medians of an earlier run, by what was measured.
#[derive(Debug)]
pub(super) struct Baseline {
    medians: HashMap<Key, f64>,
    /// How much slower a case may be than it was, as a part of that.
    threshold: f64,
}

impl Baseline {
    /// Reads the file of an earlier run.
    pub(super) fn read(path: &Path, threshold: f64) -> anyhow::Result<Self> {
        Ok(Baseline::new(&Results::read(path)?.records, threshold))
    }

    fn new(records: &[Record], threshold: f64) -> Self {
        let medians = records.iter().filter_map(|record| Some((record.key(), record.ms?))).collect();
        Baseline { medians, threshold }
    }

    /// Says in a record what it was before, and whether it is now too slow.
    pub(super) fn mark(&self, record: &mut Record) {
        if let (Some(&was), Some(now)) = (self.medians.get(&record.key()), record.ms) {
            record.was_ms = Some(was);
            record.regressed = Some(now > was * (1.0 + self.threshold));
        }
    }

    /// Ends a comparison: says how it went, and whether a case is too slow.
    ///
    /// # Errors
    /// When no record was in the earlier run.
    pub(super) fn conclude(&self, records: &[Record], prints: bool) -> anyhow::Result<bool> {
        let compared: Vec<&Record> = records.iter().filter(|record| record.regressed.is_some()).collect();
        anyhow::ensure!(
            !compared.is_empty(),
            "--compare: no case of this run (system, case, dtype and threads) is in the earlier one"
        );
        let regressed: Vec<&&Record> =
            compared.iter().filter(|record| record.regressed == Some(true)).collect();
        if prints {
            for record in &regressed {
                let (was, now) = (record.was_ms.unwrap_or_default(), record.ms.unwrap_or_default());
                terminal::print_line(format_args!(
                    "{} {} {}: {} was {}, {:+.0} %",
                    terminal::verdict(false),
                    record.case,
                    record.dtype,
                    milliseconds(now),
                    milliseconds(was),
                    100.0 * (now / was - 1.0)
                ))?;
            }
            terminal::print_line(format_args!(
                "{} of {} cases are more than {:.0} % slower than before",
                regressed.len(),
                compared.len(),
                100.0 * self.threshold
            ))?;
        }
        Ok(!regressed.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(case: &str, ms: f64) -> Record {
        Record { system: "s".into(), case: case.into(), ms: Some(ms), ..Record::default() }
    }

    #[test]
    fn only_what_is_slower_than_the_threshold_is_a_regression() {
        let baseline = Baseline::new(&[record("a", 1.0), record("b", 1.0)], 0.1);
        let mut records = [record("a", 1.09), record("b", 0.5), record("c", 9.0)];
        records.iter_mut().for_each(|record| baseline.mark(record));
        assert_eq!(records.each_ref().map(|record| record.regressed), [Some(false), Some(false), None]);
        assert!(!baseline.conclude(&records, false).unwrap());
        records[0].ms = Some(1.11);
        baseline.mark(&mut records[0]);
        assert_eq!((records[0].was_ms, records[0].regressed), (Some(1.0), Some(true)));
        assert!(baseline.conclude(&records, false).unwrap());
        assert!(baseline.conclude(&records[2..], false).is_err());
    }
}
