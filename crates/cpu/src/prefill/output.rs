//! Sums of weighted values: from block to block, from piece to piece, and to the rows of the output.

use super::operands::Operands;
use super::pack::unpack_output;
use super::schedule::Task;
use super::strip::{MAX_ROWS, Segment, Segments};
use super::task::{Block, Worker};
use super::tile::{PANEL, Panels, Start};
use crate::simd::Simd;

impl<S: Simd, O: Operands<S>> Worker<'_, '_, S, O> {
    /// Adds the block's weighted values to the output, of which some rows are to be multiplied first if maxima were
    /// raised.
    #[inline(always)]
    pub(super) unsafe fn add_values(
        &mut self,
        i: usize,
        block: &Block,
        segments: &Segments,
        some_raised: bool,
    ) {
        let (simd, sizes) = (self.simd, &self.call.sizes);
        let vectors = self.strips[i].vectors;
        let was_started = std::mem::replace(&mut self.strips[i].is_started, true);
        // SAFETY: the output of strip `i`.
        let o = unsafe { self.memory.o.add(i * sizes.output_words()) };
        let is_whole = segments.len() == 1 && segments[0].vectors == vectors && block.is_finite;
        let start = match (is_whole, was_started) {
            // All factors are 1, or those of rows that have seen nothing.
            (_, true) if !some_raised => Start::Kept,
            (true, true) => Start::Scaled(self.memory.factor),
            (true, false) => Start::Zero,
            (false, _) => {
                // SAFETY: as above.
                unsafe { self.scale_output(o, vectors, was_started) };
                Start::Kept
            }
        };
        let v = Panels { words: block.v, count: sizes.value_panels, rows: sizes.value_rows() };
        for segment in segments.iter() {
            let lane = segment.first * S::LANES;
            let rows = (segment.begin / O::DEPTH, segment.end / O::DEPTH);
            // SAFETY: weights, values and output of the segment are in memory.
            unsafe {
                if block.is_finite {
                    let (p, o) = (self.memory.s.add(lane), o.add(lane));
                    O::values(&mut self.unit, simd, segment.vectors, rows, p, v, o, start);
                } else {
                    self.add_guarded_values(block, segment, o);
                }
            }
        }
    }

    /// Multiplies the output by the factors, or zeroes one that holds nothing yet.
    #[inline(always)]
    pub(super) unsafe fn scale_output(&mut self, o: *mut f32, vectors: usize, was_started: bool) {
        let (simd, sizes) = (self.simd, &self.call.sizes);
        for vector in 0..vectors {
            let lane = vector * S::LANES;
            // SAFETY: columns and vectors of the output.
            unsafe {
                let factor = simd.load(self.memory.factor.add(lane));
                for column in 0..sizes.value_panels * PANEL {
                    let at = o.add(column * sizes.rows + lane);
                    let scaled = if was_started { simd.mul(simd.load(at), factor) } else { simd.splat(0.0) };
                    simd.store(at, scaled);
                }
            }
        }
    }

    /// As [`Operands::values`], for values that are not all finite: what a row does not see must not reach it, and
    /// 0 times infinity is not 0.
    pub(super) unsafe fn add_guarded_values(&mut self, block: &Block, segment: &Segment, o: *mut f32) {
        let sizes = &self.call.sizes;
        for j in segment.begin..segment.end {
            let (word, part) = (j / O::DEPTH, j % O::DEPTH);
            for lane in segment.first * S::LANES..(segment.first + segment.vectors) * S::LANES {
                // SAFETY: weights, values and output of the segment.
                unsafe {
                    let weight = O::number(self.memory.s.add(word * sizes.rows + lane).read(), part);
                    if weight == 0.0 {
                        continue;
                    }
                    for column in 0..self.call.value_dim {
                        let at = O::value_at(sizes.value_rows(), column, word);
                        let value = O::number(block.v.add(at).read(), part);
                        *o.add(column * sizes.rows + lane) += weight * value;
                    }
                }
            }
        }
    }

    /// Keeps strip `i` for the joining of pieces.
    #[inline(always)]
    pub(super) unsafe fn store_partial(&mut self, i: usize, partial: *mut f32) {
        let sizes = &self.call.sizes;
        // SAFETY: the partial result is this task's alone, and as long as a strip's output, maxima and sums.
        unsafe {
            if self.strips[i].is_started {
                let o = self.memory.o.add(i * sizes.output_words());
                std::ptr::copy_nonoverlapping(o, partial, sizes.output_words());
            } else {
                std::ptr::write_bytes(partial, 0, sizes.output_words());
            }
            let rest = partial.add(sizes.output_words());
            std::ptr::copy_nonoverlapping(self.memory.m.add(i * sizes.rows), rest, sizes.rows);
            let rest = rest.add(sizes.rows);
            std::ptr::copy_nonoverlapping(self.memory.l.add(i * sizes.rows), rest, sizes.rows);
        }
    }

