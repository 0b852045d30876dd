//! `cargo xtask kernels hip`.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, bail};
use omniflash_device::parameters::{
    AttentionParameters, KvAppendParameters, PackMaskParameters, VerifyParameters,
};
use omniflash_kernel_store::prebuilt_name;
use omniflash_kernels_hip::{Architecture, COMPILER_OPTIONS, Instance, Manifest};

use super::Options;
use super::record::{Record, Records};
use crate::codegen::workspace_root;

/// The metadata's version in code objects of version 5.
const METADATA_VERSION: [u32; 2] = [1, 2];

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let tasks = tasks(options)?;
    let output = options.output.clone().unwrap_or_else(|| workspace_root().join("target/kernels/hip"));
    let records = Records::create(options.record.as_deref())?;
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    let twins = Twins::default();
    let jobs = options.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, Into::into));
    println_row("arch", ["vgpr", "sspill", "scratch", "lds", "object"], "kernel");
    std::thread::scope(|scope| {
        for _ in 0..jobs.min(tasks.len()) {
            scope.spawn(|| {
                while let Some((architecture, instance)) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let problems = build(*architecture, instance, &output, options.check, &records, &twins)
                        .unwrap_or_else(|error| vec![format!("{error:#}")]);
                    let name = format!("{architecture} {}", instance.id);
                    let problems = problems.into_iter().map(|problem| format!("{name}: {problem}"));
                    failures.lock().expect("no thread panics while it holds the list").extend(problems);
                }
            });
        }
    });
    let failures = failures.into_inner().expect("no thread panics while it holds the list");
    if failures.is_empty() {
        return Ok(());
    }
    bail!("{} gates of {} kernels fail:\n{}", failures.len(), tasks.len(), failures.join("\n"));
}

fn tasks(options: &Options) -> anyhow::Result<Vec<(Architecture, Instance)>> {
    let chosen: Vec<Architecture> = if options.architectures.is_empty() {
        Architecture::ALL.to_vec()
    } else {
        options.architectures.iter().map(|name| name.parse()).collect::<Result<_, _>>()?
    };
    let manifest = Manifest::load()?;
    let mut tasks = Vec::new();
    for (turn, &architecture) in chosen.iter().enumerate() {
        let instances = manifest.instances(architecture)?.into_iter().enumerate();
        let wanted = instances.filter(|(index, instance)| {
            options.keeps(*index, turn, chosen.len()) && instance.id.contains(&options.filter)
        });
        tasks.extend(wanted.map(|(_, instance)| (architecture, instance)));
    }
    if tasks.is_empty() {
        bail!("no kernel has an id with {:?}", options.filter);
    }
    Ok(tasks)
}

/// Compiles one kernel; what its gates say.
fn build(
    architecture: Architecture,
    instance: &Instance,
    output: &Path,
    check: bool,
    records: &Records,
    twins: &Twins,
) -> anyhow::Result<Vec<String>> {
    let folder = output.join(architecture.name());
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let text = instance.unit.source();
    let source = folder.join(format!("{}.hip", instance.id));
    // The name by which the kernel store finds it, and no other version of it.
    let object = folder.join(prebuilt_name(&instance.id, architecture.name(), &text, "co"));
    fs::write(&source, text).with_context(|| format!("writing {}", source.display()))?;
    let compiled = Command::new("clang-22")
        .args(COMPILER_OPTIONS)
        .arg(format!("--offload-arch={architecture}"))
        .arg("-o")
        .args([&object, &source])
        .output()
        .context("starting clang-22; Debian has it as clang-22, lld-22 and llvm-22")?;
    let log = String::from_utf8_lossy(&compiled.stderr).into_owned();
    if !compiled.status.success() {
        bail!("does not compile:\n{log}");
    }
    let notes = Notes::parse(&tool("llvm-readobj-22", "--notes", &object)?)?;
    let disassembled = tool("llvm-objdump-22", "-d", &object)?;
    let mut problems = problems(architecture, instance, &notes, &disassembled);
    problems.extend(twins.difference(architecture, &instance.id, &disassembled));
    problems.extend(log.lines().filter(|line| line.contains("warning")).map(|line| line.trim().to_owned()));
    let columns =
        [notes.registers, notes.scalar_spills, notes.scratch_bytes].map(|number| number.to_string());
    let [registers, spills, scratch] = &columns;
    let shared_bytes = notes.shared_bytes as usize + instance.shared_memory_bytes;
    let image_bytes = fs::metadata(&object)?.len();
    let suffix = if problems.is_empty() { "" } else { "  FAILS" };
    println_row(
        architecture.name(),
        [registers, spills, scratch, &shared_bytes.to_string(), &image_bytes.to_string()],
        &format!("{}{suffix}", instance.id),
    );
    records.add(&Record {
        kernel: &instance.id,
        arch: architecture.name(),
        threads: instance.block_threads,
        registers: notes.registers,
        spilled_bytes: notes.scratch_bytes,
        shared_bytes,
        image_bytes,
    })?;
    fs::remove_file(&source)?;
    if check {
        fs::remove_file(&object)?;
    }
    Ok(problems)
}

/// The two processors of RDNA4 run the same machine code, which the tests build on: they compile for one.
#[derive(Default)]
struct Twins {
    /// The code of whichever was compiled first, by the kernel's id.
    first: Mutex<HashMap<String, String>>,
}

impl Twins {
    /// Complains when the other processor's code of a kernel is not the same.
    fn difference(&self, architecture: Architecture, id: &str, disassembled: &str) -> Option<String> {
        if !matches!(architecture, Architecture::Gfx1200 | Architecture::Gfx1201) {
            return None;
        }
        let (_, code) = disassembled.split_once("Disassembly of section")?;
        let mut first = self.first.lock().expect("no thread panics while it holds the code");
        match first.remove(id) {
            Some(other) if other != code => Some("gfx1200 and gfx1201 have different machine code".into()),
            Some(_) => None,
            None => {
                first.insert(id.to_owned(), code.to_owned());
                None
            }
        }
    }
}

