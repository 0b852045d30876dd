//! F4: every mask, alone and joined, and the positions it is asked with.

use std::sync::Arc;

use omniflash_core::{DType, Mask, MaskFunction, Tile, TileStatus};

use crate::spec::{Axes, Fill, MaskSpec, Spec};

const HIDE: f32 = f32::NEG_INFINITY;

pub(super) fn cases() -> Vec<Spec> {
    let mut cases = Vec::new();
    cases.extend(bands());
    cases.extend(chunks());
    cases.extend(tensors());
    cases.extend(packed());
    cases.extend(trees());
    cases.extend(functions());
    cases.extend(positions());
    cases
}

fn base(name: impl AsRef<str>, dtype: DType) -> Spec {
    Spec::new(format!("f4/{}_{dtype}", name.as_ref())).dtype(dtype).heads(4, 2).dim(64)
}

fn window(left: usize, right: usize) -> Mask<'static> {
    Mask::SlidingWindow { left, right }
}

/// Causal and windows, where queries outnumber keys and where they do not.
fn bands() -> Vec<Spec> {
    let shapes = [(70, 70), (1, 150), (33, 150), (150, 33), (130, 257), (257, 130), (5, 1)];
    let masks = [
        ("causal", Mask::Causal),
        ("window_0_0", window(0, 0)),
        ("window_5_0", window(5, 0)),
        ("window_0_9", window(0, 9)),
        ("window_17_3", window(17, 3)),
        ("window_63_64", window(63, 64)),
        ("window_127_0", window(127, 0)),
        ("window_left_only", window(20, usize::MAX)),
        ("window_right_only", window(usize::MAX, 20)),
        ("window_beyond", window(5000, 5000)),
        ("window_unlimited", window(usize::MAX, usize::MAX)),
    ];
    let mut cases = Vec::new();
    for (i, (name, mask)) in masks.iter().enumerate() {
        for (j, (seqlen_q, seqlen_k)) in shapes.into_iter().enumerate() {
            let dtype = [DType::BF16, DType::F32, DType::F16][(i + j) % 3];
            cases.push(
                base(format!("{name}_S{seqlen_q}_{seqlen_k}"), dtype)
                    .dense(1, seqlen_q, seqlen_k)
                    .mask(mask.clone()),
            );
        }
    }
    cases.push(base("window_127_0_long", DType::BF16).heads(2, 1).dense(1, 600, 1500).mask(window(127, 0)));
    cases
}

fn chunks() -> Vec<Spec> {
    let mut cases = Vec::new();
    for (i, size) in [1, 4, 50, 64, 100, 1000].into_iter().enumerate() {
        for (seqlen_q, seqlen_k) in [(90, 90), (40, 210), (210, 40), (1, 256)] {
            let dtype = [DType::F32, DType::BF16][i % 2];
            let named = |kind: &str| {
                base(format!("{kind}_{size}_S{seqlen_q}_{seqlen_k}"), dtype).dense(1, seqlen_q, seqlen_k)
            };
            cases.push(named("chunked").mask(Mask::Chunked { size }));
            cases.push(named("chunked_causal").mask(Mask::ChunkedCausal { size }));
        }
    }
    cases
}

/// Masks that are or have tensors.
fn tensors() -> Vec<Spec> {
    let mut cases = Vec::new();
    for (i, dtype) in [DType::F32, DType::BF16, DType::F16].into_iter().enumerate() {
        let prefix = MaskSpec::PrefixLm(vec![0, 40, 200]);
        cases.push(base("prefix_lm", dtype).dense(3, 80, 90).mask(prefix.clone()));
        cases.push(base("prefix_lm_short", dtype).dense(3, 30, 190).mask(prefix.clone()));
        cases.push(base("prefix_lm_u32", dtype).dense(3, 90, 70).mask(prefix).index_dtype(DType::U32));
        let documents = MaskSpec::Document(vec![vec![20, 1, 30], vec![64, 64]]);
        cases.push(base("document", dtype).dense(2, 150, 150).mask(documents.clone()));
        let causal = documents.clone().and(Mask::Causal);
        cases.push(base("document_causal", dtype).dense(2, 150, 150).mask(causal).index_dtype(DType::U32));
        let shared = MaskSpec::Document(vec![vec![20, 1, 30]]);
        cases.push(base("document_shared", dtype).dense(2, 40, 100).mask(shared));
        cases.push(base("document_more_queries", dtype).dense(2, 130, 100).mask(documents));
        let dense_types = [DType::Bool, DType::F32, dtype];
        for (j, mask_dtype) in dense_types.into_iter().enumerate().take(if i == 0 { 2 } else { 3 }) {
            for (axes_name, axes) in all_axes() {
                let mask = MaskSpec::Dense { dtype: mask_dtype, axes, fill: Fill::Random };
                cases.push(
                    base(format!("dense_{j}_{mask_dtype}_{axes_name}"), dtype).dense(2, 35, 75).mask(mask),
                );
            }
        }
    }
    cases
}

