//! Which keys a query sees, and which tiles of scores need no look at all.
//!
//! A [`Mask`] is a tree of built-in masks, tensors and user functions joined by [`and`](Mask::and),
//! [`or`](Mask::or) and `!`. Backends match on the tree, so it is at once what the caller says and what
//! a kernel is chosen by.
//!
//! Positions are global: a query row `i` of sequence `b` sits at `q = query_start[b] + i`, which may be negative, and
//! a key at its index `k` in the sequence. With the default `query_start = kv_len - q_len` causal masks and windows
//! align bottom-right.

use std::fmt;
use std::ops;
use std::sync::Arc;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::source::DeviceSource;
use crate::tensor::TensorRef;

/// Which keys a query sees. See [the module](self) for positions.
///
/// | mask | visible iff |
/// |---|---|
/// | `None` | always |
/// | `Causal` | k <= q |
/// | `SlidingWindow { left, right }` | q - left <= k <= q + right |
/// | `Chunked { size }` | floor(q / size) == floor(k / size) |
/// | `ChunkedCausal { size }` | both `Chunked` and `Causal` |
/// | `PrefixLm { prefix_len }` | k < prefix_len\[b\] or k <= q |
/// | `Document { ids }` | ids\[b, q\] == ids\[b, k\], and q inside the row of ids |
/// | `Dense(tensor)` | tensor\[b, h, i, k\] is true; of floats: not -inf, and the value is added to the score |
///
/// ```
/// use omniflash_core::Mask;
/// let mask = Mask::Causal.and(Mask::from_fn(|_b, _h, q, k| (q - k) % 2 == 0));
/// assert!(mask.visible_at(0, 0, 6, 4));
/// assert!(!mask.visible_at(0, 0, 6, 5));
/// assert!(!mask.visible_at(0, 0, 6, 8));
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum Mask<'a> {
    /// Every key is visible.
    #[default]
    None,
    /// Keys up to the query's own position.
    Causal,
    /// Keys from `left` before to `right` after the query's position, both ends included.
    SlidingWindow {
        /// Keys visible before the query's position; `usize::MAX` for no limit.
        left: usize,
        /// Keys visible after the query's position; `usize::MAX` for no limit.
        right: usize,
    },
    /// Keys of the query's own chunk; chunks are counted from position 0.
    Chunked {
        /// Positions in a chunk, at least 1.
        size: usize,
    },
    /// Keys of the query's own chunk, up to its own position.
    ChunkedCausal {
        /// Positions in a chunk, at least 1.
        size: usize,
    },
    /// A prefix that all see, causal after it.
    PrefixLm {
        /// `[batch]`, i32 or u32: keys of the prefix.
        prefix_len: TensorRef<'a>,
    },
    /// Keys of the same document, for packed sequences. A query has the id of its own position; one that has none, before the
    /// first or after the last id, sees no key: so do the first queries of a sequence with more queries than keys.
    Document {
        /// `[batch, seqlen_k]`, i32 or u32: the document of each key position.
        ids: TensorRef<'a>,
    },
    /// A tensor `[batch, seqlen_q, seqlen_k]` or `[batch, heads, seqlen_q, seqlen_k]`, where batch and heads may be 1.
    ///
    /// Bool: true is visible. Float: added to the score after the score modifications, -inf hides the key.
    Dense(TensorRef<'a>),
    /// Visible by both.
    And(Box<Mask<'a>>, Box<Mask<'a>>),
    /// Visible by either. An additive tensor cannot stand below `Or`.
    Or(Box<Mask<'a>>, Box<Mask<'a>>),
    /// Visible where the other hides. An additive tensor cannot stand below `Not`.
    Not(Box<Mask<'a>>),
    /// A user's function.
    Custom(Arc<dyn MaskFunction + 'a>),
}

/// A user's mask.
///
/// Any `Fn(usize, usize, i64, i64) -> bool` of (batch, query head, q, k) is one; implement the trait to say which
/// tiles can be skipped, or to give device source.
pub trait MaskFunction: Send + Sync {
    /// Whether the query at position `q` of head `head` in sequence `batch` sees the key at position `k`.
    ///
    /// Must be a pure function: backends call it any number of times, in any order, from several threads.
    fn visible(&self, batch: usize, head: usize, q: i64, k: i64) -> bool;

    /// What is known of a whole tile without asking for each of its scores. Must be conservative.
    fn tile_status(&self, _tile: &Tile) -> TileStatus {
        TileStatus::Unknown
    }

    /// Whether [`visible`](MaskFunction::visible) looks at the batch; `false` saves work where it is evaluated on the
    /// host.
    fn varies_by_batch(&self) -> bool {
        true
    }

    /// Whether [`visible`](MaskFunction::visible) looks at the head; `false` saves work where it is evaluated on the
    /// host.
    fn varies_by_head(&self) -> bool {
        true
    }

    /// The same mask as source for a GPU's run-time compiler.
    ///
    /// Without it a GPU backend evaluates [`visible`](MaskFunction::visible) on the host and sends the bits.
    fn device_source(&self) -> Option<DeviceSource> {
        None
    }
}

impl<F: Fn(usize, usize, i64, i64) -> bool + Send + Sync> MaskFunction for F {
    fn visible(&self, batch: usize, head: usize, q: i64, k: i64) -> bool {
        self(batch, head, q, k)
    }
}

impl fmt::Debug for dyn MaskFunction + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.device_source() {
            Some(source) => write!(f, "Custom({})", source.type_name),
            None => f.write_str("Custom"),
        }
    }
}

