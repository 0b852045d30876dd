//! Loads that have been issued and not yet waited for.
//!
//! The emulator writes a load's destination at once; this bookkeeping is what makes an early use an error.

use std::collections::VecDeque;

use crate::fault::Violation;
use crate::instruction::operand::{ACCUMULATORS, Operand, Place};
use crate::target::{Family, Target};

/// The kinds of memory operation that targets count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counter {
    /// Vector memory loads and atomics that return.
    Load,
    /// Vector memory stores.
    Store,
    /// LDS operations.
    Lds,
    /// Scalar loads.
    Scalar,
}

impl Counter {
    /// The hardware counter that counts this kind: several share one on older targets.
    fn queue(self, family: Family) -> usize {
        match (self, family) {
            (Counter::Load, _) | (Counter::Store, Family::Cdna) => 0,
            (Counter::Store, _) => 1,
            (Counter::Lds, _) | (Counter::Scalar, Family::Cdna | Family::Rdna3) => 2,
            (Counter::Scalar, Family::Rdna4) => 3,
        }
    }
}

/// One issued operation.
#[derive(Debug, Default)]
struct Entry {
    /// First register and count of the destination.
    vector: Option<(u16, u16)>,
    scalar: Option<(u16, u16)>,
    /// Address and bytes of LDS that the operation writes.
    lds: Vec<(u32, u32)>,
    /// Scalar loads return in any order, so only a wait for zero covers one.
    is_unordered: bool,
}

/// The outstanding operations of one wave.
#[derive(Debug)]
pub(crate) struct Outstanding {
    family: Family,
    queues: [VecDeque<Entry>; 4],
    vector: VectorBits,
    scalar: u128,
    has_registers: bool,
    spare: Vec<Vec<(u32, u32)>>,
}

impl Outstanding {
    pub(crate) fn new(target: Target) -> Outstanding {
        Outstanding {
            family: target.family(),
            queues: Default::default(),
            vector: [0; 8],
            scalar: 0,
            has_registers: false,
            spare: Vec::new(),
        }
    }

    /// Forgets everything, for a new wave.
    pub(crate) fn reset(&mut self) {
        for queue in &mut self.queues {
            queue.clear();
        }
        self.rebuild();
    }

    /// A load into registers.
    pub(crate) fn issue_vector(&mut self, counter: Counter, register: u16, count: u16) {
        mark(&mut self.vector, register, count);
        self.has_registers = true;
        self.push(counter, Entry { vector: Some((register, count)), ..Entry::default() });
    }

    /// A flat load: it may be served by memory or by LDS, so both counters must be waited for.
    pub(crate) fn issue_flat(&mut self, register: Option<(u16, u16)>) {
        if let Some((register, count)) = register {
            self.issue_vector(Counter::Load, register, count);
            self.issue_vector(Counter::Lds, register, count);
        } else {
            self.issue_store(Counter::Store);
            self.issue_store(Counter::Lds);
        }
    }

    /// A scalar load.
    pub(crate) fn issue_scalar(&mut self, register: u16, count: u16) {
        self.scalar |= scalar_bits(register, count);
        self.has_registers = true;
        self.push(
            Counter::Scalar,
            Entry { scalar: Some((register, count)), is_unordered: true, ..Entry::default() },
        );
    }

    /// An operation with no destination register.
    pub(crate) fn issue_store(&mut self, counter: Counter) {
        self.push(counter, Entry::default());
    }

    /// An operation that writes LDS at `ranges` (address, bytes).
    pub(crate) fn issue_lds_write(&mut self, counter: Counter, ranges: &[(u32, u32)]) {
        let mut lds = self.spare.pop().unwrap_or_default();
        lds.extend_from_slice(ranges);
        self.push(counter, Entry { lds, ..Entry::default() });
    }

    fn push(&mut self, counter: Counter, entry: Entry) {
        self.queues[counter.queue(self.family)].push_back(entry);
    }

    /// Waits until at most `limit` operations of the counter are outstanding; `done` gets the LDS ranges completed.
    pub(crate) fn wait(&mut self, counter: Counter, limit: usize, mut done: impl FnMut(&[(u32, u32)])) {
        let queue = &mut self.queues[counter.queue(self.family)];
        if limit > 0 && queue.iter().any(|entry| entry.is_unordered) {
            return;
        }
        if queue.len() <= limit {
            return;
        }
        while queue.len() > limit {
            let Some(mut entry) = queue.pop_front() else { break };
            if !entry.lds.is_empty() {
                done(&entry.lds);
                entry.lds.clear();
                self.spare.push(entry.lds);
            }
        }
        self.rebuild();
    }

    /// The LDS ranges still being written.
    pub(crate) fn lds_writes(&self) -> impl Iterator<Item = &[(u32, u32)]> {
        self.queues.iter().flatten().map(|entry| entry.lds.as_slice()).filter(|ranges| !ranges.is_empty())
    }

