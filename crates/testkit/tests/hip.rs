//! The HIP backend passes the table on all six architectures: the code objects that AMD cards would run, compiled by
//! clang and executed by the emulator in place of the driver.
//!
//! Every case of up to [`LONG`] multiplications runs on all six, for which clang compiles some 1,800 kernels: nearly all of
//! the test's time. A long case runs on one architecture, in turn, since a sixth of the cases is four fifths of the
//! emulator's work. With `OMNIFLASH_CONFORMANCE`, a pattern such as `f7/*` or `*`, all cases that match it run on every
//! architecture. Kernels are kept in the target directory.

#![allow(clippy::print_stdout, reason = "a test says why it is skipped")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, LazyLock};

use omniflash_core::{Backend, Error};
use omniflash_hip::compiler::Clang;
use omniflash_hip::{Architecture, HipBackend, OfflinePlanner};
use omniflash_kernel_store::{CompileError, Compiler, DiskCache, KernelSource, KernelStore, StoreOptions};
use omniflash_testkit::conformance::{self, Filter, TABLE};
use omniflash_testkit::expectations::{EXPECTATIONS, matches};
use omniflash_testkit::generators::{Dims, valid};
use omniflash_testkit::spec::Spec;
use omniflash_testkit::tolerance::Precision;
use omniflash_testkit::{Oracle, golden};
use proptest::prelude::*;

const ARCHITECTURES: &str = "gfx90a,gfx942,gfx950,gfx1100,gfx1200,gfx1201";

/// Cases up to this many multiplications run twice, to compare bits.
const REPEATED: u64 = 400_000;

/// Cases of more multiplications run on one architecture, unless they are among [`EVERYWHERE`].
const LONG: u64 = 16_000_000;

/// What every architecture shows in every run, however long: each dtype, prefill and decode, every kind of cache,
/// closures, device source, biases, sinks, odd strides, wide heads, partitions, and one answer for a sequence alone and
/// among others.
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
    let kernels = KernelStore::new(StoreOptions {
        cache: Some(DiskCache::new(cache)),
        compilers: vec![Box::new(Clang::of_system())],
        ..StoreOptions::default()
    });
    let store = store_of(OneForRdna4 { kernels });
    HipBackend::discover_in(&library, &Arc::new(store)).unwrap()
}

fn store_of(compiler: impl Compiler + 'static) -> KernelStore {
    KernelStore::new(StoreOptions { compilers: vec![Box::new(compiler)], ..StoreOptions::default() })
}

/// Compiles once for gfx1200 and gfx1201: their objects differ in the processor's name only, which a gate of
/// `cargo xtask kernels hip` shows of all kernels that are built ahead of time.
#[derive(Debug)]
struct OneForRdna4 {
    kernels: KernelStore,
}

impl Compiler for OneForRdna4 {
    fn name(&self) -> &str {
        "clang"
    }

    fn version(&self) -> Result<String, String> {
        Clang::of_system().version()
    }

    fn compile(&self, source: &KernelSource<'_>) -> Result<Vec<u8>, CompileError> {
        let (is_twin, id) = (source.arch == "gfx1201", source.id.replace("gfx1201", "gfx1200"));
        let source = if is_twin { KernelSource { arch: "gfx1200", id: &id, ..*source } } else { *source };
        match self.kernels.kernel(&source) {
            Ok(kernel) if is_twin => Ok(renamed(&kernel.image)),
            Ok(kernel) => Ok(kernel.image.to_vec()),
            Err(Error::Driver { code, text, .. }) => Err(CompileError::Source { code, log: text }),
            Err(error) => Err(CompileError::Unusable(error.to_string())),
        }
    }
}

