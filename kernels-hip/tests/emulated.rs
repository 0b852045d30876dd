//! Kernels as code objects, executed instruction by instruction on the host for every architecture, their results
//! compared with the float64 reference.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // all of it is test code

mod harness;

use half::{bf16, f16};
use harness::{Case, KvForm, Memory, Module, QForm, check, compiler_is_missing};
use omniflash_core::lower::FunctorSpec;
use omniflash_core::{DType, Mask, ScoreMod, TensorRef};
use omniflash_device::{PeakParameters, PeakWork};
use omniflash_kernels_hip::{Architecture, ForwardConfig, peak};
use omniflash_testkit::kernel::KernelDevice as _;

/// Two waves a block, so that small problems have several blocks; four where tiles are then copied directly.
fn config(architecture: Architecture, dtype: DType, head_dim: usize, value_dim: usize) -> ForwardConfig {
    let default = ForwardConfig::new(architecture, dtype, head_dim, value_dim, "test").unwrap();
    let warps = if architecture.copies_directly() { 4 } else { 2 };
    ForwardConfig { warps, block_m: warps * architecture.wave_rows(), ..default }
}

fn forward(config: &ForwardConfig, mask: &Mask<'_>, score_mod: &ScoreMod<'_>, heads: usize) -> Module {
    let functors = FunctorSpec::new(mask, score_mod, heads, "test").unwrap();
    Module::build(config.architecture, &config.translation_unit(&functors))
}

/// Runs a test for every architecture where it can run.
fn on_every_architecture(test: impl Fn(Architecture)) {
    if !compiler_is_missing() {
        Architecture::ALL.into_iter().for_each(test);
    }
}

#[test]
fn dense_attention_without_a_mask_is_right_for_every_shape_of_batch() {
    on_every_architecture(|architecture| {
        let config = config(architecture, DType::BF16, 64, 64);
        let module = forward(&config, &Mask::None, &ScoreMod::Identity, 4);
        let base = Case::<bf16>::new(2, 37, 70, 4, 2, 64, 64);
        check(&module, &config, &base);
        check(&module, &config, &Case { seqlen_q: 1, seqlen_k: 1, sinks: true, ..base.clone() });
        check(&module, &config, &Case { seqlen_q: 2, seqlen_k: 0, sinks: true, ..base.clone() });
        check(&module, &config, &Case { seqlen_q: 2, seqlen_k: 0, ..base.clone() });
        check(&module, &config, &Case { q_form: QForm::Lengths, kv_form: KvForm::Lengths, ..base.clone() });
        check(
            &module,
            &config,
            &Case { seqlen_q: 2, seqlen_k: 200, partitions: 3, sinks: true, ..base.clone() },
        );
        let packed = Case { seqlen_q: 3, pack_groups: true, ..base.clone() };
        check(&module, &config, &Case { partitions: 2, kv_form: KvForm::Continuous, ..packed });
        check(&module, &config, &Case { q_form: QForm::Ragged, kv_form: KvForm::Ragged, section: 3, ..base });
    });
}

#[test]
fn causal_attention_aligns_bottom_right_and_empties_rows_without_keys() {
    on_every_architecture(|architecture| {
        let config = config(architecture, DType::F16, 64, 64);
        let module = forward(&config, &Mask::Causal, &ScoreMod::Identity, 2);
        let base = Case::<f16>::new(1, 70, 150, 2, 2, 64, 64).masked(Mask::Causal);
        check(&module, &config, &base);
        check(&module, &config, &Case { seqlen_q: 70, seqlen_k: 40, bad_values: true, ..base.clone() });
        check(&module, &config, &Case { q_form: QForm::Lengths, kv_form: KvForm::Lengths, batch: 3, ..base });
    });
}

#[test]
fn long_heads_and_values_that_are_not_finite() {
    on_every_architecture(|architecture| {
        for (dim, value_dim) in [(128, 128), (256, 256), (40, 136)] {
            let config = config(architecture, DType::BF16, dim, value_dim);
            let module = forward(&config, &Mask::Causal, &ScoreMod::Identity, 1);
            let base = Case::<bf16>::new(1, 70, 90, 1, 1, dim, value_dim).masked(Mask::Causal);
            check(&module, &config, &Case { bad_values: true, ..base });
        }
    });
}

#[test]
fn single_precision_keeps_its_accuracy() {
    on_every_architecture(|architecture| {
        for (dim, value_dim) in [(64, 64), (128, 48)] {
            let config = config(architecture, DType::F32, dim, value_dim);
            let module = forward(&config, &Mask::Causal, &ScoreMod::Identity, 1);
            let base = Case { softmax_scale: -0.1, ..Case::<f32>::new(1, 40, 50, 1, 1, dim, value_dim) };
            check(
                &module,
                &config,
                &Case { bad_values: dim == 64, partitions: 2, ..base.masked(Mask::Causal) },
            );
        }
    });
}

#[test]
fn pages_of_any_size_unequal_dimensions_and_windows_without_alignment() {
    let window = Mask::SlidingWindow { left: 20, right: 3 };
    on_every_architecture(|architecture| {
        let config = ForwardConfig {
            stages: 1,
            paged: true,
            vector_loads: false,
            ..config(architecture, DType::F16, 43, 17)
        };
        let module = forward(&config, &window, &ScoreMod::Identity, 4);
        let base = Case::<f16>::new(2, 30, 100, 4, 2, 43, 17).masked(window.clone());
        for page_size in [1, 5, 64] {
            check(&module, &config, &Case { kv_form: KvForm::Paged(page_size), ..base.clone() });
        }
        let few = Case { seqlen_q: 5, pack_groups: true, partitions: 2, ..base };
        check(&module, &config, &Case { kv_form: KvForm::Paged(8), q_form: QForm::Ragged, ..few });
    });
}

