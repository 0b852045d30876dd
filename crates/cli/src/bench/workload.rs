//! What is measured: sizes, masks, and data.

use omniflash::{AttentionOptions, Backend, DType, KvCache, Mask, Query, Result, ScoreMod, Stream, Tensor};

use crate::synthetic::{Distribution, filled, shuffled};

/// One case of a benchmark.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct BenchCase {
    pub(crate) batch: usize,
    pub(crate) seqlen_q: usize,
    pub(crate) seqlen_k: usize,
    pub(crate) num_heads: usize,
    pub(crate) num_kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) form: Form,
}

/// The mask of a case, or the form of its batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Form {
    Full,
    Causal,
    /// Causal, and this many keys at most.
    Window(usize),
    /// Causal in chunks of this many positions.
    ChunkedCausal(usize),
    /// Causal after a prefix of this many keys.
    PrefixLm(usize),
    /// Documents of this many positions, packed.
    Document(usize),
    /// Causal, as a tensor of bools.
    DenseCausal,
    /// Causal, as a closure.
    ClosureCausal,
    /// Every key, scores capped.
    Softcap,
    /// Causal with ALiBi.
    AlibiCausal,
    /// Every key, with a tensor added to the scores.
    Bias,
    /// Everything, from pages of this many keys, shuffled.
    Paged(usize),
    /// The same of sequences of different lengths.
    PagedMixed(usize),
    /// Causal, from pages of this many keys, shuffled.
    PagedCausal(usize),
    /// Causal, sequences of different lengths end to end.
    Ragged,
}

impl Form {
    /// The forms whose masks and score modifications are compared, for sequences of `seqlen`.
    pub(super) fn masks(seqlen: usize) -> [Form; 11] {
        [
            Form::Full,
            Form::Causal,
            Form::Window(seqlen / 8),
            Form::ChunkedCausal(seqlen / 4),
            Form::PrefixLm(seqlen / 4),
            Form::Document(seqlen / 8),
            Form::DenseCausal,
            Form::ClosureCausal,
            Form::Softcap,
            Form::AlibiCausal,
            Form::Bias,
        ]
    }

    /// What [`BenchCase::name`] has behind the sizes; `ragged` for batches whose names begin with `var_` instead.
    pub(crate) fn parse(text: &str) -> Option<Form> {
        let number = |prefix: &str| text.strip_prefix(prefix)?.parse().ok().filter(|&number| number > 0);
        let pages = |suffix: &str| {
            text.strip_suffix(suffix)?.strip_prefix("page")?.parse().ok().filter(|&size| size > 0)
        };
        Some(match text {
            "full" => Form::Full,
            "causal" => Form::Causal,
            "densecausal" => Form::DenseCausal,
            "closurecausal" => Form::ClosureCausal,
            "softcap" => Form::Softcap,
            "alibicausal" => Form::AlibiCausal,
            "bias" => Form::Bias,
            "ragged" => Form::Ragged,
            _ => None
                .or_else(|| number("window").map(Form::Window))
                .or_else(|| number("chunked").map(Form::ChunkedCausal))
                .or_else(|| number("prefix").map(Form::PrefixLm))
                .or_else(|| number("document").map(Form::Document))
                .or_else(|| number("page").map(Form::Paged))
                .or_else(|| pages("_mixed").map(Form::PagedMixed))
                .or_else(|| pages("_causal").map(Form::PagedCausal))?,
        })
    }

    fn suffix(self) -> String {
        match self {
            Form::Full => "full".into(),
            Form::Causal => "causal".into(),
            Form::Window(window) => format!("window{window}"),
            Form::ChunkedCausal(size) => format!("chunked{size}"),
            Form::PrefixLm(keys) => format!("prefix{keys}"),
            Form::Document(size) => format!("document{size}"),
            Form::DenseCausal => "densecausal".into(),
            Form::ClosureCausal => "closurecausal".into(),
            Form::Softcap => "softcap".into(),
            Form::AlibiCausal => "alibicausal".into(),
            Form::Bias => "bias".into(),
            Form::Paged(page_size) => format!("page{page_size}"),
            Form::PagedMixed(page_size) => format!("page{page_size}_mixed"),
            Form::PagedCausal(page_size) => format!("page{page_size}_causal"),
            Form::Ragged => "causal".into(),
        }
    }
}

