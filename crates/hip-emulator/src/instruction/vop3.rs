//! VOP3: vector operations of three sources.

use half::f16;

use super::float::{self, Float8, maximum, maximum_number, median, minimum, minimum_number};
use super::lane_function::lanes;
use super::operand::Kind;
use super::vector::{Function, VectorOperation};
use crate::target::Target;

/// The operation of a mnemonic without its `v_`.
pub(crate) fn lookup(name: &str, target: Target) -> Option<VectorOperation> {
    integer(name)
        .or_else(|| short(name))
        .or_else(|| single(name))
        .or_else(|| half_precision(name))
        .or_else(|| packing(name, target))
        .or_else(|| wide(name))
        .or_else(|| division(name))
}

fn integer(name: &str) -> Option<VectorOperation> {
    let operation = match name {
        "add3_u32" => lanes!(|a: u32, b: u32, c: u32| -> u32 { a.wrapping_add(b).wrapping_add(c) }),
        "lshl_add_u32" => lanes!(|a: u32, b: u32, c: u32| -> u32 { (a << (b & 31)).wrapping_add(c) }),
        "add_lshl_u32" => lanes!(|a: u32, b: u32, c: u32| -> u32 { a.wrapping_add(b) << (c & 31) }),
        "lshl_or_b32" => lanes!(|a: u32, b: u32, c: u32| -> u32 { a << (b & 31) | c }),
        "and_or_b32" => lanes!(|a: u32, b: u32, c: u32| -> u32 { a & b | c }),
        "or3_b32" => lanes!(|a: u32, b: u32, c: u32| -> u32 { a | b | c }),
        "xor3_b32" => lanes!(|a: u32, b: u32, c: u32| -> u32 { a ^ b ^ c }),
        "xad_u32" => lanes!(|a: u32, b: u32, c: u32| -> u32 { (a ^ b).wrapping_add(c) }),
        "mad_u32_u24" => lanes!(|a: u32, b: u32, c: u32| -> u32 {
            (a & 0xff_ffff).wrapping_mul(b & 0xff_ffff).wrapping_add(c)
        }),
        "mad_i32_i24" => lanes!(|a: i32, b: i32, c: i32| -> i32 {
            (a << 8 >> 8).wrapping_mul(b << 8 >> 8).wrapping_add(c)
        }),
        "bfe_u32" => lanes!(|a: u32, b: u32, c: u32| -> u32 { (a >> (b & 31)) & ((1u32 << (c & 31)) - 1) }),
        "bfe_i32" => lanes!(|a: u32, b: u32, c: u32| -> i32 {
            let width = c & 31;
            let field = (a >> (b & 31)) & ((1u32 << width) - 1);
            if width == 0 { 0 } else { (field << (32 - width)) as i32 >> (32 - width) }
        }),
        "bfi_b32" => lanes!(|a: u32, b: u32, c: u32| -> u32 { a & b | !a & c }),
        "alignbit_b32" => lanes!(|a: u32, b: u32, c: u32| -> u32 {
            ((u64::from(a) << 32 | u64::from(b)) >> (c & 31)) as u32
        }),
        "alignbyte_b32" => lanes!(|a: u32, b: u32, c: u32| -> u32 {
            ((u64::from(a) << 32 | u64::from(b)) >> (8 * (c & 3))) as u32
        }),
        "perm_b32" => lanes!(|a: u32, b: u32, c: u32| -> u32 { permute_bytes(a, b, c) }),
        "min3_u32" => lanes!(|a: u32, b: u32, c: u32| -> u32 { a.min(b).min(c) }),
        "max3_u32" => lanes!(|a: u32, b: u32, c: u32| -> u32 { a.max(b).max(c) }),
        "med3_u32" => lanes!(|a: u32, b: u32, c: u32| -> u32 { a.max(b).min(a.min(b).max(c)) }),
        "min3_i32" => lanes!(|a: i32, b: i32, c: i32| -> i32 { a.min(b).min(c) }),
        "max3_i32" => lanes!(|a: i32, b: i32, c: i32| -> i32 { a.max(b).max(c) }),
        "med3_i32" => lanes!(|a: i32, b: i32, c: i32| -> i32 { a.max(b).min(a.min(b).max(c)) }),
        "maxmin_u32" => lanes!(|a: u32, b: u32, c: u32| -> u32 { a.max(b).min(c) }),
        "minmax_u32" => lanes!(|a: u32, b: u32, c: u32| -> u32 { a.min(b).max(c) }),
        "maxmin_i32" => lanes!(|a: i32, b: i32, c: i32| -> i32 { a.max(b).min(c) }),
        "minmax_i32" => lanes!(|a: i32, b: i32, c: i32| -> i32 { a.min(b).max(c) }),
        "sad_u32" => lanes!(|a: u32, b: u32, c: u32| -> u32 { a.abs_diff(b).wrapping_add(c) }),
        _ => return None,
    };
    Some(operation.into())
}

