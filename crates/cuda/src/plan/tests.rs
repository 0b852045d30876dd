use std::fmt::Write as _;

use omniflash_core::{
    AttentionOptions, AttentionProblem, DeviceId, KvCache, Layout, Query, Swizzle, TensorMut, TensorRef,
};
use omniflash_gpu::plan::kernel_id;
use omniflash_kernels_cuda::{ForwardConfig, HopperConfig};

use super::*;

pub(crate) fn facts(compute_capability: (u32, u32)) -> DeviceFacts {
    let (multiprocessors, shared, l2) = match compute_capability {
        (9, 0) => (132, 227, 50),
        (8, 0) => (108, 163, 40),
        (8, 9) => (128, 99, 72),
        _ => (84, 99, 6),
    };
    DeviceFacts {
        ordinal: 0,
        name: "test".into(),
        compute_capability,
        memory_bytes: 80 << 30,
        multiprocessors,
        shared_memory_bytes: shared << 10,
        l2_bytes: l2 << 20,
        has_memory_pools: true,
        driver: "13.0".into(),
    }
}

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
        unsafe { TensorRef::from_raw(1 << 20, dtype, Layout::contiguous(shape).unwrap(), DeviceId::Cuda(0)) }
    };
    let (q, out) = ([batch, seqlen_q, heads.0, dim], [batch, seqlen_q, heads.0, dim]);
    let kv = tensor(&[batch, seqlen_k, heads.1, dim]);
    // SAFETY: as above; far from the inputs.
    let out =
        unsafe { TensorMut::from_raw(1 << 50, dtype, Layout::contiguous(&out).unwrap(), DeviceId::Cuda(0)) };
    let problem = AttentionProblem::new(
        Query::padded(tensor(&q)),
        KvCache::dense(kv.clone(), kv),
        out,
        None,
        &AttentionOptions::new(),
    )
    .unwrap();
    *problem.shape()
}

/// The shape of a ragged batch of queries over a dense cache.
fn ragged(batch: usize, seqlen_q: usize, total_q: usize, heads: (usize, usize), dim: usize) -> ProblemShape {
    let mut shape = shape(batch, (seqlen_q, 4096), heads, dim, DType::BF16);
    (shape.ragged_q, shape.total_q) = (true, total_q);
    shape
}

fn in_pages(mut shape: ProblemShape) -> ProblemShape {
    shape.kv_kind = KvKind::Paged;
    shape
}

fn choose_with(
    shape: &ProblemShape,
    facts: &DeviceFacts,
    config: AttentionConfig,
    mask_type: &str,
) -> Result<Choice> {
    choose_functors(shape, facts, config, (mask_type, "Identity"))
}

fn choose_functors(
    shape: &ProblemShape,
    facts: &DeviceFacts,
    config: AttentionConfig,
    (mask_type, score_mod_type): (&str, &str),
) -> Result<Choice> {
    let hopper =
        HopperFit { is_mappable: true, has_key_boxes: true, has_positive_scale: true, has_all_rows: true };
    choose(&Request {
        backend: "cuda:0",
        facts,
        shape,
        config: &config,
        mask_type,
        score_mod_type,
        is_aligned: true,
        hopper,
    })
}

fn tiled(choice: &Choice) -> ForwardConfig {
    match choice.kernel {
        KernelChoice::Forward(config) => config,
        _ => panic!("{:?}", choice.kernel),
    }
}

/// The instance, and its shared memory in bytes.
fn described(choice: &Choice) -> (String, usize) {
    match choice.kernel {
        KernelChoice::Forward(config) => (config.to_string(), config.shared_memory_bytes()),
        KernelChoice::Decode(config) => (format!("decode {config}"), config.shared_memory_bytes()),
        KernelChoice::Hopper(config) => (config.to_string(), config.shared_memory_bytes()),
        KernelChoice::Naive(_) => panic!("{choice:?}"),
    }
}

