//! SOP2: scalar operations of two sources.

use super::operand::Kind;
use super::scalar::{Flows, Inputs, Outputs, ScalarOperation};

const B32: Kind = Kind::B32;
const B64: Kind = Kind::B64;

fn float(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

fn word(value: u32) -> Outputs {
    (u64::from(value), None)
}

fn nonzero32(value: u32) -> Outputs {
    (u64::from(value), Some(value != 0))
}

fn nonzero64(value: u64) -> Outputs {
    (value, Some(value != 0))
}

fn real(value: f32) -> Outputs {
    word(value.to_bits())
}

/// The operation of a mnemonic without its `s_`.
pub(crate) fn lookup(name: &str) -> Option<ScalarOperation> {
    arithmetic(name).or_else(|| bitwise(name)).or_else(|| float_operation(name))
}

fn arithmetic(name: &str) -> Option<ScalarOperation> {
    let new = |function: fn(Inputs) -> Outputs| ScalarOperation::new(B32, function);
    let wide = |function: fn(Inputs) -> Outputs| ScalarOperation::new(B64, function);
    Some(match name {
        "add_u32" | "add_co_u32" => {
            new(|i| (u64::from((i.a as u32).wrapping_add(i.b as u32)), Some(i.a + i.b > u64::from(u32::MAX))))
        }
        "sub_u32" | "sub_co_u32" => {
            new(|i| (u64::from((i.a as u32).wrapping_sub(i.b as u32)), Some(i.b > i.a)))
        }
        "add_i32" | "add_co_i32" => new(|i| {
            let (r, overflow) = (i.a as i32).overflowing_add(i.b as i32);
            (u64::from(r as u32), Some(overflow))
        }),
        "sub_i32" | "sub_co_i32" => new(|i| {
            let (r, overflow) = (i.a as i32).overflowing_sub(i.b as i32);
            (u64::from(r as u32), Some(overflow))
        }),
        "addc_u32" | "add_co_ci_u32" => new(|i| {
            let r = i.a + i.b + u64::from(i.scc);
            (u64::from(r as u32), Some(r > u64::from(u32::MAX)))
        })
        .with_scc(),
        "subb_u32" | "sub_co_ci_u32" => new(|i| {
            let r = i.a.wrapping_sub(i.b).wrapping_sub(u64::from(i.scc));
            (u64::from(r as u32), Some(i.b + u64::from(i.scc) > i.a))
        })
        .with_scc(),
        "add_nc_u64" | "add_u64" => wide(|i| (i.a.wrapping_add(i.b), None)),
        "sub_nc_u64" | "sub_u64" => wide(|i| (i.a.wrapping_sub(i.b), None)),
        "mul_u64" => wide(|i| (i.a.wrapping_mul(i.b), None)),
        "mul_i32" => new(|i| word((i.a as u32).wrapping_mul(i.b as u32))),
        "mul_hi_u32" => new(|i| word(((i.a * i.b) >> 32) as u32)),
        "mul_hi_i32" => new(|i| word(((i64::from(i.a as i32) * i64::from(i.b as i32)) >> 32) as u32)),
        "absdiff_i32" => new(|i| nonzero32((i.a as i32).wrapping_sub(i.b as i32).wrapping_abs() as u32)),
        "min_i32" => {
            new(|i| (u64::from((i.a as i32).min(i.b as i32) as u32), Some((i.a as i32) < i.b as i32)))
        }
        "max_i32" => {
            new(|i| (u64::from((i.a as i32).max(i.b as i32) as u32), Some((i.a as i32) > i.b as i32)))
        }
        "min_u32" => new(|i| (i.a.min(i.b), Some(i.a < i.b))),
        "max_u32" => new(|i| (i.a.max(i.b), Some(i.a > i.b))),
        "lshl1_add_u32" => new(|i| shift_add(i, 1)),
        "lshl2_add_u32" => new(|i| shift_add(i, 2)),
        "lshl3_add_u32" => new(|i| shift_add(i, 3)),
        "lshl4_add_u32" => new(|i| shift_add(i, 4)),
        "cselect_b32" => new(|i| (if i.scc { i.a } else { i.b }, None)).with_scc().flows(Flows::Select),
        "cselect_b64" => wide(|i| (if i.scc { i.a } else { i.b }, None)).with_scc().flows(Flows::Select),
        _ => return None,
    })
}

fn shift_add(i: Inputs, by: u32) -> Outputs {
    let sum = (i.a << by) + i.b;
    (u64::from(sum as u32), Some(sum > u64::from(u32::MAX)))
}

fn bitwise(name: &str) -> Option<ScalarOperation> {
    let new = |function: fn(Inputs) -> Outputs| ScalarOperation::new(B32, function);
    let wide = |function: fn(Inputs) -> Outputs| ScalarOperation::new(B64, function);
    Some(match name {
        "and_b32" => new(|i| nonzero64(i.a & i.b)).flows(Flows::And),
        "and_b64" => wide(|i| nonzero64(i.a & i.b)).flows(Flows::And),
        "or_b32" => new(|i| nonzero64(i.a | i.b)).flows(Flows::Or),
        "or_b64" => wide(|i| nonzero64(i.a | i.b)).flows(Flows::Or),
        "xor_b32" => new(|i| nonzero64(i.a ^ i.b)).flows(Flows::Bitwise),
        "xor_b64" => wide(|i| nonzero64(i.a ^ i.b)).flows(Flows::Bitwise),
        "andn2_b32" | "and_not1_b32" => new(|i| nonzero64(i.a & !i.b)).flows(Flows::AndNot),
        "andn2_b64" | "and_not1_b64" => wide(|i| nonzero64(i.a & !i.b)).flows(Flows::AndNot),
        "orn2_b32" | "or_not1_b32" => new(|i| nonzero32((i.a | !i.b) as u32)).flows(Flows::OrNot),
        "orn2_b64" | "or_not1_b64" => wide(|i| nonzero64(i.a | !i.b)).flows(Flows::OrNot),
        "nand_b32" => new(|i| nonzero32(!(i.a & i.b) as u32)).flows(Flows::And),
        "nand_b64" => wide(|i| nonzero64(!(i.a & i.b))).flows(Flows::And),
        "nor_b32" => new(|i| nonzero32(!(i.a | i.b) as u32)).flows(Flows::Or),
        "nor_b64" => wide(|i| nonzero64(!(i.a | i.b))).flows(Flows::Or),
        "xnor_b32" => new(|i| nonzero32(!(i.a ^ i.b) as u32)).flows(Flows::Bitwise),
        "xnor_b64" => wide(|i| nonzero64(!(i.a ^ i.b))).flows(Flows::Bitwise),
        "lshl_b32" => new(|i| nonzero32((i.a as u32) << (i.b & 31))),
        "lshr_b32" => new(|i| nonzero32(i.a as u32 >> (i.b & 31))),
        "ashr_i32" => new(|i| nonzero32((i.a as i32 >> (i.b & 31)) as u32)),
        "lshl_b64" => wide(|i| nonzero64(i.a << (i.b & 63))),
        "lshr_b64" => wide(|i| nonzero64(i.a >> (i.b & 63))),
        "ashr_i64" => wide(|i| nonzero64((i.a as i64 >> (i.b & 63)) as u64)),
        "bfe_u32" => new(|i| nonzero32(extract(i.a, i.b & 31, i.b >> 16 & 0x7f) as u32)),
        "bfe_i32" => new(|i| nonzero32(sign_extended(i.a as u32, i.b & 31, i.b >> 16 & 0x7f))),
        "bfe_u64" => wide(|i| nonzero64(extract(i.a, i.b & 63, i.b >> 16 & 0x7f))),
        "bfe_i64" => wide(|i| {
            let width = i.b >> 16 & 0x7f;
            let field = extract(i.a, i.b & 63, width);
            let unused = 64 - width.clamp(1, 64);
            nonzero64(((field << unused) as i64 >> unused) as u64)
        }),
        "bfm_b32" => new(|i| word((((1u64 << (i.a & 31)) - 1) << (i.b & 31)) as u32)),
        "bfm_b64" => wide(|i| (((1u64 << (i.a & 63)) - 1) << (i.b & 63), None)),
        "pack_ll_b32_b16" => new(|i| word((i.a & 0xffff | i.b << 16) as u32)),
        "pack_lh_b32_b16" => new(|i| word((i.a & 0xffff | i.b & 0xffff_0000) as u32)),
        "pack_hh_b32_b16" => new(|i| word((i.a >> 16 | i.b & 0xffff_0000) as u32)),
        "pack_hl_b32_b16" => new(|i| word((i.a >> 16 | i.b << 16) as u32)),
        _ => return None,
    })
}

fn extract(bits: u64, offset: u64, width: u64) -> u64 {
    let mask = if width >= 64 { u64::MAX } else { (1 << width) - 1 };
    bits >> offset & mask
}

fn sign_extended(bits: u32, offset: u64, width: u64) -> u32 {
    if width == 0 {
        return 0;
    }
    let unused = 32 - width.min(32) as u32;
    (((extract(u64::from(bits), offset, width) as u32) << unused) as i32 >> unused) as u32
}

fn float_operation(name: &str) -> Option<ScalarOperation> {
    let new = |function: fn(Inputs) -> Outputs| ScalarOperation::new(Kind::F32, function);
    Some(match name {
        "add_f32" => new(|i| real(float(i.a) + float(i.b))),
        "sub_f32" => new(|i| real(float(i.a) - float(i.b))),
        "mul_f32" => new(|i| real(float(i.a) * float(i.b))),
        "min_f32" | "min_num_f32" => new(|i| real(super::float::minimum_number(float(i.a), float(i.b)))),
        "max_f32" | "max_num_f32" => new(|i| real(super::float::maximum_number(float(i.a), float(i.b)))),
        "fmac_f32" => new(|i| real(float(i.a).mul_add(float(i.b), float(i.old)))).with_destination(),
        "fmaak_f32" => new(|i| real(float(i.a).mul_add(float(i.b), float(i.c)))),
        "fmamk_f32" => new(|i| real(float(i.a).mul_add(float(i.b), float(i.c)))),
        "cvt_pk_rtz_f16_f32" => new(|i| {
            let low = super::float::f16_toward_zero(float(i.a));
            let high = super::float::f16_toward_zero(float(i.b));
            word(u32::from(low) | u32::from(high) << 16)
        }),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::test_support::{run_scalar, run_scalar_pair};

    #[test]
    fn carries_and_overflows_set_the_condition_code() {
        assert_eq!(run_scalar("s_add_u32 s0, s1, s2", &[(1, u32::MAX), (2, 2)]), (1, true));
        assert_eq!(run_scalar("s_add_i32 s0, s1, s2", &[(1, i32::MAX as u32), (2, 1)]), (0x8000_0000, true));
        assert_eq!(run_scalar("s_add_i32 s0, s1, -1", &[(1, 5)]), (4, false));
        assert_eq!(run_scalar("s_sub_u32 s0, s1, s2", &[(1, 1), (2, 2)]), (u32::MAX, true));
        // The carry in is SCC, which the test support sets.
        assert_eq!(run_scalar("s_addc_u32 s0, s1, s2", &[(1, 1), (2, 2)]), (4, false));
        assert_eq!(run_scalar("s_subb_u32 s0, s1, s2", &[(1, 2), (2, 2)]), (u32::MAX, true));
    }

    #[test]
    fn products_have_a_low_and_a_high_half() {
        assert_eq!(run_scalar("s_mul_i32 s0, s1, s2", &[(1, 0x10001), (2, 0x10001)]).0, 0x20001);
        assert_eq!(run_scalar("s_mul_hi_u32 s0, s1, s2", &[(1, 0x8000_0000), (2, 6)]).0, 3);
        assert_eq!(run_scalar("s_mul_hi_i32 s0, s1, s2", &[(1, u32::MAX), (2, 6)]).0, u32::MAX);
    }

    #[test]
    fn bit_fields_are_cut_out_and_extended() {
        // Offset 4, width 8.
        assert_eq!(run_scalar("s_bfe_u32 s0, s1, 0x80004", &[(1, 0xabcd)]), (0xbc, true));
        assert_eq!(run_scalar("s_bfe_i32 s0, s1, 0x80004", &[(1, 0xabcd)]).0, 0xffff_ffbc);
        assert_eq!(run_scalar("s_bfm_b32 s0, 4, 8", &[]).0, 0xf00);
        assert_eq!(run_scalar("s_pack_ll_b32_b16 s0, s1, s2", &[(1, 0x1234), (2, 0x5678)]).0, 0x5678_1234);
    }

    #[test]
    fn sixty_four_bit_shifts_cross_the_registers() {
        assert_eq!(run_scalar_pair("s_lshl_b64 s[0:1], s[2:3], 33", &[(2, 3), (3, 0)]), 6 << 32);
        assert_eq!(
            run_scalar_pair("s_ashr_i64 s[0:1], s[2:3], 32", &[(2, 0), (3, 0x8000_0000)]),
            0xffff_ffff_8000_0000
        );
        assert_eq!(run_scalar_pair("s_mul_u64 s[0:1], s[2:3], 3", &[(2, u32::MAX), (3, 1)]), 0x5_ffff_fffd);
    }

    #[test]
    fn an_unwritten_source_bit_does_not_taint_what_a_known_zero_decides() {
        use super::super::test_support::scalar_known_bits;
        // s1 is never written; s2 is known.
        assert_eq!(scalar_known_bits("s_and_b32 s0, s1, s2", &[(2, 0xff)]), 0xffff_ff00);
        assert_eq!(scalar_known_bits("s_or_b32 s0, s1, s2", &[(2, 0xff)]), 0xff);
        assert_eq!(scalar_known_bits("s_add_i32 s0, s1, s2", &[(2, 0xff)]), 0);
    }
}
