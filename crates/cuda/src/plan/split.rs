//! Splitting keys among blocks, for launches with too few tiles to fill the device.

use omniflash_core::{AttentionConfig, Error, Result};
use omniflash_kernels_cuda::ForwardConfig;

use super::Request;
use super::tile::TileChoice;

/// The most partitions that are chosen unasked: joining more costs more than they gain.
const MOST: usize = 128;

/// The most partitions of a launch: blocks along y.
const LIMIT: usize = 65_535;

/// Registers of a multiprocessor, and the most that a thread of these kernels uses.
const REGISTERS: usize = 65_536;
const REGISTERS_OF_A_THREAD: usize = 256;

/// Shared memory that the system takes of each block.
pub(super) const RESERVED_SHARED_BYTES: usize = 1024;

/// How many partitions, and why.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Partitions {
    pub(crate) number: usize,
    pub(crate) reason: String,
}

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

/// The number of partitions that the caller gave.
pub(super) fn configured(config: &AttentionConfig) -> Result<Option<Partitions>> {
    match config.num_partitions {
        Some(number) if number > LIMIT => {
            Err(Error::value("config.num_partitions", number, format!("1 to {LIMIT}")))
        }
        number => {
            Ok(number
                .map(|number| Partitions { number, reason: format!("{number} partitions as configured") }))
        }
    }
}

/// Blocks that fit on a multiprocessor at a time, estimated: a plan asks no driver.
fn blocks_of_a_multiprocessor(request: &Request<'_>, config: &ForwardConfig) -> usize {
    let by_memory = (request.facts.shared_memory_bytes + RESERVED_SHARED_BYTES)
        / (config.shared_memory_bytes() + RESERVED_SHARED_BYTES);
    let by_registers = REGISTERS / (REGISTERS_OF_A_THREAD * config.block_threads() as usize);
    by_memory.min(by_registers).max(1)
}

/// The smallest number of partitions within 15 % of the best use of `slots` blocks that run at a time (the rule of
/// FlashAttention-2 and -3).
fn fill(tiles: usize, key_blocks: usize, slots: usize) -> Partitions {
    let one = |why: String| Partitions { number: 1, reason: format!("1 partition: {why}") };
    if 10 * tiles >= 8 * slots {
        return one(format!("{tiles} tiles fill {slots} slots"));
    }
    if key_blocks <= 4 || tiles == 0 {
        return one(format!("{key_blocks} blocks of keys are too few to split"));
    }
    let most = MOST.min(slots).min(key_blocks);
    let efficiency = |number: usize| {
        let waves = (tiles * number) as f64 / slots as f64;
        waves / waves.ceil()
    };
    // Numbers that cut no shorter runs of blocks than the one before only add work.
    let shortens =
        |number: usize| number == 1 || key_blocks.div_ceil(number) != key_blocks.div_ceil(number - 1);
    let eligible = || (1..=most).filter(|&number| shortens(number));
    let best = eligible().map(efficiency).fold(0.0, f64::max);
    let number = eligible().find(|&number| efficiency(number) >= 0.85 * best).unwrap_or(1);
    Partitions {
        number,
        reason: format!(
            "{number} partitions: {tiles} tiles alone fill {:.0} % of {slots} slots, {:.0} % so",
            100.0 * efficiency(1),
            100.0 * efficiency(number)
        ),
    }
}
