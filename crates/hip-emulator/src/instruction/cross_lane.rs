//! Operations that move values between lanes, or between lanes and scalar registers.

use super::operand::{Kind, Operand};
use super::sdwa::Select;
use super::statement::Statement;
use super::vector::Source;
use super::{Context, Operation};
use crate::counters::Class;
use crate::fault::Violation;
use crate::wave::{LANES, Lanes, Wave};

/// A cross-lane instruction.
#[derive(Debug)]
pub(crate) enum CrossLane {
    ReadFirstLane {
        destination: u16,
        source: Source,
    },
    ReadLane {
        destination: u16,
        source: Source,
        lane: Operand,
    },
    WriteLane {
        destination: u16,
        value: Operand,
        lane: Operand,
    },
    /// `v_permlane16`, `v_permlanex16`: 16 selectors of four bits from two scalars.
    PermuteRow {
        destination: u16,
        source: Source,
        selectors: [Operand; 2],
        is_crossed: bool,
        fetches_inactive: bool,
    },
    /// `v_permlane64`: exchanges the halves of a wave; on wave32 nothing moves.
    PermuteHalves {
        destination: u16,
        source: Source,
    },
    /// `v_permlane32_swap`, `v_permlane16_swap`: exchanges odd rows of one register with even rows of the other.
    Swap {
        first: u16,
        second: u16,
        row: usize,
    },
    /// `v_swap_b32`.
    Exchange {
        first: u16,
        second: u16,
    },
    /// `v_mbcnt`: counts mask bits below the lane.
    MaskBelow {
        destination: u16,
        mask: Source,
        base: Source,
        is_high: bool,
    },
}

pub(crate) fn decode(
    statement: &mut Statement,
    operands: &[Operand],
) -> Result<Option<(Class, Operation)>, String> {
    let name = statement.mnemonic.as_str();
    let vector = |at: usize| operands.get(at).and_then(Operand::vector).ok_or("a vector register expected");
    let scalar = |at: usize| operands.get(at).and_then(Operand::scalar).ok_or("a scalar register expected");
    let source = |at: usize| {
        operands
            .get(at)
            .map(|operand| Source::new(*operand, Kind::B32, Select::WORD))
            .ok_or("a source expected")
    };
    let operand = |at: usize| operands.get(at).copied().ok_or("an operand expected");
    let operation = match name {
        "v_readfirstlane_b32" => CrossLane::ReadFirstLane { destination: scalar(0)?, source: source(1)? },
        "v_readlane_b32" => {
            CrossLane::ReadLane { destination: scalar(0)?, source: source(1)?, lane: operand(2)? }
        }
        "v_writelane_b32" => {
            CrossLane::WriteLane { destination: vector(0)?, value: operand(1)?, lane: operand(2)? }
        }
        "v_permlane16_b32" | "v_permlanex16_b32" => {
            let op_sel = statement.modifiers.bits::<2>("op_sel", false)?;
            CrossLane::PermuteRow {
                destination: vector(0)?,
                source: source(1)?,
                selectors: [operand(2)?, operand(3)?],
                is_crossed: name == "v_permlanex16_b32",
                fetches_inactive: op_sel[0],
            }
        }
        "v_permlane64_b32" => CrossLane::PermuteHalves { destination: vector(0)?, source: source(1)? },
        "v_permlane32_swap_b32" => CrossLane::Swap { first: vector(0)?, second: vector(1)?, row: 32 },
        "v_permlane16_swap_b32" => CrossLane::Swap { first: vector(0)?, second: vector(1)?, row: 16 },
        "v_swap_b32" => CrossLane::Exchange { first: vector(0)?, second: vector(1)? },
        "v_mbcnt_lo_u32_b32" | "v_mbcnt_hi_u32_b32" => CrossLane::MaskBelow {
            destination: vector(0)?,
            mask: source(1)?,
            base: source(2)?,
            is_high: name == "v_mbcnt_hi_u32_b32",
        },
        _ => return Ok(None),
    };
    Ok(Some((Class::Vector, Operation::CrossLane(operation))))
}

