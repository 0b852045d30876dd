//! The two products of attention on vectors: queries with keys, weights with values.
//!
//! Keys and values are read once, so whatever widening they need happens in registers. [`Widen`] does so for every
//! element type and instruction set; [`Pairs`] leaves bf16 as it is and has the processor multiply pairs.

use std::marker::PhantomData;

use crate::decode::queue::{Distances, ask};
use crate::simd::{Simd, Storage};

/// The most keys of a block; rows of scores and weights are this far apart.
pub(super) const BLOCK_KEYS: usize = 64;

/// Keys whose values are added to a row's sums before the next row's turn: a multiple of 2, so that pairs stay whole.
pub(super) const STEP_KEYS: usize = 16;

/// Bytes of a cache line.
pub(super) const LINE: usize = 64;

type Vector<P> = <<P as Products>::Simd as Simd>::Vector;

/// How queries meet keys and weights meet values.
pub(super) trait Products: Copy {
    /// The instructions.
    type Simd: Simd;
    /// The type of queries, keys and values.
    type Element: Storage;

    /// Elements of a key in one vector; a query has as many in `LANES` words.
    const KEY_VECTOR: usize;

    /// Weights come in multiples of this many.
    const WEIGHTS: usize;

    /// Keys whose prepared weights share a word.
    const KEYS_A_WORD: usize;

    /// The proof of the instructions.
    fn simd(self) -> Self::Simd;

    /// # Safety
    /// `KEY_VECTOR` elements from `source` on can be read.
    unsafe fn load_key(self, source: *const Self::Element) -> Vector<Self>;

    /// The first `count` elements, then zeros.
    ///
    /// # Safety
    /// `count` elements from `source` on can be read, at most `KEY_VECTOR`.
    unsafe fn load_key_first(self, source: *const Self::Element, count: usize) -> Vector<Self>;

    /// `sum` and the products of a key's vector with a query's words, lane by lane.
    fn multiply(self, key: Vector<Self>, query: Vector<Self>, sum: Vector<Self>) -> Vector<Self>;

    /// Writes a vector of a key's elements as the words that [`multiply`](Products::multiply) takes for a query.
    ///
    /// # Safety
    /// `LANES` words from `target` on can be written.
    unsafe fn store_query(self, target: *mut f32, query: Vector<Self>);

    /// Turns `len` weights of a row, followed by zeros up to the next multiple of `WEIGHTS`, into what
    /// [`weigh`](Products::weigh) takes, in place.
    ///
    /// # Safety
    /// `BLOCK_KEYS` words from `weights` on are the caller's.
    unsafe fn prepare_weights(self, weights: *mut f32, len: usize);

    /// Adds the weighted values of some keys to `COLUMNS` vectors of `ROWS` rows of sums.
    ///
    /// # Safety
    /// As the fields of [`Weighing`] say; `first` is None or at most `LANES`, with `COLUMNS` 1.
    unsafe fn weigh<const ROWS: usize, const COLUMNS: usize>(
        self,
        weighing: &Weighing<'_, Self::Element>,
        first: Option<usize>,
    );
}

/// Values of some keys, and the rows that are weighted with them, at one group of columns.
#[derive(Clone, Copy)]
pub(super) struct Weighing<'a, T> {
    /// Prepared weights of the keys, rows `BLOCK_KEYS` words apart.
    pub(super) weights: *const f32,
    /// Where each key's values of the task's first head begin; `offset + column` elements further, the columns can be
    /// read. One more than there are keys where their number is odd.
    pub(super) values: &'a [*const T],
    /// Of the head from the task's first, in elements.
    pub(super) offset: isize,
    /// The first of the columns.
    pub(super) column: usize,
    /// Sums at the columns of the first row.
    pub(super) out: *mut f32,
    /// Words from a row of sums to the next.
    pub(super) out_stride: usize,
    /// How many keys.
    pub(super) len: usize,
    /// Where from each key's values others are that are asked for beside them; none beside rows after the first.
    pub(super) asked: Option<Distances>,
}

