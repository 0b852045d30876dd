//! Development tasks: `cargo xtask --help`.

mod codegen;
mod kernels;
mod performance;

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
    /// Builds the kernels of a vendor's manifest and checks what the compiler made of them.
    #[command(subcommand)]
    Kernels(Vendor),
    /// Counts on the emulator what can be known of the kernels' speed without a card.
    #[command(subcommand)]
    Performance(Counted),
}

#[derive(Subcommand)]
enum Counted {
    /// Writes `benches/results/hip-static.md`; needs clang, but no GPU and no ROCm.
    Hip(performance::Options),
}

#[derive(Subcommand)]
enum Vendor {
    /// Builds `kernels-cuda/manifest.toml` with nvcc; no GPU is needed.
    Cuda(kernels::Options),
    /// Builds `kernels-hip/manifest.toml` with clang; no GPU and no ROCm is needed.
    Hip(kernels::Options),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().task {
        Task::Codegen { check } => codegen::run(check),
        Task::Kernels(Vendor::Cuda(options)) => kernels::run(&options),
        Task::Kernels(Vendor::Hip(options)) => kernels::hip::run(&options),
        Task::Performance(Counted::Hip(options)) => performance::run(&options),
    }
}
