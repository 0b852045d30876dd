//! DS: LDS loads, stores, atomics and the permutations that use the LDS crossbar.

use super::atomic::Atomic;
use super::format::{Format, check_alignment, extract_small, merge_small};
use super::operand::{Half, Operand};
use super::smem::dwords;
use super::statement::{Modifiers, Statement, number};
use super::{Context, Operation};
use crate::checker::bank_conflicts;
use crate::checker::wait_count::Counter;
use crate::counters::Class;
use crate::fault::Violation;
use crate::wave::{LANES, Lanes, Wave};

/// An LDS instruction.
#[derive(Debug)]
pub(crate) struct LdsAccess {
    kind: Access,
    address: u16,
    /// Byte offsets of the one or two accesses.
    offsets: Vec<u32>,
}

#[derive(Debug)]
enum Access {
    Load {
        destination: u16,
        format: Format,
    },
    Store {
        data: Vec<u16>,
        format: Format,
    },
    Atomic {
        destination: Option<u16>,
        data: u16,
        comparand: u16,
        atomic: Atomic,
    },
    /// `ds_read_*_tr_*`: sixteen lanes read a tile and get its transpose; elements of this many bits.
    Transpose {
        destination: u16,
        bits: usize,
    },
    /// `ds_bpermute`: a lane reads the lane that its address names.
    BackwardPermute {
        destination: u16,
        data: u16,
    },
    /// `ds_permute`: a lane writes to the lane that its address names.
    ForwardPermute {
        destination: u16,
        data: u16,
    },
    Swizzle {
        destination: u16,
        source: u16,
        pattern: Swizzle,
    },
}

/// How `ds_swizzle` picks a lane of each group of 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Swizzle {
    Quad([u8; 4]),
    Mask { and: usize, or: usize, xor: usize },
}

pub(crate) fn decode(
    statement: &mut Statement,
    operands: &[Operand],
) -> Result<Option<(Class, Operation)>, String> {
    let Some(name) = statement.mnemonic.strip_prefix("ds_") else { return Ok(None) };
    let name = name.to_string();
    let vector = |at: usize| operands.get(at).and_then(Operand::vector).ok_or("a vector register expected");
    let high = |at: usize, format: Format| match (format, operands.get(at).and_then(|operand| operand.half)) {
        (Format::Small { bytes, is_signed, .. }, Some(half)) => {
            let part = if half == Half::High { super::format::Part::High } else { super::format::Part::Low };
            Format::Small { bytes, is_signed, part }
        }
        (format, _) => format,
    };
    if name == "swizzle_b32" {
        let text = statement.modifiers.take("offset").unwrap_or_else(|| "0".into());
        let pattern = Swizzle::parse(&text).ok_or_else(|| format!("offset:{text}"))?;
        let kind = Access::Swizzle { destination: vector(0)?, source: vector(1)?, pattern };
        return finish(kind, 0, vec![0]);
    }
    if let Some((width, stride)) = two_addresses(&name, ["read2", "load_2addr"]) {
        let format = Format::Dwords(dwords(width).ok_or("width")?);
        let offsets = pair_offsets(&mut statement.modifiers, format.bytes() * stride)?;
        return finish(Access::Load { destination: vector(0)?, format }, vector(1)?, offsets);
    }
    if let Some((width, stride)) = two_addresses(&name, ["write2", "store_2addr"]) {
        let format = Format::Dwords(dwords(width).ok_or("width")?);
        let offsets = pair_offsets(&mut statement.modifiers, format.bytes() * stride)?;
        return finish(Access::Store { data: vec![vector(1)?, vector(2)?], format }, vector(0)?, offsets);
    }
    let offset = statement.modifiers.number("offset")?.unwrap_or(0) as u32;
    let transposed = ["b64_tr_b16", "b64_tr_b8"].into_iter().zip([16, 8]);
    for (suffix, bits) in transposed {
        if name.strip_prefix("read_") == Some(suffix) {
            return finish(Access::Transpose { destination: vector(0)?, bits }, vector(1)?, vec![offset]);
        }
    }
    if let Some(format) = strip(&name, ["read_", "load_"]).and_then(Format::of_load) {
        return finish(
            Access::Load { destination: vector(0)?, format: high(0, format) },
            vector(1)?,
            vec![offset],
        );
    }
    if let Some(format) = strip(&name, ["write_", "store_"]).and_then(Format::of_store) {
        let kind = Access::Store { data: vec![vector(1)?], format: high(1, format) };
        return finish(kind, vector(0)?, vec![offset]);
    }
    match name.as_str() {
        "bpermute_b32" => {
            return finish(
                Access::BackwardPermute { destination: vector(0)?, data: vector(2)? },
                vector(1)?,
                vec![offset],
            );
        }
        "permute_b32" => {
            return finish(
                Access::ForwardPermute { destination: vector(0)?, data: vector(2)? },
                vector(1)?,
                vec![offset],
            );
        }
        _ => {}
    }
    let returns = name.contains("_rtn");
    let Some(atomic) = Atomic::parse(&name.replace("_rtn", "")) else { return Ok(None) };
    let first = usize::from(returns);
    let destination = if returns { Some(vector(0)?) } else { None };
    // gfx9's cmpst has the comparand first, gfx11's cmpstore has it last.
    let (data, comparand) = match (atomic.compares, name.starts_with("cmpstore")) {
        (false, _) => (vector(first + 1)?, 0),
        (true, false) => (vector(first + 2)?, vector(first + 1)?),
        (true, true) => (vector(first + 1)?, vector(first + 2)?),
    };
    finish(Access::Atomic { destination, data, comparand, atomic }, vector(first)?, vec![offset])
}

