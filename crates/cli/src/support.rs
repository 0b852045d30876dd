//! What each backend can do, asked of the backends themselves: problems of every feature, and `supports`.
//!
//! Static: a GPU backend's planner answers without a device and without compiling, so the table is the same everywhere.

use std::fmt::Write;
use std::sync::Arc;

use anyhow::Context;
use omniflash::{
    Algorithm, AttentionConfig, AttentionOptions, AttentionProblem, Backend, DType, DeviceSource, KvCache,
    Mask, MaskFunction, Query, ReferenceBackend, Registry, ScoreFunction, ScoreMod, Stream, Support, Tensor,
};
use omniflash_cuda::OfflinePlanner;

/// The architecture whose plans stand for the CUDA backend; all from sm_80 on support the same.
const CUDA_ARCH: &str = "sm_80";

/// Something to ask about a problem.
type Question = Box<dyn Fn(&AttentionProblem<'_>) -> Support>;

/// The backends of the table and how to ask each.
fn columns() -> anyhow::Result<Vec<(&'static str, Question)>> {
    let reference = ReferenceBackend::new();
    let cpu = Registry::discover().get("cpu").context("the table needs the cpu backend")?;
    let cuda = OfflinePlanner::new(CUDA_ARCH, Arc::new(omniflash_cuda::kernel_store()))?;
    Ok(vec![
        ("reference", Box::new(move |problem| reference.supports(problem))),
        ("cpu", Box::new(move |problem| cpu.supports(problem))),
        ("cuda", Box::new(move |problem| cuda.supports(problem))),
    ])
}

/// The table and, under it, why what is missing is missing.
pub(crate) fn markdown() -> anyhow::Result<String> {
    let columns = columns()?;
    let (mut text, mut reasons) = (String::new(), Vec::new());
    let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
    writeln!(text, "| | {} |\n|---|{}", names.join(" | "), "---|".repeat(names.len()))?;
    // What a backend says of the plainest problem is no property of a feature.
    let plain = columns.iter().map(|(_, supports)| PLAIN.ask(supports)).collect::<Result<Vec<_>, _>>()?;
    for feature in features() {
        write!(text, "| {} |", feature.name)?;
        for ((name, supports), plain) in columns.iter().zip(&plain) {
            let answer = feature.ask(supports).with_context(|| feature.name)?;
            let (cell, reason) = match answer {
                Support::Yes => ("yes", None),
                Support::Slow(_) if answer == *plain => ("yes", None),
                Support::Slow(reason) => ("yes, slower", Some(reason)),
                Support::No(error) => ("no", Some(error.to_string())),
            };
            write!(text, " {cell} |")?;
            reasons.extend(reason.map(|reason| format!("{name}, {}: {reason}", feature.name)));
        }
        writeln!(text)?;
    }
    writeln!(text)?;
    reasons.iter().try_for_each(|reason| writeln!(text, "- {reason}"))?;
    Ok(text)
}

/// One row of the table: a small problem that needs the feature.
struct Feature {
    name: &'static str,
    dtype: DType,
    head_dim: usize,
    value_dim: usize,
    num_kv_heads: usize,
    batch: BatchForm,
    options: for<'t> fn(&'t Extras) -> AttentionOptions<'t>,
}

#[derive(Clone, Copy)]
enum BatchForm {
    Dense,
    /// Rows 16 bytes longer than their elements.
    Strided,
    Padded,
    Ragged,
    Continuous,
    Paged(usize),
}

const BATCH: usize = 2;
const SEQLEN: usize = 96;
const HEADS: usize = 4;

const PLAIN: Feature = Feature {
    name: "",
    dtype: DType::BF16,
    head_dim: 64,
    value_dim: 64,
    num_kv_heads: HEADS,
    batch: BatchForm::Dense,
    options: |_| AttentionOptions::new(),
};

