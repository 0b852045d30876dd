//! What can go wrong while an object is loaded or a kernel runs.

/// Why a code object was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The bytes are not an ELF file or an offload bundle.
    #[error("not a code object: {0}")]
    Malformed(String),
    /// The object is for another device.
    #[error("the code object is for {found}; the device is {device}")]
    WrongTarget {
        /// What the object says it was compiled for.
        found: String,
        /// The device it was given to.
        device: crate::Target,
    },
    /// LLVM's disassembler could not be loaded.
    #[error("LLVM's disassembler: {reason}")]
    Disassembler {
        /// What the system or LLVM said.
        reason: String,
    },
}

/// Why a launch was refused before any instruction ran.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// A grid, block or argument that no device accepts.
    #[error("{0}")]
    Invalid(String),
    /// A checker or the hardware model stopped the kernel.
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// A wrong program, stopped at the instruction that shows it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{kernel}, workgroup {workgroup:?}, wave {wave}, `{instruction}`: {violation}")]
pub struct Fault {
    /// The kernel's name.
    pub kernel: String,
    /// The workgroup's index in the grid.
    pub workgroup: [u32; 3],
    /// The wave's number in its workgroup.
    pub wave: usize,
    /// The instruction as the disassembler prints it.
    pub instruction: String,
    /// What is wrong.
    pub violation: Violation,
}

/// What a checker found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// The emulator does not execute this instruction or this form of it.
    #[error("unknown instruction: {0}")]
    UnknownInstruction(String),
    /// Two waves touch the same LDS bytes with no barrier between them.
    #[error("LDS race: {0}")]
    LdsRace(String),
    /// A value that nothing wrote decides an address, a branch or a stored result.
    #[error("uninitialised value: {0}")]
    Uninitialised(String),
    /// An access outside every allocation, or outside the workgroup's LDS.
    #[error("out-of-bounds {0}")]
    OutOfBounds(String),
    /// A load's destination is used before a wait that covers the load.
    #[error("missing wait: {0}")]
    MissingWait(String),
    /// An address that is not a multiple of what the access needs.
    #[error("misaligned {0}")]
    Misaligned(String),
    /// Waves that can never proceed.
    #[error("deadlock: {0}")]
    Deadlock(String),
    /// A state that the instruction set does not define.
    #[error("invalid state: {0}")]
    Invalid(String),
}
