//! Reading result files.

use std::collections::HashSet;
use std::path::Path;

use anyhow::Context;
use serde::Deserialize;
use serde_json::Value;

use super::Record;

/// What `omniflash verify --json` says of a case.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub(crate) struct Verification {
    pub(crate) case: String,
    #[serde(default)]
    pub(crate) backend: String,
    pub(crate) passed: bool,
    pub(crate) rms_error: f64,
    pub(crate) rms_tolerance: f64,
    pub(crate) max_error: f64,
    pub(crate) max_tolerance: f64,
}

/// What `cargo xtask kernels VENDOR --record` says of a compiled kernel.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub(crate) struct KernelResources {
    pub(crate) kernel: String,
    pub(crate) arch: String,
    /// Of a block.
    pub(crate) threads: u32,
    /// Of a thread.
    pub(crate) registers: u32,
    /// Registers of a thread that go to memory.
    pub(crate) spilled_bytes: u32,
    /// Of a block.
    pub(crate) shared_bytes: u64,
    pub(crate) image_bytes: u64,
}

/// The lines of one file, by kind, each as whoever wrote it would have written it today.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Results {
    /// The file's name without its folder.
    pub(crate) name: String,
    /// Which of the file's devices it is about, from 0.
    pub(crate) part: usize,
    /// Device, date, commit and command, where a line says so.
    pub(crate) origin: Vec<(String, String)>,
    /// Of several lines for the same system and case in one run, the last.
    pub(crate) records: Vec<Record>,
    pub(crate) verifications: Vec<Verification>,
    pub(crate) kernels: Vec<KernelResources>,
    /// Cases that a system could not do: what it says.
    pub(crate) skipped: Vec<String>,
}

const ORIGIN: [&str; 4] = ["device", "date", "commit", "command"];

