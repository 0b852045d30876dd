//! Global, flat and scratch memory.

use super::atomic::Atomic;
use super::ds::wide_value;
use super::format::{Format, check_alignment, extract_small, merge_small};
use super::operand::{Half, Kind, M0, Operand, PRIVATE_APERTURE, Place, SHARED_APERTURE};
use super::statement::Statement;
use super::{Context, Operation};
use crate::checker::wait_count::Counter;
use crate::counters::Class;
use crate::fault::Violation;
use crate::memory;
use crate::wave::{LANES, Wave};

/// Which memory an address belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Space {
    Global,
    /// The upper half of the address decides.
    Flat,
    Scratch,
}

/// What an access does with its addresses.
#[derive(Clone, Debug)]
pub(super) enum Access {
    Load {
        destination: u16,
        format: Format,
    },
    Store {
        data: u16,
        format: Format,
    },
    Atomic {
        destination: Option<u16>,
        data: u16,
        atomic: Atomic,
    },
    /// To LDS at M0 plus an offset, lane after lane.
    LoadToLds {
        format: Format,
    },
}

/// A global, flat or scratch instruction.
#[derive(Debug)]
pub(crate) struct GlobalAccess {
    space: Space,
    access: Access,
    vector_address: Operand,
    scalar_address: Operand,
    offset: i64,
}

pub(crate) fn decode(
    statement: &mut Statement,
    operands: &[Operand],
) -> Result<Option<(Class, Operation)>, String> {
    let spaces = [("global_", Space::Global), ("flat_", Space::Flat), ("scratch_", Space::Scratch)];
    let found = spaces.into_iter().find_map(|(prefix, space)| {
        statement.mnemonic.strip_prefix(prefix).map(|name| (name.to_string(), space))
    });
    let Some((name, space)) = found else { return Ok(None) };
    let to_lds = statement.modifiers.flag("lds");
    let Some((access, rest)) = access(&name, operands, to_lds)? else { return Ok(None) };
    let offset = statement.modifiers.number("offset")?.unwrap_or(0);
    let none = Operand::plain(Place::Off, 1);
    let vector_address = *rest.first().ok_or("an address expected")?;
    let scalar_address = rest.get(1).copied().unwrap_or(none);
    let class = if space == Space::Scratch { Class::Scratch } else { Class::VectorMemory };
    let access = GlobalAccess { space, access, vector_address, scalar_address, offset };
    Ok(Some((class, Operation::Global(Box::new(access)))))
}

/// The access that a mnemonic names and the operands that are its address.
pub(super) fn access(
    name: &str,
    operands: &[Operand],
    to_lds: bool,
) -> Result<Option<(Access, Vec<Operand>)>, String> {
    let vector = |at: usize| operands.get(at).and_then(Operand::vector).ok_or("a vector register expected");
    if let Some(format) = name.strip_prefix("load_lds_").and_then(Format::of_load) {
        return Ok(Some((Access::LoadToLds { format }, operands.to_vec())));
    }
    if let Some(format) = name.strip_prefix("load_").and_then(Format::of_load) {
        if to_lds {
            return Ok(Some((Access::LoadToLds { format }, operands.to_vec())));
        }
        let format = with_half(format, operands.first());
        return Ok(Some((Access::Load { destination: vector(0)?, format }, operands[1..].to_vec())));
    }
    if let Some(format) = name.strip_prefix("store_").and_then(Format::of_store) {
        // Global stores name the address first, buffer stores the data: the caller puts the data second.
        let format = with_half(format, operands.get(1));
        let mut rest = operands.to_vec();
        let data = vector(1)?;
        rest.remove(1);
        return Ok(Some((Access::Store { data, format }, rest)));
    }
    let Some(atomic) = name.strip_prefix("atomic_").and_then(Atomic::parse) else { return Ok(None) };
    // With a result there is one operand more: address, data and scalar address are three.
    let returns = operands.len() > 3 || operands.len() == 3 && name.ends_with("_rtn");
    let first = usize::from(returns);
    let data = vector(first + 1)?;
    let destination = if returns { Some(vector(0)?) } else { None };
    let mut rest = operands[first..].to_vec();
    rest.remove(1);
    Ok(Some((Access::Atomic { destination, data, atomic }, rest)))
}

