//! Softmax of one row over one block of keys, online (Milakov and Gimelshein 2018).

use crate::decode::products::BLOCK_KEYS;
use crate::simd::Simd;

/// A row of scores and what has been summed of it.
pub(super) struct Row {
    /// Exponents of 2, then weights; `BLOCK_KEYS` words.
    pub(super) scores: *mut f32,
    /// Keys of the block, at least 1.
    pub(super) len: usize,
    pub(super) maximum: *mut f32,
    /// A vector of sums of weights.
    pub(super) sums: *mut f32,
    /// Sums of weighted values, whole vectors.
    pub(super) out: *mut f32,
    pub(super) out_words: usize,
}

/// Gives keys that a row does not see the score -inf; whether there are any, by bits or by a score that is -inf.
///
/// # Safety
/// `scores` has `BLOCK_KEYS` words.
#[inline(always)]
pub(super) unsafe fn hide<S: Simd>(simd: S, scores: *mut f32, len: usize, visible: u64) -> bool {
    let hidden = simd.splat(f32::NEG_INFINITY);
    let mut is_any = false;
    for i in (0..len).step_by(S::LANES) {
        let present = simd.lanes_from_bits(u64::MAX >> (BLOCK_KEYS - (len - i)));
        // SAFETY: whole vectors of the row.
        unsafe {
            let at = scores.add(i);
            let score = simd.select(simd.lanes_from_bits(visible >> i), simd.load(at), hidden);
            simd.store(at, score);
            is_any |= simd.any(simd.both(present, simd.less_equal(score, hidden)));
        }
    }
    is_any
}

/// Replaces scores by weights, zeros after the last key up to a multiple of `step`, and takes them into the sums.
///
/// # Safety
/// The row's memory is as its fields say; `step` is a multiple of LANES and divides `BLOCK_KEYS`.
#[inline(always)]
pub(super) unsafe fn normalize<S: Simd>(simd: S, row: &Row, step: usize) {
    let padded = row.len.next_multiple_of(step);
    // SAFETY: the caller's duty.
    unsafe {
        for i in row.len..padded {
            row.scores.add(i).write(f32::NEG_INFINITY);
        }
        let old = row.maximum.read();
        let mut largest = simd.load(row.scores);
        for i in (S::LANES..padded).step_by(S::LANES) {
            largest = simd.max(simd.load(row.scores.add(i)), largest);
        }
        let mut sums = simd.load(row.sums);
        let mut maximum = old;
        if simd.any(simd.less(simd.splat(old), largest)) {
            maximum = simd.largest(largest);
            row.maximum.write(maximum);
            if old != f32::NEG_INFINITY {
                let shrink = simd.exp2(simd.splat(old - maximum));
                sums = simd.mul(sums, shrink);
                for i in (0..row.out_words).step_by(S::LANES) {
                    let at = row.out.add(i);
                    simd.store(at, simd.mul(simd.load(at), shrink));
                }
            }
        }
        // -inf less -inf is no number: a row that has seen nothing yet has weights 2^-inf.
        let base = simd.splat(if maximum == f32::NEG_INFINITY { 0.0 } else { maximum });
        for i in (0..padded).step_by(S::LANES) {
            let at = row.scores.add(i);
            let weight = simd.exp2(simd.sub(simd.load(at), base));
            sums = simd.add(sums, weight);
            simd.store(at, weight);
        }
        simd.store(row.sums, sums);
    }
}
