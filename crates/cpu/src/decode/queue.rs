//! Blocks in their order, and what is to be asked for while one is computed.
//!
//! Memory runs at full speed only while many lines are on their way. The processor's own prefetchers do not follow
//! the order in which heads and keys are gone through, so every line is asked for, into the second-level cache: the
//! first level has too few outstanding misses. A processor drops prefetches that it has no room for (Zen 4
//! does at full speed), which costs a whole latency later. So each line is asked for twice, far ahead and
//! again half as far, where a line that has come costs next to nothing.

use crate::decode::block::{Block, Blocks};
use crate::decode::products::BLOCK_KEYS;
use crate::decode::split::Geometry;
use crate::simd::{Simd, Storage};

/// Blocks that a queue holds.
pub(super) const BLOCKS: usize = 6;

/// Bytes of keys, and as many of values, between a line and where it is asked for the second time; twice as many for
/// the first time.
const NEAR_BYTES: usize = 32 << 10;

/// Rows of keys or values that are asked for beside those of a block: near and far.
pub(super) struct Upcoming<T> {
    rows: [[*const T; BLOCK_KEYS]; 2],
    len: [usize; 2],
}

/// Bytes from a row to the near and to the far one that are asked for beside it.
pub(super) type Distances = [isize; 2];

impl<T> Upcoming<T> {
    fn new() -> Self {
        Upcoming { rows: [[std::ptr::null(); BLOCK_KEYS]; 2], len: [0; 2] }
    }

    /// What is asked for beside the block's row `index`, which is at `row`, and beside the few that follow it: they are
    /// taken to lie alike, which they do but at the end of a page, where a line more is asked for in vain. Itself where
    /// nothing comes.
    #[inline(always)]
    pub(super) fn distances(&self, index: usize, row: *const T) -> Distances {
        let mut distances = [0; 2];
        for (i, distance) in distances.iter_mut().enumerate() {
            if index < self.len[i] {
                *distance = (self.rows[i][index] as isize).wrapping_sub(row as isize);
            }
        }
        distances
    }
}

/// Asks for the lines at both distances from `source`.
#[inline(always)]
pub(super) fn ask<S: Simd, T>(simd: S, source: *const T, distances: &Distances) {
    for distance in distances {
        simd.prefetch_far(source.wrapping_byte_offset(*distance).cast());
    }
}

/// What is asked for beside a block.
pub(super) struct Asked<T> {
    pub(super) keys: Upcoming<T>,
    pub(super) values: Upcoming<T>,
}

/// The blocks of a worker, a few of them known in advance.
pub(super) struct Queue<'j, 'p, T> {
    source: Blocks<'j, 'p, T>,
    blocks: [Block<T>; BLOCKS],
    /// Bits of each block, `bit_rows` words.
    bits: &'j mut [u64],
    bit_rows: usize,
    asked: Asked<T>,
    /// Rows to the near and the far ones.
    distances: [usize; 2],
    /// Blocks handed out, and made.
    done: usize,
    made: usize,
    is_more: bool,
}

impl<'j, 'p, T: Storage> Queue<'j, 'p, T> {
    /// `bits` has `bit_rows` words for each of [`BLOCKS`] blocks.
    pub(super) fn new(
        source: Blocks<'j, 'p, T>,
        bits: &'j mut [u64],
        bit_rows: usize,
        geometry: &Geometry,
    ) -> Self {
        let near = (NEAR_BYTES / geometry.row_bytes().max(1)).clamp(1, BLOCK_KEYS * (BLOCKS - 2) / 2);
        Queue {
            source,
            blocks: std::array::from_fn(|_| Block::new()),
            bits,
            bit_rows,
            asked: Asked { keys: Upcoming::new(), values: Upcoming::new() },
            distances: [near, 2 * near],
            done: 0,
            made: 0,
            is_more: true,
        }
    }

    /// After the last block: the claimed index that is no piece.
    pub(super) fn beyond(&self) -> usize {
        self.source.beyond()
    }

    /// The next block, its bits, and the rows to ask for.
    pub(super) fn next(&mut self) -> Option<(&Block<T>, &[u64], &Asked<T>)> {
        // As many rows as reach to the far ones of this block's last key.
        let far = self.distances[1];
        let mut rows: usize = (self.done + 1..self.made).map(|block| self.blocks[block % BLOCKS].len).sum();
        while self.is_more && self.made < self.done + BLOCKS && (rows < far || self.made == self.done) {
            let at = self.made % BLOCKS;
            let bits = &mut self.bits[at * self.bit_rows..(at + 1) * self.bit_rows];
            self.is_more = self.source.next(&mut self.blocks[at], bits);
            if self.is_more {
                rows += if self.made > self.done { self.blocks[at].len } else { 0 };
                self.made += 1;
            }
        }
        if self.done == self.made {
            return None;
        }
        for (i, distance) in self.distances.into_iter().enumerate() {
            self.look_ahead(i, distance);
        }
        let at = self.done % BLOCKS;
        self.done += 1;
        Some((&self.blocks[at], &self.bits[at * self.bit_rows..(at + 1) * self.bit_rows], &self.asked))
    }

    /// Lists the rows that come `distance` after those of the next block.
    fn look_ahead(&mut self, i: usize, distance: usize) {
        let wanted = self.blocks[self.done % BLOCKS].len;
        let Asked { keys, values } = &mut self.asked;
        let (mut skipped, mut len) = (distance, 0);
        for block in self.done..self.made {
            let block = &self.blocks[block % BLOCKS];
            let first = skipped.min(block.len);
            let count = (block.len - first).min(wanted - len);
            keys.rows[i][len..len + count].copy_from_slice(&block.keys[first..first + count]);
            values.rows[i][len..len + count].copy_from_slice(&block.values[first..first + count]);
            skipped -= first;
            len += count;
        }
        (keys.len[i], values.len[i]) = (len, len);
    }
}