fn with_half(format: Format, operand: Option<&Operand>) -> Format {
    match (format, operand.and_then(|operand| operand.half)) {
        (Format::Small { bytes, is_signed, .. }, Some(half)) => {
            let part = if half == Half::High { super::format::Part::High } else { super::format::Part::Low };
            Format::Small { bytes, is_signed, part }
        }
        (format, _) => format,
    }
}

impl GlobalAccess {
    pub(crate) fn is_load(&self) -> bool {
        matches!(self.access, Access::Load { .. })
    }

    /// The narrowest LDS access, if it may be one.
    pub(crate) fn lds_bytes(&self) -> Option<u32> {
        match &self.access {
            Access::Load { format, .. } | Access::Store { format, .. } if self.space == Space::Flat => {
                Some(format.bytes())
            }
            _ => None,
        }
    }

    #[inline(never)]
    pub(crate) fn execute(&self, wave: &mut Wave, context: &mut Context<'_>) -> Result<(), Violation> {
        let active = wave.exec();
        let addresses = self.addresses(wave, context, active)?;
        match self.space {
            Space::Scratch => return scratch(wave, active, &addresses, &self.access),
            Space::Flat => {
                let apertures = (0..LANES)
                    .filter(|lane| active >> lane & 1 == 1)
                    .map(|lane| (addresses[lane] >> 32) as u32);
                let in_private = apertures.clone().any(|aperture| aperture == PRIVATE_APERTURE);
                let in_shared = apertures.clone().any(|aperture| aperture == SHARED_APERTURE);
                if in_private {
                    let offsets = addresses.map(|address| address & 0xffff_ffff);
                    return scratch(wave, active, &offsets, &self.access);
                }
                if in_shared {
                    return self.flat_lds(wave, context, active, &addresses);
                }
            }
            Space::Global => {}
        }
        transfer(wave, context, active, &addresses, &self.access, self.offset as u32)?;
        if self.space == Space::Flat {
            wave.outstanding.issue_store(Counter::Lds);
        }
        Ok(())
    }

    fn addresses(&self, wave: &Wave, context: &Context<'_>, active: u64) -> Result<[u64; LANES], Violation> {
        let base = match self.scalar_address.place {
            Place::Scalar(_) => {
                let kind = if self.space == Space::Scratch { Kind::B32 } else { Kind::B64 };
                let (base, known) = wave.uniform(&self.scalar_address, kind);
                if known != u64::MAX && context.checks.uninitialised && active != 0 {
                    return Err(Violation::Uninitialised("the base address of an access".into()));
                }
                base
            }
            _ => 0,
        }
        .wrapping_add_signed(self.offset);
        let Some(register) = self.vector_address.vector() else { return Ok([base; LANES]) };
        let at = usize::from(register);
        let is_wide = self.vector_address.registers == 2;
        if context.checks.uninitialised {
            for register in register..register + self.vector_address.registers {
                wave.require_vector(register, active, "an address")?;
            }
        }
        Ok(std::array::from_fn(|lane| {
            let low = u64::from(wave.vector[at][lane]);
            let value = if is_wide { low | u64::from(wave.vector[at + 1][lane]) << 32 } else { low };
            base.wrapping_add(value)
        }))
    }

    /// A flat access whose address lies in LDS.
    fn flat_lds(
        &self,
        wave: &mut Wave,
        context: &mut Context<'_>,
        active: u64,
        addresses: &[u64; LANES],
    ) -> Result<(), Violation> {
        let by = wave.accessor();
        match &self.access {
            Access::Load { destination, format: Format::Dwords(count) } => {
                for lane in (0..LANES).filter(|lane| active >> lane & 1 == 1) {
                    let data = context.lds.read(addresses[lane] as u32, 4 * u32::from(*count), by)?;
                    for (at, word) in data.as_chunks::<4>().0.iter().enumerate() {
                        wave.vector[usize::from(*destination) + at][lane] = u32::from_le_bytes(*word);
                    }
                }
                Format::Dwords(*count).mark_loaded(wave, *destination, active);
                wave.outstanding.issue_flat(Some((*destination, *count)));
            }
            Access::Store { data, format: Format::Dwords(count) } => {
                for lane in (0..LANES).filter(|lane| active >> lane & 1 == 1) {
                    let bytes = context.lds.write(addresses[lane] as u32, 4 * u32::from(*count), by)?;
                    for (at, word) in bytes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                        *word = wave.vector[usize::from(*data) + at][lane].to_le_bytes();
                    }
                }
                wave.outstanding.issue_flat(None);
            }
            _ => return Err(Violation::UnknownInstruction("a flat access to LDS of this kind".into())),
        }
        Ok(())
    }
}

