//! `cargo xtask performance hip`: what can be said of the HIP kernels' speed without a card.
//!
//! The emulator counts what one block does for some tiles of keys and for more of them; the difference is the inner loop,
//! prologue and epilogue cancel. No time is measured: cycles are what the public ISA manuals give for each class of
//! instruction, as if a SIMD issued one vector instruction after the other.

mod occupancy;

use std::fmt::Write as _;
use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, bail, ensure};
use omniflash_core::lower::FunctorSpec;
use omniflash_core::{DType, Mask, ScoreMod};
use omniflash_device::parameters::{
    AttentionParameters, DeviceAddress, KeyForm, LseForm, QueryForm, Rows, SinkForm, StartForm,
};
use omniflash_hip_emulator::{Checks, Class, Configuration, Counters, Device, Dimensions};
use omniflash_kernels_hip::{Architecture, COMPILER_OPTIONS, ForwardConfig};

use crate::codegen::workspace_root;
use crate::kernels::hip::{Notes, tool};

/// Where the table is, from the root of the workspace.
const TABLE: &str = "benches/results/hip-static.md";

/// Query heads of a key head in decoding.
const GROUP: u32 = 8;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Fails if the table is not current, and writes nothing.
    #[arg(long)]
    check: bool,
}

/// A use of the kernel whose inner loop is counted; keys that the mask touches are not in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Full,
    Causal,
    Decode,
}

impl Use {
    const ALL: [Use; 3] = [Use::Full, Use::Causal, Use::Decode];

    fn name(self) -> &'static str {
        match self {
            Use::Full => "prefill",
            Use::Causal => "prefill, causal",
            Use::Decode => "decode",
        }
    }

    fn mask(self) -> Mask<'static> {
        if self == Use::Causal { Mask::Causal } else { Mask::None }
    }

    /// The instance: in decoding that of few rows, the heads of a group.
    fn config(self, architecture: Architecture, head_dim: usize) -> anyhow::Result<ForwardConfig> {
        let config = ForwardConfig::new(architecture, DType::BF16, head_dim, head_dim, "xtask")?;
        Ok(match self {
            Use::Decode => config.for_few_rows(GROUP as usize),
            Use::Full | Use::Causal => config,
        })
    }
}

/// Cycles in which an instruction of a wave occupies its SIMD.
struct Cycles {
    /// 16-bit operations of the matrix unit a cycle, each product two.
    matrix_operations: u64,
    vector: u64,
    transcendental: u64,
}

/// AMD's ISA manuals: MFMA 32x32x8 of 16 bits takes 16 passes of 4 cycles on CDNA 2 and 8 on CDNA 3, 32x32x16 takes 8 on
/// CDNA 4; WMMA 16x16x16 takes 32 cycles on RDNA 3 and 16 on RDNA 4. A SIMD of CDNA has 16 lanes, one of RDNA 32, and a
/// quarter as many for exponentials.
fn cycles(architecture: Architecture) -> Cycles {
    let matrix_operations = match architecture {
        Architecture::Gfx90a => 2 * 32 * 32 * 8 / 64,
        Architecture::Gfx942 => 2 * 32 * 32 * 8 / 32,
        Architecture::Gfx950 => 2 * 32 * 32 * 16 / 32,
        Architecture::Gfx1100 => 2 * 16 * 16 * 16 / 32,
        Architecture::Gfx1200 | Architecture::Gfx1201 => 2 * 16 * 16 * 16 / 16,
    };
    let vector = if architecture.is_cdna() { 4 } else { 1 };
    Cycles { matrix_operations, vector, transcendental: 4 * vector }
}

/// What one wave does for one tile of keys.
struct InnerLoop {
    matrix_cycles: f64,
    vector: f64,
    transcendental: f64,
    /// Instructions of LDS, of global memory, and of the scalar unit with waits and branches.
    others: [f64; 3],
    /// Scores of a lane.
    scores: f64,
    /// Extra cycles of LDS reads and writes.
    conflicts: [f64; 2],
    /// Bytes of a block.
    loaded: f64,
    scratch: f64,
}

impl InnerLoop {
    fn share(&self, cycles: &Cycles) -> f64 {
        let vector = self.vector * cycles.vector as f64 + self.transcendental * cycles.transcendental as f64;
        self.matrix_cycles / (self.matrix_cycles + vector)
    }

    /// The share if a score took no more than its maximum, its multiplication and addition, its exponential, its sum and
    /// half of an instruction that rounds two.
    fn ideal_share(&self, cycles: &Cycles) -> f64 {
        let vector = 3.5 * cycles.vector as f64 + cycles.transcendental as f64;
        self.matrix_cycles / (self.matrix_cycles + self.scores * vector)
    }
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let version = compiler_version()?;
    let (table, problems) = table(&version)?;
    let path = workspace_root().join(TABLE);
    if !options.check {
        fs::write(&path, &table).with_context(|| format!("writing {TABLE}"))?;
    } else {
        let committed = fs::read_to_string(&path).with_context(|| format!("reading {TABLE}"))?;
        if committed.contains(&version) {
            ensure!(committed == table, "{TABLE} is not current: run `cargo xtask performance hip`");
        } else {
            print(&format!("{TABLE} was made with another clang than {version}: not compared\n"));
        }
    }
    print(&table);
    if problems.is_empty() {
        return Ok(());
    }
    bail!("{}", problems.join("\n"));
}