/// What a mask does to a whole tile of scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TileStatus {
    /// No score is visible: the tile is neither loaded nor computed.
    Skip,
    /// Every score is visible: the mask is not asked.
    Full,
    /// Some scores are visible and some are not, or nearly so.
    Partial,
    /// Nothing is known.
    Unknown,
}

impl TileStatus {
    /// Of "visible by both".
    pub fn and(self, other: TileStatus) -> TileStatus {
        use TileStatus::{Full, Partial, Skip, Unknown};
        match (self, other) {
            (Skip, _) | (_, Skip) => Skip,
            (Full, status) | (status, Full) => status,
            (Unknown, _) | (_, Unknown) => Unknown,
            (Partial, Partial) => Partial,
        }
    }

    /// Of "visible by either".
    pub fn or(self, other: TileStatus) -> TileStatus {
        !((!self).and(!other))
    }
}

impl ops::Not for TileStatus {
    type Output = TileStatus;

    fn not(self) -> TileStatus {
        match self {
            TileStatus::Skip => TileStatus::Full,
            TileStatus::Full => TileStatus::Skip,
            status => status,
        }
    }
}

/// A rectangle of scores of one head: half-open ranges of global positions, neither empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tile {
    /// The sequence in the batch.
    pub batch: usize,
    /// The query head.
    pub head: usize,
    /// Position of the first query.
    pub q_begin: i64,
    /// One past the position of the last query.
    pub q_end: i64,
    /// Position of the first key.
    pub k_begin: i64,
    /// One past the position of the last key.
    pub k_end: i64,
}

/// One score: its head, the query's row in its sequence, and the global positions of query and key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ScoreIndex {
    /// The sequence in the batch.
    pub batch: usize,
    /// The query head.
    pub head: usize,
    /// The query's row in its sequence; rows of tensors with a `seqlen_q` axis.
    pub row: usize,
    /// The query's global position, `query_start[batch] + row`.
    pub q: i64,
    /// The key's position.
    pub k: i64,
}

impl<'a> Mask<'a> {
    /// A mask from a closure of (batch, query head, q, k).
    pub fn from_fn(visible: impl Fn(usize, usize, i64, i64) -> bool + Send + Sync + 'a) -> Self {
        Mask::Custom(Arc::new(visible))
    }

    /// A mask from a user's type.
    pub fn custom(function: impl MaskFunction + 'a) -> Self {
        Mask::Custom(Arc::new(function))
    }

    /// Visible by both. Joining with [`Mask::None`] changes nothing.
    pub fn and(self, other: Mask<'a>) -> Self {
        match (self, other) {
            (Mask::None, mask) | (mask, Mask::None) => mask,
            (a, b) => Mask::And(Box::new(a), Box::new(b)),
        }
    }

    /// Visible by either.
    pub fn or(self, other: Mask<'a>) -> Self {
        Mask::Or(Box::new(self), Box::new(other))
    }

    /// Whether every key is visible to every query.
    pub fn is_none(&self) -> bool {
        matches!(self, Mask::None)
    }

    /// Whether a key is visible, for masks without a tensor of rows: see [`visible`](Mask::visible).
    ///
    /// # Panics
    /// As [`visible`](Mask::visible).
    pub fn visible_at(&self, batch: usize, head: usize, q: i64, k: i64) -> bool {
        self.visible(&ScoreIndex { batch, head, row: usize::try_from(q).unwrap_or(0), q, k })
    }