impl<T> Weighing<'_, T> {
    /// Elements from a key's values of the task's first head to the columns.
    #[inline(always)]
    pub(super) fn to_columns(&self) -> isize {
        self.offset + self.column as isize
    }

    /// Asks for what belongs to `columns` elements at `source`, unless a group of columns before has done so.
    #[inline(always)]
    pub(super) fn ask<S: Simd>(&self, simd: S, source: *const T, columns: usize) {
        let begins_line =
            columns * size_of::<T>() >= LINE || (self.column * size_of::<T>()).is_multiple_of(LINE);
        if let Some(distances) = &self.asked
            && begins_line
        {
            for element in (0..columns).step_by(LINE / size_of::<T>()) {
                ask(simd, source.wrapping_add(element), distances);
            }
        }
    }
}

/// Products in f32.
pub(super) struct Widen<S, T> {
    simd: S,
    element: PhantomData<T>,
}

impl<S: Copy, T> Clone for Widen<S, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S: Copy, T> Copy for Widen<S, T> {}

impl<S: Simd, T: Storage> Widen<S, T> {
    pub(super) fn new(simd: S) -> Self {
        Widen { simd, element: PhantomData }
    }
}

impl<S: Simd, T: Storage> Products for Widen<S, T> {
    type Simd = S;
    type Element = T;

    const KEY_VECTOR: usize = S::LANES;
    const WEIGHTS: usize = S::LANES;
    const KEYS_A_WORD: usize = 1;

    #[inline(always)]
    fn simd(self) -> S {
        self.simd
    }

    #[inline(always)]
    unsafe fn load_key(self, source: *const T) -> S::Vector {
        // SAFETY: the caller's duty.
        unsafe { T::load(self.simd, source) }
    }

    #[inline(always)]
    unsafe fn load_key_first(self, source: *const T, count: usize) -> S::Vector {
        // SAFETY: the caller's duty.
        unsafe { T::load_first(self.simd, source, count) }
    }

    #[inline(always)]
    fn multiply(self, key: S::Vector, query: S::Vector, sum: S::Vector) -> S::Vector {
        self.simd.fma(key, query, sum)
    }

    #[inline(always)]
    unsafe fn store_query(self, target: *mut f32, query: S::Vector) {
        // SAFETY: the caller's duty.
        unsafe { self.simd.store(target, query) }
    }

    #[inline(always)]
    unsafe fn prepare_weights(self, _weights: *mut f32, _len: usize) {}

    #[inline(always)]
    unsafe fn weigh<const ROWS: usize, const COLUMNS: usize>(
        self,
        weighing: &Weighing<'_, T>,
        first: Option<usize>,
    ) {
        let simd = self.simd;
        let Weighing { weights, values, out, out_stride, len, .. } = *weighing;
        let offset = weighing.to_columns();
        // SAFETY: as the fields of `weighing` say.
        unsafe {
            let mut sums = load_sums::<S, ROWS, COLUMNS>(simd, out, out_stride);
            for (key, value) in values[..len].iter().enumerate() {
                let value = value.wrapping_offset(offset);
                weighing.ask(simd, value, COLUMNS * S::LANES);
                let mut columns = [simd.splat(0.0); COLUMNS];
                for (c, column) in columns.iter_mut().enumerate() {
                    *column = match first {
                        Some(count) => T::load_first(simd, value, count),
                        None => T::load(simd, value.add(c * S::LANES)),
                    };
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let weight = simd.splat(weights.add(r * BLOCK_KEYS + key).read());
                    for (sum, column) in sums.iter_mut().zip(columns) {
                        *sum = simd.fma(weight, column, *sum);
                    }
                }
            }
            store_sums(simd, &sums, out, out_stride);
        }
    }
}

/// # Safety
/// `COLUMNS` vectors of `ROWS` rows, `stride` words apart, can be read.
#[inline(always)]
pub(super) unsafe fn load_sums<S: Simd, const ROWS: usize, const COLUMNS: usize>(
    simd: S,
    out: *const f32,
    stride: usize,
) -> [[S::Vector; COLUMNS]; ROWS] {
    let mut sums = [[simd.splat(0.0); COLUMNS]; ROWS];
    for (r, sums) in sums.iter_mut().enumerate() {
        for (c, sum) in sums.iter_mut().enumerate() {
            // SAFETY: the caller's duty.
            *sum = unsafe { simd.load(out.add(r * stride + c * S::LANES)) };
        }
    }
    sums
}

