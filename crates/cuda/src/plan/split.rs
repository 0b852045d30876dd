//! Splitting keys among blocks, for launches with too few tiles to fill the device.

use omniflash_core::{Error, Result};
use omniflash_gpu::split::{Partitions, configured, fill};
use omniflash_kernels_cuda::ForwardConfig;

use super::Request;
use super::tile::TileChoice;

/// Registers of a multiprocessor, and the most that a thread of these kernels uses.
const REGISTERS: usize = 65_536;
const REGISTERS_OF_A_THREAD: usize = 256;

/// The number of partitions that the caller gave, else the one that fills the device.
pub(crate) fn choose(request: &Request<'_>, tile: &TileChoice) -> Result<Partitions> {
    if request.config.split_within_block == Some(true) {
        return Err(Error::unsupported(
            request.backend,
            "split_within_block",
            "warps of tiles for so many rows split rows, never keys",
            "num_partitions splits keys among blocks",
        ));
    }
    if let Some(partitions) = configured(request.config)? {
        return Ok(partitions);
    }
    let shape = request.shape;
    let row_tiles = tile.config.num_row_tiles(super::typical_rows(shape), tile.heads_per_tile) as usize;
    let tiles = shape.batch * (shape.num_heads / tile.heads_per_tile.max(1)) * row_tiles;
    let slots = request.facts.multiprocessors * blocks_of_a_multiprocessor(request, &tile.config);
    Ok(fill(tiles, shape.seqlen_k.div_ceil(tile.config.block_n), slots))
}

/// Blocks that fit on a multiprocessor at a time, estimated: a plan asks no driver.
fn blocks_of_a_multiprocessor(request: &Request<'_>, config: &ForwardConfig) -> usize {
    let by_memory = config.blocks_by_memory(request.facts.shared_memory_bytes);
    let by_registers = REGISTERS / (REGISTERS_OF_A_THREAD * config.block_threads() as usize);
    by_memory.min(by_registers).max(1)
}