/// Checks that every active lane's bytes lie in an allocation.
pub(super) fn check_bounds(
    wave: &mut Wave,
    context: &Context<'_>,
    active: u64,
    addresses: &[u64; LANES],
    bytes: u32,
    what: &str,
) -> Result<(), Violation> {
    let (mut first, mut last) = (u64::MAX, 0);
    for lane in (0..LANES).filter(|lane| active >> lane & 1 == 1) {
        first = first.min(addresses[lane]);
        last = last.max(addresses[lane]);
    }
    let size = u64::from(bytes);
    if active == 0 || context.memory.contains(&mut wave.recent_allocation, first, last.wrapping_add(size)) {
        return Ok(());
    }
    for lane in (0..LANES).filter(|lane| active >> lane & 1 == 1) {
        let address = addresses[lane];
        if !context.memory.contains(&mut wave.recent_allocation, address, address.wrapping_add(size)) {
            return Err(context.memory.describe(what, lane, address, size));
        }
    }
    Ok(())
}

fn lanes_of(mut active: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        if active == 0 {
            return None;
        }
        let lane = active.trailing_zeros() as usize;
        active &= active - 1;
        Some(lane)
    })
}

/// Performs an access to global memory.
pub(super) fn transfer(
    wave: &mut Wave,
    context: &mut Context<'_>,
    active: u64,
    addresses: &[u64; LANES],
    access: &Access,
    lds_offset: u32,
) -> Result<(), Violation> {
    let format = match access {
        Access::Load { format, .. } | Access::Store { format, .. } | Access::LoadToLds { format } => *format,
        Access::Atomic { atomic, .. } => Format::Dwords(atomic.registers()),
    };
    let (what, alignment) = match access {
        Access::Load { .. } | Access::LoadToLds { .. } => ("read", format.alignment()),
        Access::Store { .. } => ("write", format.alignment()),
        Access::Atomic { .. } => ("atomic", format.bytes()),
    };
    check_bounds(wave, context, active, addresses, format.bytes(), what)?;
    let must_align = context.checks.alignment || matches!(access, Access::Atomic { .. });
    if must_align {
        for lane in lanes_of(active) {
            check_alignment(addresses[lane], alignment, lane, what)?;
        }
    }
    let total = u64::from(active.count_ones()) * u64::from(format.bytes());
    match access {
        Access::Load { destination, format } => {
            load(wave, active, addresses, *destination, *format);
            format.mark_loaded(wave, *destination, active);
            context.counters.bytes_loaded += total;
            wave.outstanding.issue_vector(Counter::Load, *destination, format.registers());
        }
        Access::Store { data, format } => {
            require_stored(wave, context, active, *data, format.registers())?;
            store(wave, active, addresses, *data, *format);
            context.counters.bytes_stored += total;
            wave.outstanding.issue_store(Counter::Store);
        }
        Access::Atomic { destination, data, atomic } => {
            let registers = atomic.registers();
            require_stored(wave, context, active, *data, registers * if atomic.compares { 2 } else { 1 })?;
            let mut old_values = [[0; LANES]; 2];
            for lane in lanes_of(active) {
                let operand = wide_value(wave, *data, lane, atomic.is_wide);
                let expected = if atomic.compares {
                    wide_value(wave, data + registers, lane, atomic.is_wide)
                } else {
                    0
                };
                // SAFETY: bounds and alignment of this lane were checked above.
                let old = unsafe {
                    memory::update(addresses[lane], atomic.is_wide, |old| {
                        (atomic.function)(old, operand, expected)
                    })
                };
                old_values[0][lane] = old as u32;
                old_values[1][lane] = (old >> 32) as u32;
            }
            context.counters.bytes_loaded += total;
            context.counters.bytes_stored += total;
            match destination {
                Some(register) => {
                    for (at, values) in old_values.iter().enumerate().take(usize::from(registers)) {
                        wave.set_vector(register + at as u16, values, active, u64::MAX);
                    }
                    wave.outstanding.issue_vector(Counter::Load, *register, registers);
                }
                None => wave.outstanding.issue_store(Counter::Store),
            }
        }
        Access::LoadToLds { format } => {
            load_to_lds(wave, context, active, Some(addresses), *format, lds_offset)?;
            context.counters.bytes_loaded += total;
        }
    }
    Ok(())
}

