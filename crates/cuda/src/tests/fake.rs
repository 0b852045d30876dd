//! A fake driver library, built with the machine's C compiler, and a backend on it.

use std::ffi::{CString, c_char, c_int, c_long, c_ulong};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use libloading::Library;
use omniflash_kernel_store::{CompileError, Compiler, DiskCache, KernelSource, KernelStore, StoreOptions};

use crate::CudaBackend;
use crate::probe::{Absent, Probe, probe_libraries};

/// Compiles anything to a few bytes.
#[derive(Debug)]
struct AnyCompiler(&'static [u8]);

impl Compiler for AnyCompiler {
    fn name(&self) -> &str {
        "any"
    }
    fn version(&self) -> Result<String, String> {
        Ok("1".into())
    }
    fn compile(&self, _: &KernelSource<'_>) -> Result<Vec<u8>, CompileError> {
        Ok(self.0.to_vec())
    }
}

/// One launch as the driver was given it.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct FakeLaunch {
    entry: [u8; 64],
    pub(super) grid: [u32; 3],
    pub(super) block: u32,
    pub(super) shared: u32,
    pub(super) stream: u64,
    pub(super) parameters: [u8; 1024],
    pub(super) functor: [u8; 64],
    pub(super) hopper: [u8; 576],
}

impl FakeLaunch {
    pub(super) fn entry(&self) -> &str {
        let end = self.entry.iter().position(|&byte| byte == 0).unwrap();
        std::str::from_utf8(&self.entry[..end]).unwrap()
    }
}

/// A loaded fake driver; each has counters and memory of its own.
pub(super) struct Fake {
    library: Library,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Fake {
    /// Builds the library with `defines`; `None`, with a word on why, where there is no C compiler.
    pub(super) fn build(defines: &[&str]) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("libcuda.so.1");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/tests/fake_driver.c");
        let run = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(&path)
            .arg(&source)
            .args(defines.iter().map(|define| format!("-D{define}")))
            .arg("-ldl")
            .output();
        match run {
            Ok(output) if output.status.success() => {}
            Ok(output) if source.exists() => panic!("{}", String::from_utf8_lossy(&output.stderr)),
            other => {
                println!("skipped: no C compiler or no source here: {other:?}");
                return None;
            }
        }
        // SAFETY: a library of ours without initialisers.
        let library = unsafe { Library::new(&path) }.unwrap();
        Some(Fake { library, path, _folder: folder })
    }

    pub(super) fn probe(&self) -> Result<Probe, Absent> {
        probe_libraries(std::slice::from_ref(&self.path))
    }

    /// A backend whose kernels are any bytes.
    pub(super) fn backend(&self) -> CudaBackend {
        self.backend_with_image(b"cubin")
    }

    pub(super) fn backend_with_image(&self, image: &'static [u8]) -> CudaBackend {
        self.backend_with_compiler(AnyCompiler(image))
    }

    pub(super) fn backend_with_compiler(&self, compiler: impl Compiler + 'static) -> CudaBackend {
        let store =
            KernelStore::new(StoreOptions { compilers: vec![Box::new(compiler)], ..StoreOptions::default() });
        CudaBackend::of_devices(self.probe().unwrap().into_contexts(), &Arc::new(store)).remove(0)
    }

    /// A backend whose kernels are any bytes, kept in a directory.
    pub(super) fn backend_with_cache(&self, directory: &Path) -> CudaBackend {
        let store = KernelStore::new(StoreOptions {
            compilers: vec![Box::new(AnyCompiler(b"cubin"))],
            cache: Some(DiskCache::new(directory)),
            ..StoreOptions::default()
        });
        CudaBackend::of_devices(self.probe().unwrap().into_contexts(), &Arc::new(store)).remove(0)
    }

    fn function<F: Copy>(&self, name: &str) -> F {
        // SAFETY: the callers below name the types of the C source.
        *unsafe { self.library.get::<F>(name) }.unwrap()
    }

    /// How often a function of the driver was called.
    pub(super) fn calls(&self, name: &str) -> u64 {
        let name = CString::new(name).unwrap();
        // SAFETY: the function's type is that of the C source, and the name zero-terminated.
        unsafe {
            self.function::<unsafe extern "C" fn(*const c_char) -> c_ulong>("fake_calls")(name.as_ptr())
        }
    }

    /// Makes the next call of a function fail.
    pub(super) fn fail(&self, name: &str, code: c_int) {
        let name = CString::new(name).unwrap();
        // SAFETY: as above.
        unsafe {
            self.function::<unsafe extern "C" fn(*const c_char, c_int)>("fake_fail")(name.as_ptr(), code)
        }
    }

    /// Says how many bytes of a launch's two parameters to record.
    pub(super) fn set_sizes(&self, parameters: usize, functor: usize) {
        // SAFETY: as above; both fit the record.
        unsafe { self.function::<unsafe extern "C" fn(usize, usize)>("fake_sizes")(parameters, functor) }
    }

    /// Says that launches have a third parameter of so many bytes, to record.
    pub(super) fn set_hopper_size(&self, bytes: usize) {
        // SAFETY: as above; it fits the record.
        unsafe { self.function::<unsafe extern "C" fn(usize)>("fake_hopper_size")(bytes) }
    }

    /// In which order emulated warps take turns, and how late boxes come.
    pub(super) fn set_last_warp_first(&self, is_so: bool) {
        // SAFETY: as above.
        unsafe { self.function::<unsafe extern "C" fn(c_int)>("fake_last_warp_first")(c_int::from(is_so)) }
    }

    pub(super) fn set_memory_limit(&self, bytes: usize) {
        // SAFETY: as above.
        unsafe { self.function::<unsafe extern "C" fn(usize)>("fake_memory_limit")(bytes) }
    }

    pub(super) fn live_bytes(&self) -> usize {
        // SAFETY: as above.
        unsafe { self.function::<unsafe extern "C" fn() -> usize>("fake_live_bytes")() }
    }

    pub(super) fn live_objects(&self) -> i64 {
        // SAFETY: as above.
        unsafe { self.function::<unsafe extern "C" fn() -> c_long>("fake_live_objects")() }
    }

    pub(super) fn context_depth(&self) -> i64 {
        // SAFETY: as above.
        unsafe { self.function::<unsafe extern "C" fn() -> c_long>("fake_context_depth")() }
    }

    /// All launches so far.
    pub(super) fn launches(&self) -> Vec<FakeLaunch> {
        // SAFETY: as above.
        let count = unsafe { self.function::<unsafe extern "C" fn() -> usize>("fake_launch_count")() };
        (0..count)
            .map(|i| {
                let mut launch = std::mem::MaybeUninit::<FakeLaunch>::uninit();
                let copy = self.function::<unsafe extern "C" fn(usize, *mut FakeLaunch)>("fake_launch");
                // SAFETY: the launch is writable, and the function writes all of it.
                unsafe {
                    copy(i, launch.as_mut_ptr());
                    launch.assume_init()
                }
            })
            .collect()
    }
}
