//! Kernels on a host: compiled with the C++ compiler, their instructions emulated, their results compared with the
//! float64 reference. Proves index arithmetic, fragments, masks, copies and barriers without a GPU.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // all of it is test code

#[allow(dead_code, unused_imports)] // shared with `decode.rs`
mod harness;

use half::{bf16, f16};
use harness::{Case, KvForm, Module, QForm, Tolerance, check};
use omniflash_core::lower::FunctorSpec;
use omniflash_core::{DType, DeviceSource, Mask, MaskFunction, ScoreFunction, ScoreMod, TensorRef};
use omniflash_kernels_cuda::{Arithmetic, ForwardConfig};

fn config(dtype: DType, head_dim: usize, value_dim: usize) -> ForwardConfig {
    ForwardConfig::new(dtype, head_dim, value_dim, 227 << 10, "test").unwrap()
}

fn forward(config: &ForwardConfig, mask: &Mask<'_>, score_mod: &ScoreMod<'_>, heads: usize) -> Module {
    let functors = FunctorSpec::new(mask, score_mod, heads, "test").unwrap();
    Module::build(&config.translation_unit(&functors), harness::FORWARD)
}

#[test]
fn dense_attention_without_a_mask_is_exact_for_every_shape_of_batch() {
    let config = config(DType::BF16, 64, 64);
    let module = forward(&config, &Mask::None, &ScoreMod::Identity, 4);
    let base = Case::<bf16>::new(2, 70, 130, 4, 2, 64, 64);
    check(&module, &config, &base);
    check(&module, &config, &Case { seqlen_q: 1, seqlen_k: 1, sinks: true, ..base.clone() });
    check(&module, &config, &Case { seqlen_k: 0, sinks: true, ..base.clone() });
    check(&module, &config, &Case { seqlen_k: 0, ..base.clone() });
    check(&module, &config, &Case { q_form: QForm::Lengths, kv_form: KvForm::Lengths, ..base.clone() });
    check(&module, &config, &Case { seqlen_q: 5, seqlen_k: 300, partitions: 3, sinks: true, ..base.clone() });
    let packed = Case { seqlen_q: 3, pack_groups: true, ..base.clone() };
    check(&module, &config, &packed);
    check(&module, &config, &Case { partitions: 7, kv_form: KvForm::Continuous, ..packed });
    check(&module, &config, &Case { q_form: QForm::Ragged, kv_form: KvForm::Ragged, section: 3, ..base });
}

#[test]
fn causal_attention_aligns_bottom_right_and_empties_rows_without_keys() {
    let config = config(DType::BF16, 64, 64);
    let module = forward(&config, &Mask::Causal, &ScoreMod::Identity, 2);
    let base = Case::<bf16>::new(1, 200, 200, 2, 2, 64, 64).masked(Mask::Causal);
    check(&module, &config, &base);
    check(&module, &config, &Case { seqlen_q: 130, seqlen_k: 70, ..base.clone() });
    check(&module, &config, &Case { seqlen_q: 33, seqlen_k: 257, partitions: 2, ..base.clone() });
    check(
        &module,
        &config,
        &Case { q_form: QForm::Lengths, kv_form: KvForm::Lengths, batch: 3, section: 4, ..base },
    );
}

#[test]
fn values_that_are_not_finite_do_not_reach_rows_that_do_not_see_them() {
    for dtype_is_f32 in [false, true] {
        if dtype_is_f32 {
            let config = config(DType::F32, 32, 32);
            let module = forward(&config, &Mask::Causal, &ScoreMod::Identity, 1);
            check(
                &module,
                &config,
                &Case { bad_values: true, ..Case::<f32>::new(1, 90, 90, 1, 1, 32, 32).masked(Mask::Causal) },
            );
        } else {
            let config = config(DType::F16, 32, 32);
            let module = forward(&config, &Mask::Causal, &ScoreMod::Identity, 1);
            check(
                &module,
                &config,
                &Case { bad_values: true, ..Case::<f16>::new(1, 90, 90, 1, 1, 32, 32).masked(Mask::Causal) },
            );
        }
    }
}

