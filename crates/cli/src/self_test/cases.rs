//! The built-in cases: one of each feature, small enough for the float64 reference, the data from nothing but indices.

use half::{bf16, f16};
use omniflash::{Algorithm, DType};

use crate::case_file::{Case, ConfigOptions, Fault, MaskOption, NamedTensor, Options, to_bytes};
use crate::synthetic::{Distribution, shuffled, values};

/// A case with its name.
pub(super) struct SelfTestCase {
    pub(super) name: String,
    pub(super) case: Case,
}

/// Tensors and options on their way to a case.
struct Builder {
    name: String,
    dtype: DType,
    tensors: Vec<NamedTensor>,
    options: Options,
}

/// Sizes of a call: sequences, query rows, keys, heads, key heads, head_dim, value_dim.
#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    seqlen: (usize, usize),
    heads: (usize, usize),
    dims: (usize, usize),
}

const fn sizes(batch: usize, seqlen: (usize, usize), heads: (usize, usize), dim: usize) -> Sizes {
    Sizes { batch, seqlen, heads, dims: (dim, dim) }
}

impl Builder {
    /// Named by what it asks and its dtype.
    fn new(name: &str, dtype: DType) -> Self {
        Builder { name: format!("{name}_{dtype}"), dtype, tensors: Vec::new(), options: Options::default() }
    }

    fn options(mut self, set: impl FnOnce(&mut Options)) -> Self {
        set(&mut self.options);
        self
    }

    /// Adds a tensor of normal numbers, the seed from its place.
    fn floats(mut self, name: &str, shape: &[usize], dtype: DType) -> Self {
        let values = values(shape.iter().product(), Distribution::Normal, 11 + self.tensors.len() as u64);
        self.tensors.push(match dtype {
            DType::F16 => {
                NamedTensor::new(name, shape, &values.into_iter().map(f16::from_f32).collect::<Vec<_>>())
            }
            DType::BF16 => {
                NamedTensor::new(name, shape, &values.into_iter().map(bf16::from_f32).collect::<Vec<_>>())
            }
            _ => NamedTensor::new(name, shape, &values),
        });
        self
    }

    fn integers(mut self, name: &str, shape: &[usize], values: &[i32]) -> Self {
        self.tensors.push(NamedTensor::new(name, shape, values));
        self
    }

    fn qkv(self, q: &[usize], k: &[usize], v: &[usize]) -> Self {
        let dtype = self.dtype;
        self.floats("q", q, dtype).floats("k", k, dtype).floats("v", v, dtype)
    }

    fn dense(self, sizes: Sizes) -> Self {
        let Sizes { batch, seqlen, heads, dims } = sizes;
        self.qkv(
            &[batch, seqlen.0, heads.0, dims.0],
            &[batch, seqlen.1, heads.1, dims.0],
            &[batch, seqlen.1, heads.1, dims.1],
        )
    }

    /// Keys in shuffled pages, the last of each sequence half used.
    fn paged(self, sizes: Sizes, page_size: usize) -> Self {
        let Sizes { batch, seqlen, heads, dims } = sizes;
        let pages = seqlen.1.div_ceil(page_size);
        let lengths: Vec<i32> = (0..batch).map(|b| (seqlen.1 - b * page_size / 2) as i32).collect();
        let cache = |dim: usize| [batch * pages, page_size, heads.1, dim];
        self.qkv(&[batch, seqlen.0, heads.0, dims.0], &cache(dims.0), &cache(dims.1))
            .integers("page_table", &[batch, pages], &shuffled(batch * pages))
            .integers("kv_lengths", &[batch], &lengths)
    }

    fn finish(self) -> Result<SelfTestCase, Fault> {
        let case = Case::from_bytes(&to_bytes(&self.tensors)?, self.options)?;
        Ok(SelfTestCase { name: self.name, case })
    }
}

