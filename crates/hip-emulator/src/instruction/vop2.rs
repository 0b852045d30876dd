//! VOP2: vector operations of two sources.

use half::f16;

use super::float::{f16_toward_zero, maximum_number, minimum_number, scale};
use super::lane_function::lanes;
use super::operand::Kind;
use super::vector::{Function, VectorOperation};
use crate::target::Target;

/// The operation of a mnemonic without its `v_`.
pub(crate) fn lookup(name: &str, _target: Target) -> Option<VectorOperation> {
    integer(name)
        .or_else(|| short(name))
        .or_else(|| single(name))
        .or_else(|| half_precision(name))
        .or_else(|| carry(name))
        .or_else(|| wide(name))
}

fn integer(name: &str) -> Option<VectorOperation> {
    let operation = match name {
        "add_u32" | "add_nc_u32" => lanes!(|a: u32, b: u32| -> u32 { a.wrapping_add(b) }),
        "sub_u32" | "sub_nc_u32" => lanes!(|a: u32, b: u32| -> u32 { a.wrapping_sub(b) }),
        "subrev_u32" | "subrev_nc_u32" => lanes!(|a: u32, b: u32| -> u32 { b.wrapping_sub(a) }),
        "add_i32" | "add_nc_i32" => lanes!(|a: u32, b: u32| -> u32 { a.wrapping_add(b) }),
        "sub_i32" | "sub_nc_i32" => lanes!(|a: u32, b: u32| -> u32 { a.wrapping_sub(b) }),
        "and_b32" => lanes!(|a: u32, b: u32| -> u32 { a & b }),
        "or_b32" => lanes!(|a: u32, b: u32| -> u32 { a | b }),
        "xor_b32" => lanes!(|a: u32, b: u32| -> u32 { a ^ b }),
        "xnor_b32" => lanes!(|a: u32, b: u32| -> u32 { !(a ^ b) }),
        "lshlrev_b32" => lanes!(|a: u32, b: u32| -> u32 { b << (a & 31) }),
        "lshrrev_b32" => lanes!(|a: u32, b: u32| -> u32 { b >> (a & 31) }),
        "ashrrev_i32" => lanes!(|a: u32, b: i32| -> i32 { b >> (a & 31) }),
        "min_i32" => lanes!(|a: i32, b: i32| -> i32 { a.min(b) }),
        "max_i32" => lanes!(|a: i32, b: i32| -> i32 { a.max(b) }),
        "min_u32" => lanes!(|a: u32, b: u32| -> u32 { a.min(b) }),
        "max_u32" => lanes!(|a: u32, b: u32| -> u32 { a.max(b) }),
        "mul_u32_u24" => lanes!(|a: u32, b: u32| -> u32 { (a & 0xff_ffff).wrapping_mul(b & 0xff_ffff) }),
        "mul_i32_i24" => lanes!(|a: i32, b: i32| -> i32 { (a << 8 >> 8).wrapping_mul(b << 8 >> 8) }),
        "mul_hi_u32_u24" => lanes!(|a: u32, b: u32| -> u32 {
            ((u64::from(a & 0xff_ffff) * u64::from(b & 0xff_ffff)) >> 32) as u32
        }),
        "mul_lo_u32" => lanes!(|a: u32, b: u32| -> u32 { a.wrapping_mul(b) }),
        "mul_hi_u32" => lanes!(|a: u32, b: u32| -> u32 { ((u64::from(a) * u64::from(b)) >> 32) as u32 }),
        "mul_hi_i32" => lanes!(|a: i32, b: i32| -> i32 { ((i64::from(a) * i64::from(b)) >> 32) as i32 }),
        "bfm_b32" => lanes!(|a: u32, b: u32| -> u32 { ((1u32 << (a & 31)) - 1) << (b & 31) }),
        "bcnt_u32_b32" => lanes!(|a: u32, b: u32| -> u32 { a.count_ones().wrapping_add(b) }),
        "cndmask_b32" => return Some(select(Kind::F32)),
        "cndmask_b16" => return Some(select(Kind::F16)),
        _ => return None,
    };
    Some(operation.into())
}

