//! One attention as its files describe it.

use std::collections::BTreeMap;
use std::path::Path;

use omniflash::{
    AttentionOptions, AttentionProblem, Backend, DType, DeviceId, KvCache, Mask, OutputShape, Query,
    ReferenceBackend, Result, ScoreMod, Stream, Tensor, TensorRef,
};

use super::container::{self, RawTensor, read_file};
use super::error::{CaseError, Fault, shown};
use super::options::{MaskOption, Options};
use super::schema::{Role, names, role};
use super::tensor;

/// One attention: tensors in host memory, and options; checked to fit together, indices included.
#[derive(Debug)]
pub struct Case {
    tensors: BTreeMap<&'static str, Tensor>,
    options: Options,
    /// The most rows of a ragged sequence.
    max_seqlen_q: Option<usize>,
    /// The most keys of a ragged or cached sequence.
    max_seqlen_k: Option<usize>,
}

impl Case {
    /// Reads a case, and its options if there are any.
    ///
    /// # Errors
    /// [`CaseError`], with the file at fault.
    pub fn read(case: &Path, options: Option<&Path>) -> Result<Self, CaseError> {
        let options = match options {
            Some(path) => {
                let in_file = |fault: Fault| fault.in_file(path.display().to_string());
                let json = read_file(path).map_err(in_file)?;
                Options::from_json(&json).map_err(in_file)?
            }
            None => Options::default(),
        };
        let in_file = |fault: Fault| fault.in_file(case.display().to_string());
        let bytes = read_file(case).map_err(in_file)?;
        Case::from_bytes(&bytes, options).map_err(in_file)
    }

    /// A case from the bytes of its safetensors file.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn from_bytes(bytes: &[u8], options: Options) -> Result<Self, Fault> {
        let raw = container::parse(bytes)?;
        let mut case = Case { tensors: BTreeMap::new(), options, max_seqlen_q: None, max_seqlen_k: None };
        for raw in &raw {
            let Some((name, role)) = role(&raw.name) else {
                return Err(Fault::malformed(format!(
                    "unknown tensor {}, expected one of {}",
                    shown(&raw.name),
                    names()
                )));
            };
            let tensor = match role {
                Role::Vectors => tensor::vectors(raw)?,
                Role::Float => tensor::float(raw, "f32, f16, bf16 or f64")?,
                Role::Mask => tensor::mask(raw)?,
                Role::Integer => {
                    let values = tensor::integers(raw)?;
                    case.note_lengths(name, &values);
                    tensor::narrowed(raw, &values, |_| true)?
                }
                // Which entries count depends on the lengths; see below.
                Role::Table => continue,
            };
            case.tensors.insert(name, tensor);
        }
        for raw in &raw {
            if let Some((name, Role::Table)) = role(&raw.name) {
                let table = case.table(raw)?;
                case.tensors.insert(name, table);
            }
        }
        case.check_presence()?;
        case.check_problem()?;
        Ok(case)
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// The options.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The elements of a float tensor, widened.
    pub fn floats(&self, name: &str) -> Option<Vec<f32>> {
        let tensor = self.tensor(name).filter(|tensor| tensor.dtype().is_float())?;
        Some(tensor::widened(tensor).expect("tensors of a case are row-major and in host memory"))
    }

    /// The elements of an integer tensor.
    pub fn integers(&self, name: &str) -> Option<Vec<i32>> {
        let tensor = self.tensor(name).filter(|tensor| tensor.dtype() == DType::I32)?;
        let elements = tensor.to_vec::<i32>(&ReferenceBackend::new(), &Stream::host());
        Some(elements.expect("tensors of a case are row-major and in host memory"))
    }

