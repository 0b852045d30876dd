//! What happens to scores before softmax, lowered once a call to steps over a tile.

use omniflash_core::{AttentionProblem, ScoreFunction, ScoreMod, alibi_slope};

use crate::dense::Dense;
use crate::mask::QueryRow;
use crate::rows::floats;
use crate::scratch::List;
use crate::simd::{LOG2_E, Simd};

/// Lowered score modifications, scale and additive masks.
pub(crate) struct Scores<'p> {
    steps: Vec<Step<'p>>,
    /// What a finished score is multiplied by to become an exponent of 2; above 0.
    pub(crate) exponent_scale: f32,
}

enum Step<'p> {
    Scale(f32),
    Softcap(f32),
    /// Slopes of all heads.
    Alibi(List<f32>),
    Bias(Dense<'p>),
    /// An additive mask: like a bias, but -inf hides whatever the score is.
    Mask(Dense<'p>),
    Custom(&'p (dyn ScoreFunction + 'p)),
}

/// Scores `[key][row]` of one strip: keys `begin..end` of a block that starts at key `first_key` of its sequence.
pub(crate) struct Tile<'t> {
    /// Score of row 0 of the strip and key 0 of the block.
    pub(crate) scores: *mut f32,
    /// Words between keys: rows of a strip.
    pub(crate) stride: usize,
    pub(crate) first_key: i64,
    /// Keys of the block that the steps run over.
    pub(crate) begin: usize,
    pub(crate) end: usize,
    /// Keys of the block that exist; tensors have no elements for others.
    pub(crate) keys: usize,
    /// The strip's rows.
    pub(crate) rows: &'t [QueryRow],
    /// Keys that each row sees, when bits do not say otherwise.
    pub(crate) visible: &'t [(i64, i64)],
    /// Room for a tile of elements of a tensor.
    pub(crate) elements: *mut f32,
}

impl<'p> Scores<'p> {
    pub(crate) fn new(problem: &'p AttentionProblem<'_>, additive: &[Dense<'p>]) -> Self {
        let scale = problem.softmax_scale();
        let folded = scale * LOG2_E;
        if problem.score_mod().is_identity() && additive.is_empty() && folded > 0.0 && folded.is_normal() {
            return Scores { steps: Vec::new(), exponent_scale: folded };
        }
        let mut scores = Scores { steps: vec![Step::Scale(scale)], exponent_scale: LOG2_E };
        scores.add(problem.score_mod(), problem.shape().num_heads);
        scores.steps.extend(additive.iter().map(|dense| Step::Mask(*dense)));
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
            _ => unreachable!("`plan` has refused other modifications"),
        });
    }

    /// Whether scores only need the exponent scale.
    pub(crate) fn is_plain(&self) -> bool {
        self.steps.is_empty()
    }

    /// Applies all steps to a tile.
    ///
    /// # Safety
    /// - The tile's scores have `end` keys, its elements room for as many.
    /// - Its rows and existing keys are inside the problem.
    #[inline(always)]
    pub(crate) unsafe fn apply<S: Simd>(&self, simd: S, tile: &Tile<'_>) {
        for step in &self.steps {
            // SAFETY: the caller's duties, handed on.
            unsafe {
                match step {
                    Step::Scale(scale) => tile.map(simd, *scale, |simd, scale, x| simd.mul(x, scale)),
                    Step::Softcap(cap) => softcap(simd, tile, *cap),
                    Step::Alibi(slopes) => alibi(simd, tile, slopes),
                    Step::Bias(bias) => add_elements(simd, tile, bias, false),
                    Step::Mask(mask) => add_elements(simd, tile, mask, true),
                    Step::Custom(function) => ask(tile, *function),
                }
            }
        }
    }
}

impl Tile<'_> {
    /// Vectors that hold rows.
    fn vectors<S: Simd>(&self) -> usize {
        self.rows.len().div_ceil(S::LANES)
    }

    /// Replaces each score.
    ///
    /// # Safety
    /// As [`Scores::apply`].
    #[inline(always)]
    unsafe fn map<S: Simd>(&self, simd: S, factor: f32, f: impl Fn(S, S::Vector, S::Vector) -> S::Vector) {
        let factor = simd.splat(factor);
        for j in self.begin..self.end {
            for a in 0..self.vectors::<S>() {
                // SAFETY: key `j` and vector `a` of the tile.
                unsafe {
                    let at = self.scores.add(j * self.stride + a * S::LANES);
                    simd.store(at, f(simd, factor, simd.load(at)));
                }
            }
        }
    }
}

