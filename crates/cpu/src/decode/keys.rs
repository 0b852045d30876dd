//! The first product: queries with the keys of a block.

use crate::decode::block::Block;
use crate::decode::job::padded_rows;
use crate::decode::products::{BLOCK_KEYS, LINE, Products, STEP_KEYS};
use crate::decode::queue::{Distances, Upcoming, ask};
use crate::decode::worker::{Worker, block_rows};
use crate::simd::Simd;

/// Some keys of a head.
struct KeyRows<'b, T> {
    keys: &'b [*const T],
    /// Where from each of them others are that are asked for beside it; none beside rows after the first.
    asked: Option<Distances>,
    /// From the task's first head, in elements.
    offset: isize,
}

impl<P: Products> Worker<'_, '_, P> {
    /// Scaled dot products of all rows with the keys of a block, in the order of memory: a tile of keys of all heads,
    /// then the next.
    #[inline(always)]
    pub(super) unsafe fn score(
        &self,
        block: &Block<P::Element>,
        rows: usize,
        upcoming: &Upcoming<P::Element>,
    ) {
        let head_stride = self.job.kv.k().head_stride();
        // What the tiles of the last rows, which are the fewest, have most of.
        let step = if rows.is_multiple_of(4) { tile_keys::<P>(4) } else { STEP_KEYS };
        for first in (0..block.len).step_by(step) {
            for index in 0..block.task.heads {
                let offset = index as isize * head_stride;
                for (row, taken) in row_blocks(rows) {
                    let keys = KeyRows {
                        keys: &block.keys[first..first + step],
                        asked: (row == 0).then(|| upcoming.distances(first, block.keys[first])),
                        offset,
                    };
                    let row = index * padded_rows(rows) + row;
                    let queries = self.queries.wrapping_add(row * self.query_words);
                    let scores = self.scores.wrapping_add(row * BLOCK_KEYS + first);
                    // SAFETY: rows of the worker's memory; the block's keys are inside the problem.
                    unsafe {
                        match (taken, P::Simd::LANES) {
                            (4, 8) => self.score_rows::<4, 2>(&keys, queries, scores),
                            (4, _) => self.score_rows::<4, 4>(&keys, queries, scores),
                            (2, 8) => self.score_rows::<2, 4>(&keys, queries, scores),
                            (2, _) => self.score_rows::<2, 8>(&keys, queries, scores),
                            (_, 8) => self.score_rows::<1, 8>(&keys, queries, scores),
                            _ => self.score_rows::<1, 16>(&keys, queries, scores),
                        }
                    }
                }
            }
        }
    }

    /// Dot products of `ROWS` rows with some keys, `KEYS` at a time.
    #[inline(always)]
    unsafe fn score_rows<const ROWS: usize, const KEYS: usize>(
        &self,
        rows: &KeyRows<'_, P::Element>,
        queries: *const f32,
        scores: *mut f32,
    ) {
        let (products, simd) = (self.products, self.products.simd());
        let (lanes, dim) = (P::Simd::LANES, self.job.geometry.head_dim);
        let scale = simd.splat(self.job.scores.scale);
        let vectors_of_line = LINE / (P::KEY_VECTOR * size_of::<P::Element>());
        for (tile, pointers) in rows.keys.chunks_exact(KEYS).enumerate() {
            let mut keys = [std::ptr::null::<P::Element>(); KEYS];
            for (key, pointer) in keys.iter_mut().zip(pointers) {
                *key = pointer.wrapping_offset(rows.offset);
            }
            let mut sums = [[simd.splat(0.0); KEYS]; ROWS];
            let mut left = dim;
            let mut query = queries;
            while left > 0 {
                if let Some(distances) = &rows.asked {
                    for key in keys {
                        ask(simd, key, distances);
                    }
                }
                for _ in 0..vectors_of_line {
                    // SAFETY: the elements of the keys that are left, and a vector of each packed row.
                    unsafe {
                        let queries = Queries { first: query, stride: self.query_words };
                        if left >= P::KEY_VECTOR {
                            multiply::<P, ROWS, KEYS>(products, &keys, queries, None, &mut sums);
                        } else if left > 0 {
                            multiply::<P, ROWS, KEYS>(products, &keys, queries, Some(left), &mut sums);
                        }
                    }
                    for key in &mut keys {
                        *key = key.wrapping_add(P::KEY_VECTOR);
                    }
                    left = left.saturating_sub(P::KEY_VECTOR);
                    query = query.wrapping_add(lanes);
                }
            }
            let mut finished = [0.0f32; 16];
            for part in 0..ROWS * KEYS / lanes {
                let mut vectors = simd.block();
                for (i, vector) in vectors.as_mut().iter_mut().enumerate() {
                    let at = part * lanes + i;
                    *vector = sums[at / KEYS][at % KEYS];
                }
                // SAFETY: a tile has at most 16 scores.
                unsafe {
                    simd.store(finished.as_mut_ptr().add(part * lanes), simd.mul(scale, simd.sums(&vectors)));
                }
            }
            for r in 0..ROWS {
                // SAFETY: keys of a block are padded to a multiple of 16, of which BLOCK_KEYS is one.
                unsafe {
                    let target = scores.add(r * BLOCK_KEYS + tile * KEYS);
                    finished.as_ptr().add(r * KEYS).copy_to_nonoverlapping(target, KEYS);
                }
            }
        }
    }
}

/// Rows as blocks of four, two or one: first row and size. Three rows are four, the last of which counts for nothing.
#[inline(always)]
fn row_blocks(rows: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows.div_ceil(4)).map(move |i| (4 * i, block_rows(rows - 4 * i)))
}

/// Keys of a tile of `rows` rows: as many as give sums that one reduction takes.
#[inline(always)]
fn tile_keys<P: Products>(rows: usize) -> usize {
    if P::Simd::LANES == 8 { 8 / rows } else { 16 / rows }
}

/// One vector of each of some packed rows.
#[derive(Clone, Copy)]
struct Queries {
    first: *const f32,
    /// Words from a row to the next.
    stride: usize,
}

/// Adds the products of one vector of each key with one of each row; of the first `count` elements if that is said.
///
/// # Safety
/// `KEY_VECTOR` elements of each key, or `count`, and a vector of each row can be read.
#[inline(always)]
unsafe fn multiply<P: Products, const ROWS: usize, const KEYS: usize>(
    products: P,
    keys: &[*const P::Element; KEYS],
    queries: Queries,
    count: Option<usize>,
    sums: &mut [[<P::Simd as Simd>::Vector; KEYS]; ROWS],
) {
    let simd = products.simd();
    let mut vectors = [simd.splat(0.0); ROWS];
    for (r, row) in vectors.iter_mut().enumerate() {
        // SAFETY: the caller's duty.
        *row = unsafe { simd.load(queries.first.add(r * queries.stride)) };
    }
    for t in 0..KEYS {
        // SAFETY: the caller's duty.
        let key = unsafe {
            match count {
                None => products.load_key(keys[t]),
                Some(count) => products.load_key_first(keys[t], count),
            }
        };
        for (sums, row) in sums.iter_mut().zip(vectors) {
            sums[t] = products.multiply(key, row, sums[t]);
        }
    }
}
