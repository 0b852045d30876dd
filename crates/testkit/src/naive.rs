//! Plain softmax attention at the precision of a careful kernel: float32 sums, probabilities rounded to the dtype.
//!
//! Its distance from the float64 reference is the yardstick for [`tolerance`](crate::tolerance): no backend can be
//! asked to be much nearer, and none may be much further away. Masks and score modifications are evaluated by the
//! functions of core that host backends use, so a slip there shows as well.

use half::{bf16, f16};
use omniflash_core::reference::ReferenceOutput;
use omniflash_core::{AttentionProblem, DType, Float, HostView, KvCache, Query, ScoreIndex, TensorRef};
use rayon::prelude::*;

/// Computes a problem in host memory whose lengths and tables have been checked.
///
/// # Panics
/// When a tensor is not in host memory or an index leaves it.
pub fn attention(problem: &AttentionProblem<'_>) -> ReferenceOutput {
    let shape = *problem.shape();
    let mut out = vec![f64::NAN; shape.total_q * shape.num_heads * shape.value_dim];
    let mut lse = vec![f64::NAN; shape.total_q * shape.num_heads];
    for b in 0..shape.batch {
        let sequence = Sequence::new(problem, b);
        let heads: Vec<Vec<(Vec<f32>, f32)>> = (0..shape.num_heads)
            .into_par_iter()
            .map(|head| {
                let keys = sequence.gather(problem.kv().k(), head / shape.group_size());
                let values = sequence.gather(problem.kv().v(), head / shape.group_size());
                (0..sequence.q_len)
                    .into_par_iter()
                    .map(|row| sequence.row(head, row, &keys, &values))
                    .collect()
            })
            .collect();
        for (head, rows) in heads.into_iter().enumerate() {
            for (row, (values, row_lse)) in rows.into_iter().enumerate() {
                let (token, lse_at) = if shape.ragged_q {
                    let token = sequence.q_begin + row;
                    (token, head * shape.total_q + token)
                } else {
                    (b * shape.seqlen_q + row, (b * shape.num_heads + head) * shape.seqlen_q + row)
                };
                let at = (token * shape.num_heads + head) * shape.value_dim;
                for (to, value) in out[at..].iter_mut().zip(values) {
                    *to = f64::from(value);
                }
                lse[lse_at] = f64::from(row_lse);
            }
        }
    }
    ReferenceOutput { out, lse }
}

/// Rounds to the dtype and back.
fn rounded(dtype: DType, value: f32) -> f32 {
    match dtype {
        DType::F16 => f16::from_f32(value).to_f32(),
        DType::BF16 => bf16::from_f32(value).to_f32(),
        _ => value,
    }
}

struct Sequence<'p, 'a> {
    problem: &'p AttentionProblem<'a>,
    batch: usize,
    q_begin: usize,
    q_len: usize,
    start: i64,
    /// Leading indices of each key.
    keys: Vec<Vec<usize>>,
}

impl<'p, 'a> Sequence<'p, 'a> {
    fn new(problem: &'p AttentionProblem<'a>, b: usize) -> Self {
        let (q_begin, q_len) = match problem.query() {
            Query::Ragged { cu_seqlens, .. } => range(cu_seqlens, b),
            Query::Padded { lengths: Some(lengths), .. } => (0, integer(lengths, &[b])),
            _ => (0, problem.shape().seqlen_q),
        };
        let keys: Vec<Vec<usize>> = match problem.kv() {
            KvCache::Dense { k, lengths, .. } => {
                let count = lengths.as_ref().map_or(k.shape()[1], |lengths| integer(lengths, &[b]));
                (0..count).map(|j| vec![b, j]).collect()
            }
            KvCache::Ragged { cu_seqlens, .. } => {
                let (begin, count) = range(cu_seqlens, b);
                (begin..begin + count).map(|row| vec![row]).collect()
            }
            KvCache::Continuous { lookup_table, lengths, .. } => {
                (0..integer(lengths, &[b])).map(|j| vec![integer(lookup_table, &[b]), j]).collect()
            }
            KvCache::Paged { k, page_table, lengths, .. } => {
                let page_size = k.shape()[1];
                (0..integer(lengths, &[b]))
                    .map(|j| vec![integer(page_table, &[b, j / page_size]), j % page_size])
                    .collect()
            }
            _ => unreachable!("every form of keys is listed"),
        };
        let start = match problem.query_start() {
            Some(start) => signed(start, &[b]),
            None => keys.len() as i64 - q_len as i64,
        };
        Sequence { problem, batch: b, q_begin, q_len, start, keys }
    }

