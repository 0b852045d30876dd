//! The run-time compiler, a library that needs no toolkit: about 90 MB, loaded only when a kernel must be compiled.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::Library;
use omniflash_gpu::compiler::{RuntimeCompiler, RuntimeSymbols};
use omniflash_gpu::library::{open_first, path_variable};
use omniflash_kernel_store::{CompileError, Compiler, KernelSource};

const SYMBOLS: RuntimeSymbols = RuntimeSymbols {
    version: "nvrtcVersion",
    error_string: "nvrtcGetErrorString",
    create_program: "nvrtcCreateProgram",
    destroy_program: "nvrtcDestroyProgram",
    compile_program: "nvrtcCompileProgram",
    code_size: "nvrtcGetCUBINSize",
    code: "nvrtcGetCUBIN",
    log_size: "nvrtcGetProgramLogSize",
    log: "nvrtcGetProgramLog",
};

/// Names another run-time compiler library than the system's.
pub const NVRTC_VARIABLE: &str = "OMNIFLASH_NVRTC_LIBRARY";

/// NVRTC, loaded when first asked for its version.
#[derive(Debug)]
pub struct Nvrtc {
    candidates: Vec<PathBuf>,
    loaded: OnceLock<Result<Loaded, String>>,
}

impl Nvrtc {
    /// The library that [`NVRTC_VARIABLE`] names, else the system's, else that of a toolkit in `CUDA_HOME`.
    pub fn of_system() -> Self {
        if let Some(path) = path_variable(NVRTC_VARIABLE) {
            return Nvrtc::new(vec![path]);
        }
        let names = if cfg!(windows) {
            ["nvrtc64_130_0.dll", "nvrtc64_120_0.dll"].as_slice()
        } else {
            ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"].as_slice()
        };
        let folders = super::toolkits()
            .into_iter()
            .map(|toolkit| toolkit.join(if cfg!(windows) { "bin" } else { "lib64" }));
        let in_toolkits = folders.flat_map(|folder| names.iter().map(move |name| folder.join(name)));
        Nvrtc::new(names.iter().map(PathBuf::from).chain(in_toolkits).collect())
    }

    /// The first library of `candidates` that loads.
    pub fn new(candidates: Vec<PathBuf>) -> Self {
        Nvrtc { candidates, loaded: OnceLock::new() }
    }

    fn loaded(&self) -> Result<&Loaded, &str> {
        self.loaded.get_or_init(|| Loaded::of(&self.candidates)).as_ref().map_err(String::as_str)
    }
}

impl Compiler for Nvrtc {
    fn name(&self) -> &str {
        "nvrtc"
    }

    fn version(&self) -> Result<String, String> {
        self.loaded()?.compiler.version()
    }

    fn compile(&self, source: &KernelSource<'_>) -> Result<Vec<u8>, CompileError> {
        let loaded = self.loaded().map_err(|reason| CompileError::Unusable(reason.into()))?;
        let options: Vec<String> = std::iter::once(format!("--gpu-architecture={}", source.arch))
            .chain(source.options.iter().map(|option| (*option).to_owned()))
            .collect();
        loaded.compiler.compile(source, &options)
    }
}

#[derive(Debug)]
struct Loaded {
    compiler: RuntimeCompiler,
    /// Keeps it loaded: the compiler finds it by name.
    _builtins: Option<Library>,
}

impl Loaded {
    fn of(candidates: &[PathBuf]) -> Result<Self, String> {
        let (library, path) = open_first(candidates)?;
        let builtins = builtins_beside(path);
        // SAFETY: these are NVRTC's functions.
        let compiler = unsafe { RuntimeCompiler::from_library(library, SYMBOLS) }?;
        Ok(Loaded { compiler, _builtins: builtins })
    }
}

/// NVRTC loads its builtins by name; those of a package that is not on the loader's path lie beside it and are found
/// when they are loaded already.
fn builtins_beside(library: &Path) -> Option<Library> {
    let folder = library.parent().filter(|folder| !folder.as_os_str().is_empty())?;
    let path = fs::read_dir(folder).ok()?.filter_map(|file| Some(file.ok()?.path())).find(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("libnvrtc-builtins.so") || name.starts_with("nvrtc-builtins64")
    })?;
    Some(open_first(&[path]).ok()?.0)
}
