//! The HIP backend passes the table on all six architectures: the code objects that AMD cards would run, compiled by
//! clang and executed by the emulator in place of the driver.
//!
//! Every case runs on every architecture. Most of the test's time is clang's, for some 1,800 kernels, and the rest is the
//! emulator's, most of whose work a fifth of the cases would be: a case of more than [`LONG`] multiplications runs as it is
//! on one architecture, in turn, and on the others with fewer heads and positions, by what is the same kernel on gfx942. Those
//! in [`EVERYWHERE`] run as they are on all six. With `OMNIFLASH_CONFORMANCE`, a pattern such as `f7/*` or `*`, all that match
//! it do. Kernels are kept in the target directory.

#![allow(clippy::print_stdout, reason = "a test says why it is skipped")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
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

/// Cases of more multiplications run as they are on one architecture, unless they are among [`EVERYWHERE`].
const LONG: u64 = 8_000_000;

/// What a case is shortened to for the others, if it can be that short.
const SHORT: u64 = 2_000_000;

/// Kernels of gfx942 whose cases are run one after the other, once clang has compiled them for all architectures.
const KERNELS_AT_ONCE: usize = 16;

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
    let machine = Clang::of_system().version().and_then(|_| emulated());
    machine.inspect_err(|reason| println!("skipped: {reason}")).ok()
});

/// The devices of the machine, if it is there.
fn backends() -> &'static [HipBackend] {
    MACHINE.as_ref().map_or(&[], |machine| &machine.backends)
}

fn emulated() -> Result<Machine, String> {
    let program = std::env::current_exe().unwrap();
    let library = program.parent().unwrap().join("libomniflash_hip_emulator.so");
    // SAFETY: the emulator has no initialisers.
    let emulator = unsafe { libloading::Library::new(&library) }.unwrap();
    type LoadsModules = unsafe extern "C" fn() -> std::ffi::c_int;
    // SAFETY: the function's type.
    let loads_modules = unsafe { emulator.get::<LoadsModules>("omniflash_emulator_loads_modules") }.unwrap();
    // SAFETY: it takes nothing.
    if unsafe { loads_modules() } == 0 {
        return Err("the emulator does not find LLVM's library".into());
    }
    type SetThreads = unsafe extern "C" fn(usize);
    // SAFETY: the function's type.
    let set_threads = unsafe { emulator.get::<SetThreads>("omniflash_emulator_set_threads") }.unwrap();
    type SetDevices = unsafe extern "C" fn(*const std::ffi::c_char) -> std::ffi::c_int;
    // SAFETY: the function's type.
    let set_devices = unsafe { emulator.get::<SetDevices>("omniflash_emulator_set_devices") }.unwrap();
    let devices = std::ffi::CString::new(ARCHITECTURES).unwrap();
    // SAFETY: a zero-terminated string.
    assert_eq!(unsafe { set_devices(devices.as_ptr()) }, 0);
    // The table has threads of its own.
    // SAFETY: it takes any number.
    unsafe { set_threads(1) };
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("hip-kernels");
    let kernels = KernelStore::new(StoreOptions {
        cache: Some(DiskCache::new(cache)),
        compilers: vec![Box::new(Clang::of_system())],
        ..StoreOptions::default()
    });
    let kernels = Arc::new(kernels);
    let store = store_of(OneForRdna4 { kernels: Arc::clone(&kernels) });
    let backends = HipBackend::discover_in(&library, &Arc::new(store)).unwrap();
    Ok(Machine { emulator, order: Mutex::default(), backends, kernels })
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
        plan.map_or(String::new(), |plan| plan.kernel_id.to_string())
    }

    /// The sources for these cases that were not asked for before.
    fn sources_of(&self, specs: &[&Spec]) -> Vec<ListedSource> {
        specs.iter().for_each(|spec| _ = self.kernel_of(spec));
        self.sources.take()
    }
}

/// A case in the forms in which it runs.
struct Forms {
    /// The kernel that computes all of them, as gfx942 stands for all architectures.
    kernel: String,
    /// For the architectures that do not run it as it is.
    short: Option<Spec>,
}

impl Forms {
    fn of(spec: &Spec, planning: &Planning) -> Self {
        let kernel = planning.kernel_of(spec);
        if spec.cost() <= LONG || is_everywhere(spec) {
            return Forms { kernel, short: None };
        }
        let mut short = spec.clone();
        while short.cost() > SHORT
            && let Some(shorter) = short.shorter()
            && planning.kernel_of(&shorter) == kernel
        {
            short = shorter;
        }
        short.name.push_str(SHORT_FORM);
        Forms { kernel, short: Some(short) }
    }
}

/// What the name of a shortened case ends with.
const SHORT_FORM: &str = "_short";

/// The name in the table of a case in whatever form.
fn in_table(name: &str) -> &str {
    name.strip_suffix(SHORT_FORM).unwrap_or(name)
}

