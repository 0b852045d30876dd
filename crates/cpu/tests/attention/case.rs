//! Cases: sizes and options as plain data, built into problems over memory whose unused parts are NaN.

use half::{bf16, f16};
use omniflash_core::{
    AttentionConfig, AttentionOptions, AttentionProblem, DType, Element, Float, KvCache, Layout, Mask, Query,
    ScoreMod, Stream, TensorMut, TensorRef, reference, run,
};
use omniflash_cpu::{CpuBackend, Isa};

/// How queries are kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Queries {
    Padded,
    PaddedWithLengths,
    Ragged,
}

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Keys {
    Dense,
    DenseWithLengths,
    Ragged,
    Continuous,
    Paged { page_size: usize },
}

/// The order of axes in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Order {
    /// Positions, then heads.
    Bshd,
    /// Heads, then positions.
    Bhsd,
    /// As `Bshd`, with unused elements after each vector.
    Gaps,
}

#[derive(Clone, Debug)]
pub(crate) enum MaskKind {
    None,
    Causal,
    Window(usize, usize),
    Chunked(usize),
    ChunkedCausal(usize),
    Prefix,
    /// Documents that are runs of this many positions.
    Runs(usize),
    /// Documents that come back.
    Scattered,
    Bools {
        per_head: bool,
    },
    Floats {
        per_head: bool,
    },
    Function,
    And(Box<MaskKind>, Box<MaskKind>),
    Or(Box<MaskKind>, Box<MaskKind>),
    Not(Box<MaskKind>),
}

#[derive(Clone, Debug)]
pub(crate) enum ModKind {
    Softcap(f32),
    Alibi { default: bool },
    Bias { per_head: bool, per_row: bool },
    Function,
}

#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) dtype: DType,
    pub(crate) batch: usize,
    pub(crate) kv_heads: usize,
    pub(crate) group_size: usize,
    pub(crate) head_dim: usize,
    pub(crate) value_dim: usize,
    pub(crate) seqlen_q: usize,
    pub(crate) seqlen_k: usize,
    pub(crate) queries: Queries,
    pub(crate) keys: Keys,
    pub(crate) order: Order,
    pub(crate) mask: MaskKind,
    pub(crate) mods: Vec<ModKind>,
    pub(crate) sinks: bool,
    pub(crate) query_start: Option<i32>,
    pub(crate) softmax_scale: Option<f32>,
    pub(crate) config: AttentionConfig,
    pub(crate) seed: u64,
}

impl Default for Case {
    fn default() -> Self {
        Case {
            dtype: DType::F32,
            batch: 1,
            kv_heads: 1,
            group_size: 1,
            head_dim: 32,
            value_dim: 32,
            seqlen_q: 70,
            seqlen_k: 100,
            queries: Queries::Padded,
            keys: Keys::Dense,
            order: Order::Bshd,
            mask: MaskKind::None,
            mods: Vec::new(),
            sinks: false,
            query_start: None,
            softmax_scale: None,
            config: AttentionConfig::default(),
            seed: 1,
        }
    }
}

/// Numbers that follow from a seed.
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `end`.
    pub(crate) fn index(&mut self, end: usize) -> usize {
        (self.next() >> 33) as usize % end.max(1)
    }

    /// About normal.
    pub(crate) fn normal(&mut self) -> f32 {
        let sum: f32 = (0..6).map(|_| (self.next() >> 40) as f32 / (1u64 << 24) as f32 - 0.5).sum();
        sum * std::f32::consts::SQRT_2
    }
}

/// A tensor of floats in memory that is NaN where nothing was written.
struct Vectors<T> {
    memory: Vec<T>,
    layout: Layout,
}

