//! Portable code on arrays of 4 lanes; compilers turn most of it into whatever vectors the target has by default.

use half::{bf16, f16};

use super::{Kernel, Simd};

/// Needs no proof: it runs anywhere.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scalar;

type Four = [f32; 4];

#[inline(always)]
fn map(a: Four, b: Four, f: impl Fn(f32, f32) -> f32) -> Four {
    [f(a[0], b[0]), f(a[1], b[1]), f(a[2], b[2]), f(a[3], b[3])]
}

#[inline(always)]
fn compare(a: Four, b: Four, f: impl Fn(&f32, &f32) -> bool) -> [bool; 4] {
    [f(&a[0], &b[0]), f(&a[1], &b[1]), f(&a[2], &b[2]), f(&a[3], &b[3])]
}

impl Simd for Scalar {
    type Vector = Four;
    type Lanes = [bool; 4];
    type Block = [Four; 4];

    const LANES: usize = 4;
    const STRIP_VECTORS: usize = 2;

    #[inline]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Four {
        [value; 4]
    }

    #[inline(always)]
    fn add(self, a: Four, b: Four) -> Four {
        map(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: Four, b: Four) -> Four {
        map(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: Four, b: Four) -> Four {
        map(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: Four, b: Four) -> Four {
        map(a, b, |a, b| a / b)
    }

    // Rounds twice: without the instruction a true fma is a call that costs a hundred times as much.
    #[inline(always)]
    fn fma(self, a: Four, b: Four, c: Four) -> Four {
        self.add(self.mul(a, b), c)
    }

    #[inline(always)]
    fn max(self, a: Four, b: Four) -> Four {
        map(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, a: Four, b: Four) -> Four {
        map(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn round(self, a: Four) -> Four {
        // Adding 1.5 * 2^23 leaves no bit for a fraction; enough for |a| below 2^22.
        let shift = self.splat(12_582_912.0);
        self.sub(self.add(a, shift), shift)
    }

    #[inline(always)]
    fn scale_exp2(self, a: Four, n: Four) -> Four {
        map(a, n, |a, n| {
            if n < -126.0 { 0.0 } else { f32::from_bits(a.to_bits().wrapping_add((n as i32 as u32) << 23)) }
        })
    }

    #[inline(always)]
    fn less(self, a: Four, b: Four) -> [bool; 4] {
        compare(a, b, f32::lt)
    }

    #[inline(always)]
    fn less_equal(self, a: Four, b: Four) -> [bool; 4] {
        compare(a, b, f32::le)
    }

    #[inline(always)]
    fn both(self, a: [bool; 4], b: [bool; 4]) -> [bool; 4] {
        [a[0] & b[0], a[1] & b[1], a[2] & b[2], a[3] & b[3]]
    }

    #[inline(always)]
    fn lanes_from_bits(self, bits: u64) -> [bool; 4] {
        [bits & 1 != 0, bits & 2 != 0, bits & 4 != 0, bits & 8 != 0]
    }

    #[inline(always)]
    fn any(self, lanes: [bool; 4]) -> bool {
        lanes[0] | lanes[1] | lanes[2] | lanes[3]
    }

    #[inline(always)]
    fn select(self, lanes: [bool; 4], yes: Four, no: Four) -> Four {
        let pick = |i: usize| if lanes[i] { yes[i] } else { no[i] };
        [pick(0), pick(1), pick(2), pick(3)]
    }

    #[inline(always)]
    fn sum(self, a: Four) -> f32 {
        (a[0] + a[2]) + (a[1] + a[3])
    }

    #[inline(always)]
    fn largest(self, a: Four) -> f32 {
        let [two, _, other, _] = self.max(a, [a[1], a[1], a[3], a[3]]);
        if two > other { two } else { other }
    }

    #[inline(always)]
    fn block(self) -> [Four; 4] {
        [self.splat(0.0); 4]
    }

    #[inline(always)]
    fn transpose(self, block: &mut [Four; 4]) {
        let rows = *block;
        for (i, row) in block.iter_mut().enumerate() {
            *row = [rows[0][i], rows[1][i], rows[2][i], rows[3][i]];
        }
    }

    #[inline(always)]
    fn sums(self, block: &[Four; 4]) -> Four {
        let sum = |[a, b, c, d]: Four| (a + b) + (c + d);
        [sum(block[0]), sum(block[1]), sum(block[2]), sum(block[3])]
    }

    #[inline(always)]
    unsafe fn load(self, source: *const f32) -> Four {
        // SAFETY: the caller's duty.
        unsafe { source.cast::<Four>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn load_f16(self, source: *const f16) -> Four {
        // SAFETY: the caller's duty.
        unsafe { source.cast::<[f16; 4]>().read_unaligned() }.map(f16::to_f32)
    }

    #[inline(always)]
    unsafe fn load_bf16(self, source: *const bf16) -> Four {
        // SAFETY: the caller's duty.
        unsafe { source.cast::<[bf16; 4]>().read_unaligned() }.map(bf16::to_f32)
    }

    #[inline(always)]
    unsafe fn store(self, target: *mut f32, a: Four) {
        // SAFETY: the caller's duty.
        unsafe { target.cast::<Four>().write_unaligned(a) }
    }

    #[inline(always)]
    unsafe fn store_f16(self, target: *mut f16, a: Four) {
        // SAFETY: the caller's duty.
        unsafe { target.cast::<[f16; 4]>().write_unaligned(a.map(f16::from_f32)) }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, target: *mut bf16, a: Four) {
        // SAFETY: the caller's duty.
        unsafe { target.cast::<[bf16; 4]>().write_unaligned(a.map(bf16::from_f32)) }
    }

    #[inline(always)]
    fn prefetch(self, _address: *const u8) {
        // No portable instruction asks for a cache line; a hint may be left out.
    }

    #[inline(always)]
    fn prefetch_far(self, _address: *const u8) {
        // As above.
    }
}
