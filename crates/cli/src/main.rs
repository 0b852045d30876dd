//! The command `omniflash`.

use std::process::ExitCode;

fn main() -> ExitCode {
    omniflash_cli::run(std::env::args_os())
}
