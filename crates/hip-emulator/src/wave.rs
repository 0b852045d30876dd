//! The architectural state of one wave.

use crate::checker::lds_race::Accessor;
use crate::checker::wait_count::Outstanding;
use crate::fault::Violation;
use crate::instruction::mfma::Matrices;
use crate::instruction::operand::{
    ACCUMULATORS, EXEC, Kind, Operand, PRIVATE_APERTURE, Place, SCALARS, SHARED_APERTURE, VCC,
};
use crate::target::Target;

/// Lanes of the widest wave; a wave32 leaves the upper half unused.
pub(crate) const LANES: usize = 64;
/// One vector register.
pub(crate) type Lanes = [u32; LANES];

/// All ones in the lanes whose bit is set, for each byte of a lane mask.
static SPREAD: [[u32; 8]; 256] = {
    let mut spread = [[0; 8]; 256];
    let mut at = 0;
    while at < 8 * 256 {
        if (at / 8) >> (at % 8) & 1 == 1 {
            spread[at / 8][at % 8] = u32::MAX;
        }
        at += 1;
    }
    spread
};

/// The lanes of `new` whose bit is set in `mask`, and those of `old` elsewhere.
#[inline]
pub(crate) fn select(mask: u64, new: &Lanes, old: &mut Lanes) {
    let (new, _) = new.as_chunks::<8>();
    let (old, _) = old.as_chunks_mut::<8>();
    for ((new, old), byte) in new.iter().zip(old).zip(mask.to_le_bytes()) {
        let spread = &SPREAD[usize::from(byte)];
        for lane in 0..8 {
            old[lane] ^= (old[lane] ^ new[lane]) & spread[lane];
        }
    }
}

/// A signalling NaN that reads as nonsense in every type.
const POISON: u32 = 0xffc0_dead;

/// Registers and counters of one wave.
pub(crate) struct Wave {
    pub(crate) index: usize,
    pub(crate) target: Target,
    /// Vector registers, accumulators from [`ACCUMULATORS`].
    pub(crate) vector: Vec<Lanes>,
    /// Lanes of each vector register that something has written.
    pub(crate) vector_written: Vec<u64>,
    pub(crate) scalar: [u32; SCALARS],
    /// Bits of each scalar register that something has written: lane masks are written bit by bit.
    pub(crate) scalar_written: [u32; SCALARS],
    pub(crate) scc: bool,
    pub(crate) scc_written: bool,
    /// Index of the next instruction.
    pub(crate) next: usize,
    pub(crate) outstanding: Outstanding,
    /// Barriers signalled and passed.
    pub(crate) signalled: u32,
    pub(crate) passed: u32,
    pub(crate) scratch: Vec<u8>,
    /// Which bytes of it hold something that does not depend on unwritten registers.
    pub(crate) scratch_written: Vec<bool>,
    pub(crate) scratch_bytes: usize,
    /// Index of the allocation that was accessed last.
    pub(crate) recent_allocation: usize,
    /// The `MODE` register; only its round and denormal fields exist here.
    pub(crate) mode: u32,
    pub(crate) matrices: Option<Box<Matrices>>,
}

impl Wave {
    /// A wave with room for the vector registers that the code object names.
    pub(crate) fn new(target: Target, vector_registers: usize, scratch_bytes: usize) -> Wave {
        Wave {
            index: 0,
            target,
            vector: vec![[POISON; LANES]; vector_registers],
            vector_written: vec![0; vector_registers],
            scalar: [POISON; SCALARS],
            scalar_written: [0; SCALARS],
            scc: false,
            scc_written: false,
            next: 0,
            outstanding: Outstanding::new(target),
            signalled: 0,
            passed: 0,
            scratch: vec![0xff; scratch_bytes * target.wave_size()],
            scratch_written: vec![false; scratch_bytes * target.wave_size()],
            scratch_bytes,
            recent_allocation: 0,
            mode: 0xf0,
            matrices: None,
        }
    }

    /// Back to the state before the first instruction, for the wave `index` of another workgroup.
    pub(crate) fn reset(&mut self, index: usize, entry: usize) {
        self.index = index;
        // Stale values of another workgroup would look like data: poison what was written.
        for (lanes, written) in self.vector.iter_mut().zip(&mut self.vector_written) {
            if *written != 0 {
                *lanes = [POISON; LANES];
                *written = 0;
            }
        }
        self.scalar = [POISON; SCALARS];
        self.scalar_written = [0; SCALARS];
        self.scc_written = false;
        self.next = entry;
        self.outstanding.reset();
        self.signalled = 0;
        self.passed = 0;
        self.scratch.fill(0xff);
        self.scratch_written.fill(false);
        self.mode = 0xf0;
    }

    #[inline]
    pub(crate) fn size(&self) -> usize {
        self.target.wave_size()
    }

