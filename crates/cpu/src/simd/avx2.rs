//! AVX2 with FMA and F16C: 8 lanes.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{Kernel, Simd};

/// Proof that this processor has AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The processor has the instructions.
    pub(crate) unsafe fn new() -> Self {
        Avx2(())
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

impl Simd for Avx2 {
    type Vector = __m256;
    type Lanes = __m256;
    type Block = [__m256; 8];

    const LANES: usize = 8;
    const STRIP_VECTORS: usize = 2;

    #[inline]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn compiled<K: Kernel>(simd: Avx2, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        with!(compiled(self, kernel))
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m256 {
        with!(_mm256_set1_ps(value))
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        with!(_mm256_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        with!(_mm256_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        with!(_mm256_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        with!(_mm256_div_ps(a, b))
    }

    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        with!(_mm256_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        with!(_mm256_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        with!(_mm256_min_ps(a, b))
    }

    #[inline(always)]
    fn round(self, a: __m256) -> __m256 {
        with!(_mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a))
    }

    #[inline(always)]
    fn scale_exp2(self, a: __m256, n: __m256) -> __m256 {
        with!({
            let exponent = _mm256_slli_epi32::<23>(_mm256_cvtps_epi32(n));
            let scaled = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), exponent));
            let normal = _mm256_cmp_ps::<_CMP_NLT_UQ>(n, _mm256_set1_ps(-126.0));
            _mm256_and_ps(normal, scaled)
        })
    }

    #[inline(always)]
    fn less(self, a: __m256, b: __m256) -> __m256 {
        with!(_mm256_cmp_ps::<_CMP_LT_OQ>(a, b))
    }

    #[inline(always)]
    fn less_equal(self, a: __m256, b: __m256) -> __m256 {
        with!(_mm256_cmp_ps::<_CMP_LE_OQ>(a, b))
    }

    #[inline(always)]
    fn both(self, a: __m256, b: __m256) -> __m256 {
        with!(_mm256_and_ps(a, b))
    }

    #[inline(always)]
    fn lanes_from_bits(self, bits: u64) -> __m256 {
        with!({
            let bit_of_lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
            let present = _mm256_and_si256(_mm256_set1_epi32(bits as i32), bit_of_lane);
            _mm256_castsi256_ps(_mm256_cmpeq_epi32(present, bit_of_lane))
        })
    }

    #[inline(always)]
    fn any(self, lanes: __m256) -> bool {
        with!(_mm256_movemask_ps(lanes) != 0)
    }

    #[inline(always)]
    fn select(self, lanes: __m256, yes: __m256, no: __m256) -> __m256 {
        with!(_mm256_blendv_ps(no, yes, lanes))
    }

    #[inline(always)]
    fn sum(self, a: __m256) -> f32 {
        with!({
            let four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        })
    }

    #[inline(always)]
    fn largest(self, a: __m256) -> f32 {
        with!({
            let four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        })
    }

    #[inline(always)]
    fn block(self) -> [__m256; 8] {
        [self.splat(0.0); 8]
    }

    #[inline(always)]
    fn transpose(self, block: &mut [__m256; 8]) {
        // Rows to pairs, pairs to fours within 128-bit halves; then halves to their places.
        let mut fours = [self.splat(0.0); 8];
        for i in 0..2 {
            let [a, b, c, d] = [block[4 * i], block[4 * i + 1], block[4 * i + 2], block[4 * i + 3]];
            let (ab, ab_high) = with!((_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)));
            let (cd, cd_high) = with!((_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d)));
            fours[4 * i] = with!(_mm256_shuffle_ps::<0b01_00_01_00>(ab, cd));
            fours[4 * i + 1] = with!(_mm256_shuffle_ps::<0b11_10_11_10>(ab, cd));
            fours[4 * i + 2] = with!(_mm256_shuffle_ps::<0b01_00_01_00>(ab_high, cd_high));
            fours[4 * i + 3] = with!(_mm256_shuffle_ps::<0b11_10_11_10>(ab_high, cd_high));
        }
        for j in 0..4 {
            block[j] = with!(_mm256_permute2f128_ps::<0x20>(fours[j], fours[4 + j]));
            block[4 + j] = with!(_mm256_permute2f128_ps::<0x31>(fours[j], fours[4 + j]));
        }
    }

    #[inline(always)]
    fn sums(self, block: &[__m256; 8]) -> __m256 {
        let [a, b, c, d, e, f, g, h] = *block;
        with!({
            let low = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
            let high = _mm256_hadd_ps(_mm256_hadd_ps(e, f), _mm256_hadd_ps(g, h));
            let halves = _mm256_permute2f128_ps::<0x20>(low, high);
            _mm256_add_ps(halves, _mm256_permute2f128_ps::<0x31>(low, high))
        })
    }

    #[inline(always)]
    unsafe fn load(self, source: *const f32) -> __m256 {
        with!(_mm256_loadu_ps(source))
    }

    #[inline(always)]
    unsafe fn load_f16(self, source: *const f16) -> __m256 {
        with!(_mm256_cvtph_ps(_mm_loadu_si128(source.cast())))
    }

    #[inline(always)]
    unsafe fn load_bf16(self, source: *const bf16) -> __m256 {
        with!({
            let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(source.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))
        })
    }

    #[inline(always)]
    unsafe fn store(self, target: *mut f32, a: __m256) {
        with!(_mm256_storeu_ps(target, a))
    }

    #[inline(always)]
    unsafe fn stream(self, target: *mut f32, a: __m256) {
        with!(_mm256_stream_ps(target, a))
    }

    #[inline(always)]
    fn finish_streams(self) {
        with!(_mm_sfence())
    }

    #[inline(always)]
    unsafe fn store_f16(self, target: *mut f16, a: __m256) {
        with!(_mm_storeu_si128(target.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a)))
    }

    #[inline(always)]
    unsafe fn store_bf16(self, target: *mut bf16, a: __m256) {
        with!({
            let bits = _mm256_castps_si256(a);
            let high = _mm256_srli_epi32::<16>(bits);
            let is_odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
            let bias = _mm256_add_epi32(is_odd, _mm256_set1_epi32(0x7fff));
            let rounded = _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, bias));
            let is_nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(a, a));
            let quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
            let words = _mm256_blendv_epi8(rounded, quiet, is_nan);
            let packed = _mm256_packus_epi32(words, words);
            let together = _mm256_permute4x64_epi64::<0b10_00>(packed);
            _mm_storeu_si128(target.cast(), _mm256_castsi256_si128(together))
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
}
