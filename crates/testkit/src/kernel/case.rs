//! The problems that kernels are tried on.

use omniflash_core::{Mask, ScoreMod};

/// How queries lie.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum QForm {
    /// A batch of sequences of the same length.
    Padded,
    /// The same, only so many rows of each valid.
    Lengths,
    /// One after another.
    Ragged,
}

/// How keys and values lie.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum KvForm {
    /// A batch of sequences of the same length.
    Dense,
    /// The same, only so many rows of each valid.
    Lengths,
    /// One after another.
    Ragged,
    /// Blocks by a lookup table.
    Continuous,
    /// Pages of so many keys, shuffled, by a page table.
    Paged(usize),
}

/// How near the reference a kernel must come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tolerance {
    /// As its dtype allows; f32 by three products of TF32.
    OfDtype,
    /// As full f32.
    Exact,
    /// As one product of TF32.
    Tf32,
}

/// A problem of this shape, with numbers near a normal distribution that are always the same.
#[derive(Clone, Debug)]
pub struct Case<'a, T> {
    /// Sequences.
    pub batch: usize,
    /// Query rows of the longest sequence.
    pub seqlen_q: usize,
    /// Keys of the longest sequence.
    pub seqlen_k: usize,
    /// Query heads.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Columns of q and k.
    pub head_dim: usize,
    /// Columns of v and out.
    pub value_dim: usize,
    /// How queries lie.
    pub q_form: QForm,
    /// How keys and values lie.
    pub kv_form: KvForm,
    /// Which keys a row sees.
    pub mask: Mask<'a>,
    /// What becomes of a score.
    pub score_mod: ScoreMod<'a>,
    /// Whether heads have sinks.
    pub sinks: bool,
    /// Parts that keys are split into.
    pub partitions: usize,
    /// Whether a tile interleaves the heads of a group.
    pub pack_groups: bool,
    /// Pairs of sequence and head whose longest tiles start together.
    pub section: u32,
    /// The scale of scores.
    pub softmax_scale: f32,
    /// Some values are NaN or infinite; rows that see one are not compared.
    pub bad_values: bool,
    /// How near the reference it must come.
    pub tolerance: Tolerance,
    /// What mask and score modification point to.
    pub tensors: Vec<&'a [u8]>,
    /// The type of q, k, v and out.
    pub element: std::marker::PhantomData<T>,
}

impl<'a, T> Case<'a, T> {
    /// Dense and unmasked, in one part.
    pub fn new(
        batch: usize,
        seqlen_q: usize,
        seqlen_k: usize,
        heads: usize,
        kv_heads: usize,
        head_dim: usize,
        value_dim: usize,
    ) -> Self {
        Case {
            batch,
            seqlen_q,
            seqlen_k,
            heads,
            kv_heads,
            head_dim,
            value_dim,
            q_form: QForm::Padded,
            kv_form: KvForm::Dense,
            mask: Mask::None,
            score_mod: ScoreMod::Identity,
            sinks: false,
            partitions: 1,
            pack_groups: false,
            section: 1,
            softmax_scale: 1.0 / (head_dim as f32).sqrt(),
            bad_values: false,
            tolerance: Tolerance::OfDtype,
            tensors: Vec::new(),
            element: std::marker::PhantomData,
        }
    }

    /// With another mask.
    pub fn masked(self, mask: Mask<'a>) -> Self {
        Case { mask, ..self }
    }

    /// With another score modification.
    pub fn modified(self, score_mod: ScoreMod<'a>) -> Self {
        Case { score_mod, ..self }
    }
}
