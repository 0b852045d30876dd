//! `cargo xtask kernels cuda` and `cargo xtask kernels hip`.

pub(crate) mod hip;
mod record;
mod resources;
mod toolkit;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use omniflash_kernel_store::prebuilt_name;
use omniflash_kernels_cuda::{Architecture, HOPPER_ARCH, Instance, Manifest};

use crate::codegen::workspace_root;
use record::{Record, Records};
use resources::Resources;
use toolkit::Toolkit;

/// Registers of a multiprocessor; a block must fit.
const REGISTERS: u32 = 65_536;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only these architectures: `sm_90`, `gfx942`, ...
    #[arg(long = "arch")]
    pub(crate) architectures: Vec<String>,
    /// Only kernels whose id contains this.
    #[arg(long, default_value = "")]
    pub(crate) filter: String,
    /// Checks only: keeps no compiled kernel.
    #[arg(long)]
    pub(crate) check: bool,
    /// Builds each kernel for one of the architectures only, in turn: all of them for each take too long for every change.
    #[arg(long)]
    pub(crate) spread: bool,
    /// Where compiled kernels go, in a folder for each architecture [default: target/kernels/VENDOR].
    #[arg(long)]
    pub(crate) output: Option<PathBuf>,
    /// Write what each kernel takes of registers and memory to this file, as JSON lines for `omniflash report`.
    #[arg(long, value_name = "FILE")]
    pub(crate) record: Option<PathBuf>,
    /// Compilers at a time [default: the processors].
    #[arg(long)]
    pub(crate) jobs: Option<usize>,
}

impl Options {
    /// Whether kernel `index` of architecture `turn` among `turns` that have the same kernels is built.
    fn keeps(&self, index: usize, turn: usize, turns: usize) -> bool {
        !self.spread || index % turns == turn
    }
}

/// One kernel to build.
struct Task {
    architecture: Architecture,
    instance: Instance,
}

/// What became of it.
struct Outcome {
    resources: Resources,
    bytes: u64,
    elapsed: Duration,
    problems: Vec<String>,
}

impl Outcome {
    fn shared_bytes(&self, task: &Task) -> usize {
        self.resources.shared_bytes as usize + task.instance.shared_memory_bytes
    }

    fn record<'a>(&self, task: &'a Task) -> Record<'a> {
        Record {
            kernel: &task.instance.id,
            arch: &task.architecture.name,
            threads: task.instance.block_threads,
            registers: self.resources.registers,
            spilled_bytes: self.resources.spill_bytes,
            shared_bytes: self.shared_bytes(task),
            image_bytes: self.bytes,
        }
    }
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let toolkit = Toolkit::find(&workspace_root())?;
    let tasks = tasks(options)?;
    let default_output = || workspace_root().join("target/kernels/cuda");
    let output = options.output.clone().unwrap_or_else(default_output);
    let records = Records::create(options.record.as_deref())?;
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    let jobs = options.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, Into::into));
    println_table_header();
    std::thread::scope(|scope| {
        for _ in 0..jobs.min(tasks.len()) {
            scope.spawn(|| {
                while let Some(task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let name = format!("{} {}", task.architecture.name, task.instance.id);
                    let built = build(&toolkit, task, &output, options.check).and_then(|outcome| {
                        println_row(task, &outcome);
                        records.add(&outcome.record(task))?;
                        Ok(outcome.problems)
                    });
                    let problems = built.unwrap_or_else(|error| vec![format!("{error:#}")]);
                    let problems = problems.into_iter().map(|problem| format!("{name}: {problem}"));
                    failures.lock().expect("no thread panics while it holds the list").extend(problems);
                }
            });
        }
    });
    let failures = failures.into_inner().expect("no thread panics while it holds the list");
    if failures.is_empty() {
        return Ok(());
    }
    bail!("{} of {} kernels fail their gates:\n{}", failures.len(), tasks.len(), failures.join("\n"));
}

