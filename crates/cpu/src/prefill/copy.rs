//! One packed copy of keys and values, which all tasks of a head share.
//!
//! Rows of one head often lie a page apart, a few cache lines each: fetched head by head, each row costs a walk of the page
//! tables, once for every task. Here whole rows are read in the order of memory, all heads of a round side by side; tasks
//! then go through blocks that lie one after the other. The copy is a round's, so that memory does not grow with the
//! problem.

use std::ops::Range;

use super::memory::Sizes;
use super::operands::Operands;
use super::pack::{MAX_BLOCK, pack_keys, pack_values};
use super::task::{Block, Worker};
use super::tile::PANEL;
use super::{Call, Shared};
use crate::mask::Keys;
use crate::simd::{Simd, Storage};

/// Keys that are packed for one head before the next head's turn.
const TURN_KEYS: usize = 8;

/// Words that say whether a block's values are all finite: a cache line, so that every block begins at one.
const FLAG_WORDS: usize = 16;

/// Where the copy of a head's keys is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Words before it.
    pub(super) offset: usize,
    /// Its first key.
    pub(super) first: i64,
}

/// A block of keys, of some heads, that is to be packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packing {
    sequence: usize,
    first_head: usize,
    heads: usize,
    /// Its first key.
    first: i64,
    keys: usize,
    /// Words before the block of the first head,
    offset: usize,
    /// and from a head's to the next one's.
    head_words: usize,
}

/// Words of a block in the copy.
fn block_words(sizes: &Sizes) -> usize {
    sizes.key_words() + sizes.value_words() + FLAG_WORDS
}

/// Words of a head's copy with `keys` keys.
pub(crate) fn head_words(sizes: &Sizes, keys: usize) -> usize {
    keys.div_ceil(sizes.block) * block_words(sizes)
}

impl Packing {
    /// Adds those of the keys that a sequence sees, at `offset`: heads that lie side by side together.
    pub(super) fn of_heads<T: Storage>(
        call: &Call<'_, T>,
        (sequence, seen): (usize, Keys),
        heads: Range<usize>,
        offset: usize,
        packings: &mut Vec<Packing>,
    ) {
        let head_words = head_words(&call.sizes, (seen.1 - seen.0) as usize);
        let together = if call.heads_are_near() { heads.len().max(1) } else { 1 };
        for first_head in heads.clone().step_by(together) {
            for (i, first) in (seen.0..seen.1).step_by(call.sizes.block).enumerate() {
                packings.push(Packing {
                    sequence,
                    first_head,
                    heads: together,
                    first,
                    keys: (call.sizes.block as i64).min(seen.1 - first) as usize,
                    offset: offset + (first_head - heads.start) * head_words + i * block_words(&call.sizes),
                    head_words,
                });
            }
        }
    }
}

impl<T: Storage> Call<'_, T> {
    /// Whether what lies between the rows of a key head and the next one's is no more than such a row.
    pub(super) fn heads_are_near(&self) -> bool {
        let near = |stride: isize, dim: usize| stride.unsigned_abs() <= 2 * dim;
        near(self.kv.k().head_stride(), self.head_dim) && near(self.kv.v().head_stride(), self.value_dim)
    }
}

impl<S: Simd, O: Operands<S>> Worker<'_, '_, S, O> {
    /// Packs a block of keys and values of some heads.
    ///
    /// # Safety
    /// The block's place in the copy is this call's alone.
    #[inline(always)]
    pub(super) unsafe fn pack_copy(&mut self, packing: &Packing) {
        let (simd, call, sizes) = (self.simd, self.call, &self.call.sizes);
        let Some(copy) = call.copy else { return };
        debug_assert!(TURN_KEYS.is_multiple_of(O::KEY_STEP), "zeros after one turn would lie over the next");
        let batch = call.sequences[packing.sequence].batch;
        let [k_rows, v_rows] = self.rows_of(batch, packing.first_head, packing.first as usize, packing.keys);
        let block = |head: usize| copy.0.wrapping_add(packing.offset + head * packing.head_words);
        for turn in turns(packing.keys) {
            for head in 0..packing.heads {
                let (rows, ahead) =
                    rows_of_turn(&k_rows[..packing.keys], &turn, head, call.kv.k().head_stride());
                // SAFETY: rows of keys of the sequence; the rows' part of the block.
                unsafe {
                    let target = block(head).add(turn.start * PANEL);
                    let (rows, ahead) = (&rows[..turn.len()], &ahead[..]);
                    let (panels, panel_rows) = (sizes.key_panels, sizes.packed_keys());
                    pack_keys::<S, O, true>(simd, rows, ahead, call.head_dim, panels, panel_rows, target);
                }
            }
        }
        for turn in turns(packing.keys) {
            for head in 0..packing.heads {
                let (rows, ahead) =
                    rows_of_turn(&v_rows[..packing.keys], &turn, head, call.kv.v().head_stride());
                // SAFETY: rows of values of the sequence; the rows' part of the block, and its flag.
                unsafe {
                    let values = block(head).add(sizes.key_words());
                    let target = values.add(turn.start / O::DEPTH * PANEL);
                    let (rows, ahead) = (&rows[..turn.len()], &ahead[..]);
                    let (panels, panel_rows) = (sizes.value_panels, sizes.value_rows());
                    let is_finite = pack_values::<S, O, true>(
                        simd,
                        rows,
                        ahead,
                        call.value_dim,
                        panels,
                        panel_rows,
                        target,
                    );
                    let flag = values.add(sizes.value_words());
                    if turn.start == 0 || !is_finite {
                        flag.write(f32::from(u8::from(is_finite)));
                    }
                }
            }
        }
        simd.finish_streams();
    }

    /// The packed block of a task's keys from `first` on.
    ///
    /// # Safety
    /// The copy has the block.
    #[inline(always)]
    pub(super) unsafe fn block_of_copy(&self, copy: Shared, place: &Place, first: i64, keys: usize) -> Block {
        let sizes = &self.call.sizes;
        let index = (first - place.first) as usize / sizes.block;
        // SAFETY: keys, values and flag of a block of the copy.
        unsafe {
            let k = copy.0.add(place.offset + index * block_words(sizes)).cast_const();
            let v = k.add(sizes.key_words());
            let is_finite = v.add(sizes.value_words()).read() != 0.0;
            Block { first, keys, is_finite, k, v }
        }
    }
}

/// A block's keys, some at a time.
#[inline(always)]
fn turns(keys: usize) -> impl Iterator<Item = Range<usize>> {
    (0..keys.div_ceil(TURN_KEYS)).map(move |i| i * TURN_KEYS..keys.min((i + 1) * TURN_KEYS))
}

/// The rows of a turn, of a head that is `head` strides from the one they are given for, and those of the next turn:
/// at the end of a block itself again, which are in the cache by then.
#[inline(always)]
fn rows_of_turn<T>(
    rows: &[*const T],
    turn: &Range<usize>,
    head: usize,
    head_stride: isize,
) -> ([*const T; TURN_KEYS], [*const T; TURN_KEYS]) {
    let mut taken = [[std::ptr::null(); TURN_KEYS]; 2];
    for (taken, first) in taken.iter_mut().zip([turn.start, turn.end]) {
        for (i, taken) in taken.iter_mut().enumerate() {
            let row = rows[(first + i).min(rows.len() - 1)];
            *taken = row.wrapping_offset(head as isize * head_stride);
        }
    }
    (taken[0], taken[1])
}

const _: () = assert!(MAX_BLOCK.is_multiple_of(TURN_KEYS));
