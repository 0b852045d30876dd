//! The second product: weights with the values of a block.

use crate::decode::block::Block;
use crate::decode::job::padded_rows;
use crate::decode::products::{BLOCK_KEYS, Products, STEP_KEYS, Weighing};
use crate::decode::queue::Upcoming;
use crate::decode::worker::{Worker, block_rows};
use crate::simd::{Simd, Storage};

impl<P: Products> Worker<'_, '_, P> {
    /// Adds weighted values to all rows' sums, in the order of memory.
    #[inline(always)]
    pub(super) unsafe fn weigh(
        &self,
        block: &Block<P::Element>,
        rows: usize,
        is_sparse: bool,
        upcoming: &Upcoming<P::Element>,
    ) {
        let (job, products) = (self.job, self.products);
        let value_dim = job.geometry.value_dim;
        let head_stride = job.kv.v().head_stride();
        if !is_sparse {
            for index in 0..block.task.heads {
                for row in 0..rows {
                    let weights = self.scores.wrapping_add((index * padded_rows(rows) + row) * BLOCK_KEYS);
                    // SAFETY: a row of the worker's memory.
                    unsafe { products.prepare_weights(weights, block.len) };
                }
            }
        }
        for first in (0..block.len).step_by(STEP_KEYS) {
            for index in 0..block.task.heads {
                let (mut row, mut taken) = (0, 0);
                while row + taken < rows {
                    row += taken;
                    taken = if is_sparse { 1 } else { block_rows(rows - row) };
                    let at = index * padded_rows(rows) + row;
                    let word = if is_sparse { first } else { first / P::KEYS_A_WORD };
                    let weighing = Weighing {
                        weights: self.scores.wrapping_add(at * BLOCK_KEYS + word),
                        values: &block.values[first..first + STEP_KEYS],
                        offset: index as isize * head_stride,
                        column: 0,
                        out: self.out.wrapping_add(at * job.record()),
                        out_stride: job.record(),
                        len: STEP_KEYS.min(block.len - first),
                        asked: (row == 0).then(|| upcoming.distances(first, block.values[first])),
                    };
                    // SAFETY: rows of the worker's memory and of its task's records; the block's values are in the
                    // problem.
                    unsafe {
                        match taken {
                            _ if is_sparse => weigh_seen::<P>(products, weighing, value_dim),
                            4 => weigh_rows::<P, 4>(products, weighing, value_dim),
                            2 => weigh_rows::<P, 2>(products, weighing, value_dim),
                            _ => weigh_rows::<P, 1>(products, weighing, value_dim),
                        }
                    }
                }
            }
        }
    }
}

/// Vectors of columns that are summed at once beside `rows` rows.
#[inline(always)]
const fn most_columns<P: Products>(rows: usize) -> usize {
    match rows {
        1 => 8,
        4 if P::Simd::LANES == 8 => 2,
        _ => 4,
    }
}

/// Goes through the columns of some rows.
#[inline(always)]
unsafe fn weigh_rows<P: Products, const ROWS: usize>(
    products: P,
    mut weighing: Weighing<'_, P::Element>,
    value_dim: usize,
) {
    let lanes = P::Simd::LANES;
    let most = most_columns::<P>(ROWS);
    let mut left = value_dim / lanes;
    // SAFETY: columns that values and sums have.
    unsafe {
        while left > 0 {
            let taken = if left >= 8 && most >= 8 {
                products.weigh::<ROWS, 8>(&weighing, None);
                8
            } else if left >= 4 && most >= 4 {
                products.weigh::<ROWS, 4>(&weighing, None);
                4
            } else if left >= 2 {
                products.weigh::<ROWS, 2>(&weighing, None);
                2
            } else {
                products.weigh::<ROWS, 1>(&weighing, None);
                1
            };
            left -= taken;
            weighing.column += taken * lanes;
            weighing.out = weighing.out.add(taken * lanes);
        }
        let rest = value_dim % lanes;
        if rest > 0 {
            products.weigh::<ROWS, 1>(&weighing, Some(rest));
        }
    }
}

/// One row whose weights are f32 and may be 0 for keys that it does not see: their values are not looked at.
#[inline(always)]
unsafe fn weigh_seen<P: Products>(products: P, mut weighing: Weighing<'_, P::Element>, value_dim: usize) {
    let simd = products.simd();
    let lanes = P::Simd::LANES;
    while weighing.column < value_dim {
        let count = lanes.min(value_dim - weighing.column);
        // SAFETY: a vector of the row's sums, and elements of values that have them.
        unsafe {
            let mut sum = simd.load(weighing.out);
            for (key, value) in weighing.values[..weighing.len].iter().enumerate() {
                let value = value.wrapping_offset(weighing.to_columns());
                weighing.ask(simd, value, lanes);
                let weight = weighing.weights.add(key).read();
                if weight != 0.0 {
                    let value = if count == lanes {
                        P::Element::load(simd, value)
                    } else {
                        P::Element::load_first(simd, value, count)
                    };
                    sum = simd.fma(simd.splat(weight), value, sum);
                }
            }
            simd.store(weighing.out, sum);
            weighing.out = weighing.out.add(lanes);
        }
        weighing.column += lanes;
    }
}
