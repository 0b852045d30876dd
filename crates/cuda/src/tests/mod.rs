//! The host side on a fake driver: what is asked of it, in which order, and what is never asked.

mod emulated;
mod fake;

use std::sync::Arc;
use std::time::Instant;

use bytemuck::Zeroable;
use omniflash_core::{
    Algorithm, AttentionConfig, AttentionOptions, AttentionProblem, Backend, DType, DeviceId, Error, KvCache,
    Mask, Query, Result, ScoreMod, Stream, Support, Tensor, TensorMut,
};
use omniflash_device::parameters::{AttentionParameters, KeyForm, QueryForm, SinkForm};
use omniflash_kernels_cuda::HopperParameters;

use crate::probe::Absent;
use crate::{CudaBackend, interop};
use fake::Fake;

/// q, k, v and out on the device.
struct Tensors {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
}

impl Tensors {
    fn new(
        backend: &CudaBackend,
        stream: &Stream,
        seqlen: (usize, usize),
        heads: (usize, usize),
        dim: usize,
    ) -> Self {
        let zeros = |shape: &[usize]| Tensor::zeros(backend, DType::BF16, shape, stream).unwrap();
        Tensors {
            q: zeros(&[2, seqlen.0, heads.0, dim]),
            k: zeros(&[2, seqlen.1, heads.1, dim]),
            v: zeros(&[2, seqlen.1, heads.1, dim]),
            out: zeros(&[2, seqlen.0, heads.0, dim]),
        }
    }

    fn problem<'a>(&'a mut self, options: &AttentionOptions<'a>) -> AttentionProblem<'a> {
        let (query, kv) = (Query::padded(self.q.view()), KvCache::dense(self.k.view(), self.v.view()));
        AttentionProblem::new(query, kv, self.out.view_mut(), None, options).unwrap()
    }
}

/// Plans and launches.
fn launch(backend: &CudaBackend, problem: &AttentionProblem<'_>, stream: &Stream) -> Result<()> {
    let plan = backend.plan(problem)?;
    // SAFETY: the fake driver touches no tensor.
    unsafe { backend.launch(&plan, problem, stream) }
}

fn parameters(launch: &fake::FakeLaunch) -> AttentionParameters {
    let mut parameters = AttentionParameters::zeroed();
    let bytes = bytemuck::bytes_of_mut(&mut parameters);
    bytes.copy_from_slice(&launch.parameters[..bytes.len()]);
    parameters
}

#[test]
fn a_library_without_one_of_the_functions_is_data_that_names_it() {
    for symbol in ["cuMemAllocAsync", "cuStreamGetId", "cuLaunchKernel", "cuDriverGetVersion"] {
        let Some(fake) = Fake::build(&[&format!("{symbol}=omitted_{symbol}")]) else { return };
        assert_eq!(fake.probe().unwrap_err(), Absent::MissingSymbol(symbol.into()));
    }
}

#[test]
fn an_old_driver_a_driver_that_fails_and_one_without_device_are_data() {
    let Some(old) = Fake::build(&["VERSION=11080"]) else { return };
    let Absent::DriverTooOld { have, need } = old.probe().unwrap_err() else { panic!("it is old") };
    assert_eq!((have.as_str(), need.as_str()), ("11.8", "12.0"));
    for defines in [["DEVICES=0"], ["INIT=100"]] {
        assert_eq!(Fake::build(&defines).unwrap().probe().unwrap_err(), Absent::NoDevice);
    }
    let failed = Fake::build(&["INIT=999"]).unwrap().probe().unwrap_err();
    assert!(
        matches!(&failed, Absent::InitFailed(text) if text.contains("cuInit failed with 999")),
        "{failed}"
    );
}

#[test]
fn a_backend_says_who_it_is() {
    let Some(fake) = Fake::build(&[]) else { return };
    let backend = fake.backend();
    let info = backend.info();
    assert_eq!((info.name.as_str(), info.arch.as_str(), info.units), ("cuda:0", "sm_90", 132));
    assert_eq!((info.device, info.device_name.as_str()), (DeviceId::Cuda(0), "Fake GPU"));
    assert_eq!(info.driver.as_deref(), Some("CUDA 13.0"));
}

