//! What happens to a score between scaling and masking.

use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::mask::{ScoreIndex, dense_index, float_at};
use crate::source::DeviceSource;
use crate::tensor::TensorRef;

/// A function of a scaled score and its place, applied before the mask.
///
/// [`then`](ScoreMod::then) joins two in the order given. The documented default order is softcap, then ALiBi, then
/// bias.
///
/// ```
/// use omniflash_core::{ScoreIndex, ScoreMod};
/// let score_mod = ScoreMod::Softcap { cap: 30.0 }.then(ScoreMod::from_fn(|score, _b, _h, q, k| score - (q - k) as f32));
/// let at = ScoreIndex { batch: 0, head: 0, row: 5, q: 5, k: 3 };
/// assert_eq!(score_mod.apply(1e9, &at, 1), 28.0);
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum ScoreMod<'a> {
    /// The score itself.
    #[default]
    Identity,
    /// `cap * tanh(score / cap)`.
    Softcap {
        /// The bound, finite and above 0.
        cap: f32,
    },
    /// `score + slope[h] * (k - q)` (Press et al. 2022, "Train Short, Test Long").
    Alibi {
        /// `[num_heads]`, float; `None` for the [default slopes](alibi_slopes).
        slopes: Option<TensorRef<'a>>,
    },
    /// `score + bias[b, h, i, k]` of a tensor `[batch, heads, seqlen_q, seqlen_k]`, float, where any of the first
    /// three axes may be 1.
    Bias(TensorRef<'a>),
    /// The first, then the second.
    Then(Box<ScoreMod<'a>>, Box<ScoreMod<'a>>),
    /// A user's function.
    Custom(Arc<dyn ScoreFunction + 'a>),
}

/// A user's score modification.
///
/// Any `Fn(f32, usize, usize, i64, i64) -> f32` of (score, batch, query head, q, k) is one; implement the trait to
/// give device source.
pub trait ScoreFunction: Send + Sync {
    /// The new score. Must be a pure function.
    fn apply(&self, score: f32, batch: usize, head: usize, q: i64, k: i64) -> f32;

    /// The same function as source for a GPU's run-time compiler.
    fn device_source(&self) -> Option<DeviceSource> {
        None
    }
}

impl<F: Fn(f32, usize, usize, i64, i64) -> f32 + Send + Sync> ScoreFunction for F {
    fn apply(&self, score: f32, batch: usize, head: usize, q: i64, k: i64) -> f32 {
        self(score, batch, head, q, k)
    }
}

impl fmt::Debug for dyn ScoreFunction + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.device_source() {
            Some(source) => write!(f, "Custom({})", source.type_name),
            None => f.write_str("Custom"),
        }
    }
}

impl<'a> ScoreMod<'a> {
    /// A score modification from a closure of (score, batch, query head, q, k).
    pub fn from_fn(apply: impl Fn(f32, usize, usize, i64, i64) -> f32 + Send + Sync + 'a) -> Self {
        ScoreMod::Custom(Arc::new(apply))
    }

    /// A score modification from a user's type.
    pub fn custom(function: impl ScoreFunction + 'a) -> Self {
        ScoreMod::Custom(Arc::new(function))
    }

    /// This one, then `next`. Joining with [`ScoreMod::Identity`] changes nothing.
    pub fn then(self, next: ScoreMod<'a>) -> Self {
        match (self, next) {
            (ScoreMod::Identity, score_mod) | (score_mod, ScoreMod::Identity) => score_mod,
            (a, b) => ScoreMod::Then(Box::new(a), Box::new(b)),
        }
    }

    /// Whether scores stay as they are.
    pub fn is_identity(&self) -> bool {
        matches!(self, ScoreMod::Identity)
    }

    /// The new score of one pair of query and key; `num_heads` is the number of query heads.
    ///
    /// # Panics
    /// When a tensor is not in host memory or the index lies outside it: a problem that
    /// [`AttentionProblem`](crate::AttentionProblem) has accepted for a host backend never panics.
    pub fn apply(&self, score: f32, at: &ScoreIndex, num_heads: usize) -> f32 {
        match self {
            ScoreMod::Identity => score,
            ScoreMod::Softcap { cap } => cap * (score / cap).tanh(),
            ScoreMod::Alibi { slopes } => {
                let slope = match slopes {
                    Some(slopes) => float_at(slopes, &[at.head]),
                    None => alibi_slope(at.head, num_heads),
                };
                score + slope * (at.k - at.q) as f32
            }
            ScoreMod::Bias(bias) => {
                let mut index = dense_index(bias, at);
                if bias.shape()[2] == 1 {
                    index[2] = 0;
                }
                score + float_at(bias, &index)
            }
            ScoreMod::Then(a, b) => b.apply(a.apply(score, at, num_heads), at, num_heads),
            ScoreMod::Custom(function) => function.apply(score, at.batch, at.head, at.q, at.k),
        }
    }

