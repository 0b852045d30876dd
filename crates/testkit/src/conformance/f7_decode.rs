//! F7: caches and few queries: pages of every size, groups, query lengths, partitions.

use omniflash_core::{Algorithm, AttentionConfig, DType, Mask, ScoreMod};

use crate::spec::{Arrangement, ModSpec, Sharing, Spec};

const DTYPES: [DType; 3] = [DType::BF16, DType::F16, DType::F32];

pub(super) fn cases() -> Vec<Spec> {
    let mut cases = Vec::new();
    cases.extend(peers());
    cases.extend(pages());
    cases.extend(groups());
    cases.extend(lengths());
    cases.extend(partitions());
    cases.extend(configurations());
    cases
}

fn base(name: impl AsRef<str>, dtype: DType) -> Spec {
    Spec::new(format!("f7/{}_{dtype}", name.as_ref())).dtype(dtype).heads(4, 2).dim(128)
}

/// The lengths that FlashAttention's cache tests sweep, the longest with fewer heads.
fn peers() -> Vec<Spec> {
    let pairs: [(usize, usize); 10] = [
        (1, 128),
        (1, 339),
        (3, 1024),
        (64, 800),
        (64, 256),
        (3, 799),
        (64, 2048),
        (16, 5000),
        (128, 128),
        (256, 512),
    ];
    let mut cases = Vec::new();
    for (i, (seqlen_q, seqlen_k)) in pairs.into_iter().enumerate() {
        let heads = if seqlen_q * seqlen_k > 60_000 { (1, 1) } else { [(2, 2), (6, 2), (4, 1)][i % 3] };
        for (j, form) in ["dense", "continuous", "paged"].into_iter().enumerate() {
            let dtype = DTYPES[(i + j) % 3];
            let spec = base(format!("cache_{form}_S{seqlen_q}_{seqlen_k}"), dtype).heads(heads.0, heads.1);
            let spec = spec.dense(1, seqlen_q, seqlen_k);
            cases.push(
                match form {
                    "dense" => spec,
                    "continuous" => spec.continuous(seqlen_k + 9, &[seqlen_k]),
                    _ => spec.paged([1, 4, 128][i % 3], &[seqlen_k]),
                }
                .mask(if (i + j) % 2 == 0 { Mask::Causal } else { Mask::None }),
            );
        }
    }
    cases
}

fn pages() -> Vec<Spec> {
    let mut cases = Vec::new();
    for (i, page_size) in [1, 3, 4, 8, 16, 64, 100, 128, 256].into_iter().enumerate() {
        for (j, dtype) in DTYPES.into_iter().enumerate() {
            let index_dtype = [DType::I32, DType::U32][(i + j) % 2];
            let named = |name: &str| base(format!("page={page_size}_{name}"), dtype).index_dtype(index_dtype);
            let lengths = [page_size * 2, page_size * 2 + 1, 1, 0, 150];
            cases.push(named("decode").q_dense(5, 1).paged(page_size, &lengths).mask(Mask::Causal));
            cases.push(
                named("prefill")
                    .q_padded(20, &[20, 3, 1, 4, 9])
                    .paged(page_size, &lengths)
                    .mask(Mask::Causal),
            );
            let shared = [page_size * 3, page_size * 2 + 1, page_size * 5];
            cases.push(named("shared").q_dense(3, 1).paged(page_size, &shared).shared_prefix(2));
        }
    }
    for dtype in DTYPES {
        let layers = Sharing::Collection { layers: 4, layer: 2 };
        cases.push(base("collection", dtype).q_dense(2, 1).paged(32, &[200, 37]).sharing(layers));
        cases.push(
            base("heads_first_pages", dtype)
                .q_dense(2, 1)
                .paged(32, &[200, 37])
                .arrange_kv(Arrangement::HeadsFirst),
        );
        cases.push(
            base("window_pages", dtype)
                .q_dense(2, 4)
                .paged(16, &[500, 37])
                .mask(Mask::SlidingWindow { left: 31, right: 0 }),
        );
        cases.push(
            base("chunked_pages", dtype)
                .q_dense(2, 4)
                .paged(16, &[500, 37])
                .mask(Mask::ChunkedCausal { size: 40 }),
        );
        cases.push(
            base("alibi_softcap_pages", dtype)
                .q_dense(2, 1)
                .paged(16, &[300, 37])
                .score_mod(ScoreMod::Softcap { cap: 4.0 })
                .score_mod(ModSpec::Alibi(DType::F32)),
        );
    }
    cases
}