#[test]
fn data_goes_to_the_device_and_back() {
    let Some(fake) = Fake::build(&[]) else { return };
    let backend = fake.backend();
    let stream = backend.stream().unwrap();
    let values: Vec<f32> = (0..100).map(|i| i as f32).collect();
    let tensor = Tensor::from_slice(&backend, &values, &[4, 25], &stream).unwrap();
    assert_eq!(tensor.to_vec::<f32>(&backend, &stream).unwrap(), values);
    let zeros = Tensor::zeros(&backend, DType::F32, &[9], &stream).unwrap();
    assert_eq!(zeros.to_vec::<f32>(&backend, &stream).unwrap(), [0.0; 9]);
    let mut small = backend.alloc(3, &stream).unwrap();
    assert!(matches!(backend.copy_to_device(&[0; 4], &mut small, &stream), Err(Error::Shape { .. })));
    assert!(matches!(backend.copy_to_host(&small, &mut [0; 4], &stream), Err(Error::Shape { .. })));
    assert!(matches!(backend.synchronize(&Stream::host()), Err(Error::Device { .. })));
}

#[test]
fn a_launch_passes_addresses_strides_and_forms() {
    let Some(fake) = Fake::build(&[]) else { return };
    let backend = fake.backend();
    let stream = backend.stream().unwrap();
    fake.set_sizes(size_of::<AttentionParameters>(), 32);
    let mut tensors = Tensors::new(&backend, &stream, (300, 500), (8, 2), 128);
    let (q, out) = (tensors.q.view().address(), tensors.out.view().address());
    let sinks = Tensor::zeros(&backend, DType::F16, &[8], &stream).unwrap();
    let lengths = Tensor::from_slice(&backend, &[400i32, 1], &[2], &stream).unwrap();
    let options = AttentionOptions::new()
        .mask(Mask::SlidingWindow { left: 63, right: 1 })
        .sinks(sinks.view())
        .softmax_scale(0.5)
        .num_partitions(1);
    let kv = KvCache::Dense { k: tensors.k.view(), v: tensors.v.view(), lengths: Some(lengths.view()) };
    let problem =
        AttentionProblem::new(Query::padded(tensors.q.view()), kv, tensors.out.view_mut(), None, &options)
            .unwrap();
    let plan = backend.plan(&problem).unwrap();
    launch(&backend, &problem, &stream).unwrap();
    let launches = fake.launches();
    assert_eq!(launches.len(), 1);
    let found = &launches[0];
    assert_eq!((found.entry(), found.stream), ("omniflash_forward", stream.raw()));
    assert_eq!(
        (found.grid, found.block, found.shared as usize),
        (plan.grid, plan.block_threads, plan.shared_memory_bytes)
    );
    assert!(plan.shared_memory_bytes > 48 << 10, "so that the function's limit had to be raised");
    let found_parameters = parameters(found);
    assert_eq!((found_parameters.q.data.0, found_parameters.out.data.0), (q, out));
    let q = found_parameters.q;
    assert_eq!((q.batch_stride, q.row_stride, q.head_stride), (300 * 1024, 1024, 128));
    assert_eq!(found_parameters.key_form, u32::from(KeyForm::DenseLengths));
    assert_eq!(found_parameters.query_form, u32::from(QueryForm::Padded));
    assert_eq!(found_parameters.sink_form, u32::from(SinkForm::F16));
    assert_eq!(found_parameters.key_lengths.data.0, lengths.view().address());
    assert_eq!((found_parameters.group_size, found_parameters.softmax_scale), (4, 0.5));
    assert_eq!(found.functor[..8], [63i32.to_ne_bytes(), 1i32.to_ne_bytes()].concat());
}

fn hopper_parameters(launch: &fake::FakeLaunch) -> HopperParameters {
    bytemuck::pod_read_unaligned(&launch.hopper)
}

