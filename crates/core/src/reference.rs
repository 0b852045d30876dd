//! The oracle: attention straight from its definition, in float64, one row at a time.
//!
//! No tiles, no online softmax and no code shared with what it checks: it resolves sequences, pages, masks and score
//! modifications by the formulas of the documentation. Any head_dim, value_dim and strides; slow by design, but
//! parallel over rows.

use rayon::prelude::*;

use crate::backend::{Backend, BackendInfo, Support, copy_from_host_buffer, copy_to_host_buffer};
use crate::config::Algorithm;
use crate::device::{Buffer, DeviceId, Stream, filled};
use crate::dtype::{DType, Element, Float};
use crate::error::{Error, Result};
use crate::kv_append::KvAppend;
use crate::kv_cache::{KvCache, Query};
use crate::mask::{Mask, ScoreIndex};
use crate::plan::AttentionPlan;
use crate::problem::AttentionProblem;
use crate::score_mod::{ScoreMod, alibi_slopes};
use crate::tensor::TensorRef;

/// Results in float64, before any rounding.
#[derive(Clone, Debug, PartialEq)]
pub struct ReferenceOutput {
    /// Row-major in the shape of the problem's `out`; rows that are not written are NaN.
    pub out: Vec<f64>,
    /// Row-major in the shape of the problem's `lse`; rows that are not written are NaN.
    pub lse: Vec<f64>,
}

/// Computes a problem in host memory by its definition.
///
/// # Errors
/// [`Error::Value`] for lengths, offsets and ids out of range, [`Error::Device`] for tensors of a device.
pub fn attention(problem: &AttentionProblem<'_>) -> Result<ReferenceOutput> {
    evaluate(problem, Arithmetic::Float64)
}

/// Computes a problem as a careful naive kernel would: scores and sums in f32, probabilities and results rounded to
/// the problem's dtype. What it errs is the yardstick of [`Tolerance`](crate::Tolerance).
///
/// # Errors
/// As [`attention`].
pub fn naive_attention(problem: &AttentionProblem<'_>) -> Result<ReferenceOutput> {
    evaluate(problem, Arithmetic::Rounded(problem.shape().dtype))
}

/// What is rounded on the way.
#[derive(Clone, Copy)]
enum Arithmetic {
    /// Nothing below float64.
    Float64,
    /// Scores and sums to f32, probabilities and results to the dtype.
    Rounded(DType),
}

impl Arithmetic {
    fn round(self, value: f64) -> f64 {
        match self {
            Arithmetic::Float64 => value,
            Arithmetic::Rounded(DType::F16) => half::f16::from_f64(value).to_f64(),
            Arithmetic::Rounded(DType::BF16) => half::bf16::from_f64(value).to_f64(),
            Arithmetic::Rounded(_) => f64::from(value as f32),
        }
    }

    fn round_score(self, score: f64) -> f64 {
        match self {
            Arithmetic::Float64 => score,
            Arithmetic::Rounded(_) => f64::from(score as f32),
        }
    }

    /// `sum + a * b`.
    fn multiply_add(self, sum: f64, a: f64, b: f64) -> f64 {
        match self {
            Arithmetic::Float64 => sum + a * b,
            Arithmetic::Rounded(_) => f64::from(sum as f32 + a as f32 * b as f32),
        }
    }
}

