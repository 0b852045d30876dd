//! The compiler as a program: ROCm's, or any clang with the AMDGPU target and lld.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use omniflash_gpu::compiler::compile_by_program;
use omniflash_gpu::library::path_variable;
use omniflash_kernel_store::{CompileError, Compiler, KernelSource};

use super::batch;

/// Names another clang than those on PATH and in ROCm.
pub const CLANG_VARIABLE: &str = "OMNIFLASH_HIP_CLANG";

/// clang: the one that [`CLANG_VARIABLE`] names, else ROCm's, else the newest on PATH.
#[derive(Debug)]
pub struct Clang {
    programs: Vec<PathBuf>,
    /// Asked once: the question starts two processes for every program.
    found: OnceLock<Result<Found, String>>,
    /// What the program would start, by its arguments; `None` where that cannot be shared by several sources.
    steps: Mutex<BTreeMap<Vec<String>, Option<Arc<batch::Steps>>>>,
}

/// A program that has the AMDGPU target.
#[derive(Debug)]
struct Found {
    program: PathBuf,
    /// What it says of its version.
    version: String,
}

impl Clang {
    /// The system's clang.
    pub fn of_system() -> Self {
        if let Some(program) = path_variable(CLANG_VARIABLE) {
            return Clang::new(vec![program]);
        }
        let in_toolkits = super::toolkits().into_iter().map(|toolkit| toolkit.join("llvm/bin/clang"));
        let on_path = ["clang-23", "clang-22", "clang-21", "clang-20", "clang"].map(PathBuf::from);
        Clang::new(in_toolkits.chain(on_path).collect())
    }

    /// The first of these programs that compiles for AMD GPUs.
    pub fn new(programs: Vec<PathBuf>) -> Self {
        Clang { programs, found: OnceLock::new(), steps: Mutex::default() }
    }

    #[cfg(test)]
    pub(super) fn program(&self) -> Option<&std::path::Path> {
        Some(&self.found().ok()?.program)
    }

    fn found(&self) -> Result<&Found, String> {
        self.found.get_or_init(|| find(&self.programs)).as_ref().map_err(String::clone)
    }

    /// The images of sources with the same arguments, as far as one start of the compiler gives them.
    fn compile_batch(&self, arguments: &[String], sources: &[KernelSource<'_>]) -> Vec<Option<Vec<u8>>> {
        let compiled = match self.steps_of(arguments) {
            Some(steps) => batch::compile(&steps, sources),
            None => Ok(Vec::new()),
        };
        let mut images = compiled.unwrap_or_else(|error| {
            tracing::debug!(%error, "sources are compiled one by one");
            Vec::new()
        });
        images.resize(sources.len(), None);
        images
    }

    fn steps_of(&self, arguments: &[String]) -> Option<Arc<batch::Steps>> {
        let found = self.found().ok()?;
        let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = steps.get(arguments) {
            return known.clone();
        }
        let asked = batch::Steps::of(&found.program, arguments).unwrap_or_else(|error| {
            tracing::debug!(%error, "the driver cannot be asked what it would start");
            None
        });
        steps.entry(arguments.to_vec()).or_insert(asked.map(Arc::new)).clone()
    }
}

/// The first program that has the AMDGPU target.
fn find(programs: &[PathBuf]) -> Result<Found, String> {
    let says = |program: &PathBuf, option: &str| match Command::new(program).arg(option).output() {
        Ok(output) if output.status.success() => Some(String::from_utf8_lossy(&output.stdout).into_owned()),
        _ => None,
    };
    for program in programs {
        if says(program, "--print-targets").is_some_and(|targets| targets.contains("amdgcn")) {
            let version = says(program, "--version").unwrap_or_default();
            return Ok(Found { program: program.clone(), version });
        }
    }
    let names: Vec<String> = programs.iter().map(|program| program.display().to_string()).collect();
    Err(format!("none of {} runs and has the AMDGPU target", names.join(", ")))
}

/// What the driver is given beside the names of files.
pub(super) fn arguments(source: &KernelSource<'_>) -> Vec<String> {
    let options = source.options.iter().map(|option| (*option).to_owned());
    options.chain([format!("--offload-arch={}", source.arch)]).collect()
}

impl Compiler for Clang {
    fn name(&self) -> &str {
        "clang"
    }

    /// The first line: `Debian clang version 22.1.8 (1)`.
    fn version(&self) -> Result<String, String> {
        Ok(self.found()?.version.lines().next().unwrap_or_default().trim().to_owned())
    }

    fn compile(&self, source: &KernelSource<'_>) -> Result<Vec<u8>, CompileError> {
        let found = self.found().map_err(CompileError::Unusable)?;
        compile_by_program(&found.program, &arguments(source), source, "kernel.hip")
    }

    /// Sources for one architecture share starts of the compiler; one that gives no image there is compiled by itself,
    /// which says why where it is wrong.
    fn compile_all(&self, sources: &[KernelSource<'_>]) -> Vec<Result<Vec<u8>, CompileError>> {
        let mut alike: BTreeMap<Vec<String>, Vec<usize>> = BTreeMap::new();
        for (at, source) in sources.iter().enumerate() {
            alike.entry(arguments(source)).or_default().push(at);
        }
        let mut images = vec![None; sources.len()];
        for (arguments, places) in &alike {
            for places in places.chunks(batch::MOST) {
                let sources: Vec<KernelSource<'_>> = places.iter().map(|&at| sources[at]).collect();
                let compiled = self.compile_batch(arguments, &sources);
                places.iter().zip(compiled).for_each(|(&at, image)| images[at] = image);
            }
        }
        let compile = |(source, image): (_, Option<Vec<u8>>)| image.map_or_else(|| self.compile(source), Ok);
        sources.iter().zip(images).map(compile).collect()
    }
}
