//! F1: every common head_dim with every type, group size and pair of lengths, full and causal.
//!
//! The whole product has thousands of members; each pair of lengths meets each head_dim, and types and groups rotate
//! so that any two of the axes meet.

use omniflash_core::{DType, Mask};

use crate::spec::Spec;

const HEAD_DIMS: [usize; 7] = [32, 64, 80, 96, 128, 192, 256];
const DTYPES: [DType; 3] = [DType::BF16, DType::F16, DType::F32];
/// (query heads, key heads): multi-head, grouped, multi-query.
const HEADS: [(usize, usize); 3] = [(2, 2), (6, 2), (3, 1)];

/// Pairs of lengths that FlashAttention's tests sweep: ones, primes, multiples of tiles and their neighbours.
const PAIRS: [(usize, usize); 17] = [
    (1, 1),
    (1, 3),
    (2, 1),
    (64, 128),
    (128, 192),
    (239, 1),
    (799, 3),
    (113, 203),
    (113, 128),
    (128, 217),
    (113, 211),
    (108, 256),
    (256, 256),
    (256, 113),
    (3, 513),
    (511, 1),
    (307, 256),
];

/// Pairs that are too large to meet everything: each meets one head_dim with every type.
const LARGE_PAIRS: [(usize, usize, usize); 9] = [
    (256, 512, 128),
    (384, 256, 64),
    (640, 128, 96),
    (512, 256, 80),
    (512, 512, 192),
    (1024, 1024, 64),
    (1023, 1024, 128),
    (1024, 1023, 32),
    (2048, 2048, 32),
];

pub(super) fn cases() -> Vec<Spec> {
    let mut cases = Vec::new();
    for (i, (seqlen_q, seqlen_k)) in PAIRS.into_iter().enumerate() {
        for (j, head_dim) in HEAD_DIMS.into_iter().enumerate() {
            for causal in [false, true] {
                // A few queries alone meet one type each: row f7 has them in all.
                let turn = if seqlen_q < 4 { 0 } else { i };
                let dtype = DTYPES[(turn + j + usize::from(causal)) % 3];
                let heads = HEADS[(i + 2 * j + usize::from(causal)) % 3];
                let batch = if seqlen_q * seqlen_k < 20_000 { 2 } else { 1 };
                cases.push(case(batch, seqlen_q, seqlen_k, heads, head_dim, dtype, causal));
            }
        }
    }
    for (i, (seqlen_q, seqlen_k, head_dim)) in LARGE_PAIRS.into_iter().enumerate() {
        for (j, dtype) in DTYPES.into_iter().enumerate() {
            let heads = if seqlen_q * seqlen_k < 200_000 { HEADS[(i + j) % 3] } else { (1, 1) };
            cases.push(case(1, seqlen_q, seqlen_k, heads, head_dim, dtype, (i + j) % 2 == 0));
        }
    }
    cases
}

fn case(
    batch: usize,
    seqlen_q: usize,
    seqlen_k: usize,
    heads: (usize, usize),
    head_dim: usize,
    dtype: DType,
    causal: bool,
) -> Spec {
    let shape = format!("B{batch}_S{seqlen_q}_{seqlen_k}_H{}_{}_D{head_dim}", heads.0, heads.1);
    let form = if causal { "causal" } else { "full" };
    Spec::new(format!("f1/{shape}_{dtype}_{form}"))
        .dtype(dtype)
        .heads(heads.0, heads.1)
        .dim(head_dim)
        .dense(batch, seqlen_q, seqlen_k)
        .mask(if causal { Mask::Causal } else { Mask::None })
}
