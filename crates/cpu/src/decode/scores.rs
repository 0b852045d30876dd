//! What happens to scores between the dot product and softmax, row by row.

use omniflash_core::{AttentionProblem, ScoreFunction, ScoreMod, alibi_slope};
use smallvec::SmallVec;

use crate::dense::Dense;
use crate::mask::QueryRow;
use crate::rows::floats;
use crate::scratch::List;
use crate::simd::{LOG2_E, Simd};

/// Lowered scale, score modifications and additive masks.
pub(super) struct Scores<'p> {
    /// What every dot product is multiplied by.
    pub(super) scale: f32,
    steps: SmallVec<[Step<'p>; 4]>,
}

enum Step<'p> {
    Softcap(f32),
    /// Slopes of all heads.
    Alibi(List<f32>),
    Bias(Dense<'p>),
    /// An additive mask: like a bias, but -inf hides whatever the score is.
    Mask(Dense<'p>),
    Custom(&'p (dyn ScoreFunction + 'p)),
}

/// One row of scores of a block of keys.
pub(super) struct ScoreRow<'s> {
    pub(super) query: QueryRow,
    /// Scaled scores of the keys, then whatever, up to a multiple of 16.
    pub(super) scores: *mut f32,
    /// Where the keys are in their sequence.
    pub(super) positions: &'s [i64],
    /// Keys that the row sees; users' functions are not asked for others.
    pub(super) visible: u64,
}

impl<'p> Scores<'p> {
    pub(super) fn new(problem: &'p AttentionProblem<'_>, additive: &[Dense<'p>]) -> Self {
        let mut scores = Scores { scale: problem.softmax_scale(), steps: SmallVec::new() };
        scores.add(problem.score_mod(), problem.shape().num_heads);
        scores.steps.extend(additive.iter().map(|dense| Step::Mask(*dense)));
        if scores.steps.is_empty() {
            scores.scale *= LOG2_E;
        }
        scores
    }

    fn add(&mut self, score_mod: &'p ScoreMod<'_>, num_heads: usize) {
        self.steps.push(match score_mod {
            ScoreMod::Identity => return,
            ScoreMod::Then(a, b) => {
                self.add(a, num_heads);
                return self.add(b, num_heads);
            }
            ScoreMod::Softcap { cap } => Step::Softcap(*cap),
            ScoreMod::Alibi { slopes: Some(slopes) } => Step::Alibi(floats(slopes, num_heads)),
            ScoreMod::Alibi { slopes: None } => {
                Step::Alibi((0..num_heads).map(|head| alibi_slope(head, num_heads)).collect())
            }
            ScoreMod::Bias(bias) => Step::Bias(Dense::new(bias)),
            ScoreMod::Custom(function) => Step::Custom(&**function),
            _ => unreachable!("every score modification is handled"),
        });
    }

    /// Whether scaled dot products are exponents of 2 as they are.
    #[inline(always)]
    pub(super) fn is_plain(&self) -> bool {
        self.steps.is_empty()
    }

    /// Turns scaled dot products into exponents of 2.
    ///
    /// # Safety
    /// The row's scores are the caller's, its query and positions inside the problem.
    #[inline(always)]
    pub(super) unsafe fn apply<S: Simd>(&self, simd: S, row: &ScoreRow<'_>) {
        for step in &self.steps {
            // SAFETY: the caller's duties, handed on.
            unsafe {
                match step {
                    Step::Softcap(cap) => softcap(simd, row, *cap),
                    Step::Alibi(slopes) => alibi(row, slopes[row.query.head]),
                    Step::Bias(bias) => add_elements(row, bias, false),
                    Step::Mask(mask) => add_elements(row, mask, true),
                    Step::Custom(function) => ask(row, *function),
                }
            }
        }
        let (factor, lowest) = (simd.splat(LOG2_E), simd.splat(f32::MIN));
        for i in (0..row.positions.len()).step_by(S::LANES) {
            // SAFETY: scores have room for whole vectors.
            unsafe {
                let at = row.scores.add(i);
                let score = simd.load(at);
                // A finite score stays above -inf: masks of f32::MIN leave a row's average, as adding them does.
                let exponent = simd.max(lowest, simd.mul(score, factor));
                simd.store(at, simd.select(simd.less(score, lowest), score, exponent));
            }
        }
    }
}

/// `cap * tanh(score / cap)`.
#[inline(always)]
unsafe fn softcap<S: Simd>(simd: S, row: &ScoreRow<'_>, cap: f32) {
    let (caps, inverse) = (simd.splat(cap), simd.splat(1.0 / cap));
    for i in (0..row.positions.len()).step_by(S::LANES) {
        // SAFETY: scores have room for whole vectors.
        unsafe {
            let at = row.scores.add(i);
            simd.store(at, simd.mul(caps, simd.tanh(simd.mul(simd.load(at), inverse))));
        }
    }
}

/// `score + slope * (key - position)`.
#[inline(always)]
unsafe fn alibi(row: &ScoreRow<'_>, slope: f32) {
    for (i, position) in row.positions.iter().enumerate() {
        // SAFETY: score `i` of the row.
        unsafe {
            let at = row.scores.add(i);
            at.write(at.read() + slope * (position - row.query.position) as f32);
        }
    }
}

/// Adds the elements of a tensor; where it hides, -inf hides even NaN.
#[inline(always)]
unsafe fn add_elements(row: &ScoreRow<'_>, dense: &Dense<'_>, hides: bool) {
    let offset = dense.row(row.query.batch, row.query.head, row.query.row);
    for (i, position) in row.positions.iter().enumerate() {
        // SAFETY: the row and the key are inside the problem, whose tensors cover it; score `i` of the row.
        unsafe {
            let element = dense.element(offset, *position as usize);
            let at = row.scores.add(i);
            let is_hidden = hides && element == f32::NEG_INFINITY;
            at.write(if is_hidden { element } else { at.read() + element });
        }
    }
}

/// Asks a user's function for each score that is seen.
unsafe fn ask(row: &ScoreRow<'_>, function: &dyn ScoreFunction) {
    for (i, position) in row.positions.iter().enumerate() {
        if row.visible >> i & 1 == 1 {
            let query = &row.query;
            // SAFETY: score `i` of the row.
            unsafe {
                let at = row.scores.add(i);
                at.write(function.apply(at.read(), query.batch, query.head, query.position, *position));
            }
        }
    }
}
