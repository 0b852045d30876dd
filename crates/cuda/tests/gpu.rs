//! On a GPU: results against the reference, repetition, graphs, faults. Without one each test says why it is skipped.
//!
//! The test binary runs by itself on a machine without cargo: kernels come from `OMNIFLASH_KERNELS`, from the cache
//! that `OMNIFLASH_CACHE` names, or from NVRTC there.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[allow(dead_code, unreachable_pub, reason = "shared with an example")]
mod support;

use std::sync::Arc;

use half::bf16;
use omniflash_core::{
    Algorithm, AttentionOptions, Backend, DType, DeviceSource, Error, F32Arithmetic, Mask, MaskFunction,
    ReferenceBackend, Stream, Tensor,
};
use omniflash_cuda::OfflinePlanner;
use omniflash_kernel_store::{Compiler, KernelStore, SourceList, StoreOptions};
use omniflash_testkit::append;
use support::{Case, Keys, MaskKind, cases, errors, gpu, launch, with_dense_problem, with_problem};

macro_rules! gpu_or_return {
    () => {
        match gpu() {
            Ok(backend) => backend,
            Err(reason) => {
                println!("skipped: {reason}");
                return;
            }
        }
    };
}

#[test]
fn every_case_agrees_with_the_reference() {
    let backend = gpu_or_return!();
    let mut wrong = Vec::new();
    for (name, case) in cases() {
        match errors(&backend, &case) {
            Ok((errors, plan)) if !errors.are_fine(case.dtype) => {
                wrong.push(format!("{name}: {errors:?}\n    {case:?}\n    {plan}"));
            }
            Ok(_) => {}
            Err(error) => wrong.push(format!("{name}: {error}\n    {case:?}")),
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases().len(), wrong.join("\n"));
}

/// Cases for every form of the decode kernel, with what its name has on an H100 or H200.
fn decode_forms() -> [(&'static str, Case); 17] {
    let base = Case {
        dims: (128, 128),
        heads: (8, 2),
        mask: MaskKind::Causal,
        sinks: true,
        keys: Keys::Paged(16),
        ..Case::new(DType::BF16)
    };
    let dense = Case { keys: Keys::Lengths, ..base };
    let odd_pages = Case { keys: Keys::Paged(5), ..base };
    [
        ("w8s6-strided-cluster16-boxes", Case { batch: 2, seqlen: (1, 5000), ..dense }),
        ("w4s5-paged-cluster8-causal", Case { batch: 4, seqlen: (1, 700), ..base }),
        ("w8s4-paged-cluster8-boxes", Case { batch: 4, seqlen: (1, 1200), ..base }),
        ("w8s3-paged-cluster8-boxes", Case { batch: 4, seqlen: (2, 3000), dims: (256, 256), ..base }),
        ("w8s6-paged-cluster8-boxes", Case { batch: 4, seqlen: (1, 3000), ..base }),
        ("w8s6-paged-line2-boxes", Case { batch: 1, seqlen: (1, 20_000), ..base }),
        ("w8s6-paged-line2-causal", Case { batch: 1, seqlen: (1, 20_000), ..odd_pages }),
        ("w8s6-strided-line2-boxes", Case { batch: 4, seqlen: (4, 9000), ..dense }),
        ("m32n128w8s6-paged-line2-boxes", Case { batch: 8, seqlen: (8, 2500), ..base }),
        ("w8s6-paged-boxes", Case { batch: 64, seqlen: (1, 500), ..base }),
        ("w8s12-paged-boxes", Case { batch: 64, seqlen: (3, 900), dims: (64, 64), ..base }),
        ("w8s12-paged-causal", Case { batch: 64, seqlen: (3, 900), dims: (64, 64), ..odd_pages }),
        ("w4s6-paged-item2-boxes", Case { batch: 90, seqlen: (1, 600), ..base }),
        ("w4s6-strided-item2-boxes", Case { batch: 90, seqlen: (1, 600), keys: Keys::Dense, ..base }),
        ("w4s6-paged-item2-causal", Case { batch: 90, seqlen: (1, 600), ..odd_pages }),
        ("w4s6-strided-cluster8-causal", Case { batch: 4, seqlen: (2, 1500), dims: (256, 256), ..dense }),
        ("w8s3-strided-line2-causal", Case { batch: 8, seqlen: (1, 8000), dims: (256, 256), ..dense }),
    ]
}

/// Cases for tiles of the Hopper family that only many rows take, with what the kernel's name has on an H100 or H200.
fn hopper_forms() -> [(&'static str, Case); 17] {
    let base = Case { batch: 11, heads: (12, 6), sinks: true, ..Case::new(DType::BF16) };
    let narrow = Case { seqlen: (480, 500), ..base };
    let wide = Case { seqlen: (380, 500), dims: (128, 128), ..base };
    // Pairs of blocks: heads of a group, and rows of a head.
    let pairs = Case { heads: (12, 12), seqlen: (250, 2100), batch: 6, keys: Keys::Lengths, ..wide };
    let wide_pairs = Case { dims: (256, 256), ..pairs };
    let ragged = Case { batch: 45, keys: Keys::Ragged, ragged_q: true, mask: MaskKind::Causal, ..narrow };
    [
        ("bf16-d64-m256n64q2-tma-nomask", narrow),
        ("bf16-d64-m256n64q2-tma-causal", Case { mask: MaskKind::Causal, ..narrow }),
        ("f16-d64-m256n64q2-tma-causal", Case { mask: MaskKind::Causal, dtype: DType::F16, ..narrow }),
        ("bf16-d64-m256n64q2-tma-slidingwindow", Case { mask: MaskKind::Window(200, 0), ..narrow }),
        ("bf16-d48-m256n64q2-tma-causal", Case { dims: (48, 48), mask: MaskKind::Causal, ..narrow }),
        ("bf16-d64-m256n64q2-tma-causal", Case { keys: Keys::Lengths, mask: MaskKind::Causal, ..narrow }),
        ("bf16-d64-m256n64q2-tma-causal", ragged),
        ("bf16-d64-m192n128q2-tma-nomask", Case { seqlen: (380, 1500), ..narrow }),
        ("bf16-d128-m192n64q2-tma-causal", Case { mask: MaskKind::Causal, ..wide }),
        ("bf16-d128-m192n64q2-tma-slidingwindow", Case { mask: MaskKind::Window(90, 0), ..wide }),
        ("bf16-d128-m128n128q2-tma-nomask", Case { seqlen: (380, 1100), ..wide }),
        ("bf16-d128-m128n128q2-pair-tma-nomask", Case { seqlen: (380, 2100), batch: 4, ..wide }),
        ("f16-d128-m128n128q2-pair-tma-nomask", Case { dtype: DType::F16, ..pairs }),
        ("bf16-d256-m128n64q1-pair-tma-nomask", wide_pairs),
        ("bf16-d256-m128n64q1-tma-nomask", Case { padded_q: true, ..wide_pairs }),
        ("bf16-d192-m128n64q1-pair-tma-nomask", Case { dims: (192, 192), ..wide_pairs }),
        ("bf16-d192v128-m128n128q1-pair-tma-nomask", Case { dims: (192, 128), ..wide_pairs }),
    ]
}

/// Plans cases without a GPU: each takes the form of the kernel that it is for.
fn take_the_forms_they_are_for(forms: &[(&str, Case)]) {
    let compilers: Vec<Box<dyn Compiler>> = vec![Box::new(SourceList::default())];
    let store = KernelStore::new(StoreOptions { compilers, ..StoreOptions::default() });
    let planner = OfflinePlanner::new("sm_90", Arc::new(store)).unwrap();
    let host = ReferenceBackend::new();
    for (form, case) in forms {
        let (plan, _, _) =
            with_problem(&host, case, &Stream::host(), |problem| planner.plan(problem)).unwrap();
        assert!(plan.kernel_id.contains(form), "{form}: {}", plan.kernel_id);
    }
}

fn agree_with_the_reference(forms: &[(&str, Case)]) {
    let backend = gpu_or_return!();
    for (form, case) in forms {
        let (errors, plan) = errors(&backend, case).unwrap();
        assert!(errors.are_fine(case.dtype), "{form}: {errors:?}\n{case:?}\n{plan}");
    }
}

#[test]
fn the_cases_for_hopper_take_the_forms_they_are_for() {
    take_the_forms_they_are_for(&hopper_forms());
}

#[test]
fn every_form_of_the_hopper_kernel_agrees_with_the_reference() {
    agree_with_the_reference(&hopper_forms());
}

#[test]
fn the_cases_for_decode_take_the_forms_they_are_for() {
    take_the_forms_they_are_for(&decode_forms());
}

#[test]
fn every_form_of_the_decode_kernel_agrees_with_the_reference() {
    agree_with_the_reference(&decode_forms());
}

#[test]
fn a_thousand_launches_are_bitwise_equal_beside_other_work() {
    use omniflash_core::{AttentionConfig, AttentionProblem, KvCache, Query};
    const LAUNCHES: usize = 1000;
    let backend = gpu_or_return!();
    let (stream, other) = (backend.stream().unwrap(), backend.stream().unwrap());
    // A prefill, keys in partitions that a second kernel joins, decodes in clusters and in a line.
    for (seqlen, partitions) in
        [((384, 384), None), ((3, 1000), Some(7)), ((1, 2000), None), ((1, 12_000), None)]
    {
        let wave = |count: usize, step: f32| -> Vec<bf16> {
            (0..count).map(|i| bf16::from_f32((i as f32 * step).sin() * 2.0)).collect()
        };
        let tensor = |seqlen: usize, heads: usize, step: f32| {
            let shape = [2, seqlen, heads, 128];
            Tensor::from_slice(&backend, &wave(shape.iter().product(), step), &shape, &stream).unwrap()
        };
        let (q, k, v) = (tensor(seqlen.0, 8, 0.37), tensor(seqlen.1, 2, 0.73), tensor(seqlen.1, 2, 0.91));
        let config = AttentionConfig { num_partitions: partitions, ..AttentionConfig::default() };
        let options = AttentionOptions::new().mask(Mask::Causal).config(config);
        let [mut out, mut unused] =
            [(); 2].map(|()| Tensor::zeros(&backend, DType::BF16, q.shape(), &stream).unwrap());
        backend.synchronize(&stream).unwrap();
        let run = |out: &mut Tensor, stream: &Stream| {
            let kv = KvCache::dense(k.view(), v.view());
            let query = Query::padded(q.view());
            let problem = AttentionProblem::new(query, kv, out.view_mut(), None, &options).unwrap();
            launch(&backend, &problem, stream).unwrap()
        };
        let plan = run(&mut out, &stream);
        let expected = out.to_vec::<bf16>(&backend, &stream).unwrap();
        assert!(expected.iter().any(|x| x.to_f32() != 0.0), "{plan}");
        for i in 0..LAUNCHES {
            for _ in 0..i % 4 {
                run(&mut unused, &other);
            }
            run(&mut out, &stream);
            let found = out.to_vec::<bf16>(&backend, &stream).unwrap();
            let differs = found.iter().zip(&expected).position(|(a, b)| a.to_bits() != b.to_bits());
            assert_eq!(differs, None, "launch {i}; {plan}");
        }
        backend.synchronize(&other).unwrap();
    }
}

#[test]
fn a_captured_decode_step_replays_what_a_launch_computes() {
    let backend = gpu_or_return!();
    let stream = backend.stream().unwrap();
    let case =
        Case { seqlen: (1, 512), keys: Keys::Paged(16), partitions: Some(4), ..Case::new(DType::BF16) };
    let eager = with_problem(&backend, &case, &stream, |problem| launch(&backend, problem, &stream)).unwrap();
    let (_, out, _) = with_problem(&backend, &case, &stream, |problem| {
        let plan = backend.plan(problem)?;
        backend.prepare(&plan, problem, &stream)?;
        let graph = backend.capture(&stream, || launch(&backend, problem, &stream).map(drop))?;
        for _ in 0..3 {
            // SAFETY: the problem's tensors stay allocated until the synchronisation below.
            unsafe { graph.replay(&stream) }?;
        }
        backend.synchronize(&stream)
    })
    .unwrap();
    assert_eq!(out, eager.1, "a replay computes what a launch computes");
}

/// The K, V, table and query of a small paged decode, whose lengths are in a buffer that the test may write.
struct PagedDecode {
    q: Tensor,
    kv: [Tensor; 2],
    table: Tensor,
    lengths: omniflash_core::Buffer,
}

impl PagedDecode {
    const BATCH: usize = 5;
    const PAGES: usize = 24;

    fn new(backend: &dyn Backend, stream: &Stream) -> Self {
        let wave =
            |count: usize, step: f32| -> Vec<f32> { (0..count).map(|i| (i as f32 * step).sin()).collect() };
        let tensor = |shape: &[usize], step: f32| {
            Tensor::from_slice(backend, &wave(shape.iter().product(), step), shape, stream).unwrap()
        };
        let table: Vec<i32> =
            (0..Self::BATCH * Self::PAGES).map(|i| (i * 7 % (Self::BATCH * Self::PAGES)) as i32).collect();
        let pool = [Self::BATCH * Self::PAGES, 16, 2, 64];
        PagedDecode {
            q: tensor(&[Self::BATCH, 1, 8, 64], 0.37),
            kv: [tensor(&pool, 0.011), tensor(&pool, 0.023)],
            table: Tensor::from_slice(backend, &table, &[Self::BATCH, Self::PAGES], stream).unwrap(),
            lengths: backend.alloc(4 * Self::BATCH, stream).unwrap(),
        }
    }

    fn set_lengths(&mut self, backend: &dyn Backend, lengths: &[i32; Self::BATCH], stream: &Stream) {
        let bytes: Vec<u8> = lengths.iter().flat_map(|length| length.to_ne_bytes()).collect();
        backend.copy_to_device(&bytes, &mut self.lengths, stream).unwrap();
    }

    fn problem<'a>(
        &'a self,
        backend: &dyn Backend,
        out: &'a mut Tensor,
    ) -> omniflash_core::AttentionProblem<'a> {
        use omniflash_core::{AttentionOptions, AttentionProblem, KvCache, Layout, Query, TensorRef};
        let layout = Layout::contiguous(&[Self::BATCH]).unwrap();
        let address = self.lengths.as_ptr().expose_provenance() as u64;
        // SAFETY: the buffer lives as long as `self` and holds that many numbers.
        let lengths = unsafe { TensorRef::from_raw(address, DType::I32, layout, backend.info().device) };
        let kv = KvCache::Paged {
            k: self.kv[0].view(),
            v: self.kv[1].view(),
            page_table: self.table.view(),
            lengths,
            max_seqlen: None,
        };
        let options = AttentionOptions::new().mask(Mask::Causal);
        AttentionProblem::new(Query::padded(self.q.view()), kv, out.view_mut(), None, &options).unwrap()
    }
}

#[test]
fn a_captured_decode_step_follows_lengths_that_change() {
    let backend = gpu_or_return!();
    let stream = backend.stream().unwrap();
    let (host, host_stream) = (omniflash_core::ReferenceBackend::new(), Stream::host());
    let mut decode = PagedDecode::new(&backend, &stream);
    let mut expected = PagedDecode::new(&host, &host_stream);
    let mut out = Tensor::zeros(&backend, DType::F32, &[PagedDecode::BATCH, 1, 8, 64], &stream).unwrap();
    decode.set_lengths(&backend, &[1; 5], &stream);
    let problem = decode.problem(&backend, &mut out);
    let plan = backend.plan(&problem).unwrap();
    backend.prepare(&plan, &problem, &stream).unwrap();
    let graph =
        // SAFETY: the problem's tensors live until the last synchronisation.
        backend.capture(&stream, || unsafe { backend.launch(&plan, &problem, &stream) }).unwrap();
    drop(problem);
    for lengths in
        [[384, 1, 200, 17, 64], [0, 0, 0, 384, 0], [1, 1, 1, 1, 1], [384; 5], [0; 5], [100, 384, 5, 0, 333]]
    {
        decode.set_lengths(&backend, &lengths, &stream);
        // SAFETY: as above.
        unsafe { graph.replay(&stream) }.unwrap();
        backend.synchronize(&stream).unwrap();
        let found = out.to_vec::<f32>(&backend, &stream).unwrap();
        expected.set_lengths(&host, &lengths, &host_stream);
        let mut reference =
            Tensor::zeros(&host, DType::F32, &[PagedDecode::BATCH, 1, 8, 64], &host_stream).unwrap();
        launch(&host, &expected.problem(&host, &mut reference), &host_stream).unwrap();
        let wanted = reference.to_vec::<f32>(&host, &host_stream).unwrap();
        for (i, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
            assert!(
                (found - wanted).abs() <= 1e-4,
                "{lengths:?}, element {i}: {found}, expected {wanted}; {plan}"
            );
        }
    }
}

/// A prefill of four heads over one with a mask tensor in a buffer that the test may write.
struct MaskedPrefill {
    q: Tensor,
    kv: [Tensor; 2],
    dtype: DType,
    mask: omniflash_core::Buffer,
}

impl MaskedPrefill {
    const ROWS: usize = 300;
    const KEYS: usize = 2048;

    fn new(backend: &dyn Backend, dtype: DType, stream: &Stream) -> Self {
        let tensor = |shape: &[usize], step: f32| {
            let count = shape.iter().product::<usize>();
            let wave: Vec<bf16> = (0..count).map(|i| bf16::from_f32((i as f32 * step).sin())).collect();
            Tensor::from_slice(backend, &wave, shape, stream).unwrap()
        };
        let kv = [Self::KEYS, 1, 64];
        MaskedPrefill {
            q: tensor(&[1, Self::ROWS, 4, 64], 0.37),
            kv: [0.011, 0.023].map(|step| tensor(&[1, kv[0], kv[1], kv[2]], step)),
            dtype,
            mask: backend.alloc(Self::ROWS * Self::KEYS * dtype.size(), stream).unwrap(),
        }
    }

    /// Shows each row a few keys more than the one before.
    fn set_mask(&mut self, backend: &dyn Backend, more: usize, stream: &Stream) {
        let shows = |i: usize| {
            let (row, key) = (i / Self::KEYS, i % Self::KEYS);
            key <= more * row && !(key + more).is_multiple_of(7)
        };
        let each = 0..Self::ROWS * Self::KEYS;
        let bytes: Vec<u8> = match self.dtype {
            DType::Bool => each.map(|i| u8::from(shows(i))).collect(),
            _ => each.flat_map(|i| if shows(i) { 0.0 } else { f32::NEG_INFINITY }.to_ne_bytes()).collect(),
        };
        backend.copy_to_device(&bytes, &mut self.mask, stream).unwrap();
    }

    fn problem<'a>(
        &'a self,
        backend: &dyn Backend,
        algorithm: Algorithm,
        out: &'a mut Tensor,
    ) -> omniflash_core::AttentionProblem<'a> {
        use omniflash_core::{AttentionConfig, AttentionProblem, KvCache, Layout, Query, TensorRef};
        let layout = Layout::contiguous(&[1, Self::ROWS, Self::KEYS]).unwrap();
        let address = self.mask.as_ptr().expose_provenance() as u64;
        // SAFETY: the buffer lives as long as `self` and holds that many elements.
        let mask = unsafe { TensorRef::from_raw(address, self.dtype, layout, backend.info().device) };
        let config = AttentionConfig { algorithm, ..AttentionConfig::default() };
        let options = AttentionOptions::new().mask(Mask::Dense(mask)).config(config);
        let (query, kv) =
            (Query::padded(self.q.view()), KvCache::dense(self.kv[0].view(), self.kv[1].view()));
        AttentionProblem::new(query, kv, out.view_mut(), None, &options).unwrap()
    }
}