/// `v_perm_b32`: each selector byte picks a byte of `a:b`, a sign, zero or 0xff.
fn permute_bytes(a: u32, b: u32, selectors: u32) -> u32 {
    let data = u64::from(a) << 32 | u64::from(b);
    let pick = |selector: u32| -> u32 {
        match selector {
            0..=7 => (data >> (8 * selector)) as u32 & 0xff,
            // The sign of one of the four halves.
            8..=11 => 0xff * ((data >> (16 * (selector - 8) + 15)) as u32 & 1),
            12 => 0,
            _ => 0xff,
        }
    };
    (0..4).fold(0, |word, byte| word | pick(selectors >> (8 * byte) & 0xff) << (8 * byte))
}

fn short(name: &str) -> Option<VectorOperation> {
    let operation = match name {
        "mad_u16" => lanes!(|a: u16, b: u16, c: u16| -> u16 { a.wrapping_mul(b).wrapping_add(c) }),
        "mad_i16" => lanes!(|a: u16, b: u16, c: u16| -> u16 { a.wrapping_mul(b).wrapping_add(c) }),
        "mad_u32_u16" => {
            lanes!(|a: u16, b: u16, c: u32| -> u32 { (u32::from(a) * u32::from(b)).wrapping_add(c) })
        }
        "mad_i32_i16" => {
            lanes!(|a: i16, b: i16, c: i32| -> i32 { (i32::from(a) * i32::from(b)).wrapping_add(c) })
        }
        "max3_i16" => lanes!(|a: i16, b: i16, c: i16| -> i16 { a.max(b).max(c) }),
        "min3_i16" => lanes!(|a: i16, b: i16, c: i16| -> i16 { a.min(b).min(c) }),
        "max3_u16" => lanes!(|a: u16, b: u16, c: u16| -> u16 { a.max(b).max(c) }),
        "min3_u16" => lanes!(|a: u16, b: u16, c: u16| -> u16 { a.min(b).min(c) }),
        _ => return None,
    };
    Some(operation.into())
}

fn single(name: &str) -> Option<VectorOperation> {
    let operation = match name {
        "fma_f32" | "mad_f32" => lanes!(|a: f32, b: f32, c: f32| -> f32 { a.mul_add(b, c) }),
        "max3_f32" | "max3_num_f32" => {
            lanes!(|a: f32, b: f32, c: f32| -> f32 { maximum_number(maximum_number(a, b), c) })
        }
        "min3_f32" | "min3_num_f32" => {
            lanes!(|a: f32, b: f32, c: f32| -> f32 { minimum_number(minimum_number(a, b), c) })
        }
        "med3_f32" | "med3_num_f32" => lanes!(|a: f32, b: f32, c: f32| -> f32 { median(a, b, c) }),
        "maxmin_f32" | "maxmin_num_f32" => {
            lanes!(|a: f32, b: f32, c: f32| -> f32 { minimum_number(maximum_number(a, b), c) })
        }
        "minmax_f32" | "minmax_num_f32" => {
            lanes!(|a: f32, b: f32, c: f32| -> f32 { maximum_number(minimum_number(a, b), c) })
        }
        "maximum_f32" => lanes!(|a: f32, b: f32| -> f32 { maximum(a, b) }),
        "minimum_f32" => lanes!(|a: f32, b: f32| -> f32 { minimum(a, b) }),
        "maximum3_f32" => lanes!(|a: f32, b: f32, c: f32| -> f32 { maximum(maximum(a, b), c) }),
        "minimum3_f32" => lanes!(|a: f32, b: f32, c: f32| -> f32 { minimum(minimum(a, b), c) }),
        _ => return None,
    };
    Some(operation.into())
}

