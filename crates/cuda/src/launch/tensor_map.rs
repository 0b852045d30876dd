//! From a problem to the maps that tensor copies read shapes and strides from.
//!
//! A map has five axes: columns, the heads of a tile, rows, shift, head tiles. Rows and shift have the same stride, and
//! both count from as many rows before the tensor as a sequence has at most. So a copy can choose where along the memory
//! the axis of rows ends: at the end of the sequence, whose length only the device knows.

use omniflash_core::{AttentionProblem, DType, KvCache, Query, TensorRef};
use omniflash_kernels_cuda::{HopperConfig, SLAB_COLUMNS, SLICE, WARP_ROWS};

use crate::driver::{Fetched, TensorBox};

/// Strides of maps are below this many bytes, extents and coordinates of axes fit an i32.
const MAX_STRIDE: u64 = 1 << 40;
const MAX_EXTENT: u64 = i32::MAX as u64;

/// The maps of a problem, and the rows from one sequence to the next in each; pages have a stride of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TensorBoxes {
    pub(crate) q: (TensorBox, u32),
    pub(crate) k: (TensorBox, u32),
    pub(crate) v: (TensorBox, u32),
    pub(crate) out: (TensorBox, u32),
    /// Rows of a box of keys in pages; 0 for other caches.
    pub(crate) box_rows: u32,
}

impl TensorBoxes {
    /// The maps for tiles of a kernel; `None` where a tensor has strides or an address that no map can have.
    pub(crate) fn new(
        problem: &AttentionProblem<'_>,
        tile: &HopperConfig,
        heads_per_tile: usize,
    ) -> Option<Self> {
        let (shape, out, kv) = (problem.shape(), problem.out().as_view(), problem.kv());
        let box_rows = match kv {
            KvCache::Paged { k, .. } if !k.shape().contains(&0) => tile.box_rows(k.shape()[1])?,
            _ => 0,
        };
        let queries = |tensor: &TensorRef<'_>, rows: usize| {
            let ragged = matches!(problem.query(), Query::Ragged { .. });
            Axes::new(tensor, ragged)?.tensor_box(shape.seqlen_q, heads_per_tile, rows)
        };
        let keys = |tensor: &TensorRef<'_>| {
            if tensor.shape().contains(&0) {
                // Nothing is ever copied; the driver still wants an address.
                return queries(problem.query().tensor(), tile.block_m);
            }
            if box_rows > 0 {
                return Some((page_box(tensor, box_rows)?, 0));
            }
            let ragged = matches!(kv, KvCache::Ragged { .. });
            Axes::new(tensor, ragged)?.tensor_box(shape.seqlen_k, 1, tile.block_n)
        };
        Some(TensorBoxes {
            q: queries(problem.query().tensor(), tile.block_m)?,
            k: keys(kv.k())?,
            v: keys(kv.v())?,
            out: queries(out, WARP_ROWS)?,
            box_rows: box_rows as u32,
        })
    }
}

/// Whether tensor maps can describe the tensors of a problem.
pub(crate) fn is_mappable(problem: &AttentionProblem<'_>) -> bool {
    let (shape, query, kv) = (problem.shape(), problem.query(), problem.kv());
    let ragged_q = matches!(query, Query::Ragged { .. });
    let is_mappable = |tensor: &TensorRef<'_>, ragged, most_rows| {
        Axes::new(tensor, ragged).is_some_and(|axes| axes.place(most_rows, 1).is_some())
    };
    let are_keys = |tensor: &TensorRef<'_>| match kv {
        // Of no keys nothing is ever copied.
        _ if tensor.shape().contains(&0) => true,
        KvCache::Paged { k, .. } => {
            let page_size = k.shape()[1];
            HopperConfig::has_page_boxes(page_size) && page_box(tensor, page_size).is_some()
        }
        _ => is_mappable(tensor, matches!(kv, KvCache::Ragged { .. }), shape.seqlen_k),
    };
    is_mappable(query.tensor(), ragged_q, shape.seqlen_q)
        && is_mappable(problem.out().as_view(), ragged_q, shape.seqlen_q)
        && are_keys(kv.k())
        && are_keys(kv.v())
}

/// The maps of keys and of values for slices of the decode kernel: columns of a slab, heads, rows, sequences or blocks or
/// pages, slabs. `None` where a tensor has strides or an address that no map can have, its columns are no whole slabs, or pages
/// no whole slices.
pub(crate) fn key_boxes(problem: &AttentionProblem<'_>) -> Option<[TensorBox; 2]> {
    let kv = problem.kv();
    if matches!(kv, KvCache::Paged { .. }) && !kv.k().shape()[1].is_multiple_of(SLICE) {
        return None;
    }
    Some([slice_box(kv.k())?, slice_box(kv.v())?])
}