#[test]
fn a_hopper_launch_passes_maps_tiles_and_a_counter_that_captured_launches_do_not_share() {
    let Some(fake) = Fake::build(&[]) else { return };
    let backend = fake.backend();
    let stream = backend.stream().unwrap();
    fake.set_sizes(size_of::<AttentionParameters>(), 16);
    fake.set_hopper_size(size_of::<HopperParameters>());
    let mut tensors = Tensors::new(&backend, &stream, (300, 500), (8, 2), 128);
    let (q, k) = (tensors.q.view().address(), tensors.k.view().address());
    let options = AttentionOptions::new().mask(Mask::Causal);
    let problem = tensors.problem(&options);
    let refused = backend.capture(&stream, || launch(&backend, &problem, &stream)).unwrap_err();
    assert!(refused.to_string().contains("CudaBackend::prepare"), "{refused}");
    let plan = backend.plan(&problem).unwrap();
    assert_eq!((plan.algorithm, plan.num_partitions), (Algorithm::Flash3, 1));
    backend.prepare(&plan, &problem, &stream).unwrap();
    for _ in 0..2 {
        backend.capture(&stream, || launch(&backend, &problem, &stream)).unwrap();
        launch(&backend, &problem, &stream).unwrap();
    }
    let launches = fake.launches();
    let found: Vec<HopperParameters> = launches.iter().map(hopper_parameters).collect();
    // 300 queries of 4 heads each in tiles of 128 rows, for 2 sequences and 2 key heads, or of one head each for 8.
    let row_tiles = if parameters(&launches[0]).heads_per_tile == 4 { 10 * 2 } else { 3 * 8 };
    assert_eq!((found[0].num_tiles, launches[0].grid), (2 * row_tiles, [2 * row_tiles, 1, 1]));
    assert_eq!((found[0].q_batch_rows, found[0].k_batch_rows), (300, 500));
    // The fake driver writes a map's address down: that of as many rows before the tensor as a sequence has.
    assert_eq!((found[0].q.0[0], found[0].k.0[0]), (q - 300 * 2048, k - 500 * 512));
    assert_eq!(found[1].counter, found[3].counter);
    let captured = [found[0].counter, found[2].counter];
    assert_ne!(captured[0], captured[1]);
    assert!(!captured.contains(&found[1].counter), "a replay may run beside a launch");
}

#[test]
fn a_plan_is_kept_for_problems_of_its_kind_and_no_others() {
    let Some(fake) = Fake::build(&[]) else { return };
    let backend = fake.backend();
    let stream = backend.stream().unwrap();
    let bits = Tensor::zeros(&backend, DType::Bool, &[1, 1, 1024, 1024], &stream).unwrap();
    let detail = |rows: usize, options: &AttentionOptions<'_>| {
        let mut tensors = Tensors::new(&backend, &stream, (rows, 1024), (8, 2), 128);
        backend.plan(&tensors.problem(options)).unwrap().detail.unwrap()
    };
    let causal = AttentionOptions::new().mask(Mask::Causal);
    let kinds = [
        (1024, causal.clone()),
        (1023, causal.clone()),
        (1024, AttentionOptions::new()),
        (1024, causal.clone().score_mod(ScoreMod::Softcap { cap: 30.0 })),
        (1024, causal.clone().num_partitions(1)),
        (1024, causal.clone().softmax_scale(-1.0)),
        (1024, AttentionOptions::new().mask(Mask::Dense(bits.view()))),
    ];
    let first: Vec<_> = kinds.iter().map(|(rows, options)| detail(*rows, options)).collect();
    for (i, (rows, options)) in kinds.iter().enumerate() {
        let again = detail(*rows, options);
        let same: Vec<usize> = (0..first.len()).filter(|&j| Arc::ptr_eq(&again, &first[j])).collect();
        assert_eq!(same, [i], "{options:?}");
    }
}

