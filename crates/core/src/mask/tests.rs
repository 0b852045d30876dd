use super::*;
use proptest::prelude::*;

/// Counts the visible pairs of a tile one by one.
fn counted_status(mask: &Mask<'_>, tile: &Tile) -> TileStatus {
    let (mut visible, mut hidden) = (false, false);
    for q in tile.q_begin..tile.q_end {
        for k in tile.k_begin..tile.k_end {
            match mask.visible_at(tile.batch, tile.head, q, k) {
                true => visible = true,
                false => hidden = true,
            }
        }
    }
    match (visible, hidden) {
        (true, false) => TileStatus::Full,
        (false, true) => TileStatus::Skip,
        _ => TileStatus::Partial,
    }
}

fn leaf() -> impl Strategy<Value = Mask<'static>> {
    prop_oneof![
        Just(Mask::None),
        Just(Mask::Causal),
        (0usize..12, 0usize..12).prop_map(|(left, right)| Mask::SlidingWindow { left, right }),
        (0usize..12).prop_map(|left| Mask::SlidingWindow { left, right: usize::MAX }),
        (1usize..9).prop_map(|size| Mask::Chunked { size }),
        (1usize..9).prop_map(|size| Mask::ChunkedCausal { size }),
        Just(Mask::from_fn(|_, _, q, k| (q * 7 + k * 3) % 5 != 0)),
    ]
}

fn tree() -> impl Strategy<Value = Mask<'static>> {
    leaf().prop_recursive(3, 12, 2, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| a.and(b)),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| a.or(b)),
            inner.prop_map(|mask| !mask),
        ]
    })
}

fn tile() -> impl Strategy<Value = Tile> {
    (-20i64..40, 1i64..16, 0i64..40, 1i64..16).prop_map(|(q, rows, k, columns)| Tile {
        batch: 0,
        head: 0,
        q_begin: q,
        q_end: q + rows,
        k_begin: k,
        k_end: k + columns,
    })
}

proptest! {
    #[test]
    fn built_in_statuses_are_never_wrong(mask in leaf(), tile in tile()) {
        let counted = counted_status(&mask, &tile);
        match mask.tile_status(&tile) {
            TileStatus::Skip => prop_assert_eq!(counted, TileStatus::Skip),
            TileStatus::Full => prop_assert_eq!(counted, TileStatus::Full),
            TileStatus::Partial | TileStatus::Unknown => {}
        }
        if matches!(mask, Mask::None | Mask::Causal | Mask::SlidingWindow { .. } | Mask::Chunked { .. }) {
            prop_assert_eq!(mask.tile_status(&tile), counted, "bands and chunks are exact");
        }
    }

    #[test]
    fn joined_statuses_are_conservative(mask in tree(), tile in tile()) {
        let counted = counted_status(&mask, &tile);
        match mask.tile_status(&tile) {
            TileStatus::Skip => prop_assert_eq!(counted, TileStatus::Skip),
            TileStatus::Full => prop_assert_eq!(counted, TileStatus::Full),
            TileStatus::Partial | TileStatus::Unknown => {}
        }
    }

    #[test]
    fn joins_mean_what_they_say(a in tree(), b in tree(), q in -20i64..40, k in 0i64..40) {
        let (in_a, in_b) = (a.visible_at(0, 0, q, k), b.visible_at(0, 0, q, k));
        prop_assert_eq!(a.clone().and(b.clone()).visible_at(0, 0, q, k), in_a && in_b);
        prop_assert_eq!(a.clone().or(b).visible_at(0, 0, q, k), in_a || in_b);
        prop_assert_eq!((!a).visible_at(0, 0, q, k), !in_a);
    }
}

#[test]
fn a_sliding_window_counts_the_query_itself() {
    let window = Mask::SlidingWindow { left: 2, right: 0 };
    let visible: Vec<i64> = (0..8).filter(|&k| window.visible_at(0, 0, 5, k)).collect();
    assert_eq!(visible, [3, 4, 5]);
}

#[test]
fn chunks_of_negative_positions_round_down() {
    let chunked = Mask::Chunked { size: 4 };
    assert!(!chunked.visible_at(0, 0, -1, 0));
    assert!(chunked.visible_at(0, 0, 3, 0));
}

#[test]
fn the_widest_window_hides_nothing() {
    let window = Mask::SlidingWindow { left: usize::MAX, right: usize::MAX };
    assert!(window.visible_at(0, 0, i64::MAX, 0) && window.visible_at(0, 0, 0, i64::MAX));
}

#[test]
fn prefix_and_document_read_their_tensors() {
    let prefix = [3i32, 0];
    let mask = Mask::PrefixLm { prefix_len: TensorRef::from_slice(&prefix, &[2]).unwrap() };
    assert!(mask.visible_at(0, 0, 0, 2) && !mask.visible_at(0, 0, 0, 3) && !mask.visible_at(1, 0, 0, 2));
    let ids = [0u32, 0, 1, 1, 0];
    let mask = Mask::Document { ids: TensorRef::from_slice(&ids, &[1, 5]).unwrap() };
    assert!(mask.visible_at(0, 0, 1, 4) && !mask.visible_at(0, 0, 1, 2));
    assert!(!mask.visible_at(0, 0, -1, 0) && !mask.visible_at(0, 0, 5, 0));
}

#[test]
fn dense_masks_broadcast_and_add() {
    let bools = [1u8, 0, 2, 0, 0, 1];
    let at = |row, k| ScoreIndex { batch: 4, head: 2, row, q: 100, k };
    let mask = Mask::Dense(TensorRef::from_slice(&bools, &[1, 2, 3]).unwrap());
    assert!(mask.visible(&at(0, 2)) && !mask.visible(&at(0, 1)) && mask.visible(&at(1, 2)));
    let floats = [0.5f32, f32::NEG_INFINITY];
    let mask = Mask::Dense(TensorRef::from_slice(&floats, &[1, 1, 1, 2]).unwrap());
    assert_eq!(mask.additive(&at(0, 0)), 0.5);
    assert!(mask.visible(&at(0, 0)) && !mask.visible(&at(0, 1)));
    assert!((!mask.clone()).check_parameters().is_err());
    assert!(Mask::Causal.or(mask.clone()).check_parameters().is_err());
    assert!(Mask::Causal.and(mask).check_parameters().is_ok());
}

#[test]
fn empty_chunks_are_refused() {
    assert!(Mask::Chunked { size: 0 }.check_parameters().is_err());
    assert!(Mask::Causal.and(!Mask::ChunkedCausal { size: 0 }).check_parameters().is_err());
}
