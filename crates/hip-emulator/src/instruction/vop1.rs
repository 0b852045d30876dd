//! VOP1: vector operations of one source.

use half::f16;

use super::float::{self, Float8, flush};
use super::lane_function::lanes;
use super::operand::Kind;
use super::vector::VectorOperation;
use crate::target::Target;

/// The operation of a mnemonic without its `v_`.
pub(crate) fn lookup(name: &str, target: Target) -> Option<VectorOperation> {
    integer(name)
        .or_else(|| single(name))
        .or_else(|| half_precision(name))
        .or_else(|| double(name))
        .or_else(|| conversion(name))
        .or_else(|| float8(name, target))
}

fn integer(name: &str) -> Option<VectorOperation> {
    let operation = match name {
        "mov_b32" | "accvgpr_read_b32" | "accvgpr_write_b32" | "accvgpr_mov_b32" => {
            lanes!(|a: u32| -> u32 { a })
        }
        "mov_b16" => lanes!(|a: u16| -> u16 { a }),
        "not_b32" => lanes!(|a: u32| -> u32 { !a }),
        "not_b16" => lanes!(|a: u16| -> u16 { !a }),
        "bfrev_b32" => lanes!(|a: u32| -> u32 { a.reverse_bits() }),
        "ffbh_u32" | "clz_i32_u32" => {
            lanes!(|a: u32| -> u32 { if a == 0 { u32::MAX } else { a.leading_zeros() } })
        }
        "ffbl_b32" | "ctz_i32_b32" => {
            lanes!(|a: u32| -> u32 { if a == 0 { u32::MAX } else { a.trailing_zeros() } })
        }
        "ffbh_i32" | "cls_i32" => lanes!(|a: i32| -> u32 {
            if a == 0 || a == -1 { u32::MAX } else { (a ^ (a >> 31)).leading_zeros() }
        }),
        "cvt_i32_i16" => lanes!(|a: i16| -> i32 { i32::from(a) }),
        "cvt_u32_u16" => lanes!(|a: u16| -> u32 { u32::from(a) }),
        "sat_pk_u8_i16" => lanes!(|a: u32| -> u16 {
            let part = |x: i16| x.clamp(0, 255) as u16;
            part(a as i16) | part((a >> 16) as i16) << 8
        }),
        "mov_b64" => return Some(VectorOperation::wide(Kind::B64, &[Kind::B64], |a, _, _| a)),
        _ => return None,
    };
    Some(operation.into())
}

fn single(name: &str) -> Option<VectorOperation> {
    let operation = match name {
        "floor_f32" => lanes!(|a: f32| -> f32 { a.floor() }),
        "ceil_f32" => lanes!(|a: f32| -> f32 { a.ceil() }),
        "trunc_f32" => lanes!(|a: f32| -> f32 { a.trunc() }),
        "rndne_f32" => lanes!(|a: f32| -> f32 { a.round_ties_even() }),
        "fract_f32" => lanes!(|a: f32| -> f32 { (a - a.floor()).min(0.999_999_94) }),
        "exp_f32" => lanes!(|a: f32| -> f32 { flush(flush(a).exp2()) }),
        "log_f32" => lanes!(|a: f32| -> f32 { flush(a).log2() }),
        "rcp_f32" | "rcp_iflag_f32" => lanes!(|a: f32| -> f32 { flush(1.0 / flush(a)) }),
        "rsq_f32" => lanes!(|a: f32| -> f32 { 1.0 / flush(a).sqrt() }),
        "sqrt_f32" => lanes!(|a: f32| -> f32 { flush(a).sqrt() }),
        // The argument counts turns.
        "sin_f32" => lanes!(|a: f32| -> f32 { (f64::from(a) * std::f64::consts::TAU).sin() as f32 }),
        "cos_f32" => lanes!(|a: f32| -> f32 { (f64::from(a) * std::f64::consts::TAU).cos() as f32 }),
        "tanh_f32" => lanes!(|a: f32| -> f32 { f64::from(a).tanh() as f32 }),
        "frexp_mant_f32" => lanes!(|a: f32| -> f32 { mantissa_and_exponent(a).0 }),
        "frexp_exp_i32_f32" => lanes!(|a: f32| -> i32 { mantissa_and_exponent(a).1 }),
        _ => return None,
    };
    Some(operation.into())
}

