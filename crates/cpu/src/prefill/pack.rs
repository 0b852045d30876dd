//! Between tensors and packed words.

use half::bf16;
use omniflash_core::Float;

use super::operands::Operands;
use super::tile::{PANEL, strip_rows};
use crate::simd::{Simd, Storage};

/// Keys of a block at most: visible keys of a row fit a `u128`.
pub(crate) const MAX_BLOCK: usize = 128;

/// Keys of a block are packed in multiples of this where vectors multiply; the last ones are zeros.
pub(super) const KEY_STEP: usize = 4;

const _: () = assert!(MAX_BLOCK.is_multiple_of(KEY_STEP));

/// How many rows ahead of the one that is packed cache lines are asked for.
pub(crate) const PREFETCH_ROWS: usize = 8;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Vectors of output that are transposed together, at most.
const MOST_LINE_VECTORS: usize = 2;

/// What a missing second row of values is read from.
const ZEROS: [bf16; 16] = [bf16::ZERO; 16];

/// The words of `elements` consecutive elements, zeros after them.
///
/// # Safety
/// `elements` elements can be read.
#[inline(always)]
unsafe fn load_words<S: Simd, O: Operands<S>>(simd: S, row: *const O::Element, elements: usize) -> S::Vector {
    // SAFETY: at most `elements` elements are read, and the copy has 32, enough for any word count.
    unsafe {
        if elements >= S::LANES * O::DEPTH {
            return O::load_words(simd, row);
        }
        let mut copy = [O::Element::from_f32(0.0); 32];
        std::ptr::copy_nonoverlapping(row, copy.as_mut_ptr(), elements);
        O::load_words(simd, copy.as_ptr())
    }
}

/// Packs rows of queries to `[words][strip_rows]`; lanes beyond the rows, in vectors that hold any, are zeros.
///
/// # Safety
/// - Each row has `dim` elements.
/// - `target` has room for `panels * PANEL * strip_rows` words.
#[inline(always)]
pub(crate) unsafe fn pack_queries<S: Simd, O: Operands<S>>(
    simd: S,
    rows: &[*const O::Element],
    dim: usize,
    panels: usize,
    target: *mut f32,
) {
    let chunk = S::LANES * O::DEPTH;
    for first in (0..rows.len()).step_by(S::LANES) {
        for word in (0..panels * PANEL).step_by(S::LANES) {
            let mut block = simd.block();
            let begin = (word / S::LANES) * chunk;
            let elements = dim.saturating_sub(begin);
            for next in rows.iter().skip(first + S::LANES).take(S::LANES) {
                simd.prefetch(next.wrapping_add(begin).cast());
            }
            for i in 0..S::LANES.min(rows.len() - first) {
                // SAFETY: `elements` elements of the row are left from `begin` on; none is touched when that is 0.
                block.as_mut()[i] =
                    unsafe { load_words::<S, O>(simd, rows[first + i].wrapping_add(begin), elements) };
            }
            simd.transpose(&mut block);
            for i in 0..S::LANES {
                // SAFETY: word `word + i` of the vector of row `first`.
                unsafe {
                    simd.store(target.add((word + i) * strip_rows::<S>() + first), block.as_ref()[i]);
                }
            }
        }
    }
}

