//! `omniflash kernels`: compiled GPU kernels, built ahead of their first use, packed, installed, listed, cleared.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use omniflash::{
    AttentionOptions, AttentionPlan, AttentionProblem, DType, DeviceId, Error, KvCache, Mask, Query,
    ReferenceBackend, Registry, Stream, Tensor,
};
use omniflash_kernel_store::{CacheEntry, DiskCache, KernelPack};
use serde_json::json;

use crate::Verdict;
use crate::arguments::{
    BuildArguments, ClearArguments, InstallArguments, KernelsCommand, ListArguments, PackArguments,
};
use crate::terminal;

/// Whose kernels have a cache: the names of its folders.
const VENDORS: [&str; 2] = ["cuda", "hip"];

pub(crate) fn run(command: &KernelsCommand) -> anyhow::Result<Verdict> {
    match command {
        KernelsCommand::Build(arguments) => build(arguments),
        KernelsCommand::Pack(arguments) => pack(arguments),
        KernelsCommand::Install(arguments) => install(arguments),
        KernelsCommand::List(arguments) => list(arguments),
        KernelsCommand::Clear(arguments) => clear(arguments),
    }
}

fn pack(arguments: &PackArguments) -> anyhow::Result<Verdict> {
    vendor_of(&arguments.arch)?;
    let pack = KernelPack::write(&arguments.folder, &arguments.arch, &arguments.output)?;
    terminal::print_line(format_args!("{}: {}", pack.path().display(), contents(&pack)))?;
    Ok(Verdict::Passed)
}

fn install(arguments: &InstallArguments) -> anyhow::Result<Verdict> {
    for file in &arguments.files {
        let pack = KernelPack::open(file)?;
        let vendor = vendor_of(pack.arch())?;
        let cache = DiskCache::of_user(vendor).context("there is no cache: OMNIFLASH_CACHE is empty")?;
        let path = pack.install(&cache)?;
        terminal::print_line(format_args!("{}: {}", path.display(), contents(&pack)))?;
    }
    Ok(Verdict::Passed)
}

/// What a pack holds.
fn contents(pack: &KernelPack) -> String {
    let noun = if pack.len() == 1 { "kernel" } else { "kernels" };
    format!("{} {noun} for {}, {}", pack.len(), pack.arch(), kibibytes(pack.bytes()))
}

/// Whose architecture it is, a name of a cache's folder.
fn vendor_of(arch: &str) -> omniflash::Result<&'static str> {
    let digits = arch.strip_prefix("sm_").map(|rest| rest.trim_end_matches('a'));
    if digits.is_some_and(|digits| digits.parse::<u32>().is_ok_and(|number| number >= 80)) {
        return Ok("cuda");
    }
    if arch.parse::<omniflash_hip::Architecture>().is_ok() {
        return Ok("hip");
    }
    Err(unknown_architecture(arch))
}

fn unknown_architecture(arch: &str) -> Error {
    let amd: Vec<&str> = omniflash_hip::Architecture::ALL.iter().map(|known| known.name()).collect();
    Error::value("--arch", arch, format!("of NVIDIA sm_90 and the like, of AMD {}", amd.join(", ")))
}

/// The caches of the vendors, and what each holds.
fn caches() -> anyhow::Result<Vec<(DiskCache, Vec<CacheEntry>)>> {
    let caches = VENDORS.iter().filter_map(|vendor| DiskCache::of_user(vendor));
    caches
        .map(|cache| {
            let entries = cache.entries();
            let entries = entries.with_context(|| format!("cannot list {}", cache.directory().display()))?;
            Ok((cache, entries))
        })
        .collect()
}

fn list(arguments: &ListArguments) -> anyhow::Result<Verdict> {
    for (cache, entries) in caches()? {
        let total: usize = entries.iter().map(|entry| entry.bytes).sum();
        list_packs(&cache, arguments)?;
        if arguments.json {
            for entry in &entries {
                terminal::print_json(&json!({
                    "id": entry.id,
                    "arch": entry.arch,
                    "compiler": entry.compiler,
                    "bytes": entry.bytes,
                    "path": entry.path.display().to_string(),
                }))?;
            }
            continue;
        }
        if !entries.is_empty() {
            let mut table = terminal::table(&["kernel", "arch", "compiler", "size"]);
            for entry in &entries {
                // The name alone: the version with all that belongs to it is long, and `--json` has it.
                let compiler = entry.compiler.split(' ').next().unwrap_or_default();
                table.add_row([entry.id.as_str(), &entry.arch, compiler, &kibibytes(entry.bytes)]);
            }
            terminal::align_numbers(&mut table, 3..4);
            terminal::print_line(table)?;
        }
        let directory = cache.directory().display();
        terminal::print_line(format_args!("{} kernels, {} in {directory}", entries.len(), kibibytes(total)))?;
    }
    Ok(Verdict::Passed)
}

