//! What the CPU does with a problem: decided from sizes alone.

use std::sync::Arc;

use omniflash_core::{
    Algorithm, AttentionConfig, AttentionPlan, AttentionProblem, Error, Mask, ProblemShape, Result, ScoreMod,
    Swizzle,
};

use crate::decode;
use crate::isa::Isa;
use crate::prefill::{self, COPY_ROWS, COPY_WORDS, PANEL, Sizes, Tiling, head_words};

/// Which kernels compute a plan; kept in [`AttentionPlan::detail`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// Tiles of query rows and keys: `prefill`.
    Tiles(Tiling),
    /// Few query rows: `decode`.
    Stream,
    /// One row at a time: `naive`.
    Rows,
}

/// Memory of a worker at most, in words: what the second-level cache of common cores holds.
const WORKER_WORDS: usize = (1 << 20) / size_of::<f32>();

/// Keys of a block, the first that leaves a worker's memory below its bound: multiples of the register tile's 6 keys,
/// of 4 and of 8.
const BLOCKS: [usize; 3] = [96, 48, 24];

/// The same where matrix instructions multiply: at best as many keys as fit, whose sums are loaded and stored once.
const MATRIX_BLOCKS: [usize; 4] = [128, 96, 48, 24];

/// Strips of a task at most: each packed block is shared by them, and packing waits for memory.
const MOST_STRIPS: usize = 16;

/// Strips of a task at most where each thread has few tasks.
const FEW_STRIPS: usize = 8;

/// Strips of a task at most where keys are packed ahead: small tasks end together.
const COPY_STRIPS: usize = 8;

/// Tasks for each thread, so that the last ones to end leave little waiting; twice as many of more than [`FEW_STRIPS`],
/// which differ more under causal masks.
const TASKS_PER_THREAD: usize = 8;

/// The same where matrix instructions multiply: packing, which vectors do, costs ever more beside.
const MATRIX_TASKS_PER_THREAD: usize = 2;

/// Below this many strips, keys are split until there are so many tasks: a constant, for results must not depend on
/// the number of threads.
const SPLIT_BELOW: usize = 64;

/// Keys of a piece at least, when they are split without being asked to.
const PIECE_KEYS: usize = 1024;

/// The plan of a problem on `isa` with `threads` workers.
///
/// # Errors
/// [`Error::Unsupported`] for GPU-only fields, [`Error::Value`] for sizes that no kernel has.
pub(crate) fn plan(problem: &AttentionProblem<'_>, isa: Isa, threads: usize) -> Result<AttentionPlan> {
    let (shape, config) = (problem.shape(), problem.config());
    check_config(config)?;
    if config.algorithm == Algorithm::Naive {
        return plan_rows(problem, isa, threads);
    }
    if decode::applies(problem) {
        let detail = Some(Arc::new(Route::Stream) as Arc<_>);
        return Ok(AttentionPlan { detail, ..decode::plan(problem, kernel_id(problem, isa)) });
    }
    let tiling = tiling(problem, isa, threads)?;
    let sizes = tiling.sizes;
    let strips = strips_per_head(shape, sizes.rows);
    let grid = [strips.div_ceil(sizes.strips) * tiling.pieces, shape.num_kv_heads, shape.batch];
    let total = strips * shape.num_kv_heads * shape.batch;
    let workspace = if tiling.pieces > 1 {
        total.saturating_mul(tiling.pieces * sizes.partial_words())
    } else {
        tiling.copy_words.min(head_words(&sizes, shape.seqlen_k) * shape.num_kv_heads * shape.batch)
    };
    let mut reason = format!("{} strips of {} rows share a packed block", sizes.strips, sizes.rows);
    if tiling.pieces > 1 {
        reason += &match config.num_partitions {
            Some(_) => format!(", keys in {} pieces as asked", tiling.pieces),
            None => format!(", keys in {} pieces because there are only {total} strips", tiling.pieces),
        };
    }
    if tiling.leaves_short {
        reason += ", sequences with few rows as in decoding";
    }
    if tiling.copy_words > 0 {
        reason += ", keys and values packed ahead";
    }
    if sizes.depth == 2 {
        reason += ", products of bf16 pairs";
    }
    if prefill::in_matrices(isa, shape.dtype) {
        reason += " in matrices";
    }
    Ok(AttentionPlan {
        kernel_id: kernel_id(problem, isa).into(),
        algorithm: Algorithm::Flash2,
        grid: grid.map(|extent| u32::try_from(extent).unwrap_or(u32::MAX)),
        block_threads: 1,
        block_m: sizes.strips * sizes.rows,
        block_n: sizes.block,
        num_pipeline_stages: 1,
        shared_memory_bytes: sizes.words() * size_of::<f32>(),
        workspace_bytes: workspace.saturating_mul(size_of::<f32>()),
        num_partitions: tiling.pieces,
        reason: reason.into(),
        detail: Some(Arc::new(Route::Tiles(tiling))),
    })
}