/// The mantissa in [0.5, 1) and the exponent; what is not finite keeps its value and exponent 0.
fn mantissa_and_exponent(value: f32) -> (f32, i32) {
    if value == 0.0 || !value.is_finite() {
        return (value, 0);
    }
    let wide = f64::from(value).to_bits();
    let exponent = (wide >> 52 & 0x7ff) as i32 - 1022;
    let mantissa = f64::from_bits(wide & !(0x7ff << 52) | 1022 << 52);
    (mantissa as f32, exponent)
}

fn half_precision(name: &str) -> Option<VectorOperation> {
    fn through(value: f16, function: impl Fn(f32) -> f32) -> f16 {
        f16::from_f32(function(value.to_f32()))
    }
    let operation = match name {
        "floor_f16" => lanes!(|a: f16| -> f16 { through(a, f32::floor) }),
        "ceil_f16" => lanes!(|a: f16| -> f16 { through(a, f32::ceil) }),
        "trunc_f16" => lanes!(|a: f16| -> f16 { through(a, f32::trunc) }),
        "rndne_f16" => lanes!(|a: f16| -> f16 { through(a, f32::round_ties_even) }),
        "exp_f16" => lanes!(|a: f16| -> f16 { through(a, f32::exp2) }),
        "log_f16" => lanes!(|a: f16| -> f16 { through(a, f32::log2) }),
        "rcp_f16" => lanes!(|a: f16| -> f16 { through(a, |x| 1.0 / x) }),
        "rsq_f16" => lanes!(|a: f16| -> f16 { through(a, |x| 1.0 / x.sqrt()) }),
        "sqrt_f16" => lanes!(|a: f16| -> f16 { through(a, f32::sqrt) }),
        _ => return None,
    };
    Some(operation.into())
}

fn double(name: &str) -> Option<VectorOperation> {
    let of = |function| Some(VectorOperation::wide(Kind::F64, &[Kind::F64], function));
    fn map(bits: u64, function: impl Fn(f64) -> f64) -> u64 {
        function(f64::from_bits(bits)).to_bits()
    }
    match name {
        "floor_f64" => of(|a, _, _| map(a, f64::floor)),
        "ceil_f64" => of(|a, _, _| map(a, f64::ceil)),
        "trunc_f64" => of(|a, _, _| map(a, f64::trunc)),
        "rndne_f64" => of(|a, _, _| map(a, f64::round_ties_even)),
        "rcp_f64" => of(|a, _, _| map(a, f64::recip)),
        "rsq_f64" => of(|a, _, _| map(a, |x| x.sqrt().recip())),
        "sqrt_f64" => of(|a, _, _| map(a, f64::sqrt)),
        "fract_f64" => of(|a, _, _| map(a, |x| x - x.floor())),
        _ => None,
    }
}

