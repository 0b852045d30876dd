//! Descriptions of cases: cheap to make and to list, built into a [`Case`] only when it is their turn.

use std::sync::Arc;

use omniflash_core::{AttentionConfig, DType, Mask, ScoreMod};

use crate::case::Case;

mod build;

/// How a tensor `[.., positions, heads, head_dim]` lies in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Arrangement {
    /// Row-major.
    #[default]
    Contiguous,
    /// Heads before positions.
    HeadsFirst,
    /// Row-major with this many unused elements after each vector.
    Pitched(usize),
    /// The middle heads of a tensor with more heads.
    SlicedHeads,
    /// Positions from last to first: a negative stride.
    Reversed,
    /// One head in memory, seen as all heads: stride 0.
    ExpandedHeads,
    /// One sequence in memory, seen as the whole batch: stride 0.
    ExpandedBatch,
}

/// Tensors that share one memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sharing {
    /// Each tensor has its own memory.
    #[default]
    None,
    /// q, k and v are the heads of one projection `[.., positions, num_heads + 2 num_kv_heads, head_dim]`.
    PackedQkv,
    /// As `PackedQkv`, and out is a fourth part of it, beside what is read.
    PackedQkvOut,
    /// k and v are one layer of a collection `[pages, 2, layers, page_size, num_kv_heads, head_dim]`.
    Collection {
        /// Layers of the collection.
        layers: usize,
        /// The layer that holds k and v; the others hold NaN.
        layer: usize,
    },
}

/// The queries of a description.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "named as in Query")]
pub enum QuerySpec {
    Padded {
        seqlen: usize,
        lengths: Option<Vec<usize>>,
    },
    /// `lead` and `tail` rows before and after all sequences belong to none; `bounded` tells the host the maximum.
    Ragged {
        lengths: Vec<usize>,
        lead: usize,
        tail: usize,
        bounded: bool,
    },
}

/// The keys and values of a description.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "named as in KvCache")]
pub enum KeySpec {
    Dense {
        seqlen: usize,
        lengths: Option<Vec<usize>>,
    },
    /// `lead` and `tail` rows before and after all sequences belong to none; `bounded` tells the host the maximum.
    Ragged {
        lengths: Vec<usize>,
        lead: usize,
        tail: usize,
        bounded: bool,
    },
    Continuous {
        capacity: usize,
        lengths: Vec<usize>,
    },
    /// The first `shared_pages` pages of every sequence are the same.
    Paged {
        page_size: usize,
        lengths: Vec<usize>,
        shared_pages: usize,
    },
}

/// The leading axes of a dense mask or bias: full, or 1 to broadcast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axes {
    /// Whether there is an entry per sequence.
    pub batch: bool,
    /// Whether there is an entry per head; `None` leaves the axis out.
    pub heads: Option<bool>,
    /// Whether there is an entry per query row.
    pub rows: bool,
}

impl Axes {
    /// `[batch, heads, seqlen_q, seqlen_k]`.
    pub const FULL: Axes = Axes { batch: true, heads: Some(true), rows: true };
    /// `[batch, seqlen_q, seqlen_k]`.
    pub const RANK_3: Axes = Axes { batch: true, heads: None, rows: true };
}

/// What a dense mask or bias holds.
#[derive(Clone, Copy, Debug)]
pub enum Fill {
    /// Normal numbers; in masks three of ten entries hide their key.
    Random,
    /// A function of (batch, head, row, key); in a bool mask whatever is not -inf is true.
    Of(fn(usize, usize, usize, usize) -> f32),
}

/// A mask of a description.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "named as in Mask")]
pub enum MaskSpec {
    Plain(Mask<'static>),
    PrefixLm(Vec<usize>),
    /// Lengths of the documents of each sequence; the rest is one more document.
    Document(Vec<Vec<usize>>),
    Dense {
        dtype: DType,
        axes: Axes,
        fill: Fill,
    },
    And(Box<MaskSpec>, Box<MaskSpec>),
    Or(Box<MaskSpec>, Box<MaskSpec>),
    Not(Box<MaskSpec>),
}

impl From<Mask<'static>> for MaskSpec {
    fn from(mask: Mask<'static>) -> Self {
        MaskSpec::Plain(mask)
    }
}

