//! Which kernel computes a problem, in which tiles and how many partitions: pure functions of sizes, dtypes, mask,
//! configuration and device, with snapshots of what they answer.

mod instance;
mod split;
mod tile;

#[cfg(test)]
mod tests;

use omniflash_core::{Algorithm, AttentionConfig, Error, KvKind, ProblemShape, Result};
use omniflash_gpu::check::check_sizes;
use omniflash_gpu::plan::{check_naive, section, typical_rows};
use omniflash_kernels_hip::NaiveConfig;

use crate::probe::DeviceFacts;

pub(crate) use instance::KernelChoice;

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
        Algorithm::Auto | Algorithm::Flash2 => choose_tiled(request),
        Algorithm::Naive => choose_naive(request),
        other => Err(Error::unsupported(
            request.backend,
            format!("algorithm {other}"),
            "its kernels are flash2 and naive",
            "algorithm auto or flash2 works",
        )),
    }
}

fn choose_tiled(request: &Request<'_>) -> Result<Choice> {
    let shape = request.shape;
    let rows = typical_rows(shape);
    let tile = tile::choose(request, rows)?;
    let partitions = split::choose(request, &tile)?;
    let packing = if tile.heads_per_tile > 1 {
        format!("{} heads packed into a tile", tile.heads_per_tile)
    } else {
        "one head a tile".into()
    };
    let reason = format!("{}, {packing}, {}", tile.reason, partitions.reason);
    Ok(Choice {
        heads_per_tile: tile.heads_per_tile,
        section: section(shape, request.mask_type, request.facts.l2_bytes),
        num_partitions: partitions.number,
        ..Choice::whole(KernelChoice::Forward(tile.config), reason)
    })
}

fn choose_naive(request: &Request<'_>) -> Result<Choice> {
    check_naive(request.config, request.backend)?;
    let config = NaiveConfig { dtype: request.shape.dtype, paged: request.shape.kv_kind == KvKind::Paged };
    Ok(Choice::whole(KernelChoice::Naive(config), "one row a block, for checking".into()))
}