fn conversion(name: &str) -> Option<VectorOperation> {
    let operation = match name {
        "cvt_f32_u32" => lanes!(|a: u32| -> f32 { a as f32 }),
        "cvt_f32_i32" => lanes!(|a: i32| -> f32 { a as f32 }),
        "cvt_u32_f32" => lanes!(|a: f32| -> u32 { a as u32 }),
        "cvt_i32_f32" => lanes!(|a: f32| -> i32 { a as i32 }),
        "cvt_rpi_i32_f32" | "cvt_nearest_i32_f32" => lanes!(|a: f32| -> i32 { (a + 0.5).floor() as i32 }),
        "cvt_flr_i32_f32" | "cvt_floor_i32_f32" => lanes!(|a: f32| -> i32 { a.floor() as i32 }),
        "cvt_f32_f16" => lanes!(|a: f16| -> f32 { a.to_f32() }),
        "cvt_f16_f32" => lanes!(|a: f32| -> f16 { f16::from_f32(a) }),
        "cvt_f16_u16" => lanes!(|a: u16| -> f16 { f16::from_f32(f32::from(a)) }),
        "cvt_f16_i16" => lanes!(|a: i16| -> f16 { f16::from_f32(f32::from(a)) }),
        "cvt_u16_f16" => lanes!(|a: f16| -> u16 { a.to_f32() as u16 }),
        "cvt_i16_f16" => lanes!(|a: f16| -> i16 { a.to_f32() as i16 }),
        "cvt_f32_bf16" => lanes!(|a: u16| -> f32 { float::bf16_bits(u32::from(a)) }),
        "cvt_f32_ubyte0" => lanes!(|a: u32| -> f32 { (a & 0xff) as f32 }),
        "cvt_f32_ubyte1" => lanes!(|a: u32| -> f32 { (a >> 8 & 0xff) as f32 }),
        "cvt_f32_ubyte2" => lanes!(|a: u32| -> f32 { (a >> 16 & 0xff) as f32 }),
        "cvt_f32_ubyte3" => lanes!(|a: u32| -> f32 { (a >> 24) as f32 }),
        "cvt_f64_f32" => {
            let widen = |a: u64, _, _| f64::from(f32::from_bits(a as u32)).to_bits();
            return Some(VectorOperation::wide(Kind::F64, &[Kind::F32], widen));
        }
        "cvt_f32_f64" => {
            let narrow = |a: u64, _, _| u64::from((f64::from_bits(a) as f32).to_bits());
            return Some(VectorOperation::wide(Kind::F32, &[Kind::F64], narrow));
        }
        "cvt_f64_i32" => {
            return Some(VectorOperation::wide(Kind::F64, &[Kind::B32], |a, _, _| {
                f64::from(a as i32).to_bits()
            }));
        }
        "cvt_f64_u32" => {
            return Some(VectorOperation::wide(Kind::F64, &[Kind::B32], |a, _, _| {
                f64::from(a as u32).to_bits()
            }));
        }
        "cvt_i32_f64" => {
            let narrow = |a: u64, _, _| u64::from(f64::from_bits(a) as i32 as u32);
            return Some(VectorOperation::wide(Kind::B32, &[Kind::F64], narrow));
        }
        "cvt_u32_f64" => {
            let narrow = |a: u64, _, _| u64::from(f64::from_bits(a) as u32);
            return Some(VectorOperation::wide(Kind::B32, &[Kind::F64], narrow));
        }
        _ => return None,
    };
    Some(operation.into())
}

/// Conversions from 8-bit floats; gfx942's format differs from that of its successors.
fn float8(name: &str, target: Target) -> Option<VectorOperation> {
    let is_fnuz = target == Target::Gfx942;
    let operation = match (name, is_fnuz) {
        ("cvt_f32_fp8", true) => lanes!(|a: u32| -> f32 { Float8::E4m3Fnuz.decode(a as u8) }),
        ("cvt_f32_fp8", false) => lanes!(|a: u32| -> f32 { Float8::E4m3.decode(a as u8) }),
        ("cvt_f32_bf8", true) => lanes!(|a: u32| -> f32 { Float8::E5m2Fnuz.decode(a as u8) }),
        ("cvt_f32_bf8", false) => lanes!(|a: u32| -> f32 { Float8::E5m2.decode(a as u8) }),
        _ => {
            let pair: fn(u64, u64, u64) -> u64 = match (name, is_fnuz) {
                ("cvt_pk_f32_fp8", true) => |a, _, _| decode_pair(Float8::E4m3Fnuz, a),
                ("cvt_pk_f32_fp8", false) => |a, _, _| decode_pair(Float8::E4m3, a),
                ("cvt_pk_f32_bf8", true) => |a, _, _| decode_pair(Float8::E5m2Fnuz, a),
                ("cvt_pk_f32_bf8", false) => |a, _, _| decode_pair(Float8::E5m2, a),
                _ => return None,
            };
            return Some(VectorOperation::wide(Kind::B64, &[Kind::B16], pair));
        }
    };
    Some(operation.into())
}