/// The map of pages `[num_pages, page_size, heads, columns]` for boxes of so many rows: columns, pages, rows of a page, shift,
/// heads. Rows and shift have the same stride, and both count from a page's length before it: as for other rows, a copy
/// chooses where the rows end.
fn page_box(tensor: &TensorRef<'_>, rows: usize) -> Option<TensorBox> {
    let &[pages, page_size, heads, columns] = tensor.shape() else { return None };
    let &[page_stride, row_stride, head_stride, _] = tensor.strides() else { return None };
    let bytes = |extent, stride| stride_bytes(tensor.dtype(), extent, stride);
    let row_stride = bytes(page_size, row_stride)?;
    let address = tensor.address().checked_sub((page_size as u64).checked_mul(row_stride)?)?;
    let extents = [columns, pages, page_size, page_size + 1, heads].map(|extent| extent as u64);
    if !address.is_multiple_of(16) || extents.iter().any(|&extent| extent > MAX_EXTENT) {
        return None;
    }
    Some(TensorBox {
        dtype: tensor.dtype(),
        address,
        extents,
        strides: [bytes(pages, page_stride)?, row_stride, row_stride, bytes(heads, head_stride)?],
        sizes: [SLAB_COLUMNS as u32, 1, rows as u32, 1, 1],
        fetched: fetched(columns),
    })
}

/// The bytes between neighbours of an axis, as maps have them. An axis of one element has no neighbours: any stride does.
fn stride_bytes(dtype: DType, extent: usize, stride: i64) -> Option<u64> {
    let bytes =
        if extent <= 1 { 16 } else { u64::try_from(stride.checked_mul(dtype.size() as i64)?).ok()? };
    (bytes > 0 && bytes.is_multiple_of(16) && bytes < MAX_STRIDE).then_some(bytes)
}

/// A slab of a row, whose next one a copy of its own brings; of one slab, a neighbour head's, which another block wants soon.
fn fetched(columns: usize) -> Fetched {
    if columns > SLAB_COLUMNS { Fetched::Bytes128 } else { Fetched::Bytes256 }
}

/// The map of `[outer, rows, heads, columns]`, or of ragged `[rows, heads, columns]`.
fn slice_box(tensor: &TensorRef<'_>) -> Option<TensorBox> {
    let (shape, strides) = (tensor.shape(), tensor.strides());
    let rest = shape.len().checked_sub(3)?;
    let (outer, outer_stride) = if rest == 0 { (1, 0) } else { (shape[0], strides[0]) };
    let extents = [shape[rest + 2], shape[rest + 1], shape[rest], outer].map(|extent| extent as u64);
    let slabs = shape[rest + 2] / SLAB_COLUMNS;
    let bytes = |extent: u64, stride| stride_bytes(tensor.dtype(), extent as usize, stride);
    let is_whole = tensor.dtype().size() == 2
        && shape[rest + 2].is_multiple_of(SLAB_COLUMNS)
        && tensor.address().is_multiple_of(16);
    if !is_whole || extents.iter().any(|&extent| extent == 0 || extent > MAX_EXTENT) {
        return None;
    }
    Some(TensorBox {
        dtype: tensor.dtype(),
        address: tensor.address(),
        extents: [SLAB_COLUMNS as u64, extents[1], extents[2], extents[3], slabs as u64],
        strides: [
            bytes(extents[1], strides[rest + 1])?,
            bytes(extents[2], strides[rest])?,
            bytes(extents[3], outer_stride)?,
            (SLAB_COLUMNS * tensor.dtype().size()) as u64,
        ],
        sizes: [SLAB_COLUMNS as u32, 1, SLICE as u32, 1, slabs as u32],
        // A row of a slab: fetching two of them at a time was slower.
        fetched: Fetched::Bytes128,
    })
}

/// A tensor of vectors, in bytes.
struct Axes {
    dtype: DType,
    address: u64,
    columns: usize,
    heads: usize,
    head_stride: u64,
    row_stride: u64,
    /// Rows from the first of the first sequence to the last of the last.
    all_rows: u64,
    /// Rows from one sequence to the next.
    batch_rows: u64,
}

