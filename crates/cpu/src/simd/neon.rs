//! Advanced SIMD of 64-bit Arm: 4 lanes, 32 registers.

use std::arch::aarch64::*;
use std::arch::asm;

use half::{bf16, f16};

use super::{Kernel, Simd};

/// Proof that this processor has Advanced SIMD.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Neon(());

impl Neon {
    /// # Safety
    /// The processor has the instructions.
    pub(crate) unsafe fn new() -> Self {
        Neon(())
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

impl Simd for Neon {
    type Vector = float32x4_t;
    type Lanes = uint32x4_t;
    type Block = [float32x4_t; 4];

    const LANES: usize = 4;
    const STRIP_VECTORS: usize = 4;

    #[inline]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "neon")]
        fn compiled<K: Kernel>(simd: Neon, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        with!(compiled(self, kernel))
    }

    #[inline(always)]
    fn splat(self, value: f32) -> float32x4_t {
        with!(vdupq_n_f32(value))
    }

    #[inline(always)]
    fn add(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        with!(vaddq_f32(a, b))
    }

    #[inline(always)]
    fn sub(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        with!(vsubq_f32(a, b))
    }

    #[inline(always)]
    fn mul(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        with!(vmulq_f32(a, b))
    }

    #[inline(always)]
    fn div(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        with!(vdivq_f32(a, b))
    }

    #[inline(always)]
    fn fma(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        with!(vfmaq_f32(c, a, b))
    }

    #[inline(always)]
    fn max(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        with!(vmaxq_f32(a, b))
    }

    #[inline(always)]
    fn min(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        with!(vminq_f32(a, b))
    }

    #[inline(always)]
    fn round(self, a: float32x4_t) -> float32x4_t {
        with!(vrndnq_f32(a))
    }

    #[inline(always)]
    fn scale_exp2(self, a: float32x4_t, n: float32x4_t) -> float32x4_t {
        with!({
            let exponent = vshlq_n_s32::<23>(vcvtq_s32_f32(n));
            let scaled = vreinterpretq_u32_s32(vaddq_s32(vreinterpretq_s32_f32(a), exponent));
            let below = vcltq_f32(n, vdupq_n_f32(-126.0));
            vreinterpretq_f32_u32(vbicq_u32(scaled, below))
        })
    }

    #[inline(always)]
    fn less(self, a: float32x4_t, b: float32x4_t) -> uint32x4_t {
        with!(vcltq_f32(a, b))
    }

    #[inline(always)]
    fn less_equal(self, a: float32x4_t, b: float32x4_t) -> uint32x4_t {
        with!(vcleq_f32(a, b))
    }

    #[inline(always)]
    fn both(self, a: uint32x4_t, b: uint32x4_t) -> uint32x4_t {
        with!(vandq_u32(a, b))
    }

    #[inline(always)]
    fn lanes_from_bits(self, bits: u64) -> uint32x4_t {
        with!({
            let bit_of_lane = std::mem::transmute::<[u32; 4], uint32x4_t>([1, 2, 4, 8]);
            vtstq_u32(vdupq_n_u32(bits as u32), bit_of_lane)
        })
    }

    #[inline(always)]
    fn any(self, lanes: uint32x4_t) -> bool {
        with!(vmaxvq_u32(lanes) != 0)
    }

    #[inline(always)]
    fn select(self, lanes: uint32x4_t, yes: float32x4_t, no: float32x4_t) -> float32x4_t {
        with!(vbslq_f32(lanes, yes, no))
    }

    #[inline(always)]
    fn sum(self, a: float32x4_t) -> f32 {
        with!(vaddvq_f32(a))
    }

    #[inline(always)]
    fn largest(self, a: float32x4_t) -> f32 {
        with!(vmaxvq_f32(a))
    }

    #[inline(always)]
    fn block(self) -> [float32x4_t; 4] {
        [self.splat(0.0); 4]
    }

    #[inline(always)]
    fn transpose(self, block: &mut [float32x4_t; 4]) {
        let [a, b, c, d] = *block;
        // Pairs within 64-bit halves, then halves to their places.
        let double = |v: float32x4_t| with!(vreinterpretq_f64_f32(v));
        let (ac, bd) = with!((vtrn1q_f32(a, b), vtrn2q_f32(a, b)));
        let (ac_high, bd_high) = with!((vtrn1q_f32(c, d), vtrn2q_f32(c, d)));
        *block = [
            with!(vreinterpretq_f32_f64(vtrn1q_f64(double(ac), double(ac_high)))),
            with!(vreinterpretq_f32_f64(vtrn1q_f64(double(bd), double(bd_high)))),
            with!(vreinterpretq_f32_f64(vtrn2q_f64(double(ac), double(ac_high)))),
            with!(vreinterpretq_f32_f64(vtrn2q_f64(double(bd), double(bd_high)))),
        ];
    }

    #[inline(always)]
    fn sums(self, block: &[float32x4_t; 4]) -> float32x4_t {
        let [a, b, c, d] = *block;
        with!(vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)))
    }

    #[inline(always)]
    unsafe fn load(self, source: *const f32) -> float32x4_t {
        with!(vld1q_f32(source))
    }

    // The intrinsics for half precision are not stable; the instructions are part of the baseline.
    #[inline(always)]
    unsafe fn load_f16(self, source: *const f16) -> float32x4_t {
        with!({
            let halves = vld1_u16(source.cast());
            let wide: float32x4_t;
            asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) wide, in(vreg) halves,
                options(pure, nomem, nostack, preserves_flags));
            wide
        })
    }

    #[inline(always)]
    unsafe fn load_bf16(self, source: *const bf16) -> float32x4_t {
        with!(vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(source.cast()))))
    }

    #[inline(always)]
    unsafe fn store(self, target: *mut f32, a: float32x4_t) {
        with!(vst1q_f32(target, a))
    }

    #[inline(always)]
    unsafe fn store_f16(self, target: *mut f16, a: float32x4_t) {
        with!({
            let halves: uint16x4_t;
            asm!("fcvtn {0:v}.4h, {1:v}.4s", out(vreg) halves, in(vreg) a,
                options(pure, nomem, nostack, preserves_flags));
            vst1_u16(target.cast(), halves)
        })
    }

    #[inline(always)]
    unsafe fn store_bf16(self, target: *mut bf16, a: float32x4_t) {
        with!({
            let bits = vreinterpretq_u32_f32(a);
            let high = vshrq_n_u32::<16>(bits);
            let bias = vaddq_u32(vandq_u32(high, vdupq_n_u32(1)), vdupq_n_u32(0x7fff));
            let rounded = vshrq_n_u32::<16>(vaddq_u32(bits, bias));
            let is_number = vceqq_f32(a, a);
            let words = vbslq_u32(is_number, rounded, vorrq_u32(high, vdupq_n_u32(0x40)));
            vst1_u16(target.cast(), vmovn_u32(words))
        })
    }

    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        with!(asm!("prfm pldl1keep, [{0}]", in(reg) address, options(readonly, nostack, preserves_flags)))
    }

    #[inline(always)]
    fn prefetch_far(self, address: *const u8) {
        with!(asm!("prfm pldl2keep, [{0}]", in(reg) address, options(readonly, nostack, preserves_flags)))
    }
}
