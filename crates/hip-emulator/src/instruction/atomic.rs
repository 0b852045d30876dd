//! The read-modify-write operations that LDS, global and buffer atomics share.

use half::f16;

use super::float::{bf16_bits, maximum_number, minimum_number, to_bf16};

/// An atomic operation on four or eight bytes.
#[derive(Clone, Copy)]
pub(crate) struct Atomic {
    /// The new value from the old one, the operand and, for compare-and-swap, the comparand.
    pub(crate) function: fn(u64, u64, u64) -> u64,
    pub(crate) is_wide: bool,
    /// The operand is followed (or, in LDS, preceded) by a value to compare with.
    pub(crate) compares: bool,
}

impl std::fmt::Debug for Atomic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Atomic").field("is_wide", &self.is_wide).field("compares", &self.compares).finish()
    }
}

impl Atomic {
    /// The operation of a name such as `add_u32`, `add`, `add_x2`, `smax`, `pk_add_f16`, `cmpswap_b64`.
    pub(crate) fn parse(name: &str) -> Option<Atomic> {
        // gfx9 gives global atomics no type: `add`, `add_x2`, `smax`.
        let (stem, is_wide) = match name.strip_suffix("_x2") {
            Some(stem) => (stem, true),
            None => (name, false),
        };
        let (operation, type_name) = match stem.rsplit_once('_') {
            Some((operation, kind)) if is_type(kind) => (operation, kind),
            _ => (stem, if is_wide { "u64" } else { "u32" }),
        };
        let is_wide = type_name.ends_with("64");
        let is_signed = type_name.starts_with('i') || matches!(operation, "smin" | "smax");
        let operation = match operation {
            "smin" | "umin" | "min_num" | "fmin" => "min",
            "smax" | "umax" | "max_num" | "fmax" => "max",
            "swap" | "wrxchg" | "storexchg" => "swap",
            "cmpswap" | "cmpst" | "cmpstore" => "cmpswap",
            other => other,
        };
        let function: fn(u64, u64, u64) -> u64 = match (operation, type_name) {
            ("add", "f32") => |old, value, _| float(old, value, |a, b| a + b),
            ("min", "f32") => |old, value, _| float(old, value, minimum_number),
            ("max", "f32") => |old, value, _| float(old, value, maximum_number),
            ("add", "f64") => |old, value, _| (f64::from_bits(old) + f64::from_bits(value)).to_bits(),
            ("min", "f64") => |old, value, _| f64::from_bits(old).min(f64::from_bits(value)).to_bits(),
            ("max", "f64") => |old, value, _| f64::from_bits(old).max(f64::from_bits(value)).to_bits(),
            ("pk_add", "f16") => |old, value, _| {
                pair(old, value, |a, b| {
                    let sum = f16::from_bits(a as u16).to_f32() + f16::from_bits(b as u16).to_f32();
                    u32::from(f16::from_f32(sum).to_bits())
                })
            },
            ("pk_add", "bf16") => {
                |old, value, _| pair(old, value, |a, b| to_bf16(bf16_bits(a) + bf16_bits(b)))
            }
            (_, "f16" | "bf16" | "f32" | "f64") => return None,
            ("add", _) => |old, value, _| old.wrapping_add(value),
            ("sub", _) => |old, value, _| old.wrapping_sub(value),
            ("and", _) => |old, value, _| old & value,
            ("or", _) => |old, value, _| old | value,
            ("xor", _) => |old, value, _| old ^ value,
            ("swap", _) => |_, value, _| value,
            ("cmpswap", _) => |old, value, expected| if old == expected { value } else { old },
            ("inc", _) => |old, value, _| if old >= value { 0 } else { old + 1 },
            ("dec", _) => |old, value, _| if old == 0 || old > value { value } else { old - 1 },
            ("min", _) if !is_signed => |old, value, _| old.min(value),
            ("max", _) if !is_signed => |old, value, _| old.max(value),
            ("min", _) if is_wide => |old, value, _| (old as i64).min(value as i64) as u64,
            ("max", _) if is_wide => |old, value, _| (old as i64).max(value as i64) as u64,
            ("min", _) => |old, value, _| u64::from((old as i32).min(value as i32) as u32),
            ("max", _) => |old, value, _| u64::from((old as i32).max(value as i32) as u32),
            _ => return None,
        };
        Some(Atomic { function, is_wide, compares: operation == "cmpswap" })
    }

    /// Registers of the operand, without the comparand.
    pub(crate) fn registers(&self) -> u16 {
        if self.is_wide { 2 } else { 1 }
    }
}

fn is_type(text: &str) -> bool {
    matches!(text, "u32" | "i32" | "b32" | "f32" | "u64" | "i64" | "b64" | "f64" | "f16" | "bf16")
}

fn float(old: u64, value: u64, function: impl Fn(f32, f32) -> f32) -> u64 {
    u64::from(function(f32::from_bits(old as u32), f32::from_bits(value as u32)).to_bits())
}

fn pair(old: u64, value: u64, function: impl Fn(u32, u32) -> u32) -> u64 {
    let half =
        |shift: u32| u64::from(function((old >> shift) as u32 & 0xffff, (value >> shift) as u32 & 0xffff));
    half(0) | half(16) << 16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(name: &str, old: u64, value: u64) -> u64 {
        (Atomic::parse(name).unwrap().function)(old, value, 0) & 0xffff_ffff
    }

    #[test]
    fn names_of_both_generations_mean_the_same() {
        for name in ["add", "add_u32"] {
            assert_eq!(apply(name, 5, 3), 8);
        }
        assert_eq!(apply("smax", u64::from(u32::MAX), 1), 1);
        assert_eq!(apply("max_i32", u64::from(u32::MAX), 1), 1);
        assert_eq!(apply("umax", u64::from(u32::MAX), 1), u64::from(u32::MAX));
        assert_eq!(
            apply("add_f32", 1.5f32.to_bits().into(), 2.0f32.to_bits().into()),
            3.5f32.to_bits().into()
        );
        assert_eq!(apply("pk_add_f16", 0x3c00_3c00, 0x4000_3c00), 0x4200_4000);
        assert!(Atomic::parse("add_x2").unwrap().is_wide);
        assert!(Atomic::parse("cmpswap_b64").unwrap().compares);
        assert!(Atomic::parse("frobnicate_u32").is_none());
    }

    #[test]
    fn increments_and_decrements_wrap_at_the_operand() {
        assert_eq!(apply("inc_u32", 3, 3), 0);
        assert_eq!(apply("inc_u32", 2, 3), 3);
        assert_eq!(apply("dec_u32", 0, 7), 7);
        assert_eq!(apply("dec_u32", 9, 7), 7);
    }
}
