//! Buffer memory: a descriptor in four scalar registers bounds every access.

use super::atomic::Atomic;
use super::format::Format;
use super::global::{Access, access, check_bounds, load_to_lds, scratch, transfer};
use super::operand::{Kind, Operand, Place};
use super::statement::Statement;
use super::{Context, Operation};
use crate::counters::Class;
use crate::fault::Violation;
use crate::wave::{LANES, Wave};

/// The base address in the descriptor of a wave's scratch memory.
pub(crate) const SCRATCH_BASE: u64 = 0x5c5c_0000_0000;

/// A buffer instruction.
#[derive(Debug)]
pub(crate) struct BufferAccess {
    access: Access,
    vector_address: Operand,
    descriptor: u16,
    scalar_offset: Operand,
    offset: u32,
    has_offset: bool,
    has_index: bool,
}

pub(crate) fn decode(
    statement: &mut Statement,
    operands: &[Operand],
) -> Result<Option<(Class, Operation)>, String> {
    let Some(name) = statement.mnemonic.strip_prefix("buffer_") else { return Ok(None) };
    let name = name.to_string();
    let to_lds = statement.modifiers.flag("lds");
    let mut operands = operands.to_vec();
    // Stores and atomics name the data first here; bring them into the order of the global instructions.
    if (name.starts_with("store_") || name.starts_with("atomic_")) && operands.len() >= 2 {
        operands.swap(0, 1);
    }
    let (access, mut rest) = if let Some(atomic) = name.strip_prefix("atomic_").and_then(Atomic::parse) {
        let data = operands.get(1).and_then(Operand::vector).ok_or("a vector register expected")?;
        operands.remove(1);
        (Access::Atomic { destination: statement.returns.then_some(data), data, atomic }, operands)
    } else if let Some(found) = access(&name, &operands, to_lds)? {
        found
    } else {
        return Ok(None);
    };
    // A direct load without an address register starts at the descriptor.
    if to_lds && rest.len() == 2 {
        rest.insert(0, Operand::plain(Place::Off, 1));
    }
    let [vector_address, descriptor, scalar_offset] = rest[..] else { return Err("buffer operands".into()) };
    let buffer = BufferAccess {
        access,
        vector_address,
        descriptor: descriptor.scalar().ok_or("a descriptor in scalar registers expected")?,
        scalar_offset,
        offset: statement.modifiers.number("offset")?.unwrap_or(0) as u32,
        has_offset: statement.modifiers.flag("offen"),
        has_index: statement.modifiers.flag("idxen"),
    };
    Ok(Some((Class::VectorMemory, Operation::Buffer(Box::new(buffer)))))
}

impl BufferAccess {
    pub(crate) fn is_load(&self) -> bool {
        matches!(self.access, Access::Load { .. })
    }

    #[inline(never)]
    pub(crate) fn execute(&self, wave: &mut Wave, context: &mut Context<'_>) -> Result<(), Violation> {
        let active = wave.exec();
        let at = usize::from(self.descriptor);
        let [low, high, records, _] = [0, 1, 2, 3].map(|word| wave.scalar[at + word]);
        let is_known = wave.scalar_written[at..at + 4].iter().all(|&written| written == u32::MAX);
        let (scalar_offset, known_offset) = wave.uniform(&self.scalar_offset, Kind::B32);
        if context.checks.uninitialised && !(is_known && known_offset == u64::MAX) {
            return Err(Violation::Uninitialised("the descriptor of a buffer access".into()));
        }
        let base = u64::from(low) | u64::from(high & 0xffff) << 32;
        let stride = high >> 16 & 0x3fff;
        let (indices, offsets) = self.lane_offsets(wave, context, active)?;
        if base == SCRATCH_BASE {
            // Scalar offsets of scratch count the whole wave's bytes.
            let uniform = u64::from(scalar_offset as u32) / wave.size() as u64;
            let places = offsets.map(|offset| u64::from(offset) + uniform);
            return scratch(wave, active, &places, &self.access);
        }
        if high >> 31 == 1 {
            return Err(Violation::UnknownInstruction("a swizzled buffer".into()));
        }
        let bytes = match &self.access {
            Access::Load { format, .. } | Access::Store { format, .. } | Access::LoadToLds { format } => {
                format.bytes()
            }
            Access::Atomic { atomic, .. } => 4 * u32::from(atomic.registers()),
        };
        let mut addresses = [0; LANES];
        let mut inside = 0;
        for lane in (0..LANES).filter(|lane| active >> lane & 1 == 1) {
            let offset = u64::from(offsets[lane]) + scalar_offset;
            let position = u64::from(indices[lane]) * u64::from(stride) + offset;
            let fits = if stride == 0 || !self.has_index {
                position + u64::from(bytes) <= u64::from(records)
            } else {
                indices[lane] < records && offset + u64::from(bytes) <= u64::from(stride)
            };
            inside |= u64::from(fits) << lane;
            addresses[lane] = base + position;
        }
        // Device addresses have 48 bits, which is all that a descriptor holds.
        self.perform(wave, context, active, inside, &addresses)
    }

