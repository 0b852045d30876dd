//! What the CPU does with a problem: decided from sizes alone.

use omniflash_core::{
    Algorithm, AttentionConfig, AttentionPlan, AttentionProblem, Error, ProblemShape, Result,
};

use crate::decode;
use crate::isa::Isa;

/// Which kernels compute a plan; kept in [`AttentionPlan::detail`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// Tiles of query rows and keys: `prefill`.
    Tiles,
    /// Few query rows: `decode`.
    Stream,
    /// One row at a time: `naive`.
    Rows,
}

/// The plan of a problem on `isa` with `threads` workers.
///
/// # Errors
/// [`Error::Unsupported`] for GPU-only fields, [`Error::Value`] for sizes that no kernel has.
pub(crate) fn plan(problem: &AttentionProblem<'_>, isa: Isa, threads: usize) -> Result<AttentionPlan> {
    let shape = problem.shape();
    check_config(problem.config())?;
    let route = match problem.config().algorithm {
        Algorithm::Naive => Route::Rows,
        _ if decode::applies(problem) => Route::Stream,
        _ => Route::Tiles,
    };
    Ok(AttentionPlan {
        kernel_id: kernel_id(problem, isa),
        algorithm: Algorithm::Naive,
        grid: [shape.batch as u32, shape.num_heads as u32, shape.seqlen_q as u32],
        block_threads: threads as u32,
        block_m: 1,
        block_n: shape.seqlen_k,
        num_pipeline_stages: 1,
        shared_memory_bytes: 0,
        workspace_bytes: 0,
        num_partitions: 1,
        reason: "one row at a time".into(),
        detail: Some(std::sync::Arc::new(route)),
    })
}

/// `fwd-{isa}-{dtype}-d{head_dim}-{mask}-{score}-{kv}`.
fn kernel_id(problem: &AttentionProblem<'_>, isa: Isa) -> String {
    let shape = problem.shape();
    format!(
        "fwd-{isa}-{}-d{}-{}-{}-{}",
        shape.dtype,
        dims(shape),
        problem.mask(),
        problem.score_mod(),
        shape.kv_kind
    )
}

fn dims(shape: &ProblemShape) -> String {
    if shape.head_dim == shape.value_dim {
        shape.head_dim.to_string()
    } else {
        format!("{}x{}", shape.head_dim, shape.value_dim)
    }
}

/// Refuses what has no meaning here, each with the nearest thing that works.
pub(crate) fn check_config(config: &AttentionConfig) -> Result<()> {
    let refused = |what: &str, why: &str, nearest: &str| {
        Err(Error::unsupported("cpu", format!("config.{what}"), why, nearest))
    };
    if config.algorithm == Algorithm::Flash3 {
        return refused(
            "algorithm = flash3",
            "it overlaps asynchronous copies with matrix products of a GPU",
            "flash2 is the same sum in tiles",
        );
    }
    Ok(())
}
