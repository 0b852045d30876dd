use super::*;
use crate::options::AttentionOptions;
use crate::tensor::TensorMut;

fn dense<'a>(data: &'a [f32], shape: [usize; 4]) -> TensorRef<'a> {
    TensorRef::from_slice(data, &shape).unwrap()
}

/// q, k, v of one head and head_dim 1, with results known by hand.
fn scalar_attention(q: &[f32], k: &[f32], v: &[f32], options: &AttentionOptions<'_>) -> (Vec<f64>, Vec<f64>) {
    let mut out = vec![0.0f32; q.len()];
    let mut lse = vec![0.0f32; q.len()];
    let problem = AttentionProblem::new(
        Query::padded(dense(q, [1, q.len(), 1, 1])),
        KvCache::dense(dense(k, [1, k.len(), 1, 1]), dense(v, [1, v.len(), 1, 1])),
        TensorMut::from_slice(&mut out, &[1, q.len(), 1, 1]).unwrap(),
        options.lse.then(|| TensorMut::from_slice(&mut lse, &[1, 1, q.len()]).unwrap()),
        options,
    )
    .unwrap();
    let result = attention(&problem).unwrap();
    (result.out, result.lse)
}

#[test]
fn equal_scores_average_the_values() {
    let (out, lse) = scalar_attention(&[0.0], &[1.0, 2.0, 3.0], &[3.0, 6.0, 9.0], &AttentionOptions::new());
    assert_eq!(out, [6.0]);
    assert!((lse[0] - 3f64.ln()).abs() < 1e-15);
}

#[test]
fn weights_follow_the_softmax() {
    let (out, lse) =
        scalar_attention(&[2.0], &[1.0, 0.0], &[1.0, 0.0], &AttentionOptions::new().softmax_scale(0.5));
    let e = std::f64::consts::E;
    assert!((out[0] - e / (e + 1.0)).abs() < 1e-15);
    assert!((lse[0] - (e + 1.0).ln()).abs() < 1e-15);
}

#[test]
fn a_fully_masked_row_is_zero() {
    let options = AttentionOptions::new().mask(Mask::Causal);
    let (out, lse) = scalar_attention(&[1.0, 1.0], &[1.0], &[f32::NAN], &options);
    assert_eq!((out[0], lse[0]), (0.0, f64::NEG_INFINITY));
    assert!(out[1].is_nan(), "the key seen is NaN");
}

#[test]
fn a_sink_takes_its_share_once() {
    let sinks = [5.0f32];
    let keys = vec![0.0f32; 64];
    let values = vec![1.0f32; 64];
    let options =
        AttentionOptions::new().softmax_scale(0.0).sinks(TensorRef::from_slice(&sinks, &[1]).unwrap());
    let (out, lse) = scalar_attention(&[1.0], &keys, &values, &options);
    let denominator = 64.0 + 5f64.exp();
    assert!((out[0] - 64.0 / denominator).abs() < 1e-13);
    assert!((lse[0] - denominator.ln()).abs() < 1e-14);
    let hidden = options.mask(Mask::from_fn(|_, _, _, _| false));
    let (out, lse) = scalar_attention(&[1.0], &keys, &values, &hidden);
    assert_eq!((out[0], lse[0]), (0.0, 5.0));
}

#[test]
fn a_float_mask_of_minus_infinity_hides_even_nan_values() {
    let mask = [0.0f32, f32::NEG_INFINITY];
    let options =
        AttentionOptions::new().mask(Mask::Dense(TensorRef::from_slice(&mask, &[1, 1, 2]).unwrap()));
    let (out, _) = scalar_attention(&[1.0], &[1.0, f32::NAN], &[4.0, f32::NAN], &options);
    assert_eq!(out, [4.0]);
}

#[test]
fn a_bias_of_minus_infinity_hides_too() {
    let bias = [f32::NEG_INFINITY, 0.0];
    let options = AttentionOptions::new()
        .score_mod(ScoreMod::Bias(TensorRef::from_slice(&bias, &[1, 1, 1, 2]).unwrap()));
    let (out, _) = scalar_attention(&[1.0], &[1.0, 1.0], &[f32::INFINITY, 4.0], &options);
    assert_eq!(out, [4.0]);
}

#[test]
fn pages_are_followed_through_their_table() {
    let k: Vec<f32> = vec![9.0, 9.0, 3.0, f32::NAN, 1.0, 2.0];
    let (table, lengths) = ([2i32, 1, -7], [3i32]);
    let q = [0.0f32];
    let mut out = [0.0f32];
    let problem = AttentionProblem::new(
        Query::padded(dense(&q, [1, 1, 1, 1])),
        KvCache::Paged {
            k: dense(&k, [3, 2, 1, 1]),
            v: dense(&k, [3, 2, 1, 1]),
            page_table: TensorRef::from_slice(&table, &[1, 3]).unwrap(),
            lengths: TensorRef::from_slice(&lengths, &[1]).unwrap(),
            max_seqlen: None,
        },
        TensorMut::from_slice(&mut out, &[1, 1, 1, 1]).unwrap(),
        None,
        &AttentionOptions::new(),
    )
    .unwrap();
    assert_eq!(attention(&problem).unwrap().out, [2.0]);
}

#[test]
fn rows_past_a_length_are_not_written() {
    let (q, lengths) = ([1.0f32, 1.0], [1u32]);
    let mut out = [7.0f32, 7.0];
    let problem = AttentionProblem::new(
        Query::Padded {
            q: dense(&q, [1, 2, 1, 1]),
            lengths: Some(TensorRef::from_slice(&lengths, &[1]).unwrap()),
        },
        KvCache::dense(dense(&q, [1, 2, 1, 1]), dense(&q, [1, 2, 1, 1])),
        TensorMut::from_slice(&mut out, &[1, 2, 1, 1]).unwrap(),
        None,
        &AttentionOptions::new(),
    )
    .unwrap();
    crate::run(&ReferenceBackend::new(), &problem, &Stream::host()).unwrap();
    drop(problem);
    assert_eq!(out, [1.0, 7.0]);
}
