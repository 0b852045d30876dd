//! AVX-512: 16 lanes, mask registers, and with `BF16` dot products of bf16 pairs.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{Kernel, PairKernel, Simd, polynomial};

/// Proof that this processor has AVX-512 F, BW, DQ and VL, AVX2, FMA and F16C; with `BF16` also AVX512-BF16.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512<const BF16: bool>(());

impl<const BF16: bool> Avx512<BF16> {
    /// # Safety
    /// The processor has the instructions.
    pub(crate) unsafe fn new() -> Self {
        Avx512(())
    }
}

/// Calls intrinsics.
macro_rules! with {
    ($call:expr) => {
        // SAFETY: `self` proves that the processor has the instructions; the call touches no memory beyond what the
        // caller has vouched for.
        unsafe { $call }
    };
}

impl Avx512<true> {
    /// Runs a kernel compiled for these instructions.
    #[inline]
    pub(crate) fn vectorize_pairs<K: PairKernel>(self, kernel: K) {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
        fn compiled<K: PairKernel>(simd: Avx512<true>, kernel: K) {
            kernel.run(simd)
        }
        with!(compiled(self, kernel))
    }

    /// The lower and the upper halves of pairs, widened.
    #[inline(always)]
    pub(crate) fn halves(self, pairs: __m512) -> (__m512, __m512) {
        with!({
            let words = _mm512_castps_si512(pairs);
            let high = _mm512_and_si512(words, _mm512_set1_epi32(0xffff_0000_u32 as i32));
            (_mm512_castsi512_ps(_mm512_slli_epi32::<16>(words)), _mm512_castsi512_ps(high))
        })
    }

    /// In each lane `a[0] * b[0] + a[1] * b[1] + sum` of bf16 pairs, lower half first; subnormal operands count as 0.
    #[inline(always)]
    pub(crate) fn dot_pairs(self, a: __m512, b: __m512, sum: __m512) -> __m512 {
        with!(_mm512_dpbf16_ps(
            sum,
            std::mem::transmute::<__m512, __m512bh>(a),
            std::mem::transmute::<__m512, __m512bh>(b)
        ))
    }

    /// In each lane the pair of `low` and `high` rounded to bf16.
    #[inline(always)]
    pub(crate) fn pairs_from(self, low: __m512, high: __m512) -> __m512 {
        with!({
            let halves = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
            let order = std::mem::transmute::<[u16; 32], __m512i>(INTERLEAVE);
            _mm512_castsi512_ps(_mm512_permutexvar_epi16(order, halves))
        })
    }

    /// In each lane the pair of `low[i]` and `high[i]`.
    ///
    /// # Safety
    /// 16 elements from `low` and from `high` on can be read.
    #[inline(always)]
    pub(crate) unsafe fn load_pairs(self, low: *const bf16, high: *const bf16) -> __m512 {
        with!({
            let low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(low.cast()));
            let high = _mm512_cvtepu16_epi32(_mm256_loadu_si256(high.cast()));
            _mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32::<16>(high)))
        })
    }
}

impl Avx512<true> {
    /// `2^t` within 3e-6 of its value, also where that is subnormal; 0 for -inf, NaN for NaN.
    ///
    /// Takes what is left above a whole number, which an instruction finds and another applies, so that neither bounds
    /// nor the whole number itself are needed.
    #[inline(always)]
    pub(crate) fn exp2_from_floor(self, t: __m512) -> __m512 {
        with!({
            let rest = _mm512_reduce_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(t);
            _mm512_scalef_ps(polynomial(self, &EXP2_ABOVE_FLOOR, rest), t)
        })
    }

    /// In lane `i` the pair of elements `2 i` and `2 i + 1` of `low`, then of `high`, rounded to bf16.
    #[inline(always)]
    pub(crate) fn round_pairs(self, low: __m512, high: __m512) -> __m512 {
        with!(std::mem::transmute::<__m512bh, __m512>(_mm512_cvtne2ps_pbh(high, low)))
    }

    /// The first `count` elements as pairs, then zeros.
    ///
    /// # Safety
    /// `count` elements from `source` on can be read, at most 32.
    #[inline(always)]
    pub(crate) unsafe fn load_first_words(self, source: *const bf16, count: usize) -> __m512 {
        with!(_mm512_castsi512_ps(_mm512_maskz_loadu_epi16(first(count) as __mmask32, source.cast())))
    }