fn finish(kind: Access, address: u16, offsets: Vec<u32>) -> Result<Option<(Class, Operation)>, String> {
    Ok(Some((Class::Lds, Operation::Lds(Box::new(LdsAccess { kind, address, offsets })))))
}

fn strip<'n>(name: &'n str, prefixes: [&str; 2]) -> Option<&'n str> {
    prefixes.into_iter().find_map(|prefix| name.strip_prefix(prefix))
}

/// The width and the stride in elements of a two-address mnemonic.
fn two_addresses<'n>(name: &'n str, stems: [&str; 2]) -> Option<(&'n str, u32)> {
    let rest = strip(name, stems)?;
    for (infix, stride) in [("st64_", 64), ("_stride64_", 64), ("_", 1)] {
        if let Some(width) = rest.strip_prefix(infix) {
            return Some((width, stride));
        }
    }
    None
}

fn pair_offsets(modifiers: &mut Modifiers, unit: u32) -> Result<Vec<u32>, String> {
    let mut offset = |key| Ok::<u32, String>(modifiers.number(key)?.unwrap_or(0) as u32 * unit);
    Ok(vec![offset("offset0")?, offset("offset1")?])
}

impl Swizzle {
    /// A number, or `swizzle(SWAP,16)` and its kin.
    fn parse(text: &str) -> Option<Swizzle> {
        if let Some(bits) = number(text) {
            let field = |at: u32| (bits >> at & 0x1f) as usize;
            let quad = |at: u32| (bits >> at & 3) as u8;
            return Some(if bits >> 15 & 1 == 1 {
                Swizzle::Quad([quad(0), quad(2), quad(4), quad(6)])
            } else {
                Swizzle::Mask { and: field(0), or: field(5), xor: field(10) }
            });
        }
        let inner = text.strip_prefix("swizzle(")?.strip_suffix(')')?;
        let mut parts = inner.split(',').map(str::trim);
        let mode = parts.next()?;
        let rest: Vec<&str> = parts.collect();
        let count = |at: usize| rest.get(at).and_then(|text| number(text)).map(|n| n as usize);
        Some(match mode {
            "SWAP" => Swizzle::Mask { and: 31, or: 0, xor: count(0)? },
            "REVERSE" => Swizzle::Mask { and: 31, or: 0, xor: count(0)? - 1 },
            "BROADCAST" => Swizzle::Mask { and: !(count(0)? - 1) & 31, or: count(1)?, xor: 0 },
            "QUAD_PERM" => {
                Swizzle::Quad([count(0)? as u8, count(1)? as u8, count(2)? as u8, count(3)? as u8])
            }
            "BITMASK_PERM" => {
                let (mut and, mut or, mut xor) = (0, 0, 0);
                for (position, letter) in rest.first()?.trim_matches('"').bytes().enumerate() {
                    let bit = 1 << (4 - position.min(4));
                    match letter {
                        b'0' => {}
                        b'1' => or |= bit,
                        b'p' => and |= bit,
                        b'i' => {
                            and |= bit;
                            xor |= bit;
                        }
                        _ => return None,
                    }
                }
                Swizzle::Mask { and, or, xor }
            }
            _ => return None,
        })
    }

