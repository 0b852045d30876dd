//! The HIP kernels' sources and what a host must know to build and launch them.
//!
//! The `.hip` files lie beside `Cargo.toml`, one a family, and what NVIDIA shares in `omniflash-device`;
//! [`ForwardConfig`], [`NaiveConfig`], [`combine`], [`kv_append`] and
//! [`verify_page_table`] say for each which choices make an instance,
//! and what a launch of it needs. How blocks, threads, shared memory and workspace are laid out is written in `README.md`.

mod architecture;
mod forward;
mod manifest;
mod peak;
mod simple;

pub use architecture::{Architecture, COMPILER_OPTIONS};
pub use forward::{Arithmetic, ForwardConfig, MAX_HEAD_DIM};
pub use manifest::{Instance, Manifest};
pub use omniflash_device::Launch;
pub use peak::peak;
pub use simple::{
    KV_APPEND_UNITS, NaiveConfig, combine, combine_launch, kv_append, kv_append_launch, verify_page_table,
    verify_page_table_launch,
};

use omniflash_device::SourceFile;

macro_rules! source_file {
    ($name:literal) => {
        SourceFile { name: $name, text: include_str!(concat!("../", $name)) }
    };
}

/// Files that kernel files include, beside those of `omniflash-device`.
pub const LIBRARY: &[SourceFile] = &[
    source_file!("matrix.hpp"),
    source_file!("tile.hpp"),
    source_file!("direct_tile.hpp"),
    source_file!("product.hpp"),
];

const FORWARD: SourceFile = source_file!("forward.hip");
const KV_APPEND: SourceFile = source_file!("kv_append.hip");
const PEAK: SourceFile = source_file!("peak.hip");

/// The C++ name of an element type.
fn element_type(dtype: omniflash_core::DType) -> &'static str {
    match dtype {
        omniflash_core::DType::F16 => "float16",
        omniflash_core::DType::BF16 => "bfloat16",
        _ => "float",
    }
}
