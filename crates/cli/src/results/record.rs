//! One line of a result file: a system, a case, and how fast it was.

use serde::{Deserialize, Serialize};

/// One measurement. The first five fields are those that all systems write; rates are in 10^12 a second.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub(crate) struct Record {
    /// `omniflash-cpu`, `torch`, ...
    pub(crate) system: String,
    pub(crate) case: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) dtype: String,
    /// The median.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ms: Option<f64>,
    /// Operations, where arithmetic is the limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tflops: Option<f64>,
    /// Bytes of keys and values, once, where memory is the limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tbps: Option<f64>,
    /// The rate by the measured peak of its kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) share: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) min_ms: Option<f64>,
    /// The distance of the quartiles by the median.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) spread: Option<f64>,
    /// Samples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) n: Option<u64>,
    /// Of a CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) threads: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) group: Option<String>,
    /// Of a GPU: whether it idled or worked before, `cool` or `hot`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mode: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) backend: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) device: Option<String>,
    /// How it was timed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) method: Option<String>,
    /// Measured peaks of the device: operations of the dtype, bytes read, bytes copied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) peak_tflops: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) peak_read_tbps: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) peak_copy_tbps: Option<f64>,
    /// Largest error against the reference, where the system was checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) err: Option<f64>,
    /// What `err` may be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) err_tolerance: Option<f64>,
    /// The earlier median it was compared with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) was_ms: Option<f64>,
    /// Whether it is slower than the threshold allows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) regressed: Option<bool>,
    /// Which run of its file it belongs to, where a file holds several of the same case.
    #[serde(skip)]
    pub(crate) run: usize,
    /// In 10^9 a second, as the peers of the CPU write them.
    #[serde(skip_serializing)]
    pub(crate) gflops: Option<f64>,
    #[serde(skip_serializing)]
    pub(crate) gbps: Option<f64>,
}

/// What two measurements must share to be compared: system, case, dtype, threads, mode.
pub(crate) type Key = (String, String, String, Option<u64>, Option<String>);

impl Record {
    /// The record with one name for each dtype and case, and one unit for each rate, whoever wrote it.
    pub(crate) fn normalized(mut self) -> Self {
        self.dtype = match self.dtype.as_str() {
            "f32" => "float32",
            "f16" => "float16",
            "bf16" => "bfloat16",
            other => other,
        }
        .into();
        self.case = super::case_name::long(&self.case).into();
        let is_decode = self.case.starts_with("dec_");
        // The peers of the CPU write both rates of every case; only one of them means something.
        if !is_decode && self.tflops.is_none() {
            self.tflops = self.gflops.map(|gflops| rounded(gflops / 1e3));
        }
        if is_decode && self.tbps.is_none() {
            self.tbps = self.gbps.map(|gbps| rounded(gbps / 1e3));
        }
        (self.gflops, self.gbps) = (None, None);
        self
    }

    pub(crate) fn key(&self) -> Key {
        (self.system.clone(), self.case.clone(), self.dtype.clone(), self.threads, self.mode.clone())
    }

    /// What systems are compared on, within one run.
    pub(crate) fn cell(&self) -> (&str, &str, Option<u64>, Option<&str>) {
        (&self.case, &self.dtype, self.threads, self.mode.as_deref())
    }

    /// The rate that counts for its case.
    pub(crate) fn rate(&self) -> Option<f64> {
        self.tflops.or(self.tbps)
    }

    pub(crate) fn is_ours(&self) -> bool {
        self.system.starts_with("omniflash")
    }
}

/// Five significant digits: more than a measurement has.
pub(crate) fn rounded(value: f64) -> f64 {
    format!("{value:.4e}").parse().expect("a number that was just written")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_rates_keep_their_digits() {
        assert_eq!(rounded(0.000_012_345_678), 0.000_012_346);
        assert_eq!(rounded(123_456.7), 123_460.0);
    }

    #[test]
    fn lines_of_the_peers_of_a_cpu_become_like_ours() {
        let line = r#"{"system": "torch", "case": "dec32k", "dtype": "bf16", "threads": 2, "ms": 1.5, "gflops": 67.5, "gbps": 9.1, "err": 1e-8}"#;
        let record = serde_json::from_str::<Record>(line).unwrap().normalized();
        assert_eq!((record.case.as_str(), record.dtype.as_str()), ("dec_B1_H32_8_D128_KV32768", "bfloat16"));
        assert_eq!((record.tbps, record.tflops, record.err), (Some(0.0091), None, Some(1e-8)));
    }
}
