//! What plans depend on, and the parts of planning that are the same for every GPU.

use std::borrow::Cow;
use std::hash::{Hash, Hasher};

use hashbrown::Equivalent;
use omniflash_core::lower::FunctorSpec;
use omniflash_core::{AttentionConfig, AttentionProblem, Error, ProblemShape, Result};

use crate::packing::{Packing, packing};
use crate::parameters::is_aligned;
use crate::vendor::KernelInstance;

/// Mask and score modification of a problem as kernels take them.
///
/// # Errors
/// [`Error::Unsupported`] for what no GPU can do: the closure of a score modification, and a closure as mask whose
/// positions only the device knows.
pub fn functors<'p>(problem: &'p AttentionProblem<'_>, backend: &str) -> Result<FunctorSpec<'p>> {
    let (shape, config) = (problem.shape(), problem.config());
    let functors = FunctorSpec::with_packing(
        problem.mask(),
        problem.score_mod(),
        shape.num_heads,
        backend,
        &|tensor| packing(tensor, shape, config),
    )?;
    if !functors.tables.is_empty() && problem.query_start().is_some() {
        return Err(closure_with_query_start(backend));
    }
    Ok(functors)
}

/// Why a mask that is only a closure does not go with `query_start`.
pub(crate) fn closure_with_query_start(backend: &str) -> Error {
    Error::unsupported(
        backend,
        "a closure as mask with query_start",
        "the closure is evaluated on the host, which does not know the positions",
        "give the mask device source (MaskFunction::device_source)",
    )
}

/// What a plan depends on, and so what it is kept by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanKey {
    /// Sizes, dtype and the forms of query and cache.
    pub shape: ProblemShape,
    /// What the caller fixed.
    pub config: AttentionConfig,
    /// The C++ type of the mask.
    pub mask_type: Cow<'static, str>,
    /// The C++ type of the score modification.
    pub score_mod_type: Cow<'static, str>,
    /// Device sources that those types are defined in.
    pub(crate) sources: Vec<String>,
    /// Whether every row of q, k, v and out begins at a multiple of 16 bytes and has a multiple of 16 bytes.
    pub is_aligned: bool,
    /// Mask tensors that launches pack.
    pub packings: Vec<Packing>,
}

impl Hash for PlanKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        hash_key(&self.shape, &self.mask_type, &self.score_mod_type, state);
    }
}

impl PlanKey {
    /// The key of a problem whose mask and score modification were lowered to `functors`.
    pub fn new(problem: &AttentionProblem<'_>, functors: FunctorSpec<'_>) -> Self {
        PlanKey {
            shape: *problem.shape(),
            config: *problem.config(),
            mask_type: functors.mask_type,
            score_mod_type: functors.score_mod_type,
            sources: functors.sources,
            is_aligned: is_aligned(problem),
            packings: functors.packed.iter().map(Packing::new).collect(),
        }
    }

    /// Whether such a problem has the same sizes and kernels' types, and packs as many mask tensors.
    fn is_lowered_as(&self, shape: &ProblemShape, functors: &FunctorSpec<'_>) -> bool {
        self.shape == *shape
            && self.mask_type == functors.mask_type
            && self.score_mod_type == functors.score_mod_type
            && self.sources == functors.sources
            && self.packings.len() == functors.packed.len()
    }

    /// Mask and score modification, as the kernel store keeps kernels by them.
    pub fn functor(&self) -> String {
        format!("{} {}", self.mask_type, self.score_mod_type)
    }

    /// Refuses a problem of another kind than the plan's.
    ///
    /// # Errors
    /// [`Error::Value`].
    pub fn check(&self, problem: &AttentionProblem<'_>, functors: &FunctorSpec<'_>) -> Result<()> {
        let same = self.is_lowered_as(problem.shape(), functors)
            && self.packings.iter().zip(&functors.packed).all(|(own, slot)| own.serves(&Packing::new(slot)))
            && (!self.is_aligned || is_aligned(problem));
        if same {
            return Ok(());
        }
        Err(Error::value(
            "plan",
            format!("made for {:?} with {} {}", self.shape, self.mask_type, self.score_mod_type),
            "one made for a problem of the same shape, mask, score modification and alignment, whose mask tensors \
             repeat themselves alike",
        ))
    }
}