fn features() -> Vec<Feature> {
    let of = |name, options| Feature { name, options, ..PLAIN };
    let cache = |name, batch| Feature { name, batch, ..PLAIN };
    let sizes = |name, head_dim, value_dim| Feature { name, head_dim, value_dim, ..PLAIN };
    vec![
        Feature { name: "f32", dtype: DType::F32, ..PLAIN },
        Feature { name: "f16", dtype: DType::F16, ..PLAIN },
        Feature { name: "bf16", ..PLAIN },
        sizes("head_dim 8 to 256", 256, 256),
        sizes("head_dim above 256", 512, 512),
        sizes("head_dim that is no multiple of 8", 60, 60),
        sizes("value_dim that is not head_dim", 192, 128),
        Feature { name: "grouped heads (GQA, MQA)", num_kv_heads: 1, ..PLAIN },
        cache("any strides", BatchForm::Strided),
        of("causal", |_| AttentionOptions::new().mask(Mask::Causal)),
        of("sliding window", |_| AttentionOptions::new().mask(Mask::SlidingWindow { left: 15, right: 0 })),
        of("chunked, chunked causal", |_| AttentionOptions::new().mask(Mask::ChunkedCausal { size: 32 })),
        of("prefix-LM", |t| AttentionOptions::new().mask(Mask::PrefixLm { prefix_len: t.per_batch.view() })),
        of("documents", |t| AttentionOptions::new().mask(Mask::Document { ids: t.ids.view() })),
        of("mask tensor, bool", |t| AttentionOptions::new().mask(Mask::Dense(t.bools.view()))),
        of("mask tensor, additive", |t| AttentionOptions::new().mask(Mask::Dense(t.floats.view()))),
        of("and, or, not", |_| {
            AttentionOptions::new().mask(!(Mask::Causal.and(Mask::Chunked { size: 7 }).or(Mask::None)))
        }),
        of("mask: any closure", |_| AttentionOptions::new().mask(Mask::from_fn(|_, _, q, k| k <= q))),
        of("mask: any closure, with query_start", |t| {
            AttentionOptions::new().mask(Mask::from_fn(|_, _, q, k| k <= q)).query_start(t.per_batch.view())
        }),
        of("mask: a type with device source", |_| AttentionOptions::new().mask(Mask::custom(User))),
        of("softcap", |_| AttentionOptions::new().score_mod(ScoreMod::Softcap { cap: 30.0 })),
        of("ALiBi", |_| AttentionOptions::new().score_mod(ScoreMod::Alibi { slopes: None })),
        of("bias tensor", |t| AttentionOptions::new().score_mod(ScoreMod::Bias(t.floats.view()))),
        of("score modifications in any order", |t| {
            let first = ScoreMod::Bias(t.floats.view()).then(ScoreMod::Softcap { cap: 9.0 });
            AttentionOptions::new().score_mod(first.then(ScoreMod::Alibi { slopes: None }))
        }),
        of("score: any closure", |_| {
            AttentionOptions::new().score_mod(ScoreMod::from_fn(|score, _, _, _, _| 2.0 * score))
        }),
        of("score: a type with device source", |_| AttentionOptions::new().score_mod(ScoreMod::custom(User))),
        of("attention sinks", |t| AttentionOptions::new().sinks(t.sinks.view())),
        of("log-sum-exp", |_| AttentionOptions::new().lse(true)),
        cache("padded batches", BatchForm::Padded),
        cache("ragged batches", BatchForm::Ragged),
        cache("continuous KV cache", BatchForm::Continuous),
        cache("paged KV cache, pages of a power of two", BatchForm::Paged(16)),
        cache("paged KV cache, any page size", BatchForm::Paged(12)),
        of("split-KV, num_partitions", |_| AttentionOptions::new().num_partitions(3)),
        of("algorithm naive", |_| {
            AttentionOptions::new()
                .config(AttentionConfig { algorithm: Algorithm::Naive, ..AttentionConfig::default() })
        }),
    ]
}

/// A mask and a score modification of a user's.
struct User;

impl MaskFunction for User {
    fn visible(&self, _batch: usize, _head: usize, q: i64, k: i64) -> bool {
        k <= q
    }

    fn device_source(&self) -> Option<DeviceSource> {
        Some(DeviceSource::new("User", "struct User { int unused; };", &0i32))
    }
}

impl ScoreFunction for User {
    fn apply(&self, score: f32, _batch: usize, _head: usize, _q: i64, _k: i64) -> f32 {
        score
    }

    fn device_source(&self) -> Option<DeviceSource> {
        Some(DeviceSource::new("User", "struct User { int unused; };", &0i32))
    }
}

/// The tensors that masks and options read.
struct Extras {
    per_batch: Tensor,
    ids: Tensor,
    bools: Tensor,
    floats: Tensor,
    sinks: Tensor,
}