impl Axes {
    /// Of `[batch, rows, heads, columns]`, ragged `[rows, heads, columns]`.
    fn new(tensor: &TensorRef<'_>, ragged: bool) -> Option<Self> {
        let (shape, strides) = (tensor.shape(), tensor.strides());
        let size = tensor.dtype().size() as i64;
        let (batch, rest) = if ragged { ((1, 0), 0) } else { ((shape[0], strides[0]), 1) };
        let (rows, heads) = ((shape[rest], strides[rest]), (shape[rest + 1], strides[rest + 1]));
        // An axis of one element has no neighbours: any stride does.
        let bytes = |(extent, stride): (usize, i64), otherwise: u64| {
            if extent <= 1 {
                return Some(otherwise);
            }
            let bytes = u64::try_from(stride.checked_mul(size)?).ok()?;
            (bytes > 0 && bytes % 16 == 0 && bytes < MAX_STRIDE).then_some(bytes)
        };
        // One head for all is a stride of 0, which maps may have.
        let head_stride = if heads.1 == 0 { 0 } else { bytes(heads, 16)? };
        let batch_stride = match batch {
            (..=1, _) | (_, 0) => 0,
            batch => bytes(batch, 0)?,
        };
        let row_stride = bytes(rows, batch_stride.max(16))?;
        let address = tensor.address();
        if !address.is_multiple_of(16) || !batch_stride.is_multiple_of(row_stride) {
            return None;
        }
        let batch_rows = batch_stride / row_stride;
        let all_rows = (batch.0.max(1) as u64 - 1).checked_mul(batch_rows)?.checked_add(rows.0 as u64)?;
        Some(Axes {
            dtype: tensor.dtype(),
            address,
            columns: shape[rest + 2],
            heads: heads.0,
            head_stride,
            row_stride,
            all_rows,
            batch_rows,
        })
    }

    /// Where a map begins, how many shifts it has and how far its tiles of `heads_per_tile` heads lie apart; `None` where no
    /// map can.
    fn place(&self, most_rows: usize, heads_per_tile: usize) -> Option<(u64, u64, u64)> {
        let most_rows = most_rows as u64;
        let address = self.address.checked_sub(most_rows.checked_mul(self.row_stride)?)?;
        let shifts = self.all_rows.checked_add(most_rows + 1)?;
        let tile_stride = self.head_stride * heads_per_tile as u64;
        let is_small = shifts <= MAX_EXTENT && tile_stride < MAX_STRIDE;
        (is_small && self.batch_rows <= u64::from(u32::MAX)).then_some((address, shifts, tile_stride))
    }

    /// The map for boxes of `rows` rows, of which `heads_per_tile` heads of a query are neighbours.
    fn tensor_box(&self, most_rows: usize, heads_per_tile: usize, rows: usize) -> Option<(TensorBox, u32)> {
        let (address, shifts, tile_stride) = self.place(most_rows, heads_per_tile)?;
        let most_rows = most_rows as u64;
        let map = TensorBox {
            dtype: self.dtype,
            address,
            extents: [
                self.columns as u64,
                heads_per_tile as u64,
                most_rows.max(1),
                shifts,
                (self.heads / heads_per_tile).max(1) as u64,
            ],
            strides: [self.head_stride, self.row_stride, self.row_stride, tile_stride],
            sizes: [SLAB_COLUMNS as u32, heads_per_tile as u32, (rows / heads_per_tile) as u32, 1, 1],
            fetched: fetched(self.columns),
        };
        Some((map, self.batch_rows as u32))
    }
}

#[cfg(test)]
mod tests {
    use omniflash_core::{DeviceId, Layout};

    use super::*;

    fn axes(shape: &[usize], strides: &[i64], ragged: bool) -> Option<Axes> {
        let layout = Layout::new(shape, strides).unwrap();
        // SAFETY: nothing reads the memory; the device makes every host access refuse.
        let tensor = unsafe { TensorRef::from_raw(1 << 40, DType::BF16, layout, DeviceId::Cuda(0)) };
        Axes::new(&tensor, ragged)
    }

    #[test]
    fn rows_are_counted_from_before_the_tensor_so_that_they_can_end_anywhere() {
        let (map, batch_rows) =
            axes(&[3, 100, 8, 64], &[51200, 512, 64, 1], false).unwrap().tensor_box(100, 4, 128).unwrap();
        assert_eq!((map.address, batch_rows), ((1 << 40) - 100 * 1024, 100));
        assert_eq!(map.extents, [64, 4, 100, 300 + 101, 2]);
        assert_eq!(map.strides, [128, 1024, 1024, 512]);
        assert_eq!(map.sizes, [64, 4, 32, 1, 1]);
        // Row 5 of a sequence of 60 rows, the third: (100 - 60 + 5, 200 + 60) is row 205 of the tensor.
        let at = map.address + (100 - 60 + 5) * map.strides[1] + (200 + 60) * map.strides[2];
        assert_eq!(at, (1 << 40) + 205 * 1024);
    }

