//! How the keys of a sequence are cut: by its own length and the sizes of heads alone, so that neither threads nor the
//! rest of the batch change a result.

/// Bytes of keys and values in a piece: enough that what a piece costs beside reading is lost in it.
const PIECE_BYTES: usize = 1 << 20;
/// Pieces of a longer sequence grow instead: joining them must stay cheap.
const MOST_PIECES: usize = 96;
/// A piece is a multiple of this many keys.
const PIECE_STEP: usize = 64;
const LEAST_PIECE: usize = 128;

/// Sizes that tasks are cut by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) head_dim: usize,
    pub(super) value_dim: usize,
    /// Query heads that share a key head.
    pub(super) group_size: usize,
    pub(super) num_kv_heads: usize,
    /// Key heads of a task: those whose vectors lie side by side, up to a few KiB.
    pub(super) heads: usize,
    /// Keys of a block, at most 64.
    pub(super) block_keys: usize,
    /// Bytes of an element.
    pub(super) element: usize,
    /// Pieces asked for, if any.
    pub(super) num_partitions: Option<usize>,
}

/// Bytes of one key that a task reads side by side, at most.
const SPAN_BYTES: usize = 4096;
/// Sums of a task's rows, at most: they should stay in the first levels of cache.
const SUM_BYTES: usize = 64 << 10;
/// Rows of a key head that sums are counted for at least. The true number would make one sequence's result depend on
/// the queries of another.
const SUM_ROWS: usize = 8;
/// Bytes of a block of keys: two blocks of keys and two of values should stay in the second-level cache.
const BLOCK_BYTES: usize = 64 << 10;

/// Strides in elements from a head to the next, of keys and of values.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeadStrides {
    pub(super) k: isize,
    pub(super) v: isize,
}

impl Geometry {
    /// Completes `self` with `heads` and `block_keys`.
    pub(super) fn with_tasks(mut self, strides: HeadStrides) -> Self {
        let vector = self.head_dim.max(self.value_dim) * self.element;
        // Heads lie side by side when what is between them is less than what they are.
        let near = |stride: isize, dim: usize| (0..2 * dim.max(1) as isize).contains(&stride);
        let side_by_side = near(strides.k, self.head_dim) && near(strides.v, self.value_dim);
        let most = if side_by_side {
            let sums = self.group_size.max(SUM_ROWS) * self.value_dim * 4;
            (SPAN_BYTES / vector.max(1)).min(SUM_BYTES / sums.max(1)).clamp(1, self.num_kv_heads)
        } else {
            1
        };
        let tasks = self.num_kv_heads.div_ceil(most);
        self.heads = self.num_kv_heads.div_ceil(tasks);
        self.block_keys = (BLOCK_BYTES / (self.heads * vector).max(1) / 16 * 16).clamp(16, 64);
        self
    }

    /// Bytes of a key of a task, or of its values.
    pub(super) fn row_bytes(&self) -> usize {
        self.heads * self.head_dim.max(self.value_dim) * self.element
    }

    /// Tasks that a piece of a sequence is.
    pub(super) fn head_groups(&self) -> usize {
        self.num_kv_heads.div_ceil(self.heads)
    }

    /// Rows of a key head, for a sequence of `q_len` rows.
    pub(super) fn rows(&self, q_len: usize) -> usize {
        q_len * self.group_size
    }

    /// How `len` keys are cut.
    pub(super) fn pieces(&self, len: usize) -> Pieces {
        if let Some(asked) = self.num_partitions {
            // More than keys would be empty.
            let count = asked.min(len).max(1);
            return Pieces { count, keys: len.div_ceil(count) };
        }
        let bytes_per_key = self.heads * (self.head_dim + self.value_dim) * self.element;
        let by_bytes = (PIECE_BYTES / bytes_per_key.max(1)).max(LEAST_PIECE);
        let keys = by_bytes.max(len.div_ceil(MOST_PIECES)).next_multiple_of(PIECE_STEP);
        Pieces { count: len.div_ceil(keys).max(1), keys }
    }
}

/// The pieces of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pieces {
    /// At least 1; the last ones may be empty.
    pub(super) count: usize,
    /// Keys of a piece that is not the last.
    pub(super) keys: usize,
}

impl Pieces {
    /// The keys of piece `i` of keys `range`.
    pub(super) fn range(&self, i: usize, range: (usize, usize)) -> (usize, usize) {
        let begin = (range.0 + i * self.keys).min(range.1);
        (begin, (begin + self.keys).min(range.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(num_kv_heads: usize, head_dim: usize, element: usize) -> Geometry {
        Geometry {
            head_dim,
            value_dim: head_dim,
            group_size: 4,
            num_kv_heads,
            heads: 1,
            block_keys: 64,
            element,
            num_partitions: None,
        }
    }

    fn side_by_side(geometry: Geometry) -> Geometry {
        let stride = geometry.head_dim as isize;
        geometry.with_tasks(HeadStrides { k: stride, v: stride })
    }

    #[test]
    fn heads_side_by_side_are_one_task_up_to_a_page() {
        assert_eq!(side_by_side(geometry(8, 128, 2)).heads, 8);
        assert_eq!(side_by_side(geometry(8, 128, 4)).heads, 8);
        let many = side_by_side(geometry(40, 128, 2));
        assert_eq!((many.heads, many.head_groups()), (14, 3));
    }

    #[test]
    fn heads_apart_are_tasks_of_their_own() {
        let apart = geometry(8, 128, 2).with_tasks(HeadStrides { k: 4096 * 128, v: 4096 * 128 });
        assert_eq!((apart.heads, apart.head_groups(), apart.block_keys), (1, 8, 64));
    }

    #[test]
    fn pieces_cover_every_key_once() {
        for num_partitions in [None, Some(1), Some(3), Some(7), Some(200), Some(usize::MAX)] {
            let geometry = Geometry { num_partitions, ..side_by_side(geometry(8, 128, 2)) };
            for len in [0, 1, 63, 64, 300, 4096, 33_000] {
                let pieces = geometry.pieces(len);
                // As many as asked for, but no more than there are keys.
                assert!(num_partitions.is_none_or(|count| count.min(len.max(1)) == pieces.count));
                let mut next = 5;
                for i in 0..pieces.count {
                    let (begin, end) = pieces.range(i, (5, 5 + len));
                    assert!(begin == next && end >= begin, "piece {i} of {len} keys in {pieces:?}");
                    next = end;
                }
                assert_eq!(next, 5 + len);
            }
        }
    }

    #[test]
    fn long_sequences_have_larger_pieces_instead_of_more() {
        let geometry = side_by_side(geometry(8, 128, 2));
        assert_eq!(geometry.pieces(4096), Pieces { count: 16, keys: 256 });
        assert!(geometry.pieces(1 << 20).count <= MOST_PIECES);
    }
}
