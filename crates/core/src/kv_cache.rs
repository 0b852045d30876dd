//! Queries, and the forms in which keys and values are kept.

use crate::owned::Tensor;
use crate::tensor::TensorRef;

/// The queries of a batch.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Query<'a> {
    /// Every sequence has the same number of rows, of which the first few may be valid.
    Padded {
        /// `[batch, seqlen_q, num_heads, head_dim]`.
        q: TensorRef<'a>,
        /// `[batch]`, i32 or u32: valid rows; later rows are neither read nor written. Default all.
        lengths: Option<TensorRef<'a>>,
    },
    /// Sequences of different lengths, one after the other.
    Ragged {
        /// `[total_q, num_heads, head_dim]`.
        q: TensorRef<'a>,
        /// `[batch + 1]`, i32 or u32: rows `cu_seqlens[b]..cu_seqlens[b + 1]` are sequence `b`.
        cu_seqlens: TensorRef<'a>,
        /// A bound on the rows of a sequence, known to the host; default `total_q`. A tight one saves work on a GPU.
        max_seqlen: Option<usize>,
    },
}

impl<'a> Query<'a> {
    /// Padded queries `[batch, seqlen_q, num_heads, head_dim]`, all rows valid.
    pub fn padded(q: TensorRef<'a>) -> Self {
        Query::Padded { q, lengths: None }
    }

    /// Ragged queries `[total_q, num_heads, head_dim]` with offsets `[batch + 1]`.
    pub fn ragged(q: TensorRef<'a>, cu_seqlens: TensorRef<'a>) -> Self {
        Query::Ragged { q, cu_seqlens, max_seqlen: None }
    }

    /// The tensor of queries.
    pub fn tensor(&self) -> &TensorRef<'a> {
        match self {
            Query::Padded { q, .. } | Query::Ragged { q, .. } => q,
        }
    }
}

impl<'a> From<TensorRef<'a>> for Query<'a> {
    fn from(q: TensorRef<'a>) -> Self {
        Query::padded(q)
    }
}

impl<'a> From<&TensorRef<'a>> for Query<'a> {
    fn from(q: &TensorRef<'a>) -> Self {
        Query::padded(q.clone())
    }
}

impl<'a> From<&'a Tensor> for Query<'a> {
    fn from(q: &'a Tensor) -> Self {
        Query::padded(q.view())
    }
}

/// The keys and values of a batch.
///
/// `value_dim` may differ from `head_dim`; all else of `k` and `v` is alike. A key at or beyond its sequence's
/// length is never seen, whatever its memory holds.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum KvCache<'a> {
    /// Every sequence has room for the same number of keys, of which the first few may be valid.
    Dense {
        /// `[batch, seqlen_k, num_kv_heads, head_dim]`.
        k: TensorRef<'a>,
        /// `[batch, seqlen_k, num_kv_heads, value_dim]`.
        v: TensorRef<'a>,
        /// `[batch]`, i32 or u32: valid keys; default all.
        lengths: Option<TensorRef<'a>>,
    },
    /// Sequences of different lengths, one after the other.
    Ragged {
        /// `[total_k, num_kv_heads, head_dim]`.
        k: TensorRef<'a>,
        /// `[total_k, num_kv_heads, value_dim]`.
        v: TensorRef<'a>,
        /// `[batch + 1]`, i32 or u32: rows `cu_seqlens[b]..cu_seqlens[b + 1]` are sequence `b`.
        cu_seqlens: TensorRef<'a>,
        /// A bound on the keys of a sequence, known to the host; default `total_k`.
        max_seqlen: Option<usize>,
    },
    /// Continuous batching: each sequence has one block of a pool.
    Continuous {
        /// `[num_blocks, max_seq_len, num_kv_heads, head_dim]`.
        k: TensorRef<'a>,
        /// `[num_blocks, max_seq_len, num_kv_heads, value_dim]`.
        v: TensorRef<'a>,
        /// `[batch]`, i32 or u32: the block of each sequence.
        lookup_table: TensorRef<'a>,
        /// `[batch]`, i32 or u32: keys of each sequence, the new ones included.
        lengths: TensorRef<'a>,
        /// A bound on the keys of a sequence, known to the host; default `max_seq_len`.
        max_seqlen: Option<usize>,
    },
    /// Paged (Kwon et al. 2023, "PagedAttention"): each sequence has a list of pages of a pool.
    Paged {
        /// `[num_pages, page_size, num_kv_heads, head_dim]`; any page size. The layers of a collection
        /// `[num_pages, 2, layers, page_size, num_kv_heads, head_dim]` are reached by
        /// [`select`](TensorRef::select), with no copy.
        k: TensorRef<'a>,
        /// `[num_pages, page_size, num_kv_heads, value_dim]`.
        v: TensorRef<'a>,
        /// `[batch, max_pages]`, i32 or u32: the page of keys `i * page_size..(i + 1) * page_size`. Entries past a
        /// sequence's length may be anything.
        page_table: TensorRef<'a>,
        /// `[batch]`, i32 or u32: keys of each sequence, the new ones included.
        lengths: TensorRef<'a>,
        /// A bound on the keys of a sequence, known to the host; default `max_pages * page_size`.
        max_seqlen: Option<usize>,
    },
}

