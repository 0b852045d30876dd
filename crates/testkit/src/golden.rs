//! Golden cases: inputs in the case-file format of the command line, and answers that a numpy script computed in
//! float64 by plain formulas (`golden/make_golden.py`), so that core's reference is itself checked by another hand.

use std::collections::BTreeMap;

use omniflash_core::reference::ReferenceOutput;
use omniflash_core::{AttentionConfig, Backend, DType, Error, Layout, Mask, Result, ScoreMod};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::Deserialize;

use crate::case::{Case, KvViews, MaskViews, QueryViews, ScoreModViews};
use crate::memory::{Memories, Poison, View};
use crate::tolerance::{Oracle, Precision, Violation};

macro_rules! golden {
    ($($name:literal),* $(,)?) => {
        &[$((
            $name,
            include_bytes!(concat!("../golden/", $name, ".safetensors")),
            include_str!(concat!("../golden/", $name, ".json")),
            include_bytes!(concat!("../golden/", $name, ".expected.safetensors")),
        )),*]
    };
}

type File = (&'static str, &'static [u8], &'static str, &'static [u8]);

const FILES: &[File] = golden![
    "dense_causal_f32",
    "window_sinks_bf16",
    "padded_chunked_f16",
    "ragged_paged_softcap_bf16",
    "continuous_alibi_f32",
    "bool_mask_bias_f32",
    "float_mask_hidden_rows_f16",
    "ragged_prefix_or_document_f32",
];

/// A case and its answer.
#[derive(Debug)]
pub struct Golden {
    /// The case.
    pub case: Case,
    /// The answer by numpy; rows that are not written are 0.
    pub expected: ReferenceOutput,
}

impl Golden {
    /// Runs the case on a backend and judges it by numpy's answer.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn check(&self, backend: &dyn Backend) -> Result<Vec<Violation>> {
        let outcome = self.case.run(backend)?;
        let oracle = Oracle::with_reference(&self.case, self.expected.clone())?;
        Ok(oracle.judge(&self.case, &outcome, Precision::of(backend.info())))
    }
}

/// All golden cases.
///
/// # Panics
/// When a committed file is damaged.
pub fn all() -> Vec<Golden> {
    FILES.iter().map(|file| load(file).unwrap_or_else(|error| panic!("{}: {error}", file.0))).collect()
}

/// The options of a case file, as far as golden cases use them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    softmax_scale: Option<f32>,
    #[serde(default)]
    mask: MaskOption,
    softcap: Option<f32>,
    #[serde(default)]
    alibi: bool,
    num_partitions: Option<usize>,
    #[serde(default)]
    lse: bool,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum MaskOption {
    #[default]
    None,
    Causal,
    SlidingWindow {
        left: usize,
        right: usize,
    },
    Chunked {
        size: usize,
    },
    ChunkedCausal {
        size: usize,
    },
    PrefixLm,
    Document,
    And(Box<[MaskOption; 2]>),
    Or(Box<[MaskOption; 2]>),
    Not(Box<MaskOption>),
}

fn load((name, tensors, options, expected): &File) -> Result<Golden> {
    let damaged = |what: &str| Error::value(*name, what, "a golden case");
    let tensors = SafeTensors::deserialize(tensors).map_err(|error| damaged(&error.to_string()))?;
    let options: Options = serde_json::from_str(options).map_err(|error| damaged(&error.to_string()))?;
    let mut reader = Reader { memories: Memories::default(), views: BTreeMap::new() };
    for (name, tensor) in tensors.tensors() {
        reader.read(name, &tensor)?;
    }
    let case = reader.case(name, options).ok_or_else(|| damaged("without q, k or v"))?;
    let expected = SafeTensors::deserialize(expected).map_err(|error| damaged(&error.to_string()))?;
    let floats = |name: &str| -> Result<Vec<f64>> {
        let tensor = expected.tensor(name).map_err(|error| damaged(&error.to_string()))?;
        Ok(tensor.data().as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect())
    };
    Ok(Golden { case, expected: ReferenceOutput { out: floats("out")?, lse: floats("lse")? } })
}

struct Reader {
    memories: Memories,
    views: BTreeMap<String, View>,
}

