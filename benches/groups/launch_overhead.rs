//! What does a call cost beside its arithmetic? Validation, planning, and one query on one key.
#![allow(missing_docs)] // criterion's macros define public items

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use omniflash::{AttentionOptions, AttentionProblem, DType, Mask, Tensor, run};
use omniflash_benches::{Sizes, backends};

fn launch_overhead(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("launch_overhead");
    for backend in backends() {
        let name = backend.info().name.clone();
        let stream = backend.stream().expect("a backend that was found has streams");
        let sizes = Sizes { batch: 1, num_heads: 1, num_kv_heads: 1, seqlen_q: 1, seqlen_k: 1, head_dim: 64 };
        let [q, k, v] = sizes.tensors(&*backend, DType::F32, &stream).expect("memory for the inputs");
        let mut out =
            Tensor::zeros(&*backend, DType::F32, q.shape(), &stream).expect("memory for the output");
        let options = AttentionOptions::new().mask(Mask::Causal);
        group.bench_function(BenchmarkId::new(&name, "validate"), |bencher| {
            bencher.iter(|| {
                AttentionProblem::new((&q).into(), (&k, &v).into(), out.view_mut(), None, &options)
                    .expect("a valid problem")
                    .shape()
                    .head_dim
            });
        });
        let problem = AttentionProblem::new((&q).into(), (&k, &v).into(), out.view_mut(), None, &options)
            .expect("a valid problem");
        group.bench_function(BenchmarkId::new(&name, "plan"), |bencher| {
            bencher.iter(|| backend.plan(&problem).expect("a supported problem"));
        });
        group.bench_function(BenchmarkId::new(&name, "run_one_query_one_key"), |bencher| {
            bencher.iter(|| run(&*backend, &problem, &stream).expect("a supported problem"));
        });
    }
    group.finish();
}

criterion_group!(benches, launch_overhead);
criterion_main!(benches);
