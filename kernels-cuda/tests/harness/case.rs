//! Problems in host memory, their parameters, and the comparison with the reference.

use std::sync::OnceLock;

use omniflash_core::lower::{FunctorSpec, MaskTable, TableExtent};
use omniflash_core::{
    AttentionOptions, AttentionProblem, DType, Float, KvCache, Mask, Query, ScoreMod, TensorMut, TensorRef,
    reference,
};
use omniflash_device::parameters::{
    AttentionParameters, DeviceAddress, Indices, KeyForm, LseForm, QueryForm, Rows, SinkForm, StartForm,
    Table, VerifyParameters,
};
use omniflash_kernels_cuda::{
    DecodeConfig, ForwardConfig, NaiveConfig, combine, combine_launch, verify_page_table,
    verify_page_table_launch,
};

use super::module::{COMBINE, FORWARD, Module, VERIFY};

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum QForm {
    Padded,
    Lengths,
    Ragged,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum KvForm {
    Dense,
    Lengths,
    Ragged,
    Continuous,
    Paged(usize),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Tolerance {
    OfDtype,
    Exact,
    Tf32,
}

#[derive(Clone, Debug)]
pub(crate) struct Case<'a, T> {
    pub(crate) batch: usize,
    pub(crate) seqlen_q: usize,
    pub(crate) seqlen_k: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) value_dim: usize,
    pub(crate) q_form: QForm,
    pub(crate) kv_form: KvForm,
    pub(crate) mask: Mask<'a>,
    pub(crate) score_mod: ScoreMod<'a>,
    pub(crate) sinks: bool,
    pub(crate) partitions: usize,
    pub(crate) pack_groups: bool,
    pub(crate) section: u32,
    pub(crate) softmax_scale: f32,
    /// Some values are NaN or infinite; rows that see one are not compared.
    pub(crate) bad_values: bool,
    pub(crate) tolerance: Tolerance,
    pub(crate) element: std::marker::PhantomData<T>,
}

impl<'a, T> Case<'a, T> {
    pub(crate) fn new(
        batch: usize,
        seqlen_q: usize,
        seqlen_k: usize,
        heads: usize,
        kv_heads: usize,
        head_dim: usize,
        value_dim: usize,
    ) -> Self {
        Case {
            batch,
            seqlen_q,
            seqlen_k,
            heads,
            kv_heads,
            head_dim,
            value_dim,
            q_form: QForm::Padded,
            kv_form: KvForm::Dense,
            mask: Mask::None,
            score_mod: ScoreMod::Identity,
            sinks: false,
            partitions: 1,
            pack_groups: false,
            section: 1,
            softmax_scale: 1.0 / (head_dim as f32).sqrt(),
            bad_values: false,
            tolerance: Tolerance::OfDtype,
            element: std::marker::PhantomData,
        }
    }

    pub(crate) fn masked(self, mask: Mask<'a>) -> Self {
        Case { mask, ..self }
    }

    pub(crate) fn modified(self, score_mod: ScoreMod<'a>) -> Self {
        Case { score_mod, ..self }
    }
}

/// Numbers near a normal distribution, always the same.
struct Random(u64);

impl Random {
    fn uniform(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 40) as f32 / (1 << 24) as f32
    }
    fn normal(&mut self) -> f32 {
        (0..6).map(|_| self.uniform()).sum::<f32>() * 1.4 - 4.2
    }
}

/// The memory of a problem.
struct Data<T> {
    q: Vec<T>,
    k: Vec<T>,
    v: Vec<T>,
    sinks: Vec<f32>,
    q_lengths: Vec<i32>,
    kv_lengths: Vec<u32>,
    table: Vec<i32>,
    k_shape: Vec<usize>,
    max_pages: usize,
}

