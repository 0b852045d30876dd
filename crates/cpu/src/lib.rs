//! The CPU backend of omniflash.

#[cfg(not(target_pointer_width = "64"))]
compile_error!("omniflash-cpu addresses tensors with 64-bit offsets");

mod backend;
mod decode;
mod dense;
mod isa;
mod mask;
mod naive;
mod plan;
mod prefill;
mod rows;
mod score;
mod scratch;
mod simd;

pub use backend::CpuBackend;
pub use isa::{ISA_VARIABLE, Isa};
