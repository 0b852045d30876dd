//! What packed words hold, and how two of them are multiplied.

use std::marker::PhantomData;

#[cfg(target_arch = "x86_64")]
use half::bf16;

use super::pack;
use super::tile::{self, PANEL, Panels, Start};
#[cfg(target_arch = "x86_64")]
use crate::simd::Avx512;
use crate::simd::{Simd, Storage};

/// The form in which queries, keys, values and weights are packed: 32-bit words of `DEPTH` numbers, multiplied word by
/// word into f32 sums.
pub(crate) trait Operands<S: Simd>: Copy + Send + Sync + 'static {
    /// The elements of the tensors.
    type Element: Storage;

    /// Numbers in a word.
    const DEPTH: usize;

    /// Keys of a block are packed in multiples of this, and so are those of a product; the last ones are zeros.
    const KEY_STEP: usize = pack::KEY_STEP;

    /// What a worker holds to multiply with, beside vectors.
    type Unit;

    /// A worker's unit.
    fn unit(simd: S) -> Self::Unit;

    /// `sum` plus the products of the numbers of `a` and `b`.
    fn multiply_add(simd: S, a: S::Vector, b: S::Vector, sum: S::Vector) -> S::Vector;

    /// Words from consecutive elements of one row.
    ///
    /// # Safety
    /// `LANES * DEPTH` elements can be read.
    unsafe fn load_words(simd: S, row: *const Self::Element) -> S::Vector;

    /// Words whose numbers are the elements of `DEPTH` rows at one column.
    ///
    /// # Safety
    /// `LANES` elements of each of the first `DEPTH` rows can be read.
    unsafe fn load_columns(simd: S, rows: [*const Self::Element; 2]) -> S::Vector;

    /// `sum`, made NaN in lanes where a number of `words` is not finite.
    fn poison(simd: S, words: S::Vector, sum: S::Vector) -> S::Vector;

    /// `2^t` as exact as weights need it.
    fn exp2(simd: S, t: S::Vector) -> S::Vector;

    /// Words of the weights of `DEPTH` consecutive keys.
    fn join(simd: S, weights: [S::Vector; 2]) -> S::Vector;

    /// Number `i` of a word.
    fn number(word: f32, i: usize) -> f32;

    /// The first product; see [`tile::scores`].
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    #[allow(
        clippy::too_many_arguments,
        reason = "a product's operands, all of them used by the innermost loop"
    )]
    unsafe fn scores(
        _unit: &mut Self::Unit,
        simd: S,
        vectors: usize,
        keys: (usize, usize),
        q: *const f32,
        k: Panels,
        s: *mut f32,
        maxima: Option<*mut f32>,
    ) {
        // SAFETY: the caller's duties.
        unsafe { tile::scores::<S, Self>(simd, vectors, keys, q, k, s, maxima) }
    }

    /// The second product; see [`tile::values`].
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "as above")]
    unsafe fn values(
        _unit: &mut Self::Unit,
        simd: S,
        vectors: usize,
        rows: (usize, usize),
        p: *const f32,
        v: Panels,
        o: *mut f32,
        start: Start,
    ) {
        // SAFETY: the caller's duties.
        unsafe { tile::values::<S, Self>(simd, vectors, rows, p, v, o, start) }
    }

    /// Packs a block's values for the second product; see [`pack::pack_values`].
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn pack_values(
        simd: S,
        rows: &[*const Self::Element],
        dim: usize,
        panels: usize,
        panel_rows: usize,
        target: *mut f32,
    ) -> bool {
        // SAFETY: the caller's duties.
        unsafe {
            let ahead = &rows[pack::PREFETCH_ROWS.min(rows.len())..];
            pack::pack_values::<S, Self, false>(simd, rows, ahead, dim, panels, panel_rows, target)
        }
    }

    /// Where the packed values have the word of a column in a row of words.
    #[inline(always)]
    fn value_at(panel_rows: usize, column: usize, word: usize) -> usize {
        (column / PANEL * panel_rows + word) * PANEL + column % PANEL
    }
}

/// Words are f32; elements are widened as they are packed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Widened<T>(PhantomData<T>);

impl<S: Simd, T: Storage> Operands<S> for Widened<T> {
    type Element = T;

    const DEPTH: usize = 1;

    type Unit = ();

    #[inline(always)]
    fn unit(_simd: S) {}

    #[inline(always)]
    fn multiply_add(simd: S, a: S::Vector, b: S::Vector, sum: S::Vector) -> S::Vector {
        simd.fma(a, b, sum)
    }

    #[inline(always)]
    unsafe fn load_words(simd: S, row: *const T) -> S::Vector {
        // SAFETY: the caller's duty.
        unsafe { T::load(simd, row) }
    }

    #[inline(always)]
    unsafe fn load_columns(simd: S, rows: [*const T; 2]) -> S::Vector {
        // SAFETY: the caller's duty.
        unsafe { T::load(simd, rows[0]) }
    }

    #[inline(always)]
    fn poison(simd: S, words: S::Vector, sum: S::Vector) -> S::Vector {
        simd.fma(words, simd.splat(0.0), sum)
    }

    #[inline(always)]
    fn exp2(simd: S, t: S::Vector) -> S::Vector {
        simd.exp2(t)
    }

    #[inline(always)]
    fn join(_simd: S, weights: [S::Vector; 2]) -> S::Vector {
        weights[0]
    }

    #[inline(always)]
    fn number(word: f32, _i: usize) -> f32 {
        word
    }
}

/// Words are pairs of bf16: queries and keys as they lie in memory, values of two keys interleaved, weights rounded.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pairs;

#[cfg(target_arch = "x86_64")]
impl Operands<Avx512<true>> for Pairs {
    type Element = bf16;

    const DEPTH: usize = 2;

    type Unit = ();

    #[inline(always)]
    fn unit(_simd: Avx512<true>) {}

    #[inline(always)]
    fn multiply_add(simd: Avx512<true>, a: Word, b: Word, sum: Word) -> Word {
        simd.dot_pairs(a, b, sum)
    }

    #[inline(always)]
    unsafe fn load_words(simd: Avx512<true>, row: *const bf16) -> Word {
        // SAFETY: the caller's duty: LANES words are 2 * LANES elements.
        unsafe { simd.load(row.cast()) }
    }

    #[inline(always)]
    unsafe fn load_columns(simd: Avx512<true>, rows: [*const bf16; 2]) -> Word {
        // SAFETY: the caller's duty.
        unsafe { simd.load_pairs(rows[0], rows[1]) }
    }

    #[inline(always)]
    fn poison(simd: Avx512<true>, words: Word, sum: Word) -> Word {
        let (low, high) = simd.halves(words);
        let zero = simd.splat(0.0);
        simd.fma(low, zero, simd.fma(high, zero, sum))
    }

    #[inline(always)]
    fn exp2(simd: Avx512<true>, t: Word) -> Word {
        simd.exp2_coarse(t)
    }

    #[inline(always)]
    fn join(simd: Avx512<true>, weights: [Word; 2]) -> Word {
        simd.pairs_from(weights[0], weights[1])
    }

    #[inline(always)]
    fn number(word: f32, i: usize) -> f32 {
        let bits = word.to_bits();
        f32::from_bits(if i == 0 { bits << 16 } else { bits & 0xffff_0000 })
    }
}

#[cfg(target_arch = "x86_64")]
type Word = <Avx512<true> as Simd>::Vector;
