use omniflash_core::{AttentionOptions, KvCache, Query, TensorMut};
use proptest::prelude::*;

use super::*;

const ROWS: usize = 20;
const KEYS: usize = 150;

/// Calls `check` with the lowering of a mask and the mask itself.
fn with_lowered(mask: Mask<'_>, check: impl FnOnce(&LoweredMask<'_>, &Mask<'_>, &Sequence)) {
    let (q, k) = ([0.0f32; 2 * ROWS * 2], [0.0f32; 2 * KEYS]);
    let mut out = q;
    let problem = AttentionProblem::new(
        Query::padded(TensorRef::from_slice(&q, &[2, ROWS, 2, 1]).unwrap()),
        KvCache::dense(
            TensorRef::from_slice(&k, &[2, KEYS, 1, 1]).unwrap(),
            TensorRef::from_slice(&k, &[2, KEYS, 1, 1]).unwrap(),
        ),
        TensorMut::from_slice(&mut out, &[2, ROWS, 2, 1]).unwrap(),
        None,
        &AttentionOptions::new().mask(mask.clone()),
    )
    .unwrap();
    let sequence =
        Sequence { batch: 1, q_begin: 0, q_len: ROWS, kv_len: KEYS, query_start: KEYS as i64 - 25 };
    check(&LoweredMask::new(&problem), &mask, &sequence);
}

/// Whether the lowering and the mask agree on every score, and statuses are never wrong.
fn agrees(mask: Mask<'_>) {
    with_lowered(mask, |lowered, mask, sequence| {
        let begin = 40i64;
        let tile = |head: usize| Tile {
            batch: 1,
            head,
            q_begin: sequence.query_start,
            q_end: sequence.query_start + ROWS as i64,
            k_begin: begin,
            k_end: begin + 100,
        };
        for head in 0..2 {
            let status = lowered.status(&tile(head));
            for row in 0..ROWS {
                let position = sequence.query_start + row as i64;
                let query = QueryRow { batch: 1, head, row, position };
                let keys = lowered.interval(sequence, position);
                let within = (keys.0.max(begin), keys.1.min(begin + 100));
                let bits = if within.0 < within.1 { lowered.row_bits(&query, begin, within) } else { 0 };
                for key in begin..begin + 100 {
                    let is_inside = (keys.0..keys.1).contains(&key);
                    let by_bits = bits >> (key - begin) & 1 == 1;
                    let at = ScoreIndex { batch: 1, head, row, q: position, k: key };
                    assert_eq!(is_inside && by_bits, mask.visible(&at), "row {row}, key {key}: {mask}");
                    if is_inside {
                        assert!(status != TileStatus::Skip || !by_bits, "skipped a visible key: {mask}");
                        assert!(status != TileStatus::Full || by_bits, "left a hidden key: {mask}");
                    }
                }
            }
        }
    });
}

fn leaf() -> impl Strategy<Value = Mask<'static>> {
    prop_oneof![
        Just(Mask::None),
        Just(Mask::Causal),
        (0usize..120, 0usize..40).prop_map(|(left, right)| Mask::SlidingWindow { left, right }),
        (0usize..120).prop_map(|left| Mask::SlidingWindow { left, right: usize::MAX }),
        (1usize..90).prop_map(|size| Mask::Chunked { size }),
        (1usize..90).prop_map(|size| Mask::ChunkedCausal { size }),
        Just(Mask::from_fn(|b, h, q, k| (q * 7 + k * 3 + (b + h) as i64) % 5 != 0)),
    ]
}

fn tree() -> impl Strategy<Value = Mask<'static>> {
    leaf().prop_recursive(3, 8, 2, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| a.and(b)),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| a.or(b)),
            inner.prop_map(|mask| !mask),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_lowered_mask_hides_what_the_mask_hides(mask in tree()) {
        agrees(mask);
    }

    #[test]
    fn tensors_lower_as_they_read(seed in any::<u32>(), run in 1usize..60, joined in 0usize..4) {
        let random = |i: usize| (i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) >> 13;
        let bools: Vec<u8> = (0..2 * ROWS * KEYS).map(|i| (random(i) % 3 == 0) as u8).collect();
        let runs: Vec<i32> = (0..2 * KEYS).map(|i| -((i / run) as i32)).collect();
        let scattered: Vec<u32> = (0..KEYS).map(|i| random(i) % 3).collect();
        let prefix = [7i32, (random(0) % 160) as i32];
        let dense = Mask::Dense(TensorRef::from_slice(&bools, &[1, 2, ROWS, KEYS]).unwrap());
        let others = [
            Mask::Document { ids: TensorRef::from_slice(&runs, &[2, KEYS]).unwrap() },
            Mask::Document { ids: TensorRef::from_slice(&scattered, &[1, KEYS]).unwrap() },
            Mask::PrefixLm { prefix_len: TensorRef::from_slice(&prefix, &[2]).unwrap() },
            Mask::None,
        ];
        let other = others[joined].clone();
        agrees(other.clone());
        agrees(dense.clone().and(other.clone()));
        agrees(!(dense.or(other)));
    }
}

#[test]
fn documents_that_are_runs_are_intervals_and_others_are_not() {
    let (runs, back) = ([5u32, 5, 5, 2, 2, 9], [5u32, 5, 2, 2, 5, 9]);
    for (ids, is_interval) in [(&runs, true), (&back, false)] {
        let mask = Mask::Document { ids: TensorRef::from_slice(ids, &[1, 6]).unwrap() };
        assert_eq!(Interval::new(&mask).is_some(), is_interval);
    }
    let mask = Mask::Document { ids: TensorRef::from_slice(&runs, &[1, 6]).unwrap() };
    let interval = Interval::new(&mask).unwrap();
    let around = |position| interval.of(0, position);
    assert_eq!(
        [around(-1), around(0), around(4), around(5), around(6)],
        [(0, 0), (0, 3), (3, 5), (5, 6), (0, 0)]
    );
}

#[test]
fn bits_turn_from_rows_to_keys() {
    let rows: Vec<u128> =
        (0..64u128).map(|r| (r + 3).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)).collect();
    for count in [1, 16, 64] {
        let mut keys = [0u64; 128];
        keys_from_rows(&rows[..count], &mut keys);
        for (j, key) in keys.iter().enumerate() {
            let expected: u64 = (0..count).map(|r| ((rows[r] >> j & 1) as u64) << r).sum();
            assert_eq!(*key, expected, "key {j} of {count} rows");
        }
    }
}

#[test]
fn ranges_of_bits_end_where_they_should() {
    assert_eq!(range_bits((0, 128)), u128::MAX);
    assert_eq!(range_bits((3, 5)), 0b11000);
    assert_eq!(range_bits((-9, 1)), 1);
    assert_eq!(range_bits((5, 5)), 0);
    assert_eq!(range_bits((127, 200)), 1 << 127);
}
