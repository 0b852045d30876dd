//! The decode kernel on a host, as `emulated.rs` runs the others.

#![allow(clippy::unwrap_used)] // all of it is test code

#[allow(dead_code, unused_imports)] // shared with other tests
mod harness;

use half::{bf16, f16};
use harness::{Case, FORWARD, KvForm, Module, QForm, check_decode};
use omniflash_core::lower::FunctorSpec;
use omniflash_core::{DType, Mask, ScoreMod};
use omniflash_kernels_cuda::DecodeConfig;

fn config(dtype: DType, head_dim: usize, value_dim: usize, rows: usize) -> DecodeConfig {
    DecodeConfig { slots: 6, ..DecodeConfig::new(dtype, head_dim, value_dim, rows, 227 << 10).unwrap() }
}

fn module(config: &DecodeConfig, mask: &Mask<'_>, score_mod: &ScoreMod<'_>, heads: usize) -> Module {
    let functors = FunctorSpec::new(mask, score_mod, heads, "test").unwrap();
    Module::build(&config.translation_unit(&functors), FORWARD)
}

#[test]
fn every_number_of_workers_and_partitions_gives_the_same_answer() {
    let config = config(DType::BF16, 64, 64, 4);
    let module = module(&config, &Mask::None, &ScoreMod::Identity, 8);
    let base = Case { pack_groups: true, sinks: true, ..Case::<bf16>::new(2, 1, 700, 8, 2, 64, 64) };
    for workers in [1, 2, 3, 7, 22, 200] {
        check_decode(&module, &config, &base, workers);
    }
    for partitions in [1, 2, 5, 40] {
        check_decode(&module, &config, &Case { partitions, ..base.clone() }, 0);
    }
    check_decode(&module, &config, &Case { seqlen_k: 0, ..base.clone() }, 5);
    check_decode(&module, &config, &Case { seqlen_k: 0, sinks: false, ..base.clone() }, 5);
    check_decode(&module, &config, &Case { seqlen_k: 0, partitions: 3, ..base.clone() }, 0);
    check_decode(&module, &config, &Case { seqlen_k: 1, ..base }, 5);
}

#[test]
fn lengths_on_the_device_decide_who_does_what() {
    let config = config(DType::F16, 48, 80, 8);
    let module = module(&config, &Mask::Causal, &ScoreMod::Identity, 4);
    let base = Case { pack_groups: true, ..Case::<f16>::new(40, 4, 230, 4, 2, 48, 80).masked(Mask::Causal) };
    // An item counts for three tiles more: some segments have no keys.
    let costly = DecodeConfig { tiles_of_item: 3, ..config };
    let costly_module = self::module(&costly, &Mask::Causal, &ScoreMod::Identity, 4);
    for workers in [3, 11, 64] {
        check_decode(&costly_module, &costly, &Case { q_form: QForm::Ragged, ..base.clone() }, workers);
    }
    for (q_form, kv_form, workers) in [
        (QForm::Ragged, KvForm::Continuous, 11),
        (QForm::Lengths, KvForm::Lengths, 64),
        (QForm::Padded, KvForm::Ragged, 33),
        (QForm::Ragged, KvForm::Ragged, 0),
    ] {
        check_decode(&module, &config, &Case { q_form, kv_form, ..base.clone() }, workers);
    }
}

#[test]
fn pages_of_any_size_and_windows_that_skip_them() {
    let window = Mask::SlidingWindow { left: 100, right: 0 };
    let config = DecodeConfig { paged: true, slots: 5, ..config(DType::BF16, 64, 64, 12) };
    let module = module(&config, &window, &ScoreMod::Identity, 8);
    let base = Case {
        pack_groups: true,
        q_form: QForm::Ragged,
        ..Case::<bf16>::new(4, 3, 500, 8, 2, 64, 64).masked(window)
    };
    for (page_size, workers) in [(1, 3), (5, 9), (16, 6), (64, 4), (128, 0)] {
        check_decode(&module, &config, &Case { kv_form: KvForm::Paged(page_size), ..base.clone() }, workers);
    }
    check_decode(&module, &config, &Case { kv_form: KvForm::Paged(7), partitions: 3, ..base }, 0);
}

#[test]
fn two_fragments_of_rows_and_values_that_are_not_finite() {
    let config = config(DType::F16, 32, 32, 24);
    let module = module(&config, &Mask::Causal, &ScoreMod::Identity, 8);
    let base = Case {
        pack_groups: true,
        bad_values: true,
        ..Case::<f16>::new(2, 6, 150, 8, 2, 32, 32).masked(Mask::Causal)
    };
    check_decode(&module, &config, &base, 5);
    check_decode(&module, &config, &Case { bad_values: false, ..base }, 1);
}

