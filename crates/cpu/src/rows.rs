//! Where rows are: queries, keys and values of every form of cache, and outputs, as pointers and strides.

use std::marker::PhantomData;

use omniflash_core::{AttentionProblem, DType, KvCache, Query, Result, TensorMut, TensorRef};

use crate::scratch::{List, listed};
use crate::simd::Storage;

/// One sequence of the batch, its lengths read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sequence {
    /// Its place in the batch.
    pub(crate) batch: usize,
    /// Its first row in a ragged query tensor; 0 for padded queries.
    pub(crate) q_begin: usize,
    /// Its query rows.
    pub(crate) q_len: usize,
    /// Its visible keys.
    pub(crate) kv_len: usize,
    /// The global position of its first query.
    pub(crate) query_start: i64,
}

listed!(Sequence);

/// The sequences of a problem, in the order of the batch.
///
/// # Errors
/// [`Error::Value`] for a length, offset or id that is out of range: nothing else of this crate checks them again.
pub(crate) fn sequences(problem: &AttentionProblem<'_>) -> Result<List<Sequence>> {
    problem.check_indices()?;
    let shape = problem.shape();
    let q_offsets = Offsets::of_queries(problem.query());
    let kv_lengths = Lengths::of_keys(problem.kv());
    Ok((0..shape.batch)
        .map(|batch| {
            let (q_begin, q_len) = match &q_offsets {
                Offsets::Padded(None) => (0, shape.seqlen_q),
                Offsets::Padded(Some(lengths)) => (0, lengths.at(batch)),
                Offsets::Ragged(offsets) => (offsets.at(batch), offsets.at(batch + 1) - offsets.at(batch)),
            };
            let kv_len = match &kv_lengths {
                Lengths::All(len) => *len,
                Lengths::Each(lengths) => lengths.at(batch),
                Lengths::Between(offsets) => offsets.at(batch + 1) - offsets.at(batch),
            };
            let query_start = match problem.query_start() {
                Some(start) => signed_at(start, batch),
                None => kv_len as i64 - q_len as i64,
            };
            Sequence { batch, q_begin, q_len, kv_len, query_start }
        })
        .collect())
}

enum Offsets<'p> {
    Padded(Option<Indices<'p>>),
    Ragged(Indices<'p>),
}

impl<'p> Offsets<'p> {
    fn of_queries(query: &'p Query<'_>) -> Self {
        match query {
            Query::Ragged { cu_seqlens, .. } => Offsets::Ragged(Indices::new(cu_seqlens)),
            Query::Padded { lengths, .. } => Offsets::Padded(lengths.as_ref().map(Indices::new)),
            _ => unreachable!("every form of queries is handled"),
        }
    }
}

enum Lengths<'p> {
    All(usize),
    Each(Indices<'p>),
    Between(Indices<'p>),
}

impl<'p> Lengths<'p> {
    fn of_keys(kv: &'p KvCache<'_>) -> Self {
        match kv {
            KvCache::Dense { k, lengths: None, .. } => Lengths::All(k.shape()[1]),
            KvCache::Dense { lengths: Some(lengths), .. }
            | KvCache::Continuous { lengths, .. }
            | KvCache::Paged { lengths, .. } => Lengths::Each(Indices::new(lengths)),
            KvCache::Ragged { cu_seqlens, .. } => Lengths::Between(Indices::new(cu_seqlens)),
            _ => unreachable!("every form of cache is handled"),
        }
    }
}

/// Integers of a host tensor that `check_indices` has found to be valid indices.
#[derive(Clone, Copy)]
pub(crate) struct Indices<'p> {
    pointer: *const u32,
    /// Of the last axis.
    stride: i64,
    /// Of the axis before it; 0 if there is none or it broadcasts.
    row_stride: i64,
    tensor: PhantomData<&'p u32>,
}

// SAFETY: a shared borrow of plain memory.
unsafe impl Send for Indices<'_> {}
// SAFETY: as above.
unsafe impl Sync for Indices<'_> {}

impl<'p> Indices<'p> {
    /// Views a tensor of rank 1 or 2.
    pub(crate) fn new(tensor: &'p TensorRef<'_>) -> Self {
        assert!(tensor.dtype().is_index(), "validated with the problem");
        let (stride, row_stride) = match (tensor.shape(), tensor.strides()) {
            ([rows, _], [row_stride, stride]) => (*stride, if *rows == 1 { 0 } else { *row_stride }),
            (_, strides) => (strides[0], 0),
        };
        Indices { pointer: tensor.as_ptr().cast(), stride, row_stride, tensor: PhantomData }
    }

    /// Element `i`, which the caller knows to be inside the tensor; not negative, by `check_indices`.
    #[inline]
    pub(crate) fn at(&self, i: usize) -> usize {
        self.at_row(0, i)
    }

    /// Element `[row, i]`, which the caller knows to be inside the tensor; not negative, by `check_indices`.
    #[inline]
    pub(crate) fn at_row(&self, row: usize, i: usize) -> usize {
        self.raw(row, i) as usize
    }

    /// The bits of element `[row, i]`, for ids that are only compared.
    #[inline]
    pub(crate) fn raw(&self, row: usize, i: usize) -> u32 {
        let offset = row as i64 * self.row_stride + i as i64 * self.stride;
        // SAFETY: the element is inside the tensor, whose maker vouched for all of it; i32 and u32 are read alike.
        unsafe { self.pointer.wrapping_offset(offset as isize).read() }
    }
}

/// An element of a rank-1 index tensor that may be negative.
pub(crate) fn signed_at(tensor: &TensorRef<'_>, i: usize) -> i64 {
    let bits = Indices::new(tensor).raw(0, i);
    if tensor.dtype() == DType::U32 { i64::from(bits) } else { i64::from(bits as i32) }
}

/// Vectors of one tensor with `[batch, row, head]` or, ragged, `[row, head]` before its dense last axis.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows<T> {
    pointer: *mut T,
    batch_stride: i64,
    row_stride: i64,
    head_stride: i64,
}

