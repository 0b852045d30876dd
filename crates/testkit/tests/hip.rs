//! The HIP backend passes the table on all six architectures: the code objects that AMD cards would run, compiled by
//! clang and executed by the emulator in place of the driver.
//!
//! Most of the test's time is clang's, for some 900 kernels, and the rest is the emulator's. What is rare costs most to
//! show everywhere: a case whose kernel serves few runs on one CDNA and one RDNA architecture, in turn, and a case of more
//! than [`LONG`] multiplications on one of all, since a sixth of the cases is four fifths of the emulator's work. The
//! others, and [`EVERYWHERE`], run on all six. With `OMNIFLASH_CONFORMANCE`, a pattern such as `f7/*` or `*`, all cases that
//! match it run on every architecture. Kernels are kept in the target directory.

#![allow(clippy::print_stdout, reason = "a test says why it is skipped")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use omniflash_core::{Backend, Error};
use omniflash_hip::compiler::Clang;
use omniflash_hip::{Architecture, HipBackend, OfflinePlanner};
use omniflash_kernel_store::{
    CompileError, Compiler, DiskCache, KernelSource, KernelStore, ListedSource, SourceList, StoreOptions,
};
use omniflash_testkit::conformance::{self, Filter, Schedule, Summary, TABLE};
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

/// Cases whose kernel serves no more of them than so many run on a CDNA and an RDNA architecture, unless they are among
/// [`EVERYWHERE`].
const RARE: usize = 4;

/// Kernels of gfx942 whose cases are run one after the other, once clang has compiled them for all architectures.
const KERNELS_AT_ONCE: usize = 8;

/// What every architecture shows in every run, however long, beside cases that must give the same bits: each dtype,
/// prefill and decode, every kind of cache, closures, device source, biases, sinks, odd strides, wide heads,
/// partitions, and one answer for a sequence alone and among others. All of it in two orders of waves.
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

/// An emulated machine.
struct Machine {
    emulator: libloading::Library,
    /// Held by who has chosen the order of waves.
    order: Mutex<()>,
    /// One device of each architecture.
    backends: Vec<HipBackend>,
    /// The kernels that clang compiles for it.
    kernels: Arc<KernelStore>,
}

/// The machine; none, with the reason printed, where no kernels can be compiled or disassembled.
static MACHINE: LazyLock<Option<Machine>> = LazyLock::new(|| {
    let objdump = std::env::var("OMNIFLASH_EMULATOR_OBJDUMP").unwrap_or("llvm-objdump-22".into());
    let reason = match Clang::of_system().version() {
        Err(reason) => reason,
        Ok(_) if Command::new(&objdump).arg("--version").output().is_err() => {
            format!("{objdump} does not run")
        }
        Ok(_) => return Some(emulated()),
    };
    println!("skipped: {reason}");
    None
});

/// The devices of the machine, if it is there.
fn backends() -> &'static [HipBackend] {
    MACHINE.as_ref().map_or(&[], |machine| &machine.backends)
}

fn emulated() -> Machine {
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
    let kernels = Arc::new(kernels);
    let store = store_of(OneForRdna4 { kernels: Arc::clone(&kernels) });
    let backends = HipBackend::discover_in(&library, &Arc::new(store)).unwrap();
    Machine { emulator, order: Mutex::default(), backends, kernels }
}

impl Machine {
    /// Lets waves take turns in the order of a seed, as long as the guard lives.
    fn order_of_waves(&self, seed: u64) -> MutexGuard<'_, ()> {
        let guard = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        type SetSeed = unsafe extern "C" fn(u64);
        // SAFETY: the function's type.
        let set_seed = unsafe { self.emulator.get::<SetSeed>("omniflash_emulator_set_seed") }.unwrap();
        // SAFETY: it takes any number.
        unsafe { set_seed(seed) };
        guard
    }

    /// Takes the devices through what is chosen of the table: a case on an architecture, by its place among all.
    fn passes(&self, filter: &Filter, is_chosen: &(dyn Fn(&Spec, usize) -> bool + Sync)) {
        let backends: Vec<&dyn Backend> =
            self.backends.iter().map(|backend| backend as &dyn Backend).collect();
        let schedule = KernelsFirst { is_chosen, kernels: &self.kernels };
        let summaries = conformance::run_scheduled(&backends, filter, EXPECTATIONS, &schedule);
        summaries.iter().for_each(|summary| println!("{summary}"));
        summaries.iter().for_each(Summary::assert_clean);
    }
}

fn store_of(compiler: impl Compiler + 'static) -> KernelStore {
    KernelStore::new(StoreOptions { compilers: vec![Box::new(compiler)], ..StoreOptions::default() })
}