fn evaluate(problem: &AttentionProblem<'_>, arithmetic: Arithmetic) -> Result<ReferenceOutput> {
    problem.check_indices()?;
    let shape = *problem.shape();
    let (heads, value_dim) = (shape.num_heads, shape.value_dim);
    let mut out = filled(f64::NAN, shape.total_q * heads * value_dim)?;
    let mut lse = filled(f64::NAN, shape.total_q * heads)?;
    let q = Elements::new(problem.query().tensor());
    let oracle = Oracle {
        problem,
        k: Elements::new(problem.kv().k()),
        v: Elements::new(problem.kv().v()),
        sinks: problem.sinks().map(Elements::new),
        default_slopes: alibi_slopes(heads),
        arithmetic,
    };
    for b in 0..shape.batch {
        let sequence = oracle.sequence(b);
        let rows: Vec<(usize, usize, Row)> = (0..sequence.q_len * heads)
            .into_par_iter()
            .map(|i| {
                let (row, head) = (i / heads, i % heads);
                let mut query = vec![0.0; shape.head_dim];
                match &problem.query() {
                    Query::Padded { .. } => q.read_vector(&[b, row, head], &mut query),
                    Query::Ragged { .. } => q.read_vector(&[sequence.q_begin + row, head], &mut query),
                }
                (row, head, oracle.row(b, head, row, &sequence, &query))
            })
            .collect();
        for (row, head, result) in rows {
            let flat_row = if shape.ragged_q { sequence.q_begin + row } else { b * shape.seqlen_q + row };
            let at = (flat_row * heads + head) * value_dim;
            out[at..at + value_dim].copy_from_slice(&result.out);
            let lse_at = if shape.ragged_q {
                head * shape.total_q + flat_row
            } else {
                (b * heads + head) * shape.seqlen_q + row
            };
            lse[lse_at] = result.lse;
        }
    }
    Ok(ReferenceOutput { out, lse })
}

/// One sequence of the batch.
struct Sequence {
    /// First row of a ragged query tensor.
    q_begin: usize,
    q_len: usize,
    kv_len: usize,
    /// Global position of row 0.
    start: i64,
}

struct Row {
    out: Vec<f64>,
    lse: f64,
}

struct Oracle<'p, 'a> {
    problem: &'p AttentionProblem<'a>,
    k: Elements<'p>,
    v: Elements<'p>,
    sinks: Option<Elements<'p>>,
    default_slopes: Vec<f32>,
    arithmetic: Arithmetic,
}

impl Oracle<'_, '_> {
    fn sequence(&self, b: usize) -> Sequence {
        let shape = self.problem.shape();
        let (q_begin, q_len) = match self.problem.query() {
            Query::Padded { lengths: None, .. } => (0, shape.seqlen_q),
            Query::Padded { lengths: Some(lengths), .. } => (0, integer(lengths, &[b]) as usize),
            Query::Ragged { cu_seqlens, .. } => {
                let begin = integer(cu_seqlens, &[b]);
                (begin as usize, (integer(cu_seqlens, &[b + 1]) - begin) as usize)
            }
        };
        let kv_len = match self.problem.kv() {
            KvCache::Dense { k, lengths: None, .. } => k.shape()[1],
            KvCache::Ragged { cu_seqlens, .. } => {
                (integer(cu_seqlens, &[b + 1]) - integer(cu_seqlens, &[b])) as usize
            }
            KvCache::Dense { lengths: Some(lengths), .. }
            | KvCache::Continuous { lengths, .. }
            | KvCache::Paged { lengths, .. } => integer(lengths, &[b]) as usize,
        };
        let start = match self.problem.query_start() {
            Some(start) => integer(start, &[b]),
            None => kv_len as i64 - q_len as i64,
        };
        Sequence { q_begin, q_len, kv_len, start }
    }

