//! One task: strips of one key head against a range of keys, block by block.

use omniflash_core::TileStatus;

use super::Call;
use super::memory::Memory;
use super::operands::Operands;
use super::pack::{MAX_BLOCK, PREFETCH_ROWS, pack_keys, pack_queries};
use super::schedule::Task;
use super::strip::{MAX_ROWS, Segments, Strip};
use super::tile::Panels;
use crate::simd::Simd;

/// What works through tasks: memory, strips, and the call they belong to.
pub(crate) struct Worker<'w, 'p, S: Simd, O: Operands<S>> {
    pub(super) simd: S,
    pub(super) call: &'w Call<'p, O::Element>,
    pub(super) memory: Memory,
    pub(super) strips: Vec<Strip>,
    pub(super) unit: O::Unit,
}

/// A packed block of keys.
#[derive(Clone, Copy)]
pub(super) struct Block {
    /// Its first key.
    pub(super) first: i64,
    /// Its keys.
    pub(super) keys: usize,
    /// Whether all its values are finite.
    pub(super) is_finite: bool,
    /// Packed keys and values.
    pub(super) k: *const f32,
    pub(super) v: *const f32,
}

impl<'w, 'p, S: Simd, O: Operands<S>> Worker<'w, 'p, S, O> {
    /// Cuts memory of [`Sizes::words`] words.
    pub(crate) fn new(simd: S, call: &'w Call<'p, O::Element>, memory: &'w mut [f32]) -> Self {
        let memory = Memory::new(&call.sizes, memory);
        let strips = (0..call.sizes.strips).map(|_| Strip::new()).collect();
        Worker { simd, call, memory, strips, unit: O::unit(simd) }
    }

    /// Computes a task and writes its rows, or its partial results.
    ///
    /// # Safety
    /// The task's rows, or its place among the partial results, are this call's alone.
    #[inline(always)]
    pub(crate) unsafe fn run(&mut self, task: &Task) {
        let sizes = &self.call.sizes;
        let sequence = self.call.sequences[task.sequence];
        let head = task.kv_head * self.call.group_size;
        for i in 0..task.strips {
            let first = (task.strip + i) * sizes.rows;
            let heads = (head, self.call.group_size);
            self.strips[i].reset(&self.call.mask, &sequence, heads, first, sizes.rows, S::LANES);
            // SAFETY: strip `i` of the memory, and rows of the sequence.
            unsafe { self.load_strip(i, sequence.q_begin) };
        }
        let (mut low, mut high) = task.keys;
        let hulls = self.strips[..task.strips].iter().map(|strip| strip.hull);
        let hull = hulls.fold((i64::MAX, 0), |all, hull| (all.0.min(hull.0), all.1.max(hull.1)));
        low = low.max(hull.0.min(hull.1) / sizes.block as i64 * sizes.block as i64);
        high = high.min(hull.1);
        let mut first = low;
        while first < high {
            let keys = (sizes.block as i64).min(sequence.kv_len as i64 - first) as usize;
            // SAFETY: keys of the sequence, strips that are loaded.
            unsafe { self.visit_block(task, first, keys) };
            first += sizes.block as i64;
        }
        for i in 0..task.strips {
            // SAFETY: the caller's duty.
            unsafe {
                match self.call.partial_of(task, i) {
                    Some(partial) => self.store_partial(i, partial),
                    None => self.finish_strip(i, sequence.q_begin),
                }
            }
        }
    }

    /// Packs the queries of strip `i` and resets its sums.
    #[inline(always)]
    unsafe fn load_strip(&mut self, i: usize, q_begin: usize) {
        let (call, sizes, strip) = (self.call, &self.call.sizes, &self.strips[i]);
        let mut rows = [std::ptr::null::<O::Element>(); MAX_ROWS];
        for (pointer, query) in rows.iter_mut().zip(&strip.rows) {
            *pointer = call.q.at(query.batch, q_begin + query.row, query.head).cast_const();
        }
        // SAFETY: rows of the problem; the memory of strip `i`.
        unsafe {
            let q = self.memory.q.add(i * sizes.query_words());
            let rows = &rows[..strip.rows.len()];
            pack_queries::<S, O>(self.simd, rows, call.head_dim, sizes.key_panels, q);
            for row in (0..sizes.rows).step_by(S::LANES) {
                let at = i * sizes.rows + row;
                self.simd.store(self.memory.m.add(at), self.simd.splat(f32::NEG_INFINITY));
                self.simd.store(self.memory.l.add(at), self.simd.splat(0.0));
            }
        }
    }