/// Packs rows of keys to `[panels][panel_rows][PANEL]`, zero rows up to a multiple of the operands' step, and asks for the
/// rows of `ahead` beside them; if it `STREAMS`, past the caches.
///
/// # Safety
/// - Each row has `dim` elements.
/// - `target` has room, and is aligned to a cache line; `panel_rows` is a multiple of the step and at least the number of rows.
#[inline(always)]
pub(crate) unsafe fn pack_keys<S: Simd, O: Operands<S>, const STREAMS: bool>(
    simd: S,
    rows: &[*const O::Element],
    ahead: &[*const O::Element],
    dim: usize,
    panels: usize,
    panel_rows: usize,
    target: *mut f32,
) {
    let chunk = S::LANES * O::DEPTH;
    let row_bytes = dim * size_of::<O::Element>();
    for (j, &row) in rows.iter().enumerate() {
        if let Some(ahead) = ahead.get(j) {
            prefetch_row(simd, ahead.cast(), row_bytes);
        }
        for word in (0..panels * PANEL).step_by(S::LANES) {
            let begin = (word / S::LANES) * chunk;
            // SAFETY: as in `pack_queries`; the target's panel `word / PANEL` has row `j`.
            unsafe {
                let words = load_words::<S, O>(simd, row.wrapping_add(begin), dim.saturating_sub(begin));
                let at = target.add((word / PANEL * panel_rows + j) * PANEL + word % PANEL);
                put::<S, STREAMS>(simd, at, words);
            }
        }
    }
    for j in rows.len()..rows.len().next_multiple_of(O::KEY_STEP) {
        for word in (0..panels * PANEL).step_by(S::LANES) {
            // SAFETY: as above.
            unsafe {
                simd.store(
                    target.add((word / PANEL * panel_rows + j) * PANEL + word % PANEL),
                    simd.splat(0.0),
                );
            }
        }
    }
}

/// Packs rows of values to `[panels][panel_rows][PANEL]`, the words of `DEPTH` rows each, zeros up to a multiple of
/// the operands' step of keys, and asks for the rows of `ahead` beside them; if it `STREAMS`, past the caches. Answers
/// whether all values are finite.
///
/// # Safety
/// - Each row has `dim` elements.
/// - `target` has room, and is aligned to a cache line; `panel_rows` is at least the number of rows, rounded up, over `DEPTH`.
#[inline(always)]
pub(crate) unsafe fn pack_values<S: Simd, O: Operands<S>, const STREAMS: bool>(
    simd: S,
    rows: &[*const O::Element],
    ahead: &[*const O::Element],
    dim: usize,
    panels: usize,
    panel_rows: usize,
    target: *mut f32,
) -> bool {
    let row_bytes = dim * size_of::<O::Element>();
    let mut poison = simd.splat(0.0);
    for word_row in 0..rows.len().next_multiple_of(O::KEY_STEP) / O::DEPTH {
        for i in 0..O::DEPTH {
            if let Some(ahead) = ahead.get(word_row * O::DEPTH + i) {
                prefetch_row(simd, ahead.cast(), row_bytes);
            }
        }
        let first = rows.get(word_row * O::DEPTH).copied();
        let second = rows.get(word_row * O::DEPTH + 1).copied();
        for column in (0..panels * PANEL).step_by(S::LANES) {
            let columns = dim.saturating_sub(column);
            let words = match first {
                None => simd.splat(0.0),
                // SAFETY: `columns` elements of each row are left from `column` on.
                Some(first) => unsafe {
                    load_columns::<S, O>(
                        simd,
                        first.wrapping_add(column),
                        second.map(|second| second.wrapping_add(column)),
                        columns,
                    )
                },
            };
            poison = O::poison(simd, words, poison);
            // SAFETY: the target's panel `column / PANEL` has row `word_row`.
            unsafe {
                let row = target.add((column / PANEL * panel_rows + word_row) * PANEL);
                let at = row.add(column % PANEL);
                put::<S, STREAMS>(simd, at, words);
            }
        }
    }
    simd.sum(poison) == 0.0
}

/// Stores a vector, past the caches if it is to be so.
///
/// # Safety
/// Of [`Simd::store`], or [`Simd::stream`].
#[inline(always)]
unsafe fn put<S: Simd, const STREAMS: bool>(simd: S, target: *mut f32, words: S::Vector) {
    // SAFETY: the caller's duty.
    unsafe { if STREAMS { simd.stream(target, words) } else { simd.store(target, words) } }
}

