//! Shapes and strides.

use std::fmt;

use arrayvec::ArrayVec;

use crate::error::{Error, Result};

/// The largest rank of a tensor: a paged cache collection `[pages, 2, layers, page_size, heads, head_dim]`.
pub const MAX_RANK: usize = 6;

/// A tensor's shape and its strides in elements.
///
/// Strides may be anything, including zero (an expanded axis) and negative ones; [`BSHD`](Layout::bshd) and
/// [`BHSD`](Layout::bhsd) are constructors, not types. Every tensor of the API is *indexed* as its documentation
/// says (queries as `[batch, seqlen, heads, head_dim]`), whatever its order in memory.
///
/// ```
/// use omniflash_core::Layout;
/// // One packed projection [batch, seqlen, 3, heads, head_dim]; its keys, with no copy:
/// let packed = Layout::contiguous(&[2, 128, 3, 8, 64])?;
/// let (keys, offset) = packed.select(2, 1)?;
/// assert_eq!(keys.shape(), [2, 128, 8, 64]);
/// assert_eq!(keys.strides(), [128 * 3 * 512, 3 * 512, 64, 1]);
/// assert_eq!(offset, 512);
/// # Ok::<(), omniflash_core::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Layout {
    shape: ArrayVec<usize, MAX_RANK>,
    strides: ArrayVec<i64, MAX_RANK>,
}

impl Layout {
    /// A layout with the given shape and strides, both in elements.
    ///
    /// # Errors
    /// [`Error::Shape`] when the ranks differ or exceed [`MAX_RANK`], or when an offset would not fit in 63 bits.
    pub fn new(shape: &[usize], strides: &[i64]) -> Result<Self> {
        if shape.len() != strides.len() {
            return Err(Error::shape(
                "layout",
                format!("{} extents {shape:?} but {} strides {strides:?}", shape.len(), strides.len()),
            ));
        }
        if shape.len() > MAX_RANK {
            return Err(Error::shape("layout", format!("rank {}, at most {MAX_RANK}", shape.len())));
        }
        let layout =
            Layout { shape: shape.iter().copied().collect(), strides: strides.iter().copied().collect() };
        if layout.checked_num_elements().is_none() || layout.checked_span().is_none() {
            return Err(Error::shape(
                "layout",
                format!("shape {shape:?} with strides {strides:?} exceeds 2^63 elements"),
            ));
        }
        Ok(layout)
    }

    /// A row-major layout without gaps.
    ///
    /// # Errors
    /// As [`Layout::new`].
    pub fn contiguous(shape: &[usize]) -> Result<Self> {
        let too_large = || Error::shape("layout", format!("shape {shape:?} exceeds 2^63 elements"));
        let mut strides = vec![1i64; shape.len()];
        for axis in (1..shape.len()).rev() {
            // An axis of extent 0 must not erase the strides of the axes before it.
            let extent = i64::try_from(shape[axis].max(1)).map_err(|_| too_large())?;
            strides[axis - 1] = strides[axis].checked_mul(extent).ok_or_else(too_large)?;
        }
        Layout::new(shape, &strides)
    }

    /// `[batch, seqlen, heads, head_dim]`, in this order in memory.
    ///
    /// # Errors
    /// As [`Layout::new`].
    pub fn bshd(batch: usize, seqlen: usize, heads: usize, head_dim: usize) -> Result<Self> {
        Layout::contiguous(&[batch, seqlen, heads, head_dim])
    }

    /// Indexed `[batch, seqlen, heads, head_dim]`, with the heads before the positions in memory.
    ///
    /// # Errors
    /// As [`Layout::new`].
    pub fn bhsd(batch: usize, seqlen: usize, heads: usize, head_dim: usize) -> Result<Self> {
        Layout::contiguous(&[batch, heads, seqlen, head_dim])?.permute(&[0, 2, 1, 3])
    }