/// One line for each problem: kernel, packing, section, partitions, shared memory, reason.
fn table(capability: (u32, u32)) -> String {
    let facts = facts(capability);
    let mut text = String::new();
    let problems: &[(&str, ProblemShape)] = &[
        ("prefill d64", shape(4, (4096, 4096), (16, 16), 64, DType::BF16)),
        ("prefill d80", shape(4, (4096, 4096), (16, 16), 80, DType::BF16)),
        ("prefill d128", shape(4, (4096, 4096), (16, 16), 128, DType::F16)),
        ("prefill d192", shape(4, (4096, 4096), (16, 16), 192, DType::BF16)),
        ("prefill d256", shape(4, (4096, 4096), (8, 8), 256, DType::BF16)),
        ("prefill f32 d64", shape(4, (1024, 1024), (16, 16), 64, DType::F32)),
        ("prefill f32 d256", shape(4, (1024, 1024), (16, 16), 256, DType::F32)),
        ("gqa prefill d128", shape(1, (1000, 1000), (32, 8), 128, DType::BF16)),
        ("decode 1x4k d128", shape(1, (1, 4096), (32, 8), 128, DType::BF16)),
        ("decode 1x128k d128", shape(1, (1, 131_072), (32, 8), 128, DType::BF16)),
        ("decode 16x8k d128", shape(16, (1, 8192), (32, 8), 128, DType::BF16)),
        ("decode 64x4k d128", shape(64, (1, 4096), (32, 8), 128, DType::BF16)),
        ("decode mha d128", shape(16, (1, 4096), (32, 32), 128, DType::BF16)),
        ("decode mqa d256", shape(8, (1, 8192), (16, 1), 256, DType::BF16)),
        ("speculative 5 rows", shape(8, (5, 2048), (64, 8), 64, DType::BF16)),
        ("decode 1x1k d128", shape(1, (1, 1024), (32, 8), 128, DType::BF16)),
        ("decode wide group", shape(2, (1, 4096), (64, 1), 128, DType::BF16)),
        ("speculative 16 rows", shape(8, (16, 2048), (8, 8), 64, DType::BF16)),
        ("mixed ragged", ragged(270, 1024, 230 + 40 * 1024, (32, 8), 128)),
        ("even ragged", ragged(40, 1024, 40 * 700, (32, 8), 128)),
        ("ragged decode", ragged(64, 1, 64, (32, 8), 128)),
        ("few tiles, many keys", shape(1, (256, 65_536), (8, 8), 128, DType::BF16)),
        ("heads to pack", shape(4, (65, 4096), (32, 4), 128, DType::F16)),
        ("short keys", shape(1, (1, 128), (8, 8), 64, DType::BF16)),
    ];
    for (name, shape) in problems {
        for mask_type in ["NoMask", "Causal"] {
            let choice = choose_with(shape, &facts, AttentionConfig::default(), mask_type).unwrap();
            let (config, shared) = described(&choice);
            let Choice { heads_per_tile, section, workers, reason, .. } = choice;
            writeln!(
                text,
                "{name} {mask_type}: {config} pack {heads_per_tile} section {section} workers {workers} shared {shared} | {reason}"
            )
            .unwrap();
        }
    }
    text
}

#[test]
fn plans_for_hopper_are_these() {
    insta::assert_snapshot!(table((9, 0)));
}

#[test]
fn plans_for_ampere_are_these() {
    insta::assert_snapshot!(table((8, 0)));
}

#[test]
fn plans_for_ada_are_these() {
    insta::assert_snapshot!(table((8, 9)));
}

/// The kernel that the Hopper family takes.
fn hopper(shape: &ProblemShape, functors: (&str, &str)) -> HopperConfig {
    let choice = choose_functors(shape, &facts((9, 0)), AttentionConfig::default(), functors).unwrap();
    match choice.kernel {
        KernelChoice::Hopper(config) => config,
        kernel => panic!("{kernel:?}"),
    }
}

/// Rows and keys of its tile.
fn hopper_tile(shape: &ProblemShape, functors: (&str, &str)) -> (usize, usize) {
    let config = hopper(shape, functors);
    (config.block_m, config.block_n)
}

