use std::fmt::Write as _;

use omniflash_core::{
    AttentionOptions, AttentionProblem, DType, DeviceId, KvCache, Layout, Query, Swizzle, TensorMut,
    TensorRef,
};
use omniflash_gpu::plan::kernel_id;
use omniflash_kernels_hip::{Architecture, ForwardConfig};

use super::*;
use crate::offline::typical_device;

/// A shape with the sizes of dense tensors that nothing reads.
fn shape(
    batch: usize,
    (seqlen_q, seqlen_k): (usize, usize),
    heads: (usize, usize),
    dim: usize,
    dtype: DType,
) -> ProblemShape {
    let tensor = |shape: &[usize]| {
        // SAFETY: a plan reads no memory; the device makes every host access refuse.
        unsafe { TensorRef::from_raw(1 << 20, dtype, Layout::contiguous(shape).unwrap(), DeviceId::Hip(0)) }
    };
    let (q, kv) = ([batch, seqlen_q, heads.0, dim], tensor(&[batch, seqlen_k, heads.1, dim]));
    // SAFETY: as above; far from the inputs.
    let out =
        unsafe { TensorMut::from_raw(1 << 50, dtype, Layout::contiguous(&q).unwrap(), DeviceId::Hip(0)) };
    let options = AttentionOptions::new();
    let (query, kv) = (Query::padded(tensor(&q)), KvCache::dense(kv.clone(), kv));
    *AttentionProblem::new(query, kv, out, None, &options).unwrap().shape()
}

fn choose_with(
    shape: &ProblemShape,
    architecture: Architecture,
    config: AttentionConfig,
    mask_type: &str,
) -> Result<Choice> {
    let facts = typical_device(architecture);
    choose(&Request { backend: "hip:0", facts: &facts, shape, config: &config, mask_type, is_aligned: true })
}

fn tiled(choice: &Choice) -> ForwardConfig {
    match choice.kernel {
        KernelChoice::Forward(config) => config,
        KernelChoice::Naive(_) => panic!("naive"),
    }
}

/// One line for each problem: kernel, packing, section, partitions, shared memory, reason.
fn table(architecture: Architecture) -> String {
    let mut text = String::new();
    let problems: &[(&str, ProblemShape)] = &[
        ("prefill d64", shape(4, (4096, 4096), (16, 16), 64, DType::BF16)),
        ("prefill d128", shape(4, (4096, 4096), (16, 16), 128, DType::F16)),
        ("prefill d256", shape(4, (4096, 4096), (8, 8), 256, DType::BF16)),
        ("prefill f32 d64", shape(4, (1024, 1024), (16, 16), 64, DType::F32)),
        ("gqa prefill d128", shape(1, (1000, 1000), (32, 8), 128, DType::BF16)),
        ("decode 1x4k d128", shape(1, (1, 4096), (32, 8), 128, DType::BF16)),
        ("decode 1x128k d128", shape(1, (1, 131_072), (32, 8), 128, DType::BF16)),
        ("decode 64x4k d128", shape(64, (1, 4096), (32, 8), 128, DType::BF16)),
        ("decode mqa d256", shape(8, (1, 8192), (16, 1), 256, DType::BF16)),
        ("speculative 5 rows", shape(8, (5, 2048), (64, 8), 64, DType::BF16)),
        ("short keys", shape(1, (1, 128), (8, 8), 64, DType::BF16)),
    ];
    for (name, shape) in problems {
        for mask_type in ["NoMask", "Causal"] {
            let choice = choose_with(shape, architecture, AttentionConfig::default(), mask_type).unwrap();
            let config = tiled(&choice);
            writeln!(
                text,
                "{name} {mask_type}: {config} pack {} section {} shared {} | {}",
                choice.heads_per_tile,
                choice.section,
                config.shared_memory_bytes(),
                choice.reason
            )
            .unwrap();
        }
    }
    text
}

#[test]
fn plans_for_mi300x_are_these() {
    insta::assert_snapshot!(table(Architecture::Gfx942));
}

#[test]
fn plans_for_a_radeon_are_these() {
    insta::assert_snapshot!(table(Architecture::Gfx1100));
}