impl<T: Float> Vectors<T> {
    /// `[outer, rows, heads, dim]` in an order, all NaN.
    fn new(order: Order, [outer, rows, heads, dim]: [usize; 4]) -> Self {
        let layout = match order {
            Order::Bshd => Layout::bshd(outer, rows, heads, dim).unwrap(),
            Order::Bhsd => Layout::bhsd(outer, rows, heads, dim).unwrap(),
            Order::Gaps => {
                let wide = Layout::bshd(outer, rows, heads, dim + 3).unwrap();
                Layout::new(&[outer, rows, heads, dim], wide.strides()).unwrap()
            }
        };
        let words = layout.span().map_or(0, |(_, high)| high as usize + 1);
        Vectors { memory: vec![T::from_f32(f32::NAN); words], layout }
    }

    fn fill(&mut self, numbers: &mut Numbers, outer: usize, row: usize) {
        let [_, _, heads, dim] = self.layout.shape().try_into().unwrap();
        for head in 0..heads {
            for d in 0..dim {
                let at = self.layout.offset(&[outer, row, head, d]) as usize;
                self.memory[at] = T::from_f32(numbers.normal());
            }
        }
    }

    /// Without the outer axis.
    fn ragged(&self) -> TensorRef<'_> {
        self.view().select(0, 0).unwrap()
    }

    fn view(&self) -> TensorRef<'_> {
        TensorRef::with_layout(&self.memory, self.layout.clone(), 0).unwrap()
    }
}

/// Memory of masks and score modifications.
#[derive(Default)]
struct Extras {
    prefix: Vec<i32>,
    runs: Vec<u32>,
    scattered: Vec<i32>,
    bools: Vec<u8>,
    floats: Vec<f32>,
    half_floats: Vec<f16>,
    slopes: Vec<f32>,
    batch: usize,
    heads: usize,
    rows: usize,
    columns: usize,
}

impl Extras {
    fn new(case: &Case, columns: usize, rows: usize, numbers: &mut Numbers) -> Self {
        let heads = case.kv_heads * case.group_size;
        // A bias that is the same for all rows has one even where there are none.
        let scores = case.batch * heads * rows.max(1) * columns;
        let run = match &case.mask {
            MaskKind::Runs(run) => *run,
            _ => 13,
        };
        let floats: Vec<f32> = (0..scores)
            .map(|_| if numbers.index(4) == 0 { f32::NEG_INFINITY } else { numbers.normal() })
            .collect();
        Extras {
            prefix: (0..case.batch).map(|_| numbers.index(columns + 1) as i32).collect(),
            runs: (0..case.batch * columns).map(|i| (1000 - (i % columns) / run) as u32 * 3).collect(),
            scattered: (0..case.batch * columns).map(|_| numbers.index(3) as i32).collect(),
            bools: (0..scores).map(|_| numbers.index(3) as u8).collect(),
            half_floats: floats.iter().map(|&value| f16::from_f32(value)).collect(),
            floats,
            slopes: (0..heads).map(|_| 0.1 * numbers.normal()).collect(),
            batch: case.batch,
            heads,
            rows,
            columns,
        }
    }

