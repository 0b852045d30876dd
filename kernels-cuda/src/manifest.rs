//! The set of kernels that is built ahead of time.

use serde::Deserialize;

/// `manifest.toml`: architectures, and instances by family.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The architectures that everything is built for: `sm_80`, ...
    pub architectures: Vec<String>,
}

/// One kernel of the set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// The kernel's id without the architecture.
    pub id: String,
}
