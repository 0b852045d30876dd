//! Operands as the disassembler prints them: registers, constants, modifiers on a source.

use half::f16;

/// Register numbers of the special scalars. `m0` is 124 on gfx9 and 125 on gfx11; one number serves both here.
pub(crate) const FLAT_SCRATCH: u16 = 102;
pub(crate) const VCC: u16 = 106;
pub(crate) const TTMP: u16 = 108;
pub(crate) const M0: u16 = 124;
pub(crate) const EXEC: u16 = 126;
/// Scalar registers that a wave has.
pub(crate) const SCALARS: usize = 128;
/// The first accumulation register (`a0`) in the unified vector register file.
pub(crate) const ACCUMULATORS: u16 = 256;

/// Upper halves of the addresses through which a flat access reaches LDS and scratch.
pub(crate) const SHARED_APERTURE: u32 = 0x0001_0000;
pub(crate) const PRIVATE_APERTURE: u32 = 0x0002_0000;

/// What an operand names.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Place {
    Vector(u16),
    Scalar(u16),
    Literal(Literal),
    Scc,
    VccZero,
    ExecZero,
    SharedBase,
    PrivateBase,
    /// `null`: reads as zero, a write is dropped.
    Null,
    /// `off`: this address operand is absent.
    Off,
}

/// A constant. How many bits it has depends on the instruction that reads it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Literal {
    /// An inline integer, printed in decimal; sign-extended to the operand.
    Integer(i64),
    /// A 32-bit literal, printed in hexadecimal.
    Bits(u64),
    /// An inline float, converted to the operand's type.
    Float(f64),
}

/// How an instruction interprets a source or a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    B16,
    F16,
    B32,
    F32,
    B64,
    F64,
}

impl Kind {
    pub(crate) fn is_half(self) -> bool {
        matches!(self, Kind::B16 | Kind::F16)
    }

    pub(crate) fn is_wide(self) -> bool {
        matches!(self, Kind::B64 | Kind::F64)
    }

    /// The sign bit that `-x` flips and `|x|` clears.
    pub(crate) fn sign(self) -> u64 {
        match self {
            Kind::B16 | Kind::F16 => 1 << 15,
            Kind::B32 | Kind::F32 => 1 << 31,
            Kind::B64 | Kind::F64 => 1 << 63,
        }
    }
}

impl Literal {
    /// The constant's bits as an operand of this kind.
    pub(crate) fn bits(self, kind: Kind) -> u64 {
        let mask = match kind {
            Kind::B16 | Kind::F16 => 0xffff,
            Kind::B32 | Kind::F32 => 0xffff_ffff,
            Kind::B64 | Kind::F64 => u64::MAX,
        };
        match (self, kind) {
            (Literal::Integer(value), _) => value as u64 & mask,
            // A 32-bit literal is the high half of a double.
            (Literal::Bits(bits), Kind::F64) if bits <= u64::from(u32::MAX) => bits << 32,
            (Literal::Bits(bits), _) => bits & mask,
            (Literal::Float(value), Kind::B16 | Kind::F16) => u64::from(f16::from_f64(value).to_bits()),
            (Literal::Float(value), Kind::B32 | Kind::F32) => u64::from((value as f32).to_bits()),
            (Literal::Float(value), Kind::B64 | Kind::F64) => value.to_bits(),
        }
    }
}

/// Which 16 bits of a register (`.l`, `.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Half {
    Low,
    High,
}

/// An operand with the modifiers printed on it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Operand {
    pub(crate) place: Place,
    /// Consecutive registers.
    pub(crate) registers: u16,
    pub(crate) negate: bool,
    pub(crate) absolute: bool,
    /// `sext(v0)`, an SDWA modifier.
    pub(crate) sign_extend: bool,
    pub(crate) half: Option<Half>,
}

impl Operand {
    /// An operand without modifiers.
    pub(crate) fn plain(place: Place, registers: u16) -> Operand {
        Operand { place, registers, negate: false, absolute: false, sign_extend: false, half: None }
    }

    /// The vector register, if it is one.
    pub(crate) fn vector(&self) -> Option<u16> {
        match self.place {
            Place::Vector(register) => Some(register),
            _ => None,
        }
    }

    /// The scalar register, if it is one.
    pub(crate) fn scalar(&self) -> Option<u16> {
        match self.place {
            Place::Scalar(register) => Some(register),
            _ => None,
        }
    }

    /// Reads one operand, for example `-|v3|`, `s[4:5]`, `v2.h`, `0x40490fdb`.
    pub(crate) fn parse(text: &str) -> Option<Operand> {
        let mut operand = Operand::plain(Place::Null, 1);
        let mut text = text.trim();
        if let Some(inner) = text.strip_prefix("sext(").and_then(|t| t.strip_suffix(')')) {
            operand.sign_extend = true;
            text = inner;
        }
        if let Some(inner) = text.strip_prefix("neg(").and_then(|t| t.strip_suffix(')')) {
            operand.negate = true;
            text = inner;
        }
        if let Some(rest) = text.strip_prefix('-')
            && !rest.starts_with(|c: char| c.is_ascii_digit())
        {
            operand.negate = true;
            text = rest;
        }
        if let Some(inner) = text.strip_prefix('|').and_then(|t| t.strip_suffix('|')) {
            operand.absolute = true;
            text = inner;
        }
        if let Some(register) = text.strip_suffix(".l") {
            operand.half = Some(Half::Low);
            text = register;
        } else if let Some(register) = text.strip_suffix(".h") {
            operand.half = Some(Half::High);
            text = register;
        }
        (operand.place, operand.registers) = place(text)?;
        Some(operand)
    }
}