#[test]
fn blocks_share_copies_from_2048_keys_on_and_wide_heads_from_1024() {
    let cluster_of = |dim, length, mask_type| {
        let shape = shape(16, (length, length), (16, 16), dim, DType::BF16);
        hopper(&shape, (mask_type, "Identity")).cluster
    };
    for (dim, fewest) in [(128, 2048), (192, 2048), (256, 1024)] {
        assert_eq!((dim, cluster_of(dim, fewest, "NoMask")), (dim, 2));
        assert_eq!((dim, cluster_of(dim, fewest / 2, "NoMask")), (dim, 1));
        assert_eq!((dim, cluster_of(dim, fewest, "Causal")), (dim, 1));
    }
    assert_eq!(cluster_of(64, 4096, "NoMask"), 1);
    let long = shape(16, (4096, 4096), (16, 16), 128, DType::BF16);
    let pages = in_pages(long);
    let alone = hopper(&pages, ("NoMask", "Identity"));
    assert_eq!((alone.cluster, alone.paged), (1, true), "each lane of a warp asks for rows of its own page");
}

#[test]
fn decode_rows_of_a_mixed_batch_leave_the_hopper_family_their_long_neighbours() {
    let choose = |shape: &ProblemShape, algorithm| {
        let config = AttentionConfig { algorithm, ..AttentionConfig::default() };
        choose_with(shape, &facts((9, 0)), config, "Causal").unwrap()
    };
    // 230 decodes and 4 prefills of 1024: 19 rows on average.
    let mixed = ragged(234, 1024, 230 + 4 * 1024, (32, 8), 128);
    let choice = choose(&mixed, Algorithm::Auto);
    let short = choice.short.as_ref().unwrap();
    assert!(matches!(choice.kernel, KernelChoice::Hopper(_)), "{}", choice.reason);
    assert!(matches!(short.kernel, KernelChoice::Decode(_)), "{}", short.reason);
    assert_eq!((choice.least_q_len, choice.num_partitions), (5, 1));
    let alone = choose(&mixed, Algorithm::Flash3);
    assert_eq!((alone.short.is_none(), alone.least_q_len), (true, 0), "who asks for one family gets one");
    // Of no rows at all there is nothing to divide by, of 64 to 1024 nothing to leave.
    choose(&ragged(4, 0, 0, (32, 8), 128), Algorithm::Auto);
    assert!(choose(&ragged(64, 1024, 64 * 400, (32, 8), 128), Algorithm::Auto).short.is_none());
}

#[test]
fn documents_modified_scores_and_long_sequences_without_a_mask_take_wide_tiles() {
    let tile_of_length = |length, mask_type, score_mod_type| {
        let shape = shape(4, (length, length), (16, 16), 128, DType::BF16);
        hopper_tile(&shape, (mask_type, score_mod_type))
    };
    let tile_of = |mask_type, score_mod_type| tile_of_length(8192, mask_type, score_mod_type);
    assert_eq!(tile_of("NoMask", "Identity"), (128, 128));
    assert_eq!(tile_of_length(768, "NoMask", "Identity"), (192, 64));
    assert_eq!(tile_of("Causal", "Identity"), (192, 64));
    assert_eq!(tile_of("And<Causal, Document>", "Identity"), (128, 128));
    assert_eq!(tile_of("And<Causal, PackedDocument>", "Identity"), (192, 64));
    assert_eq!(tile_of("NoMask", "Softcap"), (128, 128));
    assert_eq!(tile_of("PackedAdditive<float>", "Identity"), (128, 128));
    assert_eq!(tile_of("Causal", "Alibi"), (192, 64));
}

#[test]
fn short_rows_of_narrow_heads_take_four_warpgroups_where_tiles_are_full() {
    let tile_of = |length, mask_type, score_mod_type| {
        let shape = shape(16, (length, length), (32, 32), 64, DType::BF16);
        hopper_tile(&shape, (mask_type, score_mod_type))
    };
    assert_eq!(tile_of(512, "NoMask", "Identity"), (256, 64));
    assert_eq!(tile_of(2048, "NoMask", "Identity"), (192, 128));
    assert_eq!(tile_of(4096, "Causal", "Identity"), (256, 64));
    assert_eq!(tile_of(16384, "SlidingWindow", "Identity"), (256, 64));
    assert_eq!(tile_of(8192, "Causal", "Identity"), (192, 128));
    assert_eq!(tile_of(400, "Causal", "Identity"), (192, 128));
    assert_eq!(tile_of(512, "Causal", "Softcap"), (192, 128));
    assert_eq!(tile_of(512, "And<Causal, Document>", "Identity"), (192, 128));
}