    /// Extents, outermost axis first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Strides in elements, outermost axis first.
    pub fn strides(&self) -> &[i64] {
        &self.strides
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Product of the extents.
    pub fn num_elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether some extent is 0.
    pub fn is_empty(&self) -> bool {
        self.shape.contains(&0)
    }

    /// The smallest and the largest offset of an element from element 0; `None` when there is no element.
    pub fn span(&self) -> Option<(i64, i64)> {
        if self.is_empty() {
            return None;
        }
        Some(self.checked_span().expect("checked by Layout::new"))
    }

    /// The offset in elements of the element at `index`.
    ///
    /// # Panics
    /// In debug builds, when the index is not inside the shape.
    #[inline]
    pub fn offset(&self, index: &[usize]) -> i64 {
        debug_assert_eq!(index.len(), self.rank());
        debug_assert!(index.iter().zip(&self.shape).all(|(i, extent)| i < extent), "{index:?} in {self:?}");
        index.iter().zip(&self.strides).map(|(&i, stride)| i as i64 * stride).sum()
    }

    /// Whether the last axis is dense: stride 1, or fewer than two elements.
    pub fn has_unit_last_stride(&self) -> bool {
        match (self.shape.last(), self.strides.last()) {
            (Some(&extent), Some(&stride)) => extent < 2 || stride == 1,
            _ => true,
        }
    }

    /// Whether the elements fill memory in row-major order without gaps.
    pub fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        for (&extent, &stride) in self.shape.iter().zip(&self.strides).rev() {
            if extent == 0 {
                return true;
            }
            if extent > 1 {
                if stride != expected {
                    return false;
                }
                expected *= extent as i64;
            }
        }
        true
    }

    /// Whether no two indices are certain to address different elements.
    ///
    /// Conservative: `true` for every layout whose axes, ordered by stride, do not nest. All layouts made by this
    /// type's constructors, permutations and slices nest; expanded axes do not.
    pub fn may_overlap_itself(&self) -> bool {
        let mut axes: ArrayVec<(u64, u64), MAX_RANK> = self
            .shape
            .iter()
            .zip(&self.strides)
            .filter(|(extent, _)| **extent > 1)
            .map(|(&extent, &stride)| (stride.unsigned_abs(), extent as u64))
            .collect();
        if self.is_empty() {
            return false;
        }
        axes.sort_unstable();
        let mut reach = 0u64;
        for (stride, extent) in axes {
            if stride <= reach {
                return true;
            }
            reach = reach.saturating_add(stride.saturating_mul(extent - 1));
        }
        false
    }

    /// Reorders the axes: axis `i` of the result is axis `order[i]` of `self`.
    ///
    /// # Errors
    /// [`Error::Shape`] when `order` is not a permutation of the axes.
    pub fn permute(&self, order: &[usize]) -> Result<Self> {
        let mut seen = [false; MAX_RANK];
        let valid = order.len() == self.rank()
            && order.iter().all(|&axis| axis < self.rank() && !std::mem::replace(&mut seen[axis], true));
        if !valid {
            return Err(Error::shape("order", format!("{order:?} does not permute {} axes", self.rank())));
        }
        Ok(Layout {
            shape: order.iter().map(|&axis| self.shape[axis]).collect(),
            strides: order.iter().map(|&axis| self.strides[axis]).collect(),
        })
    }

    /// Fixes one index of an axis and drops the axis; also returns the offset of the result in elements.
    ///
    /// # Errors
    /// [`Error::Shape`] when the axis or the index is out of range.
    pub fn select(&self, axis: usize, index: usize) -> Result<(Self, i64)> {
        self.check_axis(axis)?;
        if index >= self.shape[axis] {
            return Err(Error::shape(
                "index",
                format!("{index} on axis {axis} of extent {}", self.shape[axis]),
            ));
        }
        let offset = index as i64 * self.strides[axis];
        let mut result = self.clone();
        result.shape.remove(axis);
        result.strides.remove(axis);
        Ok((result, offset))
    }

    /// Keeps `start..end` of an axis; also returns the offset of the result in elements.
    ///
    /// # Errors
    /// [`Error::Shape`] when the axis or the range is out of range.
    pub fn slice(&self, axis: usize, start: usize, end: usize) -> Result<(Self, i64)> {
        self.check_axis(axis)?;
        if start > end || end > self.shape[axis] {
            return Err(Error::shape(
                "range",
                format!("{start}..{end} on axis {axis} of extent {}", self.shape[axis]),
            ));
        }
        let offset = if start == end { 0 } else { start as i64 * self.strides[axis] };
        let mut result = self.clone();
        result.shape[axis] = end - start;
        Ok((result, offset))
    }

    /// Repeats an axis of extent 1 `extent` times with stride 0.
    ///
    /// # Errors
    /// [`Error::Shape`] when the axis does not have extent 1.
    pub fn expand(&self, axis: usize, extent: usize) -> Result<Self> {
        self.check_axis(axis)?;
        if self.shape[axis] != 1 {
            return Err(Error::shape("axis", format!("axis {axis} has extent {}, not 1", self.shape[axis])));
        }
        let (mut shape, mut strides) = (self.shape.clone(), self.strides.clone());
        shape[axis] = extent;
        strides[axis] = 0;
        Layout::new(&shape, &strides)
    }

