//! What validation says of each mistake, word for word.

use super::*;

/// Every mistake by name, with the message that the caller reads.
fn messages(mistakes: Vec<(&str, Request)>) -> String {
    let lines = mistakes.into_iter().map(|(name, request)| match request.validate() {
        Ok(shape) => panic!("`{name}` is accepted: {shape:?}"),
        Err(error) => format!("{name}: {error}\n"),
    });
    lines.collect()
}

fn dense(change: impl FnOnce(&mut Request)) -> Request {
    Request::new().with(change)
}

#[test]
fn mistakes_in_shapes_are_named() {
    let keys = |k: [usize; 4], v: [usize; 4]| {
        move |request: &mut Request| {
            let at = &request.at;
            request.kv = KvCache::dense(at.tensor(DType::F32, &k), at.tensor(DType::F32, &v));
        }
    };
    let said = messages(vec![
        ("q of rank 3", dense(|r| r.query = Query::padded(r.at.tensor(DType::F32, &[2, 3, 8])))),
        ("k of another batch", dense(keys([3, 5, 2, 8], [3, 5, 2, 8]))),
        ("k of another head_dim", dense(keys([2, 5, 2, 16], [2, 5, 2, 8]))),
        ("heads that do not divide", dense(keys([2, 5, 3, 8], [2, 5, 3, 8]))),
        ("no key heads", dense(keys([2, 5, 0, 8], [2, 5, 0, 8]))),
        ("v of another length", dense(keys([2, 5, 2, 8], [2, 6, 2, 8]))),
        ("value_dim 0", dense(keys([2, 5, 2, 8], [2, 5, 2, 0]))),
        (
            "head_dim 0",
            dense(|r| {
                keys([2, 5, 2, 0], [2, 5, 2, 8])(r);
                r.query = Query::padded(r.at.tensor(DType::F32, &[2, 3, 4, 0]));
            }),
        ),
        ("out of another shape", dense(|r| r.out = r.at.tensor(DType::F32, &[2, 4, 3, 8]))),
        (
            "lse of another shape",
            dense(|r| {
                r.lse = Some(r.at.tensor(DType::F32, &[2, 3, 4]));
                r.options.lse = true;
            }),
        ),
        ("lse not given", dense(|r| r.options.lse = true)),
        ("lse not asked for", dense(|r| r.lse = Some(r.at.tensor(DType::F32, &[2, 4, 3])))),
        (
            "q with a strided last axis",
            dense(|r| {
                let layout = Layout::new(&[2, 3, 4, 8], &[192, 64, 16, 2]).unwrap();
                r.query = Query::padded(r.at.place(DType::F32, layout, DeviceId::Cpu));
            }),
        ),
        (
            "q_lengths of another batch",
            dense(|r| {
                if let Query::Padded { lengths, .. } = &mut r.query {
                    *lengths = Some(r.at.tensor(DType::I32, &[3]));
                }
            }),
        ),
        (
            "kv_lengths of rank 2",
            dense(|r| {
                if let KvCache::Dense { lengths, .. } = &mut r.kv {
                    *lengths = Some(r.at.tensor(DType::I32, &[2, 1]));
                }
            }),
        ),
        ("sinks per key head", dense(|r| r.options.sinks = Some(r.at.tensor(DType::F32, &[2])))),
        (
            "query_start of another batch",
            dense(|r| r.options.query_start = Some(r.at.tensor(DType::I32, &[1]))),
        ),
        (
            "alibi slopes per key head",
            dense(|r| {
                r.options.score_mod = ScoreMod::Alibi { slopes: Some(r.at.tensor(DType::F32, &[2])) };
            }),
        ),
        (
            "bias of rank 3",
            dense(|r| r.options.score_mod = ScoreMod::Bias(r.at.tensor(DType::F32, &[2, 3, 5]))),
        ),
        ("mask transposed", dense(|r| r.options.mask = Mask::Dense(r.at.tensor(DType::Bool, &[2, 5, 3])))),
        (
            "mask with a wrong number of heads",
            dense(|r| {
                r.options.mask = Mask::Dense(r.at.tensor(DType::Bool, &[2, 2, 3, 5]));
            }),
        ),
        (
            "mask broadcast over rows",
            dense(|r| {
                r.options.mask = Mask::Dense(r.at.tensor(DType::Bool, &[1, 1, 1, 5]));
            }),
        ),
        (
            "mask below a tree",
            dense(|r| {
                let mask = Mask::Dense(r.at.tensor(DType::Bool, &[2, 3, 4]));
                r.options.mask = Mask::Causal.or(!mask);
            }),
        ),
        (
            "prefix_len of another batch",
            dense(|r| {
                r.options.mask = Mask::PrefixLm { prefix_len: r.at.tensor(DType::I32, &[3]) };
            }),
        ),
        (
            "document ids too short",
            dense(|r| {
                r.options.mask = Mask::Document { ids: r.at.tensor(DType::I32, &[2, 4]) };
            }),
        ),
        (
            "ragged q without offsets",
            Request::ragged().with(|r| {
                let q = r.query.tensor().clone();
                r.query = Query::ragged(q, r.at.tensor(DType::I32, &[0]));
            }),
        ),
        (
            "ragged offsets of different batches",
            Request::ragged().with(|r| {
                let q = r.query.tensor().clone();
                r.query = Query::ragged(q, r.at.tensor(DType::I32, &[4]));
            }),
        ),
        (
            "mask too small for a ragged batch",
            Request::ragged().with(|r| {
                r.options.mask = Mask::Dense(r.at.tensor(DType::Bool, &[2, 5, 5]));
            }),
        ),
        (
            "page table of another batch",
            Request::paged().with(|r| {
                if let KvCache::Paged { page_table, .. } = &mut r.kv {
                    *page_table = r.at.tensor(DType::I32, &[3, 2]);
                }
            }),
        ),
        (
            "page table of rank 1",
            Request::paged().with(|r| {
                if let KvCache::Paged { page_table, .. } = &mut r.kv {
                    *page_table = r.at.tensor(DType::I32, &[2]);
                }
            }),
        ),
        (
            "empty pages",
            Request::paged().with(|r| {
                if let KvCache::Paged { k, v, .. } = &mut r.kv {
                    (*k, *v) =
                        (r.at.tensor(DType::F32, &[6, 0, 2, 8]), r.at.tensor(DType::F32, &[6, 0, 2, 8]));
                }
            }),
        ),
    ]);
    insta::assert_snapshot!(said);
}

