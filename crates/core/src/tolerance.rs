//! How far a backend's result may be from the float64 reference: computed from the problem, not guessed.

use crate::dtype::DType;
use crate::error::Result;
use crate::problem::AttentionProblem;
use crate::reference::{self, Elements, ReferenceOutput, is_written};
use crate::tensor::TensorRef;

/// What a problem's result should be, and how far from it a result may lie.
///
/// ```
/// use omniflash_core::{AttentionOptions, AttentionProblem, Expectation, KvCache, Query, ReferenceBackend};
/// use omniflash_core::{Stream, TensorMut, TensorRef, run};
///
/// let (q, kv) = ([0.5f32, -0.25], [1.0f32, 2.0, 3.0, 4.0]);
/// let mut out = [0.0f32; 2];
/// let problem = AttentionProblem::new(
///     Query::padded(TensorRef::from_slice(&q, &[1, 1, 1, 2])?),
///     KvCache::dense(TensorRef::from_slice(&kv, &[1, 2, 1, 2])?, TensorRef::from_slice(&kv, &[1, 2, 1, 2])?),
///     TensorMut::from_slice(&mut out, &[1, 1, 1, 2])?,
///     None,
///     &AttentionOptions::new(),
/// )?;
/// run(&ReferenceBackend::new(), &problem, &Stream::host())?;
/// let expectation = Expectation::of(&problem)?;
/// let deviation = expectation.compare(&problem, problem.out().as_view(), None);
/// assert!(deviation.is_within(&expectation.tolerance));
/// # Ok::<(), omniflash_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Expectation {
    /// The result in float64.
    pub reference: ReferenceOutput,
    /// How far from it a result may lie.
    pub tolerance: Tolerance,
}

/// Bounds on a [`Deviation`], made from the float64 reference, from how far a
/// [naive](reference::naive_attention) computation in the problem's dtype is from it, and from the spacing of numbers.
///
/// | quantity | bound |
/// |---|---|
/// | RMSE(out) / RMS(reference) | 4e-3 bf16, 6e-4 f16, 2e-6 f32; or, where that is more, twice the naive's or the spacing of f32 at the RMS of the log-sum-exps |
/// | an element of out | twice the naive's largest error, 4 spacings of the dtype at max(element, RMS) and 4 of f32 at its row's log-sum-exp, times max(element, RMS); at least the RMS bound |
/// | lse | 1e-4 + 1e-5 of its size |
///
/// The log-sum-exp is as large as the scores that matter. A kernel rounds them a few times more than the naive
/// computation does (into base 2, through a softcap), each time by half a spacing, and a weight errs relatively as
/// much as its score absolutely.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// On the root mean square error of `out`, relative to the root mean square of the reference.
    pub relative_rms: f64,
    /// On the error of the log-sum-exp, where it is 0.
    pub lse_absolute: f64,
    /// Added to [`lse_absolute`](Tolerance::lse_absolute) for each unit of the log-sum-exp's magnitude.
    pub lse_relative: f64,
    dtype: DType,
    /// Root mean square of the reference.
    rms: f64,
    /// Twice the largest error of the naive computation.
    twice_naive: f64,
    /// Factor of the bounds of `out`.
    factor: f64,
}

/// How far a result is from the reference, over the rows that are written.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Deviation {
    /// Root mean square error of `out`, relative to the root mean square of the reference.
    pub relative_rms: f64,
    /// The error of the element of `out` that comes nearest to its bound or is furthest beyond; infinite when only one
    /// of result and reference is a finite number.
    pub max_error: f64,
    /// What that element may err.
    pub max_error_bound: f64,
    /// Its row-major index.
    pub max_error_at: usize,
    /// The largest error of a log-sum-exp.
    pub lse_error: f64,
    /// The largest error of a log-sum-exp as a fraction of its own bound.
    pub lse_fraction: f64,
}

impl Tolerance {
    /// Makes the bounds from two computations of one problem, whose rows that are not written are NaN in both.
    ///
    /// # Panics
    /// When the two are not of one size.
    pub fn new(dtype: DType, reference: &ReferenceOutput, naive: &ReferenceOutput) -> Self {
        assert_eq!(reference.out.len(), naive.out.len(), "two computations of one problem");
        let (mut largest, mut error, mut square, mut count) = (0.0f64, 0.0f64, 0.0f64, 0usize);
        for (expected, found) in reference.out.iter().zip(&naive.out) {
            if expected.is_finite() && found.is_finite() {
                largest = largest.max((found - expected).abs());
                error += (found - expected).powi(2);
                square += expected.powi(2);
                count += 1;
            }
        }
        let naive_rms = if square > 0.0 { (error / square).sqrt() } else { 0.0 };
        let finite = reference.lse.iter().filter(|lse| lse.is_finite());
        let (lse_square, lse_count) = finite.fold((0.0, 0.0f64), |(sum, n), lse| (sum + lse * lse, n + 1.0));
        let scores = spacing(DType::F32, (lse_square / lse_count.max(1.0)).sqrt());
        Tolerance {
            relative_rms: relative_rms(dtype).max(2.0 * naive_rms).max(scores),
            lse_absolute: 1e-4,
            lse_relative: 1e-5,
            dtype,
            rms: if count > 0 { (square / count as f64).sqrt() } else { 0.0 },
            twice_naive: 2.0 * largest,
            factor: 1.0,
        }
    }