    /// Softmax of one row of scores, times the values.
    fn row(&self, b: usize, head: usize, row: usize, sequence: &Sequence, query: &[f64]) -> Row {
        let shape = self.problem.shape();
        let kv_head = head / (shape.num_heads / shape.num_kv_heads);
        let mut scores = Vec::new();
        let mut vector = vec![0.0; shape.head_dim.max(shape.value_dim)];
        for j in 0..sequence.kv_len {
            let at = ScoreIndex { batch: b, head, row, q: sequence.start + row as i64, k: j as i64 };
            if !visible(self.problem.mask(), &at) {
                continue;
            }
            let key = self.key_index(b, j, kv_head);
            let key_vector = &mut vector[..shape.head_dim];
            self.k.read_vector(&key, key_vector);
            let dot = query
                .iter()
                .zip(key_vector)
                .fold(0.0, |sum, (q, k)| self.arithmetic.multiply_add(sum, *q, *k));
            let scaled = dot * f64::from(self.problem.softmax_scale());
            let score =
                self.modified(self.problem.score_mod(), scaled, &at) + added(self.problem.mask(), &at);
            scores.push((j, self.arithmetic.round_score(score)));
        }
        let sink = self.sinks.as_ref().map_or(f64::NEG_INFINITY, |sinks| sinks.at(&[head]));
        let maximum = scores
            .iter()
            .fold(sink, |maximum, (_, score)| if score.is_nan() { *score } else { maximum.max(*score) });
        let mut out = vec![0.0; shape.value_dim];
        if maximum == f64::NEG_INFINITY {
            return Row { out, lse: f64::NEG_INFINITY };
        }
        let weight = |score: f64| (score - maximum).exp();
        let sum = weight(sink) + scores.iter().map(|(_, score)| weight(*score)).sum::<f64>();
        for (j, score) in scores {
            let probability = self.arithmetic.round(weight(score) / sum);
            // A key that is hidden by a score of -inf has no part in the output, even if its value is not finite.
            if probability != 0.0 || score > f64::NEG_INFINITY {
                let value = &mut vector[..shape.value_dim];
                self.v.read_vector(&self.key_index(b, j, kv_head), value);
                for (out, value) in out.iter_mut().zip(value) {
                    *out = self.arithmetic.multiply_add(*out, probability, *value);
                }
            }
        }
        out.iter_mut().for_each(|out| *out = self.arithmetic.round(*out));
        Row { out, lse: maximum + sum.ln() }
    }

    /// Where key `j` of sequence `b` is, without its last axis.
    fn key_index(&self, b: usize, j: usize, kv_head: usize) -> Vec<usize> {
        match self.problem.kv() {
            KvCache::Dense { .. } => vec![b, j, kv_head],
            KvCache::Ragged { cu_seqlens, .. } => vec![integer(cu_seqlens, &[b]) as usize + j, kv_head],
            KvCache::Continuous { lookup_table, .. } => {
                vec![integer(lookup_table, &[b]) as usize, j, kv_head]
            }
            KvCache::Paged { k, page_table, .. } => {
                let page_size = k.shape()[1];
                vec![integer(page_table, &[b, j / page_size]) as usize, j % page_size, kv_head]
            }
        }
    }

    fn modified(&self, score_mod: &ScoreMod<'_>, score: f64, at: &ScoreIndex) -> f64 {
        match score_mod {
            ScoreMod::Identity => score,
            ScoreMod::Softcap { cap } => f64::from(*cap) * (score / f64::from(*cap)).tanh(),
            ScoreMod::Alibi { slopes } => {
                let slope = match slopes {
                    Some(slopes) => Elements::new(slopes).at(&[at.head]),
                    None => f64::from(self.default_slopes[at.head]),
                };
                score + slope * (at.k - at.q) as f64
            }
            ScoreMod::Bias(bias) => score + dense(bias, at),
            ScoreMod::Then(a, b) => self.modified(b, self.modified(a, score, at), at),
            ScoreMod::Custom(function) => {
                f64::from(function.apply(score as f32, at.batch, at.head, at.q, at.k))
            }
        }
    }
}

