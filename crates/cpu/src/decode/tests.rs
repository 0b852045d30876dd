use half::{bf16, f16};
use omniflash_core::{
    AttentionOptions, AttentionProblem, Element, KvCache, Layout, Mask, Query, ScoreMod, TensorMut,
    TensorRef, reference,
};
use proptest::prelude::*;
use proptest::test_runner::Config;

use super::attention;
use crate::isa::Isa;
use crate::simd::Storage;

/// How keys and values lie in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Order {
    /// Heads of a position side by side.
    PositionsFirst,
    /// Positions of a head side by side.
    HeadsFirst,
    /// Keys and values of one head side by side.
    Packed,
}

#[derive(Clone, Copy, Debug)]
enum Cache {
    Dense,
    Padded,
    Ragged,
    Continuous,
    Paged { page_size: usize },
}

#[derive(Clone, Copy, Debug)]
enum MaskKind {
    None,
    Causal,
    Window(usize, usize),
    Chunked(usize),
    PrefixLm,
    Documents,
    Bools,
    Floats,
    CausalOfEven,
    ByHead,
    NotWindow,
}

#[derive(Clone, Copy, Debug)]
enum ModKind {
    Identity,
    Softcap,
    Alibi,
    Bias,
    Custom,
    All,
}

#[derive(Clone, Debug)]
struct Case {
    seed: u64,
    isa: usize,
    q_lens: Vec<usize>,
    kv_lens: Vec<usize>,
    is_ragged: bool,
    num_kv_heads: usize,
    group_size: usize,
    head_dim: usize,
    value_dim: usize,
    order: Order,
    cache: Cache,
    mask: MaskKind,
    score_mod: ModKind,
    has_sinks: bool,
    num_partitions: Option<usize>,
    /// A key with values that are no numbers, for rows that see it.
    bad_key: Option<usize>,
    /// Positions to move queries by from the bottom right.
    shift: Option<i32>,
}

fn cases() -> impl Strategy<Value = Case> {
    let lens = prop_oneof![
        4 => prop::collection::vec((1usize..6, prop_oneof![Just(0usize), Just(1), 2usize..80, 200usize..900]), 1..4),
        1 => prop::collection::vec((Just(0usize), 0usize..9), 1..2),
    ];
    let heads = (1usize..5, prop_oneof![Just(1usize), Just(2), Just(4), 3usize..9, Just(16)]);
    let dim =
        || prop_oneof![4 => prop::sample::select(vec![32usize, 64, 80, 96, 128, 192, 256]), 1 => 1usize..100];
    let order = prop::sample::select(vec![Order::PositionsFirst, Order::HeadsFirst, Order::Packed]);
    let cache = prop_oneof![
        Just(Cache::Dense),
        Just(Cache::Padded),
        Just(Cache::Ragged),
        Just(Cache::Continuous),
        prop::sample::select(vec![1usize, 3, 16, 100]).prop_map(|page_size| Cache::Paged { page_size }),
    ];
    let mask = prop_oneof![
        2 => Just(MaskKind::None),
        2 => Just(MaskKind::Causal),
        1 => (0usize..300, 0usize..3).prop_map(|(left, right)| MaskKind::Window(left, right)),
        1 => (1usize..200).prop_map(MaskKind::Chunked),
        4 => prop::sample::select(vec![
            MaskKind::PrefixLm, MaskKind::Documents, MaskKind::Bools, MaskKind::Floats, MaskKind::CausalOfEven,
            MaskKind::ByHead, MaskKind::NotWindow,
        ]),
    ];
    let score_mod = prop_oneof![
        3 => Just(ModKind::Identity),
        2 => prop::sample::select(vec![ModKind::Softcap, ModKind::Alibi, ModKind::Bias, ModKind::Custom, ModKind::All]),
    ];
    let rest = (
        any::<u64>(),
        0usize..8,
        any::<bool>(),
        any::<bool>(),
        prop_oneof![2 => Just(None), 1 => (1usize..9).prop_map(Some)],
        prop_oneof![3 => Just(None), 1 => (0usize..900).prop_map(Some)],
        prop_oneof![3 => Just(None), 1 => (-9i32..9).prop_map(Some)],
    );
    (lens, heads, dim(), dim(), order, cache, mask, score_mod, rest).prop_map(
        |(lens, heads, head_dim, value_dim, order, cache, mask, score_mod, rest)| {
            let (seed, isa, is_ragged, has_sinks, num_partitions, bad_key, shift) = rest;
            let (q_lens, mut kv_lens): (Vec<_>, Vec<_>) = lens.into_iter().unzip();
            if matches!(cache, Cache::Dense) {
                let most = kv_lens[0];
                kv_lens.fill(most);
            }
            let (num_kv_heads, group_size) = heads;
            Case {
                seed,
                isa,
                q_lens,
                kv_lens,
                is_ragged,
                num_kv_heads,
                group_size,
                head_dim,
                value_dim,
                order,
                cache,
                mask,
                score_mod,
                has_sinks,
                num_partitions,
                bad_key,
                shift,
            }
        },
    )
}

