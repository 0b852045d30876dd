//! Functions over all lanes of a vector register, compiled twice: for any CPU and for one with AVX2 and FMA.

use half::f16;

use super::operand::Kind;
use crate::wave::Lanes;

/// The lanes of a wave32, or half of a wave64.
pub(crate) const HALF: usize = 32;

type Portable = fn(&[u32; HALF], &[u32; HALF], &[u32; HALF], &mut [u32; HALF]);
type Fast = unsafe fn(&[u32; HALF], &[u32; HALF], &[u32; HALF], &mut [u32; HALF]);

/// A function of up to three vector registers.
#[derive(Clone, Copy)]
pub(crate) struct LaneFunction {
    chosen: Fast,
}

impl LaneFunction {
    /// # Safety
    /// `fast` may require the target features avx2, fma and f16c and nothing else.
    pub(crate) unsafe fn new(portable: Portable, fast: Fast) -> LaneFunction {
        LaneFunction { chosen: if has_fast_vectors() { fast } else { portable } }
    }

    /// Computes the lanes that a wave of `size` lanes has.
    #[inline(always)]
    pub(crate) fn call(self, size: usize, a: &Lanes, b: &Lanes, c: &Lanes, result: &mut Lanes) {
        let (sources, result) = ([a, b, c].map(|lanes| lanes.as_chunks().0), result.as_chunks_mut().0);
        for half in 0..size / HALF {
            let [a, b, c] = sources.map(|halves| &halves[half]);
            // SAFETY: `new` chose a function whose target features this CPU has.
            unsafe { (self.chosen)(a, b, c, &mut result[half]) }
        }
    }
}

/// Whether this CPU runs the faster copy of each function.
pub(crate) fn has_fast_vectors() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("avx2")
            && std::arch::is_x86_feature_detected!("fma")
            && std::arch::is_x86_feature_detected!("f16c")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// A type that a lane's 32 bits can hold.
pub(crate) trait Word: Copy {
    const KIND: Kind;
    fn from_word(word: u32) -> Self;
    fn into_word(self) -> u32;
}

impl Word for u32 {
    const KIND: Kind = Kind::B32;
    #[inline(always)]
    fn from_word(word: u32) -> u32 {
        word
    }
    #[inline(always)]
    fn into_word(self) -> u32 {
        self
    }
}

impl Word for i32 {
    const KIND: Kind = Kind::B32;
    #[inline(always)]
    fn from_word(word: u32) -> i32 {
        word as i32
    }
    #[inline(always)]
    fn into_word(self) -> u32 {
        self as u32
    }
}

impl Word for f32 {
    const KIND: Kind = Kind::F32;
    #[inline(always)]
    fn from_word(word: u32) -> f32 {
        f32::from_bits(word)
    }
    #[inline(always)]
    fn into_word(self) -> u32 {
        self.to_bits()
    }
}

impl Word for u16 {
    const KIND: Kind = Kind::B16;
    #[inline(always)]
    fn from_word(word: u32) -> u16 {
        word as u16
    }
    #[inline(always)]
    fn into_word(self) -> u32 {
        u32::from(self)
    }
}

impl Word for i16 {
    const KIND: Kind = Kind::B16;
    #[inline(always)]
    fn from_word(word: u32) -> i16 {
        word as i16
    }
    #[inline(always)]
    fn into_word(self) -> u32 {
        u32::from(self as u16)
    }
}

impl Word for f16 {
    const KIND: Kind = Kind::F16;
    #[inline(always)]
    fn from_word(word: u32) -> f16 {
        f16::from_bits(word as u16)
    }
    #[inline(always)]
    fn into_word(self) -> u32 {
        u32::from(self.to_bits())
    }
}

/// What a lane-wise operation computes and how it reads its operands.
#[derive(Clone, Copy)]
pub(crate) struct LaneOperation {
    pub(crate) function: LaneFunction,
    pub(crate) sources: &'static [Kind],
    pub(crate) destination: Kind,
}

/// Builds a [`LaneOperation`] from a closure over one to three typed values.
macro_rules! lanes {
    (|$a:ident: $ta:ty| -> $r:ty $body:block) => {
        lanes!(@build [$ta], $r, |x: u32, _y: u32, _z: u32| -> u32 {
            let $a = <$ta as $crate::instruction::lane_function::Word>::from_word(x);
            let result: $r = $body;
            $crate::instruction::lane_function::Word::into_word(result)
        })
    };
    (|$a:ident: $ta:ty, $b:ident: $tb:ty| -> $r:ty $body:block) => {
        lanes!(@build [$ta, $tb], $r, |x: u32, y: u32, _z: u32| -> u32 {
            let $a = <$ta as $crate::instruction::lane_function::Word>::from_word(x);
            let $b = <$tb as $crate::instruction::lane_function::Word>::from_word(y);
            let result: $r = $body;
            $crate::instruction::lane_function::Word::into_word(result)
        })
    };
    (|$a:ident: $ta:ty, $b:ident: $tb:ty, $c:ident: $tc:ty| -> $r:ty $body:block) => {
        lanes!(@build [$ta, $tb, $tc], $r, |x: u32, y: u32, z: u32| -> u32 {
            let $a = <$ta as $crate::instruction::lane_function::Word>::from_word(x);
            let $b = <$tb as $crate::instruction::lane_function::Word>::from_word(y);
            let $c = <$tc as $crate::instruction::lane_function::Word>::from_word(z);
            let result: $r = $body;
            $crate::instruction::lane_function::Word::into_word(result)
        })
    };
    (@build [$($t:ty),+], $r:ty, $each:expr) => {{
        type Half = [u32; $crate::instruction::lane_function::HALF];
        #[inline(always)]
        fn every(a: &Half, b: &Half, c: &Half, result: &mut Half) {
            let each = $each;
            for lane in 0..$crate::instruction::lane_function::HALF {
                result[lane] = each(a[lane], b[lane], c[lane]);
            }
        }
        fn portable(a: &Half, b: &Half, c: &Half, result: &mut Half) {
            every(a, b, c, result);
        }
        #[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma,f16c"))]
        fn fast(a: &Half, b: &Half, c: &Half, result: &mut Half) {
            every(a, b, c, result);
        }
        // SAFETY: `fast` enables exactly the features that `new` allows.
        let function = unsafe { $crate::instruction::lane_function::LaneFunction::new(portable, fast) };
        $crate::instruction::lane_function::LaneOperation {
            function,
            sources: const { &[$(<$t as $crate::instruction::lane_function::Word>::KIND),+] },
            destination: <$r as $crate::instruction::lane_function::Word>::KIND,
        }
    }};
}
pub(crate) use lanes;