    /// The lanes that exist.
    #[inline]
    pub(crate) fn full_mask(&self) -> u64 {
        if self.size() == 64 { u64::MAX } else { u64::from(u32::MAX) }
    }

    /// The active lanes.
    pub(crate) fn exec(&self) -> u64 {
        self.lane_mask(EXEC)
    }

    /// Reads a lane mask that starts at a scalar register.
    pub(crate) fn lane_mask(&self, register: u16) -> u64 {
        let low = u64::from(self.scalar[usize::from(register)]);
        if self.size() == 64 { low | u64::from(self.scalar[usize::from(register) + 1]) << 32 } else { low }
    }

    /// The bits of a lane mask that something has written.
    pub(crate) fn lane_mask_written(&self, register: u16) -> u64 {
        let low = u64::from(self.scalar_written[usize::from(register)]);
        if self.size() == 64 {
            low | u64::from(self.scalar_written[usize::from(register) + 1]) << 32
        } else {
            low
        }
    }

    /// Writes a lane mask; bits outside `written` hold values that depend on something uninitialised.
    pub(crate) fn set_lane_mask(&mut self, register: u16, value: u64, written: u64) {
        let at = usize::from(register);
        self.scalar[at] = value as u32;
        self.scalar_written[at] = written as u32;
        if self.size() == 64 {
            self.scalar[at + 1] = (value >> 32) as u32;
            self.scalar_written[at + 1] = (written >> 32) as u32;
        }
    }

    /// Sets a scalar register to a known value.
    pub(crate) fn set_scalar(&mut self, register: u16, value: u32) {
        self.scalar[usize::from(register)] = value;
        self.scalar_written[usize::from(register)] = u32::MAX;
    }

    /// Sets two scalar registers to a known 64-bit value.
    pub(crate) fn set_scalar_pair(&mut self, register: u16, value: u64) {
        self.set_scalar(register, value as u32);
        self.set_scalar(register + 1, (value >> 32) as u32);
    }

    /// A uniform operand's value and the bits of it that something has written.
    pub(crate) fn uniform(&self, operand: &Operand, kind: Kind) -> (u64, u64) {
        let known = |value: u64| (value, u64::MAX);
        match operand.place {
            Place::Scalar(register) => {
                let at = usize::from(register);
                let (mut value, mut written) =
                    (u64::from(self.scalar[at]), u64::from(self.scalar_written[at]));
                if kind.is_wide() && operand.registers > 1 {
                    value |= u64::from(self.scalar[at + 1]) << 32;
                    written |= u64::from(self.scalar_written[at + 1]) << 32;
                } else {
                    written |= !u64::from(u32::MAX);
                }
                (value, written)
            }
            Place::Literal(literal) => known(literal.bits(kind)),
            Place::Scc => (u64::from(self.scc), if self.scc_written { u64::MAX } else { 0 }),
            Place::VccZero => (u64::from(self.lane_mask(VCC) == 0), u64::MAX),
            Place::ExecZero => known(u64::from(self.exec() == 0)),
            Place::SharedBase => known(u64::from(SHARED_APERTURE) << if kind.is_wide() { 32 } else { 0 }),
            Place::PrivateBase => known(u64::from(PRIVATE_APERTURE) << if kind.is_wide() { 32 } else { 0 }),
            // A vector register cannot be uniform; decoding does not produce one here.
            Place::Null | Place::Off | Place::Vector(_) => known(0),
        }
    }

    /// Writes the active lanes of a vector register; `written` are those whose value is initialised.
    #[inline]
    pub(crate) fn set_vector(&mut self, register: u16, values: &Lanes, active: u64, written: u64) {
        let at = usize::from(register);
        // Lanes that a wave32 does not have may hold anything.
        if active == self.full_mask() {
            self.vector[at] = *values;
        } else {
            select(active, values, &mut self.vector[at]);
        }
        let mask = &mut self.vector_written[at];
        *mask = *mask & !active | written & active;
    }

    /// The wave's identity and place in the order of barriers, for the LDS race checker.
    pub(crate) fn accessor(&self) -> Accessor {
        Accessor { wave: self.index as u8, signalled: self.signalled, passed: self.passed }
    }

    /// Fails if an active lane of a vector register was never written.
    pub(crate) fn require_vector(&self, register: u16, active: u64, what: &str) -> Result<(), Violation> {
        let missing = active & !self.vector_written[usize::from(register)];
        if missing == 0 {
            return Ok(());
        }
        let name = if register < ACCUMULATORS { 'v' } else { 'a' };
        Err(Violation::Uninitialised(format!(
            "{what} in {name}{} of lane {}",
            register % ACCUMULATORS,
            missing.trailing_zeros()
        )))
    }
}