    /// Takes a block of keys into account, in all strips that see some of it.
    #[inline(always)]
    unsafe fn visit_block(&mut self, task: &Task, first: i64, keys: usize) {
        let mut is_seen = false;
        for strip in &mut self.strips[..task.strips] {
            strip.look_at_bits(&self.call.mask, first, keys);
            is_seen |= strip.status != TileStatus::Skip
                && strip.hull.0 < first + keys as i64
                && strip.hull.1 > first;
        }
        if !is_seen {
            return;
        }
        // SAFETY: keys of the sequence, of which some row sees some, so that the copy, if there is one, has them.
        let block = unsafe {
            match (&task.place, self.call.copy) {
                (Some(place), Some(copy)) => self.block_of_copy(copy, place, first, keys),
                _ => self.pack_block(task, first, keys),
            }
        };
        for i in 0..task.strips {
            if self.strips[i].status == TileStatus::Skip {
                continue;
            }
            let segments = self.strips[i].cut(first, keys, O::KEY_STEP);
            if !segments.is_empty() {
                // SAFETY: the block is packed and the strip loaded.
                unsafe { self.visit_tile(i, &block, &segments) };
            }
        }
    }

    #[inline(always)]
    unsafe fn pack_block(&mut self, task: &Task, first: i64, keys: usize) -> Block {
        let (call, sizes) = (self.call, &self.call.sizes);
        let batch = call.sequences[task.sequence].batch;
        let [k_rows, v_rows] = self.rows_of(batch, task.kv_head, first as usize, keys);
        let (k_rows, v_rows) = (&k_rows[..keys], &v_rows[..keys]);
        let ahead = &k_rows[PREFETCH_ROWS.min(keys)..];
        // SAFETY: rows of keys and values of the sequence; the block's memory.
        let is_finite = unsafe {
            let (simd, target) = (self.simd, self.memory.k);
            let (panels, panel_rows) = (sizes.key_panels, sizes.packed_keys());
            pack_keys::<S, O, false>(simd, k_rows, ahead, call.head_dim, panels, panel_rows, target);
            let (panels, panel_rows) = (sizes.value_panels, sizes.value_rows());
            O::pack_values(simd, v_rows, call.value_dim, panels, panel_rows, self.memory.v)
        };
        Block { first, keys, is_finite, k: self.memory.k, v: self.memory.v }
    }

    /// Where keys and values of a head are, from `first` on, for `keys` keys.
    #[inline(always)]
    pub(super) fn rows_of(
        &self,
        batch: usize,
        kv_head: usize,
        first: usize,
        keys: usize,
    ) -> [[*const O::Element; MAX_BLOCK]; 2] {
        let kv = &self.call.kv;
        let mut rows = [[std::ptr::null(); MAX_BLOCK]; 2];
        let mut j = 0;
        while j < keys {
            let run = kv.run(batch, kv_head, first + j, first + keys);
            for i in 0..run.len {
                rows[0][j + i] = run.k.wrapping_offset(i as isize * kv.k().row_stride());
                rows[1][j + i] = run.v.wrapping_offset(i as isize * kv.v().row_stride());
            }
            j += run.len;
        }
        rows
    }

    /// Scores, online softmax and weighted values of one strip and one block.
    #[inline(always)]
    unsafe fn visit_tile(&mut self, i: usize, block: &Block, segments: &Segments) {
        let (simd, sizes) = (self.simd, &self.call.sizes);
        let vectors = self.strips[i].vectors;
        for row in (0..vectors * S::LANES).step_by(S::LANES) {
            // SAFETY: a vector of the strip.
            unsafe {
                simd.store(self.memory.maxima.add(row), simd.splat(f32::NEG_INFINITY));
                simd.store(self.memory.sums.add(row), simd.splat(0.0));
            }
        }
        if segments.iter().any(|segment| segment.is_edge) {
            // SAFETY: vectors of the strip.
            unsafe { self.count_limits_from(i, block) };
        }
        let is_plain = self.call.scores.is_plain() && self.strips[i].status != TileStatus::Partial;
        let k = Panels { words: block.k, count: sizes.key_panels, rows: sizes.packed_keys() };
        for segment in segments.iter() {
            let lane = segment.first * S::LANES;
            let needs_no_look = is_plain && !segment.is_edge;
            // SAFETY: queries, keys and scores of the segment are in memory.
            unsafe {
                let q = self.memory.q.add(i * sizes.query_words() + lane);
                let maxima = needs_no_look.then_some(self.memory.maxima.add(lane));
                let keys = (segment.begin, segment.end);
                let s = self.memory.s.add(lane);
                O::scores(&mut self.unit, simd, segment.vectors, keys, q, k, s, maxima);
                if !needs_no_look {
                    self.modify_and_hide(i, block, segment);
                }
            }
        }
        // SAFETY: the scores of all segments are in memory.
        unsafe {
            let some_raised = self.raise_maxima(i);
            for segment in segments.iter() {
                self.weigh(segment);
            }
            self.update_sums(i);
            self.add_values(i, block, segments, some_raised);
        }
    }
}