// SAFETY: an address with strides; whoever dereferences what it answers argues for that.
unsafe impl<T> Send for Rows<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Rows<T> {}

impl<T: Storage> Rows<T> {
    /// Rows that are read.
    pub(crate) fn new(tensor: &TensorRef<'_>) -> Self {
        assert_eq!(tensor.dtype(), T::DTYPE, "validated with the problem");
        let (batch_stride, row_stride, head_stride) = match tensor.strides() {
            [batch, row, head, _] => (*batch, *row, *head),
            [row, head, _] => (0, *row, *head),
            strides => unreachable!("rows have rank 3 or 4, not {}", strides.len()),
        };
        Rows { pointer: tensor.as_ptr().cast_mut().cast(), batch_stride, row_stride, head_stride }
    }

    /// Rows that are written.
    pub(crate) fn new_mut(tensor: &TensorMut<'_>) -> Self {
        Rows { pointer: tensor.as_mut_ptr().cast(), ..Rows::new(tensor.as_view()) }
    }

    /// The vector of a head at a row; in a ragged tensor rows count from the tensor's first.
    #[inline]
    pub(crate) fn at(&self, batch: usize, row: usize, head: usize) -> *mut T {
        let offset =
            batch as i64 * self.batch_stride + row as i64 * self.row_stride + head as i64 * self.head_stride;
        self.pointer.wrapping_offset(offset as isize)
    }

    /// Elements from a row to the next.
    pub(crate) fn row_stride(&self) -> isize {
        self.row_stride as isize
    }

    /// Elements from a head to the next.
    pub(crate) fn head_stride(&self) -> isize {
        self.head_stride as isize
    }
}

/// Keys and values of one problem, whatever the form of the cache.
#[derive(Clone, Copy)]
pub(crate) struct KeyValues<'p, T> {
    k: Rows<T>,
    v: Rows<T>,
    place: Place<'p>,
}

