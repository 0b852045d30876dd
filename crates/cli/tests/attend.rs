//! `omniflash attend` on every kind of case, against values that the test computes itself.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Folder, attend, constants, passes, read, scalars, sequence, wide_integers};
use half::{bf16, f16};
use omniflash_cli::case_file::NamedTensor;

/// One case and its result: a number for each row of out, which all elements of the row must be.
struct Scenario {
    tensors: Vec<NamedTensor>,
    options: String,
    rows: Vec<f64>,
    lse: Option<Vec<f64>>,
    tolerance: f64,
}

impl Scenario {
    fn new(tensors: Vec<NamedTensor>, options: &str, rows: &[f64]) -> Self {
        Scenario { tensors, options: options.into(), rows: rows.to_vec(), lse: None, tolerance: 1e-5 }
    }

    fn with(mut self, tensor: NamedTensor) -> Self {
        self.tensors.push(tensor);
        self
    }

    fn lse(mut self, lse: &[f64]) -> Self {
        self.lse = Some(lse.to_vec());
        self
    }

    fn check(&self) {
        for backend in ["reference", "auto"] {
            let folder = Folder::new();
            let (case, out) = (folder.write_case("case.safetensors", &self.tensors), folder.path("out"));
            let options = folder.write("options.json", &self.options);
            passes(attend(backend, &case, &options, &out));
            let found = read(&out, "out").unwrap();
            let q = self.tensors.iter().find(|tensor| tensor.name == "q").unwrap();
            let v = self.tensors.iter().find(|tensor| tensor.name == "v").unwrap();
            assert_eq!(found.shape[..found.shape.len() - 1], q.shape[..q.shape.len() - 1]);
            assert_eq!(found.shape.last(), v.shape.last());
            assert_eq!(found.dtype, format!("{:?}", q.dtype));
            let width = *found.shape.last().unwrap();
            assert_eq!(found.values.len(), self.rows.len() * width);
            for (i, value) in found.values.iter().enumerate() {
                let expected = self.rows[i / width];
                assert!(
                    (value - expected).abs() <= self.tolerance,
                    "{backend} {}: row {} is {value}, expected {expected}",
                    self.options,
                    i / width
                );
            }
            match (&self.lse, read(&out, "lse")) {
                (None, None) => {}
                (Some(expected), Some(found)) => {
                    assert_eq!((found.dtype.as_str(), found.values.len()), ("F32", expected.len()));
                    for (found, expected) in found.values.iter().zip(expected) {
                        assert!(found == expected || (found - expected).abs() < 1e-4, "{found} {expected}");
                    }
                }
                _ => panic!("lse is there iff asked for"),
            }
        }
    }
}

/// The mean of the values that are visible, for scores that are all equal.
fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The softmax of scores, times values.
fn weighted(scores: &[f64], values: &[f64]) -> f64 {
    let weights: Vec<f64> = scores.iter().map(|score| score.exp()).collect();
    weights.iter().zip(values).map(|(w, v)| w * v).sum::<f64>() / weights.iter().sum::<f64>()
}

/// Four queries and four keys with equal scores and the values 1, 2, 3, 4.
fn level() -> Vec<NamedTensor> {
    sequence(&[0.0; 4], &[1.0; 4], &[1.0, 2.0, 3.0, 4.0])
}

