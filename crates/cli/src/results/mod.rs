//! Result files: JSON lines of measurements, of ours and of the peers' scripts, as they are written and read.

mod case_name;
mod file;
mod record;

pub(crate) use case_name::{CaseName, SHORT};
pub(crate) use file::{KernelResources, Results, Verification};
pub(crate) use record::{Key, Record, rounded};