fn tasks(options: &Options) -> anyhow::Result<Vec<Task>> {
    let manifest = Manifest::load()?;
    for name in &options.architectures {
        if !manifest.architectures.iter().any(|architecture| architecture.name == *name) {
            bail!("{name} is not an architecture of manifest.toml");
        }
    }
    let chosen = |architecture: &&Architecture| {
        options.architectures.is_empty() || options.architectures.contains(&architecture.name)
    };
    // Hopper's own kernels are those of no other architecture.
    let (own, shared): (Vec<&Architecture>, Vec<_>) = manifest
        .architectures
        .iter()
        .filter(chosen)
        .partition(|architecture| architecture.name == HOPPER_ARCH);
    let mut tasks = Vec::new();
    for group in [shared, own] {
        for (turn, &architecture) in group.iter().enumerate() {
            for (index, instance) in manifest.instances(architecture)?.into_iter().enumerate() {
                if options.keeps(index, turn, group.len()) && instance.id.contains(&options.filter) {
                    tasks.push(Task { architecture: architecture.clone(), instance });
                }
            }
        }
    }
    if tasks.is_empty() {
        bail!("no kernel has an id with {:?}", options.filter);
    }
    Ok(tasks)
}

fn build(toolkit: &Toolkit, task: &Task, output: &Path, check: bool) -> anyhow::Result<Outcome> {
    let folder = output.join(&task.architecture.name);
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let text = task.instance.unit.source();
    let source = folder.join(format!("{}.cu", task.instance.id));
    // The name by which the kernel store finds it, and no other version of it.
    let cubin = folder.join(prebuilt_name(&task.instance.id, &task.architecture.name, &text, "cubin"));
    fs::write(&source, text).with_context(|| format!("writing {}", source.display()))?;
    let begin = Instant::now();
    let compiled = Command::new(&toolkit.nvcc)
        .args(["-std=c++20", "-O3", "-cubin", "-Xptxas", "-v"])
        .arg(format!("-arch={}", task.architecture.name))
        .arg("-o")
        .args([&cubin, &source])
        .output()
        .with_context(|| format!("starting {}", toolkit.nvcc.display()))?;
    let elapsed = begin.elapsed();
    let log = String::from_utf8_lossy(&compiled.stderr).into_owned();
    if !compiled.status.success() {
        bail!("does not compile:\n{log}");
    }
    let resources = Resources::parse(&log)?;
    let disassembled = toolkit.disassemble(&cubin)?;
    let outcome = Outcome {
        bytes: fs::metadata(&cubin)?.len(),
        elapsed,
        problems: problems(task, &resources, &log, &disassembled),
        resources,
    };
    fs::remove_file(&source)?;
    if check {
        fs::remove_file(&cubin)?;
    }
    Ok(outcome)
}

/// What the gates say.
fn problems(task: &Task, resources: &Resources, log: &str, disassembled: &str) -> Vec<String> {
    let (instance, mut problems) = (&task.instance, Vec::new());
    if resources.spill_bytes > instance.accepted_spill_bytes {
        problems.push(format!(
            "spills {} bytes, accepted are {}",
            resources.spill_bytes, instance.accepted_spill_bytes
        ));
    }
    if resources.registers * instance.block_threads > REGISTERS {
        problems
            .push(format!("{} registers do not fit {} threads", resources.registers, instance.block_threads));
    }
    let shared = resources.shared_bytes as usize + instance.shared_memory_bytes;
    if shared > task.architecture.shared_memory {
        problems
            .push(format!("{shared} bytes of shared memory, {} are there", task.architecture.shared_memory));
    }
    for instruction in ["HMMA", "HGMMA"] {
        match (disassembled.contains(instruction), instance.matrix_instruction == Some(instruction)) {
            (false, true) => problems.push(format!("no {instruction}")),
            (true, false) => problems.push(format!("{instruction} where none is expected")),
            _ => {}
        }
    }
    if !disassembled.contains(instance.unit.entry) {
        problems.push(format!("no entry {}", instance.unit.entry));
    }
    let warnings = log.lines().filter(|line| line.contains("warning") || line.contains("C75"));
    problems.extend(warnings.map(|line| line.trim().to_owned()));
    problems
}

#[allow(clippy::print_stdout)] // the table is the task's result
fn println_table_header() {
    println!(
        "{:<7} {:>5} {:>6} {:>6} {:>7} {:>7} {:>6}  kernel",
        "arch", "regs", "spill", "stack", "shared", "cubin", "s"
    );
}

#[allow(clippy::print_stdout)] // as above
fn println_row(task: &Task, outcome: &Outcome) {
    println!(
        "{:<7} {:>5} {:>6} {:>6} {:>7} {:>7} {:>6.1}  {}{}",
        task.architecture.name,
        outcome.resources.registers,
        outcome.resources.spill_bytes,
        outcome.resources.stack_bytes,
        outcome.shared_bytes(task),
        outcome.bytes,
        outcome.elapsed.as_secs_f64(),
        task.instance.id,
        if outcome.problems.is_empty() { "" } else { "  FAILS" },
    );
}
