//! Packing keys ahead changes no bit, however many heads are packed at a time.

use half::bf16;
use omniflash_core::{
    AttentionConfig, AttentionOptions, Element, Float, KvCache, Layout, Mask, Query, TensorMut, TensorRef,
};

use super::*;
use crate::plan::{Route, plan};

const BATCH: usize = 2;
const HEADS: usize = 24;
const KV_HEADS: usize = 3;
const ROWS: usize = 300;
const KEYS: usize = 500;
const DIM: usize = 40;

/// Keys that some row sees, if the window reaches 100 to the left: from 100 on.
const WINDOW: Mask<'static> = Mask::SlidingWindow { left: 100, right: 0 };

fn numbers<T: Float>(count: usize, seed: u32) -> Vec<T> {
    let mut bits = seed;
    let next = |_| {
        bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        T::from_f32((bits >> 8) as f32 / (1 << 23) as f32 - 1.0)
    };
    (0..count).map(next).collect()
}

/// The bits of the output with at most so many words of a copy, and how many rounds there were.
fn attend<T: Storage + Element>(
    isa: Isa,
    is_apart: bool,
    mask: &Mask<'_>,
    copy_words: usize,
) -> (Vec<u32>, usize) {
    let layout = if is_apart { Layout::bhsd } else { Layout::bshd };
    let layout = layout(BATCH, KEYS, KV_HEADS, DIM).unwrap();
    let q = numbers::<T>(BATCH * ROWS * HEADS * DIM, 1);
    let k = numbers::<T>(BATCH * KEYS * KV_HEADS * DIM, 2);
    let mut v = numbers::<T>(BATCH * KEYS * KV_HEADS * DIM, 3);
    if matches!(mask, Mask::SlidingWindow { .. }) {
        // Values that no row sees: of keys that nobody reads, and of some that are packed beside others.
        for b in 0..BATCH {
            for key in 0..100 {
                for head in 0..KV_HEADS {
                    v[layout.offset(&[b, key, head, 7]) as usize] = T::from_f32(f32::NAN);
                }
            }
        }
    }
    let mut out = vec![T::from_f32(f32::NAN); q.len()];
    let config = AttentionConfig { num_partitions: Some(1), ..AttentionConfig::default() };
    let problem = AttentionProblem::new(
        Query::padded(TensorRef::from_slice(&q, &[BATCH, ROWS, HEADS, DIM]).unwrap()),
        KvCache::dense(
            TensorRef::with_layout(&k, layout.clone(), 0).unwrap(),
            TensorRef::with_layout(&v, layout, 0).unwrap(),
        ),
        TensorMut::from_slice(&mut out, &[BATCH, ROWS, HEADS, DIM]).unwrap(),
        None,
        &AttentionOptions::new().mask(mask.clone()).config(config),
    )
    .unwrap();
    let plan = plan(&problem, isa, 2).unwrap();
    let Some(Route::Tiles(tiling)) = plan.detail.as_ref().unwrap().downcast_ref::<Route>() else {
        panic!("{plan} is not in tiles");
    };
    assert_eq!(tiling.copy_words, COPY_WORDS, "{plan}");
    let tiling = Tiling { copy_words, ..*tiling };
    let rounds = Schedule::new(&Call::<T>::new(&problem, &tiling).unwrap(), KV_HEADS).rounds.len();
    // SAFETY: the output is this function's.
    unsafe { attention::<T>(&problem, &tiling, isa).unwrap() };
    drop(problem);
    (out.iter().map(|value| value.to_f32().to_bits()).collect(), rounds)
}

fn check<T: Storage + Element>() {
    // Matrices want whole steps of keys: there each task packs its own blocks.
    for isa in Isa::available().into_iter().filter(|&isa| !in_matrices(isa, T::DTYPE)) {
        for is_apart in [false, true] {
            for mask in [Mask::None, Mask::Causal, WINDOW] {
                let (itself, rounds) = attend::<T>(isa, is_apart, &mask, 0);
                assert_eq!(rounds, 1);
                assert!(itself.iter().all(|&bits| f32::from_bits(bits).is_finite()), "{isa} {mask}");
                // All heads at once, about two, about one.
                let head = KEYS.next_multiple_of(96) * 2 * DIM.next_multiple_of(32);
                for (words, fewest) in [(COPY_WORDS, 1), (2 * head, 2), (head, 3)] {
                    let (ahead, rounds) = attend::<T>(isa, is_apart, &mask, words);
                    assert!(rounds >= fewest, "{isa} {mask}: {rounds} rounds with {words} words");
                    assert_eq!(itself, ahead, "{isa} {mask} apart {is_apart}: {words} words");
                }
            }
        }
    }
}

#[test]
fn packing_ahead_changes_no_bit_of_f32() {
    check::<f32>();
}

#[test]
fn packing_ahead_changes_no_bit_of_bf16() {
    check::<bf16>();
}
