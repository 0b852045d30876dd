//! Joins the pieces of a row, always in their order, and writes it.

use crate::decode::job::Job;
use crate::decode::worker::Records;
use crate::simd::{LOG2_E, MAX_LANES, Simd, Storage};

/// The records of one key head in all pieces of a sequence.
pub(super) struct HeadRecords {
    pub(super) entry: usize,
    pub(super) head: usize,
    /// The first row's record in the first piece.
    pub(super) records: *const f32,
    /// Words from a piece to the next.
    pub(super) piece_stride: usize,
    pub(super) pieces: usize,
}

/// Joins the pieces of a key head of a sequence.
///
/// # Safety
/// - The records of all its pieces are complete.
/// - No other thread uses the head's outputs.
#[inline(always)]
pub(super) unsafe fn join<S: Simd, T: Storage>(
    simd: S,
    job: &Job<'_, T>,
    records: Records,
    entry: usize,
    head: usize,
    weights: &mut [f32],
) {
    let sequence = &job.entries[entry];
    let head_records = HeadRecords {
        entry,
        head,
        records: records.0.wrapping_add(job.records(entry, 0, head)),
        piece_stride: job.geometry.num_kv_heads * job.head_words(sequence.sequence.q_len),
        pieces: sequence.pieces.count,
    };
    // SAFETY: the caller's duties.
    unsafe { write_rows(simd, job, &head_records, weights) }
}

/// Writes all rows of a key head; `weights` has room for one word a piece, in whole vectors.
///
/// # Safety
/// - The records are complete.
/// - No other thread uses the head's outputs.
#[inline(always)]
pub(super) unsafe fn write_rows<S: Simd, T: Storage>(
    simd: S,
    job: &Job<'_, T>,
    records: &HeadRecords,
    weights: &mut [f32],
) {
    let sequence = &job.entries[records.entry].sequence;
    let group_size = job.geometry.group_size;
    let sums_words = job.record() - MAX_LANES;
    for row in 0..job.geometry.rows(sequence.q_len) {
        let head = records.head * group_size + row % group_size;
        let record = records.records.wrapping_add(row * job.record());
        let of_piece = |piece: usize, word: usize| {
            // SAFETY: a word of a complete record.
            unsafe { record.add(piece * records.piece_stride + word).read() }
        };
        let sink = job.sinks[head] * LOG2_E;
        let mut maximum = sink;
        for (piece, weight) in weights.iter_mut().enumerate().take(records.pieces) {
            *weight = of_piece(piece, sums_words);
            maximum = maximum.max(*weight);
        }
        let base = if maximum == f32::NEG_INFINITY { 0.0 } else { maximum };
        for i in (0..records.pieces).step_by(S::LANES) {
            // SAFETY: whole vectors of `weights`.
            unsafe {
                let at = weights.as_mut_ptr().add(i);
                simd.store(at, simd.exp2(simd.sub(simd.load(at), simd.splat(base))));
            }
        }
        let mut sum = if sink == f32::NEG_INFINITY { 0.0 } else { (sink - base).exp2() };
        for (piece, weight) in weights.iter().enumerate().take(records.pieces) {
            sum += weight * of_piece(piece, sums_words + 1);
        }
        let scale = if sum == 0.0 { 0.0 } else { 1.0 / sum };
        let query = sequence.q_begin + row / group_size;
        let target = job.out.at(sequence.batch, query, head);
        // SAFETY: a row of the outputs, which are the caller's; vectors of complete records.
        unsafe {
            write_row(
                simd,
                records,
                record,
                &weights[..records.pieces],
                scale,
                target,
                job.geometry.value_dim,
            );
            if let Some(lse) = &job.lse {
                lse.write(sequence.batch, head, query, (base + sum.log2()) * std::f32::consts::LN_2);
            }
        }
    }
}

/// # Safety
/// As [`write_rows`], for one row.
#[inline(always)]
unsafe fn write_row<S: Simd, T: Storage>(
    simd: S,
    records: &HeadRecords,
    record: *const f32,
    weights: &[f32],
    scale: f32,
    target: *mut T,
    value_dim: usize,
) {
    const COLUMNS: usize = 4;
    let scale = simd.splat(scale);
    let mut column = 0;
    while column < value_dim {
        let count = if value_dim - column >= COLUMNS * S::LANES { COLUMNS } else { 1 };
        let mut sums = [simd.splat(0.0); COLUMNS];
        for (piece, &weight) in weights.iter().enumerate() {
            let weight = simd.splat(weight);
            for (c, sum) in sums.iter_mut().enumerate().take(count) {
                // SAFETY: records have whole vectors.
                let value =
                    unsafe { simd.load(record.add(piece * records.piece_stride + column + c * S::LANES)) };
                *sum = simd.fma(weight, value, *sum);
            }
        }
        for (c, sum) in sums.into_iter().enumerate().take(count) {
            let first = column + c * S::LANES;
            let scaled = simd.mul(sum, scale);
            // SAFETY: elements of the row.
            unsafe {
                if value_dim - first >= S::LANES {
                    T::store(simd, target.add(first), scaled);
                } else {
                    let mut values = [T::from_f32(0.0); MAX_LANES];
                    T::store(simd, values.as_mut_ptr(), scaled);
                    values.as_ptr().copy_to_nonoverlapping(target.add(first), value_dim - first);
                }
            }
        }
        column += count * S::LANES;
    }
}
