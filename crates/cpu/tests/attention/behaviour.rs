//! What users rely on, one sentence each.

use half::bf16;
use omniflash_core::{
    Algorithm, AttentionConfig, AttentionOptions, AttentionProblem, Backend, DType, Error, Float, KvCache,
    Mask, Query, Stream, TensorMut, TensorRef, reference, run,
};
use omniflash_cpu::{CpuBackend, Isa};

use crate::case::{Case, Keys, MaskKind, ModKind, Numbers, Queries, compare};

/// Dense attention of one sequence on an instruction set: out and lse.
fn attend(
    isa: Isa,
    (q, k, v): (&[f32], &[f32], &[f32]),
    (rows, keys, dim): (usize, usize, usize),
    options: &AttentionOptions<'_>,
) -> (Vec<f32>, Vec<f32>) {
    let (mut out, mut lse) = (vec![f32::NAN; rows * dim], vec![f32::NAN; rows]);
    let options = options.clone().lse(true);
    let problem = AttentionProblem::new(
        Query::padded(TensorRef::from_slice(q, &[1, rows, 1, dim]).unwrap()),
        KvCache::dense(
            TensorRef::from_slice(k, &[1, keys, 1, dim]).unwrap(),
            TensorRef::from_slice(v, &[1, keys, 1, dim]).unwrap(),
        ),
        TensorMut::from_slice(&mut out, &[1, rows, 1, dim]).unwrap(),
        Some(TensorMut::from_slice(&mut lse, &[1, 1, rows]).unwrap()),
        &options,
    )
    .unwrap();
    run(&CpuBackend::with_isa(isa).unwrap(), &problem, &Stream::host()).unwrap();
    drop(problem);
    (out, lse)
}

fn normals(count: usize, seed: u64) -> Vec<f32> {
    let mut numbers = Numbers::new(seed);
    (0..count).map(|_| numbers.normal()).collect()
}

fn long_case() -> Case {
    Case {
        batch: 2,
        kv_heads: 2,
        group_size: 3,
        head_dim: 64,
        value_dim: 40,
        seqlen_q: 150,
        seqlen_k: 700,
        keys: Keys::Paged { page_size: 16 },
        queries: Queries::Ragged,
        mask: MaskKind::And(Box::new(MaskKind::Causal), Box::new(MaskKind::Function)),
        mods: vec![ModKind::Softcap(20.0)],
        sinks: true,
        ..Case::default()
    }
}

#[test]
fn results_are_bitwise_the_same_for_any_number_of_threads_and_strips() {
    for dtype in [DType::F32, DType::BF16] {
        for isa in Isa::available() {
            let bits = |threads: usize, block_m: Option<usize>| -> Vec<u32> {
                let config = AttentionConfig { block_m, ..AttentionConfig::default() };
                let case = Case { dtype, config, ..long_case() };
                match dtype {
                    DType::BF16 => bits_of(&case.run::<bf16>(isa, threads).out),
                    _ => bits_of(&case.run::<f32>(isa, threads).out),
                }
            };
            let rows = match isa {
                Isa::Scalar => 8,
                Isa::Avx2 | Isa::Neon => 16,
                _ => 64,
            };
            let one = bits(1, None);
            assert_eq!(one, bits(2, None), "{isa}: two threads");
            assert_eq!(one, bits(5, None), "{isa}: five threads");
            assert_eq!(one, bits(1, Some(rows)), "{isa}: one strip in a task");
            assert_eq!(one, bits(3, Some(5 * rows)), "{isa}: five strips in a task");
            assert_eq!(one, bits(1, None), "{isa}: again");
        }
    }
}