/// Rows, keys, warps and stages of the portable family's tile.
fn portable_tile(
    shape: &ProblemShape,
    capability: (u32, u32),
    mask_type: &str,
) -> (usize, usize, usize, usize) {
    let config = AttentionConfig { algorithm: Algorithm::Flash2, ..AttentionConfig::default() };
    let tile = tiled(&choose_with(shape, &facts(capability), config, mask_type).unwrap());
    (tile.block_m, tile.block_n, tile.warps, tile.stages)
}

#[test]
fn warps_stand_side_by_side_where_values_are_wide_and_two_blocks_still_fit() {
    let across = |(keys, dim, dtype), capability, mask_type, config| {
        let shape = shape(16, (512, keys), (8, 8), dim, dtype);
        let config = AttentionConfig { algorithm: Algorithm::Flash2, ..config };
        let tile = tiled(&choose_with(&shape, &facts(capability), config, mask_type).unwrap());
        (tile.warps, tile.warps_across)
    };
    let none = AttentionConfig::default();
    assert_eq!(across((512, 256, DType::BF16), (9, 0), "NoMask", none), (4, 2));
    assert_eq!(
        across((512, 256, DType::BF16), (8, 9), "NoMask", none),
        (4, 1),
        "two exchange areas do not fit"
    );
    assert_eq!(across((512, 240, DType::BF16), (9, 0), "NoMask", none), (4, 1));
    assert_eq!(across((512, 256, DType::F32), (9, 0), "NoMask", none), (4, 1));
    assert_eq!(across((512, 256, DType::F16), (9, 0), "Causal", none), (4, 1));
    assert_eq!(across((513, 256, DType::F16), (9, 0), "Causal", none), (4, 2));
    let with = |config| across((4096, 256, DType::BF16), (9, 0), "NoMask", config);
    assert_eq!(with(AttentionConfig { warp_n: Some(64), ..none }), (4, 1));
    assert_eq!(with(AttentionConfig { block_m: Some(128), ..none }), (8, 2));
    assert_eq!(with(AttentionConfig { block_n: Some(32), num_pipeline_stages: Some(2), ..none }), (4, 1));
    let asked = AttentionConfig { warp_n: Some(32), num_pipeline_stages: Some(1), ..none };
    assert_eq!(across((4096, 128, DType::BF16), (9, 0), "NoMask", asked), (8, 2));
}

#[test]
fn few_keys_under_a_causal_mask_take_small_tiles_where_as_many_warps_fit() {
    let tile_of = |(keys, dim), capability, mask_type| {
        portable_tile(&shape(16, (512, keys), (32, 32), dim, DType::BF16), capability, mask_type)
    };
    for capability in [(8, 0), (9, 0)] {
        assert_eq!(tile_of((2048, 64), capability, "Causal"), (64, 64, 2, 2));
        assert_eq!(tile_of((2049, 64), capability, "Causal"), (128, 64, 4, 2));
        assert_eq!(tile_of((1024, 64), capability, "NoMask"), (128, 64, 4, 2));
        assert_eq!(tile_of((1024, 80), capability, "Causal"), (128, 64, 4, 2));
    }
    assert_eq!(tile_of((1024, 64), (8, 9), "Causal"), (128, 64, 4, 2));
    assert_eq!(tile_of((1024, 128), (9, 0), "Causal"), (64, 64, 2, 1));
    assert_eq!(tile_of((1025, 128), (9, 0), "Causal"), (128, 64, 4, 2));
    assert_eq!(tile_of((4096, 96), (9, 0), "Causal"), (128, 64, 4, 2));
}

#[test]
fn windows_take_small_tiles_whatever_the_number_of_keys() {
    let tile_of = |dim, mask_type| {
        portable_tile(&shape(1, (16_384, 16_384), (16, 16), dim, DType::BF16), (9, 0), mask_type)
    };
    for (dim, stages) in [(64, 2), (96, 1), (128, 1)] {
        assert_eq!(tile_of(dim, "SlidingWindow"), (64, 64, 2, stages));
        assert_eq!(tile_of(dim, "And<SlidingWindow, Document>"), (64, 64, 2, stages));
        assert_eq!(tile_of(dim, "Or<SlidingWindow, Document>"), (128, 64, 4, 2));
    }
    assert_eq!(tile_of(80, "SlidingWindow"), (128, 64, 4, 2));
    assert_eq!(tile_of(256, "SlidingWindow"), (64, 64, 4, 1));
}

