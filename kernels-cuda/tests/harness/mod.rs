//! Compiles kernels for the host, makes problems, and compares.

mod case;
mod module;

pub(crate) use case::{Case, KvForm, QForm, Tolerance, check, check_naive, check_verify_page_table};
pub(crate) use module::{FORWARD, Module};