#[test]
fn masks_that_differ_between_heads_and_rows_without_alignment() {
    let mask = Mask::Causal.and(Mask::from_fn(|b, h, q, k| k > 100 && (q + 3 * k + (b + h) as i64) % 7 != 0));
    let score_mod = ScoreMod::Softcap { cap: 3.0 }.then(ScoreMod::Alibi { slopes: None });
    let config = DecodeConfig { vector_loads: false, ..config(DType::BF16, 43, 21, 6) };
    let module = module(&config, &mask, &score_mod, 6);
    let base = Case { pack_groups: true, ..Case::<bf16>::new(3, 2, 260, 6, 2, 43, 21) };
    check_decode(&module, &config, &base.masked(mask).modified(score_mod), 7);
}

#[test]
fn wide_single_precision_takes_fewer_warps() {
    let config = DecodeConfig { warps: 2, ..config(DType::F32, 128, 128, 2) };
    let module = module(&config, &Mask::Causal, &ScoreMod::Identity, 4);
    let base = Case {
        pack_groups: true,
        softmax_scale: -0.2,
        ..Case::<f32>::new(2, 1, 200, 4, 2, 128, 128).masked(Mask::Causal)
    };
    check_decode(&module, &config, &base, 9);
}

#[test]
fn sequences_with_more_rows_than_a_tile_are_left_to_another_launch() {
    // The reference's rows of those sequences must not be touched: all rows here are too many.
    let config = config(DType::BF16, 32, 32, 16);
    let module = module(&config, &Mask::None, &ScoreMod::Identity, 2);
    let out = harness::decode_output(&module, &config, &Case::<bf16>::new(3, 20, 90, 2, 2, 32, 32), 4);
    assert!(out.iter().all(|value| value.to_f32() == harness::UNTOUCHED));
}

#[test]
fn clusters_share_items_whole_or_in_a_line() {
    let base = Case { pack_groups: true, sinks: true, ..Case::<bf16>::new(2, 1, 500, 8, 2, 32, 32) };
    let alone = DecodeConfig { slots: 3, ..config(DType::BF16, 32, 32, 4) };
    for (cluster, workers) in [(2, 7), (4, 3)] {
        let whole = DecodeConfig { cluster, whole_items: true, ..alone };
        let kernel = module(&whole, &Mask::None, &ScoreMod::Identity, 8);
        for seqlen_k in [0, 1, 500] {
            check_decode(&kernel, &whole, &Case { seqlen_k, ..base.clone() }, 0);
        }
        let line = DecodeConfig { cluster, ..alone };
        let kernel = module(&line, &Mask::None, &ScoreMod::Identity, 8);
        for workers in [1, workers, 40] {
            check_decode(&kernel, &line, &base, workers);
        }
    }
    let pages = DecodeConfig { paged: true, cluster: 2, slots: 4, ..config(DType::F16, 48, 80, 8) };
    let kernel = module(&pages, &Mask::Causal, &ScoreMod::Identity, 4);
    let ragged = Case { pack_groups: true, ..Case::<f16>::new(33, 4, 90, 4, 2, 48, 80).masked(Mask::Causal) };
    let kv_form = KvForm::Paged(16);
    check_decode(&kernel, &pages, &Case { q_form: QForm::Ragged, kv_form, ..ragged }, 11);
}

#[test]
fn pages_are_asked_for_before_lengths_are_known() {
    // Sequences are shorter than they can be, so that what a worker of the line asked for is another's; a window begins with a
    // later tile, and a cluster has more of them than a warp has lanes.
    let window = Mask::SlidingWindow { left: 600, right: 0 };
    let config = DecodeConfig { paged: true, cluster: 2, slots: 4, ..config(DType::BF16, 32, 32, 4) };
    for mask in [Mask::None, window] {
        let base =
            Case { pack_groups: true, ..Case::<bf16>::new(3, 1, 4300, 4, 2, 32, 32).masked(mask.clone()) };
        let whole = DecodeConfig { whole_items: true, ..config };
        let line = DecodeConfig { warps: 8, ..config };
        for (config, workers) in [(whole, 0), (line, 4), (line, 7)] {
            let kernel = module(&config, &mask, &ScoreMod::Identity, 4);
            for page_size in [16, 48] {
                let kv_form = KvForm::Paged(page_size);
                check_decode(&kernel, &config, &Case { kv_form, ..base.clone() }, workers);
                let short = Case { seqlen_k: 1, kv_form, ..base.clone() };
                check_decode(&kernel, &config, &short, workers);
            }
        }
    }
}

#[test]
fn page_tables_are_read_for_many_tiles_at_a_time() {
    // A run has more tiles than a warp's lanes hold twice, and a window begins among them.
    let window = Mask::SlidingWindow { left: 8800, right: 0 };
    let config = DecodeConfig { paged: true, warps: 8, ..config(DType::BF16, 16, 16, 2) };
    let kernel = module(&config, &window, &ScoreMod::Identity, 2);
    let base = Case { pack_groups: true, ..Case::<bf16>::new(1, 1, 9300, 2, 1, 16, 16).masked(window) };
    for (page_size, workers) in [(16, 1), (48, 2)] {
        check_decode(&kernel, &config, &Case { kv_form: KvForm::Paged(page_size), ..base.clone() }, workers);
    }
}
