//! What is measured: sizes, masks, and data.

use half::{bf16, f16};
use omniflash::{Backend, DType, Float, KvCache, Mask, Query, Result, Stream, Tensor};
use rayon::prelude::*;

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
        let lengths = if seqlen_q == seqlen_k { format!("S{seqlen_q}") } else { format!("S{seqlen_q}_{seqlen_k}") };
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
    pub(crate) fn new(backend: &dyn Backend, case: &BenchCase, dtype: DType, stream: &Stream) -> Result<Self> {
        let tensor = |shape: &[usize], seed| filled(backend, dtype, shape, seed, stream);
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

/// The numbers below `count` in an order without a pattern, the same on every run.
pub(crate) fn shuffled(count: usize) -> Vec<i32> {
    let mut keys: Vec<(u32, i32)> = (0..count).map(|i| (hash(i as u64, 4), i as i32)).collect();
    keys.sort_unstable();
    keys.into_iter().map(|(_, i)| i).collect()
}

/// A tensor of the values that all systems of a comparison are given: uniform in -1 to 1, from index and seed.
pub(crate) fn filled(
    backend: &dyn Backend,
    dtype: DType,
    shape: &[usize],
    seed: u64,
    stream: &Stream,
) -> Result<Tensor> {
    fn tensor<T: Float>(backend: &dyn Backend, shape: &[usize], seed: u64, stream: &Stream) -> Result<Tensor> {
        let too_large = || omniflash::Error::shape("shape", format!("{shape:?} has too many elements"));
        let count = shape.iter().try_fold(1usize, |n, extent| n.checked_mul(*extent)).ok_or_else(too_large)?;
        let mut elements: Vec<T> = Vec::new();
        elements.try_reserve_exact(count).map_err(|_| omniflash::Error::OutOfMemory {
            device: "cpu".into(),
            bytes: count.saturating_mul(size_of::<T>()),
        })?;
        (0..count).into_par_iter().map(|i| T::from_f32(value(i as u64, seed))).collect_into_vec(&mut elements);
        Tensor::from_slice(backend, &elements, shape, stream)
    }
    match dtype {
        DType::F16 => tensor::<f16>(backend, shape, seed, stream),
        DType::BF16 => tensor::<bf16>(backend, shape, seed, stream),
        _ => tensor::<f32>(backend, shape, seed, stream),
    }
}

/// Element `index` of the tensor of this seed, before rounding to its dtype.
fn value(index: u64, seed: u64) -> f32 {
    ((hash(index, seed) >> 8) as f32 / (1 << 24) as f32 - 0.5) * 2.0
}

fn hash(index: u64, seed: u64) -> u32 {
    let mut h = index.wrapping_mul(2_654_435_761).wrapping_add(seed.wrapping_mul(0x9E37_79B9)) as u32;
    h ^= h >> 15;
    h = h.wrapping_mul(0x85EB_CA6B);
    h ^ (h >> 13)
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
        let counted: usize = (0..4096i64)
            .map(|q| (0..4096).filter(|&k| window.mask().visible_at(0, 0, q, k)).count())
            .sum();
        assert_eq!(window.flops(), 4.0 * 64.0 * 128.0 * counted as f64);
        let chunked = BenchCase { form: Form::ChunkedCausal(100), ..PREFILL };
        let counted: usize = (0..4096i64)
            .map(|q| (0..4096).filter(|&k| chunked.mask().visible_at(0, 0, q, k)).count())
            .sum();
        assert_eq!(chunked.flops(), 4.0 * 64.0 * 128.0 * counted as f64);
    }

    #[test]
    fn data_are_those_of_the_peers() {
        // Of peers.py: fill((4,), 1) and fill((2,), 3).
        let found: Vec<f32> = (0..4).map(|i| value(i, 1)).collect();
        assert_eq!(found, [0.524469256401062, 0.6282129287719727, 0.24798381328582764, -0.32681214809417725]);
        assert_eq!([value(0, 3), value(1, 3)], [0.9878628253936768, 0.9329439401626587]);
    }

    #[test]
    fn a_shuffle_is_a_permutation() {
        let mut ids = shuffled(100);
        assert_ne!(ids, (0..100).collect::<Vec<i32>>());
        ids.sort_unstable();
        assert_eq!(ids, (0..100).collect::<Vec<i32>>());
    }
}
