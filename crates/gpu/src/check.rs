//! Checks whose errors every GPU backend words the same.

use omniflash_core::{AttentionProblem, Error, KvKind, ProblemShape, Result};

/// Kernels count rows, keys and heads in 32 bits, and blocks in 31.
///
/// # Errors
/// [`Error::Value`] naming the first size that is larger.
pub fn check_sizes(shape: &ProblemShape) -> Result<()> {
    const LIMIT: u64 = i32::MAX as u64;
    let rows = shape.batch as u64 * shape.seqlen_q as u64;
    let sizes = [
        ("batch * seqlen_q * num_heads", rows.saturating_mul(shape.num_heads as u64)),
        ("seqlen_k", shape.seqlen_k as u64),
        ("head_dim", shape.head_dim as u64),
        ("value_dim", shape.value_dim as u64),
    ];
    match sizes.into_iter().find(|(_, size)| *size > LIMIT) {
        Some((name, size)) => Err(Error::value(name, size, format!("at most {LIMIT} on a GPU"))),
        None => Ok(()),
    }
}

/// Refuses a copy of `needed` bytes to or from a buffer of `bytes`.
///
/// # Errors
/// [`Error::Shape`].
pub fn check_room(argument: &str, bytes: usize, needed: usize) -> Result<()> {
    if bytes >= needed {
        return Ok(());
    }
    Err(Error::shape(argument, format!("{bytes} bytes, expected {needed}")))
}

/// The report of the kernel that checks tables, the first bad entry and the first bad length, as an error.
///
/// # Errors
/// [`Error::Value`] unless both are `u64::MAX`.
pub fn check_table_report([entry, sequence]: [u64; 2], problem: &AttentionProblem<'_>) -> Result<()> {
    let most = problem.shape().seqlen_k;
    if sequence != u64::MAX {
        return Err(Error::value(format!("kv_lengths[{sequence}]"), "out of range", format!("0 to {most}")));
    }
    if entry == u64::MAX {
        return Ok(());
    }
    let (batch, page, blocks) = (entry >> 32, entry & u64::from(u32::MAX), problem.kv().k().shape()[0]);
    let name = match problem.kv().kind() {
        KvKind::Continuous => format!("lookup_table[{batch}]"),
        _ => format!("page_table[{batch}, {page}]"),
    };
    Err(Error::value(name, "out of range", format!("an id below {blocks}")))
}