#[test]
fn a_sequence_is_bitwise_the_same_alone_and_beside_longer_ones() {
    // Rows of queries and keys: what is new of two prompts, and single rows that continue others.
    let lengths = [(1, 90), (70, 70), (1, 700), (2, 33), (0, 40), (130, 300)];
    let (heads, kv_heads, dim) = (6, 2, 40);
    let total = |of: fn(&(usize, usize)) -> usize| lengths.iter().map(of).sum::<usize>();
    let (rows, keys) = (total(|length| length.0), total(|length| length.1));
    let q = normals(rows * heads * dim, 21);
    let (k, v) = (normals(keys * kv_heads * dim, 22), normals(keys * kv_heads * dim, 23));
    for isa in Isa::available() {
        let attend = |chosen: std::ops::Range<usize>| -> Vec<f32> {
            let offsets = |of: fn(&(usize, usize)) -> usize| -> Vec<i32> {
                let mut sum = lengths[..chosen.start].iter().map(of).sum::<usize>();
                let sums = lengths[chosen.clone()].iter().map(|length| {
                    sum += of(length);
                    sum as i32
                });
                std::iter::once(lengths[..chosen.start].iter().map(of).sum::<usize>() as i32)
                    .chain(sums)
                    .collect()
            };
            let (cu_seqlens_q, cu_seqlens_k) = (offsets(|length| length.0), offsets(|length| length.1));
            let offsets_of = |offsets| TensorRef::from_slice(offsets, &[chosen.len() + 1]).unwrap();
            let mut out = vec![f32::NAN; q.len()];
            let problem = AttentionProblem::new(
                Query::Ragged {
                    q: TensorRef::from_slice(&q, &[rows, heads, dim]).unwrap(),
                    cu_seqlens: offsets_of(&cu_seqlens_q),
                    max_seqlen: None,
                },
                KvCache::Ragged {
                    k: TensorRef::from_slice(&k, &[keys, kv_heads, dim]).unwrap(),
                    v: TensorRef::from_slice(&v, &[keys, kv_heads, dim]).unwrap(),
                    cu_seqlens: offsets_of(&cu_seqlens_k),
                    max_seqlen: None,
                },
                TensorMut::from_slice(&mut out, &[rows, heads, dim]).unwrap(),
                None,
                &AttentionOptions::new().mask(Mask::Causal),
            )
            .unwrap();
            run(&CpuBackend::with_isa(isa).unwrap(), &problem, &Stream::host()).unwrap();
            drop(problem);
            out
        };
        let together = attend(0..lengths.len());
        let mut row = 0;
        for (i, (q_len, _)) in lengths.iter().enumerate() {
            let alone = attend(i..i + 1);
            let elements = row * heads * dim..(row + q_len) * heads * dim;
            assert_eq!(
                bits_of(&together[elements.clone()]),
                bits_of(&alone[elements]),
                "{isa}: sequence {i}"
            );
            row += q_len;
        }
    }
}

fn bits_of<T: Float>(out: &[T]) -> Vec<u32> {
    out.iter().map(|value| value.to_f32().to_bits()).collect()
}

#[test]
fn long_keys_are_split_and_agree() {
    let case = Case {
        seqlen_q: 70,
        seqlen_k: 5000,
        head_dim: 16,
        value_dim: 16,
        mask: MaskKind::Causal,
        sinks: true,
        ..Case::default()
    };
    case.check();
    let config = AttentionConfig { num_partitions: Some(7), ..AttentionConfig::default() };
    Case { config, mask: MaskKind::Window(900, 3), ..case }.check();
}

#[test]
fn wide_and_odd_dimensions_agree() {
    for (head_dim, value_dim) in [(1, 1), (7, 3), (17, 33), (576, 512), (1024, 5), (3, 1024)] {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            Case { dtype, head_dim, value_dim, seqlen_k: 130, ..Case::default() }.check();
        }
    }
}