fn groups() -> Vec<Spec> {
    let mut cases = Vec::new();
    for (i, group) in [1, 2, 3, 4, 7, 8, 16, 32].into_iter().enumerate() {
        for (j, dim) in [64, 128, 256, 80].into_iter().enumerate() {
            let dtype = DTYPES[(i + j) % 3];
            let spec = base(format!("group={group}_D{dim}"), dtype).heads(2 * group, 2).dim(dim);
            cases.push(spec.q_dense(2, 1).paged(16, &[190, 33]));
        }
    }
    for (i, seqlen_q) in (1..=17).enumerate() {
        let dtype = DTYPES[i % 3];
        let named = |name: &str| base(format!("q_len={seqlen_q}_{name}"), dtype).heads(8, 2);
        cases.push(named("paged").q_dense(2, seqlen_q).paged(16, &[150, 40]).mask(Mask::Causal));
        cases.push(named("dense").dense(1, seqlen_q, 260).mask(Mask::Causal));
    }
    cases
}

fn lengths() -> Vec<Spec> {
    let mut cases = Vec::new();
    for (i, length) in
        [0, 1, 2, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 255, 257].into_iter().enumerate()
    {
        let dtype = DTYPES[i % 3];
        let spec = Spec::new(format!("f7/lengths/{length}_{dtype}")).dtype(dtype).heads(4, 1).dim(64);
        cases.push(spec.q_dense(1, 1).paged(16, &[length]));
    }
    cases
}

/// The answer does not depend on the number of partitions; with a fixed number, a sequence's answer does not depend
/// on the rest of the batch.
fn partitions() -> Vec<Spec> {
    let mut cases = Vec::new();
    for (i, count) in [1usize, 2, 3, 4, 5, 7, 8, 16, 31, 32, 64].into_iter().enumerate() {
        for (j, dtype) in DTYPES.into_iter().enumerate() {
            let named = |name: &str| {
                Spec::new(format!("f7/split_{name}_{dtype}/partitions={count}"))
                    .dtype(dtype)
                    .heads(4, 1)
                    .dim(128)
                    .seed(format!("f7/split_{name}_{dtype}"))
                    .partitions(count)
            };
            cases.push(named("paged").q_dense(3, 1).paged(16, &[700, 33, 1]));
            if (i + j) % 3 == 0 {
                cases.push(named("dense").dense(1, 2, 900).mask(Mask::Causal));
                cases.push(named("sinks").dense(1, 1, 520).sinks(DType::F32, &[1.0, 6.0]));
                cases.push(
                    named("window")
                        .q_dense(2, 1)
                        .paged(8, &[600, 40])
                        .mask(Mask::SlidingWindow { left: 100, right: 0 }),
                );
                cases.push(named("prefill").dense(1, 65, 300).mask(Mask::Causal));
                cases.push(named("no_keys").dense(1, 1, 0));
            }
        }
    }
    for dtype in DTYPES {
        for count in [1, 4] {
            let named = |name: &str| {
                Spec::new(format!("f7/batch_invariant_{name}_{dtype}/partitions={count}"))
                    .dtype(dtype)
                    .heads(4, 2)
                    .dim(64)
                    .partitions(count)
                    .twin(format!("f7/batch_invariant_{dtype}_{count}"))
            };
            cases.push(named("alone").q_dense(1, 1).paged(16, &[400]));
            cases.push(named("with_others").q_dense(4, 1).paged(16, &[400, 3, 900, 77]));
        }
    }
    cases
}

/// Tuning changes speed, never the answer; what a backend cannot do it must refuse.
fn configurations() -> Vec<Spec> {
    let tuning = AttentionConfig::default();
    let configs: [(&str, AttentionConfig); 2] = [
        ("naive", AttentionConfig { algorithm: Algorithm::Naive, ..tuning }),
        ("auto", AttentionConfig { algorithm: Algorithm::Auto, ..tuning }),
    ];
    let mut cases = Vec::new();
    for (name, config) in configs {
        for dtype in DTYPES {
            let named = |form: &str| {
                base(format!("algorithm_{name}_{form}"), dtype).config(config).mask(Mask::Causal)
            };
            cases.push(named("prefill").dense(1, 60, 90));
            cases.push(named("decode").q_dense(2, 1).paged(16, &[90, 7]));
        }
    }
    cases
}