fn require_stored(
    wave: &Wave,
    context: &Context<'_>,
    active: u64,
    data: u16,
    registers: u16,
) -> Result<(), Violation> {
    if context.checks.uninitialised {
        for register in data..data + registers {
            wave.require_vector(register, active, "a value stored to memory")?;
        }
    }
    Ok(())
}

/// Writes what lies at `addresses` (or zeros) to LDS, consecutive lanes to consecutive places.
pub(super) fn load_to_lds(
    wave: &mut Wave,
    context: &mut Context<'_>,
    active: u64,
    addresses: Option<&[u64; LANES]>,
    format: Format,
    offset: u32,
) -> Result<(), Violation> {
    // Small elements fill a dword each.
    let step = format.bytes().max(4);
    let base = (wave.scalar[usize::from(M0)] & wave.target.direct_load_mask()).wrapping_add(offset);
    if context.checks.uninitialised && wave.scalar_written[usize::from(M0)] != u32::MAX {
        return Err(Violation::Uninitialised("M0, the LDS address of a direct load".into()));
    }
    let by = wave.accessor();
    let mut ranges = [(0, 0); LANES];
    let mut count = 0;
    for lane in lanes_of(active) {
        let to = base + step * lane as u32;
        let target = context.lds.write_directly(to, step, by)?;
        for (at, word) in target.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let value = addresses.map_or(0, |addresses| {
                let from = addresses[lane] + 4 * at as u64;
                // SAFETY: the caller has checked that the element lies in an allocation.
                unsafe {
                    match format {
                        Format::Dwords(_) => memory::read_dword(from),
                        Format::Small { bytes, is_signed, part } => {
                            merge_small(0, memory::read_small(from, bytes), bytes, is_signed, part)
                        }
                    }
                }
            });
            *word = value.to_le_bytes();
        }
        ranges[count] = (to, step);
        count += 1;
    }
    context.counters.lds_bytes_written += u64::from(step) * count as u64;
    wave.outstanding.issue_lds_write(Counter::Load, &ranges[..count]);
    Ok(())
}

fn load(wave: &mut Wave, active: u64, addresses: &[u64; LANES], destination: u16, format: Format) {
    let first = usize::from(destination);
    for lane in lanes_of(active) {
        let address = addresses[lane];
        match format {
            Format::Dwords(count) => {
                for at in 0..usize::from(count) {
                    // SAFETY: `check_bounds` accepted this lane's element.
                    wave.vector[first + at][lane] = unsafe { memory::read_dword(address + 4 * at as u64) };
                }
            }
            Format::Small { bytes, is_signed, part } => {
                // SAFETY: `check_bounds` accepted this lane's element.
                let value = unsafe { memory::read_small(address, bytes) };
                let slot = &mut wave.vector[first][lane];
                *slot = merge_small(*slot, value, bytes, is_signed, part);
            }
        }
    }
}

fn store(wave: &Wave, active: u64, addresses: &[u64; LANES], data: u16, format: Format) {
    let first = usize::from(data);
    for lane in lanes_of(active) {
        let address = addresses[lane];
        match format {
            Format::Dwords(count) => {
                for at in 0..usize::from(count) {
                    // SAFETY: `check_bounds` accepted this lane's element.
                    unsafe { memory::write_dword(address + 4 * at as u64, wave.vector[first + at][lane]) };
                }
            }
            Format::Small { bytes, part, .. } => {
                // SAFETY: `check_bounds` accepted this lane's element.
                unsafe { memory::write_small(address, bytes, extract_small(wave.vector[first][lane], part)) };
            }
        }
    }
}

