//! F5: score modifications and sinks, alone and together.

use omniflash_core::{DType, Mask, ScoreMod};

use crate::spec::{Axes, Fill, MaskSpec, ModSpec, Spec};

const DTYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

pub(super) fn cases() -> Vec<Spec> {
    let mut cases = Vec::new();
    cases.extend(single());
    cases.extend(combined());
    cases.extend(sinks());
    cases
}

fn base(name: impl AsRef<str>, dtype: DType) -> Spec {
    Spec::new(format!("f5/{}_{dtype}", name.as_ref())).dtype(dtype).heads(4, 2).dim(64).dense(2, 45, 90)
}

fn bias(dtype: DType, axes: Axes) -> ModSpec {
    ModSpec::Bias { dtype, axes, fill: Fill::Random }
}

fn single() -> Vec<Spec> {
    let mut cases = Vec::new();
    for (i, dtype) in DTYPES.into_iter().enumerate() {
        for cap in [0.5, 15.0, 30.0, 50.0] {
            // Large enough scores that the cap bends them.
            let named = |form: &str| base(format!("softcap_{cap}_{form}"), dtype).softmax_scale(1.0);
            cases.push(named("full").score_mod(ScoreMod::Softcap { cap }));
            cases.push(named("causal").score_mod(ScoreMod::Softcap { cap }).mask(Mask::Causal));
        }
        for heads in [4, 6, 7] {
            let alibi = ScoreMod::Alibi { slopes: None };
            let named = |form: &str| base(format!("alibi_default_H{heads}_{form}"), dtype).heads(heads, 1);
            cases.push(named("full").score_mod(alibi.clone()));
            cases.push(named("causal").score_mod(alibi.clone()).mask(Mask::Causal));
            cases.push(named("decode").score_mod(alibi).dense(2, 1, 150));
        }
        for slopes in [DType::F32, dtype] {
            let alibi = ModSpec::Alibi(slopes);
            cases.push(base(format!("alibi_{slopes}_slopes"), dtype).score_mod(alibi.clone()));
            let long = base(format!("alibi_{slopes}_slopes_more_queries"), dtype).dense(1, 120, 50);
            cases.push(long.score_mod(alibi));
            if dtype == DType::F32 {
                break;
            }
        }
        for batch in [false, true] {
            for heads in [false, true] {
                for rows in [false, true] {
                    let axes = Axes { batch, heads: Some(heads), rows };
                    let bias_dtype = [DType::F32, dtype][i.min(1)];
                    let name = format!(
                        "bias_{}{}{}_{bias_dtype}",
                        if batch { 'b' } else { '1' },
                        if heads { 'h' } else { '1' },
                        if rows { 's' } else { '1' }
                    );
                    cases.push(base(name, dtype).score_mod(bias(bias_dtype, axes)));
                }
            }
        }
        let closure = |s: f32, b: usize, h: usize, q: i64, k: i64| {
            s * 0.5 + 0.01 * (q - k) as f32 + 0.25 * (b + h) as f32 * if k % 2 == 0 { 1.0 } else { -1.0 }
        };
        cases.push(base("closure", dtype).score_fn(closure));
        cases.push(base("closure_causal", dtype).score_fn(closure).mask(Mask::Causal));
        cases.push(base("closure_decode", dtype).score_fn(closure).dense(2, 1, 130));
        cases.push(base("scale_negative", dtype).softmax_scale(-0.2));
        cases.push(base("scale_zero", dtype).softmax_scale(0.0));
    }
    cases
}

/// Two and three modifications in every order, with masks.
fn combined() -> Vec<Spec> {
    let parts: [(&str, ModSpec); 4] = [
        ("softcap", ScoreMod::Softcap { cap: 3.0 }.into()),
        ("alibi", ModSpec::Alibi(DType::F32)),
        ("bias", bias(DType::F32, Axes::FULL)),
        (
            "closure",
            ScoreMod::from_fn(|s, _, h, q, k| s * 1.25 - 0.02 * ((q + k) % (3 + h as i64)) as f32).into(),
        ),
    ];
    let mut cases = Vec::new();
    for (i, (first_name, first)) in parts.iter().enumerate() {
        for (j, (second_name, second)) in parts.iter().enumerate().filter(|(j, _)| *j != i) {
            let dtype = DTYPES[(i + j) % 3];
            let two = base(format!("{first_name}_{second_name}"), dtype)
                .score_mod(first.clone())
                .score_mod(second.clone());
            cases.push(if (i + j) % 2 == 0 { two.mask(Mask::Causal) } else { two });
            for (l, (third_name, third)) in parts.iter().enumerate().filter(|(l, _)| *l != i && *l != j) {
                let dtype = DTYPES[(i + j + l) % 3];
                let three = base(format!("{first_name}_{second_name}_{third_name}"), dtype)
                    .score_mod(first.clone())
                    .score_mod(second.clone())
                    .score_mod(third.clone());
                cases.push(three.mask(Mask::SlidingWindow { left: 30, right: 2 }));
            }
        }
    }
    cases
}

fn sinks() -> Vec<Spec> {
    let mut cases = Vec::new();
    let some = [0.5, -2.0, 4.0, 0.0];
    for dtype in DTYPES {
        let types = if dtype == DType::F32 { vec![DType::F32] } else { vec![DType::F32, dtype] };
        for sink_dtype in types {
            let named =
                |form: &str| base(format!("sinks_{sink_dtype}_{form}"), dtype).sinks(sink_dtype, &some);
            cases.push(named("full"));
            cases.push(named("causal").mask(Mask::Causal));
            cases.push(named("more_queries").dense(2, 90, 45).mask(Mask::Causal));
            cases.push(named("long").dense(1, 20, 700));
            cases.push(named("decode").dense(2, 1, 300));
            cases.push(named("decode_long").dense(1, 1, 3000));
            cases.push(named("softcap").score_mod(ScoreMod::Softcap { cap: 20.0 }));
            cases.push(
                named("alibi_bias")
                    .score_mod(ModSpec::Alibi(DType::F32))
                    .score_mod(bias(DType::F32, Axes::FULL)),
            );
            cases.push(named("hidden_rows").mask(MaskSpec::Dense {
                dtype: DType::Bool,
                axes: Axes::FULL,
                fill: Fill::Of(|_, _, row, _| if row % 2 == 0 { f32::NEG_INFINITY } else { 0.0 }),
            }));
            cases.push(named("no_keys").dense(2, 4, 0));
            cases.push(named("ragged").q_ragged(&[3, 40]).k_ragged(&[50, 60]).mask(Mask::Causal));
            cases.push(named("paged").q_dense(2, 2).paged(16, &[100, 35]).mask(Mask::Causal));
        }
        cases.push(base("sinks_large", dtype).sinks(DType::F32, &[6.0]));
        if dtype != DType::F16 {
            // Outputs of about e^-60, which f16 does not have.
            cases.push(base("sinks_huge", dtype).sinks(DType::F32, &[60.0]).extreme());
        }
        cases.push(base("sinks_none", dtype).sinks(DType::F32, &[f32::NEG_INFINITY]));
    }
    // Equal scores: every output is 64 / (64 + e^sink) of the mean value.
    cases.push(
        base("sinks_scale_0", DType::F32).dense(1, 8, 64).softmax_scale(0.0).sinks(DType::F32, &[5.0, 3.0]),
    );
    cases
}
