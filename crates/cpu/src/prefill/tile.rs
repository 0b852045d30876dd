//! The two products of a tile, in registers.
//!
//! ```text
//!             64 query rows = 4 vectors of 16               64 query rows
//!           ┌──────┬──────┬──────┬──────┐                ┌──────┬──────┬──────┬──────┐
//!    6 keys │ acc  │ acc  │ acc  │ acc  │    6 columns   │ acc  │ acc  │ acc  │ acc  │
//!           │      S^T[key][row]        │    of values   │      O^T[column][row]     │
//!           └──────┴──────┴──────┴──────┘                └──────┴──────┴──────┴──────┘
//!    per d: 4 vectors Q^T[d], 6 broadcasts K[key][d]     per key: 4 vectors P^T[key], 6 broadcasts V[key][column]
//! ```
//!
//! Lanes are query rows in both, so the first product's result is the second's operand as it lies, softmax goes down
//! columns, and neither K nor V is transposed. 24 accumulators, 4 vectors and a broadcast fit 32 registers; instruction
//! sets with 16 take 2 vectors. Keys and values come in panels of 16 words, one cache line a row, so that all six rows
//! of a step are at constant offsets, whatever the dimension.

use super::operands::Operands;
use crate::simd::Simd;

/// Words of a row in a panel of packed keys or values.
pub(crate) const PANEL: usize = 16;

/// Query rows of a strip.
#[inline(always)]
pub(crate) const fn strip_rows<S: Simd>() -> usize {
    S::LANES * S::STRIP_VECTORS
}

/// Packed keys of a block.
#[derive(Clone, Copy)]
pub(crate) struct Panels {
    /// `[panels][rows][PANEL]` words.
    pub(crate) words: *const f32,
    /// Panels that hold anything.
    pub(crate) count: usize,
    /// Rows of a panel, used or not.
    pub(crate) rows: usize,
}

/// S^T of keys `begin..end`, an even number, for `vectors` vectors of queries.
///
/// # Safety
/// - `q` is at the first of the vectors in packed queries of `k.count * PANEL` words.
/// - `s`, at the same vector of row 0 of the scores, has `end` rows, `k` as many.
/// - `maxima`, if any, is at the same vector of the largest scores so far; it is raised.
#[inline(always)]
pub(crate) unsafe fn scores<S: Simd, O: Operands<S>>(
    simd: S,
    vectors: usize,
    (begin, end): (usize, usize),
    q: *const f32,
    k: Panels,
    s: *mut f32,
    maxima: Option<*mut f32>,
) {
    // SAFETY: the caller's duties, handed on; no more vectors are touched than a strip has.
    unsafe {
        match vectors {
            1 => scores_of_vectors::<S, O, 1>(simd, begin, end, q, k, s, maxima),
            2 => scores_of_vectors::<S, O, 2>(simd, begin, end, q, k, s, maxima),
            3 if S::STRIP_VECTORS > 2 => scores_of_vectors::<S, O, 3>(simd, begin, end, q, k, s, maxima),
            _ if S::STRIP_VECTORS > 2 => scores_of_vectors::<S, O, 4>(simd, begin, end, q, k, s, maxima),
            _ => unreachable!("a strip has at most STRIP_VECTORS vectors"),
        }
    }
}

#[inline(always)]
unsafe fn scores_of_vectors<S: Simd, O: Operands<S>, const N: usize>(
    simd: S,
    begin: usize,
    end: usize,
    q: *const f32,
    k: Panels,
    s: *mut f32,
    maxima: Option<*mut f32>,
) {
    let mut panel = 0;
    while panel < k.count {
        let panels = (panel, k.count.min(panel + QUERY_PANELS));
        let maxima = maxima.filter(|_| panels.1 == k.count);
        let mut key = begin;
        // SAFETY: the caller's duties; keys stay below `end`.
        unsafe {
            while key + 6 <= end {
                scores_of_keys::<S, O, N, 6>(simd, key, panels, q, k, s, maxima);
                key += 6;
            }
            if key + 4 <= end {
                scores_of_keys::<S, O, N, 4>(simd, key, panels, q, k, s, maxima);
                key += 4;
            }
            if key < end {
                scores_of_keys::<S, O, N, 2>(simd, key, panels, q, k, s, maxima);
            }
        }
        panel = panels.1;
    }
}

/// Panels of queries that all keys of a block meet before the next ones: 16 KiB, which stay in the first-level cache.
const QUERY_PANELS: usize = 4;

/// The sums over some panels, on top of those over the panels before.
#[inline(always)]
unsafe fn scores_of_keys<S: Simd, O: Operands<S>, const N: usize, const B: usize>(
    simd: S,
    key: usize,
    panels: (usize, usize),
    q: *const f32,
    k: Panels,
    s: *mut f32,
    maxima: Option<*mut f32>,
) {
    let rows = strip_rows::<S>();
    let mut sums = [[simd.splat(0.0); N]; B];
    if panels.0 > 0 {
        for b in 0..B {
            for a in 0..N {
                // SAFETY: row `key + b` is one of the scores.
                sums[b][a] = unsafe { simd.load(s.add((key + b) * rows + a * S::LANES)) };
            }
        }
    }
    for panel in panels.0..panels.1 {
        // SAFETY: the panel is one of the packed ones, and so are its words of queries.
        unsafe {
            let q = q.add(panel * PANEL * rows);
            let k = k.words.add((panel * k.rows + key) * PANEL);
            for d in 0..PANEL {
                let mut queries = [simd.splat(0.0); N];
                for a in 0..N {
                    queries[a] = simd.load(q.add(d * rows + a * S::LANES));
                }
                for b in 0..B {
                    let broadcast = simd.splat(*k.add(b * PANEL + d));
                    for a in 0..N {
                        sums[b][a] = O::multiply_add(simd, queries[a], broadcast, sums[b][a]);
                    }
                }
            }
        }
    }
    for b in 0..B {
        for a in 0..N {
            // SAFETY: row `key + b` is one of the scores.
            unsafe { simd.store(s.add((key + b) * rows + a * S::LANES), sums[b][a]) };
        }
    }
    if let Some(maxima) = maxima {
        for a in 0..N {
            // SAFETY: the maxima have the vectors of the scores.
            unsafe {
                let at = maxima.add(a * S::LANES);
                let mut largest = simd.load(at);
                for b in 0..B {
                    largest = simd.max(largest, sums[b][a]);
                }
                simd.store(at, largest);
            }
        }
    }
}