/// How the tensor's first axes follow from sequence and key.
#[derive(Clone, Copy)]
enum Place<'p> {
    Dense,
    Ragged { begins: Indices<'p> },
    Continuous { blocks: Indices<'p> },
    Paged { pages: Indices<'p>, page_size: usize },
}

/// Keys that lie at one stride: key `i` of the run has its vectors at `k + i * k.row_stride` and `v + i * v.row_stride`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run<T> {
    pub(crate) k: *const T,
    pub(crate) v: *const T,
    /// Keys of the run, at least 1.
    pub(crate) len: usize,
}

impl<'p, T: Storage> KeyValues<'p, T> {
    pub(crate) fn new(kv: &'p KvCache<'_>) -> Self {
        let place = match kv {
            KvCache::Dense { .. } => Place::Dense,
            KvCache::Ragged { cu_seqlens, .. } => Place::Ragged { begins: Indices::new(cu_seqlens) },
            KvCache::Continuous { lookup_table, .. } => {
                Place::Continuous { blocks: Indices::new(lookup_table) }
            }
            KvCache::Paged { k, page_table, .. } => {
                Place::Paged { pages: Indices::new(page_table), page_size: k.shape()[1] }
            }
            _ => unreachable!("every form of cache is handled"),
        };
        KeyValues { k: Rows::new(kv.k()), v: Rows::new(kv.v()), place }
    }

    /// The keys from `key` on, up to `end` or the end of a page; `key < end <= kv_len`, so that a table entry past a
    /// sequence's length is never read.
    #[inline]
    pub(crate) fn run(&self, batch: usize, head: usize, key: usize, end: usize) -> Run<T> {
        debug_assert!(key < end);
        let (first, row, len) = match &self.place {
            Place::Dense => (batch, key, end - key),
            Place::Ragged { begins } => (0, begins.at(batch) + key, end - key),
            Place::Continuous { blocks } => (blocks.at(batch), key, end - key),
            Place::Paged { pages, page_size } => {
                let row = key % page_size;
                (pages.at_row(batch, key / page_size), row, (end - key).min(page_size - row))
            }
        };
        Run { k: self.k.at(first, row, head), v: self.v.at(first, row, head), len }
    }

    /// The keys' strides.
    pub(crate) fn k(&self) -> &Rows<T> {
        &self.k
    }

    /// The values' strides.
    pub(crate) fn v(&self) -> &Rows<T> {
        &self.v
    }
}

/// Writes the log-sum-exp of rows.
#[derive(Clone, Copy)]
pub(crate) struct LogSumExp {
    pointer: *mut f32,
    batch_stride: i64,
    head_stride: i64,
    row_stride: i64,
}

// SAFETY: an address with strides; writers argue that rows are theirs.
unsafe impl Send for LogSumExp {}
// SAFETY: as above.
unsafe impl Sync for LogSumExp {}

impl LogSumExp {
    pub(crate) fn new(tensor: &TensorMut<'_>) -> Self {
        let (batch_stride, head_stride, row_stride) = match tensor.strides() {
            [batch, head, row] => (*batch, *head, *row),
            [head, row] => (0, *head, *row),
            strides => unreachable!("lse has rank 2 or 3, not {}", strides.len()),
        };
        LogSumExp { pointer: tensor.as_mut_ptr().cast(), batch_stride, head_stride, row_stride }
    }

    /// # Safety
    /// The row is inside the tensor, and no other thread uses it.
    #[inline]
    pub(crate) unsafe fn write(&self, batch: usize, head: usize, row: usize, value: f32) {
        let offset =
            batch as i64 * self.batch_stride + head as i64 * self.head_stride + row as i64 * self.row_stride;
        // SAFETY: the caller's duty.
        unsafe { self.pointer.wrapping_offset(offset as isize).write(value) }
    }
}

/// The sinks of all heads as f32; -inf, which changes nothing, where there are none.
pub(crate) fn sinks(problem: &AttentionProblem<'_>) -> List<f32> {
    let heads = problem.shape().num_heads;
    match problem.sinks() {
        Some(sinks) => floats(sinks, heads),
        None => std::iter::repeat_n(f32::NEG_INFINITY, heads).collect(),
    }
}

/// The elements of a float tensor `[len]`.
pub(crate) fn floats(tensor: &TensorRef<'_>, len: usize) -> List<f32> {
    const HOST: &str = "validated with the problem";
    (0..len)
        .map(|i| match tensor.dtype() {
            DType::F16 => tensor.host::<half::f16>().expect(HOST).at(&[i]).to_f32(),
            DType::BF16 => tensor.host::<half::bf16>().expect(HOST).at(&[i]).to_f32(),
            _ => tensor.host::<f32>().expect(HOST).at(&[i]),
        })
        .collect()
}
