//! Maps that every launch asks: their hash costs a multiplication a word of the key.
//!
//! Keys are sizes, options and types of the caller's own problems, and at most some thousands are kept, so that nothing has to be
//! defended against keys chosen to collide.

use std::hash::{BuildHasherDefault, Hasher};

/// A map by such a hash. The standard library's own cannot be asked by what is only equivalent to a key.
pub(crate) type KeyMap<K, V> = hashbrown::HashMap<K, V, BuildHasherDefault<KeyHasher>>;

/// Multiplies each word into the ones before it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct KeyHasher {
    state: u64,
}

impl KeyHasher {
    fn add(&mut self, word: u64) {
        // 2^64 over the golden ratio, made odd: products of neighbours lie far apart (Knuth, volume 3, section 6.4).
        self.state = (self.state.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

impl Hasher for KeyHasher {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| self.add(u64::from_ne_bytes(*word)));
        if !rest.is_empty() {
            let mut last = [0; 8];
            last[..rest.len()].copy_from_slice(rest);
            self.add(u64::from_ne_bytes(last));
        }
    }

    fn write_u8(&mut self, word: u8) {
        self.add(u64::from(word));
    }

    fn write_u32(&mut self, word: u32) {
        self.add(u64::from(word));
    }

    fn write_u64(&mut self, word: u64) {
        self.add(word);
    }

    fn write_usize(&mut self, word: usize) {
        self.add(word as u64);
    }

    /// Maps look at the lowest bits, a product is best in its highest.
    fn finish(&self) -> u64 {
        self.state.rotate_left(26)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::hash::{BuildHasher as _, BuildHasherDefault};

    use super::*;

    #[test]
    fn keys_that_differ_little_fall_into_different_places() {
        let build = BuildHasherDefault::<KeyHasher>::default();
        let hash = |key: &(usize, Option<usize>, &str)| build.hash_one(key);
        let keys = (0..4096).map(|i| (i % 64, (i / 64 > 0).then_some(i / 64), "Causal"));
        let places: HashSet<u64> = keys.clone().map(|key| hash(&key) % 65_536).collect();
        assert!(places.len() > 3800, "{} places of 4096 keys", places.len());
        assert_eq!(keys.map(|key| hash(&key)).collect::<HashSet<_>>().len(), 4096);
        assert_ne!(hash(&(1, None, "NoMask")), hash(&(1, None, "NoMasks")));
    }
}