    fn source(self, lane: usize) -> usize {
        match self {
            Swizzle::Quad(order) => (lane & !3) + usize::from(order[lane & 3]),
            Swizzle::Mask { and, or, xor } => (lane & !31) + ((lane & 31 & and | or) ^ xor),
        }
    }
}

impl LdsAccess {
    pub(crate) fn is_load(&self) -> bool {
        matches!(self.kind, Access::Load { .. } | Access::Transpose { .. })
    }

    /// The narrowest LDS access, which sets the granularity of the race checker.
    pub(crate) fn access_bytes(&self) -> Option<u32> {
        match &self.kind {
            Access::Load { format, .. } | Access::Store { format, .. } => Some(format.bytes()),
            _ => None,
        }
    }

    #[inline(never)]
    pub(crate) fn execute(&self, wave: &mut Wave, context: &mut Context<'_>) -> Result<(), Violation> {
        let active = wave.exec();
        match &self.kind {
            Access::Load { destination, format } => {
                self.require_address(wave, active, context)?;
                let mut register = *destination;
                // Before the first result is written: it may go where the address was.
                let base = self.addresses(wave, 0);
                for &offset in &self.offsets {
                    let addresses = base.map(|address| address.wrapping_add(offset));
                    load(wave, context, active, &addresses, register, *format)?;
                    format.mark_loaded(wave, register, active);
                    register += format.registers();
                }
                wave.outstanding.issue_vector(Counter::Lds, *destination, register - destination);
            }
            Access::Store { data, format } => {
                self.require_address(wave, active, context)?;
                let mut ranges = [(0, 0); 2 * LANES];
                let mut count = 0;
                for (&offset, &register) in self.offsets.iter().zip(data) {
                    let addresses = self.addresses(wave, offset);
                    store(wave, context, active, &addresses, register, *format)?;
                    for lane in (0..LANES).filter(|lane| active >> lane & 1 == 1) {
                        ranges[count] = (addresses[lane], format.bytes());
                        count += 1;
                    }
                }
                if context.checks.lds_race {
                    wave.outstanding.issue_lds_write(Counter::Lds, &ranges[..count]);
                } else {
                    wave.outstanding.issue_store(Counter::Lds);
                }
            }
            Access::Atomic { destination, data, comparand, atomic } => {
                self.require_address(wave, active, context)?;
                let addresses = self.addresses(wave, self.offsets[0]);
                self.atomic(wave, context, active, &addresses, *destination, (*data, *comparand), atomic)?;
            }
            Access::Transpose { destination, bits } => {
                self.require_address(wave, active, context)?;
                self.transpose(wave, context, active, *destination, *bits)?;
            }
            Access::BackwardPermute { destination, data } => {
                let (values, known) = self.gather(wave, active, *data);
                wave.set_vector(*destination, &values, active, known);
                wave.outstanding.issue_vector(Counter::Lds, *destination, 1);
            }
            Access::ForwardPermute { destination, data } => {
                let size = wave.size();
                let (mut values, mut known) = ([0; LANES], u64::MAX);
                for lane in (0..size).filter(|lane| active >> lane & 1 == 1) {
                    let to = self.lane(wave, lane, size);
                    values[to] = wave.vector[usize::from(*data)][lane];
                    let is_known = wave.vector_written[usize::from(*data)] >> lane & 1;
                    known = known & !(1 << to) | is_known << to;
                }
                wave.set_vector(*destination, &values, active, known);
                wave.outstanding.issue_vector(Counter::Lds, *destination, 1);
            }
            Access::Swizzle { destination, source, pattern } => {
                let (mut values, mut known) = ([0; LANES], 0);
                for (lane, value) in values.iter_mut().enumerate().take(wave.size()) {
                    let from = pattern.source(lane);
                    // An inactive source reads as zero.
                    let is_active = active >> from & 1 == 1;
                    *value = if is_active { wave.vector[usize::from(*source)][from] } else { 0 };
                    known |= (wave.vector_written[usize::from(*source)] >> from & 1 | u64::from(!is_active))
                        << lane;
                }
                wave.set_vector(*destination, &values, active, known);
                wave.outstanding.issue_vector(Counter::Lds, *destination, 1);
            }
        }
        Ok(())
    }

