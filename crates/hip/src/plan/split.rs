//! Splitting keys among blocks, for launches with too few tiles to fill the device.

use omniflash_core::{Error, Result};
use omniflash_kernels_hip::ForwardConfig;

use super::Request;
use super::tile::TileChoice;

/// The most partitions that are chosen unasked: joining more costs more than they gain.
const MOST: usize = 128;

/// The most partitions of a launch: blocks along y.
const LIMIT: usize = 65_535;

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
            "its waves split rows, never keys",
            "num_partitions splits keys among blocks",
        ));
    }
    if let Some(number) = request.config.num_partitions {
        if number > LIMIT {
            return Err(Error::value("config.num_partitions", number, format!("1 to {LIMIT}")));
        }
        return Ok(Partitions { number, reason: format!("{number} partitions as configured") });
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

/// The smallest number of partitions that uses the `slots` blocks that run at a time within 15 % as well as the best.
fn fill(tiles: usize, key_blocks: usize, slots: usize) -> Partitions {
    let one = |why: String| Partitions { number: 1, reason: format!("1 partition: {why}") };
    if 10 * tiles >= 8 * slots {
        return one(format!("{tiles} tiles fill {slots} slots"));
    }
    if key_blocks <= 4 || tiles == 0 {
        return one(format!("{key_blocks} blocks of keys are too few to split"));
    }
    let use_of_slots = |number: usize| {
        let rounds = (tiles * number) as f64 / slots as f64;
        rounds / rounds.ceil()
    };
    // Numbers that cut no shorter runs of blocks than the one before only add work.
    let is_shorter =
        |number: usize| number == 1 || key_blocks.div_ceil(number) != key_blocks.div_ceil(number - 1);
    let numbers: Vec<usize> =
        (1..=MOST.min(slots).min(key_blocks)).filter(|&number| is_shorter(number)).collect();
    let best = numbers.iter().map(|&number| use_of_slots(number)).fold(0.0, f64::max);
    let number = numbers.into_iter().find(|&number| use_of_slots(number) >= 0.85 * best).unwrap_or(1);
    Partitions {
        number,
        reason: format!(
            "{number} partitions: {tiles} tiles alone fill {:.0} % of {slots} slots, {:.0} % so",
            100.0 * use_of_slots(1),
            100.0 * use_of_slots(number)
        ),
    }
}
