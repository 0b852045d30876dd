//! What counts as the right answer.
//!
//! Bounds are computed, not chosen to fit: numbers are judged by core's [`Tolerance`], made from the float64 reference
//! and a low-precision [`naive`] computation of the same case; beside numbers:
//!
//! | quantity | what is right |
//! |---|---|
//! | a row without a visible key | out exactly 0; lse exactly -inf, or the sink |
//! | all other memory | unchanged, bit for bit |
//! | a repetition | equal, bit for bit |

use omniflash_core::reference::ReferenceOutput;
use omniflash_core::{BackendInfo, DType, Error, Result, Tolerance};

use crate::case::{Case, Outcome, RowIndex};
use crate::memory::{Poison, View, float_at};
use crate::naive;

/// Something that a backend got wrong in a case.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[allow(missing_docs, reason = "the message of each variant says what its fields are")]
pub enum Violation {
    #[error(
        "{tensor}{index:?} is {got:e}, expected {expected:e} within {bound:e}; {count} elements are out of bounds"
    )]
    Element { tensor: &'static str, index: Vec<usize>, got: f64, expected: f64, bound: f64, count: usize },
    #[error("the RMS error of out is {found:e} of its RMS, at most {bound:e} allowed")]
    Rms { found: f64, bound: f64 },
    #[error("{tensor}{index:?} is not written; {count} elements are not")]
    NotWritten { tensor: &'static str, index: Vec<usize>, count: usize },
    #[error("byte {byte} of memory {memory} is no element to write, but was changed; {count} bytes were")]
    WrittenOutside { memory: usize, byte: usize, count: usize },
    #[error("out{index:?} is {got:e}, expected exactly 0: its row sees no key")]
    HiddenRow { index: Vec<usize>, got: f64 },
    #[error("byte {byte} of memory {memory} differs between two runs of the same request")]
    NotRepeatable { memory: usize, byte: usize },
    #[error(
        "{tensor} of sequence 0 differs in row {row} from {other}, which must come out the same bit for bit"
    )]
    NotTwin { tensor: &'static str, row: usize, other: String },
    #[error("failed: {0}")]
    Failed(Error),
    #[error("answers Unsupported, which no expectation lists: {0}")]
    Unlisted(Error),
    #[error("passes, though it is expected not to: {reason}")]
    UnexpectedPass { reason: &'static str },
    #[error("the yardstick is bent: the naive's RMS error is {found:e}, more than {limit:e}")]
    Yardstick { found: f64, limit: f64 },
}

/// How exact a backend's arithmetic is beside float32.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Precision {
    /// Factor of the float32 bounds of `out`.
    pub f32_slack: f64,
}

impl Precision {
    /// What a backend computes f32 with: full float32, or on tensor cores three TF32 products, which carry about
    /// 21 bits and so err up to ten times as far.
    pub fn of(info: &BackendInfo) -> Self {
        let tensor_cores = info.name.starts_with("cuda");
        Precision { f32_slack: if tensor_cores { 10.0 } else { 1.0 } }
    }
}

/// The right answer of a case, and how near an honest computation comes to it.
#[derive(Clone, Debug)]
pub struct Oracle {
    reference: ReferenceOutput,
    tolerance: Tolerance,
}

impl Oracle {
    /// Computes the reference and the yardstick.
    ///
    /// # Errors
    /// Those of validation and of the reference: a mistake in the case.
    pub fn new(case: &Case) -> Result<Self> {
        Oracle::with_reference(case, case.reference()?)
    }

    /// Takes the reference from elsewhere and computes the yardstick.
    ///
    /// # Errors
    /// Those of validation: a mistake in the case.
    pub fn with_reference(case: &Case, reference: ReferenceOutput) -> Result<Self> {
        let naive = case.with_host_problem(naive::attention)?;
        let tolerance = Tolerance::new(case.dtype(), &reference, &naive);
        Ok(Oracle { reference, tolerance })
    }

    /// The float64 answer.
    pub fn reference(&self) -> &ReferenceOutput {
        &self.reference
    }

    /// All that is wrong with an outcome.
    pub fn judge(&self, case: &Case, outcome: &Outcome, precision: Precision) -> Vec<Violation> {
        let mut violations = Vec::new();
        let slack = if case.dtype() == DType::F32 { precision.f32_slack } else { 1.0 };
        self.judge_out(case, outcome, &self.tolerance.widened(slack), &mut violations);
        if let Some(lse) = &case.lse {
            self.judge_lse(case, lse, outcome, &mut violations);
        }
        judge_other_memory(case, outcome, &mut violations);
        violations
    }

