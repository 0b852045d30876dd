//! Every function of the driver fails once, at several of its calls: the error is typed, names the function, and
//! leaves nothing behind. So does the run-time compiler's.

use std::sync::Arc;

use omniflash_core::backend::run_kv_append;
use omniflash_core::{
    AppendAt, AttentionOptions, AttentionProblem, Backend, DType, Error, KvAppend, KvCache, KvCacheMut, Mask,
    NewKv, Query, Result, Stream, Tensor,
};

use omniflash_kernel_store::{KernelSource, KernelStore, StoreOptions};

use super::emulator::{Emulator, STORE};
use super::{Tensors, launch};
use crate::HipBackend;
use crate::compiler::{HIPRTC_SYMBOLS, Hiprtc};
use crate::driver::Api;
use crate::probe::probe_libraries;

/// The calls that end something: their failures go to the log, and what they could not free stays.
const ENDING: [&str; 8] = [
    "hipFree",
    "hipFreeAsync",
    "hipModuleUnload",
    "hipStreamDestroy",
    "hipEventDestroy",
    "hipGraphExecDestroy",
    "hipDeviceSynchronize",
    // A capture that cannot be ended keeps its stream from everything else.
    "hipStreamEndCapture",
];

/// Uses every function of the driver, on the second of two devices, with or without memory pools.
fn scenario(emulator: &Emulator, has_memory_pools: bool) -> Result<()> {
    let mut probe = probe_libraries(&[emulator.path().to_path_buf()])?;
    probe.devices.iter_mut().for_each(|device| device.has_memory_pools &= has_memory_pools);
    let backends = HipBackend::of_devices(probe.into_contexts(), &STORE);
    let Some(backend) = backends.get(1) else {
        return Err(Error::Absent { backend: "hip:1".into(), reason: "left out".into() });
    };
    let stream = backend.stream()?;
    let mut tensors = Tensors::try_new(backend, &stream, (1, 40), 5)?;
    let options = AttentionOptions::new().num_partitions(2).mask(Mask::from_fn(|_, _, _, k| k % 3 != 1));
    let problem = tensors.problem(&options);
    launch(backend, &problem, &stream)?;
    let graph = backend.capture(&stream, || launch(backend, &problem, &stream))?;
    let (begin, end) = (backend.event()?, backend.event()?);
    begin.record(&stream)?;
    // SAFETY: the tensors are there until the stream is waited for.
    unsafe { graph.replay(&stream) }?;
    end.record(&stream)?;
    begin.elapsed_ms(&end)?;
    backend.occupancy(&backend.plan(&problem)?)?;
    drop(problem);
    tensors.out.to_vec::<half::bf16>(backend, &stream)?;
    append(backend, &stream)?;
    check_pages(backend, &stream)
}

fn append(backend: &HipBackend, stream: &Stream) -> Result<()> {
    let new = Tensor::zeros(backend, DType::F16, &[1, 1, 1, 16], stream)?;
    let cache = || Tensor::zeros(backend, DType::F16, &[1, 8, 1, 16], stream);
    let (mut k, mut v) = (cache()?, cache()?);
    let positions = Tensor::from_slice(backend, &[3i32], &[1], stream)?;
    let cache = KvCacheMut::Dense { k: k.view_mut(), v: v.view_mut() };
    let append =
        KvAppend::new(NewKv::padded(new.view(), new.view()), cache, AppendAt::Start(positions.view()))?;
    run_kv_append(backend, &append, stream)
}

fn check_pages(backend: &HipBackend, stream: &Stream) -> Result<()> {
    let pages = Tensor::zeros(backend, DType::BF16, &[2, 16, 1, 16], stream)?;
    let q = Tensor::zeros(backend, DType::BF16, &[1, 1, 1, 16], stream)?;
    let mut out = Tensor::zeros(backend, DType::BF16, &[1, 1, 1, 16], stream)?;
    let (lengths, table) = (
        Tensor::from_slice(backend, &[20i32], &[1], stream)?,
        Tensor::from_slice(backend, &[0i32, 1], &[1, 2], stream)?,
    );
    let kv = KvCache::Paged {
        k: pages.view(),
        v: pages.view(),
        page_table: table.view(),
        lengths: lengths.view(),
        max_seqlen: None,
    };
    let options = AttentionOptions::new();
    let problem = AttentionProblem::new(Query::padded(q.view()), kv, out.view_mut(), None, &options)?;
    // SAFETY: table and lengths are written.
    unsafe { backend.verify_page_table(&problem, stream) }
}