impl BenchCase {
    /// The case's name, the same for all systems.
    pub(crate) fn name(&self) -> String {
        let BenchCase { batch, seqlen_q, seqlen_k, num_heads, num_kv_heads, head_dim, form } = self;
        let suffix = form.suffix();
        if *seqlen_q == 1 {
            let name = format!("dec_B{batch}_H{num_heads}_{num_kv_heads}_D{head_dim}_KV{seqlen_k}");
            return if *form == Form::Full { name } else { format!("{name}_{suffix}") };
        }
        let ragged = if *form == Form::Ragged { "var_" } else { "" };
        let lengths =
            if seqlen_q == seqlen_k { format!("S{seqlen_q}") } else { format!("S{seqlen_q}_{seqlen_k}") };
        format!("{ragged}B{batch}_{lengths}_H{num_heads}_{num_kv_heads}_D{head_dim}_{suffix}")
    }

    /// Multiplications and additions: 4 B H Sq Sk D, halved for causal; of other masks the visible share.
    pub(crate) fn flops(&self) -> f64 {
        let (rows, keys) = (self.seqlen_q as f64, self.seqlen_k as f64);
        let scores = match self.form {
            Form::Full | Form::Softcap | Form::Bias | Form::Paged(_) => self.batch as f64 * rows * keys,
            Form::PagedMixed(_) => self.lengths().iter().map(|&keys| keys as f64).sum(),
            Form::Causal
            | Form::DenseCausal
            | Form::ClosureCausal
            | Form::AlibiCausal
            | Form::PagedCausal(_) => 0.5 * self.batch as f64 * rows * keys,
            Form::Ragged => self.lengths().iter().map(|&length| 0.5 * (length * length) as f64).sum(),
            Form::Window(_) | Form::ChunkedCausal(_) | Form::PrefixLm(_) | Form::Document(_) => {
                self.batch as f64 * (0..self.seqlen_q).map(|row| self.visible_keys(row) as f64).sum::<f64>()
            }
        };
        4.0 * self.num_heads as f64 * scores * self.head_dim as f64
    }

    /// Bytes of all keys and values, once.
    pub(crate) fn kv_bytes(&self, dtype: DType) -> f64 {
        let keys: usize = self.lengths().iter().sum();
        2.0 * (keys * self.num_kv_heads * self.head_dim * dtype.size()) as f64
    }

    /// Whether one query row meets many keys: then memory is the limit.
    pub(crate) fn is_decode(&self) -> bool {
        self.seqlen_q == 1
    }

    /// Keys of each sequence: evenly from a share of the longest to the longest where they differ.
    fn lengths(&self) -> Vec<usize> {
        match self.form {
            Form::Ragged | Form::PagedMixed(_) => {
                (1..=self.batch).map(|i| (self.seqlen_k * i / self.batch).max(1)).collect()
            }
            _ => vec![self.seqlen_k; self.batch],
        }
    }

    fn visible_keys(&self, row: usize) -> usize {
        let position = row + self.seqlen_k - self.seqlen_q;
        match self.form {
            Form::Window(window) => window.min(position + 1),
            Form::ChunkedCausal(size) => position % size + 1,
            Form::PrefixLm(keys) => keys.max(position + 1),
            Form::Document(size) => size.min(self.seqlen_k - position / size * size),
            _ => self.seqlen_k,
        }
    }
}

/// The tensors of a case.
pub(crate) struct Workload {
    form: Form,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    /// Of paged and ragged batches: table and lengths, or offsets alone.
    pages: Option<Tensor>,
    lengths: Option<Tensor>,
    /// What the mask or the score modification reads.
    extra: Option<Tensor>,
    seqlen_k: usize,
}

