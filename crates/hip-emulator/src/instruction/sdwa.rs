//! SDWA: an operand is a byte or a half of its register (CDNA).

use super::statement::Modifiers;

/// A part of a 32-bit word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Select {
    shift: u32,
    bits: u32,
    is_signed: bool,
}

impl Select {
    pub(crate) const WORD: Select = Select { shift: 0, bits: 32, is_signed: false };
    pub(crate) const LOW: Select = Select { shift: 0, bits: 16, is_signed: false };
    pub(crate) const HIGH: Select = Select { shift: 16, bits: 16, is_signed: false };

    pub(crate) fn parse(name: &str) -> Option<Select> {
        let select = |shift, bits| Some(Select { shift, bits, is_signed: false });
        match name {
            "DWORD" => Some(Select::WORD),
            "WORD_0" => Some(Select::LOW),
            "WORD_1" => Some(Select::HIGH),
            "BYTE_0" => select(0, 8),
            "BYTE_1" => select(8, 8),
            "BYTE_2" => select(16, 8),
            "BYTE_3" => select(24, 8),
            _ => None,
        }
    }

    /// The same part, sign-extended.
    pub(crate) fn signed(self) -> Select {
        Select { is_signed: self.bits < 32, ..self }
    }

    /// The part's value.
    #[inline(always)]
    pub(crate) fn of(self, word: u32) -> u32 {
        let unused = 32 - self.bits;
        let top = word >> self.shift << unused;
        if self.is_signed { (top as i32 >> unused) as u32 } else { top >> unused }
    }
}

/// What happens to the bits of the destination outside the selected part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unused {
    Zero,
    Sign,
    Preserve,
}

/// `dst_sel` and `dst_unused`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Destination {
    select: Select,
    unused: Unused,
}

impl Destination {
    /// Takes the modifiers; a whole destination is `None`.
    pub(crate) fn decode(modifiers: &mut Modifiers) -> Result<Option<Destination>, String> {
        let select = modifiers.take("dst_sel").unwrap_or_else(|| "DWORD".into());
        let unused = modifiers.take("dst_unused").unwrap_or_else(|| "UNUSED_PAD".into());
        let select = Select::parse(&select).ok_or_else(|| format!("dst_sel:{select}"))?;
        let unused = match unused.as_str() {
            "UNUSED_PAD" => Unused::Zero,
            "UNUSED_SEXT" => Unused::Sign,
            "UNUSED_PRESERVE" => Unused::Preserve,
            _ => return Err(format!("dst_unused:{unused}")),
        };
        Ok((select != Select::WORD).then_some(Destination { select, unused }))
    }

    pub(crate) fn merge(self, old: u32, result: u32) -> u32 {
        let Select { shift, bits, .. } = self.select;
        let mask = (u32::MAX >> (32 - bits)) << shift;
        let placed = result << shift & mask;
        match self.unused {
            Unused::Zero => placed,
            Unused::Preserve => old & !mask | placed,
            Unused::Sign => {
                let unused = 32 - bits;
                (((result << unused) as i32 >> unused) as u32) << shift
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_support::Lab;
    use super::*;
    use crate::target::Target;

    #[test]
    fn parts_are_selected_and_extended() {
        let byte = Select::parse("BYTE_2").unwrap();
        assert_eq!(byte.of(0x12ff_5678), 0xff);
        assert_eq!(byte.signed().of(0x12ff_5678), u32::MAX);
        assert_eq!(Select::HIGH.of(0xabcd_1234), 0xabcd);
    }

    #[test]
    fn an_sdwa_instruction_reads_a_part_and_keeps_the_rest() {
        let mut lab = Lab::new(Target::Gfx942);
        lab.vector(1, |_| 0x1234_5678).vector(2, |_| 0xff).vector(0, |_| 0xaaaa_bbbb);
        lab.run(
            "v_and_b32_sdwa v0, v1, v2 dst_sel:DWORD dst_unused:UNUSED_PAD src0_sel:BYTE_1 src1_sel:DWORD",
        )
        .unwrap();
        assert_eq!(lab.lane(0, 5), 0x56);
        lab.vector(0, |_| 0xaaaa_bbbb);
        lab.run("v_lshrrev_b32_sdwa v0, v2, v1 dst_sel:WORD_1 dst_unused:UNUSED_PRESERVE src0_sel:DWORD src1_sel:WORD_1").unwrap();
        // 0x1234 >> (0xff & 31) = 0.
        assert_eq!(lab.lane(0, 5), 0x0000_bbbb);
    }
}