    /// [`load_pairs`](Avx512::load_pairs) of the first `count` elements, then zeros.
    ///
    /// # Safety
    /// `count` elements from `low` and from `high` on can be read, at most 16.
    #[inline(always)]
    pub(crate) unsafe fn load_first_pairs(self, low: *const bf16, high: *const bf16, count: usize) -> __m512 {
        with!({
            let present = first(count) as __mmask16;
            let low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(present, low.cast()));
            let high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(present, high.cast()));
            _mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32::<16>(high)))
        })
    }

    /// [`load_pairs`](Avx512::load_pairs) of 32 elements.
    ///
    /// # Safety
    /// 32 elements from `low` and from `high` on can be read.
    #[inline(always)]
    pub(crate) unsafe fn load_pairs_wide(self, low: *const bf16, high: *const bf16) -> [__m512; 2] {
        with!({
            let (low, high) = (_mm512_loadu_si512(low.cast()), _mm512_loadu_si512(high.cast()));
            let first = std::mem::transmute::<[u16; 32], __m512i>(WIDE[0]);
            let second = std::mem::transmute::<[u16; 32], __m512i>(WIDE[1]);
            [
                _mm512_castsi512_ps(_mm512_permutex2var_epi16(low, first, high)),
                _mm512_castsi512_ps(_mm512_permutex2var_epi16(low, second, high)),
            ]
        })
    }
}

impl<const BF16: bool> Avx512<BF16> {
    /// The sums of neighbouring 128-bit quarters of `a`, then of `b`.
    #[inline(always)]
    fn add_quarters(self, a: __m512, b: __m512) -> __m512 {
        with!(_mm512_add_ps(
            _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b),
            _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b)
        ))
    }
}

/// Minimax coefficients of `2^x` on 0..=1, relative error 2.9e-6, exact at 0.
const EXP2_ABOVE_FLOOR: [f32; 5] = [1.0, 0.693_044_84, 0.241_280_2, 0.052_242_474, 0.013_426_684];

/// Elements 0..16 of the first operand, each followed by the same of the second; then 16..32.
const WIDE: [[u16; 32]; 2] = {
    let mut orders = [[0; 32]; 2];
    let mut i = 0;
    while i < 32 {
        orders[i / 16][2 * (i % 16)] = i as u16;
        orders[i / 16][2 * (i % 16) + 1] = 32 + i as u16;
        i += 1;
    }
    orders
};

/// Element `i` of the lower half, then element `i` of the upper half.
const INTERLEAVE: [u16; 32] = {
    let mut order = [0; 32];
    let mut i = 0;
    while i < 16 {
        order[2 * i] = i as u16;
        order[2 * i + 1] = 16 + i as u16;
        i += 1;
    }
    order
};

impl<const BF16: bool> Simd for Avx512<BF16> {
    type Vector = __m512;
    type Lanes = __mmask16;
    type Block = [__m512; 16];

    const LANES: usize = 16;
    const STRIP_VECTORS: usize = 4;

    #[inline]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        fn plain<K: Kernel>(simd: Avx512<false>, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
        fn with_bf16<K: Kernel>(simd: Avx512<true>, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        if BF16 { with!(with_bf16(Avx512(()), kernel)) } else { with!(plain(Avx512(()), kernel)) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        with!(_mm512_set1_ps(value))
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        with!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        with!(_mm512_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        with!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        with!(_mm512_div_ps(a, b))
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        with!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        with!(_mm512_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        with!(_mm512_min_ps(a, b))
    }

    #[inline(always)]
    fn round(self, a: __m512) -> __m512 {
        with!(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a))
    }

    #[inline(always)]
    fn split(self, t: __m512) -> (__m512, __m512) {
        // The rest of -inf is 0, so that nothing needs to be kept within bounds.
        (self.round(t), with!(_mm512_reduce_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(t)))
    }

    #[inline(always)]
    fn scale_exp2(self, a: __m512, n: __m512) -> __m512 {
        with!(_mm512_scalef_ps(a, n))
    }

    #[inline(always)]
    fn less(self, a: __m512, b: __m512) -> __mmask16 {
        with!(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b))
    }

    #[inline(always)]
    fn less_equal(self, a: __m512, b: __m512) -> __mmask16 {
        with!(_mm512_cmp_ps_mask::<_CMP_LE_OQ>(a, b))
    }

    #[inline(always)]
    fn both(self, a: __mmask16, b: __mmask16) -> __mmask16 {
        a & b
    }

    #[inline(always)]
    fn lanes_from_bits(self, bits: u64) -> __mmask16 {
        bits as u16
    }

    #[inline(always)]
    fn any(self, lanes: __mmask16) -> bool {
        lanes != 0
    }

    #[inline(always)]
    fn select(self, lanes: __mmask16, yes: __m512, no: __m512) -> __m512 {
        with!(_mm512_mask_blend_ps(lanes, no, yes))
    }

    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        with!(_mm512_reduce_add_ps(a))
    }

    #[inline(always)]
    fn largest(self, a: __m512) -> f32 {
        with!(_mm512_reduce_max_ps(a))
    }

    #[inline(always)]
    fn block(self) -> [__m512; 16] {
        [self.splat(0.0); 16]
    }

