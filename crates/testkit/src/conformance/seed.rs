//! The cases of the seed's own tests, in our words: depth is head_dim, its materialized mask a dense float mask, its
//! continuous cache and ragged forms ours. Inputs are signed normals here; scale 0.125 for dense cases, as there.
//! Long ones keep their lengths and lose heads.

use omniflash_core::{DType, Mask, ScoreMod};

use crate::spec::{Axes, Fill, MaskSpec, Spec};

pub(super) fn cases() -> Vec<Spec> {
    let mut cases = Vec::new();
    cases.extend(materialized());
    cases.extend(causal());
    cases.extend(chunked());
    cases.extend(caches());
    cases.extend(host());
    cases
}

fn base(name: impl AsRef<str>, dtype: DType) -> Spec {
    Spec::new(format!("seed/{}_{dtype}", name.as_ref())).dtype(dtype)
}

/// A mask tensor of rank 3 or 4 that is added: mostly finite, as in the seed's tests.
fn added(rank: usize, dtype: DType) -> MaskSpec {
    fn fill(batch: usize, head: usize, row: usize, key: usize) -> f32 {
        if (batch + head + row + key).is_multiple_of(3) {
            -10_000.0
        } else {
            (key as f32 - row as f32 + head as f32) / 64.0
        }
    }
    let axes = if rank == 3 { Axes::RANK_3 } else { Axes::FULL };
    MaskSpec::Dense { dtype, axes, fill: Fill::Of(fill) }
}

/// test_flash_attention.mojo: dense with a mask tensor.
fn materialized() -> Vec<Spec> {
    use DType::{BF16, F32};
    let mut cases = Vec::new();
    // (q dtype, mask dtype, rank, heads, key heads, queries, keys)
    let prefill: [(DType, DType, usize, usize, usize, usize, usize); 20] = [
        (F32, F32, 4, 2, 2, 512, 512),
        (F32, F32, 3, 3, 3, 14, 14),
        (F32, F32, 3, 1, 1, 178, 178),
        (BF16, BF16, 4, 1, 1, 128, 128),
        (BF16, F32, 4, 1, 1, 384, 384),
        (BF16, F32, 3, 3, 3, 256, 256),
        (BF16, F32, 4, 3, 1, 512, 512),
        (BF16, F32, 4, 3, 1, 64, 64),
        (BF16, BF16, 4, 3, 1, 102, 102),
        (BF16, F32, 3, 1, 1, 14, 14),
        (BF16, BF16, 3, 1, 1, 528, 528),
        (BF16, BF16, 4, 1, 1, 128, 64),
        (BF16, F32, 4, 3, 3, 256, 128),
        (BF16, F32, 3, 3, 1, 1024, 100),
        (F32, F32, 4, 3, 1, 214, 300),
        (F32, F32, 3, 2, 2, 512, 1024),
        (F32, F32, 3, 32, 10, 12, 8),
        (F32, F32, 4, 3, 3, 14, 18),
        (F32, F32, 4, 3, 3, 15, 18),
        (F32, F32, 3, 3, 3, 119, 200),
    ];
    for (i, (dtype, mask, rank, heads, kv_heads, seqlen_q, seqlen_k)) in prefill.into_iter().enumerate() {
        let heads = kv_heads * (heads / kv_heads);
        let dim = [64, 128, 80][i % 3];
        cases.push(
            base(format!("prefill_S{seqlen_q}_{seqlen_k}_H{heads}_{kv_heads}_D{dim}_r{rank}_{mask}"), dtype)
                .heads(heads, kv_heads)
                .dim(dim)
                .dense(1, seqlen_q, seqlen_k)
                .softmax_scale(0.125)
                .mask(added(rank, mask)),
        );
    }
    let odd = base("prefill_S111_121_D127", F32).dim(127).dense(1, 111, 121);
    cases.push(odd.softmax_scale(0.125).mask(added(3, F32)));
    // Decoding; the number of partitions is swept in f7.
    for (rank, mask, heads, kv_heads, keys) in [
        (3, F32, 1, 1, 11),
        (4, BF16, 2, 2, 523),
        (4, F32, 24, 8, 29),
        (4, F32, 32, 2, 2000),
        (3, F32, 3, 1, 208),
    ] {
        for batch in [1, 4] {
            for dtype in [BF16, F32] {
                cases.push(
                    base(format!("decode_B{batch}_H{heads}_{kv_heads}_K{keys}_r{rank}_{mask}"), dtype)
                        .heads(heads, kv_heads)
                        .dim(if keys == 2000 { 64 } else { 128 })
                        .dense(batch, 1, keys)
                        .softmax_scale(0.125)
                        .mask(added(rank, mask)),
                );
            }
        }
    }
    cases
}

