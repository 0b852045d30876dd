//! What a ragged batch costs in which some sequences decode and one is a new prompt: all rows in tiles, and each
//! sequence by the kernels that its rows ask for, in turns.
//!
//!     cargo run --release -p omniflash-cpu --example mixed_bench -- [SECONDS_PER_CASE]
#![allow(clippy::print_stdout)]

use std::time::Instant;

use half::{bf16, f16};
use omniflash_core::{
    AttentionConfig, AttentionOptions, AttentionProblem, Element, Float, KvCache, Mask, Query, Result,
    Stream, TensorMut, TensorRef, run,
};
use omniflash_cpu::CpuBackend;

const HEADS: usize = 32;
const KV_HEADS: usize = 8;
const DIM: usize = 128;
/// Sequences that decode, and their keys.
const DECODING: usize = 15;
const KEYS: usize = 4096;
/// Rows of the prompt.
const PROMPT: usize = 256;

fn main() -> Result<()> {
    let seconds = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(2.0);
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads can be made");
        pool.install(|| {
            measure::<f32>(threads, seconds)?;
            measure::<bf16>(threads, seconds)?;
            measure::<f16>(threads, seconds)
        })?;
    }
    Ok(())
}

fn measure<T: Float + Element>(threads: usize, seconds: f64) -> Result<()> {
    let (rows, keys) = (DECODING + PROMPT, DECODING * KEYS + PROMPT);
    let numbers = |seed: u32, len: usize| -> Vec<T> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            T::from_f32((state >> 8) as f32 / (1 << 23) as f32 - 1.0)
        };
        (0..len).map(|_| next()).collect()
    };
    let (q, k, v) = (
        numbers(1, rows * HEADS * DIM),
        numbers(2, keys * KV_HEADS * DIM),
        numbers(3, keys * KV_HEADS * DIM),
    );
    let offsets = |one: usize, rows: usize| -> Vec<i32> {
        (0..=DECODING).map(|i| (i * one) as i32).chain([rows as i32]).collect()
    };
    let (cu_seqlens_q, cu_seqlens_k) = (offsets(1, rows), offsets(KEYS, keys));
    let mut times = [Vec::new(), Vec::new()];
    let mut out = vec![T::from_f32(0.0); q.len()];
    let start = Instant::now();
    let backend = CpuBackend::new()?;
    while times[0].len() < 3 || start.elapsed().as_secs_f64() < seconds {
        for (times, block_n) in times.iter_mut().zip([Some(48), None]) {
            let config = AttentionConfig { block_n, ..AttentionConfig::default() };
            let problem = AttentionProblem::new(
                Query::Ragged {
                    q: TensorRef::from_slice(&q, &[rows, HEADS, DIM])?,
                    cu_seqlens: TensorRef::from_slice(&cu_seqlens_q, &[DECODING + 2])?,
                    max_seqlen: None,
                },
                KvCache::Ragged {
                    k: TensorRef::from_slice(&k, &[keys, KV_HEADS, DIM])?,
                    v: TensorRef::from_slice(&v, &[keys, KV_HEADS, DIM])?,
                    cu_seqlens: TensorRef::from_slice(&cu_seqlens_k, &[DECODING + 2])?,
                    max_seqlen: None,
                },
                TensorMut::from_slice(&mut out, &[rows, HEADS, DIM])?,
                None,
                &AttentionOptions::new().mask(Mask::Causal).config(config),
            )?;
            let begin = Instant::now();
            run(&backend, &problem, &Stream::host())?;
            times.push(begin.elapsed().as_secs_f64() * 1e3);
        }
    }
    let [tiles, split] = times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    });
    println!(
        "{:5} t{threads}: all in tiles {tiles:8.2} ms, by rows {split:8.2} ms: {:.2} times as fast",
        T::DTYPE,
        tiles / split
    );
    Ok(())
}