#[test]
fn masks_in_tables_take_small_tiles_at_128_columns_over_few_keys() {
    let tile_of = |keys, dim, mask_type| {
        portable_tile(&shape(1, (keys, keys), (16, 16), dim, DType::BF16), (9, 0), mask_type)
    };
    for (keys, tile) in [(2048, (64, 64, 2, 1)), (16_384, (128, 64, 4, 2))] {
        assert_eq!(tile_of(keys, 128, "TableMask"), tile);
        assert_eq!(tile_of(keys, 128, "Or<PackedMask, Document>"), tile);
        assert_eq!(tile_of(keys, 128, "PackedAdditive<__nv_bfloat16, 2>"), tile);
        assert_eq!(tile_of(keys, 128, "DenseMask"), (128, 64, 4, 2));
        assert_eq!(tile_of(keys, 64, "TableMask"), (128, 64, 4, 2));
        assert_eq!(tile_of(keys, 256, "TableMask"), (64, 64, 4, 1));
    }
}

#[test]
fn heads_of_192_columns_take_two_blocks_where_the_memory_is_there() {
    let tile_of = |dims: (usize, usize), capability| {
        let mut shape = shape(4, (4096, 4096), (16, 16), dims.0, DType::BF16);
        shape.value_dim = dims.1;
        portable_tile(&shape, capability, "NoMask")
    };
    assert_eq!(tile_of((192, 192), (9, 0)), (64, 96, 4, 1));
    assert_eq!(tile_of((144, 136), (9, 0)), (64, 96, 4, 1));
    assert_eq!(tile_of((192, 128), (9, 0)), (128, 64, 8, 2));
    assert_eq!(tile_of((192, 192), (8, 0)), (128, 64, 8, 2));
    assert_eq!(tile_of((192, 192), (8, 9)), (128, 32, 8, 2));
}