/// A problem as the plan is looked up by that is kept for its kind: no key is made for that.
pub(crate) struct Wanted<'w, F> {
    pub(crate) problem: &'w AttentionProblem<'w>,
    pub(crate) functors: &'w FunctorSpec<'w>,
    /// What else the vendor's choice depends on.
    pub(crate) fit: F,
}

/// As of the key with its fit.
impl<F: Hash> Hash for Wanted<'_, F> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        hash_key(self.problem.shape(), &self.functors.mask_type, &self.functors.score_mod_type, state);
        self.fit.hash(state);
    }
}

impl<F: PartialEq> Equivalent<(PlanKey, F)> for Wanted<'_, F> {
    fn equivalent(&self, (key, fit): &(PlanKey, F)) -> bool {
        key.is_lowered_as(self.problem.shape(), self.functors)
            && key.config == *self.problem.config()
            && key.is_aligned == is_aligned(self.problem)
            && key.packings.iter().zip(&self.functors.packed).all(|(own, slot)| *own == Packing::new(slot))
            && *fit == self.fit
    }
}

/// What tells most keys apart: the rest is compared.
fn hash_key<H: Hasher>(shape: &ProblemShape, mask_type: &str, score_mod_type: &str, state: &mut H) {
    shape.hash(state);
    mask_type.hash(state);
    score_mod_type.hash(state);
}

/// The kernel chosen, and how it is launched.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice<K> {
    /// The instance.
    pub kernel: K,
    /// Query heads whose rows a tile interleaves: 1, or the group.
    pub heads_per_tile: usize,
    /// Pairs of sequence and head tile whose longest tiles start together.
    pub section: usize,
    /// Blocks that the keys of a row are split among.
    pub num_partitions: usize,
    /// Blocks that share all keys of the batch evenly; 0 where every item has `num_partitions`.
    pub workers: usize,
    /// Sequences with fewer query rows are left to `short`.
    pub least_q_len: usize,
    /// What computes the sequences with fewer rows, of a batch that has both.
    pub short: Option<Box<Choice<K>>>,
    /// For the plan's line.
    pub reason: String,
}

impl<K> Choice<K> {
    /// One launch whose blocks see all keys of their rows, a head a tile.
    pub fn whole(kernel: K, reason: String) -> Self {
        Choice {
            kernel,
            heads_per_tile: 1,
            section: 1,
            num_partitions: 1,
            workers: 0,
            least_q_len: 0,
            short: None,
            reason,
        }
    }
}

/// Refuses what algorithm naive, one row a block, cannot do.
///
/// # Errors
/// [`Error::Value`] for the size of a tile, [`Error::Unsupported`] for split keys.
pub fn check_naive(config: &AttentionConfig, backend: &str) -> Result<()> {
    const NO_TILES: &str = "unset: algorithm naive has no tiles";
    let tiles = [
        ("block_m", config.block_m),
        ("block_n", config.block_n),
        ("block_k", config.block_k),
        ("warp_m", config.warp_m),
        ("warp_n", config.warp_n),
        ("num_pipeline_stages", config.num_pipeline_stages),
        ("k_group_size", config.k_group_size),
        ("swizzle", config.swizzle.map(|swizzle| swizzle.bytes())),
    ];
    if let Some((name, Some(value))) = tiles.into_iter().find(|(_, value)| value.is_some()) {
        return Err(Error::value(format!("config.{name}"), value, NO_TILES));
    }
    if config.split_within_block == Some(true) || config.num_partitions.is_some_and(|number| number > 1) {
        return Err(Error::unsupported(
            backend,
            "split keys with algorithm naive",
            "it computes whole rows",
            "num_partitions 1 works, or algorithm flash2",
        ));
    }
    Ok(())
}

