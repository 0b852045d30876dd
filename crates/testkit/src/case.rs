//! One request, owned and independent of any backend, and what came of running it.

use omniflash_core::reference::{self, ReferenceOutput};
use omniflash_core::{
    AttentionConfig, AttentionOptions, AttentionProblem, Backend, Buffer, DType, DeviceId, Error, KvCache,
    Mask, Query, Result, ScoreMod, Stream, TensorMut, TensorRef,
};

use crate::memory::{Memories, View};

/// The queries of a case.
#[derive(Clone, Debug)]
pub enum QueryViews {
    /// [`Query::Padded`].
    Padded {
        /// `[batch, seqlen_q, num_heads, head_dim]`.
        q: View,
        /// `[batch]`.
        lengths: Option<View>,
    },
    /// [`Query::Ragged`].
    Ragged {
        /// `[total_q, num_heads, head_dim]`.
        q: View,
        /// `[batch + 1]`.
        cu_seqlens: View,
        /// The bound that the host knows.
        max_seqlen: Option<usize>,
    },
}

/// The keys and values of a case.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "the fields are those of KvCache")]
pub enum KvViews {
    /// [`KvCache::Dense`].
    Dense { k: View, v: View, lengths: Option<View> },
    /// [`KvCache::Ragged`].
    Ragged { k: View, v: View, cu_seqlens: View, max_seqlen: Option<usize> },
    /// [`KvCache::Continuous`].
    Continuous { k: View, v: View, lookup_table: View, lengths: View, max_seqlen: Option<usize> },
    /// [`KvCache::Paged`].
    Paged { k: View, v: View, page_table: View, lengths: View, max_seqlen: Option<usize> },
}

/// A mask whose tensors are views.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "the variants are those of Mask")]
pub enum MaskViews {
    /// A mask without tensors.
    Plain(Mask<'static>),
    PrefixLm(View),
    Document(View),
    /// With the rows that one row of the view stands for, by a stride of 0.
    Dense(View, Option<usize>),
    And(Box<MaskViews>, Box<MaskViews>),
    Or(Box<MaskViews>, Box<MaskViews>),
    Not(Box<MaskViews>),
}

/// A score modification whose tensors are views.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "the variants are those of ScoreMod")]
pub enum ScoreModViews {
    /// A score modification without tensors.
    Plain(ScoreMod<'static>),
    Alibi(View),
    Bias(View),
}

/// One request: memories with poison where nothing should look, and views of them.
#[derive(Debug)]
pub struct Case {
    /// What it is called; by this name it can be run alone.
    pub name: String,
    /// The name that its random numbers depend on.
    pub seed: String,
    /// Host memory of all tensors.
    pub memories: Memories,
    /// The queries.
    pub query: QueryViews,
    /// The keys and values.
    pub kv: KvViews,
    /// The output, poisoned.
    pub out: View,
    /// The log-sum-exp, poisoned, if it is asked for.
    pub lse: Option<View>,
    /// Which keys a query sees.
    pub mask: MaskViews,
    /// What happens to a scaled score, in this order.
    pub score_mods: Vec<ScoreModViews>,
    /// `[num_heads]`.
    pub sinks: Option<View>,
    /// `[batch]`.
    pub query_start: Option<View>,
    /// The factor of dot products, if it is not the default.
    pub softmax_scale: Option<f32>,
    /// Tuning.
    pub config: AttentionConfig,
    /// Whether scores are so large that rounding them to float32 outweighs all else.
    pub extreme: bool,
    /// Valid query rows of each sequence.
    pub q_lengths: Vec<usize>,
    /// First row of each sequence in a ragged query tensor; zeros for a padded one.
    pub q_begins: Vec<usize>,
}

/// What a run left in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The bytes of every memory of the case after the run.
    pub memories: Vec<Vec<u8>>,
}

impl Case {
    /// Runs the case once: allocates and fills memory on the backend's device, strides and all, computes, and reads
    /// all memory back.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn run(&self, backend: &dyn Backend) -> Result<Outcome> {
        let stream = backend.stream()?;
        let mut buffers = self.upload(backend, &stream)?;
        let problem = self.problem(&mut buffers)?;
        omniflash_core::run(backend, &problem, &stream)?;
        drop(problem);
        let memories = buffers
            .iter()
            .map(|buffer| {
                let mut bytes = vec![0; buffer.bytes()];
                backend.copy_to_host(buffer, &mut bytes, &stream)?;
                Ok(bytes)
            })
            .collect::<Result<_>>()?;
        Ok(Outcome { memories })
    }

