//! The validated request: having an [`AttentionProblem`] means its shapes, dtypes, devices and memory fit together.

use arrayvec::ArrayVec;

use crate::config::AttentionConfig;
use crate::device::DeviceId;
use crate::dtype::DType;
use crate::error::Result;
use crate::kv_cache::{KvCache, KvKind, Query};
use crate::mask::Mask;
use crate::options::AttentionOptions;
use crate::score_mod::ScoreMod;
use crate::tensor::{TensorMut, TensorRef};

mod indices;
pub(crate) mod validate;

/// The sizes of a problem, without its tensors: what plans are made and cached by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct ProblemShape {
    /// Sequences.
    pub batch: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Elements of a query or key vector.
    pub head_dim: usize,
    /// Elements of a value or output vector.
    pub value_dim: usize,
    /// The most query rows that a sequence can have.
    pub seqlen_q: usize,
    /// The most keys that a sequence can have.
    pub seqlen_k: usize,
    /// Rows of the query tensor: `batch * seqlen_q`, or the total of a ragged batch.
    pub total_q: usize,
    /// Type of q, k, v and out.
    pub dtype: DType,
    /// Where all tensors are.
    pub device: DeviceId,
    /// The form of the keys and values.
    pub kv_kind: KvKind,
    /// Whether queries are ragged.
    pub ragged_q: bool,
}

impl ProblemShape {
    /// The extents of the output.
    fn out_extents(&self) -> ArrayVec<usize, 4> {
        let rows: &[usize] = if self.ragged_q { &[self.total_q] } else { &[self.batch, self.seqlen_q] };
        rows.iter().copied().chain([self.num_heads, self.value_dim]).collect()
    }

    /// The extents of the log-sum-exp.
    fn lse_extents(&self) -> ArrayVec<usize, 3> {
        if self.ragged_q {
            [self.num_heads, self.total_q].into_iter().collect()
        } else {
            ArrayVec::from([self.batch, self.num_heads, self.seqlen_q])
        }
    }

    /// Dense bf16 tensors of head_dim 64.
    #[cfg(test)]
    pub(crate) fn for_tests((batch, heads): (usize, usize), (seqlen_q, seqlen_k): (usize, usize)) -> Self {
        ProblemShape {
            batch,
            num_heads: heads,
            num_kv_heads: heads,
            head_dim: 64,
            value_dim: 64,
            seqlen_q,
            seqlen_k,
            total_q: batch * seqlen_q,
            dtype: DType::BF16,
            device: DeviceId::Cpu,
            kv_kind: KvKind::Dense,
            ragged_q: false,
        }
    }

    /// Query heads that share a key head.
    pub fn group_size(&self) -> usize {
        self.num_heads / self.num_kv_heads
    }

    /// Whether there is no output element at all.
    pub fn is_empty(&self) -> bool {
        self.batch == 0 || self.total_q == 0 || self.seqlen_q == 0 || self.num_heads == 0
    }
}

/// One validated attention: `out = softmax(mask(score_mod(q k^T * softmax_scale))) v`.
///
/// Fields are private and checked by [`new`](AttentionProblem::new), once; a backend never checks shapes again.
/// Lengths, offsets and tables live where the data lives and are not read here; host backends check them with
/// [`check_indices`](AttentionProblem::check_indices) when they read them.
#[derive(Debug)]
pub struct AttentionProblem<'a> {
    query: Query<'a>,
    kv: KvCache<'a>,
    out: TensorMut<'a>,
    lse: Option<TensorMut<'a>>,
    softmax_scale: f32,
    mask: Mask<'a>,
    score_mod: ScoreMod<'a>,
    sinks: Option<TensorRef<'a>>,
    query_start: Option<TensorRef<'a>>,
    config: AttentionConfig,
    shape: ProblemShape,
}

