//! The whole way from a problem to its results with no GPU: the kernels' own source, compiled for the host by the
//! machine's C++ compiler with the instructions of a GPU emulated, launched through the fake driver.

#[path = "../../tests/support/mod.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with the tests of a GPU")]
mod support;

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use omniflash_core::{Algorithm, DType};
use omniflash_kernel_store::{CompileError, Compiler, KernelSource};
use omniflash_testkit::append;

use super::fake::Fake;
use crate::CudaBackend;
use support::{Case, Keys, MaskKind, ScoreKind, errors};

/// Compiles kernels for the host; an image is the path of the library made.
#[derive(Debug)]
struct HostCompiler {
    folder: tempfile::TempDir,
}

impl Compiler for HostCompiler {
    fn name(&self) -> &str {
        "c++"
    }

    fn version(&self) -> Result<String, String> {
        match Command::new("c++").arg("--version").output() {
            Ok(output) => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn compile(&self, source: &KernelSource<'_>) -> Result<Vec<u8>, CompileError> {
        let call = Call::of(source);
        let exported = "extern \"C\" __attribute__((visibility(\"default\")))";
        let text = format!(
            "{}\n{}\nnamespace omniflash {{ static void call() {{ {} }} }}\n\
             static void call_entry() {{ omniflash::call(); }}\n\
             {exported} size_t functor_bytes() {{ using namespace omniflash; return {}; }}\n\
             {exported} size_t beside_bytes() {{ using namespace omniflash; return {}; }}\n\
             {exported} unsigned cluster_blocks() {{ using namespace omniflash; return {}; }}\n",
            with_emulated_instructions(source.source),
            emulator_file("grid.hpp"),
            call.text,
            call.functor_bytes,
            call.beside_bytes,
            call.cluster_blocks,
        );
        let stem = self.folder.path().join(source.id.replace(['(', ')', ','], "_"));
        let (input, output) = (stem.with_extension("cpp"), stem.with_extension("so"));
        fs::write(&input, text).unwrap();
        let run = Command::new("c++")
            .args([
                "-std=c++20",
                // With -O1, compiling takes half as long again, and that is more than running gains.
                "-Og",
                "-w",
                "-fPIC",
                "-shared",
                "-U_FORTIFY_SOURCE",
                "-ffp-contract=off",
                // Otherwise all kernels share the one grid of the process.
                "-fno-gnu-unique",
                "-fvisibility=hidden",
                "-o",
            ])
            .args([&output, &input])
            .output()
            .unwrap();
        if !run.status.success() {
            return Err(CompileError::Source { code: 1, log: String::from_utf8_lossy(&run.stderr).into() });
        }
        Ok(format!("emulated:{}", output.display()).into_bytes())
    }
}

/// How a kernel is called from the launch's arguments, and what it says of them, in C++.
struct Call {
    text: String,
    functor_bytes: &'static str,
    beside_bytes: &'static str,
    cluster_blocks: &'static str,
}

impl Call {
    fn of(source: &KernelSource<'_>) -> Self {
        let call = |entry: &str, types: &[&str]| {
            let arguments = types
                .iter()
                .enumerate()
                .map(|(i, name)| format!("*static_cast<const {name}*>(argument_{i})"));
            format!("{entry}({});", arguments.collect::<Vec<_>>().join(", "))
        };
        let simple =
            |text, functor_bytes| Call { text, functor_bytes, beside_bytes: "0", cluster_blocks: "1" };
        let attention = "AttentionParameters";
        let functors = "Functors<MaskType, ScoreModType>";
        let with_functors = |entry, beside: Option<&str>| {
            call(entry, &[attention, functors].into_iter().chain(beside).collect::<Vec<_>>())
        };
        let functor_bytes = "sizeof(Functors<MaskType, ScoreModType>)";
        match source.id {
            id if id.starts_with("combine") => simple(call("omniflash_combine", &[attention]), "0"),
            id if id.starts_with("kv-append") => {
                simple(call("omniflash_kv_append", &["KvAppendParameters"]), "0")
            }
            id if id.starts_with("pack-mask") => simple(
                call("omniflash_pack_mask", &[attention, "PackMaskParameters"]),
                "sizeof(PackMaskParameters)",
            ),
            id if id.starts_with("naive") => simple(with_functors("omniflash_naive", None), functor_bytes),
            id if id.starts_with("dec") && id.contains("-boxes") => Call {
                text: with_functors("omniflash_decode", Some("KeyMaps")),
                functor_bytes,
                beside_bytes: "sizeof(KeyMaps)",
                cluster_blocks: "kCluster",
            },
            id if id.starts_with("dec") => Call {
                cluster_blocks: "kCluster",
                ..simple(with_functors("omniflash_decode", None), functor_bytes)
            },
            id if id.contains("-tma") => Call {
                text: with_functors("omniflash_forward", Some("HopperParameters")),
                functor_bytes,
                beside_bytes: "sizeof(HopperParameters)",
                cluster_blocks: "kClusterBlocks",
            },
            _ => simple(with_functors("omniflash_forward", None), functor_bytes),
        }
    }
}

/// Files with instructions of a GPU. The grid names types of the last two.
const EMULATED: [&str; 6] = [
    "sm80.hpp",
    "sm90/cluster.hpp",
    "sm90/mbarrier.hpp",
    "sm90/warpgroup.hpp",
    "sm90/tma.hpp",
    "sm90/wgmma.hpp",
];

fn emulator_file(name: &str) -> String {
    let emulator = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels-cuda/tests/emulator");
    fs::read_to_string(emulator.join(name)).expect("the emulator is in the tree")
}

/// The source with other text in the place of the files that hold instructions of a GPU: where the last part of each was, after
/// everything that it includes.
fn with_emulated_instructions(source: &str) -> String {
    let name_of = |line: &str| -> Option<&'static str> {
        let name = line.strip_prefix("#line ")?.split('"').nth(1)?;
        EMULATED.into_iter().find(|&emulated| emulated == name)
    };
    let emulated = |name: &str| {
        let text = emulator_file(name.trim_start_matches("sm90/"));
        let is_kept = |line: &&str| !line.starts_with("#include") && !line.starts_with("#pragma");
        text.lines().filter(is_kept).collect::<Vec<_>>().join("\n")
    };
    let mut parts: HashMap<&str, usize> = HashMap::new();
    for name in source.lines().filter_map(name_of) {
        *parts.entry(name).or_default() += 1;
    }
    let mut text = String::new();
    let mut replaced = None;
    for line in source.lines() {
        if line.starts_with("#line ") {
            replaced = name_of(line);
            if let Some(name) = replaced {
                let left = parts.get_mut(name).expect("it was counted");
                *left -= 1;
                if *left == 0 {
                    text.push_str(&emulated(name));
                    text.push('\n');
                }
            }
        }
        if replaced.is_none() {
            text.push_str(line);
            text.push('\n');
        }
    }
    for name in ["sm80.hpp", "sm90/tma.hpp", "sm90/wgmma.hpp"] {
        if !parts.contains_key(name) {
            text.push_str(&emulated(name));
            text.push('\n');
        }
    }
    text
}

#[test]
fn kernels_launched_from_problems_agree_with_the_reference() {
    let Some((fake, backend)) = emulated(8, 132) else { return };
    let base = Case { seqlen: (20, 70), dims: (64, 64), ..Case::new(DType::BF16) };
    let paged = Case { keys: Keys::Paged(16), seqlen: (1, 300), sinks: true, heads: (8, 2), ..base };
    let packed = Case { seqlen: (70, 2112), heads: (8, 4), dims: (32, 32), ..base };
    let cases = [
        Case { mask: MaskKind::Causal, ..base },
        // Blocks ask for the queries of those that follow.
        Case { dims: (256, 256), seqlen: (70, 70), ragged_q: true, batch: 3, ..base },
        Case { mask: MaskKind::Closure, seqlen: (40, 70), ..base },
        // More tiles than the lanes of a warp ask a table for at a time.
        Case { mask: MaskKind::Closure, seqlen: (140, 2200), partitions: Some(1), ..base },
        Case { score: ScoreKind::Bias, keys: Keys::Ragged, ragged_q: true, batch: 3, sinks: true, ..base },
        Case { keys: Keys::Continuous, mask: MaskKind::Window(31, 0), partitions: Some(3), ..base },
        Case { partitions: Some(4), ..paged },
        Case { partitions: Some(1), ragged_q: true, ..paged },
        Case { ragged_q: true, batch: 3, seqlen: (40, 300), mask: MaskKind::Causal, heads: (8, 2), ..base },
        Case { dims: (20, 36), keys: Keys::Lengths, ..base },
        Case { mask: MaskKind::DenseFloat, ..Case { dtype: DType::F32, ..base } },
        Case { algorithm: Algorithm::Naive, mask: MaskKind::PrefixLm, dtype: DType::F16, ..base },
        Case { mask: MaskKind::DenseBool, ..packed },
        Case { mask: MaskKind::DenseBool, seqlen: (70, 2111), keys: Keys::Lengths, ragged_q: true, ..packed },
        Case { mask: MaskKind::Document, ..packed },
        Case { mask: MaskKind::Document, seqlen: (70, 2111), keys: Keys::Ragged, ragged_q: true, ..packed },
        Case { mask: MaskKind::DenseFloatBlocks, keys: Keys::Paged(16), ..packed },
        Case { mask: MaskKind::DenseFloatBlocks, seqlen: (70, 2111), dtype: DType::F32, ..packed },
    ];
    for case in cases {
        let (errors, plan) = errors(&backend, &case).unwrap_or_else(|error| panic!("{case:?}: {error}"));
        assert!(errors.are_fine(case.dtype), "{errors:?}\n{case:?}\n{plan}");
    }
    for entry in ["omniflash_combine", "omniflash_decode", "omniflash_pack_mask"] {
        assert!(fake.launches().iter().any(|launch| launch.entry() == entry), "{entry}");
    }
}

/// A fake device of a compute capability, with so few multiprocessors that blocks have much to do one after the other, whose kernels
/// are compiled for the host; prints why there is none.
fn emulated(major: u32, multiprocessors: usize) -> Option<(Fake, CudaBackend)> {
    let fake = Fake::build(&[&format!("MAJOR={major}"), &format!("UNITS={multiprocessors}")])?;
    let compiler = HostCompiler { folder: tempfile::tempdir().unwrap() };
    if let Err(reason) = compiler.version() {
        println!("skipped: no C++ compiler: {reason}");
        return None;
    }
    let backend = fake.backend_with_compiler(compiler);
    Some((fake, backend))
}

/// Two causal sequences of 140 queries and 210 keys at head_dim 128.
fn causal() -> Case {
    Case { mask: MaskKind::Causal, seqlen: (140, 210), dims: (128, 128), ..Case::new(DType::BF16) }
}

/// Fails unless each of these is in the name of some plan's kernel.
fn assert_among(kernels: &[&str], plans: &[String]) {
    for kernel in kernels {
        assert!(
            plans.iter().any(|plan| plan.contains(kernel)),
            "{kernel} is not among\n{}",
            plans.join("\n")
        );
    }
}

/// Runs cases with both orders of warps; their plans.
fn agree_with_the_reference(fake: &Fake, backend: &CudaBackend, cases: &[Case]) -> Vec<String> {
    let mut plans = Vec::new();
    for case in cases {
        for last_warp_first in [false, true] {
            fake.set_last_warp_first(last_warp_first);
            let (errors, plan) = errors(backend, case).unwrap_or_else(|error| panic!("{case:?}: {error}"));
            assert!(errors.are_fine(case.dtype), "{errors:?}\n{case:?}\n{plan}");
            plans.push(plan);
        }
    }
    plans
}

#[test]
fn hopper_kernels_agree_with_the_reference() {
    let Some((fake, backend)) = emulated(9, 2) else { return };
    let base = Case { algorithm: Algorithm::Flash3, ..causal() };
    let full = Case { mask: MaskKind::None, heads: (1, 1), batch: 1, ..base };
    let narrow = Case { dims: (64, 64), seqlen: (250, 260), ..base };
    let plans = agree_with_the_reference(
        &fake,
        &backend,
        &[
            // Two and three warpgroups, and four with the fewest registers.
            base,
            Case { seqlen: (190, 210), sinks: true, ..base },
            narrow,
            // Halves of tiles, and pairs of blocks.
            Case { seqlen: (130, 1090), ..full },
            Case { dims: (256, 256), seqlen: (256, 1024), ..full },
            // Outputs that leave in passes, and dimensions that differ or are no whole slabs.
            Case { dims: (256, 256), heads: (2, 2), ..base },
            Case { dims: (192, 128), heads: (2, 1), ..base },
            Case { dims: (80, 72), dtype: DType::F16, keys: Keys::Lengths, ..base },
            // Lengths that only the device knows, values behind them that are no numbers.
            Case { ragged_q: true, keys: Keys::Ragged, batch: 4, ..base },
            Case {
                padded_q: true,
                keys: Keys::Continuous,
                batch: 3,
                mask: MaskKind::Window(40, 10),
                ..narrow
            },
            // Masks whose tiles are skipped, asked in memory, or partial all; scores that are changed.
            Case { mask: MaskKind::Window(60, 0), seqlen: (300, 400), ..base },
            Case { mask: MaskKind::Document, ..base },
            Case { mask: MaskKind::Document, seqlen: (150, 1800), heads: (8, 2), ..narrow },
            Case { mask: MaskKind::Closure, score: ScoreKind::SoftcapAlibi, ..base },
            Case { mask: MaskKind::DenseFloat, score: ScoreKind::Bias, ..narrow },
            // Heads of a group in one tile.
            Case { seqlen: (9, 300), heads: (8, 2), ..base },
        ],
    );
    assert_among(
        &["m128n128q2-tma", "m192n64q2-tma", "m256n64q2-tma", "m192n96q2-tma", "m128n64q1-pair-tma"],
        &plans,
    );
}

#[test]
fn keys_in_pages_agree_with_the_reference_on_hopper() {
    let Some((fake, backend)) = emulated(9, 2) else { return };
    let base = Case { algorithm: Algorithm::Flash3, keys: Keys::Paged(16), ..causal() };
    let plans = agree_with_the_reference(
        &fake,
        &backend,
        &[
            base,
            Case { seqlen: (190, 330), keys: Keys::Paged(8), ..base },
            Case { seqlen: (250, 260), dims: (64, 64), keys: Keys::Paged(24), ..base },
            Case { seqlen: (100, 1090), keys: Keys::Paged(64), mask: MaskKind::None, heads: (1, 1), ..base },
            Case { dims: (256, 256), keys: Keys::Paged(256), heads: (2, 2), ..base },
            Case { dims: (80, 96), dtype: DType::F16, ragged_q: true, batch: 4, ..base },
            Case { seqlen: (1, 150), batch: 5, sinks: true, ..base },
            // Of 38 rows and of 1 to 8: short sequences go to another kernel.
            Case {
                algorithm: Algorithm::Auto,
                ragged_q: true,
                seqlen: (38, 300),
                batch: 9,
                heads: (8, 2),
                ..base
            },
        ],
    );
    assert!(plans.iter().all(|plan| plan.contains("-tma-paged")), "{}", plans.join("\n"));
    assert!(
        plans.last().unwrap().contains("sequences of up to 4 rows in decode tiles"),
        "{}",
        plans.join("\n")
    );
    for (page_size, what) in [(4, "pages of a multiple of 8 keys"), (12, "pages of a multiple of 8 keys")] {
        let error = errors(&backend, &Case { keys: Keys::Paged(page_size), ..base }).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
}

#[test]
fn a_decode_step_of_clusters_and_boxes_agrees_with_the_reference() {
    let Some((fake, backend)) = emulated(9, 132) else { return };
    let base = Case { seqlen: (1, 2200), heads: (8, 2), ..causal() };
    let plans = agree_with_the_reference(
        &fake,
        &backend,
        &[
            base,
            Case { keys: Keys::Paged(16), dims: (64, 64), seqlen: (1, 1100), sinks: true, ..base },
            Case { keys: Keys::Paged(64), batch: 9, seqlen: (3, 500), ..base },
            Case { keys: Keys::Lengths, batch: 17, seqlen: (1, 700), mask: MaskKind::Window(300, 0), ..base },
        ],
    );
    assert_among(&["-cluster16-boxes", "paged-cluster16", "-line2-boxes", "strided-boxes"], &plans);
}

#[test]
fn appended_rows_land_where_the_reference_puts_them() {
    let Some(fake) = Fake::build(&[]) else { return };
    let compiler = HostCompiler { folder: tempfile::tempdir().unwrap() };
    if let Err(reason) = compiler.version() {
        println!("skipped: no C++ compiler: {reason}");
        return;
    }
    let backend = fake.backend_with_compiler(compiler);
    for append in append::appends() {
        assert!(append::agrees(&backend, &append).unwrap(), "{append:?}");
    }
}