fn select(kind: Kind) -> VectorOperation {
    let sources: &'static [Kind] =
        if kind.is_half() { &[Kind::F16, Kind::F16] } else { &[Kind::F32, Kind::F32] };
    // The result is a bit pattern: no clamp or factor applies.
    let destination = if kind.is_half() { Kind::B16 } else { Kind::B32 };
    VectorOperation { function: Function::Select, sources, destination, accumulates: false }
}

fn short(name: &str) -> Option<VectorOperation> {
    let operation = match name {
        "add_u16" | "add_nc_u16" | "add_i16" | "add_nc_i16" => {
            lanes!(|a: u16, b: u16| -> u16 { a.wrapping_add(b) })
        }
        "sub_u16" | "sub_nc_u16" | "sub_i16" | "sub_nc_i16" => {
            lanes!(|a: u16, b: u16| -> u16 { a.wrapping_sub(b) })
        }
        "subrev_u16" => lanes!(|a: u16, b: u16| -> u16 { b.wrapping_sub(a) }),
        "mul_lo_u16" => lanes!(|a: u16, b: u16| -> u16 { a.wrapping_mul(b) }),
        "lshlrev_b16" => lanes!(|a: u16, b: u16| -> u16 { b << (a & 15) }),
        "lshrrev_b16" => lanes!(|a: u16, b: u16| -> u16 { b >> (a & 15) }),
        "ashrrev_i16" => lanes!(|a: u16, b: i16| -> i16 { b >> (a & 15) }),
        "and_b16" => lanes!(|a: u16, b: u16| -> u16 { a & b }),
        "or_b16" => lanes!(|a: u16, b: u16| -> u16 { a | b }),
        "xor_b16" => lanes!(|a: u16, b: u16| -> u16 { a ^ b }),
        "min_u16" => lanes!(|a: u16, b: u16| -> u16 { a.min(b) }),
        "max_u16" => lanes!(|a: u16, b: u16| -> u16 { a.max(b) }),
        "min_i16" => lanes!(|a: i16, b: i16| -> i16 { a.min(b) }),
        "max_i16" => lanes!(|a: i16, b: i16| -> i16 { a.max(b) }),
        _ => return None,
    };
    Some(operation.into())
}

fn single(name: &str) -> Option<VectorOperation> {
    let operation = match name {
        "add_f32" => lanes!(|a: f32, b: f32| -> f32 { a + b }),
        "sub_f32" => lanes!(|a: f32, b: f32| -> f32 { a - b }),
        "subrev_f32" => lanes!(|a: f32, b: f32| -> f32 { b - a }),
        "mul_f32" => lanes!(|a: f32, b: f32| -> f32 { a * b }),
        // Zero times anything is zero, even infinity and NaN.
        "mul_legacy_f32" | "mul_dx9_zero_f32" => {
            lanes!(|a: f32, b: f32| -> f32 { if a == 0.0 || b == 0.0 { 0.0 } else { a * b } })
        }
        "max_f32" | "max_num_f32" => lanes!(|a: f32, b: f32| -> f32 { maximum_number(a, b) }),
        "min_f32" | "min_num_f32" => lanes!(|a: f32, b: f32| -> f32 { minimum_number(a, b) }),
        "ldexp_f32" => lanes!(|a: f32, b: i32| -> f32 { scale(a, b) }),
        "fmac_f32" => {
            return Some(
                VectorOperation::from(lanes!(|a: f32, b: f32, c: f32| -> f32 { a.mul_add(b, c) }))
                    .accumulating(),
            );
        }
        "fmamk_f32" | "madmk_f32" => lanes!(|a: f32, k: f32, b: f32| -> f32 { a.mul_add(k, b) }),
        "fmaak_f32" | "madak_f32" => lanes!(|a: f32, b: f32, k: f32| -> f32 { a.mul_add(b, k) }),
        "cvt_pkrtz_f16_f32" | "cvt_pk_rtz_f16_f32" => lanes!(|a: f32, b: f32| -> u32 {
            u32::from(f16_toward_zero(a)) | u32::from(f16_toward_zero(b)) << 16
        }),
        "dot2c_f32_f16" | "dot2acc_f32_f16" => {
            return Some(
                VectorOperation::from(lanes!(|a: u32, b: u32, c: f32| -> f32 {
                    super::vop3p::dot2_f16(a, b, c)
                }))
                .accumulating(),
            );
        }
        "dot2c_f32_bf16" | "dot2acc_f32_bf16" => {
            return Some(
                VectorOperation::from(lanes!(|a: u32, b: u32, c: f32| -> f32 {
                    super::vop3p::dot2_bf16(a, b, c)
                }))
                .accumulating(),
            );
        }
        "dot4c_i32_i8" => {
            return Some(
                VectorOperation::from(lanes!(|a: u32, b: u32, c: i32| -> i32 {
                    super::vop3p::dot4_i8(a, b, c)
                }))
                .accumulating(),
            );
        }
        _ => return None,
    };
    Some(operation.into())
}