impl<'a> AttentionProblem<'a> {
    /// Validates a request.
    ///
    /// # Shapes
    /// | tensor | shape |
    /// |---|---|
    /// | `query`, `kv` | see [`Query`] and [`KvCache`]; any strides with a dense last axis |
    /// | `out` | `[batch, seqlen_q, num_heads, value_dim]`, ragged `[total_q, num_heads, value_dim]`; q's dtype |
    /// | `lse` | `[batch, num_heads, seqlen_q]`, ragged `[num_heads, total_q]`; f32; given iff asked for |
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape), [`Error::Dtype`](crate::Error::Dtype), [`Error::Value`](crate::Error::Value), [`Error::Device`](crate::Error::Device) or [`Error::Overlap`](crate::Error::Overlap), naming the
    /// argument, what it is and what was expected.
    pub fn new(
        query: Query<'a>,
        kv: KvCache<'a>,
        out: TensorMut<'a>,
        lse: Option<TensorMut<'a>>,
        options: &AttentionOptions<'a>,
    ) -> Result<Self> {
        let shape = validate::shape_of(&query, &kv)?;
        let problem = AttentionProblem {
            query,
            kv,
            out,
            lse,
            softmax_scale: options.softmax_scale.unwrap_or(1.0 / (shape.head_dim as f32).sqrt()),
            mask: options.mask.clone(),
            score_mod: options.score_mod.clone(),
            sinks: options.sinks.clone(),
            query_start: options.query_start.clone(),
            config: options.config,
            shape,
        };
        validate::check(&problem, options)?;
        Ok(problem)
    }

    /// The shape of the output for these inputs: what to allocate before [`new`](AttentionProblem::new).
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) or [`Error::Dtype`](crate::Error::Dtype) when the inputs do not fit together.
    pub fn output_shape(query: &Query<'_>, kv: &KvCache<'_>) -> Result<OutputShape> {
        let shape = validate::shape_of(query, kv)?;
        let (out, lse) = (shape.out_extents().to_vec(), shape.lse_extents().to_vec());
        Ok(OutputShape { out, lse, dtype: shape.dtype, device: shape.device })
    }

    /// The queries.
    pub fn query(&self) -> &Query<'a> {
        &self.query
    }

    /// The keys and values.
    pub fn kv(&self) -> &KvCache<'a> {
        &self.kv
    }

    /// The output; kernels write it through its address.
    pub fn out(&self) -> &TensorMut<'a> {
        &self.out
    }

    /// The log-sum-exp to write, if wanted.
    pub fn lse(&self) -> Option<&TensorMut<'a>> {
        self.lse.as_ref()
    }

    /// The factor of every dot product; finite.
    pub fn softmax_scale(&self) -> f32 {
        self.softmax_scale
    }

    /// Which keys a query sees.
    pub fn mask(&self) -> &Mask<'a> {
        &self.mask
    }

    /// What happens to a scaled score.
    pub fn score_mod(&self) -> &ScoreMod<'a> {
        &self.score_mod
    }

    /// `[num_heads]`, float.
    pub fn sinks(&self) -> Option<&TensorRef<'a>> {
        self.sinks.as_ref()
    }

    /// `[batch]`, i32 or u32.
    pub fn query_start(&self) -> Option<&TensorRef<'a>> {
        self.query_start.as_ref()
    }

    /// Tuning.
    pub fn config(&self) -> &AttentionConfig {
        &self.config
    }

    /// The sizes.
    pub fn shape(&self) -> &ProblemShape {
        &self.shape
    }

    /// Checks every length, offset and table entry that a launch would read; for problems in host memory.
    ///
    /// # Errors
    /// [`Error::Value`](crate::Error::Value) naming the entry: a length beyond its tensor, offsets that fall or leave the tensor, a page
    /// or block id outside the pool. [`Error::Device`](crate::Error::Device) when the tensors are not in host memory.
    pub fn check_indices(&self) -> Result<()> {
        indices::check(self)
    }
}

/// What [`AttentionProblem::output_shape`] answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputShape {
    /// Shape of `out`.
    pub out: Vec<usize>,
    /// Shape of `lse`, f32.
    pub lse: Vec<usize>,
    /// dtype of `out`.
    pub dtype: DType,
    /// Where both belong.
    pub device: DeviceId,
}

/// Checks on the device where it lies that every page id a sequence uses is inside the pool: the launch itself
/// trusts them on a GPU. Host memory only here; GPU backends offer the same check as a kernel.
///
/// # Errors
/// [`Error::Value`](crate::Error::Value) naming the entry, [`Error::Device`](crate::Error::Device) for tensors of a device.
pub fn verify_page_table(problem: &AttentionProblem<'_>) -> Result<()> {
    problem.check_indices()
}

#[cfg(test)]
mod tests;