/// A product and a sum with one rounding: both are exact in f64 before it.
pub(crate) fn fma_f16(a: f16, b: f16, c: f16) -> f16 {
    f16::from_f64(a.to_f64().mul_add(b.to_f64(), c.to_f64()))
}

fn half_precision(name: &str) -> Option<VectorOperation> {
    fn of(value: f32) -> f16 {
        f16::from_f32(value)
    }
    let operation = match name {
        "fma_f16" => lanes!(|a: f16, b: f16, c: f16| -> f16 { fma_f16(a, b, c) }),
        "max3_f16" | "max3_num_f16" => lanes!(|a: f16, b: f16, c: f16| -> f16 {
            of(maximum_number(maximum_number(a.to_f32(), b.to_f32()), c.to_f32()))
        }),
        "min3_f16" | "min3_num_f16" => lanes!(|a: f16, b: f16, c: f16| -> f16 {
            of(minimum_number(minimum_number(a.to_f32(), b.to_f32()), c.to_f32()))
        }),
        "med3_f16" | "med3_num_f16" => {
            lanes!(|a: f16, b: f16, c: f16| -> f16 { of(median(a.to_f32(), b.to_f32(), c.to_f32())) })
        }
        "maximum_f16" => lanes!(|a: f16, b: f16| -> f16 { of(maximum(a.to_f32(), b.to_f32())) }),
        "minimum_f16" => lanes!(|a: f16, b: f16| -> f16 { of(minimum(a.to_f32(), b.to_f32())) }),
        _ => return None,
    };
    Some(operation.into())
}

fn packing(name: &str, target: Target) -> Option<VectorOperation> {
    let is_fnuz = target == Target::Gfx942;
    let operation = match name {
        "pack_b32_f16" => {
            lanes!(|a: f16, b: f16| -> u32 { u32::from(a.to_bits()) | u32::from(b.to_bits()) << 16 })
        }
        "cvt_pk_bf16_f32" => lanes!(|a: f32, b: f32| -> u32 { float::to_bf16(a) | float::to_bf16(b) << 16 }),
        "cvt_pk_f16_f32" => lanes!(|a: f32, b: f32| -> u32 {
            u32::from(f16::from_f32(a).to_bits()) | u32::from(f16::from_f32(b).to_bits()) << 16
        }),
        "cvt_pk_u16_u32" => lanes!(|a: u32, b: u32| -> u32 { a.min(0xffff) | b.min(0xffff) << 16 }),
        "cvt_pk_i16_i32" => lanes!(|a: i32, b: i32| -> u32 {
            let part = |x: i32| x.clamp(-0x8000, 0x7fff) as u32 & 0xffff;
            part(a) | part(b) << 16
        }),
        "cvt_pknorm_i16_f32" | "cvt_pk_norm_i16_f32" => lanes!(|a: f32, b: f32| -> u32 {
            let part = |x: f32| (x.clamp(-1.0, 1.0) * 32767.0).round_ties_even() as i32 as u32 & 0xffff;
            part(a) | part(b) << 16
        }),
        "cvt_pk_fp8_f32" if is_fnuz => {
            lanes!(|a: f32, b: f32| -> u16 { encode_pair(Float8::E4m3Fnuz, a, b) })
        }
        "cvt_pk_fp8_f32" => lanes!(|a: f32, b: f32| -> u16 { encode_pair(Float8::E4m3, a, b) }),
        "cvt_pk_bf8_f32" if is_fnuz => {
            lanes!(|a: f32, b: f32| -> u16 { encode_pair(Float8::E5m2Fnuz, a, b) })
        }
        "cvt_pk_bf8_f32" => lanes!(|a: f32, b: f32| -> u16 { encode_pair(Float8::E5m2, a, b) }),
        _ => return None,
    };
    Some(operation.into())
}

fn encode_pair(format: Float8, a: f32, b: f32) -> u16 {
    u16::from(format.encode(a)) | u16::from(format.encode(b)) << 8
}