/// What the second product's sums begin with.
#[derive(Clone, Copy)]
pub(crate) enum Start {
    /// Nothing: the output holds no sums yet.
    Zero,
    /// The output so far, times the factors at this vector.
    Scaled(*const f32),
    /// The output so far.
    Kept,
}

/// Adds to O^T the weighted values of rows `begin..end` of packed weights and values.
///
/// # Safety
/// - `p` and `o` are at the first of the vectors of row 0; `p` has `end` rows, `o` has `v.count * PANEL`.
/// - `v` has `end` rows; factors of `start` are at the same vector.
#[inline(always)]
pub(crate) unsafe fn values<S: Simd, O: Operands<S>>(
    simd: S,
    vectors: usize,
    (begin, end): (usize, usize),
    p: *const f32,
    v: Panels,
    o: *mut f32,
    start: Start,
) {
    let rows = strip_rows::<S>();
    for panel in 0..v.count {
        // SAFETY: the caller's duties, handed on; panel and rows are packed ones.
        unsafe {
            let p = p.add(begin * rows);
            let v = v.words.add((panel * v.rows + begin) * PANEL);
            let o = o.add(panel * PANEL * rows);
            let count = end - begin;
            match vectors {
                1 => values_of_panel::<S, O, 1, 8, 8, 0>(simd, count, p, v, o, start),
                2 if S::STRIP_VECTORS == 2 => {
                    values_of_panel::<S, O, 2, 6, 6, 4>(simd, count, p, v, o, start)
                }
                2 => values_of_panel::<S, O, 2, 8, 8, 0>(simd, count, p, v, o, start),
                3 if S::STRIP_VECTORS > 2 => values_of_panel::<S, O, 3, 8, 8, 0>(simd, count, p, v, o, start),
                _ if S::STRIP_VECTORS > 2 => values_of_panel::<S, O, 4, 6, 6, 4>(simd, count, p, v, o, start),
                _ => unreachable!("a strip has at most STRIP_VECTORS vectors"),
            }
        }
    }
}

/// The 16 columns of a panel in two or three register tiles.
#[inline(always)]
unsafe fn values_of_panel<
    S: Simd,
    O: Operands<S>,
    const N: usize,
    const B0: usize,
    const B1: usize,
    const B2: usize,
>(
    simd: S,
    count: usize,
    p: *const f32,
    v: *const f32,
    o: *mut f32,
    start: Start,
) {
    let rows = strip_rows::<S>();
    // SAFETY: the caller's duties; the columns are those of one panel.
    unsafe {
        values_of_columns::<S, O, N, B0>(simd, count, p, v, o, start);
        values_of_columns::<S, O, N, B1>(simd, count, p, v.add(B0), o.add(B0 * rows), start);
        if B2 > 0 {
            values_of_columns::<S, O, N, B2>(simd, count, p, v.add(B0 + B1), o.add((B0 + B1) * rows), start);
        }
    }
}

#[inline(always)]
unsafe fn values_of_columns<S: Simd, O: Operands<S>, const N: usize, const B: usize>(
    simd: S,
    count: usize,
    p: *const f32,
    v: *const f32,
    o: *mut f32,
    start: Start,
) {
    let rows = strip_rows::<S>();
    let mut sums = [[simd.splat(0.0); N]; B];
    // SAFETY: the caller's duties: B columns of the output and `count` rows of weights and values.
    unsafe {
        match start {
            Start::Zero => {}
            Start::Kept => {
                for b in 0..B {
                    for a in 0..N {
                        sums[b][a] = simd.load(o.add(b * rows + a * S::LANES));
                    }
                }
            }
            Start::Scaled(factors) => {
                for a in 0..N {
                    let factor = simd.load(factors.add(a * S::LANES));
                    for b in 0..B {
                        sums[b][a] = simd.mul(simd.load(o.add(b * rows + a * S::LANES)), factor);
                    }
                }
            }
        }
        for row in 0..count {
            let mut weights = [simd.splat(0.0); N];
            for a in 0..N {
                weights[a] = simd.load(p.add(row * rows + a * S::LANES));
            }
            for b in 0..B {
                let broadcast = simd.splat(*v.add(row * PANEL + b));
                for a in 0..N {
                    sums[b][a] = O::multiply_add(simd, weights[a], broadcast, sums[b][a]);
                }
            }
        }
        for b in 0..B {
            for a in 0..N {
                simd.store(o.add(b * rows + a * S::LANES), sums[b][a]);
            }
        }
    }
}