    /// The vectors of one head, row after row.
    fn gather(&self, tensor: &TensorRef<'_>, head: usize) -> Vec<f32> {
        let view = Floats::new(tensor);
        let dim = tensor.shape().last().copied().unwrap_or(0);
        let mut vectors = Vec::with_capacity(self.keys.len() * dim);
        for key in &self.keys {
            let mut index = key.clone();
            index.extend([head, 0]);
            let last = index.len() - 1;
            for d in 0..dim {
                index[last] = d;
                vectors.push(view.at(&index));
            }
        }
        vectors
    }

    /// One row of the output and its log-sum-exp.
    fn row(&self, head: usize, row: usize, keys: &[f32], values: &[f32]) -> (Vec<f32>, f32) {
        let (problem, shape) = (self.problem, self.problem.shape());
        let q = Floats::new(problem.query().tensor());
        let query: Vec<f32> = (0..shape.head_dim)
            .map(|d| match problem.query() {
                Query::Ragged { .. } => q.at(&[self.q_begin + row, head, d]),
                _ => q.at(&[self.batch, row, head, d]),
            })
            .collect();
        let mut scores = Vec::new();
        for (j, key) in keys.chunks_exact(shape.head_dim).enumerate() {
            let at = ScoreIndex { batch: self.batch, head, row, q: self.start + row as i64, k: j as i64 };
            if problem.mask().visible(&at) {
                let scaled = dot(&query, key) * problem.softmax_scale();
                let score = problem.score_mod().apply(scaled, &at, shape.num_heads);
                scores.push((j, score + problem.mask().additive(&at)));
            }
        }
        let sink = problem.sinks().map_or(f32::NEG_INFINITY, |sinks| Floats::new(sinks).at(&[head]));
        let maximum = scores.iter().fold(sink, |maximum, (_, score)| maximum.max(*score));
        let mut out = vec![0.0f32; shape.value_dim];
        if maximum == f32::NEG_INFINITY {
            return (out, maximum);
        }
        let mut sum = (sink - maximum).exp();
        for (_, score) in &mut scores {
            let hidden = *score == f32::NEG_INFINITY;
            *score = (*score - maximum).exp();
            sum += *score;
            if hidden {
                *score = f32::NEG_INFINITY;
            }
        }
        for (j, weight) in scores.into_iter().filter(|(_, weight)| *weight != f32::NEG_INFINITY) {
            let probability = rounded(shape.dtype, weight / sum);
            let value = &values[j * shape.value_dim..][..shape.value_dim];
            for (out, value) in out.iter_mut().zip(value) {
                *out += probability * value;
            }
        }
        out.iter_mut().for_each(|out| *out = rounded(shape.dtype, *out));
        (out, maximum + sum.ln())
    }
}

/// One product after the other: the longest chain of roundings that an honest kernel has.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn range(offsets: &TensorRef<'_>, b: usize) -> (usize, usize) {
    let begin = integer(offsets, &[b]);
    (begin, integer(offsets, &[b + 1]) - begin)
}

fn integer(tensor: &TensorRef<'_>, index: &[usize]) -> usize {
    usize::try_from(signed(tensor, index)).expect("lengths and ids have been checked")
}

fn signed(tensor: &TensorRef<'_>, index: &[usize]) -> i64 {
    match tensor.dtype() {
        DType::U32 => i64::from(tensor.host::<u32>().expect("a host tensor").at(index)),
        _ => i64::from(tensor.host::<i32>().expect("a host tensor").at(index)),
    }
}

/// The elements of a float tensor, widened.
enum Floats<'p> {
    F32(HostView<'p, f32>),
    F16(HostView<'p, f16>),
    BF16(HostView<'p, bf16>),
}

impl<'p> Floats<'p> {
    fn new(tensor: &TensorRef<'p>) -> Self {
        match tensor.dtype() {
            DType::F16 => Floats::F16(tensor.host().expect("a host tensor")),
            DType::BF16 => Floats::BF16(tensor.host().expect("a host tensor")),
            _ => Floats::F32(tensor.host().expect("a host tensor")),
        }
    }

    fn at(&self, index: &[usize]) -> f32 {
        match self {
            Floats::F32(view) => view.at(index),
            Floats::F16(view) => Float::to_f32(view.at(index)),
            Floats::BF16(view) => Float::to_f32(view.at(index)),
        }
    }
}
