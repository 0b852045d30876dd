//! Tensors with one element a score: dense masks and biases.

use std::marker::PhantomData;

use half::{bf16, f16};
use omniflash_core::{DType, TensorRef};

use crate::simd::{Simd, Storage};

/// A host tensor `[batch, heads, seqlen_q, seqlen_k]` or `[batch, seqlen_q, seqlen_k]`, any axis but the last may be 1.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dense<'p> {
    pointer: *const u8,
    dtype: DType,
    batch_stride: i64,
    head_stride: i64,
    row_stride: i64,
    key_stride: i64,
    tensor: PhantomData<&'p u8>,
}

// SAFETY: a shared borrow of plain memory.
unsafe impl Send for Dense<'_> {}
// SAFETY: as above.
unsafe impl Sync for Dense<'_> {}

impl<'p> Dense<'p> {
    pub(crate) fn new(tensor: &'p TensorRef<'_>) -> Self {
        let stride = |axis_from_end: usize| match tensor.shape().len().checked_sub(axis_from_end) {
            Some(axis) if tensor.shape()[axis] > 1 => tensor.strides()[axis],
            _ => 0,
        };
        let has_heads = tensor.shape().len() == 4;
        Dense {
            pointer: tensor.as_ptr(),
            dtype: tensor.dtype(),
            batch_stride: if has_heads { stride(4) } else { stride(3) },
            head_stride: if has_heads { stride(3) } else { 0 },
            row_stride: stride(2),
            key_stride: stride(1),
            tensor: PhantomData,
        }
    }

    /// Whether all heads have the same rows.
    pub(crate) fn is_shared_by_heads(&self) -> bool {
        self.head_stride == 0
    }

    /// Element 0 of a row, as an offset.
    #[inline]
    pub(crate) fn row(&self, batch: usize, head: usize, row: usize) -> i64 {
        batch as i64 * self.batch_stride + head as i64 * self.head_stride + row as i64 * self.row_stride
    }

    /// Element `key` of a row.
    ///
    /// # Safety
    /// `row` is a row of this tensor of floats that has the element.
    #[inline]
    pub(crate) unsafe fn element(&self, row: i64, key: usize) -> f32 {
        let offset = (row + key as i64 * self.key_stride) as isize;
        // SAFETY: the caller's duty.
        unsafe {
            match self.dtype {
                DType::F16 => self.pointer.cast::<f16>().wrapping_offset(offset).read().to_f32(),
                DType::BF16 => self.pointer.cast::<bf16>().wrapping_offset(offset).read().to_f32(),
                _ => self.pointer.cast::<f32>().wrapping_offset(offset).read(),
            }
        }
    }

    /// Bit `i` is whether element `key + i` of a row of bools is true, for `i` in `begin..end`.
    ///
    /// # Safety
    /// `row` is a row of this tensor of bools, with elements `key + begin..key + end`; `end` is at most 128.
    pub(crate) unsafe fn bits(&self, row: i64, key: usize, begin: usize, end: usize) -> u128 {
        debug_assert_eq!(self.dtype, DType::Bool);
        let at = |i: usize| self.pointer.wrapping_offset((row + (key + i) as i64 * self.key_stride) as isize);
        let mut bits = 0u128;
        let mut i = begin;
        if self.key_stride == 1 {
            while i + 8 <= end {
                // SAFETY: eight elements of the row, one byte each.
                let bytes = unsafe { at(i).cast::<u64>().read_unaligned() };
                bits |= u128::from(nonzero_bytes(u64::from_le(bytes))) << i;
                i += 8;
            }
        }
        for i in i..end {
            // SAFETY: an element of the row.
            bits |= u128::from(unsafe { at(i).read() } != 0) << i;
        }
        bits
    }

