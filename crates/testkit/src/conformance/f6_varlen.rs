//! F6: sequences of different lengths, padded or one after the other, with keys kept in every form.

use omniflash_core::{DType, Mask};

use crate::spec::{Axes, Fill, MaskSpec, Spec};

const DTYPES: [DType; 3] = [DType::BF16, DType::F16, DType::F32];

pub(super) fn cases() -> Vec<Spec> {
    let mut cases = Vec::new();
    cases.extend(every_form());
    cases.extend(lengths());
    cases.extend(many());
    cases
}

fn base(name: impl AsRef<str>, dtype: DType) -> Spec {
    Spec::new(format!("f6/{}_{dtype}", name.as_ref())).dtype(dtype).heads(4, 2).dim(64)
}

/// Both forms of queries with all forms of keys.
fn every_form() -> Vec<Spec> {
    let q_lengths = [7, 0, 32, 1, 25];
    let kv_lengths = [50, 9, 32, 120, 0];
    let masks: [(&str, MaskSpec); 3] = [
        ("full", Mask::None.into()),
        ("causal", Mask::Causal.into()),
        ("window", Mask::SlidingWindow { left: 20, right: 4 }.into()),
    ];
    let mut cases = Vec::new();
    for (i, (mask_name, mask)) in masks.iter().enumerate() {
        for (j, query) in ["padded", "ragged"].into_iter().enumerate() {
            for (l, keys) in ["padded", "ragged", "continuous", "paged"].into_iter().enumerate() {
                for dtype in DTYPES {
                    let index_dtype = [DType::I32, DType::U32][(i + j + l) % 2];
                    let spec = base(format!("{query}_{keys}_{mask_name}"), dtype).index_dtype(index_dtype);
                    let spec = match query {
                        "padded" => spec.q_padded(32, &q_lengths),
                        _ => spec.q_ragged(&q_lengths),
                    };
                    let spec = match keys {
                        "padded" => spec.k_padded(130, &kv_lengths),
                        "ragged" => spec.k_ragged(&kv_lengths),
                        "continuous" => spec.continuous(130, &kv_lengths),
                        _ => spec.paged(16, &kv_lengths),
                    };
                    cases.push(spec.mask(mask.clone()));
                }
            }
        }
    }
    cases
}

fn lengths() -> Vec<Spec> {
    let mut cases = Vec::new();
    let dense = |dtype: DType| MaskSpec::Dense { dtype, axes: Axes::FULL, fill: Fill::Random };
    for dtype in DTYPES {
        let named = |name: &str| base(name, dtype);
        cases.push(named("ones").q_ragged(&[1, 1, 1, 1]).k_ragged(&[1, 1, 1, 1]).mask(Mask::Causal));
        cases.push(named("all_empty").q_ragged(&[0, 0, 0]).k_ragged(&[0, 5, 0]));
        cases.push(named("no_keys").q_padded(12, &[12, 3]).k_padded(20, &[0, 0]).mask(Mask::Causal));
        cases.push(named("only_k_lengths").q_dense(3, 25).k_padded(70, &[70, 33, 1]).mask(Mask::Causal));
        cases.push(named("only_q_lengths").dense(3, 30, 66).q_padded(30, &[30, 2, 17]).mask(Mask::Causal));
        cases.push(named("unused_tail").q_padded(200, &[3, 1]).k_padded(300, &[5, 2]).mask(Mask::Causal));
        cases.push(named("more_queries").q_ragged(&[60, 90]).k_ragged(&[10, 55]).mask(Mask::Causal));
        cases.push(
            named("unbounded").q_ragged(&[5, 60, 2]).k_ragged(&[80, 61, 9]).unbounded().mask(Mask::Causal),
        );
        cases.push(named("one_long").q_ragged(&[1, 1, 300, 1]).k_ragged(&[1, 2, 600, 1]).mask(Mask::Causal));
        cases.push(
            named("dense_mask").q_padded(30, &[30, 12]).k_padded(80, &[41, 80]).mask(dense(DType::F32)),
        );
        cases.push(
            named("dense_mask_ragged").q_ragged(&[30, 12]).k_ragged(&[41, 80]).mask(dense(DType::Bool)),
        );
        cases.push(
            named("dense_mask_unbounded")
                .q_ragged(&[30, 12])
                .k_ragged(&[41, 80])
                .unbounded()
                .mask(dense(DType::Bool)),
        );
        cases.push(named("dense_mask_paged").q_ragged(&[30, 12]).paged(8, &[41, 80]).mask(dense(DType::F32)));
        let documents = MaskSpec::Document(vec![vec![10, 20], vec![5, 5, 5]]);
        cases.push(named("document_paged").q_ragged(&[30, 12]).paged(8, &[41, 80]).mask(documents.clone()));
        cases.push(named("document_ragged").q_padded(33, &[30, 12]).k_ragged(&[41, 80]).mask(documents));
        let start = &[3i64, -4];
        cases.push(
            named("starts").q_ragged(&[30, 12]).paged(8, &[41, 80]).mask(Mask::Causal).query_start(start),
        );
    }
    cases
}

/// Many short sequences, and one long among ones.
fn many() -> Vec<Spec> {
    let mut cases = Vec::new();
    let q_lengths: Vec<usize> = (0..1000).map(|b| (b * 7 + 3) % 5).collect();
    let kv_lengths: Vec<usize> = (0..1000).map(|b| (b * 13) % 11).collect();
    let ones = vec![1usize; 1000];
    for (i, dtype) in DTYPES.into_iter().enumerate() {
        let named = |name: &str| base(name, dtype).heads(2, 1).dim([64, 32, 128][i]);
        cases.push(named("thousand_ragged").q_ragged(&q_lengths).k_ragged(&kv_lengths).mask(Mask::Causal));
        cases.push(named("thousand_paged").q_ragged(&q_lengths).paged(4, &kv_lengths).mask(Mask::Causal));
        cases.push(named("thousand_decode").q_padded(1, &ones).continuous(12, &kv_lengths));
        let mut one_long = ones.clone();
        one_long[500] = 4000;
        cases.push(named("long_among_ones").q_padded(1, &ones).paged(64, &one_long).heads(1, 1));
    }
    cases
}