/// Numbers without a pattern.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// In -2..2, so that products of 64 elements with the default scale spread a softmax well.
    fn float(&mut self) -> f32 {
        ((self.next() >> 40) as f32 / (1 << 24) as f32 - 0.5) * 4.0
    }

    fn floats<T: Storage>(&mut self, len: usize) -> Vec<T> {
        (0..len).map(|_| T::from_f32(self.float())).collect()
    }
}

/// Memory of a cache, and how to see keys and values in it.
struct Memory<T> {
    data: Vec<T>,
    layouts: [Layout; 2],
    offsets: [usize; 2],
}

impl<T: Storage> Memory<T> {
    /// Keys and values `[outer, rows, heads, dim]`, all of them no numbers.
    fn new(order: Order, outer: usize, rows: usize, heads: usize, dims: [usize; 2]) -> Self {
        let mut layouts = Vec::new();
        let mut offsets = [0; 2];
        let mut len = 0;
        for (i, dim) in dims.into_iter().enumerate() {
            let strides = match order {
                Order::PositionsFirst => [rows * heads * dim, heads * dim, dim, 1],
                Order::HeadsFirst => [heads * rows * dim, dim, rows * dim, 1],
                Order::Packed => {
                    let both = dims[0] + dims[1];
                    [rows * heads * both, heads * both, both, 1]
                }
            };
            let strides = strides.map(|stride| stride as i64);
            layouts.push(Layout::new(&[outer, rows, heads, dim], &strides).unwrap());
            if order == Order::Packed {
                offsets[i] = i * dims[0];
                len = outer * rows * heads * (dims[0] + dims[1]);
            } else {
                offsets[i] = len;
                len += outer * rows * heads * dim;
            }
        }
        let layouts = layouts.try_into().expect("two layouts");
        Memory { data: vec![T::from_f32(f32::NAN); len], layouts, offsets }
    }

    fn set(&mut self, which: usize, index: [usize; 4], value: T) {
        let at = self.offsets[which] as i64 + self.layouts[which].offset(&index);
        self.data[at as usize] = value;
    }

    fn tensor(&self, which: usize) -> TensorRef<'_> {
        TensorRef::with_layout(&self.data, self.layouts[which].clone(), self.offsets[which]).unwrap()
    }
}

/// What a computation has written: out, then lse.
type Outputs = (Vec<f32>, Vec<f32>);

