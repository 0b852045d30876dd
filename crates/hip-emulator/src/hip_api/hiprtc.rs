//! hipRTC, by clang as a program.

use std::collections::HashMap;
use std::ffi::{c_char, c_int, c_void};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use super::call::{hip_functions, put};
use super::error::HipError;
use super::memory::text_of;
use crate::configuration::CLANG;

const INVALID_INPUT: HipError = HipError(3);
const INVALID_PROGRAM: HipError = HipError(4);
const COMPILATION: HipError = HipError(6);
/// `HIPRTC_ERROR_INTERNAL_ERROR`.
pub(crate) const INTERNAL: HipError = HipError(11);

/// A source and what came of it.
#[derive(Default)]
struct Program {
    source: String,
    code: Vec<u8>,
    log: String,
}

/// The programs that were created and not destroyed, by their handles, and how many there ever were.
static PROGRAMS: Mutex<Option<(HashMap<usize, Program>, usize)>> = Mutex::new(None);

fn with_programs<T>(look: impl FnOnce(&mut HashMap<usize, Program>, &mut usize) -> T) -> T {
    let mut programs = PROGRAMS.lock().unwrap_or_else(PoisonError::into_inner);
    let (programs, created) = programs.get_or_insert_default();
    look(programs, created)
}

fn with_program<T>(
    handle: *const c_void,
    look: impl FnOnce(&mut Program) -> Result<T, HipError>,
) -> Result<T, HipError> {
    with_programs(|programs, _| programs.get_mut(&handle.addr()).map_or(Err(INVALID_PROGRAM), look))
}

/// Programs that were created and not destroyed.
#[unsafe(no_mangle)]
pub extern "C" fn omniflash_emulator_live_programs() -> usize {
    with_programs(|programs, _| programs.len())
}

/// The code of a source, or what clang says of it.
fn compile(source: &str, options: &[String]) -> Result<Vec<u8>, String> {
    let text = |error: std::io::Error| error.to_string();
    let folder = tempfile::tempdir().map_err(text)?;
    let (input, output) = (folder.path().join("program.hip"), folder.path().join("program.co"));
    std::fs::write(&input, source).map_err(text)?;
    let compiled = Command::new(std::env::var(CLANG).unwrap_or_else(|_| "clang-22".into()))
        .args(["-x", "hip", "--cuda-device-only", "--no-gpu-bundle-output", "-nogpuinc", "-nogpulib"])
        .args(options)
        .arg("-o")
        .arg(&output)
        .arg(&input)
        .output()
        .map_err(text)?;
    if !compiled.status.success() {
        return Err(String::from_utf8_lossy(&compiled.stderr).into_owned());
    }
    std::fs::read(&output).map_err(text)
}

hip_functions! {
    /// The version that it imitates: 9.0.
    fn hiprtcVersion(major: *mut c_int, minor: *mut c_int) {
        // SAFETY: the caller's promise.
        unsafe { put(major, 9) }?;
        // SAFETY: as above.
        unsafe { put(minor, 0) }
    }

    /// Makes a program of a source; headers are not taken.
    fn hiprtcCreateProgram(
        program: *mut *mut c_void,
        source: *const c_char,
        _name: *const c_char,
        header_count: c_int,
        _headers: *const *const c_char,
        _include_names: *const *const c_char,
    ) {
        if header_count != 0 {
            return Err(INVALID_INPUT);
        }
        // SAFETY: the caller's promise.
        let source = unsafe { text_of(source) }.map_err(|_| INVALID_INPUT)?;
        let handle = with_programs(|programs, created| {
            *created += 1;
            programs.insert(*created, Program { source, ..Program::default() });
            *created
        });
        // SAFETY: the caller's promise.
        unsafe { put(program, std::ptr::without_provenance_mut(handle)) }
    }

    /// Compiles a program; clang's complaints are its log.
    fn hiprtcCompileProgram(program: *mut c_void, count: c_int, options: *const *const c_char) {
        let count = usize::try_from(count).map_err(|_| INVALID_INPUT)?;
        let options = (0..count).map(|at| {
            // SAFETY: there are as many options as the caller counts.
            let option = unsafe { options.add(at).read() };
            // SAFETY: each is a string that ends in zero.
            unsafe { text_of(option) }.map_err(|_| INVALID_INPUT)
        });
        let options = options.collect::<Result<Vec<String>, HipError>>()?;
        let source = with_program(program, |program| Ok(program.source.clone()))?;
        let compiled = compile(&source, &options);
        with_program(program, |program| match compiled {
            Ok(code) => {
                program.code = code;
                Ok(())
            }
            Err(log) => {
                program.log = log;
                Err(COMPILATION)
            }
        })
    }

    /// Bytes of a program's code.
    fn hiprtcGetCodeSize(program: *mut c_void, size: *mut usize) {
        // SAFETY: the caller's promise.
        with_program(program, |program| unsafe { put(size, program.code.len()) })
    }

    /// Copies a program's code.
    fn hiprtcGetCode(program: *mut c_void, code: *mut c_char) {
        with_program(program, |program| {
            // SAFETY: the caller has room for as many bytes as were asked for.
            unsafe { code.cast::<u8>().copy_from_nonoverlapping(program.code.as_ptr(), program.code.len()) };
            Ok(())
        })
    }

    /// Bytes of a program's log, with the zero at its end.
    fn hiprtcGetProgramLogSize(program: *mut c_void, size: *mut usize) {
        // SAFETY: the caller's promise.
        with_program(program, |program| unsafe { put(size, program.log.len() + 1) })
    }

    /// Copies a program's log.
    fn hiprtcGetProgramLog(program: *mut c_void, log: *mut c_char) {
        with_program(program, |program| {
            let bytes = program.log.len();
            // SAFETY: the caller has room for as many bytes as were asked for.
            unsafe { log.cast::<u8>().copy_from_nonoverlapping(program.log.as_ptr(), bytes) };
            // SAFETY: one byte more was asked for.
            unsafe { log.add(bytes).write(0) };
            Ok(())
        })
    }

    /// Forgets a program.
    fn hiprtcDestroyProgram(program: *mut *mut c_void) {
        if program.is_null() {
            return Err(INVALID_PROGRAM);
        }
        // SAFETY: not null, and valid by the caller's promise.
        let handle = unsafe { program.read() }.addr();
        with_programs(|programs, _| programs.remove(&handle)).map(drop).ok_or(INVALID_PROGRAM)
    }
}

/// The code's text. Never fails, and never returns null.
#[unsafe(no_mangle)]
pub extern "C" fn hiprtcGetErrorString(code: c_int) -> *const c_char {
    let text = match code {
        0 => c"HIPRTC_SUCCESS",
        3 => c"HIPRTC_ERROR_INVALID_INPUT",
        4 => c"HIPRTC_ERROR_INVALID_PROGRAM",
        6 => c"HIPRTC_ERROR_COMPILATION",
        11 => c"HIPRTC_ERROR_INTERNAL_ERROR",
        _ => c"Invalid HIPRTC error code",
    };
    text.as_ptr()
}
