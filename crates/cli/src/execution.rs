//! One call on a backend, timed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use omniflash::{
    AttentionOptions, AttentionPlan, AttentionProblem, Backend, DType, KvCache, OutputShape, Query, Registry,
    Result, Stream, Tensor, run,
};

/// The backend of a name; `auto` is the one that `OMNIFLASH_BACKEND` names, or the best.
pub(crate) fn choose(name: &str) -> Result<Arc<dyn Backend>> {
    let registry = Registry::discover();
    if name == "auto" { registry.best() } else { registry.get(name) }
}

/// A result, copied to host memory.
#[derive(Debug)]
pub(crate) struct Execution {
    /// The elements of `out`, row-major, in the dtype of `shape`.
    pub(crate) out: Vec<u8>,
    /// The elements of `lse`, f32, if asked for.
    pub(crate) lse: Option<Vec<u8>>,
    pub(crate) shape: OutputShape,
    pub(crate) plan: AttentionPlan,
    /// Of planning, launch and synchronisation.
    pub(crate) elapsed: Duration,
}

/// Runs a call whose tensors are in the backend's memory on a stream, `repeats` times; the time is that of the fastest. What
/// a backend keeps for a stream, such as memory for splitting keys, is there from the second call on it.
///
/// # Errors
/// Those of [`AttentionProblem::new`] and of the backend.
pub(crate) fn execute(
    (backend, stream): (&dyn Backend, &Stream),
    query: Query<'_>,
    kv: KvCache<'_>,
    options: &AttentionOptions<'_>,
    repeats: usize,
) -> Result<Execution> {
    let shape = AttentionProblem::output_shape(&query, &kv)?;
    let mut out = Tensor::zeros(backend, shape.dtype, &shape.out, stream)?;
    let mut lse = match options.lse {
        true => Some(Tensor::zeros(backend, DType::F32, &shape.lse, stream)?),
        false => None,
    };
    let problem =
        AttentionProblem::new(query, kv, out.view_mut(), lse.as_mut().map(Tensor::view_mut), options)?;
    let plan = backend.plan(&problem)?;
    let mut elapsed = Duration::MAX;
    for _ in 0..repeats.max(1) {
        let start = Instant::now();
        // Without a query row the result is complete, however many empty sequences there are.
        if problem.shape().total_q > 0 && problem.shape().num_heads > 0 {
            run(backend, &problem, stream)?;
        }
        elapsed = elapsed.min(start.elapsed());
    }
    drop(problem);
    let lse = lse.map(|lse| lse.to_memory(backend, stream)).transpose()?;
    Ok(Execution { out: out.to_memory(backend, stream)?, lse, shape, plan, elapsed })
}