impl CrossLane {
    #[inline(never)]
    pub(crate) fn execute(&self, wave: &mut Wave, context: &Context<'_>) -> Result<(), Violation> {
        let active = wave.exec();
        let mut buffer = None;
        match self {
            CrossLane::ReadFirstLane { destination, source } => {
                // With no active lane the hardware reads lane 0.
                let lane = if active == 0 { 0 } else { active.trailing_zeros() as usize };
                read_lane(wave, *destination, source, lane, &mut buffer);
            }
            CrossLane::ReadLane { destination, source, lane } => {
                let lane = self::lane(wave, lane, context)?;
                read_lane(wave, *destination, source, lane, &mut buffer);
            }
            CrossLane::WriteLane { destination, value, lane } => {
                let lane = self::lane(wave, lane, context)?;
                let (value, known) = wave.uniform(value, Kind::B32);
                let written = if known == u64::MAX { u64::MAX } else { 0 };
                wave.set_vector(*destination, &[value as u32; LANES], 1 << lane, written);
            }
            CrossLane::PermuteRow { destination, source, selectors, is_crossed, fetches_inactive } => {
                let [(low, known_low), (high, known_high)] = selectors.map(|s| wave.uniform(&s, Kind::B32));
                let order = low | high << 32;
                let size = wave.size();
                let from = |lane: usize| {
                    let row = if *is_crossed { (lane & !15) ^ 16 } else { lane & !15 };
                    let source = row + (order >> (4 * (lane & 15)) & 15) as usize;
                    (*fetches_inactive || active >> source & 1 == 1).then_some(source)
                };
                let (moved, known) = gather(wave, source, size, from, &mut buffer);
                let selectors_known = if known_low & known_high == u64::MAX { u64::MAX } else { 0 };
                wave.set_vector(*destination, &moved, active, known & selectors_known);
            }
            CrossLane::PermuteHalves { destination, source } => {
                let size = wave.size();
                let (moved, known) = gather(
                    wave,
                    source,
                    size,
                    |lane| Some(if size == 64 { lane ^ 32 } else { lane }),
                    &mut buffer,
                );
                wave.set_vector(*destination, &moved, active, known);
            }
            CrossLane::Swap { first, second, row } => swap_rows(wave, *first, *second, *row),
            CrossLane::Exchange { first, second } => {
                let (a, b) = (usize::from(*first), usize::from(*second));
                let (old_a, old_b) = (wave.vector[a], wave.vector[b]);
                let (known_a, known_b) = (wave.vector_written[a], wave.vector_written[b]);
                wave.set_vector(*first, &old_b, active, known_b);
                wave.set_vector(*second, &old_a, active, known_a);
            }
            CrossLane::MaskBelow { destination, mask, base, is_high } => {
                let mut second = None;
                let (masks, known_mask) = mask.words(wave, &mut buffer);
                let (bases, known_base) = base.words(wave, &mut second);
                let mut result = [0; LANES];
                for lane in 0..LANES {
                    let below = (1u64 << lane) - 1;
                    let below = if *is_high { (below >> 32) as u32 } else { below as u32 };
                    result[lane] = (masks[lane] & below).count_ones() + bases[lane];
                }
                wave.set_vector(*destination, &result, active, known_mask & known_base);
            }
        }
        Ok(())
    }
}

fn read_lane(wave: &mut Wave, destination: u16, source: &Source, lane: usize, buffer: &mut Option<Lanes>) {
    let (values, written) = source.words(wave, buffer);
    let (value, is_known) = (values[lane], written >> lane & 1 == 1);
    wave.scalar[usize::from(destination)] = value;
    wave.scalar_written[usize::from(destination)] = if is_known { u32::MAX } else { 0 };
}

fn lane(wave: &Wave, operand: &Operand, context: &Context<'_>) -> Result<usize, Violation> {
    let (lane, known) = wave.uniform(operand, Kind::B32);
    if known != u64::MAX && context.checks.uninitialised {
        return Err(Violation::Uninitialised("a lane number".into()));
    }
    Ok(lane as usize & (wave.size() - 1))
}

