//! SMEM: scalar loads.

use super::operand::{Kind, Operand, Place};
use super::statement::Statement;
use super::{Context, Operation};
use crate::counters::Class;
use crate::fault::Violation;
use crate::memory;
use crate::wave::Wave;

/// A load into consecutive scalar registers.
#[derive(Clone, Debug)]
pub(crate) struct ScalarLoad {
    destination: u16,
    width: Width,
    base: Operand,
    offset: Operand,
    immediate: i64,
    /// `s_buffer_load`: the base is a descriptor, and what lies beyond its records reads as zero.
    is_buffer: bool,
    /// `s_memtime` and its kin: a clock, not memory.
    is_clock: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Width {
    Dwords(u16),
    Small { bytes: u32, is_signed: bool },
}

/// The number of dwords in a memory mnemonic's suffix.
pub(crate) fn dwords(suffix: &str) -> Option<u16> {
    Some(match suffix {
        "dword" | "b32" | "u32" => 1,
        "dwordx2" | "b64" | "u64" => 2,
        "dwordx3" | "b96" => 3,
        "dwordx4" | "b128" => 4,
        "dwordx8" | "b256" => 8,
        "dwordx16" | "b512" => 16,
        _ => return None,
    })
}

pub(crate) fn decode(
    statement: &mut Statement,
    operands: &[Operand],
) -> Result<Option<(Class, Operation)>, String> {
    let name = statement.mnemonic.as_str();
    let is_clock = matches!(name, "s_memtime" | "s_memrealtime");
    let is_buffer = name.starts_with("s_buffer_load_");
    let suffix = name.strip_prefix("s_load_").or_else(|| name.strip_prefix("s_buffer_load_"));
    let width = match suffix {
        _ if is_clock => Width::Dwords(2),
        None => return Ok(None),
        Some("u8") => Width::Small { bytes: 1, is_signed: false },
        Some("i8") => Width::Small { bytes: 1, is_signed: true },
        Some("u16") => Width::Small { bytes: 2, is_signed: false },
        Some("i16") => Width::Small { bytes: 2, is_signed: true },
        Some(suffix) => match dwords(suffix) {
            Some(count) => Width::Dwords(count),
            None => return Ok(None),
        },
    };
    let immediate = statement.modifiers.number("offset")?.unwrap_or(0);
    let destination = operands.first().and_then(Operand::scalar).ok_or("scalar destination")?;
    let none = Operand::plain(Place::Null, 1);
    let (base, offset) = if is_clock {
        (none, none)
    } else {
        (*operands.get(1).ok_or("base")?, operands.get(2).copied().unwrap_or(none))
    };
    let load = ScalarLoad { destination, width, base, offset, immediate, is_buffer, is_clock };
    Ok(Some((Class::ScalarMemory, Operation::ScalarMemory(load))))
}

impl ScalarLoad {
    #[inline(never)]
    pub(crate) fn execute(&self, wave: &mut Wave, context: &mut Context<'_>) -> Result<(), Violation> {
        if self.is_clock {
            wave.set_scalar_pair(self.destination, context.counters.total_instructions());
            wave.outstanding.issue_scalar(self.destination, 2);
            return Ok(());
        }
        let (base, known_base) = wave.uniform(&self.base, Kind::B64);
        let (offset, known_offset) = wave.uniform(&self.offset, Kind::B32);
        if context.checks.uninitialised && known_base & (known_offset | !0xffff_ffff) != u64::MAX {
            return Err(Violation::Uninitialised("the address of a scalar load".into()));
        }
        let (count, bytes) = match self.width {
            Width::Dwords(count) => (count, 4),
            Width::Small { bytes, .. } => (1, bytes),
        };
        let offset = (offset as u32 as u64).wrapping_add_signed(self.immediate);
        let (start, records) = if self.is_buffer {
            let register =
                self.base.scalar().ok_or_else(|| Violation::Invalid("a descriptor in registers".into()))?;
            (base & 0xffff_ffff_ffff, u64::from(wave.scalar[usize::from(register) + 2]))
        } else {
            (base, u64::MAX)
        };
        if !self.is_buffer {
            let first = start.wrapping_add(offset);
            let size = u64::from(count) * u64::from(bytes);
            if !context.memory.contains(&mut wave.recent_allocation, first, first.wrapping_add(size)) {
                return Err(context.memory.describe("scalar read", 0, first, size));
            }
        }
        for dword in 0..u64::from(count) {
            let at = offset + 4 * dword;
            let address = start.wrapping_add(at);
            let value = if self.is_buffer && at + u64::from(bytes) > records {
                0
            } else if self.is_buffer
                && !context.memory.contains(&mut wave.recent_allocation, address, address + u64::from(bytes))
            {
                return Err(context.memory.describe("scalar buffer read", 0, address, u64::from(bytes)));
            } else {
                // SAFETY: the view holds this range, checked above or in the condition before.
                unsafe { load(address, self.width) }
            };
            wave.set_scalar(self.destination + dword as u16, value);
        }
        wave.outstanding.issue_scalar(self.destination, count);
        context.counters.bytes_loaded += u64::from(count) * u64::from(bytes);
        Ok(())
    }
}

/// # Safety
/// The bytes must lie in a live allocation.
unsafe fn load(address: u64, width: Width) -> u32 {
    // SAFETY: the caller's promise is passed on.
    unsafe {
        match width {
            Width::Dwords(_) => memory::read_dword(address),
            Width::Small { bytes, is_signed } => {
                let value = memory::read_small(address, bytes);
                let unused = 32 - 8 * bytes;
                if is_signed { ((value << unused) as i32 >> unused) as u32 } else { value }
            }
        }
    }
}
