//! Blocks of keys: what a worker reads next, as lists of rows, whatever mask and cache they come from.

use std::sync::atomic::Ordering;

use omniflash_core::{Tile, TileStatus};

use crate::decode::job::{Job, Task};
use crate::decode::products::BLOCK_KEYS;
use crate::mask::{Keys, QueryRow};
use crate::simd::Storage;

/// Up to [`BLOCK_KEYS`] keys of one piece, none of which all rows are blind to.
pub(super) struct Block<T> {
    pub(super) task: Task,
    /// Whether it is the first of its piece.
    pub(super) opens: bool,
    /// Whether it is the last of its piece.
    pub(super) closes: bool,
    pub(super) len: usize,
    /// Vectors of the task's first head; repeated after the last key up to a multiple of 16.
    pub(super) keys: [*const T; BLOCK_KEYS],
    pub(super) values: [*const T; BLOCK_KEYS],
    pub(super) positions: [i64; BLOCK_KEYS],
    /// Whether some row does not see some key.
    pub(super) is_mixed: bool,
}

impl<T> Block<T> {
    pub(super) fn new() -> Self {
        Block {
            task: Task::default(),
            opens: false,
            closes: false,
            len: 0,
            keys: [std::ptr::null(); BLOCK_KEYS],
            values: [std::ptr::null(); BLOCK_KEYS],
            positions: [0; BLOCK_KEYS],
            is_mixed: false,
        }
    }
}

/// The blocks that one worker computes, of one piece after the other.
///
/// A piece is claimed when the last block of the one before it is handed out, late enough that no other worker runs
/// dry and early enough that its first keys are prefetched.
pub(super) struct Blocks<'j, 'p, T> {
    job: &'j Job<'p, T>,
    task: Task,
    next: usize,
    end: usize,
    /// Whether the present piece has had no block, one that is not its last, or its last.
    state: State,
    /// The first claimed index that is no piece.
    beyond: usize,
    /// Of the present sequence: the keys between which each query row sees what bits let it.
    intervals: &'j mut [Keys],
    /// Bits of the keys that each row sees, of the last block: rows of queries, or of all heads where they differ.
    bits: &'j mut [u64],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Fresh,
    Open,
    Done,
}

impl<'j, 'p, T: Storage> Blocks<'j, 'p, T> {
    pub(super) fn new(job: &'j Job<'p, T>, intervals: &'j mut [Keys], bits: &'j mut [u64]) -> Self {
        Blocks { job, task: Task::default(), next: 0, end: 0, state: State::Done, beyond: 0, intervals, bits }
    }

    /// After the last block: the claimed index that is no piece.
    pub(super) fn beyond(&self) -> usize {
        self.beyond
    }

    /// Fills `block` and `bits` with the next keys; false when there are no more.
    pub(super) fn next(&mut self, block: &mut Block<T>, bits: &mut [u64]) -> bool {
        if self.state == State::Done && !self.claim() {
            return false;
        }
        block.task = self.task;
        block.opens = self.state == State::Fresh;
        block.is_mixed = false;
        block.len = 0;
        let most = self.job.geometry.block_keys;
        while block.len < most && self.next < self.end {
            let window = (self.next, self.end.min(self.next + most - block.len));
            self.next = window.1;
            self.append(block, window);
        }
        if block.is_mixed {
            let rows = self.bit_rows();
            bits[..rows].copy_from_slice(&self.bits[..rows]);
        }
        block.closes = self.next == self.end;
        self.state = if block.closes { State::Done } else { State::Open };
        pad(block);
        true
    }

    fn claim(&mut self) -> bool {
        let index = self.job.claimed.fetch_add(1, Ordering::Relaxed);
        let Some(task) = self.job.piece(index) else {
            self.beyond = index;
            return false;
        };
        let entry = &self.job.entries[task.entry];
        if self.job.is_masked {
            for (row, interval) in self.intervals.iter_mut().enumerate().take(entry.sequence.q_len) {
                let position = entry.sequence.query_start + row as i64;
                *interval = self.job.mask.interval(&entry.sequence, position);
            }
        }
        (self.next, self.end) = entry.pieces.range(task.piece, entry.keys);
        (self.task, self.state) = (task, State::Fresh);
        true
    }

    /// Rows that have bits of their own.
    fn bit_rows(&self) -> usize {
        let q_len = self.job.entries[self.task.entry].sequence.q_len;
        if self.job.bits_by_head { q_len * self.job.geometry.group_size * self.task.heads } else { q_len }
    }