/// # Safety
/// `columns` elements of each row can be read.
#[inline(always)]
pub(super) unsafe fn load_columns<S: Simd, O: Operands<S>>(
    simd: S,
    first: *const O::Element,
    second: Option<*const O::Element>,
    columns: usize,
) -> S::Vector {
    // SAFETY: LANES columns are left in both rows, or they are read from copies and zeros.
    unsafe {
        if columns >= S::LANES {
            return O::load_columns(simd, [first, second.unwrap_or(ZEROS.as_ptr().cast())]);
        }
        let mut copies = [[O::Element::from_f32(0.0); 16]; 2];
        std::ptr::copy_nonoverlapping(first, copies[0].as_mut_ptr(), columns);
        if let Some(second) = second {
            std::ptr::copy_nonoverlapping(second, copies[1].as_mut_ptr(), columns);
        }
        O::load_columns(simd, [copies[0].as_ptr(), copies[1].as_ptr()])
    }
}

#[inline(always)]
fn prefetch_row<S: Simd>(simd: S, row: *const u8, bytes: usize) {
    for line in (0..bytes).step_by(64) {
        simd.prefetch(row.wrapping_add(line));
    }
}

/// Writes packed output rows, each times its factor.
///
/// # Safety
/// - `o` has `dim` columns, rounded up to LANES, of `strip_rows`; `factors` has `strip_rows`.
/// - Each row has `dim` elements that nothing else uses.
#[inline(always)]
pub(crate) unsafe fn unpack_output<S: Simd, T: Storage>(
    simd: S,
    o: *const f32,
    factors: *const f32,
    rows: &[*mut T],
    dim: usize,
) {
    // Whole cache lines of a row at once: rows of a tensor often lie so far apart that a second visit is a second miss.
    let line_vectors = (LINE / (S::LANES * size_of::<T>())).clamp(1, MOST_LINE_VECTORS);
    for first in (0..rows.len()).step_by(S::LANES) {
        // SAFETY: `first` starts a vector of the strip.
        let factor = unsafe { simd.load(factors.add(first)) };
        for column in (0..dim).step_by(line_vectors * S::LANES) {
            let mut blocks = [simd.block(); MOST_LINE_VECTORS];
            let vectors = line_vectors.min((dim - column).div_ceil(S::LANES));
            for (b, block) in blocks[..vectors].iter_mut().enumerate() {
                for i in 0..S::LANES {
                    // SAFETY: column `column + b * LANES + i` is one of the packed ones.
                    let sums =
                        unsafe { simd.load(o.add((column + b * S::LANES + i) * strip_rows::<S>() + first)) };
                    block.as_mut()[i] = simd.mul(sums, factor);
                }
                simd.transpose(block);
            }
            for next in rows.iter().skip(first + S::LANES).take(S::LANES) {
                simd.prefetch(next.wrapping_add(column).cast_const().cast());
            }
            for i in 0..S::LANES.min(rows.len() - first) {
                for (b, block) in blocks[..vectors].iter().enumerate() {
                    let at = column + b * S::LANES;
                    // SAFETY: the row has `dim - at` elements from `at` on.
                    unsafe { store_part(simd, rows[first + i].add(at), block.as_ref()[i], dim - at) };
                }
            }
        }
    }
}

/// Stores the first `elements` lanes, all if there are more.
///
/// # Safety
/// `elements` elements can be written.
#[inline(always)]
unsafe fn store_part<S: Simd, T: Storage>(simd: S, target: *mut T, a: S::Vector, elements: usize) {
    // SAFETY: at most `elements` elements are written; the copy has 16, enough for any vector.
    unsafe {
        if elements >= S::LANES {
            return T::store(simd, target, a);
        }
        let mut copy = [T::from_f32(0.0); 16];
        T::store(simd, copy.as_mut_ptr(), a);
        std::ptr::copy_nonoverlapping(copy.as_ptr(), target, elements);
    }
}