#[test]
fn weights_follow_the_softmax_and_lse_is_its_logarithm() {
    let case = sequence(&[1.0], &[0.0, 3f32.ln()], &[1.0, 2.0]);
    Scenario::new(case, r#"{"softmax_scale": 1.0, "lse": true}"#, &[1.75]).lse(&[4f64.ln()]).check();
}

#[test]
fn the_default_scale_is_one_by_the_root_of_head_dim() {
    let expected = weighted(&[0.0, 2.0 / 8f64.sqrt()], &[1.0, 2.0]);
    Scenario::new(sequence(&[1.0], &[0.0, 2.0], &[1.0, 2.0]), "{}", &[expected]).check();
}

#[test]
fn masks_by_name_show_what_they_say() {
    let m = |values: [&[f64]; 4]| values.map(mean);
    for (mask, rows) in [
        (r#""none""#, m([&[1., 2., 3., 4.]; 4])),
        (r#""causal""#, m([&[1.], &[1., 2.], &[1., 2., 3.], &[1., 2., 3., 4.]])),
        (r#"{"sliding_window": {"left": 1, "right": 0}}"#, m([&[1.], &[1., 2.], &[2., 3.], &[3., 4.]])),
        (
            r#"{"sliding_window": {"left": 0, "right": 2}}"#,
            m([&[1., 2., 3.], &[2., 3., 4.], &[3., 4.], &[4.]]),
        ),
        (r#"{"chunked": {"size": 3}}"#, m([&[1., 2., 3.], &[1., 2., 3.], &[1., 2., 3.], &[4.]])),
        (r#"{"chunked_causal": {"size": 3}}"#, m([&[1.], &[1., 2.], &[1., 2., 3.], &[4.]])),
        (r#"{"and": ["causal", {"chunked": {"size": 2}}]}"#, m([&[1.], &[1., 2.], &[3.], &[3., 4.]])),
        (
            r#"{"or": ["causal", {"chunked": {"size": 2}}]}"#,
            m([&[1., 2.], &[1., 2.], &[1., 2., 3., 4.], &[1., 2., 3., 4.]]),
        ),
        (
            r#"{"not": {"sliding_window": {"left": 0, "right": 0}}}"#,
            m([&[2., 3., 4.], &[1., 3., 4.], &[1., 2., 4.], &[1., 2., 3.]]),
        ),
    ] {
        Scenario::new(level(), &format!(r#"{{"mask": {mask}}}"#), &rows).check();
    }
}

#[test]
fn a_row_that_sees_no_key_is_zero() {
    let options = r#"{"mask": {"not": "none"}, "lse": true}"#;
    Scenario::new(level(), options, &[0.0; 4]).lse(&[f64::NEG_INFINITY; 4]).check();
}

#[test]
fn masks_with_tensors_read_them() {
    Scenario::new(level(), r#"{"mask": "prefix_lm"}"#, &[1.5, 1.5, 2.0, 2.5])
        .with(NamedTensor::new("prefix_len", &[1], &[2i32]))
        .check();
    Scenario::new(level(), r#"{"mask": "document"}"#, &[1.5, 1.5, 3.5, 3.5])
        .with(wide_integers("document_ids", "u64", &[1, 4], &[7, 7, 9, 9]))
        .check();
    Scenario::new(level(), r#"{"mask": {"and": ["document", "causal"]}}"#, &[1.0, 1.5, 3.0, 3.5])
        .with(wide_integers("document_ids", "i64", &[1, 4], &[7, 7, 9, 9]))
        .check();
}

#[test]
fn a_mask_tensor_of_any_type_joins_the_mask_option() {
    #[rustfmt::skip]
    let shown = [
        true, true, false, false,
        false, true, true, true,
        true, false, true, true,
        true, true, true, false,
    ];
    let rows = [mean(&[1., 2.]), mean(&[2., 3., 4.]), mean(&[1., 3., 4.]), mean(&[1., 2., 3.])];
    let causal = [1.0, 2.0, mean(&[1., 3.]), mean(&[1., 2., 3.])];
    let added: Vec<f32> = shown.iter().map(|&shown| if shown { 0.0 } else { f32::NEG_INFINITY }).collect();
    let bytes = |values: &[bool]| values.iter().map(|&shown| u8::from(shown)).collect::<Vec<u8>>();
    let mut of_bytes = NamedTensor::new("mask", &[1, 4, 4], &shown);
    (of_bytes.dtype, of_bytes.bytes) = (safetensors::Dtype::U8, bytes(&shown));
    let mut of_doubles = NamedTensor::new("mask", &[1, 1, 4, 4], &shown);
    of_doubles.dtype = safetensors::Dtype::F64;
    of_doubles.bytes = added.iter().flat_map(|&value| f64::from(value).to_le_bytes()).collect();
    let halves: Vec<f16> = added.iter().map(|&value| f16::from_f32(value)).collect();
    for mask in [
        NamedTensor::new("mask", &[1, 4, 4], &shown),
        NamedTensor::new("mask", &[1, 1, 4, 4], &shown),
        of_bytes,
        NamedTensor::new("mask", &[1, 1, 4, 4], &added),
        NamedTensor::new("mask", &[1, 4, 4], &halves),
        of_doubles,
    ] {
        Scenario::new(level(), "{}", &rows).with(mask.clone()).check();
        Scenario::new(level(), r#"{"mask": "causal"}"#, &causal).with(mask).check();
    }
}

#[test]
fn additive_masks_and_biases_shift_scores() {
    let shift = [0.5f32, -1.0, 2.0];
    let expected = weighted(&[0.5, -1.0, 2.0], &[1.0, 2.0, 3.0]);
    for name in ["mask", "bias"] {
        Scenario::new(sequence(&[0.0], &[1.0; 3], &[1.0, 2.0, 3.0]), "{}", &[expected])
            .with(NamedTensor::new(name, &[1, 1, 1, 3], &shift))
            .check();
    }
}

#[test]
fn score_modifications_apply_as_softcap_then_alibi_then_bias() {
    // One head: the default slope is 2^-8. The query sits at the last key.
    let bias = [0.25f64, -0.5, 1.0];
    let scores: Vec<f64> = [3.0f64, -2.0, 5.0]
        .iter()
        .enumerate()
        .map(|(j, s)| 2.0 * (s / 2.0).tanh() + 2f64.powi(-8) * (j as f64 - 2.0) + bias[j])
        .collect();
    let expected = weighted(&scores, &[1.0, 2.0, 3.0]);
    let options = r#"{"softmax_scale": 1.0, "softcap": 2.0, "alibi": true}"#;
    Scenario::new(sequence(&[1.0], &[3.0, -2.0, 5.0], &[1.0, 2.0, 3.0]), options, &[expected])
        .with(NamedTensor::new("bias", &[1, 1, 1, 3], &bias.map(|b| b as f32)))
        .check();
}

#[test]
fn alibi_slopes_ask_for_alibi_themselves() {
    let expected = weighted(&[-1.0, -0.5, 0.0], &[1.0, 2.0, 3.0]);
    for options in ["{}", r#"{"alibi": true}"#] {
        Scenario::new(sequence(&[0.0], &[1.0; 3], &[1.0, 2.0, 3.0]), options, &[expected])
            .with(NamedTensor::new("alibi_slopes", &[1], &[0.5f32]))
            .check();
    }
}

#[test]
fn a_sink_takes_its_share_of_the_softmax() {
    let e = 1f64.exp();
    Scenario::new(sequence(&[0.0], &[1.0; 2], &[2.0, 4.0]), r#"{"lse": true}"#, &[6.0 / (2.0 + e)])
        .with(NamedTensor::new("sinks", &[1], &[1.0f32]))
        .lse(&[(2.0 + e).ln()])
        .check();
}

#[test]
fn heads_of_a_group_share_keys_and_types_and_widths_are_kept() {
    // Two query heads, one key head, value_dim 16; scores 0 and ln 3 for the second head.
    let (q, k) = (scalars(&[0.0, 1.0]), scalars(&[0.0, 3f32.ln()]));
    let v: Vec<f32> = [1.0f32, 2.0].iter().flat_map(|&value| [value; 16]).collect();
    let (to_bf16, to_f16) = (|x: &f32| bf16::from_f32(*x), |x: &f32| f16::from_f32(*x));
    let shapes: [&[usize]; 3] = [&[1, 1, 2, 8], &[1, 2, 1, 8], &[1, 2, 1, 16]];
    let half = |name: &str, at: usize, values: &[f32]| {
        NamedTensor::new(name, shapes[at], &values.iter().map(to_f16).collect::<Vec<f16>>())
    };
    let brain = |name: &str, at: usize, values: &[f32]| {
        NamedTensor::new(name, shapes[at], &values.iter().map(to_bf16).collect::<Vec<bf16>>())
    };
    let options = r#"{"softmax_scale": 1.0}"#;
    for tensors in [
        vec![half("q", 0, &q), half("k", 1, &k), half("v", 2, &v)],
        vec![brain("q", 0, &q), brain("k", 1, &k), brain("v", 2, &v)],
    ] {
        Scenario { tolerance: 0.01, ..Scenario::new(tensors, options, &[1.5, 1.75]) }.check();
    }
}

#[test]
fn lengths_cut_a_padded_batch_and_hide_what_is_beyond() {
    let nan = f32::NAN;
    let tensors = vec![
        NamedTensor::new("q", &[2, 2, 1, 8], &scalars(&[0.0, 0.0, 0.0, nan])),
        NamedTensor::new("k", &[2, 3, 1, 8], &scalars(&[1.0, 1.0, 1.0, 1.0, nan, nan])),
        NamedTensor::new("v", &[2, 3, 1, 8], &constants(&[1.0, 2.0, 3.0, 4.0, nan, nan])),
        NamedTensor::new("q_lengths", &[2], &[2i32, 1]),
        wide_integers("kv_lengths", "u32", &[2], &[3, 1]),
    ];
    Scenario::new(tensors, r#"{"mask": "causal"}"#, &[1.5, 2.0, 4.0, 0.0]).check();
}

#[test]
fn ragged_sequences_lie_one_after_the_other() {
    let tensors = vec![
        NamedTensor::new("q", &[3, 1, 8], &scalars(&[0.0; 3])),
        NamedTensor::new("k", &[5, 1, 8], &scalars(&[1.0; 5])),
        NamedTensor::new("v", &[5, 1, 8], &constants(&[1.0, 2.0, 3.0, 4.0, 5.0])),
        wide_integers("cu_seqlens_q", "i64", &[3], &[0, 2, 3]),
        wide_integers("cu_seqlens_k", "i32", &[3], &[0, 3, 5]),
    ];
    let lse = [2f64.ln(), 3f64.ln(), 2f64.ln()];
    Scenario::new(tensors, r#"{"mask": "causal", "lse": true}"#, &[1.5, 2.0, 4.5]).lse(&lse).check();
}

#[test]
fn a_paged_cache_follows_its_table_whatever_lies_past_a_length() {
    let nan = f32::NAN;
    // Pages of 2 keys. Sequence 0: pages 2, 0; sequence 1: page 1. Page 3 is unused.
    let pages = [3.0, 4.0, 5.0, nan, 1.0, 2.0, nan, nan];
    for (dtype, sentinel) in [("i32", -1i128), ("i64", i128::from(i64::MAX)), ("u64", i128::from(u64::MAX))] {
        let tensors = vec![
            NamedTensor::new("q", &[2, 1, 1, 8], &scalars(&[0.0; 2])),
            NamedTensor::new("k", &[4, 2, 1, 8], &scalars(&pages)),
            NamedTensor::new("v", &[4, 2, 1, 8], &constants(&pages)),
            wide_integers("page_table", dtype, &[2, 3], &[2, 0, sentinel, 1, sentinel, sentinel]),
            NamedTensor::new("kv_lengths", &[2], &[3i32, 1]),
        ];
        Scenario::new(tensors, r#"{"mask": "causal"}"#, &[2.0, 5.0]).check();
    }
}

#[test]
fn a_continuous_cache_looks_its_blocks_up_for_ragged_queries_too() {
    let blocks = [1.0, 2.0, 3.0, f32::NAN, 5.0, 6.0, 7.0, 8.0];
    let tensors = vec![
        NamedTensor::new("q", &[3, 1, 8], &scalars(&[0.0; 3])),
        NamedTensor::new("cu_seqlens_q", &[3], &[0i32, 1, 3]),
        NamedTensor::new("k", &[2, 4, 1, 8], &scalars(&[0.0; 8])),
        NamedTensor::new("v", &[2, 4, 1, 8], &constants(&blocks)),
        NamedTensor::new("lookup_table", &[2], &[1u32, 0]),
        NamedTensor::new("kv_lengths", &[2], &[4u32, 3]),
    ];
    Scenario::new(tensors, r#"{"mask": "causal"}"#, &[6.5, 1.5, 2.0]).check();
}

#[test]
fn query_start_places_the_queries() {
    Scenario::new(level(), r#"{"mask": "causal"}"#, &[2.0, 2.5, 2.5, 2.5])
        .with(NamedTensor::new("query_start", &[1], &[2i32]))
        .check();
    Scenario::new(level(), r#"{"mask": "causal"}"#, &[0.0, 0.0, 1.0, 1.5])
        .with(NamedTensor::new("query_start", &[1], &[-2i32]))
        .check();
}

#[test]
fn nothing_to_do_is_done() {
    let empty = |q: &[usize], kv: &[usize]| {
        let tensor = |name: &str, shape: &[usize]| {
            NamedTensor::new(name, shape, &vec![0.0f32; shape.iter().product()])
        };
        vec![tensor("q", q), tensor("k", kv), tensor("v", kv)]
    };
    Scenario::new(empty(&[0, 3, 2, 8], &[0, 4, 2, 8]), "{}", &[]).check();
    Scenario::new(empty(&[2, 0, 2, 8], &[2, 4, 2, 8]), "{}", &[]).check();
    Scenario::new(empty(&[1, 2, 1, 8], &[1, 0, 1, 8]), r#"{"lse": true}"#, &[0.0; 2])
        .lse(&[f64::NEG_INFINITY; 2])
        .check();
    // Ragged offsets of no sequence.
    let mut ragged = empty(&[0, 1, 8], &[0, 1, 8]);
    ragged.extend(["cu_seqlens_q", "cu_seqlens_k"].map(|name| NamedTensor::new(name, &[1], &[0i32])));
    Scenario::new(ragged, r#"{"lse": true}"#, &[]).lse(&[]).check();
    // As many sequences as a file can claim, without an element.
    Scenario::new(empty(&[1 << 40, 0, 1, 8], &[1 << 40, 0, 1, 8]), "{}", &[]).check();
}

#[test]
fn tuning_that_a_backend_can_do_changes_nothing() {
    let options = r#"{"mask": "causal", "num_partitions": 1, "config": {"algorithm": "naive"}}"#;
    let folder = Folder::new();
    let case = folder.write_case("case", &level());
    let (options, out) = (folder.write("options", options), folder.path("out"));
    let mut arguments = attend("reference", &case, &options, &out);
    arguments.push("--json".into());
    let text = passes(arguments);
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["backend"], "reference");
    assert_eq!(report["out"]["shape"], serde_json::json!([1, 4, 1, 8]));
    assert_eq!(read(&out, "out").unwrap().values[8], 1.5);
    assert_eq!(folder.entries().len(), 3, "no temporary file is left: {:?}", folder.entries());
}
