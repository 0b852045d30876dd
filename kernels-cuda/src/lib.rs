//! The CUDA kernels' sources and what a host must know to build and launch them.
//!
//! The `.cu` files lie beside `Cargo.toml`, one a family, and what AMD shares in `omniflash-device`; [`ForwardConfig`],
//! [`HopperConfig`], [`DecodeConfig`], [`NaiveConfig`], [`combine`], [`kv_append`] and [`verify_page_table`] say for each which
//! choices make an instance, and what a launch of it needs. How blocks, threads, shared memory and workspace are laid out is
//! written in `README.md`.

mod decode;
mod forward;
mod hopper;
mod manifest;
mod peak;
mod simple;

pub use decode::{DecodeConfig, SLICE};
pub use forward::{Arithmetic, ForwardConfig, MAX_HEAD_DIM, RESERVED_SHARED_BYTES};
pub use hopper::{
    HOPPER_ARCH, HopperConfig, HopperParameters, MAX_HOPPER_HEAD_DIM, SLAB_COLUMNS, TensorMap, WARP_ROWS,
};
pub use manifest::{Architecture, Instance, Manifest};
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
    source_file!("sm80.hpp"),
    source_file!("tile.hpp"),
    source_file!("product.hpp"),
    source_file!("quad.hpp"),
    source_file!("fragments.hpp"),
    source_file!("portable/block.hpp"),
    source_file!("portable/copies.hpp"),
    source_file!("portable/products.hpp"),
    source_file!("portable/results.hpp"),
    source_file!("decode/block.hpp"),
    source_file!("decode/boxes.hpp"),
    source_file!("decode/forward.hpp"),
    source_file!("decode/join.hpp"),
    source_file!("decode/lanes.hpp"),
    source_file!("decode/line.hpp"),
    source_file!("decode/slices.hpp"),
    source_file!("sm90/block.hpp"),
    source_file!("sm90/cluster.hpp"),
    source_file!("sm90/copies.hpp"),
    source_file!("sm90/epilogue.hpp"),
    source_file!("sm90/mbarrier.hpp"),
    source_file!("sm90/messages.hpp"),
    source_file!("sm90/producer.hpp"),
    source_file!("sm90/rows.hpp"),
    source_file!("sm90/scheduler.hpp"),
    source_file!("sm90/slabs.hpp"),
    source_file!("sm90/softmax.hpp"),
    source_file!("sm90/tma.hpp"),
    source_file!("sm90/warpgroup.hpp"),
    source_file!("sm90/wgmma.hpp"),
];

const PORTABLE_FORWARD: SourceFile = source_file!("portable_forward.cu");
const DECODE_FORWARD: SourceFile = source_file!("decode_forward.cu");
const DECODE_BOXES: SourceFile = source_file!("decode_boxes.cu");
const HOPPER_FORWARD: SourceFile = source_file!("hopper_forward.cu");
const KV_APPEND: SourceFile = source_file!("kv_append.cu");
const PEAK: SourceFile = source_file!("peak.cu");

/// The C++ name of an element type.
fn element_type(dtype: omniflash_core::DType) -> &'static str {
    match dtype {
        omniflash_core::DType::F16 => "float16",
        omniflash_core::DType::BF16 => "bfloat16",
        _ => "float",
    }
}