/// # Safety
/// `COLUMNS` vectors of `ROWS` rows, `stride` words apart, can be written.
#[inline(always)]
pub(super) unsafe fn store_sums<S: Simd, const ROWS: usize, const COLUMNS: usize>(
    simd: S,
    sums: &[[S::Vector; COLUMNS]; ROWS],
    out: *mut f32,
    stride: usize,
) {
    for (r, sums) in sums.iter().enumerate() {
        for (c, sum) in sums.iter().enumerate() {
            // SAFETY: the caller's duty.
            unsafe { simd.store(out.add(r * stride + c * S::LANES), *sum) };
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use pairs::Pairs;

#[cfg(target_arch = "x86_64")]
mod pairs {
    use half::bf16;

    use super::{BLOCK_KEYS, Products, Weighing, load_sums, store_sums};
    use crate::simd::{Avx512, Simd};

    /// Products of bf16 pairs: twice the arithmetic of an instruction, and nothing to widen. Weights are rounded to
    /// bf16, as every bf16 attention with matrix instructions has them; sums are f32.
    #[derive(Clone, Copy)]
    pub(in crate::decode) struct Pairs(pub(in crate::decode) Avx512<true>);

    type Vector = <Avx512<true> as Simd>::Vector;

    impl Products for Pairs {
        type Simd = Avx512<true>;
        type Element = bf16;

        const KEY_VECTOR: usize = 32;
        const WEIGHTS: usize = 16;
        const KEYS_A_WORD: usize = 2;

        #[inline(always)]
        fn simd(self) -> Avx512<true> {
            self.0
        }

        #[inline(always)]
        unsafe fn load_key(self, source: *const bf16) -> Vector {
            // SAFETY: the caller's duty: 32 elements are 16 words.
            unsafe { self.0.load(source.cast()) }
        }

        #[inline(always)]
        unsafe fn load_key_first(self, source: *const bf16, count: usize) -> Vector {
            // SAFETY: the caller's duty.
            unsafe { self.0.load_first_words(source, count) }
        }

        #[inline(always)]
        fn multiply(self, key: Vector, query: Vector, sum: Vector) -> Vector {
            self.0.dot_pairs(key, query, sum)
        }

        #[inline(always)]
        unsafe fn store_query(self, target: *mut f32, query: Vector) {
            // SAFETY: the caller's duty.
            unsafe { self.0.store(target, query) }
        }

        #[inline(always)]
        unsafe fn prepare_weights(self, weights: *mut f32, len: usize) {
            let mut key = 0;
            while key < len {
                // SAFETY: a row of weights has BLOCK_KEYS words, a multiple of 32; pairs are written below where they
                // are read.
                unsafe {
                    let low = self.0.load(weights.add(key));
                    let has_high = key + 16 < len;
                    let high = if has_high { self.0.load(weights.add(key + 16)) } else { self.0.splat(0.0) };
                    self.0.store(weights.add(key / 2), self.0.round_pairs(low, high));
                }
                key += 32;
            }
        }

        #[inline(always)]
        unsafe fn weigh<const ROWS: usize, const COLUMNS: usize>(
            self,
            weighing: &Weighing<'_, bf16>,
            first: Option<usize>,
        ) {
            let simd = self.0;
            let Weighing { weights, values, out, out_stride, len, .. } = *weighing;
            let offset = weighing.to_columns();
            // SAFETY: as the fields of `weighing` say.
            unsafe {
                let mut sums = load_sums::<_, ROWS, COLUMNS>(simd, out, out_stride);
                let pairs = values[..len + len % 2].chunks_exact(2);
                for (pair, value) in pairs.enumerate() {
                    let low = value[0].wrapping_offset(offset);
                    let high = value[1].wrapping_offset(offset);
                    weighing.ask(simd, low, COLUMNS * 16);
                    weighing.ask(simd, high, COLUMNS * 16);
                    let mut columns = [simd.splat(0.0); COLUMNS];
                    if let Some(count) = first {
                        columns[0] = simd.load_first_pairs(low, high, count);
                    } else if COLUMNS == 1 {
                        columns[0] = simd.load_pairs(low, high);
                    } else {
                        for (c, columns) in columns.chunks_exact_mut(2).enumerate() {
                            let (low, high) = (low.add(c * 32), high.add(c * 32));
                            [columns[0], columns[1]] = simd.load_pairs_wide(low, high);
                        }
                    }
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let weight = simd.splat(weights.add(r * BLOCK_KEYS + pair).read());
                        for (sum, column) in sums.iter_mut().zip(columns) {
                            *sum = simd.dot_pairs(weight, column, *sum);
                        }
                    }
                }
                store_sums(simd, &sums, out, out_stride);
            }
        }
    }
}