/// An access to the lanes' private memory at byte offsets.
pub(super) fn scratch(
    wave: &mut Wave,
    active: u64,
    offsets: &[u64; LANES],
    access: &Access,
) -> Result<(), Violation> {
    let (register, format, is_load) = match access {
        Access::Load { destination, format } => (*destination, *format, true),
        Access::Store { data, format } => (*data, *format, false),
        _ => return Err(Violation::UnknownInstruction("a scratch access of this kind".into())),
    };
    let size = wave.scratch_bytes;
    // A spilled register may be unwritten in part: what was written is spilled with it.
    let mut unknown = [0u64; 4];
    for lane in lanes_of(active) {
        let offset = offsets[lane] as usize;
        let bytes = format.bytes() as usize;
        if offset.checked_add(bytes).is_none_or(|end| end > size) {
            return Err(Violation::OutOfBounds(format!(
                "scratch access of {bytes} bytes at {offset:#x} by lane {lane}; a lane has {size} bytes"
            )));
        }
        let written = &mut wave.scratch_written[lane * size + offset..][..bytes];
        for (at, bytes) in written.chunks_mut(4).enumerate() {
            if is_load {
                unknown[at] |= u64::from(!bytes.iter().all(|&is_written| is_written)) << lane;
            } else {
                bytes.fill(wave.vector_written[usize::from(register) + at] >> lane & 1 == 1);
            }
        }
        let memory = &mut wave.scratch[lane * size + offset..][..bytes];
        match format {
            Format::Dwords(_) => {
                for (at, word) in memory.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                    let slot = &mut wave.vector[usize::from(register) + at][lane];
                    if is_load { *slot = u32::from_le_bytes(*word) } else { *word = slot.to_le_bytes() }
                }
            }
            Format::Small { bytes, is_signed, part } => {
                let slot = &mut wave.vector[usize::from(register)][lane];
                if is_load {
                    let value = memory.iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte));
                    *slot = merge_small(*slot, value, bytes, is_signed, part);
                } else {
                    memory.copy_from_slice(&extract_small(*slot, part).to_le_bytes()[..bytes as usize]);
                }
            }
        }
    }
    if is_load {
        format.mark_loaded(wave, register, active);
        for (at, unknown) in unknown.into_iter().enumerate().take(usize::from(format.registers())) {
            wave.vector_written[usize::from(register) + at] &= !unknown;
        }
        wave.outstanding.issue_vector(Counter::Load, register, format.registers());
    } else {
        wave.outstanding.issue_store(Counter::Store);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::operand::EXEC;
    use super::super::test_support::Lab;
    use super::*;
    use crate::target::Target;

    #[test]
    fn loads_and_stores_move_lanes_through_memory() {
        let mut lab = Lab::new(Target::Gfx942);
        let base = lab.allocate(1024);
        lab.scalar(0, base as u32).scalar(1, (base >> 32) as u32);
        lab.vector(1, |lane| 8 * lane as u32)
            .vector(2, |lane| lane as u32)
            .vector(3, |lane| 100 + lane as u32);
        lab.run("global_store_dwordx2 v1, v[2:3], s[0:1]").unwrap();
        lab.run("global_load_dword v4, v1, s[0:1] offset:4").unwrap();
        assert_eq!(lab.lane(4, 9), 109);
        lab.run("global_load_ubyte v4, v1, s[0:1] offset:4").unwrap();
        assert_eq!(lab.lane(4, 63), 163);
        lab.vector(5, |_| 0x8001_0000);
        lab.run("global_store_short_d16_hi v1, v5, s[0:1]").unwrap();
        lab.run("global_load_sshort v4, v1, s[0:1]").unwrap();
        assert_eq!(lab.lane(4, 0), 0xffff_8001);
        assert_eq!((lab.counters.bytes_stored, lab.counters.bytes_loaded), (64 * 10, 64 * 7));
    }

    #[test]
    fn an_access_past_the_end_names_lane_and_allocation() {
        let mut lab = Lab::new(Target::Gfx1200);
        let base = lab.allocate(64);
        lab.vector(2, |lane| base as u32 + 4 * lane as u32).vector(3, |_| (base >> 32) as u32);
        let error = lab.run("global_load_b32 v0, v[2:3], off").unwrap_err().to_string();
        assert!(error.contains("by lane 16: 0 bytes past the end of allocation #1 (64 bytes)"), "{error}");
    }

    #[test]
    fn an_unwritten_value_may_not_be_stored() {
        let mut lab = Lab::new(Target::Gfx942);
        let base = lab.allocate(256);
        lab.scalar(0, base as u32).scalar(1, (base >> 32) as u32).vector(1, |lane| 4 * lane as u32);
        assert!(matches!(lab.run("global_store_dword v1, v9, s[0:1]"), Err(Violation::Uninitialised(_))));
        lab.vector(2, |_| 0).vector(3, |lane| 1 + 4 * lane as u32);
        assert!(matches!(
            lab.run("global_store_dword v3, v2, s[0:1]"),
            Err(Violation::Misaligned(_) | Violation::OutOfBounds(_))
        ));
    }

    #[test]
    fn atomics_add_up_and_return_what_was_there() {
        let mut lab = Lab::new(Target::Gfx1100);
        let base = lab.allocate(4);
        lab.scalar(0, base as u32)
            .scalar(1, (base >> 32) as u32)
            .vector(1, |_| 0)
            .vector(2, |_| 0)
            .vector(3, |_| 2);
        lab.run("global_store_b32 v1, v2, s[0:1]").unwrap();
        lab.run("global_atomic_add_u32 v4, v1, v3, s[0:1] glc").unwrap();
        assert_eq!((lab.lane(4, 0), lab.lane(4, 31)), (0, 62));
        lab.run("global_atomic_add_f32 v1, v2, s[0:1]").unwrap();
        lab.run("global_load_b32 v5, v1, s[0:1]").unwrap();
        assert_eq!(lab.lane(5, 0), 64);
    }

    #[test]
    fn a_direct_load_fills_lds_lane_after_lane() {
        let mut lab = Lab::new(Target::Gfx942);
        let base = lab.allocate(512);
        lab.scalar(0, base as u32).scalar(1, (base >> 32) as u32).scalar(M0, 256);
        lab.vector(1, |lane| 4 * lane as u32).vector(2, |lane| 7 * lane as u32);
        lab.run("global_store_dword v1, v2, s[0:1]").unwrap();
        lab.run("global_load_lds_dword v1, s[0:1]").unwrap();
        assert!(matches!(lab.run("ds_read_b32 v3, v1 offset:256"), Err(Violation::MissingWait(_))));
        lab.run("s_waitcnt vmcnt(0)").unwrap();
        lab.run("ds_read_b32 v3, v1 offset:256").unwrap();
        assert_eq!(lab.lane(3, 10), 70);
    }

    /// Memory whose dwords count up, its address in `s[0:1]`; `v1` is the offset of the lane's 16 bytes, from the last lane
    /// to the first.
    fn lab_for_wide_direct_loads() -> Lab {
        let mut lab = Lab::new(Target::Gfx950);
        let base = lab.allocate(1024 + 32);
        lab.scalar(0, base as u32).scalar(1, (base >> 32) as u32);
        for dword in 0..4 {
            lab.vector(1, |lane| 16 * lane as u32).vector(2, |lane| 4 * lane as u32 + dword);
            lab.run(&format!("global_store_dword v1, v2, s[0:1] offset:{}", 4 * dword)).unwrap();
        }
        lab.vector(1, |lane| 1008 - 16 * lane as u32).vector(3, |lane| 16 * lane as u32);
        lab
    }

    #[test]
    fn a_wide_direct_load_puts_sixteen_bytes_of_each_lane_side_by_side() {
        let mut lab = lab_for_wide_direct_loads();
        // LDS address: M0 + the instruction's offset + 16 times the lane; the offset moves the memory address too.
        lab.scalar(M0, 512);
        lab.run("global_load_lds_dwordx4 v1, s[0:1]").unwrap();
        assert_eq!((lab.counters.bytes_loaded, lab.counters.lds_bytes_written), (1024, 1024));
        assert!(matches!(lab.run("ds_read_b128 v[4:7], v3 offset:512"), Err(Violation::MissingWait(_))));
        lab.run("s_waitcnt vmcnt(0)").unwrap();
        lab.run("ds_read_b128 v[4:7], v3 offset:512").unwrap();
        for lane in [0, 1, 31, 32, 63] {
            let first = 4 * (63 - lane as u32);
            let found = [4, 5, 6, 7].map(|register| lab.lane(register, lane));
            assert_eq!(found, [first, first + 1, first + 2, first + 3]);
        }
        lab.vector(1, |lane| 16 * (lane as u32 / 2)).scalar(M0, 2048);
        lab.run("global_load_lds_dwordx4 v1, s[0:1] offset:32").unwrap();
        lab.run("s_waitcnt vmcnt(0)").unwrap();
        lab.run("ds_read_b128 v[4:7], v3 offset:2080").unwrap();
        assert_eq!((lab.lane(4, 0), lab.lane(7, 9)), (8, 8 + 4 * 4 + 3));
    }

    #[test]
    fn a_lane_that_is_off_leaves_its_place_as_it_was() {
        let mut lab = lab_for_wide_direct_loads();
        lab.scalar(M0, 0).scalar(EXEC, 0xffff_fffe).scalar(EXEC + 1, u32::MAX);
        lab.run("global_load_lds_dwordx4 v1, s[0:1]").unwrap();
        lab.run("s_waitcnt vmcnt(0)").unwrap();
        lab.run("ds_read_b128 v[4:7], v3").unwrap();
        assert_eq!(lab.lane(4, 1), 4 * 62);
        lab.scalar(EXEC, 1).scalar(EXEC + 1, 0);
        assert!(matches!(lab.run("ds_read_b128 v[4:7], v3"), Err(Violation::Uninitialised(_))));
    }

    #[test]
    fn what_a_direct_load_is_about_to_fill_may_not_be_written() {
        let mut lab = lab_for_wide_direct_loads();
        lab.scalar(M0, 0).vector(4, |_| 7).vector(5, |_| 7).vector(6, |_| 7).vector(7, |_| 7);
        lab.run("global_load_lds_dwordx4 v1, s[0:1]").unwrap();
        // A second load arrives after the first.
        lab.run("global_load_lds_dwordx4 v1, s[0:1]").unwrap();
        assert!(matches!(lab.run("ds_write_b128 v3, v[4:7]"), Err(Violation::MissingWait(_))));
        lab.run("s_waitcnt vmcnt(0)").unwrap();
        lab.run("ds_write_b128 v3, v[4:7]").unwrap();
    }

    #[test]
    fn m0_reaches_all_of_the_largest_lds() {
        assert_eq!(Target::Gfx942.direct_load_mask(), 0xffff);
        assert_eq!(Target::Gfx950.direct_load_mask(), 0x3ffff);
        let mut lab = lab_for_wide_direct_loads();
        lab.scalar(M0, 0x1_0000);
        assert!(matches!(lab.run("global_load_lds_dwordx4 v1, s[0:1]"), Err(Violation::OutOfBounds(_))));
    }

    #[test]
    fn what_a_spilled_register_lacks_it_lacks_when_it_comes_back() {
        let mut lab = Lab::new(Target::Gfx942);
        let base = lab.allocate(1024);
        lab.scalar(0, base as u32).scalar(1, (base >> 32) as u32).vector(1, |_| 0).vector(4, |_| 7);
        lab.run("scratch_store_dwordx2 off, v[4:5], off offset:8").unwrap();
        lab.run("scratch_load_dwordx2 v[8:9], off, off offset:8").unwrap();
        lab.run("s_waitcnt vmcnt(0)").unwrap();
        lab.run("global_store_dword v1, v8, s[0:1]").unwrap();
        assert!(lab.run("global_store_dword v1, v9, s[0:1]").is_err(), "v5 was never written");
    }

    #[test]
    fn scratch_is_private_to_a_lane() {
        let mut lab = Lab::new(Target::Gfx942);
        lab.vector(2, |lane| lane as u32);
        lab.run("scratch_store_dword off, v2, off offset:8").unwrap();
        lab.run("scratch_load_dword v3, off, off offset:8").unwrap();
        assert_eq!(lab.lane(3, 12), 12);
        assert!(matches!(
            lab.run("scratch_load_dword v3, off, off offset:4000"),
            Err(Violation::OutOfBounds(_))
        ));
    }
}
