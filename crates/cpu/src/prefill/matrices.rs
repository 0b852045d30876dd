//! The two products of a tile by matrix instructions (AMX), on tensors of bf16.
//!
//! ```text
//!              32 query rows                       32 query rows
//!            ┌───────┬───────┐                   ┌───────┬───────┐
//!    32 keys │  C0   │  C1   │       32 columns  │  C0   │  C1   │
//!            ├───────┼───────┤       of values   ├───────┼───────┤
//!            │  C2   │  C3   │                   │  C2   │  C3   │
//!            └───────┴───────┘                   └───────┴───────┘
//!    left: K[key][d], right: Q^T[d][row]     left: V^T[column][key], right: P^T[key][row]
//! ```
//!
//! Queries, keys, scores, weights and output lie as they do for vectors ([`tile`](super::tile)): a panel of packed keys
//! is a column of left operands, pairs of Q^T and P^T are right operands, and softmax is the same. Only values are
//! turned as they are packed. Four sums for two operands on either side are the most that eight tiles allow: one load a
//! product.

use std::marker::PhantomData;

use half::bf16;

use super::operands::{Operands, Pairs};
use super::pack::{MAX_BLOCK, load_columns};
use super::tile::{PANEL, Panels, Start, strip_rows};
use crate::amx::{TILE, TILE_WORDS, TileUnit};
use crate::simd::{Avx512, Simd};

/// Keys of a left operand's row of values.
pub(super) const KEY_STEP: usize = 2 * TILE;

const _: () = assert!(MAX_BLOCK.is_multiple_of(KEY_STEP) && PANEL == TILE);

/// Pairs of bf16, multiplied tile by tile.
pub(super) struct Matrices<U>(PhantomData<fn() -> U>);

impl<U> Clone for Matrices<U> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<U> Copy for Matrices<U> {}

type Avx = Avx512<true>;
type Word = <Avx as Simd>::Vector;

impl<U: TileUnit> Operands<Avx> for Matrices<U> {
    type Element = bf16;

    const DEPTH: usize = 2;
    const KEY_STEP: usize = KEY_STEP;

    type Unit = U;

    #[inline(always)]
    fn unit(_simd: Avx) -> U {
        // SAFETY: operands are chosen by an instruction set that is available.
        unsafe { U::new() }
    }

    #[inline(always)]
    fn multiply_add(simd: Avx, a: Word, b: Word, sum: Word) -> Word {
        Pairs::multiply_add(simd, a, b, sum)
    }

    #[inline(always)]
    unsafe fn load_words(simd: Avx, row: *const bf16) -> Word {
        // SAFETY: the caller's duty.
        unsafe { Pairs::load_words(simd, row) }
    }

    #[inline(always)]
    unsafe fn load_columns(simd: Avx, rows: [*const bf16; 2]) -> Word {
        // SAFETY: the caller's duty.
        unsafe { Pairs::load_columns(simd, rows) }
    }

    #[inline(always)]
    fn poison(simd: Avx, words: Word, sum: Word) -> Word {
        Pairs::poison(simd, words, sum)
    }

    #[inline(always)]
    fn exp2(simd: Avx, t: Word) -> Word {
        simd.exp2_from_floor(t)
    }

    #[inline(always)]
    fn join(simd: Avx, weights: [Word; 2]) -> Word {
        Pairs::join(simd, weights)
    }

    #[inline(always)]
    fn number(word: f32, i: usize) -> f32 {
        <Pairs as Operands<Avx>>::number(word, i)
    }