/// Builds the case's problem, computes it with each pool, and gives all outputs and the reference's.
fn compute<T: Storage + Element>(
    case: &Case,
    isa: Isa,
    threads: &[usize],
) -> (Vec<Outputs>, reference::ReferenceOutput) {
    let mut noise = Noise(case.seed);
    let (batch, kv_heads) = (case.q_lens.len(), case.num_kv_heads);
    let heads = kv_heads * case.group_size;
    let dims = [case.head_dim, case.value_dim];
    let seqlen_q = *case.q_lens.iter().max().unwrap();
    let seqlen_k = *case.kv_lens.iter().max().unwrap() + 7 * usize::from(!matches!(case.cache, Cache::Dense));
    let offsets = |lens: &[usize]| -> Vec<i32> {
        let ends = lens.iter().scan(0, |sum, &len| {
            *sum += len as i32;
            Some(*sum)
        });
        std::iter::once(0).chain(ends).collect()
    };
    let (q_offsets, kv_offsets) = (offsets(&case.q_lens), offsets(&case.kv_lens));
    let as_i32 = |lens: &[usize]| lens.iter().map(|&len| len as i32).collect::<Vec<_>>();
    let (q_lengths, kv_lengths) = (as_i32(&case.q_lens), as_i32(&case.kv_lens));

    // Where key `j` of sequence `b` is.
    let page_size = match case.cache {
        Cache::Paged { page_size } => page_size,
        _ => seqlen_k.max(1),
    };
    let pages = seqlen_k.div_ceil(page_size);
    let mut table: Vec<i32> = (0..batch * pages).map(|i| (i * 7 % (batch * pages).max(1)) as i32).collect();
    if (batch * pages).is_multiple_of(7) {
        table = (0..batch * pages).rev().map(|i| i as i32).collect();
    }
    let lookup: Vec<i32> = (0..batch as i32).rev().collect();
    let place = |b: usize, j: usize| match case.cache {
        Cache::Dense | Cache::Padded => (b, j),
        Cache::Ragged => (0, kv_offsets[b] as usize + j),
        Cache::Continuous => (lookup[b] as usize, j),
        Cache::Paged { .. } => (table[b * pages + j / page_size] as usize, j % page_size),
    };
    let (outer, rows) = match case.cache {
        Cache::Dense | Cache::Padded | Cache::Continuous => (batch, seqlen_k),
        Cache::Ragged => (1, kv_offsets[batch] as usize),
        Cache::Paged { .. } => (batch * pages, page_size),
    };
    let mut memory = Memory::<T>::new(case.order, outer, rows, kv_heads, dims);
    for b in 0..batch {
        for j in 0..case.kv_lens[b] {
            let (o, r) = place(b, j);
            for h in 0..kv_heads {
                for (which, dim) in dims.into_iter().enumerate() {
                    for d in 0..dim {
                        let value =
                            if case.bad_key == Some(j) && which == 1 { f32::NAN } else { noise.float() };
                        memory.set(which, [o, r, h, d], T::from_f32(value));
                    }
                }
            }
        }
    }
    let mut unused = table.clone();
    for b in 0..batch {
        for entry in &mut unused[b * pages + case.kv_lens[b].div_ceil(page_size)..(b + 1) * pages] {
            *entry = -1;
        }
    }

    let total_q = if case.is_ragged { q_offsets[batch] as usize } else { batch * seqlen_q };
    // Apart from keys and values, whose number depends on all sequences.
    let q_data: Vec<T> = Noise(!case.seed).floats(total_q * heads * case.head_dim);
    let sinks: Vec<f32> = noise.floats(heads);
    let starts: Vec<i32> =
        (0..batch).map(|b| kv_lengths[b] - q_lengths[b] + case.shift.unwrap_or(0)).collect();
    let prefix: Vec<i32> = kv_lengths.iter().map(|len| len / 3).collect();
    let documents: Vec<i32> = (0..seqlen_k.max(1)).map(|j| (j / 50 % 3) as i32).collect();
    let columns = seqlen_k.max(1);
    let bools: Vec<u8> =
        (0..batch * seqlen_q.max(1) * columns).map(|_| noise.next().is_multiple_of(5) as u8).collect();
    let floats: Vec<f32> = (0..seqlen_q.max(1) * columns)
        .map(|_| if noise.next().is_multiple_of(3) { f32::NEG_INFINITY } else { noise.float() })
        .collect();
    let bias: Vec<f32> = noise.floats(heads * columns);

    let data = &memory;
    let window = Mask::SlidingWindow { left: 40, right: 3 };
    let sparse = TensorRef::from_slice(&bools, &[batch, seqlen_q.max(1), columns]);
    let dense_fits = seqlen_q > 0 && seqlen_k > 0 && !matches!(case.cache, Cache::Ragged);
    let mask = match case.mask {
        MaskKind::None => Mask::None,
        MaskKind::Causal => Mask::Causal,
        MaskKind::Window(left, right) => Mask::SlidingWindow { left, right },
        MaskKind::Chunked(size) => Mask::ChunkedCausal { size },
        MaskKind::PrefixLm => {
            Mask::PrefixLm { prefix_len: TensorRef::from_slice(&prefix, &[batch]).unwrap() }
        }
        MaskKind::Documents if dense_fits => {
            Mask::Document { ids: TensorRef::from_slice(&documents, &[1, columns]).unwrap() }
        }
        MaskKind::Bools if dense_fits => Mask::Dense(bool_tensor(&sparse.unwrap())),
        MaskKind::Floats if dense_fits => {
            Mask::Dense(TensorRef::from_slice(&floats, &[1, 1, seqlen_q, columns]).unwrap())
        }
        MaskKind::Documents | MaskKind::Bools | MaskKind::Floats => Mask::Causal,
        MaskKind::CausalOfEven => Mask::Causal.and(Mask::from_fn(|_, _, q, k| (q - k) % 2 == 0)),
        MaskKind::ByHead => Mask::from_fn(|_, head, q, k| (q - k + head as i64) % 3 != 0),
        MaskKind::NotWindow => !window,
    };
    let bias_mod = || match dense_fits {
        true => ScoreMod::Bias(TensorRef::from_slice(&bias, &[1, heads, 1, columns]).unwrap()),
        false => ScoreMod::Identity,
    };
    let alibi = || ScoreMod::Alibi { slopes: None };
    let custom =
        || ScoreMod::from_fn(|score, b, h, q, k| score * 0.5 + ((b + h) as i64 + q - k) as f32 * 0.001);
    let score_mod = match case.score_mod {
        ModKind::Identity => ScoreMod::Identity,
        ModKind::Softcap => ScoreMod::Softcap { cap: 2.0 },
        ModKind::Alibi => alibi(),
        ModKind::Bias => bias_mod(),
        ModKind::Custom => custom(),
        ModKind::All => ScoreMod::Softcap { cap: 3.0 }.then(alibi()).then(bias_mod()).then(custom()),
    };
    let mut options = AttentionOptions::new().mask(mask).score_mod(score_mod).lse(true);
    if case.has_sinks {
        options = options.sinks(TensorRef::from_slice(&sinks, &[heads]).unwrap());
    }
    if let Some(num_partitions) = case.num_partitions {
        options = options.num_partitions(num_partitions);
    }
    if case.shift.is_some() {
        options = options.query_start(TensorRef::from_slice(&starts, &[batch]).unwrap());
    }

    let indices = |data| TensorRef::from_slice(data, &[batch]).unwrap();
    let query = || {
        if case.is_ragged {
            Query::Ragged {
                q: TensorRef::from_slice(&q_data, &[total_q, heads, case.head_dim]).unwrap(),
                cu_seqlens: TensorRef::from_slice(&q_offsets, &[batch + 1]).unwrap(),
                max_seqlen: Some(seqlen_q),
            }
        } else {
            Query::Padded {
                q: TensorRef::from_slice(&q_data, &[batch, seqlen_q, heads, case.head_dim]).unwrap(),
                lengths: Some(indices(&q_lengths)),
            }
        }
    };
    let flat = |which: usize| data.tensor(which).select(0, 0).unwrap();
    let kv = || {
        let (k, v) = (data.tensor(0), data.tensor(1));
        match case.cache {
            Cache::Dense => KvCache::Dense { k, v, lengths: None },
            Cache::Padded => KvCache::Dense { k, v, lengths: Some(indices(&kv_lengths)) },
            Cache::Ragged => KvCache::Ragged {
                k: flat(0),
                v: flat(1),
                cu_seqlens: TensorRef::from_slice(&kv_offsets, &[batch + 1]).unwrap(),
                max_seqlen: None,
            },
            Cache::Continuous => KvCache::Continuous {
                k,
                v,
                lookup_table: indices(&lookup),
                lengths: indices(&kv_lengths),
                max_seqlen: None,
            },
            Cache::Paged { .. } => KvCache::Paged {
                k,
                v,
                page_table: TensorRef::from_slice(&unused, &[batch, pages]).unwrap(),
                lengths: indices(&kv_lengths),
                max_seqlen: Some(seqlen_k),
            },
        }
    };
    let shape = AttentionProblem::output_shape(&query(), &kv()).unwrap();
    let mut oracle = None;
    let mut results = Vec::new();
    for &threads in threads {
        let mut out = vec![T::from_f32(f32::NAN); shape.out.iter().product()];
        let mut lse = vec![f32::NAN; shape.lse.iter().product()];
        let problem = AttentionProblem::new(
            query(),
            kv(),
            TensorMut::from_slice(&mut out, &shape.out).unwrap(),
            Some(TensorMut::from_slice(&mut lse, &shape.lse).unwrap()),
            &options,
        )
        .unwrap();
        oracle.get_or_insert_with(|| reference::attention(&problem).unwrap());
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        // SAFETY: the outputs are this function's.
        pool.install(|| unsafe { attention(isa, &problem, |_| true) }).unwrap();
        drop(problem);
        results.push((out.iter().map(|x| x.to_f32()).collect(), lse));
    }
    (results, oracle.unwrap())
}