    /// Adds the keys of a window that some row sees.
    fn append(&mut self, block: &mut Block<T>, window: (usize, usize)) {
        let sequence = &self.job.entries[self.task.entry].sequence;
        let count = window.1 - window.0;
        let all = low_bits(count);
        let (begin, end) = (window.0 as i64, window.1 as i64);
        let mut union = all;
        let shift = block.len;
        if self.job.is_masked {
            let inside = |&(low, high): &Keys| low <= begin && end <= high;
            let is_inside = self.intervals[..sequence.q_len].iter().all(inside);
            let status = if self.job.mask.has_bits() { self.status(window) } else { TileStatus::Full };
            if status == TileStatus::Skip {
                return;
            }
            if !is_inside || status != TileStatus::Full {
                let rows = self.bit_rows();
                let has_bits = status != TileStatus::Full;
                let (mut is_mixed, mut first) = (false, None);
                union = 0;
                for row in 0..rows {
                    let seen = self.seen(row, window, has_bits);
                    is_mixed |= *first.get_or_insert(seen) != seen;
                    union |= seen;
                    // Beyond the keys that the block has, for the moment; compressed below.
                    self.bits[rows + row] = seen;
                }
                if union == 0 {
                    return;
                }
                if is_mixed && !block.is_mixed {
                    // What came before is seen by all.
                    self.bits[..rows].fill(low_bits(shift));
                    block.is_mixed = true;
                }
                if block.is_mixed {
                    for row in 0..rows {
                        self.bits[row] |= compress(self.bits[rows + row], union) << shift;
                    }
                }
            } else if block.is_mixed {
                let rows = self.bit_rows();
                self.bits[..rows].iter_mut().for_each(|bits| *bits |= all << shift);
            }
        }
        self.place(block, window, union);
    }

    /// The keys of a window that a row sees, as bits.
    fn seen(&self, row: usize, window: (usize, usize), has_bits: bool) -> u64 {
        let sequence = &self.job.entries[self.task.entry].sequence;
        let group_size = self.job.geometry.group_size;
        let (query, head) = if self.job.bits_by_head {
            let rows = sequence.q_len * group_size;
            let (kv_head, row) = (self.task.first_head + row / rows, row % rows);
            (row / group_size, kv_head * group_size + row % group_size)
        } else {
            (row, self.task.first_head * group_size)
        };
        let (low, high) = self.intervals[query];
        let within = (low.max(window.0 as i64), high.min(window.1 as i64));
        if within.0 >= within.1 {
            return 0;
        }
        let begin = window.0 as i64;
        let in_interval = low_bits((within.1 - begin) as usize) & !low_bits((within.0 - begin) as usize);
        if !has_bits {
            return in_interval;
        }
        let query_row = QueryRow {
            batch: sequence.batch,
            head,
            row: query,
            position: sequence.query_start + query as i64,
        };
        in_interval & self.job.mask.row_bits(&query_row, begin, within) as u64
    }

    /// What bits do to a window, for all heads of the task.
    fn status(&self, window: (usize, usize)) -> TileStatus {
        let sequence = &self.job.entries[self.task.entry].sequence;
        let group_size = self.job.geometry.group_size;
        let first = self.task.first_head * group_size;
        let heads = if self.job.bits_by_head { self.task.heads * group_size } else { 1 };
        let status = |head: usize| {
            self.job.mask.status(&Tile {
                batch: sequence.batch,
                head,
                q_begin: sequence.query_start,
                q_end: sequence.query_start + sequence.q_len as i64,
                k_begin: window.0 as i64,
                k_end: window.1 as i64,
            })
        };
        let of_first = status(first);
        let agree = matches!(of_first, TileStatus::Skip | TileStatus::Full)
            && (first + 1..first + heads).all(|head| status(head) == of_first);
        if agree { of_first } else { TileStatus::Unknown }
    }

    /// Adds the keys of a window whose bits are set.
    fn place(&self, block: &mut Block<T>, window: (usize, usize), union: u64) {
        let job = self.job;
        let batch = job.entries[self.task.entry].sequence.batch;
        let (k_stride, v_stride) = (job.kv.k().row_stride(), job.kv.v().row_stride());
        let mut key = window.0;
        while key < window.1 {
            let run = job.kv.run(batch, self.task.first_head, key, window.1);
            for i in 0..run.len {
                // Overwritten by the next key unless this one is seen.
                let at = block.len.min(BLOCK_KEYS - 1);
                block.keys[at] = run.k.wrapping_offset(i as isize * k_stride);
                block.values[at] = run.v.wrapping_offset(i as isize * v_stride);
                block.positions[at] = (key + i) as i64;
                block.len += (union >> (key + i - window.0) & 1) as usize;
            }
            key += run.len;
        }
    }
}

/// Repeats the last key, so that tiles of keys are whole.
fn pad<T>(block: &mut Block<T>) {
    if block.len == 0 {
        return;
    }
    let last = block.len - 1;
    for i in block.len..block.len.next_multiple_of(16) {
        block.keys[i] = block.keys[last];
        block.values[i] = block.values[last];
    }
}

/// The lowest `count` bits, at most 64.
fn low_bits(count: usize) -> u64 {
    if count >= 64 { u64::MAX } else { (1 << count) - 1 }
}

/// The bits of `bits` at the places that `mask` has, pushed together.
fn compress(bits: u64, mask: u64) -> u64 {
    let (mut result, mut place, mut mask) = (0, 0, mask);
    while mask != 0 {
        result |= (bits >> mask.trailing_zeros() & 1) << place;
        mask &= mask - 1;
        place += 1;
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compression_keeps_the_order_of_bits() {
        assert_eq!(compress(0b1010_1100, 0b1110_0110), 0b10110);
        assert_eq!(compress(u64::MAX, u64::MAX), u64::MAX);
        assert_eq!(compress(u64::MAX, 0), 0);
    }

    #[test]
    fn low_bits_reach_a_whole_word() {
        assert_eq!((low_bits(0), low_bits(3), low_bits(64)), (0, 7, u64::MAX));
    }
}
