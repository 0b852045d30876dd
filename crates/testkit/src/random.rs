//! Random inputs that depend on a name alone.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal, StandardUniform};

/// A stream of random numbers, one per seed and purpose: the same on every machine, and unmoved by other streams.
pub(crate) struct Random(ChaCha8Rng);

impl Random {
    /// The stream `purpose` of a case's seed.
    pub(crate) fn new(seed: &str, purpose: &str) -> Self {
        Random(ChaCha8Rng::from_seed(*blake3::hash(format!("{seed}\n{purpose}").as_bytes()).as_bytes()))
    }

    /// Standard normal.
    pub(crate) fn normal(&mut self) -> f32 {
        StandardNormal.sample(&mut self.0)
    }

    /// True with probability `p`.
    pub(crate) fn chance(&mut self, p: f64) -> bool {
        let uniform: f64 = StandardUniform.sample(&mut self.0);
        uniform < p
    }

    /// A random order.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        items.shuffle(&mut self.0);
    }
}
