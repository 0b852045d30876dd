//! What do masks and score modifications cost? Each at 1 x 8 heads x 4096 x 4096 x 64, bf16.
#![allow(missing_docs)] // criterion's macros define public items

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use omniflash::{AttentionOptions, AttentionProblem, DType, Mask, ScoreMod, Tensor, run};
use omniflash_benches::{Sizes, backends, normal};

fn masks(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("masks");
    group.sample_size(10);
    let seqlen = 4096;
    for backend in backends() {
        let stream = backend.stream().expect("a backend that was found has streams");
        let sizes = Sizes {
            batch: 1,
            num_heads: 8,
            num_kv_heads: 8,
            seqlen_q: seqlen,
            seqlen_k: seqlen,
            head_dim: 64,
        };
        let [q, k, v] = sizes.tensors(&*backend, DType::BF16, &stream).expect("memory for the inputs");
        let mut out =
            Tensor::zeros(&*backend, DType::BF16, q.shape(), &stream).expect("memory for the output");
        let documents: Vec<u32> = (0..seqlen).map(|position| (position / 512) as u32).collect();
        let ids = Tensor::from_slice(&*backend, &documents, &[1, seqlen], &stream).expect("memory for ids");
        let triangle: Vec<bool> = (0..seqlen * seqlen).map(|i| i % seqlen <= i / seqlen).collect();
        let dense = Tensor::from_slice(&*backend, &triangle, &[1, seqlen, seqlen], &stream).expect("memory");
        let bias = normal(&*backend, DType::BF16, &[1, 1, seqlen, seqlen], 4, &stream).expect("memory");
        let cases = [
            ("none", Mask::None, ScoreMod::Identity),
            ("causal", Mask::Causal, ScoreMod::Identity),
            ("window_1024", Mask::SlidingWindow { left: 1023, right: 0 }, ScoreMod::Identity),
            ("chunked_512", Mask::Chunked { size: 512 }, ScoreMod::Identity),
            ("document_512", Mask::Document { ids: ids.view() }, ScoreMod::Identity),
            ("dense_causal", Mask::Dense(dense.view()), ScoreMod::Identity),
            ("closure_causal", Mask::from_fn(|_, _, q, k| k <= q), ScoreMod::Identity),
            ("softcap", Mask::None, ScoreMod::Softcap { cap: 30.0 }),
            ("alibi_causal", Mask::Causal, ScoreMod::Alibi { slopes: None }),
            ("bias", Mask::None, ScoreMod::Bias(bias.view())),
        ];
        for (name, mask, score_mod) in cases {
            let options = AttentionOptions::new().mask(mask).score_mod(score_mod);
            let problem = AttentionProblem::new((&q).into(), (&k, &v).into(), out.view_mut(), None, &options)
                .expect("a valid problem");
            group.bench_function(BenchmarkId::new(&backend.info().name, name), |bencher| {
                bencher.iter(|| run(&*backend, &problem, &stream).expect("a supported problem"));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, masks);
criterion_main!(benches);