    /// The arguments of a call in host memory.
    pub fn arguments(&self) -> Arguments<'_> {
        let tensors = self.tensors.iter().map(|(name, tensor)| (*name, Place::Host(tensor))).collect();
        Arguments { case: self, tensors }
    }

    /// The arguments of a call in a backend's memory; nothing is copied where that is the host's.
    ///
    /// # Errors
    /// Those of [`Backend::alloc`] and [`Backend::copy_to_device`].
    pub fn upload(&self, backend: &dyn Backend, stream: &Stream) -> Result<Arguments<'_>> {
        if backend.info().device == DeviceId::Cpu {
            return Ok(self.arguments());
        }
        let host = ReferenceBackend::new();
        let tensors = self.tensors.iter().map(|(name, tensor)| {
            let bytes = tensor.to_memory(&host, &Stream::host())?;
            let layout = tensor.layout().clone();
            let tensor = Tensor::from_memory(backend, &bytes, tensor.dtype(), layout, stream)?;
            Ok((*name, Place::Device(tensor)))
        });
        Ok(Arguments { case: self, tensors: tensors.collect::<Result<_>>()? })
    }

    /// Keeps the bounds that lengths and offsets give; the library cannot read them on a device.
    fn note_lengths(&mut self, name: &str, values: &[i128]) {
        let longest = |lengths: &mut dyn Iterator<Item = i128>| {
            Some(lengths.max().and_then(|longest| usize::try_from(longest).ok()).unwrap_or(0))
        };
        let mut differences = values.windows(2).map(|pair| pair[1] - pair[0]);
        match name {
            "cu_seqlens_q" => self.max_seqlen_q = longest(&mut differences),
            "cu_seqlens_k" => self.max_seqlen_k = longest(&mut differences),
            "kv_lengths" => self.max_seqlen_k = longest(&mut values.iter().copied()),
            _ => {}
        }
    }

    /// A page or lookup table. Only entries that hold some sequence's keys must be ids.
    fn table(&self, raw: &RawTensor<'_>) -> Result<Tensor, Fault> {
        let values = tensor::integers(raw)?;
        let lengths = self.integers("kv_lengths").unwrap_or_default();
        let page_size = match (self.tensor("k").map(Tensor::shape), raw.name.as_str()) {
            (Some([_, page_size, ..]), "page_table") => *page_size,
            _ => usize::MAX,
        };
        let columns = if raw.shape.len() < 2 { 1 } else { raw.shape[1].max(1) };
        tensor::narrowed(raw, &values, |i| {
            let length = lengths.get(i / columns).map_or(usize::MAX, |&length| length.max(0) as usize);
            (i % columns).saturating_mul(page_size) < length
        })
    }

    /// Every tensor that is needed is there, and every tensor that is there is used.
    fn check_presence(&self) -> Result<(), Fault> {
        let has = |name: &str| self.tensors.contains_key(name);
        let needs = |name: &str, why: &str| match has(name) {
            true => Ok(()),
            false => Err(Fault::malformed(format!("tensor {name} is missing, expected {why}"))),
        };
        let excludes = |name: &str, other: &str| match has(name) && has(other) {
            true => Err(Fault::value(name, "given", format!("none beside {other}"))),
            false => Ok(()),
        };
        let is_used = |name: &str, used: bool, by: &str| match has(name) && !used {
            true => Err(Fault::value(name, "given", format!("none without {by}, which would use it"))),
            false => Ok(()),
        };
        for name in ["q", "k", "v"] {
            needs(name, "q, k and v in every case")?;
        }
        for (name, other) in [
            ("page_table", "lookup_table"),
            ("cu_seqlens_k", "page_table"),
            ("cu_seqlens_k", "lookup_table"),
            ("kv_lengths", "cu_seqlens_k"),
            ("q_lengths", "cu_seqlens_q"),
        ] {
            excludes(name, other)?;
        }
        for table in ["page_table", "lookup_table"] {
            if has(table) {
                needs("kv_lengths", &format!("it beside {table}"))?;
            }
        }
        for (name, offsets) in [("q", "cu_seqlens_q"), ("k", "cu_seqlens_k")] {
            if self.tensors[name].shape().len() == 3 {
                needs(offsets, &format!("it beside a {name} of rank 3"))?;
            }
        }
        let mask_has = |wanted: &MaskOption| {
            self.options.mask.as_ref().is_some_and(|mask| mask.contains(&|mask| mask == wanted))
        };
        for (name, mask, text) in [
            ("prefix_len", MaskOption::PrefixLm, "the mask \"prefix_lm\""),
            ("document_ids", MaskOption::Document, "the mask \"document\""),
        ] {
            is_used(name, mask_has(&mask), text)?;
            if mask_has(&mask) {
                needs(name, &format!("it for {text}"))?;
            }
        }
        is_used("alibi_slopes", self.options.alibi != Some(false), "the option \"alibi\"")?;
        self.check_value_dim()
    }

    /// Values without keys have no elements in the file, and so could claim any size of output.
    fn check_value_dim(&self) -> Result<(), Fault> {
        let last = |name: &str| self.tensors[name].shape().last().copied().unwrap_or(0);
        let most = last("q").saturating_mul(64).max(1024);
        if last("v") > most {
            return Err(Fault::value(
                "value_dim of v",
                last("v"),
                format!("at most {most} for q's head_dim"),
            ));
        }
        Ok(())
    }

    /// All that the library checks, and the lengths, offsets and ids that a device backend would trust.
    fn check_problem(&self) -> Result<(), Fault> {
        let arguments = self.arguments();
        let shape = arguments.output_shape()?;
        let (host, stream) = (ReferenceBackend::new(), Stream::host());
        let mut out = Tensor::zeros(&host, shape.dtype, &shape.out, &stream)?;
        let options = arguments.attention_options().lse(false);
        AttentionProblem::new(arguments.query(), arguments.kv(), out.view_mut(), None, &options)?
            .check_indices()?;
        Ok(())
    }
}