impl Results {
    /// Reads a file of JSON lines.
    ///
    /// # Errors
    /// When it cannot be read, a line is no JSON object or of no kind that is known, or no line is a result.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Results::parse(name, &text).with_context(|| path.display().to_string())
    }

    fn parse(name: String, text: &str) -> anyhow::Result<Self> {
        let mut results = Results { name, ..Results::default() };
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            results.add(line).with_context(|| format!("line {}", index + 1))?;
        }
        results.number_runs();
        anyhow::ensure!(
            !(results.records.is_empty() && results.verifications.is_empty() && results.kernels.is_empty()),
            "holds no result, expected JSON lines of `omniflash bench` or `omniflash verify --json`"
        );
        Ok(results)
    }

    fn add(&mut self, line: &str) -> anyhow::Result<()> {
        let value: Value = serde_json::from_str(line).context("is no JSON")?;
        if value.get("rms_tolerance").is_some() {
            self.verifications.push(serde_json::from_value(value)?);
        } else if value.get("registers").is_some() {
            self.kernels.push(serde_json::from_value(value)?);
        } else if let Some(reason) = value.get("skip").or_else(|| value.get("absent")) {
            let of =
                value.get("case").or_else(|| value.get("system")).and_then(Value::as_str).unwrap_or_default();
            self.skipped.push(format!("{of}: {}", reason.as_str().unwrap_or_default()));
        } else if value.get("system").is_some() {
            let mut record = serde_json::from_value::<Record>(value)?.normalized();
            if record.device.is_none() {
                record.device = self.origin("device").map(String::from);
            }
            self.records.push(record);
        } else if ORIGIN.iter().any(|name| value.get(name).is_some()) {
            let found =
                ORIGIN.iter().filter_map(|name| Some(((*name).into(), value.get(name)?.as_str()?.into())));
            self.origin = found.collect();
        } else {
            anyhow::bail!("is neither a measurement nor a verification");
        }
        Ok(())
    }

    /// Tells runs of one file apart: where a case has several lines of ours, each ends a run, since a run writes ours
    /// last. Figures are compared within a run only.
    fn number_runs(&mut self) {
        for at in 0..self.records.len() {
            let ours: Vec<usize> = (0..self.records.len())
                .filter(|&i| self.records[i].is_ours() && self.records[i].cell() == self.records[at].cell())
                .collect();
            let before = ours.iter().filter(|&&i| i < at).count();
            self.records[at].run = before.min(ours.len().saturating_sub(1));
        }
        let mut seen = HashSet::new();
        let mut kept: Vec<Record> = std::mem::take(&mut self.records)
            .into_iter()
            .rev()
            .filter(|record| seen.insert((record.key(), record.run)))
            .collect();
        kept.reverse();
        self.records = kept;
    }

    /// The measurements of each device apart, in the order of the file: they have nothing to do with each other. What is
    /// of no device stays with the first.
    pub(crate) fn by_device(mut self) -> Vec<Results> {
        let mut devices: Vec<Option<String>> = Vec::new();
        for record in &self.records {
            if !devices.contains(&record.device) {
                devices.push(record.device.clone());
            }
        }
        if devices.len() < 2 {
            return vec![self];
        }
        let records = std::mem::take(&mut self.records);
        let origin = self.origin.clone();
        let parts = devices.into_iter().enumerate().map(|(part, device)| {
            let mut of_device = std::mem::take(&mut self);
            self.name = of_device.name.clone();
            of_device.part = part;
            of_device.origin = origin.clone();
            for (_, value) in of_device.origin.iter_mut().filter(|(name, _)| name == "device") {
                *value = device.clone().unwrap_or_default();
            }
            of_device.records = records.iter().filter(|record| record.device == device).cloned().collect();
            of_device
        });
        parts.collect()
    }

    /// What the file says of its origin.
    pub(crate) fn origin(&self, name: &str) -> Option<&str> {
        self.origin.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_every_kind_are_told_apart() {
        let text = r#"{"device": "a box", "date": "2026-11-22"}
{"system": "torch", "case": "dec4k", "dtype": "f32", "ms": 2.0, "gbps": 4.0}
{"system": "torch", "case": "dec4k", "dtype": "f32", "ms": 1.0, "gbps": 8.0}

{"case": "B1_S8_H1_1_D8_full", "dtype": "float32", "skip": "too small"}
{"case": "a", "passed": true, "rms_error": 0.1, "rms_tolerance": 1.0, "max_error": 0.1, "max_tolerance": 2.0}
{"kernel": "fwd", "arch": "sm_90", "threads": 128, "registers": 255, "spilled_bytes": 0, "shared_bytes": 9, "image_bytes": 7}"#;
        let results = Results::parse("a".into(), text).unwrap();
        assert_eq!(results.records.len(), 1);
        assert_eq!((results.records[0].ms, results.records[0].tbps), (Some(1.0), Some(0.008)));
        assert_eq!(results.records[0].device.as_deref(), Some("a box"));
        assert_eq!(results.skipped, ["B1_S8_H1_1_D8_full: too small"]);
        assert!(results.verifications[0].passed);
        assert_eq!((results.kernels[0].kernel.as_str(), results.kernels[0].registers), ("fwd", 255));
    }

    #[test]
    fn peers_belong_to_the_run_that_ours_ends() {
        let line = |system: &str, ms: f64| {
            format!("{{\"system\": \"{system}\", \"case\": \"a\", \"dtype\": \"f32\", \"ms\": {ms}}}\n")
        };
        let text =
            [line("torch", 1.0), line("omniflash", 2.0), line("torch_fixed", 3.0), line("omniflash", 4.0)];
        let results = Results::parse("a".into(), &text.concat()).unwrap();
        let runs: Vec<(usize, Option<f64>)> = results.records.iter().map(|r| (r.run, r.ms)).collect();
        assert_eq!(runs, [(0, Some(1.0)), (0, Some(2.0)), (1, Some(3.0)), (1, Some(4.0))]);
        // One line of ours is compared with all, wherever it stands.
        let text = [line("omniflash", 2.0), line("torch", 1.0)].concat();
        assert!(Results::parse("a".into(), &text).unwrap().records.iter().all(|record| record.run == 0));
    }

    #[test]
    fn devices_of_one_file_are_taken_apart() {
        let line = |system: &str, device: &str| {
            format!("{{\"system\": \"{system}\", \"case\": \"a\", \"ms\": 1.0, \"device\": \"{device}\"}}\n")
        };
        let text = [
            "{\"device\": \"a box\", \"date\": \"d\"}\n{\"system\": \"fa3\", \"absent\": \"why\"}\n".into(),
            line("omniflash-cuda", "gpu"),
            line("omniflash-cpu", "cpu"),
            line("torch-flash2", "gpu"),
        ];
        let parts = Results::parse("f".into(), &text.concat()).unwrap().by_device();
        let found: Vec<(&str, &str, usize, usize, usize)> = parts
            .iter()
            .map(|p| {
                let device = p.origin("device").unwrap();
                (p.name.as_str(), device, p.part, p.records.len(), p.skipped.len())
            })
            .collect();
        assert_eq!(found, [("f", "gpu", 0, 2, 1), ("f", "cpu", 1, 1, 0)]);
        let one = Results::parse("f".into(), &line("omniflash-cpu", "cpu")).unwrap();
        assert_eq!(one.clone().by_device(), [one]);
    }

    #[test]
    fn what_is_no_result_is_an_error_that_names_its_line() {
        for (text, part) in [("", "no result"), ("{\"a\": 1}", "line 1"), ("\n[", "line 2")] {
            let error = format!("{:#}", Results::parse("a".into(), text).unwrap_err());
            assert!(error.contains(part), "{error}");
        }
    }
}
