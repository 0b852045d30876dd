//! The run-time compiler, a library that comes with the driver, loaded only when a kernel must be compiled.

use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};

use omniflash_gpu::compiler::{RuntimeCompiler, RuntimeSymbols};
use omniflash_gpu::library::{open_first, path_variable};
use omniflash_kernel_store::{CompileError, Compiler, KernelSource};

/// The functions that are called.
pub(crate) const SYMBOLS: RuntimeSymbols = RuntimeSymbols {
    version: "hiprtcVersion",
    error_string: "hiprtcGetErrorString",
    create_program: "hiprtcCreateProgram",
    destroy_program: "hiprtcDestroyProgram",
    compile_program: "hiprtcCompileProgram",
    code_size: "hiprtcGetCodeSize",
    code: "hiprtcGetCode",
    log_size: "hiprtcGetProgramLogSize",
    log: "hiprtcGetProgramLog",
};

/// Names another run-time compiler library than the system's.
pub const HIPRTC_VARIABLE: &str = "OMNIFLASH_HIPRTC_LIBRARY";

/// Held while a program is compiled: two at a time have been seen to end the process in ROCm 5.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// hipRTC, loaded when first asked for its version.
#[derive(Debug)]
pub struct Hiprtc {
    candidates: Vec<PathBuf>,
    loaded: OnceLock<Result<Loaded, String>>,
}

impl Hiprtc {
    /// The library that [`HIPRTC_VARIABLE`] names, else the system's, else that of ROCm.
    pub fn of_system() -> Self {
        if let Some(path) = path_variable(HIPRTC_VARIABLE) {
            return Hiprtc::new(vec![path]);
        }
        // Of ROCm 5, the driver library is the compiler too.
        let names = if cfg!(windows) {
            ["hiprtc0700.dll", "hiprtc0604.dll"].as_slice()
        } else {
            ["libhiprtc.so.7", "libhiprtc.so.6", "libhiprtc.so", "libamdhip64.so.5"].as_slice()
        };
        let folders = super::toolkits()
            .into_iter()
            .map(|toolkit| toolkit.join(if cfg!(windows) { "bin" } else { "lib" }));
        let in_toolkits = folders.flat_map(|folder| names.iter().map(move |name| folder.join(name)));
        Hiprtc::new(names.iter().map(PathBuf::from).chain(in_toolkits).collect())
    }

    /// The first library of `candidates` that loads.
    pub fn new(candidates: Vec<PathBuf>) -> Self {
        Hiprtc { candidates, loaded: OnceLock::new() }
    }

    fn loaded(&self) -> Result<&Loaded, &str> {
        self.loaded.get_or_init(|| Loaded::of(&self.candidates)).as_ref().map_err(String::as_str)
    }
}

impl Compiler for Hiprtc {
    fn name(&self) -> &str {
        "hiprtc"
    }

    fn version(&self) -> Result<String, String> {
        self.loaded()?.compiler.version()
    }

    fn compile(&self, source: &KernelSource<'_>) -> Result<Vec<u8>, CompileError> {
        let loaded = self.loaded().map_err(|reason| CompileError::Unusable(reason.into()))?;
        if loaded.is_of_rocm_5 && source.arch != "gfx90a" {
            return Err(CompileError::Unusable(format!(
                "hipRTC of ROCm 5 ends the process where it does not know {}; ROCm 6 is needed",
                source.arch
            )));
        }
        let of_language = source.options.iter().filter(|option| is_of_language(option));
        let options: Vec<String> = std::iter::once(format!("--offload-arch={}", source.arch))
            .chain(of_language.map(|option| (*option).to_owned()))
            .collect();
        let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.compiler.compile(source, &options)
    }
}

/// Options that are clang's own way to what hipRTC does by itself are left out.
fn is_of_language(option: &str) -> bool {
    option.starts_with("-std=") || option.starts_with("-O") || option.starts_with("-D")
}

#[derive(Debug)]
struct Loaded {
    compiler: RuntimeCompiler,
    is_of_rocm_5: bool,
}

impl Loaded {
    fn of(candidates: &[PathBuf]) -> Result<Self, String> {
        let (library, path) = open_first(candidates)?;
        let is_of_rocm_5 = path.to_string_lossy().contains(".so.5");
        // SAFETY: these are hipRTC's functions.
        let compiler = unsafe { RuntimeCompiler::from_library(library, SYMBOLS) }?;
        Ok(Loaded { compiler, is_of_rocm_5 })
    }
}
