//! Strips of query rows, and which part of a block of keys each of their vectors sees.

use omniflash_core::TileStatus;

use crate::mask::{Keys, LoweredMask, QueryRow, keys_from_rows};
use crate::rows::Sequence;

/// Rows of a strip at most.
pub(crate) const MAX_ROWS: usize = 64;

/// Vectors of a strip at most.
const MAX_VECTORS: usize = 4;

/// Consecutive (row, head) pairs of a key head's group, one a lane: pair `i` is row `i / group_size` of head
/// `i % group_size`, so that heads that share keys share their packing, and a strip spans few positions.
pub(crate) struct Strip {
    pub(crate) rows: Vec<QueryRow>,
    /// The interval of each row.
    pub(crate) keys: Vec<Keys>,
    /// Vectors that hold rows.
    pub(crate) vectors: usize,
    limits: [Limits; MAX_VECTORS],
    /// All keys that some row sees.
    pub(crate) hull: Keys,
    /// Whether the output holds sums.
    pub(crate) is_started: bool,
    /// Bits of the present block, key by key.
    pub(crate) bits: Box<[u64; 128]>,
    /// What those of the present block that are no interval say.
    pub(crate) status: TileStatus,
}

/// The intervals of a vector's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limits {
    /// Of rows that see anything: the first key that one sees.
    low_min: i64,
    low_max: i64,
    high_min: i64,
    /// Of rows that see anything: one past the last key that one sees.
    high_max: i64,
}

impl Limits {
    const NONE: Limits = Limits { low_min: i64::MAX, low_max: 0, high_min: i64::MAX, high_max: 0 };

    fn add(&mut self, (low, high): Keys) {
        self.low_max = self.low_max.max(low);
        self.high_min = self.high_min.min(high);
        if low < high {
            self.low_min = self.low_min.min(low);
            self.high_max = self.high_max.max(high);
        }
    }
}

/// A rectangle of a tile that is computed: keys of the block, vectors of the strip.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Segment {
    /// First key, a multiple of the step of keys.
    pub(crate) begin: usize,
    /// One past the last key, a multiple of the step of keys.
    pub(crate) end: usize,
    /// First vector.
    pub(crate) first: usize,
    /// Vectors.
    pub(crate) vectors: usize,
    /// Whether some interval ends inside.
    pub(crate) is_edge: bool,
}

/// The segments of a tile, from the first key to the last.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Segments {
    items: [Segment; 2 * MAX_VECTORS],
    len: usize,
}

impl std::ops::Deref for Segments {
    type Target = [Segment];

    fn deref(&self) -> &[Segment] {
        &self.items[..self.len]
    }
}

impl Strip {
    pub(crate) fn new() -> Self {
        Strip {
            rows: Vec::with_capacity(MAX_ROWS),
            keys: Vec::with_capacity(MAX_ROWS),
            vectors: 0,
            limits: [Limits::NONE; MAX_VECTORS],
            hull: (0, 0),
            is_started: false,
            bits: Box::new([0; 128]),
            status: TileStatus::Full,
        }
    }

    /// Becomes the pairs from `first` on, at most `count`, of a key head whose query heads begin at `head`.
    pub(crate) fn reset(
        &mut self,
        mask: &LoweredMask<'_>,
        sequence: &Sequence,
        (head, group_size): (usize, usize),
        first: usize,
        count: usize,
        lanes: usize,
    ) {
        self.rows.clear();
        self.keys.clear();
        self.limits = [Limits::NONE; MAX_VECTORS];
        self.is_started = false;
        self.hull = (i64::MAX, 0);
        let last = (first + count).min(sequence.q_len * group_size);
        for pair in first..last {
            let row = pair / group_size;
            let query = QueryRow {
                batch: sequence.batch,
                head: head + pair % group_size,
                row,
                position: sequence.query_start + row as i64,
            };
            let keys = match self.rows.last() {
                Some(previous) if previous.row == row => self.keys[self.keys.len() - 1],
                _ => mask.interval(sequence, query.position),
            };
            self.limits[self.rows.len() / lanes].add(keys);
            self.rows.push(query);
            self.keys.push(keys);
        }
        self.vectors = self.rows.len().div_ceil(lanes);
        for limits in &self.limits[..self.vectors] {
            self.hull = (self.hull.0.min(limits.low_min), self.hull.1.max(limits.high_max));
        }
        self.hull.0 = self.hull.0.min(self.hull.1);
    }