fn wide(name: &str) -> Option<VectorOperation> {
    const MAD: &[Kind] = &[Kind::B32, Kind::B32, Kind::B64];
    let mad = |function| VectorOperation {
        function: Function::WideCarry(function),
        sources: MAD,
        destination: Kind::B64,
        accumulates: false,
    };
    Some(match name {
        "lshl_add_u64" => {
            let sources: &'static [Kind] = &[Kind::B64, Kind::B32, Kind::B64];
            VectorOperation::wide(Kind::B64, sources, |a, b, c| (a << (b & 63)).wrapping_add(c))
        }
        "add_nc_u64" | "add_u64" => {
            VectorOperation::wide(Kind::B64, &[Kind::B64, Kind::B64], |a, b, _| a.wrapping_add(b))
        }
        "mad_u64_u32" | "mad_co_u64_u32" => mad(|a, b, c| (a * b).overflowing_add(c)),
        "mad_i64_i32" | "mad_co_i64_i32" => mad(|a, b, c| {
            let product = i64::from(a as i32) * i64::from(b as i32);
            let (sum, overflow) = product.overflowing_add(c as i64);
            (sum as u64, overflow)
        }),
        "fma_f64" => {
            let sources: &'static [Kind] = &[Kind::F64, Kind::F64, Kind::F64];
            let function =
                |a, b, c| f64::from_bits(a).mul_add(f64::from_bits(b), f64::from_bits(c)).to_bits();
            VectorOperation::wide(Kind::F64, sources, function)
        }
        _ => return None,
    })
}

/// The three steps of an IEEE division; each operand is `(quotient, denominator, numerator)` where it applies.
fn division(name: &str) -> Option<VectorOperation> {
    const SINGLE: &[Kind] = &[Kind::F32, Kind::F32, Kind::F32];
    const DOUBLE: &[Kind] = &[Kind::F64, Kind::F64, Kind::F64];
    Some(match name {
        "div_scale_f32" => VectorOperation {
            function: Function::WideCarry(|a, b, c| {
                let (value, scaled) = divide_scale(a as u32, b as u32, c as u32);
                (u64::from(value), scaled)
            }),
            sources: SINGLE,
            destination: Kind::F32,
            accumulates: false,
        },
        "div_fmas_f32" => VectorOperation {
            function: Function::WordsWithVcc(divide_fma),
            sources: SINGLE,
            destination: Kind::F32,
            accumulates: false,
        },
        "div_fixup_f32" => lanes!(|quotient: f32, denominator: f32, numerator: f32| -> f32 {
            divide_fixup(quotient, denominator, numerator)
        })
        .into(),
        "div_scale_f64" => VectorOperation {
            // No kernel divides doubles near the ends of their range: nothing is scaled.
            function: Function::WideCarry(|a, _, _| (a, false)),
            sources: DOUBLE,
            destination: Kind::F64,
            accumulates: false,
        },
        "div_fmas_f64" => VectorOperation {
            function: Function::WideWithVcc(|a, b, c, _| {
                f64::from_bits(a).mul_add(f64::from_bits(b), f64::from_bits(c)).to_bits()
            }),
            sources: DOUBLE,
            destination: Kind::F64,
            accumulates: false,
        },
        "div_fixup_f64" => VectorOperation::wide(Kind::F64, DOUBLE, |_, denominator, numerator| {
            (f64::from_bits(numerator) / f64::from_bits(denominator)).to_bits()
        }),
        _ => return None,
    })
}

fn exponent(value: f32) -> i32 {
    (value.to_bits() >> 23 & 0xff) as i32
}

/// Brings a numerator or denominator into the range where the Newton steps neither overflow nor lose bits.
fn divide_scale(value: u32, denominator: u32, numerator: u32) -> (u32, bool) {
    let (d, n) = (f32::from_bits(denominator), f32::from_bits(numerator));
    let is_denormal = |x: f32| x != 0.0 && x.abs() < f32::MIN_POSITIVE;
    let scaled = |by: i32| float::scale(f32::from_bits(value), by).to_bits();
    let reciprocal_is_denormal = is_denormal(1.0 / d);
    if n == 0.0 || d == 0.0 {
        (f32::NAN.to_bits(), false)
    } else if exponent(n) - exponent(d) >= 96 {
        (if value == denominator { scaled(64) } else { value }, true)
    } else if is_denormal(d) {
        (scaled(64), false)
    } else if reciprocal_is_denormal && is_denormal(n / d) {
        (if value == denominator { scaled(64) } else { value }, true)
    } else if reciprocal_is_denormal {
        (scaled(-64), false)
    } else if is_denormal(n / d) {
        (if value == numerator { scaled(64) } else { value }, true)
    } else if exponent(n) <= 23 {
        (scaled(64), false)
    } else {
        (value, false)
    }
}