/// Visibility by the definitions in the documentation of [`Mask`].
fn visible(mask: &Mask<'_>, at: &ScoreIndex) -> bool {
    let (q, k) = (i128::from(at.q), i128::from(at.k));
    let chunk = |position: i128, size: usize| (position as f64 / size as f64).floor();
    match mask {
        Mask::None => true,
        Mask::Causal => k <= q,
        Mask::SlidingWindow { left, right } => q - *left as i128 <= k && k <= q + *right as i128,
        Mask::Chunked { size } => chunk(q, *size) == chunk(k, *size),
        Mask::ChunkedCausal { size } => k <= q && chunk(q, *size) == chunk(k, *size),
        Mask::PrefixLm { prefix_len } => k < i128::from(integer(prefix_len, &[at.batch])) || k <= q,
        Mask::Document { ids } => {
            let b = if ids.shape()[0] == 1 { 0 } else { at.batch };
            let inside = 0 <= at.q && at.q < ids.shape()[1] as i64;
            inside && integer(ids, &[b, at.q as usize]) == integer(ids, &[b, at.k as usize])
        }
        Mask::Dense(tensor) if tensor.dtype() == DType::Bool => dense(tensor, at) != 0.0,
        Mask::Dense(tensor) => dense(tensor, at) != f64::NEG_INFINITY,
        Mask::And(a, b) => visible(a, at) && visible(b, at),
        Mask::Or(a, b) => visible(a, at) || visible(b, at),
        Mask::Not(mask) => !visible(mask, at),
        Mask::Custom(function) => function.visible(at.batch, at.head, at.q, at.k),
    }
}

/// The sum of the mask's additive tensors.
fn added(mask: &Mask<'_>, at: &ScoreIndex) -> f64 {
    match mask {
        Mask::Dense(tensor) if tensor.dtype() != DType::Bool => dense(tensor, at),
        Mask::And(a, b) => added(a, at) + added(b, at),
        _ => 0.0,
    }
}

/// An element of a `[batch, (heads,) seqlen_q, seqlen_k]` tensor whose leading axes may be 1.
fn dense(tensor: &TensorRef<'_>, at: &ScoreIndex) -> f64 {
    let index: Vec<usize> = match tensor.shape() {
        [_, _, _] => vec![at.batch, at.row, at.k as usize],
        _ => vec![at.batch, at.head, at.row, at.k as usize],
    };
    let last = index.len() - 1;
    let clipped: Vec<usize> = index
        .iter()
        .enumerate()
        .map(|(axis, &i)| if axis < last && tensor.shape()[axis] == 1 { 0 } else { i })
        .collect();
    Elements::new(tensor).at(&clipped)
}

fn integer(tensor: &TensorRef<'_>, index: &[usize]) -> i64 {
    Elements::new(tensor).at(index) as i64
}

/// The elements of a host tensor of any dtype, widened to float64.
pub(crate) struct Elements<'p> {
    pointer: *const u8,
    dtype: DType,
    tensor: &'p TensorRef<'p>,
}

// SAFETY: a shared borrow of plain memory.
unsafe impl Sync for Elements<'_> {}
// SAFETY: as above.
unsafe impl Send for Elements<'_> {}

impl<'p> Elements<'p> {
    pub(crate) fn new(tensor: &'p TensorRef<'_>) -> Self {
        assert_eq!(tensor.device(), DeviceId::Cpu, "`check_indices` has refused other memory");
        Elements { pointer: tensor.as_ptr(), dtype: tensor.dtype(), tensor }
    }

    fn at(&self, index: &[usize]) -> f64 {
        let mut element = [0.0];
        let (last, prefix) = index.split_last().expect("no tensor has rank 0");
        self.read(prefix, *last, &mut element);
        element[0]
    }

    /// The first elements of the vector at `index`.
    pub(crate) fn read_vector(&self, index: &[usize], elements: &mut [f64]) {
        self.read(index, 0, elements);
    }

    /// The elements from `first` on of the vector at `index`.
    fn read(&self, index: &[usize], first: usize, elements: &mut [f64]) {
        let (shape, strides) = (self.tensor.shape(), self.tensor.strides());
        assert_eq!(index.len() + 1, shape.len());
        let mut offset = 0i64;
        for (axis, &i) in index.iter().enumerate() {
            assert!(i < shape[axis], "index {i} on axis {axis} of extent {}", shape[axis]);
            offset += i as i64 * strides[axis];
        }
        let (extent, stride) = (shape[index.len()], strides[index.len()]);
        assert!(first + elements.len() <= extent, "{first} and {} elements of {extent}", elements.len());
        offset += first as i64 * stride;
        match self.dtype {
            DType::F32 => self.widen::<f32>(offset, stride, elements, f64::from),
            DType::F16 => self.widen::<half::f16>(offset, stride, elements, half::f16::to_f64),
            DType::BF16 => self.widen::<half::bf16>(offset, stride, elements, half::bf16::to_f64),
            DType::Bool => self.widen::<u8>(offset, stride, elements, f64::from),
            DType::I32 => self.widen::<i32>(offset, stride, elements, f64::from),
            DType::U32 => self.widen::<u32>(offset, stride, elements, f64::from),
        }
    }

