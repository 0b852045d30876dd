//! The one way through: validate, plan, launch.

use omniflash_core::{
    AppendAt, AttentionOptions, AttentionProblem, Backend, DType, KvAppend, KvCache, KvCacheMut, NewKv,
    Query, Result, Stream, Tensor, TensorMut, backend, run,
};

/// What [`attention`] computes.
#[derive(Debug)]
pub struct AttentionOutput {
    /// `[batch, seqlen_q, num_heads, value_dim]`, ragged `[total_q, num_heads, value_dim]`, in q's dtype; rows past
    /// a sequence's length are 0.
    pub out: Tensor,
    /// `[batch, num_heads, seqlen_q]`, ragged `[num_heads, total_q]`, f32, natural logarithm; if asked for.
    pub lse: Option<Tensor>,
}

/// Computes attention into new memory of the backend, and waits for it.
///
/// # Shapes
/// | argument | shape |
/// |---|---|
/// | `q` | a tensor `[batch, seqlen_q, num_heads, head_dim]`, or any [`Query`] |
/// | `kv` | a pair of tensors `[batch, seqlen_k, num_kv_heads, head_dim]`, or any [`KvCache`] |
///
/// Any strides with a dense last axis. `num_kv_heads` divides `num_heads`; query head `h` meets key head
/// `h / (num_heads / num_kv_heads)`.
///
/// # Errors
/// Of validation ([`AttentionProblem::new`]): `Shape`, `Dtype`, `Value`, `Device`, naming the argument. Of the
/// backend: `Unsupported`, `NoKernel`, `OutOfMemory`, `Driver`.
pub fn attention<'a>(
    backend: &dyn Backend,
    q: impl Into<Query<'a>>,
    kv: impl Into<KvCache<'a>>,
    options: &AttentionOptions<'a>,
) -> Result<AttentionOutput> {
    let (q, kv) = (q.into(), kv.into());
    let stream = backend.stream()?;
    let shape = AttentionProblem::output_shape(&q, &kv)?;
    let mut out = Tensor::zeros(backend, shape.dtype, &shape.out, &stream)?;
    let mut lse = match options.lse {
        true => Some(Tensor::zeros(backend, DType::F32, &shape.lse, &stream)?),
        false => None,
    };
    let problem = AttentionProblem::new(q, kv, out.view_mut(), lse.as_mut().map(Tensor::view_mut), options)?;
    run(backend, &problem, &stream)?;
    drop(problem);
    Ok(AttentionOutput { out, lse })
}

/// Computes attention into tensors of yours, and waits for it.
///
/// `lse` is given iff [`AttentionOptions::lse`] asks for it.
///
/// # Errors
/// As [`attention`], and `Overlap` when an output shares memory with an input, or with itself.
pub fn attention_into<'a>(
    backend: &dyn Backend,
    q: impl Into<Query<'a>>,
    kv: impl Into<KvCache<'a>>,
    out: TensorMut<'a>,
    lse: Option<TensorMut<'a>>,
    options: &AttentionOptions<'a>,
) -> Result<()> {
    let problem = AttentionProblem::new(q.into(), kv.into(), out, lse, options)?;
    run(backend, &problem, &backend.stream()?)
}

/// Enqueues attention on a stream of yours and returns without waiting; on a GPU it can be captured in a graph.
///
/// # Errors
/// As [`attention_into`]; faults of the device show at a later [`Backend::synchronize`].
///
/// # Safety
/// - All tensors stay allocated until `stream` has passed this work.
/// - Until then nothing writes what it reads, and nothing else touches `out` and `lse`.
pub unsafe fn attention_on_stream<'a>(
    backend: &dyn Backend,
    q: impl Into<Query<'a>>,
    kv: impl Into<KvCache<'a>>,
    out: TensorMut<'a>,
    lse: Option<TensorMut<'a>>,
    options: &AttentionOptions<'a>,
    stream: &Stream,
) -> Result<()> {
    let problem = AttentionProblem::new(q.into(), kv.into(), out, lse, options)?;
    omniflash_core::backend::check_device(backend, &problem)?;
    let plan = backend.plan(&problem)?;
    // SAFETY: the plan is this backend's for this problem; the caller keeps the memory alive and apart.
    unsafe { backend.launch(&plan, &problem, stream) }
}

/// Writes new keys and values into a cache, and waits.
///
/// # Shapes
/// | argument | shape |
/// |---|---|
/// | `new` | rows `[batch, new_rows, num_kv_heads, head_dim]` or ragged `[total_rows, num_kv_heads, head_dim]`, see [`NewKv`] |
/// | `cache` | dense, continuous or paged, see [`KvCacheMut`] |
/// | `at` | `[batch]`: where the first new row goes, or the length with the new rows, see [`AppendAt`] |
///
/// ```
/// use omniflash::{AppendAt, KvCacheMut, NewKv, TensorMut, TensorRef, kv_append};
/// let backend = omniflash::Registry::discover().get("reference")?;
/// let (new, lengths, mut k, mut v) = ([1.0f32, 2.0], [3i32], [0.0f32; 8], [0.0f32; 8]);
/// let new = TensorRef::from_slice(&new, &[1, 1, 1, 2])?;
/// let cache = KvCacheMut::Dense {
///     k: TensorMut::from_slice(&mut k, &[1, 4, 1, 2])?,
///     v: TensorMut::from_slice(&mut v, &[1, 4, 1, 2])?,
/// };
/// kv_append(&*backend, NewKv::padded(new.clone(), new), cache, AppendAt::End(TensorRef::from_slice(&lengths, &[1])?))?;
/// assert_eq!(k, [0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 0.0, 0.0]);
/// # Ok::<(), omniflash::Error>(())
/// ```
///
/// # Errors
/// Of validation ([`KvAppend::new`]): `Shape`, `Dtype`, `Device`, `Value`, `Overlap`, naming the argument. Of the
/// backend: `Value` for positions and ids that a host backend finds out of range (a GPU leaves such rows out),
/// `Unsupported`, `NoKernel`, `Driver`.
pub fn kv_append(
    backend: &dyn Backend,
    new: NewKv<'_>,
    cache: KvCacheMut<'_>,
    at: AppendAt<'_>,
) -> Result<()> {
    let append = KvAppend::new(new, cache, at)?;
    backend::run_kv_append(backend, &append, &backend.stream()?)
}

/// Enqueues the writing of new keys and values on a stream of yours and returns without waiting; on a GPU it can be
/// captured in a graph, together with the attention that reads them.
///
/// # Errors
/// As [`kv_append`]; faults of the device show at a later [`Backend::synchronize`].
///
/// # Safety
/// - All tensors stay allocated until `stream` has passed this work.
/// - Until then nothing writes what it reads, and nothing else touches the positions that it writes.
pub unsafe fn kv_append_on_stream(
    backend: &dyn Backend,
    new: NewKv<'_>,
    cache: KvCacheMut<'_>,
    at: AppendAt<'_>,
    stream: &Stream,
) -> Result<()> {
    let append = KvAppend::new(new, cache, at)?;
    backend::check_append_device(backend, &append)?;
    // SAFETY: the caller's duties are the same.
    unsafe { backend.kv_append(&append, stream) }
}