    #[inline(always)]
    fn transpose(self, block: &mut [__m512; 16]) {
        // Rows to pairs, pairs to fours within 128-bit quarters; then quarters to their places.
        let mut fours = [self.splat(0.0); 16];
        for i in 0..4 {
            let [a, b, c, d] = [block[4 * i], block[4 * i + 1], block[4 * i + 2], block[4 * i + 3]];
            let (ab, ab_high) = with!((_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)));
            let (cd, cd_high) = with!((_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d)));
            fours[4 * i] = with!(_mm512_shuffle_ps::<0b01_00_01_00>(ab, cd));
            fours[4 * i + 1] = with!(_mm512_shuffle_ps::<0b11_10_11_10>(ab, cd));
            fours[4 * i + 2] = with!(_mm512_shuffle_ps::<0b01_00_01_00>(ab_high, cd_high));
            fours[4 * i + 3] = with!(_mm512_shuffle_ps::<0b11_10_11_10>(ab_high, cd_high));
        }
        for j in 0..4 {
            let [a, b, c, d] = [fours[j], fours[4 + j], fours[8 + j], fours[12 + j]];
            let (ab_even, ab_odd) = with!((
                _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b),
                _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b)
            ));
            let (cd_even, cd_odd) = with!((
                _mm512_shuffle_f32x4::<0b10_00_10_00>(c, d),
                _mm512_shuffle_f32x4::<0b11_01_11_01>(c, d)
            ));
            block[j] = with!(_mm512_shuffle_f32x4::<0b10_00_10_00>(ab_even, cd_even));
            block[4 + j] = with!(_mm512_shuffle_f32x4::<0b10_00_10_00>(ab_odd, cd_odd));
            block[8 + j] = with!(_mm512_shuffle_f32x4::<0b11_01_11_01>(ab_even, cd_even));
            block[12 + j] = with!(_mm512_shuffle_f32x4::<0b11_01_11_01>(ab_odd, cd_odd));
        }
    }

    #[inline(always)]
    fn sums(self, block: &[__m512; 16]) -> __m512 {
        // Four sums in each 128-bit quarter, of four vectors each; then quarters together, in order.
        let mut fours = [self.splat(0.0); 4];
        for i in 0..4 {
            let [a, b, c, d] = [block[4 * i], block[4 * i + 1], block[4 * i + 2], block[4 * i + 3]];
            fours[i] = with!({
                let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
                let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
                let low = _mm512_shuffle_ps::<0b01_00_01_00>(ab, cd);
                _mm512_add_ps(low, _mm512_shuffle_ps::<0b11_10_11_10>(ab, cd))
            });
        }
        self.add_quarters(self.add_quarters(fours[0], fours[1]), self.add_quarters(fours[2], fours[3]))
    }

    #[inline(always)]
    unsafe fn load(self, source: *const f32) -> __m512 {
        with!(_mm512_loadu_ps(source))
    }

    #[inline(always)]
    unsafe fn load_f16(self, source: *const f16) -> __m512 {
        with!(_mm512_cvtph_ps(_mm256_loadu_si256(source.cast())))
    }

    #[inline(always)]
    unsafe fn load_bf16(self, source: *const bf16) -> __m512 {
        with!({
            let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(source.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
        })
    }

    #[inline(always)]
    unsafe fn store(self, target: *mut f32, a: __m512) {
        with!(_mm512_storeu_ps(target, a))
    }

    #[inline(always)]
    unsafe fn stream(self, target: *mut f32, a: __m512) {
        with!(_mm512_stream_ps(target, a))
    }

    #[inline(always)]
    fn finish_streams(self) {
        with!(_mm_sfence())
    }

    #[inline(always)]
    unsafe fn store_f16(self, target: *mut f16, a: __m512) {
        with!(_mm256_storeu_si256(target.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a)))
    }

    #[inline(always)]
    unsafe fn store_bf16(self, target: *mut bf16, a: __m512) {
        with!({
            let bits = _mm512_castps_si512(a);
            let high = _mm512_srli_epi32::<16>(bits);
            let is_odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
            let bias = _mm512_add_epi32(is_odd, _mm512_set1_epi32(0x7fff));
            let rounded = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, bias));
            let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, a);
            let quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
            let words = _mm512_mask_blend_epi32(is_nan, rounded, quiet);
            _mm256_storeu_si256(target.cast(), _mm512_cvtepi32_epi16(words))
        })
    }

    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        with!(_mm_prefetch::<_MM_HINT_T0>(address.cast()))
    }

    #[inline(always)]
    fn prefetch_far(self, address: *const u8) {
        with!(_mm_prefetch::<_MM_HINT_T1>(address.cast()))
    }

    #[inline(always)]
    unsafe fn load_first(self, source: *const f32, count: usize) -> __m512 {
        with!(_mm512_maskz_loadu_ps(first(count) as __mmask16, source))
    }

    #[inline(always)]
    unsafe fn load_first_f16(self, source: *const f16, count: usize) -> __m512 {
        with!(_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(count) as __mmask16, source.cast())))
    }

    #[inline(always)]
    unsafe fn load_first_bf16(self, source: *const bf16, count: usize) -> __m512 {
        with!({
            let words =
                _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first(count) as __mmask16, source.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
        })
    }
}

/// The lowest `count` bits, for `count` below 64.
#[inline(always)]
fn first(count: usize) -> u64 {
    (1 << count) - 1
}
