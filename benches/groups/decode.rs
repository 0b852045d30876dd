//! How fast is one step of generation? Bytes of keys and values, read once, over time; dense and paged.
#![allow(missing_docs)] // criterion's macros define public items

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use omniflash::{AttentionOptions, AttentionProblem, DType, KvCache, Tensor, run};
use omniflash_benches::{Sizes, backends};

fn decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    group.sample_size(20);
    for backend in backends() {
        let stream = backend.stream().expect("a backend that was found has streams");
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            for seqlen_k in [4096, 32768] {
                let sizes =
                    Sizes { batch: 1, num_heads: 32, num_kv_heads: 8, seqlen_q: 1, seqlen_k, head_dim: 128 };
                group.throughput(Throughput::Bytes(sizes.kv_bytes(dtype)));
                let [q, k, v] = sizes.tensors(&*backend, dtype, &stream).expect("memory for the inputs");
                let mut out =
                    Tensor::zeros(&*backend, dtype, q.shape(), &stream).expect("memory for the output");
                let options = AttentionOptions::new();
                for page_size in [None, Some(16usize), Some(128)] {
                    let lengths = Tensor::from_slice(&*backend, &[seqlen_k as u32], &[1], &stream)
                        .expect("memory for a length");
                    let pages = page_size.map(|page_size| paged(&*backend, seqlen_k, page_size, &stream));
                    let kv = match (&pages, page_size) {
                        (Some(table), Some(page_size)) => {
                            let pool = [seqlen_k / page_size, page_size, 8, 128];
                            let layout = omniflash::Layout::contiguous(&pool).expect("a small shape");
                            KvCache::Paged {
                                k: k.view().reshape(layout.clone()).expect("as many elements"),
                                v: v.view().reshape(layout).expect("as many elements"),
                                page_table: table.view(),
                                lengths: lengths.view(),
                                max_seqlen: None,
                            }
                        }
                        _ => (&k, &v).into(),
                    };
                    let problem = AttentionProblem::new((&q).into(), kv, out.view_mut(), None, &options)
                        .expect("a valid problem");
                    let kind = page_size.map_or("dense".into(), |page_size| format!("paged{page_size}"));
                    let case = format!("{dtype}_H32_8_D128_KV{seqlen_k}_{kind}");
                    group.bench_function(BenchmarkId::new(&backend.info().name, case), |bencher| {
                        bencher.iter(|| run(&*backend, &problem, &stream).expect("a supported problem"));
                    });
                }
            }
        }
    }
    group.finish();
}

/// A table that scatters the pages, as a server's allocator ends up doing.
fn paged(
    backend: &dyn omniflash::Backend,
    seqlen_k: usize,
    page_size: usize,
    stream: &omniflash::Stream,
) -> Tensor {
    let count = seqlen_k / page_size;
    let table: Vec<u32> = (0..count).map(|page| (page * 7919 % count) as u32).collect();
    Tensor::from_slice(backend, &table, &[1, count], stream).expect("memory for a page table")
}

criterion_group!(benches, decode);
criterion_main!(benches);