#[test]
fn a_captured_launch_sees_mask_tensors_that_change() {
    let backend = gpu_or_return!();
    let stream = backend.stream().unwrap();
    let shape = [1, MaskedPrefill::ROWS, 4, 64];
    for dtype in [DType::Bool, DType::F32] {
        let mut prefill = MaskedPrefill::new(&backend, dtype, &stream);
        let mut out = Tensor::zeros(&backend, DType::BF16, &shape, &stream).unwrap();
        let problem = prefill.problem(&backend, Algorithm::Auto, &mut out);
        let plan = backend.plan(&problem).unwrap();
        assert!(plan.reason.contains("packed"), "{plan}");
        backend.prepare(&plan, &problem, &stream).unwrap();
        let graph =
            // SAFETY: the problem's tensors live until the last synchronisation.
            backend.capture(&stream, || unsafe { backend.launch(&plan, &problem, &stream) }).unwrap();
        drop(problem);
        for more in [0, 3, 50, 1] {
            prefill.set_mask(&backend, more, &stream);
            // SAFETY: as above.
            unsafe { graph.replay(&stream) }.unwrap();
            backend.synchronize(&stream).unwrap();
            let mut naive = Tensor::zeros(&backend, DType::BF16, &shape, &stream).unwrap();
            launch(&backend, &prefill.problem(&backend, Algorithm::Naive, &mut naive), &stream).unwrap();
            let [found, wanted] = [&out, &naive].map(|out| out.to_vec::<bf16>(&backend, &stream).unwrap());
            for (i, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
                let difference = (found.to_f32() - wanted.to_f32()).abs();
                assert!(
                    difference <= 0.02,
                    "{dtype}, {more}, element {i}: {found}, expected {wanted}; {plan}"
                );
            }
        }
    }
}

