//! The HIP backend passes the table on all six architectures: the code objects that AMD cards would run, compiled by
//! clang and executed by the emulator in place of the driver.
//!
//! A kernel takes clang half a second, so that a run is cut: every cheap case of the table runs on one of the
//! architectures, and some of each kind on all of them. With `OMNIFLASH_CONFORMANCE`, a pattern such as `f7/*` or `*`,
//! all cases that match it run on every architecture. Kernels are kept in the target directory.

#![allow(clippy::print_stdout, reason = "a test says why it is skipped")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, LazyLock};

use omniflash_core::{Backend, Error};
use omniflash_hip::HipBackend;
use omniflash_hip::compiler::Clang;
use omniflash_kernel_store::{Compiler as _, DiskCache, KernelStore, StoreOptions};
use omniflash_testkit::conformance::{self, Filter, Summary};
use omniflash_testkit::expectations::EXPECTATIONS;
use omniflash_testkit::generators::{Dims, valid};
use omniflash_testkit::tolerance::Precision;
use omniflash_testkit::{Oracle, golden};
use proptest::prelude::*;

const ARCHITECTURES: &str = "gfx90a,gfx942,gfx950,gfx1100,gfx1200,gfx1201";

/// Multiplications of a case that is cheap enough for every run.
const CHEAP: u64 = 400_000;

/// What every architecture shows in every run: each dtype, prefill and decode, every kind of cache, closures, device
/// source, biases, sinks, odd strides, wide heads, partitions, and one answer for a sequence alone and among others.
const EVERYWHERE: [&str; 12] = [
    "f1/B2_S1_3_H2_2_D*",
    "f2/any=63_63_f16",
    "f3/odd_pitch_all_f32",
    "f4/chunked_causal_50_S1_256_*",
    "f4/function_with_status_S1_300_bf16",
    "f5/sinks_bf16_paged_bf16",
    "f5/alibi_bias_softcap_f32",
    "f6/padded_paged_causal_bf16",
    "f6/ragged_ragged_window_f32",
    "f7/group=8_D256_f16",
    "f7/batch_invariant_*_bf16/partitions=4",
    "f7/page=1_prefill_f16",
];

/// An emulated machine with one device of each architecture; empty, with the reason printed, where no kernels can be
/// compiled or disassembled.
static BACKENDS: LazyLock<Vec<HipBackend>> = LazyLock::new(|| {
    let objdump = std::env::var("OMNIFLASH_EMULATOR_OBJDUMP").unwrap_or("llvm-objdump-22".into());
    let reason = match Clang::of_system().version() {
        Err(reason) => reason,
        Ok(_) if Command::new(&objdump).arg("--version").output().is_err() => {
            format!("{objdump} does not run")
        }
        Ok(_) => return emulated(),
    };
    println!("skipped: {reason}");
    Vec::new()
});

fn emulated() -> Vec<HipBackend> {
    let program = std::env::current_exe().unwrap();
    let library = program.parent().unwrap().join("libomniflash_hip_emulator.so");
    // SAFETY: the emulator has no initialisers.
    let emulator = unsafe { libloading::Library::new(&library) }.unwrap();
    type SetDevices = unsafe extern "C" fn(*const std::ffi::c_char) -> std::ffi::c_int;
    // SAFETY: the function's type.
    let set_devices = unsafe { emulator.get::<SetDevices>("omniflash_emulator_set_devices") }.unwrap();
    let devices = std::ffi::CString::new(ARCHITECTURES).unwrap();
    // SAFETY: a zero-terminated string.
    assert_eq!(unsafe { set_devices(devices.as_ptr()) }, 0);
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("hip-kernels");
    let store = KernelStore::new(StoreOptions {
        cache: Some(DiskCache::new(cache)),
        compilers: vec![Box::new(Clang::of_system())],
        ..StoreOptions::default()
    });
    HipBackend::discover_in(&library, &Arc::new(store)).unwrap()
}

/// Takes every architecture through parts of the table, each on a thread of its own.
fn on_every_architecture(filters: impl Fn(u64) -> Vec<Filter> + Sync) {
    let run = |part: u64, backend: &HipBackend| -> Vec<Summary> {
        let run = |filter| conformance::run_all(&[backend], &filter, EXPECTATIONS).remove(0);
        filters(part).into_iter().map(run).collect()
    };
    let summaries: Vec<Summary> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..).zip(&*BACKENDS).map(|(part, backend)| scope.spawn(move || run(part, backend))).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("a run does not panic")).collect()
    });
    for summary in &summaries {
        println!("{summary}");
    }
    for summary in &summaries {
        summary.assert_clean();
    }
}

#[test]
fn every_architecture_passes_the_table() {
    match std::env::var("OMNIFLASH_CONFORMANCE") {
        Ok(pattern) => on_every_architecture(|_| vec![Filter::only(pattern.clone())]),
        Err(_) => on_every_architecture(|part| {
            let share = Filter::all().up_to(CHEAP).share(part, 6);
            std::iter::once(share).chain(EVERYWHERE.map(Filter::only)).collect()
        }),
    }
}

#[test]
fn the_golden_cases_come_out_right_on_a_card_of_each_matrix_unit() {
    for backend in BACKENDS.iter().filter(|backend| ["gfx942", "gfx1201"].contains(&&*backend.info().arch)) {
        for golden in golden::all() {
            assert_eq!(golden.check(backend).unwrap(), [], "{} on {}", golden.case.name, backend.info().arch);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn random_cases_come_out_right_on_some_architecture(spec in valid(Dims::MultiplesOf8), at in 0..6usize) {
        if let Some(backend) = BACKENDS.get(at) {
            let case = spec.build();
            // A closure on scores is the one thing that a GPU refuses.
            let outcome = match case.run(backend) {
                Err(Error::Unsupported { .. }) => return Ok(()),
                outcome => outcome.unwrap(),
            };
            let oracle = Oracle::new(&case).unwrap();
            let violations = oracle.judge(&case, &outcome, Precision::of(backend.info()));
            prop_assert!(violations.is_empty(), "{}: {violations:?}", backend.info().arch);
        }
    }
}