    /// Cuts the tile with keys `first_key..first_key + keys` where a vector begins or ceases to see any, counted in
    /// steps of `step` keys.
    pub(crate) fn cut(&self, first_key: i64, keys: usize, step: usize) -> Segments {
        let end = keys.next_multiple_of(step);
        let mut spans = [(0usize, 0usize); MAX_VECTORS];
        let mut edges = [0usize; 2 * MAX_VECTORS];
        let mut count = 0;
        for (span, limits) in spans.iter_mut().zip(&self.limits[..self.vectors]) {
            let low = (limits.low_min.saturating_sub(first_key)).clamp(0, keys as i64) as usize;
            let high = (limits.high_max - first_key).clamp(0, keys as i64) as usize;
            if low < high {
                *span = (low / step * step, high.next_multiple_of(step).min(end));
                edges[count] = span.0;
                edges[count + 1] = span.1;
                count += 2;
            }
        }
        edges[..count].sort_unstable();
        let mut segments = Segments::default();
        for window in edges[..count].windows(2) {
            let (begin, end) = (window[0], window[1]);
            let sees = |span: &(usize, usize)| span.0 <= begin && end <= span.1;
            let Some(first) = spans.iter().position(sees).filter(|_| begin < end) else { continue };
            let last = spans.iter().rposition(sees).expect("the first one sees it");
            // What fills the block's last step is no key, though the rows may see the next block's.
            let is_edge = end > keys
                || self.limits[first..=last].iter().any(|limits| {
                    limits.low_max > first_key + begin as i64 || limits.high_min < first_key + end as i64
                });
            segments.items[segments.len] = Segment { begin, end, first, vectors: last - first + 1, is_edge };
            segments.len += 1;
        }
        segments
    }

    /// Finds what masks that are no intervals say of a block, and the bits if they must be looked at.
    pub(crate) fn look_at_bits(&mut self, mask: &LoweredMask<'_>, first_key: i64, keys: usize) {
        self.status = TileStatus::Full;
        if !mask.has_bits() {
            return;
        }
        let block = (first_key.max(self.hull.0), (first_key + keys as i64).min(self.hull.1));
        if block.0 >= block.1 {
            return;
        }
        self.status = self.status_of(mask, block);
        if matches!(self.status, TileStatus::Skip | TileStatus::Full) {
            return;
        }
        let shared = mask.bits_are_shared_by_heads();
        let mut rows = [0u128; MAX_ROWS];
        let (mut any, mut all) = (false, true);
        for (r, (query, keys)) in self.rows.iter().zip(&self.keys).enumerate() {
            let within = (keys.0.max(block.0), keys.1.min(block.1));
            if within.0 >= within.1 {
                continue;
            }
            let is_repeated = shared && r > 0 && self.rows[r - 1].row == query.row;
            let bits = if is_repeated { rows[r - 1] } else { mask.row_bits(query, first_key, within) };
            let asked = within_bits(within.0 - first_key, within.1 - first_key);
            rows[r] = bits & asked;
            any |= rows[r] != 0;
            all &= rows[r] == asked;
        }
        self.status = match (any, all) {
            (false, _) => TileStatus::Skip,
            (true, true) => TileStatus::Full,
            _ => TileStatus::Partial,
        };
        if self.status == TileStatus::Partial {
            keys_from_rows(&rows[..self.rows.len()], &mut self.bits);
        }
    }

    /// The status of the whole tile, over the heads of the strip.
    fn status_of(&self, mask: &LoweredMask<'_>, block: Keys) -> TileStatus {
        let (first, last) = (self.rows[0], self.rows[self.rows.len() - 1]);
        let mut status = None;
        for (r, query) in self.rows.iter().enumerate() {
            if r > 0 && query.head == first.head {
                break;
            }
            let of_head = mask.status(&omniflash_core::Tile {
                batch: query.batch,
                head: query.head,
                q_begin: first.position,
                q_end: last.position + 1,
                k_begin: block.0,
                k_end: block.1,
            });
            status = match status {
                None => Some(of_head),
                Some(status) if status == of_head => Some(status),
                Some(_) => return TileStatus::Unknown,
            };
        }
        status.unwrap_or(TileStatus::Unknown)
    }
}

/// Bits `low..high` of a row's keys, where `0 <= low < high <= 128`.
fn within_bits(low: i64, high: i64) -> u128 {
    (u128::MAX >> (128 - (high - low))) << low
}

#[cfg(test)]
mod tests;
