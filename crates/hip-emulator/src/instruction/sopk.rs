//! SOPK: scalar operations with a 16-bit constant, and hardware registers.

use super::operand::{Kind, Literal, Operand, Place};
use super::scalar::{Arithmetic, Scalar, ScalarOperation};
use super::statement::{Statement, number};
use super::{sop1, sop2, sopc};
use crate::fault::Violation;
use crate::wave::Wave;

/// The operation of a mnemonic without its `s_`, and whether it has a destination.
pub(crate) fn lookup(name: &str) -> Option<(ScalarOperation, bool)> {
    Some(match name {
        "cmovk_i32" => {
            let function = ScalarOperation::new(Kind::B32, |i| (if i.scc { i.b } else { i.a }, None));
            (function.with_scc(), true)
        }
        "addk_i32" | "addk_co_i32" => (sop2::lookup("add_i32")?, true),
        "mulk_i32" => (sop2::lookup("mul_i32")?, true),
        _ => {
            let (relation, kind) = name.strip_prefix("cmpk_")?.rsplit_once('_')?;
            (sopc::lookup(&format!("cmp_{relation}_{kind}"))?, false)
        }
    })
}

/// Both sources are the destination and the constant.
pub(crate) fn arithmetic(
    operation: ScalarOperation,
    has_destination: bool,
    operands: &[Operand],
) -> Result<Scalar, String> {
    let [register, constant] = operands else { return Err("two operands expected".into()) };
    let constant = sign_extended(constant).ok_or("a constant expected")?;
    let destination = has_destination.then_some(*register);
    Arithmetic::new(operation, destination, &[*register, constant]).map(Scalar::Arithmetic)
}

/// The 16-bit constant as a 32-bit one. Comparisons of unsigned numbers zero-extend it, but then clang never emits one
/// of 0x8000 or more, so one rule serves all.
fn sign_extended(constant: &Operand) -> Option<Operand> {
    let Place::Literal(literal) = constant.place else { return None };
    let value = literal.bits(Kind::B32) as u16 as i16;
    Some(Operand::plain(Place::Literal(Literal::Integer(i64::from(value))), 1))
}

/// A field of a hardware register: `hwreg(HW_REG_MODE, 4, 2)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HardwareRegister {
    name: String,
    offset: u32,
    width: u32,
}

impl HardwareRegister {
    fn parse(text: &str) -> Option<HardwareRegister> {
        let mut parts = text.strip_prefix("hwreg(")?.strip_suffix(')')?.split(',').map(str::trim);
        let name = parts.next()?.to_string();
        let offset = parts.next().map_or(Some(0), number)? as u32;
        let width = parts.next().map_or(Some(32), number)? as u32;
        Some(HardwareRegister { name, offset, width })
    }

    fn mask(&self) -> u32 {
        if self.width >= 32 { u32::MAX } else { (1 << self.width) - 1 }
    }

    pub(crate) fn read(&self, wave: &Wave) -> Result<u32, Violation> {
        let value = match self.name.as_str() {
            "HW_REG_MODE" => wave.mode,
            // One die, one engine: every workgroup runs on the first.
            "HW_REG_XCC_ID" | "HW_REG_HW_ID" | "HW_REG_HW_ID1" | "HW_REG_HW_ID2" => 0,
            _ => return Err(Violation::UnknownInstruction(format!("hardware register {}", self.name))),
        };
        Ok(value >> self.offset & self.mask())
    }

    pub(crate) fn write(&self, wave: &mut Wave, value: u32) -> Result<(), Violation> {
        if self.name != "HW_REG_MODE" {
            return Err(Violation::UnknownInstruction(format!("hardware register {}", self.name)));
        }
        let mask = self.mask() << self.offset;
        let mode = wave.mode & !mask | value << self.offset & mask;
        // Rounding is to nearest even here; denormals are kept, and where a kernel flushes them (around a division
        // that does not care) the result differs by nothing that survives.
        if mode & 0xf != 0 {
            return Err(Violation::UnknownInstruction(format!("rounding mode {:#x}", mode & 0xf)));
        }
        wave.mode = mode;
        Ok(())
    }
}

/// Instructions whose operands are not all registers.
pub(crate) fn decode_special(statement: &Statement) -> Option<Scalar> {
    let words = &statement.words;
    match statement.mnemonic.as_str() {
        "s_movk_i32" => {
            let destination = Operand::parse(words.first()?)?;
            let constant = sign_extended(&Operand::parse(words.get(1)?)?)?;
            Arithmetic::new(sop1::lookup("mov_b32")?, Some(destination), &[constant])
                .ok()
                .map(Scalar::Arithmetic)
        }
        "s_getreg_b32" => {
            let destination = Operand::parse(words.first()?)?.scalar()?;
            Some(Scalar::GetRegister { destination, register: HardwareRegister::parse(words.get(1)?)? })
        }
        "s_setreg_b32" | "s_setreg_imm32_b32" => {
            let register = HardwareRegister::parse(words.first()?)?;
            Some(Scalar::SetRegister { source: Operand::parse(words.get(1)?)?, register })
        }
        "s_call_b64" => {
            let destination = Operand::parse(words.first()?)?.scalar()?;
            let words = number(words.get(1)?)? as u16 as i16;
            Some(Scalar::Call { destination, words: i64::from(words) })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_support::run_scalar;

    #[test]
    fn the_constant_is_sign_extended() {
        assert_eq!(run_scalar("s_movk_i32 s0, 0xff00", &[]).0, 0xffff_ff00);
        assert_eq!(run_scalar("s_addk_i32 s0, 0xffff", &[(0, 5)]), (4, false));
        assert_eq!(run_scalar("s_mulk_i32 s0, 0x3", &[(0, 5)]).0, 15);
        assert!(run_scalar("s_cmpk_gt_i32 s1, 0xfffe", &[(1, 0)]).1);
    }

    #[test]
    fn mode_fields_can_be_read_back() {
        assert_eq!(run_scalar("s_getreg_b32 s0, hwreg(HW_REG_MODE, 4, 4)", &[]).0, 0xf);
    }
}