/// All cases, the simplest first: what fails first says most.
pub(super) fn cases() -> Result<Vec<SelfTestCase>, Fault> {
    let mut builders = Vec::new();
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        builders.push(Builder::new("one_tile", dtype).dense(sizes(1, (16, 32), (1, 1), 64)));
        builders.push(Builder::new("causal_d64", dtype).dense(sizes(2, (200, 200), (4, 2), 64)).options(
            |options| {
                options.mask = Some(MaskOption::Causal);
                options.lse = Some(true);
            },
        ));
        builders.push(Builder::new("full_d128", dtype).dense(sizes(1, (150, 310), (4, 4), 128)));
        builders.push(Builder::new("full_d256", dtype).dense(sizes(1, (70, 130), (2, 1), 256)));
        builders.push(Builder::new("odd_d20", dtype).dense(sizes(2, (33, 77), (3, 1), 20)));
        builders.push(
            Builder::new("decode", dtype)
                .dense(sizes(2, (1, 1000), (8, 2), 128))
                .options(|options| options.num_partitions = Some(1)),
        );
        builders.push(Builder::new("decode_split", dtype).dense(sizes(2, (1, 1000), (8, 2), 128)).options(
            |options| {
                options.num_partitions = Some(5);
                options.lse = Some(true);
            },
        ));
        builders.push(
            Builder::new("paged_decode", dtype).paged(sizes(3, (1, 300), (8, 2), 128), 16).options(causal),
        );
    }
    builders.extend(features());
    builders.into_iter().map(Builder::finish).collect()
}

fn causal(options: &mut Options) {
    options.mask = Some(MaskOption::Causal);
}

/// One case of each feature.
fn features() -> Vec<Builder> {
    let small = sizes(2, (60, 90), (4, 2), 64);
    let masked = |name: &str, mask: MaskOption| {
        Builder::new(name, DType::BF16).dense(small).options(|options| options.mask = Some(mask))
    };
    let window = MaskOption::SlidingWindow { left: 20, right: 3 };
    vec![
        masked("sliding_window", window.clone()),
        masked("chunked_causal", MaskOption::ChunkedCausal { size: 25 }),
        masked(
            "not_window_and_causal",
            MaskOption::And(Box::new(MaskOption::Not(Box::new(window))), Box::new(MaskOption::Causal)),
        ),
        masked("prefix_lm", MaskOption::PrefixLm).integers("prefix_len", &[2], &[5, 40]),
        masked("document", MaskOption::Document).integers(
            "document_ids",
            &[2, 90],
            &(0..180).map(|i| i / 31).collect::<Vec<i32>>(),
        ),
        Builder::new("softcap_alibi_sinks", DType::BF16)
            .dense(small)
            .floats("sinks", &[4], DType::F32)
            .options(causal)
            .options(|options| (options.softcap, options.alibi) = (Some(20.0), Some(true))),
        Builder::new("bias", DType::F16).dense(small).floats("bias", &[1, 4, 60, 90], DType::F32),
        Builder::new("additive_mask", DType::F16).dense(small).floats("mask", &[2, 60, 90], DType::F32),
        Builder::new("value_dim_64", DType::BF16).dense(Sizes { dims: (192, 64), ..small }),
        Builder::new("padded_lengths", DType::F16)
            .dense(small)
            .integers("q_lengths", &[2], &[60, 7])
            .integers("kv_lengths", &[2], &[33, 90])
            .options(causal),
        Builder::new("ragged", DType::BF16)
            .qkv(&[100, 4, 64], &[150, 2, 64], &[150, 2, 64])
            .integers("cu_seqlens_q", &[4], &[0, 3, 80, 100])
            .integers("cu_seqlens_k", &[4], &[0, 60, 130, 150])
            .options(causal),
        Builder::new("paged_prefill", DType::F16).paged(small, 16).options(causal),
        Builder::new("page_of_1", DType::BF16).paged(sizes(2, (5, 40), (4, 2), 64), 1).options(causal),
        Builder::new("continuous", DType::F16)
            .qkv(&[2, 3, 4, 64], &[3, 50, 2, 64], &[3, 50, 2, 64])
            .integers("lookup_table", &[2], &[2, 0])
            .integers("kv_lengths", &[2], &[50, 20])
            .options(causal),
        Builder::new("explicit_positions", DType::BF16)
            .dense(small)
            .integers("query_start", &[2], &[10, -5])
            .options(causal),
        Builder::new("naive_d300", DType::F16).dense(sizes(1, (9, 40), (2, 1), 300)).options(|options| {
            options.config =
                Some(ConfigOptions { algorithm: Some(Algorithm::Naive), ..ConfigOptions::default() });
        }),
        Builder::new("longer", DType::BF16).dense(sizes(1, (512, 512), (8, 2), 128)).options(causal),
    ]
}