#[test]
fn a_choice_that_was_kept_is_taken_by_later_plans_until_its_kernel_changes() {
    let Some(fake) = Fake::build(&[]) else { return };
    let folder = tempfile::tempdir().unwrap();
    let backend = fake.backend_with_cache(folder.path());
    let stream = backend.stream().unwrap();
    let mut tensors = Tensors::new(&backend, &stream, (1024, 1024), (8, 8), 128);
    let (nothing_fixed, mut fixed) = (AttentionOptions::new(), AttentionOptions::new());
    let problem = tensors.problem(&nothing_fixed);
    let plan_of = |backend: &CudaBackend, problem: &AttentionProblem<'_>| {
        let plan = backend.plan(problem).unwrap();
        (plan.algorithm, plan.block_m, plan.block_n, plan.reason.contains("measured to be the fastest"))
    };
    let own = (Algorithm::Flash3, 128, 128, false);
    assert_eq!(plan_of(&backend, &problem), own);
    let configs = backend.alternatives(&problem).unwrap();
    assert_eq!(configs[0], AttentionConfig::default());
    let tiles: Vec<_> = configs[1..].iter().map(|c| (c.algorithm, c.block_m, c.block_n)).collect();
    let hopper = |block_m, block_n| (Algorithm::Flash3, Some(block_m), Some(block_n));
    // Not 128x128, which the plan takes by itself, and nothing whose registers do not suffice.
    let flash2 = (Algorithm::Flash2, None, None);
    assert_eq!(tiles, [flash2, hopper(128, 64), hopper(128, 96), hopper(128, 160), hopper(192, 64)]);

    let path = backend.keep_choice(&problem, &configs[3]).unwrap();
    let kept = (Algorithm::Flash3, 128, 96, true);
    assert_eq!(plan_of(&backend, &problem), kept);
    assert_eq!(plan_of(&fake.backend_with_cache(folder.path()), &problem), kept, "another process");
    let again: Vec<_> = backend.alternatives(&problem).unwrap();
    assert!(
        again.iter().any(|config| config.block_n == Some(128)),
        "what the plan took before can win again"
    );
    let text = std::fs::read_to_string(&path).unwrap();
    for stale in [
        text.replace("\"source_tag\": \"", "\"source_tag\": \"0"),
        text.replace("\"format\": 1", "\"format\": 2"),
        text.replace("Fake GPU", "Other GPU"),
        text.replace("flash3", "flash9"),
        text[..text.len() / 2].to_owned(),
    ] {
        assert_ne!(stale, text);
        std::fs::write(&path, stale).unwrap();
        assert_eq!(plan_of(&fake.backend_with_cache(folder.path()), &problem), own);
    }
    drop(problem);
    fixed.config.block_n = Some(64);
    assert_eq!(plan_of(&backend, &tensors.problem(&fixed)), (Algorithm::Flash3, 128, 64, false));
}

#[test]
fn a_choice_cannot_be_kept_without_a_cache() {
    let Some(fake) = Fake::build(&[]) else { return };
    let backend = fake.backend();
    let stream = backend.stream().unwrap();
    let mut tensors = Tensors::new(&backend, &stream, (1024, 1024), (8, 8), 128);
    let options = AttentionOptions::new();
    let problem = tensors.problem(&options);
    let error = backend.keep_choice(&problem, &AttentionConfig::default()).unwrap_err();
    assert!(
        matches!(&error, Error::Unsupported { nearest, .. } if nearest.contains("OMNIFLASH_CACHE")),
        "{error}"
    );
}

#[test]
fn a_second_launch_only_launches() {
    let Some(fake) = Fake::build(&[]) else { return };
    let backend = fake.backend();
    let stream = backend.stream().unwrap();
    let mut tensors = Tensors::new(&backend, &stream, (1, 4096), (8, 2), 128);
    let even = Mask::from_fn(|_, _, _, k| k % 2 == 0);
    for options in [
        AttentionOptions::new().num_partitions(1),
        AttentionOptions::new(),
        split_by_blocks(8),
        AttentionOptions::new().mask(even),
        AttentionOptions::new()
            .config(AttentionConfig { algorithm: Algorithm::Flash3, ..Default::default() }),
    ] {
        let problem = tensors.problem(&options);
        launch(&backend, &problem, &stream).unwrap();
        let asked = [
            "cuMemAllocAsync",
            "cuMemcpyHtoDAsync_v2",
            "cuStreamSynchronize",
            "cuModuleLoadDataEx",
            "cuMemFreeAsync",
        ];
        let before = asked.map(|name| fake.calls(name));
        let launches = fake.launches().len();
        let plan = backend.plan(&problem).unwrap();
        let entered = ["cuCtxPushCurrent_v2", "cuCtxPopCurrent_v2"];
        let entered_before = entered.map(|name| fake.calls(name));
        // SAFETY: the fake driver launches nothing, and the tensors live on.
        unsafe { backend.launch(&plan, &problem, &stream) }.unwrap();
        assert_eq!(asked.map(|name| fake.calls(name)), before, "{plan}");
        assert_eq!(entered.map(|name| fake.calls(name)), entered_before.map(|calls| calls + 1), "{plan}");
        let joins = plan.num_partitions > 1 && plan.kernel_id.starts_with("fwd");
        let kernels = if joins { 2 } else { 1 };
        assert_eq!(fake.launches().len() - launches, kernels, "{plan}");
    }
}

