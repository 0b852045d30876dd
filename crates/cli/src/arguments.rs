//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use omniflash::{Algorithm, DType};

use crate::bench::{Form, Group, Mode};

/// Exact attention (flash attention) on any machine: the best backend is chosen at run time.
///
/// Without a subcommand it demonstrates itself: attention on real activations and a generation over a paged cache,
/// checked against the float64 reference.
#[derive(Debug, Parser)]
#[command(name = "omniflash", version, args_conflicts_with_subcommands = true, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) demo: DemoArguments,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Compute the attention of a case file
    Attend(AttendArguments),
    /// Check a backend against the float64 reference on case files; exit code 1 when it is out of tolerance
    Verify(VerifyArguments),
    /// List backends and devices, and say why others are absent
    Info(InfoArguments),
    /// Measure; one JSON line a case, a table on a terminal
    Bench(Box<BenchArguments>),
    /// Measure which tiles of the GPU kernels are the fastest for given sizes on this machine
    Tune(TuneArguments),
    /// Draw result files: a page of charts, or tables
    Report(ReportArguments),
    /// Compiled GPU kernels: build them ahead of their first use, pack, install, list and clear them
    #[command(subcommand)]
    Kernels(KernelsCommand),
    /// Show attention at work and check it; what runs without a subcommand
    Demo(DemoArguments),
}

#[derive(Args, Debug)]
pub(crate) struct BackendArgument {
    /// auto, or a name that `omniflash info` lists: reference, cpu, cuda[:N], hip[:N]
    #[arg(long, value_name = "NAME", default_value = "auto")]
    pub(crate) backend: String,
}