/// Bytes that are truth values.
fn bool_tensor<'a>(bytes: &TensorRef<'a>) -> TensorRef<'a> {
    bytes.clone()
}

fn check<T: Storage + Element>(case: &Case, tolerance: f64) -> Result<(), TestCaseError> {
    let available = Isa::available();
    let isa = available[case.isa % available.len()];
    let (results, expected) = compute::<T>(case, isa, &[1, 3]);
    for (which, (found, expected)) in
        [(&results[0].0, &expected.out), (&results[0].1, &expected.lse)].iter().enumerate()
    {
        for (i, (&found, &expected)) in found.iter().zip(*expected).enumerate() {
            let found = f64::from(found);
            let tolerance =
                if which == 0 { tolerance * expected.abs().max(1.0) } else { 1e-4 + 1e-5 * expected.abs() };
            let agree = found == expected
                || (found.is_nan() && expected.is_nan())
                || (found - expected).abs() <= tolerance;
            prop_assert!(agree, "{} {i} on {isa}: {found}, expected {expected}", ["out", "lse"][which]);
        }
    }
    let bits =
        |outputs: &Outputs| outputs.0.iter().chain(&outputs.1).map(|x| x.to_bits()).collect::<Vec<_>>();
    prop_assert_eq!(bits(&results[0]), bits(&results[1]), "one thread and three");
    Ok(())
}

