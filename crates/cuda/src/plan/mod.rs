//! Which kernel computes a problem, in which tiles and how many partitions: pure functions of sizes, dtypes, mask,
//! configuration and device, with snapshots of what they answer.

mod alternatives;
mod decode;
mod hopper;
mod id;
mod instance;
mod split;
mod tile;

#[cfg(test)]
mod tests;

use omniflash_core::{Algorithm, AttentionConfig, DType, Error, F32Arithmetic, KvKind, ProblemShape, Result};
use omniflash_gpu::check::check_sizes;
use omniflash_gpu::plan::{check_naive, is_causal, is_tabulated, is_windowed, may_be_causal, typical_rows};
use omniflash_kernels_cuda::{Arithmetic, NaiveConfig};

use crate::probe::DeviceFacts;

pub(crate) use alternatives::alternatives;
pub(crate) use hopper::HopperFit;
pub(crate) use id::{arch, arch_family};
pub(crate) use instance::KernelChoice;

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
    /// The C++ type of the score modification.
    pub(crate) score_mod_type: &'r str,
    /// Whether every row of q, k, v and out begins at a multiple of 16 bytes and has a multiple of 16 bytes.
    pub(crate) is_aligned: bool,
    pub(crate) hopper: HopperFit,
}

/// The kernel chosen, and how it is launched.
pub(crate) type Choice = omniflash_gpu::Choice<KernelChoice>;

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
        return Ok(beside_short(long, short, least_q_len));
    }
    choose_prefill(request, typical_rows(request.shape))
}

/// One choice for sequences of at least so many rows, another for the shorter ones.
fn beside_short(long: Choice, short: Choice, least_q_len: usize) -> Choice {
    let reason = format!("{}; of at least {least_q_len}: {}", short.reason, long.reason);
    Choice { least_q_len, short: Some(Box::new(short)), reason, ..long }
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
    check_naive(request.config, request.backend)?;
    let config = NaiveConfig { dtype: request.shape.dtype, paged: request.shape.kv_kind == KvKind::Paged };
    Ok(Choice::whole(KernelChoice::Naive(config), "one row a block, for checking".into()))
}

/// Under a causal mask the last tiles of rows see the most keys: starting those of many heads first evens out the end of
/// a launch. Sections of equal size: a rest of few heads at the end would leave multiprocessors without work. More keys
/// than the second-level cache holds did not matter on an H200: tiles are large beside the rate of their products.
fn section(request: &Request<'_>) -> usize {
    const MOST: usize = 64;
    if !may_be_causal(request.mask_type) {
        return 1;
    }
    let pairs = (request.shape.batch * request.shape.num_heads).max(1);
    pairs.div_ceil(pairs.div_ceil(MOST))
}

/// 16-bit elements go through tensor cores as they are, f32 as the caller accepts it.
fn arithmetic(request: &Request<'_>) -> Arithmetic {
    match request.config.f32_arithmetic {
        _ if is_half(request.shape.dtype) => Arithmetic::Half,
        Some(F32Arithmetic::Exact) => Arithmetic::Exact,
        Some(F32Arithmetic::Tf32) => Arithmetic::Tf32,
        _ => Arithmetic::Tf32x3,
    }
}

fn is_half(dtype: DType) -> bool {
    dtype.size() == 2
}
