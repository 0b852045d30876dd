//! Writing new keys and values into a cache: what a decode step does before it attends.

mod validate;

#[cfg(test)]
mod tests;

use crate::device::DeviceId;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::mask::index_at;
use crate::tensor::{TensorMut, TensorRef};

/// New keys and values of a batch.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum NewKv<'a> {
    /// Every sequence has the same number of new rows, of which the first few may be valid.
    Padded {
        /// `[batch, new_rows, num_kv_heads, head_dim]`.
        k: TensorRef<'a>,
        /// `[batch, new_rows, num_kv_heads, value_dim]`.
        v: TensorRef<'a>,
        /// `[batch]`, i32 or u32: valid rows; later ones are not read. Default all.
        lengths: Option<TensorRef<'a>>,
    },
    /// New rows of different numbers, one sequence after the other.
    Ragged {
        /// `[total_rows, num_kv_heads, head_dim]`.
        k: TensorRef<'a>,
        /// `[total_rows, num_kv_heads, value_dim]`.
        v: TensorRef<'a>,
        /// `[batch + 1]`, i32 or u32: rows `cu_seqlens[b]..cu_seqlens[b + 1]` are sequence `b`.
        cu_seqlens: TensorRef<'a>,
        /// A bound on the new rows of a sequence, known to the host; default `total_rows`.
        max_seqlen: Option<usize>,
    },
}

impl<'a> NewKv<'a> {
    /// Padded rows, all valid.
    pub fn padded(k: TensorRef<'a>, v: TensorRef<'a>) -> Self {
        NewKv::Padded { k, v, lengths: None }
    }

    /// The new keys.
    pub fn k(&self) -> &TensorRef<'a> {
        match self {
            NewKv::Padded { k, .. } | NewKv::Ragged { k, .. } => k,
        }
    }

    /// The new values.
    pub fn v(&self) -> &TensorRef<'a> {
        match self {
            NewKv::Padded { v, .. } | NewKv::Ragged { v, .. } => v,
        }
    }
}

/// A cache that is written: the forms of [`KvCache`](crate::KvCache) with room to grow.
#[derive(Debug)]
#[non_exhaustive]
pub enum KvCacheMut<'a> {
    /// Every sequence has room for the same number of keys.
    Dense {
        /// `[batch, max_seq_len, num_kv_heads, head_dim]`.
        k: TensorMut<'a>,
        /// `[batch, max_seq_len, num_kv_heads, value_dim]`.
        v: TensorMut<'a>,
    },
    /// Each sequence has one block of a pool.
    Continuous {
        /// `[num_blocks, max_seq_len, num_kv_heads, head_dim]`.
        k: TensorMut<'a>,
        /// `[num_blocks, max_seq_len, num_kv_heads, value_dim]`.
        v: TensorMut<'a>,
        /// `[batch]`, i32 or u32: the block of each sequence.
        lookup_table: TensorRef<'a>,
    },
    /// Each sequence has a list of pages of a pool.
    Paged {
        /// `[num_pages, page_size, num_kv_heads, head_dim]`; any page size.
        k: TensorMut<'a>,
        /// `[num_pages, page_size, num_kv_heads, value_dim]`.
        v: TensorMut<'a>,
        /// `[batch, max_pages]`, i32 or u32: the page of positions `i * page_size..(i + 1) * page_size`. Entries of
        /// positions that are not written may be anything.
        page_table: TensorRef<'a>,
    },
}

impl<'a> KvCacheMut<'a> {
    /// The tensor of keys.
    pub fn k(&self) -> &TensorMut<'a> {
        match self {
            KvCacheMut::Dense { k, .. } | KvCacheMut::Continuous { k, .. } | KvCacheMut::Paged { k, .. } => k,
        }
    }

    /// The tensor of values.
    pub fn v(&self) -> &TensorMut<'a> {
        match self {
            KvCacheMut::Dense { v, .. } | KvCacheMut::Continuous { v, .. } | KvCacheMut::Paged { v, .. } => v,
        }
    }

    /// The lookup or page table and its name; `None` for a dense cache.
    fn table(&self) -> Option<(&'static str, &TensorRef<'a>)> {
        match self {
            KvCacheMut::Dense { .. } => None,
            KvCacheMut::Continuous { lookup_table, .. } => Some(("lookup_table", lookup_table)),
            KvCacheMut::Paged { page_table, .. } => Some(("page_table", page_table)),
        }
    }
}

