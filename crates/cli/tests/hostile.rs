//! No file makes the reader panic, hang or fill memory.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::time::{Duration, Instant};

use common::{constants, scalars};
use omniflash::{Backend, Error, Registry, attention};
use omniflash_cli::case_file::{Case, NamedTensor, Options, to_bytes};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// Valid cases of different kinds.
fn seeds() -> Vec<Vec<u8>> {
    let q = |shape: &[usize]| NamedTensor::new("q", shape, &vec![0.5f32; shape.iter().product()]);
    let padded = vec![
        q(&[2, 2, 2, 8]),
        NamedTensor::new("k", &[2, 3, 1, 8], &scalars(&[1.0; 6])),
        NamedTensor::new("v", &[2, 3, 1, 8], &constants(&[1.0; 6])),
        NamedTensor::new("q_lengths", &[2], &[2i32, 1]),
        NamedTensor::new("kv_lengths", &[2], &[3u32, 1]),
        NamedTensor::new("mask", &[1, 2, 3], &[true; 6]),
        NamedTensor::new("sinks", &[2], &[0.5f32; 2]),
    ];
    let paged = vec![
        q(&[3, 1, 8]),
        NamedTensor::new("cu_seqlens_q", &[3], &[0i32, 1, 3]),
        NamedTensor::new("k", &[4, 2, 1, 8], &scalars(&[1.0; 8])),
        NamedTensor::new("v", &[4, 2, 1, 8], &constants(&[1.0; 8])),
        NamedTensor::new("page_table", &[2, 2], &[2i32, 0, 1, -1]),
        NamedTensor::new("kv_lengths", &[2], &[3i32, 2]),
    ];
    [padded, paged].iter().map(|tensors| to_bytes(tensors).unwrap()).collect()
}

/// Reading may fail; it must not panic, and what it accepts every backend computes or refuses.
fn read(bytes: &[u8]) -> bool {
    match Case::from_bytes(bytes, Options::default()) {
        Ok(case) => {
            BACKENDS
                .with(|registry| registry.backends().iter().for_each(|backend| attend(&**backend, &case)));
            true
        }
        Err(fault) => {
            assert!(!fault.to_string().contains('\n'), "{fault}");
            false
        }
    }
}

thread_local! {
    static BACKENDS: Registry = Registry::discover();
}

fn attend(backend: &dyn Backend, case: &Case) {
    let arguments = case.upload(backend, &backend.stream().unwrap()).unwrap();
    // Without a query row nothing is computed, however many sequences there are.
    if arguments.output_shape().unwrap().out.contains(&0) {
        return;
    }
    match attention(backend, arguments.query(), arguments.kv(), &arguments.attention_options()) {
        Ok(_) | Err(Error::Unsupported { .. } | Error::OutOfMemory { .. }) => {}
        Err(error) => panic!("{}: {error}", backend.info().name),
    }
}

#[test]
fn the_seeds_are_valid() {
    assert!(seeds().iter().all(|seed| read(seed)));
}

#[test]
fn every_truncation_is_refused() {
    for seed in seeds() {
        for len in 0..seed.len() {
            assert!(!read(&seed[..len]), "{len} bytes of {}", seed.len());
        }
    }
}

