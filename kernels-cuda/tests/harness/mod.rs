//! Compiles kernels for the host, makes problems, and compares.

mod case;
mod module;

pub use case::{Case, KvForm, QForm, Tolerance, check, check_naive, check_verify_page_table};
pub use module::{FORWARD, Module};
