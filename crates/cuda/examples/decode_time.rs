//! Times of decode steps over dense and paged caches: CUDA graph replay, the second-level cache flushed before each,
//! median. One JSON line a case, with names as in the peers' benchmark.
//!
//! The cache is flushed by writing, as other benchmarks do it: the step then also waits for what must be written back.
//! `clean_ms` is the time after other keys were read instead, so that nothing must.
//!
//! ```text
//! decode_time [FILTER ...]         cases whose name contains one of them
//! ```

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command")]

use std::process::ExitCode;

use half::bf16;
use omniflash_core::{
    Algorithm, AttentionConfig, AttentionOptions, AttentionProblem, Backend, DType, KvCache, Layout, Mask,
    Query, Result, Stream, Tensor, TensorRef,
};
use omniflash_cuda::CudaBackend;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

/// Bytes written before each replay: more than any second-level cache.
const FLUSH_BYTES: usize = 256 << 20;
const REPLAYS: usize = 25;
/// Elements of the pool that all caches lie in.
const POOL: usize = 400_000 * 1024;

/// A decode step.
struct Case {
    name: String,
    seqlen_q: usize,
    heads: (usize, usize),
    dim: usize,
    lengths: Vec<usize>,
    page_size: Option<usize>,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (batch, heads, dim, keys) in [
        (1, (32, 8), 128, 1024),
        (1, (32, 8), 128, 4096),
        (1, (32, 8), 128, 32_768),
        (1, (32, 8), 128, 131_072),
        (16, (32, 8), 128, 8192),
        (64, (32, 8), 128, 4096),
        (128, (32, 8), 128, 1024),
        (16, (32, 32), 128, 4096),
        (16, (64, 8), 64, 8192),
        (8, (16, 1), 256, 8192),
    ] {
        for page_size in [None, Some(16), Some(64), Some(128)] {
            let paged = page_size.map_or(String::new(), |size| format!("_P{size}"));
            let name = format!("dec_B{batch}_H{}_{}_D{dim}_KV{keys}{paged}", heads.0, heads.1);
            cases.push(Case { name, seqlen_q: 1, heads, dim, lengths: vec![keys; batch], page_size });
        }
    }
    for seqlen_q in [2, 4, 8] {
        let name = format!("dec_Q{seqlen_q}_B16_H32_8_D128_KV8192");
        cases.push(Case {
            name,
            seqlen_q,
            heads: (32, 8),
            dim: 128,
            lengths: vec![8192; 16],
            page_size: None,
        });
    }
    // Lengths from 128 to 32k, as many of each magnitude, and as many keys in equal lengths.
    let mut random = ChaCha8Rng::seed_from_u64(64);
    let mixed: Vec<usize> =
        (0..64).map(|_| (128.0 * 256f64.powf(random.random::<f64>())).round() as usize).collect();
    let mean = mixed.iter().sum::<usize>() / mixed.len();
    for (kind, lengths) in [("mixed", mixed), ("equal", vec![mean; 64])] {
        let name = format!("dec_B64_H32_8_D128_KV{mean}_{kind}_P16");
        cases.push(Case { name, seqlen_q: 1, heads: (32, 8), dim: 128, lengths, page_size: Some(16) });
    }
    cases
}

