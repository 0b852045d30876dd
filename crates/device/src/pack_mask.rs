//! The kernels that pack a mask tensor and documents' ids: their instances and their launch, the same for both vendors.

use omniflash_core::DType;

use crate::parameters::PackMaskParameters;
use crate::{Launch, PACK_DOCUMENTS, PACK_MASK, TranslationUnit};

const THREADS: u32 = 256;

/// The source of the kernel for tensors of `dtype`, which loads `unit_bytes` at once: 16, 4 or the size of an element. Tensors of
/// i32 are ids of documents, and are loaded one by one.
pub fn pack_mask(dtype: DType, unit_bytes: usize) -> TranslationUnit {
    const ENTRY: &str = "omniflash_pack_mask";
    if dtype == DType::I32 {
        return TranslationUnit::new(PACK_DOCUMENTS, &[], ENTRY);
    }
    let element = match dtype {
        DType::Bool => "unsigned char",
        DType::F16 => "float16",
        DType::BF16 => "bfloat16",
        _ => "float",
    };
    TranslationUnit::new(PACK_MASK, &[], ENTRY)
        .with_type("Element", element)
        .with_constant("kUnitBytes", unit_bytes as i64)
}

/// Its launch: a block for each block of rows and span of keys of every plane. There are at most `u32::MAX / 256` of them.
pub fn pack_mask_launch(parameters: &PackMaskParameters) -> Launch {
    let planes = parameters.batches * parameters.heads;
    let blocks = planes * parameters.row_blocks * parameters.spans;
    Launch { grid: [blocks, 1, 1], block_threads: THREADS, shared_memory_bytes: 0 }
}
