//! The compilers of this machine, where it has them.

use omniflash_kernel_store::{CompileError, Compiler, KernelSource};

use super::{Nvcc, Nvrtc};

const SOURCE: KernelSource<'_> = KernelSource {
    id: "double.cu",
    arch: "sm_80",
    functor: "",
    source: "extern \"C\" __global__ void twice(float *x) { x[threadIdx.x] *= 2.0f; }",
    options: &["-std=c++17"],
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
    assert!(image.starts_with(b"\x7fELF"), "a cubin is an ELF file");
    let wrong = KernelSource { source: "extern \"C\" __global__ void twice() { missing(); }", ..SOURCE };
    let Err(CompileError::Source { log, .. }) = compiler.compile(&wrong) else { panic!("it compiled") };
    assert!(log.contains("missing"), "{log}");
    let unknown = KernelSource { arch: "sm_1", ..SOURCE };
    let Err(CompileError::Source { log, .. }) = compiler.compile(&unknown) else { panic!("it compiled") };
    assert!(log.contains("sm_1") || log.contains("gpu-architecture"), "{log}");
}

#[test]
fn nvrtc_compiles_and_its_errors_come_with_its_log() {
    compiles_and_refuses(&Nvrtc::of_system());
}

#[test]
fn nvcc_compiles_and_its_errors_come_with_its_log() {
    compiles_and_refuses(&Nvcc::of_system());
}

#[test]
fn a_missing_run_time_compiler_says_where_it_was_looked_for() {
    let reason = Nvrtc::new(vec!["/nowhere/libnvrtc.so.13".into()]).version().unwrap_err();
    assert!(reason.contains("/nowhere/libnvrtc.so.13"), "{reason}");
}

#[test]
fn a_library_that_is_no_compiler_is_no_compiler() {
    // Every Unix program has this one loaded.
    let nvrtc = Nvrtc::new(vec!["libc.so.6".into()]);
    if let Err(reason) = nvrtc.version() {
        assert!(reason.contains("nvrtcVersion") || reason.contains("libc.so.6"), "{reason}");
    } else {
        panic!("libc has no nvrtcVersion");
    }
}