fn config(cases: u32) -> Config {
    Config { cases, failure_persistence: None, ..Config::default() }
}

proptest! {
    #![proptest_config(config(200))]

    #[test]
    fn f32_decoding_agrees_with_the_reference(case in cases()) {
        check::<f32>(&case, 2e-5)?;
    }

    #[test]
    fn f16_decoding_agrees_with_the_reference(case in cases()) {
        check::<f16>(&case, 2e-3)?;
    }

    #[test]
    fn bf16_decoding_agrees_with_the_reference(case in cases()) {
        check::<bf16>(&case, 1.6e-2)?;
    }
}

fn plain(q_lens: &[usize], kv_lens: &[usize]) -> Case {
    Case {
        seed: 7,
        isa: 0,
        q_lens: q_lens.to_vec(),
        kv_lens: kv_lens.to_vec(),
        is_ragged: true,
        num_kv_heads: 2,
        group_size: 3,
        head_dim: 64,
        value_dim: 64,
        order: Order::PositionsFirst,
        cache: Cache::Padded,
        mask: MaskKind::Causal,
        score_mod: ModKind::Identity,
        has_sinks: false,
        num_partitions: None,
        bad_key: None,
        shift: None,
    }
}

#[test]
fn a_sequence_has_the_same_bits_alone_and_in_a_batch() {
    for isa in Isa::available() {
        let (alone, _) = compute::<f32>(&plain(&[2], &[1700]), isa, &[1]);
        let (together, _) = compute::<f32>(&plain(&[2, 5, 1], &[1700, 300, 2900]), isa, &[2]);
        let rows = alone[0].0.len();
        assert!(rows > 0 && alone[0].0 == together[0].0[..rows], "{isa}");
    }
}