impl Workload {
    pub(crate) fn new(
        backend: &dyn Backend,
        case: &BenchCase,
        dtype: DType,
        stream: &Stream,
    ) -> Result<Self> {
        let tensor =
            |shape: &[usize], seed| filled(backend, dtype, shape, Distribution::Uniform, seed, stream);
        let (heads, kv_heads, dim) = (case.num_heads, case.num_kv_heads, case.head_dim);
        let lengths = case.lengths();
        let (q_shape, kv_shape) = match case.form {
            Form::Ragged => {
                let total = lengths.iter().sum();
                (vec![total, heads, dim], vec![total, kv_heads, dim])
            }
            Form::Paged(page_size) | Form::PagedMixed(page_size) | Form::PagedCausal(page_size) => {
                let pages = case.batch * case.seqlen_k.div_ceil(page_size);
                (vec![case.batch, case.seqlen_q, heads, dim], vec![pages, page_size, kv_heads, dim])
            }
            _ => {
                let kv_shape = vec![case.batch, case.seqlen_k, kv_heads, dim];
                (vec![case.batch, case.seqlen_q, heads, dim], kv_shape)
            }
        };
        let mut workload = Workload {
            form: case.form,
            q: tensor(&q_shape, 1)?,
            k: tensor(&kv_shape, 2)?,
            v: tensor(&kv_shape, 3)?,
            pages: None,
            lengths: None,
            extra: extra(backend, case, dtype, stream)?,
            seqlen_k: case.seqlen_k,
        };
        match case.form {
            Form::Paged(_) | Form::PagedMixed(_) | Form::PagedCausal(_) => {
                let table = shuffled(kv_shape[0]);
                let shape = [case.batch, kv_shape[0] / case.batch];
                workload.pages = Some(Tensor::from_slice(backend, &table, &shape, stream)?);
                let lengths: Vec<i32> = lengths.iter().map(|&length| length as i32).collect();
                workload.lengths = Some(Tensor::from_slice(backend, &lengths, &[case.batch], stream)?);
            }
            Form::Ragged => {
                let mut offsets = vec![0i32];
                offsets.extend(lengths.iter().scan(0, |end, &length| {
                    *end += length as i32;
                    Some(*end)
                }));
                workload.lengths = Some(Tensor::from_slice(backend, &offsets, &[case.batch + 1], stream)?);
            }
            _ => {}
        }
        Ok(workload)
    }

    pub(crate) fn query(&self) -> Query<'_> {
        match (&self.lengths, self.form) {
            (Some(offsets), Form::Ragged) => Query::Ragged {
                q: self.q.view(),
                cu_seqlens: offsets.view(),
                max_seqlen: Some(self.seqlen_k),
            },
            _ => Query::padded(self.q.view()),
        }
    }

    pub(crate) fn kv(&self) -> KvCache<'_> {
        let (k, v, max_seqlen) = (self.k.view(), self.v.view(), Some(self.seqlen_k));
        match (&self.pages, &self.lengths) {
            (Some(table), Some(lengths)) => {
                KvCache::Paged { k, v, page_table: table.view(), lengths: lengths.view(), max_seqlen }
            }
            (None, Some(offsets)) => KvCache::Ragged { k, v, cu_seqlens: offsets.view(), max_seqlen },
            _ => KvCache::dense(k, v),
        }
    }

    /// Mask and score modification.
    pub(crate) fn options(&self) -> AttentionOptions<'_> {
        let extra = || self.extra.as_ref().expect("made with the workload for the forms that read it").view();
        let mask = match self.form {
            Form::Full | Form::Softcap | Form::Bias | Form::Paged(_) | Form::PagedMixed(_) => Mask::None,
            Form::Causal | Form::AlibiCausal | Form::PagedCausal(_) | Form::Ragged => Mask::Causal,
            Form::Window(window) => Mask::SlidingWindow { left: window - 1, right: 0 },
            Form::ChunkedCausal(size) => Mask::ChunkedCausal { size },
            Form::PrefixLm(_) => Mask::PrefixLm { prefix_len: extra() },
            Form::Document(_) => Mask::Document { ids: extra() },
            Form::DenseCausal => Mask::Dense(extra()),
            Form::ClosureCausal => Mask::from_fn(|_, _, q, k| k <= q),
        };
        let score_mod = match self.form {
            Form::Softcap => ScoreMod::Softcap { cap: 30.0 },
            Form::AlibiCausal => ScoreMod::Alibi { slopes: None },
            Form::Bias => ScoreMod::Bias(extra()),
            _ => ScoreMod::Identity,
        };
        AttentionOptions::new().mask(mask).score_mod(score_mod)
    }
}

/// The tensor that a mask or a score modification reads.
fn extra(backend: &dyn Backend, case: &BenchCase, dtype: DType, stream: &Stream) -> Result<Option<Tensor>> {
    let (batch, rows, keys) = (case.batch, case.seqlen_q, case.seqlen_k);
    Ok(Some(match case.form {
        Form::PrefixLm(prefix) => Tensor::from_slice(backend, &vec![prefix as i32; batch], &[batch], stream)?,
        Form::Document(size) => {
            let ids: Vec<i32> = (0..batch * keys).map(|i| (i % keys / size) as i32).collect();
            Tensor::from_slice(backend, &ids, &[batch, keys], stream)?
        }
        Form::DenseCausal => {
            let triangle: Vec<bool> = (0..rows * keys).map(|i| i % keys + rows <= i / keys + keys).collect();
            Tensor::from_slice(backend, &triangle, &[1, rows, keys], stream)?
        }
        Form::Bias => filled(backend, dtype, &[1, 1, rows, keys], Distribution::Uniform, 4, stream)?,
        _ => return Ok(None),
    }))
}