impl MaskSpec {
    /// Visible by both.
    pub fn and(self, other: impl Into<MaskSpec>) -> Self {
        MaskSpec::And(Box::new(self), Box::new(other.into()))
    }

    /// Visible by either.
    pub fn or(self, other: impl Into<MaskSpec>) -> Self {
        MaskSpec::Or(Box::new(self), Box::new(other.into()))
    }

    /// Whether lengths of parts of a sequence belong to it.
    fn names_positions(&self) -> bool {
        match self {
            MaskSpec::PrefixLm(_) | MaskSpec::Document(_) => true,
            MaskSpec::Plain(_) | MaskSpec::Dense { .. } => false,
            MaskSpec::And(one, other) | MaskSpec::Or(one, other) => {
                one.names_positions() || other.names_positions()
            }
            MaskSpec::Not(mask) => mask.names_positions(),
        }
    }

    /// Visible where this hides.
    pub fn negated(self) -> Self {
        MaskSpec::Not(Box::new(self))
    }
}

/// A score modification of a description.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "named as in ScoreMod")]
pub enum ModSpec {
    Plain(ScoreMod<'static>),
    /// Slopes of this type, falling with the head.
    Alibi(DType),
    Bias {
        dtype: DType,
        axes: Axes,
        fill: Fill,
    },
}

impl From<ScoreMod<'static>> for ModSpec {
    fn from(score_mod: ScoreMod<'static>) -> Self {
        ModSpec::Plain(score_mod)
    }
}

/// What q, k and v hold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Inputs {
    /// Standard normal.
    Normal,
    /// Standard normal, the queries times this: logits grow with it.
    Scaled(f32),
    /// All queries and keys the same, values normal: every visible key weighs the same.
    EqualKeys,
}

/// One key and value to overwrite after all others are filled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Poke {
    /// The sequence.
    pub batch: usize,
    /// Its key.
    pub key: usize,
    /// Every element of the key vector becomes this, if given.
    pub k: Option<f32>,
    /// Every element of the value vector becomes this, if given.
    pub v: Option<f32>,
}

/// The description of a case.
///
/// ```
/// use omniflash_core::{DType, Mask};
/// use omniflash_testkit::Spec;
/// let case = Spec::new("example").dtype(DType::BF16).heads(6, 2).dim(64).dense(2, 5, 9).mask(Mask::Causal).build();
/// assert_eq!(case.reference()?.out.len(), 2 * 5 * 6 * 64);
/// # Ok::<(), omniflash_core::Error>(())
/// ```
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "each field has a builder of its name, which says what it is")]
pub struct Spec {
    pub name: String,
    pub seed: Option<String>,
    pub twin: Option<String>,
    pub dtype: DType,
    pub index_dtype: DType,
    pub batch: usize,
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    pub value_dim: usize,
    pub query: QuerySpec,
    pub keys: KeySpec,
    pub q_arrangement: Arrangement,
    pub k_arrangement: Arrangement,
    pub v_arrangement: Arrangement,
    pub out_arrangement: Arrangement,
    pub sharing: Sharing,
    pub mask: Option<MaskSpec>,
    pub score_mods: Vec<ModSpec>,
    pub sinks: Option<(DType, Vec<f32>)>,
    pub query_start: Option<Vec<i64>>,
    pub inputs: Inputs,
    pub extreme: bool,
    pub pokes: Vec<Poke>,
    pub lse: bool,
    pub softmax_scale: Option<f32>,
    pub config: AttentionConfig,
}