    /// Only [`read`](Elements::read) calls this, after its checks, with the `T` of the dtype.
    fn widen<T: Copy>(&self, offset: i64, stride: i64, elements: &mut [f64], to_f64: impl Fn(T) -> f64) {
        for (d, element) in elements.iter_mut().enumerate() {
            let at = self.pointer.cast::<T>().wrapping_offset((offset + d as i64 * stride) as isize);
            // SAFETY: the index is inside the shape, and the tensor's maker vouched for all of the shape.
            *element = to_f64(unsafe { at.read() });
        }
    }
}

/// The reference as a backend, for checking and for sizes that no other backend takes.
#[derive(Debug)]
pub struct ReferenceBackend {
    info: BackendInfo,
}

impl ReferenceBackend {
    /// The reference on this machine's processor.
    pub fn new() -> Self {
        ReferenceBackend {
            info: BackendInfo {
                name: "reference".into(),
                device: DeviceId::Cpu,
                vendor: "host".into(),
                device_name: "float64 reference".into(),
                arch: "portable".into(),
                memory_bytes: 0,
                units: rayon::current_num_threads(),
                driver: None,
            },
        }
    }
}

impl Default for ReferenceBackend {
    fn default() -> Self {
        ReferenceBackend::new()
    }
}

impl Backend for ReferenceBackend {
    fn info(&self) -> &BackendInfo {
        &self.info
    }

    fn supports(&self, problem: &AttentionProblem<'_>) -> Support {
        match refused_config(problem) {
            Some(error) => Support::No(error),
            None => Support::Slow("it checks others and is not made for speed".into()),
        }
    }

    fn plan(&self, problem: &AttentionProblem<'_>) -> Result<AttentionPlan> {
        self.supports(problem).into_result()?;
        let shape = problem.shape();
        Ok(AttentionPlan {
            kernel_id: format!("reference-f64-{}-d{}", shape.dtype, shape.head_dim).into(),
            algorithm: Algorithm::Naive,
            grid: [shape.batch as u32, shape.num_heads as u32, shape.seqlen_q as u32],
            block_threads: 1,
            block_m: 1,
            block_n: shape.seqlen_k,
            num_pipeline_stages: 1,
            shared_memory_bytes: 0,
            workspace_bytes: 0,
            num_partitions: 1,
            reason: "one row at a time in float64".into(),
            detail: None,
        })
    }

    fn alloc(&self, bytes: usize, _stream: &Stream) -> Result<Buffer> {
        Buffer::host(bytes)
    }

    fn copy_to_device(&self, source: &[u8], target: &mut Buffer, _stream: &Stream) -> Result<()> {
        copy_to_host_buffer(source, target)
    }

    fn copy_to_host(&self, source: &Buffer, target: &mut [u8], _stream: &Stream) -> Result<()> {
        copy_from_host_buffer(source, target)
    }

    fn stream(&self) -> Result<Stream> {
        Ok(Stream::host())
    }

    fn synchronize(&self, _stream: &Stream) -> Result<()> {
        Ok(())
    }

    unsafe fn launch(
        &self,
        _plan: &AttentionPlan,
        problem: &AttentionProblem<'_>,
        _stream: &Stream,
    ) -> Result<()> {
        let result = attention(problem)?;
        match problem.shape().dtype {
            DType::F32 => write_rounded::<f32>(problem, &result),
            DType::F16 => write_rounded::<half::f16>(problem, &result),
            _ => write_rounded::<half::bf16>(problem, &result),
        }
        Ok(())
    }

