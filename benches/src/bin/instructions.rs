//! A program to count instructions of: `instructions NAME COUNT` does one piece of host work COUNT times.
//!
//! `ci/instructions` runs it under callgrind with two counts; the difference is what the work itself takes.

use std::hint::black_box;
use std::process::ExitCode;

use omniflash_benches::host::{KINDS, Problem};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, count] = &arguments[..] else { return ExitCode::FAILURE };
    let (Some((step, kind)), Ok(count)) = (name.split_once('/'), count.parse::<u32>()) else {
        return ExitCode::FAILURE;
    };
    let Some(kind) = KINDS.into_iter().find(|known| *known == kind) else { return ExitCode::FAILURE };
    let Ok(mut problem) = Problem::new(kind) else { return ExitCode::FAILURE };
    for _ in 0..count {
        let done = match step {
            "validate" => problem.validate().map(|rows| black_box(rows) > 0),
            _ => problem.plan().map(|plan| black_box(plan).num_partitions > 0),
        };
        if done.is_err() {
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
