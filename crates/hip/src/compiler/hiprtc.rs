//! The run-time compiler, a library that comes with the driver, loaded only when a kernel must be compiled.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::PathBuf;
use std::ptr;
use std::sync::OnceLock;

use libloading::Library;
use omniflash_gpu::library::open_first;
use omniflash_kernel_store::{CompileError, Compiler, KernelSource};

/// Names another run-time compiler library than the system's.
pub const HIPRTC_VARIABLE: &str = "OMNIFLASH_HIPRTC_LIBRARY";

/// hipRTC, loaded when first asked for its version.
#[derive(Debug)]
pub struct Hiprtc {
    candidates: Vec<PathBuf>,
    loaded: OnceLock<Result<Functions, String>>,
}

impl Hiprtc {
    /// The library that [`HIPRTC_VARIABLE`] names, else the system's, else that of ROCm.
    pub fn of_system() -> Self {
        if let Some(path) = std::env::var_os(HIPRTC_VARIABLE) {
            return Hiprtc::new(vec![PathBuf::from(path)]);
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

    fn functions(&self) -> Result<&Functions, &str> {
        self.loaded.get_or_init(|| Functions::load(&self.candidates)).as_ref().map_err(String::as_str)
    }
}

impl Compiler for Hiprtc {
    fn name(&self) -> &str {
        "hiprtc"
    }

    fn version(&self) -> Result<String, String> {
        let functions = self.functions()?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both are writable.
        match unsafe { (functions.version)(&raw mut major, &raw mut minor) } {
            SUCCESS => Ok(format!("{major}.{minor}")),
            code => Err(format!("hiprtcVersion failed with {code}: {}", functions.describe(code))),
        }
    }

    fn compile(&self, source: &KernelSource<'_>) -> Result<Vec<u8>, CompileError> {
        let functions = self.functions().map_err(|reason| CompileError::Unusable(reason.into()))?;
        if functions.is_of_rocm_5 && source.arch != "gfx90a" {
            return Err(CompileError::Unusable(format!(
                "hipRTC of ROCm 5 ends the process where it does not know {}; ROCm 6 is needed",
                source.arch
            )));
        }
        let program = Program::new(functions, source)?;
        let options: Vec<CString> = std::iter::once(format!("--offload-arch={}", source.arch))
            .chain(
                source
                    .options
                    .iter()
                    .filter(|option| is_of_language(option))
                    .map(|option| (*option).to_owned()),
            )
            .map(|option| c_string(&option))
            .collect::<Result<_, _>>()?;
        let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        // SAFETY: the program is alive, and so are the zero-terminated options.
        let code = unsafe { (functions.compile)(program.raw, pointers.len() as c_int, pointers.as_ptr()) };
        match code {
            SUCCESS => program.bytes(functions.code_size, functions.code),
            COMPILATION | INVALID_OPTION => {
                let log = program.bytes(functions.log_size, functions.log)?;
                let log = String::from_utf8_lossy(&log).trim_end_matches('\0').trim().to_owned();
                let log = if log.is_empty() { functions.describe(code) } else { log };
                Err(CompileError::Source { code: i64::from(code), log })
            }
            code => Err(functions.unusable("hiprtcCompileProgram", code)),
        }
    }
}

/// Options that are clang's own way to what hipRTC does by itself are left out.
fn is_of_language(option: &str) -> bool {
    option.starts_with("-std=") || option.starts_with("-O") || option.starts_with("-D")
}

const SUCCESS: c_int = 0;
/// `hipRTC_ERROR_INVALID_OPTION`, also for an architecture that this version does not know.
const INVALID_OPTION: c_int = 5;
/// `hipRTC_ERROR_COMPILATION`.
const COMPILATION: c_int = 6;

type RawProgram = *mut c_void;
type SizeOf = unsafe extern "C" fn(RawProgram, *mut usize) -> c_int;
type BytesOf = unsafe extern "C" fn(RawProgram, *mut c_char) -> c_int;

#[derive(Debug)]
struct Functions {
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    create: unsafe extern "C" fn(
        *mut RawProgram,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    destroy: unsafe extern "C" fn(*mut RawProgram) -> c_int,
    compile: unsafe extern "C" fn(RawProgram, c_int, *const *const c_char) -> c_int,
    code_size: SizeOf,
    code: BytesOf,
    log_size: SizeOf,
    log: BytesOf,
    is_of_rocm_5: bool,
    /// Keeps the functions loaded.
    _library: Library,
}

impl Functions {
    fn load(candidates: &[PathBuf]) -> Result<Self, String> {
        let (library, path) = open_first(candidates)?;
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the field's type is that of the library's documentation.
                *unsafe { library.get($name) }.map_err(|error| format!("{}: {error}", $name))?
            };
        }
        Ok(Functions {
            version: function!("hiprtcVersion"),
            error_string: function!("hiprtcGetErrorString"),
            create: function!("hiprtcCreateProgram"),
            destroy: function!("hiprtcDestroyProgram"),
            compile: function!("hiprtcCompileProgram"),
            code_size: function!("hiprtcGetCodeSize"),
            code: function!("hiprtcGetCode"),
            log_size: function!("hiprtcGetProgramLogSize"),
            log: function!("hiprtcGetProgramLog"),
            is_of_rocm_5: path.to_string_lossy().contains(".so.5"),
            _library: library,
        })
    }

    fn describe(&self, code: c_int) -> String {
        // SAFETY: takes any code and returns a static string or null.
        let text = unsafe { (self.error_string)(code) };
        if text.is_null() {
            return format!("error {code}");
        }
        // SAFETY: a static, zero-terminated string.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }

    fn unusable(&self, function: &str, code: c_int) -> CompileError {
        CompileError::Unusable(format!("{function} failed with {code}: {}", self.describe(code)))
    }
}

/// One source text, destroyed on drop.
struct Program<'f> {
    functions: &'f Functions,
    raw: RawProgram,
}

impl<'f> Program<'f> {
    fn new(functions: &'f Functions, source: &KernelSource<'_>) -> Result<Self, CompileError> {
        let (text, name) = (c_string(source.source)?, c_string(source.id)?);
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` is writable, the strings are zero-terminated, and there are no headers.
        let code = unsafe {
            (functions.create)(&raw mut raw, text.as_ptr(), name.as_ptr(), 0, ptr::null(), ptr::null())
        };
        match code {
            SUCCESS => Ok(Program { functions, raw }),
            code => Err(functions.unusable("hiprtcCreateProgram", code)),
        }
    }

    /// What the program holds by a pair of functions.
    fn bytes(&self, size_of: SizeOf, bytes_of: BytesOf) -> Result<Vec<u8>, CompileError> {
        let mut size = 0;
        // SAFETY: the program is alive and `size` writable.
        let code = unsafe { size_of(self.raw, &raw mut size) };
        if code != SUCCESS {
            return Err(self.functions.unusable("reading a result's size", code));
        }
        let mut bytes = vec![0u8; size];
        // SAFETY: the program is alive and `bytes` has the size that it asked for.
        match unsafe { bytes_of(self.raw, bytes.as_mut_ptr().cast()) } {
            SUCCESS => Ok(bytes),
            code => Err(self.functions.unusable("reading a result", code)),
        }
    }
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed only here; its only failure is a program that does not exist.
        unsafe { (self.functions.destroy)(&raw mut self.raw) };
    }
}

fn c_string(text: &str) -> Result<CString, CompileError> {
    CString::new(text)
        .map_err(|_| CompileError::Source { code: 0, log: "the source holds a zero byte".into() })
}
