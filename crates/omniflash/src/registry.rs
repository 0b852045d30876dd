//! Which backends this machine has.

use std::sync::Arc;

use omniflash_core::{Backend, Error, ReferenceBackend, Result};

/// The environment variable that names the backend [`Registry::best`] returns.
const BACKEND_VARIABLE: &str = "OMNIFLASH_BACKEND";

/// The backends of this machine, and why others are absent.
///
/// ```
/// let registry = omniflash::Registry::discover();
/// for backend in registry.backends() {
///     println!("{}: {}", backend.info().name, backend.info().device_name);
/// }
/// for absent in registry.absent() {
///     println!("{}: {}", absent.name, absent.reason);
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Registry {
    /// Best first.
    backends: Vec<Arc<dyn Backend>>,
    absent: Vec<AbsentBackend>,
}

/// A backend that was compiled in but cannot be used here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AbsentBackend {
    /// Its name.
    pub name: String,
    /// Why it cannot be used, in a sentence for a bug report.
    pub reason: String,
}

impl Registry {
    /// Probes every backend that is compiled in. A missing driver or device is data, never an error or a panic.
    pub fn discover() -> Self {
        let mut registry = Registry { backends: Vec::new(), absent: Vec::new() };
        #[cfg(feature = "cuda")]
        match omniflash_cuda::discover() {
            Ok(backends) => registry.backends.extend(backends),
            Err(absent) => registry.note_absent("cuda", absent.into()),
        }
        #[cfg(feature = "hip")]
        match omniflash_hip::discover() {
            Ok(backends) => registry.backends.extend(backends),
            Err(absent) => registry.note_absent("hip", absent.into()),
        }
        #[cfg(feature = "cpu")]
        match omniflash_cpu::CpuBackend::new() {
            Ok(backend) => registry.backends.push(Arc::new(backend)),
            Err(error) => registry.note_absent("cpu", error),
        }
        registry.backends.push(Arc::new(ReferenceBackend::new()));
        registry
    }

    /// A registry of one's own making; the first backend is the best.
    pub fn from_backends(backends: Vec<Arc<dyn Backend>>) -> Self {
        Registry { backends, absent: Vec::new() }
    }

    /// All usable backends, best first; the reference comes last.
    pub fn backends(&self) -> &[Arc<dyn Backend>] {
        &self.backends
    }

    /// The backends that were compiled in but cannot be used.
    pub fn absent(&self) -> &[AbsentBackend] {
        &self.absent
    }

    /// The backend that `OMNIFLASH_BACKEND` names; without it the fastest of the machine: GPUs before the CPU, and
    /// never the reference.
    ///
    /// # Errors
    /// `Absent` or `Value` when the variable names a backend that is not there.
    pub fn best(&self) -> Result<Arc<dyn Backend>> {
        // A name that is no text is no backend's either.
        let wanted = std::env::var_os(BACKEND_VARIABLE).unwrap_or_default();
        self.choose(&wanted.to_string_lossy()).map_err(|error| match error {
            Error::Value { value, expected, .. } => Error::value(BACKEND_VARIABLE, value, expected),
            error => error,
        })
    }

    /// As [`best`](Registry::best) with the name given: empty or `auto` for the fastest.
    fn choose(&self, wanted: &str) -> Result<Arc<dyn Backend>> {
        if !matches!(wanted, "" | "auto") {
            return self.get(wanted);
        }
        let fastest = self.backends.iter().find(|backend| backend.info().name != "reference");
        fastest.cloned().ok_or_else(|| Error::Absent {
            backend: "auto".into(),
            reason: match &self.absent[..] {
                [] => "this build has no backend but the reference; enable one of its features".into(),
                absent => {
                    let reasons = absent.iter().map(|absent| format!("{}: {}", absent.name, absent.reason));
                    reasons.collect::<Vec<_>>().join("; ")
                }
            },
        })
    }

    /// The backend of this name: `cpu`, `reference`, `cuda`, `cuda:1`, `hip`, ...; without a number, the first.
    ///
    /// # Errors
    /// `Absent` with the reason when it was compiled in but cannot be used, `Value` with the names possible otherwise.
    pub fn get(&self, name: &str) -> Result<Arc<dyn Backend>> {
        let first = format!("{name}:0");
        if let Some(backend) = self.backends.iter().find(|backend| {
            let found = &backend.info().name;
            found == name || *found == first
        }) {
            return Ok(Arc::clone(backend));
        }
        let kind = name.split(':').next().unwrap_or(name);
        if let Some(absent) = self.absent.iter().find(|absent| absent.name == kind) {
            return Err(Error::Absent { backend: name.into(), reason: absent.reason.clone() });
        }
        let names: Vec<&str> = self.backends.iter().map(|backend| backend.info().name.as_str()).collect();
        Err(Error::value("backend", name, format!("auto or one of {}", names.join(", "))))
    }

    #[cfg(any(feature = "cuda", feature = "hip", feature = "cpu"))]
    fn note_absent(&mut self, name: &str, error: Error) {
        let reason = match error {
            Error::Absent { reason, .. } => reason,
            error => error.to_string(),
        };
        self.absent.push(AbsentBackend { name: name.into(), reason });
    }
}

impl Default for Registry {
    fn default() -> Self {
        Registry::discover()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_is_always_there() {
        assert_eq!(Registry::discover().get("reference").unwrap().info().name, "reference");
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let error = Registry::discover().get("tpu").unwrap_err().to_string();
        assert!(error.contains("tpu") && error.contains("reference"), "{error}");
    }

    #[test]
    fn an_absent_backend_says_why() {
        let mut registry = Registry::discover();
        registry.absent.push(AbsentBackend { name: "metal".into(), reason: "no such library".into() });
        let error = registry.get("metal:1").unwrap_err();
        assert_eq!(error, Error::Absent { backend: "metal:1".into(), reason: "no such library".into() });
    }

    #[test]
    fn auto_is_the_first_and_an_empty_registry_an_error() {
        let registry = Registry::discover();
        assert_eq!(registry.choose("auto").unwrap().info().name, registry.backends()[0].info().name);
        assert!(matches!(Registry::from_backends(Vec::new()).choose(""), Err(Error::Absent { .. })));
    }
}
