//! Tiles: how many rows and keys, how many warps and stages, and which heads share one.

use omniflash_core::{AttentionConfig, Error, KvKind, Result, Swizzle};
use omniflash_kernels_cuda::ForwardConfig;

use super::{Request, arithmetic, is_causal, is_half, is_tabulated, is_windowed};

/// Rows of a product; a warp has one or two.
const WARP_ROWS: usize = 16;

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
    let limit = request.facts.shared_memory_bytes;
    let base = ForwardConfig::new(shape.dtype, shape.head_dim, shape.value_dim, limit, request.backend)?;
    let base = ForwardConfig {
        paged: shape.kv_kind == KvKind::Paged,
        vector_loads: request.is_aligned,
        arithmetic: arithmetic(request),
        ..border_tile(request, small_memory_tile(request, base))
    };
    let heads_per_tile = packed_heads(rows, shape.group_size(), base.block_m);
    let (default, reason) = few_rows_tile(base, rows * heads_per_tile);
    let config = fixed(request.config, default)?;
    if config != default {
        config.check()?;
    }
    if config.shared_memory_bytes() > limit {
        return Err(Error::value(
            "config",
            format!(
                "block_m {}, block_n {} with num_pipeline_stages {}",
                config.block_m, config.block_n, config.stages
            ),
            format!(
                "a tile of at most {limit} bytes of shared memory, this one has {}; block_m {}, block_n {} with \
                 num_pipeline_stages {} fits",
                config.shared_memory_bytes(),
                default.block_m,
                default.block_n,
                default.stages
            ),
        ));
    }
    let reason = if config == default { reason } else { format!("{reason}, then as configured") };
    Ok(TileChoice { config, heads_per_tile, reason })
}

/// Devices with about 100 KiB of shared memory (8.6, 8.9, 12.0) hold two blocks only of smaller tiles: square ones
/// under a causal mask, where less of the diagonal is wasted, flat ones without.
fn small_memory_tile(request: &Request<'_>, base: ForwardConfig) -> ForwardConfig {
    const SMALL: usize = 100 << 10;
    let wide = base.head_dim.max(base.value_dim);
    if request.facts.shared_memory_bytes > SMALL || !is_half(base.dtype) || !(65..=128).contains(&wide) {
        return base;
    }
    let (block_m, block_n) = if is_causal(request.mask_type) { (64, 64) } else { (128, 32) };
    ForwardConfig { block_m, block_n, warps: 4, stages: 1, ..base }
}

/// Where most tiles lie at a mask's border, tiles of which less is hidden.
fn border_tile(request: &Request<'_>, base: ForwardConfig) -> ForwardConfig {
    let (keys, limit) = (request.shape.seqlen_k, request.facts.shared_memory_bytes);
    let causal = || is_causal(request.mask_type).then(|| base.for_causal(keys, limit)).flatten();
    let window = || is_windowed(request.mask_type).then(|| base.for_window(limit)).flatten();
    let table = || is_tabulated(request.mask_type).then(|| base.for_table(keys, limit)).flatten();
    causal().or_else(window).or_else(table).unwrap_or(base)
}

/// Packs the heads of a group into one tile where that saves at least a tenth of the tiles.
fn packed_heads(rows: usize, group_size: usize, block_m: usize) -> usize {
    let separate = rows.div_ceil(block_m) * group_size;
    let packed = (rows * group_size).div_ceil(block_m);
    if group_size > 1 && 10 * packed <= 9 * separate { group_size } else { 1 }
}

/// Fewer rows than a tile has need fewer warps, not idle ones; more blocks then fit on a multiprocessor and keep more
/// loads in flight.
fn few_rows_tile(base: ForwardConfig, rows: usize) -> (ForwardConfig, String) {
    // A row of a tile is copied by one pass of the threads at most: f32 rows of 256 have more chunks than a warp threads.
    let chunks = base.head_dim.max(base.value_dim).next_multiple_of(16) * base.dtype.size() / 16;
    let warps = rows.div_ceil(WARP_ROWS).max(chunks.div_ceil(32)).next_power_of_two();
    if warps * WARP_ROWS >= base.block_m || warps > base.warps {
        return (base, format!("tile {}x{} for {rows} rows", base.block_m, base.block_n));
    }
    // The memory of the rows given up goes to stages: with few rows, loads are what there is to wait for.
    let config = ForwardConfig {
        block_m: WARP_ROWS * warps,
        warps,
        warps_across: 1,
        stages: base.stages.max(2),
        ..base
    };
    let config = if config.shared_memory_bytes() > base.shared_memory_bytes() {
        ForwardConfig { stages: base.stages, ..config }
    } else {
        config
    };
    (config, format!("tile {}x{} for only {rows} rows", config.block_m, config.block_n))
}

/// Sets what the caller fixed.
fn fixed(config: &AttentionConfig, default: ForwardConfig) -> Result<ForwardConfig> {
    let block_m = config.block_m.unwrap_or(default.block_m);
    let block_n = config.block_n.unwrap_or(default.block_n);
    let stages = config.num_pipeline_stages.unwrap_or(default.stages);
    let warps_across = match config.warp_n {
        Some(warp_n) if warp_n > 0 && 2 * warp_n == block_n => 2,
        Some(_) => 1,
        None if stages == default.stages => default.warps_across,
        None => 1,
    };
    // As many columns of outputs a warp as by default, if that can be.
    let default_warp_m =
        (default.warp_m() * warps_across / default.warps_across).clamp(WARP_ROWS, 2 * WARP_ROWS);
    let warp_m = match config.warp_m {
        Some(warp_m) if ![WARP_ROWS, 2 * WARP_ROWS].contains(&warp_m) || !block_m.is_multiple_of(warp_m) => {
            let expected = format!("16 or 32, a divisor of block_m {block_m}");
            return Err(Error::value("config.warp_m", warp_m, expected));
        }
        Some(warp_m) => warp_m,
        None if block_m.is_multiple_of(default_warp_m) => default_warp_m,
        None => WARP_ROWS,
    };
    let chosen = ForwardConfig {
        block_m,
        block_n,
        stages,
        warps_across,
        warps: block_m / warp_m * warps_across,
        ..default
    };
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
    only("block_k", config.block_k, chosen.head_dim, "a tile holds whole vectors")?;
    if let Some(warp_n) = config.warp_n
        && warp_n != chosen.block_n / chosen.warps_across
    {
        let (all, half) = (chosen.block_n, chosen.block_n / 2);
        return Err(Error::value(
            "config.warp_n",
            warp_n,
            format!("{all}, all keys of a tile, or {half} for two warps side by side"),
        ));
    }
    only("k_group_size", config.k_group_size, 1, "a tile holds whole vectors")?;
    match config.swizzle {
        Some(swizzle) if swizzle != Swizzle::B128 => {
            Err(Error::value("config.swizzle", swizzle.bytes(), "128: the pattern of its tiles"))
        }
        _ => Ok(()),
    }
}