#[test]
fn every_default_tile_can_be_built_and_fits() {
    for capability in [(8, 0), (8, 6), (8, 9), (9, 0), (12, 0)] {
        let facts = facts(capability);
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for dim in (8..=256).step_by(8) {
                for (rows, heads) in [(1, (8, 8)), (1, (32, 4)), (7, (8, 1)), (40, (8, 8)), (4096, (8, 2))] {
                    let shape = shape(2, (rows, 4096), heads, dim, dtype);
                    for mask_type in ["NoMask", "Causal"] {
                        let choice =
                            choose_with(&shape, &facts, AttentionConfig::default(), mask_type).unwrap();
                        match choice.kernel {
                            KernelChoice::Forward(config) => config.check().unwrap(),
                            KernelChoice::Decode(config) => config.check().unwrap(),
                            KernelChoice::Hopper(config) => config.check(facts.shared_memory_bytes).unwrap(),
                            KernelChoice::Naive(_) => panic!("{choice:?}"),
                        }
                        let (config, shared) = described(&choice);
                        assert!(shared <= facts.shared_memory_bytes, "{config}");
                        assert!((1..=264).contains(&choice.num_partitions));
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
        assert_eq!(choose_with(&shape, &facts((9, 0)), config, "Causal").unwrap().num_partitions, 7);
    }
}

#[test]
fn given_partitions_keep_the_kernel_and_its_cut_whatever_the_batch() {
    let config = AttentionConfig { num_partitions: Some(6), ..AttentionConfig::default() };
    let choice = |batch| {
        choose_with(&shape(batch, (1, 4096), (32, 8), 128, DType::BF16), &facts((9, 0)), config, "Causal")
            .unwrap()
    };
    assert_eq!((choice(1).workers, choice(1).num_partitions), (0, 6));
    assert_eq!(choice(1).kernel, choice(77).kernel);
}

#[test]
fn prefill_tiles_are_there_for_few_rows_when_they_are_asked_for() {
    let shape = shape(2, (1, 4096), (32, 8), 128, DType::BF16);
    let none = AttentionConfig::default();
    for config in [
        AttentionConfig { block_n: Some(64), ..none },
        AttentionConfig { split_within_block: Some(false), ..none },
    ] {
        tiled(&choose_with(&shape, &facts((9, 0)), config, "NoMask").unwrap());
    }
    let within = AttentionConfig { split_within_block: Some(true), ..none };
    let choice = choose_with(&shape, &facts((9, 0)), within, "NoMask").unwrap();
    assert!(matches!(choice.kernel, KernelChoice::Decode(_)), "warps of the decode kernel split keys");
}

#[test]
fn every_field_of_the_configuration_is_honoured_or_refused_with_what_is_possible() {
    let shape = shape(4, (4096, 4096), (16, 16), 128, DType::BF16);
    let facts = facts((9, 0));
    let none = AttentionConfig::default();
    let honoured = AttentionConfig {
        algorithm: Algorithm::Flash2,
        block_m: Some(64),
        block_n: Some(96),
        block_k: Some(128),
        warp_m: Some(16),
        warp_n: Some(96),
        num_pipeline_stages: Some(1),
        k_group_size: Some(1),
        split_within_block: Some(false),
        ..none
    };
    let config = tiled(&choose_with(&shape, &facts, honoured, "NoMask").unwrap());
    assert_eq!((config.block_m, config.block_n, config.warps, config.stages), (64, 96, 4, 1));
    let refused = [
        AttentionConfig { block_m: Some(72), ..none },
        AttentionConfig { block_n: Some(48), ..none },
        AttentionConfig { block_n: Some(256), num_pipeline_stages: Some(2), ..none },
        AttentionConfig { block_k: Some(32), ..none },
        AttentionConfig { warp_m: Some(24), ..none },
        AttentionConfig { warp_n: Some(16), ..none },
        AttentionConfig { algorithm: Algorithm::Flash2, warp_n: Some(32), ..none },
        AttentionConfig { num_pipeline_stages: Some(9), ..none },
        AttentionConfig { k_group_size: Some(2), ..none },
        AttentionConfig { num_partitions: Some(70_000), ..none },
        AttentionConfig { split_within_block: Some(true), ..none },
        AttentionConfig { swizzle: Some(Swizzle::None), ..none },
        AttentionConfig { algorithm: Algorithm::Flash3, block_m: Some(64), ..none },
        AttentionConfig { algorithm: Algorithm::Flash3, block_n: Some(48), ..none },
        AttentionConfig { algorithm: Algorithm::Flash3, block_n: Some(192), ..none },
        AttentionConfig { algorithm: Algorithm::Flash3, warp_m: Some(32), ..none },
        AttentionConfig { algorithm: Algorithm::Flash3, num_pipeline_stages: Some(3), ..none },
        AttentionConfig { algorithm: Algorithm::Flash3, num_partitions: Some(2), ..none },
        AttentionConfig { algorithm: Algorithm::Naive, block_m: Some(64), ..none },
        AttentionConfig { algorithm: Algorithm::Naive, num_partitions: Some(2), ..none },
    ];
    let errors: Vec<String> = refused
        .into_iter()
        .map(|config| choose_with(&shape, &facts, config, "NoMask").unwrap_err().to_string())
        .collect();
    insta::assert_snapshot!(errors.join("\n"));
}

#[test]
fn flash3_is_taken_only_where_it_can_be_and_says_why_not() {
    let facts = facts((9, 0));
    let long = shape(4, (4096, 4096), (16, 16), 128, DType::BF16);
    let fits =
        HopperFit { is_mappable: true, has_key_boxes: true, has_positive_scale: true, has_all_rows: true };
    let with = |shape: &ProblemShape, facts: &DeviceFacts, hopper, algorithm| {
        let config = AttentionConfig { algorithm, ..AttentionConfig::default() };
        choose(&Request {
            backend: "cuda:0",
            facts,
            shape,
            config: &config,
            mask_type: "NoMask",
            score_mod_type: "Identity",
            is_aligned: true,
            hopper,
        })
    };
    let mut lines = Vec::new();
    let f32 = shape(4, (4096, 4096), (16, 16), 128, DType::F32);
    let few = shape(4, (20, 4096), (16, 16), 128, DType::BF16);
    let pages = in_pages(long);
    for (shape, hopper) in [
        (&long, fits),
        (&f32, fits),
        (&few, fits),
        (&long, HopperFit { is_mappable: false, ..fits }),
        (&long, HopperFit { has_positive_scale: false, ..fits }),
        (&pages, fits),
        (&pages, HopperFit { is_mappable: false, ..fits }),
    ] {
        lines.push(with(shape, &facts, hopper, Algorithm::Auto).unwrap().reason);
        let forced = with(shape, &facts, hopper, Algorithm::Flash3);
        lines.push(forced.map_or_else(|error| error.to_string(), |choice| choice.reason));
    }
    let ampere = super::tests::facts((8, 0));
    lines.push(with(&long, &ampere, fits, Algorithm::Flash3).unwrap_err().to_string());
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn an_old_device_is_told_what_works_there() {
    let shape = shape(1, (16, 16), (1, 1), 64, DType::F16);
    let error = choose_with(&shape, &facts((7, 5)), AttentionConfig::default(), "NoMask").unwrap_err();
    assert!(error.to_string().contains("algorithm naive works"), "{error}");
    let naive = AttentionConfig { algorithm: Algorithm::Naive, ..AttentionConfig::default() };
    assert!(choose_with(&shape, &facts((7, 5)), naive, "NoMask").is_ok());
}

#[test]
fn wide_heads_are_refused_by_the_tiles_and_taken_by_the_naive_kernel() {
    let shape = shape(1, (16, 16), (1, 1), 264, DType::F16);
    assert!(choose_with(&shape, &facts((9, 0)), AttentionConfig::default(), "NoMask").is_err());
    let naive = AttentionConfig { algorithm: Algorithm::Naive, ..AttentionConfig::default() };
    assert!(choose_with(&shape, &facts((9, 0)), naive, "NoMask").is_ok());
}

#[test]
fn kernel_ids_name_everything_chosen() {
    let shape = shape(1, (4096, 4096), (8, 8), 128, DType::BF16);
    let facts = facts((9, 0));
    let choice = choose_with(&shape, &facts, AttentionConfig::default(), "And<Chunked, Causal>").unwrap();
    let id = |choice: &Choice| {
        kernel_id(&choice.kernel, &arch(&facts), "And<Chunked, Causal>", "Then<Softcap, source0::Tilt>")
    };
    assert_eq!(id(&choice), "fwd-sm_90a-bf16-d128-m128n128q2-tma-and(chunked,causal)-then(softcap,tilt)");
    let flash2 = AttentionConfig { algorithm: Algorithm::Flash2, ..AttentionConfig::default() };
    let choice = choose_with(&shape, &facts, flash2, "And<Chunked, Causal>").unwrap();
    assert_eq!(id(&choice), "fwd-sm_90-bf16-d128-m128n64w4s2-strided-and(chunked,causal)-then(softcap,tilt)");
}

#[test]
fn machine_code_of_older_devices_of_a_generation_is_tried_too() {
    assert_eq!(arch_family(&facts((8, 9))).collect::<Vec<_>>()[..2], ["sm_89", "sm_88"]);
    assert_eq!(arch_family(&facts((9, 0))).collect::<Vec<_>>(), ["sm_90"]);
}

#[test]
fn f32_is_computed_as_the_caller_accepts_it() {
    for (seqlen_q, dtype, asked, expected) in [
        (512, DType::F32, None, "f32-d64"),
        (512, DType::F32, Some(F32Arithmetic::Tf32x3), "f32-d64"),
        (512, DType::F32, Some(F32Arithmetic::Exact), "f32-exact-d64"),
        (512, DType::F32, Some(F32Arithmetic::Tf32), "f32-tf32-d64"),
        (1, DType::F32, Some(F32Arithmetic::Exact), "decode f32-exact-d64"),
        (512, DType::F16, Some(F32Arithmetic::Exact), "f16-d64"),
    ] {
        let config = AttentionConfig { f32_arithmetic: asked, ..AttentionConfig::default() };
        let shape = shape(1, (seqlen_q, 512), (8, 8), 64, dtype);
        let (name, _) = described(&choose_with(&shape, &facts((8, 0)), config, "NoMask").unwrap());
        assert!(name.starts_with(expected), "{name}, expected {expected}");
    }
}