    fn rebuild(&mut self) {
        self.vector = [0; 8];
        self.scalar = 0;
        self.has_registers = false;
        for entry in self.queues.iter().flatten() {
            if let Some((register, count)) = entry.vector {
                mark(&mut self.vector, register, count);
                self.has_registers = true;
            }
            if let Some((register, count)) = entry.scalar {
                self.scalar |= scalar_bits(register, count);
                self.has_registers = true;
            }
        }
    }

    /// Fails if one of the registers is the destination of a load that has not been waited for.
    #[inline]
    pub(crate) fn check(&self, touched: &Touched) -> Result<(), Violation> {
        if self.has_registers { self.check_registers(touched) } else { Ok(()) }
    }

    fn check_registers(&self, touched: &Touched) -> Result<(), Violation> {
        let scalar = self.scalar & touched.scalar;
        if scalar != 0 {
            let register = scalar.trailing_zeros();
            return Err(Violation::MissingWait(format!(
                "s{register} is used before its load has been waited for"
            )));
        }
        let vector: VectorBits = std::array::from_fn(|word| self.vector[word] & touched.vector[word]);
        let Some(word) = vector.iter().position(|&bits| bits != 0) else { return Ok(()) };
        let register = (64 * word) as u32 + vector[word].trailing_zeros();
        let (name, accumulators) = (if word < 4 { 'v' } else { 'a' }, u32::from(ACCUMULATORS));
        Err(Violation::MissingWait(format!(
            "{name}{} is used before its load has been waited for",
            register % accumulators
        )))
    }
}

/// One bit a vector register, accumulators from bit 256.
type VectorBits = [u64; 2 * ACCUMULATORS as usize / 64];

fn mark(bits: &mut VectorBits, register: u16, count: u16) {
    for register in register..register + count {
        bits[usize::from(register) / 64] |= 1 << (register % 64);
    }
}

fn scalar_bits(register: u16, count: u16) -> u128 {
    ((1u128 << count) - 1) << register
}

/// The registers that an instruction reads or writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Touched {
    vector: VectorBits,
    scalar: u128,
}

impl Touched {
    /// The vector registers that a wave needs for it: one more than the highest.
    pub(crate) fn vector_registers(&self) -> usize {
        let highest = self.vector.iter().rposition(|&bits| bits != 0);
        highest.map_or(0, |word| 64 * (word + 1) - self.vector[word].leading_zeros() as usize)
    }

    /// Adds an operand's registers.
    pub(crate) fn add(&mut self, operand: &Operand) {
        match operand.place {
            Place::Vector(register) => mark(&mut self.vector, register, operand.registers),
            Place::Scalar(register) => self.scalar |= scalar_bits(register, operand.registers),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touches(register: u16) -> Touched {
        let mut touched = Touched::default();
        mark(&mut touched.vector, register, 1);
        touched
    }

    #[test]
    fn vector_loads_complete_in_order() {
        let mut outstanding = Outstanding::new(Target::Gfx942);
        outstanding.issue_vector(Counter::Load, 4, 2);
        outstanding.issue_vector(Counter::Load, 8, 1);
        outstanding.wait(Counter::Load, 1, |_| ());
        assert_eq!(outstanding.check(&touches(5)), Ok(()));
        assert!(matches!(outstanding.check(&touches(8)), Err(Violation::MissingWait(_))));
        outstanding.wait(Counter::Load, 0, |_| ());
        assert_eq!(outstanding.check(&touches(8)), Ok(()));
    }

    #[test]
    fn a_store_counts_with_the_loads_on_cdna_only() {
        for (target, is_covered) in [(Target::Gfx942, false), (Target::Gfx1100, true)] {
            let mut outstanding = Outstanding::new(target);
            outstanding.issue_store(Counter::Store);
            outstanding.issue_vector(Counter::Load, 1, 1);
            outstanding.issue_store(Counter::Store);
            // CDNA: three operations, one may remain, and that is the last store.
            outstanding.wait(Counter::Load, 1, |_| ());
            assert_eq!(outstanding.check(&touches(1)).is_ok(), !is_covered);
        }
    }

    #[test]
    fn scalar_loads_need_a_wait_for_zero() {
        let mut outstanding = Outstanding::new(Target::Gfx942);
        outstanding.issue_scalar(0, 4);
        outstanding.issue_scalar(8, 2);
        let touched = Touched { scalar: 1 << 2, ..Touched::default() };
        outstanding.wait(Counter::Scalar, 1, |_| ());
        assert!(outstanding.check(&touched).is_err());
        outstanding.wait(Counter::Lds, 0, |_| ());
        assert!(outstanding.check(&touched).is_ok());
    }

    #[test]
    fn a_completed_lds_write_is_reported_once() {
        let mut outstanding = Outstanding::new(Target::Gfx1200);
        outstanding.issue_lds_write(Counter::Lds, &[(16, 4)]);
        let mut done = Vec::new();
        outstanding.wait(Counter::Scalar, 0, |ranges| done.extend_from_slice(ranges));
        assert_eq!((done.len(), outstanding.lds_writes().count()), (0, 1));
        outstanding.wait(Counter::Lds, 0, |ranges| done.extend_from_slice(ranges));
        assert_eq!((done.as_slice(), outstanding.lds_writes().count()), (&[(16, 4)][..], 0));
    }
}
