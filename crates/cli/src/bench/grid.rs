//! Which cases are measured.

use clap::ValueEnum;
use omniflash::{Algorithm, Backend, DeviceId};

use super::workload::{BenchCase, Form};

/// A question that a benchmark answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Group {
    /// Whole sequences, full and causal
    Prefill,
    /// One query row over a long cache
    Decode,
    /// The same over pages, of sequences of one length and of many
    Paged,
    /// What masks and score modifications cost and save
    Masks,
    /// Sequences of different lengths in one batch
    Ragged,
    /// The first use of a mask with device source: compiled, from the cache, planned already
    Jit,
    /// What a call costs beside its arithmetic
    Overhead,
}

impl Group {
    pub(crate) const ALL: [Group; 7] = [
        Group::Prefill,
        Group::Decode,
        Group::Paged,
        Group::Masks,
        Group::Ragged,
        Group::Jit,
        Group::Overhead,
    ];

    /// As the command line and result files have it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Group::Prefill => "prefill",
            Group::Decode => "decode",
            Group::Paged => "paged",
            Group::Masks => "masks",
            Group::Ragged => "ragged",
            Group::Jit => "jit",
            Group::Overhead => "overhead",
        }
    }

    /// How many times its budget the group takes where it times steps of a call.
    pub(super) fn budgets(self) -> usize {
        match self {
            Group::Overhead => 4,
            // Three calls in all.
            _ => 0,
        }
    }

    /// Whether it can be measured of a family of kernels: steps of a call are those of whichever is chosen.
    pub(super) fn takes(self, algorithm: Algorithm) -> bool {
        algorithm == Algorithm::Auto || self.is_throughput()
    }

    /// Whether its figures are times of computing attention, which a peak bounds.
    pub(super) fn is_throughput(self) -> bool {
        !matches!(self, Group::Jit | Group::Overhead)
    }
}

/// The cases of a group, sized for the backend: seconds on a CPU, the peers' grid on a GPU. Groups that time steps of a
/// call instead have none.
pub(super) fn grid(group: Group, backend: &dyn Backend, quick: bool) -> Vec<BenchCase> {
    let is_cpu = backend.info().device == DeviceId::Cpu;
    match group {
        Group::Prefill if is_cpu => prefill(if quick { &CPU_PREFILL[..2] } else { &CPU_PREFILL }),
        Group::Prefill if quick => prefill(&GPU_PREFILL_QUICK),
        Group::Prefill => prefill(&gpu_prefill()),
        Group::Decode if is_cpu => decode(if quick { &CPU_DECODE[..1] } else { &CPU_DECODE }, Form::Full),
        Group::Decode => decode(if quick { &GPU_DECODE[..2] } else { &GPU_DECODE }, Form::Full),
        Group::Paged => {
            let shapes: &[Shape] = match (is_cpu, quick) {
                (true, _) => &CPU_DECODE[..1],
                (false, true) => &GPU_DECODE[..2],
                (false, false) => &GPU_DECODE,
            };
            let page_sizes: &[usize] = if quick { &[64] } else { &[16, 64, 128] };
            let mut cases: Vec<BenchCase> =
                page_sizes.iter().flat_map(|&page_size| decode(shapes, Form::Paged(page_size))).collect();
            let batch = if is_cpu { 4 } else { 64 };
            cases.extend(decode(&[(batch, 4096, 32, 8, 128)], Form::PagedMixed(64)));
            if !is_cpu && !quick {
                cases.extend(GPU_PAGED_PREFILL.map(|(shape, form)| case(shape, form)));
            }
            cases
        }
        Group::Masks => {
            let seqlen = match (is_cpu, quick) {
                (true, true) => 512,
                (true, false) => 2048,
                (false, _) => 8192,
            };
            let heads = if is_cpu { 4 } else { 16 };
            let mut cases: Vec<BenchCase> = Form::masks(seqlen)
                .into_iter()
                .map(|form| case((1, seqlen, heads, heads, 128), form))
                .collect();
            if !is_cpu && !quick {
                cases.extend(GPU_WINDOWS.map(|shape| case(shape, Form::Window(1024))));
            }
            cases
        }
        Group::Ragged => {
            let shapes: &[Shape] = match (is_cpu, quick) {
                (true, true) => &[(4, 512, 8, 8, 64)],
                (true, false) => &[(8, 1024, 8, 8, 64), (8, 1024, 32, 8, 128)],
                (false, true) => &[(8, 4096, 16, 16, 128)],
                (false, false) => &GPU_RAGGED,
            };
            shapes.iter().map(|&shape| case(shape, Form::Ragged)).collect()
        }
        Group::Jit | Group::Overhead => Vec::new(),
    }
}

/// Batch, seqlen, num_heads, num_kv_heads, head_dim.
type Shape = (usize, usize, usize, usize, usize);