    #[inline(always)]
    unsafe fn scores(
        unit: &mut U,
        simd: Avx,
        vectors: usize,
        keys: (usize, usize),
        q: *const f32,
        k: Panels,
        s: *mut f32,
        maxima: Option<*mut f32>,
    ) {
        let rows = strip_rows::<Avx>();
        for key in (keys.0..keys.1).step_by(KEY_STEP) {
            for vector in (0..vectors).step_by(2) {
                let lane = vector * TILE;
                // SAFETY: the caller's duties: keys, vectors and scores of the segment, two vectors if there are.
                unsafe {
                    let (q, s) = (q.add(lane), s.add(key * rows + lane));
                    let (right, n) = (Operand { at: q, next: TILE, stride: rows }, (vectors - vector).min(2));
                    let left = Operand { at: k.words.add(key * PANEL), next: TILE * PANEL, stride: PANEL };
                    let steps = Steps { count: k.count, left: k.rows * PANEL, right: PANEL * rows };
                    let sums = Sums { at: s, next: TILE * rows, stride: rows };
                    multiply(unit, (2, n), left, right, steps, sums, false);
                    if let Some(maxima) = maxima {
                        raise(simd, n, s, maxima.add(lane));
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn values(
        unit: &mut U,
        simd: Avx,
        vectors: usize,
        (begin, end): (usize, usize),
        p: *const f32,
        v: Panels,
        o: *mut f32,
        start: Start,
    ) {
        let rows = strip_rows::<Avx>();
        for panel in (0..v.count).step_by(2) {
            let m = (v.count - panel).min(2);
            for vector in (0..vectors).step_by(2) {
                let (lane, n) = (vector * TILE, (vectors - vector).min(2));
                // SAFETY: the caller's duties: panels, vectors and rows of words of the segment.
                unsafe {
                    let o = o.add(panel * PANEL * rows + lane);
                    if let Start::Scaled(factors) = start {
                        scale(simd, (m * PANEL, n), o, factors.add(lane));
                    }
                    let left = Operand {
                        at: v.words.add((panel * v.rows + begin) * PANEL),
                        next: v.rows * PANEL,
                        stride: PANEL,
                    };
                    let right = Operand { at: p.add(begin * rows + lane), next: TILE, stride: rows };
                    let count = (end - begin) / TILE;
                    let steps = Steps { count, left: TILE_WORDS, right: TILE * rows };
                    let sums = Sums { at: o, next: TILE * rows, stride: rows };
                    multiply(unit, (m, n), left, right, steps, sums, !matches!(start, Start::Zero));
                }
            }
        }
    }

    /// Packs values to `[panels][panel_rows / 16][column of the panel][16 words]`.
    #[inline(always)]
    unsafe fn pack_values(
        simd: Avx,
        rows: &[*const bf16],
        dim: usize,
        panels: usize,
        panel_rows: usize,
        target: *mut f32,
    ) -> bool {
        let mut poison = simd.splat(0.0);
        for step in 0..rows.len().div_ceil(KEY_STEP) {
            for panel in 0..panels {
                let column = panel * PANEL;
                let columns = dim.saturating_sub(column);
                let mut block = simd.block();
                for word in 0..TILE {
                    let row = step * KEY_STEP + 2 * word;
                    let Some(&first) = rows.get(row) else { break };
                    if panel % 2 == 0 {
                        for ahead in
                            [rows.get(row + KEY_STEP), rows.get(row + KEY_STEP + 1)].into_iter().flatten()
                        {
                            simd.prefetch(ahead.wrapping_add(column).cast());
                        }
                    }
                    let second = rows.get(row + 1).map(|second| second.wrapping_add(column));
                    // SAFETY: `columns` elements of each row are left from `column` on.
                    block[word] = unsafe {
                        load_columns::<Avx, Self>(simd, first.wrapping_add(column), second, columns)
                    };
                    poison = Self::poison(simd, block[word], poison);
                }
                simd.transpose(&mut block);
                // SAFETY: the target has this tile.
                let tile = unsafe { target.add((panel * panel_rows + step * TILE) * PANEL) };
                for i in 0..PANEL {
                    // SAFETY: row `i` of the tile.
                    unsafe { simd.store(tile.add(i * TILE), block[i]) };
                }
            }
        }
        simd.sum(poison) == 0.0
    }

    #[inline(always)]
    fn value_at(panel_rows: usize, column: usize, word: usize) -> usize {
        (column / PANEL * panel_rows + word / TILE * TILE) * PANEL + column % PANEL * TILE + word % TILE
    }
}

/// Two tiles of an operand.
#[derive(Clone, Copy)]
struct Operand {
    at: *const f32,
    /// Words between the two.
    next: usize,
    /// Words between rows.
    stride: usize,
}

/// Tiles along what is summed over.
#[derive(Clone, Copy)]
struct Steps {
    count: usize,
    /// Words between tiles of the left operand.
    left: usize,
    /// Words between tiles of the right one.
    right: usize,
}

/// Two by two tiles of sums; those in a row of tiles are [`TILE`] words apart.
#[derive(Clone, Copy)]
struct Sums {
    at: *mut f32,
    /// Words between rows of tiles.
    next: usize,
    /// Words between rows.
    stride: usize,
}

/// Multiplies as many tiles of the operands as there are, 1 or 2 of each, on top of the sums or of nothing.
///
/// # Safety
/// All the tiles are in memory.
#[inline(always)]
unsafe fn multiply<U: TileUnit>(
    unit: &mut U,
    (m, n): (usize, usize),
    left: Operand,
    right: Operand,
    steps: Steps,
    sums: Sums,
    is_kept: bool,
) {
    // SAFETY: the caller's duty, and no more tiles are touched than it says.
    unsafe {
        match (m, n) {
            (2, 2) => multiply_tiles::<U, 2, 2>(unit, left, right, steps, sums, is_kept),
            (2, _) => multiply_tiles::<U, 2, 1>(unit, left, right, steps, sums, is_kept),
            (_, 2) => multiply_tiles::<U, 1, 2>(unit, left, right, steps, sums, is_kept),
            _ => multiply_tiles::<U, 1, 1>(unit, left, right, steps, sums, is_kept),
        }
    }
}

#[inline(always)]
unsafe fn multiply_tiles<U: TileUnit, const M: usize, const N: usize>(
    unit: &mut U,
    left: Operand,
    right: Operand,
    steps: Steps,
    sums: Sums,
    is_kept: bool,
) {
    let rows = [sums.at, sums.at.wrapping_add(sums.next)];
    // SAFETY: the caller's duty.
    unsafe {
        if is_kept {
            unit.load::<0>(rows[0], sums.stride);
            if N == 2 {
                unit.load::<1>(rows[0].add(TILE), sums.stride);
            }
            if M == 2 {
                unit.load::<2>(rows[1], sums.stride);
            }
            if M == 2 && N == 2 {
                unit.load::<3>(rows[1].add(TILE), sums.stride);
            }
        } else {
            unit.zero::<0>();
            unit.zero::<1>();
            unit.zero::<2>();
            unit.zero::<3>();
        }
        for step in 0..steps.count {
            let (a, b) = (left.at.add(step * steps.left), right.at.add(step * steps.right));
            unit.load::<4>(a, left.stride);
            unit.load::<6>(b, right.stride);
            unit.multiply::<0, 4, 6>();
            if N == 2 {
                unit.load::<7>(b.add(right.next), right.stride);
                unit.multiply::<1, 4, 7>();
            }
            if M == 2 {
                unit.load::<5>(a.add(left.next), left.stride);
                unit.multiply::<2, 5, 6>();
            }
            if M == 2 && N == 2 {
                unit.multiply::<3, 5, 7>();
            }
        }
        unit.store::<0>(rows[0], sums.stride);
        if N == 2 {
            unit.store::<1>(rows[0].add(TILE), sums.stride);
        }
        if M == 2 {
            unit.store::<2>(rows[1], sums.stride);
        }
        if M == 2 && N == 2 {
            unit.store::<3>(rows[1].add(TILE), sums.stride);
        }
    }
}

/// Raises the largest scores of one or two vectors by those of the keys of a step.
///
/// # Safety
/// The scores have [`KEY_STEP`] rows, and the maxima as many vectors.
#[inline(always)]
unsafe fn raise(simd: Avx, vectors: usize, s: *const f32, maxima: *mut f32) {
    for vector in 0..vectors {
        let lane = vector * TILE;
        // SAFETY: the caller's duty.
        unsafe {
            let mut largest = [simd.load(maxima.add(lane)), simd.load(s.add(lane))];
            for key in 1..KEY_STEP {
                let score = simd.load(s.add(key * strip_rows::<Avx>() + lane));
                largest[key % 2] = simd.max(largest[key % 2], score);
            }
            simd.store(maxima.add(lane), simd.max(largest[0], largest[1]));
        }
    }
}

/// Multiplies columns of one or two vectors of the output by the rows' factors.
///
/// # Safety
/// The output has these columns and vectors, and the factors as many vectors.
#[inline(always)]
unsafe fn scale(simd: Avx, (columns, vectors): (usize, usize), o: *mut f32, factors: *const f32) {
    for vector in 0..vectors {
        let lane = vector * TILE;
        // SAFETY: the caller's duty.
        unsafe {
            let factor = simd.load(factors.add(lane));
            for column in 0..columns {
                let at = o.add(column * strip_rows::<Avx>() + lane);
                simd.store(at, simd.mul(simd.load(at), factor));
            }
        }
    }
}