#[derive(Args, Debug)]
pub(crate) struct AttendArguments {
    /// A safetensors file with q, k, v and whatever else the call has
    #[arg(value_name = "CASE")]
    pub(crate) case: PathBuf,
    /// A JSON file with mask, softmax_scale, softcap, alibi, num_partitions, config, lse
    #[arg(long, value_name = "OPTIONS")]
    pub(crate) options: Option<PathBuf>,
    /// The safetensors file to write: out, and lse if asked for
    #[arg(long, value_name = "OUT")]
    pub(crate) output: PathBuf,
    #[command(flatten)]
    pub(crate) backend: BackendArgument,
    /// Report as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct VerifyArguments {
    /// Case files
    #[arg(value_name = "CASE", required_unless_present = "self_test")]
    pub(crate) cases: Vec<PathBuf>,
    /// Check built-in cases on every device of a backend (hip, cuda, cpu, hip:1), for a report from a machine
    #[arg(long, value_name = "NAME", conflicts_with_all = ["cases", "options", "backend"])]
    pub(crate) self_test: Option<String>,
    /// A JSON file with the options of all cases
    #[arg(long, value_name = "OPTIONS")]
    pub(crate) options: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) backend: BackendArgument,
    /// Report as JSON, one line a case; of a self-test one line in all
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct InfoArguments {
    /// Report as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug, Default)]
pub(crate) struct DemoArguments {
    /// Smaller sizes
    #[arg(long)]
    pub(crate) quick: bool,
    /// auto, or a name that `omniflash info` lists
    #[arg(long, value_name = "NAME", default_value = "auto")]
    pub(crate) backend: String,
    /// Report as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KernelsCommand {
    /// Build the kernels of common calls into the cache; needs no GPU, but NVRTC or nvcc
    Build(BuildArguments),
    /// Pack a folder of compiled kernels of one architecture into one file, for machines without a compiler
    Pack(PackArguments),
    /// Copy packs into the cache, after a look at every byte
    Install(InstallArguments),
    /// List the kernels and packs in the cache
    List(ListArguments),
    /// Remove the kernels and packs in the cache
    Clear(ClearArguments),
}

#[derive(Args, Debug)]
pub(crate) struct BuildArguments {
    /// Architectures such as sm_90 [default: those of the GPUs here]
    #[arg(long, value_name = "ARCH", value_delimiter = ',')]
    pub(crate) arch: Vec<String>,
    /// Types of q, k and v
    #[arg(long, value_name = "DTYPE", value_delimiter = ',', default_value = "bf16,f16", value_parser = float_dtype)]
    pub(crate) dtype: Vec<DType>,
    /// head_dims, multiples of 8 up to 256
    #[arg(long, value_name = "D", value_delimiter = ',', default_value = "64,128", value_parser = head_dim)]
    pub(crate) head_dim: Vec<usize>,
}

#[derive(Args, Debug)]
pub(crate) struct PackArguments {
    /// A folder that `cargo xtask kernels` has filled: target/kernels/cuda/sm_90a
    #[arg(value_name = "FOLDER")]
    pub(crate) folder: PathBuf,
    /// The architecture of its kernels, such as sm_90a or gfx942
    #[arg(long, value_name = "ARCH")]
    pub(crate) arch: String,
    /// The pack to write; its name ends in .kernels
    #[arg(long, value_name = "FILE", value_parser = pack_path)]
    pub(crate) output: PathBuf,
}

#[derive(Args, Debug)]
pub(crate) struct InstallArguments {
    /// Packs, one an architecture
    #[arg(value_name = "FILES", required = true)]
    pub(crate) files: Vec<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct ListArguments {
    /// Report as JSON, one line a kernel
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct ClearArguments {
    /// Really remove them
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Args, Debug)]
pub(crate) struct ReportArguments {
    /// JSON lines of `omniflash bench`, of the peers' scripts, of `omniflash verify --json` and of `cargo xtask kernels
    /// VENDOR --record`
    #[arg(value_name = "FILES")]
    pub(crate) files: Vec<PathBuf>,
    /// The HTML page to write, which needs nothing beside itself; without it, tables are printed
    #[arg(long, value_name = "HTML")]
    pub(crate) out: Option<PathBuf>,
    /// Write the generated parts of this README instead: FILES as tables [default: benches/results beside it] and
    /// charts, and what each backend supports
    #[arg(long, value_name = "README", conflicts_with = "out")]
    pub(crate) readme: Option<PathBuf>,
    /// Only say whether the README is current
    #[arg(long, requires = "readme")]
    pub(crate) check: bool,
}

#[derive(Args, Debug)]
pub(crate) struct BenchArguments {
    /// What to measure; default all
    #[arg(value_name = "GROUP")]
    pub(crate) groups: Vec<Group>,
    /// Only cases whose name contains this
    #[arg(long, value_name = "TEXT")]
    pub(crate) case: Option<String>,
    /// Types of q, k and v [default: bf16; f32 for a single case]
    #[arg(long, value_name = "DTYPE", value_delimiter = ',', value_parser = float_dtype)]
    pub(crate) dtype: Vec<DType>,
    /// The family of kernels: auto, flash3, flash2 or naive; its lines are those of a system of its own
    #[arg(long, value_name = "NAME", default_value = "auto")]
    pub(crate) algorithm: Algorithm,
    /// Threads that compute on a CPU [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(crate) threads: Option<u16>,
    /// Seconds to spend on each case [default: 1, quick 0.2]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) budget: Option<f64>,
    /// What a GPU does before each burst of calls that are timed [default: cool]
    #[arg(long, value_enum)]
    pub(crate) mode: Option<Mode>,
    /// Seconds that all of it should take: cuts the budgets of cases, and of the peers, to a few calls if need be
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) time_limit: Option<f64>,
    /// Fewer and smaller cases
    #[arg(long)]
    pub(crate) quick: bool,
    /// Backends: all but the reference, auto for the best, or names that `omniflash info` lists
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_value = "all")]
    pub(crate) backend: Vec<String>,
    /// Append the JSON lines to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// At the end draw all of that file as an HTML page, as `omniflash report` does
    #[arg(long, value_name = "HTML", requires = "out")]
    pub(crate) page: Option<PathBuf>,
    /// The JSON lines of an earlier run; exit code 1 when a case is slower than it was
    #[arg(long, value_name = "FILE")]
    pub(crate) compare: Option<PathBuf>,
    /// How many percent slower is slower
    #[arg(long, value_name = "PERCENT", default_value = "10", requires = "compare", value_parser = percent)]
    pub(crate) threshold: f64,
    /// Also time other systems in turns with ours, by the scripts in benches/peers; says which are absent
    #[arg(long)]
    pub(crate) peers: bool,
    /// Only these of the peers, by the names that they have in results
    #[arg(long, value_name = "NAME", value_delimiter = ',', requires = "peers")]
    pub(crate) systems: Vec<String>,
    /// The Python that has the peers' packages [default: OMNIFLASH_PYTHON, then python3]
    #[arg(long, value_name = "PATH", requires = "peers")]
    pub(crate) python: Option<PathBuf>,
    /// JSON lines also on a terminal
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) single: SingleCaseArguments,
}