fn half_precision(name: &str) -> Option<VectorOperation> {
    let operation = match name {
        "add_f16" => lanes!(|a: f16, b: f16| -> f16 { f16::from_f32(a.to_f32() + b.to_f32()) }),
        "sub_f16" => lanes!(|a: f16, b: f16| -> f16 { f16::from_f32(a.to_f32() - b.to_f32()) }),
        "subrev_f16" => lanes!(|a: f16, b: f16| -> f16 { f16::from_f32(b.to_f32() - a.to_f32()) }),
        "mul_f16" => lanes!(|a: f16, b: f16| -> f16 { f16::from_f32(a.to_f32() * b.to_f32()) }),
        "max_f16" | "max_num_f16" => {
            lanes!(|a: f16, b: f16| -> f16 { f16::from_f32(maximum_number(a.to_f32(), b.to_f32())) })
        }
        "min_f16" | "min_num_f16" => {
            lanes!(|a: f16, b: f16| -> f16 { f16::from_f32(minimum_number(a.to_f32(), b.to_f32())) })
        }
        "ldexp_f16" => lanes!(|a: f16, b: i16| -> f16 { f16::from_f32(scale(a.to_f32(), i32::from(b))) }),
        "fmac_f16" => {
            return Some(
                VectorOperation::from(lanes!(|a: f16, b: f16, c: f16| -> f16 {
                    super::vop3::fma_f16(a, b, c)
                }))
                .accumulating(),
            );
        }
        "fmamk_f16" => lanes!(|a: f16, k: f16, b: f16| -> f16 { super::vop3::fma_f16(a, k, b) }),
        "fmaak_f16" => lanes!(|a: f16, b: f16, k: f16| -> f16 { super::vop3::fma_f16(a, b, k) }),
        _ => return None,
    };
    Some(operation.into())
}

fn carry(name: &str) -> Option<VectorOperation> {
    fn add(a: u32, b: u32, carry: u32) -> (u32, bool) {
        let sum = u64::from(a) + u64::from(b) + u64::from(carry);
        (sum as u32, sum >> 32 != 0)
    }
    fn subtract(a: u32, b: u32, borrow: u32) -> (u32, bool) {
        let difference = i64::from(a) - i64::from(b) - i64::from(borrow);
        (difference as u32, difference < 0)
    }
    let function: fn(u32, u32, u32) -> (u32, bool) = match name {
        "add_co_u32" | "addc_co_u32" | "add_co_ci_u32" => add,
        "sub_co_u32" | "subb_co_u32" | "sub_co_ci_u32" => subtract,
        "subrev_co_u32" | "subbrev_co_u32" | "subrev_co_ci_u32" => |a, b, borrow| subtract(b, a, borrow),
        _ => return None,
    };
    let sources: &'static [Kind] = &[Kind::B32, Kind::B32];
    Some(VectorOperation {
        function: Function::Carry(function),
        sources,
        destination: Kind::B32,
        accumulates: false,
    })
}

