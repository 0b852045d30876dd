//! What every omniflash backend must get right: one table of cases, run through the trait object.
//!
//! A [`Spec`] describes a case in one expression; [`Spec::build`] makes a [`Case`], host memory with NaN wherever
//! nothing may look; [`Oracle`] knows its answer in float64 and how near an honest computation
//! comes; [`conformance::run`] takes the table through a backend and reports. [`kernel`] tries kernels by themselves.
//!
//! ```
//! use omniflash_core::ReferenceBackend;
//! use omniflash_testkit::conformance::{self, Filter};
//! let summary = conformance::run(&ReferenceBackend::new(), &Filter::only("f7/lengths/*"));
//! summary.assert_clean();
//! ```

pub mod append;
pub mod case;
pub mod conformance;
pub mod expectations;
pub mod generators;
pub mod golden;
pub mod kernel;
pub mod memory;
pub mod naive;
mod random;
pub mod spec;
pub mod tolerance;

pub use case::{Case, Outcome};
pub use spec::Spec;
pub use tolerance::{Oracle, Violation};
