//! New rows of a cache on the CPU: whole vectors copied, sequences shared among threads where there is much to copy.

use omniflash_core::{KvAppend, KvCacheMut, Result};
use rayon::prelude::*;

/// Bytes below which one thread is done sooner than others have begun.
const WORTH_SHARING: usize = 256 << 10;

/// Checks all positions, then copies.
///
/// # Errors
/// Those of [`KvAppend::check_indices`].
///
/// # Safety
/// - Nothing else reads or writes the positions that are written.
pub(crate) unsafe fn kv_append(append: &KvAppend<'_>) -> Result<()> {
    append.check_indices()?;
    let shape = append.shape();
    let row_bytes = shape.num_kv_heads * (shape.head_dim + shape.value_dim) * shape.dtype.size();
    // SAFETY: the indices are checked, others are kept away by the caller, and where sequences are copied at the same
    // time they have memory of their own: those of a dense cache.
    let copy = |b: usize| unsafe { append.copy_sequence(b) };
    let is_apart = matches!(append.cache(), KvCacheMut::Dense { .. });
    if is_apart && shape.batch.saturating_mul(shape.new_rows).saturating_mul(row_bytes) >= WORTH_SHARING {
        (0..shape.batch).into_par_iter().for_each(copy);
    } else {
        (0..shape.batch).for_each(copy);
    }
    Ok(())
}