#[test]
fn appended_rows_land_where_the_reference_puts_them() {
    let backend = gpu_or_return!();
    for append in append::appends() {
        assert!(append::agrees(&backend, &append).unwrap(), "{append:?}");
    }
}

#[test]
fn appended_rows_without_a_place_are_left_out() {
    use omniflash_core::backend::run_kv_append;
    use omniflash_core::{AppendAt, KvAppend, KvCacheMut, NewKv};
    let backend = gpu_or_return!();
    let stream = backend.stream().unwrap();
    let new = Tensor::from_slice(&backend, &[1.0f32; 3 * 2 * 8], &[3, 2, 1, 8], &stream).unwrap();
    let zeros = || Tensor::zeros(&backend, DType::F32, &[4, 2, 1, 8], &stream).unwrap();
    let (mut k, mut v) = (zeros(), zeros());
    // A page that is none, a position past the end, one before the start.
    let table = Tensor::from_slice(&backend, &[0i32, 9, 1, 2, -4, 3], &[3, 2], &stream).unwrap();
    let starts = Tensor::from_slice(&backend, &[1i32, 3, -1], &[3], &stream).unwrap();
    let cache = KvCacheMut::Paged { k: k.view_mut(), v: v.view_mut(), page_table: table.view() };
    let at = AppendAt::Start(starts.view());
    let append = KvAppend::new(NewKv::padded(new.view(), new.view()), cache, at).unwrap();
    run_kv_append(&backend, &append, &stream).unwrap();
    drop(append);
    for cache in [&k, &v] {
        let found = cache.to_vec::<f32>(&backend, &stream).unwrap();
        let written: Vec<usize> = (0..8).filter(|row| found[8 * row] == 1.0).collect();
        assert_eq!(written, [1, 5]);
    }
}