/// Where in its sequence the first new row goes; the others follow it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum AppendAt<'a> {
    /// `[batch]`, i32 or u32: the position of the first new row.
    Start(TensorRef<'a>),
    /// `[batch]`, i32 or u32: the length of each sequence with the new rows, as attention takes it afterwards.
    End(TensorRef<'a>),
}

impl<'a> AppendAt<'a> {
    /// The positions, whatever they say.
    pub fn positions(&self) -> &TensorRef<'a> {
        match self {
            AppendAt::Start(positions) | AppendAt::End(positions) => positions,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            AppendAt::Start(_) => "start",
            AppendAt::End(_) => "kv_lengths",
        }
    }
}

/// The sizes of a [`KvAppend`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct KvAppendShape {
    /// Sequences.
    pub batch: usize,
    /// Heads of keys and values.
    pub num_kv_heads: usize,
    /// Elements of a key.
    pub head_dim: usize,
    /// Elements of a value.
    pub value_dim: usize,
    /// The most new rows of a sequence.
    pub new_rows: usize,
    /// Positions that a sequence can have.
    pub capacity: usize,
    /// The type of all elements.
    pub dtype: DType,
    /// Where all tensors are.
    pub device: DeviceId,
}

/// New keys and values, the cache that they go to, and where: valid by existing.
///
/// Row `i` of sequence `b` goes to position `start[b] + i`, or `kv_lengths[b] - rows[b] + i`. Nothing else of the
/// cache is read or written. Positions and table entries are read where the tensors are: a host backend refuses those
/// out of range before it writes anything, a GPU leaves out the rows that they belong to. Sequences may share pages;
/// where two write one position, one of them wins.
#[derive(Debug)]
pub struct KvAppend<'a> {
    new: NewKv<'a>,
    cache: KvCacheMut<'a>,
    at: AppendAt<'a>,
    shape: KvAppendShape,
}

impl<'a> KvAppend<'a> {
    /// Checks that the tensors fit each other.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Dtype`], [`Error::Device`], [`Error::Value`] for a misaligned address and
    /// [`Error::Overlap`] for a cache that shares memory with itself or with what is read, naming the argument:
    /// `new_k`, `new_v`, `new_lengths`, `cu_seqlens_new`, `k`, `v`, `lookup_table`, `page_table`, `start`,
    /// `kv_lengths`.
    pub fn new(new: NewKv<'a>, cache: KvCacheMut<'a>, at: AppendAt<'a>) -> Result<Self> {
        let shape = validate::check(&new, &cache, &at).map_err(|error| match error {
            // The checks shared with attention speak of its first tensor.
            Error::Device { argument, found, expected } => {
                Error::Device { argument, found, expected: expected.replace(" as q", " as new_k") }
            }
            error => error,
        })?;
        Ok(KvAppend { new, cache, at, shape })
    }

    /// The sizes.
    pub fn shape(&self) -> &KvAppendShape {
        &self.shape
    }

