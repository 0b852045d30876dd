//! The compilers of this machine, where it has them.

use object::{Object as _, ObjectSection as _};
use omniflash_kernel_store::{CompileError, Compiler, KernelSource};
use omniflash_kernels_hip::COMPILER_OPTIONS;

use super::clang::arguments;
use super::{Clang, Hiprtc, batch};

/// Uses nothing of HIP's headers, so that every compiler takes it.
const SOURCE: KernelSource<'_> = KernelSource {
    id: "twice.hip",
    arch: "gfx90a",
    functor: "",
    source: "extern \"C\" __attribute__((global)) void twice(float *x) { x[__builtin_amdgcn_workitem_id_x()] *= 2.0f; }",
    options: COMPILER_OPTIONS,
    prebuilt_tags: &[],
};

/// Says why a compiler cannot be tested here.
fn present(compiler: &dyn Compiler) -> bool {
    match compiler.version() {
        Ok(version) => {
            println!("{} {version}", compiler.name());
            true
        }
        Err(reason) => {
            println!("skipped: {} is absent: {reason}", compiler.name());
            false
        }
    }
}

fn compiles_and_refuses(compiler: &dyn Compiler) {
    if !present(compiler) {
        return;
    }
    let image = compiler.compile(&SOURCE).unwrap();
    assert!(image.starts_with(b"\x7fELF") || image.starts_with(b"__CLANG_OFFLOAD_BUNDLE__"));
    let source = "extern \"C\" __attribute__((global)) void twice() { missing(); }";
    let Err(CompileError::Source { log, .. }) = compiler.compile(&KernelSource { source, ..SOURCE }) else {
        panic!("it compiled")
    };
    assert!(log.contains("missing"), "{log}");
}

#[test]
fn hiprtc_compiles_and_its_errors_come_with_its_log() {
    compiles_and_refuses(&Hiprtc::of_system());
}

#[test]
fn clang_compiles_and_its_errors_come_with_its_log() {
    let clang = Clang::of_system();
    compiles_and_refuses(&clang);
    if clang.version().is_ok() {
        let unknown = KernelSource { arch: "gfx1", ..SOURCE };
        let Err(CompileError::Source { log, .. }) = clang.compile(&unknown) else { panic!("it compiled") };
        assert!(log.contains("gfx1"), "{log}");
    }
}

#[test]
fn several_sources_come_out_as_each_alone_and_a_wrong_one_with_its_log() {
    let clang = Clang::of_system();
    if !present(&clang) {
        return;
    }
    let thrice = SOURCE.source.replace("2.0f", "3.0f");
    let wrong = "extern \"C\" __attribute__((global)) void twice() { missing(); }";
    let sources = [
        SOURCE,
        KernelSource { arch: "gfx1100", ..SOURCE },
        KernelSource { source: wrong, ..SOURCE },
        KernelSource { source: &thrice, ..SOURCE },
    ];
    // The text section is what runs; symbols name the file that was compiled.
    let code = |image: &[u8]| {
        let file = object::File::parse(image).unwrap();
        file.section_by_name(".text").unwrap().data().unwrap().to_vec()
    };
    // Together, not one by one behind a failure.
    let alike = [sources[0], sources[3], sources[2], sources[0]];
    let steps = batch::Steps::of(clang.program().unwrap(), &arguments(&SOURCE)).unwrap().unwrap();
    let together = batch::compile(&steps, &alike).unwrap();
    assert_eq!(together.iter().map(Option::is_some).collect::<Vec<_>>(), [true, true, false, false]);
    let compiled = clang.compile_all(&sources);
    for at in [0, 1, 3] {
        let alone = clang.compile(&sources[at]).unwrap();
        assert_eq!(code(compiled[at].as_ref().unwrap()), code(&alone), "{at}");
    }
    assert_ne!(code(compiled[0].as_ref().unwrap()), code(compiled[3].as_ref().unwrap()));
    let Err(CompileError::Source { log, .. }) = &compiled[2] else { panic!("it compiled") };
    assert!(log.contains("missing"), "{log}");
}

#[test]
fn a_missing_compiler_says_where_it_was_looked_for() {
    let reason = Hiprtc::new(vec!["/nowhere/libhiprtc.so.6".into()]).version().unwrap_err();
    assert!(reason.contains("/nowhere/libhiprtc.so.6"), "{reason}");
    let reason = Clang::new(vec!["/nowhere/clang".into()]).version().unwrap_err();
    assert!(reason.contains("/nowhere/clang"), "{reason}");
}

#[test]
fn a_program_that_is_no_compiler_is_no_compiler() {
    assert!(Clang::new(vec!["true".into()]).version().is_err());
    // Every Unix program has this library loaded.
    let reason = Hiprtc::new(vec!["libc.so.6".into()]).version().unwrap_err();
    assert!(reason.contains("hiprtcVersion") || reason.contains("libc.so.6"), "{reason}");
}
