//! Vendors' compilers: the run-time libraries, which have the same functions under other names, and programs.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::process::Command;
use std::{fs, ptr};

use libloading::Library;
use omniflash_kernel_store::{CompileError, KernelSource};

/// The names of the functions of a run-time compiler.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "each is the function that does what its name says")]
pub struct RuntimeSymbols {
    pub version: &'static str,
    pub error_string: &'static str,
    pub create_program: &'static str,
    pub destroy_program: &'static str,
    pub compile_program: &'static str,
    pub code_size: &'static str,
    pub code: &'static str,
    pub log_size: &'static str,
    pub log: &'static str,
}

const SUCCESS: c_int = 0;
/// Both vendors' code of an option that is wrong, also of an architecture that this version does not know.
const INVALID_OPTION: c_int = 5;
/// Both vendors' code of a source that is wrong.
const COMPILATION: c_int = 6;

type RawProgram = *mut c_void;
type SizeOf = unsafe extern "C" fn(RawProgram, *mut usize) -> c_int;
type BytesOf = unsafe extern "C" fn(RawProgram, *mut c_char) -> c_int;

/// A run-time compiler that is loaded: NVRTC or hipRTC.
#[derive(Debug)]
pub struct RuntimeCompiler {
    symbols: RuntimeSymbols,
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
    /// Keeps the functions loaded.
    _library: Library,
}

impl RuntimeCompiler {
    /// Looks the functions up.
    ///
    /// # Errors
    /// The name of the first that the library lacks.
    ///
    /// # Safety
    /// - The functions of these names have the types that NVRTC's documentation gives them, which hipRTC's repeats.
    pub unsafe fn from_library(library: Library, symbols: RuntimeSymbols) -> Result<Self, String> {
        macro_rules! function {
            ($name:expr) => {
                // SAFETY: the caller's duty.
                *unsafe { library.get($name) }.map_err(|error| format!("{}: {error}", $name))?
            };
        }
        Ok(RuntimeCompiler {
            symbols,
            version: function!(symbols.version),
            error_string: function!(symbols.error_string),
            create: function!(symbols.create_program),
            destroy: function!(symbols.destroy_program),
            compile: function!(symbols.compile_program),
            code_size: function!(symbols.code_size),
            code: function!(symbols.code),
            log_size: function!(symbols.log_size),
            log: function!(symbols.log),
            _library: library,
        })
    }

    /// Its version, major and minor.
    ///
    /// # Errors
    /// What the library says.
    pub fn version(&self) -> Result<String, String> {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both numbers are writable.
        match unsafe { (self.version)(&raw mut major, &raw mut minor) } {
            SUCCESS => Ok(format!("{major}.{minor}")),
            code => Err(self.failure(self.symbols.version, code)),
        }
    }

    /// Compiles a source with these options.
    ///
    /// # Errors
    /// [`CompileError::Source`] with the compiler's log, [`CompileError::Unusable`].
    pub fn compile(&self, source: &KernelSource<'_>, options: &[String]) -> Result<Vec<u8>, CompileError> {
        let program = Program::new(self, source)?;
        let options: Vec<CString> =
            options.iter().map(|option| c_string(option)).collect::<Result<_, _>>()?;
        let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        // SAFETY: the program is alive, and as many zero-terminated options are passed as are counted.
        let code = unsafe { (self.compile)(program.raw, pointers.len() as c_int, pointers.as_ptr()) };
        match code {
            SUCCESS => program.bytes(self.code_size, self.code),
            COMPILATION | INVALID_OPTION => {
                let log = program.bytes(self.log_size, self.log)?;
                let log = String::from_utf8_lossy(&log).trim_end_matches('\0').trim().to_owned();
                let log = if log.is_empty() { self.describe(code) } else { log };
                Err(CompileError::Source { code: i64::from(code), log })
            }
            code => Err(self.unusable(self.symbols.compile_program, code)),
        }
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

    fn failure(&self, function: &str, code: c_int) -> String {
        format!("{function} failed with {code}: {}", self.describe(code))
    }

    fn unusable(&self, function: &str, code: c_int) -> CompileError {
        CompileError::Unusable(self.failure(function, code))
    }
}

/// One source text, destroyed on drop.
struct Program<'c> {
    compiler: &'c RuntimeCompiler,
    raw: RawProgram,
}

impl<'c> Program<'c> {
    fn new(compiler: &'c RuntimeCompiler, source: &KernelSource<'_>) -> Result<Self, CompileError> {
        let (text, name) = (c_string(source.source)?, c_string(source.id)?);
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` is writable, the strings are zero-terminated, and there are no headers.
        let code = unsafe {
            (compiler.create)(&raw mut raw, text.as_ptr(), name.as_ptr(), 0, ptr::null(), ptr::null())
        };
        match code {
            SUCCESS => Ok(Program { compiler, raw }),
            code => Err(compiler.unusable(compiler.symbols.create_program, code)),
        }
    }

    /// What the program holds by a pair of functions.
    fn bytes(&self, size_of: SizeOf, bytes_of: BytesOf) -> Result<Vec<u8>, CompileError> {
        let mut size = 0;
        // SAFETY: the program is alive and `size` writable.
        let code = unsafe { size_of(self.raw, &raw mut size) };
        if code != SUCCESS {
            return Err(self.compiler.unusable("reading a result's size", code));
        }
        let mut bytes = vec![0u8; size];
        // SAFETY: the program is alive and `bytes` has the size that it asked for.
        match unsafe { bytes_of(self.raw, bytes.as_mut_ptr().cast()) } {
            SUCCESS => Ok(bytes),
            code => Err(self.compiler.unusable("reading a result", code)),
        }
    }
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed only here; its only failure is a program that does not exist.
        unsafe { (self.compiler.destroy)(&raw mut self.raw) };
    }
}

fn c_string(text: &str) -> Result<CString, CompileError> {
    CString::new(text)
        .map_err(|_| CompileError::Source { code: 0, log: "the source holds a zero byte".into() })
}

/// Compiles a source by a program, from a file called `input`: `arguments` come before `-o OUTPUT INPUT`.
///
/// # Errors
/// [`CompileError::Source`] with what the program said, [`CompileError::Unusable`] where it could not be run.
pub fn compile_by_program(
    program: &Path,
    arguments: &[String],
    source: &KernelSource<'_>,
    input: &str,
) -> Result<Vec<u8>, CompileError> {
    let unusable = |error: std::io::Error| CompileError::Unusable(error.to_string());
    let folder = tempfile::tempdir().map_err(unusable)?;
    let (input, output) = (folder.path().join(input), folder.path().join("kernel.out"));
    fs::write(&input, source.source).map_err(unusable)?;
    let run = Command::new(program)
        .args(arguments)
        .arg("-o")
        .arg(&output)
        .arg(&input)
        .output()
        .map_err(unusable)?;
    if !run.status.success() {
        let log = [run.stdout, run.stderr].concat();
        return Err(CompileError::Source {
            code: i64::from(run.status.code().unwrap_or(-1)),
            log: String::from_utf8_lossy(&log).trim().to_owned(),
        });
    }
    fs::read(&output).map_err(unusable)
}