#[test]
fn every_default_tile_can_be_built_and_fits() {
    for architecture in Architecture::ALL {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for dim in (8..=256).step_by(8) {
                for (rows, heads) in [(1, (8, 8)), (1, (32, 4)), (7, (8, 1)), (40, (8, 8)), (4096, (8, 2))] {
                    let shape = shape(2, (rows, 4096), heads, dim, dtype);
                    for mask_type in ["NoMask", "Causal"] {
                        let choice =
                            choose_with(&shape, architecture, AttentionConfig::default(), mask_type).unwrap();
                        let config = tiled(&choice);
                        config.check().unwrap_or_else(|error| panic!("{architecture} {config}: {error}"));
                        assert!((1..=128).contains(&choice.num_partitions));
                    }
                }
            }
        }
    }
}

#[test]
fn given_partitions_are_kept_whatever_the_batch() {
    for batch in [1, 3, 64] {
        let config = AttentionConfig { num_partitions: Some(7), ..AttentionConfig::default() };
        let shape = shape(batch, (1, 4096), (8, 8), 128, DType::BF16);
        assert_eq!(choose_with(&shape, Architecture::Gfx942, config, "Causal").unwrap().num_partitions, 7);
    }
}

#[test]
fn every_field_of_the_configuration_is_honoured_or_refused_with_what_is_possible() {
    let shape = shape(4, (4096, 4096), (16, 16), 128, DType::BF16);
    let none = AttentionConfig::default();
    let honoured = AttentionConfig {
        algorithm: Algorithm::Flash2,
        block_m: Some(64),
        block_n: Some(32),
        block_k: Some(128),
        warp_m: Some(32),
        warp_n: Some(32),
        num_pipeline_stages: Some(1),
        k_group_size: Some(1),
        split_within_block: Some(false),
        ..none
    };
    let config = tiled(&choose_with(&shape, Architecture::Gfx942, honoured, "NoMask").unwrap());
    assert_eq!((config.block_m, config.block_n, config.warps, config.stages), (64, 32, 2, 1));
    let refused = [
        AttentionConfig { algorithm: Algorithm::Flash3, ..none },
        AttentionConfig { block_m: Some(0), ..none },
        AttentionConfig { block_m: Some(72), ..none },
        AttentionConfig { block_m: Some(4096), ..none },
        AttentionConfig { block_n: Some(48), ..none },
        AttentionConfig { block_n: Some(256), ..none },
        AttentionConfig { block_k: Some(32), ..none },
        AttentionConfig { warp_m: Some(16), ..none },
        AttentionConfig { warp_n: Some(16), ..none },
        AttentionConfig { num_pipeline_stages: Some(9), ..none },
        AttentionConfig { k_group_size: Some(2), ..none },
        AttentionConfig { num_partitions: Some(70_000), ..none },
        AttentionConfig { split_within_block: Some(true), ..none },
        AttentionConfig { swizzle: Some(Swizzle::B128), ..none },
        AttentionConfig { algorithm: Algorithm::Naive, block_m: Some(64), ..none },
        AttentionConfig { algorithm: Algorithm::Naive, num_partitions: Some(2), ..none },
    ];
    let errors: Vec<String> = refused
        .into_iter()
        .map(|config| choose_with(&shape, Architecture::Gfx942, config, "NoMask").unwrap_err().to_string())
        .collect();
    insta::assert_snapshot!(errors.join("\n"));
}

#[test]
fn wide_heads_are_refused_by_the_tiles_and_taken_by_the_naive_kernel() {
    let shape = shape(1, (16, 16), (1, 1), 264, DType::F16);
    let naive = AttentionConfig { algorithm: Algorithm::Naive, ..AttentionConfig::default() };
    for architecture in Architecture::ALL {
        assert!(choose_with(&shape, architecture, AttentionConfig::default(), "NoMask").is_err());
        assert!(choose_with(&shape, architecture, naive, "NoMask").is_ok());
    }
}

#[test]
fn kernel_ids_name_everything_chosen() {
    let shape = shape(1, (4096, 4096), (8, 8), 128, DType::BF16);
    let default = AttentionConfig::default();
    let choice = choose_with(&shape, Architecture::Gfx1201, default, "And<Chunked, Causal>").unwrap();
    let id = kernel_id(&choice.kernel, "gfx1201", "And<Chunked, Causal>", "Then<Softcap, source0::Tilt>");
    assert_eq!(id, "fwd-gfx1201-bf16-d128-m128n32w8s2-strided-and(chunked,causal)-then(softcap,tilt)");
}