#[test]
fn pages_of_any_size_unequal_dimensions_and_windows() {
    let window = Mask::SlidingWindow { left: 20, right: 3 };
    let config =
        ForwardConfig { block_m: 64, block_n: 32, stages: 1, paged: true, ..config(DType::F16, 48, 80) };
    let module = forward(&config, &window, &ScoreMod::Identity, 4);
    let base = Case::<f16>::new(3, 60, 150, 4, 2, 48, 80).masked(window);
    for page_size in [1, 5, 16, 64] {
        check(&module, &config, &Case { kv_form: KvForm::Paged(page_size), ..base.clone() });
    }
    check(
        &module,
        &config,
        &Case { kv_form: KvForm::Paged(7), q_form: QForm::Ragged, partitions: 2, ..base.clone() },
    );
    check(&module, &config, &Case { kv_form: KvForm::Paged(8), seqlen_q: 2, pack_groups: true, ..base });
}

#[test]
fn lanes_look_up_the_rows_of_whole_tiles_in_their_pages() {
    // Two slots, of 16 rows a warp and of 32; one slot; warps side by side; rows of three bands; dimensions that differ; and
    // tiles whose rows are fewer than a step copies, which are looked up one by one.
    let tiles = [
        (64, 64, 128, 64, 4, 2),
        (64, 64, 64, 64, 2, 2),
        (128, 128, 64, 64, 2, 1),
        (256, 256, 64, 64, 4, 1),
        (96, 96, 128, 64, 4, 2),
        (192, 80, 64, 64, 4, 1),
        (80, 80, 64, 32, 4, 1),
    ];
    for (head_dim, value_dim, block_m, block_n, warps, stages) in tiles {
        let base = config(DType::BF16, head_dim, value_dim);
        let config = ForwardConfig { block_m, block_n, warps, stages, paged: true, ..base };
        let module = forward(&config, &Mask::Causal, &ScoreMod::Identity, 2);
        let base = Case::<bf16>::new(2, 90, 330, 2, 1, head_dim, value_dim).masked(Mask::Causal);
        for page_size in [3, 16, 128] {
            check(&module, &config, &Case { kv_form: KvForm::Paged(page_size), ..base.clone() });
        }
        let ragged = Case { q_form: QForm::Ragged, kv_form: KvForm::Paged(24), partitions: 2, ..base };
        check(&module, &config, &ragged);
    }
}

#[test]
fn single_precision_keeps_its_accuracy_on_tensor_cores() {
    let base =
        Case { softmax_scale: -0.25, ..Case::<f32>::new(2, 70, 90, 2, 1, 64, 64).masked(Mask::Causal) };
    let default = config(DType::F32, 64, 64);
    let module = forward(&default, &Mask::Causal, &ScoreMod::Identity, 2);
    check(&module, &default, &base);
    check(&module, &default, &Case { softmax_scale: 0.0, ..base.clone() });
    check(
        &module,
        &default,
        &Case { kv_form: KvForm::Ragged, q_form: QForm::Ragged, partitions: 2, ..base.clone() },
    );
    let rounded = ForwardConfig { arithmetic: Arithmetic::Tf32, ..default };
    let module = forward(&rounded, &Mask::Causal, &ScoreMod::Identity, 2);
    check(&module, &rounded, &Case { tolerance: Tolerance::Tf32, ..base });
}

#[test]
fn exact_arithmetic_serves_any_dimension_without_alignment() {
    let mask = Mask::Chunked { size: 24 };
    let config = ForwardConfig {
        arithmetic: Arithmetic::Exact,
        vector_loads: false,
        block_m: 64,
        block_n: 32,
        ..config(DType::F32, 43, 17)
    };
    let module = forward(&config, &mask, &ScoreMod::Identity, 2);
    let base = Case::<f32>::new(1, 70, 90, 2, 2, 43, 17).masked(mask);
    check(&module, &config, &Case { tolerance: Tolerance::Exact, ..base.clone() });
    check(&module, &config, &Case { tolerance: Tolerance::Exact, partitions: 2, bad_values: true, ..base });
}