#[test]
fn the_page_table_is_checked_where_it_lies() {
    let backend = gpu_or_return!();
    let stream = backend.stream().unwrap();
    let case = Case { seqlen: (1, 100), keys: Keys::Paged(16), ..Case::new(DType::BF16) };
    with_problem(&backend, &case, &stream, |problem| {
        // SAFETY: the tables were written by `with_problem`.
        unsafe { backend.verify_page_table(problem, &stream) }
    })
    .unwrap();
    use omniflash_core::{AttentionProblem, KvCache, Query};
    let zeros = |shape: &[usize]| Tensor::zeros(&backend, DType::BF16, shape, &stream).unwrap();
    let (q, kv, mut out) = (zeros(&[2, 1, 1, 64]), zeros(&[4, 16, 1, 64]), zeros(&[2, 1, 1, 64]));
    let table = Tensor::from_slice(&backend, &[0i32, 1, 2, 3, 0, -7], &[2, 3], &stream).unwrap();
    for (lengths, bad) in
        [([40i32, 16], None), ([40, 33], Some("page_table[1, 2]")), ([49, 1], Some("kv_lengths[0]"))]
    {
        let lengths = Tensor::from_slice(&backend, &lengths, &[2], &stream).unwrap();
        let kv = KvCache::Paged {
            k: kv.view(),
            v: kv.view(),
            page_table: table.view(),
            lengths: lengths.view(),
            max_seqlen: None,
        };
        let query = Query::padded(q.view());
        let problem =
            AttentionProblem::new(query, kv, out.view_mut(), None, &AttentionOptions::new()).unwrap();
        // SAFETY: the tables were written above.
        let answer = unsafe { backend.verify_page_table(&problem, &stream) };
        match (answer, bad) {
            // The sentinel is only an error where a length reaches its page of 16.
            (Ok(()), None) => {}
            (Err(Error::Value { argument, .. }), Some(bad)) => assert_eq!(argument, bad),
            (answer, bad) => panic!("{answer:?} for {bad:?}"),
        }
    }
}