#[test]
fn equal_keys_average_the_values_however_large_the_scores() {
    let dim = 64;
    let (q, k) = (vec![12.5f32; 10 * dim], vec![12.5f32; 200 * dim]);
    let v = normals(200 * dim, 3);
    for isa in Isa::available() {
        let options = AttentionOptions::new().softmax_scale(1.0);
        let (out, lse) = attend(isa, (&q, &k, &v), (10, 200, dim), &options);
        for d in 0..dim {
            let mean: f32 = (0..200).map(|j| v[j * dim + d]).sum::<f32>() / 200.0;
            assert!((out[3 * dim + d] - mean).abs() < 1e-6, "{isa}: {} is not {mean}", out[3 * dim + d]);
        }
        assert!((lse[9] - (10_000.0 + 200f32.ln())).abs() < 0.1, "{isa}: {}", lse[9]);
    }
}

#[test]
fn the_largest_of_extreme_scores_takes_all() {
    let dim = 32;
    let q = vec![17.5f32; dim];
    let mut k = vec![-17.5f32; 300 * dim];
    k[123 * dim..124 * dim].fill(17.5);
    let v = normals(300 * dim, 4);
    for isa in Isa::available() {
        let options = AttentionOptions::new().softmax_scale(1.0);
        let (out, _) = attend(isa, (&q, &k, &v), (1, 300, dim), &options);
        for (found, expected) in out.iter().zip(&v[123 * dim..]) {
            assert!((found - expected).abs() <= 1e-6 * expected.abs(), "{isa}: {found} is not {expected}");
        }
    }
}

#[test]
fn a_row_without_a_visible_key_is_zero_and_minus_infinity() {
    let dim = 24;
    let (q, k, v) = (normals(70 * dim, 5), normals(40 * dim, 6), normals(40 * dim, 7));
    let bias = vec![f32::NEG_INFINITY; 70 * 40];
    let bias = TensorRef::from_slice(&bias, &[1, 1, 70, 40]).unwrap();
    for isa in Isa::available() {
        // 70 queries, 40 keys: the first 30 sit before all keys.
        let causal = AttentionOptions::new().mask(Mask::Causal);
        let (out, lse) = attend(isa, (&q, &k, &v), (70, 40, dim), &causal);
        assert!(out[..30 * dim].iter().all(|&value| value == 0.0), "{isa}");
        assert!(lse[..30].iter().all(|&lse| lse == f32::NEG_INFINITY), "{isa}");
        assert!(out[30 * dim..].iter().chain(&lse[30..]).all(|value| value.is_finite()), "{isa}");
        let hidden = AttentionOptions::new().score_mod(omniflash_core::ScoreMod::Bias(bias.clone()));
        let (out, lse) = attend(isa, (&q, &k, &v), (70, 40, dim), &hidden);
        assert!(out.iter().all(|&value| value == 0.0), "{isa}: a bias of -inf hides");
        assert!(lse.iter().all(|&lse| lse == f32::NEG_INFINITY), "{isa}");
    }
}

#[test]
fn hidden_keys_may_hold_nan_and_infinity() {
    let (dim, rows, keys) = (40, 80, 150);
    let (q, mut k, mut v) = (normals(rows * dim, 8), normals(keys * dim, 9), normals(keys * dim, 10));
    let clean = (k.clone(), v.clone());
    for (i, bad) in [(3, f32::NAN), (77, f32::INFINITY), (140, f32::NEG_INFINITY)] {
        k[i * dim..(i + 1) * dim].fill(bad);
        v[i * dim..(i + 1) * dim].fill(bad);
    }
    let visible: Vec<bool> = (0..rows * keys).map(|i| ![3, 77, 140].contains(&(i % keys))).collect();
    let added: Vec<f32> =
        visible.iter().map(|&visible| if visible { 0.5 } else { f32::NEG_INFINITY }).collect();
    let masks = [
        Mask::Dense(TensorRef::from_slice(&visible, &[1, rows, keys]).unwrap()),
        Mask::Dense(TensorRef::from_slice(&added, &[1, rows, keys]).unwrap()),
        Mask::from_fn(|_, _, _, k| ![3, 77, 140].contains(&k)),
    ];
    for isa in Isa::available() {
        for mask in &masks {
            let options = AttentionOptions::new().mask(mask.clone());
            let (expected, _) = attend(isa, (&q, &clean.0, &clean.1), (rows, keys, dim), &options);
            let (found, _) = attend(isa, (&q, &k, &v), (rows, keys, dim), &options);
            for (found, expected) in found.iter().zip(&expected) {
                assert!((found - expected).abs() < 1e-5, "{isa}, {mask}: {found} is not {expected}");
            }
        }
    }
}