#[test]
fn a_call_that_fails_is_a_typed_error_and_leaves_nothing_behind() {
    const DEVICES: &str = "gfx942,gfx1100";
    let Some(emulator) = Emulator::with(DEVICES) else { return };
    for has_memory_pools in [true, false] {
        scenario(&emulator, has_memory_pools).unwrap();
        assert_eq!(emulator.live(1), (0, 0));
    }
    for function in Api::SYMBOLS.iter().copied().chain(["hipGetDevicePropertiesR0600"]) {
        for call in [1, 2, 5] {
            emulator.set_devices(DEVICES);
            emulator.fail(&format!("{function}:{call}"));
            let outcome = scenario(&emulator, function != "hipMalloc");
            emulator.fail("");
            let is_ending = ENDING.contains(&function);
            match &outcome {
                Ok(()) => assert!(call > 1 || is_ending, "nobody noticed that {function} failed"),
                Err(Error::Driver { api, code, text }) => {
                    assert!(function.starts_with(api), "{function}: {api} failed with {code}");
                    assert!(*code != 0 && !text.is_empty());
                }
                Err(Error::OutOfMemory { .. }) => assert!(function.starts_with("hipMalloc")),
                Err(Error::Absent { reason, .. }) => {
                    assert!(!reason.is_empty());
                }
                Err(error) => panic!("{function}:{call}: {error}"),
            }
            if !is_ending {
                assert_eq!(emulator.live(1), (0, 0), "{function}:{call} left memory: {outcome:?}");
            }
        }
    }
    emulator.set_devices(DEVICES);
    scenario(&emulator, true).unwrap();
}

/// A store whose only compiler is the run-time compiler of the emulated machine.
fn compiling_at_run_time(emulator: &Emulator) -> Arc<KernelStore> {
    let compiler = Hiprtc::new(vec![emulator.path().to_path_buf()]);
    Arc::new(KernelStore::new(StoreOptions {
        compilers: vec![Box::new(compiler)],
        ..StoreOptions::default()
    }))
}

#[test]
fn a_run_time_compiler_that_fails_is_a_typed_error_and_the_next_call_compiles() {
    let Some(emulator) = Emulator::with("gfx942") else { return };
    let symbols = HIPRTC_SYMBOLS;
    let functions = [
        symbols.version,
        symbols.create_program,
        symbols.compile_program,
        symbols.code_size,
        symbols.code,
        symbols.log_size,
        symbols.log,
        symbols.destroy_program,
    ];
    let wrong = KernelSource {
        id: "wrong",
        arch: "gfx942",
        functor: "",
        source: "extern \"C\" __attribute__((global)) void wrong() { missing(); }",
        options: omniflash_kernels_hip::COMPILER_OPTIONS,
        prebuilt_tags: &[],
    };
    for function in functions {
        let is_of_the_log = [symbols.log_size, symbols.log].contains(&function);
        let is_ending = function == symbols.destroy_program;
        let store = compiling_at_run_time(&emulator);
        let backend = &emulator.backends_with(&store)[0];
        let stream = backend.stream().unwrap();
        let mut tensors = Tensors::new(backend, &stream, (1, 40), 5);
        let options = AttentionOptions::new().num_partitions(1).mask(Mask::Causal);
        let before = emulator.live(0);
        let live_programs = emulator.live_programs();

        emulator.fail(&format!("{function}:1"));
        let refused = store.kernel(&wrong).unwrap_err();
        emulator.fail(&format!("{function}:1"));
        let planned = backend.plan(&tensors.problem(&options)).map(drop);
        emulator.fail("");
        assert_eq!(planned.is_ok(), is_of_the_log || is_ending, "{function}: {planned:?}");
        let is_log_lost = is_of_the_log || function == symbols.compile_program;
        match (&refused, planned.err()) {
            (Error::Driver { text, .. }, None) if is_ending => assert!(text.contains("missing"), "{text}"),
            (Error::NoKernel { hint, .. }, None) if is_log_lost => assert!(hint.contains("hiprtc"), "{hint}"),
            (_, Some(Error::NoKernel { hint, .. })) => {
                assert!(hint.contains(function) || hint.contains("result"), "{hint}")
            }
            (refused, planned) => panic!("{function}: {refused}, {planned:?}"),
        }
        // What could not be destroyed stays.
        let kept = if is_ending { 2 } else { 0 };
        assert_eq!(emulator.live_programs() - live_programs, kept, "{function}");
        assert_eq!(emulator.live(0), before, "{function}");
        if function != symbols.version {
            let problem = tensors.problem(&options);
            launch(backend, &problem, &stream).unwrap();
            drop(problem);
            tensors.assert_right(backend, &stream, 5, &options);
        }
    }
}