    /// The answer in float64.
    ///
    /// # Errors
    /// Those of [`reference::attention`].
    pub fn reference(&self) -> Result<ReferenceOutput> {
        let mut buffers = self.memories.duplicate()?;
        reference::attention(&self.problem(&mut buffers)?)
    }

    /// Calls `look` with the problem in host memory.
    ///
    /// # Errors
    /// Those of validation.
    pub fn with_host_problem<T>(&self, look: impl FnOnce(&AttentionProblem<'_>) -> T) -> Result<T> {
        let mut buffers = self.memories.duplicate()?;
        let problem = self.problem(&mut buffers)?;
        Ok(look(&problem))
    }

    /// Valid rows of the output as (sequence, row in the sequence, index of its row in the output tensor).
    pub fn rows(&self) -> impl Iterator<Item = (usize, usize, RowIndex)> + '_ {
        let ragged = matches!(self.query, QueryViews::Ragged { .. });
        self.q_lengths.iter().enumerate().flat_map(move |(b, &length)| {
            (0..length).map(move |row| {
                let index = if ragged {
                    RowIndex::Ragged { token: self.q_begins[b] + row }
                } else {
                    RowIndex::Padded { batch: b, row }
                };
                (b, row, index)
            })
        })
    }

    /// Query heads.
    pub fn num_heads(&self) -> usize {
        let shape = self.out.layout.shape();
        shape[shape.len() - 2]
    }

    /// Elements of an output vector.
    pub fn value_dim(&self) -> usize {
        self.out.layout.shape().last().copied().expect("out has rank 3 or 4")
    }

    /// Query rows that the output has room for: its batch times seqlen_q, or the ragged total.
    pub fn total_q(&self) -> usize {
        let shape = self.out.layout.shape();
        shape[..shape.len() - 2].iter().product()
    }

    fn upload(&self, backend: &dyn Backend, stream: &Stream) -> Result<Vec<Buffer>> {
        (0..self.memories.len())
            .map(|memory| {
                let bytes = self.memories.bytes(memory);
                let mut buffer = backend.alloc(bytes.len(), stream)?;
                backend.copy_to_device(bytes, &mut buffer, stream)?;
                Ok(buffer)
            })
            .collect()
    }

    /// The problem over copies of the memories.
    ///
    /// # Errors
    /// Those of [`AttentionProblem::new`], and [`Error::Shape`] for a view that leaves its memory.
    pub(crate) fn problem<'m>(&self, buffers: &'m mut [Buffer]) -> Result<AttentionProblem<'m>> {
        let bound = Bound { buffers };
        let mut score_mod = ScoreMod::Identity;
        for next in &self.score_mods {
            score_mod = score_mod.then(match next {
                ScoreModViews::Plain(plain) => plain.clone(),
                ScoreModViews::Alibi(slopes) => ScoreMod::Alibi { slopes: Some(bound.tensor(slopes)?) },
                ScoreModViews::Bias(bias) => ScoreMod::Bias(bound.tensor(bias)?),
            });
        }
        let options = AttentionOptions {
            softmax_scale: self.softmax_scale,
            mask: bound.mask(&self.mask)?,
            score_mod,
            sinks: bound.optional(&self.sinks)?,
            query_start: bound.optional(&self.query_start)?,
            lse: self.lse.is_some(),
            config: self.config,
        };
        let query = match &self.query {
            QueryViews::Padded { q, lengths } => {
                Query::Padded { q: bound.tensor(q)?, lengths: bound.optional(lengths)? }
            }
            QueryViews::Ragged { q, cu_seqlens, max_seqlen } => Query::Ragged {
                q: bound.tensor(q)?,
                cu_seqlens: bound.tensor(cu_seqlens)?,
                max_seqlen: *max_seqlen,
            },
        };
        let kv = bound.kv(&self.kv)?;
        let lse = self.lse.as_ref().map(|lse| bound.tensor_mut(lse)).transpose()?;
        AttentionProblem::new(query, kv, bound.tensor_mut(&self.out)?, lse, &options)
    }
}

/// Where a row of the output is, without head and value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowIndex {
    /// `[batch, row, ..]`.
    Padded {
        /// The sequence.
        batch: usize,
        /// Its row.
        row: usize,
    },
    /// `[token, ..]`.
    Ragged {
        /// Row of the ragged tensor.
        token: usize,
    },
}