/// The packs that were installed in a cache.
fn list_packs(cache: &DiskCache, arguments: &ListArguments) -> anyhow::Result<()> {
    let packs = cache.packs().with_context(|| format!("cannot list {}", cache.directory().display()))?;
    for pack in packs {
        let pack = match pack {
            Ok(pack) => pack,
            Err(error) => {
                terminal::print_note(error)?;
                continue;
            }
        };
        let path = pack.path().display();
        if arguments.json {
            terminal::print_json(&json!({
                "pack": path.to_string(),
                "arch": pack.arch(),
                "version": pack.version(),
                "kernels": pack.len(),
                "bytes": pack.bytes(),
            }))?;
        } else {
            terminal::print_line(format_args!("{path}: {}, of version {}", contents(&pack), pack.version()))?;
        }
    }
    Ok(())
}

fn clear(arguments: &ClearArguments) -> anyhow::Result<Verdict> {
    let caches = caches()?;
    if !arguments.yes {
        let held: Vec<String> = caches
            .iter()
            .map(|(cache, entries)| {
                let packs = cache.packs().map_or(0, |packs| packs.len());
                let noun = if packs == 1 { "pack" } else { "packs" };
                let and_packs = if packs > 0 { format!(" and {packs} {noun}") } else { String::new() };
                format!("{} kernels{and_packs} in {}", entries.len(), cache.directory().display())
            })
            .collect();
        anyhow::bail!("add --yes to remove {}", held.join(" and "));
    }
    for (cache, _) in caches {
        let directory = cache.directory().display();
        let removed = cache.clear().with_context(|| format!("cannot clear {directory}"))?;
        terminal::print_line(format_args!("{removed} files removed from {directory}"))?;
    }
    Ok(Verdict::Passed)
}

fn kibibytes(bytes: usize) -> String {
    format!("{} KiB", bytes.div_ceil(1024))
}