    /// Calls `visit` with each tensor and its name in the API.
    pub(crate) fn visit_tensors(&self, visit: &mut dyn FnMut(&'static str, &TensorRef<'a>)) {
        match self {
            ScoreMod::Alibi { slopes: Some(slopes) } => visit("alibi_slopes", slopes),
            ScoreMod::Bias(bias) => visit("bias", bias),
            ScoreMod::Then(a, b) => {
                a.visit_tensors(visit);
                b.visit_tensors(visit);
            }
            _ => {}
        }
    }

    /// Checks the numbers; tensors are checked against the problem's shape.
    pub(crate) fn check_parameters(&self) -> Result<()> {
        match self {
            ScoreMod::Softcap { cap } if !(cap.is_finite() && *cap > 0.0) => {
                Err(Error::value("softcap", cap, "finite and above 0"))
            }
            ScoreMod::Then(a, b) => a.check_parameters().and_then(|()| b.check_parameters()),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for ScoreMod<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ScoreMod::Identity => f.write_str("identity"),
            ScoreMod::Softcap { cap } => write!(f, "softcap({cap})"),
            ScoreMod::Alibi { .. } => f.write_str("alibi"),
            ScoreMod::Bias(bias) => write!(f, "bias_{}", bias.dtype()),
            ScoreMod::Then(a, b) => write!(f, "then({a}, {b})"),
            ScoreMod::Custom(function) => match function.device_source() {
                Some(source) => f.write_str(&source.type_name),
                None => f.write_str("custom"),
            },
        }
    }
}

/// The default ALiBi slopes (Press et al. 2022, section 3): a geometric sequence from `2^(-8/H)` for `num_heads` a
/// power of two; otherwise the slopes of the previous power of two `P`, then every second one of `2 P` heads.
///
/// ```
/// assert_eq!(omniflash_core::alibi_slopes(4), [0.25, 0.0625, 0.015625, 0.00390625]);
/// ```
pub fn alibi_slopes(num_heads: usize) -> Vec<f32> {
    (0..num_heads).map(|head| alibi_slope(head, num_heads)).collect()
}

/// The slope of one head among [`alibi_slopes`].
pub fn alibi_slope(head: usize, num_heads: usize) -> f32 {
    let power = if num_heads.is_power_of_two() { num_heads } else { num_heads.next_power_of_two() / 2 };
    let exponent = if head < power {
        -8.0 * (head + 1) as f64 / power as f64
    } else {
        -8.0 * (2 * (head - power) + 1) as f64 / (2 * power) as f64
    };
    exponent.exp2() as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: ScoreIndex = ScoreIndex { batch: 1, head: 2, row: 0, q: 10, k: 7 };

    #[test]
    fn modifications_apply_in_the_order_given() {
        let double = ScoreMod::from_fn(|s, _, _, _, _| 2.0 * s);
        let add = ScoreMod::from_fn(|s, _, _, _, _| s + 1.0);
        assert_eq!(double.clone().then(add.clone()).apply(3.0, &AT, 8), 7.0);
        assert_eq!(add.then(double).apply(3.0, &AT, 8), 8.0);
    }

    #[test]
    fn alibi_is_zero_at_the_query_and_falls_with_distance() {
        let alibi = ScoreMod::Alibi { slopes: None };
        assert_eq!(alibi.apply(0.0, &ScoreIndex { k: 10, ..AT }, 8), 0.0);
        assert_eq!(alibi.apply(0.0, &AT, 8), -3.0 * 0.125);
    }

    #[test]
    fn slopes_of_odd_head_counts_interpolate() {
        let slopes = alibi_slopes(6);
        assert_eq!(&slopes[..4], alibi_slopes(4).as_slice());
        assert_eq!(slopes[4..], [0.5, 0.125]);
    }

    #[test]
    fn a_bias_broadcasts_over_unit_axes() {
        let data = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
        let bias = ScoreMod::Bias(TensorRef::from_slice(&data, &[1, 1, 1, 8]).unwrap());
        assert_eq!(bias.apply(0.5, &ScoreIndex { row: 3, ..AT }, 8), 8.5);
    }

    #[test]
    fn a_cap_must_bound() {
        for cap in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            assert!(ScoreMod::Softcap { cap }.check_parameters().is_err());
        }
    }
}