/// Tensors for so many scores that a GPU packs them first: every form, dtype and broadcast, rows and tiles that see
/// nothing, lengths, joins, values that hide and show all of a tile.
fn packed() -> Vec<Spec> {
    let key_padding = Axes { batch: true, heads: Some(false), rows: false };
    let shared = Axes { batch: false, heads: Some(false), rows: true };
    let by_sequence = Axes { batch: true, heads: Some(false), rows: true };
    let mask = |dtype, axes, fill| MaskSpec::Dense { dtype, axes, fill: Fill::Of(fill) };
    let random = |dtype, axes| MaskSpec::Dense { dtype, axes, fill: Fill::Random };
    // Causal for 150 queries and 1800 keys, in values that hide or show, and in values that also add.
    let causal: fn(usize, usize, usize, usize) -> f32 =
        |_, _, row, key| if key <= row + 1650 { 0.0 } else { HIDE };
    let blocks: fn(usize, usize, usize, usize) -> f32 = |b, _, row, key| match (row / 64 + key / 192 + b) % 3
    {
        0 => HIDE,
        1 => 0.0,
        _ => ((row * 7 + key * 3) % 11) as f32 / 8.0 - 0.5,
    };
    let hidden: fn(usize, usize, usize, usize) -> f32 =
        |b, head, row, key| if (row / 3 + head) % 4 == 1 || key / 100 == b + 3 { HIDE } else { 0.0 };
    let by_head: fn(usize, usize, usize, usize) -> f32 =
        |b, head, row, key| if key < 100 * head || (row + key + b) % 97 == 0 { HIDE } else { 0.0 };
    let padding: fn(usize, usize, usize, usize) -> f32 =
        |b, _, _, key| if key < 1700 - 900 * b { 0.0 } else { HIDE };
    // A value that is NaN adds NaN to a score that is seen; these are not.
    let nan_after: fn(usize, usize, usize, usize) -> f32 =
        |_, _, row, key| if key > row + 1650 { f32::NAN } else { 0.25 };
    let masks: [(&str, MaskSpec); 10] = [
        ("float_nan_and_causal", mask(DType::F32, shared, nan_after).and(Mask::Causal)),
        ("bool_random", random(DType::Bool, Axes::FULL)),
        ("bool_causal", mask(DType::Bool, shared, causal)),
        ("bool_hidden_rows", mask(DType::Bool, Axes::FULL, hidden)),
        ("bool_by_head_and_causal", mask(DType::Bool, Axes::FULL, by_head).and(Mask::Causal)),
        ("not_bool_or_window", mask(DType::Bool, by_sequence, blocks).negated().or(window(9, 3))),
        ("bool_key_padding", mask(DType::Bool, key_padding, padding)),
        ("float_causal", mask(DType::F32, shared, causal)),
        ("float_blocks", mask(DType::F32, by_sequence, blocks)),
        ("float_key_padding_and_bool", {
            mask(DType::F32, key_padding, padding).and(mask(DType::Bool, by_sequence, blocks))
        }),
    ];
    let mut cases = Vec::new();
    for (i, (name, mask)) in masks.into_iter().enumerate() {
        let (dtype, seqlen_k) = ([DType::BF16, DType::F16, DType::F32][(i + i % 2) % 3], [1800, 1797][i % 2]);
        let named = base(format!("packed_{name}_K{seqlen_k}"), dtype).dim(16);
        cases.push(named.dense(2, 150, seqlen_k).mask(mask));
    }
    let nan_after: fn(usize, usize, usize, usize) -> f32 =
        |_, _, row, key| if key > row + 40 { f32::NAN } else { 0.25 };
    let nans = mask(DType::BF16, shared, nan_after).and(Mask::Causal);
    cases.push(base("few_nan_and_causal", DType::BF16).dense(2, 35, 75).mask(nans));
    let lengths = |name: &str| base(format!("packed_{name}"), DType::BF16).dim(16);
    let (bools, floats) = (mask(DType::Bool, by_sequence, blocks), mask(DType::BF16, by_sequence, blocks));
    cases.push(lengths("bool_ragged").q_ragged(&[200, 100]).k_ragged(&[1900, 400]).mask(bools.clone()));
    cases.push(lengths("bool_start").dense(2, 150, 1800).mask(bools).query_start(&[-400, 77]));
    let documents = MaskSpec::Document(vec![vec![700, 64, 1, 128, 300, 200, 400], vec![1000, 1000]]);
    let causal = documents.clone().and(Mask::Causal);
    cases.push(lengths("documents").dense(2, 150, 1800).mask(documents.clone()).query_start(&[660, 1640]));
    cases.push(lengths("documents_causal").dense(2, 150, 1797).mask(causal).index_dtype(DType::U32));
    cases
        .push(lengths("documents_shared").dense(3, 110, 1800).mask(MaskSpec::Document(vec![vec![900, 800]])));
    cases.push(
        lengths("documents_ragged").q_ragged(&[150, 150]).k_ragged(&[1900, 100]).mask(documents.clone()),
    );
    cases.push(lengths("not_documents").q_dense(2, 150).paged(16, &[1801, 300]).mask(documents.negated()));
    cases.push(lengths("bf16_paged").q_dense(2, 150).paged(16, &[1801, 300]).mask(floats));
    cases
}