const CPU_PREFILL: [Shape; 5] = [
    (1, 512, 8, 8, 64),
    (1, 512, 16, 16, 128),
    (1, 2048, 8, 8, 64),
    (1, 2048, 16, 16, 128),
    (1, 2048, 32, 8, 128),
];

const CPU_DECODE: [Shape; 2] = [(1, 4096, 32, 8, 128), (1, 32768, 32, 8, 128)];

const GPU_PREFILL_QUICK: [Shape; 4] =
    [(8, 2048, 32, 32, 64), (8, 2048, 16, 16, 128), (1, 16384, 16, 16, 128), (4, 4096, 32, 8, 128)];

const GPU_PAGED_PREFILL: [(Shape, Form); 8] = [
    ((4, 4096, 32, 8, 128), Form::Paged(16)),
    ((4, 4096, 32, 8, 128), Form::Paged(128)),
    ((4, 4096, 32, 32, 64), Form::Paged(16)),
    ((4, 4096, 32, 8, 128), Form::PagedCausal(16)),
    ((4, 4096, 32, 8, 128), Form::PagedCausal(64)),
    ((16, 1024, 32, 8, 128), Form::PagedCausal(16)),
    ((4, 4096, 32, 32, 64), Form::PagedCausal(16)),
    ((4, 4096, 8, 8, 256), Form::PagedCausal(16)),
];

const GPU_DECODE: [Shape; 9] = [
    (1, 4096, 32, 8, 128),
    (1, 32768, 32, 8, 128),
    (1, 131_072, 32, 8, 128),
    (16, 8192, 32, 8, 128),
    (64, 4096, 32, 8, 128),
    (128, 1024, 32, 8, 128),
    (16, 4096, 32, 32, 128),
    (16, 8192, 64, 8, 64),
    (8, 8192, 16, 1, 256),
];

/// A window that is a sixteenth of the keys.
const GPU_WINDOWS: [Shape; 3] = [(1, 16384, 32, 32, 64), (1, 16384, 16, 16, 128), (1, 16384, 8, 8, 256)];

const GPU_RAGGED: [Shape; 4] =
    [(8, 4096, 16, 16, 128), (32, 2048, 32, 8, 128), (64, 1024, 32, 32, 64), (64, 8192, 16, 16, 128)];

fn gpu_prefill() -> Vec<Shape> {
    let mut shapes = Vec::new();
    for (head_dim, heads) in [(64, 32), (128, 16), (256, 8)] {
        for seqlen in [512, 1024, 2048, 4096, 8192, 16384] {
            shapes.push((16384 / seqlen, seqlen, heads, heads, head_dim));
        }
    }
    shapes.extend([(4, 4096, 32, 8, 128), (1, 8192, 64, 8, 128)]);
    shapes.extend([(4, 4096, 16, 16, 96), (4, 4096, 16, 16, 192), (4, 4096, 16, 16, 80)]);
    shapes
}

fn prefill(shapes: &[Shape]) -> Vec<BenchCase> {
    shapes.iter().flat_map(|&shape| [case(shape, Form::Full), case(shape, Form::Causal)]).collect()
}

fn decode(shapes: &[Shape], form: Form) -> Vec<BenchCase> {
    shapes.iter().map(|&shape| BenchCase { seqlen_q: 1, ..case(shape, form) }).collect()
}

fn case((batch, seqlen, num_heads, num_kv_heads, head_dim): Shape, form: Form) -> BenchCase {
    BenchCase { batch, seqlen_q: seqlen, seqlen_k: seqlen, num_heads, num_kv_heads, head_dim, form }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::results::CaseName;

    #[test]
    fn every_case_of_every_grid_has_a_name_of_its_own_that_says_its_sizes() {
        let backend = omniflash::ReferenceBackend::new();
        for quick in [false, true] {
            let mut names = HashSet::new();
            for case in Group::ALL.iter().flat_map(|&group| grid(group, &backend, quick)) {
                let name = case.name();
                let parsed = CaseName::parse(&name).unwrap();
                assert_eq!(
                    (parsed.batch, parsed.seqlen_q, parsed.seqlen_k),
                    (case.batch, case.seqlen_q, case.seqlen_k),
                    "{name}"
                );
                assert_eq!(
                    (parsed.num_heads, parsed.num_kv_heads, parsed.head_dim),
                    (case.num_heads, case.num_kv_heads, case.head_dim)
                );
                // The masks' plain cases may repeat one of prefill.
                assert!(
                    names.insert(name.clone()) || matches!(case.form, Form::Full | Form::Causal),
                    "{name}"
                );
            }
        }
    }

    #[test]
    fn groups_have_the_names_of_the_command_line() {
        for group in Group::ALL {
            assert_eq!(group.to_possible_value().unwrap().get_name(), group.name());
        }
    }
}