/// Every third key, as device source.
struct Thirds {
    source: &'static str,
}

impl MaskFunction for Thirds {
    fn visible(&self, _: usize, _: usize, _: i64, k: i64) -> bool {
        k % 3 == 0
    }
    fn device_source(&self) -> Option<DeviceSource> {
        Some(DeviceSource::new("Thirds", self.source, &3i32))
    }
}

#[test]
fn a_users_functor_is_compiled_and_its_errors_reach_the_user() {
    let backend = gpu_or_return!();
    let stream = backend.stream().unwrap();
    let shape = (1, (64, 64), (2, 2), 64);
    let masked = |function: Thirds| AttentionOptions::new().mask(Mask::custom(function));
    let good = Thirds {
        source: "struct Thirds { int period; OMNIFLASH_DEVICE bool keep(const ScoreIndex& at) const \
                 { return at.k % period == 0; } };",
    };
    let plan = with_dense_problem(&backend, shape, &masked(good), &stream, |p| launch(&backend, p, &stream));
    if plan.as_ref().is_err_and(support::is_missing_kernel) {
        println!("skipped: no compiler here: {}", plan.unwrap_err());
        return;
    }
    assert!(plan.unwrap().contains("thirds"));
    let bad = Thirds { source: "struct Thirds { int period; no_such_type x; };" };
    let error = with_dense_problem(&backend, shape, &masked(bad), &stream, |p| launch(&backend, p, &stream));
    let error = error.unwrap_err().to_string();
    assert!(error.contains("no_such_type") && error.contains("functor 0"), "{error}");
}