/// test_mha_causal_mask.mojo.
fn causal() -> Vec<Spec> {
    let mut cases = Vec::new();
    let shapes: [(usize, usize, usize, usize); 20] = [
        (128, 128, 1, 1),
        (384, 384, 1, 1),
        (512, 512, 3, 1),
        (64, 64, 3, 1),
        (102, 102, 3, 1),
        (14, 14, 1, 1),
        (528, 528, 1, 1),
        (128, 256, 1, 1),
        (32, 77, 3, 1),
        (201, 400, 4, 1),
        (500, 1000, 2, 1),
        (201, 600, 4, 1),
        (1, 512, 32, 32),
        (1, 256, 11, 11),
        (1, 11, 1, 1),
        (1, 523, 2, 2),
        (1, 29, 24, 8),
        (1, 1208, 32, 8),
        (1, 5000, 8, 2),
        (1, 2008, 32, 2),
    ];
    for (i, (seqlen_q, seqlen_k, heads, kv_heads)) in shapes.into_iter().enumerate() {
        let (dim, dtype) = ([64, 128, 80, 256][i % 4], [DType::BF16, DType::F32][i % 2]);
        let name = format!("causal_S{seqlen_q}_{seqlen_k}_H{heads}_{kv_heads}_D{dim}");
        let spec = base(name, dtype).heads(heads, kv_heads).dim(dim).dense(1, seqlen_q, seqlen_k);
        cases.push(spec.softmax_scale(0.125).mask(Mask::Causal));
    }
    let window = Mask::SlidingWindow { left: 127, right: 0 };
    cases.push(base("window_128", DType::BF16).heads(2, 1).dim(64).dense(1, 512, 512).mask(window));
    cases
}

/// test_mha_chunked_causal_mask.mojo: chunks of 256.
fn chunked() -> Vec<Spec> {
    let mut cases = Vec::new();
    for dtype in [DType::BF16, DType::F32] {
        for (seqlen_q, seqlen_k, heads) in
            [(14, 14, 1), (128, 128, 1), (384, 384, 1), (1, 512, 32), (1, 256, 11), (1, 11, 1)]
        {
            cases.push(
                base(format!("chunked_256_S{seqlen_q}_{seqlen_k}"), dtype)
                    .heads(heads, heads)
                    .dim(128)
                    .dense(1, seqlen_q, seqlen_k)
                    .mask(Mask::ChunkedCausal { size: 256 }),
            );
        }
    }
    cases
}

