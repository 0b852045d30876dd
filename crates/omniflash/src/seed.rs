//! The three entry points of Modular's Mojo `flash_attention`, the function this project grew from.
//!
//! Each is thin over [`attention_into`]; every parameter of the original has a named home here.
//!
//! | original parameter | here |
//! |---|---|
//! | `output`, `q`, `k`, `v` (BSHD `LayoutTensor`s) | arguments of the same names; any strides |
//! | `dtype`, `q_layout` | read from the tensors |
//! | `k: cache_t`, `v: cache_t` (`KVCacheT`) | one [`KvCache`]: `Continuous` or `Paged` (or any other) |
//! | `mask` (BSS or BHSS tensor) | `mask` of [`flash_attention`]: float tensors are added, bool ones select; batch and heads may be 1 |
//! | `mask_functor: mask_t` (`MHAMask`) | `mask`, a [`Mask`] |
//! | `score_mod_functor: score_mod_t`, `use_score_mod` | `score_mod`, an `Option<ScoreMod>`: presence is use |
//! | `valid_length` with `ragged=False` | [`ValidLength::Lengths`] |
//! | `valid_length` with `ragged=True` | [`ValidLength::RowOffsets`] |
//! | `_use_valid_length` | [`PaddedLength::Queries`] of [`flash_attention_masked`] |
//! | `_padded_ndbuffer` | [`PaddedLength::QueriesAndKeys`] |
//! | `scale` | `scale` |
//! | `context`, `ctx` (`DeviceContext`) | `backend`; a stream through [`attention_on_stream`](crate::attention_on_stream) |
//! | `q_max_seq_len` | `q_max_seq_len` |
//! | `kv_input_row_offsets` | the cache's lengths count all visible keys, and [`CacheArguments::query_start`] is the cache length that rows align to |
//! | `num_partitions` | [`KernelOptions::num_partitions`] |
//! | `sink`, `sink_weights` | [`KernelOptions::sink_weights`]: presence is use |
//! | `decoding_warp_split_k` | [`KernelOptions::decoding_warp_split_k`] |
//! | `naive_kernel` | [`KernelOptions::naive_kernel`] |
//! | `config: MHAConfig` | [`KernelOptions::config`]; its fields below |
//!
//! | `MHAConfig` field | [`AttentionConfig`] field |
//! |---|---|
//! | `dtype`, `num_heads`, `depth` | read from `q` (depth is head_dim) |
//! | `num_queries_per_block` | `block_m` |
//! | `num_keys_per_block` | `block_n` |
//! | `BK` | `block_k` |
//! | `WM`, `WN` | `warp_m`, `warp_n` |
//! | `num_pipeline_stages` | `num_pipeline_stages` |
//! | `k_group_size` | `k_group_size` |
//! | `algorithm` (`FlashAttentionAlgorithm`) | `algorithm`: NAIVE is `Naive`, 1 and 2 are `Flash2`, 3 is `Flash3`, -1 is `Auto` |
//! | `swizzle_mode` (`TensorMapSwizzle`), `padded_depth` | `swizzle`; the padding follows from it |
//!
//! Where the original is wrong this differs on purpose: the mask's fill is a true minus infinity; sinks count once a
//! row whatever the split; a score modification is never ignored; partial results are f32.

use omniflash_core::{
    Algorithm, AttentionConfig, AttentionOptions, Backend, Error, KvCache, Mask, Query, Result, ScoreMod,
    TensorMut, TensorRef,
};

use crate::call::attention_into;

/// The tuning parameters that all three entry points share.
#[derive(Clone, Debug, Default)]
pub struct KernelOptions<'a> {
    /// Tuning.
    pub config: AttentionConfig,
    /// Splits keys among the warps of a block when decoding.
    pub decoding_warp_split_k: bool,
    /// Uses the algorithm `Naive`.
    pub naive_kernel: bool,
    /// Pieces into which keys are split when decoding.
    pub num_partitions: Option<usize>,
    /// `[num_heads]`, float: attention sinks.
    pub sink_weights: Option<TensorRef<'a>>,
}

/// How many rows of each sequence count, with a KV cache.
#[derive(Clone, Debug)]
pub enum ValidLength<'a> {
    /// `[batch]`: valid rows of padded queries.
    Lengths(TensorRef<'a>),
    /// `[batch + 1]`: row offsets of ragged queries.
    RowOffsets(TensorRef<'a>),
}

/// How many rows of each sequence count, without a KV cache.
#[derive(Clone, Debug)]
pub enum PaddedLength<'a> {
    /// `[batch]`: valid query rows; all keys count.
    Queries(TensorRef<'a>),
    /// `[batch]`: valid query rows, and as many keys.
    QueriesAndKeys(TensorRef<'a>),
}

/// Overload A: dense keys and values with a mask tensor.
///
/// # Shapes
/// `output`, `q`: `[batch, seqlen_q, num_heads, head_dim]`; `k`, `v`: `[batch, seqlen_k, num_kv_heads, head_dim]`;
/// `mask`: `[batch, seqlen_q, seqlen_k]` or `[batch, num_heads, seqlen_q, seqlen_k]`, batch and heads may be 1.
///
/// # Errors
/// As [`attention_into`].
#[allow(clippy::too_many_arguments)] // the original's parameters, one for one
pub fn flash_attention<'a>(
    backend: &dyn Backend,
    output: TensorMut<'a>,
    q: &TensorRef<'a>,
    k: &TensorRef<'a>,
    v: &TensorRef<'a>,
    mask: &TensorRef<'a>,
    scale: f32,
    kernel: &KernelOptions<'a>,
) -> Result<()> {
    let options = options(kernel, Mask::Dense(mask.clone()), None, scale)?;
    attention_into(backend, q, (k, v), output, None, &options)
}

/// The arguments of [`flash_attention_kv_cache`] beside tensors and mask.
#[derive(Clone, Debug)]
pub struct CacheArguments<'a> {
    /// Valid rows or row offsets.
    pub valid_length: ValidLength<'a>,
    /// A bound on the query rows of a sequence, for ragged queries.
    pub q_max_seq_len: Option<usize>,
    /// `[batch]`: the position of each sequence's first query, where it is not `kv_len - q_len`: cross attention.
    pub query_start: Option<TensorRef<'a>>,
}