fn main() -> ExitCode {
    let filters: Vec<String> = std::env::args().skip(1).collect();
    let backend = match CudaBackend::discover() {
        Ok(backends) => backends.into_iter().next(),
        Err(absent) => {
            println!("skipped: {absent}");
            return ExitCode::SUCCESS;
        }
    };
    let Some(backend) = backend else {
        println!("skipped: no GPU can be used");
        return ExitCode::SUCCESS;
    };
    match run(&backend, &filters) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Milliseconds of one call over sequences of both kinds, and of a call each, by the family chosen and by each of the others.
fn mixed(backend: &CudaBackend, pools: &[Tensor; 2], flush: &Enqueue) -> Result<()> {
    let decodes = vec![(1, 4096); 230];
    let prefills = vec![(512, 512); 40];
    let both: Vec<_> = decodes.iter().chain(&prefills).copied().collect();
    for algorithm in [Algorithm::Auto, Algorithm::Flash2, Algorithm::Flash3] {
        let time = |sequences: &[(usize, usize)]| time_ragged(backend, sequences, algorithm, pools, flush);
        let ((decode, _), (prefill, _), (both, plan)) = (time(&decodes)?, time(&prefills)?, time(&both)?);
        println!(
            "{{\"system\":\"omniflash-cuda\",\"case\":\"mixed_230x1_4096_40x512_H32_8_D128_P16\",\
             \"dtype\":\"bfloat16\",\"algorithm\":\"{algorithm}\",\"ms\":{both:.5},\"decodes_ms\":{decode:.5},\
             \"prefills_ms\":{prefill:.5},\"apart_over_together\":{:.3},\"plan\":\"{plan}\"}}",
            (decode + prefill) / both,
        );
    }
    Ok(())
}

/// Median milliseconds of a causal call over a paged cache, of sequences with so many queries and keys, and its plan.
fn time_ragged(
    backend: &CudaBackend,
    sequences: &[(usize, usize)],
    algorithm: Algorithm,
    pools: &[Tensor; 2],
    flush: &Enqueue,
) -> Result<(f32, String)> {
    const PAGE: usize = 16;
    let (heads, dim, stream) = ((32, 8), 128, backend.stream()?);
    let mut offsets = vec![0i32];
    for &(queries, _) in sequences {
        offsets.push(offsets.last().copied().unwrap_or(0) + queries as i32);
    }
    let total = offsets.last().copied().unwrap_or(0) as usize;
    let mut random = ChaCha8Rng::seed_from_u64(6);
    let pattern: Vec<bf16> =
        (0..65_521).map(|_| bf16::from_f32(StandardNormal.sample(&mut random))).collect();
    let q: Vec<bf16> = pattern.iter().copied().cycle().take(total * heads.0 * dim).collect();
    let q = Tensor::from_slice(backend, &q, &[total, heads.0, dim], &stream)?;
    let offsets = Tensor::from_slice(backend, &offsets, &[sequences.len() + 1], &stream)?;
    let mut out = Tensor::zeros(backend, DType::BF16, q.shape(), &stream)?;
    let longest = sequences.iter().map(|&(_, keys)| keys).max().unwrap_or(0);
    let longest_q = sequences.iter().map(|&(queries, _)| queries).max().unwrap_or(0);
    let pages = POOL / (PAGE * heads.1 * dim);
    let mut free: Vec<i32> = (0..pages as i32).collect();
    free.shuffle(&mut random);
    let max_pages = longest.div_ceil(PAGE);
    let mut table = vec![i32::MAX; sequences.len() * max_pages];
    for (b, &(_, keys)) in sequences.iter().enumerate() {
        for page in 0..keys.div_ceil(PAGE) {
            // Sequences may share pages: the pool is smaller than all keys.
            table[b * max_pages + page] = free[(b * max_pages + page) % free.len()];
        }
    }
    let table = Tensor::from_slice(backend, &table, &[sequences.len(), max_pages], &stream)?;
    let lengths: Vec<i32> = sequences.iter().map(|&(_, keys)| keys as i32).collect();
    let lengths = Tensor::from_slice(backend, &lengths, &[sequences.len()], &stream)?;
    let shape = [pages, PAGE, heads.1, dim];
    let view = |pool: &Tensor| pool_view(backend, pool, &shape);
    let kv = KvCache::Paged {
        k: view(&pools[0])?,
        v: view(&pools[1])?,
        page_table: table.view(),
        lengths: lengths.view(),
        max_seqlen: Some(longest),
    };
    let config = AttentionConfig { algorithm, ..AttentionConfig::default() };
    let options = AttentionOptions::new().mask(Mask::Causal).config(config);
    let query = Query::Ragged { q: q.view(), cu_seqlens: offsets.view(), max_seqlen: Some(longest_q) };
    let problem = AttentionProblem::new(query, kv, out.view_mut(), None, &options)?;
    let ([ms, _], plan) = replay(backend, &problem, &stream, flush)?;
    Ok((ms, plan))
}

/// A tensor in a pool that is at least as long.
fn pool_view(backend: &CudaBackend, pool: &Tensor, shape: &[usize]) -> Result<TensorRef<'static>> {
    pool_view_at(backend, pool, 0, shape)
}