#[test]
fn closures_biases_and_additive_masks_hide_and_shift_scores() {
    let closure = Mask::Causal.and(Mask::from_fn(|b, h, q, k| (q + 3 * k + (b + h) as i64) % 7 != 0));
    let softcap = ScoreMod::Softcap { cap: 3.0 }.then(ScoreMod::Alibi { slopes: None });
    let (heads, sq, sk) = (2, 40, 70);
    let floats: Vec<f32> = (0..heads * sq * sk)
        .map(|i| if i % 11 == 0 { f32::NEG_INFINITY } else { (i % 13) as f32 * 0.1 })
        .collect();
    let biases: Vec<bf16> = (0..sk).map(|i| bf16::from_f32((i % 9) as f32 * 0.25)).collect();
    let additive = Mask::Dense(TensorRef::from_slice(&floats, &[1, heads, sq, sk]).unwrap());
    let bias = ScoreMod::Bias(TensorRef::from_slice(&biases, &[1, 1, 1, sk]).unwrap());
    on_every_architecture(|architecture| {
        let config = config(architecture, DType::BF16, 32, 32);
        let base = Case::<bf16>::new(1, sq, sk, heads, 1, 32, 32);
        let module = forward(&config, &closure, &softcap, heads);
        let case = base.clone().masked(closure.clone()).modified(softcap.clone());
        check(&module, &config, &Case { pack_groups: true, ..case });
        let module = forward(&config, &additive, &bias, heads);
        let case = base.masked(additive.clone()).modified(bias.clone());
        let tensors = vec![bytemuck::cast_slice(&floats), bytemuck::cast_slice(&biases)];
        check(&module, &config, &Case { tensors, bad_values: true, ..case });
    });
}

#[test]
fn the_naive_kernel_agrees_and_sees_no_hidden_value() {
    let mask = Mask::SlidingWindow { left: 30, right: 0 };
    let base = Case {
        kv_form: KvForm::Paged(6),
        q_form: QForm::Ragged,
        sinks: true,
        bad_values: true,
        ..Case::<bf16>::new(2, 5, 70, 2, 1, 40, 136).masked(mask)
    };
    on_every_architecture(|architecture| harness::check_naive(architecture, &base));
}

#[test]
fn bad_page_tables_and_lengths_are_reported() {
    on_every_architecture(harness::check_verify_page_table);
}

#[test]
fn products_of_the_peak_kernel_are_as_many_as_its_host_says() {
    on_every_architecture(|architecture| {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let Some(kernel) = peak(PeakWork::Product(dtype), architecture) else {
                assert!(dtype == DType::F32 && !architecture.is_cdna());
                continue;
            };
            let (rounds, blocks) = (5, 3);
            let parameters = PeakParameters { rounds, ..NO_PEAK };
            let mut memory = Memory::new(architecture);
            let counters = memory.run_peak(&kernel, blocks, &parameters);
            let expected = kernel.flops_of_round * f64::from(rounds) * f64::from(blocks);
            assert_eq!(counters.matrix_operations as f64, expected, "{dtype} on {architecture}");
            // Waves load their arguments, and nothing else.
            assert!(counters.bytes_loaded <= ARGUMENTS * counters.waves && counters.bytes_stored == 0);
        }
    });
}

#[test]
fn the_peak_kernel_fills_reads_and_copies_all_of_its_memory() {
    const VECTORS: usize = 8 * 2 * 256;
    on_every_architecture(|architecture| {
        let kernel = |work| peak(work, architecture).unwrap();
        let mut memory = Memory::new(architecture);
        let (mut source, mut target) = (vec![0u8; 16 * VECTORS], vec![0u8; 16 * VECTORS]);
        let (from, to) = (memory.upload(&source), memory.upload(&target));
        let parameters = PeakParameters { vectors: VECTORS as i64, blocks: 2, ..NO_PEAK };
        let fill = PeakParameters { source: from, target: from, ..parameters };
        memory.run_peak(&kernel(PeakWork::Fill), 2, &fill);
        let parameters = PeakParameters { source: from, target: to, ..parameters };
        let read = memory.run_peak(&kernel(PeakWork::Read), 2, &parameters);
        let memory_bytes = 16 * VECTORS as u64;
        let possible = memory_bytes..=memory_bytes + ARGUMENTS * read.waves;
        assert!(possible.contains(&read.bytes_loaded), "{} on {architecture}", read.bytes_loaded);
        assert_eq!(read.bytes_stored, 0, "{architecture}");
        memory.run_peak(&kernel(PeakWork::Copy), 2, &parameters);
        memory.download(&mut source);
        memory.download(&mut target);
        assert!(source.chunks(16).all(|vector| vector != [0; 16]) && source == target, "{architecture}");
        let rounds = PeakParameters { rounds: 100, ..NO_PEAK };
        let adds = memory.run_peak(&kernel(PeakWork::MultiplyAdd), 2, &rounds);
        // CDNA adds two chains by one instruction.
        assert!(adds.total_instructions() >= 100 * 8 * adds.waves, "{architecture}");
        assert_eq!(adds.matrix_operations, 0, "{architecture}");
    });
}

const ARGUMENTS: u64 = size_of::<PeakParameters>() as u64;
const NO_PEAK: PeakParameters =
    PeakParameters { source: 0, target: 0, vectors: 0, rounds: 0, blocks: 0, never: 0xffb1_a5e5, unused: 0 };