impl RowIndex {
    /// Index of an element of the output.
    pub fn out(self, head: usize, d: usize) -> Vec<usize> {
        match self {
            RowIndex::Padded { batch, row } => vec![batch, row, head, d],
            RowIndex::Ragged { token } => vec![token, head, d],
        }
    }

    /// Index of an element of the log-sum-exp.
    pub fn lse(self, head: usize) -> Vec<usize> {
        match self {
            RowIndex::Padded { batch, row } => vec![batch, head, row],
            RowIndex::Ragged { token } => vec![head, token],
        }
    }
}

/// Views turned into tensors over the buffers of one device.
struct Bound<'m> {
    buffers: &'m mut [Buffer],
}

impl<'m> Bound<'m> {
    fn address(&self, view: &View) -> Result<(u64, DeviceId)> {
        let buffer = &self.buffers[view.memory];
        let needed = view.bytes_needed()?;
        if needed > buffer.bytes() {
            return Err(Error::shape("view", format!("needs {needed} bytes of {}", buffer.bytes())));
        }
        let start = buffer.as_ptr().expose_provenance() as u64;
        Ok((start + (view.offset * view.dtype.size()) as u64, buffer.device()))
    }

    fn tensor(&self, view: &View) -> Result<TensorRef<'m>> {
        let (address, device) = self.address(view)?;
        // SAFETY: the view lies inside the buffer, checked above, which is borrowed for 'm and initialised; elements
        // that are written belong to `out` and `lse` alone, or validation refuses the overlap.
        Ok(unsafe { TensorRef::from_raw(address, view.dtype, view.layout.clone(), device) })
    }

    fn tensor_mut(&self, view: &View) -> Result<TensorMut<'m>> {
        let (address, device) = self.address(view)?;
        // SAFETY: as above, and the buffers are borrowed exclusively for 'm.
        Ok(unsafe { TensorMut::from_raw(address, view.dtype, view.layout.clone(), device) })
    }

    fn optional(&self, view: &Option<View>) -> Result<Option<TensorRef<'m>>> {
        view.as_ref().map(|view| self.tensor(view)).transpose()
    }

    fn kv(&self, kv: &KvViews) -> Result<KvCache<'m>> {
        Ok(match kv {
            KvViews::Dense { k, v, lengths } => {
                KvCache::Dense { k: self.tensor(k)?, v: self.tensor(v)?, lengths: self.optional(lengths)? }
            }
            KvViews::Ragged { k, v, cu_seqlens, max_seqlen } => KvCache::Ragged {
                k: self.tensor(k)?,
                v: self.tensor(v)?,
                cu_seqlens: self.tensor(cu_seqlens)?,
                max_seqlen: *max_seqlen,
            },
            KvViews::Continuous { k, v, lookup_table, lengths, max_seqlen } => KvCache::Continuous {
                k: self.tensor(k)?,
                v: self.tensor(v)?,
                lookup_table: self.tensor(lookup_table)?,
                lengths: self.tensor(lengths)?,
                max_seqlen: *max_seqlen,
            },
            KvViews::Paged { k, v, page_table, lengths, max_seqlen } => KvCache::Paged {
                k: self.tensor(k)?,
                v: self.tensor(v)?,
                page_table: self.tensor(page_table)?,
                lengths: self.tensor(lengths)?,
                max_seqlen: *max_seqlen,
            },
        })
    }

    fn mask(&self, mask: &MaskViews) -> Result<Mask<'m>> {
        Ok(match mask {
            MaskViews::Plain(mask) => mask.clone(),
            MaskViews::PrefixLm(view) => Mask::PrefixLm { prefix_len: self.tensor(view)? },
            MaskViews::Document(view) => Mask::Document { ids: self.tensor(view)? },
            MaskViews::Dense(view, None) => Mask::Dense(self.tensor(view)?),
            MaskViews::Dense(view, Some(rows)) => {
                let tensor = self.tensor(view)?;
                Mask::Dense(tensor.expand(tensor.shape().len() - 2, *rows)?)
            }
            MaskViews::And(a, b) => Mask::And(Box::new(self.mask(a)?), Box::new(self.mask(b)?)),
            MaskViews::Or(a, b) => Mask::Or(Box::new(self.mask(a)?), Box::new(self.mask(b)?)),
            MaskViews::Not(mask) => Mask::Not(Box::new(self.mask(mask)?)),
        })
    }
}

impl Case {
    /// The type of q, k, v and out.
    pub fn dtype(&self) -> DType {
        self.out.dtype
    }
}