/// Partitions that a kernel of their own joins: those of the prefill tiles.
fn split_by_blocks(num_partitions: usize) -> AttentionOptions<'static> {
    let config = AttentionConfig { split_within_block: Some(false), ..AttentionConfig::default() };
    AttentionOptions::new().config(config).num_partitions(num_partitions)
}

#[test]
fn a_decode_step_is_one_launch_with_counters_that_are_zero() {
    let Some(fake) = Fake::build(&[]) else { return };
    let backend = fake.backend();
    let stream = backend.stream().unwrap();
    fake.set_sizes(size_of::<AttentionParameters>(), 16);
    let mut tensors = Tensors::new(&backend, &stream, (1, 16_384), (8, 2), 128);
    let options = AttentionOptions::new();
    let problem = tensors.problem(&options);
    let plan = backend.plan(&problem).unwrap();
    launch(&backend, &problem, &stream).unwrap();
    let launches = fake.launches();
    assert_eq!(launches.iter().map(fake::FakeLaunch::entry).collect::<Vec<_>>(), ["omniflash_decode"]);
    let found = parameters(&launches[0]);
    assert_eq!([2 * found.num_workers, 1, 1], plan.grid, "clusters of two blocks");
    assert_eq!(found.heads_per_tile, 4);
    let partial_out_bytes = 2 * u64::from(found.num_workers) * 16 * 128 * 4;
    assert_eq!(found.partial_lse.0 - found.partial_out.0, partial_out_bytes);
    // SAFETY: the fake driver's memory is the host's; the counters are as many as the blocks, two of a cluster.
    let counters = unsafe {
        std::slice::from_raw_parts(
            std::ptr::with_exposed_provenance::<u32>(found.counters.0 as usize),
            2 * found.num_workers as usize,
        )
    };
    assert!(counters.iter().all(|&counter| counter == 0));

    // Few keys are shared by clusters, whose parts never leave the multiprocessors.
    let mut tensors = Tensors::new(&backend, &stream, (1, 4096), (8, 2), 128);
    let problem = tensors.problem(&options);
    let plan = backend.plan(&problem).unwrap();
    assert_eq!((plan.grid, plan.num_partitions, plan.workspace_bytes), ([32, 2, 1], 16, 0));
    launch(&backend, &problem, &stream).unwrap();
    let found = parameters(fake.launches().last().unwrap());
    assert_eq!((found.num_workers, found.num_partitions), (0, 16));
}

#[test]
fn a_ragged_batch_of_long_and_short_sequences_takes_two_kernels() {
    let Some(fake) = Fake::build(&[]) else { return };
    let backend = fake.backend();
    let stream = backend.stream().unwrap();
    fake.set_sizes(size_of::<AttentionParameters>(), 16);
    let zeros = |shape: &[usize]| Tensor::zeros(&backend, DType::BF16, shape, &stream).unwrap();
    let (q, kv, mut out) = (zeros(&[110, 8, 64]), zeros(&[11, 256, 2, 64]), zeros(&[110, 8, 64]));
    let cu_seqlens: Vec<i32> = (0..11).chain([110]).collect();
    let cu_seqlens = Tensor::from_slice(&backend, &cu_seqlens, &[12], &stream).unwrap();
    let query = Query::Ragged { q: q.view(), cu_seqlens: cu_seqlens.view(), max_seqlen: Some(100) };
    let kv = KvCache::dense(kv.view(), kv.view());
    let options = AttentionOptions::new();
    let problem = AttentionProblem::new(query, kv, out.view_mut(), None, &options).unwrap();
    let plan = launch(&backend, &problem, &stream).map(|()| backend.plan(&problem).unwrap()).unwrap();
    assert!(plan.reason.contains("up to 4 rows") && plan.reason.contains("at least 5"), "{}", plan.reason);
    let launches = fake.launches();
    let found: Vec<_> = launches.iter().map(|launch| (launch.entry(), parameters(launch))).collect();
    assert_eq!(
        found.iter().map(|(entry, _)| *entry).collect::<Vec<_>>(),
        ["omniflash_forward", "omniflash_decode"]
    );
    assert_eq!((found[0].1.least_q_len, found[0].1.heads_per_tile), (5, 4));
    assert_eq!((found[1].1.least_q_len, found[1].1.heads_per_tile), (0, 4));
}

