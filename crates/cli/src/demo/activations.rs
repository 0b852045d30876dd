//! Attention on activations of a real model, compared with the reference and with the model itself.

use anyhow::Context;
use console::style;
use omniflash::reference::ReferenceOutput;
use omniflash::{Backend, DType, Expectation, KvCache, Tensor};
use serde_json::{Value, json};

use super::accuracy::{Accuracy, Step};
use crate::attend::compute;
use crate::case_file::{self, Case, Options};
use crate::execution::execute;
use crate::terminal;
use crate::verify::{on_host, with_host_problem};

const CASE: &[u8] = include_bytes!("../../fixtures/minilm/minilm_layer.safetensors");
const OPTIONS: &[u8] = include_bytes!("../../fixtures/minilm/options.json");
const EXPECTED: &[u8] = include_bytes!("../../fixtures/minilm/expected.safetensors");
const TOKENS: &str = include_str!("../../fixtures/minilm/tokens.json");

/// A head that finds what a word refers to, and a word of each text that refers to another.
const HEAD: usize = 1;
const WORDS: [&str; 4] = ["them", "it", "send", "again"];

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
            // The model is as far from the truth as we may be: twice the distance may lie between the two.
            let model = Expectation {
                reference: ReferenceOutput { out: model, lse: Vec::new() },
                tolerance: expectation.tolerance.widened(2.0),
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
        Ok(Activations { steps, texts: attention_of_words(backend, &case)? })
    }
}

/// The model's own attention output.
fn model_output() -> anyhow::Result<Vec<f64>> {
    let tensors = case_file::parse(EXPECTED).context("the embedded result")?;
    let out = tensors.iter().find(|tensor| tensor.name == "out").context("the embedded result has no out")?;
    let (elements, _) = out.bytes.as_chunks::<4>();
    Ok(elements.iter().map(|&bytes| f64::from(f32::from_le_bytes(bytes))).collect())
}

/// What one head lets one word of a text attend to.
pub(super) struct TextAttention {
    tokens: Vec<String>,
    /// The word's place among the tokens.
    word: usize,
    /// One for each token, 1 together.
    weights: Vec<f32>,
}

/// The probabilities of one row of one head: attention itself gives them, when the value of each key is the unit vector
/// of its position.
fn attention_of_words(backend: &dyn Backend, case: &Case) -> anyhow::Result<Vec<TextAttention>> {
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
    let options = arguments.attention_options();
    let execution = execute((backend, &stream), arguments.query(), kv, &options, 1)?;
    anyhow::ensure!(execution.shape.dtype == DType::F32, "the embedded case is not f32");
    let (probabilities, _) = execution.out.as_chunks::<4>();
    let rows = execution.shape.out[1];
    let mut texts = Vec::new();
    for (b, (tokens, word)) in tokens.into_iter().zip(WORDS).enumerate() {
        let word = tokens.iter().position(|token| token == word).context("a word that is not in its text")?;
        let row = ((b * rows + word) * heads + HEAD) * value_dim;
        let weights =
            probabilities[row..][..tokens.len()].iter().map(|&weight| f32::from_le_bytes(weight)).collect();
        texts.push(TextAttention { tokens, word, weights });
    }
    Ok(texts)
}

// From quiet to loud.
const COLORS: [u8; 4] = [246, 38, 214, 220];
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

impl TextAttention {
    /// The text in lines, each word in the colour of its weight and the word itself underlined.
    pub(super) fn text(&self, width: usize) -> Vec<String> {
        let mut text = String::new();
        for (i, token) in self.tokens.iter().enumerate().filter(|(_, token)| !token.starts_with('[')) {
            let (joined, token) = match token.strip_prefix("##") {
                Some(rest) => (true, rest),
                None => (matches!(token.as_str(), "." | "," | ";"), token.as_str()),
            };
            if !joined && !text.is_empty() {
                text.push(' ');
            }
            let styled = style(token).color256(self.of_level(i, &COLORS));
            let styled = if i == self.word { styled.underlined().bold() } else { styled };
            text.push_str(&styled.to_string());
        }
        terminal::wrapped(&text, width)
    }

    /// A bar for each token.
    pub(super) fn bars(&self) -> String {
        (0..self.tokens.len())
            .map(|i| style(self.of_level(i, &BARS)).color256(self.of_level(i, &COLORS)).to_string())
            .collect()
    }

    /// The word and the tokens with the largest weights.
    pub(super) fn favourites(&self) -> String {
        let mut order: Vec<usize> = (0..self.weights.len()).collect();
        order.sort_by(|&a, &b| self.weights[b].total_cmp(&self.weights[a]));
        let shares: Vec<String> = order
            .iter()
            .take(3)
            .map(|&i| format!("{} {:.0} %", self.tokens[i], 100.0 * self.weights[i]))
            .collect();
        format!("\"{}\" looks at {}", self.tokens[self.word], shares.join(", "))
    }

    pub(super) fn to_json(&self) -> Value {
        json!({"tokens": self.tokens, "word": self.word, "head": HEAD, "weights": self.weights})
    }

    /// The level of a token's weight on a scale.
    fn of_level<T: Copy>(&self, token: usize, scale: &[T]) -> T {
        let largest = self.weights.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
        let level = self.weights[token] / largest * scale.len() as f32;
        scale[(level as usize).min(scale.len() - 1)]
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
        assert!(activations.texts[0].favourites().starts_with("\"them\" looks at sacks 79 %, flour 12 %"));
        assert!(activations.texts[1].text(200)[0].contains("fainter stars."));
    }
}