#[derive(Args, Debug)]
pub(crate) struct TuneArguments {
    /// Cases, named as `omniflash bench` names them: B4_S4096_H16_16_D128_causal [default: four common ones]
    #[arg(value_name = "CASE")]
    pub(crate) cases: Vec<String>,
    /// Types of q, k and v
    #[arg(long, value_name = "DTYPE", value_delimiter = ',', default_value = "bf16", value_parser = float_dtype)]
    pub(crate) dtype: Vec<DType>,
    #[command(flatten)]
    pub(crate) backend: BackendArgument,
    /// Seconds to spend on each configuration
    #[arg(long, value_name = "SECONDS", default_value = "0.3", value_parser = seconds)]
    pub(crate) budget: f64,
    /// Keep the fastest in the user's cache, for later plans of the same sizes on such a device
    #[arg(long)]
    pub(crate) store: bool,
    /// JSON lines also on a terminal
    #[arg(long)]
    pub(crate) json: bool,
}

impl BenchArguments {
    /// What to spend on each case.
    pub(crate) fn budget(&self) -> Duration {
        Duration::from_secs_f64(self.budget.unwrap_or(if self.quick { 0.2 } else { 1.0 }))
    }
}

/// One case, answered with one JSON line of its samples and its first outputs, for scripts that compare systems.
#[derive(Args, Clone, Copy, Debug)]
#[group(id = "single", multiple = true, conflicts_with_all = ["groups", "case", "quick", "out", "compare", "peers", "time_limit"])]
pub(crate) struct SingleCaseArguments {
    /// One case only, described by the next seven options: its batch. Answers one line of samples and first outputs
    #[arg(long = "b", value_name = "B", requires_all = ["hq", "hkv", "sq", "skv", "d", "causal"])]
    pub(crate) b: Option<usize>,
    /// Query heads
    #[arg(long, value_name = "H", requires = "b")]
    pub(crate) hq: Option<usize>,
    /// Key and value heads
    #[arg(long, value_name = "H", requires = "b")]
    pub(crate) hkv: Option<usize>,
    /// Query rows
    #[arg(long, value_name = "S", requires = "b")]
    pub(crate) sq: Option<usize>,
    /// Keys
    #[arg(long, value_name = "S", requires = "b")]
    pub(crate) skv: Option<usize>,
    /// head_dim
    #[arg(long, value_name = "D", requires = "b")]
    pub(crate) d: Option<usize>,
    /// 1 for causal, 0 for none
    #[arg(long, value_name = "0|1", requires = "b", value_parser = clap::value_parser!(u8).range(0..=1))]
    pub(crate) causal: Option<u8>,
    /// A mask or a form of the batch in place of --causal, as names of cases end: window1024, page16, densecausal, or ragged
    #[arg(long, value_name = "FORM", requires = "b", value_parser = form)]
    pub(crate) form: Option<Form>,
}

fn form(text: &str) -> Result<Form, String> {
    Form::parse(text).ok_or_else(|| {
        "expected full, causal, window1024, chunked1024, prefix1024, document1024, densecausal, closurecausal, softcap, \
         alibicausal, bias, page16, page16_mixed, page16_causal or ragged"
            .into()
    })
}

fn float_dtype(name: &str) -> Result<DType, String> {
    name.parse::<DType>()
        .ok()
        .filter(|dtype| dtype.is_float())
        .ok_or_else(|| "expected f32, f16 or bf16".into())
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("expected seconds from 0 to 3600".into()),
    }
}

fn head_dim(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(dim) if (8..=256).contains(&dim) && dim % 8 == 0 => Ok(dim),
        _ => Err("expected a multiple of 8 up to 256".into()),
    }
}

/// A store knows packs by the end of their names.
fn pack_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match path.extension().is_some_and(|extension| extension == "kernels") {
        true => Ok(path),
        false => Err("expected a name that ends in .kernels".into()),
    }
}

fn percent(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(percent) if (0.0..=1000.0).contains(&percent) => Ok(percent),
        _ => Err("expected percent from 0 to 1000".into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
