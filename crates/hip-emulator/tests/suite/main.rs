//! The emulator seen from outside: real code objects of clang, through the Rust API and the HIP C API.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]
#![allow(clippy::print_stderr, reason = "a skipped test says so")]

mod attention;
mod basics;
mod checkers;
mod hip_api;
mod matrix;
mod problem;
mod support;
