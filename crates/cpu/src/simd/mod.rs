//! The vector operations that kernels are made of: one trait, one implementation per instruction set.
//!
//! A value of an implementing type is a proof: it is only made where detection has found the instructions, so its
//! methods are safe unless they touch memory. Kernels are generic functions of such a value, marked
//! `#[inline(always)]`, and enter through [`dispatch`], whose `#[target_feature]` functions they are inlined into.
//! Closures do not inherit target features: kernels have none.

use half::{bf16, f16};
use omniflash_core::Float;

use crate::isa::Isa;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::Neon;
pub(crate) use scalar::Scalar;

/// f32 vectors of one instruction set.
///
/// Pointers need no alignment beyond their element's. "Memory" methods require that all the elements they name can be
/// read or written.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// `LANES` times f32; also carries other 32-bit words, which only loads, stores and dot products touch.
    type Vector: Copy;
    /// One truth value a lane.
    type Lanes: Copy;
    /// `LANES` vectors: what [`transpose`](Simd::transpose) turns.
    type Block: Copy + AsRef<[Self::Vector]> + AsMut<[Self::Vector]>;

    /// Lanes of a vector: 4, 8 or 16.
    const LANES: usize;
    /// Vectors of query rows in a strip of the tiled kernels: as many as leave registers for 6 keys beside them.
    const STRIP_VECTORS: usize;

    /// Runs a kernel compiled for these instructions.
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output;

    /// `value` in all lanes.
    fn splat(self, value: f32) -> Self::Vector;
    /// `a + b`.
    fn add(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a - b`.
    fn sub(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a * b`.
    fn mul(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a / b`.
    fn div(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a * b + c`, rounded once where the instruction set can.
    fn fma(self, a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    /// The larger; `b` where either is NaN on x86, NaN on Arm: put what must stay NaN last.
    fn max(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// The smaller; NaN as in [`max`](Simd::max).
    fn min(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// To the nearest whole number.
    fn round(self, a: Self::Vector) -> Self::Vector;
    /// `a * 2^n` for `n` of [`split`](Simd::split) up to 127 and `a` in 0.5..2; where that is below 2^-126, 0 or the
    /// subnormal.
    fn scale_exp2(self, a: Self::Vector, n: Self::Vector) -> Self::Vector;

    /// `a < b` in each lane; false where either is NaN.
    fn less(self, a: Self::Vector, b: Self::Vector) -> Self::Lanes;
    /// `a <= b` in each lane; false where either is NaN.
    fn less_equal(self, a: Self::Vector, b: Self::Vector) -> Self::Lanes;
    /// Both.
    fn both(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;
    /// Bit `i` of `bits` in lane `i`; higher bits are not looked at.
    fn lanes_from_bits(self, bits: u64) -> Self::Lanes;
    /// Whether any lane is true.
    fn any(self, lanes: Self::Lanes) -> bool;
    /// `yes` where the lane is true, else `no`.
    fn select(self, lanes: Self::Lanes, yes: Self::Vector, no: Self::Vector) -> Self::Vector;

    /// The sum over lanes, in a fixed order.
    fn sum(self, a: Self::Vector) -> f32;
    /// The largest lane.
    fn largest(self, a: Self::Vector) -> f32;
    /// A block of zeros, to be filled with rows.
    fn block(self) -> Self::Block;
    /// Lane `j` of vector `i` to lane `i` of vector `j`.
    fn transpose(self, block: &mut Self::Block);
    /// The sum over lanes of vector `i` in lane `i`.
    fn sums(self, block: &Self::Block) -> Self::Vector;

    /// # Safety
    /// `LANES` elements from `source` on can be read.
    unsafe fn load(self, source: *const f32) -> Self::Vector;
    /// # Safety
    /// `LANES` elements from `source` on can be read.
    unsafe fn load_f16(self, source: *const f16) -> Self::Vector;
    /// # Safety
    /// `LANES` elements from `source` on can be read.
    unsafe fn load_bf16(self, source: *const bf16) -> Self::Vector;
    /// # Safety
    /// `LANES` elements from `target` on can be written.
    unsafe fn store(self, target: *mut f32, a: Self::Vector);
    /// Stores past the caches, where the instruction set can: for much that is read only much later. Other threads may read
    /// it after [`finish_streams`](Simd::finish_streams).
    ///
    /// # Safety
    /// `LANES` elements from `target` on can be written; it is aligned to the vector.
    #[inline(always)]
    unsafe fn stream(self, target: *mut f32, a: Self::Vector) {
        // SAFETY: the caller's duty.
        unsafe { self.store(target, a) }
    }
    /// Puts what was [streamed](Simd::stream) before what follows.
    #[inline(always)]
    fn finish_streams(self) {}
    /// Rounds to nearest, ties to even.
    ///
    /// # Safety
    /// `LANES` elements from `target` on can be written.
    unsafe fn store_f16(self, target: *mut f16, a: Self::Vector);
    /// Rounds to nearest, ties to even.
    ///
    /// # Safety
    /// `LANES` elements from `target` on can be written.
    unsafe fn store_bf16(self, target: *mut bf16, a: Self::Vector);

    /// Asks for the cache line at `address`, which need not be valid.
    fn prefetch(self, address: *const u8);
    /// Asks for the cache line at `address`, which need not be valid, in the second-level cache only: for what is used
    /// thousands of cycles later, and must not compete for the first level's few outstanding misses.
    fn prefetch_far(self, address: *const u8);

    /// The first `count` elements, at most `LANES`, then zeros.
    ///
    /// # Safety
    /// `count` elements from `source` on can be read.
    #[inline(always)]
    unsafe fn load_first(self, source: *const f32, count: usize) -> Self::Vector {
        // SAFETY: the caller's duty; the copy has MAX_LANES elements.
        unsafe { self.load(copy_first(source, count).as_ptr()) }
    }
    /// As [`load_first`](Simd::load_first).
    ///
    /// # Safety
    /// `count` elements from `source` on can be read.
    #[inline(always)]
    unsafe fn load_first_f16(self, source: *const f16, count: usize) -> Self::Vector {
        // SAFETY: as above.
        unsafe { self.load_f16(copy_first(source, count).as_ptr()) }
    }
    /// As [`load_first`](Simd::load_first).
    ///
    /// # Safety
    /// `count` elements from `source` on can be read.
    #[inline(always)]
    unsafe fn load_first_bf16(self, source: *const bf16, count: usize) -> Self::Vector {
        // SAFETY: as above.
        unsafe { self.load_bf16(copy_first(source, count).as_ptr()) }
    }

    /// `t` as a whole number and the rest, in -0.5..=0.5, for [`scale_exp2`](Simd::scale_exp2); for `t` below -127 any
    /// whole number below -126, or -inf, and any rest in that range.
    #[inline(always)]
    fn split(self, t: Self::Vector) -> (Self::Vector, Self::Vector) {
        let t = self.max(self.splat(-127.0), t);
        let n = self.round(t);
        (n, self.sub(t, n))
    }

    /// `2^t` within 1.2e-7 of its value for `t` in -126..=127; below, something between 0 and 2^-126, 0 for -inf; NaN for
    /// NaN.
    #[inline(always)]
    fn exp2(self, t: Self::Vector) -> Self::Vector {
        let (n, rest) = self.split(t);
        self.scale_exp2(polynomial(self, &EXP2, rest), n)
    }

    /// [`exp2`](Simd::exp2) within 4e-6, for results that are rounded to bf16.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only bf16 pairs need no more"))]
    #[inline(always)]
    fn exp2_coarse(self, t: Self::Vector) -> Self::Vector {
        let (n, rest) = self.split(t);
        self.scale_exp2(polynomial(self, &EXP2_COARSE, rest), n)
    }

    /// The hyperbolic tangent within 3e-7 of its value.
    #[inline(always)]
    fn tanh(self, x: Self::Vector) -> Self::Vector {
        let small = {
            let square = self.mul(x, x);
            let tail = polynomial(self, &TANH, square);
            self.fma(self.mul(x, square), tail, x)
        };
        // 1 - 2 / (e^2x + 1), whose cancellation only hurts near 0, where `small` is taken.
        let doubled =
            self.mul(self.min(self.splat(10.0), self.max(self.splat(-10.0), x)), self.splat(2.0 * LOG2_E));
        let one = self.splat(1.0);
        let large = self.sub(one, self.div(self.splat(2.0), self.add(self.exp2(doubled), one)));
        let is_small =
            self.both(self.less(x, self.splat(TANH_SWITCH)), self.less(self.splat(-TANH_SWITCH), x));
        self.select(is_small, small, large)
    }
}

/// A computation that [`Simd::vectorize`] compiles for an instruction set.
pub(crate) trait Kernel {
    /// What it answers.
    type Output;

    /// The computation; implementations are `#[inline(always)]`.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Runs a kernel compiled for `isa`, which this processor has: a backend holds only checked ones.
#[inline]
pub(crate) fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    debug_assert!(isa.is_available());
    match isa {
        #[cfg(target_arch = "x86_64")]
        isa if isa.has_bf16_pairs() || isa == Isa::Avx512 => {
            // SAFETY: `isa` is available.
            unsafe { Avx512::<false>::new() }.vectorize(kernel)
        }
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `isa` is available.
        Isa::Avx2 => unsafe { Avx2::new() }.vectorize(kernel),
        #[cfg(target_arch = "aarch64")]
        // SAFETY: `isa` is available.
        Isa::Neon => unsafe { Neon::new() }.vectorize(kernel),
        _ => Scalar.vectorize(kernel),
    }
}

/// A computation on dot products of bf16 pairs.
#[cfg(target_arch = "x86_64")]
pub(crate) trait PairKernel {
    /// The computation; implementations are `#[inline(always)]`.
    fn run(self, simd: Avx512<true>);
}

/// A [`Float`] that vectors load and store.
pub(crate) trait Storage: Float {
    /// # Safety
    /// As [`Simd::load`].
    unsafe fn load<S: Simd>(simd: S, source: *const Self) -> S::Vector;
    /// # Safety
    /// As [`Simd::load_first`].
    unsafe fn load_first<S: Simd>(simd: S, source: *const Self, count: usize) -> S::Vector;
    /// # Safety
    /// As [`Simd::store`].
    unsafe fn store<S: Simd>(simd: S, target: *mut Self, a: S::Vector);
}

macro_rules! storage {
    ($($type:ty: $load:ident, $load_first:ident, $store:ident;)*) => {$(
        impl Storage for $type {
            #[inline(always)]
            unsafe fn load<S: Simd>(simd: S, source: *const Self) -> S::Vector {
                // SAFETY: the caller's duty.
                unsafe { simd.$load(source) }
            }
            #[inline(always)]
            unsafe fn load_first<S: Simd>(simd: S, source: *const Self, count: usize) -> S::Vector {
                // SAFETY: the caller's duty.
                unsafe { simd.$load_first(source, count) }
            }
            #[inline(always)]
            unsafe fn store<S: Simd>(simd: S, target: *mut Self, a: S::Vector) {
                // SAFETY: the caller's duty.
                unsafe { simd.$store(target, a) }
            }
        }
    )*};
}
storage! {
    f32: load, load_first, store;
    f16: load_f16, load_first_f16, store_f16;
    bf16: load_bf16, load_first_bf16, store_bf16;
}

/// The most lanes of any instruction set.
pub(crate) const MAX_LANES: usize = 16;

/// # Safety
/// `count` elements from `source` on can be read, at most `MAX_LANES`.
#[inline(always)]
unsafe fn copy_first<T: Storage>(source: *const T, count: usize) -> [T; MAX_LANES] {
    let mut copy = [T::zeroed(); MAX_LANES];
    // SAFETY: the caller's duty, and no more than the copy has.
    unsafe { std::ptr::copy_nonoverlapping(source, copy.as_mut_ptr(), count.min(MAX_LANES)) };
    copy
}

/// log2(e).
pub(crate) const LOG2_E: f32 = std::f32::consts::LOG2_E;

/// Minimax coefficients of `2^x` on -0.5..=0.5, relative error 2.6e-9, exact at 0.
const EXP2: [f32; 7] =
    [1.0, 0.693_147_24, 0.240_226_52, 0.055_503_104, 0.009_617_693, 0.001_340_664_3, 0.000_155_946_78];

/// The same of degree 4, relative error 3.6e-6.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only bf16 pairs need no more"))]
const EXP2_COARSE: [f32; 5] = [1.0, 0.693_113_6, 0.240_207_1, 0.055_976_883, 0.009_782_912];

/// Minimax coefficients of `(tanh(x) / x - 1) / x^2` in `x^2` for |x| below the switch, relative error of tanh 4.4e-9.
const TANH: [f32; 5] = [-0.333_332_8, 0.133_314_42, -0.053_739_715, 0.020_639_088, -0.005_704_987];
const TANH_SWITCH: f32 = 0.625;

#[inline(always)]
fn polynomial<S: Simd, const N: usize>(simd: S, coefficients: &[f32; N], x: S::Vector) -> S::Vector {
    let mut sum = simd.splat(coefficients[N - 1]);
    for i in (0..N - 1).rev() {
        sum = simd.fma(sum, x, simd.splat(coefficients[i]));
    }
    sum
}

#[cfg(test)]
mod tests;