/// The last Newton step, undoing the scale.
fn divide_fma(a: u32, b: u32, c: u32, is_scaled: bool) -> u32 {
    let result = f32::from_bits(a).mul_add(f32::from_bits(b), f32::from_bits(c));
    let by = if exponent(f32::from_bits(c)) > 127 { 64 } else { -64 };
    if is_scaled { float::scale(result, by).to_bits() } else { result.to_bits() }
}

fn divide_fixup(quotient: f32, denominator: f32, numerator: f32) -> f32 {
    if numerator.is_nan() || denominator.is_nan() {
        return f32::NAN;
    }
    let sign = if numerator.is_sign_negative() != denominator.is_sign_negative() { -1.0 } else { 1.0f32 };
    if denominator == 0.0 && numerator == 0.0 || denominator.is_infinite() && numerator.is_infinite() {
        f32::NAN
    } else if denominator == 0.0 || numerator.is_infinite() {
        f32::INFINITY.copysign(sign)
    } else if denominator.is_infinite()
        || numerator == 0.0
        || exponent(numerator) - exponent(denominator) < -150
    {
        0.0f32.copysign(sign)
    } else if exponent(denominator) == 255 {
        f32::INFINITY.copysign(sign)
    } else {
        quotient.abs().copysign(sign)
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_support::{Lab, run_vector, run_vector_f32};
    use super::*;

    #[test]
    fn integer_combinations_follow_the_manual() {
        assert_eq!(run_vector("v_add3_u32 v0, v1, v2, v3", &[1, 2, 3]), 6);
        assert_eq!(run_vector("v_lshl_add_u32 v0, v1, 4, v2", &[3, 1]), 49);
        assert_eq!(run_vector("v_and_or_b32 v0, v1, v2, v3", &[0xff, 0x0f, 0xf00]), 0xf0f);
        assert_eq!(run_vector("v_bfe_u32 v0, v1, 16, 1", &[0x0001_0000]), 1);
        assert_eq!(run_vector("v_bfe_i32 v0, v1, 4, 8", &[0xff0]), u32::MAX);
        assert_eq!(run_vector("v_bfi_b32 v0, v1, v2, v3", &[0xff00, 0x1234, 0x5678]), 0x1278);
        assert_eq!(run_vector("v_alignbit_b32 v0, v1, v2, 8", &[0x11, 0x2233_4455]), 0x1122_3344);
        assert_eq!(run_vector("v_med3_i32 v0, v1, v2, v3", &[7, u32::MAX, 3]), 3);
        assert_eq!(run_vector("v_mad_u32_u24 v0, v1, v2, v3", &[3, 4, 5]), 17);
    }

    #[test]
    fn bytes_are_picked_from_both_words() {
        // Selector bytes 7..4 are the first source, 3..0 the second.
        assert_eq!(
            run_vector("v_perm_b32 v0, v1, v2, v3", &[0x1122_3344, 0x5566_7788, 0x0706_0302]),
            0x1122_5566
        );
        assert_eq!(run_vector("v_perm_b32 v0, v1, v2, v3", &[0, 0x0000_8000, 0x0c0d_0800]), 0x00ff_ff00);
    }

    #[test]
    fn maxima_of_three_and_the_median() {
        assert_eq!(run_vector_f32("v_max3_f32 v0, v1, v2, v3", &[1.0, f32::NAN, 3.0]), 3.0);
        assert_eq!(run_vector_f32("v_min3_f32 v0, v1, v2, -v3", &[1.0, 2.0, 3.0]), -3.0);
        assert_eq!(run_vector_f32("v_med3_f32 v0, v1, v2, v3", &[5.0, 1.0, 3.0]), 3.0);
    }

    #[test]
    fn bf16_packing_rounds_to_even() {
        let mut lab = Lab::new(Target::Gfx950);
        // 1 + 2^-8 lies halfway between two bf16 values; the even one is 1.0.
        lab.vector(1, |_| (1.0f32 + 1.0 / 256.0).to_bits()).vector(2, |_| (1.0f32 + 3.0 / 256.0).to_bits());
        lab.run("v_cvt_pk_bf16_f32 v0, v1, v2").unwrap();
        assert_eq!(lab.lane(0, 0), 0x3f82_3f80);
    }

    #[test]
    fn a_full_multiply_add_gives_sixty_four_bits() {
        let mut lab = Lab::new(Target::Gfx942);
        lab.vector(2, |_| u32::MAX).vector(3, |_| 2).vector(4, |_| 3).vector(5, |_| 1);
        lab.run("v_mad_u64_u32 v[0:1], s[0:1], v2, v3, v[4:5]").unwrap();
        // 0xffffffff * 2 + 0x1_00000003 = 0x3_00000001.
        assert_eq!((lab.lane(0, 0), lab.lane(1, 0)), (1, 3));
        lab.run("v_lshl_add_u64 v[0:1], v[4:5], 2, v[4:5]").unwrap();
        assert_eq!((lab.lane(0, 0), lab.lane(1, 0)), (15, 5));
    }

    #[test]
    fn a_truth_table_is_applied_to_halves() {
        let mut lab = Lab::new(Target::Gfx950);
        lab.vector(1, |_| 0xff0f).vector(2, |_| 0x1234).vector(3, |_| 0x00ff);
        // 0xc8 is (a | c) & b.
        lab.run("v_bitop3_b16 v0, v1, v2, v3 bitop3:0xc8").unwrap();
        assert_eq!(lab.lane(0, 0) & 0xffff, (0xff0f | 0x00ff) & 0x1234);
    }

    #[test]
    fn the_low_word_of_a_full_multiply_add_needs_no_high_word() {
        let mut lab = Lab::new(Target::Gfx90a);
        lab.vector(2, |_| 2).vector(3, |_| 3).vector(4, |_| 4);
        lab.run("v_mad_u64_u32 v[0:1], s[0:1], v2, v3, v[4:5]").unwrap();
        assert_eq!((lab.wave.vector_written[0], lab.wave.vector_written[1]), (u64::MAX, 0));
        lab.run("v_mad_u64_u32 v[6:7], s[0:1], v5, v3, v[2:3]").unwrap();
        assert_eq!(lab.wave.vector_written[6], 0);
    }

    #[test]
    fn the_division_sequence_divides() {
        // The sequence clang emits for a / b, with the manual's steps written out.
        for (a, b) in [
            (1.0f32, 3.0f32),
            (-7.5, 0.1),
            (1e38, 1e-3),
            (3e-39, 5.0),
            (2.0, 1e-40),
            (0.0, 2.0),
            (1e-38, 1e38),
        ] {
            let (numerator, _) = divide_scale(a.to_bits(), b.to_bits(), a.to_bits());
            let (denominator, _) = divide_scale(b.to_bits(), b.to_bits(), a.to_bits());
            let (_, is_scaled) = divide_scale(a.to_bits(), b.to_bits(), a.to_bits());
            let (n, d) = (f32::from_bits(numerator), f32::from_bits(denominator));
            let r = 1.0 / d;
            let r = (-d).mul_add(r, 1.0).mul_add(r, r);
            let q = n * r;
            let q = (-d).mul_add(q, n).mul_add(r, q);
            let error = (-d).mul_add(q, n);
            let q = f32::from_bits(divide_fma(error.to_bits(), r.to_bits(), q.to_bits(), is_scaled));
            let result = divide_fixup(q, b, a);
            let exact = a / b;
            let tolerance = exact.abs() * 1.2e-7 + 1.5e-45;
            assert!(result == exact || (result - exact).abs() <= tolerance, "{a} / {b}: {result} {exact}");
        }
        assert_eq!(divide_fixup(1.0, 0.0, -2.0), f32::NEG_INFINITY);
        assert!(divide_fixup(1.0, 0.0, 0.0).is_nan());
    }
}
