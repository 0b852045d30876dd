//! The whole way from a problem to its results with no GPU: the kernels' own source, compiled for the host by the
//! machine's C++ compiler with the instructions of a GPU emulated, launched through the fake driver.

#[path = "../../tests/support/mod.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with the tests of a GPU")]
mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use omniflash_core::{Algorithm, DType};
use omniflash_kernel_store::{CompileError, Compiler, KernelSource};
use omniflash_testkit::append;

use super::fake::Fake;
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
        let emulator = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels-cuda/tests/emulator");
        let read = |name: &str| fs::read_to_string(emulator.join(name)).expect("the emulator is in the tree");
        let (call, functor_bytes) = if source.id.starts_with("combine") {
            ("omniflash_combine(*static_cast<const AttentionParameters*>(argument_0));", "0")
        } else if source.id.starts_with("kv-append") {
            ("omniflash_kv_append(*static_cast<const KvAppendParameters*>(argument_0));", "0")
        } else if source.id.starts_with("pack-mask") {
            let call = "omniflash_pack_mask(*static_cast<const AttentionParameters*>(argument_0), \
                        *static_cast<const PackMaskParameters*>(argument_1));";
            (call, "sizeof(PackMaskParameters)")
        } else {
            let entry = match source.id.split('-').next() {
                Some("naive") => "omniflash_naive",
                Some("dec") => "omniflash_decode",
                _ => "omniflash_forward",
            };
            let call = "(*static_cast<const AttentionParameters*>(argument_0), \
                        *static_cast<const Functors<MaskType, ScoreModType>*>(argument_1));";
            (&*format!("{entry}{call}").leak(), "sizeof(Functors<MaskType, ScoreModType>)")
        };
        let text = format!(
            "{}\n{}\nstatic void call_entry() {{ using namespace omniflash; {call} }}\n\
             extern \"C\" __attribute__((visibility(\"default\"))) size_t functor_bytes() {{ using namespace omniflash; return {functor_bytes}; }}\n",
            with_emulated_instructions(source.source, &read("sm80.hpp")),
            read("grid.hpp"),
        );
        let stem = self.folder.path().join(source.id.replace(['(', ')', ','], "_"));
        let (input, output) = (stem.with_extension("cpp"), stem.with_extension("so"));
        fs::write(&input, text).unwrap();
        let run = Command::new("c++")
            .args([
                "-std=c++20",
                "-O1",
                "-w",
                "-fPIC",
                "-shared",
                "-U_FORTIFY_SOURCE",
                "-ffp-contract=off",
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

/// The source with other text in the place of the file that holds the instructions of a GPU: where the last part of
/// it was, after everything that it includes.
fn with_emulated_instructions(source: &str, emulated: &str) -> String {
    let is_part = |line: &&str| line.starts_with("#line ") && line.ends_with("\"sm80.hpp\"");
    let parts = source.lines().filter(is_part).count();
    let emulated = emulated.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n");
    let (mut text, mut is_replaced, mut seen) = (String::new(), false, 0);
    for line in source.lines() {
        if line.starts_with("#line ") {
            is_replaced = is_part(&line);
            seen += usize::from(is_replaced);
            if is_replaced && seen == parts {
                text.push_str(&emulated);
                text.push('\n');
            }
        }
        if !is_replaced {
            text.push_str(line);
            text.push('\n');
        }
    }
    if parts == 0 {
        // The grid still names its types.
        text.push_str(&emulated);
    }
    text
}

#[test]
fn kernels_launched_from_problems_agree_with_the_reference() {
    // Instructions of compute capability 9.0 are not emulated.
    let Some(fake) = Fake::build(&["MAJOR=8"]) else { return };
    let compiler = HostCompiler { folder: tempfile::tempdir().unwrap() };
    if let Err(reason) = compiler.version() {
        println!("skipped: no C++ compiler: {reason}");
        return;
    }
    let backend = fake.backend_with_compiler(compiler);
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
