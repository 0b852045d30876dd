//! The CPU backend of omniflash: exact flash attention in SIMD, for whatever the processor has.
//!
//! [`CpuBackend`] implements [`omniflash_core::Backend`]. One source of kernels, generic over a small trait of vector
//! operations, is compiled for every instruction set of [`Isa`]; which one runs is decided once, from what the
//! processor says or the variable `OMNIFLASH_CPU_ISA` asks for.
//!
//! [`CpuBackend`] has a first call; most programs reach it through the crate `omniflash`, by name or as the best of the
//! machine.
//!
//! | module | what |
//! |---|---|
//! | `simd` | the vector operations of each instruction set, as proof tokens |
//! | `amx` | Intel's matrix instructions, found, asked leave for, and emulated |
//! | `rows` | where rows lie: strides, ragged and padded queries, every form of cache |
//! | `mask`, `score`, `dense` | masks and score modifications, lowered once a call: intervals, bits, steps over a tile |
//! | `prefill` | many query rows: tiles with query rows in the lanes |
//! | `decode` | few query rows: keys and values streamed once |
//! | `naive` | one row at a time, for checking |
//! | `peaks` | what the processor does at most, measured |
//! | `plan`, `backend` | which of them computes a problem, and how it is cut |
//!
//! Semantics that all kernels share: f32 sums whatever the dtype (bf16 products in pairs where the processor has
//! them, with weights rounded to bf16); a hidden score is -inf, and what it hides may hold NaN; a row that sees nothing
//! is 0 with log-sum-exp -inf; every row's sums run in the order of its keys, so that results are bitwise the same for
//! any number of threads. Work runs on the rayon pool of the caller.

#[cfg(not(target_pointer_width = "64"))]
compile_error!("omniflash-cpu addresses tensors with 64-bit offsets");

#[cfg(target_arch = "x86_64")]
mod amx;
mod backend;
mod decode;
mod dense;
mod isa;
mod kv_append;
mod mask;
mod naive;
mod peaks;
mod plan;
mod prefill;
mod rows;
mod score;
mod scratch;
mod simd;
mod threads;

pub use backend::CpuBackend;
pub use isa::{ISA_VARIABLE, Isa};