/// The plan of the plain kernel.
fn plan_rows(problem: &AttentionProblem<'_>, isa: Isa, threads: usize) -> Result<AttentionPlan> {
    let (shape, config) = (problem.shape(), problem.config());
    for (name, value) in [("block_m", config.block_m), ("num_partitions", config.num_partitions)] {
        if let Some(value) = value.filter(|&value| value != 1) {
            return Err(Error::value(format!("config.{name}"), value, "1 with algorithm = naive"));
        }
    }
    if let Some(block_n) = config.block_n.filter(|&block_n| block_n != shape.seqlen_k) {
        return Err(Error::value(
            "config.block_n",
            block_n,
            format!("{}, all keys, with algorithm = naive", shape.seqlen_k),
        ));
    }
    let extents = [shape.total_q.div_ceil(threads.max(1)), shape.num_heads, 1];
    Ok(AttentionPlan {
        kernel_id: kernel_id(problem, isa).replacen("fwd-", "naive-", 1).into(),
        algorithm: Algorithm::Naive,
        grid: extents.map(|extent| u32::try_from(extent).unwrap_or(u32::MAX)),
        block_threads: 1,
        block_m: 1,
        block_n: shape.seqlen_k,
        num_pipeline_stages: 1,
        shared_memory_bytes: 0,
        workspace_bytes: 0,
        num_partitions: 1,
        reason: "one row at a time, for checking".into(),
        detail: Some(Arc::new(Route::Rows)),
    })
}

/// Sizes of the tiles.
fn tiling(problem: &AttentionProblem<'_>, isa: Isa, threads: usize) -> Result<Tiling> {
    let (shape, config) = (problem.shape(), problem.config());
    let depth = prefill::depth(isa, shape.dtype);
    let key_step = prefill::key_step(isa, shape.dtype);
    let in_matrices = prefill::in_matrices(isa, shape.dtype);
    let rows = prefill::strip_rows(isa);
    let sizes = |strips: usize, block: usize| Sizes {
        strips,
        rows,
        block,
        key_step,
        key_panels: shape.head_dim.div_ceil(PANEL * depth),
        value_panels: shape.value_dim.div_ceil(PANEL),
        depth,
        reads_tensors: reads_tensors(problem.mask(), problem.score_mod()),
    };
    let fits = |strips: usize, block: usize| sizes(strips, block).words() <= WORKER_WORDS;
    let blocks: &[usize] = if in_matrices { &MATRIX_BLOCKS } else { &BLOCKS };
    let block = match config.block_n {
        Some(block) if blocks.contains(&block) => block,
        Some(block) => {
            let possible = blocks.iter().rev().map(usize::to_string).collect::<Vec<_>>().join(", ");
            return Err(Error::value("config.block_n", block, format!("one of {possible}")));
        }
        None => *blocks.iter().find(|&&block| fits(1, block)).unwrap_or(&blocks[blocks.len() - 1]),
    };
    let most = (1..=MOST_STRIPS).rev().find(|&strips| fits(strips, block)).unwrap_or(1);
    let total = strips_per_head(shape, rows) * shape.num_kv_heads * shape.batch;
    let pieces = match config.num_partitions {
        // More would be empty, whatever the length.
        Some(asked) => asked.min(shape.seqlen_k.div_ceil(block)).max(1),
        None => pieces(total, shape.seqlen_k),
    };
    // Matrices want whole steps of keys, and were measured with blocks that each task packs.
    let copies = pieces == 1
        && !in_matrices
        && strips_per_head(shape, rows) * rows >= COPY_ROWS
        && head_words(&sizes(1, block), shape.seqlen_k) <= COPY_WORDS
        && has_intervals(problem.mask());
    let strips = match config.block_m {
        Some(block_m) if block_m.is_multiple_of(rows) && block_m / rows <= most => block_m / rows,
        Some(block_m) => {
            let possible: Vec<String> = (1..=most).map(|strips| (strips * rows).to_string()).collect();
            return Err(Error::value("config.block_m", block_m, format!("one of {}", possible.join(", "))));
        }
        None => {
            let tasks = if in_matrices { MATRIX_TASKS_PER_THREAD } else { TASKS_PER_THREAD };
            let share = total * pieces / (tasks * threads.max(1));
            let most = if copies { most.min(COPY_STRIPS) } else { most };
            (share / 2).max(share.min(FEW_STRIPS)).clamp(1, most)
        }
    };
    let is_tiled = config.block_m.is_some() || config.block_n.is_some();
    Ok(Tiling {
        sizes: sizes(strips, block),
        pieces,
        leaves_short: shape.ragged_q && !is_tiled,
        copy_words: if copies { COPY_WORDS } else { 0 },
    })
}