/// A case's tensors where a backend can read them.
#[derive(Debug)]
pub struct Arguments<'c> {
    case: &'c Case,
    tensors: BTreeMap<&'static str, Place<'c>>,
}

#[derive(Debug)]
enum Place<'c> {
    Host(&'c Tensor),
    Device(Tensor),
}

impl Arguments<'_> {
    /// The queries.
    pub fn query(&self) -> Query<'_> {
        match self.find("cu_seqlens_q") {
            Some(cu_seqlens) => {
                Query::Ragged { q: self.view("q"), cu_seqlens, max_seqlen: self.case.max_seqlen_q }
            }
            None => Query::Padded { q: self.view("q"), lengths: self.find("q_lengths") },
        }
    }

    /// The keys and values.
    pub fn kv(&self) -> KvCache<'_> {
        let (k, v, max_seqlen) = (self.view("k"), self.view("v"), self.case.max_seqlen_k);
        if let Some(page_table) = self.find("page_table") {
            return KvCache::Paged { k, v, page_table, lengths: self.view("kv_lengths"), max_seqlen };
        }
        if let Some(lookup_table) = self.find("lookup_table") {
            return KvCache::Continuous { k, v, lookup_table, lengths: self.view("kv_lengths"), max_seqlen };
        }
        match self.find("cu_seqlens_k") {
            Some(cu_seqlens) => KvCache::Ragged { k, v, cu_seqlens, max_seqlen },
            None => KvCache::Dense { k, v, lengths: self.find("kv_lengths") },
        }
    }

    /// The options, with the tensors of masks and score modifications.
    pub fn attention_options(&self) -> AttentionOptions<'_> {
        let given = &self.case.options;
        let mut options = AttentionOptions::new()
            .mask(given.mask.as_ref().map_or(Mask::None, |mask| self.mask(mask)))
            .lse(given.lse.unwrap_or(false))
            .config(given.attention_config());
        options.softmax_scale = given.softmax_scale;
        options.sinks = self.find("sinks");
        options.query_start = self.find("query_start");
        if let Some(mask) = self.find("mask") {
            options = options.mask(Mask::Dense(mask));
        }
        if let Some(cap) = given.softcap {
            options = options.score_mod(ScoreMod::Softcap { cap });
        }
        let slopes = self.find("alibi_slopes");
        if given.alibi.unwrap_or(slopes.is_some()) {
            options = options.score_mod(ScoreMod::Alibi { slopes });
        }
        if let Some(bias) = self.find("bias") {
            options = options.score_mod(ScoreMod::Bias(bias));
        }
        options
    }

    /// The shapes of the results.
    ///
    /// # Errors
    /// Those of [`AttentionProblem::output_shape`].
    pub fn output_shape(&self) -> Result<OutputShape> {
        AttentionProblem::output_shape(&self.query(), &self.kv())
    }

    fn mask(&self, mask: &MaskOption) -> Mask<'_> {
        match mask {
            MaskOption::None => Mask::None,
            MaskOption::Causal => Mask::Causal,
            MaskOption::SlidingWindow { left, right } => Mask::SlidingWindow { left: *left, right: *right },
            MaskOption::Chunked { size } => Mask::Chunked { size: *size },
            MaskOption::ChunkedCausal { size } => Mask::ChunkedCausal { size: *size },
            MaskOption::PrefixLm => Mask::PrefixLm { prefix_len: self.view("prefix_len") },
            MaskOption::Document => Mask::Document { ids: self.view("document_ids") },
            MaskOption::And(a, b) => self.mask(a).and(self.mask(b)),
            MaskOption::Or(a, b) => self.mask(a).or(self.mask(b)),
            MaskOption::Not(mask) => !self.mask(mask),
        }
    }

    fn find(&self, name: &str) -> Option<TensorRef<'_>> {
        self.tensors.get(name).map(|tensor| match tensor {
            Place::Host(tensor) => tensor.view(),
            Place::Device(tensor) => tensor.view(),
        })
    }

    /// A tensor whose presence has been checked.
    fn view(&self, name: &str) -> TensorRef<'_> {
        self.find(name).expect("presence is checked when a case is made")
    }
}
