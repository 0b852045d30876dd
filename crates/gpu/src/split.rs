//! How many partitions the keys of a launch are split into, from its sizes alone.

use omniflash_core::{AttentionConfig, Error, Result};

/// The most partitions that are chosen unasked: joining more costs more than they gain.
const MOST: usize = 128;

/// The most partitions of a launch: blocks along y.
const LIMIT: usize = 65_535;

/// How many partitions, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Partitions {
    /// At least 1.
    pub number: usize,
    /// For the plan's line.
    pub reason: String,
}

/// The number of partitions that the caller gave, if any.
///
/// # Errors
/// [`Error::Value`] for more than a launch can have.
pub fn configured(config: &AttentionConfig) -> Result<Option<Partitions>> {
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

/// The smallest number of partitions within 15 % of the best use of `slots` blocks that run at a time (the rule of
/// FlashAttention-2 and -3), for `tiles` of rows that each see `key_blocks` blocks of keys.
pub fn fill(tiles: usize, key_blocks: usize, slots: usize) -> Partitions {
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
