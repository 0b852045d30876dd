//! One task: strips of one key head against a range of keys, block by block.

use omniflash_core::TileStatus;

use super::operands::Operands;
use super::pack::{KEY_STEP, MAX_BLOCK, pack_keys, pack_queries, pack_values, unpack_output};
use super::strip::{MAX_ROWS, Segment, Segments, Strip};
use super::tile::{self, PANEL, Panels, Start, strip_rows};
use super::{Call, Task};
use crate::score::Tile;
use crate::scratch::{Parts, rounded};
use crate::simd::Simd;

/// How far exponents of 2 may pass a row's running maximum before it is raised.
const SLACK: f32 = 8.0;

/// Sizes of a worker's memory, in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// Strips of a task.
    pub(crate) strips: usize,
    /// Rows of a strip.
    pub(crate) rows: usize,
    /// Keys of a block.
    pub(crate) block: usize,
    /// Panels of words of a query or key.
    pub(crate) key_panels: usize,
    /// Panels of columns of values.
    pub(crate) value_panels: usize,
    /// Numbers in a word.
    pub(crate) depth: usize,
    /// Whether tensors are read score by score.
    pub(crate) reads_tensors: bool,
}

impl Sizes {
    /// Words of one strip's queries.
    fn query_words(&self) -> usize {
        self.key_panels * PANEL * self.rows
    }

    /// Words of one strip's output.
    fn output_words(&self) -> usize {
        self.value_panels * PANEL * self.rows
    }

    /// Words of a strip's partial result: output, maxima and sums.
    pub(crate) fn partial_words(&self) -> usize {
        self.output_words() + 2 * self.rows
    }

    /// Words of all.
    pub(crate) fn words(&self) -> usize {
        let tile = self.block * self.rows;
        let parts = [
            self.strips * self.query_words(),
            self.strips * self.output_words(),
            self.block * self.key_panels * PANEL,
            self.block / self.depth * self.value_panels * PANEL,
            tile,
            if self.reads_tensors { tile } else { 0 },
            self.strips * self.rows,
            self.strips * self.rows,
        ];
        parts.iter().map(|&words| rounded(words)).sum::<usize>() + 6 * rounded(self.rows)
    }
}

/// A worker's memory, by use.
struct Memory {
    q: *mut f32,
    o: *mut f32,
    k: *mut f32,
    v: *mut f32,
    /// Scores `[key][row]`, then weights in their place.
    s: *mut f32,
    /// Elements of a tensor `[key][row]`.
    elements: *mut f32,
    /// What exponents of each strip's rows are reduced by: their running maximum, or up to [`SLACK`] less.
    m: *mut f32,
    /// Running sum of the weights of each strip's rows.
    l: *mut f32,
    /// For the rows of one strip and block: the largest score,
    maxima: *mut f32,
    /// what exponents are reduced by, finite,
    shift: *mut f32,
    /// what older sums are multiplied by,
    factor: *mut f32,
    /// the sum of the block's weights,
    sums: *mut f32,
    /// and the interval of keys, as f32 counted from the block's first.
    low: *mut f32,
    high: *mut f32,
}

/// What works through tasks: memory, strips, and the call they belong to.
pub(crate) struct Worker<'w, 'p, S: Simd, O: Operands<S>> {
    simd: S,
    call: &'w Call<'p, O::Element>,
    memory: Memory,
    strips: Vec<Strip>,
}

/// A packed block of keys.
#[derive(Clone, Copy)]
struct Block {
    /// Its first key.
    first: i64,
    /// Its keys.
    keys: usize,
    /// Whether all its values are finite.
    is_finite: bool,
}