    fn dense<'m, T: Element>(&self, memory: &'m [T], per_head: bool, per_row: bool) -> TensorRef<'m> {
        let (rows, columns) = (if per_row { self.rows } else { 1 }, self.columns);
        if per_head {
            let shape = [self.batch, self.heads, rows, columns];
            return TensorRef::from_slice(&memory[..shape.iter().product()], &shape).unwrap();
        }
        let shape = [1, 1, rows, columns];
        TensorRef::from_slice(&memory[..rows * columns], &shape).unwrap()
    }

    fn mask(&self, kind: &MaskKind) -> Mask<'_> {
        match kind {
            MaskKind::None => Mask::None,
            MaskKind::Causal => Mask::Causal,
            MaskKind::Window(left, right) => Mask::SlidingWindow { left: *left, right: *right },
            MaskKind::Chunked(size) => Mask::Chunked { size: *size },
            MaskKind::ChunkedCausal(size) => Mask::ChunkedCausal { size: *size },
            MaskKind::Prefix => {
                Mask::PrefixLm { prefix_len: TensorRef::from_slice(&self.prefix, &[self.batch]).unwrap() }
            }
            MaskKind::Runs(_) => {
                let shape = [self.batch, self.columns];
                Mask::Document { ids: TensorRef::from_slice(&self.runs, &shape).unwrap() }
            }
            MaskKind::Scattered => {
                let ids = &self.scattered[..self.columns];
                Mask::Document { ids: TensorRef::from_slice(ids, &[1, self.columns]).unwrap() }
            }
            MaskKind::Bools { per_head } => Mask::Dense(self.dense(&self.bools, *per_head, true)),
            MaskKind::Floats { per_head: true } => Mask::Dense(self.dense(&self.half_floats, true, true)),
            MaskKind::Floats { per_head: false } => Mask::Dense(self.dense(&self.floats, false, true)),
            MaskKind::Function => {
                Mask::from_fn(|b, h, q, k| (q * 7 + k * 3 + (b + h) as i64).rem_euclid(5) != 0)
            }
            MaskKind::And(a, b) => self.mask(a).and(self.mask(b)),
            MaskKind::Or(a, b) => self.mask(a).or(self.mask(b)),
            MaskKind::Not(mask) => !self.mask(mask),
        }
    }

    fn score_mod(&self, kind: &ModKind) -> ScoreMod<'_> {
        match kind {
            ModKind::Softcap(cap) => ScoreMod::Softcap { cap: *cap },
            ModKind::Alibi { default: true } => ScoreMod::Alibi { slopes: None },
            ModKind::Alibi { default: false } => {
                let slopes = TensorRef::from_slice(&self.slopes, &[self.heads]).unwrap();
                ScoreMod::Alibi { slopes: Some(slopes) }
            }
            ModKind::Bias { per_head, per_row } => {
                ScoreMod::Bias(self.dense(&self.floats, *per_head, *per_row))
            }
            ModKind::Function => {
                ScoreMod::from_fn(|score, _b, h, q, k| score * 0.5 + ((q - k + h as i64) % 3) as f32)
            }
        }
    }
}

/// What a run gave.
pub(crate) struct Outcome<T> {
    pub(crate) out: Vec<T>,
    pub(crate) lse: Vec<f32>,
}

/// Where rows that are not written keep what was there.
pub(crate) const POISON: f32 = 1234.0;