    unsafe fn kv_append(&self, append: &KvAppend<'_>, _stream: &Stream) -> Result<()> {
        append.check_indices()?;
        for b in 0..append.shape().batch {
            // SAFETY: the indices are checked; the rest is the caller's duty.
            unsafe { append.copy_sequence(b) };
        }
        Ok(())
    }
}

/// The reference has no tiles and no partitions: fixing them is an error, never ignored.
fn refused_config(problem: &AttentionProblem<'_>) -> Option<Error> {
    let config = problem.config();
    let refuse =
        |what: &str, why: &str, nearest: &str| Some(Error::unsupported("reference", what, why, nearest));
    if !matches!(config.algorithm, Algorithm::Auto | Algorithm::Naive) {
        return refuse(
            &format!("algorithm {}", config.algorithm),
            "it computes by the definition",
            "algorithm naive works here, flash2 on the cpu backend",
        );
    }
    if matches!(config.num_partitions, Some(partitions) if partitions > 1)
        || config.split_within_block == Some(true)
    {
        return refuse("split keys", "it computes whole rows", "num_partitions 1 works");
    }
    let tiles = [
        config.block_m,
        config.block_n,
        config.block_k,
        config.warp_m,
        config.warp_n,
        config.num_pipeline_stages,
        config.k_group_size,
    ];
    if tiles.iter().any(Option::is_some) || config.swizzle.is_some() {
        return refuse("tile sizes", "it has no tiles", "leave them unset");
    }
    None
}

fn write_rounded<T: Float + Element>(problem: &AttentionProblem<'_>, result: &ReferenceOutput) {
    let shape = problem.shape();
    let out = problem.out();
    let rows = shape.total_q * shape.num_heads;
    for row in 0..rows {
        let (token, head) = (row / shape.num_heads, row % shape.num_heads);
        let base: i64 = if shape.ragged_q {
            out.layout().offset(&[token, head, 0])
        } else {
            out.layout().offset(&[token / shape.seqlen_q, token % shape.seqlen_q, head, 0])
        };
        for d in 0..shape.value_dim {
            let value = result.out[row * shape.value_dim + d];
            if !is_written(problem, token) {
                continue;
            }
            // SAFETY: the index is inside the shape of `out`, whose memory the launch may write exclusively.
            unsafe {
                out.as_mut_ptr().cast::<T>().offset((base + d as i64) as isize).write(T::from_f64(value))
            };
        }
    }
    let Some(lse) = problem.lse() else { return };
    for (i, &value) in result.lse.iter().enumerate() {
        let index: Vec<usize> = if shape.ragged_q {
            vec![i / shape.total_q, i % shape.total_q]
        } else {
            vec![
                i / (shape.num_heads * shape.seqlen_q),
                i / shape.seqlen_q % shape.num_heads,
                i % shape.seqlen_q,
            ]
        };
        let token = if shape.ragged_q { index[1] } else { index[0] * shape.seqlen_q + index[2] };
        if is_written(problem, token) {
            // SAFETY: as above, for `lse`.
            unsafe {
                lse.as_mut_ptr()
                    .cast::<f32>()
                    .offset(lse.layout().offset(&index) as isize)
                    .write(value as f32)
            };
        }
    }
}

/// Whether a row of the query tensor belongs to a sequence.
pub(crate) fn is_written(problem: &AttentionProblem<'_>, token: usize) -> bool {
    let shape = problem.shape();
    match problem.query() {
        Query::Padded { lengths: None, .. } => true,
        Query::Padded { lengths: Some(lengths), .. } => {
            ((token % shape.seqlen_q) as i64) < integer(lengths, &[token / shape.seqlen_q])
        }
        Query::Ragged { cu_seqlens, .. } => {
            let token = token as i64;
            integer(cu_seqlens, &[0]) <= token && token < integer(cu_seqlens, &[shape.batch])
        }
    }
}

#[cfg(test)]
mod tests;
