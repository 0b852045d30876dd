//! Where kernels come from: caches that are damaged or cannot be written, and images that are not theirs.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use omniflash_core::{AttentionOptions, Error};
use omniflash_kernel_store::{
    CompileError, Compiler, DiskCache, KernelSource, KernelStore, Origin, StoreOptions,
};

use super::emulator::Emulator;
use super::{Tensors, launch};
use crate::compiler::Clang;

/// clang behind a cache in `directory`.
fn cached(directory: &Path) -> Arc<KernelStore> {
    Arc::new(KernelStore::new(StoreOptions {
        cache: Some(DiskCache::new(directory)),
        compilers: vec![Box::new(Clang::of_system())],
        ..StoreOptions::default()
    }))
}

/// Launches a problem with the kernels of a store and says where its kernel came from.
fn origin(emulator: &Emulator, store: &Arc<KernelStore>) -> Origin {
    let backend = &emulator.backends_with(store)[0];
    let stream = omniflash_core::Backend::stream(backend).unwrap();
    let mut tensors = Tensors::new(backend, &stream, (2, 16), 1);
    let options = AttentionOptions::new().num_partitions(1);
    let problem = tensors.problem(&options);
    omniflash_core::run(backend, &problem, &stream).unwrap();
    let plan = omniflash_core::Backend::plan(backend, &problem).unwrap();
    backend.origin(&plan).unwrap().unwrap().clone()
}

#[test]
fn a_damaged_cache_entry_is_compiled_anew_and_a_cache_that_cannot_be_written_costs_time_only() {
    let Some(emulator) = Emulator::with("gfx942") else { return };
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(origin(&emulator, &cached(folder.path())), Origin::Compiled { .. }));
    assert!(matches!(origin(&emulator, &cached(folder.path())), Origin::Cache(_)));
    for entry in fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "kernel") {
            let mut bytes = fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(&path, bytes).unwrap();
        }
    }
    assert!(matches!(origin(&emulator, &cached(folder.path())), Origin::Compiled { .. }));
    let read_only = folder.path().join("read-only");
    fs::create_dir(&read_only).unwrap();
    fs::set_permissions(&read_only, fs::Permissions::from_mode(0o555)).unwrap();
    assert!(matches!(origin(&emulator, &cached(&read_only.join("cache"))), Origin::Compiled { .. }));
}

/// Gives whatever image it is told to.
#[derive(Debug)]
struct Fixed(Result<Vec<u8>, CompileError>);

impl Compiler for Fixed {
    fn name(&self) -> &str {
        "fixed"
    }

    fn version(&self) -> Result<String, String> {
        Ok("1".into())
    }

    fn compile(&self, _: &KernelSource<'_>) -> Result<Vec<u8>, CompileError> {
        self.0.clone()
    }
}

/// What a launch answers with these kernels on a gfx942.
fn refusal(emulator: &Emulator, image: Result<Vec<u8>, CompileError>) -> Error {
    let compilers: Vec<Box<dyn Compiler>> = vec![Box::new(Fixed(image))];
    let store = Arc::new(KernelStore::new(StoreOptions { compilers, ..StoreOptions::default() }));
    let backend = &emulator.backends_with(&store)[0];
    let stream = omniflash_core::Backend::stream(backend).unwrap();
    let mut tensors = Tensors::new(backend, &stream, (2, 16), 1);
    let options = AttentionOptions::new().num_partitions(1);
    launch(backend, &tensors.problem(&options), &stream).unwrap_err()
}

fn compiled(arch: &str, source: &str) -> Vec<u8> {
    let source = KernelSource {
        id: "other",
        arch,
        functor: "",
        source,
        options: omniflash_kernels_hip::COMPILER_OPTIONS,
        prebuilt_tags: &[],
    };
    Clang::of_system().compile(&source).unwrap()
}

#[test]
fn an_image_that_is_damaged_or_of_another_kind_is_a_typed_error() {
    let Some(emulator) = Emulator::with("gfx942") else { return };
    const OTHER: &str = "extern \"C\" __attribute__((global)) void other(float *x) { *x = 1.0f; }";
    let error = refusal(&emulator, Ok(b"no code object".to_vec()));
    assert!(error.to_string().contains("whole AMD code object"), "{error}");
    let mut cut = compiled("gfx942", OTHER);
    cut.truncate(cut.len() / 2);
    assert!(refusal(&emulator, Ok(cut)).to_string().contains("whole AMD code object"));
    let error = refusal(&emulator, Ok(compiled("gfx1100", OTHER)));
    assert!(matches!(error, Error::Driver { code: 209, .. }), "{error}");
    let error = refusal(&emulator, Ok(compiled("gfx942", OTHER)));
    assert!(matches!(error, Error::Driver { code: 500, .. }), "no kernel of that name: {error}");
    let error = refusal(&emulator, Err(CompileError::Source { code: 1, log: "expected ';'".into() }));
    assert!(matches!(&error, Error::Driver { text, .. } if text.contains("expected ';'")), "{error}");
    let error = refusal(&emulator, Err(CompileError::Unusable("it is broken".into())));
    assert!(matches!(&error, Error::NoKernel { .. }), "{error}");
    assert_eq!(emulator.live(0).0, 0, "nothing of it is left");
}
