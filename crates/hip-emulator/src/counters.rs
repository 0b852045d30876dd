//! What kernels did: instructions by class, matrix operations, bytes moved, LDS bank conflicts.

use std::ops::AddAssign;

/// The class of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum Class {
    /// Scalar arithmetic (SOP1, SOP2, SOPC, SOPK).
    Scalar,
    /// Branches, waits, barriers and hints (SOPP).
    Program,
    /// Scalar memory.
    ScalarMemory,
    /// Vector arithmetic.
    Vector,
    /// Exponential, logarithm, reciprocal, square root, sine.
    Transcendental,
    /// MFMA and WMMA.
    Matrix,
    /// LDS.
    Lds,
    /// Global, flat and buffer memory.
    VectorMemory,
    /// Scratch memory: spills and indexed arrays.
    Scratch,
}

/// How many classes there are.
pub const CLASSES: usize = 9;

impl Class {
    /// Every class, in the order of [`Counters::instructions`].
    pub const ALL: [Class; CLASSES] = [
        Class::Scalar,
        Class::Program,
        Class::ScalarMemory,
        Class::Vector,
        Class::Transcendental,
        Class::Matrix,
        Class::Lds,
        Class::VectorMemory,
        Class::Scratch,
    ];
}

/// Sums over every launch since the counters were last reset. Instructions are counted per wave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counters {
    /// Wave-instructions by [`Class`], indexed by `class as usize`.
    pub instructions: [u64; CLASSES],
    /// Floating-point (or integer) operations of matrix instructions: 2 M N K each.
    pub matrix_operations: u64,
    /// Bytes that lanes loaded from global memory.
    pub bytes_loaded: u64,
    /// Bytes that lanes stored to global memory.
    pub bytes_stored: u64,
    /// Bytes that lanes read from LDS.
    pub lds_bytes_read: u64,
    /// Bytes that lanes wrote to LDS.
    pub lds_bytes_written: u64,
    /// Extra cycles in which lanes of one access wait for the same bank.
    pub lds_bank_conflicts: u64,
    /// Those of reads.
    pub lds_read_conflicts: u64,
    /// LDS accesses of a lane that are not a multiple of their own size.
    pub lds_split_accesses: u64,
    /// Barriers that a wave passed.
    pub barriers: u64,
    /// Waves that ran.
    pub waves: u64,
    /// Workgroups that ran.
    pub workgroups: u64,
    /// Kernels that ran.
    pub launches: u64,
}

impl Counters {
    /// The count of one class.
    pub fn of(&self, class: Class) -> u64 {
        self.instructions[class as usize]
    }

    /// Wave-instructions of every class.
    pub fn total_instructions(&self) -> u64 {
        self.instructions.iter().sum()
    }
}

impl AddAssign for Counters {
    fn add_assign(&mut self, other: Counters) {
        for (sum, count) in self.instructions.iter_mut().zip(other.instructions) {
            *sum += count;
        }
        self.matrix_operations += other.matrix_operations;
        self.bytes_loaded += other.bytes_loaded;
        self.bytes_stored += other.bytes_stored;
        self.lds_bytes_read += other.lds_bytes_read;
        self.lds_bytes_written += other.lds_bytes_written;
        self.lds_bank_conflicts += other.lds_bank_conflicts;
        self.lds_read_conflicts += other.lds_read_conflicts;
        self.lds_split_accesses += other.lds_split_accesses;
        self.barriers += other.barriers;
        self.waves += other.waves;
        self.workgroups += other.workgroups;
        self.launches += other.launches;
    }
}