impl Spec {
    /// A description with the defaults: f32, two heads, head_dim 64, one sequence of 8 queries and 8 keys, lse.
    pub fn new(name: impl Into<String>) -> Self {
        Spec {
            name: name.into(),
            seed: None,
            twin: None,
            dtype: DType::F32,
            index_dtype: DType::I32,
            batch: 1,
            num_heads: 2,
            num_kv_heads: 2,
            head_dim: 64,
            value_dim: 64,
            query: QuerySpec::Padded { seqlen: 8, lengths: None },
            keys: KeySpec::Dense { seqlen: 8, lengths: None },
            q_arrangement: Arrangement::Contiguous,
            k_arrangement: Arrangement::Contiguous,
            v_arrangement: Arrangement::Contiguous,
            out_arrangement: Arrangement::Contiguous,
            sharing: Sharing::None,
            mask: None,
            score_mods: Vec::new(),
            sinks: None,
            query_start: None,
            inputs: Inputs::Normal,
            extreme: false,
            pokes: Vec::new(),
            lse: true,
            softmax_scale: None,
            config: AttentionConfig::default(),
        }
    }

    /// Sets the type of q, k, v and out.
    pub fn dtype(mut self, dtype: DType) -> Self {
        self.dtype = dtype;
        self
    }

    /// Sets the type of lengths, offsets, tables and ids.
    pub fn index_dtype(mut self, dtype: DType) -> Self {
        self.index_dtype = dtype;
        self
    }

    /// Sets the numbers of query heads and of key heads.
    pub fn heads(mut self, num_heads: usize, num_kv_heads: usize) -> Self {
        (self.num_heads, self.num_kv_heads) = (num_heads, num_kv_heads);
        self
    }

    /// Sets head_dim and value_dim alike.
    pub fn dim(self, dim: usize) -> Self {
        self.dims(dim, dim)
    }

    /// Sets head_dim and value_dim.
    pub fn dims(mut self, head_dim: usize, value_dim: usize) -> Self {
        (self.head_dim, self.value_dim) = (head_dim, value_dim);
        self
    }

    /// A padded query and dense keys, all valid.
    pub fn dense(mut self, batch: usize, seqlen_q: usize, seqlen_k: usize) -> Self {
        self.batch = batch;
        self.query = QuerySpec::Padded { seqlen: seqlen_q, lengths: None };
        self.keys = KeySpec::Dense { seqlen: seqlen_k, lengths: None };
        self
    }

    /// Padded queries without lengths.
    pub fn q_dense(mut self, batch: usize, seqlen: usize) -> Self {
        self.batch = batch;
        self.query = QuerySpec::Padded { seqlen, lengths: None };
        self
    }

    /// Padded queries with lengths, in room for `seqlen`.
    pub fn q_padded(mut self, seqlen: usize, lengths: &[usize]) -> Self {
        self.batch = lengths.len();
        self.query = QuerySpec::Padded { seqlen, lengths: Some(lengths.to_vec()) };
        self
    }

    /// Ragged queries with some unused rows before and after.
    pub fn q_ragged(mut self, lengths: &[usize]) -> Self {
        self.batch = lengths.len();
        self.query = QuerySpec::Ragged { lengths: lengths.to_vec(), lead: 2, tail: 5, bounded: true };
        self
    }

    /// Dense keys with lengths, in room for `seqlen`.
    pub fn k_padded(mut self, seqlen: usize, lengths: &[usize]) -> Self {
        self.keys = KeySpec::Dense { seqlen, lengths: Some(lengths.to_vec()) };
        self
    }

    /// Ragged keys with some unused rows before and after.
    pub fn k_ragged(mut self, lengths: &[usize]) -> Self {
        self.keys = KeySpec::Ragged { lengths: lengths.to_vec(), lead: 3, tail: 4, bounded: true };
        self
    }

    /// Ragged keys whose sequences and unused rows are those of the ragged queries, as in a packed projection.
    pub fn k_ragged_like_q(mut self) -> Self {
        if let QuerySpec::Ragged { lengths, lead, tail, bounded } = self.query.clone() {
            self.keys = KeySpec::Ragged { lengths, lead, tail, bounded };
        }
        self
    }

