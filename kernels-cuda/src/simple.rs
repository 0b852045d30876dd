//! Instances of the kernels beside the forward: naive, combine and the check of page tables.

use omniflash_core::lower::FunctorSpec;
use omniflash_core::{DType, Error, Result};
use omniflash_device::parameters::{AttentionParameters, KvAppendParameters, VerifyParameters};
use omniflash_device::{COMBINE, Launch, NAIVE, TranslationUnit, VERIFY_PAGE_TABLE};

use crate::{KV_APPEND, LIBRARY, element_type};

/// The choices that make one instance of `naive.hpp`, beside mask and score modification: any head_dim and any
/// alignment, one block a row, f32 arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NaiveConfig {
    /// Type of q, k, v and out.
    pub dtype: DType,
    /// Whether keys lie in pages.
    pub paged: bool,
}

impl NaiveConfig {
    const THREADS: u32 = 128;

    /// The source of the instance.
    pub fn translation_unit(&self, functors: &FunctorSpec<'_>) -> TranslationUnit {
        TranslationUnit::new(NAIVE, LIBRARY, "omniflash_naive")
            .with_functors(functors)
            .with_type("Element", element_type(self.dtype))
            .with_type("Keys", if self.paged { "PagedKeys" } else { "StridedKeys" })
            .with_constant("kThreads", Self::THREADS)
    }

    /// The launch: one block for each query row and head. `num_partitions` must be 1.
    ///
    /// # Errors
    /// [`Error::Value`] when there are more blocks than a launch can have.
    pub fn launch(parameters: &AttentionParameters) -> Result<Launch> {
        let rows = u64::from(parameters.batch) * u64::from(parameters.seqlen_q);
        launch(rows * u64::from(parameters.num_heads), Self::THREADS)
    }
}

/// The source of the kernel that joins partitions, for outputs of `dtype`.
pub fn combine(dtype: DType) -> TranslationUnit {
    TranslationUnit::new(COMBINE, LIBRARY, "omniflash_combine").with_type("Element", element_type(dtype))
}

/// Its launch: a warp for each query row and head.
///
/// # Errors
/// [`Error::Value`] when there are more blocks than a launch can have.
pub fn combine_launch(parameters: &AttentionParameters) -> Result<Launch> {
    const WARPS: u32 = 4;
    let rows = parameters.total_q as u64 * u64::from(parameters.num_heads);
    launch(rows.div_ceil(u64::from(WARPS)), 32 * WARPS)
}

fn launch(blocks: u64, block_threads: u32) -> Result<Launch> {
    let most = i32::MAX as u64;
    if blocks > most {
        return Err(Error::value("q", format!("{blocks} blocks of rows"), format!("at most {most}")));
    }
    Ok(Launch { grid: [blocks as u32, 1, 1], block_threads, shared_memory_bytes: 0 })
}

/// The source of the kernel that checks page and lookup tables.
pub fn verify_page_table() -> TranslationUnit {
    TranslationUnit::new(VERIFY_PAGE_TABLE, LIBRARY, "omniflash_verify_page_table")
}

/// Its launch: a block for each sequence.
pub fn verify_page_table_launch(parameters: &VerifyParameters) -> Launch {
    Launch { grid: [parameters.batch, 1, 1], block_threads: 128, shared_memory_bytes: 0 }
}

/// The bytes that a thread of [`kv_append`] can copy at once, the best first.
pub const KV_APPEND_UNITS: [usize; 3] = [16, 4, 2];

/// The source of the kernel that writes new keys and values into a cache, `unit_bytes` at a time: one of
/// [`KV_APPEND_UNITS`], a divisor of all addresses, strides and vectors.
pub fn kv_append(unit_bytes: usize) -> TranslationUnit {
    TranslationUnit::new(KV_APPEND, LIBRARY, "omniflash_kv_append")
        .with_constant("kUnitBytes", unit_bytes as i64)
}

/// Its launch: a thread for each unit of a key and the value beside it.
///
/// # Errors
/// [`Error::Value`] when there are more blocks than a launch can have.
pub fn kv_append_launch(parameters: &KvAppendParameters) -> Result<Launch> {
    const THREADS: u32 = 128;
    let vectors = u64::from(parameters.batch)
        .saturating_mul(u64::from(parameters.new_rows))
        .saturating_mul(u64::from(parameters.num_kv_heads));
    let units = vectors.saturating_mul(u64::from(parameters.key_units.max(parameters.value_units)));
    launch(units.div_ceil(u64::from(THREADS)), THREADS)
}