/// Pairs of sequence and head tile whose longest tiles start together, on a device with `l2_bytes` of second-level cache.
///
/// Under a causal mask the last tiles of rows see the most keys: starting those of several heads first evens out the
/// end of a launch. More heads than the second-level cache holds keys of, or than 32, cost more in traffic.
pub fn section(shape: &ProblemShape, mask_type: &str, l2_bytes: usize) -> usize {
    if !may_be_causal(mask_type) {
        return 1;
    }
    let keys = shape.seqlen_k * (shape.head_dim + shape.value_dim) * shape.dtype.size();
    (l2_bytes / 2 / keys.max(1)).clamp(1, 32)
}

/// Query rows of a typical sequence: of ragged ones the host knows the longest and the sum.
pub fn typical_rows(shape: &ProblemShape) -> usize {
    if shape.ragged_q {
        shape.total_q.div_ceil(shape.batch.max(1)).min(shape.seqlen_q)
    } else {
        shape.seqlen_q
    }
}

/// Whether later rows may see more keys: a mask's C++ type says so, or only the device knows what the mask hides.
pub fn may_be_causal(mask_type: &str) -> bool {
    is_causal(mask_type) || is_tabulated(mask_type)
}

/// Whether a mask's C++ type hides keys after the query.
pub fn is_causal(mask_type: &str) -> bool {
    narrows_to(mask_type, "Causal")
}

/// Whether a sliding window hides what it hides, whatever else the mask does.
pub fn is_windowed(mask_type: &str) -> bool {
    narrows_to(mask_type, "SlidingWindow")
}

/// Whether the device finds what some part of the mask hides in a table: of a closure, or of a packed tensor.
pub fn is_tabulated(mask_type: &str) -> bool {
    ["PackedMask", "PackedAdditive", "TableMask"].iter().any(|name| mask_type.contains(name))
}

/// Whether one of the masks that are all to agree is `leaf`.
fn narrows_to(mask_type: &str, leaf: &str) -> bool {
    !mask_type.contains("Or<") && !mask_type.contains("Not<") && mask_type.contains(leaf)
}

/// `{instance}-{mask}-{score modification}`, the instance as [`KernelInstance::id`] names it.
pub fn kernel_id<K: KernelInstance>(kernel: &K, arch: &str, mask_type: &str, score_mod_type: &str) -> String {
    format!("{}-{}-{}", kernel.id(arch), functor_name(mask_type), functor_name(score_mod_type))
}

/// A C++ type as part of a name, namespaces left out: `And<Chunked, source0::Mine>` is `and(chunked,mine)`.
fn functor_name(cpp_type: &str) -> String {
    let mut name = String::with_capacity(cpp_type.len());
    for c in cpp_type.chars() {
        match c {
            '<' => name.push('('),
            '>' => name.push(')'),
            ' ' => {}
            ':' => {
                let kept = name.trim_end_matches(|c: char| c.is_alphanumeric() || c == '_').len();
                name.truncate(kept);
            }
            c => name.push(c.to_ascii_lowercase()),
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_masks_that_hide_the_future_are_causal() {
        for (mask_type, causal) in [
            ("Causal", true),
            ("And<Chunked, Causal>", true),
            ("Not<Causal>", false),
            ("Or<PrefixLm, Causal>", false),
            ("NoMask", false),
            ("PackedMask", false),
        ] {
            assert_eq!(is_causal(mask_type), causal, "{mask_type}");
            let may_be = causal || mask_type == "PackedMask";
            assert_eq!(may_be_causal(mask_type), may_be, "{mask_type}");
        }
    }

    #[test]
    fn names_of_functors_leave_namespaces_out() {
        assert_eq!(functor_name("And<Chunked, source0::Mine>"), "and(chunked,mine)");
        assert_eq!(functor_name("Then<Softcap, source0::Tilt>"), "then(softcap,tilt)");
    }
}
