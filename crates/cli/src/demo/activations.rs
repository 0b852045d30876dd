//! Attention on activations of a real model, compared with the reference and with the model itself.

use anyhow::Context;
use console::style;
use omniflash::reference::ReferenceOutput;
use omniflash::{Backend, DType, Expectation, KvCache, Tensor, Tolerance};
use serde_json::{Value, json};

use super::accuracy::{Accuracy, Step};
use crate::attend::compute;
use crate::case_file::{self, Case, Options};
use crate::execution::execute;
use crate::verify::{on_host, with_host_problem};

const CASE: &[u8] = include_bytes!("../../fixtures/minilm/minilm_layer.safetensors");
const OPTIONS: &[u8] = include_bytes!("../../fixtures/minilm/options.json");
const EXPECTED: &[u8] = include_bytes!("../../fixtures/minilm/expected.safetensors");
const TOKENS: &str = include_str!("../../fixtures/minilm/tokens.json");

/// Calls of which the fastest counts.
const REPEATS: usize = 10;

/// What the layer attends to, and how exactly it was computed.
pub(super) struct Activations {
    pub(super) steps: Vec<Step>,
    pub(super) texts: Vec<TextAttention>,
}

impl Activations {
    pub(super) fn attend(backend: &dyn Backend) -> anyhow::Result<Self> {
        let case = Case::from_bytes(CASE, Options::from_json(OPTIONS)?).context("the embedded case")?;
        let execution = compute(backend, &case, REPEATS)?;
        let shape = &execution.shape;
        let found = on_host(&execution.out, shape.dtype, &shape.out)?;
        let model = model_output()?;
        let (reference, model) = with_host_problem(&case, |problem| {
            let expectation = Expectation::of(problem)?;
            let Tolerance { relative_rms, max_error, .. } = expectation.tolerance;
            // The model is as far from the truth as we may be: twice the distance may lie between the two.
            let model = Expectation {
                reference: ReferenceOutput { out: model, lse: Vec::new() },
                tolerance: Tolerance {
                    relative_rms: 2.0 * relative_rms,
                    max_error: 2.0 * max_error,
                    ..expectation.tolerance
                },
            };
            let accuracy = |expectation: &Expectation| Accuracy {
                deviation: expectation.compare(problem, &found.view(), None),
                tolerance: expectation.tolerance,
            };
            Ok((accuracy(&expectation), accuracy(&model)))
        })?;
        let steps = vec![
            Step {
                name: "against the float64 reference".into(),
                seconds: Some(execution.elapsed.as_secs_f64()),
                work: None,
                accuracy: reference,
                plan: Some(execution.plan.to_string()),
            },
            Step {
                name: "against the model's own output".into(),
                seconds: None,
                work: None,
                accuracy: model,
                plan: None,
            },
        ];
        Ok(Activations { steps, texts: attention_of_cls(backend, &case)? })
    }
}

/// The model's own attention output.
fn model_output() -> anyhow::Result<Vec<f64>> {
    let tensors = case_file::parse(EXPECTED).context("the embedded result")?;
    let out = tensors.iter().find(|tensor| tensor.name == "out").context("the embedded result has no out")?;
    let (elements, _) = out.bytes.as_chunks::<4>();
    Ok(elements.iter().map(|&bytes| f64::from(f32::from_le_bytes(bytes))).collect())
}

/// Whom the first token of a text attends to.
pub(super) struct TextAttention {
    tokens: Vec<String>,
    /// One for each token, 1 together.
    weights: Vec<f32>,
}

