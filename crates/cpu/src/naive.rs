//! The plain kernel: one row at a time, its scores kept whole, in f32; an independent check of the tiled kernels.

use omniflash_core::{AttentionProblem, Result, ScoreIndex};
use rayon::prelude::*;

use crate::rows::{KeyValues, LogSumExp, Rows, Sequence, sequences, sinks};
use crate::scratch::List;
use crate::simd::Storage;

/// Computes a problem by the definition, row by row.
///
/// # Errors
/// [`omniflash_core::Error::Value`] for lengths, offsets and ids out of range.
///
/// # Safety
/// Nothing else reads or writes the outputs.
pub(crate) unsafe fn attention<T: Storage>(problem: &AttentionProblem<'_>) -> Result<()> {
    let kernel = RowKernel::<T> {
        problem,
        q: Rows::new(problem.query().tensor()),
        kv: KeyValues::new(problem.kv()),
        out: Rows::new_mut(problem.out()),
        lse: problem.lse().map(LogSumExp::new),
        sinks: sinks(problem),
    };
    let heads = problem.shape().num_heads;
    for sequence in sequences(problem)?.iter() {
        (0..sequence.q_len * heads).into_par_iter().for_each_init(Vec::new, |scores, i| {
            // SAFETY: each row of each head is computed once, and nobody else uses the outputs.
            unsafe { kernel.row(sequence, i / heads, i % heads, scores) }
        });
    }
    Ok(())
}

struct RowKernel<'p, 'a, T> {
    problem: &'p AttentionProblem<'a>,
    q: Rows<T>,
    kv: KeyValues<'p, T>,
    out: Rows<T>,
    lse: Option<LogSumExp>,
    sinks: List<f32>,
}

impl<T: Storage> RowKernel<'_, '_, T> {
    /// # Safety
    /// The row is inside the sequence, and no other thread uses its outputs.
    unsafe fn row(&self, sequence: &Sequence, row: usize, head: usize, scores: &mut Vec<(usize, f32)>) {
        let shape = self.problem.shape();
        let kv_head = head / shape.group_size();
        let (mask, score_mod) = (self.problem.mask(), self.problem.score_mod());
        // SAFETY: the row is inside q, whose last axis is dense.
        let q = unsafe {
            let q = self.q.at(sequence.batch, sequence.q_begin + row, head).cast_const();
            std::slice::from_raw_parts(q, shape.head_dim)
        };
        let global = sequence.query_start + row as i64;
        scores.clear();
        let mut maximum = self.sinks[head];
        for key in 0..sequence.kv_len {
            let at = ScoreIndex { batch: sequence.batch, head, row, q: global, k: key as i64 };
            if !mask.visible(&at) {
                continue;
            }
            let run = self.kv.run(sequence.batch, kv_head, key, key + 1);
            // SAFETY: the key is inside its sequence, and vectors are dense.
            let k = unsafe { std::slice::from_raw_parts(run.k, shape.head_dim) };
            let dot: f32 = q.iter().zip(k).map(|(q, k)| q.to_f32() * k.to_f32()).sum();
            let score = score_mod.apply(dot * self.problem.softmax_scale(), &at, shape.num_heads)
                + mask.additive(&at);
            maximum = if maximum > score { maximum } else { score };
            scores.push((key, score));
        }
        let mut out = vec![0.0f32; shape.value_dim];
        let mut sum = if maximum == f32::NEG_INFINITY { 0.0 } else { (self.sinks[head] - maximum).exp() };
        for &(key, score) in scores.iter().filter(|(_, score)| *score != f32::NEG_INFINITY) {
            let weight = (score - maximum).exp();
            sum += weight;
            let run = self.kv.run(sequence.batch, kv_head, key, key + 1);
            // SAFETY: as above.
            let v = unsafe { std::slice::from_raw_parts(run.v, shape.value_dim) };
            for (out, v) in out.iter_mut().zip(v) {
                *out += weight * v.to_f32();
            }
        }
        let scale = if sum == 0.0 { 0.0 } else { 1.0 / sum };
        let target = self.out.at(sequence.batch, sequence.q_begin + row, head);
        for (d, value) in out.iter().enumerate() {
            // SAFETY: the row is inside out, and it is this call's alone.
            unsafe { target.add(d).write(T::from_f32(value * scale)) };
        }
        if let Some(lse) = &self.lse {
            // SAFETY: as above.
            unsafe { lse.write(sequence.batch, head, sequence.q_begin + row, maximum + sum.ln()) };
        }
    }
}