#[test]
fn bf16_that_is_hidden_may_hold_nan() {
    // Rows before key 90 do not see it; those after do, and are NaN.
    let case =
        Case { dtype: DType::BF16, seqlen_q: 120, seqlen_k: 120, mask: MaskKind::Causal, ..Case::default() };
    let (rows, dim) = (120, 32);
    let numbers = |seed| normals(rows * dim, seed).into_iter().map(bf16::from_f32).collect::<Vec<_>>();
    let (q, k, mut v) = (numbers(1), numbers(2), numbers(3));
    v[90 * dim..91 * dim].fill(bf16::NAN);
    for isa in Isa::available() {
        let mut out = vec![bf16::ZERO; rows * dim];
        let shape = [1, rows, 1, dim];
        let problem = AttentionProblem::new(
            Query::padded(TensorRef::from_slice(&q, &shape).unwrap()),
            KvCache::dense(
                TensorRef::from_slice(&k, &shape).unwrap(),
                TensorRef::from_slice(&v, &shape).unwrap(),
            ),
            TensorMut::from_slice(&mut out, &shape).unwrap(),
            None,
            &AttentionOptions::new().mask(Mask::Causal),
        )
        .unwrap();
        let expected = reference::attention(&problem).unwrap();
        run(&CpuBackend::with_isa(isa).unwrap(), &problem, &Stream::host()).unwrap();
        drop(problem);
        for (row, (found, expected)) in out.chunks(dim).zip(expected.out.chunks(dim)).enumerate() {
            for (found, expected) in found.iter().zip(expected) {
                let is_right =
                    (found.to_f64() - expected).abs() < 0.02 || found.is_nan() && expected.is_nan();
                assert!(
                    is_right && (row < 90) != found.is_nan(),
                    "{isa}, row {row}: {found} is not {expected}"
                );
            }
        }
    }
    case.check();
}

#[test]
fn the_plain_kernel_agrees_too() {
    let config = AttentionConfig { algorithm: Algorithm::Naive, ..AttentionConfig::default() };
    for keys in [Keys::Dense, Keys::Ragged, Keys::Continuous, Keys::Paged { page_size: 7 }] {
        let case = Case {
            keys,
            config,
            batch: 2,
            group_size: 2,
            mods: vec![ModKind::Alibi { default: true }],
            ..long_case()
        };
        let (expected, _) = case.with_problem::<f32, _>(|problem| reference::attention(problem).unwrap());
        let found = case.run::<f32>(Isa::best(), 2);
        compare("naive", DType::F32, &expected, &found);
    }
}

#[test]
fn a_length_beyond_its_tensor_is_an_error() {
    let (q, lengths) = ([0.0f32; 16], [3i32]);
    let mut out = q;
    let tensor = TensorRef::from_slice(&q, &[1, 2, 1, 8]).unwrap();
    let problem = AttentionProblem::new(
        Query::padded(tensor.clone()),
        KvCache::Dense {
            k: tensor.clone(),
            v: tensor.clone(),
            lengths: Some(TensorRef::from_slice(&lengths, &[1]).unwrap()),
        },
        TensorMut::from_slice(&mut out, &[1, 2, 1, 8]).unwrap(),
        None,
        &AttentionOptions::new(),
    )
    .unwrap();
    let error = run(&CpuBackend::new().unwrap(), &problem, &Stream::host()).unwrap_err();
    assert!(matches!(error, Error::Value { .. }), "{error}");
}

