//! A workgroup's LDS with a shadow that remembers who touched each granule since which barrier.
//!
//! A wave's access happens before another wave's only if the first wave has signalled a barrier after it and the
//! second has passed that barrier. A wave counts the barriers it has signalled and those it has passed (they differ
//! between the halves of a split barrier), so an earlier access conflicts when its signal count is not below the
//! observer's count of barriers passed.

use super::Checks;
use crate::fault::Violation;

/// The wave that accesses LDS and its place in the barriers' order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Accessor {
    pub(crate) wave: u8,
    /// Barriers this wave has signalled.
    pub(crate) signalled: u32,
    /// Barriers this wave has passed.
    pub(crate) passed: u32,
}

const NOBODY: u8 = 255;
/// Several waves, all by atomic operations, which order themselves.
const ATOMIC: u8 = 254;

#[derive(Clone, Copy, Debug)]
struct Granule {
    written: u32,
    read: u32,
    /// Waves that read since `read`.
    readers: u32,
    writer: u8,
    /// A direct load that has not been waited for will write here.
    is_pending: bool,
    /// The last write was an atomic operation.
    is_atomic: bool,
}

const UNTOUCHED: Granule =
    Granule { written: 0, read: 0, readers: 0, writer: NOBODY, is_pending: false, is_atomic: false };

/// LDS of one workgroup.
#[derive(Debug)]
pub(crate) struct Lds {
    bytes: Vec<u8>,
    granules: Vec<Granule>,
    /// log2 of the granule's bytes: the narrowest LDS access of the code object, so that neighbours never alias.
    shift: u32,
    checks: Checks,
}

impl Lds {
    /// LDS of `size` bytes whose contents nothing has written.
    pub(crate) fn new(size: usize, granule_bytes: usize, checks: Checks) -> Lds {
        let shift = granule_bytes.trailing_zeros();
        let is_shadowed = checks.lds_race || checks.uninitialised || checks.wait_count;
        let granules = if is_shadowed { vec![UNTOUCHED; size.div_ceil(granule_bytes)] } else { Vec::new() };
        Lds { bytes: vec![0xff; size], granules, shift, checks }
    }

    /// Makes the contents unwritten again, for the next workgroup.
    pub(crate) fn reset(&mut self) {
        self.bytes.fill(0xff);
        self.granules.fill(UNTOUCHED);
    }

    fn granules_of(&self, address: u32, size: u32) -> std::ops::Range<usize> {
        if self.granules.is_empty() {
            return 0..0;
        }
        (address >> self.shift) as usize..(((address + size - 1) >> self.shift) + 1) as usize
    }

    fn bounds(&self, address: u32, size: u32, what: &str) -> Result<(), Violation> {
        if address as usize + size as usize <= self.bytes.len() && address.checked_add(size).is_some() {
            return Ok(());
        }
        Err(Violation::OutOfBounds(format!(
            "LDS {what} of {size} bytes at {address:#x}; the workgroup has {} bytes",
            self.bytes.len()
        )))
    }

    /// Checks a read and returns its bytes.
    #[inline]
    pub(crate) fn read(&mut self, address: u32, size: u32, by: Accessor) -> Result<&[u8], Violation> {
        self.bounds(address, size, "read")?;
        let range = self.granules_of(address, size);
        let bit = 1u32 << (by.wave & 31);
        for at in range {
            let granule = &mut self.granules[at];
            let is_foreign = granule.writer != by.wave && granule.writer != NOBODY;
            if granule.writer == NOBODY || granule.is_pending || (is_foreign && granule.written >= by.passed)
            {
                let granule = *granule;
                self.judge_read(granule, at, by)?;
            }
            let granule = &mut self.granules[at];
            if granule.read != by.signalled {
                granule.read = by.signalled;
                granule.readers = 0;
            }
            granule.readers |= bit;
        }
        Ok(&self.bytes[address as usize..(address + size) as usize])
    }

    #[cold]
    fn judge_read(&self, granule: Granule, at: usize, by: Accessor) -> Result<(), Violation> {
        let address = at << self.shift;
        if granule.is_pending && self.checks.wait_count {
            return Err(Violation::MissingWait(format!(
                "LDS at {address:#x} is read before the direct load of wave {} has been waited for",
                granule.writer
            )));
        }
        if granule.writer == NOBODY {
            return if self.checks.uninitialised {
                Err(Violation::Uninitialised(format!(
                    "read of LDS at {address:#x}, which nothing has written"
                )))
            } else {
                Ok(())
            };
        }
        if granule.writer != by.wave && granule.written >= by.passed && self.checks.lds_race {
            return Err(Violation::LdsRace(format!(
                "read at {address:#x} of a value written by {} since the last barrier",
                wave_name(granule.writer)
            )));
        }
        Ok(())
    }

