//! What compiled kernels take of their machines, an architecture at a time.

use serde::Serialize;

use crate::results::{KernelResources, Results};

/// The kernels of one architecture.
#[derive(Debug, Serialize)]
pub(super) struct Architecture {
    pub(super) name: String,
    pub(super) summary: String,
    pub(super) kernels: Vec<Row>,
}

#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) kernel: String,
    pub(super) threads: u32,
    pub(super) registers: u32,
    pub(super) spilled: String,
    pub(super) shared: String,
    pub(super) image: String,
    /// `behind` where registers go to memory.
    pub(super) verdict: &'static str,
}

/// The architectures of a file in its order; kernels with the most registers first.
pub(super) fn architectures(file: &Results) -> Vec<Architecture> {
    let mut names: Vec<&str> = file.kernels.iter().map(|kernel| kernel.arch.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    names
        .into_iter()
        .map(|name| {
            let mut kernels: Vec<&KernelResources> =
                file.kernels.iter().filter(|kernel| kernel.arch == name).collect();
            kernels.sort_by(|a, b| {
                (b.registers, b.spilled_bytes, &a.kernel).cmp(&(a.registers, a.spilled_bytes, &b.kernel))
            });
            Architecture {
                name: name.into(),
                summary: summary(&kernels),
                kernels: kernels.into_iter().map(row).collect(),
            }
        })
        .collect()
}

fn summary(kernels: &[&KernelResources]) -> String {
    let registers = || kernels.iter().map(|kernel| kernel.registers);
    let (fewest, most) = (registers().min().unwrap_or(0), registers().max().unwrap_or(0));
    let spilling = kernels.iter().filter(|kernel| kernel.spilled_bytes > 0).count();
    let spills = match kernels.iter().map(|kernel| kernel.spilled_bytes).max().unwrap_or(0) {
        0 => "no spills".into(),
        worst => format!("{spilling} spill, at most {worst} B a thread"),
    };
    let shared = kernels.iter().map(|kernel| kernel.shared_bytes).max().unwrap_or(0);
    let image: u64 = kernels.iter().map(|kernel| kernel.image_bytes).sum();
    format!(
        "{} kernels of {}, {fewest} to {most} registers, {spills}, shared memory up to {}",
        kernels.len(),
        kibibytes(image),
        kibibytes(shared)
    )
}

fn row(kernel: &KernelResources) -> Row {
    let spills = kernel.spilled_bytes > 0;
    Row {
        kernel: kernel.kernel.clone(),
        threads: kernel.threads,
        registers: kernel.registers,
        spilled: if spills { format!("{} B", kernel.spilled_bytes) } else { String::new() },
        shared: kibibytes(kernel.shared_bytes),
        image: kibibytes(kernel.image_bytes),
        verdict: if spills { "behind" } else { "" },
    }
}

fn kibibytes(bytes: u64) -> String {
    format!("{} KiB", bytes.div_ceil(1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_architecture_says_how_many_kernels_spill_and_lists_the_fullest_first() {
        let kernel = |kernel: &str, registers, spilled_bytes| KernelResources {
            kernel: kernel.into(),
            arch: "sm_90".into(),
            threads: 128,
            registers,
            spilled_bytes,
            shared_bytes: 2048,
            image_bytes: 1024,
        };
        let file = Results {
            kernels: vec![kernel("a", 40, 0), kernel("b", 255, 0), kernel("c", 255, 16)],
            ..Results::default()
        };
        let [found] = &architectures(&file)[..] else { panic!("one architecture") };
        assert_eq!(
            found.summary,
            "3 kernels of 3 KiB, 40 to 255 registers, 1 spill, at most 16 B a thread, shared memory up to 2 KiB"
        );
        let order: Vec<&str> = found.kernels.iter().map(|row| row.kernel.as_str()).collect();
        assert_eq!(order, ["c", "b", "a"]);
        assert_eq!((found.kernels[0].spilled.as_str(), found.kernels[1].spilled.as_str()), ("16 B", ""));
    }
}