#[test]
fn closures_run_through_tables_and_scores_through_modifications() {
    let mask = Mask::Causal.and(Mask::from_fn(|b, h, q, k| (q + 3 * k + (b + h) as i64) % 7 != 0));
    let score_mod = ScoreMod::Softcap { cap: 3.0 }.then(ScoreMod::Alibi { slopes: None });
    let config = config(DType::BF16, 128, 128);
    let module = forward(&config, &mask, &score_mod, 6);
    let base = Case::<bf16>::new(2, 70, 100, 6, 2, 128, 128).masked(mask).modified(score_mod);
    check(&module, &config, &base);
    check(&module, &config, &Case { seqlen_q: 2, pack_groups: true, kv_form: KvForm::Lengths, ..base });
}

/// A warp asks a table about 32 tiles at a time: here about three times as many, of which some are full, some at a border and
/// many, one time all but one, hidden.
#[test]
fn tables_are_asked_again_after_32_tiles() {
    let visible = |k: i64| match k / 1024 {
        0 => k / 32 % 5 != 3,
        1 => (1500..1510).contains(&k),
        _ => k < 2800,
    };
    let config = ForwardConfig { block_n: 32, ..config(DType::F16, 16, 16) };
    for shift in [0, 1024, 2048] {
        let mask = Mask::from_fn(move |_, _, _, k| visible((k + shift) % 3072));
        let module = forward(&config, &mask, &ScoreMod::Identity, 1);
        check(&module, &config, &Case::<f16>::new(1, 20, 3072, 1, 1, 16, 16).masked(mask));
    }
}

#[test]
fn prefixes_documents_and_their_joins() {
    let (prefix, ids): (Vec<i32>, Vec<u32>) = (vec![30, 0], (0..90).map(|i| i / 25).collect());
    let prefix = Mask::PrefixLm { prefix_len: TensorRef::from_slice(&prefix, &[2]).unwrap() };
    let document = Mask::Document { ids: TensorRef::from_slice(&ids, &[1, 90]).unwrap() };
    let mask = prefix.and(!document);
    let config = config(DType::F16, 16, 16);
    let module = forward(&config, &mask, &ScoreMod::Identity, 2);
    check(&module, &config, &Case::<f16>::new(2, 80, 90, 2, 1, 16, 16).masked(mask));
}

#[test]
fn tensors_mask_and_bias_where_they_broadcast() {
    let (batch, heads, sq, sk) = (2, 2, 50, 70);
    let bools: Vec<u8> = (0..batch * sq * sk).map(|i| u8::from(i % 5 != 0 && i / sk % sq != 7)).collect();
    let floats: Vec<f32> = (0..heads * sq * sk)
        .map(|i| if i % 11 == 0 { f32::NEG_INFINITY } else { (i % 13) as f32 * 0.1 })
        .collect();
    let biases: Vec<bf16> = (0..batch * sk).map(|i| bf16::from_f32((i % 9) as f32 * 0.25)).collect();
    let config = ForwardConfig { block_m: 64, ..config(DType::F16, 32, 32) };

    let dense = Mask::Dense(TensorRef::from_slice(&bools, &[batch, 1, sq, sk]).unwrap());
    let bias = ScoreMod::Bias(TensorRef::from_slice(&biases, &[batch, 1, 1, sk]).unwrap());
    let module = forward(&config, &dense, &bias, heads);
    let base = Case::<f16>::new(batch, sq, sk, heads, 1, 32, 32);
    let both = base.clone().masked(dense).modified(bias);
    check(&module, &config, &both);
    check(&module, &config, &Case { pack_groups: true, bad_values: true, ..both });

    let additive =
        Mask::Dense(TensorRef::from_slice(&floats, &[1, heads, sq, sk]).unwrap()).and(Mask::Causal);
    let module = forward(&config, &additive, &ScoreMod::Identity, heads);
    check(&module, &config, &base.masked(additive));
}