    /// Complains when the naive computation is far from the reference: one of the two is wrong then, and no bound
    /// made from them means anything.
    pub fn check_yardstick(&self, case: &Case, limit_factor: f64) -> Option<Violation> {
        let exact = Tolerance::new(case.dtype(), &self.reference, &self.reference);
        let (found, limit) = (self.tolerance.relative_rms / 2.0, limit_factor * exact.relative_rms);
        (found > limit).then_some(Violation::Yardstick { found, limit })
    }

    fn judge_out(
        &self,
        case: &Case,
        outcome: &Outcome,
        tolerance: &Tolerance,
        violations: &mut Vec<Violation>,
    ) {
        let bytes = &outcome.memories[case.out.memory];
        let poison = Poison::Unwritten.pattern(case.dtype());
        let (heads, value_dim) = (case.num_heads(), case.value_dim());
        let mut worst = Worst::default();
        let (mut error, mut square) = (0.0f64, 0.0f64);
        let mut unwritten: Option<(Vec<usize>, usize)> = None;
        let mut hidden: Option<Violation> = None;
        for (_, _, row) in case.rows() {
            for head in 0..heads {
                let at = (self.flat_row(case, row) * heads + head) * value_dim;
                let lse = self.reference.lse[self.flat_lse(case, row, head)];
                let expected_row = &self.reference.out[at..at + value_dim];
                let sees_nothing = expected_row.iter().all(|&expected| expected == 0.0);
                for (d, &expected) in expected_row.iter().enumerate() {
                    let index = row.out(head, d);
                    let byte = case.out.byte(&index);
                    if bytes[byte..byte + poison.len()] == poison[..] {
                        unwritten.get_or_insert((index, 0)).1 += 1;
                        continue;
                    }
                    let got = f64::from(float_at(bytes, &case.out, &index));
                    if sees_nothing {
                        if got != 0.0 && hidden.is_none() {
                            hidden = Some(Violation::HiddenRow { index, got });
                        }
                        continue;
                    }
                    if !expected.is_finite() {
                        // A value that is infinite or NaN and visible makes its rows so.
                        if got.is_finite() {
                            worst.note(index, got, expected, 0.0, f64::INFINITY);
                        }
                        continue;
                    }
                    let distance = (got - expected).abs();
                    worst.note(index, got, expected, tolerance.element(expected, lse), distance);
                    error += if distance.is_finite() { distance.powi(2) } else { 0.0 };
                    square += expected.powi(2);
                }
            }
        }
        violations.extend(hidden);
        violations.extend(unwritten.map(|(index, count)| Violation::NotWritten {
            tensor: "out",
            index,
            count,
        }));
        violations.extend(worst.violation("out"));
        let found = if square > 0.0 { (error / square).sqrt() } else { 0.0 };
        if found > tolerance.relative_rms {
            violations.push(Violation::Rms { found, bound: tolerance.relative_rms });
        }
    }

    fn judge_lse(&self, case: &Case, lse: &View, outcome: &Outcome, violations: &mut Vec<Violation>) {
        let bytes = &outcome.memories[lse.memory];
        let poison = Poison::Unwritten.pattern(DType::F32);
        let mut worst = Worst::default();
        let mut unwritten: Option<(Vec<usize>, usize)> = None;
        for (_, _, row) in case.rows() {
            for head in 0..case.num_heads() {
                let index = row.lse(head);
                let byte = lse.byte(&index);
                if bytes[byte..byte + poison.len()] == poison[..] {
                    unwritten.get_or_insert((index, 0)).1 += 1;
                    continue;
                }
                let expected = self.reference.lse[self.flat_lse(case, row, head)];
                let got = f64::from(float_at(bytes, lse, &index));
                if expected.is_nan() {
                    continue;
                }
                let bound = self.tolerance.lse(expected);
                let distance = if got == expected { 0.0 } else { (got - expected).abs() };
                worst.note(index, got, expected, bound, distance);
            }
        }
        violations.extend(unwritten.map(|(index, count)| Violation::NotWritten {
            tensor: "lse",
            index,
            count,
        }));
        violations.extend(worst.violation("lse"));
    }

    fn flat_row(&self, case: &Case, row: RowIndex) -> usize {
        match row {
            RowIndex::Padded { batch, row } => batch * case.out.layout.shape()[1] + row,
            RowIndex::Ragged { token } => token,
        }
    }

