//! Host work that is the same on every machine: validation and planning of a few kinds of problems.
//!
//! Criterion times it (`groups/planning.rs`); `ci/instructions` counts its instructions, which no neighbour disturbs.

use omniflash::{
    AttentionOptions, AttentionPlan, AttentionProblem, Backend, DType, KvCache, Mask, Query, Registry,
    Result, ScoreMod, Stream, Tensor,
};

/// The kinds of problems.
pub const KINDS: [&str; 4] = ["dense_causal", "padded_document_softcap", "ragged_window", "paged_decode"];

const BATCH: usize = 4;
const SEQLEN: usize = 64;
const HEADS: usize = 8;
const DIM: usize = 64;
const PAGE: usize = 16;

/// A small problem of a kind, and what it is made of.
pub struct Problem {
    kind: &'static str,
    backend: std::sync::Arc<dyn Backend>,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lengths: Tensor,
    offsets: Tensor,
    table: Tensor,
    ids: Tensor,
}

impl Problem {
    /// A problem of one of [`KINDS`] on the CPU.
    ///
    /// # Errors
    /// `Absent` in a build without the CPU backend.
    pub fn new(kind: &'static str) -> Result<Self> {
        let (backend, stream) = (Registry::discover().get("cpu")?, Stream::host());
        let zeros = |dtype, shape: &[usize]| Tensor::zeros(&*backend, dtype, shape, &stream);
        let bf16 = |rows: &[usize]| zeros(DType::BF16, &[rows, &[HEADS, DIM]].concat());
        let (q_rows, kv_rows) = match kind {
            "ragged_window" => (vec![BATCH * SEQLEN], vec![BATCH * SEQLEN]),
            "paged_decode" => (vec![BATCH, 1], vec![BATCH * SEQLEN / PAGE, PAGE]),
            _ => (vec![BATCH, SEQLEN], vec![BATCH, SEQLEN]),
        };
        let offsets: Vec<i32> = (0..=BATCH).map(|i| (i * SEQLEN) as i32).collect();
        let lengths = [SEQLEN as i32; BATCH];
        Ok(Problem {
            kind,
            q: bf16(&q_rows)?,
            k: bf16(&kv_rows)?,
            v: bf16(&kv_rows)?,
            out: bf16(&q_rows)?,
            lengths: Tensor::from_slice(&*backend, &lengths, &[BATCH], &stream)?,
            offsets: Tensor::from_slice(&*backend, &offsets, &[BATCH + 1], &stream)?,
            table: zeros(DType::I32, &[BATCH, SEQLEN / PAGE])?,
            ids: zeros(DType::I32, &[BATCH, SEQLEN])?,
            backend,
        })
    }

    /// Validates it; answers the number of query rows.
    ///
    /// # Errors
    /// None, for the problem is valid.
    pub fn validate(&mut self) -> Result<usize> {
        self.with(|_, problem| Ok(problem.shape().total_q))
    }

    /// Validates and plans it.
    ///
    /// # Errors
    /// None, for the backend supports it.
    pub fn plan(&mut self) -> Result<AttentionPlan> {
        self.with(|backend, problem| backend.plan(problem))
    }

    fn with<T>(
        &mut self,
        use_it: impl FnOnce(&dyn Backend, &AttentionProblem<'_>) -> Result<T>,
    ) -> Result<T> {
        let (k, v) = (self.k.view(), self.v.view());
        let lengths = || Some(self.lengths.view());
        let (query, kv, options) = match self.kind {
            "padded_document_softcap" => (
                Query::Padded { q: self.q.view(), lengths: lengths() },
                KvCache::Dense { k, v, lengths: lengths() },
                AttentionOptions::new()
                    .mask(Mask::Document { ids: self.ids.view() }.and(Mask::Causal))
                    .score_mod(ScoreMod::Softcap { cap: 30.0 }),
            ),
            "ragged_window" => (
                Query::ragged(self.q.view(), self.offsets.view()),
                KvCache::Ragged { k, v, cu_seqlens: self.offsets.view(), max_seqlen: Some(SEQLEN) },
                AttentionOptions::new().mask(Mask::SlidingWindow { left: 15, right: 0 }),
            ),
            "paged_decode" => (
                Query::padded(self.q.view()),
                KvCache::Paged {
                    k,
                    v,
                    page_table: self.table.view(),
                    lengths: self.lengths.view(),
                    max_seqlen: Some(SEQLEN),
                },
                AttentionOptions::new().mask(Mask::Causal),
            ),
            _ => (
                Query::padded(self.q.view()),
                KvCache::dense(k, v),
                AttentionOptions::new().mask(Mask::Causal),
            ),
        };
        let problem = AttentionProblem::new(query, kv, self.out.view_mut(), None, &options)?;
        use_it(&*self.backend, &problem)
    }
}
