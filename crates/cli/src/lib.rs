//! The command `omniflash`: `attend`, `verify`, `info`, `bench` and a demonstration, all thin over the library.
//!
//! [`case_file`] is the format of bug reports and tests, and knows nothing of the command line.

#![forbid(unsafe_code)]

pub mod case_file;