/// Every lane reads the lane that `from` names; without one it reads zero.
fn gather(
    wave: &Wave,
    source: &Source,
    size: usize,
    from: impl Fn(usize) -> Option<usize>,
    buffer: &mut Option<Lanes>,
) -> (Lanes, u64) {
    let (values, written) = source.words(wave, buffer);
    let (mut moved, mut known) = ([0; LANES], 0);
    for (lane, value) in moved.iter_mut().enumerate().take(size) {
        match from(lane) {
            Some(other) => {
                *value = values[other];
                known |= (written >> other & 1) << lane;
            }
            None => known |= 1 << lane,
        }
    }
    (moved, known)
}

/// Exchanges odd rows of `first` with the even rows of `second` before them. Inactive lanes take part.
fn swap_rows(wave: &mut Wave, first: u16, second: u16, row: usize) {
    let (a, b) = (usize::from(first), usize::from(second));
    let (mut new_a, mut new_b) = (wave.vector[a], wave.vector[b]);
    let (old_a, old_b) = (wave.vector_written[a], wave.vector_written[b]);
    let (mut known_a, mut known_b) = (old_a, old_b);
    for even in (0..LANES).filter(|lane| lane & row == 0) {
        let odd = even | row;
        std::mem::swap(&mut new_a[odd], &mut new_b[even]);
        known_a = known_a & !(1 << odd) | (old_b >> even & 1) << odd;
        known_b = known_b & !(1 << even) | (old_a >> odd & 1) << even;
    }
    wave.vector[a] = new_a;
    wave.vector[b] = new_b;
    wave.vector_written[a] = known_a;
    wave.vector_written[b] = known_b;
}

#[cfg(test)]
mod tests {
    use super::super::test_support::Lab;
    use crate::instruction::operand::EXEC;
    use crate::target::Target;

    #[test]
    fn the_first_active_lane_is_read() {
        let mut lab = Lab::new(Target::Gfx942);
        lab.vector(1, |lane| lane as u32).wave.set_lane_mask(EXEC, 0x30, u64::MAX);
        lab.run("v_readfirstlane_b32 s4, v1").unwrap();
        assert_eq!(lab.wave.scalar[4], 4);
        lab.run("v_readlane_b32 s4, v1, 17").unwrap();
        assert_eq!(lab.wave.scalar[4], 17);
        lab.run("v_writelane_b32 v1, s4, 2").unwrap();
        assert_eq!(lab.lane(1, 2), 17);
    }

    #[test]
    fn permlanex16_reads_the_other_row() {
        let mut lab = Lab::new(Target::Gfx1100);
        lab.vector(1, |lane| lane as u32).scalar(2, 0x7654_3210).scalar(3, 0xfedc_ba98);
        lab.run("v_permlanex16_b32 v0, v1, s2, s3").unwrap();
        assert_eq!((lab.lane(0, 3), lab.lane(0, 20)), (19, 4));
        lab.run("v_permlane16_b32 v0, v1, 0, 0").unwrap();
        assert_eq!((lab.lane(0, 3), lab.lane(0, 20)), (0, 16));
    }

    #[test]
    fn permlane_swaps_exchange_odd_and_even_rows() {
        let mut lab = Lab::new(Target::Gfx950);
        lab.vector(0, |lane| lane as u32).vector(1, |lane| 100 + lane as u32);
        lab.run("v_permlane32_swap_b32_e32 v0, v1").unwrap();
        assert_eq!((lab.lane(0, 40), lab.lane(1, 8), lab.lane(0, 8), lab.lane(1, 40)), (108, 40, 8, 140));
        lab.vector(0, |lane| lane as u32).vector(1, |lane| 100 + lane as u32);
        lab.run("v_permlane16_swap_b32_e32 v0, v1").unwrap();
        assert_eq!((lab.lane(0, 16), lab.lane(1, 0), lab.lane(0, 32)), (100, 16, 32));
    }

    #[test]
    fn mbcnt_numbers_the_lanes() {
        let mut lab = Lab::new(Target::Gfx942);
        lab.run("v_mbcnt_lo_u32_b32 v0, -1, 0").unwrap();
        lab.run("v_mbcnt_hi_u32_b32 v0, -1, v0").unwrap();
        assert_eq!((lab.lane(0, 0), lab.lane(0, 31), lab.lane(0, 63)), (0, 31, 63));
    }
}