    /// Position in the reference's log-sum-exp.
    fn flat_lse(&self, case: &Case, row: RowIndex, head: usize) -> usize {
        match row {
            RowIndex::Padded { batch, row } => {
                (batch * case.num_heads() + head) * case.out.layout.shape()[1] + row
            }
            RowIndex::Ragged { token } => head * case.out.layout.shape()[0] + token,
        }
    }
}

/// Everything but the elements to write must be as it was before.
fn judge_other_memory(case: &Case, outcome: &Outcome, violations: &mut Vec<Violation>) {
    for memory in 0..case.memories.len() {
        let (before, after) = (case.memories.bytes(memory), &outcome.memories[memory]);
        if before == &after[..] {
            continue;
        }
        let written = written_bytes(case, memory, before.len());
        let mut changed =
            (0..before.len()).filter(|&byte| !written[byte] && before[byte] != after[byte]).peekable();
        if let Some(&byte) = changed.peek() {
            violations.push(Violation::WrittenOutside { memory, byte, count: changed.count() });
        }
    }
}

/// Which bytes of a memory are elements of rows to write.
fn written_bytes(case: &Case, memory: usize, len: usize) -> Vec<bool> {
    let mut written = vec![false; len];
    for (_, _, row) in case.rows() {
        for head in 0..case.num_heads() {
            if case.out.memory == memory {
                for d in 0..case.value_dim() {
                    let byte = case.out.byte(&row.out(head, d));
                    written[byte..byte + case.out.dtype.size()].fill(true);
                }
            }
            if let Some(lse) = case.lse.as_ref().filter(|lse| lse.memory == memory) {
                let byte = lse.byte(&row.lse(head));
                written[byte..byte + 4].fill(true);
            }
        }
    }
    written
}

/// The first byte in which two outcomes differ.
pub fn difference(a: &Outcome, b: &Outcome) -> Option<Violation> {
    a.memories.iter().zip(&b.memories).enumerate().find_map(|(memory, (a, b))| {
        let byte = a.iter().zip(b).position(|(a, b)| a != b)?;
        Some(Violation::NotRepeatable { memory, byte })
    })
}

/// The bits of out and lse of sequence 0, row by row: what twins share.
pub fn first_sequence(case: &Case, outcome: &Outcome) -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let bits = |view: &View, indices: Vec<Vec<usize>>| {
        let bytes = &outcome.memories[view.memory];
        indices
            .iter()
            .flat_map(|index| {
                let byte = view.byte(index);
                bytes[byte..byte + view.dtype.size()].to_vec()
            })
            .collect::<Vec<u8>>()
    };
    let rows: Vec<RowIndex> = case.rows().take_while(|(b, _, _)| *b == 0).map(|(_, _, row)| row).collect();
    let heads = 0..case.num_heads();
    let out = rows
        .iter()
        .map(|row| {
            let elements = heads.clone().flat_map(|head| (0..case.value_dim()).map(move |d| (head, d)));
            bits(&case.out, elements.map(|(head, d)| row.out(head, d)).collect())
        })
        .collect();
    let mut tensors = vec![("out", out)];
    if let Some(lse) = &case.lse {
        let lse = rows.iter().map(|row| bits(lse, heads.clone().map(|head| row.lse(head)).collect()));
        tensors.push(("lse", lse.collect()));
    }
    tensors
}

/// The element that is furthest out of its bound.
#[derive(Default)]
struct Worst {
    element: Option<(Vec<usize>, f64, f64, f64)>,
    excess: f64,
    count: usize,
}

impl Worst {
    fn note(&mut self, index: Vec<usize>, got: f64, expected: f64, bound: f64, distance: f64) {
        let distance = if distance.is_nan() { f64::INFINITY } else { distance };
        if distance <= bound {
            return;
        }
        self.count += 1;
        let excess = distance - bound;
        if self.element.is_none() || excess > self.excess {
            self.excess = excess;
            self.element = Some((index, got, expected, bound));
        }
    }

    fn violation(self, tensor: &'static str) -> Option<Violation> {
        let count = self.count;
        self.element.map(|(index, got, expected, bound)| Violation::Element {
            tensor,
            index,
            got,
            expected,
            bound,
            count,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nan_is_never_within_bounds() {
        let mut worst = Worst::default();
        worst.note(vec![0], f64::NAN, 1.0, 10.0, f64::NAN);
        assert!(matches!(worst.violation("out"), Some(Violation::Element { count: 1, .. })));
    }
}
