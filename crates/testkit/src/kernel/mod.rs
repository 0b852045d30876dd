//! Kernels by themselves, with no backend around them: cases with NaN wherever nothing may look, and the comparison of
//! what a kernel leaves with the reference.
//!
//! The tests of each vendor's kernels bring a [`KernelDevice`] and the launches.

mod answer;
mod case;
mod data;
mod device;
mod table;

pub use answer::{Answer, UNTOUCHED, attend};
pub use case::{Case, KvForm, QForm, Tolerance};
pub use device::{HostMemory, KernelDevice};
pub use table::assert_finds_bad_pages;
