use super::*;
use crate::mask::{Mask, MaskFunction, Tile, TileStatus};
use crate::problem::ProblemShape;
use crate::score_mod::ScoreMod;
use crate::source::DeviceSource;
use crate::tensor::TensorRef;

fn lowered(mask: &Mask<'_>, score_mod: &ScoreMod<'_>) -> String {
    let spec = FunctorSpec::new(mask, score_mod, 8, "test").unwrap();
    format!("{} {} {}", spec.mask_type, spec.score_mod_type, spec.parameters.len())
}

fn lowered_mask(mask: Mask<'_>) -> String {
    FunctorSpec::new(&mask, &ScoreMod::Identity, 8, "test").unwrap().mask_type.into_owned()
}

struct Stripes;

impl MaskFunction for Stripes {
    fn visible(&self, _: usize, _: usize, _: i64, k: i64) -> bool {
        k % 3 != 0
    }
    fn device_source(&self) -> Option<DeviceSource> {
        Some(DeviceSource::new("Stripes", "struct Stripes { int period; };", &3i32))
    }
}

#[test]
fn equal_masks_have_one_form() {
    let causal = lowered_mask(Mask::Causal);
    assert_eq!(causal, "Causal");
    assert_eq!(lowered_mask(Mask::SlidingWindow { left: usize::MAX, right: 0 }), causal);
    assert_eq!(lowered_mask(Mask::And(Box::new(Mask::None), Box::new(Mask::Causal))), causal);
    assert_eq!(lowered_mask(Mask::Not(Box::new(Mask::Not(Box::new(Mask::Causal))))), causal);
    let everything = Mask::SlidingWindow { left: usize::MAX, right: usize::MAX };
    assert_eq!(lowered_mask(everything), "NoMask");
    assert_eq!(lowered_mask(Mask::Or(Box::new(Mask::None), Box::new(Mask::Causal))), "NoMask");
    assert_eq!(lowered_mask(Mask::ChunkedCausal { size: 4 }), "And<Chunked, Causal>");
    assert_eq!(lowered_mask(!(Mask::Chunked { size: 4 }).or(!Mask::Causal)), "Not<Or<Chunked, Not<Causal>>>");
}

#[test]
fn every_leaf_begins_at_a_multiple_of_the_alignment() {
    let mask = Mask::Causal.and(Mask::SlidingWindow { left: 7, right: 9 });
    let score_mod = ScoreMod::Softcap { cap: 30.0 };
    let spec = FunctorSpec::new(&mask, &score_mod, 8, "test").unwrap();
    assert_eq!(spec.parameters.len(), 3 * LEAF_ALIGNMENT);
    assert_eq!(spec.parameters[16..24], [7i32.to_ne_bytes(), 9i32.to_ne_bytes()].concat());
    assert_eq!(spec.parameters[32..36], 30.0f32.to_ne_bytes());
    assert!(spec.parameters[..16].iter().all(|&byte| byte == 0));
}

#[test]
fn tensors_give_their_address_and_strides_with_zero_where_they_broadcast() {
    let data = [0.0f32; 24];
    let bias = ScoreMod::Bias(TensorRef::from_slice(&data, &[1, 2, 4, 3]).unwrap());
    let spec = FunctorSpec::new(&Mask::None, &bias, 2, "test").unwrap();
    assert_eq!(spec.score_mod_type, "Bias<float>");
    let member = |i: usize| i64::from_ne_bytes(spec.parameters[16 + 8 * i..24 + 8 * i].try_into().unwrap());
    assert_eq!(member(0) as u64, data.as_ptr() as u64);
    assert_eq!([member(1), member(2), member(3), member(4)], [0, 12, 3, 1]);
}

