//! The emulator seen from outside: real code objects of clang, through the Rust API and the HIP C API.

mod attention;
mod basics;
mod checkers;
mod hip_api;
mod matrix;
mod problem;
mod support;