    /// Bounds of `out` that are `factor` times as wide: for arithmetic that carries fewer bits.
    pub fn widened(self, factor: f64) -> Self {
        Tolerance { relative_rms: factor * self.relative_rms, factor: factor * self.factor, ..self }
    }

    /// How far an element of `out` may be from `expected`, in a row whose log-sum-exp is `lse`.
    pub fn element(&self, expected: f64, lse: f64) -> f64 {
        let magnitude = expected.abs().max(self.rms);
        let score = if lse.is_finite() { spacing(DType::F32, lse.abs()) } else { 0.0 };
        let bound = self.twice_naive + 4.0 * spacing(self.dtype, magnitude) + 4.0 * score * magnitude;
        // What is allowed on average is allowed once: with few elements the naive's error may be tiny by luck.
        self.factor * bound.max(relative_rms(self.dtype) * self.rms)
    }

    /// How far a log-sum-exp may be from `expected`.
    pub fn lse(&self, expected: f64) -> f64 {
        self.lse_absolute + if expected.is_finite() { self.lse_relative * expected.abs() } else { 0.0 }
    }
}

/// RMSE(out) / RMS(reference) that a dtype allows for normal inputs.
const fn relative_rms(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => 4e-3,
        DType::F16 => 6e-4,
        _ => 2e-6,
    }
}

/// The distance of neighbouring numbers of a type at a magnitude.
fn spacing(dtype: DType, magnitude: f64) -> f64 {
    let (mantissa_bits, least_exponent) = match dtype {
        DType::BF16 => (7, -126),
        DType::F16 => (10, -14),
        _ => (23, -126),
    };
    let exponent = if magnitude > 0.0 { magnitude.log2().floor() as i32 } else { least_exponent };
    f64::from(exponent.max(least_exponent) - mantissa_bits).exp2()
}

impl Expectation {
    /// Computes the reference and, from a naive computation in the problem's dtype, the tolerance.
    ///
    /// # Errors
    /// Those of [`reference::attention`].
    pub fn of(problem: &AttentionProblem<'_>) -> Result<Self> {
        let reference = reference::attention(problem)?;
        let naive = reference::naive_attention(problem)?;
        let tolerance = Tolerance::new(problem.shape().dtype, &reference, &naive);
        Ok(Expectation { reference, tolerance })
    }

    /// Compares a result in host memory, shaped as the `out` and `lse` of the problem it was computed from.
    ///
    /// # Panics
    /// When a tensor is not in host memory or has another shape than the problem's.
    pub fn compare(
        &self,
        problem: &AttentionProblem<'_>,
        out: &TensorRef<'_>,
        lse: Option<&TensorRef<'_>>,
    ) -> Deviation {
        let mut deviation = self.compare_out(problem, &elements(out));
        let Some(lse) = lse else { return deviation };
        let written = written_lse(problem);
        for ((&expected, found), _) in
            self.reference.lse.iter().zip(elements(lse)).zip(written).filter(|(_, written)| *written)
        {
            let error = error(expected, found);
            deviation.lse_error = deviation.lse_error.max(error);
            deviation.lse_fraction =
                deviation.lse_fraction.max(fraction(error, self.tolerance.lse(expected)));
        }
        deviation
    }