#[test]
fn partitions_are_joined_from_one_workspace() {
    let Some(fake) = Fake::build(&[]) else { return };
    let backend = fake.backend();
    let stream = backend.stream().unwrap();
    fake.set_sizes(size_of::<AttentionParameters>(), 16);
    let mut tensors = Tensors::new(&backend, &stream, (1, 4096), (8, 2), 128);
    let options = split_by_blocks(8);
    let problem = tensors.problem(&options);
    let plan = backend.plan(&problem).unwrap();
    launch(&backend, &problem, &stream).unwrap();
    let launches = fake.launches();
    assert_eq!(
        launches.iter().map(fake::FakeLaunch::entry).collect::<Vec<_>>(),
        ["omniflash_forward", "omniflash_combine"]
    );
    let (forward, combine) = (parameters(&launches[0]), parameters(&launches[1]));
    assert_eq!(forward, combine);
    assert_eq!(forward.num_partitions, 8);
    let partial_out_bytes = 8 * 2 * 8 * 128 * 4;
    assert_eq!(forward.partial_lse.0 - forward.partial_out.0, partial_out_bytes);
    assert_eq!(plan.workspace_bytes as u64, partial_out_bytes + 8 * 2 * 8 * 4);
}

#[test]
fn workspace_grows_and_what_graphs_use_is_kept() {
    let Some(fake) = Fake::build(&[]) else { return };
    let backend = fake.backend();
    let stream = backend.stream().unwrap();
    let mut tensors = Tensors::new(&backend, &stream, (1, 65536), (8, 2), 128);
    let with = split_by_blocks;
    let base = fake.live_bytes();
    launch(&backend, &tensors.problem(&with(4)), &stream).unwrap();
    assert_eq!(fake.live_bytes() - base, 1 << 20);
    launch(&backend, &tensors.problem(&with(600)), &stream).unwrap();
    assert_eq!(fake.live_bytes() - base, 5 << 20, "the smaller one is freed");
    backend.capture(&stream, || launch(&backend, &tensors.problem(&with(600)), &stream)).unwrap();
    launch(&backend, &tensors.problem(&with(2000)), &stream).unwrap();
    assert_eq!(fake.live_bytes() - base, (5 << 20) + (16 << 20), "a graph uses the smaller one");
}

#[test]
fn capture_refuses_what_is_not_prepared_and_takes_what_is() {
    let Some(fake) = Fake::build(&[]) else { return };
    let backend = fake.backend();
    let stream = backend.stream().unwrap();
    let mut tensors = Tensors::new(&backend, &stream, (1, 4096), (8, 2), 128);
    let options = AttentionOptions::new().num_partitions(8).mask(Mask::from_fn(|_, _, _, k| k % 3 == 0));
    let problem = tensors.problem(&options);
    let refused = backend.capture(&stream, || launch(&backend, &problem, &stream)).unwrap_err();
    assert!(refused.to_string().contains("CudaBackend::prepare"), "{refused}");
    backend.synchronize(&stream).expect("the stream is out of capture again");
    let plan = backend.plan(&problem).unwrap();
    backend.prepare(&plan, &problem, &stream).unwrap();
    assert_eq!(fake.launches().len(), 0);
    let graph = backend.capture(&stream, || launch(&backend, &problem, &stream)).unwrap();
    assert_eq!(fake.launches().len(), 1);
    // SAFETY: the fake driver replays nothing.
    unsafe { graph.replay(&stream) }.unwrap();
    assert_eq!(fake.calls("cuGraphLaunch"), 1);
}