fn wide(name: &str) -> Option<VectorOperation> {
    const F64_PAIR: &[Kind] = &[Kind::F64, Kind::F64];
    let double = |function| Some(VectorOperation::wide(Kind::F64, F64_PAIR, function));
    fn d(bits: u64) -> f64 {
        f64::from_bits(bits)
    }
    match name {
        "add_f64" => double(|a, b, _| (d(a) + d(b)).to_bits()),
        "mul_f64" => double(|a, b, _| (d(a) * d(b)).to_bits()),
        "max_f64" | "max_num_f64" => double(|a, b, _| d(a).max(d(b)).to_bits()),
        "min_f64" | "min_num_f64" => double(|a, b, _| d(a).min(d(b)).to_bits()),
        "ldexp_f64" => {
            let function = |a, b: u64, _| (d(a) * f64::powi(2.0, (b as i32).clamp(-1000, 1000))).to_bits();
            Some(VectorOperation::wide(Kind::F64, &[Kind::F64, Kind::B32], function))
        }
        "fmac_f64" => {
            let sources: &'static [Kind] = &[Kind::F64, Kind::F64, Kind::F64];
            let function = |a, b, c| d(a).mul_add(d(b), d(c)).to_bits();
            Some(VectorOperation::wide(Kind::F64, sources, function).accumulating())
        }
        "lshlrev_b64" => {
            Some(VectorOperation::wide(Kind::B64, &[Kind::B32, Kind::B64], |a, b, _| b << (a & 63)))
        }
        "lshrrev_b64" => {
            Some(VectorOperation::wide(Kind::B64, &[Kind::B32, Kind::B64], |a, b, _| b >> (a & 63)))
        }
        "ashrrev_i64" => {
            let function = |a: u64, b: u64, _| (b as i64 >> (a & 63)) as u64;
            Some(VectorOperation::wide(Kind::B64, &[Kind::B32, Kind::B64], function))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_support::{Lab, run_vector, run_vector_f32};
    use crate::target::Target;

    #[test]
    fn integer_arithmetic_wraps_and_reverses() {
        assert_eq!(run_vector("v_add_u32_e32 v0, v1, v2", &[u32::MAX, 3]), 2);
        assert_eq!(run_vector("v_subrev_u32_e32 v0, v1, v2", &[1, 10]), 9);
        assert_eq!(run_vector("v_lshlrev_b32_e32 v0, 33, v1", &[3]), 6);
        assert_eq!(run_vector("v_ashrrev_i32_e32 v0, 4, v1", &[0x8000_0000]), 0xf800_0000);
        assert_eq!(run_vector("v_mul_u32_u24_e32 v0, v1, v2", &[0xff00_0003, 5]), 15);
        assert_eq!(run_vector("v_mul_i32_i24_e32 v0, v1, v2", &[0x00ff_ffff, 5]), (-5i32) as u32);
        assert_eq!(run_vector("v_mul_hi_u32 v0, v1, v2", &[1 << 31, 4]), 2);
        assert_eq!(run_vector("v_min_i32_e32 v0, v1, v2", &[u32::MAX, 1]), u32::MAX);
        assert_eq!(run_vector("v_max_u32_e32 v0, v1, v2", &[u32::MAX, 1]), u32::MAX);
    }

    #[test]
    fn single_precision_follows_ieee() {
        assert_eq!(run_vector_f32("v_sub_f32_e32 v0, v1, v2", &[1.0, 3.0]), -2.0);
        assert_eq!(run_vector_f32("v_subrev_f32_e32 v0, v1, v2", &[1.0, 3.0]), 2.0);
        assert_eq!(run_vector_f32("v_max_f32_e32 v0, v1, v2", &[f32::NAN, 3.0]), 3.0);
        assert_eq!(run_vector_f32("v_mul_f32_e64 v0, |v1|, -v2", &[-2.0, 3.0]), -6.0);
        assert_eq!(run_vector_f32("v_fmac_f32_e32 v0, v1, v2", &[2.0, 3.0]), 6.0);
        assert_eq!(run_vector_f32("v_fmaak_f32 v0, v1, v2, 0x3f800000", &[2.0, 3.0]), 7.0);
        assert_eq!(run_vector_f32("v_fmamk_f32 v0, v1, 0x40000000, v2", &[2.0, 3.0]), 7.0);
        assert_eq!(run_vector_f32("v_ldexp_f32 v0, v1, v2", &[3.0, f32::from_bits(2)]), 12.0);
        // One rounding: (1 + 2^-23)^2 - 1 - 2^-22 = 2^-46.
        let x = 1.0 + f32::EPSILON;
        assert_eq!(
            run_vector_f32("v_fma_f32 v0, v1, v2, v3", &[x, x, -1.0 - 2.0 * f32::EPSILON]),
            2.0f32.powi(-46)
        );
    }

    #[test]
    fn a_lane_mask_selects_the_second_source() {
        let mut lab = Lab::new(Target::Gfx942);
        lab.vector(1, |_| 1).vector(2, |_| 2).scalar(4, 0b10).scalar(5, 0);
        lab.run("v_cndmask_b32_e64 v0, v1, v2, s[4:5]").unwrap();
        assert_eq!((lab.lane(0, 0), lab.lane(0, 1)), (1, 2));
    }

    #[test]
    fn carries_travel_through_a_lane_mask() {
        let mut lab = Lab::new(Target::Gfx90a);
        lab.vector(1, |lane| if lane == 3 { u32::MAX } else { 5 }).vector(2, |_| 1).vector(3, |_| 10);
        lab.run("v_add_co_u32_e32 v4, vcc, v1, v2").unwrap();
        lab.run("v_addc_co_u32_e32 v0, vcc, v3, v3, vcc").unwrap();
        assert_eq!((lab.lane(4, 3), lab.lane(0, 3), lab.lane(0, 4)), (0, 21, 20));
        let mut lab = Lab::new(Target::Gfx1100);
        lab.vector(1, |_| 0).vector(2, |_| 1);
        lab.run("v_sub_co_u32 v0, s3, v1, v2").unwrap();
        assert_eq!((lab.lane(0, 0), lab.wave.scalar[3]), (u32::MAX, u32::MAX));
    }

    #[test]
    fn sixteen_bit_results_clear_or_keep_the_upper_half() {
        for (target, expected) in [(Target::Gfx942, 0x0000_4200), (Target::Gfx1100, 0xaaaa_4200)] {
            let mut lab = Lab::new(target);
            lab.vector(0, |_| 0xaaaa_0000).vector(1, |_| 0x3c00).vector(2, |_| 0x4000);
            let text = if target == Target::Gfx942 {
                "v_add_f16_e32 v0, v1, v2"
            } else {
                "v_add_f16_e32 v0.l, v1.l, v2.l"
            };
            lab.run(text).unwrap();
            assert_eq!(lab.lane(0, 0), expected, "{target}");
        }
    }

    #[test]
    fn a_sixty_four_bit_shift_takes_two_registers() {
        let mut lab = Lab::new(Target::Gfx942);
        lab.vector(2, |lane| lane as u32).vector(3, |_| 0);
        lab.run("v_lshlrev_b64 v[0:1], 31, v[2:3]").unwrap();
        assert_eq!((lab.lane(0, 3), lab.lane(1, 3)), (1 << 31, 1));
    }

    #[test]
    fn packing_to_f16_truncates() {
        assert_eq!(
            run_vector("v_cvt_pkrtz_f16_f32 v0, v1, v2", &[1.0f32.to_bits(), 1.9999f32.to_bits()]),
            0x3fff_3c00
        );
    }
}