impl<T: Float> Data<T> {
    fn new(case: &Case<'_, T>) -> Self {
        let mut random = Random(7);
        let lens = |most: usize, offset: usize| -> Vec<usize> {
            (0..case.batch).map(|b| if b == 1 { 0 } else { most - (b * offset) % (most + 1) }).collect()
        };
        let mut q_lens = vec![case.seqlen_q; case.batch];
        if case.q_form != QForm::Padded {
            q_lens = lens(case.seqlen_q, 9);
            q_lens[0] = case.seqlen_q.saturating_sub(3);
        }
        let mut kv_lens = vec![case.seqlen_k; case.batch];
        if case.kv_form != KvForm::Dense {
            kv_lens = lens(case.seqlen_k, 17);
            kv_lens[0] = case.seqlen_k.saturating_sub(1);
        }
        let offsets = |lens: &[usize]| -> Vec<usize> {
            std::iter::once(0)
                .chain(lens.iter().scan(0, |sum, len| {
                    *sum += len;
                    Some(*sum)
                }))
                .collect()
        };
        let (rows, q_lengths) = match case.q_form {
            QForm::Ragged => (q_lens.iter().sum::<usize>(), offsets(&q_lens)),
            _ => (case.batch * case.seqlen_q, q_lens.clone()),
        };
        let q = (0..rows * case.heads * case.head_dim).map(|_| T::from_f32(random.normal())).collect();

        // Slots for keys; all are NaN unless a sequence uses them.
        let page_size = if let KvForm::Paged(page_size) = case.kv_form { page_size } else { 1 };
        let max_pages = case.seqlen_k.div_ceil(page_size);
        let (blocks, per_block) = match case.kv_form {
            KvForm::Dense | KvForm::Lengths => (case.batch, case.seqlen_k),
            KvForm::Ragged => (1, kv_lens.iter().sum()),
            KvForm::Continuous => (case.batch + 2, case.seqlen_k),
            KvForm::Paged(page_size) => (case.batch * max_pages + 3, page_size),
        };
        let table: Vec<i32> = match case.kv_form {
            KvForm::Continuous => (0..case.batch)
                .map(|b| if kv_lens[b] == 0 { -7 } else { (case.batch + 1 - b) as i32 })
                .collect(),
            KvForm::Paged(page_size) => (0..case.batch * max_pages)
                .map(|i| {
                    let (b, page) = (i / max_pages, i % max_pages);
                    let used = page * page_size < kv_lens[b];
                    if used { ((i * 7 + 3) % (case.batch * max_pages + 3)) as i32 } else { i32::MAX }
                })
                .collect(),
            _ => Vec::new(),
        };
        let slots = blocks * per_block;
        let (kd, vd) = (case.kv_heads * case.head_dim, case.kv_heads * case.value_dim);
        let mut k = vec![T::from_f32(f32::NAN); slots * kd];
        let mut v = vec![T::from_f32(f32::NAN); slots * vd];
        let kv_offsets = offsets(&kv_lens);
        for b in 0..case.batch {
            for j in 0..kv_lens[b] {
                let slot = match case.kv_form {
                    KvForm::Dense | KvForm::Lengths => b * per_block + j,
                    KvForm::Ragged => kv_offsets[b] + j,
                    KvForm::Continuous => table[b] as usize * per_block + j,
                    KvForm::Paged(page_size) => {
                        table[b * max_pages + j / page_size] as usize * page_size + j % page_size
                    }
                };
                k[slot * kd..(slot + 1) * kd].fill_with(|| T::from_f32(random.normal()));
                v[slot * vd..(slot + 1) * vd].fill_with(|| T::from_f32(random.normal()));
                if case.bad_values && j % 29 == 20 {
                    let bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][j / 29 % 3];
                    v[slot * vd + j % vd] = T::from_f32(bad);
                }
            }
        }
        let mut k_shape = vec![blocks, per_block, case.kv_heads];
        let kv_lengths = match case.kv_form {
            KvForm::Ragged => {
                k_shape.remove(0);
                kv_offsets
            }
            _ => kv_lens,
        };
        Data {
            q,
            k,
            v,
            sinks: (0..case.heads).map(|h| h as f32 - 1.0).collect(),
            q_lengths: q_lengths.iter().map(|&n| n as i32).collect(),
            kv_lengths: kv_lengths.iter().map(|&n| n as u32).collect(),
            table,
            k_shape,
            max_pages,
        }
    }

    fn query(&self, case: &Case<'_, T>) -> Query<'_> {
        let tensor = |shape: &[usize]| TensorRef::from_slice(&self.q, shape).unwrap();
        let lengths = TensorRef::from_slice(&self.q_lengths, &[self.q_lengths.len()]).unwrap();
        let padded = [case.batch, case.seqlen_q, case.heads, case.head_dim];
        match case.q_form {
            QForm::Padded => Query::padded(tensor(&padded)),
            QForm::Lengths => Query::Padded { q: tensor(&padded), lengths: Some(lengths) },
            QForm::Ragged => {
                let rows = self.q.len() / (case.heads * case.head_dim);
                Query::Ragged {
                    q: tensor(&[rows, case.heads, case.head_dim]),
                    cu_seqlens: lengths,
                    max_seqlen: Some(case.seqlen_q),
                }
            }
        }
    }

    fn kv(&self, case: &Case<'_, T>) -> KvCache<'_> {
        let shape = |dim: usize| [&self.k_shape[..], &[dim]].concat();
        let k = TensorRef::from_slice(&self.k, &shape(case.head_dim)).unwrap();
        let v = TensorRef::from_slice(&self.v, &shape(case.value_dim)).unwrap();
        let lengths = TensorRef::from_slice(&self.kv_lengths, &[self.kv_lengths.len()]).unwrap();
        match case.kv_form {
            KvForm::Dense => KvCache::dense(k, v),
            KvForm::Lengths => KvCache::Dense { k, v, lengths: Some(lengths) },
            KvForm::Ragged => KvCache::Ragged { k, v, cu_seqlens: lengths, max_seqlen: Some(case.seqlen_k) },
            KvForm::Continuous => KvCache::Continuous {
                k,
                v,
                lookup_table: TensorRef::from_slice(&self.table, &[case.batch]).unwrap(),
                lengths,
                max_seqlen: None,
            },
            KvForm::Paged(_) => KvCache::Paged {
                k,
                v,
                page_table: TensorRef::from_slice(&self.table, &[case.batch, self.max_pages]).unwrap(),
                lengths,
                max_seqlen: Some(case.seqlen_k),
            },
        }
    }
}

fn address(tensor: &TensorRef<'_>) -> DeviceAddress {
    DeviceAddress(tensor.address())
}

/// Strides of `[batch, row, head, ..]` or `[row, head, ..]`.
fn rows(tensor: &TensorRef<'_>) -> Rows {
    let strides = tensor.strides();
    let at = strides.len() - 3;
    let batch_stride = if at == 1 { strides[0] } else { 0 };
    Rows { data: address(tensor), batch_stride, row_stride: strides[at], head_stride: strides[at + 1] }
}

fn indices(tensor: &TensorRef<'_>) -> Indices {
    Indices { data: address(tensor), stride: tensor.strides()[0] }
}

fn parameters<T: Float>(
    case: &Case<'_, T>,
    problem: &AttentionProblem<'_>,
    block_m: usize,
) -> AttentionParameters {
    let shape = problem.shape();
    let mut p = AttentionParameters {
        q: rows(problem.query().tensor()),
        k: rows(problem.kv().k()),
        v: rows(problem.kv().v()),
        out: rows(&problem.out().as_ref()),
        total_q: shape.total_q as i64,
        batch: shape.batch as u32,
        num_heads: shape.num_heads as u32,
        group_size: shape.group_size() as u32,
        head_dim: shape.head_dim as u32,
        value_dim: shape.value_dim as u32,
        seqlen_q: shape.seqlen_q as u32,
        seqlen_k: shape.seqlen_k as u32,
        page_size: 1,
        section: case.section,
        num_partitions: case.partitions as u32,
        softmax_scale: problem.softmax_scale(),
        start_form: StartForm::BottomRight.into(),
        ..Default::default()
    };
    p.heads_per_tile = if case.pack_groups { p.group_size } else { 1 };
    p.num_row_tiles = (shape.seqlen_q * p.heads_per_tile as usize).div_ceil(block_m) as u32;
    p.query_form = match problem.query() {
        Query::Padded { lengths: None, .. } => QueryForm::Padded,
        Query::Padded { lengths: Some(lengths), .. } => {
            p.query_lengths = indices(lengths);
            QueryForm::PaddedLengths
        }
        Query::Ragged { cu_seqlens, .. } => {
            p.query_lengths = indices(cu_seqlens);
            QueryForm::Ragged
        }
        _ => unreachable!(),
    }
    .into();
    p.key_form = match problem.kv() {
        KvCache::Dense { lengths: None, .. } => KeyForm::Dense,
        KvCache::Dense { lengths: Some(lengths), .. } => {
            p.key_lengths = indices(lengths);
            KeyForm::DenseLengths
        }
        KvCache::Ragged { cu_seqlens, .. } => {
            p.key_lengths = indices(cu_seqlens);
            KeyForm::Ragged
        }
        KvCache::Continuous { lookup_table, lengths, .. } => {
            p.key_lengths = indices(lengths);
            p.block_table = Table {
                data: address(lookup_table),
                row_stride: lookup_table.strides()[0],
                column_stride: 0,
            };
            KeyForm::Continuous
        }
        KvCache::Paged { k, page_table, lengths, .. } => {
            p.key_lengths = indices(lengths);
            let strides = page_table.strides();
            p.block_table =
                Table { data: address(page_table), row_stride: strides[0], column_stride: strides[1] };
            p.page_size = k.shape()[1] as u32;
            KeyForm::Paged
        }
        _ => unreachable!(),
    }
    .into();
    if let Some(sinks) = problem.sinks() {
        p.sinks = indices(sinks);
        p.sink_form = SinkForm::F32.into();
    }
    if let Some(lse) = problem.lse() {
        let strides = lse.strides();
        let at = strides.len() - 2;
        p.lse = Rows {
            data: DeviceAddress(lse.address()),
            batch_stride: if at == 1 { strides[0] } else { 0 },
            head_stride: strides[at],
            row_stride: strides[at + 1],
        };
        p.lse_form = LseForm::Written.into();
    }
    p
}

pub(crate) const UNTOUCHED: f32 = -77.0;

/// Runs a case with both orders of warps, and compares with the reference.
pub(crate) fn check<T: Float>(module: &Module, config: &ForwardConfig, case: &Case<'_, T>) {
    for last_warp_first in [false, true] {
        compare(case, |problem, functors| {
            let mut p = parameters(case, problem, config.block_m);
            let (out_bytes, lse_bytes) = ForwardConfig::workspace_bytes(&p);
            let partial_out = vec![f32::NAN; out_bytes / 4];
            let partial_lse = vec![f32::NAN; lse_bytes / 4];
            p.partial_out = DeviceAddress(partial_out.as_ptr().expose_provenance() as u64);
            p.partial_lse = DeviceAddress(partial_lse.as_ptr().expose_provenance() as u64);
            let grid = ForwardConfig::grid(&p).unwrap();
            module.run(
                grid,
                config.block_threads(),
                config.shared_memory_bytes(),
                &p,
                functors,
                last_warp_first,
            );
            if case.partitions > 1 {
                let launch = combine_launch(&p).unwrap();
                combine_module(T::DTYPE).run(launch.grid, launch.block_threads, 0, &p, &[], last_warp_first);
            }
        });
    }
}

/// The same for the decode kernel: `workers` share all keys, or with 0 each item has the case's partitions.
pub(crate) fn check_decode<T: Float>(
    module: &Module,
    config: &DecodeConfig,
    case: &Case<'_, T>,
    workers: u32,
) {
    for last_warp_first in [false, true] {
        compare(case, |problem, functors| {
            run_decode(module, config, case, workers, last_warp_first, problem, functors);
        });
    }
}

/// What the decode kernel leaves in the output.
pub(crate) fn decode_output<T: Float>(
    module: &Module,
    config: &DecodeConfig,
    case: &Case<'_, T>,
    workers: u32,
) -> Vec<T> {
    attend(case, |problem, functors| run_decode(module, config, case, workers, false, problem, functors)).0
}

fn run_decode<T: Float>(
    module: &Module,
    config: &DecodeConfig,
    case: &Case<'_, T>,
    workers: u32,
    last_warp_first: bool,
    problem: &AttentionProblem<'_>,
    functors: &[u8],
) {
    let mut p = parameters(case, problem, config.block_m);
    p.num_workers = workers;
    let workspace = config.workspace(&p);
    let partial_out = vec![f32::NAN; workspace.partial_out / 4];
    let partial_lse = vec![f32::NAN; workspace.partial_lse / 4];
    let counters = vec![0u32; workspace.counters / 4];
    p.partial_out = DeviceAddress(partial_out.as_ptr().expose_provenance() as u64);
    p.partial_lse = DeviceAddress(partial_lse.as_ptr().expose_provenance() as u64);
    p.counters = DeviceAddress(counters.as_ptr().expose_provenance() as u64);
    let launch = config.launch(&p).unwrap();
    let shared = launch.shared_memory_bytes;
    module.run(launch.grid, launch.block_threads, shared, &p, functors, last_warp_first);
    for (i, counter) in counters.iter().enumerate() {
        // SAFETY: the kernel wrote through the address; the vector is still there.
        let left = unsafe { std::ptr::from_ref(counter).read_volatile() };
        assert_eq!(left, 0, "counter {i} is not as it was");
    }
}

fn combine_module(dtype: DType) -> &'static Module {
    static MODULES: [OnceLock<Module>; 3] = [OnceLock::new(), OnceLock::new(), OnceLock::new()];
    let index = [DType::F32, DType::F16, DType::BF16].iter().position(|&other| other == dtype).unwrap();
    MODULES[index].get_or_init(|| Module::build(&combine(dtype), COMBINE))
}