/// Pieces of keys that give few strips enough tasks.
fn pieces(strips: usize, seqlen_k: usize) -> usize {
    if strips == 0 || strips >= SPLIT_BELOW {
        return 1;
    }
    SPLIT_BELOW.div_ceil(strips).min(seqlen_k / PIECE_KEYS).max(1)
}

/// Strips of a key head of a sequence; for ragged queries on the average of the longest batch there could be.
fn strips_per_head(shape: &ProblemShape, rows: usize) -> usize {
    let most = (shape.seqlen_q * shape.group_size()).div_ceil(rows);
    if !shape.ragged_q || shape.batch == 0 {
        return most;
    }
    let average = (shape.total_q * shape.group_size()).div_ceil(rows * shape.batch) + 1;
    most.min(average)
}

/// Whether a mask, as far as its form says, lets each row see one interval of keys, so that hardly a block is read in
/// vain when all between the first and the last key that some row sees are.
fn has_intervals(mask: &Mask<'_>) -> bool {
    match mask {
        Mask::None
        | Mask::Causal
        | Mask::SlidingWindow { .. }
        | Mask::Chunked { .. }
        | Mask::ChunkedCausal { .. }
        | Mask::PrefixLm { .. } => true,
        Mask::Dense(tensor) => tensor.dtype().is_float(),
        Mask::And(a, b) => has_intervals(a) && has_intervals(b),
        _ => false,
    }
}

fn reads_tensors(mask: &Mask<'_>, score_mod: &ScoreMod<'_>) -> bool {
    fn of_mask(mask: &Mask<'_>) -> bool {
        match mask {
            Mask::Dense(tensor) => tensor.dtype().is_float(),
            Mask::And(a, b) => of_mask(a) || of_mask(b),
            _ => false,
        }
    }
    fn of_score_mod(score_mod: &ScoreMod<'_>) -> bool {
        match score_mod {
            ScoreMod::Bias(_) => true,
            ScoreMod::Then(a, b) => of_score_mod(a) || of_score_mod(b),
            _ => false,
        }
    }
    of_mask(mask) || of_score_mod(score_mod)
}

/// `fwd-{isa}-{dtype}-d{head_dim}-{mask}-{score}-{kv}`.
fn kernel_id(problem: &AttentionProblem<'_>, isa: Isa) -> String {
    let shape = problem.shape();
    let dims = if shape.head_dim == shape.value_dim {
        shape.head_dim.to_string()
    } else {
        format!("{}x{}", shape.head_dim, shape.value_dim)
    };
    let (mask, score_mod) = (problem.mask(), problem.score_mod());
    format!("fwd-{isa}-{}-d{dims}-{mask}-{score_mod}-{}", shape.dtype, shape.kv_kind)
}

/// Refuses what has no meaning here, each with the nearest thing that works.
fn check_config(config: &AttentionConfig) -> Result<()> {
    let refused = |what: &str, why: &str, nearest: &str| {
        Err(Error::unsupported("cpu", format!("config.{what}"), why, nearest))
    };
    match config.algorithm {
        Algorithm::Auto | Algorithm::Naive | Algorithm::Flash2 => {}
        algorithm => {
            return refused(
                &format!("algorithm = {algorithm}"),
                "it overlaps asynchronous copies with matrix products of a GPU",
                "flash2 is the same sum in tiles",
            );
        }
    }
    let no_warps = "a CPU has no warps";
    let block_m = "block_m says how many query rows share a block of keys";
    let fields = [
        ("block_k", config.block_k.is_some(), "the first product takes all of head_dim", "leave it out"),
        ("warp_m", config.warp_m.is_some(), no_warps, block_m),
        ("warp_n", config.warp_n.is_some(), no_warps, "block_n says how many keys are packed together"),
        (
            "num_pipeline_stages",
            config.num_pipeline_stages.is_some_and(|stages| stages != 1),
            "a CPU fetches ahead by itself",
            "1 stage works",
        ),
        ("k_group_size", config.k_group_size.is_some(), "no slices of head_dim are loaded", "leave it out"),
        (
            "swizzle",
            config.swizzle.is_some_and(|swizzle| swizzle != Swizzle::None),
            "a CPU has no banked shared memory",
            "none works",
        ),
        (
            "split_within_block",
            config.split_within_block == Some(true),
            no_warps,
            "num_partitions splits keys among threads",
        ),
    ];
    match fields.into_iter().find(|(_, is_set, _, _)| *is_set) {
        Some((what, _, why, nearest)) => refused(what, why, nearest),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