#[test]
fn every_kind_of_tree_lowers_to_a_stable_type() {
    let (bools, floats, ids) = ([1u8; 12], [half::bf16::ONE; 12], [0i32; 4]);
    let dense = Mask::Dense(TensorRef::from_slice(&bools, &[1, 3, 4]).unwrap());
    let additive = Mask::Dense(TensorRef::from_slice(&floats, &[1, 1, 4, 3]).unwrap());
    let prefix = Mask::PrefixLm { prefix_len: TensorRef::from_slice(&ids, &[4]).unwrap() };
    let document = Mask::Document { ids: TensorRef::from_slice(&ids, &[1, 4]).unwrap() };
    let slopes = ScoreMod::Alibi { slopes: Some(TensorRef::from_slice(&floats[..8], &[8]).unwrap()) };
    let capped = ScoreMod::Softcap { cap: 1.0 }.then(ScoreMod::Alibi { slopes: None });
    let lines = [
        lowered(&Mask::None, &ScoreMod::Identity),
        lowered(&Mask::Causal.and(dense), &ScoreMod::Identity),
        lowered(&additive, &slopes),
        lowered(&prefix.or(document), &capped),
        lowered(&Mask::custom(Stripes).and(Mask::custom(Stripes)), &ScoreMod::Identity),
        lowered(&Mask::from_fn(|_, _, _, _| true), &ScoreMod::Identity),
    ];
    insta::assert_snapshot!(lines.join("\n"), @r"
    NoMask Identity 32
    And<Causal, DenseMask> Identity 80
    AdditiveMask<bfloat16> AlibiSlopes<bfloat16> 64
    Or<PrefixLm, Document> Then<Softcap, Alibi> 80
    And<source0::Stripes, source0::Stripes> Identity 48
    TableMask Identity 64
    ");
}

#[test]
fn a_score_closure_without_source_is_unsupported_and_says_what_to_do() {
    let score_mod = ScoreMod::from_fn(|score, _, _, _, _| score);
    let error = FunctorSpec::new(&Mask::None, &score_mod, 8, "cuda:0").unwrap_err().to_string();
    assert!(error.starts_with("cuda:0 does not support") && error.contains("device source"), "{error}");
}

#[test]
fn a_table_answers_as_its_closure_inside_the_extent() {
    let visible = |b: usize, h: usize, q: i64, k: i64| (q + k * 3 + b as i64) % 5 != 0 && (h == 0 || k <= q);
    let extent = TableExtent { batch: 2, heads: 3, q_begin: -70, q_end: 100, k_end: 131 };
    let table = MaskTable::build(&visible, &extent);
    for (b, h) in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 2)] {
        for q in -70..100 {
            for k in 0..131 {
                assert_eq!(table.visible(b, h, q, k), visible(b, h, q, k), "{b} {h} {q} {k}");
            }
        }
    }
    assert!(!table.visible(0, 0, 100, 1) && !table.visible(0, 0, 0, 131));
    // Heads 1 and 2 are alike and stored once: 4 planes of 3 x 3 blocks.
    assert_eq!(table.data().iter().take(6).copied().collect::<Vec<_>>(), [0, 1, 1, 2, 3, 3]);
}

struct Lower;

impl MaskFunction for Lower {
    fn visible(&self, _: usize, _: usize, q: i64, k: i64) -> bool {
        assert!((q / 64) == (k / 64), "asked inside a block whose status is known");
        k <= q
    }
    fn tile_status(&self, tile: &Tile) -> TileStatus {
        Mask::Causal.tile_status(tile)
    }
    fn varies_by_batch(&self) -> bool {
        false
    }
    fn varies_by_head(&self) -> bool {
        false
    }
}

#[test]
fn known_blocks_are_not_evaluated_and_shared_planes_are_stored_once() {
    let extent = TableExtent { batch: 3, heads: 4, q_begin: 0, q_end: 256, k_end: 256 };
    let table = MaskTable::build(&Lower, &extent);
    let data = table.data();
    assert_eq!(data[..12], [0; 12]);
    let blocks: Vec<i32> = data[12..28].iter().map(|&block| block as i32).collect();
    assert_eq!(blocks, [0, -2, -2, -2, -1, 1, -2, -2, -1, -1, 2, -2, -1, -1, -1, 3]);
    assert_eq!(data.len(), 12 + 16 + 4 * 128);
}

#[test]
fn a_table_is_named_in_the_parameters_where_its_slot_is() {
    let mask = Mask::Causal.and(Mask::from_fn(|_, _, _, k| k % 2 == 0));
    let mut spec = FunctorSpec::new(&mask, &ScoreMod::Identity, 1, "test").unwrap();
    assert_eq!(spec.tables[0].offset, 16);
    let extent = TableExtent { batch: 1, heads: 1, q_begin: -3, q_end: 61, k_end: 64 };
    let table = MaskTable::build(spec.tables[0].function, &extent);
    spec.set_table(0, &table, 0x1000);
    let address = |i: usize| u64::from_ne_bytes(spec.parameters[16 + 8 * i..24 + 8 * i].try_into().unwrap());
    assert_eq!([address(0), address(1), address(2)], [0x1000, 0x1004, 0x1008]);
    assert_eq!(spec.parameters[40..44], (-3i32).to_ne_bytes());
}

