//! A kernel as a code object.

use std::collections::HashMap;
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};

use omniflash_device::TranslationUnit;
use omniflash_kernels_hip::{Architecture, COMPILER_OPTIONS};

const CLANG: &str = "clang-22";

/// Whether kernels cannot be compiled, or not be disassembled; says so.
pub(crate) fn compiler_is_missing() -> bool {
    let reason = match Command::new(CLANG).arg("--version").output() {
        Err(_) => Some("clang-22 not installed"),
        Ok(_) => omniflash_hip_emulator::disassembler_absence(),
    };
    reason.inspect(|reason| println!("skipped: {reason}")).is_some()
}

#[derive(Clone)]
pub(crate) struct Module {
    architecture: Architecture,
    pub(crate) entry: &'static str,
    pub(crate) code_object: Arc<Vec<u8>>,
}

impl Module {
    /// Compiles a unit, once a process.
    pub(crate) fn build(architecture: Architecture, unit: &TranslationUnit) -> Module {
        type Slot = Arc<OnceLock<Arc<Vec<u8>>>>;
        static COMPILED: Mutex<Option<HashMap<(Architecture, String), Slot>>> = Mutex::new(None);
        let source = unit.source();
        let slot = {
            let mut compiled = COMPILED.lock().unwrap();
            compiled.get_or_insert_default().entry((architecture, source.clone())).or_default().clone()
        };
        let code_object = slot.get_or_init(|| Arc::new(compile(architecture, &source))).clone();
        Module { architecture, entry: unit.entry, code_object }
    }

    pub(crate) fn architecture(&self) -> Architecture {
        self.architecture
    }
}

fn compile(architecture: Architecture, source: &str) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let (input, output) = (directory.path().join("kernel.hip"), directory.path().join("kernel.co"));
    std::fs::write(&input, source).unwrap();
    let compiled = Command::new(CLANG)
        .args(COMPILER_OPTIONS)
        .arg(format!("--offload-arch={architecture}"))
        .arg("-o")
        .args([&output, &input])
        .output()
        .unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    std::fs::read(&output).unwrap()
}
