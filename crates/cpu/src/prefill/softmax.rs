//! Online softmax of one strip and one block: scores to weights, in place.

use omniflash_core::TileStatus;

use super::operands::Operands;
use super::strip::Segment;
use super::task::{Block, Worker};
use super::tile::strip_rows;
use crate::score::Tile;
use crate::simd::Simd;

/// How far exponents of 2 may pass a row's running maximum before it is raised.
pub(super) const SLACK: f32 = 8.0;

impl<S: Simd, O: Operands<S>> Worker<'_, '_, S, O> {
    /// Writes the rows' intervals, counted from the block's first key; lanes without a row see nothing.
    #[inline(always)]
    pub(super) unsafe fn count_limits_from(&mut self, i: usize, block: &Block) {
        let strip = &self.strips[i];
        for row in 0..strip.vectors * S::LANES {
            let (low, high) = strip.keys.get(row).copied().unwrap_or((0, 0));
            // Clamped to the block, so f32 is exact.
            let counted = |key: i64| (key - block.first).clamp(0, block.keys as i64) as f32;
            // SAFETY: a row of the strip's vectors.
            unsafe {
                self.memory.low.add(row).write(counted(low));
                self.memory.high.add(row).write(counted(high));
            }
        }
    }

    /// Applies score modifications to a segment, hides what is not visible and raises the maxima.
    #[inline(always)]
    pub(super) unsafe fn modify_and_hide(&mut self, i: usize, block: &Block, segment: &Segment) {
        let (simd, sizes, strip) = (self.simd, &self.call.sizes, &self.strips[i]);
        if !self.call.scores.is_plain() {
            let tile = Tile {
                scores: self.memory.s,
                stride: sizes.rows,
                first_key: block.first,
                begin: segment.begin,
                end: segment.end,
                keys: block.keys,
                rows: &strip.rows,
                visible: &strip.keys,
                elements: self.memory.elements,
            };
            // SAFETY: the tile is in memory; vectors outside the segment hold garbage, and still do.
            unsafe { self.call.scores.apply(simd, &tile) };
        }
        let has_bits = strip.status == TileStatus::Partial;
        let hidden = simd.splat(f32::NEG_INFINITY);
        for vector in segment.first..segment.first + segment.vectors {
            let lane = vector * S::LANES;
            // SAFETY: a vector of the segment.
            unsafe {
                let (low, high) =
                    (simd.load(self.memory.low.add(lane)), simd.load(self.memory.high.add(lane)));
                let mut largest = simd.load(self.memory.maxima.add(lane));
                for j in segment.begin..segment.end {
                    let at = self.memory.s.add(j * sizes.rows + lane);
                    let mut score = simd.load(at);
                    if segment.is_edge {
                        let key = simd.splat(j as f32);
                        let is_visible = simd.both(simd.less_equal(low, key), simd.less(key, high));
                        score = simd.select(is_visible, score, hidden);
                    }
                    if has_bits {
                        let is_visible = simd.lanes_from_bits(strip.bits[j] >> lane);
                        score = simd.select(is_visible, score, hidden);
                    }
                    simd.store(at, score);
                    largest = simd.max(largest, score);
                }
                simd.store(self.memory.maxima.add(lane), largest);
            }
        }
    }

    /// Raises the running maxima that the block's pass by more than [`SLACK`], and finds what older sums are worth now;
    /// whether some are worth less.
    ///
    /// A row's weights may then be as large as `2^SLACK`, which no type of weights minds, and its older sums are hardly
    /// ever multiplied after the first blocks. Each row decides by itself.
    #[inline(always)]
    pub(super) unsafe fn raise_maxima(&mut self, i: usize) -> bool {
        let simd = self.simd;
        let scale = simd.splat(self.call.scores.exponent_scale);
        let mut some_raised = false;
        for lane in (0..self.strips[i].vectors * S::LANES).step_by(S::LANES) {
            // SAFETY: a vector of the strip.
            unsafe {
                let m = self.memory.m.add(i * self.call.sizes.rows + lane);
                let old = simd.load(m);
                let found = simd.mul(simd.load(self.memory.maxima.add(lane)), scale);
                let bound = simd.add(old, simd.splat(SLACK));
                // A maximum that is no number is taken over, and so are all sums of its row.
                let new = simd.select(simd.less_equal(found, bound), old, found);
                some_raised |= simd.any(simd.less(bound, found));
                // A row that has seen nothing yet: its exponents are -inf whatever they are reduced by, but -inf.
                let has_seen_none = simd.less(new, simd.splat(f32::MIN));
                let shift = simd.select(has_seen_none, simd.splat(0.0), new);
                simd.store(m, new);
                simd.store(self.memory.shift.add(lane), shift);
                simd.store(self.memory.factor.add(lane), simd.exp2(simd.sub(old, shift)));
            }
        }
        some_raised
    }

    /// Turns the scores of a segment to weights, in place, and sums them.
    #[inline(always)]
    pub(super) unsafe fn weigh(&mut self, segment: &Segment) {
        // SAFETY: the segment's vectors; no more are touched than a strip has.
        unsafe {
            match segment.vectors {
                1 => self.weigh_vectors::<1>(segment),
                2 => self.weigh_vectors::<2>(segment),
                3 if S::STRIP_VECTORS > 2 => self.weigh_vectors::<3>(segment),
                _ if S::STRIP_VECTORS > 2 => self.weigh_vectors::<4>(segment),
                _ => unreachable!("a strip has at most STRIP_VECTORS vectors"),
            }
        }
    }

    #[inline(always)]
    pub(super) unsafe fn weigh_vectors<const N: usize>(&mut self, segment: &Segment) {
        let (simd, rows) = (self.simd, strip_rows::<S>());
        let lane = segment.first * S::LANES;
        let scale = simd.splat(self.call.scores.exponent_scale);
        let (mut shift, mut sums) = ([scale; N], [scale; N]);
        // SAFETY: scores of the segment; weights of keys `j..j + DEPTH` take the place of key `j / DEPTH`, whose score
        // is read by then.
        unsafe {
            for a in 0..N {
                shift[a] = simd.sub(simd.splat(0.0), simd.load(self.memory.shift.add(lane + a * S::LANES)));
                sums[a] = simd.load(self.memory.sums.add(lane + a * S::LANES));
            }
            for j in (segment.begin..segment.end).step_by(O::DEPTH) {
                let s = self.memory.s.add(j * rows + lane);
                let p = self.memory.s.add(j / O::DEPTH * rows + lane);
                for a in 0..N {
                    let mut weights = [simd.splat(0.0); 2];
                    for i in 0..O::DEPTH {
                        let score = simd.load(s.add(i * rows + a * S::LANES));
                        weights[i] = O::exp2(simd, simd.fma(score, scale, shift[a]));
                        sums[a] = simd.add(sums[a], weights[i]);
                    }
                    simd.store(p.add(a * S::LANES), O::join(simd, weights));
                }
            }
            for a in 0..N {
                simd.store(self.memory.sums.add(lane + a * S::LANES), sums[a]);
            }
        }
    }

    /// Adds the block's sums to the running ones.
    #[inline(always)]
    pub(super) unsafe fn update_sums(&mut self, i: usize) {
        let simd = self.simd;
        for lane in (0..self.strips[i].vectors * S::LANES).step_by(S::LANES) {
            // SAFETY: a vector of the strip.
            unsafe {
                let l = self.memory.l.add(i * self.call.sizes.rows + lane);
                let factor = simd.load(self.memory.factor.add(lane));
                simd.store(l, simd.fma(simd.load(l), factor, simd.load(self.memory.sums.add(lane))));
            }
        }
    }
}
