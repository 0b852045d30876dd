//! The CPU backend against the float64 reference: every instruction set of this machine, every form of input.

#![allow(clippy::unwrap_used, reason = "a test that cannot build its case has failed")]

mod behaviour;
mod case;

use case::{Case, Keys, MaskKind, ModKind, Order, Queries};
use omniflash_core::DType;
use proptest::prelude::*;

fn leaf_mask() -> impl Strategy<Value = MaskKind> {
    prop_oneof![
        3 => Just(MaskKind::None),
        4 => Just(MaskKind::Causal),
        2 => (0usize..90, 0usize..60).prop_map(|(left, right)| MaskKind::Window(left, right)),
        1 => (1usize..70).prop_map(MaskKind::Chunked),
        1 => (1usize..70).prop_map(MaskKind::ChunkedCausal),
        1 => Just(MaskKind::Prefix),
        1 => (1usize..60).prop_map(MaskKind::Runs),
        1 => Just(MaskKind::Scattered),
        2 => any::<bool>().prop_map(|per_head| MaskKind::Bools { per_head }),
        1 => Just(MaskKind::Function),
    ]
}

fn boolean_mask() -> impl Strategy<Value = MaskKind> {
    leaf_mask().prop_recursive(2, 6, 2, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| MaskKind::And(Box::new(a), Box::new(b))),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| MaskKind::Or(Box::new(a), Box::new(b))),
            inner.prop_map(|mask| MaskKind::Not(Box::new(mask))),
        ]
    })
}

fn mask() -> impl Strategy<Value = MaskKind> {
    prop_oneof![
        5 => boolean_mask(),
        1 => any::<bool>().prop_map(|per_head| MaskKind::Floats { per_head }),
        1 => (boolean_mask(), any::<bool>()).prop_map(|(mask, per_head)| {
            MaskKind::And(Box::new(mask), Box::new(MaskKind::Floats { per_head }))
        }),
    ]
}

fn modification() -> impl Strategy<Value = ModKind> {
    prop_oneof![
        (1.0f32..40.0).prop_map(ModKind::Softcap),
        any::<bool>().prop_map(|default| ModKind::Alibi { default }),
        (any::<bool>(), any::<bool>()).prop_map(|(per_head, per_row)| ModKind::Bias { per_head, per_row }),
        Just(ModKind::Function),
    ]
}

fn dim() -> impl Strategy<Value = usize> {
    prop_oneof![
        4 => prop::sample::select(vec![32usize, 64, 80, 96, 128]),
        1 => prop::sample::select(vec![192usize, 256]),
        3 => 1usize..70,
    ]
}

fn case() -> impl Strategy<Value = Case> {
    let sizes = (1usize..4, 1usize..4, 1usize..5, dim(), dim(), 0usize..150, 0usize..330);
    let forms = (
        prop::sample::select(vec![DType::F32, DType::F32, DType::F16, DType::BF16]),
        prop::sample::select(vec![Queries::Padded, Queries::PaddedWithLengths, Queries::Ragged]),
        prop_oneof![
            3 => Just(Keys::Dense),
            1 => Just(Keys::DenseWithLengths),
            1 => Just(Keys::Ragged),
            1 => Just(Keys::Continuous),
            2 => (1usize..40).prop_map(|page_size| Keys::Paged { page_size }),
        ],
        prop::sample::select(vec![Order::Bshd, Order::Bhsd, Order::Gaps]),
    );
    let options = (
        mask(),
        prop_oneof![2 => Just(Vec::new()), 1 => prop::collection::vec(modification(), 1..3)],
        prop::bool::weighted(0.3),
        prop::option::weighted(0.2, -40i32..200),
        prop::option::weighted(0.2, prop::sample::select(vec![0.0f32, -1.0, 0.4, 1.5])),
        prop::option::weighted(0.2, 1usize..5),
        prop::option::weighted(0.2, prop::sample::select(vec![24usize, 48, 96])),
    );
    (sizes, forms, options, any::<u64>()).prop_map(|(sizes, forms, options, seed)| {
        let (batch, kv_heads, group_size, head_dim, value_dim, seqlen_q, seqlen_k) = sizes;
        let (dtype, queries, keys, order) = forms;
        let (mask, mods, sinks, query_start, softmax_scale, num_partitions, block_n) = options;
        // Larger scores would lose more in f32 than the tolerance allows, whoever computes them.
        let softmax_scale = softmax_scale.map(|factor| factor / (head_dim as f32).sqrt());
        let config = omniflash_core::AttentionConfig { num_partitions, block_n, ..Default::default() };
        Case {
            dtype,
            batch,
            kv_heads,
            group_size,
            head_dim,
            value_dim,
            seqlen_q,
            seqlen_k,
            queries,
            keys,
            order,
            mask,
            mods,
            sinks,
            query_start,
            softmax_scale,
            config,
            seed,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_case_agrees_with_the_reference(case in case()) {
        case.check();
    }
}