    fn compare_out(&self, problem: &AttentionProblem<'_>, found: &[f64]) -> Deviation {
        let shape = problem.shape();
        let mut deviation = Deviation::default();
        let (mut squared_error, mut squared_reference, mut worst) = (0.0, 0.0, -1.0);
        for token in (0..shape.total_q).filter(|&token| is_written(problem, token)) {
            for head in 0..shape.num_heads {
                let lse = self.reference.lse.get(lse_index(problem, token, head)).copied().unwrap_or(0.0);
                let begin = (token * shape.num_heads + head) * shape.value_dim;
                let row = begin..begin + shape.value_dim;
                let pairs = self.reference.out[row.clone()].iter().zip(&found[row]);
                for (d, (&expected, &found)) in pairs.enumerate() {
                    let error = error(expected, found);
                    squared_error += error * error;
                    squared_reference += if expected.is_finite() { expected * expected } else { 0.0 };
                    let bound =
                        self.tolerance.element(if expected.is_finite() { expected } else { 0.0 }, lse);
                    if fraction(error, bound) > worst {
                        worst = fraction(error, bound);
                        (deviation.max_error, deviation.max_error_bound) = (error, bound);
                        deviation.max_error_at = begin + d;
                    }
                }
            }
        }
        if squared_error > 0.0 {
            deviation.relative_rms = (squared_error / squared_reference).sqrt();
        }
        deviation
    }
}

impl Deviation {
    /// Whether all bounds hold.
    pub fn is_within(&self, tolerance: &Tolerance) -> bool {
        self.relative_rms <= tolerance.relative_rms
            && self.max_error <= self.max_error_bound
            && self.lse_fraction <= 1.0
    }
}

/// An error as a fraction of what is allowed; 0 for none.
fn fraction(error: f64, bound: f64) -> f64 {
    if error == 0.0 { 0.0 } else { error / bound }
}

/// 0 for equal values, two infinities of one sign or two NaN; infinite where only one of them is finite.
fn error(expected: f64, found: f64) -> f64 {
    if expected == found || (expected.is_nan() && found.is_nan()) {
        return 0.0;
    }
    let error = (expected - found).abs();
    if error.is_nan() { f64::INFINITY } else { error }
}

/// Row-major position of the log-sum-exp of a row.
fn lse_index(problem: &AttentionProblem<'_>, token: usize, head: usize) -> usize {
    let shape = problem.shape();
    if shape.ragged_q {
        head * shape.total_q + token
    } else {
        let (sequence, row) = (token / shape.seqlen_q, token % shape.seqlen_q);
        (sequence * shape.num_heads + head) * shape.seqlen_q + row
    }
}

/// For each element of `lse`, row-major, whether a launch writes it.
fn written_lse(problem: &AttentionProblem<'_>) -> Vec<bool> {
    let shape = problem.shape();
    let rows = if shape.ragged_q { shape.total_q } else { shape.seqlen_q };
    (0..shape.total_q * shape.num_heads)
        .map(|i| {
            let sequence = if shape.ragged_q { 0 } else { i / (rows * shape.num_heads) };
            is_written(problem, sequence * rows + i % rows)
        })
        .collect()
}