#[test]
fn the_backend_says_who_it_is() {
    let backend = CpuBackend::with_isa(Isa::Scalar).unwrap();
    let info = backend.info();
    assert_eq!((info.name.as_str(), info.arch.as_str()), ("cpu", "scalar"));
    assert!(info.units > 0);
}

#[test]
fn scores_that_rise_from_block_to_block_agree() {
    let (dim, keys) = (8, 500);
    let v = normals(keys * dim, 11);
    // What a key's score is above the one before: maxima are raised rarely, at some blocks, at each, and by far.
    for step in [0.01f32, 0.05, 0.2, 3.0] {
        let k: Vec<f32> = (0..keys * dim).map(|i| (i / dim) as f32 * step / dim as f32).collect();
        for rows in [3, 40, 130] {
            // Rows rise differently: the last ones fall.
            let q: Vec<f32> = (0..rows * dim).map(|i| 1.0 - 1.1 * (i / dim) as f32 / rows as f32).collect();
            for isa in Isa::available() {
                let options = AttentionOptions::new().softmax_scale(1.0);
                let (out, lse) = attend(isa, (&q, &k, &v), (rows, keys, dim), &options);
                for row in [0, rows / 2, rows - 1] {
                    let score = |key: usize| f64::from(q[row * dim]) * f64::from(k[key * dim]) * dim as f64;
                    let largest = (0..keys).map(score).fold(f64::NEG_INFINITY, f64::max);
                    let sum: f64 = (0..keys).map(|key| (score(key) - largest).exp()).sum();
                    let weight = |key: usize| (score(key) - largest).exp() / sum;
                    let expected: f64 = (0..keys).map(|key| weight(key) * f64::from(v[key * dim])).sum();
                    let found = f64::from(out[row * dim]);
                    // f32 scores of this size are this exact.
                    let tolerance = 1e-6 * (1.0 + largest.abs());
                    assert!(
                        (found - expected).abs() < tolerance,
                        "{isa}, {step}, {row}: {found}, {expected}"
                    );
                    let expected = largest + sum.ln();
                    let found = f64::from(lse[row]);
                    assert!(
                        (found - expected).abs() < tolerance,
                        "{isa}, {step}, {row}: lse {found}, {expected}"
                    );
                }
            }
        }
    }
}

#[test]
fn more_partitions_than_keys_are_as_many_as_there_are_keys() {
    let (dim, keys) = (16, 300);
    let (k, v) = (normals(keys * dim, 12), normals(keys * dim, 13));
    for rows in [2, 40] {
        let q = normals(rows * dim, 14);
        for isa in Isa::available() {
            let options = AttentionOptions::new();
            let (expected, _) = attend(isa, (&q, &k, &v), (rows, keys, dim), &options);
            for partitions in [keys, keys + 1, usize::MAX] {
                let (found, _) =
                    attend(isa, (&q, &k, &v), (rows, keys, dim), &options.clone().num_partitions(partitions));
                for (found, expected) in found.iter().zip(&expected) {
                    assert!(
                        (found - expected).abs() < 1e-5,
                        "{isa}, {partitions}: {found} is not {expected}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_prefix_of_less_than_no_keys_is_none() {
    let (dim, keys) = (16, 90);
    let (k, v) = (normals(keys * dim, 15), normals(keys * dim, 16));
    let length = [-3i32];
    let prefix = Mask::PrefixLm { prefix_len: TensorRef::from_slice(&length, &[1]).unwrap() };
    for rows in [2, 90] {
        let q = normals(rows * dim, 17);
        for isa in Isa::available() {
            let attend =
                |mask| attend(isa, (&q, &k, &v), (rows, keys, dim), &AttentionOptions::new().mask(mask));
            assert_eq!(attend(prefix.clone()), attend(Mask::Causal), "{isa}");
        }
    }
}