    fn check_axis(&self, axis: usize) -> Result<()> {
        if axis < self.rank() {
            return Ok(());
        }
        Err(Error::shape("axis", format!("{axis} of a tensor of rank {}", self.rank())))
    }

    fn checked_num_elements(&self) -> Option<usize> {
        let count = self.shape.iter().try_fold(1usize, |count, &extent| count.checked_mul(extent.max(1)))?;
        (count <= i64::MAX as usize).then_some(count)
    }

    fn checked_span(&self) -> Option<(i64, i64)> {
        let (mut low, mut high) = (0i64, 0i64);
        for (&extent, &stride) in self.shape.iter().zip(&self.strides) {
            let last = i64::try_from(extent.saturating_sub(1)).ok()?.checked_mul(stride)?;
            if last < 0 {
                low = low.checked_add(last)?;
            } else {
                high = high.checked_add(last)?;
            }
        }
        // The byte offset of the last element's end must fit as well.
        let _bytes = (high.checked_add(1)?.checked_mul(8)?, low.checked_mul(8)?);
        Some((low, high))
    }
}

impl fmt::Debug for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.shape.as_slice())?;
        if !self.is_contiguous() {
            write!(f, " strides {:?}", self.strides.as_slice())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bhsd_is_indexed_like_bshd() {
        let layout = Layout::bhsd(2, 5, 3, 8).unwrap();
        assert_eq!(layout.shape(), [2, 5, 3, 8]);
        assert_eq!(layout.strides(), [120, 8, 40, 1]);
        assert!(!layout.is_contiguous());
        assert!(!layout.may_overlap_itself());
    }

    #[test]
    fn a_packed_projection_selects_without_a_copy() {
        let packed = Layout::contiguous(&[2, 4, 3, 6, 8]).unwrap();
        let (values, offset) = packed.select(2, 2).unwrap();
        assert_eq!(offset, 96);
        assert_eq!(values.strides(), [4 * 144, 144, 8, 1]);
        let (half, offset) = values.slice(2, 3, 6).unwrap();
        assert_eq!((half.shape(), offset), ([2, 4, 3, 8].as_slice(), 24));
    }

    #[test]
    fn empty_extents_keep_their_strides_finite() {
        let layout = Layout::contiguous(&[4, 0, 8]).unwrap();
        assert!(layout.is_empty() && layout.is_contiguous());
        assert_eq!(layout.span(), None);
        assert_eq!(layout.num_elements(), 0);
    }

    #[test]
    fn an_expanded_axis_overlaps_itself() {
        let layout = Layout::bshd(1, 7, 1, 8).unwrap().expand(2, 4).unwrap();
        assert_eq!(layout.strides(), [56, 8, 0, 1]);
        assert!(layout.may_overlap_itself());
        assert!(Layout::new(&[4, 4], &[3, 1]).unwrap().may_overlap_itself());
        assert!(!Layout::new(&[4, 4], &[-4, 1]).unwrap().may_overlap_itself());
    }

    #[test]
    fn the_span_counts_negative_strides() {
        assert_eq!(Layout::new(&[3, 4], &[-10, 1]).unwrap().span(), Some((-20, 3)));
    }

    #[test]
    fn overflowing_layouts_are_refused() {
        assert!(Layout::contiguous(&[usize::MAX, 2]).is_err());
        assert!(Layout::new(&[2, 2], &[i64::MAX, 1]).is_err());
        assert!(Layout::new(&[usize::MAX, 1], &[1, 1]).is_err());
        assert!(Layout::new(&[1, 2, 3], &[1, 1]).is_err());
        assert!(Layout::contiguous(&[1; MAX_RANK + 1]).is_err());
    }

    #[test]
    fn only_permutations_permute() {
        let layout = Layout::bshd(1, 2, 3, 4).unwrap();
        assert!(layout.permute(&[0, 1, 2]).is_err());
        assert!(layout.permute(&[0, 1, 1, 3]).is_err());
        assert!(layout.permute(&[0, 1, 2, 4]).is_err());
        assert_eq!(layout.permute(&[3, 2, 1, 0]).unwrap().shape(), [4, 3, 2, 1]);
    }
}
