//! How much of the processor's arithmetic the tiled kernels use: GFLOP/s beside the measured peak of the same run.
//!
//! `cargo run --release -p omniflash-cpu --example prefill_bench [-- FILTER [SECONDS [BLOCK_M [BLOCK_N]]]]`

#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use std::time::Instant;

use half::{bf16, f16};
use omniflash_core::{
    AttentionConfig, AttentionOptions, AttentionProblem, Float, KvCache, Mask, Query, Result, Stream,
    TensorMut, TensorRef, run,
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

/// The best rate of chains of independent multiply-adds in registers, in GFLOP/s of one core.
#[cfg(target_arch = "x86_64")]
#[allow(clippy::needless_range_loop, reason = "indices keep the chains in registers")]
mod peak {
    use std::arch::x86_64::*;
    use std::hint::black_box;
    use std::time::Instant;

    const ROUNDS: usize = 200_000;
    const CHAINS: usize = 16;

    #[target_feature(enable = "avx512f")]
    fn f32_chains() -> f32 {
        let (a, b) = (_mm512_set1_ps(black_box(0.999)), _mm512_set1_ps(black_box(1e-3)));
        let mut sums = [_mm512_set1_ps(1.0); CHAINS];
        for _ in 0..ROUNDS {
            for i in 0..CHAINS {
                sums[i] = _mm512_fmadd_ps(sums[i], a, b);
            }
        }
        total(&sums)
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn bf16_chains() -> f32 {
        let pair = f32::from_bits(black_box(0x3a80_3a80));
        // SAFETY: both are 64 bytes of plain numbers.
        let a = unsafe { std::mem::transmute::<__m512, __m512bh>(_mm512_set1_ps(pair)) };
        let mut sums = [_mm512_set1_ps(1.0); CHAINS];
        for _ in 0..ROUNDS {
            for i in 0..CHAINS {
                sums[i] = _mm512_dpbf16_ps(sums[i], a, a);
            }
        }
        total(&sums)
    }

    #[target_feature(enable = "avx512f")]
    fn total(sums: &[__m512; CHAINS]) -> f32 {
        let mut all = sums[0];
        for i in 1..CHAINS {
            all = _mm512_add_ps(all, sums[i]);
        }
        _mm512_reduce_add_ps(all)
    }

    fn best(lanes: f64, chains: impl Fn() -> f32) -> f64 {
        let rates = (0..20).map(|_| {
            let start = Instant::now();
            black_box(chains());
            2.0 * lanes * (CHAINS * ROUNDS) as f64 / start.elapsed().as_secs_f64() / 1e9
        });
        rates.fold(0.0, f64::max)
    }

    pub(super) fn f32() -> Option<f64> {
        // SAFETY: the feature was detected.
        is_x86_feature_detected!("avx512f").then(|| best(16.0, || unsafe { f32_chains() }))
    }

    pub(super) fn bf16() -> Option<f64> {
        // SAFETY: the feature was detected.
        is_x86_feature_detected!("avx512bf16").then(|| best(32.0, || unsafe { bf16_chains() }))
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod peak {
    pub(super) fn f32() -> Option<f64> {
        None
    }

    pub(super) fn bf16() -> Option<f64> {
        None
    }
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let filter = arguments.next().unwrap_or_default();
    let seconds: f64 = arguments.next().and_then(|seconds| seconds.parse().ok()).unwrap_or(0.4);
    let mut block = || arguments.next().and_then(|block| block.parse().ok());
    let config = AttentionConfig { block_m: block(), block_n: block(), ..AttentionConfig::default() };
    let backend = CpuBackend::new()?;
    let peaks = (peak::f32(), peak::bf16());
    println!(
        "{} on {}: peak f32 {:.0?}, bf16 {:.0?} GFLOP/s",
        backend.isa(),
        std::env::consts::ARCH,
        peaks.0,
        peaks.1
    );
    for shape in shapes() {
        for dtype in ["f32", "f16", "bf16"] {
            let name = format!("{} {dtype}", shape.name);
            if !name.contains(&filter) {
                continue;
            }
            let mut rates = Vec::new();
            for threads in [1, 2] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
                let pool = pool.expect("two threads can be had");
                let seconds = pool.install(|| match dtype {
                    "f32" => time::<f32>(&backend, &shape, config, seconds),
                    "f16" => time::<f16>(&backend, &shape, config, seconds),
                    _ => time::<bf16>(&backend, &shape, config, seconds),
                })?;
                rates.push(4.0 * shape.pairs() * shape.dim as f64 / seconds / 1e9);
            }
            let peak = if dtype == "bf16" { peaks.1 } else { peaks.0 };
            let share =
                peak.map_or(String::new(), |peak| format!("{:5.1} % of peak", 100.0 * rates[0] / peak));
            println!(
                "{name:26} t1 {:7.1} GFLOP/s {share}  t2 {:7.1}  {:.2}x",
                rates[0],
                rates[1],
                rates[1] / rates[0]
            );
        }
    }
    Ok(())
}