/// Compiles once for gfx1200 and gfx1201: their objects differ in the processor's name only, which a gate of
/// `cargo xtask kernels hip` shows of all kernels that are built ahead of time.
#[derive(Debug)]
struct OneForRdna4 {
    kernels: Arc<KernelStore>,
}

/// The architecture whose objects an architecture runs.
fn compiled_for(architecture: Architecture) -> Architecture {
    match architecture {
        Architecture::Gfx1201 => Architecture::Gfx1200,
        architecture => architecture,
    }
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

/// Makes plans for an architecture without compiling, and lists the sources of their kernels.
struct Planning {
    planner: OfflinePlanner,
    sources: SourceList,
}

impl Planning {
    fn new(architecture: Architecture) -> Self {
        let sources = SourceList::default();
        let planner = OfflinePlanner::new(architecture, Arc::new(store_of(sources.clone())));
        Planning { planner, sources }
    }

    /// The id of the kernel that computes a case; empty where none does.
    fn kernel_of(&self, spec: &Spec) -> String {
        let plan = spec.outline().with_host_problem(|problem| self.planner.plan(problem)).unwrap();
        plan.map_or(String::new(), |plan| plan.kernel_id)
    }

    /// The sources for these cases that were not asked for before.
    fn sources_of(&self, specs: &[&Spec]) -> Vec<ListedSource> {
        specs.iter().for_each(|spec| _ = self.kernel_of(spec));
        self.sources.take()
    }
}

/// The id of the kernel that computes each case, by its name, as gfx942 stands for all.
static KERNELS: LazyLock<HashMap<String, String>> = LazyLock::new(|| {
    let specs: Vec<Spec> = TABLE.iter().flat_map(|row| (row.cases)()).collect();
    let part = specs.len().div_ceil(threads());
    std::thread::scope(|scope| {
        let ids_of = |specs: &[Spec]| {
            let planning = Planning::new(Architecture::Gfx942);
            specs.iter().map(|spec| (spec.name.clone(), planning.kernel_of(spec))).collect::<Vec<_>>()
        };
        let parts: Vec<_> = specs.chunks(part).map(|specs| scope.spawn(move || ids_of(specs))).collect();
        parts.into_iter().flat_map(|part| part.join().expect("a plan does not panic")).collect()
    })
});

/// Which cases run where, and what their kernels are compiled by: all of a group's together, before its first case.
struct KernelsFirst<'m> {
    is_chosen: &'m (dyn Fn(&Spec, usize) -> bool + Sync),
    kernels: &'m KernelStore,
}

impl Schedule for KernelsFirst<'_> {
    fn is_chosen(&self, spec: &Spec, at: usize) -> bool {
        (self.is_chosen)(spec, at)
    }

    fn threads(&self) -> usize {
        threads()
    }

    /// Cases of as many kernels as are compiled in one start of clang; those of one kernel are neighbours, so that the emulator
    /// decodes it once.
    fn groups(&self, specs: &[Spec]) -> Vec<Vec<usize>> {
        let mut by_kernel: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (at, spec) in specs.iter().enumerate() {
            by_kernel.entry(&KERNELS[&spec.name]).or_default().push(at);
        }
        let of_kernels: Vec<Vec<usize>> = by_kernel.into_values().collect();
        of_kernels.chunks(KERNELS_AT_ONCE).map(<[_]>::concat).collect()
    }

    fn begin(&self, group: &[&Spec]) {
        for (at, architecture) in Architecture::ALL.into_iter().enumerate() {
            let specs: Vec<&Spec> = group.iter().copied().filter(|spec| self.is_chosen(spec, at)).collect();
            let planning = Planning::new(compiled_for(architecture));
            let listed = planning.sources_of(&specs);
            let sources: Vec<KernelSource<'_>> = listed.iter().map(ListedSource::as_source).collect();
            self.kernels.prepare(&sources);
        }
    }
}

/// Whether an architecture, by its place among all, runs a case.
type Share = [bool; 6];

/// How many architectures run a case.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Spread {
    /// One, in turn.
    One,
    /// A CDNA and an RDNA one, in turn.
    Two,
    Six,
}

impl Spread {
    /// Whose turn it is when the kernels of so many groups of cases were dealt out before.
    fn share(self, at: usize) -> Share {
        use Architecture::{Gfx90a, Gfx942, Gfx950, Gfx1100, Gfx1200, Gfx1201};
        const ALONE: [Architecture; 6] = [Gfx90a, Gfx1200, Gfx950, Gfx1201, Gfx942, Gfx1100];
        const CDNA: [Architecture; 3] = [Gfx90a, Gfx942, Gfx950];
        const RDNA: [Architecture; 4] = [Gfx1100, Gfx1200, Gfx1100, Gfx1201];
        Architecture::ALL.map(|architecture| match self {
            Spread::One => architecture == ALONE[at % ALONE.len()],
            Spread::Two => [CDNA[at % CDNA.len()], RDNA[at % RDNA.len()]].contains(&architecture),
            Spread::Six => true,
        })
    }
}