/// The same from an element on.
fn pool_view_at(
    backend: &CudaBackend,
    pool: &Tensor,
    first: usize,
    shape: &[usize],
) -> Result<TensorRef<'static>> {
    // SAFETY: the pool outlives every case and reaches as far as the shape.
    Ok(unsafe {
        TensorRef::from_raw(
            pool.view().address() + (first * DType::BF16.size()) as u64,
            DType::BF16,
            Layout::contiguous(shape)?,
            backend.info().device,
        )
    })
}

/// Shape of keys that are read to flush the cache: more bytes than any has. They are the last of the pools, which no dense
/// case has.
const FLUSH_SHAPE: [usize; 4] = [8, 8192, 8, 128];

/// Enqueues work on a stream.
type Enqueue = dyn Fn(&Stream) -> Result<()>;

/// What reads them.
fn flush(backend: &CudaBackend, pools: &[Tensor; 2]) -> Result<Box<Enqueue>> {
    let stream = backend.stream()?;
    let [batch, _, heads, dim] = FLUSH_SHAPE;
    let q = Tensor::zeros(backend, DType::BF16, &[batch, 1, heads, dim], &stream)?;
    let mut out = Tensor::zeros(backend, DType::BF16, q.shape(), &stream)?;
    let first = POOL - FLUSH_SHAPE.iter().product::<usize>();
    let view = |pool: &Tensor| pool_view_at(backend, pool, first, &FLUSH_SHAPE);
    let (kv, options) = (KvCache::dense(view(&pools[0])?, view(&pools[1])?), AttentionOptions::new());
    let graph = {
        let problem = AttentionProblem::new(Query::padded(q.view()), kv, out.view_mut(), None, &options)?;
        let plan = backend.plan(&problem)?;
        backend.prepare(&plan, &problem, &stream)?;
        // SAFETY: the tensors live as long as the graph, and nothing else uses them.
        backend.capture(&stream, || unsafe { backend.launch(&plan, &problem, &stream) })?
    };
    backend.synchronize(&stream)?;
    Ok(Box::new(move |stream| {
        let _alive = (&q, &out);
        // SAFETY: its tensors live as long as it, the pools as long as every case.
        unsafe { graph.replay(stream) }
    }))
}

fn run(backend: &CudaBackend, filters: &[String]) -> Result<()> {
    let is_asked = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter));
    let stream = backend.stream()?;
    let mut random = ChaCha8Rng::seed_from_u64(9);
    let pattern: Vec<bf16> =
        (0..65_521).map(|_| bf16::from_f32(StandardNormal.sample(&mut random))).collect();
    let data: Vec<bf16> = pattern.iter().copied().cycle().take(POOL).collect();
    let pools = [
        Tensor::from_slice(backend, &data, &[POOL], &stream)?,
        Tensor::from_slice(backend, &data, &[POOL], &stream)?,
    ];
    let flush = flush(backend, &pools)?;
    for case in cases().iter().filter(|case| is_asked(&case.name)) {
        match time(backend, case, &pools, &*flush) {
            Ok(([ms, clean_ms], plan)) => {
                let keys: usize = case.lengths.iter().sum();
                let bytes = (2 * keys * case.heads.1 * case.dim * 2) as f64;
                println!(
                    "{{\"system\":\"omniflash-cuda\",\"case\":\"{}\",\"dtype\":\"bfloat16\",\"ms\":{ms:.5},\
                     \"clean_ms\":{clean_ms:.5},\"tbps\":{:.3},\"clean_tbps\":{:.3},\"plan\":\"{plan}\"}}",
                    case.name,
                    bytes / f64::from(ms) * 1e-9,
                    bytes / f64::from(clean_ms) * 1e-9
                );
            }
            Err(error) => println!("{}: {error}", case.name),
        }
    }
    if is_asked("mixed_230x1_4096_40x512") {
        mixed(backend, &pools, &*flush)?;
    }
    Ok(())
}