pub(crate) fn check_naive<T: Float>(case: &Case<'_, T>) {
    let functors = FunctorSpec::new(&case.mask, &case.score_mod, case.heads, "test").unwrap();
    let config = NaiveConfig { dtype: T::DTYPE, paged: matches!(case.kv_form, KvForm::Paged(_)) };
    let module = Module::build(&config.translation_unit(&functors), FORWARD);
    compare(case, |problem, functors| {
        let p = parameters(case, problem, 1);
        let launch = NaiveConfig::launch(&p).unwrap();
        module.run(launch.grid, launch.block_threads, 0, &p, functors, false);
    });
}

fn compare<T: Float>(case: &Case<'_, T>, launch: impl Fn(&AttentionProblem<'_>, &[u8])) {
    let (out, lse, expected) = attend(case, launch);
    compare_values(case, &out, &lse, &expected);
}

/// What a launch writes, and the reference's answer.
fn attend<T: Float>(
    case: &Case<'_, T>,
    launch: impl Fn(&AttentionProblem<'_>, &[u8]),
) -> (Vec<T>, Vec<f32>, reference::ReferenceOutput) {
    let data = Data::new(case);
    let (query, kv) = (data.query(case), data.kv(case));
    let shape = AttentionProblem::output_shape(&query, &kv).unwrap();
    let mut out = vec![T::from_f32(UNTOUCHED); shape.out.iter().product()];
    let mut lse = vec![UNTOUCHED; shape.lse.iter().product()];
    let mut options = AttentionOptions::new()
        .mask(case.mask.clone())
        .score_mod(case.score_mod.clone())
        .softmax_scale(case.softmax_scale)
        .lse(true);
    if case.sinks {
        options = options.sinks(TensorRef::from_slice(&data.sinks, &[case.heads]).unwrap());
    }
    let problem = AttentionProblem::new(
        query,
        kv,
        TensorMut::from_slice(&mut out, &shape.out).unwrap(),
        Some(TensorMut::from_slice(&mut lse, &shape.lse).unwrap()),
        &options,
    )
    .unwrap();
    let expected = reference::attention(&problem).unwrap();

    let mut functors = FunctorSpec::new(&case.mask, &case.score_mod, case.heads, "test").unwrap();
    let extent = TableExtent {
        batch: case.batch,
        heads: case.heads,
        q_begin: -(case.seqlen_q as i64),
        q_end: case.seqlen_k as i64,
        k_end: case.seqlen_k as i64,
    };
    let mut tables = Vec::new();
    for slot in 0..functors.tables.len() {
        let table = MaskTable::build(functors.tables[slot].function, &extent);
        let words = table.data();
        functors.set_table(slot, &table, words.as_ptr().expose_provenance() as u64);
        tables.push(words);
    }
    launch(&problem, &functors.parameters);
    drop(problem);
    (out, lse, expected)
}

fn compare_values<T: Float>(
    case: &Case<'_, T>,
    out: &[T],
    lse: &[f32],
    expected: &reference::ReferenceOutput,
) {
    let (mut error, mut norm, mut largest) = (0.0f64, 0.0f64, 0.0f64);
    let row_is_written = |i: usize| !expected.out[i].is_nan() || case.bad_values;
    for (i, (found, wanted)) in out.iter().zip(&expected.out).enumerate() {
        let found = f64::from(found.to_f32());
        if wanted.is_finite() {
            assert!(found.is_finite(), "element {i} is {found}, expected {wanted}");
            error += (found - wanted).powi(2);
            norm += wanted.powi(2);
            largest = largest.max((found - wanted).abs());
        } else if !row_is_written(i) {
            assert_eq!(found, f64::from(UNTOUCHED), "element {i} was written");
        } else if found != f64::from(UNTOUCHED) {
            assert!(
                !found.is_finite() && (found == *wanted || found.is_nan()),
                "element {i} is {found}, expected {wanted}"
            );
        }
    }
    let relative = (error / norm.max(1e-30)).sqrt();
    let tolerance = match (case.tolerance, T::DTYPE) {
        (Tolerance::Exact, _) => 2e-6,
        (Tolerance::Tf32, _) => 2e-3,
        (Tolerance::OfDtype, DType::F32) => 2e-5,
        (Tolerance::OfDtype, DType::F16) => 6e-4,
        (Tolerance::OfDtype, _) => 4e-3,
    };
    assert!(relative <= tolerance, "relative error {relative:e}, largest {largest:e}");
    let lse_tolerance = if case.tolerance == Tolerance::Tf32 { 3e-2 } else { 1e-4 };
    for (i, (&found, &wanted)) in lse.iter().zip(&expected.lse).enumerate() {
        if wanted.is_nan() {
            assert_eq!(found, UNTOUCHED, "lse {i} was written");
        } else if wanted == f64::NEG_INFINITY {
            assert_eq!(found, f32::NEG_INFINITY, "lse {i}");
        } else {
            let difference = (f64::from(found) - wanted).abs();
            assert!(
                difference <= lse_tolerance + 1e-5 * wanted.abs(),
                "lse {i} is {found}, expected {wanted}"
            );
        }
    }
}

pub(crate) fn check_verify_page_table() {
    let module = Module::build(&verify_page_table(), VERIFY);
    let table = [0i32, 4, -1, 9, 2, 1, 3, 0, 0];
    let run = |lengths: [i32; 3], num_blocks: u32| {
        let report = [u64::MAX; 2];
        let p = VerifyParameters {
            block_table: Table {
                data: DeviceAddress(table.as_ptr().expose_provenance() as u64),
                row_stride: 3,
                column_stride: 1,
            },
            key_lengths: Indices {
                data: DeviceAddress(lengths.as_ptr().expose_provenance() as u64),
                stride: 1,
            },
            report: DeviceAddress(report.as_ptr().expose_provenance() as u64),
            key_form: KeyForm::Paged.into(),
            batch: 3,
            seqlen_k: 24,
            page_size: 8,
            num_blocks,
            reserved: 0,
        };
        let launch = verify_page_table_launch(&p);
        module.run(launch.grid, launch.block_threads, 0, &p, &[], false);
        // SAFETY: the kernel wrote through the address; the array is still there.
        unsafe { std::ptr::from_ref(&report).read_volatile() }
    };
    assert_eq!(run([16, 0, 24], 5), [u64::MAX; 2], "entries past a length are not read");
    assert_eq!(run([17, 0, 24], 5), [2, u64::MAX]);
    assert_eq!(run([16, 8, 24], 5), [1 << 32, u64::MAX]);
    assert_eq!(run([16, 25, -1], 5), [u64::MAX, 1]);
}
