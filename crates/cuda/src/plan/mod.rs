//! Which kernel computes a problem, in which tiles and how many partitions: pure functions of sizes, dtypes, mask,
//! configuration and device, with snapshots of what they answer.

mod decode;
mod hopper;
mod id;
mod split;
mod tile;

#[cfg(test)]
mod tests;

use omniflash_core::{Algorithm, AttentionConfig, DType, Error, KvKind, ProblemShape, Result};
use omniflash_gpu::check::check_sizes;
use omniflash_gpu::plan::{is_causal, typical_rows};
use omniflash_kernels_cuda::{DecodeConfig, ForwardConfig, HopperConfig, NaiveConfig};

use crate::probe::DeviceFacts;

pub(crate) use hopper::HopperFit;
pub(crate) use id::{arch, arch_family, kernel_id};

/// The oldest compute capability of the tiled kernels: asynchronous copies and bf16 products.
const OLDEST_TILED: (u32, u32) = (8, 0);

/// What a plan is made from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'r> {
    /// The backend's name, for errors.
    pub(crate) backend: &'r str,
    pub(crate) facts: &'r DeviceFacts,
    pub(crate) shape: &'r ProblemShape,
    pub(crate) config: &'r AttentionConfig,
    /// The C++ type of the mask.
    pub(crate) mask_type: &'r str,
    /// Whether every row of q, k, v and out begins at a multiple of 16 bytes and has a multiple of 16 bytes.
    pub(crate) is_aligned: bool,
    pub(crate) hopper: HopperFit,
}

/// The kernel chosen, and how it is launched.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Choice {
    pub(crate) kernel: KernelChoice,
    /// Query heads whose rows a tile interleaves: 1, or the group.
    pub(crate) heads_per_tile: usize,
    /// Pairs of sequence and head tile whose longest tiles start together.
    pub(crate) section: usize,
    pub(crate) num_partitions: usize,
    /// Blocks that share all keys of the batch evenly; 0 where every item has `num_partitions`.
    pub(crate) workers: usize,
    /// Sequences with fewer query rows are left to `short`.
    pub(crate) least_q_len: usize,
    /// What computes the sequences with fewer rows, of a batch that has both.
    pub(crate) short: Option<Box<Choice>>,
    pub(crate) reason: String,
}

/// An instance of a kernel family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum KernelChoice {
    Forward(ForwardConfig),
    Decode(DecodeConfig),
    Hopper(HopperConfig),
    Naive(NaiveConfig),
}

/// Chooses a kernel and its launch.
///
/// # Errors
/// [`Error::Unsupported`] for what these kernels cannot do, [`Error::Value`] for an impossible configuration.
pub(crate) fn choose(request: &Request<'_>) -> Result<Choice> {
    check_sizes(request.shape)?;
    match request.config.algorithm {
        Algorithm::Auto => hopper::prefer(request).or_else(|why| {
            let mut choice = choose_tiled(request)?;
            if request.facts.compute_capability.0 == 9 {
                choice.reason = format!("{}; not flash3: {why}", choice.reason);
            }
            Ok(choice)
        }),
        Algorithm::Flash2 => choose_tiled(request),
        Algorithm::Flash3 => hopper::choose(request),
        Algorithm::Naive => choose_naive(request),
        other => Err(Error::unsupported(
            request.backend,
            format!("algorithm {other}"),
            "its kernels are flash3, flash2 and naive",
            "algorithm auto or flash2 works",
        )),
    }
}

fn choose_tiled(request: &Request<'_>) -> Result<Choice> {
    if request.facts.compute_capability < OLDEST_TILED {
        return Err(Error::unsupported(
            request.backend,
            format!("algorithm flash2 on {}", arch(request.facts)),
            "its kernels need asynchronous copies and bf16 products, which begin with sm_80",
            "algorithm naive works there, and the CPU backend",
        ));
    }
    if let Some(choice) = decode::choose(request)? {
        return Ok(choice);
    }
    if let Some((short, least_q_len)) = decode::choose_short(request)? {
        // What is left are long sequences, which fill the device by themselves.
        let config = AttentionConfig { num_partitions: Some(1), ..*request.config };
        let long = choose_prefill(&Request { config: &config, ..*request }, request.shape.seqlen_q)?;
        let reason = format!("{}; of at least {least_q_len}: {}", short.reason, long.reason);
        return Ok(Choice { least_q_len, short: Some(Box::new(short)), reason, ..long });
    }
    choose_prefill(request, typical_rows(request.shape))
}

/// Tiles for sequences of `rows` queries.
fn choose_prefill(request: &Request<'_>, rows: usize) -> Result<Choice> {
    let tile = tile::choose(request, rows)?;
    let partitions = split::choose(request, &tile)?;
    let packing = decode::packing(tile.heads_per_tile);
    Ok(Choice {
        kernel: KernelChoice::Forward(tile.config),
        heads_per_tile: tile.heads_per_tile,
        section: section(request),
        num_partitions: partitions.number,
        workers: 0,
        least_q_len: 0,
        short: None,
        reason: format!("{}, {packing}, {}", tile.reason, partitions.reason),
    })
}

fn choose_naive(request: &Request<'_>) -> Result<Choice> {
    let config = request.config;
    let tiles = [
        ("block_m", config.block_m),
        ("block_n", config.block_n),
        ("block_k", config.block_k),
        ("warp_m", config.warp_m),
        ("warp_n", config.warp_n),
        ("num_pipeline_stages", config.num_pipeline_stages),
        ("k_group_size", config.k_group_size),
    ];
    if let Some((name, Some(value))) = tiles.into_iter().find(|(_, value)| value.is_some()) {
        return Err(Error::value(format!("config.{name}"), value, "unset: algorithm naive has no tiles"));
    }
    if let Some(swizzle) = config.swizzle {
        return Err(Error::value("config.swizzle", swizzle.bytes(), "unset: algorithm naive has no tiles"));
    }
    if config.split_within_block == Some(true) || config.num_partitions.is_some_and(|number| number > 1) {
        return Err(Error::unsupported(
            request.backend,
            "split keys with algorithm naive",
            "it computes whole rows",
            "num_partitions 1 works, or algorithm flash2",
        ));
    }
    Ok(Choice {
        kernel: KernelChoice::Naive(NaiveConfig {
            dtype: request.shape.dtype,
            paged: request.shape.kv_kind == KvKind::Paged,
        }),
        heads_per_tile: 1,
        section: 1,
        num_partitions: 1,
        workers: 0,
        least_q_len: 0,
        short: None,
        reason: "one row a block, for checking".into(),
    })
}

/// Under a causal mask the last tiles of rows see the most keys: starting those of several heads first evens out the
/// end of a launch. More heads than the second-level cache holds keys of, or than 32, cost more in traffic.
fn section(request: &Request<'_>) -> usize {
    if !is_causal(request.mask_type) {
        return 1;
    }
    let shape = request.shape;
    let keys = shape.seqlen_k * (shape.head_dim + shape.value_dim) * shape.dtype.size();
    (request.facts.l2_bytes / 2 / keys.max(1)).clamp(1, 32)
}

/// 16-bit elements go through tensor cores as they are; f32 as sums of tf32.
fn is_half(dtype: DType) -> bool {
    dtype.size() == 2
}
