//! What a caller asks of one call, beside the tensors.

use crate::config::AttentionConfig;
use crate::mask::Mask;
use crate::score_mod::ScoreMod;
use crate::tensor::TensorRef;

/// Options of one call; all have defaults.
///
/// ```
/// use omniflash_core::{AttentionOptions, Mask, ScoreMod};
/// let options = AttentionOptions::new()
///     .softmax_scale(0.125)
///     .mask(Mask::SlidingWindow { left: 127, right: 0 })
///     .score_mod(ScoreMod::Softcap { cap: 30.0 })
///     .lse(true);
/// assert!(options.lse);
/// ```
#[derive(Clone, Debug, Default)]
pub struct AttentionOptions<'a> {
    /// Multiplies every dot product; default `1 / sqrt(head_dim)`.
    pub softmax_scale: Option<f32>,
    /// Which keys a query sees; default all.
    pub mask: Mask<'a>,
    /// What happens to a scaled score; default nothing.
    pub score_mod: ScoreMod<'a>,
    /// `[num_heads]`, float: one more logit a head, in natural units and not scaled, that has no value vector.
    pub sinks: Option<TensorRef<'a>>,
    /// `[batch]`, i32 or u32: the global position of each sequence's first query; default `kv_len - q_len`.
    pub query_start: Option<TensorRef<'a>>,
    /// Whether the log-sum-exp of every row is wanted.
    pub lse: bool,
    /// Tuning.
    pub config: AttentionConfig,
}

impl<'a> AttentionOptions<'a> {
    /// The defaults.
    pub fn new() -> Self {
        AttentionOptions::default()
    }

    /// Sets the factor of every dot product: finite, of magnitude 1e6 or less. Scores are numbers of f32; their differences
    /// are exact enough for weights up to magnitudes of about 1e9.
    pub fn softmax_scale(mut self, softmax_scale: f32) -> Self {
        self.softmax_scale = Some(softmax_scale);
        self
    }

    /// Adds a mask: a key is visible when all masks added let it be.
    pub fn mask(mut self, mask: Mask<'a>) -> Self {
        self.mask = self.mask.and(mask);
        self
    }

    /// Adds a score modification after those already added.
    pub fn score_mod(mut self, score_mod: ScoreMod<'a>) -> Self {
        self.score_mod = self.score_mod.then(score_mod);
        self
    }

    /// Sets the attention sinks, `[num_heads]`.
    pub fn sinks(mut self, sinks: TensorRef<'a>) -> Self {
        self.sinks = Some(sinks);
        self
    }

    /// Sets the global position of each sequence's first query, `[batch]`.
    pub fn query_start(mut self, query_start: TensorRef<'a>) -> Self {
        self.query_start = Some(query_start);
        self
    }

    /// Asks for the log-sum-exp of every row.
    pub fn lse(mut self, lse: bool) -> Self {
        self.lse = lse;
        self
    }

    /// Sets the tuning.
    pub fn config(mut self, config: AttentionConfig) -> Self {
        self.config = config;
        self
    }

    /// Splits each sequence's keys into this many pieces; see [`AttentionConfig::num_partitions`].
    pub fn num_partitions(mut self, num_partitions: usize) -> Self {
        self.config.num_partitions = Some(num_partitions);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_added_are_all_obeyed() {
        let options = AttentionOptions::new()
            .mask(Mask::Causal)
            .mask(Mask::SlidingWindow { left: 2, right: 9 })
            .mask(Mask::None);
        let visible: Vec<i64> = (0..9).filter(|&k| options.mask.visible_at(0, 0, 5, k)).collect();
        assert_eq!(visible, [3, 4, 5]);
        assert_eq!(options.mask.to_string(), "and(causal, sliding_window(2, 9))");
    }

    #[test]
    fn score_modifications_are_kept_in_the_order_given() {
        let options = AttentionOptions::new()
            .score_mod(ScoreMod::Identity)
            .score_mod(ScoreMod::Softcap { cap: 30.0 })
            .score_mod(ScoreMod::Alibi { slopes: None });
        assert_eq!(options.score_mod.to_string(), "then(softcap(30), alibi)");
    }

    #[test]
    fn the_number_of_partitions_is_part_of_the_tuning() {
        let config = AttentionConfig { block_m: Some(64), ..AttentionConfig::default() };
        let options = AttentionOptions::new().config(config).num_partitions(4);
        assert_eq!(options.config, AttentionConfig { num_partitions: Some(4), ..config });
    }

    #[test]
    fn the_defaults_ask_for_nothing() {
        let options = AttentionOptions::new();
        assert!(options.mask.is_none() && options.score_mod.is_identity() && !options.lse);
        assert!(options.softmax_scale.is_none() && options.sinks.is_none() && options.query_start.is_none());
        assert_eq!(options.config, AttentionConfig::default());
    }
}
