//! SOP1: scalar operations of one source.

use super::float::flush;
use super::operand::{Kind, Operand};
use super::scalar::{Flows, Inputs, Scalar, ScalarOperation};

const B32: Kind = Kind::B32;
const B64: Kind = Kind::B64;

fn f32_of(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

fn bits_of(value: f32) -> u64 {
    u64::from(value.to_bits())
}

/// The operation of a mnemonic without its `s_`.
pub(crate) fn lookup(name: &str) -> Option<ScalarOperation> {
    let new = ScalarOperation::new;
    let plain = |kind, function: fn(Inputs) -> (u64, Option<bool>)| Some(new(kind, function));
    match name {
        "mov_b32" => plain(B32, |i| (i.a, None)).map(|o| o.flows(Flows::Bitwise)),
        "mov_b64" => plain(B64, |i| (i.a, None)).map(|o| o.flows(Flows::Bitwise)),
        "cmov_b32" => {
            plain(B32, |i| (if i.scc { i.a } else { i.old }, None)).map(|o| o.with_scc().with_destination())
        }
        "cmov_b64" => {
            plain(B64, |i| (if i.scc { i.a } else { i.old }, None)).map(|o| o.with_scc().with_destination())
        }
        "not_b32" => plain(B32, |i| {
            let r = !(i.a as u32);
            (u64::from(r), Some(r != 0))
        })
        .map(|o| o.flows(Flows::Bitwise)),
        "not_b64" => plain(B64, |i| (!i.a, Some(!i.a != 0))).map(|o| o.flows(Flows::Bitwise)),
        "brev_b32" => plain(B32, |i| (u64::from((i.a as u32).reverse_bits()), None)),
        "brev_b64" => plain(B64, |i| (i.a.reverse_bits(), None)),
        "abs_i32" => plain(B32, |i| {
            let r = (i.a as i32).wrapping_abs();
            (u64::from(r as u32), Some(r != 0))
        }),
        "bcnt0_i32_b32" => plain(B32, |i| {
            let r = (i.a as u32).count_zeros();
            (u64::from(r), Some(r != 0))
        }),
        "bcnt1_i32_b32" => plain(B32, |i| {
            let r = (i.a as u32).count_ones();
            (u64::from(r), Some(r != 0))
        }),
        "bcnt0_i32_b64" => plain(B64, |i| {
            let r = i.a.count_zeros();
            (u64::from(r), Some(r != 0))
        })
        .map(|o| o.to(B32)),
        "bcnt1_i32_b64" => plain(B64, |i| {
            let r = i.a.count_ones();
            (u64::from(r), Some(r != 0))
        })
        .map(|o| o.to(B32)),
        "ff1_i32_b32" | "ctz_i32_b32" => plain(B32, |i| (first_one(i.a, 32), None)),
        "ff1_i32_b64" | "ctz_i32_b64" => plain(B64, |i| (first_one(i.a, 64), None)).map(|o| o.to(B32)),
        "ff0_i32_b32" => plain(B32, |i| (first_one(!i.a & 0xffff_ffff, 32), None)),
        "flbit_i32_b32" | "clz_i32_u32" => plain(B32, |i| (leading(i.a, 32), None)),
        "flbit_i32_b64" | "clz_i32_u64" => plain(B64, |i| (leading(i.a, 64), None)).map(|o| o.to(B32)),
        "flbit_i32" | "cls_i32" => plain(B32, |i| {
            let a = i.a as i32;
            // Bits that equal the sign; all of them means -1.
            let r = if a == 0 || a == -1 { -1 } else { (a ^ (a >> 31)).leading_zeros() as i32 };
            (u64::from(r as u32), None)
        }),
        "sext_i32_i8" => plain(B32, |i| (u64::from(i.a as i8 as i32 as u32), None)),
        "sext_i32_i16" => plain(B32, |i| (u64::from(i.a as i16 as i32 as u32), None)),
        "bitset0_b32" => plain(B32, |i| (i.old & !(1 << (i.a & 31)), None)).map(|o| o.with_destination()),
        "bitset1_b32" => plain(B32, |i| (i.old | 1 << (i.a & 31), None)).map(|o| o.with_destination()),
        "wqm_b32" => plain(B32, |i| {
            let r = whole_quads(i.a);
            (r, Some(r != 0))
        }),
        "wqm_b64" => plain(B64, |i| {
            let r = whole_quads(i.a);
            (r, Some(r != 0))
        }),
        "cvt_f32_u32" => plain(B32, |i| (bits_of(i.a as u32 as f32), None)),
        "cvt_f32_i32" => plain(B32, |i| (bits_of(i.a as i32 as f32), None)),
        "cvt_u32_f32" => plain(B32, |i| (u64::from(f32_of(i.a) as u32), None)),
        "cvt_i32_f32" => plain(B32, |i| (u64::from(f32_of(i.a) as i32 as u32), None)),
        "cvt_f16_f32" => plain(B32, |i| (u64::from(half::f16::from_f32(f32_of(i.a)).to_bits()), None)),
        "cvt_f32_f16" => plain(B32, |i| (bits_of(half::f16::from_bits(i.a as u16).to_f32()), None)),
        "ceil_f32" => plain(Kind::F32, |i| (bits_of(f32_of(i.a).ceil()), None)),
        "floor_f32" => plain(Kind::F32, |i| (bits_of(f32_of(i.a).floor()), None)),
        "trunc_f32" => plain(Kind::F32, |i| (bits_of(f32_of(i.a).trunc()), None)),
        "rndne_f32" => plain(Kind::F32, |i| (bits_of(f32_of(i.a).round_ties_even()), None)),
        _ => None,
    }
}

/// The transcendental operations of gfx12 that a scalar takes part in, by mnemonic without their `v_s_`.
pub(crate) fn lookup_transcendental(name: &str) -> Option<ScalarOperation> {
    let operation =
        |function: fn(Inputs) -> (u64, Option<bool>)| Some(ScalarOperation::new(Kind::F32, function));
    match name {
        "exp_f32" => operation(|i| (bits_of(flush(flush(f32_of(i.a)).exp2())), None)),
        "log_f32" => operation(|i| (bits_of(flush(f32_of(i.a)).log2()), None)),
        "rcp_f32" => operation(|i| (bits_of(flush(1.0 / flush(f32_of(i.a)))), None)),
        "rsq_f32" => operation(|i| (bits_of(1.0 / flush(f32_of(i.a)).sqrt()), None)),
        "sqrt_f32" => operation(|i| (bits_of(flush(f32_of(i.a)).sqrt()), None)),
        _ => None,
    }
}

fn first_one(bits: u64, width: u32) -> u64 {
    if bits == 0 { u64::from(u32::MAX) } else { u64::from(bits.trailing_zeros().min(width)) }
}

fn leading(bits: u64, width: u32) -> u64 {
    if bits == 0 { u64::from(u32::MAX) } else { u64::from(bits.leading_zeros() - (64 - width)) }
}

fn whole_quads(mask: u64) -> u64 {
    (0..16).filter(|quad| mask >> (4 * quad) & 0xf != 0).fold(0, |result, quad| result | 0xf << (4 * quad))
}

/// Instructions that read or write the program counter or EXEC.
pub(crate) fn decode_special(name: &str, operands: &[Operand]) -> Option<Scalar> {
    let first = operands.first()?;
    match name {
        "getpc_b64" => return Some(Scalar::GetPc { destination: first.scalar()? }),
        "setpc_b64" => return Some(Scalar::SetPc { source: *first }),
        "swappc_b64" => {
            return Some(Scalar::SwapPc { destination: first.scalar()?, source: *operands.get(1)? });
        }
        _ => {}
    }
    let (operation, rest) = name.rsplit_once('_').and_then(|(stem, _)| {
        stem.strip_suffix("_saveexec")
            .map(|operation| (operation, true))
            .or_else(|| stem.strip_suffix("_wrexec").map(|operation| (operation, false)))
    })?;
    // `mask` is the source operand, `exec` the mask before.
    let operation: fn(u64, u64) -> u64 = match operation {
        "and" => |mask, exec| mask & exec,
        "or" => |mask, exec| mask | exec,
        "xor" => |mask, exec| mask ^ exec,
        "nand" => |mask, exec| !(mask & exec),
        "nor" => |mask, exec| !(mask | exec),
        "xnor" => |mask, exec| !(mask ^ exec),
        "andn2" | "and_not1" => |mask, exec| mask & !exec,
        "orn2" | "or_not1" => |mask, exec| mask | !exec,
        "andn1" | "and_not0" => |mask, exec| !mask & exec,
        "orn1" | "or_not0" => |mask, exec| !mask | exec,
        _ => return None,
    };
    Some(Scalar::SaveExec { operation, keeps_old: rest, destination: *first, source: *operands.get(1)? })
}

#[cfg(test)]
mod tests {
    use super::super::test_support::{Lab, run_scalar};
    use crate::target::Target;

    #[test]
    fn scalars_of_gfx12_have_reciprocals_and_exponentials() {
        let mut lab = Lab::new(Target::Gfx1200);
        lab.scalar(1, 4.0f32.to_bits()).scalar(2, (-3.0f32).to_bits());
        lab.run("v_s_rcp_f32 s3, s1").unwrap();
        lab.run("v_s_exp_f32 s4, s2").unwrap();
        lab.run("v_s_log_f32 s5, s1").unwrap();
        lab.run("v_mov_b32_e32 v0, s3").unwrap();
        lab.run("v_mov_b32_e32 v1, s4").unwrap();
        lab.run("v_mov_b32_e32 v2, s5").unwrap();
        let values = [0, 1, 2].map(|register| f32::from_bits(lab.lane(register, 0)));
        assert_eq!(values, [0.25, 0.125, 2.0]);
    }

    #[test]
    fn bit_counts_and_scans_follow_the_manual() {
        // s_ff1: position of the lowest 1, -1 if none; s_flbit: zeros above the highest 1.
        assert_eq!(run_scalar("s_ff1_i32_b32 s0, s1", &[(1, 0x50)]).0, 4);
        assert_eq!(run_scalar("s_ff1_i32_b32 s0, s1", &[(1, 0)]).0, u32::MAX);
        assert_eq!(run_scalar("s_flbit_i32_b32 s0, s1", &[(1, 0x1000)]).0, 19);
        assert_eq!(run_scalar("s_flbit_i32 s0, s1", &[(1, 0xffff_0000)]).0, 16);
        assert_eq!(run_scalar("s_bcnt1_i32_b64 s0, s[2:3]", &[(2, 0xff), (3, 0xf)]), (12, true));
        assert_eq!(run_scalar("s_bcnt1_i32_b32 s0, s1", &[(1, 0)]), (0, false));
    }

    #[test]
    fn moves_and_extensions() {
        assert_eq!(run_scalar("s_mov_b32 s0, 0xf149f2ca", &[]).0, 0xf149_f2ca);
        assert_eq!(run_scalar("s_mov_b32 s0, 1.0", &[]).0, 0x3f80_0000);
        assert_eq!(run_scalar("s_sext_i32_i8 s0, s1", &[(1, 0x80)]).0, 0xffff_ff80);
        assert_eq!(run_scalar("s_brev_b32 s0, s1", &[(1, 1)]).0, 0x8000_0000);
        assert_eq!(run_scalar("s_abs_i32 s0, s1", &[(1, (-7i32) as u32)]), (7, true));
        assert_eq!(run_scalar("s_not_b32 s0, s1", &[(1, u32::MAX)]), (0, false));
        assert_eq!(run_scalar("s_bitset1_b32 s0, s1", &[(0, 1), (1, 4)]).0, 0x11);
    }

    #[test]
    fn float_conversions_truncate_and_saturate() {
        assert_eq!(run_scalar("s_cvt_u32_f32 s0, s1", &[(1, 3.9f32.to_bits())]).0, 3);
        assert_eq!(run_scalar("s_cvt_u32_f32 s0, s1", &[(1, (-1.0f32).to_bits())]).0, 0);
        assert_eq!(run_scalar("s_cvt_f32_i32 s0, s1", &[(1, (-2i32) as u32)]).0, (-2.0f32).to_bits());
    }
}