    #[test]
    fn rows_of_pages_end_where_a_copy_wants() {
        let pages = |shape: &[usize], strides: &[i64]| {
            let layout = Layout::new(shape, strides).unwrap();
            // SAFETY: as above.
            let tensor = unsafe { TensorRef::from_raw(1 << 40, DType::BF16, layout, DeviceId::Cuda(0)) };
            page_box(&tensor, 16)
        };
        // 100 pages of 48 rows, the heads of a page one after the other.
        let map = pages(&[100, 48, 8, 80], &[48 * 8 * 80, 80, 48 * 80, 1]).unwrap();
        assert_eq!(map.address, (1 << 40) - 48 * 160);
        assert_eq!(map.extents, [80, 100, 48, 49, 8]);
        assert_eq!(map.strides, [48 * 8 * 160, 160, 160, 48 * 160]);
        assert_eq!(map.sizes, [64, 1, 16, 1, 1]);
        // Row 5 of page 7, of which 20 exist: (48 - 20 + 5, 20).
        let at = map.address + 7 * map.strides[0] + (48 - 20 + 5) * map.strides[1] + 20 * map.strides[2];
        assert_eq!(at, (1 << 40) + 7 * 48 * 8 * 160 + 5 * 160);
        // Row 20 would be (48, 20): outside.
        assert_eq!(map.extents[2], 48 - 20 + 20);
        assert!(pages(&[100, 48, 8, 80], &[0, 80, 48 * 80, 1]).is_none());
        assert!(pages(&[100, 48, 8, 20], &[48 * 8 * 20, 20, 48 * 20, 1]).is_none());
    }

    #[test]
    fn slices_have_all_slabs_of_a_head_in_one_box() {
        let tensor = |shape: &[usize], strides: &[i64], dtype| {
            let layout = Layout::new(shape, strides).unwrap();
            // SAFETY: as above.
            unsafe { TensorRef::from_raw(1 << 40, dtype, layout, DeviceId::Cuda(0)) }
        };
        // 100 pages of 16 rows, the heads of a page one after the other.
        let pages = slice_box(&tensor(&[100, 16, 8, 128], &[16384, 128, 2048, 1], DType::BF16)).unwrap();
        assert_eq!(pages.extents, [64, 8, 16, 100, 2]);
        assert_eq!(pages.strides, [4096, 256, 32768, 128]);
        assert_eq!(pages.sizes, [64, 1, 16, 1, 2]);
        let ragged = slice_box(&tensor(&[700, 1, 64], &[512, 7, 1], DType::F16)).unwrap();
        assert_eq!(ragged.extents, [64, 1, 700, 1, 1]);
        assert_eq!((ragged.address, ragged.strides[1]), (1 << 40, 1024));
        for (shape, strides, dtype) in [
            ([2, 100, 8, 80], [64000, 640, 80, 1], DType::BF16),
            ([2, 100, 8, 128], [102400, 1024, 128, 1], DType::F32),
            ([2, 100, 8, 128], [0, 1024, 128, 1], DType::BF16),
            ([2, 100, 8, 128], [102400, 1028, 128, 1], DType::BF16),
            ([0, 100, 8, 128], [102400, 1024, 128, 1], DType::BF16),
        ] {
            assert!(slice_box(&tensor(&shape, &strides, dtype)).is_none(), "{shape:?} {strides:?}");
        }
    }

    #[test]
    fn heads_before_rows_and_one_sequence_for_all_are_described_and_other_strides_are_not() {
        let heads_first = axes(&[2, 100, 8, 64], &[51200, 64, 6400, 1], false).unwrap();
        assert_eq!((heads_first.batch_rows, heads_first.all_rows), (800, 900));
        assert_eq!(axes(&[5, 100, 8, 64], &[0, 512, 64, 1], false).unwrap().batch_rows, 0);
        assert_eq!(axes(&[100, 8, 64], &[512, 64, 1], true).unwrap().all_rows, 100);
        assert_eq!(axes(&[5, 1, 8, 64], &[512, 7, 64, 1], false).unwrap().batch_rows, 1);
        assert_eq!(axes(&[2, 100, 8, 64], &[6400, 64, 0, 1], false).unwrap().head_stride, 0);
        for (shape, strides) in [
            ([2, 100, 8, 64], [51200, 0, 64, 1]),
            ([2, 100, 8, 20], [16000, 160, 20, 1]),
            ([2, 100, 8, 64], [51264, 512, 64, 1]),
        ] {
            assert!(axes(&shape, &strides, false).is_none(), "{strides:?}");
        }
    }
}
