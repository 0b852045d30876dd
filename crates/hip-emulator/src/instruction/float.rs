//! Number formats and the float rules that several classes share.

use half::{bf16, f16};

/// `v_max_num`: the other operand if one is NaN.
#[inline(always)]
pub(crate) fn maximum_number(a: f32, b: f32) -> f32 {
    if a > b || b.is_nan() { a } else { b }
}

/// `v_min_num`: the other operand if one is NaN.
#[inline(always)]
pub(crate) fn minimum_number(a: f32, b: f32) -> f32 {
    if a < b || b.is_nan() { a } else { b }
}

/// `v_maximum`: NaN if one operand is NaN.
pub(crate) fn maximum(a: f32, b: f32) -> f32 {
    if a.is_nan() || b.is_nan() {
        f32::NAN
    } else if a > b {
        a
    } else {
        b
    }
}

/// `v_minimum`: NaN if one operand is NaN.
pub(crate) fn minimum(a: f32, b: f32) -> f32 {
    if a.is_nan() || b.is_nan() {
        f32::NAN
    } else if a < b {
        a
    } else {
        b
    }
}

/// The median; with a NaN, the smallest of the three.
pub(crate) fn median(a: f32, b: f32, c: f32) -> f32 {
    if a.is_nan() || b.is_nan() || c.is_nan() {
        return minimum_number(minimum_number(a, b), c);
    }
    a.max(b).min(a.min(b).max(c))
}

/// The transcendental unit takes and gives zero for a denormal.
#[inline(always)]
pub(crate) fn flush(value: f32) -> f32 {
    if value.abs() < f32::MIN_POSITIVE { value * 0.0 } else { value }
}

/// Rounds to f16 toward zero.
pub(crate) fn f16_toward_zero(value: f32) -> u16 {
    let nearest = f16::from_f32(value);
    if value.is_nan() || value.is_infinite() || nearest.to_f32().abs() <= value.abs() {
        return nearest.to_bits();
    }
    // The rounded magnitude is too large: one step toward zero, also back from infinity.
    nearest.to_bits() - 1
}

/// 2^x of a whole `x`, in f64 so that no intermediate overflows.
pub(crate) fn scale(value: f32, exponent: i32) -> f32 {
    // Two steps keep each factor normal; the product of powers of two is exact in f64, so it rounds once.
    let exponent = exponent.clamp(-600, 600);
    (f64::from(value) * f64::powi(2.0, exponent)) as f32
}

/// An 8-bit float format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Float8 {
    /// OCP e4m3: no infinity, NaN is 0x7f.
    E4m3,
    /// OCP e5m2: IEEE-like.
    E5m2,
    /// gfx942's e4m3: bias 8, NaN is 0x80.
    E4m3Fnuz,
    /// gfx942's e5m2: bias 16, NaN is 0x80.
    E5m2Fnuz,
}

impl Float8 {
    fn mantissa_bits(self) -> u32 {
        if matches!(self, Float8::E4m3 | Float8::E4m3Fnuz) { 3 } else { 2 }
    }

    fn bias(self) -> i32 {
        match self {
            Float8::E4m3 => 7,
            Float8::E5m2 => 15,
            Float8::E4m3Fnuz => 8,
            Float8::E5m2Fnuz => 16,
        }
    }

    fn largest(self) -> f32 {
        match self {
            Float8::E4m3 => 448.0,
            Float8::E4m3Fnuz => 240.0,
            Float8::E5m2 | Float8::E5m2Fnuz => 57344.0,
        }
    }

    pub(crate) fn decode(self, bits: u8) -> f32 {
        let mantissa_bits = self.mantissa_bits();
        let magnitude = u32::from(bits & 0x7f);
        let (exponent, mantissa) = (magnitude >> mantissa_bits, magnitude & ((1 << mantissa_bits) - 1));
        match self {
            Float8::E4m3Fnuz | Float8::E5m2Fnuz if bits == 0x80 => return f32::NAN,
            Float8::E4m3 if magnitude == 0x7f => return f32::NAN,
            Float8::E5m2 if magnitude == 0x7c => {
                return if bits >> 7 == 1 { f32::NEG_INFINITY } else { f32::INFINITY };
            }
            Float8::E5m2 if magnitude > 0x7c => return f32::NAN,
            _ => {}
        }
        let fraction = mantissa as f32 / (1 << mantissa_bits) as f32;
        let value = if exponent == 0 {
            fraction * f32::powi(2.0, 1 - self.bias())
        } else {
            (1.0 + fraction) * f32::powi(2.0, exponent as i32 - self.bias())
        };
        if bits >> 7 == 1 { -value } else { value }
    }

