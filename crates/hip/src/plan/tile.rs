//! Tiles: how many rows and keys, how many waves and stages, and which heads share one.

use omniflash_core::{AttentionConfig, Error, KvKind, Result};
use omniflash_kernels_hip::ForwardConfig;

use super::Request;

/// A tile and its packing.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TileChoice {
    pub(crate) config: ForwardConfig,
    pub(crate) heads_per_tile: usize,
    pub(crate) reason: String,
}

/// The tile for a sequence of `rows` queries, with what the caller fixed.
pub(crate) fn choose(request: &Request<'_>, rows: usize) -> Result<TileChoice> {
    let shape = request.shape;
    let architecture = request.facts.architecture;
    let base =
        ForwardConfig::new(architecture, shape.dtype, shape.head_dim, shape.value_dim, request.backend)?;
    let base =
        ForwardConfig { paged: shape.kv_kind == KvKind::Paged, vector_loads: request.is_aligned, ..base };
    let heads_per_tile = packed_heads(rows, shape.group_size(), base.block_m);
    let rows = rows * heads_per_tile;
    let default = base.for_few_rows(rows);
    let only = if default == base { "" } else { "only " };
    let reason = format!("tile {}x{} for {only}{rows} rows", default.block_m, default.block_n);
    let config = fixed(request.config, default)?;
    if config != default {
        config.check()?;
    }
    let reason = if config == default { reason } else { format!("{reason}, then as configured") };
    Ok(TileChoice { config, heads_per_tile, reason })
}

/// Packs the heads of a group into one tile where that saves at least a tenth of the tiles.
fn packed_heads(rows: usize, group_size: usize, block_m: usize) -> usize {
    let separate = rows.div_ceil(block_m) * group_size;
    let packed = (rows * group_size).div_ceil(block_m);
    if group_size > 1 && 10 * packed <= 9 * separate { group_size } else { 1 }
}

/// Sets what the caller fixed.
fn fixed(config: &AttentionConfig, default: ForwardConfig) -> Result<ForwardConfig> {
    let mut chosen = default;
    let wave_rows = default.architecture.wave_rows();
    if let Some(block_m) = config.block_m {
        if block_m == 0 || !block_m.is_multiple_of(wave_rows) {
            return Err(Error::value(
                "config.block_m",
                block_m,
                format!("a multiple of {wave_rows}, a wave's rows"),
            ));
        }
        (chosen.block_m, chosen.warps) = (block_m, block_m / wave_rows);
    }
    chosen.block_n = config.block_n.unwrap_or(default.block_n);
    chosen.stages = config.num_pipeline_stages.unwrap_or(default.stages);
    check_fixed_parts(config, &chosen)?;
    Ok(chosen)
}

/// Fields of which these kernels have one value.
fn check_fixed_parts(config: &AttentionConfig, chosen: &ForwardConfig) -> Result<()> {
    let only = |name: &str, asked: Option<usize>, value: usize, why: &str| match asked {
        Some(asked) if asked != value => {
            Err(Error::value(format!("config.{name}"), asked, format!("{value}: {why}")))
        }
        _ => Ok(()),
    };
    let wave_rows = chosen.architecture.wave_rows();
    only("warp_m", config.warp_m, wave_rows, "the rows of a wave are the columns of a matrix instruction")?;
    only("block_k", config.block_k, chosen.head_dim, "a tile holds whole vectors")?;
    only("warp_n", config.warp_n, chosen.block_n, "a wave sees all keys of a tile")?;
    only("k_group_size", config.k_group_size, 1, "a tile holds whole vectors")?;
    match config.swizzle {
        Some(swizzle) => {
            Err(Error::value("config.swizzle", swizzle.bytes(), "unset: its tiles are padded, not swizzled"))
        }
        None => Ok(()),
    }
}