#[test]
fn thousands_of_random_mutations_are_read_in_seconds() {
    let seeds = seeds();
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let start = Instant::now();
    let mut refused = 0;
    for round in 0..20_000 {
        let mut bytes = seeds[round % seeds.len()].clone();
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        for _ in 0..=random(3) {
            // The header is where structure is: most mutations go there.
            let len = bytes.len();
            let at = if random(4) > 0 { random(header.min(len)) } else { random(len) };
            match random(5) {
                0 => bytes[at] ^= 1 << random(8),
                1 => bytes[at] = b"0123456789[]{}\",:-"[random(18)],
                2 => bytes.insert(at, b"09e[{\","[random(7)]),
                3 => drop(bytes.remove(at)),
                _ => {
                    let from = random(len);
                    let end = (from + random(24)).min(len);
                    let piece = bytes[from..end].to_vec();
                    bytes.splice(at..at, piece);
                }
            }
        }
        refused += usize::from(!read(&bytes));
    }
    assert!(refused > 10_000, "{refused} of 20000 refused: the mutations miss");
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[test]
fn any_bytes_are_read_without_panic() {
    let mut runner = TestRunner::new(Config { cases: 2000, failure_persistence: None, ..Config::default() });
    runner
        .run(&(proptest::collection::vec(any::<u8>(), 0..300), any::<bool>()), |(mut bytes, with_length)| {
            if with_length && bytes.len() >= 8 {
                let length = (bytes.len() - 8) as u64;
                bytes[..8].copy_from_slice(&length.to_le_bytes());
            }
            prop_assert!(!read(&bytes));
            Ok(())
        })
        .unwrap();
}

#[test]
fn any_shapes_and_integers_are_read_without_panic() {
    let extent = prop_oneof![0usize..5, Just(8), Just(1 << 20), Just(1 << 62), Just(usize::MAX)];
    let shape = proptest::collection::vec(extent, 0..6);
    let names = [
        "q",
        "k",
        "v",
        "mask",
        "bias",
        "sinks",
        "q_lengths",
        "kv_lengths",
        "cu_seqlens_q",
        "page_table",
        "lookup_table",
    ];
    let tensor = (proptest::sample::select(names.to_vec()), shape, any::<i32>());
    let tensors = proptest::collection::vec(tensor, 3..9);
    let mut runner = TestRunner::new(Config { cases: 2000, failure_persistence: None, ..Config::default() });
    runner
        .run(&tensors, |tensors| {
            // Headers that lie about shapes, over data of the length that they claim where that is small.
            let mut header = serde_json::Map::new();
            let mut data = Vec::new();
            for (name, shape, fill) in tensors {
                let elements = shape.iter().try_fold(1usize, |n, &extent| n.checked_mul(extent)).unwrap_or(1);
                let begin = data.len();
                for _ in 0..elements.min(4096) {
                    data.extend((fill % 7).to_le_bytes());
                }
                let dtype =
                    if matches!(name, "q" | "k" | "v" | "mask" | "bias" | "sinks") { "F32" } else { "I32" };
                let entry =
                    serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [begin, data.len()]});
                header.insert(name.into(), entry);
            }
            let header = serde_json::Value::Object(header).to_string();
            let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
            read(&bytes);
            Ok(())
        })
        .unwrap();
}

#[test]
fn any_options_are_read_without_panic() {
    let leaf = prop_oneof![
        Just("\"causal\"".to_owned()),
        Just("\"document\"".to_owned()),
        Just("\"cusal\"".to_owned()),
        any::<i64>().prop_map(|n| format!("{{\"chunked\": {{\"size\": {n}}}}}")),
        (any::<i8>(), any::<f64>())
            .prop_map(|(l, r)| format!("{{\"sliding_window\": {{\"left\": {l}, \"right\": {r}}}}}")),
    ];
    let mask = leaf.prop_recursive(8, 64, 3, |inner| {
        prop_oneof![
            inner.clone().prop_map(|m| format!("{{\"not\": {m}}}")),
            proptest::collection::vec(inner, 0..4).prop_map(|m| format!("{{\"and\": [{}]}}", m.join(","))),
        ]
    });
    let mut runner = TestRunner::new(Config { cases: 2000, failure_persistence: None, ..Config::default() });
    runner
        .run(&(mask, any::<f64>(), any::<i64>()), |(mask, scale, partitions)| {
            let json =
                format!("{{\"mask\": {mask}, \"softmax_scale\": {scale}, \"num_partitions\": {partitions}}}");
            if let Ok(options) = Options::from_json(json.as_bytes()) {
                prop_assert_eq!(Options::from_json(options.to_json().as_bytes()).unwrap(), options);
            }
            Ok(())
        })
        .unwrap();
}
