//! How memory instructions map bytes to registers.

use super::smem::dwords;
use crate::fault::Violation;
use crate::wave::Wave;

/// The bytes of one element and where they go in a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Dwords(u16),
    Small { bytes: u32, is_signed: bool, part: Part },
}

/// The part of a register that a small element fills or comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The whole register: zero- or sign-extended.
    Whole,
    /// One half, the other kept.
    Low,
    High,
}

impl Format {
    /// The format of a load's suffix: `dwordx4`, `b128`, `ushort`, `short_d16_hi`, `d16_hi_b16`, `u16_d16`.
    pub(crate) fn of_load(suffix: &str) -> Option<Format> {
        let small = |bytes, is_signed, part| Some(Format::Small { bytes, is_signed, part });
        match suffix {
            "ubyte" | "u8" => small(1, false, Part::Whole),
            "sbyte" | "i8" => small(1, true, Part::Whole),
            "ushort" | "u16" => small(2, false, Part::Whole),
            "sshort" | "i16" => small(2, true, Part::Whole),
            "ubyte_d16" | "u8_d16" | "d16_u8" => small(1, false, Part::Low),
            "ubyte_d16_hi" | "u8_d16_hi" | "d16_hi_u8" => small(1, false, Part::High),
            "sbyte_d16" | "i8_d16" | "d16_i8" => small(1, true, Part::Low),
            "sbyte_d16_hi" | "i8_d16_hi" | "d16_hi_i8" => small(1, true, Part::High),
            "short_d16" | "u16_d16" | "d16_b16" => small(2, false, Part::Low),
            "short_d16_hi" | "u16_d16_hi" | "d16_hi_b16" => small(2, false, Part::High),
            _ => dwords(suffix).filter(|&count| count <= 4).map(Format::Dwords),
        }
    }

    /// The format of a store's suffix.
    pub(crate) fn of_store(suffix: &str) -> Option<Format> {
        let small = |bytes, part| Some(Format::Small { bytes, is_signed: false, part });
        match suffix {
            "byte" | "b8" => small(1, Part::Whole),
            "short" | "b16" => small(2, Part::Whole),
            "byte_d16_hi" | "b8_d16_hi" | "d16_hi_b8" => small(1, Part::High),
            "short_d16_hi" | "b16_d16_hi" | "d16_hi_b16" => small(2, Part::High),
            _ => dwords(suffix).filter(|&count| count <= 4).map(Format::Dwords),
        }
    }

    /// Bytes in memory.
    pub(crate) fn bytes(self) -> u32 {
        match self {
            Format::Dwords(count) => 4 * u32::from(count),
            Format::Small { bytes, .. } => bytes,
        }
    }

    /// Registers that hold the element.
    pub(crate) fn registers(self) -> u16 {
        match self {
            Format::Dwords(count) => count,
            Format::Small { .. } => 1,
        }
    }

    /// What an address must be a multiple of: the hardware splits wider accesses by itself.
    pub(crate) fn alignment(self) -> u32 {
        self.bytes().min(4)
    }

    /// Marks the destination of a load as written.
    pub(crate) fn mark_loaded(self, wave: &mut Wave, register: u16, active: u64) {
        for register in register..register + self.registers() {
            wave.vector_written[usize::from(register)] |= active;
        }
    }
}

/// Puts a small element into a register.
#[inline]
pub(crate) fn merge_small(old: u32, value: u32, bytes: u32, is_signed: bool, part: Part) -> u32 {
    let unused = 32 - 8 * bytes;
    let value = if is_signed { ((value << unused) as i32 >> unused) as u32 } else { value };
    match part {
        Part::Whole => value,
        Part::Low => old & 0xffff_0000 | value & 0xffff,
        Part::High => old & 0xffff | value << 16,
    }
}

/// Takes a small element out of a register.
#[inline]
pub(crate) fn extract_small(word: u32, part: Part) -> u32 {
    if part == Part::High { word >> 16 } else { word }
}

/// Fails if an address is not a multiple of what the access needs.
#[inline]
pub(crate) fn check_alignment(address: u64, needed: u32, lane: usize, what: &str) -> Result<(), Violation> {
    if address & u64::from(needed - 1) == 0 {
        return Ok(());
    }
    Err(Violation::Misaligned(format!(
        "{what} at {address:#x} by lane {lane}: a multiple of {needed} is needed"
    )))
}