fn decode_pair(format: Float8, bits: u64) -> u64 {
    let value = |byte: u64| u64::from(format.decode(byte as u8).to_bits());
    value(bits) | value(bits >> 8) << 32
}

#[cfg(test)]
mod tests {
    use super::super::test_support::{run_vector, run_vector_f32};

    #[test]
    fn rounding_follows_its_name() {
        assert_eq!(run_vector_f32("v_rndne_f32_e32 v0, v1", &[2.5]), 2.0);
        assert_eq!(run_vector_f32("v_floor_f32_e32 v0, v1", &[-0.5]), -1.0);
        assert_eq!(run_vector_f32("v_fract_f32_e32 v0, v1", &[-0.25]), 0.75);
        assert_eq!(run_vector_f32("v_trunc_f32_e64 v0, -v1", &[1.75]), -1.0);
    }

    #[test]
    fn transcendentals_are_base_two_and_flush_denormals() {
        assert_eq!(run_vector_f32("v_exp_f32_e32 v0, v1", &[-3.0]), 0.125);
        assert_eq!(run_vector_f32("v_exp_f32_e32 v0, v1", &[-130.0]), 0.0);
        assert_eq!(run_vector_f32("v_log_f32_e32 v0, v1", &[8.0]), 3.0);
        assert_eq!(run_vector_f32("v_log_f32_e32 v0, v1", &[1e-40]), f32::NEG_INFINITY);
        assert_eq!(run_vector_f32("v_rcp_f32_e32 v0, v1", &[4.0]), 0.25);
        assert_eq!(run_vector_f32("v_rsq_f32_e32 v0, v1", &[16.0]), 0.25);
        assert_eq!(run_vector_f32("v_sin_f32_e32 v0, v1", &[0.25]), 1.0);
    }

    #[test]
    fn conversions_saturate_and_take_the_right_part() {
        assert_eq!(run_vector("v_cvt_u32_f32_e32 v0, v1", &[(-1.0f32).to_bits()]), 0);
        assert_eq!(run_vector("v_cvt_i32_f32_e32 v0, v1", &[3e9f32.to_bits()]), i32::MAX as u32);
        assert_eq!(run_vector("v_cvt_f16_f32_e32 v0, v1", &[1.5f32.to_bits()]), 0x3e00);
        assert_eq!(run_vector("v_cvt_f32_ubyte2_e32 v0, v1", &[0x00ff_0000]), 255.0f32.to_bits());
        assert_eq!(run_vector("v_cvt_f32_f16_e32 v0, v1", &[0xffff_3c00]), 1.0f32.to_bits());
        assert_eq!(run_vector("v_ffbh_u32_e32 v0, v1", &[0x0000_8000]), 16);
        assert_eq!(run_vector("v_cvt_f32_bf16_e32 v0, v1", &[0x3fc0]), 1.5f32.to_bits());
    }

    #[test]
    fn a_number_is_split_into_mantissa_and_exponent() {
        assert_eq!(run_vector_f32("v_frexp_mant_f32_e32 v0, v1", &[12.0]), 0.75);
        assert_eq!(run_vector("v_frexp_exp_i32_f32_e32 v0, v1", &[12.0f32.to_bits()]), 4);
    }

    #[test]
    fn output_modifiers_scale_and_clamp() {
        assert_eq!(run_vector_f32("v_rndne_f32_e64 v0, v1 mul:4", &[2.0]), 8.0);
        assert_eq!(run_vector_f32("v_rndne_f32_e64 v0, v1 clamp", &[2.0]), 1.0);
        assert_eq!(run_vector_f32("v_rndne_f32_e64 v0, |v1| div:2", &[-2.0]), 1.0);
    }
}