    /// Rounds to nearest even; what is too large saturates, as the conversions do by default.
    pub(crate) fn encode(self, value: f32) -> u8 {
        let is_fnuz = matches!(self, Float8::E4m3Fnuz | Float8::E5m2Fnuz);
        if value.is_nan() {
            return if is_fnuz { 0x80 } else { 0x7f };
        }
        let sign = if value.is_sign_negative() { 0x80 } else { 0 };
        if value.is_infinite() && self == Float8::E5m2 {
            return sign | 0x7c;
        }
        let magnitude = value.abs().min(self.largest());
        // All magnitudes are ordered like their codes: find the neighbours and take the nearer.
        let codes = 0..=0x7f_u8;
        let below = codes.clone().rev().find(|&code| self.decode(code) <= magnitude).unwrap_or(0);
        let above = below + 1;
        let nearest = if above > 0x7f || !self.decode(above).is_finite() {
            below
        } else {
            let (low, high) = (magnitude - self.decode(below), self.decode(above) - magnitude);
            if low < high || low == high && below & 1 == 0 { below } else { above }
        };
        if nearest == 0 && is_fnuz { 0 } else { sign | nearest }
    }
}

/// f16 from the low half of a word; in integer operations, so that compilers do several at a time.
#[inline(always)]
pub(crate) fn f16_bits(bits: u32) -> f32 {
    /// 2 to the power of the difference of the biases, by which subnormals come out normal.
    const REBIAS: f32 = f32::from_bits((127 + 112) << 23);
    const INFINITE: u32 = 0x7c00 << 13;
    let magnitude = (bits & 0x7fff) << 13;
    let finite = (f32::from_bits(magnitude) * REBIAS).to_bits();
    let value = if magnitude < INFINITE { finite } else { magnitude | 0x7f80_0000 };
    f32::from_bits(value | (bits & 0x8000) << 16)
}

/// bf16 from the low half of a word.
#[inline(always)]
pub(crate) fn bf16_bits(bits: u32) -> f32 {
    f32::from_bits(bits << 16)
}

/// Rounds to bf16, to nearest even.
pub(crate) fn to_bf16(value: f32) -> u32 {
    u32::from(bf16::from_f32(value).to_bits())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_has_the_value_that_it_has_elsewhere() {
        for bits in 0..=u16::MAX {
            let (found, expected) = (f16_bits(0xabcd_0000 | u32::from(bits)), half::f16::from_bits(bits));
            let is_same = found.to_bits() == expected.to_f32().to_bits();
            assert!(is_same || found.is_nan() && expected.is_nan(), "{bits:#x}: {found}");
        }
    }

    #[test]
    fn e4m3_follows_the_ocp_table() {
        assert_eq!(Float8::E4m3.decode(0x38), 1.0);
        assert_eq!(Float8::E4m3.decode(0x7e), 448.0);
        assert_eq!(Float8::E4m3.decode(0x01), 1.0 / 512.0);
        assert!(Float8::E4m3.decode(0x7f).is_nan());
        assert_eq!(Float8::E5m2.decode(0x3c), 1.0);
        assert_eq!(Float8::E5m2.decode(0xfc), f32::NEG_INFINITY);
    }

    #[test]
    fn fnuz_has_one_more_bias_and_one_nan() {
        assert_eq!(Float8::E4m3Fnuz.decode(0x40), 1.0);
        assert_eq!(Float8::E4m3Fnuz.decode(0x7f), 240.0);
        assert!(Float8::E4m3Fnuz.decode(0x80).is_nan());
        assert_eq!(Float8::E5m2Fnuz.decode(0x40), 1.0);
    }

    #[test]
    fn every_finite_code_survives_a_round_trip() {
        for format in [Float8::E4m3, Float8::E5m2, Float8::E4m3Fnuz, Float8::E5m2Fnuz] {
            for code in 0..=255u8 {
                let value = format.decode(code);
                if value.is_finite() {
                    assert_eq!(format.encode(value), code, "{format:?} {code:#x}");
                }
            }
        }
        // Halfway between 1.0 and 1.125 goes to the even code.
        assert_eq!(Float8::E4m3.encode(1.0625), 0x38);
        assert_eq!(Float8::E4m3.encode(1e9), 0x7e);
    }

    #[test]
    fn rounding_toward_zero_never_grows() {
        assert_eq!(f16_toward_zero(1.0 + 1.9 / 1024.0), 0x3c01);
        assert_eq!(f16_toward_zero(70000.0), 0x7bff);
        assert_eq!(f16_toward_zero(-1.9995), 0xbfff);
    }

    #[test]
    fn number_maxima_ignore_nan_and_the_others_keep_it() {
        assert_eq!(maximum_number(f32::NAN, 2.0), 2.0);
        assert_eq!(minimum_number(2.0, f32::NAN), 2.0);
        assert!(maximum(f32::NAN, 2.0).is_nan());
        assert_eq!(median(3.0, 1.0, 2.0), 2.0);
    }
}