    /// Joins the partial results of a task's one strip, in the order of the keys, and writes its rows.
    ///
    /// # Safety
    /// All pieces of the strip are stored; its rows are this call's alone.
    #[inline(always)]
    pub(crate) unsafe fn join(&mut self, task: &Task) {
        let (simd, sizes) = (self.simd, &self.call.sizes);
        let sequence = self.call.sequences[task.sequence];
        let heads = (task.kv_head * self.call.group_size, self.call.group_size);
        let first = task.strip * sizes.rows;
        self.strips[0].reset(&self.call.mask, &sequence, heads, first, sizes.rows, S::LANES);
        self.strips[0].is_started = true;
        let partials = (0..self.call.pieces).map_while(|piece| {
            self.call.partial_of(&Task { piece, ..*task }, 0).map(|partial| partial.cast_const())
        });
        for lane in (0..self.strips[0].vectors * S::LANES).step_by(S::LANES) {
            // SAFETY: the strip's partial results and the memory of strip 0 have this vector.
            unsafe {
                let (m, l) = (sizes.output_words() + lane, sizes.output_words() + sizes.rows + lane);
                let mut maximum = simd.splat(f32::NEG_INFINITY);
                for partial in partials.clone() {
                    maximum = simd.max(maximum, simd.load(partial.add(m)));
                }
                let has_seen_none = simd.less(maximum, simd.splat(f32::MIN));
                let shift = simd.select(has_seen_none, simd.splat(0.0), maximum);
                let mut sum = simd.splat(0.0);
                for (piece, partial) in partials.clone().enumerate() {
                    let factor = simd.exp2(simd.sub(simd.load(partial.add(m)), shift));
                    sum = simd.fma(factor, simd.load(partial.add(l)), sum);
                    for column in 0..sizes.value_panels * PANEL {
                        let at = column * sizes.rows + lane;
                        let o = self.memory.o.add(at);
                        let so_far = if piece == 0 { simd.splat(0.0) } else { simd.load(o) };
                        simd.store(o, simd.fma(factor, simd.load(partial.add(at)), so_far));
                    }
                }
                simd.store(self.memory.m.add(lane), maximum);
                simd.store(self.memory.l.add(lane), sum);
            }
        }
        // SAFETY: the caller's duty.
        unsafe { self.finish_strip(0, sequence.q_begin) };
    }

    /// Divides by the sums, sinks included, and writes the rows and their log-sum-exp.
    #[inline(always)]
    pub(super) unsafe fn finish_strip(&mut self, i: usize, q_begin: usize) {
        let (simd, call, sizes) = (self.simd, self.call, &self.call.sizes);
        // SAFETY: the output of strip `i`.
        let o = unsafe { self.memory.o.add(i * sizes.output_words()) };
        if !self.strips[i].is_started {
            // SAFETY: as above; whatever the factors are is finite.
            unsafe { self.scale_output(o, self.strips[i].vectors, false) };
        }
        let strip = &self.strips[i];
        let mut rows = [std::ptr::null_mut::<O::Element>(); MAX_ROWS];
        for (r, query) in strip.rows.iter().enumerate() {
            rows[r] = call.out.at(query.batch, q_begin + query.row, query.head);
            // SAFETY: row `r` of strip `i`; the caller's duty for its log-sum-exp.
            unsafe {
                let m = self.memory.m.add(i * sizes.rows + r).read();
                let l = self.memory.l.add(i * sizes.rows + r).read();
                let (factor, lse) = normalize(m, l, call.sinks[query.head]);
                self.memory.factor.add(r).write(factor);
                if let Some(target) = &call.lse {
                    target.write(query.batch, query.head, q_begin + query.row, lse);
                }
            }
        }
        for r in strip.rows.len()..strip.vectors * S::LANES {
            // SAFETY: a lane of the strip's last vector.
            unsafe { self.memory.factor.add(r).write(0.0) };
        }
        // SAFETY: the caller's duty for the rows.
        unsafe {
            unpack_output(simd, o, self.memory.factor, &rows[..strip.rows.len()], call.value_dim);
        }
    }
}

/// What a row's output is multiplied by, and its log-sum-exp, from the largest exponent of 2, the sum of weights
/// relative to it, and the sink.
///
/// A row that has seen nothing has the factor 0 and, without a sink, the log-sum-exp -inf.
pub(crate) fn normalize(m: f32, l: f32, sink: f32) -> (f32, f32) {
    let sink = sink * std::f32::consts::LOG2_E;
    let maximum = if sink > m { sink } else { m };
    if maximum == f32::NEG_INFINITY {
        return (0.0, f32::NEG_INFINITY);
    }
    let weight = (m - maximum).exp2();
    let sum = l * weight + (sink - maximum).exp2();
    let lse = (f64::from(maximum) + f64::from(sum).log2()) * std::f64::consts::LN_2;
    (weight / sum, lse as f32)
}