/// The forms of each case, by its name in the table.
static FORMS: LazyLock<HashMap<String, Forms>> = LazyLock::new(|| {
    let specs: Vec<Spec> = TABLE.iter().flat_map(|row| (row.cases)()).collect();
    let part = specs.len().div_ceil(threads());
    std::thread::scope(|scope| {
        let forms_of = |specs: &[Spec]| {
            let planning = Planning::new(Architecture::Gfx942);
            specs.iter().map(|spec| (spec.name.clone(), Forms::of(spec, &planning))).collect::<Vec<_>>()
        };
        let parts: Vec<_> = specs.chunks(part).map(|specs| scope.spawn(move || forms_of(specs))).collect();
        parts.into_iter().flat_map(|part| part.join().expect("a plan does not panic")).collect()
    })
});

/// Which cases run where, and what their kernels are compiled by: all of a group's together, before its first case.
struct KernelsFirst<'m> {
    is_chosen: &'m (dyn Fn(&Spec, usize) -> bool + Sync),
    kernels: &'m KernelStore,
}

impl Schedule for KernelsFirst<'_> {
    fn forms(&self, spec: Spec) -> Vec<Spec> {
        let short = FORMS[&spec.name].short.clone();
        [spec].into_iter().chain(short).collect()
    }

    fn is_chosen(&self, spec: &Spec, at: usize) -> bool {
        (self.is_chosen)(spec, at)
    }

    fn threads(&self) -> usize {
        threads()
    }

    /// Cases of as many kernels as are compiled in one start of clang, and of fewer towards the end, so that all threads come to it
    /// together; the longest first. Those of one kernel are neighbours, so that the emulator decodes it once.
    fn groups(&self, specs: &[Spec]) -> Vec<Vec<usize>> {
        let mut by_kernel: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (at, spec) in specs.iter().enumerate() {
            by_kernel.entry(&FORMS[in_table(&spec.name)].kernel).or_default().push(at);
        }
        let mut of_kernels: Vec<Vec<usize>> = by_kernel.into_values().collect();
        of_kernels.sort_by_key(|cases| Reverse(cases.iter().map(|&at| specs[at].cost()).sum::<u64>()));
        let (mut groups, mut left) = (Vec::new(), &of_kernels[..]);
        while !left.is_empty() {
            let (group, rest) = left.split_at((left.len() / (4 * threads())).clamp(1, KERNELS_AT_ONCE));
            groups.push(group.concat());
            left = rest;
        }
        groups
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

/// The architecture, by its place among all, that runs a case of several forms as it is.
static WHOLE: LazyLock<HashMap<String, usize>> = LazyLock::new(|| {
    let mut names: Vec<&String> =
        FORMS.iter().filter_map(|(name, forms)| forms.short.as_ref().and(Some(name))).collect();
    // By kernel, so that each architecture sees of every kernel some.
    names.sort_by_key(|name| (&FORMS[*name].kernel, *name));
    names.into_iter().enumerate().map(|(at, name)| (name.clone(), at % Architecture::ALL.len())).collect()
});

/// Whether an architecture runs a case in this form.
fn is_its_form(name: &str, architecture: usize) -> bool {
    let is_short = in_table(name) != name;
    WHOLE.get(in_table(name)).map_or(!is_short, |&whole| is_short != (whole == architecture))
}

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
        let filter = Filter::only(pattern).repeat_up_to(REPEATED);
        return machine.passes(&filter, &|spec, _| in_table(&spec.name) == spec.name);
    }
    machine.passes(&Filter::all().repeat_up_to(REPEATED), &|spec, at| is_its_form(&spec.name, at));
}

#[test]
fn a_part_of_the_table_passes_in_another_order_of_waves() {
    let Some(machine) = &*MACHINE else { return };
    let _order = machine.order_of_waves(1);
    machine.passes(&Filter::all().repeat_up_to(0), &|spec, _| is_everywhere(spec));
}

#[test]
fn every_case_runs_on_six_architectures_and_a_long_one_as_it_is_on_one() {
    let specs: Vec<Spec> = TABLE.iter().flat_map(|row| (row.cases)()).collect();
    let (mut kernels, mut shortened, mut cost) = (HashSet::new(), [0; 6], 0);
    for spec in &specs {
        let forms = &FORMS[&spec.name];
        kernels.insert(&*forms.kernel);
        let (whole, short) = (&spec.name, format!("{}{SHORT_FORM}", spec.name));
        for (at, shortened) in shortened.iter_mut().enumerate() {
            assert!(is_its_form(whole, at) != is_its_form(&short, at), "{whole}");
            *shortened += usize::from(is_its_form(&short, at));
            cost += if is_its_form(whole, at) { spec.cost() } else { forms.short.as_ref().unwrap().cost() };
        }
        let as_it_is = (0..6).filter(|&at| is_its_form(whole, at)).count();
        match &forms.short {
            None => assert!(as_it_is == 6 && (spec.cost() <= LONG || is_everywhere(spec)), "{whole}"),
            // Cases that must give the same bits are compared where all run.
            Some(short) => {
                assert!(as_it_is == 1 && spec.twin.is_none() && short.cost() <= spec.cost(), "{whole}");
            }
        }
    }
    println!(
        "{} cases, {} kernels, shortened {shortened:?}, {cost} multiplications",
        specs.len(),
        kernels.len()
    );
    assert!(shortened.iter().all(|&shortened| 5 * shortened < specs.len()), "{shortened:?}");
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