#[test]
fn memory_that_cannot_be_had_is_a_typed_error() {
    let backend = gpu_or_return!();
    let stream = backend.stream().unwrap();
    let error = backend.alloc(1 << 46, &stream).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { bytes, .. } if bytes == 1 << 46), "{error}");
    assert!(Tensor::zeros(&backend, DType::F32, &[16], &stream).is_ok(), "the backend still works");
}

#[test]
fn f32_is_as_precise_as_was_asked_for() {
    let backend = gpu_or_return!();
    for (seqlen, algorithm) in [((200, 300), Algorithm::Flash2), ((1, 700), Algorithm::Auto)] {
        let case = Case { seqlen, algorithm, ..Case::new(DType::F32) };
        for (f32_arithmetic, least, most) in [
            (None, 0.0, 5e-6),
            (Some(F32Arithmetic::Exact), 0.0, 2e-6),
            (Some(F32Arithmetic::Tf32x3), 0.0, 5e-6),
            (Some(F32Arithmetic::Tf32), 2e-5, 3e-3),
        ] {
            let (errors, plan) = errors(&backend, &Case { f32_arithmetic, ..case }).unwrap();
            assert!(
                (least..most).contains(&errors.relative_rms),
                "{f32_arithmetic:?}: {}; {plan}",
                errors.relative_rms
            );
        }
    }
}