    /// Whether a key is visible, by the definitions of the table above.
    ///
    /// # Panics
    /// When a tensor of the mask is not in host memory, or the index lies outside it: a problem that
    /// [`AttentionProblem`](crate::AttentionProblem) has accepted for a host backend never panics.
    pub fn visible(&self, at: &ScoreIndex) -> bool {
        match self {
            Mask::None => true,
            Mask::Causal => at.k <= at.q,
            Mask::SlidingWindow { left, right } => {
                at.k >= at.q.saturating_sub(clamped(*left)) && at.k <= at.q.saturating_add(clamped(*right))
            }
            Mask::Chunked { size } => chunk(at.q, *size) == chunk(at.k, *size),
            Mask::ChunkedCausal { size } => at.k <= at.q && chunk(at.q, *size) == chunk(at.k, *size),
            Mask::PrefixLm { prefix_len } => at.k < index_at(prefix_len, &[at.batch]) || at.k <= at.q,
            Mask::Document { ids } => {
                let columns = ids.shape()[1] as i64;
                let id =
                    |position: i64| index_at(ids, &[at.batch.min(ids.shape()[0] - 1), position as usize]);
                (0..columns).contains(&at.q) && (0..columns).contains(&at.k) && id(at.q) == id(at.k)
            }
            Mask::Dense(tensor) => match tensor.dtype() {
                DType::Bool => {
                    let bools = tensor.host::<u8>().expect("a host backend is given host masks");
                    bools.at(&dense_index(tensor, at)[4 - tensor.shape().len()..]) != 0
                }
                _ => self.additive(at) != f32::NEG_INFINITY,
            },
            Mask::And(a, b) => a.visible(at) && b.visible(at),
            Mask::Or(a, b) => a.visible(at) || b.visible(at),
            Mask::Not(mask) => !mask.visible(at),
            Mask::Custom(function) => function.visible(at.batch, at.head, at.q, at.k),
        }
    }

    /// What additive tensors of the mask add to a visible score; 0 without such a tensor.
    ///
    /// # Panics
    /// As [`visible`](Mask::visible).
    pub fn additive(&self, at: &ScoreIndex) -> f32 {
        match self {
            Mask::Dense(tensor) if tensor.dtype() != DType::Bool => {
                float_at(tensor, &dense_index(tensor, at)[4 - tensor.shape().len()..])
            }
            Mask::And(a, b) => a.additive(at) + b.additive(at),
            _ => 0.0,
        }
    }

    /// What the mask does to a whole tile; conservative, and exact for the masks without tensors or functions.
    pub fn tile_status(&self, tile: &Tile) -> TileStatus {
        match self {
            Mask::None => TileStatus::Full,
            Mask::Causal => band_status(tile, i64::MAX, 0),
            Mask::SlidingWindow { left, right } => band_status(tile, clamped(*left), clamped(*right)),
            Mask::Chunked { size } => chunk_status(tile, *size),
            Mask::ChunkedCausal { size } => chunk_status(tile, *size).and(band_status(tile, i64::MAX, 0)),
            // A tensor may lie on a device, where the host cannot look.
            Mask::PrefixLm { .. } => match band_status(tile, i64::MAX, 0) {
                TileStatus::Full => TileStatus::Full,
                _ => TileStatus::Unknown,
            },
            Mask::Document { .. } | Mask::Dense(_) => TileStatus::Unknown,
            Mask::And(a, b) => a.tile_status(tile).and(b.tile_status(tile)),
            Mask::Or(a, b) => a.tile_status(tile).or(b.tile_status(tile)),
            Mask::Not(mask) => !mask.tile_status(tile),
            Mask::Custom(function) => function.tile_status(tile),
        }
    }

    /// Calls `visit` with each tensor of the mask and its name in the API.
    pub(crate) fn visit_tensors(&self, visit: &mut dyn FnMut(&'static str, &TensorRef<'a>)) {
        match self {
            Mask::PrefixLm { prefix_len } => visit("prefix_len", prefix_len),
            Mask::Document { ids } => visit("document_ids", ids),
            Mask::Dense(tensor) => visit("mask", tensor),
            Mask::And(a, b) | Mask::Or(a, b) => {
                a.visit_tensors(visit);
                b.visit_tensors(visit);
            }
            Mask::Not(mask) => mask.visit_tensors(visit),
            _ => {}
        }
    }

    /// Checks the numbers of the mask; tensors are checked against the problem's shape.
    pub(crate) fn check_parameters(&self) -> Result<()> {
        match self {
            Mask::Chunked { size: 0 } | Mask::ChunkedCausal { size: 0 } => {
                Err(Error::value("mask.chunked.size", 0, "at least 1"))
            }
            Mask::And(a, b) => a.check_parameters().and_then(|()| b.check_parameters()),
            Mask::Or(a, b) => {
                a.check_boolean("or")?;
                b.check_boolean("or")?;
                a.check_parameters().and_then(|()| b.check_parameters())
            }
            Mask::Not(mask) => mask.check_boolean("not").and_then(|()| mask.check_parameters()),
            _ => Ok(()),
        }
    }

    /// An additive tensor below `or` or `not` has no meaning.
    fn check_boolean(&self, operator: &str) -> Result<()> {
        match self {
            Mask::Dense(tensor) if tensor.dtype() != DType::Bool => Err(Error::dtype(
                "mask",
                tensor.dtype(),
                format!("bool below `{operator}`: a value that is added has no negation and no alternative"),
            )),
            Mask::And(a, b) | Mask::Or(a, b) => {
                a.check_boolean(operator).and_then(|()| b.check_boolean(operator))
            }
            Mask::Not(mask) => mask.check_boolean(operator),
            _ => Ok(()),
        }
    }
}