/// Makes plans for an architecture, which finds or compiles their kernels.
type Planner = Box<dyn Fn(&AttentionProblem<'_>) -> omniflash::Result<AttentionPlan>>;

/// The planner for an architecture, whoever's it is.
fn planner(arch: &str) -> omniflash::Result<Planner> {
    if arch.starts_with("sm_") {
        let planner = omniflash_cuda::OfflinePlanner::new(arch, Arc::new(omniflash_cuda::kernel_store()))?;
        return Ok(Box::new(move |problem| planner.plan(problem)));
    }
    if let Ok(architecture) = arch.parse() {
        let store = Arc::new(omniflash_hip::kernel_store());
        let planner = omniflash_hip::OfflinePlanner::new(architecture, store);
        return Ok(Box::new(move |problem| planner.plan(problem)));
    }
    Err(unknown_architecture(arch))
}

fn build(arguments: &BuildArguments) -> anyhow::Result<Verdict> {
    let architectures = match arguments.arch.is_empty() {
        true => architectures_here()?,
        false => arguments.arch.clone(),
    };
    let planners = architectures.iter().map(|arch| planner(arch)).collect::<omniflash::Result<Vec<_>>>()?;
    let begin = Instant::now();
    let requests = requests(arguments);
    let bar = terminal::progress(planners.len() * requests.len());
    let mut ids = Vec::new();
    for planner in &planners {
        for request in &requests {
            bar.set_message(request.to_string());
            let plan = request.with_problem(planner).with_context(|| request.to_string())?;
            if !ids.contains(&plan.kernel_id) {
                ids.push(plan.kernel_id);
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    ids.iter().try_for_each(terminal::print_line)?;
    terminal::print_line(format_args!(
        "{} kernels are ready, after {}",
        ids.len(),
        terminal::time(begin.elapsed())
    ))?;
    Ok(Verdict::Passed)
}

/// The architectures of the GPUs of this machine.
fn architectures_here() -> anyhow::Result<Vec<String>> {
    let registry = Registry::discover();
    let gpus =
        registry.backends().iter().map(|backend| backend.info()).filter(|info| info.device != DeviceId::Cpu);
    let mut architectures: Vec<String> = gpus.map(|info| info.arch.clone()).collect();
    architectures.sort();
    architectures.dedup();
    anyhow::ensure!(!architectures.is_empty(), "no GPU is here: name one with --arch, such as sm_90");
    Ok(architectures)
}

/// A common kind of call.
struct Request {
    dtype: DType,
    head_dim: usize,
    is_causal: bool,
    seqlen_q: usize,
    /// 0 for keys that are not in pages.
    page_size: usize,
    /// Of the keys; 0 leaves it to the plan.
    num_partitions: usize,
}

/// Prefill and decode of a model: each dtype and head_dim, full and causal, dense and from pages, split and not.
fn requests(arguments: &BuildArguments) -> Vec<Request> {
    let mut requests = Vec::new();
    for &dtype in &arguments.dtype {
        for &head_dim in &arguments.head_dim {
            let base = Request {
                dtype,
                head_dim,
                is_causal: false,
                seqlen_q: 2048,
                page_size: 0,
                num_partitions: 0,
            };
            for is_causal in [false, true] {
                requests.push(Request { is_causal, ..base });
            }
            for page_size in [0, 64] {
                for num_partitions in [1, 2] {
                    requests.push(Request {
                        seqlen_q: 1,
                        is_causal: true,
                        page_size,
                        num_partitions,
                        ..base
                    });
                }
            }
        }
    }
    requests
}

impl std::fmt::Display for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = if self.seqlen_q == 1 { "decode" } else { "prefill" };
        let mask = if self.is_causal { "causal" } else { "full" };
        let pages = if self.page_size > 0 { ", pages" } else { "" };
        write!(f, "{kind} {} head_dim {} {mask}{pages}", self.dtype, self.head_dim)
    }
}

impl Request {
    /// Plans the call; what its tensors hold is never looked at.
    fn with_problem(&self, plan: &Planner) -> omniflash::Result<AttentionPlan> {
        const SEQLEN: usize = 2048;
        let (backend, stream, heads) = (ReferenceBackend::new(), Stream::host(), 8);
        let zeros = |dtype, shape: &[usize]| Tensor::zeros(&backend, dtype, shape, &stream);
        let q = zeros(self.dtype, &[1, self.seqlen_q, heads, self.head_dim])?;
        let mut out = zeros(self.dtype, &[1, self.seqlen_q, heads, self.head_dim])?;
        let shape = match self.page_size {
            0 => [1, SEQLEN, heads, self.head_dim],
            page_size => [SEQLEN / page_size, page_size, heads, self.head_dim],
        };
        let (k, v) = (zeros(self.dtype, &shape)?, zeros(self.dtype, &shape)?);
        let table = zeros(DType::I32, &[1, SEQLEN / self.page_size.max(1)])?;
        let lengths = zeros(DType::I32, &[1])?;
        let kv = match self.page_size {
            0 => KvCache::dense(k.view(), v.view()),
            _ => KvCache::Paged {
                k: k.view(),
                v: v.view(),
                page_table: table.view(),
                lengths: lengths.view(),
                max_seqlen: None,
            },
        };
        let mut options =
            AttentionOptions::new().mask(if self.is_causal { Mask::Causal } else { Mask::None });
        if self.num_partitions > 0 {
            options = options.num_partitions(self.num_partitions);
        }
        plan(&AttentionProblem::new(Query::padded(q.view()), kv, out.view_mut(), None, &options)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_is_a_valid_problem() {
        let arguments = BuildArguments {
            arch: Vec::new(),
            dtype: vec![DType::F32, DType::BF16],
            head_dim: vec![64, 128],
        };
        let requests = requests(&arguments);
        assert_eq!(requests.len(), 2 * 2 * 6);
        let planner: Planner = Box::new(|problem| {
            assert!(problem.shape().num_heads == 8);
            Err(Error::value("planned", 1, "2"))
        });
        for request in &requests {
            let error = request.with_problem(&planner).unwrap_err().to_string();
            assert!(error.contains("planned"), "{request}: {error}");
        }
    }
}
