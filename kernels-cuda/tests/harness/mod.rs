//! Compiles kernels for the host, makes problems, and compares.

mod case;
mod module;

pub(crate) use case::{
    Case, KvForm, QForm, Tolerance, UNTOUCHED, check, check_decode, check_naive, check_verify_page_table,
    decode_output,
};
pub(crate) use module::{FORWARD, Module};
