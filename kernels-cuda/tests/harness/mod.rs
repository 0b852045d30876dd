//! Compiles kernels for the host, and compares what they leave with the reference.

mod check;
mod module;

pub(crate) use check::{check, check_decode, check_naive, check_verify_page_table, decode_output};
pub(crate) use module::{FORWARD, Module};
pub(crate) use omniflash_testkit::kernel::{Case, KvForm, QForm, Tolerance, UNTOUCHED};
