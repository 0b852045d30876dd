//! The command `omniflash`: `attend`, `verify`, `info`, `bench`, `tune`, `report`, `kernels` and a demonstration, all thin over the library.
//!
//! [`case_file`] is the format of bug reports and tests, and knows nothing of the command line.

#![forbid(unsafe_code)]

mod arguments;
mod attend;
mod bench;
pub mod case_file;
mod demo;
mod execution;
mod failure;
mod info;
mod kernels;
mod report;
mod results;
mod self_test;
mod support;
mod synthetic;
mod terminal;
mod tune;
mod verify;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

use arguments::{Cli, Command};

/// How a command ended that ran to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// All is well.
    Passed,
    /// A result is further from the reference than it may be, or a case slower than it was.
    OutOfTolerance,
}

/// Runs the command line `arguments`, the program's name first.
///
/// Exit codes: 0; 1 when a result is out of tolerance or a case slower than it was; 2 with one line on standard error for
/// all that fails; 141, and nothing on standard error, when the reader of standard output goes away.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    failure::install();
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => return failure::exit(&failure::usage(&error)),
        // Help and version.
        Err(error) => return failure::outcome(terminal::print(error.render()).map(|()| Verdict::Passed)),
    };
    failure::outcome(dispatch(cli))
}

fn dispatch(cli: Cli) -> anyhow::Result<Verdict> {
    match cli.command {
        None => demo::run(&cli.demo),
        Some(Command::Demo(arguments)) => demo::run(&arguments),
        Some(Command::Attend(arguments)) => attend::run(&arguments),
        Some(Command::Verify(arguments)) => verify::run(&arguments),
        Some(Command::Info(arguments)) => info::run(&arguments),
        Some(Command::Bench(arguments)) => bench::run(&arguments),
        Some(Command::Tune(arguments)) => tune::run(&arguments),
        Some(Command::Kernels(command)) => kernels::run(&command),
        Some(Command::Report(arguments)) => report::run(&arguments),
    }
}
