//! What is measured: sizes, masks, and data.

use omniflash::{Backend, DType, KvCache, Mask, Query, Result, Stream, Tensor};

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

/// The mask of a case, or the form of its keys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Form {
    Full,
    Causal,
    /// Causal, and this many keys at most.
    Window(usize),
    /// Causal in chunks of this many positions.
    ChunkedCausal(usize),
    /// Everything, from pages of this many keys, shuffled.
    Paged(usize),
}

impl BenchCase {
    /// The case's name, the same for all systems.
    pub(crate) fn name(&self) -> String {
        let BenchCase { batch, seqlen_q, seqlen_k, num_heads, num_kv_heads, head_dim, form } = self;
        let suffix = match form {
            Form::Full => "full".into(),
            Form::Causal => "causal".into(),
            Form::Window(window) => format!("window{window}"),
            Form::ChunkedCausal(size) => format!("chunked{size}"),
            Form::Paged(page_size) => format!("page{page_size}"),
        };
        if *seqlen_q == 1 {
            let name = format!("dec_B{batch}_H{num_heads}_{num_kv_heads}_D{head_dim}_KV{seqlen_k}");
            return if *form == Form::Full { name } else { format!("{name}_{suffix}") };
        }
        let lengths =
            if seqlen_q == seqlen_k { format!("S{seqlen_q}") } else { format!("S{seqlen_q}_{seqlen_k}") };
        format!("B{batch}_{lengths}_H{num_heads}_{num_kv_heads}_D{head_dim}_{suffix}")
    }

    pub(crate) fn mask(&self) -> Mask<'static> {
        match self.form {
            Form::Full | Form::Paged(_) => Mask::None,
            Form::Causal => Mask::Causal,
            Form::Window(window) => Mask::SlidingWindow { left: window - 1, right: 0 },
            Form::ChunkedCausal(size) => Mask::ChunkedCausal { size },
        }
    }

    /// Multiplications and additions: 4 B H Sq Sk D, halved for causal; of other masks the visible share.
    pub(crate) fn flops(&self) -> f64 {
        let scores = match self.form {
            Form::Full | Form::Paged(_) => self.seqlen_q as f64 * self.seqlen_k as f64,
            Form::Causal => 0.5 * self.seqlen_q as f64 * self.seqlen_k as f64,
            Form::Window(_) | Form::ChunkedCausal(_) => {
                (0..self.seqlen_q).map(|row| self.visible_keys(row) as f64).sum()
            }
        };
        4.0 * (self.batch * self.num_heads) as f64 * scores * self.head_dim as f64
    }

    /// Bytes of all keys and values, once.
    pub(crate) fn kv_bytes(&self, dtype: DType) -> f64 {
        2.0 * (self.batch * self.seqlen_k * self.num_kv_heads * self.head_dim * dtype.size()) as f64
    }

    /// Whether one query row meets many keys: then memory is the limit.
    pub(crate) fn is_decode(&self) -> bool {
        self.seqlen_q == 1
    }

    fn visible_keys(&self, row: usize) -> usize {
        let position = row + self.seqlen_k - self.seqlen_q;
        match self.form {
            Form::Window(window) => window.min(position + 1),
            Form::ChunkedCausal(size) => position % size + 1,
            _ => self.seqlen_k,
        }
    }
}

/// The tensors of a case.
pub(crate) struct Workload {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    /// Table and lengths.
    pages: Option<(Tensor, Tensor)>,
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
        let (heads, dim) = (case.num_kv_heads, case.head_dim);
        let q = tensor(&[case.batch, case.seqlen_q, case.num_heads, dim], 1)?;
        let Form::Paged(page_size) = case.form else {
            let shape = [case.batch, case.seqlen_k, heads, dim];
            return Ok(Workload {
                q,
                k: tensor(&shape, 2)?,
                v: tensor(&shape, 3)?,
                pages: None,
                seqlen_k: case.seqlen_k,
            });
        };
        let columns = case.seqlen_k.div_ceil(page_size);
        let shape = [case.batch * columns, page_size, heads, dim];
        let table = shuffled(case.batch * columns);
        let lengths = vec![case.seqlen_k as i32; case.batch];
        Ok(Workload {
            q,
            k: tensor(&shape, 2)?,
            v: tensor(&shape, 3)?,
            pages: Some((
                Tensor::from_slice(backend, &table, &[case.batch, columns], stream)?,
                Tensor::from_slice(backend, &lengths, &[case.batch], stream)?,
            )),
            seqlen_k: case.seqlen_k,
        })
    }

    pub(crate) fn query(&self) -> Query<'_> {
        Query::padded(self.q.view())
    }

    pub(crate) fn kv(&self) -> KvCache<'_> {
        let (k, v) = (self.k.view(), self.v.view());
        match &self.pages {
            None => KvCache::dense(k, v),
            Some((table, lengths)) => KvCache::Paged {
                k,
                v,
                page_table: table.view(),
                lengths: lengths.view(),
                max_seqlen: Some(self.seqlen_k),
            },
        }
    }
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
    fn a_window_counts_what_it_shows() {
        let window = BenchCase { form: Form::Window(1000), ..PREFILL };
        let counted: usize =
            (0..4096i64).map(|q| (0..4096).filter(|&k| window.mask().visible_at(0, 0, q, k)).count()).sum();
        assert_eq!(window.flops(), 4.0 * 64.0 * 128.0 * counted as f64);
        let chunked = BenchCase { form: Form::ChunkedCausal(100), ..PREFILL };
        let counted: usize =
            (0..4096i64).map(|q| (0..4096).filter(|&k| chunked.mask().visible_at(0, 0, q, k)).count()).sum();
        assert_eq!(chunked.flops(), 4.0 * 64.0 * 128.0 * counted as f64);
    }
}