/// Overload B: keys and values in a cache, with a mask and a score modification.
///
/// # Shapes
/// `q`, `output`: ragged `[total_q, num_heads, head_dim]`, else `[batch, seqlen_q, num_heads, head_dim]`; `cache`:
/// see [`KvCache`]; its lengths count the new tokens too.
///
/// # Errors
/// As [`attention_into`].
#[allow(clippy::too_many_arguments)] // the original's parameters, one for one
pub fn flash_attention_kv_cache<'a>(
    backend: &dyn Backend,
    output: TensorMut<'a>,
    q: &TensorRef<'a>,
    cache: KvCache<'a>,
    mask: Mask<'a>,
    score_mod: Option<ScoreMod<'a>>,
    arguments: &CacheArguments<'a>,
    scale: f32,
    kernel: &KernelOptions<'a>,
) -> Result<()> {
    let mut options = options(kernel, mask, score_mod, scale)?;
    options.query_start = arguments.query_start.clone();
    let query = match &arguments.valid_length {
        ValidLength::Lengths(lengths) => {
            check_q_max_seq_len(q, arguments.q_max_seq_len)?;
            Query::Padded { q: q.clone(), lengths: Some(lengths.clone()) }
        }
        ValidLength::RowOffsets(offsets) => {
            Query::Ragged { q: q.clone(), cu_seqlens: offsets.clone(), max_seqlen: arguments.q_max_seq_len }
        }
    };
    attention_into(backend, query, cache, output, None, &options)
}

/// Overload C: dense keys and values with a mask and a score modification.
///
/// # Shapes
/// As [`flash_attention`].
///
/// # Errors
/// As [`attention_into`].
#[allow(clippy::too_many_arguments)] // the original's parameters, one for one
pub fn flash_attention_masked<'a>(
    backend: &dyn Backend,
    output: TensorMut<'a>,
    q: &TensorRef<'a>,
    k: &TensorRef<'a>,
    v: &TensorRef<'a>,
    mask: Mask<'a>,
    score_mod: Option<ScoreMod<'a>>,
    valid_length: Option<PaddedLength<'a>>,
    scale: f32,
    kernel: &KernelOptions<'a>,
) -> Result<()> {
    let options = options(kernel, mask, score_mod, scale)?;
    let (q_lengths, kv_lengths) = match valid_length {
        None => (None, None),
        Some(PaddedLength::Queries(lengths)) => (Some(lengths), None),
        Some(PaddedLength::QueriesAndKeys(lengths)) => (Some(lengths.clone()), Some(lengths)),
    };
    let query = Query::Padded { q: q.clone(), lengths: q_lengths };
    let kv = KvCache::Dense { k: k.clone(), v: v.clone(), lengths: kv_lengths };
    attention_into(backend, query, kv, output, None, &options)
}

fn options<'a>(
    kernel: &KernelOptions<'a>,
    mask: Mask<'a>,
    score_mod: Option<ScoreMod<'a>>,
    scale: f32,
) -> Result<AttentionOptions<'a>> {
    let mut config = kernel.config;
    if kernel.naive_kernel {
        if !matches!(config.algorithm, Algorithm::Auto | Algorithm::Naive) {
            return Err(Error::value(
                "config.algorithm",
                config.algorithm,
                "auto or naive with naive_kernel",
            ));
        }
        config.algorithm = Algorithm::Naive;
    }
    if kernel.decoding_warp_split_k {
        config.split_within_block = Some(true);
    }
    if kernel.num_partitions.is_some() {
        config.num_partitions = kernel.num_partitions;
    }
    let mut options = AttentionOptions::new().softmax_scale(scale).mask(mask).config(config);
    if let Some(score_mod) = score_mod {
        options = options.score_mod(score_mod);
    }
    options.sinks = kernel.sink_weights.clone();
    Ok(options)
}

/// Padded queries have their bound in their shape; a differing one would be a mistake of the caller's.
fn check_q_max_seq_len(q: &TensorRef<'_>, q_max_seq_len: Option<usize>) -> Result<()> {
    match (q_max_seq_len, q.shape().get(1)) {
        (Some(bound), Some(&seqlen_q)) if bound != seqlen_q => {
            Err(Error::value("q_max_seq_len", bound, format!("{seqlen_q}, q's seqlen_q")))
        }
        _ => Ok(()),
    }
}