impl Reader {
    /// Takes over a tensor; 64-bit integers become 32-bit ones.
    fn read(&mut self, name: String, tensor: &TensorView<'_>) -> Result<()> {
        let wide = || tensor.data().as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes) as i32);
        let narrow = || wide().flat_map(i32::to_le_bytes).collect::<Vec<u8>>();
        let (dtype, bytes) = match tensor.dtype() {
            Dtype::F32 => (DType::F32, tensor.data().to_vec()),
            Dtype::F16 => (DType::F16, tensor.data().to_vec()),
            Dtype::BF16 => (DType::BF16, tensor.data().to_vec()),
            Dtype::BOOL | Dtype::U8 => (DType::Bool, tensor.data().to_vec()),
            Dtype::I32 => (DType::I32, tensor.data().to_vec()),
            Dtype::U32 => (DType::U32, tensor.data().to_vec()),
            Dtype::I64 => (DType::I32, narrow()),
            Dtype::U64 => (DType::U32, narrow()),
            other => return Err(Error::value(name, format!("{other:?}"), "a type of case files")),
        };
        let layout = Layout::contiguous(tensor.shape())?;
        let memory = self.memories.push_bytes(&bytes);
        self.views.insert(name, View { memory, dtype, layout, offset: 0 });
        Ok(())
    }

    fn take(&mut self, name: &str) -> Option<View> {
        self.views.remove(name)
    }

    fn integers(&self, view: &View) -> Vec<usize> {
        let bytes = self.memories.bytes(view.memory);
        bytes.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes) as usize).collect()
    }

    fn case(mut self, name: &str, options: Options) -> Option<Case> {
        let (q, k, v) = (self.take("q")?, self.take("k")?, self.take("v")?);
        let mut out_shape = q.layout.shape().to_vec();
        *out_shape.last_mut()? = v.layout.shape().last().copied()?;
        let out = self.memories.add_contiguous(q.dtype, &out_shape, Poison::Unwritten);
        let (query, q_lengths, q_begins) = match self.take("cu_seqlens_q") {
            Some(cu_seqlens) => {
                let offsets = self.integers(&cu_seqlens);
                let lengths = offsets.windows(2).map(|pair| pair[1] - pair[0]).collect();
                (QueryViews::Ragged { q, cu_seqlens, max_seqlen: None }, lengths, offsets)
            }
            None => {
                let lengths = self.take("q_lengths");
                let counts = match &lengths {
                    Some(lengths) => self.integers(lengths),
                    None => vec![out_shape[1]; out_shape[0]],
                };
                let begins = vec![0; counts.len()];
                (QueryViews::Padded { q, lengths }, counts, begins)
            }
        };
        let lse_shape = match out_shape[..] {
            [batch, rows, heads, _] => vec![batch, heads, rows],
            _ => vec![out_shape[1], out_shape[0]],
        };
        let lse =
            options.lse.then(|| self.memories.add_contiguous(DType::F32, &lse_shape, Poison::Unwritten));
        let mask = self.mask(options.mask)?;
        let mask = match self.take("mask") {
            Some(dense) => MaskViews::And(Box::new(mask), Box::new(MaskViews::Dense(dense, None))),
            None => mask,
        };
        let mut score_mods = Vec::new();
        score_mods.extend(options.softcap.map(|cap| ScoreModViews::Plain(ScoreMod::Softcap { cap })));
        match self.take("alibi_slopes") {
            Some(slopes) => score_mods.push(ScoreModViews::Alibi(slopes)),
            None if options.alibi => {
                score_mods.push(ScoreModViews::Plain(ScoreMod::Alibi { slopes: None }));
            }
            None => {}
        }
        score_mods.extend(self.take("bias").map(ScoreModViews::Bias));
        let kv = self.kv(k, v)?;
        Some(Case {
            name: format!("golden/{name}"),
            seed: name.into(),
            query,
            kv,
            out,
            lse,
            mask,
            score_mods,
            sinks: self.take("sinks"),
            query_start: self.take("query_start"),
            softmax_scale: options.softmax_scale,
            config: AttentionConfig { num_partitions: options.num_partitions, ..AttentionConfig::default() },
            extreme: false,
            q_lengths,
            q_begins,
            memories: self.memories,
        })
    }

    fn kv(&mut self, k: View, v: View) -> Option<KvViews> {
        let max_seqlen = None;
        if let Some(cu_seqlens) = self.take("cu_seqlens_k") {
            return Some(KvViews::Ragged { k, v, cu_seqlens, max_seqlen });
        }
        let lengths = self.take("kv_lengths");
        Some(match (self.take("page_table"), self.take("lookup_table")) {
            (Some(page_table), _) => KvViews::Paged { k, v, page_table, lengths: lengths?, max_seqlen },
            (_, Some(lookup_table)) => {
                KvViews::Continuous { k, v, lookup_table, lengths: lengths?, max_seqlen }
            }
            _ => KvViews::Dense { k, v, lengths },
        })
    }

    fn mask(&mut self, mask: MaskOption) -> Option<MaskViews> {
        let plain = |mask: Mask<'static>| Some(MaskViews::Plain(mask));
        match mask {
            MaskOption::None => plain(Mask::None),
            MaskOption::Causal => plain(Mask::Causal),
            MaskOption::SlidingWindow { left, right } => plain(Mask::SlidingWindow { left, right }),
            MaskOption::Chunked { size } => plain(Mask::Chunked { size }),
            MaskOption::ChunkedCausal { size } => plain(Mask::ChunkedCausal { size }),
            MaskOption::PrefixLm => self.take("prefix_len").map(MaskViews::PrefixLm),
            MaskOption::Document => self.take("document_ids").map(MaskViews::Document),
            MaskOption::And(parts) => {
                let [a, b] = *parts;
                Some(MaskViews::And(Box::new(self.mask(a)?), Box::new(self.mask(b)?)))
            }
            MaskOption::Or(parts) => {
                let [a, b] = *parts;
                Some(MaskViews::Or(Box::new(self.mask(a)?), Box::new(self.mask(b)?)))
            }
            MaskOption::Not(mask) => Some(MaskViews::Not(Box::new(self.mask(*mask)?))),
        }
    }
}
