//! Data from nothing but an index: the same on every run, and never all zero.

use half::{bf16, f16};
use omniflash::{Backend, DType, Float, Result, Stream, Tensor};
use rayon::prelude::*;

/// The numbers below `count` in an order without a pattern, the same on every run.
pub(crate) fn shuffled(count: usize) -> Vec<i32> {
    let mut keys: Vec<(u32, i32)> = (0..count).map(|i| (hash(i as u64, 4), i as i32)).collect();
    keys.sort_unstable();
    keys.into_iter().map(|(_, i)| i).collect()
}

/// How values are distributed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Distribution {
    /// Uniform in -1 to 1: what all systems of a comparison are given.
    Uniform,
    /// Normal with mean 0 and variance 1, as activations behind a normalisation roughly are.
    Normal,
}

impl Distribution {
    /// Element `index` of the tensor of this seed, before rounding to its dtype.
    fn value(self, index: u64, seed: u64) -> f32 {
        match self {
            Distribution::Uniform => uniform(index, seed),
            // Box and Muller: a radius and an angle. The sum keeps the logarithm's argument above 0.
            Distribution::Normal => {
                let radius = (-2.0 * (0.5 * uniform(index, seed) + 0.5 + f32::EPSILON).ln()).max(0.0).sqrt();
                radius * (std::f32::consts::PI * uniform(index, seed + 1000)).cos()
            }
        }
    }
}

/// Values from their index and a seed, before rounding to a dtype.
pub(crate) fn values(count: usize, distribution: Distribution, seed: u64) -> Vec<f32> {
    (0..count as u64).map(|index| distribution.value(index, seed)).collect()
}

/// A tensor of values from their index and a seed, the same on every machine up to the last bits.
pub(crate) fn filled(
    backend: &dyn Backend,
    dtype: DType,
    shape: &[usize],
    distribution: Distribution,
    seed: u64,
    stream: &Stream,
) -> Result<Tensor> {
    fn tensor<T: Float>(
        backend: &dyn Backend,
        shape: &[usize],
        distribution: Distribution,
        seed: u64,
        stream: &Stream,
    ) -> Result<Tensor> {
        let too_large = || omniflash::Error::shape("shape", format!("{shape:?} has too many elements"));
        let count =
            shape.iter().try_fold(1usize, |n, extent| n.checked_mul(*extent)).ok_or_else(too_large)?;
        let mut elements: Vec<T> = Vec::new();
        elements.try_reserve_exact(count).map_err(|_| omniflash::Error::OutOfMemory {
            device: "cpu".into(),
            bytes: count.saturating_mul(size_of::<T>()),
        })?;
        (0..count)
            .into_par_iter()
            .map(|i| T::from_f32(distribution.value(i as u64, seed)))
            .collect_into_vec(&mut elements);
        Tensor::from_slice(backend, &elements, shape, stream)
    }
    match dtype {
        DType::F16 => tensor::<f16>(backend, shape, distribution, seed, stream),
        DType::BF16 => tensor::<bf16>(backend, shape, distribution, seed, stream),
        _ => tensor::<f32>(backend, shape, distribution, seed, stream),
    }
}

fn uniform(index: u64, seed: u64) -> f32 {
    ((hash(index, seed) >> 8) as f32 / (1 << 24) as f32 - 0.5) * 2.0
}

fn hash(index: u64, seed: u64) -> u32 {
    let mut h = index.wrapping_mul(2_654_435_761).wrapping_add(seed.wrapping_mul(0x9E37_79B9)) as u32;
    h ^= h >> 15;
    h = h.wrapping_mul(0x85EB_CA6B);
    h ^ (h >> 13)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_are_those_of_the_peers() {
        // Of peers.py: fill((4,), 1) and fill((2,), 3).
        let found: Vec<f32> = (0..4).map(|i| uniform(i, 1)).collect();
        assert_eq!(found, [0.524_469_26, 0.628_212_9, 0.247_983_81, -0.326_812_15]);
        assert_eq!([uniform(0, 3), uniform(1, 3)], [0.987_862_8, 0.932_943_94]);
    }

    #[test]
    fn a_shuffle_is_a_permutation() {
        let mut ids = shuffled(100);
        assert_ne!(ids, (0..100).collect::<Vec<i32>>());
        ids.sort_unstable();
        assert_eq!(ids, (0..100).collect::<Vec<i32>>());
    }

    #[test]
    fn normal_values_have_mean_0_and_variance_1() {
        let values: Vec<f64> = (0..100_000).map(|i| Distribution::Normal.value(i, 9).into()).collect();
        let mean = values.iter().sum::<f64>() / 1e5;
        let variance = values.iter().map(|value| value * value).sum::<f64>() / 1e5;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
        assert!(values.iter().all(|value| value.is_finite()));
    }
}
