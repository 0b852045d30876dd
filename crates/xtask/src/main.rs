//! Development tasks: `cargo xtask --help`.

mod codegen;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Development tasks of omniflash")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Writes the files that are generated from Rust.
    Codegen {
        /// Fails if a file is not current, and writes nothing.
        #[arg(long)]
        check: bool,
    },
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().task {
        Task::Codegen { check } => codegen::run(check),
    }
}
