//! How fast are prompts? GFLOP/s (criterion's Gelem/s) by head_dim, length, dtype and mask.
#![allow(missing_docs)] // criterion's macros define public items

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use omniflash::{AttentionOptions, AttentionProblem, DType, Mask, Tensor, run};
use omniflash_benches::{Sizes, backends};

fn prefill(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("prefill");
    group.sample_size(10);
    for backend in backends() {
        let stream = backend.stream().expect("a backend that was found has streams");
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            for (head_dim, num_heads, num_kv_heads, seqlen) in
                [(64, 8, 8, 512), (64, 8, 8, 2048), (128, 16, 16, 2048), (128, 32, 8, 2048)]
            {
                let sizes =
                    Sizes { batch: 1, num_heads, num_kv_heads, seqlen_q: seqlen, seqlen_k: seqlen, head_dim };
                let [q, k, v] = sizes.tensors(&*backend, dtype, &stream).expect("memory for the inputs");
                let mut out =
                    Tensor::zeros(&*backend, dtype, q.shape(), &stream).expect("memory for the output");
                for (mask, share) in [(Mask::None, 1), (Mask::Causal, 2)] {
                    group.throughput(Throughput::Elements(sizes.operations() / share));
                    let case = format!("{dtype}_S{seqlen}_H{num_heads}_{num_kv_heads}_D{head_dim}_{mask}");
                    let options = AttentionOptions::new().mask(mask);
                    let problem =
                        AttentionProblem::new((&q).into(), (&k, &v).into(), out.view_mut(), None, &options)
                            .expect("a valid problem");
                    group.bench_function(BenchmarkId::new(&backend.info().name, case), |bencher| {
                        bencher.iter(|| run(&*backend, &problem, &stream).expect("a supported problem"));
                    });
                }
            }
        }
    }
    group.finish();
}

criterion_group!(benches, prefill);
criterion_main!(benches);