fn all_axes() -> [(&'static str, Axes); 6] {
    [
        ("bhss", Axes::FULL),
        ("1hss", Axes { batch: false, heads: Some(true), rows: true }),
        ("b1ss", Axes { batch: true, heads: Some(false), rows: true }),
        ("11ss", Axes { batch: false, heads: Some(false), rows: true }),
        ("bss", Axes::RANK_3),
        ("1ss", Axes { batch: false, heads: None, rows: true }),
    ]
}

fn trees() -> Vec<Spec> {
    let plain = MaskSpec::Plain;
    let bools = || MaskSpec::Dense { dtype: DType::Bool, axes: Axes::RANK_3, fill: Fill::Random };
    let floats = || MaskSpec::Dense { dtype: DType::F32, axes: Axes::FULL, fill: Fill::Random };
    let trees: Vec<(&str, MaskSpec)> = vec![
        ("causal_and_window", plain(Mask::Causal).and(window(9, 40))),
        ("causal_or_window", plain(Mask::Causal).or(window(0, 12))),
        ("causal_or_chunked", plain(Mask::Causal).or(Mask::Chunked { size: 32 })),
        ("not_causal", plain(Mask::Causal).negated()),
        ("not_window", plain(window(10, 10)).negated()),
        ("not_none", plain(Mask::None).negated()),
        ("sink_tokens", plain(window(16, 0)).or(Mask::from_fn(|_, _, _, k| k < 4)).and(Mask::Causal)),
        ("not_of_or", plain(window(3, 3)).or(Mask::Chunked { size: 20 }).negated()),
        ("bool_and_causal", bools().and(Mask::Causal)),
        ("bool_or_window", bools().or(window(2, 2))),
        ("not_bool", bools().negated()),
        ("float_and_causal", floats().and(Mask::Causal)),
        ("float_and_float", floats().and(floats())),
        ("float_and_bool", floats().and(bools())),
        ("prefix_or_document", MaskSpec::PrefixLm(vec![5, 30]).or(MaskSpec::Document(vec![vec![10, 50]]))),
        (
            "deep",
            plain(Mask::Causal)
                .or(Mask::Chunked { size: 16 })
                .and(plain(window(30, 4)).or(plain(Mask::ChunkedCausal { size: 7 }).negated())),
        ),
    ];
    let mut cases = Vec::new();
    for (i, (name, tree)) in trees.into_iter().enumerate() {
        for (seqlen_q, seqlen_k) in [(66, 66), (70, 140)] {
            let dtype = [DType::F32, DType::BF16, DType::F16][i % 3];
            cases.push(
                base(format!("tree_{name}_S{seqlen_q}"), dtype)
                    .dense(2, seqlen_q, seqlen_k)
                    .mask(tree.clone()),
            );
        }
    }
    // Rows, tiles and sequences without a visible key.
    let nothing: Vec<(&str, MaskSpec)> = vec![
        ("rows", dense_of(|_, _, row, _| if row % 3 == 1 { HIDE } else { 0.0 }, DType::Bool)),
        ("rows_float", dense_of(|_, _, row, _| if row % 3 == 1 { HIDE } else { 0.5 }, DType::F32)),
        ("tile", dense_of(|_, _, row, key| if row < 64 && key < 128 { HIDE } else { 0.0 }, DType::Bool)),
        ("first_keys", dense_of(|_, _, _, key| if key < 190 { HIDE } else { 0.0 }, DType::Bool)),
        ("last_keys", dense_of(|_, _, _, key| if key >= 5 { HIDE } else { 0.0 }, DType::F32)),
        ("sequence", dense_of(|b, _, _, _| if b == 1 { HIDE } else { 0.0 }, DType::Bool)),
        ("head", dense_of(|_, head, _, _| if head == 2 { HIDE } else { 0.0 }, DType::F32)),
        ("all_function", plain(Mask::from_fn(|_, _, _, _| false))),
        ("one_key", plain(Mask::from_fn(|_, _, q, k| k == q / 2))),
    ];
    for (i, (name, mask)) in nothing.into_iter().enumerate() {
        let dtype = [DType::BF16, DType::F32][i % 2];
        cases.push(base(format!("hidden_{name}"), dtype).dense(2, 100, 200).mask(mask.clone()));
        cases.push(base(format!("hidden_{name}_decode"), dtype).dense(2, 1, 200).mask(mask));
    }
    cases
}

fn dense_of(fill: fn(usize, usize, usize, usize) -> f32, dtype: DType) -> MaskSpec {
    MaskSpec::Dense { dtype, axes: Axes::FULL, fill: Fill::Of(fill) }
}

/// A user's window, with or without knowledge of tiles.
#[derive(Clone, Copy)]
struct EvenWindow {
    knows_tiles: bool,
}

impl MaskFunction for EvenWindow {
    fn visible(&self, _batch: usize, head: usize, q: i64, k: i64) -> bool {
        k <= q && q - k < 48 && (head.is_multiple_of(2) || k % 2 == 0)
    }

    fn tile_status(&self, tile: &Tile) -> TileStatus {
        if !self.knows_tiles {
            TileStatus::Unknown
        } else if tile.k_begin >= tile.q_end || tile.q_begin - (tile.k_end - 1) >= 48 {
            TileStatus::Skip
        } else if tile.head.is_multiple_of(2)
            && tile.k_end - 1 <= tile.q_begin
            && tile.q_end - 1 - tile.k_begin < 48
        {
            TileStatus::Full
        } else {
            TileStatus::Partial
        }
    }
}

fn functions() -> Vec<Spec> {
    let mut cases = Vec::new();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for (seqlen_q, seqlen_k) in [(200, 200), (30, 400), (1, 300)] {
            for knows_tiles in [false, true] {
                let name = if knows_tiles { "function_with_status" } else { "function" };
                let mask = Mask::Custom(Arc::new(EvenWindow { knows_tiles }));
                cases.push(
                    base(format!("{name}_S{seqlen_q}_{seqlen_k}"), dtype)
                        .dense(1, seqlen_q, seqlen_k)
                        .mask(mask)
                        .twin(format!("f4/function_S{seqlen_q}_{seqlen_k}_{dtype}")),
                );
            }
        }
        let by_head = Mask::from_fn(|b, head, q, k| (q + k + head as i64 + b as i64) % 3 != 0);
        cases.push(base("function_of_all", dtype).dense(2, 40, 90).mask(by_head));
    }
    cases
}

