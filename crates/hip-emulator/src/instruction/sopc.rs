//! SOPC: scalar comparisons into the condition code.

use super::operand::Kind;
use super::scalar::{Inputs, Outputs, ScalarOperation};

/// The operation of a mnemonic without its `s_`.
pub(crate) fn lookup(name: &str) -> Option<ScalarOperation> {
    Some(match name {
        "bitcmp0_b32" => ScalarOperation::new(Kind::B32, |i| (0, Some(i.a >> (i.b & 31) & 1 == 0))),
        "bitcmp1_b32" => ScalarOperation::new(Kind::B32, |i| (0, Some(i.a >> (i.b & 31) & 1 == 1))),
        "bitcmp0_b64" => ScalarOperation::new(Kind::B64, |i| (0, Some(i.a >> (i.b & 63) & 1 == 0))),
        "bitcmp1_b64" => ScalarOperation::new(Kind::B64, |i| (0, Some(i.a >> (i.b & 63) & 1 == 1))),
        _ => {
            let (relation, kind) = name.strip_prefix("cmp_")?.rsplit_once('_')?;
            match kind {
                "i32" => ScalarOperation::new(Kind::B32, signed(relation)?),
                "u32" => ScalarOperation::new(Kind::B32, unsigned(relation)?),
                "u64" => ScalarOperation::new(Kind::B64, unsigned(relation)?),
                "f32" => ScalarOperation::new(Kind::F32, float(relation)?),
                _ => return None,
            }
        }
    })
}

type Function = fn(Inputs) -> Outputs;

fn signed(relation: &str) -> Option<Function> {
    Some(match relation {
        "eq" => |i| (0, Some(i.a as i32 == i.b as i32)),
        "lg" | "ne" => |i| (0, Some(i.a as i32 != i.b as i32)),
        "gt" => |i| (0, Some(i.a as i32 > i.b as i32)),
        "ge" => |i| (0, Some(i.a as i32 >= i.b as i32)),
        "lt" => |i| (0, Some((i.a as i32) < i.b as i32)),
        "le" => |i| (0, Some(i.a as i32 <= i.b as i32)),
        _ => return None,
    })
}

fn unsigned(relation: &str) -> Option<Function> {
    Some(match relation {
        "eq" => |i| (0, Some(i.a == i.b)),
        "lg" | "ne" => |i| (0, Some(i.a != i.b)),
        "gt" => |i| (0, Some(i.a > i.b)),
        "ge" => |i| (0, Some(i.a >= i.b)),
        "lt" => |i| (0, Some(i.a < i.b)),
        "le" => |i| (0, Some(i.a <= i.b)),
        _ => return None,
    })
}

fn float(relation: &str) -> Option<Function> {
    fn f(bits: u64) -> f32 {
        f32::from_bits(bits as u32)
    }
    Some(match relation {
        "eq" => |i| (0, Some(f(i.a) == f(i.b))),
        "lg" => |i| (0, Some(f(i.a) < f(i.b) || f(i.a) > f(i.b))),
        "neq" => |i| (0, Some(f(i.a) != f(i.b))),
        "gt" => |i| (0, Some(f(i.a) > f(i.b))),
        "ge" => |i| (0, Some(f(i.a) >= f(i.b))),
        "lt" => |i| (0, Some(f(i.a) < f(i.b))),
        "le" => |i| (0, Some(f(i.a) <= f(i.b))),
        "o" => |i| (0, Some(!f(i.a).is_nan() && !f(i.b).is_nan())),
        "u" => |i| (0, Some(f(i.a).is_nan() || f(i.b).is_nan())),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::test_support::run_scalar;

    #[test]
    fn comparisons_respect_the_sign() {
        let minus_one = u32::MAX;
        assert!(run_scalar("s_cmp_lt_i32 s1, s2", &[(1, minus_one), (2, 0)]).1);
        assert!(!run_scalar("s_cmp_lt_u32 s1, s2", &[(1, minus_one), (2, 0)]).1);
        assert!(run_scalar("s_cmp_lg_u32 s1, 0", &[(1, 1)]).1);
        assert!(run_scalar("s_bitcmp1_b32 s1, 3", &[(1, 8)]).1);
        assert!(!run_scalar("s_cmp_eq_u64 s[2:3], s[4:5]", &[(2, 1), (3, 1), (4, 1), (5, 0)]).1);
        assert!(run_scalar("s_cmp_gt_f32 s1, 0.5", &[(1, 1.0f32.to_bits())]).1);
    }
}