    /// Element `[j][r]` of `target`, whose rows are `stride` apart, becomes element `key + j` of row `rows[r]`.
    ///
    /// # Safety
    /// - `rows` are rows of this tensor of floats, with elements `key..key + keys`.
    /// - `target` has `keys` rows with room for `rows.len()`, rounded up to LANES.
    #[inline(always)]
    pub(crate) unsafe fn transposed<S: Simd>(
        &self,
        simd: S,
        rows: &[i64],
        key: usize,
        keys: usize,
        target: *mut f32,
        stride: usize,
    ) {
        // SAFETY: the caller's duties, handed on.
        unsafe {
            match self.dtype {
                DType::F16 => self.transposed_as::<S, f16>(simd, rows, key, keys, target, stride),
                DType::BF16 => self.transposed_as::<S, bf16>(simd, rows, key, keys, target, stride),
                _ => self.transposed_as::<S, f32>(simd, rows, key, keys, target, stride),
            }
        }
    }

    #[inline(always)]
    unsafe fn transposed_as<S: Simd, T: Storage>(
        &self,
        simd: S,
        rows: &[i64],
        key: usize,
        keys: usize,
        target: *mut f32,
        stride: usize,
    ) {
        let pointer = self.pointer.cast::<T>();
        let whole = if self.key_stride == 1 { keys / S::LANES * S::LANES } else { 0 };
        for first in (0..rows.len()).step_by(S::LANES) {
            for j in (0..whole).step_by(S::LANES) {
                let mut block = simd.block();
                for i in 0..S::LANES {
                    let row = rows[(first + i).min(rows.len() - 1)];
                    // SAFETY: LANES elements of the row from `key + j` on.
                    block.as_mut()[i] =
                        unsafe { T::load(simd, pointer.wrapping_offset((row + (key + j) as i64) as isize)) };
                }
                simd.transpose(&mut block);
                for i in 0..S::LANES {
                    // SAFETY: row `j + i` of the target.
                    unsafe { simd.store(target.add((j + i) * stride + first), block.as_ref()[i]) };
                }
            }
        }
        for j in whole..keys {
            for (r, &row) in rows.iter().enumerate() {
                let offset = row + (key + j) as i64 * self.key_stride;
                // SAFETY: an element of the row, and row `j` of the target.
                unsafe {
                    target
                        .add(j * stride + r)
                        .write(pointer.wrapping_offset(offset as isize).read().to_f32());
                }
            }
        }
    }
}

/// Bit `i` is whether byte `i` is not 0.
fn nonzero_bytes(bytes: u64) -> u8 {
    const LOW: u64 = 0x7f7f_7f7f_7f7f_7f7f;
    let high_bits = (((bytes & LOW) + LOW) | bytes) & !LOW;
    // Each product of a bit and a term lands in a place of its own; the sum's top byte has bit `i` of byte `i`.
    ((high_bits >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_nonzero_byte_sets_its_bit() {
        for pattern in 0..=255u8 {
            for value in [1u8, 2, 0x80, 0xff] {
                let bytes: [u8; 8] = std::array::from_fn(|i| if pattern >> i & 1 == 1 { value } else { 0 });
                assert_eq!(nonzero_bytes(u64::from_le_bytes(bytes)), pattern, "{bytes:?}");
            }
        }
    }

    #[test]
    fn bits_come_from_any_stride() {
        let bools: Vec<u8> = (0..200u32).map(|i| (i * i % 7 < 3) as u8).collect();
        let rows = TensorRef::from_slice(&bools, &[1, 2, 100]).unwrap();
        let columns = rows.permute(&[0, 2, 1]).unwrap();
        let columns = columns.permute(&[0, 2, 1]).unwrap();
        let swapped = TensorRef::from_slice(&bools, &[1, 100, 2]).unwrap();
        let swapped = swapped.permute(&[0, 2, 1]).unwrap();
        let expected = |at: &dyn Fn(usize) -> u8| (3..77).map(|i| u128::from(at(i)) << i).sum::<u128>();
        for (tensor, at) in [
            (&columns, &(|i: usize| bools[100 + 10 + i]) as &dyn Fn(usize) -> u8),
            (&swapped, &|i: usize| bools[(10 + i) * 2 + 1]),
        ] {
            let dense = Dense::new(tensor);
            // SAFETY: elements 13..87 of 100 in row 1.
            assert_eq!(unsafe { dense.bits(dense.row(0, 0, 1), 10, 3, 77) }, expected(at));
        }
    }
}