/// `cap * tanh(score / cap)`.
#[inline(always)]
unsafe fn softcap<S: Simd>(simd: S, tile: &Tile<'_>, cap: f32) {
    let (caps, inverse) = (simd.splat(cap), simd.splat(1.0 / cap));
    for j in tile.begin..tile.end {
        for a in 0..tile.vectors::<S>() {
            // SAFETY: key `j` and vector `a` of the tile.
            unsafe {
                let at = tile.scores.add(j * tile.stride + a * S::LANES);
                simd.store(at, simd.mul(caps, simd.tanh(simd.mul(simd.load(at), inverse))));
            }
        }
    }
}

/// `score + slope * (key - position)`.
#[inline(always)]
unsafe fn alibi<S: Simd>(simd: S, tile: &Tile<'_>, slopes: &[f32]) {
    for a in 0..tile.vectors::<S>() {
        let (mut slope, mut distance) = ([0.0f32; 16], [0.0f32; 16]);
        for (i, query) in tile.rows[a * S::LANES..].iter().take(S::LANES).enumerate() {
            slope[i] = slopes[query.head];
            distance[i] = (tile.first_key - query.position) as f32;
        }
        // SAFETY: 16 is the most lanes of a vector.
        let (slope, distance) = unsafe { (simd.load(slope.as_ptr()), simd.load(distance.as_ptr())) };
        for j in tile.begin..tile.end {
            // SAFETY: key `j` and vector `a` of the tile.
            unsafe {
                let at = tile.scores.add(j * tile.stride + a * S::LANES);
                let distance = simd.add(distance, simd.splat(j as f32));
                simd.store(at, simd.fma(slope, distance, simd.load(at)));
            }
        }
    }
}

/// Adds the elements of a tensor; where it hides, -inf hides even NaN.
#[inline(always)]
unsafe fn add_elements<S: Simd>(simd: S, tile: &Tile<'_>, dense: &Dense<'_>, hides: bool) {
    let mut offsets = [0i64; 64];
    for (offset, query) in offsets.iter_mut().zip(tile.rows) {
        *offset = dense.row(query.batch, query.head, query.row);
    }
    let end = tile.end.min(tile.keys);
    if tile.begin >= end {
        return;
    }
    let key = tile.first_key as usize + tile.begin;
    // SAFETY: the rows and keys are inside the problem, whose tensors cover it; elements have room for the tile.
    unsafe {
        let offsets = &offsets[..tile.rows.len()];
        dense.transposed(simd, offsets, key, end - tile.begin, tile.elements, tile.stride);
    }
    let (hidden, lowest) = (simd.splat(f32::NEG_INFINITY), simd.splat(f32::MIN));
    for j in tile.begin..end {
        for a in 0..tile.vectors::<S>() {
            // SAFETY: key `j` and vector `a` of the tile and of the elements.
            unsafe {
                let at = tile.scores.add(j * tile.stride + a * S::LANES);
                let element = simd.load(tile.elements.add((j - tile.begin) * tile.stride + a * S::LANES));
                let mut sum = simd.add(simd.load(at), element);
                if hides {
                    sum = simd.select(simd.less(element, lowest), hidden, sum);
                }
                simd.store(at, sum);
            }
        }
    }
}

/// Asks a user's function for each score that a row's interval leaves visible.
unsafe fn ask(tile: &Tile<'_>, function: &dyn ScoreFunction) {
    for (r, (query, visible)) in tile.rows.iter().zip(tile.visible).enumerate() {
        let begin = (visible.0 - tile.first_key).max(tile.begin as i64);
        let end = (visible.1 - tile.first_key).min(tile.end as i64);
        for j in begin..end {
            // SAFETY: key `j` of the tile and row `r` of the strip.
            unsafe {
                let at = tile.scores.add(j as usize * tile.stride + r);
                let key = tile.first_key + j;
                at.write(function.apply(at.read(), query.batch, query.head, query.position, key));
            }
        }
    }
}
