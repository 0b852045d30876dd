//! What the benchmark groups share: the backends to time and random tensors to time them on.

pub mod host;

use std::sync::Arc;

use half::{bf16, f16};
use omniflash::{Backend, DType, Registry, Result, Stream, Tensor};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

/// Every backend of this machine but the reference, which is not made for speed.
pub fn backends() -> Vec<Arc<dyn Backend>> {
    let registry = Registry::discover();
    registry.backends().iter().filter(|backend| backend.info().name != "reference").cloned().collect()
}

/// Signed normal numbers on a backend's device: kernels can run faster on zeros.
///
/// # Errors
/// Those of the backend; `Dtype` for a dtype that is no float.
pub fn normal(
    backend: &dyn Backend,
    dtype: DType,
    shape: &[usize],
    seed: u64,
    stream: &Stream,
) -> Result<Tensor> {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    let count = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|_| StandardNormal.sample(&mut generator)).collect();
    match dtype {
        DType::F16 => {
            let rounded: Vec<f16> = values.into_iter().map(f16::from_f32).collect();
            Tensor::from_slice(backend, &rounded, shape, stream)
        }
        DType::BF16 => {
            let rounded: Vec<bf16> = values.into_iter().map(bf16::from_f32).collect();
            Tensor::from_slice(backend, &rounded, shape, stream)
        }
        _ => Tensor::from_slice(backend, &values, shape, stream),
    }
}

/// The sizes of one benchmark.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Sequences.
    pub batch: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Query rows.
    pub seqlen_q: usize,
    /// Keys.
    pub seqlen_k: usize,
    /// Elements of a vector.
    pub head_dim: usize,
}

impl Sizes {
    /// Operations of both products, every key visible.
    pub fn operations(&self) -> u64 {
        4 * (self.batch * self.num_heads * self.seqlen_q * self.seqlen_k * self.head_dim) as u64
    }

    /// Bytes of keys and values, read once.
    pub fn kv_bytes(&self, dtype: DType) -> u64 {
        2 * (self.batch * self.num_kv_heads * self.seqlen_k * self.head_dim * dtype.size()) as u64
    }

    /// Random queries, keys and values.
    ///
    /// # Errors
    /// As [`normal`].
    pub fn tensors(&self, backend: &dyn Backend, dtype: DType, stream: &Stream) -> Result<[Tensor; 3]> {
        let q = [self.batch, self.seqlen_q, self.num_heads, self.head_dim];
        let kv = [self.batch, self.seqlen_k, self.num_kv_heads, self.head_dim];
        Ok([
            normal(backend, dtype, &q, 1, stream)?,
            normal(backend, dtype, &kv, 2, stream)?,
            normal(backend, dtype, &kv, 3, stream)?,
        ])
    }
}
