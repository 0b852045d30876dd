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
/// let deviation = expectation.compare(&problem, &problem.out().as_ref(), None);
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

/// Bounds on a [`Deviation`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// On the root mean square error of `out`, relative to the root mean square of the reference: 4e-3 for bf16,
    /// 6e-4 for f16, 2e-6 for f32; where that is more, as it is for large scores, one and a half times what a
    /// [naive](reference::naive_attention) computation errs.
    pub relative_rms: f64,
    /// On the largest error of an element of `out`: twice that of the naive computation, and four units in the last
    /// place of the largest element.
    pub max_error: f64,
    /// On the error of the log-sum-exp, where it is 0.
    pub lse_absolute: f64,
    /// Added to [`lse_absolute`](Tolerance::lse_absolute) for each unit of the log-sum-exp's magnitude.
    pub lse_relative: f64,
}

/// How far a result is from the reference, over the rows that are written.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Deviation {
    /// Root mean square error of `out`, relative to the root mean square of the reference.
    pub relative_rms: f64,
    /// The largest error of an element of `out`; infinite when one of the two is not a number, or infinite.
    pub max_error: f64,
    /// The row-major index of that element.
    pub max_error_at: usize,
    /// The largest error of a log-sum-exp.
    pub lse_error: f64,
    /// The largest error of a log-sum-exp as a fraction of its own bound.
    pub lse_fraction: f64,
}

impl Expectation {
    /// Computes the reference and, from a naive computation in the problem's dtype, the tolerance.
    ///
    /// # Errors
    /// Those of [`reference::attention`].
    pub fn of(problem: &AttentionProblem<'_>) -> Result<Self> {
        let reference = reference::attention(problem)?;
        let naive = reference::naive_attention(problem)?;
        let errs = Errors::of(&reference.out, &naive.out, &written_elements(problem));
        let (relative_rms, epsilon) = match problem.shape().dtype {
            DType::BF16 => (4e-3, half::bf16::EPSILON.to_f64()),
            DType::F16 => (6e-4, half::f16::EPSILON.to_f64()),
            _ => (2e-6, f64::from(f32::EPSILON)),
        };
        let tolerance = Tolerance {
            relative_rms: f64::max(relative_rms, 1.5 * errs.relative_rms()),
            // What is allowed on average is allowed once: with few elements the naive's error may be tiny by luck.
            max_error: f64::max(
                2.0 * errs.max_error + 4.0 * epsilon * errs.largest,
                relative_rms * errs.reference_rms(),
            ),
            lse_absolute: 1e-4,
            lse_relative: 1e-5,
        };
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
        let errs = Errors::of(&self.reference.out, &elements(out), &written_elements(problem));
        let mut deviation = Deviation {
            relative_rms: errs.relative_rms(),
            max_error: errs.max_error,
            max_error_at: errs.max_error_at,
            ..Deviation::default()
        };
        let Some(lse) = lse else { return deviation };
        let written = written_lse(problem);
        for ((&expected, found), _) in
            self.reference.lse.iter().zip(elements(lse)).zip(written).filter(|(_, written)| *written)
        {
            let error = error(expected, found);
            let bound = self.tolerance.lse_absolute + self.tolerance.lse_relative * expected.abs();
            deviation.lse_error = deviation.lse_error.max(error);
            deviation.lse_fraction =
                deviation.lse_fraction.max(if error == 0.0 { 0.0 } else { error / bound });
        }
        deviation
    }
}

impl Deviation {
    /// Whether all bounds hold.
    pub fn is_within(&self, tolerance: &Tolerance) -> bool {
        self.relative_rms <= tolerance.relative_rms
            && self.max_error <= tolerance.max_error
            && self.lse_fraction <= 1.0
    }
}

/// Sums over the elements of written rows.
#[derive(Default)]
struct Errors {
    squared_error: f64,
    squared_reference: f64,
    largest: f64,
    max_error: f64,
    max_error_at: usize,
    /// Finite elements of the reference.
    count: usize,
}

impl Errors {
    fn of(reference: &[f64], found: &[f64], written: &[bool]) -> Self {
        assert!(reference.len() == found.len() && reference.len() == written.len());
        let mut errors = Errors::default();
        for (i, (&expected, &found)) in reference.iter().zip(found).enumerate() {
            if !written[i] {
                continue;
            }
            let error = error(expected, found);
            errors.squared_error += error * error;
            if error > errors.max_error {
                (errors.max_error, errors.max_error_at) = (error, i);
            }
            if expected.is_finite() {
                errors.squared_reference += expected * expected;
                errors.count += 1;
                errors.largest = errors.largest.max(expected.abs());
            }
        }
        errors
    }

    fn reference_rms(&self) -> f64 {
        (self.squared_reference / self.count.max(1) as f64).sqrt()
    }

    fn relative_rms(&self) -> f64 {
        if self.squared_error == 0.0 { 0.0 } else { (self.squared_error / self.squared_reference).sqrt() }
    }
}

/// 0 for equal values, two infinities of one sign or two NaN; infinite where only one of them is finite.
fn error(expected: f64, found: f64) -> f64 {
    if expected == found || (expected.is_nan() && found.is_nan()) {
        return 0.0;
    }
    let error = (expected - found).abs();
    if error.is_nan() { f64::INFINITY } else { error }
}

/// For each element of `out`, row-major, whether a launch writes it.
fn written_elements(problem: &AttentionProblem<'_>) -> Vec<bool> {
    let shape = problem.shape();
    let row = shape.num_heads * shape.value_dim;
    (0..shape.total_q).flat_map(|token| std::iter::repeat_n(is_written(problem, token), row)).collect()
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
        assert!(found.windows(2).all(|pair| pair[0].max_error < pair[1].max_error), "{found:?}");
        assert!(found[0].relative_rms < 1e-5 && found[0].max_error > 0.0 && found[2].max_error < 0.05);
    }
}