    /// Checks a write and returns the bytes to fill in.
    #[inline]
    pub(crate) fn write(&mut self, address: u32, size: u32, by: Accessor) -> Result<&mut [u8], Violation> {
        self.claim(address, size, by, false)
    }

    /// As [`write`](Lds::write), by a direct load, which fills the bytes in later: until its wait they may not be touched.
    /// Loads of a wave arrive in order, so another of them may follow.
    pub(crate) fn write_directly(
        &mut self,
        address: u32,
        size: u32,
        by: Accessor,
    ) -> Result<&mut [u8], Violation> {
        self.claim(address, size, by, true)
    }

    #[inline]
    fn claim(
        &mut self,
        address: u32,
        size: u32,
        by: Accessor,
        is_direct: bool,
    ) -> Result<&mut [u8], Violation> {
        self.bounds(address, size, "write")?;
        let bit = 1u32 << (by.wave & 31);
        for at in self.granules_of(address, size) {
            let granule = self.granules[at];
            let foreign_write =
                granule.writer != by.wave && granule.writer != NOBODY && granule.written >= by.passed;
            let foreign_read = granule.readers & !bit != 0 && granule.read >= by.passed;
            if foreign_write || foreign_read {
                self.judge_write(granule, at, foreign_write)?;
            }
            if granule.is_pending && !is_direct && self.checks.wait_count {
                return Err(Violation::MissingWait(format!(
                    "LDS at {:#x} is written before the direct load of wave {} has been waited for",
                    at << self.shift,
                    granule.writer
                )));
            }
            let granule = &mut self.granules[at];
            granule.written = by.signalled;
            granule.writer = by.wave;
            granule.is_atomic = false;
            granule.is_pending |= is_direct;
        }
        Ok(&mut self.bytes[address as usize..(address + size) as usize])
    }

    #[cold]
    fn judge_write(&self, granule: Granule, at: usize, is_write: bool) -> Result<(), Violation> {
        if !self.checks.lds_race {
            return Ok(());
        }
        let address = at << self.shift;
        Err(Violation::LdsRace(if is_write {
            format!(
                "write at {address:#x} after a write by {} since the last barrier",
                wave_name(granule.writer)
            )
        } else {
            format!("write at {address:#x} after a read by another wave since the last barrier")
        }))
    }

    /// Checks an atomic read-modify-write and returns its bytes. Atomics do not race with each other.
    pub(crate) fn atomic(&mut self, address: u32, size: u32, by: Accessor) -> Result<&mut [u8], Violation> {
        self.bounds(address, size, "atomic")?;
        let bit = 1u32 << (by.wave & 31);
        for at in self.granules_of(address, size) {
            let granule = self.granules[at];
            let is_foreign = granule.writer != NOBODY && granule.writer != by.wave;
            let is_plain_foreign = is_foreign && !granule.is_atomic;
            if granule.writer == NOBODY
                || granule.is_pending
                || (is_plain_foreign && granule.written >= by.passed)
            {
                self.judge_read(granule, at, by)?;
            }
            if granule.readers & !bit != 0 && granule.read >= by.passed {
                self.judge_write(granule, at, false)?;
            }
            let shares = is_foreign && granule.is_atomic && granule.written >= by.passed;
            let granule = &mut self.granules[at];
            granule.written = by.signalled;
            granule.writer = if shares { ATOMIC } else { by.wave };
            granule.is_atomic = true;
        }
        Ok(&mut self.bytes[address as usize..(address + size) as usize])
    }

    /// The write has completed; it belongs to the barrier interval in which that happened.
    pub(crate) fn complete(&mut self, ranges: &[(u32, u32)], by: Accessor) {
        self.restamp(ranges, by, false);
    }

    /// The wave signals a barrier while the write is outstanding: the barrier does not order it.
    pub(crate) fn carry_over(&mut self, ranges: &[(u32, u32)], by: Accessor) {
        self.restamp(ranges, by, true);
    }