/// A dtype's name in benchmark lines.
pub(super) fn dtype_name(dtype: DType) -> &'static str {
    match dtype {
        DType::BF16 => "bfloat16",
        DType::F16 => "float16",
        _ => "float32",
    }
}

#[cfg(test)]
mod tests {
    use omniflash::ScoreIndex;

    use super::*;

    const PREFILL: BenchCase = BenchCase {
        batch: 4,
        seqlen_q: 4096,
        seqlen_k: 4096,
        num_heads: 16,
        num_kv_heads: 16,
        head_dim: 128,
        form: Form::Causal,
    };

    #[test]
    fn names_are_those_of_the_peers() {
        assert_eq!(PREFILL.name(), "B4_S4096_H16_16_D128_causal");
        let decode = BenchCase {
            batch: 1,
            seqlen_q: 1,
            seqlen_k: 32768,
            num_heads: 32,
            num_kv_heads: 8,
            form: Form::Full,
            ..PREFILL
        };
        assert_eq!(decode.name(), "dec_B1_H32_8_D128_KV32768");
        assert_eq!(BenchCase { form: Form::Paged(64), ..decode }.name(), "dec_B1_H32_8_D128_KV32768_page64");
    }

    #[test]
    fn forms_are_read_as_they_are_written() {
        let paged = [Form::Paged(16), Form::PagedMixed(64), Form::PagedCausal(16)];
        for form in Form::masks(8192).into_iter().chain(paged) {
            assert_eq!(Form::parse(&form.suffix()), Some(form));
        }
        assert_eq!(Form::parse("ragged"), Some(Form::Ragged));
        for text in ["", "window", "window0", "page-1", "page_mixed", "page0_mixed", "circular"] {
            assert_eq!(Form::parse(text), None, "{text}");
        }
    }

    #[test]
    fn masks_count_what_they_show() {
        let backend = omniflash::ReferenceBackend::new();
        let stream = backend.stream().unwrap();
        let base = BenchCase {
            batch: 2,
            seqlen_q: 96,
            seqlen_k: 96,
            num_heads: 3,
            num_kv_heads: 1,
            head_dim: 8,
            form: Form::Full,
        };
        for form in Form::masks(96).into_iter().chain([Form::Window(100), Form::Document(36)]) {
            let case = BenchCase { form, ..base };
            let workload = Workload::new(&backend, &case, DType::F32, &stream).unwrap();
            let mask = workload.options();
            let mut counted = 0;
            for (q, k) in (0..96).flat_map(|q| (0..96).map(move |k| (q, k))) {
                for batch in 0..2 {
                    let at = ScoreIndex { batch, head: 0, row: q as usize, q, k };
                    counted += usize::from(mask.mask.visible(&at));
                }
            }
            let expected = 4.0 * 3.0 * 8.0 * counted as f64;
            // Causal is counted as half, by agreement, where the diagonal makes it a little more.
            assert!((case.flops() / expected - 1.0).abs() < 0.011, "{} {expected}", case.name());
        }
    }

    #[test]
    fn lengths_that_differ_are_counted_one_by_one() {
        let ragged = BenchCase {
            batch: 4,
            seqlen_q: 8,
            seqlen_k: 8,
            num_heads: 1,
            num_kv_heads: 1,
            head_dim: 8,
            form: Form::Ragged,
        };
        assert_eq!(ragged.lengths(), [2, 4, 6, 8]);
        assert_eq!(ragged.flops(), 4.0 * 8.0 * 0.5 * (4 + 16 + 36 + 64) as f64);
        assert_eq!(ragged.name(), "var_B4_S8_H1_1_D8_causal");
        let paged = BenchCase { seqlen_q: 1, form: Form::PagedMixed(2), ..ragged };
        assert_eq!(paged.kv_bytes(DType::BF16), 2.0 * 20.0 * 8.0 * 2.0);
    }
}