#[test]
fn a_closure_is_evaluated_and_copied_once_a_stream() {
    let Some(fake) = Fake::build(&[]) else { return };
    let backend = fake.backend();
    let (stream, other) = (backend.stream().unwrap(), backend.stream().unwrap());
    let mut tensors = Tensors::new(&backend, &stream, (16, 64), (8, 2), 128);
    let mask = Mask::from_fn(|_, _, q, k| (q + k) % 2 == 0);
    let mut copies = Vec::new();
    for (mask, stream) in
        [(&mask, &stream), (&mask, &stream), (&mask, &other), (&Mask::from_fn(|_, _, _, k| k > 3), &stream)]
    {
        let options = AttentionOptions::new().mask(mask.clone()).num_partitions(2);
        launch(&backend, &tensors.problem(&options), stream).unwrap();
        copies.push(fake.calls("cuMemcpyHtoDAsync_v2"));
    }
    assert_eq!(copies, [2, 2, 4, 5], "each table once, and once a stream the zeros of its counters");
    let options = AttentionOptions::new().mask(mask);
    let starts = Tensor::from_slice(&backend, &[0i32, 0], &[2], &stream).unwrap();
    let options = options.query_start(starts.view());
    let error = launch(&backend, &tensors.problem(&options), &stream).unwrap_err();
    assert!(error.to_string().contains("device source"), "{error}");
}

#[test]
fn everything_is_given_back() {
    let Some(fake) = Fake::build(&[]) else { return };
    {
        let backend = fake.backend();
        let stream = backend.stream().unwrap();
        let mut tensors = Tensors::new(&backend, &stream, (1, 4096), (8, 2), 128);
        let options = AttentionOptions::new().num_partitions(8).mask(Mask::from_fn(|_, _, _, k| k > 9));
        launch(&backend, &tensors.problem(&options), &stream).unwrap();
        let graph =
            backend.capture(&stream, || launch(&backend, &tensors.problem(&options), &stream)).unwrap();
        // SAFETY: the default stream always exists.
        let foreign = unsafe { interop::stream(0, std::ptr::null_mut()) };
        launch(&backend, &tensors.problem(&options), &foreign).unwrap();
        let (begin, end) = (backend.event().unwrap(), backend.event().unwrap());
        begin.record(&stream).unwrap();
        end.record(&stream).unwrap();
        assert_eq!(begin.elapsed_ms(&end).unwrap(), 1.5);
        drop(graph);
        assert!(fake.live_bytes() > 0 && fake.live_objects() > 0);
    }
    assert_eq!((fake.live_bytes(), fake.live_objects(), fake.context_depth()), (0, 0, 0));
}

#[test]
fn failures_are_typed_and_leave_the_backend_usable() {
    let Some(fake) = Fake::build(&[]) else { return };
    let backend = fake.backend();
    let stream = backend.stream().unwrap();
    fake.set_memory_limit(1000);
    let error = backend.alloc(4096, &stream).unwrap_err();
    assert_eq!(error, Error::OutOfMemory { device: "cuda:0".into(), bytes: 4096 });
    fake.set_memory_limit(1 << 30);
    let mut tensors = Tensors::new(&backend, &stream, (16, 16), (8, 2), 128);
    launch(&backend, &tensors.problem(&AttentionOptions::new()), &stream).unwrap();
    fake.fail("cuStreamSynchronize", 700);
    let error = backend.synchronize(&stream).unwrap_err().to_string();
    assert_eq!(
        error,
        "cuStreamSynchronize failed with 700: CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered"
    );
    fake.fail("cuLaunchKernel", 1);
    assert!(launch(&backend, &tensors.problem(&AttentionOptions::new()), &stream).is_err());
    launch(&backend, &tensors.problem(&AttentionOptions::new()), &stream).unwrap();
    assert_eq!(fake.context_depth(), 0, "the caller's context is current again");
}

#[test]
fn a_kernel_that_the_driver_refuses_comes_with_its_log() {
    let Some(fake) = Fake::build(&[]) else { return };
    let backend = fake.backend_with_image(b"damaged");
    let stream = backend.stream().unwrap();
    let mut tensors = Tensors::new(&backend, &stream, (16, 16), (8, 2), 128);
    let error = launch(&backend, &tensors.problem(&AttentionOptions::new()), &stream).unwrap_err();
    assert!(
        matches!(&error, Error::Driver { code: 218, text, .. } if text.contains("ptxas fatal")),
        "{error}"
    );
}