impl Feature {
    fn ask(&self, supports: &dyn Fn(&AttentionProblem<'_>) -> Support) -> omniflash::Result<Support> {
        let (backend, stream) = (ReferenceBackend::new(), Stream::host());
        let zeros = |dtype, shape: &[usize]| Tensor::zeros(&backend, dtype, shape, &stream);
        let integers = |values: &[i32]| Tensor::from_slice(&backend, values, &[values.len()], &stream);
        let pair = [BATCH, HEADS, SEQLEN, SEQLEN];
        let extras = Extras {
            per_batch: integers(&[0; BATCH])?,
            ids: zeros(DType::I32, &[BATCH, SEQLEN])?,
            bools: zeros(DType::Bool, &pair)?,
            floats: zeros(DType::F32, &pair)?,
            sinks: zeros(DType::F32, &[HEADS])?,
        };
        let (q_rows, kv_rows) = match self.batch {
            BatchForm::Ragged => (vec![BATCH * SEQLEN], vec![BATCH * SEQLEN]),
            BatchForm::Paged(page_size) => (vec![BATCH, SEQLEN], vec![BATCH * SEQLEN / page_size, page_size]),
            _ => (vec![BATCH, SEQLEN], vec![BATCH, SEQLEN]),
        };
        let shape = |rows: &[usize], heads, dim| [rows, &[heads, dim]].concat();
        let padding = if matches!(self.batch, BatchForm::Strided) { 8 } else { 0 };
        let q = zeros(self.dtype, &shape(&q_rows, HEADS, self.head_dim + padding))?;
        let k = zeros(self.dtype, &shape(&kv_rows, self.num_kv_heads, self.head_dim + padding))?;
        let v = zeros(self.dtype, &shape(&kv_rows, self.num_kv_heads, self.value_dim))?;
        let lengths = integers(&[SEQLEN as i32; BATCH])?;
        let offsets = integers(&[0, SEQLEN as i32, 2 * SEQLEN as i32])?;
        let lookup = integers(&[1, 0])?;
        let table = match self.batch {
            BatchForm::Paged(page_size) => zeros(DType::I32, &[BATCH, SEQLEN / page_size])?,
            _ => zeros(DType::I32, &[BATCH, 1])?,
        };
        let (query, kv) = match self.batch {
            BatchForm::Dense => (Query::padded(q.view()), KvCache::dense(k.view(), v.view())),
            BatchForm::Strided => {
                let [q, k] = [&q, &k].map(|tensor| tensor.view().slice(3, 0, self.head_dim));
                (Query::padded(q?), KvCache::dense(k?, v.view()))
            }
            BatchForm::Padded => (
                Query::Padded { q: q.view(), lengths: Some(lengths.view()) },
                KvCache::Dense { k: k.view(), v: v.view(), lengths: Some(lengths.view()) },
            ),
            BatchForm::Ragged => (
                Query::ragged(q.view(), offsets.view()),
                KvCache::Ragged { k: k.view(), v: v.view(), cu_seqlens: offsets.view(), max_seqlen: None },
            ),
            BatchForm::Continuous => (
                Query::padded(q.view()),
                KvCache::Continuous {
                    k: k.view(),
                    v: v.view(),
                    lookup_table: lookup.view(),
                    lengths: lengths.view(),
                    max_seqlen: None,
                },
            ),
            BatchForm::Paged(_) => (
                Query::padded(q.view()),
                KvCache::Paged {
                    k: k.view(),
                    v: v.view(),
                    page_table: table.view(),
                    lengths: lengths.view(),
                    max_seqlen: None,
                },
            ),
        };
        let options = (self.options)(&extras);
        let shape = AttentionProblem::output_shape(&query, &kv)?;
        let mut out = zeros(shape.dtype, &shape.out)?;
        let mut lse = if options.lse { Some(zeros(DType::F32, &shape.lse)?) } else { None };
        let problem =
            AttentionProblem::new(query, kv, out.view_mut(), lse.as_mut().map(Tensor::view_mut), &options)?;
        Ok(supports(&problem))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_feature_is_a_valid_problem_that_the_reference_computes() {
        let reference = ReferenceBackend::new();
        for feature in features() {
            let answer = feature.ask(&|problem| reference.supports(problem));
            let may_refuse = feature.name.starts_with("split-KV");
            assert!(may_refuse || !matches!(answer.unwrap(), Support::No(_)), "{}", feature.name);
        }
    }

    #[test]
    fn what_a_gpu_refuses_is_in_the_table_with_its_reason() {
        let text = markdown().unwrap();
        let row = text.lines().find(|line| line.starts_with("| score: any closure")).unwrap();
        assert_eq!(row, "| score: any closure | yes | yes | no |");
        assert!(text.contains("- cuda, score: any closure: "), "{text}");
    }
}