#[test]
fn warps_side_by_side_agree_on_their_rows() {
    let config = config(DType::BF16, 256, 256);
    assert_eq!((config.block_m, config.warps, config.warps_across), (64, 4, 2));
    let module = forward(&config, &Mask::Causal, &ScoreMod::Identity, 4);
    // A scale at which offsets are raised again and again.
    let base =
        Case { softmax_scale: 0.5, ..Case::<bf16>::new(2, 70, 130, 4, 2, 256, 256).masked(Mask::Causal) };
    check(&module, &config, &Case { sinks: true, ..base.clone() });
    // Of 300 keys one that rows do not see is not a number in a column of the second half.
    check(&module, &config, &Case { seqlen_k: 300, bad_values: true, ..base.clone() });
    check(&module, &config, &Case { softmax_scale: -0.1, ..base.clone() });
    check(
        &module,
        &config,
        &Case { q_form: QForm::Ragged, kv_form: KvForm::Ragged, section: 3, ..base.clone() },
    );
    check(&module, &config, &Case { seqlen_q: 5, seqlen_k: 300, partitions: 3, bad_values: true, ..base });

    // Under a window the two of some rows pass over a tile that the other rows of the block see.
    let window = Mask::SlidingWindow { left: 40, right: 0 };
    let module = forward(&config, &window, &ScoreMod::Identity, 4);
    let base = Case::<bf16>::new(2, 150, 230, 4, 2, 256, 256).masked(window);
    check(&module, &config, &Case { sinks: true, ..base.clone() });
    check(&module, &config, &Case { partitions: 2, bad_values: true, ..base });

    // Sixteen keys a warp of 32, which masks answer for together; columns that end within a warp's half.
    let mask = Mask::from_fn(|b, h, q, k| (q + 3 * k + (b + h) as i64) % 7 != 0);
    let narrow = ForwardConfig { block_m: 32, block_n: 32, warps: 2, paged: true, ..config };
    let module = forward(&narrow, &mask, &ScoreMod::Identity, 2);
    let base = Case::<bf16>::new(1, 40, 90, 2, 1, 256, 248).masked(mask);
    check(&module, &narrow, &Case { kv_form: KvForm::Paged(7), ..base.clone() });
    check(&module, &narrow, &Case { kv_form: KvForm::Paged(16), partitions: 2, bad_values: true, ..base });
}

/// A user's mask and score modification in both languages.
struct Checkerboard {
    period: i32,
}

impl MaskFunction for Checkerboard {
    fn visible(&self, _: usize, _: usize, q: i64, k: i64) -> bool {
        (q + k) / i64::from(self.period) % 2 == 0
    }
    fn device_source(&self) -> Option<DeviceSource> {
        let source = "struct Checkerboard { int period;
            OMNIFLASH_DEVICE bool keep(const ScoreIndex& at) const { return (at.q + at.k) / period % 2 == 0; } };";
        Some(DeviceSource::new("Checkerboard", source, &self.period))
    }
}

struct Tilt;

impl ScoreFunction for Tilt {
    fn apply(&self, score: f32, _: usize, head: usize, q: i64, k: i64) -> f32 {
        score + 0.01 * (head as i64 * (k - q)) as f32
    }
    fn device_source(&self) -> Option<DeviceSource> {
        let source = "struct Tilt {
            OMNIFLASH_DEVICE float apply(float score, const ScoreIndex& at) const {
              return score + 0.01f * (at.head * (at.k - at.q)); } };";
        Some(DeviceSource::new("Tilt", source, &[0u8; 0]))
    }
}

#[test]
fn functors_of_users_take_the_way_of_the_built_in_ones() {
    let (mask, score_mod) = (Mask::custom(Checkerboard { period: 3 }), ScoreMod::custom(Tilt));
    let config = config(DType::F16, 256, 256);
    let module = forward(&config, &mask, &score_mod, 2);
    check(&module, &config, &Case::<f16>::new(1, 40, 70, 2, 2, 256, 256).masked(mask).modified(score_mod));
}

#[test]
fn the_naive_kernel_agrees_and_sees_no_hidden_value() {
    let mask = Mask::SlidingWindow { left: 30, right: 0 };
    let base = Case {
        kv_form: KvForm::Paged(6),
        q_form: QForm::Ragged,
        sinks: true,
        bad_values: true,
        ..Case::<bf16>::new(2, 20, 70, 2, 1, 40, 136).masked(mask)
    };
    harness::check_naive(&base);
}

#[test]
fn bad_page_tables_and_lengths_are_reported() {
    harness::check_verify_page_table();
}
