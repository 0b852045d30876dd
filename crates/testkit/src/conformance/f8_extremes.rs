//! F8: extreme numbers and sizes.

use omniflash_core::{DType, Mask};

use crate::spec::{Axes, Fill, Inputs, MaskSpec, ModSpec, Poke, Spec};

const DTYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

pub(super) fn cases() -> Vec<Spec> {
    let mut cases = Vec::new();
    for dtype in DTYPES {
        cases.extend(numbers(dtype));
        cases.extend(not_finite(dtype));
        cases.extend(sizes(dtype));
    }
    cases.extend(long());
    cases
}

fn base(name: impl AsRef<str>, dtype: DType) -> Spec {
    Spec::new(format!("f8/{}_{dtype}", name.as_ref())).dtype(dtype).heads(4, 2).dim(64)
}

fn bias(fill: fn(usize, usize, usize, usize) -> f32) -> ModSpec {
    ModSpec::Bias { dtype: DType::F32, axes: Axes::FULL, fill: Fill::Of(fill) }
}

fn numbers(dtype: DType) -> Vec<Spec> {
    let named = |name: &str| base(name, dtype).dense(2, 33, 90);
    let far =
        |_: usize, _: usize, row: usize, key: usize| if (row + key).is_multiple_of(2) { 1e4 } else { -1e4 };
    let low = |_: usize, _: usize, _: usize, _: usize| -1e4;
    // The fill of other libraries' float masks, which overflows where scores are turned to base 2.
    let least = |_: usize, _: usize, row: usize, key: usize| if key <= row { 0.0 } else { f32::MIN };
    let hidden_rows = |_: usize, _: usize, row: usize, _: usize| {
        if row.is_multiple_of(2) { f32::NEG_INFINITY } else { 0.0 }
    };
    vec![
        // Logits of about +-1e4: one key takes all.
        named("logits_1e4").inputs(Inputs::Scaled(40.0)).softmax_scale(30.0).extreme(),
        named("logits_1e4_causal")
            .inputs(Inputs::Scaled(40.0))
            .softmax_scale(30.0)
            .extreme()
            .mask(Mask::Causal),
        named("logits_1e4_decode")
            .dense(2, 1, 300)
            .inputs(Inputs::Scaled(40.0))
            .softmax_scale(30.0)
            .extreme(),
        named("bias_1e4").score_mod(bias(far)).extreme(),
        named("bias_minus_1e4").score_mod(bias(low)).extreme(),
        named("bias_f32_min").score_mod(bias(least)),
        named("mask_f32_min").mask(MaskSpec::Dense {
            dtype: DType::F32,
            axes: Axes::FULL,
            fill: Fill::Of(least),
        }),
        named("equal_keys").inputs(Inputs::EqualKeys),
        named("equal_keys_causal").inputs(Inputs::EqualKeys).mask(Mask::Causal),
        named("bias_hides_rows").score_mod(bias(hidden_rows)),
        named("bias_hides_rows_sinks").score_mod(bias(hidden_rows)).sinks(DType::F32, &[0.5]),
        named("one_key").dense(2, 5, 1),
        named("one_key_one_query").dense(1, 1, 1),
        // The scores grow along the keys, so that every tile raises the maximum.
        named("rising").dense(1, 4, 600).score_fn(|s, _, _, _, k| s + 0.5 * k as f32).extreme(),
        named("falling").dense(1, 4, 600).score_fn(|s, _, _, _, k| s - 0.5 * k as f32).extreme(),
    ]
}

/// Infinities and NaNs in keys and values that a mask hides.
fn not_finite(dtype: DType) -> Vec<Spec> {
    let named = |name: &str| base(name, dtype).dense(1, 150, 150);
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    let poke = |key: usize, k: Option<f32>, v: Option<f32>| Poke { batch: 0, key, k, v };
    let hide_key = MaskSpec::Dense {
        dtype: DType::Bool,
        axes: Axes { batch: false, heads: Some(false), rows: true },
        fill: Fill::Of(|_, _, _, key| if key == 77 || key >= 140 { f32::NEG_INFINITY } else { 0.0 }),
    };
    let hide_first = Mask::from_fn(|_, _, _, k| k > 10);
    vec![
        // Hidden from every row by a mask.
        named("hidden_v_inf").mask(hide_key.clone()).poke(poke(77, None, Some(inf))),
        named("hidden_v_nan").mask(hide_key.clone()).poke(poke(77, None, Some(nan))),
        named("hidden_k_nan").mask(hide_key.clone()).poke(poke(77, Some(nan), None)),
        named("hidden_k_inf").mask(hide_key.clone()).poke(poke(149, Some(inf), Some(inf))),
        named("hidden_by_function_v_nan").mask(hide_first).poke(poke(3, None, Some(nan))),
        named("hidden_decode_v_nan").dense(1, 1, 150).mask(hide_key).poke(poke(77, None, Some(nan))),
        // In tiles that the mask skips.
        named("skipped_v_nan").dense(1, 20, 600).mask(Mask::SlidingWindow { left: 30, right: 0 }).poke(poke(
            5,
            Some(nan),
            Some(nan),
        )),
        // Hidden from some rows and seen by others, which it rightly spoils.
        named("causal_v_inf").mask(Mask::Causal).poke(poke(130, None, Some(inf))),
        named("causal_k_nan").mask(Mask::Causal).poke(poke(130, Some(nan), None)),
        // By an added -inf.
        named("hidden_by_bias_v_inf")
            .score_mod(bias(|_, _, _, key| if key == 60 { f32::NEG_INFINITY } else { 0.0 }))
            .poke(poke(60, None, Some(inf))),
    ]
}

/// Nothing at all, in every axis.
fn sizes(dtype: DType) -> Vec<Spec> {
    let named = |name: &str| base(name, dtype);
    vec![
        named("batch_0").dense(0, 5, 7),
        named("batch_0_ragged").q_ragged(&[]).k_ragged(&[]),
        named("batch_0_paged").q_dense(0, 1).paged(16, &[]),
        named("seqlen_q_0").dense(2, 0, 7).mask(Mask::Causal),
        named("seqlen_k_0").dense(2, 5, 0).mask(Mask::Causal),
        named("seqlen_q_k_0").dense(2, 0, 0),
        named("heads_0").heads(0, 1).dense(2, 5, 7),
        named("lse_not_asked").lse(false).dense(2, 20, 30).mask(Mask::Causal),
        named("lse_not_asked_decode").lse(false).q_dense(2, 1).paged(16, &[40, 3]),
    ]
}

fn long() -> Vec<Spec> {
    vec![
        base("kv_131072_decode", DType::BF16).heads(2, 1).dim(32).dense(1, 1, 131_072),
        base("kv_131072_decode", DType::F32).heads(2, 1).dim(16).dense(1, 1, 131_072),
        base("kv_131072_paged", DType::F16).heads(1, 1).dim(64).q_dense(1, 2).paged(256, &[131_072]),
        base("kv_131072_window", DType::BF16)
            .heads(1, 1)
            .dim(64)
            .dense(1, 16, 131_072)
            .mask(Mask::SlidingWindow { left: 255, right: 0 }),
        base("q_20000", DType::BF16).heads(1, 1).dim(16).dense(1, 20_000, 5),
        base("heads_300", DType::F16).heads(300, 100).dim(16).dense(1, 3, 20),
    ]
}