/// The elements of a host tensor in row-major order.
fn elements(tensor: &TensorRef<'_>) -> Vec<f64> {
    let mut values = vec![0.0; tensor.layout().num_elements()];
    let Some((&row, outer)) = tensor.shape().split_last() else { return values };
    if row == 0 {
        return values;
    }
    let reader = Elements::new(tensor);
    for (i, vector) in values.chunks_mut(row).enumerate() {
        let mut index = vec![0; outer.len()];
        let mut rest = i;
        for (axis, extent) in outer.iter().enumerate().rev() {
            index[axis] = rest % extent;
            rest /= extent;
        }
        reader.read_vector(&index, vector);
    }
    values
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::kv_cache::{KvCache, Query};
    use crate::options::AttentionOptions;
    use crate::tensor::TensorMut;

    /// A few signed values without a pattern.
    fn values(len: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        (0..len)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

    /// Runs `check` with a problem of 2 sequences, 3 rows of which the second has only 2, and its output's shape.
    fn with_problem<T: crate::Float>(check: impl Fn(&AttentionProblem<'_>)) {
        let convert = |values: Vec<f32>| values.into_iter().map(T::from_f32).collect::<Vec<T>>();
        let (q, k, v) =
            (convert(values(2 * 3 * 2 * 8, 1)), convert(values(2 * 5 * 8, 2)), convert(values(2 * 5 * 8, 3)));
        let lengths = [3i32, 2];
        let (mut out, mut lse) = (vec![T::from_f32(0.0); q.len()], vec![0.0f32; 12]);
        let problem = AttentionProblem::new(
            Query::Padded {
                q: TensorRef::from_slice(&q, &[2, 3, 2, 8]).unwrap(),
                lengths: Some(TensorRef::from_slice(&lengths, &[2]).unwrap()),
            },
            KvCache::dense(
                TensorRef::from_slice(&k, &[2, 5, 1, 8]).unwrap(),
                TensorRef::from_slice(&v, &[2, 5, 1, 8]).unwrap(),
            ),
            TensorMut::from_slice(&mut out, &[2, 3, 2, 8]).unwrap(),
            Some(TensorMut::from_slice(&mut lse, &[2, 2, 3]).unwrap()),
            &AttentionOptions::new().lse(true),
        )
        .unwrap();
        check(&problem);
    }

    fn rounded<T: crate::Float>(values: &[f64]) -> Vec<T> {
        values.iter().map(|&value| T::from_f64(value)).collect()
    }

    #[test]
    fn the_rounded_reference_is_within_and_a_wrong_element_is_not() {
        with_problem::<bf16>(|problem| {
            let expectation = Expectation::of(problem).unwrap();
            let mut out = rounded::<bf16>(&expectation.reference.out);
            let lse = rounded::<f32>(&expectation.reference.lse);
            let lse = TensorRef::from_slice(&lse, &[2, 2, 3]).unwrap();
            let view = |out: &[bf16]| {
                expectation.compare(problem, &TensorRef::from_slice(out, &[2, 3, 2, 8]).unwrap(), Some(&lse))
            };
            assert!(view(&out).is_within(&expectation.tolerance), "{:?}", view(&out));
            out[17] = bf16::from_f32(out[17].to_f32() + 0.5);
            let deviation = view(&out);
            assert!(!deviation.is_within(&expectation.tolerance));
            assert_eq!(deviation.max_error_at, 17);
        });
    }

    #[test]
    fn rows_past_a_length_are_not_compared() {
        with_problem::<f32>(|problem| {
            let expectation = Expectation::of(problem).unwrap();
            let mut out = rounded::<f32>(&expectation.reference.out);
            out[80..96].fill(1e9);
            let compare = |out: &[f32]| {
                expectation.compare(problem, &TensorRef::from_slice(out, &[2, 3, 2, 8]).unwrap(), None)
            };
            assert!(compare(&out).is_within(&expectation.tolerance));
            out[79] = f32::NAN;
            assert_eq!(compare(&out).max_error, f64::INFINITY);
        });
    }

    #[test]
    fn a_log_sum_exp_has_its_own_bound() {
        with_problem::<f32>(|problem| {
            let expectation = Expectation::of(problem).unwrap();
            let out = rounded::<f32>(&expectation.reference.out);
            let out = TensorRef::from_slice(&out, &[2, 3, 2, 8]).unwrap();
            let mut lse = rounded::<f32>(&expectation.reference.lse);
            let within = |lse: &[f32]| {
                let lse = TensorRef::from_slice(lse, &[2, 2, 3]).unwrap();
                expectation.compare(problem, &out, Some(&lse)).is_within(&expectation.tolerance)
            };
            lse[8] = 1e9; // row 2 of sequence 1
            assert!(within(&lse));
            lse[7] += 3e-4;
            assert!(!within(&lse));
        });
    }

    #[test]
    fn lower_precision_has_wider_bounds() {
        let tolerance = |wider: &std::sync::Mutex<Vec<Tolerance>>, problem: &AttentionProblem<'_>| {
            wider.lock().unwrap().push(Expectation::of(problem).unwrap().tolerance);
        };
        let found = std::sync::Mutex::new(Vec::new());
        with_problem::<f32>(|problem| tolerance(&found, problem));
        with_problem::<half::f16>(|problem| tolerance(&found, problem));
        with_problem::<bf16>(|problem| tolerance(&found, problem));
        let found = found.into_inner().unwrap();
        let bounds: Vec<f64> = found.iter().map(|tolerance| tolerance.element(0.1, 1.0)).collect();
        assert!(bounds.is_sorted() && bounds[0] > 0.0 && bounds[2] < 0.05, "{bounds:?}");
        assert!(found[0].relative_rms < 1e-5);
    }

    #[test]
    fn a_row_of_large_scores_may_err_more() {
        with_problem::<f32>(|problem| {
            let tolerance = Expectation::of(problem).unwrap().tolerance;
            assert!(tolerance.element(1.0, 1000.0) > tolerance.element(1.0, 1.0) + 2e-4);
            assert_eq!(tolerance.widened(10.0).element(1.0, 1.0), 10.0 * tolerance.element(1.0, 1.0));
            assert_eq!(tolerance.widened(10.0).lse(1.0), tolerance.lse(1.0));
        });
    }

    #[test]
    fn the_spacing_is_that_of_the_type() {
        assert_eq!(spacing(DType::F32, 1.0), f64::from(f32::EPSILON));
        assert_eq!(spacing(DType::F16, 1.5), half::f16::EPSILON.to_f64());
        assert_eq!(spacing(DType::BF16, 3.9), 2.0 * bf16::EPSILON.to_f64());
        assert_eq!(spacing(DType::F16, 0.0), 2f64.powi(-24));
    }
}