    /// Withholds the longest lengths of ragged queries and keys from the host.
    pub fn unbounded(mut self) -> Self {
        if let QuerySpec::Ragged { bounded, .. } = &mut self.query {
            *bounded = false;
        }
        if let KeySpec::Ragged { bounded, .. } = &mut self.keys {
            *bounded = false;
        }
        self
    }

    /// A continuous cache with shuffled blocks, some of them unused.
    pub fn continuous(mut self, capacity: usize, lengths: &[usize]) -> Self {
        self.keys = KeySpec::Continuous { capacity, lengths: lengths.to_vec() };
        self
    }

    /// A paged cache with shuffled pages, some of them unused.
    pub fn paged(mut self, page_size: usize, lengths: &[usize]) -> Self {
        self.keys = KeySpec::Paged { page_size, lengths: lengths.to_vec(), shared_pages: 0 };
        self
    }

    /// Lets all sequences share their first pages.
    pub fn shared_prefix(mut self, pages: usize) -> Self {
        if let KeySpec::Paged { shared_pages, .. } = &mut self.keys {
            *shared_pages = pages;
        }
        self
    }

    /// Arranges q.
    pub fn arrange_q(mut self, arrangement: Arrangement) -> Self {
        self.q_arrangement = arrangement;
        self
    }

    /// Arranges k and v.
    pub fn arrange_kv(mut self, arrangement: Arrangement) -> Self {
        (self.k_arrangement, self.v_arrangement) = (arrangement, arrangement);
        self
    }

    /// Arranges out.
    pub fn arrange_out(mut self, arrangement: Arrangement) -> Self {
        self.out_arrangement = arrangement;
        self
    }

    /// Puts tensors into one memory.
    pub fn sharing(mut self, sharing: Sharing) -> Self {
        self.sharing = sharing;
        self
    }

    /// Adds a mask: a key is visible when all masks added let it be.
    pub fn mask(mut self, mask: impl Into<MaskSpec>) -> Self {
        self.mask = Some(match self.mask {
            None => mask.into(),
            Some(before) => before.and(mask),
        });
        self
    }

    /// Adds a score modification after those already added.
    pub fn score_mod(mut self, score_mod: impl Into<ModSpec>) -> Self {
        self.score_mods.push(score_mod.into());
        self
    }

    /// Adds a score modification from a closure of (score, batch, query head, q, k).
    pub fn score_fn(
        self,
        apply: impl Fn(f32, usize, usize, i64, i64) -> f32 + Send + Sync + 'static,
    ) -> Self {
        self.score_mod(ScoreMod::Custom(Arc::new(apply)))
    }

    /// Sets sinks, repeated over the heads.
    pub fn sinks(mut self, dtype: DType, values: &[f32]) -> Self {
        self.sinks = Some((dtype, values.to_vec()));
        self
    }

    /// Sets the position of each sequence's first query.
    pub fn query_start(mut self, starts: &[i64]) -> Self {
        self.query_start = Some(starts.to_vec());
        self
    }

    /// Sets what q, k and v hold.
    pub fn inputs(mut self, inputs: Inputs) -> Self {
        self.inputs = inputs;
        self
    }

    /// Says that scores are so large that float32 rounds them by more than an honest error is at other times.
    pub fn extreme(mut self) -> Self {
        self.extreme = true;
        self
    }

    /// Overwrites one key and value.
    pub fn poke(mut self, poke: Poke) -> Self {
        self.pokes.push(poke);
        self
    }

    /// Sets whether the log-sum-exp is asked for.
    pub fn lse(mut self, lse: bool) -> Self {
        self.lse = lse;
        self
    }

    /// Sets the factor of dot products.
    pub fn softmax_scale(mut self, softmax_scale: f32) -> Self {
        self.softmax_scale = Some(softmax_scale);
        self
    }

    /// Sets the tuning.
    pub fn config(mut self, config: AttentionConfig) -> Self {
        self.config = config;
        self
    }

