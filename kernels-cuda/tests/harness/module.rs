//! A kernel as a shared library of the host.

use std::ffi::c_void;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use omniflash_device::{SourceFile, TranslationUnit};
use omniflash_kernels_cuda::LIBRARY;

/// How the entry is called from its arguments.
pub(crate) const FORWARD: &str = "static void call_entry() {
  using namespace omniflash;
  ENTRY(*static_cast<const AttentionParameters*>(argument_0),
        *static_cast<const Functors<MaskType, ScoreModType>*>(argument_1));
}";
pub(crate) const COMBINE: &str =
    "static void call_entry() { ENTRY(*static_cast<const omniflash::AttentionParameters*>(argument_0)); }";
pub(crate) const VERIFY: &str =
    "static void call_entry() { ENTRY(*static_cast<const omniflash::VerifyParameters*>(argument_0)); }";

macro_rules! emulated {
    ($name:literal, $path:literal) => {
        SourceFile { name: $name, text: include_str!(concat!("../emulator/", $path)) }
    };
}

const EMULATED: [SourceFile; 6] = [
    emulated!("sm80.hpp", "sm80.hpp"),
    emulated!("sm90/cluster.hpp", "cluster.hpp"),
    emulated!("sm90/mbarrier.hpp", "mbarrier.hpp"),
    emulated!("sm90/tma.hpp", "tma.hpp"),
    emulated!("sm90/warpgroup.hpp", "warpgroup.hpp"),
    emulated!("sm90/wgmma.hpp", "wgmma.hpp"),
];
/// What the grid needs, and not every kernel includes.
const NEEDED: &str =
    "#include \"sm90/cluster.hpp\"\n#include \"sm90/tma.hpp\"\n#include \"sm90/wgmma.hpp\"\n";
const GRID: &str = include_str!("../emulator/grid.hpp");

pub(crate) struct Module {
    library: libloading::Library,
    /// One grid of a module at a time.
    running: Mutex<()>,
    _directory: tempfile::TempDir,
}

impl Module {
    /// Compiles a unit, its instructions replaced by emulated ones.
    pub(crate) fn build(unit: &TranslationUnit, call: &str) -> Module {
        let emulated = |file: &SourceFile| EMULATED.into_iter().find(|other| other.name == file.name);
        let library: Vec<SourceFile> = LIBRARY.iter().map(|file| emulated(file).unwrap_or(*file)).collect();
        // Tests end soon; a unit borrows its files for ever.
        let text = format!("{NEEDED}{}", unit.file.text).leak();
        let file = SourceFile { name: unit.file.name, text };
        let unit = TranslationUnit { file, library: library.leak(), ..unit.clone() };
        let text = format!("{}\n{GRID}\n{}\n", unit.source(), call.replace("ENTRY", unit.entry));
        let directory = tempfile::tempdir().unwrap();
        let (source, output) = (directory.path().join("kernel.cpp"), directory.path().join("kernel.so"));
        std::fs::write(&source, text).unwrap();
        let compiled = Command::new(std::env::var("CXX").unwrap_or("c++".into()))
            .args(["-std=c++20", "-O1", "-w", "-fPIC", "-shared", "-U_FORTIFY_SOURCE", "-ffp-contract=off"])
            // Otherwise all modules share the one grid of the process.
            .args(["-fno-gnu-unique", "-fvisibility=hidden"])
            .arg("-o")
            .args([&output, &source])
            .output()
            .expect("a C++ compiler is on PATH");
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        // SAFETY: the library has no initialisers with effects.
        let library = unsafe { libloading::Library::new(&output) }.unwrap();
        Module { library, running: Mutex::new(()), _directory: directory }
    }

    /// Runs a grid of blocks by themselves.
    pub(crate) fn run<P>(
        &self,
        grid: [u32; 3],
        threads: u32,
        shared_bytes: usize,
        parameters: &P,
        functors: &[u8],
        last_warp_first: bool,
    ) {
        self.run_clusters(grid, 1, threads, shared_bytes, parameters, functors, last_warp_first);
    }

    /// Runs a grid, so many neighbouring blocks at a time.
    #[allow(clippy::too_many_arguments)] // those of a launch
    pub(crate) fn run_clusters<P>(
        &self,
        grid: [u32; 3],
        cluster: u32,
        threads: u32,
        shared_bytes: usize,
        parameters: &P,
        functors: &[u8],
        last_warp_first: bool,
    ) {
        type Emulate = unsafe extern "C" fn(
            u32,
            u32,
            u32,
            i32,
            usize,
            *const c_void,
            *const c_void,
            *const c_void,
            bool,
        ) -> i32;
        // Members of functors are aligned to 16 bytes.
        let aligned: Vec<u128> = functors
            .chunks(16)
            .map(|chunk| {
                let mut bytes = [0; 16];
                bytes[..chunk.len()].copy_from_slice(chunk);
                u128::from_ne_bytes(bytes)
            })
            .collect();
        let _running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: `emulate` of grid.hpp has this type; the arguments outlive the call.
        let errors = unsafe {
            let emulate: libloading::Symbol<'_, Emulate> = self.library.get(b"emulate").unwrap();
            emulate(
                grid[0],
                grid[1],
                cluster,
                threads as i32,
                shared_bytes,
                std::ptr::from_ref(parameters).cast(),
                aligned.as_ptr().cast(),
                std::ptr::null(),
                last_warp_first,
            )
        };
        assert_eq!(errors, 0, "the emulator found errors");
    }
}