impl<'w, 'p, S: Simd, O: Operands<S>> Worker<'w, 'p, S, O> {
    /// Cuts memory of [`Sizes::words`] words.
    pub(crate) fn new(simd: S, call: &'w Call<'p, O::Element>, memory: &'w mut [f32]) -> Self {
        let sizes = &call.sizes;
        let mut parts = Parts::new(memory);
        let mut take = |words: usize| parts.take(words).as_mut_ptr();
        let tile = sizes.block * sizes.rows;
        let memory = Memory {
            q: take(sizes.strips * sizes.query_words()),
            o: take(sizes.strips * sizes.output_words()),
            k: take(sizes.block * sizes.key_panels * PANEL),
            v: take(sizes.block / sizes.depth * sizes.value_panels * PANEL),
            s: take(tile),
            elements: take(if sizes.reads_tensors { tile } else { 0 }),
            m: take(sizes.strips * sizes.rows),
            l: take(sizes.strips * sizes.rows),
            maxima: take(sizes.rows),
            shift: take(sizes.rows),
            factor: take(sizes.rows),
            sums: take(sizes.rows),
            low: take(sizes.rows),
            high: take(sizes.rows),
        };
        let strips = (0..sizes.strips).map(|_| Strip::new()).collect();
        Worker { simd, call, memory, strips }
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
        // SAFETY: keys of the sequence.
        let block = unsafe { self.pack_block(task, first, keys) };
        for i in 0..task.strips {
            if self.strips[i].status == TileStatus::Skip {
                continue;
            }
            let segments = self.strips[i].cut(first, keys);
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
        let mut k_rows = [std::ptr::null::<O::Element>(); MAX_BLOCK];
        let mut v_rows = [std::ptr::null::<O::Element>(); MAX_BLOCK];
        let mut j = 0;
        while j < keys {
            let run = call.kv.run(batch, task.kv_head, first as usize + j, first as usize + keys);
            for i in 0..run.len {
                k_rows[j + i] = run.k.wrapping_offset(i as isize * call.kv.k().row_stride());
                v_rows[j + i] = run.v.wrapping_offset(i as isize * call.kv.v().row_stride());
            }
            j += run.len;
        }
        // SAFETY: rows of keys and values of the sequence; the block's memory.
        let is_finite = unsafe {
            let (k_rows, v_rows) = (&k_rows[..keys], &v_rows[..keys]);
            pack_keys::<S, O>(self.simd, k_rows, call.head_dim, sizes.key_panels, sizes.block, self.memory.k);
            let panel_rows = sizes.block / O::DEPTH;
            let (panels, target) = (sizes.value_panels, self.memory.v);
            pack_values::<S, O>(self.simd, v_rows, call.value_dim, panels, panel_rows, target)
        };
        Block { first, keys, is_finite }
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
        let k = Panels { words: self.memory.k, count: sizes.key_panels, rows: sizes.block };
        for segment in segments.iter() {
            let lane = segment.first * S::LANES;
            let needs_no_look = is_plain && !segment.is_edge;
            // SAFETY: queries, keys and scores of the segment are in memory.
            unsafe {
                let q = self.memory.q.add(i * sizes.query_words() + lane);
                let maxima = needs_no_look.then_some(self.memory.maxima.add(lane));
                let keys = (segment.begin, segment.end);
                let s = self.memory.s.add(lane);
                tile::scores::<S, O>(simd, segment.vectors, keys, q, k, s, maxima);
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

    /// Writes the rows' intervals, counted from the block's first key; lanes without a row see nothing.
    #[inline(always)]
    unsafe fn count_limits_from(&mut self, i: usize, block: &Block) {
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
    unsafe fn modify_and_hide(&mut self, i: usize, block: &Block, segment: &Segment) {
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
    unsafe fn raise_maxima(&mut self, i: usize) -> bool {
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
    unsafe fn weigh(&mut self, segment: &Segment) {
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
    unsafe fn weigh_vectors<const N: usize>(&mut self, segment: &Segment) {
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
    unsafe fn update_sums(&mut self, i: usize) {
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

    /// Adds the block's weighted values to the output, of which some rows are to be multiplied first if maxima were
    /// raised.
    #[inline(always)]
    unsafe fn add_values(&mut self, i: usize, block: &Block, segments: &Segments, some_raised: bool) {
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
        let v = Panels { words: self.memory.v, count: sizes.value_panels, rows: sizes.block / O::DEPTH };
        for segment in segments.iter() {
            let lane = segment.first * S::LANES;
            let rows = (segment.begin / O::DEPTH, segment.end / O::DEPTH);
            // SAFETY: weights, values and output of the segment are in memory.
            unsafe {
                if block.is_finite {
                    let (p, o) = (self.memory.s.add(lane), o.add(lane));
                    tile::values::<S, O>(simd, segment.vectors, rows, p, v, o, start);
                } else {
                    self.add_guarded_values(segment, o);
                }
            }
        }
    }

    /// Multiplies the output by the factors, or zeroes one that holds nothing yet.
    #[inline(always)]
    unsafe fn scale_output(&mut self, o: *mut f32, vectors: usize, was_started: bool) {
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

    /// As [`tile::values`], for values that are not all finite: what a row does not see must not reach it, and
    /// 0 times infinity is not 0.
    unsafe fn add_guarded_values(&mut self, segment: &Segment, o: *mut f32) {
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
                        let row = (column / PANEL * (sizes.block / O::DEPTH) + word) * PANEL;
                        let value = O::number(self.memory.v.add(row + column % PANEL).read(), part);
                        *o.add(column * sizes.rows + lane) += weight * value;
                    }
                }
            }
        }
    }

    /// Keeps strip `i` for the joining of pieces.
    #[inline(always)]
    unsafe fn store_partial(&mut self, i: usize, partial: *mut f32) {
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
    unsafe fn finish_strip(&mut self, i: usize, q_begin: usize) {
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

const _: () = assert!(MAX_BLOCK.is_multiple_of(KEY_STEP));