    fn restamp(&mut self, ranges: &[(u32, u32)], by: Accessor, stays_pending: bool) {
        for &(address, size) in ranges {
            for at in self.granules_of(address, size) {
                let granule = &mut self.granules[at];
                if granule.writer == by.wave {
                    granule.written = by.signalled;
                    granule.is_pending &= stays_pending;
                }
            }
        }
    }
}

fn wave_name(wave: u8) -> String {
    if wave == ATOMIC { "an atomic of another wave".into() } else { format!("wave {wave}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(wave: u8, barriers: u32) -> Accessor {
        Accessor { wave, signalled: barriers, passed: barriers }
    }

    fn lds() -> Lds {
        Lds::new(64, 4, Checks::ALL)
    }

    #[test]
    fn a_read_of_another_waves_write_needs_a_barrier() {
        let mut lds = lds();
        lds.write(0, 4, wave(0, 0)).unwrap().copy_from_slice(&[1, 2, 3, 4]);
        assert!(matches!(lds.read(0, 4, wave(1, 0)), Err(Violation::LdsRace(_))));
        assert_eq!(lds.read(0, 4, wave(0, 0)), Ok(&[1, 2, 3, 4][..]));
        assert_eq!(lds.read(0, 4, wave(1, 1)), Ok(&[1, 2, 3, 4][..]));
    }

    #[test]
    fn a_write_over_another_waves_read_needs_a_barrier() {
        let mut lds = lds();
        lds.write(8, 4, wave(0, 0)).unwrap();
        lds.read(8, 4, wave(1, 1)).unwrap();
        assert!(matches!(lds.write(8, 4, wave(0, 1)), Err(Violation::LdsRace(_))));
        assert!(lds.write(8, 4, wave(0, 2)).is_ok());
    }

    #[test]
    fn an_access_between_signal_and_wait_races_with_the_next_interval() {
        let mut lds = lds();
        // Wave 0 writes after it signalled barrier 1; wave 1 reads after it passed barrier 1.
        lds.write(0, 4, Accessor { wave: 0, signalled: 1, passed: 0 }).unwrap();
        assert!(matches!(lds.read(0, 4, wave(1, 1)), Err(Violation::LdsRace(_))));
        assert!(lds.read(0, 4, wave(1, 2)).is_ok());
    }

    #[test]
    fn a_write_that_is_outstanding_at_the_barrier_is_not_ordered_by_it() {
        let mut lds = lds();
        lds.write(0, 4, wave(0, 0)).unwrap();
        lds.carry_over(&[(0, 4)], wave(0, 1));
        assert!(matches!(lds.read(0, 4, wave(1, 1)), Err(Violation::LdsRace(_))));
        lds.complete(&[(0, 4)], wave(0, 1));
        assert!(lds.read(0, 4, wave(1, 2)).is_ok());
    }

    #[test]
    fn a_direct_load_may_not_be_read_before_its_wait() {
        let mut lds = lds();
        lds.write_directly(0, 4, wave(0, 0)).unwrap();
        assert!(matches!(lds.write(0, 4, wave(0, 0)), Err(Violation::MissingWait(_))));
        assert!(lds.write_directly(0, 4, wave(0, 0)).is_ok());
        assert!(matches!(lds.read(0, 4, wave(0, 0)), Err(Violation::MissingWait(_))));
        lds.complete(&[(0, 4)], wave(0, 0));
        assert!(lds.read(0, 4, wave(0, 0)).is_ok());
    }

    #[test]
    fn unwritten_and_outside_bytes_are_errors() {
        let mut lds = lds();
        assert!(matches!(lds.read(4, 4, wave(0, 0)), Err(Violation::Uninitialised(_))));
        assert!(matches!(lds.read(62, 4, wave(0, 0)), Err(Violation::OutOfBounds(_))));
        assert!(matches!(lds.write(u32::MAX - 1, 4, wave(0, 0)), Err(Violation::OutOfBounds(_))));
    }

    #[test]
    fn atomics_race_with_plain_accesses_only() {
        let mut lds = lds();
        lds.write(0, 4, wave(0, 0)).unwrap();
        lds.atomic(0, 4, wave(0, 1)).unwrap();
        assert!(lds.atomic(0, 4, wave(1, 1)).is_ok());
        assert!(matches!(lds.read(0, 4, wave(2, 1)), Err(Violation::LdsRace(_))));
    }
}