#[test]
fn an_unsupported_algorithm_names_one_that_works() {
    let backend = gpu_or_return!();
    // The Hopper family takes elements of 16 bits only, and no other GPU has one.
    let case = Case { algorithm: Algorithm::Flash3, ..Case::new(DType::F32) };
    let error = errors(&backend, &case).unwrap_err();
    assert!(matches!(&error, Error::Unsupported { nearest, .. } if nearest.contains("flash2")), "{error}");
}

#[test]
fn tensors_and_streams_of_others_are_borrowed() {
    let backend = gpu_or_return!();
    let owned = backend.stream().unwrap();
    // SAFETY: the stream is one of device 0 and outlives its borrower.
    let foreign = unsafe { Stream::from_raw(backend.info().device, owned.raw()) };
    let case = Case { partitions: Some(3), ..Case::new(DType::F16) };
    let run =
        |stream: &Stream| with_problem(&backend, &case, stream, |p| launch(&backend, p, stream)).unwrap().1;
    assert_eq!(run(&owned), run(&foreign));
}

#[test]
fn peaks_are_what_memory_and_units_can_do_and_bound_each_other() {
    let backend = gpu_or_return!();
    let stream = backend.stream().unwrap();
    let peaks = backend.measure_peaks(&stream, std::time::Duration::from_millis(50)).unwrap();
    let (read, copy) = (peaks.read.unwrap(), peaks.copy.unwrap());
    // A loop that a compiler has left out reads a hundred times what memory gives.
    assert!((0.5..2.0).contains(&(read / copy)), "{peaks:?}");
    let [f32, f16, bf16] = [DType::F32, DType::F16, DType::BF16].map(|dtype| peaks.flops_of(dtype).unwrap());
    assert!(f32 < f16 && (0.8..1.25).contains(&(bf16 / f16)), "{peaks:?}");
    assert!((5.0..500.0).contains(&(f32 / read)), "{peaks:?}");
}