/// A code object for gfx1200 under the name of gfx1201.
fn renamed(object: &[u8]) -> Vec<u8> {
    // Where an ELF header has its flags, whose low byte is the processor.
    const FLAGS: usize = 48;
    const GFX1201: u8 = 0x4e;
    let mut object = object.to_vec();
    object[FLAGS] = GFX1201;
    for at in 0..object.len() - 6 {
        if &object[at..at + 7] == b"gfx1200" {
            object[at + 6] = b'1';
        }
    }
    object
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

/// The id of the kernel that computes each case, as gfx942 stands for all; empty where none does.
fn kernels_of(specs: &[Spec]) -> Vec<String> {
    let planner = OfflinePlanner::new(Architecture::Gfx942, Arc::new(store_of(Pretence)));
    let kernel_of = |spec: &Spec| {
        let plan = spec.build().with_host_problem(|problem| planner.plan(problem)).unwrap();
        plan.map_or(String::new(), |plan| plan.kernel_id)
    };
    let part = specs.len().div_ceil(threads());
    std::thread::scope(|scope| {
        let parts: Vec<_> = specs
            .chunks(part)
            .map(|specs| scope.spawn(|| specs.iter().map(kernel_of).collect::<Vec<_>>()))
            .collect();
        parts.into_iter().flat_map(|part| part.join().expect("a plan does not panic")).collect()
    })
}

/// Whether an architecture, by its place among all, runs a case.
type Share = [bool; 6];

/// Which architecture runs what only one runs, by the place of its kernel: a CDNA and an RDNA one in turn.
const ALONE: [Architecture; 6] = [
    Architecture::Gfx90a,
    Architecture::Gfx1200,
    Architecture::Gfx950,
    Architecture::Gfx1201,
    Architecture::Gfx942,
    Architecture::Gfx1100,
];

/// What runs where, by the names of cases.
static SHARES: LazyLock<HashMap<String, Share>> = LazyLock::new(|| {
    let specs: Vec<Spec> = TABLE.iter().flat_map(|row| (row.cases)()).collect();
    let is_long =
        |spec: &Spec| spec.cost() > LONG && !EVERYWHERE.iter().any(|pattern| matches(pattern, &spec.name));
    let (long, short): (Vec<Spec>, Vec<Spec>) = specs.into_iter().partition(is_long);
    let mut shares: HashMap<String, Share> = short.into_iter().map(|spec| (spec.name, [true; 6])).collect();
    // Cases of one kernel go to one architecture, which compiles it once.
    let mut by_kernel: BTreeMap<String, Vec<Spec>> = BTreeMap::new();
    for (id, spec) in kernels_of(&long).into_iter().zip(long) {
        by_kernel.entry(id).or_default().push(spec);
    }
    for (at, specs) in by_kernel.into_values().enumerate() {
        let share = Architecture::ALL.map(|architecture| architecture == ALONE[at % ALONE.len()]);
        shares.extend(specs.into_iter().map(|spec| (spec.name, share)));
    }
    shares
});

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[test]
fn every_architecture_passes_the_table() {
    let backends: Vec<&dyn Backend> = BACKENDS.iter().map(|backend| backend as &dyn Backend).collect();
    if backends.is_empty() {
        return;
    }
    let pattern = std::env::var("OMNIFLASH_CONFORMANCE").ok();
    let filter = pattern.as_ref().map_or_else(Filter::all, Filter::only).repeat_up_to(REPEATED);
    let is_chosen = |spec: &Spec, at: usize| pattern.is_some() || SHARES[&spec.name][at];
    let summaries = conformance::run_chosen(&backends, &filter, EXPECTATIONS, threads(), is_chosen);
    for summary in &summaries {
        println!("{summary}");
    }
    for summary in &summaries {
        summary.assert_clean();
    }
}

#[test]
fn most_cases_run_on_six_architectures_and_every_one_on_some() {
    let runs = |share: &Share| share.iter().filter(|&&runs| runs).count();
    assert!(SHARES.values().all(|share| runs(share) >= 1));
    let everywhere = SHARES.values().filter(|share| runs(share) == Architecture::ALL.len()).count();
    println!("{everywhere} of {} cases on six architectures", SHARES.len());
    assert!(5 * everywhere > 4 * SHARES.len(), "{everywhere} of {} cases", SHARES.len());
    for (at, architecture) in Architecture::ALL.iter().enumerate() {
        let long = SHARES.values().filter(|share| runs(share) == 1 && share[at]).count();
        assert!(long >= 20, "{architecture} runs {long} long cases");
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
