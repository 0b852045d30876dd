//! What does the first use of a mask of one's own cost where kernels are compiled at run time: cold, from the cache on
//! disk, and planned before? Skipped where no compiler is: no GPU is needed.
#![allow(missing_docs)] // criterion's macros define public items
#![allow(clippy::print_stdout, reason = "says what it skips")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use omniflash::{
    AttentionOptions, AttentionPlan, AttentionProblem, DType, DeviceSource, Error, Mask, MaskFunction,
    ReferenceBackend, Result, Stream, Tensor,
};
use omniflash_benches::Sizes;
use omniflash_cuda::{OfflinePlanner, kernel_store};

const ARCH: &str = "sm_90";

/// A mask with a source of its own for each number.
struct Numbered(u32);

impl MaskFunction for Numbered {
    fn visible(&self, _batch: usize, _head: usize, q: i64, k: i64) -> bool {
        k <= q || k == i64::from(self.0)
    }

    fn device_source(&self) -> Option<DeviceSource> {
        let source = format!(
            "struct Numbered {{ int unused; OMNIFLASH_DEVICE bool keep(const ScoreIndex& at) const \
             {{ return at.k <= at.q || at.k == {}; }} }};",
            self.0
        );
        Some(DeviceSource::new("Numbered", source, &0i32))
    }
}

fn plan(planner: &OfflinePlanner, number: u32) -> Result<AttentionPlan> {
    let (backend, stream) = (ReferenceBackend::new(), Stream::host());
    let sizes = Sizes { batch: 1, num_heads: 8, num_kv_heads: 8, seqlen_q: 128, seqlen_k: 128, head_dim: 64 };
    let [q, k, v] = sizes.tensors(&backend, DType::BF16, &stream)?;
    let mut out = Tensor::zeros(&backend, DType::BF16, q.shape(), &stream)?;
    let options = AttentionOptions::new().mask(Mask::custom(Numbered(number)));
    planner.plan(&AttentionProblem::new((&q).into(), (&k, &v).into(), out.view_mut(), None, &options)?)
}

fn planner() -> OfflinePlanner {
    OfflinePlanner::new(ARCH, Arc::new(kernel_store())).expect("a known architecture")
}

fn jit(criterion: &mut Criterion) {
    // Sources that no earlier run has left in the cache.
    let next = AtomicU32::new(std::process::id() << 8);
    let number = || next.fetch_add(1, Ordering::Relaxed);
    match plan(&planner(), number()) {
        Ok(_) => {}
        Err(Error::NoKernel { hint, .. }) => return println!("skipped: {hint}"),
        Err(error) => panic!("{error}"),
    }
    let mut group = criterion.benchmark_group("jit");
    group.sample_size(10);
    group.bench_function("cold", |bencher| {
        bencher.iter_batched(
            || (planner(), number()),
            |(planner, number)| plan(&planner, number).expect("it compiles"),
            BatchSize::PerIteration,
        );
    });
    let known = number();
    plan(&planner(), known).expect("it compiles");
    group.bench_function("from_the_cache_on_disk", |bencher| {
        bencher.iter_batched(
            planner,
            |planner| plan(&planner, known).expect("it is there"),
            BatchSize::PerIteration,
        );
    });
    let warm = planner();
    plan(&warm, known).expect("it is there");
    group.bench_function("planned_before", |bencher| {
        bencher.iter(|| plan(&warm, known).expect("it is there"));
    });
    group.finish();
}

criterion_group!(benches, jit);
criterion_main!(benches);