/// What runs where, by the names of cases.
static SHARES: LazyLock<HashMap<String, Share>> = LazyLock::new(|| {
    let specs: Vec<Spec> = TABLE.iter().flat_map(|row| (row.cases)()).collect();
    let (always, others): (Vec<Spec>, Vec<Spec>) = specs.into_iter().partition(is_everywhere);
    let mut shares: HashMap<String, Share> =
        always.into_iter().map(|spec| (spec.name, Spread::Six.share(0))).collect();
    // Cases of one kernel go to the same architectures, which compile it once.
    let mut by_kernel: BTreeMap<(bool, &str), Vec<Spec>> = BTreeMap::new();
    for spec in others {
        by_kernel.entry((spec.cost() > LONG, &KERNELS[&spec.name])).or_default().push(spec);
    }
    let mut dealt: HashMap<Spread, usize> = HashMap::new();
    for ((is_long, _), specs) in by_kernel {
        let spread = match specs.len() {
            _ if is_long => Spread::One,
            ..=RARE => Spread::Two,
            _ => Spread::Six,
        };
        let at = dealt.entry(spread).or_default();
        shares.extend(specs.into_iter().map(|spec| (spec.name, spread.share(*at))));
        *at += 1;
    }
    shares
});

fn is_everywhere(spec: &Spec) -> bool {
    spec.twin.is_some() || EVERYWHERE.iter().any(|pattern| matches(pattern, &spec.name))
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[test]
fn every_architecture_passes_the_table() {
    let Some(machine) = &*MACHINE else { return };
    let _order = machine.order_of_waves(0);
    if let Ok(pattern) = std::env::var("OMNIFLASH_CONFORMANCE") {
        return machine.passes(&Filter::only(pattern).repeat_up_to(REPEATED), &|_, _| true);
    }
    machine.passes(&Filter::all().repeat_up_to(REPEATED), &|spec, at| SHARES[&spec.name][at]);
}

#[test]
fn a_part_of_the_table_passes_in_another_order_of_waves() {
    let Some(machine) = &*MACHINE else { return };
    let _order = machine.order_of_waves(1);
    machine.passes(&Filter::all().repeat_up_to(0), &|spec, _| is_everywhere(spec));
}

#[test]
fn most_cases_run_on_six_architectures_and_every_one_on_some() {
    let architectures = |name: &str| -> Vec<Architecture> {
        Architecture::ALL.into_iter().zip(SHARES[name]).filter_map(|(of, runs)| runs.then_some(of)).collect()
    };
    let specs: Vec<Spec> = TABLE.iter().flat_map(|row| (row.cases)()).collect();
    let (mut six, mut alone, mut rare) = (0, HashMap::new(), HashMap::new());
    for spec in &specs {
        match architectures(&spec.name)[..] {
            [architecture] => {
                assert!(spec.cost() > LONG, "{}", spec.name);
                *alone.entry(architecture).or_insert(0) += 1;
            }
            [cdna, rdna] => {
                assert!(cdna.is_cdna() && !rdna.is_cdna(), "{}", spec.name);
                [cdna, rdna].into_iter().for_each(|architecture| *rare.entry(architecture).or_insert(0) += 1);
            }
            ref others => {
                assert_eq!(others.len(), 6, "{}", spec.name);
                six += 1;
            }
        }
    }
    // Cases that must give the same bits are compared where both run.
    for spec in specs.iter().filter(|spec| spec.twin.is_some()) {
        assert_eq!(architectures(&spec.name).len(), 6, "{}", spec.name);
    }
    let kernels: HashSet<(&str, Architecture)> = specs
        .iter()
        .flat_map(|spec| {
            architectures(&spec.name).into_iter().map(|of| (&*KERNELS[&spec.name], compiled_for(of)))
        })
        .collect();
    println!(
        "{six} of {} cases on six architectures, {} kernels; alone {alone:?}; rare {rare:?}",
        specs.len(),
        kernels.len()
    );
    assert!(2 * six > specs.len(), "{six} of {} cases", specs.len());
    for architecture in Architecture::ALL {
        assert!(alone[&architecture] >= 20 && rare[&architecture] >= 40, "{architecture}");
    }
}

#[test]
fn the_golden_cases_come_out_right_on_a_card_of_each_matrix_unit() {
    for backend in backends().iter().filter(|backend| ["gfx942", "gfx1201"].contains(&&*backend.info().arch))
    {
        for golden in golden::all() {
            assert_eq!(golden.check(backend).unwrap(), [], "{} on {}", golden.case.name, backend.info().arch);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn random_cases_come_out_right_on_some_architecture(spec in valid(Dims::MultiplesOf8), at in 0..6usize) {
        if let Some(backend) = backends().get(at) {
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
