//! How near decoding comes to only reading its keys and values.
//!
//! Each line times a decode step and a loop that only reads the same buffers with the same threads, in turns in one
//! process: bandwidth changes from minute to minute on a shared machine, their ratio does not.
//!
//!     cargo run --release -p omniflash-cpu --example decode_bench -- [SECONDS_PER_CASE] [NAME_PART] [DTYPE] [THREADS]
#![allow(clippy::print_stdout)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use half::{bf16, f16};
use omniflash_core::{
    AttentionOptions, AttentionProblem, Element, Float, KvCache, Layout, Query, Stream, TensorMut, TensorRef,
    run,
};
use omniflash_cpu::CpuBackend;

#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    batch: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    kv_len: usize,
    /// 0 for a dense cache.
    page_size: usize,
    heads_first: bool,
}

const CASES: [Case; 6] = {
    let base = Case {
        name: "",
        batch: 1,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        kv_len: 4096,
        page_size: 0,
        heads_first: false,
    };
    [
        Case { name: "dec_B1_H32_8_D128_KV4096", ..base },
        Case { name: "dec_B1_H32_8_D128_KV32768", kv_len: 32768, ..base },
        Case { name: "dec_B1_H32_8_D128_KV32768_bhsd", kv_len: 32768, heads_first: true, ..base },
        Case { name: "dec_B1_H32_8_D128_KV32768_page16", kv_len: 32768, page_size: 16, ..base },
        Case { name: "dec_B4_H64_8_D64_KV8192", batch: 4, heads: 64, head_dim: 64, kv_len: 8192, ..base },
        Case { name: "dec_B1_H32_32_D128_KV4096", kv_heads: 32, ..base },
    ]
};

type Measure = fn(&Case, usize, f64) -> Result<(), Box<dyn std::error::Error>>;

const MEASURES: [(&str, Measure); 3] =
    [("f32", measure::<f32>), ("bf16", measure::<bf16>), ("f16", measure::<f16>)];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let seconds: f64 = arguments.next().map_or(Ok(1.0), |text| text.parse())?;
    let filter = arguments.next().unwrap_or_default();
    let dtype = arguments.next().unwrap_or_default();
    let only: Option<usize> = arguments.next().map(|text| text.parse()).transpose()?;
    println!("{}", CpuBackend::new()?.isa());
    for case in CASES.iter().filter(|case| case.name.contains(&filter)) {
        for threads in [1, 2].into_iter().filter(|threads| only.is_none_or(|only| only == *threads)) {
            for (name, measure) in MEASURES.iter().filter(|(name, _)| dtype.is_empty() || *name == dtype) {
                measure(case, threads, seconds).map_err(|error| format!("{name}: {error}"))?;
            }
        }
    }
    Ok(())
}

fn measure<T: Float + Element>(
    case: &Case,
    threads: usize,
    seconds: f64,
) -> Result<(), Box<dyn std::error::Error>> {
    let Case { batch, heads, kv_heads, head_dim, kv_len, page_size, .. } = *case;
    let elements = batch * kv_len * kv_heads * head_dim;
    let fill = |seed: u32, len: usize| -> Vec<T> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            T::from_f32((state >> 8) as f32 / (1 << 23) as f32 - 1.0)
        };
        (0..len).map(|_| next()).collect()
    };
    let (k, v, q) = (fill(1, elements), fill(2, elements), fill(3, batch * heads * head_dim));
    let mut out = vec![T::from_f32(0.0); q.len()];
    let page = page_size.max(1);
    let pages = kv_len / page;
    // An odd multiplier permutes the pages of a power of two.
    let table: Vec<i32> = (0..batch * pages).map(|i| (i * 7919 % (batch * pages)) as i32).collect();
    let lengths = vec![kv_len as i32; batch];
    let tensor = |data| -> omniflash_core::Result<TensorRef<'_>> {
        if page_size > 0 {
            return TensorRef::from_slice(data, &[batch * pages, page, kv_heads, head_dim]);
        }
        let layout = if case.heads_first { Layout::bhsd } else { Layout::bshd };
        TensorRef::with_layout(data, layout(batch, kv_len, kv_heads, head_dim)?, 0)
    };
    let cache = if page_size > 0 {
        KvCache::Paged {
            k: tensor(&k)?,
            v: tensor(&v)?,
            page_table: TensorRef::from_slice(&table, &[batch, pages])?,
            lengths: TensorRef::from_slice(&lengths, &[batch])?,
            max_seqlen: None,
        }
    } else {
        KvCache::dense(tensor(&k)?, tensor(&v)?)
    };
    let shape = [batch, 1, heads, head_dim];
    let problem = AttentionProblem::new(
        Query::padded(TensorRef::from_slice(&q, &shape)?),
        cache,
        TensorMut::from_slice(&mut out, &shape)?,
        None,
        &AttentionOptions::new(),
    )?;
    let backend = CpuBackend::new()?;
    let stream = Stream::host();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    let (mut decode, mut read) = (Vec::new(), Vec::new());
    pool.install(|| -> omniflash_core::Result<()> {
        let start = Instant::now();
        let mut warm = 0;
        while warm < 6 || start.elapsed() < Duration::from_secs_f64(seconds) {
            let begin = Instant::now();
            run(&backend, &problem, &stream)?;
            let between = Instant::now();
            read_all(&k, &v, threads);
            if warm >= 3 {
                decode.push((between - begin).as_secs_f64());
                read.push(between.elapsed().as_secs_f64());
            }
            warm += 1;
        }
        Ok(())
    })?;
    let bytes = 2.0 * elements as f64 * size_of::<T>() as f64;
    let rates = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        (times[times.len() / 2], times[0])
    };
    let ((decode, fastest), (read, fastest_read)) = (rates(&mut decode), rates(&mut read));
    println!(
        "{:34} {:8} t{threads} {:8.3} ms {:5.1} GB/s (best {:5.1}), reading {:5.1} (best {:5.1}): {:3.0} % (best {:3.0} %)",
        case.name,
        T::DTYPE,
        decode * 1e3,
        bytes / decode / 1e9,
        bytes / fastest / 1e9,
        bytes / read / 1e9,
        bytes / fastest_read / 1e9,
        100.0 * read / decode,
        100.0 * fastest_read / fastest,
    );
    Ok(())
}

/// Reads keys and values, an equal part of each by every thread.
fn read_all<T: Float>(k: &[T], v: &[T], threads: usize) {
    rayon::in_place_scope(|scope| {
        for part in 0..threads {
            let read_part = move || {
                for data in [k, v] {
                    let len = data.len() / threads;
                    black_box(sum(&data[part * len..(part + 1) * len]));
                }
            };
            if part + 1 < threads {
                scope.spawn(move |_| read_part());
            } else {
                read_part();
            }
        }
    });
}

fn sum<T: Float>(data: &[T]) -> u64 {
    // SAFETY: any bits are integers.
    let words = unsafe { data.align_to::<u64>().1 };
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: found.
        return unsafe { sum_avx2(words) };
    }
    sum_words(words)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_avx2(words: &[u64]) -> u64 {
    sum_words(words)
}

#[inline(always)]
fn sum_words(words: &[u64]) -> u64 {
    let mut sums = [0u64; 32];
    let mut chunks = words.chunks_exact(32);
    for chunk in &mut chunks {
        for (sum, word) in sums.iter_mut().zip(chunk) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.iter().chain(chunks.remainder()).fold(0, |sum, word| sum.wrapping_add(*word))
}