#[test]
fn mistakes_in_types_devices_and_addresses_are_named() {
    let typed = |q: DType, k: DType, v: DType, out: DType| {
        Request::new().with(|r| {
            r.query = Query::padded(r.at.tensor(q, &[2, 3, 4, 8]));
            r.kv = KvCache::dense(r.at.tensor(k, &[2, 5, 2, 8]), r.at.tensor(v, &[2, 5, 2, 8]));
            r.out = r.at.tensor(out, &[2, 3, 4, 8]);
        })
    };
    let on = |device: DeviceId| {
        move |r: &mut Request| {
            let layout = Layout::contiguous(&[2, 3, 4, 8]).unwrap();
            r.out = r.at.place(DType::F32, layout, device);
        }
    };
    let address = |address: u64| {
        move |r: &mut Request| {
            let layout = Layout::contiguous(&[2, 3, 4, 8]).unwrap();
            // SAFETY: never read.
            r.query =
                Query::padded(unsafe { TensorRef::from_raw(address, DType::F32, layout, DeviceId::Cpu) });
        }
    };
    use DType::{BF16, Bool, F16, F32, I32};
    let said = messages(vec![
        ("q of integers", typed(I32, I32, I32, I32)),
        ("k of another type", typed(F16, BF16, F16, F16)),
        ("v of another type", typed(F16, F16, F32, F16)),
        ("out of another type", typed(BF16, BF16, BF16, F32)),
        (
            "lse in half precision",
            dense(|r| {
                r.lse = Some(r.at.tensor(F16, &[2, 4, 3]));
                r.options.lse = true;
            }),
        ),
        (
            "lengths of floats",
            dense(|r| {
                if let KvCache::Dense { lengths, .. } = &mut r.kv {
                    *lengths = Some(r.at.tensor(F32, &[2]));
                }
            }),
        ),
        ("sinks of integers", dense(|r| r.options.sinks = Some(r.at.tensor(I32, &[4])))),
        ("bool bias", dense(|r| r.options.score_mod = ScoreMod::Bias(r.at.tensor(Bool, &[2, 4, 3, 5])))),
        ("integer mask", dense(|r| r.options.mask = Mask::Dense(r.at.tensor(I32, &[2, 3, 5])))),
        (
            "float mask below or",
            dense(|r| {
                r.options.mask = Mask::Causal.or(Mask::Dense(r.at.tensor(F32, &[2, 3, 5])));
            }),
        ),
        ("float mask below not", dense(|r| r.options.mask = !Mask::Dense(r.at.tensor(F32, &[2, 3, 5])))),
        ("out on another device", dense(on(DeviceId::Cuda(1)))),
        (
            "mask on another device",
            dense(|r| {
                let layout = Layout::contiguous(&[2, 3, 5]).unwrap();
                r.options.mask = Mask::Dense(r.at.place(Bool, layout, DeviceId::Hip(0)));
            }),
        ),
        ("q at an odd address", dense(address(0x1002))),
        ("q at the null address", dense(address(0))),
    ]);
    insta::assert_snapshot!(said);
}