/// Explicit positions of the first query.
fn positions() -> Vec<Spec> {
    let starts: [(&str, &[i64]); 4] =
        [("zero", &[0, 0]), ("negative", &[-13, -200]), ("middle", &[20, 7]), ("beyond", &[500, 77])];
    let masks: [(&str, MaskSpec); 5] = [
        ("causal", Mask::Causal.into()),
        ("window", window(11, 6).into()),
        ("chunked_causal", Mask::ChunkedCausal { size: 24 }.into()),
        ("prefix_lm", MaskSpec::PrefixLm(vec![3, 60])),
        ("document", MaskSpec::Document(vec![vec![30, 30], vec![10]])),
    ];
    let mut cases = Vec::new();
    for (start_name, starts) in starts {
        for (j, (mask_name, mask)) in masks.iter().enumerate() {
            // Positions are counted alike for every type: a mask keeps one, so that fewer kernels are compiled.
            let dtype = [DType::F32, DType::BF16, DType::F16][j % 3];
            let named = |form: &str| base(format!("start_{start_name}_{mask_name}_{form}"), dtype);
            cases.push(named("prefill").dense(2, 50, 80).mask(mask.clone()).query_start(starts));
            cases.push(named("decode").dense(2, 1, 80).mask(mask.clone()).query_start(starts));
        }
    }
    cases
}