    /// What is written.
    pub fn new_kv(&self) -> &NewKv<'a> {
        &self.new
    }

    /// Where it is written.
    pub fn cache(&self) -> &KvCacheMut<'a> {
        &self.cache
    }

    /// The positions.
    pub fn at(&self) -> &AppendAt<'a> {
        &self.at
    }

    /// Whether there is nothing to write, whatever the lengths say.
    pub fn is_empty(&self) -> bool {
        let shape = &self.shape;
        shape.batch * shape.num_kv_heads * shape.new_rows == 0
    }

    /// Reads lengths, positions and tables, which must be in host memory, and checks that they are in range.
    ///
    /// # Errors
    /// [`Error::Value`] naming the first bad entry, [`Error::Device`].
    pub fn check_indices(&self) -> Result<()> {
        if self.shape.device != DeviceId::Cpu {
            return Err(Error::Device {
                argument: "new_k".into(),
                found: self.shape.device.to_string(),
                expected: "cpu, where positions and tables can be read".into(),
            });
        }
        (0..self.shape.batch).try_for_each(|b| self.check_sequence(b))
    }

    fn check_sequence(&self, b: usize) -> Result<()> {
        let most = self.shape.new_rows as i64;
        let (first, rows) = self.rows(b);
        let total = match &self.new {
            NewKv::Padded { .. } => most,
            NewKv::Ragged { k, .. } => k.shape()[0] as i64,
        };
        if !(0..=most).contains(&rows) || first < 0 || first + rows > total {
            return Err(match &self.new {
                NewKv::Padded { .. } => {
                    Error::value(format!("new_lengths[{b}]"), rows, format!("0 to {most}"))
                }
                NewKv::Ragged { .. } => Error::value(
                    format!("cu_seqlens_new[{}]", b + 1),
                    first + rows,
                    format!("{first} to {}", (first + most).min(total)),
                ),
            });
        }
        if rows == 0 {
            return Ok(());
        }
        let (start, capacity) = (self.start(b, rows), self.shape.capacity as i64);
        if start < 0 || start + rows > capacity {
            let (least, most) = match &self.at {
                AppendAt::Start(_) => (0, capacity - rows),
                AppendAt::End(_) => (rows, capacity),
            };
            let value = index_at(self.at.positions(), &[b]);
            return Err(Error::value(
                format!("{}[{b}]", self.at.name()),
                value,
                format!("{least} to {most} for {rows} new rows"),
            ));
        }
        let blocks = self.cache.k().shape()[0] as i64;
        for position in start..start + rows {
            let id = self.block(b, position as usize).0;
            if !(0..blocks).contains(&id) {
                let name = match &self.cache {
                    KvCacheMut::Paged { k, .. } => {
                        format!("page_table[{b}, {}]", position as usize / k.shape()[1])
                    }
                    _ => format!("lookup_table[{b}]"),
                };
                return Err(Error::value(name, id, format!("an id below {blocks}")));
            }
        }
        Ok(())
    }

    /// The first new row of a sequence in the tensor of new rows (0 where it has a batch axis), and their number.
    fn rows(&self, b: usize) -> (i64, i64) {
        match &self.new {
            NewKv::Padded { lengths, .. } => {
                let most = self.shape.new_rows as i64;
                (0, lengths.as_ref().map_or(most, |lengths| index_at(lengths, &[b])))
            }
            NewKv::Ragged { cu_seqlens, .. } => {
                let first = index_at(cu_seqlens, &[b]);
                (first, index_at(cu_seqlens, &[b + 1]) - first)
            }
        }
    }

    fn start(&self, b: usize, rows: i64) -> i64 {
        let position = index_at(self.at.positions(), &[b]);
        match &self.at {
            AppendAt::Start(_) => position,
            AppendAt::End(_) => position - rows,
        }
    }

    /// The block or page of a position, and the row in it.
    fn block(&self, b: usize, position: usize) -> (i64, usize) {
        match &self.cache {
            KvCacheMut::Dense { .. } => (b as i64, position),
            KvCacheMut::Continuous { lookup_table, .. } => (index_at(lookup_table, &[b]), position),
            KvCacheMut::Paged { k, page_table, .. } => {
                let page_size = k.shape()[1];
                (index_at(page_table, &[b, position / page_size]), position % page_size)
            }
        }
    }

    /// Copies the new rows of one sequence in host memory.
    ///
    /// # Safety
    /// - [`check_indices`](KvAppend::check_indices) has succeeded, and nothing has changed since.
    /// - Until the call returns nothing else reads or writes the positions that it writes.
    pub unsafe fn copy_sequence(&self, b: usize) {
        let (first, rows) = self.rows(b);
        let start = self.start(b, rows);
        for i in 0..rows {
            let (block, row) = self.block(b, (start + i) as usize);
            let from = |tensor: &TensorRef<'_>, head: usize| match &self.new {
                NewKv::Padded { .. } => tensor.layout().offset(&[b, i as usize, head, 0]),
                NewKv::Ragged { .. } => tensor.layout().offset(&[(first + i) as usize, head, 0]),
            };
            for head in 0..self.shape.num_kv_heads {
                for (new, cache) in [(self.new.k(), self.cache.k()), (self.new.v(), self.cache.v())] {
                    let size = new.dtype().size() as isize;
                    let bytes = new.shape().last().map_or(0, |dim| dim * size as usize);
                    let source = new.as_ptr().wrapping_offset(from(new, head) as isize * size);
                    let offset = cache.layout().offset(&[block as usize, row, head, 0]) as isize;
                    let target = cache.as_mut_ptr().wrapping_offset(offset * size);
                    // SAFETY: both vectors lie inside their tensors, since all indices are in range, and are dense;
                    // the cache overlaps no tensor that is read, and the caller keeps others away.
                    unsafe { std::ptr::copy_nonoverlapping(source, target, bytes) };
                }
            }
        }
    }
}