/// The table, and which goals are missed.
fn table(version: &str) -> anyhow::Result<(String, Vec<String>)> {
    let tables: Vec<(usize, Use)> =
        [64, 128, 256].into_iter().flat_map(|head_dim| Use::ALL.map(|kind| (head_dim, kind))).collect();
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut parts: Vec<(usize, String, Vec<String>)> = std::thread::scope(|scope| {
        let work = || {
            let mut parts = Vec::new();
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(&(head_dim, kind)) = tables.get(at) else { return anyhow::Ok(parts) };
                let (text, problems) = part(head_dim, kind)?;
                parts.push((at, text, problems));
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let parts = workers.into_iter().map(|worker| worker.join().expect("a worker does not panic"));
        parts.collect::<anyhow::Result<Vec<_>>>().map(|parts| parts.into_iter().flatten().collect())
    })?;
    parts.sort_by_key(|&(at, ..)| at);
    let mut text = format!(include_str!("performance/head.md"), version = version);
    text.extend(parts.iter().map(|(_, part, _)| part.as_str()));
    Ok((text, parts.into_iter().flat_map(|(.., problems)| problems).collect()))
}

fn part(head_dim: usize, kind: Use) -> anyhow::Result<(String, Vec<String>)> {
    let mut text = String::new();
    let mut problems = Vec::new();
    writeln!(text, "\n## bf16, head_dim {head_dim}, {}\n\n{HEADER}", kind.name())?;
    for architecture in Architecture::ALL {
        let name = format!("{architecture}, head_dim {head_dim}, {}", kind.name());
        let (row, missed) = row(architecture, head_dim, kind).with_context(|| name.clone())?;
        text += &row;
        problems.extend(missed.into_iter().map(|problem| format!("{name}: {problem}")));
    }
    Ok((text, problems))
}

const HEADER: &str = "\
| target | tile | matrix share | ideal | matrix cycles | vector, exp a score | LDS, global, scalar instructions | LDS conflicts of reads, writes | scratch | global bytes, least | registers | LDS | waves a SIMD |
|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|";

fn row(architecture: Architecture, head_dim: usize, kind: Use) -> anyhow::Result<(String, Vec<String>)> {
    let config = kind.config(architecture, head_dim)?;
    let mask = kind.mask();
    let functors = FunctorSpec::new(&mask, &ScoreMod::Identity, GROUP as usize, "xtask")?;
    let object = compile(architecture, &config.translation_unit(&functors).source())?;
    let notes = Notes::parse(&tool("llvm-readobj-22", "--notes", &object)?)?;
    let image = fs::read(&object)?;
    let inner = inner_loop(&config, kind, &functors.parameters, &image)?;
    let cycles = cycles(architecture);
    let least = config.block_n * 2 * head_dim * 2;
    let [lds, global, scalar] = inner.others;
    let [reads, writes] = inner.conflicts;
    let row = format!(
        "| {architecture} | {}x{}, {} waves | {:.0} % | {:.0} % | {:.0} | {:.1}, {:.1} | {lds:.0}, {global:.0}, {scalar:.0} \
         | {reads:.0}, {writes:.0} | {:.0} | {:.0}, {least} | {} | {} | {} |\n",
        config.block_m,
        config.block_n,
        config.warps,
        100.0 * inner.share(&cycles),
        100.0 * inner.ideal_share(&cycles),
        inner.matrix_cycles,
        inner.vector / inner.scores,
        inner.transcendental / inner.scores,
        inner.scratch,
        inner.loaded,
        notes.registers,
        config.shared_memory_bytes(),
        occupancy::waves(&config, notes.registers),
    );
    let mut missed = Vec::new();
    if reads > 0.0 {
        missed.push(format!("{reads} cycles of LDS conflicts in the reads of a tile"));
    }
    if inner.scratch > 0.0 {
        missed.push(format!("{} instructions that move registers to or from memory", inner.scratch));
    }
    Ok((row, missed))
}

fn compile(architecture: Architecture, source: &str) -> anyhow::Result<tempfile::TempPath> {
    let folder = tempfile::tempdir()?;
    let input = folder.path().join("kernel.hip");
    fs::write(&input, source)?;
    let object = tempfile::NamedTempFile::new()?.into_temp_path();
    let compiled = Command::new("clang-22")
        .args(COMPILER_OPTIONS)
        .arg(format!("--offload-arch={architecture}"))
        .arg("-o")
        .args([&*object, &*input])
        .output()
        .context("starting clang-22; Debian has it as clang-22, lld-22 and llvm-22")?;
    ensure!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    Ok(object)
}

fn compiler_version() -> anyhow::Result<String> {
    let said = Command::new("clang-22").arg("--version").output().context("starting clang-22")?;
    let text = String::from_utf8_lossy(&said.stdout);
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

/// Counts of one wave and one tile: the difference of two launches, divided by what they differ in.
fn inner_loop(config: &ForwardConfig, kind: Use, functors: &[u8], image: &[u8]) -> anyhow::Result<InnerLoop> {
    // Enough that the first and last tiles are the same in both, and an even number in case two are unrolled.
    let few = config.block_m.div_ceil(config.block_n) + 2;
    let more = few + 8;
    let before = launch(config, kind, functors, image, few)?;
    let after = launch(config, kind, functors, image, more)?;
    let tiles = (more - few) as f64;
    // In decoding one wave has all rows.
    let waves = tiles * if kind == Use::Decode { 1.0 } else { config.warps as f64 };
    let difference = |of: &dyn Fn(&Counters) -> u64| (of(&after) - of(&before)) as f64;
    let class = |class: Class| difference(&|counters| counters.of(class)) / waves;
    let cycles = cycles(config.architecture);
    let reads = difference(&|counters| counters.lds_read_conflicts);
    let architecture = config.architecture;
    Ok(InnerLoop {
        matrix_cycles: difference(&|counters| counters.matrix_operations)
            / (waves * cycles.matrix_operations as f64),
        vector: class(Class::Vector),
        transcendental: class(Class::Transcendental),
        others: [
            class(Class::Lds),
            class(Class::VectorMemory),
            class(Class::Scalar) + class(Class::Program) + class(Class::ScalarMemory),
        ],
        scores: (config.block_n * architecture.wave_rows() / architecture.wave_size()) as f64,
        conflicts: [reads / waves, (difference(&|counters| counters.lds_bank_conflicts) - reads) / waves],
        loaded: difference(&|counters| counters.bytes_loaded) / tiles,
        scratch: class(Class::Scratch),
    })
}

/// What one block does with so many tiles of keys.
fn launch(
    config: &ForwardConfig,
    kind: Use,
    functors: &[u8],
    image: &[u8],
    tiles: usize,
) -> anyhow::Result<Counters> {
    let target = config.architecture.name().parse()?;
    let mut device = Device::new(target, Configuration { checks: Checks::NONE, ..Configuration::default() });
    let (heads, seqlen_q) = if kind == Use::Decode { (GROUP, 1) } else { (1, config.block_m) };
    let seqlen_k = tiles * config.block_n;
    let mut tensor = |rows: usize, heads: u32| -> anyhow::Result<Rows> {
        let values = rows * heads as usize * config.head_dim;
        let address = device.allocate(2 * values)?;
        // Small numbers that differ: 0.5 to 1, as bf16.
        let bytes: Vec<u8> =
            (0..values).flat_map(|i| (0x3f00 + (i * 37 % 128) as u16).to_le_bytes()).collect();
        device.write(address, &bytes)?;
        Ok(Rows {
            data: DeviceAddress(address),
            batch_stride: values as i64,
            row_stride: i64::from(heads) * config.head_dim as i64,
            head_stride: config.head_dim as i64,
        })
    };
    let parameters = AttentionParameters {
        q: tensor(seqlen_q, heads)?,
        k: tensor(seqlen_k, 1)?,
        v: tensor(seqlen_k, 1)?,
        out: tensor(seqlen_q, heads)?,
        total_q: seqlen_q as i64,
        query_form: QueryForm::Padded.into(),
        key_form: KeyForm::Dense.into(),
        start_form: StartForm::BottomRight.into(),
        sink_form: SinkForm::Absent.into(),
        lse_form: LseForm::Absent.into(),
        batch: 1,
        num_heads: heads,
        group_size: heads,
        head_dim: config.head_dim as u32,
        value_dim: config.value_dim as u32,
        seqlen_q: seqlen_q as u32,
        seqlen_k: seqlen_k as u32,
        page_size: 1,
        heads_per_tile: heads,
        num_row_tiles: config.num_row_tiles(seqlen_q, heads as usize),
        section: 1,
        num_partitions: 1,
        softmax_scale: 0.125,
        ..Default::default()
    }
    .derived();
    let mut arguments = bytemuck::bytes_of(&parameters).to_vec();
    if !functors.is_empty() {
        arguments.resize(arguments.len().next_multiple_of(16), 0);
        arguments.extend(functors);
    }
    let module = device.load(image)?;
    let dimensions = Dimensions {
        grid: config.grid(&parameters)?,
        block: [config.block_threads(), 1, 1],
        dynamic_lds_bytes: config.shared_memory_bytes() as u32,
    };
    device.launch(&module, "omniflash_forward", dimensions, &arguments)?;
    Ok(device.counters())
}

#[allow(clippy::print_stdout)] // the table is the task's result
fn print(text: &str) {
    print!("{text}");
}