    /// Fixes the number of partitions.
    pub fn partitions(mut self, num_partitions: usize) -> Self {
        self.config.num_partitions = Some(num_partitions);
        self
    }

    /// Draws random numbers as the other cases of this seed do, whatever their names.
    pub fn seed(mut self, seed: impl Into<String>) -> Self {
        self.seed = Some(seed.into());
        self
    }

    /// Names cases whose first sequences must come out the same, bit for bit; they get the same random numbers.
    pub fn twin(mut self, group: impl Into<String>) -> Self {
        let group = group.into();
        self.seed = Some(group.clone());
        self.twin = Some(group);
        self
    }

    /// Valid query rows of each sequence.
    pub fn q_lengths(&self) -> Vec<usize> {
        match &self.query {
            QuerySpec::Padded { seqlen, lengths: None } => vec![*seqlen; self.batch],
            QuerySpec::Padded { lengths: Some(lengths), .. } | QuerySpec::Ragged { lengths, .. } => {
                lengths.clone()
            }
        }
    }

    /// Keys of each sequence.
    pub fn kv_lengths(&self) -> Vec<usize> {
        match &self.keys {
            KeySpec::Dense { seqlen, lengths: None } => vec![*seqlen; self.batch],
            KeySpec::Dense { lengths: Some(lengths), .. }
            | KeySpec::Ragged { lengths, .. }
            | KeySpec::Continuous { lengths, .. }
            | KeySpec::Paged { lengths, .. } => lengths.clone(),
        }
    }

    /// Multiplications of one run without mask, by which a runner budgets.
    pub fn cost(&self) -> u64 {
        let scores: u64 =
            self.q_lengths().iter().zip(self.kv_lengths()).map(|(&q, kv)| q as u64 * kv as u64).sum();
        scores * self.num_heads as u64 * (self.head_dim + self.value_dim) as u64
    }

    /// The same question with less to compute: one group of heads in place of several, or half of the positions of every
    /// sequence. None where no fewer ask the same: documents, prefixes, shared pages, positions and keys that are named.
    pub fn shorter(&self) -> Option<Spec> {
        let mut shorter = self.clone();
        if self.num_kv_heads > 1 {
            shorter.num_heads /= self.num_kv_heads;
            shorter.num_kv_heads = 1;
            return Some(shorter);
        }
        let is_named = self.query_start.is_some() || !self.pokes.is_empty() || self.twin.is_some();
        if is_named || self.mask.as_ref().is_some_and(MaskSpec::names_positions) {
            return None;
        }
        let half = |length: &mut usize| *length = length.div_ceil(2);
        let halves = |lengths: &mut Vec<usize>| lengths.iter_mut().for_each(half);
        match &mut shorter.query {
            QuerySpec::Padded { seqlen, lengths } => {
                half(seqlen);
                lengths.iter_mut().for_each(halves);
            }
            QuerySpec::Ragged { lengths, .. } => halves(lengths),
        }
        match &mut shorter.keys {
            KeySpec::Dense { seqlen, lengths } => {
                half(seqlen);
                lengths.iter_mut().for_each(halves);
            }
            KeySpec::Paged { shared_pages: 1.., .. } => return None,
            KeySpec::Ragged { lengths, .. }
            | KeySpec::Continuous { lengths, .. }
            | KeySpec::Paged { lengths, .. } => halves(lengths),
        }
        (shorter.cost() < self.cost()).then_some(shorter)
    }

    /// Makes the memories and fills them.
    ///
    /// # Panics
    /// When the description contradicts itself, such as lengths beyond their room: a mistake in a test.
    pub fn build(&self) -> Case {
        build::Builder::new(self).finish()
    }

    /// The memories without the values of q, k, v, masks and biases: enough for a plan, which reads none.
    ///
    /// # Panics
    /// As [`Spec::build`].
    pub fn outline(&self) -> Case {
        build::Builder::new(self).without_values().finish()
    }
}