/// Median milliseconds of a step, and its plan.
fn time(
    backend: &CudaBackend,
    case: &Case,
    pools: &[Tensor; 2],
    flush: &Enqueue,
) -> Result<([f32; 2], String)> {
    let stream = backend.stream()?;
    let batch = case.lengths.len();
    let longest = case.lengths.iter().copied().max().unwrap_or(0);
    let mut random = ChaCha8Rng::seed_from_u64(5);
    let q: Vec<bf16> = (0..batch * case.seqlen_q * case.heads.0 * case.dim)
        .map(|_| bf16::from_f32(StandardNormal.sample(&mut random)))
        .collect();
    let q = Tensor::from_slice(backend, &q, &[batch, case.seqlen_q, case.heads.0, case.dim], &stream)?;
    let mut out = Tensor::zeros(backend, DType::BF16, q.shape(), &stream)?;
    let page_size = case.page_size.unwrap_or(longest);
    let pages = if case.page_size.is_some() { POOL / (page_size * case.heads.1 * case.dim) } else { batch };
    let shape = [pages, page_size, case.heads.1, case.dim];
    let view = |pool: &Tensor| pool_view(backend, pool, &shape);
    let max_pages = longest.div_ceil(page_size);
    let mut ids: Vec<i32> = (0..pages as i32).collect();
    ids.shuffle(&mut random);
    let mut table = vec![i32::MAX; batch * max_pages];
    let mut free = ids.into_iter();
    for (b, &length) in case.lengths.iter().enumerate() {
        for page in 0..length.div_ceil(page_size) {
            table[b * max_pages + page] = free.next().expect("the pool has room for every case");
        }
    }
    let table = Tensor::from_slice(backend, &table, &[batch, max_pages], &stream)?;
    let lengths: Vec<i32> = case.lengths.iter().map(|&length| length as i32).collect();
    let lengths = Tensor::from_slice(backend, &lengths, &[batch], &stream)?;
    let (k, v) = (view(&pools[0])?, view(&pools[1])?);
    let kv = match case.page_size {
        None => KvCache::dense(k, v),
        Some(_) => KvCache::Paged {
            k,
            v,
            page_table: table.view(),
            lengths: lengths.view(),
            max_seqlen: Some(longest),
        },
    };
    let options = AttentionOptions::new().mask(Mask::Causal);
    let problem = AttentionProblem::new(Query::padded(q.view()), kv, out.view_mut(), None, &options)?;
    replay(backend, &problem, &stream, flush)
}

/// Median milliseconds of a problem's graph, the cache flushed by writing and by reading, and its plan.
fn replay(
    backend: &CudaBackend,
    problem: &AttentionProblem<'_>,
    stream: &Stream,
    flush: &Enqueue,
) -> Result<([f32; 2], String)> {
    let plan = backend.plan(problem)?;
    backend.prepare(&plan, problem, stream)?;
    // SAFETY: all tensors live until the stream is synchronised below.
    let graph = backend.capture(stream, || unsafe { backend.launch(&plan, problem, stream) })?;
    let (begin, end) = (backend.event()?, backend.event()?);
    let mut medians = [0.0; 2];
    for (median, reads) in medians.iter_mut().zip([false, true]) {
        let mut times = Vec::new();
        for _ in 0..REPLAYS + 3 {
            // Zeroed on the stream, then given back: what it displaces is the cache.
            drop(backend.alloc(FLUSH_BYTES, stream)?);
            if reads {
                flush(stream)?;
            }
            begin.record(stream)?;
            // SAFETY: as above.
            unsafe { graph.replay(stream) }?;
            end.record(stream)?;
            times.push(begin.elapsed_ms(&end)?);
        }
        let times = &mut times[3..];
        times.sort_by(f32::total_cmp);
        *median = times[times.len() / 2];
    }
    backend.synchronize(stream)?;
    Ok((medians, plan.to_string()))
}