impl Case {
    /// Calls `check` with the problem; `out` and `lse` are poisoned before.
    pub(crate) fn with_problem<T: Float, R>(
        &self,
        check: impl FnOnce(&AttentionProblem<'_>) -> R,
    ) -> (R, Outcome<T>) {
        let mut numbers = Numbers::new(self.seed);
        let heads = self.kv_heads * self.group_size;
        let length = |numbers: &mut Numbers, most: usize| numbers.index(most + 1);
        let q_lengths: Vec<i32> = (0..self.batch)
            .map(|_| match self.queries {
                Queries::Padded => self.seqlen_q as i32,
                _ => length(&mut numbers, self.seqlen_q) as i32,
            })
            .collect();
        let kv_lengths: Vec<u32> = (0..self.batch)
            .map(|_| match self.keys {
                Keys::Dense => self.seqlen_k as u32,
                _ => length(&mut numbers, self.seqlen_k) as u32,
            })
            .collect();
        let cu_q = offsets(q_lengths.iter().copied());
        let cu_k = offsets(kv_lengths.iter().map(|&length| length as i32));

        let mut q = match self.queries {
            Queries::Ragged => {
                Vectors::<T>::new(self.order, [1, cu_q[self.batch] as usize, heads, self.head_dim])
            }
            _ => Vectors::<T>::new(self.order, [self.batch, self.seqlen_q, heads, self.head_dim]),
        };
        for b in 0..self.batch {
            for row in 0..q_lengths[b] as usize {
                match self.queries {
                    Queries::Ragged => q.fill(&mut numbers, 0, cu_q[b] as usize + row),
                    _ => q.fill(&mut numbers, b, row),
                }
            }
        }

        // Pages and blocks are shuffled, and table entries past the length are far outside.
        let page_size = match self.keys {
            Keys::Paged { page_size } => page_size,
            _ => 1,
        };
        let max_pages = self.seqlen_k.div_ceil(page_size).max(1);
        let pool = self.batch * max_pages + 2;
        let mut page_table = vec![i32::MAX; self.batch * max_pages];
        let mut free: Vec<usize> = (0..pool).collect();
        for b in 0..self.batch {
            for page in 0..(kv_lengths[b] as usize).div_ceil(page_size) {
                let id = free.swap_remove(numbers.index(free.len()));
                page_table[b * max_pages + page] = id as i32;
            }
        }
        let lookup: Vec<u32> = (0..self.batch).map(|b| (self.batch - b) as u32).collect();
        let outer_rows = match self.keys {
            Keys::Dense | Keys::DenseWithLengths => [self.batch, self.seqlen_k],
            Keys::Ragged => [1, cu_k[self.batch] as usize],
            Keys::Continuous => [self.batch + 1, self.seqlen_k],
            Keys::Paged { page_size } => [pool, page_size],
        };
        let shape = |dim: usize| [outer_rows[0], outer_rows[1], self.kv_heads, dim];
        let mut k = Vectors::<T>::new(self.order, shape(self.head_dim));
        let mut v = Vectors::<T>::new(self.order, shape(self.value_dim));
        for b in 0..self.batch {
            for key in 0..kv_lengths[b] as usize {
                let (outer, row) = match self.keys {
                    Keys::Dense | Keys::DenseWithLengths => (b, key),
                    Keys::Ragged => (0, cu_k[b] as usize + key),
                    Keys::Continuous => (lookup[b] as usize, key),
                    Keys::Paged { page_size } => {
                        (page_table[b * max_pages + key / page_size] as usize, key % page_size)
                    }
                };
                k.fill(&mut numbers, outer, row);
                v.fill(&mut numbers, outer, row);
            }
        }

        let batch = [self.batch];
        let query = match self.queries {
            Queries::Padded => Query::padded(q.view()),
            Queries::PaddedWithLengths => Query::Padded {
                q: q.view(),
                lengths: Some(TensorRef::from_slice(&q_lengths, &batch).unwrap()),
            },
            Queries::Ragged => {
                Query::ragged(q.ragged(), TensorRef::from_slice(&cu_q, &[self.batch + 1]).unwrap())
            }
        };
        let lengths = || TensorRef::from_slice(&kv_lengths, &batch).unwrap();
        let kv = match self.keys {
            Keys::Dense => KvCache::dense(k.view(), v.view()),
            Keys::DenseWithLengths => KvCache::Dense { k: k.view(), v: v.view(), lengths: Some(lengths()) },
            Keys::Ragged => KvCache::Ragged {
                k: k.ragged(),
                v: v.ragged(),
                cu_seqlens: TensorRef::from_slice(&cu_k, &[self.batch + 1]).unwrap(),
                max_seqlen: None,
            },
            Keys::Continuous => KvCache::Continuous {
                k: k.view(),
                v: v.view(),
                lookup_table: TensorRef::from_slice(&lookup, &batch).unwrap(),
                lengths: lengths(),
                max_seqlen: None,
            },
            Keys::Paged { .. } => KvCache::Paged {
                k: k.view(),
                v: v.view(),
                page_table: TensorRef::from_slice(&page_table, &[self.batch, max_pages]).unwrap(),
                lengths: lengths(),
                max_seqlen: Some(self.seqlen_k),
            },
        };

        let shape = AttentionProblem::output_shape(&query, &kv).unwrap();
        let columns = match self.keys {
            Keys::Ragged => cu_k[self.batch] as usize,
            _ => self.seqlen_k,
        };
        let rows = match self.queries {
            Queries::Ragged => cu_q[self.batch] as usize,
            _ => self.seqlen_q,
        };
        let extras = Extras::new(self, columns, rows, &mut numbers);
        let sinks: Vec<f32> = (0..heads).map(|_| numbers.normal()).collect();
        let starts: Vec<i32> =
            (0..self.batch as i32).map(|b| self.query_start.unwrap_or(0) + 3 * b).collect();
        let mut options = AttentionOptions::new().mask(extras.mask(&self.mask)).lse(true).config(self.config);
        for kind in &self.mods {
            options = options.score_mod(extras.score_mod(kind));
        }
        if self.sinks {
            options = options.sinks(TensorRef::from_slice(&sinks, &[heads]).unwrap());
        }
        if self.query_start.is_some() {
            options = options.query_start(TensorRef::from_slice(&starts, &batch).unwrap());
        }
        options.softmax_scale = self.softmax_scale;

        let mut out = vec![T::from_f32(POISON); shape.out.iter().product()];
        let mut lse = vec![POISON; shape.lse.iter().product()];
        let problem = AttentionProblem::new(
            query,
            kv,
            TensorMut::from_slice(&mut out, &shape.out).unwrap(),
            Some(TensorMut::from_slice(&mut lse, &shape.lse).unwrap()),
            &options,
        )
        .unwrap();
        let result = check(&problem);
        drop(problem);
        (result, Outcome { out, lse })
    }

    /// Runs on an instruction set and a pool of threads.
    pub(crate) fn run<T: Float>(&self, isa: Isa, threads: usize) -> Outcome<T> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let backend = CpuBackend::with_isa(isa).unwrap();
        self.with_problem::<T, _>(|problem| {
            pool.install(|| run(&backend, problem, &Stream::host()).unwrap());
        })
        .1
    }