#[test]
fn empty_problems_launch_nothing() {
    let Some(fake) = Fake::build(&[]) else { return };
    let backend = fake.backend();
    let stream = backend.stream().unwrap();
    let mut tensors = Tensors::new(&backend, &stream, (0, 16), (8, 2), 128);
    launch(&backend, &tensors.problem(&AttentionOptions::new()), &stream).unwrap();
    assert_eq!(fake.launches().len(), 0);
    let mut tensors = Tensors::new(&backend, &stream, (16, 0), (8, 2), 128);
    launch(&backend, &tensors.problem(&AttentionOptions::new()), &stream).unwrap();
    assert_eq!(fake.launches().len(), 1, "rows without keys are still written");
}

#[test]
fn what_cannot_be_done_is_said_before_any_launch() {
    let Some(fake) = Fake::build(&[]) else { return };
    let backend = fake.backend();
    let stream = backend.stream().unwrap();
    let mut tensors = Tensors::new(&backend, &stream, (16, 16), (8, 2), 128);
    assert_eq!(backend.supports(&tensors.problem(&AttentionOptions::new())), Support::Yes);
    let closure = AttentionOptions::new().score_mod(ScoreMod::from_fn(|score, _, _, _, _| score));
    let Support::No(error) = backend.supports(&tensors.problem(&closure)) else {
        panic!("a GPU cannot call it")
    };
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    let mut odd = Tensors::new(&backend, &stream, (16, 16), (8, 2), 20);
    let Support::Slow(why) = backend.supports(&odd.problem(&AttentionOptions::new())) else {
        panic!("40-byte rows")
    };
    assert!(why.contains("16 bytes"), "{why}");
    // A plan for other sizes is refused, not launched.
    let plan = backend.plan(&tensors.problem(&AttentionOptions::new())).unwrap();
    // SAFETY: the fake driver touches no tensor.
    let refused =
        unsafe { backend.launch(&plan, &odd.problem(&AttentionOptions::new()), &stream) }.unwrap_err();
    assert!(refused.to_string().starts_with("plan is made for"), "{refused}");
    let host = [0.0f32; 64];
    let mut out = [0.0f32; 64];
    let view = omniflash_core::TensorRef::from_slice(&host, &[1, 1, 1, 64]).unwrap();
    let out = TensorMut::from_slice(&mut out, &[1, 1, 1, 64]).unwrap();
    let problem = AttentionProblem::new(
        Query::padded(view.clone()),
        KvCache::dense(view.clone(), view),
        out,
        None,
        &AttentionOptions::new(),
    )
    .unwrap();
    assert!(matches!(backend.plan(&problem), Err(Error::Device { .. })));
}

/// Nanoseconds of the host that planning and launching take beside the driver:
/// `cargo test --release -p omniflash-cuda --lib host_time -- --ignored --nocapture`.
#[test]
#[ignore = "prints times"]
fn host_time_of_a_launch() {
    const CALLS: u32 = 20_000;
    let Some(fake) = Fake::build(&["QUIET"]) else { return };
    let backend = fake.backend();
    let stream = backend.stream().unwrap();
    let causal = AttentionOptions::new().mask(Mask::Causal);
    for (rows, keys) in [(1, 64), (1, 8192), (4096, 4096)] {
        let mut tensors = Tensors::new(&backend, &stream, (rows, keys), (8, 8), 128);
        let problem = tensors.problem(&causal);
        let fastest = |step: &dyn Fn()| {
            let times = (0..20).map(|_| {
                let begin = Instant::now();
                (0..CALLS).for_each(|_| step());
                begin.elapsed() / CALLS
            });
            times.min().unwrap().as_nanos()
        };
        let planned = fastest(&|| drop(std::hint::black_box(backend.plan(&problem).unwrap())));
        let launched = fastest(&|| launch(&backend, &problem, &stream).unwrap());
        println!("{rows} x {keys}: plan {planned} ns, plan and launch {launched} ns");
    }
}
