//! What do validation and planning cost on the host, by kind of batch and mask? No backend computes anything here.
#![allow(missing_docs)] // criterion's macros define public items

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use omniflash_benches::host::{KINDS, Problem};

fn planning(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("planning");
    for kind in KINDS {
        let mut problem = Problem::new(kind).expect("a valid problem");
        group.bench_function(BenchmarkId::new("validate", kind), |bencher| {
            bencher.iter(|| problem.validate().expect("a valid problem"));
        });
        group.bench_function(BenchmarkId::new("plan_cpu", kind), |bencher| {
            bencher.iter(|| problem.plan().expect("a supported problem"));
        });
    }
    group.finish();
}

criterion_group!(benches, planning);
criterion_main!(benches);