fn place(text: &str) -> Option<(Place, u16)> {
    for (prefix, first, is_vector) in
        [("ttmp", TTMP, false), ("v", 0, true), ("a", ACCUMULATORS, true), ("s", 0, false)]
    {
        if let Some((register, count)) = text.strip_prefix(prefix).and_then(register_range) {
            let register = first + register;
            let limit = if is_vector { 2 * ACCUMULATORS } else { SCALARS as u16 };
            if register + count > limit {
                return None;
            }
            return Some((if is_vector { Place::Vector(register) } else { Place::Scalar(register) }, count));
        }
    }
    let named = match text {
        "vcc" => (Place::Scalar(VCC), 2),
        "vcc_lo" => (Place::Scalar(VCC), 1),
        "vcc_hi" => (Place::Scalar(VCC + 1), 1),
        "exec" => (Place::Scalar(EXEC), 2),
        "exec_lo" => (Place::Scalar(EXEC), 1),
        "exec_hi" => (Place::Scalar(EXEC + 1), 1),
        "m0" => (Place::Scalar(M0), 1),
        "flat_scratch" => (Place::Scalar(FLAT_SCRATCH), 2),
        "flat_scratch_lo" => (Place::Scalar(FLAT_SCRATCH), 1),
        "flat_scratch_hi" => (Place::Scalar(FLAT_SCRATCH + 1), 1),
        "scc" | "src_scc" => (Place::Scc, 1),
        "src_vccz" | "vccz" => (Place::VccZero, 1),
        "src_execz" | "execz" => (Place::ExecZero, 1),
        "src_shared_base" => (Place::SharedBase, 2),
        "src_private_base" => (Place::PrivateBase, 2),
        "null" => (Place::Null, 1),
        "off" => (Place::Off, 1),
        _ => (Place::Literal(literal(text)?), 1),
    };
    Some(named)
}

/// `3` or `[4:7]`.
fn register_range(text: &str) -> Option<(u16, u16)> {
    let Some(range) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) else {
        return text.parse().ok().map(|register| (register, 1));
    };
    let (first, last) = range.split_once(':').unwrap_or((range, range));
    let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some((first, last - first + 1))
}

fn literal(text: &str) -> Option<Literal> {
    // `lit(..)` marks a literal whose value an inline constant could have.
    let text = text.strip_prefix("lit(").and_then(|t| t.strip_suffix(')')).unwrap_or(text);
    if let Some(digits) = text.strip_prefix("0x") {
        return u64::from_str_radix(digits, 16).ok().map(Literal::Bits);
    }
    if text.contains('.') {
        return text.parse().ok().map(Literal::Float);
    }
    text.parse().ok().map(Literal::Integer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_ranges_and_modifiers_are_read() {
        let operand = Operand::parse("-|v17|").unwrap();
        assert_eq!((operand.place, operand.negate, operand.absolute), (Place::Vector(17), true, true));
        let operand = Operand::parse("s[4:7]").unwrap();
        assert_eq!((operand.place, operand.registers), (Place::Scalar(4), 4));
        assert_eq!(Operand::parse("a3").unwrap().place, Place::Vector(259));
        assert_eq!(Operand::parse("v3.h").unwrap().half, Some(Half::High));
        assert_eq!(Operand::parse("ttmp9").unwrap().place, Place::Scalar(117));
        assert!(Operand::parse("sext(v1)").unwrap().sign_extend);
        assert_eq!(Operand::parse("v600"), None);
    }

    #[test]
    fn a_constant_takes_the_width_of_its_operand() {
        assert_eq!(Literal::Float(0.5).bits(Kind::F16), 0x3800);
        assert_eq!(Literal::Float(1.0).bits(Kind::F32), 0x3f80_0000);
        assert_eq!(Literal::Float(-4.0).bits(Kind::F64), (-4.0f64).to_bits());
        assert_eq!(Literal::Integer(-1).bits(Kind::B64), u64::MAX);
        assert_eq!(Literal::Bits(0xffff_0000).bits(Kind::B64), 0xffff_0000);
        assert_eq!(Literal::Bits(0x3ff0_0000).bits(Kind::F64), 1.0f64.to_bits());
        assert_eq!(
            Operand::parse("lit(0xffffffff)").unwrap().place,
            Place::Literal(Literal::Bits(0xffff_ffff))
        );
        assert_eq!(Operand::parse("-16").unwrap().place, Place::Literal(Literal::Integer(-16)));
    }
}