    fn require_address(&self, wave: &Wave, active: u64, context: &Context<'_>) -> Result<(), Violation> {
        if context.checks.uninitialised {
            wave.require_vector(self.address, active, "an LDS address")
        } else {
            Ok(())
        }
    }

    fn addresses(&self, wave: &Wave, offset: u32) -> Lanes {
        wave.vector[usize::from(self.address)].map(|address| address.wrapping_add(offset))
    }

    /// The lane that a permutation's address names.
    fn lane(&self, wave: &Wave, lane: usize, size: usize) -> usize {
        let address = wave.vector[usize::from(self.address)][lane].wrapping_add(self.offsets[0]);
        (address as usize / 4) & (size - 1)
    }

    fn gather(&self, wave: &Wave, active: u64, data: u16) -> (Lanes, u64) {
        let size = wave.size();
        let (mut values, mut known) = ([0; LANES], 0);
        let data = usize::from(data);
        for (lane, value) in values.iter_mut().enumerate().take(size) {
            let from = self.lane(wave, lane, size);
            let is_active = active >> from & 1 == 1;
            *value = if is_active { wave.vector[data][from] } else { 0 };
            known |= (wave.vector_written[data] >> from & 1 | u64::from(!is_active)) << lane;
        }
        (values, known & wave.vector_written[usize::from(self.address)])
    }

    #[allow(clippy::too_many_arguments, reason = "the parts of one decoded instruction")]
    fn atomic(
        &self,
        wave: &mut Wave,
        context: &mut Context<'_>,
        active: u64,
        addresses: &Lanes,
        destination: Option<u16>,
        (data, comparand): (u16, u16),
        atomic: &Atomic,
    ) -> Result<(), Violation> {
        let bytes = 4 * u32::from(atomic.registers());
        let mut old_values = [[0; LANES]; 2];
        for lane in (0..LANES).filter(|lane| active >> lane & 1 == 1) {
            if context.checks.uninitialised {
                wave.require_vector(data, 1 << lane, "the operand of an atomic")?;
            }
            let address = addresses[lane];
            check_alignment(u64::from(address), bytes, lane, "LDS atomic")?;
            let operand = wide_value(wave, data, lane, atomic.is_wide);
            let expected =
                if atomic.compares { wide_value(wave, comparand, lane, atomic.is_wide) } else { 0 };
            let cell = context.lds.atomic(address, bytes, wave.accessor())?;
            let old = cell.iter().rev().fold(0u64, |value, &byte| value << 8 | u64::from(byte));
            let new = (atomic.function)(old, operand, expected);
            cell.copy_from_slice(&new.to_le_bytes()[..bytes as usize]);
            old_values[0][lane] = old as u32;
            old_values[1][lane] = (old >> 32) as u32;
        }
        let lanes = u64::from(active.count_ones());
        context.counters.lds_bytes_read += lanes * u64::from(bytes);
        context.counters.lds_bytes_written += lanes * u64::from(bytes);
        match destination {
            Some(register) => {
                for (at, values) in old_values.iter().enumerate().take(usize::from(atomic.registers())) {
                    wave.set_vector(register + at as u16, values, active, u64::MAX);
                }
                wave.outstanding.issue_vector(Counter::Lds, register, atomic.registers());
            }
            None => wave.outstanding.issue_store(Counter::Lds),
        }
        Ok(())
    }