impl<'a> KvCache<'a> {
    /// Dense keys and values, all valid.
    pub fn dense(k: TensorRef<'a>, v: TensorRef<'a>) -> Self {
        KvCache::Dense { k, v, lengths: None }
    }

    /// The tensor of keys.
    pub fn k(&self) -> &TensorRef<'a> {
        match self {
            KvCache::Dense { k, .. }
            | KvCache::Ragged { k, .. }
            | KvCache::Continuous { k, .. }
            | KvCache::Paged { k, .. } => k,
        }
    }

    /// The tensor of values.
    pub fn v(&self) -> &TensorRef<'a> {
        match self {
            KvCache::Dense { v, .. }
            | KvCache::Ragged { v, .. }
            | KvCache::Continuous { v, .. }
            | KvCache::Paged { v, .. } => v,
        }
    }

    /// The form's name, as kernel ids show it.
    pub fn kind(&self) -> KvKind {
        match self {
            KvCache::Dense { .. } => KvKind::Dense,
            KvCache::Ragged { .. } => KvKind::Ragged,
            KvCache::Continuous { .. } => KvKind::Continuous,
            KvCache::Paged { .. } => KvKind::Paged,
        }
    }
}

impl<'a> From<(TensorRef<'a>, TensorRef<'a>)> for KvCache<'a> {
    fn from((k, v): (TensorRef<'a>, TensorRef<'a>)) -> Self {
        KvCache::dense(k, v)
    }
}

impl<'a> From<(&TensorRef<'a>, &TensorRef<'a>)> for KvCache<'a> {
    fn from((k, v): (&TensorRef<'a>, &TensorRef<'a>)) -> Self {
        KvCache::dense(k.clone(), v.clone())
    }
}

impl<'a> From<(&'a Tensor, &'a Tensor)> for KvCache<'a> {
    fn from((k, v): (&'a Tensor, &'a Tensor)) -> Self {
        KvCache::dense(k.view(), v.view())
    }
}

/// The form of a [`KvCache`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KvKind {
    /// [`KvCache::Dense`].
    Dense,
    /// [`KvCache::Ragged`].
    Ragged,
    /// [`KvCache::Continuous`].
    Continuous,
    /// [`KvCache::Paged`].
    Paged,
}

impl std::fmt::Display for KvKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            KvKind::Dense => "dense",
            KvKind::Ragged => "ragged",
            KvKind::Continuous => "continuous",
            KvKind::Paged => "paged",
        })
    }
}
