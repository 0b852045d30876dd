//! Names of architectures.

use crate::probe::DeviceFacts;

/// The architecture that kernels are compiled for: `sm_90`.
pub(crate) fn arch(facts: &DeviceFacts) -> String {
    let (major, minor) = facts.compute_capability;
    format!("sm_{major}{minor}")
}

/// Architectures whose machine code runs on this device: its own, then the older ones of its generation.
pub(crate) fn arch_family(facts: &DeviceFacts) -> impl Iterator<Item = String> {
    let (major, minor) = facts.compute_capability;
    (0..=minor).rev().map(move |minor| format!("sm_{major}{minor}"))
}