#[test]
fn an_empty_extent_has_an_empty_table() {
    let extent = TableExtent { batch: 0, heads: 4, q_begin: 0, q_end: 0, k_end: 0 };
    assert!(MaskTable::build(&|_, _, _, _| true, &extent).data().is_empty());
}

#[test]
fn values_are_loaded_in_pairs_where_each_is_a_whole_aligned_one() {
    #[repr(align(16))]
    struct Aligned([half::bf16; 64]);
    let data = Aligned([half::bf16::ONE; 64]);
    let lowered = |offset: usize, shape: &[usize], strides: &[i64]| {
        let layout = crate::layout::Layout::new(shape, strides).unwrap();
        lowered_mask(Mask::Dense(TensorRef::with_layout(&data.0, layout, offset).unwrap()))
    };
    assert_eq!(lowered(0, &[1, 3, 4], &[12, 4, 1]), "AdditiveMask<bfloat16, 2>");
    assert_eq!(lowered(2, &[2, 3, 4], &[0, 6, 1]), "AdditiveMask<bfloat16, 2>");
    for (offset, shape, strides) in [
        (1, [1, 3, 4], [12, 4, 1]),
        (0, [1, 3, 3], [12, 4, 1]),
        (0, [1, 3, 4], [12, 5, 1]),
        (0, [2, 3, 4], [13, 4, 1]),
        (0, [1, 3, 4], [1, 8, 2]),
    ] {
        assert_eq!(
            lowered(offset, &shape, &strides),
            "AdditiveMask<bfloat16>",
            "{offset} {shape:?} {strides:?}"
        );
    }
}

#[test]
fn packed_tensors_name_the_parts_of_their_packed_form() {
    let (bools, floats) = ([1u8; 2 * 100 * 5000], [0.5f32; 5000]);
    let shape = ProblemShape::for_tests((2, 3), (100, 5000));
    let bools = TensorRef::from_slice(&bools, &[2, 1, 100, 5000]).unwrap();
    let floats = TensorRef::from_slice(&floats, &[1, 1, 1, 5000]).unwrap().expand(2, 100).unwrap();
    let mask = Mask::Dense(bools).and(Mask::Dense(floats));
    let packing = |tensor: &TensorRef<'_>| Some(MaskPacking::new(tensor, &shape));
    let mut spec = FunctorSpec::with_packing(&mask, &ScoreMod::Identity, 3, "test", &packing).unwrap();
    assert!(spec.mask_type.starts_with("And<PackedMask, PackedAdditive<float"), "{}", spec.mask_type);
    let [bits, values] = [0, 1].map(|slot| spec.packed[slot].packing);
    assert_eq!((bits.batches, bits.heads, bits.rows, bits.row_blocks(), bits.spans()), (2, 1, 100, 2, 3));
    assert_eq!((values.batches, values.heads, values.rows, values.row_words()), (1, 1, 1, 0));
    // Two words for each of 2 x 2 x 3 blocks, 157 words for each of 200 rows, two positions.
    assert_eq!((bits.bits_offset(), bits.bytes()), (96, 96 + 4 * 157 * 200 + 8));
    assert_eq!(values.bytes(), 3 * 8 + 8);
    spec.set_packed(0, 0x1000);
    spec.set_packed(1, 0x80000);
    let member = |i: usize| u64::from_ne_bytes(spec.parameters[8 * i..8 * i + 8].try_into().unwrap());
    assert_eq!((member(0), member(1)), (0x1000, 0x1000 + bits.starts_offset() as u64));
    // Steps of blocks: 6 a sequence, none a head, 3 a block of rows.
    assert_eq!((member(2), member(3)), (6, 3));
    assert_eq!([member(4), member(5), member(6), member(7)], [0x1060, 15_700, 0, 157]);
    assert_eq!((member(8), member(9), member(10), member(11)), (0x80000, 0x80018, 0, 0));
}
