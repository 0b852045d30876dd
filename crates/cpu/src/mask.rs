//! Masks, lowered once a call: an interval of keys for each row, bits for what is no interval, tensors to add.
//!
//! `And` of any masks is the intersection of their intervals and bits. Causal masks, windows, chunks, prefixes and
//! documents that are each one run of positions are intervals: rows outside a tile's keys cost nothing, and a tile's
//! edge is two compares a vector. Boolean tensors, `Or`, `Not`, users' functions and scattered documents are bits,
//! evaluated once for each tile that is neither skipped nor full.

use omniflash_core::{AttentionProblem, DType, Mask, ScoreIndex, TensorRef, Tile, TileStatus};
use smallvec::SmallVec;

use crate::dense::Dense;
use crate::rows::{Indices, Sequence, signed_at};

/// One query row of a head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueryRow {
    pub(crate) batch: usize,
    pub(crate) head: usize,
    /// In its sequence.
    pub(crate) row: usize,
    /// Its global position.
    pub(crate) position: i64,
}

/// A half-open interval of keys.
pub(crate) type Keys = (i64, i64);

/// A lowered mask.
pub(crate) struct LoweredMask<'p> {
    intervals: SmallVec<[Interval<'p>; 2]>,
    bits: SmallVec<[Bits<'p>; 1]>,
    additive: SmallVec<[Dense<'p>; 1]>,
}

impl<'p> LoweredMask<'p> {
    pub(crate) fn new(problem: &'p AttentionProblem<'_>) -> Self {
        let mut lowered =
            LoweredMask { intervals: SmallVec::new(), bits: SmallVec::new(), additive: SmallVec::new() };
        lowered.add(problem.mask());
        lowered
    }

    fn add(&mut self, mask: &'p Mask<'_>) {
        if let Mask::And(a, b) = mask {
            self.add(a);
            self.add(b);
        } else if let Some(interval) = Interval::new(mask) {
            self.intervals.push(interval);
        } else {
            match mask {
                Mask::None => {}
                Mask::Dense(tensor) if tensor.dtype() != DType::Bool => {
                    self.additive.push(Dense::new(tensor))
                }
                mask => self.bits.push(Bits::new(mask)),
            }
        }
    }

    /// Tensors whose values are added to scores, where -inf hides.
    pub(crate) fn additive(&self) -> &[Dense<'p>] {
        &self.additive
    }

    /// Whether some mask is no interval.
    pub(crate) fn has_bits(&self) -> bool {
        !self.bits.is_empty()
    }

    /// Whether all heads see the same bits.
    pub(crate) fn bits_are_shared_by_heads(&self) -> bool {
        self.bits.iter().all(Bits::is_shared_by_heads)
    }

    /// Keys outside are hidden from the query; inside, bits decide. Lies in `0..kv_len`.
    pub(crate) fn interval(&self, sequence: &Sequence, position: i64) -> Keys {
        let mut keys = (0, sequence.kv_len as i64);
        for interval in &self.intervals {
            let (low, high) = interval.of(sequence.batch, position);
            keys = (keys.0.max(low), keys.1.min(high));
        }
        if keys.0 < keys.1 { keys } else { (0, 0) }
    }

    /// What the bits of a tile are known to be without looking at each.
    pub(crate) fn status(&self, tile: &Tile) -> TileStatus {
        self.bits.iter().fold(TileStatus::Full, |status, bits| status.and(bits.status(tile)))
    }

    /// Bit `i` is whether key `begin + i` is visible by all that is no interval, for keys in `within`; other bits may
    /// be anything.
    ///
    /// # Panics
    /// When `within` does not lie in `begin..begin + 128`.
    pub(crate) fn row_bits(&self, query: &QueryRow, begin: i64, within: Keys) -> u128 {
        assert!(begin <= within.0 && within.1 - begin <= 128);
        self.bits.iter().fold(u128::MAX, |visible, bits| {
            if visible == 0 { 0 } else { visible & bits.of(query, begin, within) }
        })
    }
}

/// A mask that is an interval of keys for each row.
enum Interval<'p> {
    Window { left: i64, right: i64 },
    Chunk { size: i64, is_causal: bool },
    Prefix { prefix_len: &'p TensorRef<'p> },
    Document(Vec<Runs>),
}

impl<'p> Interval<'p> {
    fn new(mask: &'p Mask<'_>) -> Option<Self> {
        let clamped = |side: usize| i64::try_from(side).unwrap_or(i64::MAX);
        Some(match mask {
            Mask::Causal => Interval::Window { left: i64::MAX, right: 0 },
            Mask::SlidingWindow { left, right } => {
                Interval::Window { left: clamped(*left), right: clamped(*right) }
            }
            Mask::Chunked { size } => Interval::Chunk { size: clamped(*size), is_causal: false },
            Mask::ChunkedCausal { size } => Interval::Chunk { size: clamped(*size), is_causal: true },
            Mask::PrefixLm { prefix_len } => Interval::Prefix { prefix_len },
            Mask::Document { ids } => {
                let runs: Option<Vec<Runs>> =
                    (0..ids.shape()[0]).map(|batch| Runs::new(ids, batch)).collect();
                Interval::Document(runs?)
            }
            _ => return None,
        })
    }

    fn of(&self, batch: usize, position: i64) -> Keys {
        match self {
            Interval::Window { left, right } => {
                (position.saturating_sub(*left), position.saturating_add(*right).saturating_add(1))
            }
            Interval::Chunk { size, is_causal } => {
                let begin = position.div_euclid(*size).saturating_mul(*size);
                let end = begin.saturating_add(*size);
                (begin, if *is_causal { end.min(position + 1) } else { end })
            }
            Interval::Prefix { prefix_len } => {
                (0, signed_at(prefix_len, batch).max(position.saturating_add(1)))
            }
            Interval::Document(runs) => runs[batch.min(runs.len() - 1)].around(position),
        }
    }
}

/// Documents of one sequence that each are one run of positions.
struct Runs {
    /// First positions of the runs, and one past the last position.
    starts: Vec<i64>,
}

impl Runs {
    /// `None` when a document comes back after another.
    fn new(ids: &TensorRef<'_>, batch: usize) -> Option<Self> {
        let indices = Indices::new(ids);
        let columns = ids.shape()[1];
        let mut starts = Vec::new();
        let mut documents = Vec::new();
        for position in 0..columns {
            let id = indices.raw(batch, position);
            if documents.last() != Some(&id) {
                starts.push(position as i64);
                documents.push(id);
            }
        }
        starts.push(columns as i64);
        let runs = documents.len();
        documents.sort_unstable();
        documents.dedup();
        (documents.len() == runs).then_some(Runs { starts })
    }

    fn around(&self, position: i64) -> Keys {
        match self.starts.partition_point(|&start| start <= position) {
            0 => (0, 0),
            after if after == self.starts.len() => (0, 0),
            after => (self.starts[after - 1], self.starts[after]),
        }
    }
}

/// A mask that is evaluated key by key.
enum Bits<'p> {
    Interval(Interval<'p>),
    Document {
        ids: Indices<'p>,
        columns: i64,
    },
    Dense(Dense<'p>),
    And(Box<Bits<'p>>, Box<Bits<'p>>),
    Or(Box<Bits<'p>>, Box<Bits<'p>>),
    Not(Box<Bits<'p>>),
    /// A user's function, or a mask without a faster way.
    Asked(&'p Mask<'p>),
}

impl<'p> Bits<'p> {
    fn new(mask: &'p Mask<'_>) -> Self {
        match mask {
            Mask::Dense(tensor) if tensor.dtype() == DType::Bool => Bits::Dense(Dense::new(tensor)),
            Mask::And(a, b) => Bits::And(Box::new(Bits::new(a)), Box::new(Bits::new(b))),
            Mask::Or(a, b) => Bits::Or(Box::new(Bits::new(a)), Box::new(Bits::new(b))),
            Mask::Not(mask) => Bits::Not(Box::new(Bits::new(mask))),
            mask => match (Interval::new(mask), mask) {
                (Some(interval), _) => Bits::Interval(interval),
                (None, Mask::Document { ids }) => {
                    Bits::Document { ids: Indices::new(ids), columns: ids.shape()[1] as i64 }
                }
                _ => Bits::Asked(mask),
            },
        }
    }

    fn is_shared_by_heads(&self) -> bool {
        match self {
            Bits::Interval(_) | Bits::Document { .. } => true,
            Bits::Dense(dense) => dense.is_shared_by_heads(),
            Bits::And(a, b) | Bits::Or(a, b) => a.is_shared_by_heads() && b.is_shared_by_heads(),
            Bits::Not(bits) => bits.is_shared_by_heads(),
            Bits::Asked(mask) => mask.is_none(),
        }
    }

    fn status(&self, tile: &Tile) -> TileStatus {
        match self {
            Bits::Interval(interval) => interval_status(interval, tile),
            Bits::Document { ids, columns } => document_status(ids, *columns, tile),
            Bits::Dense(_) => TileStatus::Unknown,
            Bits::And(a, b) => a.status(tile).and(b.status(tile)),
            Bits::Or(a, b) => a.status(tile).or(b.status(tile)),
            Bits::Not(bits) => !bits.status(tile),
            Bits::Asked(mask) => mask.tile_status(tile),
        }
    }

    fn of(&self, query: &QueryRow, begin: i64, within: Keys) -> u128 {
        match self {
            Bits::Interval(interval) => {
                let (low, high) = interval.of(query.batch, query.position);
                range_bits((low.max(within.0) - begin, high.min(within.1) - begin))
            }
            Bits::Document { ids, columns } => {
                if !(0..*columns).contains(&query.position) {
                    return 0;
                }
                let own = ids.raw(query.batch, query.position as usize);
                collect_bits(begin, within, |key| ids.raw(query.batch, key as usize) == own)
            }
            Bits::Dense(dense) => {
                let row = dense.row(query.batch, query.head, query.row);
                let bounds = ((within.0 - begin) as usize, (within.1 - begin) as usize);
                // SAFETY: `within` lies in the keys of the sequence, which a dense mask covers, as it does the row.
                unsafe { dense.bits(row, begin as usize, bounds.0, bounds.1) }
            }
            Bits::And(a, b) => a.of(query, begin, within) & b.of(query, begin, within),
            Bits::Or(a, b) => a.of(query, begin, within) | b.of(query, begin, within),
            Bits::Not(bits) => !bits.of(query, begin, within),
            Bits::Asked(mask) => collect_bits(begin, within, |key| {
                mask.visible(&ScoreIndex {
                    batch: query.batch,
                    head: query.head,
                    row: query.row,
                    q: query.position,
                    k: key,
                })
            }),
        }
    }
}

#[inline]
fn collect_bits(begin: i64, within: Keys, visible: impl Fn(i64) -> bool) -> u128 {
    (within.0..within.1).fold(0, |bits, key| bits | u128::from(visible(key)) << (key - begin))
}

/// Bits `low..high`, both in 0..=128; none when `low >= high`.
fn range_bits((low, high): Keys) -> u128 {
    let below = |end: i64| if end >= 128 { u128::MAX } else { (1u128 << end.max(0)) - 1 };
    if low < high { below(high) & !below(low) } else { 0 }
}

fn interval_status(interval: &Interval<'_>, tile: &Tile) -> TileStatus {
    // The ends of all these intervals rise with the position.
    let (first, last) = (interval.of(tile.batch, tile.q_begin), interval.of(tile.batch, tile.q_end - 1));
    if first.0 >= first.1 || last.0 >= last.1 {
        return TileStatus::Unknown;
    }
    if tile.k_begin >= last.1 || tile.k_end <= first.0 {
        TileStatus::Skip
    } else if tile.k_begin >= last.0 && tile.k_end <= first.1 {
        TileStatus::Full
    } else {
        TileStatus::Partial
    }
}

fn document_status(ids: &Indices<'_>, columns: i64, tile: &Tile) -> TileStatus {
    let range = |begin: i64, end: i64| {
        (begin.max(0)..end.min(columns)).map(|position| ids.raw(tile.batch, position as usize)).fold(
            None,
            |range: Option<(u32, u32)>, id| {
                Some(range.map_or((id, id), |(low, high)| (low.min(id), high.max(id))))
            },
        )
    };
    match (range(tile.q_begin, tile.q_end), range(tile.k_begin, tile.k_end)) {
        (None, _) | (_, None) => TileStatus::Skip,
        (Some(q), Some(k)) if q.1 < k.0 || k.1 < q.0 => TileStatus::Skip,
        (Some(q), Some(k)) if q.0 == q.1 && q == k && tile.q_begin >= 0 && tile.q_end <= columns => {
            TileStatus::Full
        }
        _ => TileStatus::Partial,
    }
}

/// Turns the bits of up to 64 rows of up to 128 keys into those of keys: bit `r` of word `j` is bit `j` of row `r`.
pub(crate) fn keys_from_rows(rows: &[u128], keys: &mut [u64; 128]) {
    let (lower, upper) = keys.split_at_mut(64);
    for (half, shift) in [(lower, 0), (upper, 64)] {
        for (r, word) in half.iter_mut().enumerate() {
            *word = rows.get(r).map_or(0, |row| (row >> shift) as u64);
        }
        transpose_bits(half.try_into().expect("half of 128 words"));
    }
}

/// Bit `j` of word `i` to bit `i` of word `j`, by swapping ever smaller squares.
fn transpose_bits(words: &mut [u64; 64]) {
    let mut width = 32;
    let mut mask = 0x0000_0000_ffff_ffffu64;
    while width > 0 {
        let mut i = 0;
        while i < 64 {
            let swapped = ((words[i] >> width) ^ words[i + width]) & mask;
            words[i] ^= swapped << width;
            words[i + width] ^= swapped;
            i = (i + width + 1) & !width;
        }
        width /= 2;
        mask ^= mask << width;
    }
}

#[cfg(test)]
mod tests;
