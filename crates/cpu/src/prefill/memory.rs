//! A worker's memory.

use super::tile::PANEL;
use crate::scratch::{Parts, rounded};

/// Sizes of a worker's memory, in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// Strips of a task.
    pub(crate) strips: usize,
    /// Rows of a strip.
    pub(crate) rows: usize,
    /// Keys of a block.
    pub(crate) block: usize,
    /// Keys are packed in multiples of this.
    pub(crate) key_step: usize,
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
    /// Keys of a block with those that fill its last step.
    pub(super) fn packed_keys(&self) -> usize {
        self.block.next_multiple_of(self.key_step)
    }

    /// Rows of words of a block's values.
    pub(super) fn value_rows(&self) -> usize {
        self.packed_keys() / self.depth
    }

    /// Words of one strip's queries.
    pub(super) fn query_words(&self) -> usize {
        self.key_panels * PANEL * self.rows
    }

    /// Words of one strip's output.
    pub(super) fn output_words(&self) -> usize {
        self.value_panels * PANEL * self.rows
    }

    /// Words of a block's packed keys.
    pub(super) fn key_words(&self) -> usize {
        self.packed_keys() * self.key_panels * PANEL
    }

    /// Words of a block's packed values.
    pub(super) fn value_words(&self) -> usize {
        self.value_rows() * self.value_panels * PANEL
    }

    /// Words of a strip's partial result: output, maxima and sums.
    pub(crate) fn partial_words(&self) -> usize {
        self.output_words() + 2 * self.rows
    }

    /// Words of all.
    pub(crate) fn words(&self) -> usize {
        let tile = self.packed_keys() * self.rows;
        let parts = [
            self.strips * self.query_words(),
            self.strips * self.output_words(),
            self.key_words(),
            self.value_words(),
            tile,
            if self.reads_tensors { tile } else { 0 },
            self.strips * self.rows,
            self.strips * self.rows,
        ];
        parts.iter().map(|&words| rounded(words)).sum::<usize>() + 6 * rounded(self.rows)
    }
}

/// A worker's memory, by use.
pub(super) struct Memory {
    pub(super) q: *mut f32,
    pub(super) o: *mut f32,
    pub(super) k: *mut f32,
    pub(super) v: *mut f32,
    /// Scores `[key][row]`, then weights in their place.
    pub(super) s: *mut f32,
    /// Elements of a tensor `[key][row]`.
    pub(super) elements: *mut f32,
    /// What exponents of each strip's rows are reduced by: their running maximum, or up to [`SLACK`](super::softmax::SLACK) less.
    pub(super) m: *mut f32,
    /// Running sum of the weights of each strip's rows.
    pub(super) l: *mut f32,
    /// For the rows of one strip and block: the largest score,
    pub(super) maxima: *mut f32,
    /// what exponents are reduced by, finite,
    pub(super) shift: *mut f32,
    /// what older sums are multiplied by,
    pub(super) factor: *mut f32,
    /// the sum of the block's weights,
    pub(super) sums: *mut f32,
    /// and the interval of keys, as f32 counted from the block's first.
    pub(super) low: *mut f32,
    pub(super) high: *mut f32,
}

impl Memory {
    /// Cuts memory of [`Sizes::words`] words.
    pub(super) fn new(sizes: &Sizes, memory: &mut [f32]) -> Self {
        let mut parts = Parts::new(memory);
        let mut take = |words: usize| parts.take(words).as_mut_ptr();
        let tile = sizes.packed_keys() * sizes.rows;
        Memory {
            q: take(sizes.strips * sizes.query_words()),
            o: take(sizes.strips * sizes.output_words()),
            k: take(sizes.key_words()),
            v: take(sizes.value_words()),
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
        }
    }
}
