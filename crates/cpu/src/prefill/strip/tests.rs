use omniflash_core::{AttentionOptions, AttentionProblem, KvCache, Mask, Query, TensorMut, TensorRef};
use proptest::prelude::*;

use super::*;

/// Calls `check` with a strip of 64 rows from `first` on, of a group of heads.
fn with_strip(
    mask: Mask<'_>,
    q_len: usize,
    kv_len: usize,
    group: usize,
    first: usize,
    check: impl FnOnce(&Strip),
) {
    let (q, k) = (vec![0.0f32; q_len * group], vec![0.0f32; kv_len]);
    let mut out = q.clone();
    let problem = AttentionProblem::new(
        Query::padded(TensorRef::from_slice(&q, &[1, q_len, group, 1]).unwrap()),
        KvCache::dense(
            TensorRef::from_slice(&k, &[1, kv_len, 1, 1]).unwrap(),
            TensorRef::from_slice(&k, &[1, kv_len, 1, 1]).unwrap(),
        ),
        TensorMut::from_slice(&mut out, &[1, q_len, group, 1]).unwrap(),
        None,
        &AttentionOptions::new().mask(mask),
    )
    .unwrap();
    let query_start = kv_len as i64 - q_len as i64;
    let sequence = Sequence { batch: 0, q_begin: 0, q_len, kv_len, query_start };
    let mut strip = Strip::new();
    strip.reset(&LoweredMask::new(&problem), &sequence, (0, group), first, 64, 16);
    check(&strip);
}

#[test]
fn a_full_tile_is_one_segment_without_an_edge() {
    with_strip(Mask::None, 64, 200, 1, 0, |strip| {
        let whole = Segment { begin: 0, end: 96, first: 0, vectors: 4, is_edge: false };
        assert_eq!(strip.cut(0, 96, 4)[..], [whole]);
        assert_eq!(strip.cut(192, 8, 4)[..], [Segment { end: 8, ..whole }]);
    });
    with_strip(Mask::None, 64, 99, 1, 0, |strip| {
        let tail = Segment { begin: 0, end: 4, first: 0, vectors: 4, is_edge: true };
        assert_eq!(strip.cut(96, 3, 4)[..], [tail], "the last block has 3 keys, padded to 4");
        let filled = Segment { begin: 0, end: 32, first: 0, vectors: 4, is_edge: true };
        assert_eq!(strip.cut(24, 24, 32)[..], [filled], "a block of 24 keys, padded to 32");
    });
}

#[test]
fn a_diagonal_tile_drops_vectors_as_they_cease_to_see() {
    with_strip(Mask::Causal, 64, 64, 1, 0, |strip| {
        let segment =
            |begin, first| Segment { begin, end: begin + 16, first, vectors: 4 - first, is_edge: true };
        assert_eq!(strip.cut(0, 64, 4)[..], [segment(0, 0), segment(16, 1), segment(32, 2), segment(48, 3)]);
    });
}

#[test]
fn heads_of_a_group_lie_beside_each_other() {
    with_strip(Mask::Causal, 40, 40, 4, 64, |strip| {
        let places: Vec<_> = strip.rows.iter().map(|query| (query.row, query.head)).collect();
        assert_eq!(places[..5], [(16, 0), (16, 1), (16, 2), (16, 3), (17, 0)]);
        assert_eq!((strip.rows.len(), strip.vectors, strip.hull), (64, 4, (0, 32)));
    });
    with_strip(Mask::Causal, 40, 40, 4, 128, |strip| {
        assert_eq!((strip.rows.len(), strip.vectors), (32, 2));
    });
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn segments_cover_what_is_visible_and_know_their_edges(
        (left, right) in (0usize..200, 0usize..100),
        (q_len, kv_len, group) in (1usize..130, 1usize..300, 1usize..4),
        block in 0i64..3,
        step in prop::sample::select(vec![4usize, 32]),
    ) {
        let first_key = 96 * block;
        prop_assume!((first_key as usize) < kv_len);
        let keys = (kv_len - first_key as usize).min(96);
        with_strip(Mask::SlidingWindow { left, right }, q_len, kv_len, group, 0, |strip| {
            let segments = strip.cut(first_key, keys, step);
            for (r, visible) in strip.keys.iter().enumerate() {
                for j in 0..keys {
                    let sees = (visible.0..visible.1).contains(&(first_key + j as i64));
                    let vector = r / 16;
                    let mut inside = segments.iter().filter(|segment| {
                        (segment.begin..segment.end).contains(&j)
                            && (segment.first..segment.first + segment.vectors).contains(&vector)
                    });
                    match inside.next() {
                        None => assert!(!sees, "row {r} sees key {j}, which no segment has"),
                        Some(segment) => assert!(sees || segment.is_edge, "row {r} does not see key {j}"),
                    }
                    assert!(inside.next().is_none(), "two segments have key {j}");
                }
            }
            for segment in segments.iter() {
                assert!(segment.begin % step == 0 && segment.end % step == 0);
                assert!(segment.end <= keys.next_multiple_of(step));
            }
        });
    }
}