/// The probabilities of the first row, averaged over heads: attention itself gives them, when the value of each key is
/// the unit vector of its position.
fn attention_of_cls(backend: &dyn Backend, case: &Case) -> anyhow::Result<Vec<TextAttention>> {
    let tokens: Vec<Vec<String>> = serde_json::from_str(TOKENS).context("the embedded tokens")?;
    let stream = backend.stream()?;
    let arguments = case.upload(backend, &stream)?;
    let kv = arguments.kv();
    let &[batch, keys, heads, _] = kv.k().shape() else {
        anyhow::bail!("the embedded case has keys of shape {:?}, expected four axes", kv.k().shape());
    };
    // A multiple of 8, as every backend takes it.
    let value_dim = keys.next_multiple_of(8);
    let mut units = vec![0.0f32; batch * keys * heads * value_dim];
    for (row, unit) in units.chunks_exact_mut(value_dim).enumerate() {
        unit[row / heads % keys] = 1.0;
    }
    let units = Tensor::from_slice(backend, &units, &[batch, keys, heads, value_dim], &stream)?;
    let KvCache::Dense { k, lengths, .. } = kv else {
        anyhow::bail!("the embedded case has a cache, expected dense keys");
    };
    let kv = KvCache::Dense { k, v: units.view(), lengths };
    let execution = execute(backend, arguments.query(), kv, &arguments.attention_options(), 1)?;
    anyhow::ensure!(execution.shape.dtype == DType::F32, "the embedded case is not f32");
    let (probabilities, _) = execution.out.as_chunks::<4>();
    let rows = execution.shape.out[1];
    Ok(tokens
        .into_iter()
        .enumerate()
        .map(|(b, tokens)| {
            let first = &probabilities[b * rows * heads * value_dim..][..heads * value_dim];
            let weights = (0..tokens.len().min(keys))
                .map(|j| {
                    let sum: f32 =
                        (0..heads).map(|head| f32::from_le_bytes(first[head * value_dim + j])).sum();
                    sum / heads as f32
                })
                .collect();
            TextAttention { tokens, weights }
        })
        .collect())
}

impl TextAttention {
    /// The first words, and a bar for each token.
    pub(super) fn heat_line(&self) -> String {
        const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
        // From quiet to loud.
        const COLORS: [u8; 4] = [24, 31, 38, 220];
        const NAME_WIDTH: usize = 30;
        let largest = self.weights.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
        let bars: String = self
            .weights
            .iter()
            .map(|weight| {
                let level = weight / largest;
                let bar = BARS[((level * BARS.len() as f32) as usize).min(BARS.len() - 1)];
                let color = COLORS[((level * COLORS.len() as f32) as usize).min(COLORS.len() - 1)];
                style(bar).color256(color).to_string()
            })
            .collect();
        format!("{:<NAME_WIDTH$} {bars}", console::truncate_str(&self.words(), NAME_WIDTH, "…"))
    }

    /// The tokens with the largest weights.
    pub(super) fn favourites(&self) -> String {
        let mut order: Vec<usize> = (0..self.weights.len()).collect();
        order.sort_by(|&a, &b| self.weights[b].total_cmp(&self.weights[a]));
        let shares: Vec<String> = order
            .iter()
            .take(4)
            .map(|&i| format!("{} {:.0} %", self.tokens[i], 100.0 * self.weights[i]))
            .collect();
        format!("  {}", shares.join(", "))
    }

    pub(super) fn to_json(&self) -> Value {
        json!({"tokens": self.tokens, "weights": self.weights})
    }

    /// The tokens as text, the model's own marks left out.
    fn words(&self) -> String {
        let mut text = String::new();
        for token in self.tokens.iter().filter(|token| !token.starts_with('[')) {
            match token.strip_prefix("##") {
                Some(rest) => text.push_str(rest),
                None if text.is_empty() || matches!(token.as_str(), "." | "," | ";") => text.push_str(token),
                None => {
                    text.push(' ');
                    text.push_str(token);
                }
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use omniflash::ReferenceBackend;

    use super::*;

    #[test]
    fn the_reference_agrees_with_the_model() {
        let activations = Activations::attend(&ReferenceBackend::new()).unwrap();
        assert!(activations.steps.iter().all(|step| step.accuracy.passed()));
        for text in &activations.texts {
            assert_eq!(text.tokens.len(), text.weights.len());
            assert!((text.weights.iter().sum::<f32>() - 1.0).abs() < 1e-5, "{:?}", text.weights);
        }
        assert_eq!(activations.texts[1].words().split(' ').nth(16), Some("fainter"));
    }
}