    /// Sixteen lanes hold a tile whose rows are read by neighbouring lanes; each lane gets a column.
    fn transpose(
        &self,
        wave: &mut Wave,
        context: &mut Context<'_>,
        active: u64,
        destination: u16,
        bits: usize,
    ) -> Result<(), Violation> {
        let addresses = self.addresses(wave, self.offsets[0]);
        let mut rows = [[0u8; 8]; LANES];
        let extra = count_access(context, active, &addresses, 8, wave.target.lds_banks());
        context.counters.lds_read_conflicts += extra;
        context.counters.lds_bytes_read += 8 * u64::from(active.count_ones());
        for lane in (0..LANES).filter(|lane| active >> lane & 1 == 1) {
            check_alignment(u64::from(addresses[lane]), 8, lane, "LDS transpose read")?;
            rows[lane].copy_from_slice(context.lds.read(addresses[lane], 8, wave.accessor())?);
        }
        let (bytes, in_lane) = (bits / 8, 64 / bits);
        // A row of the tile has 16 elements, read by 16 / in_lane lanes.
        let readers = 16 / in_lane;
        let mut words = [[0; LANES]; 2];
        for lane in 0..LANES {
            let (group, column) = (lane & !15, lane & 15);
            let mut value = 0u64;
            for element in 0..in_lane {
                let from = group + element * readers + column / in_lane;
                let at = column % in_lane * bytes;
                for byte in 0..bytes {
                    value |= u64::from(rows[from][at + byte]) << (8 * (element * bytes + byte));
                }
            }
            words[0][lane] = value as u32;
            words[1][lane] = (value >> 32) as u32;
        }
        for (at, word) in words.iter().enumerate() {
            wave.set_vector(destination + at as u16, word, active, u64::MAX);
        }
        wave.outstanding.issue_vector(Counter::Lds, destination, 2);
        Ok(())
    }
}

pub(super) fn wide_value(wave: &Wave, register: u16, lane: usize, is_wide: bool) -> u64 {
    let at = usize::from(register);
    let low = u64::from(wave.vector[at][lane]);
    if is_wide { low | u64::from(wave.vector[at + 1][lane]) << 32 } else { low }
}

/// Counts what a load or store costs beyond its bytes; returns the extra cycles of bank conflicts.
fn count_access(context: &mut Context<'_>, active: u64, addresses: &Lanes, bytes: u32, banks: usize) -> u64 {
    let extra = bank_conflicts::extra_cycles(addresses, active, bytes, banks);
    context.counters.lds_bank_conflicts += extra;
    if bytes > 4 {
        let is_split = |lane: &usize| {
            active >> lane & 1 == 1 && !addresses[*lane].is_multiple_of(bytes.next_power_of_two())
        };
        context.counters.lds_split_accesses += (0..LANES).filter(is_split).count() as u64;
    }
    extra
}

fn load(
    wave: &mut Wave,
    context: &mut Context<'_>,
    active: u64,
    addresses: &Lanes,
    register: u16,
    format: Format,
) -> Result<(), Violation> {
    let (bytes, by) = (format.bytes(), wave.accessor());
    let extra = count_access(context, active, addresses, bytes, wave.target.lds_banks());
    context.counters.lds_read_conflicts += extra;
    context.counters.lds_bytes_read += u64::from(active.count_ones()) * u64::from(bytes);
    let first = usize::from(register);
    let mut lanes = active;
    let mut previous = None;
    while lanes != 0 {
        let lane = lanes.trailing_zeros() as usize;
        lanes &= lanes - 1;
        let address = addresses[lane];
        // Lanes often read one address together: it has been checked, and its words lie in the lane before.
        if let (Format::Dwords(count), Some((from, same))) = (format, previous)
            && same == address
        {
            for words in &mut wave.vector[first..first + usize::from(count)] {
                words[lane] = words[from];
            }
            continue;
        }
        if context.checks.alignment {
            check_alignment(u64::from(address), format.alignment(), lane, "LDS read")?;
        }
        let data = context.lds.read(address, bytes, by)?;
        previous = Some((lane, address));
        match format {
            Format::Dwords(_) => {
                for (at, word) in data.as_chunks::<4>().0.iter().enumerate() {
                    wave.vector[first + at][lane] = u32::from_le_bytes(*word);
                }
            }
            Format::Small { bytes, is_signed, part } => {
                let value = if bytes == 2 {
                    u32::from(data[0]) | u32::from(data[1]) << 8
                } else {
                    u32::from(data[0])
                };
                let slot = &mut wave.vector[first][lane];
                *slot = merge_small(*slot, value, bytes, is_signed, part);
            }
        }
    }
    Ok(())
}

