//! Choosing among configurations by measuring them.

use crate::config::AttentionConfig;
use crate::error::Result;

/// The share of the time by which another configuration must be faster than the plan's own choice to be preferred: less
/// is noise of a machine that does nothing else.
pub const LEAST_GAIN: f64 = 0.02;

/// A configuration, and how long its launches took.
#[derive(Clone, Debug, PartialEq)]
pub struct Trial {
    /// What was fixed; nothing for the plan's own choice.
    pub config: AttentionConfig,
    /// In the order of the launches; finite.
    pub milliseconds: Vec<f64>,
}

impl Trial {
    /// The median time; `None` before anything was measured.
    pub fn median(&self) -> Option<f64> {
        self.quantile(0.5)
    }

    fn quantile(&self, fraction: f64) -> Option<f64> {
        let mut sorted = self.milliseconds.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().checked_sub(1)?;
        Some(sorted[(fraction * last as f64).round() as usize])
    }
}

/// Times configurations in turns, `rounds` times each and every round in another order, so that a device that warms up
/// disfavours none. `clock` answers with the milliseconds of some launches of a configuration.
///
/// # Errors
/// The first of `clock`.
pub fn take_turns(
    configs: &[AttentionConfig],
    rounds: usize,
    mut clock: impl FnMut(&AttentionConfig) -> Result<Vec<f64>>,
) -> Result<Vec<Trial>> {
    let mut trials: Vec<Trial> =
        configs.iter().map(|&config| Trial { config, milliseconds: Vec::new() }).collect();
    for round in 0..rounds {
        for turn in 0..trials.len() {
            // Forwards and backwards in turn, from another start each time.
            let step = if round % 2 == 0 { turn } else { trials.len() - 1 - turn };
            let place = (step + round) % trials.len();
            let times = clock(&trials[place].config)?;
            trials[place].milliseconds.extend(times);
        }
    }
    Ok(trials)
}

/// The place of the configuration to prefer. The first is the plan's own choice; it stays unless another takes less time
/// by [`LEAST_GAIN`], and by more than its own times spread. `None` where the first was not measured.
pub fn preferred(trials: &[Trial]) -> Option<usize> {
    let own = trials.first()?.median()?;
    let is_faster = |trial: &Trial| {
        let (median, slow) = (trial.median()?, trial.quantile(0.75)?);
        (median <= own * (1.0 - LEAST_GAIN) && slow < own).then_some(median)
    };
    let faster =
        trials.iter().enumerate().skip(1).filter_map(|(place, trial)| Some((place, is_faster(trial)?)));
    Some(faster.min_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |(place, _)| place))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(block_n: Option<usize>, milliseconds: &[f64]) -> Trial {
        let config = AttentionConfig { block_n, ..AttentionConfig::default() };
        Trial { config, milliseconds: milliseconds.to_vec() }
    }

    #[test]
    fn the_fastest_configuration_is_preferred_where_it_gains_more_than_noise() {
        let own = trial(None, &[1.00, 1.02, 0.99]);
        for (others, preferred_place) in [
            (vec![trial(Some(64), &[0.90, 0.91, 0.92]), trial(Some(96), &[0.80, 0.82, 0.81])], 2),
            // 1 % is noise.
            (vec![trial(Some(64), &[0.99, 0.99, 0.99])], 0),
            // A median that the spread of its own times covers.
            (vec![trial(Some(64), &[0.70, 0.80, 1.40, 1.50])], 0),
            (vec![trial(Some(64), &[])], 0),
            (vec![], 0),
        ] {
            let trials: Vec<Trial> = std::iter::once(own.clone()).chain(others).collect();
            assert_eq!(preferred(&trials), Some(preferred_place), "{trials:?}");
        }
        assert_eq!((preferred(&[]), preferred(&[trial(None, &[])])), (None, None));
    }

    #[test]
    fn turns_change_their_order_from_round_to_round() {
        let configs = [None, Some(64), Some(96)].map(|block_n| trial(block_n, &[]).config);
        let mut asked = Vec::new();
        let trials = take_turns(&configs, 2, |config| {
            asked.push(config.block_n);
            // A clock that slows down by the call, as a device that warms up does.
            Ok(vec![asked.len() as f64])
        })
        .unwrap();
        assert_eq!(asked, [None, Some(64), Some(96), None, Some(96), Some(64)]);
        let times: Vec<&[f64]> = trials.iter().map(|trial| &trial.milliseconds[..]).collect();
        assert_eq!(times, [&[1.0, 4.0][..], &[2.0, 6.0], &[3.0, 5.0]]);
    }

    #[test]
    fn a_clock_that_fails_ends_the_turns() {
        let failed = take_turns(&[AttentionConfig::default()], 3, |_| Err(crate::Error::value("a", 1, "2")));
        assert!(failed.is_err());
    }
}