pub(crate) fn tool(name: &str, option: &str, object: &Path) -> anyhow::Result<String> {
    let output = Command::new(name).arg(option).arg(object).output();
    let output = output.with_context(|| format!("starting {name}; Debian has it in llvm-22"))?;
    if !output.status.success() {
        bail!("{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What the metadata of a code object with one kernel says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Notes {
    /// Vector registers, accumulators among them.
    pub(crate) registers: u32,
    /// Scalars kept in lanes of vector registers.
    scalar_spills: u32,
    /// Private memory of a thread: registers that went to memory.
    scratch_bytes: u32,
    shared_bytes: u32,
    argument_bytes: u32,
    workgroup_size: u32,
    version: [u32; 2],
    has_hidden_arguments: bool,
}

impl Notes {
    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        let number = |key: &str| {
            let line = text.lines().find_map(|line| line.trim_start_matches([' ', '-']).strip_prefix(key));
            let value = line.with_context(|| format!("the notes name no {key}"))?;
            value.trim().parse::<u32>().with_context(|| format!("{key}{value}"))
        };
        let mut version = text.lines().skip_while(|line| !line.starts_with("amdhsa.version:")).skip(1);
        let mut next = || {
            let line = version.next().context("the notes name no version")?;
            line.trim().trim_start_matches("- ").parse::<u32>().context("a version is a number")
        };
        Ok(Notes {
            version: [next()?, next()?],
            registers: number(".vgpr_count:")?,
            scalar_spills: number(".sgpr_spill_count:")?,
            scratch_bytes: number(".private_segment_fixed_size:")?,
            shared_bytes: number(".group_segment_fixed_size:")?,
            argument_bytes: number(".kernarg_segment_size:")?,
            workgroup_size: number(".max_flat_workgroup_size:")?,
            has_hidden_arguments: text.contains("hidden_"),
        })
    }
}

/// What the gates say.
fn problems(
    architecture: Architecture,
    instance: &Instance,
    notes: &Notes,
    disassembled: &str,
) -> Vec<String> {
    let mut problems = Vec::new();
    let mut expect = |holds: bool, problem: String| {
        if !holds {
            problems.push(problem);
        }
    };
    // Not the bytes alone: clang keeps the slot of a scalar that ends in a lane, and no instruction uses it.
    let moves = ["scratch_", "buffer_load", "buffer_store"].iter().any(|name| disassembled.contains(name));
    expect(!moves, format!("registers go to memory, {} bytes of a thread", notes.scratch_bytes));
    let registers = architecture.registers(instance.block_threads);
    expect(notes.registers <= registers, format!("{} registers, {registers} are there", notes.registers));
    let shared = notes.shared_bytes as usize + instance.shared_memory_bytes;
    expect(shared <= architecture.shared_memory(), format!("{shared} bytes of shared memory"));
    expect(notes.version == METADATA_VERSION, format!("metadata of version {:?}", notes.version));
    expect(
        notes.workgroup_size == instance.block_threads,
        format!("made for blocks of {} threads", notes.workgroup_size),
    );
    let (least, exact) = match instance.unit.entry {
        "omniflash_verify_page_table" => (size_of::<VerifyParameters>(), true),
        "omniflash_kv_append" => (size_of::<KvAppendParameters>(), true),
        "omniflash_combine" => (size_of::<AttentionParameters>(), true),
        "omniflash_pack_mask" => (size_of::<AttentionParameters>() + size_of::<PackMaskParameters>(), true),
        // Functors follow, aligned to 16 bytes.
        _ => (size_of::<AttentionParameters>().next_multiple_of(16) + 32, false),
    };
    let bytes = notes.argument_bytes as usize;
    expect(
        !notes.has_hidden_arguments && if exact { bytes == least } else { bytes >= least },
        format!("{bytes} bytes of arguments, {least} are passed"),
    );
    let has_matrix = ["v_mfma_", "v_wmma_"].iter().any(|name| disassembled.contains(name));
    expect(
        has_matrix == instance.uses_matrix_cores,
        if has_matrix { "matrix instructions where none are expected" } else { "no matrix instructions" }
            .into(),
    );
    expect(disassembled.contains(instance.unit.entry), format!("no entry {}", instance.unit.entry));
    problems
}

#[allow(clippy::print_stdout)] // the table is the task's result
fn println_row(architecture: &str, numbers: [&str; 5], id: &str) {
    let [registers, spills, scratch, shared, bytes] = numbers;
    println!("{architecture:<8} {registers:>5} {spills:>6} {scratch:>8} {shared:>7} {bytes:>7}  {id}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_of_a_code_object_are_read() {
        let text = "amdhsa.kernels:\n  - .agpr_count:     0\n    .group_segment_fixed_size: 512\n    \
                    .kernarg_segment_size: 384\n    .max_flat_workgroup_size: 256\n    \
                    .private_segment_fixed_size: 16\n    .sgpr_spill_count: 3\n    .vgpr_count:     128\n\
                    amdhsa.target:   amdgcn-amd-amdhsa--gfx942\namdhsa.version:\n  - 1\n  - 2\n...\n";
        let expected = Notes {
            registers: 128,
            scalar_spills: 3,
            scratch_bytes: 16,
            shared_bytes: 512,
            argument_bytes: 384,
            workgroup_size: 256,
            version: [1, 2],
            has_hidden_arguments: false,
        };
        assert_eq!(Notes::parse(text).unwrap(), expected);
        assert!(Notes::parse("nothing").is_err());
    }
}
