//! How much of the processor's arithmetic the tiled kernels use: GFLOP/s, and percent of the peak that the same run
//! measures on one core.
//!
//! `cargo run --release -p omniflash-cpu --example prefill_bench [-- FILTER [SECONDS [BLOCK_M [BLOCK_N [THREADS]]]]]`,
//! where THREADS is a list such as `1,2,16` and a block of `-` is the planner's.

#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use std::time::{Duration, Instant};

use half::{bf16, f16};
use omniflash_core::{
    AttentionConfig, AttentionOptions, AttentionProblem, Backend, DType, Float, KvCache, Mask, Query, Result,
    Stream, TensorMut, TensorRef, run,
};
use omniflash_cpu::CpuBackend;

struct Shape {
    name: &'static str,
    heads: usize,
    kv_heads: usize,
    seqlen_q: usize,
    seqlen_k: usize,
    dim: usize,
    mask: Mask<'static>,
}

fn shapes() -> Vec<Shape> {
    let shape = |name, heads, kv_heads, seqlen, dim, mask| Shape {
        name,
        heads,
        kv_heads,
        seqlen_q: seqlen,
        seqlen_k: seqlen,
        dim,
        mask,
    };
    let window = Mask::SlidingWindow { left: 1023, right: 0 };
    vec![
        shape("p512_d64", 8, 8, 512, 64, Mask::None),
        shape("p512_d64_causal", 8, 8, 512, 64, Mask::Causal),
        shape("p2048_d64", 8, 8, 2048, 64, Mask::None),
        shape("p2048_d64_causal", 8, 8, 2048, 64, Mask::Causal),
        shape("p2048_d80", 8, 8, 2048, 80, Mask::None),
        shape("p2048_d128", 16, 16, 2048, 128, Mask::None),
        shape("p2048_d128_causal", 16, 16, 2048, 128, Mask::Causal),
        shape("p2048_d256", 8, 8, 2048, 256, Mask::None),
        shape("gqa2048_d128_causal", 32, 8, 2048, 128, Mask::Causal),
        shape("window8192_d128", 4, 4, 8192, 128, window),
        Shape { seqlen_q: 128, ..shape("chunk128_kv32k", 2, 2, 32768, 128, Mask::Causal) },
    ]
}

impl Shape {
    /// Visible pairs of query and key, of all heads.
    fn pairs(&self) -> f64 {
        let (q, k) = (self.seqlen_q as f64, self.seqlen_k as f64);
        let of_head = match self.mask {
            Mask::Causal if self.seqlen_q == self.seqlen_k => q * k / 2.0,
            Mask::SlidingWindow { left, .. } => q * (left + 1) as f64,
            _ => q * k,
        };
        of_head * self.heads as f64
    }
}

fn numbers<T: Float>(count: usize, seed: u32) -> Vec<T> {
    let mut bits = seed;
    let next = |_| {
        bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        T::from_f32((bits >> 8) as f32 / (1 << 23) as f32 - 1.0)
    };
    (0..count).map(next).collect()
}

/// The median time of a call, in seconds.
fn time<T: Float>(backend: &CpuBackend, shape: &Shape, config: AttentionConfig, seconds: f64) -> Result<f64> {
    let q_shape = [1, shape.seqlen_q, shape.heads, shape.dim];
    let k_shape = [1, shape.seqlen_k, shape.kv_heads, shape.dim];
    let q = numbers::<T>(q_shape.iter().product(), 1);
    let k = numbers::<T>(k_shape.iter().product(), 2);
    let v = numbers::<T>(k_shape.iter().product(), 3);
    let mut out = vec![T::from_f32(0.0); q.len()];
    let problem = AttentionProblem::new(
        Query::padded(TensorRef::from_slice(&q, &q_shape)?),
        KvCache::dense(TensorRef::from_slice(&k, &k_shape)?, TensorRef::from_slice(&v, &k_shape)?),
        TensorMut::from_slice(&mut out, &q_shape)?,
        None,
        &AttentionOptions::new().mask(shape.mask.clone()).config(config),
    )?;
    run(backend, &problem, &Stream::host())?;
    let start = Instant::now();
    let mut times = Vec::new();
    while start.elapsed().as_secs_f64() < seconds || times.len() < 3 {
        let call = Instant::now();
        run(backend, &problem, &Stream::host())?;
        times.push(call.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// Runs on a pool of its own.
fn on<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> R {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.expect("threads can be had").install(work)
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let filter = arguments.next().unwrap_or_default();
    let seconds: f64 = arguments.next().and_then(|seconds| seconds.parse().ok()).unwrap_or(0.4);
    let mut block = || arguments.next().and_then(|block| block.parse().ok());
    let config = AttentionConfig { block_m: block(), block_n: block(), ..AttentionConfig::default() };
    let backend = CpuBackend::new()?;
    let threads = arguments.next().unwrap_or_else(|| "1,2".into());
    let threads: Vec<usize> = threads.split(',').filter_map(|count| count.parse().ok()).collect();
    let peaks = on(1, || backend.measure_peaks(&Stream::host(), Duration::from_millis(100)))?;
    let peak_of = |dtype| peaks.flops_of(dtype).map_or(f64::NAN, |rate| rate / 1e9);
    println!(
        "{} on {}: peak of a core f32 {:.0}, bf16 {:.0} GFLOP/s",
        backend.isa(),
        std::env::consts::ARCH,
        peak_of(DType::F32),
        peak_of(DType::BF16)
    );
    for shape in shapes() {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let name = format!("{} {dtype}", shape.name);
            if !name.contains(&filter) {
                continue;
            }
            print!("{name:26}");
            for &threads in &threads {
                let seconds = on(threads, || match dtype {
                    DType::F32 => time::<f32>(&backend, &shape, config, seconds),
                    DType::F16 => time::<f16>(&backend, &shape, config, seconds),
                    _ => time::<bf16>(&backend, &shape, config, seconds),
                })?;
                let rate = 4.0 * shape.pairs() * shape.dim as f64 / seconds / 1e9;
                let share = 100.0 * rate / peak_of(dtype) / threads as f64;
                print!("  t{threads} {rate:7.1} GFLOP/s {share:5.1} %");
            }
            println!();
        }
    }
    Ok(())
}
