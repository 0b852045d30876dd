//! What the kernels that measure a device do, and their parameters.

use bytemuck::NoUninit;
use omniflash_core::DType;

use crate::TranslationUnit;

/// What a kernel does over and over, so that a device does nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PeakWork {
    /// Matrix products of operands of a dtype; f32 is the nearest that the matrix unit has.
    Product(DType),
    /// Multiply-adds of f32.
    MultiplyAdd,
    /// Writes numbers without a pattern.
    Fill,
    /// Reads memory.
    Read,
    /// Copies memory.
    Copy,
}

/// The parameters of such a kernel, as its source declares them.
#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
pub struct PeakParameters {
    /// Address that is read from, aligned to 16 bytes.
    pub source: u64,
    /// Address that is written to, aligned to 16 bytes; memory for a piece a thread of a block in any case.
    pub target: u64,
    /// Pieces of 16 bytes to fill, read or copy.
    pub vectors: i64,
    /// Rounds of products or multiply-adds.
    pub rounds: i32,
    /// Blocks of the launch.
    pub blocks: u32,
    /// A number that the answer of no thread is.
    pub never: u32,
    /// 0.
    pub unused: u32,
}

/// A kernel that does one thing over and over.
#[derive(Clone, Debug)]
pub struct PeakKernel {
    /// The source.
    pub unit: TranslationUnit,
    /// The architecture to compile it for.
    pub arch: String,
    /// Threads of a block.
    pub block_threads: u32,
    /// Floating-point operations of a block in one round; 0 where rounds are not counted.
    pub flops_of_round: f64,
}