#[test]
fn impossible_values_are_named() {
    let zero = |config: AttentionConfig| dense(move |r| r.options.config = config);
    let none = AttentionConfig::default();
    let said = messages(vec![
        ("scale is not a number", dense(|r| r.options.softmax_scale = Some(f32::NAN))),
        ("scale beyond f32", dense(|r| r.options.softmax_scale = Some(-1e38))),
        ("infinite scale", dense(|r| r.options.softmax_scale = Some(f32::INFINITY))),
        ("cap 0", dense(|r| r.options.score_mod = ScoreMod::Softcap { cap: 0.0 })),
        (
            "second cap negative",
            dense(|r| {
                r.options.score_mod = ScoreMod::Softcap { cap: 1.0 }.then(ScoreMod::Softcap { cap: -1.0 });
            }),
        ),
        ("empty chunks", dense(|r| r.options.mask = Mask::Chunked { size: 0 })),
        ("empty causal chunks below not", dense(|r| r.options.mask = !Mask::ChunkedCausal { size: 0 })),
        ("block_m 0", zero(AttentionConfig { block_m: Some(0), ..none })),
        ("block_n 0", zero(AttentionConfig { block_n: Some(0), ..none })),
        ("block_k 0", zero(AttentionConfig { block_k: Some(0), ..none })),
        ("warp_m 0", zero(AttentionConfig { warp_m: Some(0), ..none })),
        ("warp_n 0", zero(AttentionConfig { warp_n: Some(0), ..none })),
        ("stages 0", zero(AttentionConfig { num_pipeline_stages: Some(0), ..none })),
        ("k_group_size 0", zero(AttentionConfig { k_group_size: Some(0), ..none })),
        ("partitions 0", zero(AttentionConfig { num_partitions: Some(0), ..none })),
    ]);
    insta::assert_snapshot!(said);
    for name in ["flash9", "", "Flash2"] {
        assert!(
            matches!(name.parse::<Algorithm>(), Err(Error::Value { argument, .. }) if argument == "config.algorithm")
        );
    }
}