impl<'a> ops::Not for Mask<'a> {
    type Output = Mask<'a>;

    fn not(self) -> Mask<'a> {
        match self {
            Mask::Not(mask) => *mask,
            mask => Mask::Not(Box::new(mask)),
        }
    }
}

impl fmt::Display for Mask<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mask::None => f.write_str("none"),
            Mask::Causal => f.write_str("causal"),
            Mask::SlidingWindow { left, right } => {
                let side = |n: &usize| if *n == usize::MAX { "inf".into() } else { n.to_string() };
                write!(f, "sliding_window({}, {})", side(left), side(right))
            }
            Mask::Chunked { size } => write!(f, "chunked({size})"),
            Mask::ChunkedCausal { size } => write!(f, "chunked_causal({size})"),
            Mask::PrefixLm { .. } => f.write_str("prefix_lm"),
            Mask::Document { .. } => f.write_str("document"),
            Mask::Dense(tensor) => write!(f, "dense_{}", tensor.dtype()),
            Mask::And(a, b) => write!(f, "and({a}, {b})"),
            Mask::Or(a, b) => write!(f, "or({a}, {b})"),
            Mask::Not(mask) => write!(f, "not({mask})"),
            Mask::Custom(function) => match function.device_source() {
                Some(source) => f.write_str(&source.type_name),
                None => f.write_str("custom"),
            },
        }
    }
}

/// Window sides are far below `i64::MAX`, so that adding one to a position never overflows.
fn clamped(side: usize) -> i64 {
    i64::try_from(side).unwrap_or(i64::MAX)
}

fn chunk(position: i64, size: usize) -> i64 {
    position.div_euclid(clamped(size))
}

/// Status of `q - left <= k <= q + right`.
fn band_status(tile: &Tile, left: i64, right: i64) -> TileStatus {
    let (q_first, q_last) = (tile.q_begin, tile.q_end - 1);
    let (k_first, k_last) = (tile.k_begin, tile.k_end - 1);
    if k_first > q_last.saturating_add(right) || k_last < q_first.saturating_sub(left) {
        TileStatus::Skip
    } else if k_last <= q_first.saturating_add(right) && k_first >= q_last.saturating_sub(left) {
        TileStatus::Full
    } else {
        TileStatus::Partial
    }
}

fn chunk_status(tile: &Tile, size: usize) -> TileStatus {
    let queries = (chunk(tile.q_begin, size), chunk(tile.q_end - 1, size));
    let keys = (chunk(tile.k_begin, size), chunk(tile.k_end - 1, size));
    if keys.0 > queries.1 || keys.1 < queries.0 {
        TileStatus::Skip
    } else if queries.0 == queries.1 && keys == queries {
        TileStatus::Full
    } else {
        TileStatus::Partial
    }
}

/// The element of a `[batch, heads, seqlen_q, seqlen_k]` tensor that a score meets; axes of extent 1 broadcast.
pub(crate) fn dense_index(tensor: &TensorRef<'_>, at: &ScoreIndex) -> [usize; 4] {
    let shape = tensor.shape();
    let broadcast = |axis_from_end: usize, index: usize| {
        if shape.len() >= axis_from_end && shape[shape.len() - axis_from_end] == 1 { 0 } else { index }
    };
    if shape.len() == 3 {
        // [batch, seqlen_q, seqlen_k]; the caller drops the first entry.
        return [0, broadcast(3, at.batch), at.row, at.k as usize];
    }
    [broadcast(4, at.batch), broadcast(3, at.head), at.row, at.k as usize]
}

/// An integer element of a host tensor, widened.
pub(crate) fn index_at(tensor: &TensorRef<'_>, index: &[usize]) -> i64 {
    match tensor.dtype() {
        DType::U32 => {
            i64::from(tensor.host::<u32>().expect("a host backend is given host tensors").at(index))
        }
        _ => i64::from(tensor.host::<i32>().expect("a host backend is given host tensors").at(index)),
    }
}

/// A float element of a host tensor, widened.
pub(crate) fn float_at(tensor: &TensorRef<'_>, index: &[usize]) -> f32 {
    const HOST: &str = "a host backend is given host tensors";
    match tensor.dtype() {
        DType::F16 => tensor.host::<half::f16>().expect(HOST).at(index).to_f32(),
        DType::BF16 => tensor.host::<half::bf16>().expect(HOST).at(index).to_f32(),
        _ => tensor.host::<f32>().expect(HOST).at(index),
    }
}

#[cfg(test)]
mod tests;