    /// Lanes outside the records load zero and store nothing.
    fn perform(
        &self,
        wave: &mut Wave,
        context: &mut Context<'_>,
        active: u64,
        inside: u64,
        addresses: &[u64; LANES],
    ) -> Result<(), Violation> {
        let outside = active & !inside;
        match &self.access {
            Access::LoadToLds { format } if outside != 0 => {
                check_bounds(wave, context, inside, addresses, format.bytes(), "read")?;
                load_to_lds(wave, context, inside, Some(addresses), *format, self.offset)?;
                return load_to_lds(wave, context, outside, None, *format, self.offset);
            }
            Access::Load { destination, format } => {
                let registers = format.registers();
                for register in *destination..destination + registers {
                    clear(wave, register, outside, *format);
                }
            }
            _ => {}
        }
        transfer(wave, context, inside, addresses, &self.access, self.offset)
    }

    fn lane_offsets(
        &self,
        wave: &Wave,
        context: &Context<'_>,
        active: u64,
    ) -> Result<([u32; LANES], [u32; LANES]), Violation> {
        let mut indices = [0; LANES];
        let mut offsets = [self.offset; LANES];
        if let Some(register) = self.vector_address.vector() {
            if context.checks.uninitialised {
                for register in register..register + self.vector_address.registers {
                    wave.require_vector(register, active, "a buffer offset")?;
                }
            }
            let mut next = usize::from(register);
            if self.has_index {
                indices = wave.vector[next];
                next += 1;
            }
            if self.has_offset {
                offsets = wave.vector[next].map(|offset| offset.wrapping_add(self.offset));
            }
        }
        Ok((indices, offsets))
    }
}

fn clear(wave: &mut Wave, register: u16, lanes: u64, format: Format) {
    let at = usize::from(register);
    for lane in (0..LANES).filter(|lane| lanes >> lane & 1 == 1) {
        let slot = &mut wave.vector[at][lane];
        *slot = match format {
            Format::Dwords(_) => 0,
            Format::Small { bytes, is_signed, part } => {
                super::format::merge_small(*slot, 0, bytes, is_signed, part)
            }
        };
    }
    wave.vector_written[at] |= lanes;
}

#[cfg(test)]
mod tests {
    use super::super::test_support::Lab;
    use crate::instruction::operand::M0;
    use crate::target::Target;

    fn lab_with_buffer(target: Target, bytes: u32, records: u32) -> Lab {
        let mut lab = Lab::new(target);
        let base = lab.allocate(bytes as usize);
        lab.scalar(4, base as u32).scalar(5, (base >> 32) as u32).scalar(6, records).scalar(7, 0x27000);
        lab
    }

    #[test]
    fn lanes_outside_the_records_load_zero_and_store_nothing() {
        let mut lab = lab_with_buffer(Target::Gfx942, 256, 128);
        lab.vector(1, |lane| 4 * lane as u32).vector(2, |lane| 5 + lane as u32).vector(3, |_| 9);
        lab.run("buffer_store_dword v2, v1, s[4:7], 0 offen").unwrap();
        lab.run("buffer_load_dword v3, v1, s[4:7], 0 offen").unwrap();
        assert_eq!((lab.lane(3, 31), lab.lane(3, 32)), (36, 0));
        assert_eq!(lab.counters.bytes_stored, 128);
        lab.run("buffer_load_dword v3, off, s[4:7], 0 offset:12").unwrap();
        assert_eq!(lab.lane(3, 60), 8);
    }

    #[test]
    fn a_direct_load_puts_zeros_where_the_buffer_ends() {
        let mut lab = lab_with_buffer(Target::Gfx950, 256, 64);
        lab.scalar(M0, 0).vector(1, |lane| 4 * lane as u32).vector(2, |lane| 5 + lane as u32);
        lab.run("buffer_store_dword v2, v1, s[4:7], 0 offen").unwrap();
        lab.run("buffer_load_dword v1, s[4:7], 0 offen lds").unwrap();
        lab.run("s_waitcnt vmcnt(0)").unwrap();
        lab.run("ds_read_b32 v3, v1").unwrap();
        assert_eq!((lab.lane(3, 15), lab.lane(3, 16)), (20, 0));
    }

    #[test]
    fn records_larger_than_the_allocation_do_not_hide_an_overrun() {
        let mut lab = lab_with_buffer(Target::Gfx1100, 64, 4096);
        lab.vector(1, |lane| 4 * lane as u32);
        assert!(lab.run("buffer_load_b32 v3, v1, s[4:7], 0 offen").is_err());
    }

    #[test]
    fn an_atomic_returns_into_its_operand() {
        let mut lab = lab_with_buffer(Target::Gfx942, 64, 64);
        lab.vector(1, |_| 0).vector(2, |_| 1).vector(3, |_| 0);
        lab.run("buffer_store_dword v3, v1, s[4:7], 0 offen").unwrap();
        lab.run("buffer_atomic_add v2, v1, s[4:7], 0 offen sc0").unwrap();
        assert_eq!(lab.lane(2, 63), 63);
    }
}