#[test]
fn pieces_that_are_asked_for_change_nothing_beyond_rounding() {
    let (whole, _) =
        compute::<f32>(&Case { num_partitions: Some(1), ..plain(&[1], &[1000]) }, Isa::best(), &[1]);
    for count in [2, 7, 300] {
        let case = Case { num_partitions: Some(count), ..plain(&[1], &[1000]) };
        let (pieces, _) = compute::<f32>(&case, Isa::best(), &[2]);
        for (a, b) in whole[0].0.iter().zip(&pieces[0].0) {
            assert!((a - b).abs() < 1e-6, "{count} pieces: {a} and {b}");
        }
    }
}

#[test]
fn a_mask_that_panics_is_a_panic_and_no_deadlock() {
    let data = vec![0.5f32; 9000 * 64];
    let mut out = [0.0f32; 64];
    let tensor = || TensorRef::from_slice(&data, &[1, 9000, 1, 64]).unwrap();
    let options = AttentionOptions::new().mask(Mask::from_fn(|_, _, _, k| {
        assert!(k != 100, "a user's mistake");
        true
    }));
    let problem = AttentionProblem::new(
        Query::padded(TensorRef::from_slice(&data[..64], &[1, 1, 1, 64]).unwrap()),
        KvCache::dense(tensor(), tensor()),
        TensorMut::from_slice(&mut out, &[1, 1, 1, 64]).unwrap(),
        None,
        &options,
    )
    .unwrap();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        // SAFETY: the outputs are this function's.
        pool.install(|| unsafe { attention(Isa::best(), &problem, |_| true) })
    }));
    assert!(result.is_err());
}

#[test]
fn few_rows_and_no_tile_sizes_make_a_plan_to_decode() {
    let data = vec![0.0f32; 40 * 8];
    let mut out = vec![0.0f32; 40 * 8];
    let mut planned = |seqlen_q: usize, block_n: Option<usize>| {
        let shape = [1, seqlen_q, 2, 8];
        let len = seqlen_q * 16;
        let config = omniflash_core::AttentionConfig { block_n, ..Default::default() };
        let keys = TensorRef::from_slice(&data[..320], &[1, 40, 1, 8]).unwrap();
        let problem = AttentionProblem::new(
            Query::padded(TensorRef::from_slice(&data[..len], &shape).unwrap()),
            KvCache::dense(keys.clone(), keys),
            TensorMut::from_slice(&mut out[..len], &shape).unwrap(),
            None,
            &AttentionOptions::new().config(config),
        )
        .unwrap();
        crate::plan::plan(&problem, Isa::Scalar, 1).unwrap().kernel_id.starts_with("decode-")
    };
    assert!(planned(1, None) && planned(8, None));
    assert!(!planned(9, None) && !planned(1, Some(48)));
}
