//! A decode step allocates nothing once its threads have their memory.

#![allow(clippy::unwrap_used, reason = "a test that cannot build its case has failed")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use half::{bf16, f16};
use omniflash_core::{
    AttentionOptions, AttentionProblem, Backend, Element, Float, KvCache, Mask, Query, ScoreMod, Stream,
    TensorMut, TensorRef,
};
use omniflash_cpu::CpuBackend;

/// The system's allocator, which counts what is asked of it.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator does everything.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's duty.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's duty.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const KEYS: usize = 2048;
const PAGE: usize = 64;
const HEADS: usize = 8;
const KV_HEADS: usize = 2;
const DIM: usize = 64;

/// Allocations of ten steps on two threads that have each done one before: the fewest of five times, for the pool itself
/// allocates once where a thread takes work from another for the first time. What a step allocates it does each time.
fn allocations<T: Float + Element>(options: &AttentionOptions<'_>, is_paged: bool) -> usize {
    let numbers = |len: usize| -> Vec<T> { (0..len).map(|i| T::from_f32((i % 17) as f32 - 8.0)).collect() };
    let (q, k, v) =
        (numbers(2 * HEADS * DIM), numbers(2 * KEYS * KV_HEADS * DIM), numbers(2 * KEYS * KV_HEADS * DIM));
    let mut out = vec![T::from_f32(0.0); q.len()];
    let pages: Vec<i32> = (0..(2 * KEYS / PAGE) as i32).rev().collect();
    let lengths = [KEYS as i32, KEYS as i32 - 100];
    let shape = if is_paged { [2 * KEYS / PAGE, PAGE, KV_HEADS, DIM] } else { [2, KEYS, KV_HEADS, DIM] };
    let (k, v) = (TensorRef::from_slice(&k, &shape).unwrap(), TensorRef::from_slice(&v, &shape).unwrap());
    let kv = if is_paged {
        KvCache::Paged {
            k,
            v,
            page_table: TensorRef::from_slice(&pages, &[2, KEYS / PAGE]).unwrap(),
            lengths: TensorRef::from_slice(&lengths, &[2]).unwrap(),
            max_seqlen: None,
        }
    } else {
        KvCache::dense(k, v)
    };
    let rows = [2, 1, HEADS, DIM];
    let problem = AttentionProblem::new(
        Query::padded(TensorRef::from_slice(&q, &rows).unwrap()),
        kv,
        TensorMut::from_slice(&mut out, &rows).unwrap(),
        None,
        options,
    )
    .unwrap();
    let backend = CpuBackend::new().unwrap();
    let plan = backend.plan(&problem).unwrap();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    let stream = Stream::host();
    // SAFETY: the plan is of the problem, whose outputs nobody else uses; the lock keeps the threads apart.
    let step = || unsafe { backend.launch(&plan, &problem, &stream).unwrap() };
    let turns = std::sync::Mutex::new(());
    pool.broadcast(|_| {
        let _turn = turns.lock().unwrap();
        step();
    });
    let ten_steps = || {
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        for _ in 0..10 {
            step();
        }
        ALLOCATIONS.load(Ordering::Relaxed) - before
    };
    pool.install(|| (0..5).map(|_| ten_steps()).min()).unwrap()
}

// One test: others would be counted with it.
#[test]
fn a_decode_step_allocates_nothing() {
    let sinks: Vec<f32> = (0..HEADS).map(|i| i as f32).collect();
    let sinks = TensorRef::from_slice(&sinks, &[HEADS]).unwrap();
    let options = [
        AttentionOptions::new(),
        AttentionOptions::new().mask(Mask::Causal).sinks(sinks),
        AttentionOptions::new()
            .mask(Mask::SlidingWindow { left: 1000, right: 0 })
            .score_mod(ScoreMod::Softcap { cap: 20.0 }.then(ScoreMod::Alibi { slopes: None })),
    ];
    for (i, options) in options.iter().enumerate() {
        for is_paged in [false, true] {
            assert_eq!(allocations::<f32>(options, is_paged), 0, "f32, options {i}, paged {is_paged}");
            assert_eq!(allocations::<bf16>(options, is_paged), 0, "bf16, options {i}, paged {is_paged}");
            assert_eq!(allocations::<f16>(options, is_paged), 0, "f16, options {i}, paged {is_paged}");
        }
    }
}