/// The cache tests: continuous and paged, padded and ragged, sinks, context encoding beside token generation.
fn caches() -> Vec<Spec> {
    let mut cases = Vec::new();
    let plus = |new: &[usize], cached: &[usize]| -> Vec<usize> {
        new.iter().zip(cached).map(|(new, cached)| new + cached).collect()
    };
    let padded: [(&[usize], &[usize]); 4] =
        [(&[128, 64], &[0, 0]), (&[128, 65], &[0, 0]), (&[1, 1], &[200, 256]), (&[1, 1], &[200, 255])];
    for (i, (new, cached)) in padded.into_iter().enumerate() {
        let (room, lengths) = (new.iter().copied().max().unwrap_or(0), plus(new, cached));
        for dtype in [DType::F32, DType::BF16] {
            let named =
                |name: &str| base(format!("{name}_{i}"), dtype).heads(6, 2).dim(128).q_padded(room, new);
            cases.push(named("continuous").continuous(300, &lengths).mask(Mask::Causal));
            cases.push(named("continuous_added").continuous(300, &lengths).mask(added(4, DType::F32)));
            let alibi = ScoreMod::Alibi { slopes: None };
            cases.push(
                named("continuous_alibi").continuous(300, &lengths).mask(Mask::Causal).score_mod(alibi),
            );
        }
    }
    let ragged: [(&str, &[usize], &[usize]); 8] = [
        ("prefill", &[312, 97, 205], &[0, 0, 0]),
        ("decode", &[1, 1, 1], &[512, 700, 1023]),
        ("two", &[2], &[0]),
        ("mixed", &[100, 200, 300], &[100, 200, 300]),
        ("ones", &[1, 1, 1], &[100, 200, 300]),
        ("context_and_generation", &[50, 100, 150, 100], &[50, 100, 150, 300]),
        ("uneven", &[1, 1], &[1024, 11]),
        ("in_flight", &[50, 1, 1, 1, 90, 1, 1, 200, 1], &[0, 100, 300, 1000, 0, 480, 7, 0, 650]),
    ];
    for (name, new, cached) in ragged {
        let lengths = plus(new, cached);
        for dtype in [DType::F32, DType::BF16] {
            let named =
                |form: &str| base(format!("ragged_{form}_{name}"), dtype).heads(4, 1).dim(64).q_ragged(new);
            cases.push(named("continuous").continuous(1100, &lengths).mask(Mask::Causal));
            cases.push(named("paged_128").paged(128, &lengths).mask(Mask::Causal));
            let sinks = [-1.0, -0.5, 0.0, 0.5, 1.0];
            cases.push(named("paged_sinks").paged(64, &lengths).mask(Mask::Causal).sinks(DType::F32, &sinks));
        }
    }
    // Cross attention over a cache: rows sit at the cached length, not bottom-right.
    let cross = base("cross_over_cache", DType::F32).heads(4, 2).dim(128).q_ragged(&[10, 3]);
    cases.push(cross.paged(16, &[40, 75]).query_start(&[8, 30]).mask(Mask::Causal));
    cases
}

/// The CPU tests.
fn host() -> Vec<Spec> {
    let mut cases = Vec::new();
    // (batch, heads, key heads, queries, keys, dim, scale)
    let dense: [(usize, usize, usize, usize, usize, usize, f32); 9] = [
        (1, 8, 8, 1, 503, 128, 0.125),
        (4, 12, 4, 1, 503, 64, 0.125),
        (2, 3, 3, 128, 128, 63, 0.25),
        (8, 1, 1, 64, 64, 384, 0.25),
        (1, 1, 1, 55, 127, 128, 0.2),
        (1, 1, 1, 100, 300, 160, 0.1),
        (1, 1, 1, 100, 64, 300, 0.1),
        (5, 24, 8, 23, 57, 128, 0.25),
        (2, 2, 1, 5, 5, 64, 0.125),
    ];
    for (batch, heads, kv_heads, seqlen_q, seqlen_k, dim, scale) in dense {
        let any = if dim % 8 == 0 && dim <= 256 { "" } else { "any_" };
        cases.push(
            base(format!("host_{any}B{batch}_H{heads}_{kv_heads}_S{seqlen_q}_{seqlen_k}_D{dim}"), DType::F32)
                .heads(heads, kv_heads)
                .dim(dim)
                .dense(batch, seqlen_q, seqlen_k)
                .softmax_scale(scale)
                .mask(added(if batch == 8 { 3 } else { 4 }, DType::F32)),
        );
    }
    for keys in [1, 2, 3, 7, 8, 9, 15, 16, 17, 63, 64, 65, 126, 127] {
        cases.push(base(format!("host_any_D1_K{keys}"), DType::F32).heads(1, 1).dim(1).dense(1, 1, keys));
    }
    let sinks = base("host_sinks", DType::F32).heads(2, 2).dim(16).dense(1, 4, 8).softmax_scale(0.25);
    cases.push(sinks.sinks(DType::F32, &[0.5, 1.0]));
    let scale_0 = base("sinks_scale_0", DType::BF16).heads(2, 2).dim(128).dense(1, 8, 64).softmax_scale(0.0);
    cases.push(scale_0.sinks(DType::BF16, &[5.0, 3.0]));
    cases
}
