//! The HIP backend passes the table on all six architectures: the code objects that AMD cards would run, compiled by
//! clang and executed by the emulator in place of the driver.
//!
//! The time goes into clang, half a second a kernel; executing is cheap. So a run is cut by kernels: those that many
//! cases share are compiled for all architectures, and each of the others for one, and all moderate cases of what was
//! compiled run. With `OMNIFLASH_CONFORMANCE`, a pattern such as `f7/*` or `*`, all cases that match it run on every
//! architecture. Kernels are kept in the target directory.

#![allow(clippy::print_stdout, reason = "a test says why it is skipped")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, LazyLock};

use omniflash_core::{Backend, Error};
use omniflash_hip::compiler::Clang;
use omniflash_hip::{Architecture, HipBackend, OfflinePlanner};
use omniflash_kernel_store::{CompileError, Compiler, DiskCache, KernelSource, KernelStore, StoreOptions};
use omniflash_testkit::conformance::{self, Filter, Row, Summary, TABLE};
use omniflash_testkit::expectations::{EXPECTATIONS, matches};
use omniflash_testkit::generators::{Dims, valid};
use omniflash_testkit::spec::Spec;
use omniflash_testkit::tolerance::Precision;
use omniflash_testkit::{Oracle, golden};
use proptest::prelude::*;

const ARCHITECTURES: &str = "gfx90a,gfx942,gfx950,gfx1100,gfx1200,gfx1201";

/// Multiplications of a case that is cheap enough for every run.
const MODERATE: u64 = 4_000_000;

/// Moderate cases of a kernel that is worth its compilation for every architecture.
const SHARED_BY: usize = 5;

/// What every architecture shows in every run beside: each dtype, prefill and decode, every kind of cache, closures,
/// device source, biases, sinks, odd strides, wide heads, partitions, and one answer for a sequence alone and among
/// others.
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

/// A compiler for plans that are never launched.
#[derive(Debug)]
struct Pretence;

impl Compiler for Pretence {
    fn name(&self) -> &str {
        "pretence"
    }

    fn version(&self) -> Result<String, String> {
        Ok("1".into())
    }

    fn compile(&self, _: &KernelSource<'_>) -> Result<Vec<u8>, CompileError> {
        Ok(Vec::new())
    }
}

/// The moderate cases by the kernel that computes them, as gfx942 stands for all; those that no kernel computes under
/// an empty id.
fn by_kernel() -> BTreeMap<String, Vec<Spec>> {
    let store = KernelStore::new(StoreOptions {
        cache: None,
        compilers: vec![Box::new(Pretence)],
        ..StoreOptions::default()
    });
    let planner = OfflinePlanner::new(Architecture::Gfx942, Arc::new(store));
    let mut kernels: BTreeMap<String, Vec<Spec>> = BTreeMap::new();
    for spec in TABLE.iter().flat_map(|row| (row.cases)()).filter(|spec| spec.cost() <= MODERATE) {
        let case = spec.build();
        let plan = case.with_host_problem(|problem| planner.plan(problem)).unwrap();
        kernels.entry(plan.map_or(String::new(), |plan| plan.kernel_id)).or_default().push(spec);
    }
    kernels
}

/// The names of the cases that each architecture runs.
static SHARES: LazyLock<[BTreeSet<String>; 6]> = LazyLock::new(|| {
    let cheapest = |row: &Row| (row.cases)().into_iter().min_by_key(Spec::cost).map(|spec| spec.name);
    let smallest: Vec<String> = TABLE.iter().filter_map(cheapest).collect();
    let is_shown = |spec: &Spec| {
        smallest.contains(&spec.name) || EVERYWHERE.iter().any(|pattern| matches(pattern, &spec.name))
    };
    let mut shares: [BTreeSet<String>; 6] = Default::default();
    for (at, (id, specs)) in by_kernel().into_iter().enumerate() {
        let is_everywhere = id.is_empty() || specs.len() >= SHARED_BY || specs.iter().any(is_shown);
        for (part, share) in shares.iter_mut().enumerate() {
            if is_everywhere || at % 6 == part {
                share.extend(specs.iter().map(|spec| spec.name.clone()));
            }
        }
    }
    shares
});

/// Takes every architecture through its part of the table, each on a thread of its own.
fn on_every_architecture(filter: impl Fn(usize) -> Filter) {
    let summaries: Vec<Summary> = std::thread::scope(|scope| {
        let run = |(part, backend): (usize, &'static HipBackend)| {
            let filter = filter(part);
            scope.spawn(move || conformance::run_all(&[backend], &filter, EXPECTATIONS))
        };
        let threads: Vec<_> = BACKENDS.iter().enumerate().map(run).collect();
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
        Ok(pattern) => on_every_architecture(|_| Filter::only(pattern.clone())),
        Err(_) => on_every_architecture(|part| Filter::named(SHARES[part].clone())),
    }
}

#[test]
fn every_row_of_the_table_has_cases_on_every_architecture_and_every_moderate_case_runs_on_some() {
    for (share, architecture) in SHARES.iter().zip(Architecture::ALL) {
        for row in TABLE {
            let has_any = (row.cases)().iter().any(|spec| share.contains(&spec.name));
            assert!(has_any, "{architecture} runs nothing of {}", row.name);
        }
    }
    let moderate = TABLE.iter().flat_map(|row| (row.cases)()).filter(|spec| spec.cost() <= MODERATE);
    for spec in moderate {
        assert!(SHARES.iter().any(|share| share.contains(&spec.name)), "{} runs nowhere", spec.name);
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