    /// Compares every instruction set with the reference.
    pub(crate) fn check(&self) {
        match self.dtype {
            DType::F16 => self.check_as::<f16>(),
            DType::BF16 => self.check_as::<bf16>(),
            _ => self.check_as::<f32>(),
        }
    }

    fn check_as<T: Float>(&self) {
        let (expected, _) = self.with_problem::<T, _>(|problem| reference::attention(problem).unwrap());
        for isa in Isa::available() {
            let found = self.run::<T>(isa, 2);
            compare(&format!("{isa}: {self:?}"), T::DTYPE, &expected, &found);
        }
    }
}

/// Asserts that a result is as exact as its dtype lets it be, and that unwritten rows are as they were.
pub(crate) fn compare<T: Float>(
    what: &str,
    dtype: DType,
    expected: &reference::ReferenceOutput,
    found: &Outcome<T>,
) {
    let (tolerance, most) = match dtype {
        DType::F16 => (6e-4, 5e-3),
        DType::BF16 => (4e-3, 4e-2),
        _ => (2e-6, 2e-5),
    };
    let (mut errors, mut squares, mut count) = (0.0f64, 0.0f64, 0);
    for (i, (found, &expected)) in found.out.iter().zip(&expected.out).enumerate() {
        let found = f64::from(found.to_f32());
        if expected.is_nan() {
            assert_eq!(found, f64::from(T::from_f32(POISON).to_f32()), "out[{i}] was written: {what}");
            continue;
        }
        assert!(
            (found - expected).abs() <= most * expected.abs().max(1.0),
            "out[{i}] is {found}, expected {expected}: {what}"
        );
        errors += (found - expected).powi(2);
        squares += expected.powi(2);
        count += 1;
    }
    let floor = 1e-4 * f64::from(count);
    assert!(
        errors.sqrt() <= tolerance * (squares + floor).sqrt(),
        "relative error {:e}: {what}",
        (errors / (squares + floor)).sqrt()
    );
    for (i, (&found, &expected)) in found.lse.iter().zip(&expected.lse).enumerate() {
        if expected.is_nan() {
            assert_eq!(found, POISON, "lse[{i}] was written: {what}");
        } else if expected.is_infinite() {
            assert_eq!(f64::from(found), expected, "lse[{i}]: {what}");
        } else {
            let tolerance = 1e-4 + 1e-5 * expected.abs();
            assert!(
                (f64::from(found) - expected).abs() <= tolerance,
                "lse[{i}] is {found}, expected {expected}: {what}"
            );
        }
    }
}

fn offsets(lengths: impl Iterator<Item = i32>) -> Vec<i32> {
    let mut sum = 0;
    let mut offsets = vec![0];
    for length in lengths {
        sum += length;
        offsets.push(sum);
    }
    offsets
}