fn store(
    wave: &mut Wave,
    context: &mut Context<'_>,
    active: u64,
    addresses: &Lanes,
    register: u16,
    format: Format,
) -> Result<(), Violation> {
    let (bytes, by) = (format.bytes(), wave.accessor());
    count_access(context, active, addresses, bytes, wave.target.lds_banks());
    context.counters.lds_bytes_written += u64::from(active.count_ones()) * u64::from(bytes);
    let first = usize::from(register);
    if context.checks.uninitialised {
        for register in register..register + format.registers() {
            wave.require_vector(register, active, "a value stored to LDS")?;
        }
    }
    let mut lanes = active;
    while lanes != 0 {
        let lane = lanes.trailing_zeros() as usize;
        lanes &= lanes - 1;
        let address = addresses[lane];
        if context.checks.alignment {
            check_alignment(u64::from(address), format.alignment(), lane, "LDS write")?;
        }
        let data = context.lds.write(address, bytes, by)?;
        match format {
            Format::Dwords(_) => {
                for (at, word) in data.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                    *word = wave.vector[first + at][lane].to_le_bytes();
                }
            }
            Format::Small { bytes, part, .. } => {
                let value = extract_small(wave.vector[first][lane], part).to_le_bytes();
                data.copy_from_slice(&value[..bytes as usize]);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::test_support::Lab;
    use super::*;
    use crate::target::Target;

    #[test]
    fn what_is_written_is_read_back_in_every_width() {
        let mut lab = Lab::new(Target::Gfx942);
        lab.vector(1, |lane| 16 * lane as u32);
        for register in 2..6u16 {
            lab.vector(register, |lane| 0x1000 * u32::from(register) + lane as u32);
        }
        lab.run("ds_write_b128 v1, v[2:5]").unwrap();
        lab.run("ds_read_b64 v[10:11], v1 offset:8").unwrap();
        assert_eq!((lab.lane(10, 3), lab.lane(11, 3)), (0x4003, 0x5003));
        lab.run("ds_read_u16 v12, v1 offset:2").unwrap();
        assert_eq!(lab.lane(12, 3), 0);
        lab.run("ds_read2_b32 v[14:15], v1 offset0:1 offset1:3").unwrap();
        assert_eq!((lab.lane(14, 7), lab.lane(15, 7)), (0x3007, 0x5007));
        lab.run("ds_read2_b32 v[1:2], v1 offset0:1 offset1:3").unwrap();
        assert_eq!((lab.lane(1, 7), lab.lane(2, 7)), (0x3007, 0x5007), "the address is read once");
        lab.vector(1, |lane| 16 * lane as u32).vector(16, |_| 0xaaaa_bbbb);
        lab.run("ds_read_u16_d16_hi v16, v1").unwrap();
        assert_eq!(lab.lane(16, 1), 0x2001_bbbb);
    }

    #[test]
    fn signed_bytes_are_extended_and_stride_64_is_applied() {
        let mut lab = Lab::new(Target::Gfx1100);
        lab.vector(1, |lane| 4 * lane as u32).vector(2, |_| 0x80).vector(3, |lane| lane as u32);
        lab.run("ds_store_2addr_stride64_b32 v1, v2, v3 offset1:1").unwrap();
        lab.run("ds_load_b32 v4, v1 offset:256").unwrap();
        assert_eq!(lab.lane(4, 9), 9);
        lab.run("ds_load_i8 v4, v1").unwrap();
        assert_eq!(lab.lane(4, 0), 0xffff_ff80);
    }

    #[test]
    fn bpermute_reads_and_permute_writes_the_named_lane() {
        let mut lab = Lab::new(Target::Gfx942);
        lab.vector(1, |lane| ((lane as u32) ^ 32) << 2).vector(2, |lane| lane as u32);
        lab.run("ds_bpermute_b32 v0, v1, v2").unwrap();
        assert_eq!((lab.lane(0, 1), lab.lane(0, 40)), (33, 8));
        lab.vector(1, |lane| ((lane as u32 + 1) % 64) << 2);
        lab.run("ds_permute_b32 v0, v1, v2").unwrap();
        assert_eq!((lab.lane(0, 0), lab.lane(0, 5)), (63, 4));
    }

    #[test]
    fn swizzles_are_read_in_every_notation() {
        assert_eq!(Swizzle::parse("0x401f"), Some(Swizzle::Mask { and: 31, or: 0, xor: 16 }));
        assert_eq!(Swizzle::parse("swizzle(SWAP,16)"), Swizzle::parse("0x401f"));
        assert_eq!(Swizzle::parse("swizzle(BITMASK_PERM,\"ipppp\")"), Swizzle::parse("0x401f"));
        assert_eq!(Swizzle::parse("swizzle(BROADCAST,32,3)").unwrap().source(40), 35);
        assert_eq!(Swizzle::parse("swizzle(QUAD_PERM,3,2,1,0)").unwrap().source(4), 7);
        let mut lab = Lab::new(Target::Gfx1100);
        lab.vector(1, |lane| lane as u32);
        lab.run("ds_swizzle_b32 v0, v1 offset:swizzle(SWAP,16)").unwrap();
        assert_eq!(lab.lane(0, 3), 19);
    }

    #[test]
    fn a_transposing_read_gives_columns() {
        let mut lab = Lab::new(Target::Gfx950);
        // A tile of 4 rows and 16 columns of 16-bit elements: element (r, c) is 256 r + c, rows 32 bytes apart.
        lab.vector(1, |lane| 8 * lane as u32);
        let element = |lane: usize, at: usize| {
            let index = 4 * (lane % 16) + at;
            (256 * (index / 16) + index % 16) as u32
        };
        lab.vector(2, |lane| element(lane, 0) | element(lane, 1) << 16);
        lab.vector(3, |lane| element(lane, 2) | element(lane, 3) << 16);
        lab.run("ds_write_b64 v1, v[2:3]").unwrap();
        lab.run("ds_read_b64_tr_b16 v[4:5], v1").unwrap();
        assert_eq!((lab.lane(4, 6), lab.lane(5, 6)), (0x0106_0006, 0x0306_0206));
        assert_eq!(lab.lane(4, 22), 0x0106_0006);
    }

    #[test]
    fn atomics_accumulate_across_lanes_and_return_the_old_value() {
        let mut lab = Lab::new(Target::Gfx942);
        lab.vector(1, |_| 64).vector(2, |_| 3).vector(5, |_| 0);
        lab.run("ds_write_b32 v1, v5").unwrap();
        lab.run("ds_add_rtn_u32 v0, v1, v2").unwrap();
        assert_eq!((lab.lane(0, 0), lab.lane(0, 63)), (0, 189));
        lab.run("ds_read_b32 v3, v1").unwrap();
        assert_eq!(lab.lane(3, 0), 192);
    }

    #[test]
    fn a_misaligned_dword_is_an_error() {
        let mut lab = Lab::new(Target::Gfx942);
        lab.vector(1, |_| 2).vector(2, |_| 3);
        assert!(matches!(lab.run("ds_write_b32 v1, v2"), Err(Violation::Misaligned(_))));
        assert!(matches!(lab.run("ds_write_b32 v9, v2"), Err(Violation::Uninitialised(_))));
    }
}
