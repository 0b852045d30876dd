//! Splitting keys among blocks, for launches with too few tiles to fill the device.

use omniflash_core::{Error, Result};
use omniflash_gpu::split::{Partitions, configured, fill};
use omniflash_kernels_hip::ForwardConfig;

use super::Request;
use super::tile::TileChoice;

/// The number of partitions that the caller gave, else the one that fills the device.
pub(crate) fn choose(request: &Request<'_>, tile: &TileChoice) -> Result<Partitions> {
    if request.config.split_within_block == Some(true) {
        return Err(Error::unsupported(
            request.backend,
            "split_within_block",
            "its waves split rows, never keys",
            "num_partitions splits keys among blocks",
        ));
    }
    if let Some(partitions) = configured(request.config)? {
        return Ok(partitions);
    }
    let shape = request.shape;
    let row_tiles = tile.config.num_row_tiles(super::typical_rows(shape), tile.heads_per_tile) as usize;
    let tiles = shape.batch * (shape.num_heads / tile.heads_per_tile.max(1)) * row_tiles;
    let slots = request.facts.multiprocessors * blocks_of_a_unit(&tile.config);
    Ok(fill(tiles, shape.seqlen_k.div_ceil(tile.config.block_n), slots))
}

/// Blocks that run on a compute unit at a time, estimated: a plan asks no driver.
fn blocks_of_a_unit(config: &ForwardConfig) -> usize {
    let architecture = config.architecture;
    let by_memory = architecture.shared_memory() / config.shared_memory_bytes().max(1);
    // Two waves on each of four SIMDs, where a thread uses up to 256 of 512 registers; on RDNA six on each of two.
    let waves = if architecture.is_cdna() { 8 } else { 12 };
    by_memory.min(waves / config.warps).max(1)
}
