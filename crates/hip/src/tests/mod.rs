//! The whole backend on an emulated machine: the code objects that an AMD card would run, through HIP's own functions.

mod emulator;
mod faults;
mod kernels;
mod rocm;

use omniflash_core::{
    Algorithm, AttentionConfig, AttentionOptions, AttentionProblem, Backend, Buffer, DType, DeviceId, Error,
    Expectation, KvCache, Layout, Mask, Query, ReferenceBackend, Result, Stream, Support, Tensor, TensorRef,
    run,
};

use omniflash_testkit::append;

use crate::probe::Absent;
use crate::{Architecture, HipBackend, interop};
use emulator::Emulator;

/// One machine of each matrix unit.
const DEVICES: &str = "gfx942,gfx1100";

/// Numbers between -1 and 1 that repeat after many.
fn values(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 37 + seed * 101) % 211) as f32 / 105.0 - 1.0).collect()
}

/// q, k, v and out of a small problem in bf16, in the memory of a backend: two sequences, four heads on two.
struct Tensors {
    seqlen: (usize, usize),
    /// q, k, v.
    inputs: [Buffer; 3],
    out: Tensor,
}

const DIM: usize = 64;

impl Tensors {
    fn new(backend: &dyn Backend, stream: &Stream, seqlen: (usize, usize), seed: usize) -> Self {
        Tensors::try_new(backend, stream, seqlen, seed).unwrap()
    }

    fn try_new(backend: &dyn Backend, stream: &Stream, seqlen: (usize, usize), seed: usize) -> Result<Self> {
        let buffer =
            |input: usize| backend.alloc(2 * Tensors::shape(seqlen, input).iter().product::<usize>(), stream);
        let out = Tensor::zeros(backend, DType::BF16, &Tensors::shape(seqlen, 0), stream)?;
        let mut tensors = Tensors { seqlen, inputs: [buffer(0)?, buffer(1)?, buffer(2)?], out };
        tensors.fill(backend, stream, seed)?;
        Ok(tensors)
    }

    fn shape(seqlen: (usize, usize), input: usize) -> [usize; 4] {
        if input == 0 { [2, seqlen.0, 4, DIM] } else { [2, seqlen.1, 2, DIM] }
    }

    /// Other numbers in the same memory.
    fn fill(&mut self, backend: &dyn Backend, stream: &Stream, seed: usize) -> Result<()> {
        for (input, buffer) in self.inputs.iter_mut().enumerate() {
            let values: Vec<half::bf16> =
                values(buffer.bytes() / 2, seed + input).into_iter().map(half::bf16::from_f32).collect();
            backend.copy_to_device(bytemuck::must_cast_slice(&values), buffer, stream)?;
        }
        Ok(())
    }

    fn problem<'a>(&'a mut self, options: &AttentionOptions<'a>) -> AttentionProblem<'a> {
        let [q, k, v] = std::array::from_fn(|input| {
            let layout = Layout::contiguous(&Tensors::shape(self.seqlen, input)).unwrap();
            TensorRef::from_buffer(&self.inputs[input], DType::BF16, layout).unwrap()
        });
        AttentionProblem::new(Query::padded(q), KvCache::dense(k, v), self.out.view_mut(), None, options)
            .unwrap()
    }

    /// Fails unless `out` is what the reference computes from the numbers of a seed.
    fn assert_right(
        &self,
        backend: &dyn Backend,
        stream: &Stream,
        seed: usize,
        options: &AttentionOptions<'_>,
    ) {
        let found = self.out.to_vec::<half::bf16>(backend, stream).unwrap();
        let (host, on_host) = (ReferenceBackend::new(), Stream::host());
        let mut tensors = Tensors::new(&host, &on_host, self.seqlen, seed);
        let found = Tensor::from_slice(&host, &found, &Tensors::shape(self.seqlen, 0), &on_host).unwrap();
        let options = AttentionOptions { config: AttentionConfig::default(), ..options.clone() };
        let problem = tensors.problem(&options);
        let expectation = Expectation::of(&problem).unwrap();
        let deviation = expectation.compare(&problem, &found.view(), None);
        assert!(
            deviation.is_within(&expectation.tolerance),
            "{deviation:?}, allowed {:?}",
            expectation.tolerance
        );
    }
}

/// Plans and launches.
fn launch(backend: &HipBackend, problem: &AttentionProblem<'_>, stream: &Stream) -> Result<()> {
    let plan = backend.plan(problem)?;
    // SAFETY: callers keep the tensors until they have waited for the stream.
    unsafe { backend.launch(&plan, problem, stream) }
}

#[test]
fn a_machine_without_a_device_is_data() {
    let emulator = Emulator::without_kernels();
    let store = std::sync::Arc::new(crate::kernel_store());
    let absent = HipBackend::discover_in(emulator.path(), &store).unwrap_err();
    assert_eq!(absent, Absent::NoDevice);
    assert!(absent.to_string().contains("/dev/kfd"), "{absent}");
}

#[test]
fn a_backend_says_who_it_is() {
    let Some(emulator) = Emulator::with(DEVICES) else { return };
    let backends = emulator.backends();
    let names: Vec<&str> = backends.iter().map(|backend| backend.info().name.as_str()).collect();
    assert_eq!(names, ["hip:0", "hip:1"]);
    let info = backends[0].info();
    assert_eq!((info.vendor.as_str(), info.arch.as_str(), info.units), ("AMD", "gfx942", 304));
    assert_eq!(info.driver.as_deref(), Some("HIP 6.4"));
    let facts = backends[0].facts();
    assert_eq!((facts.arch_name.as_str(), facts.wave_size), ("gfx942:sramecc+:xnack-", 64));
    assert_eq!((backends[1].info().device, backends[1].facts().wave_size), (DeviceId::Hip(1), 32));
}

#[test]
fn data_goes_to_the_device_and_back() {
    let Some(emulator) = Emulator::with(DEVICES) else { return };
    for backend in emulator.backends() {
        let stream = backend.stream().unwrap();
        let values = values(100, 0);
        let tensor = Tensor::from_slice(&backend, &values, &[4, 25], &stream).unwrap();
        assert_eq!(tensor.to_vec::<f32>(&backend, &stream).unwrap(), values);
        let mut small = backend.alloc(3, &stream).unwrap();
        assert!(matches!(backend.copy_to_device(&[0; 4], &mut small, &stream), Err(Error::Shape { .. })));
        assert!(matches!(backend.copy_to_host(&small, &mut [0; 4], &stream), Err(Error::Shape { .. })));
        assert!(matches!(backend.synchronize(&Stream::host()), Err(Error::Device { .. })));
    }
}

#[test]
fn every_stream_gives_the_right_answer_however_keys_are_split() {
    let Some(emulator) = Emulator::with(DEVICES) else { return };
    let seqlen = (3, 200);
    for backend in emulator.backends() {
        let DeviceId::Hip(ordinal) = backend.info().device else { panic!("a HIP device") };
        // SAFETY: the default stream always exists.
        let default = unsafe { interop::stream(ordinal, std::ptr::null_mut()) };
        for stream in [backend.stream().unwrap(), default] {
            let mut tensors = Tensors::new(&backend, &stream, seqlen, 7);
            for partitions in [1, 3] {
                let options = AttentionOptions::new().mask(Mask::Causal).num_partitions(partitions);
                run(&backend, &tensors.problem(&options), &stream).unwrap();
                tensors.assert_right(&backend, &stream, 7, &options);
            }
        }
    }
}

#[test]
fn steps_of_one_kernel_load_it_once() {
    let Some(emulator) = Emulator::with("gfx942") else { return };
    let [backend] = &emulator.backends()[..] else { panic!("one device") };
    let stream = backend.stream().unwrap();
    let options = AttentionOptions::new().mask(Mask::Causal).num_partitions(1);
    // Whoever loads a kernel a second time hears of it.
    emulator.fail("hipModuleLoadData:2");
    for num_keys in [200, 201, 202] {
        let mut tensors = Tensors::new(backend, &stream, (1, num_keys), 7);
        run(backend, &tensors.problem(&options), &stream).unwrap();
        tensors.assert_right(backend, &stream, 7, &options);
    }
}

#[test]
fn a_closure_as_mask_and_the_naive_kernel_give_the_right_answer() {
    let Some(emulator) = Emulator::with(DEVICES) else { return };
    let seqlen = (20, 40);
    for backend in emulator.backends() {
        let stream = backend.stream().unwrap();
        let mut tensors = Tensors::new(&backend, &stream, seqlen, 3);
        let naive = AttentionConfig { algorithm: Algorithm::Naive, ..AttentionConfig::default() };
        for options in [
            AttentionOptions::new().mask(Mask::from_fn(|_, _, q, k| (q + k) % 3 != 0)),
            AttentionOptions { config: naive, ..AttentionOptions::new().mask(Mask::Causal) },
        ] {
            let problem = tensors.problem(&options);
            run(&backend, &problem, &stream).unwrap();
            let is_naive = matches!(backend.supports(&problem), Support::Slow(_));
            assert_eq!(is_naive, options.config.algorithm == Algorithm::Naive);
            drop(problem);
            tensors.assert_right(&backend, &stream, 3, &options);
        }
    }
}

#[test]
fn a_second_launch_allocates_nothing_and_all_is_given_back() {
    let Some(emulator) = Emulator::with(DEVICES) else { return };
    for (device, backend) in (0..).zip(emulator.backends()) {
        let begin = emulator.live(device);
        let stream = backend.stream().unwrap();
        {
            let mut tensors = Tensors::new(&backend, &stream, (3, 200), 7);
            let options =
                AttentionOptions::new().num_partitions(2).mask(Mask::from_fn(|_, _, _, k| k % 2 == 0));
            let problem = tensors.problem(&options);
            run(&backend, &problem, &stream).unwrap();
            let used = emulator.live(device);
            run(&backend, &problem, &stream).unwrap();
            assert_eq!(emulator.live(device), used);
        }
        drop(stream);
        drop(backend);
        assert_eq!(emulator.live(device), begin);
    }
}

#[test]
fn a_graph_replays_on_what_its_tensors_hold_then() {
    let Some(emulator) = Emulator::with(DEVICES) else { return };
    let seqlen = (1, 200);
    for backend in emulator.backends() {
        let stream = backend.stream().unwrap();
        let mut tensors = Tensors::new(&backend, &stream, seqlen, 7);
        let options = AttentionOptions::new().num_partitions(3);
        let problem = tensors.problem(&options);
        let refused = backend.capture(&stream, || launch(&backend, &problem, &stream)).unwrap_err();
        assert!(refused.to_string().contains("HipBackend::prepare"), "{refused}");
        backend.synchronize(&stream).expect("the stream is out of capture again");
        let plan = backend.plan(&problem).unwrap();
        backend.prepare(&plan, &problem, &stream).unwrap();
        let graph = backend.capture(&stream, || launch(&backend, &problem, &stream)).unwrap();
        drop(problem);
        assert_eq!(
            tensors.out.to_vec::<half::bf16>(&backend, &stream).unwrap()[0].to_f32(),
            0.0,
            "captured only"
        );
        // SAFETY: the tensors are there, and nothing else uses them.
        unsafe { graph.replay(&stream) }.unwrap();
        tensors.assert_right(&backend, &stream, 7, &options);
        tensors.fill(&backend, &stream, 23).unwrap();
        // SAFETY: as above.
        unsafe { graph.replay(&stream) }.unwrap();
        tensors.assert_right(&backend, &stream, 23, &options);
    }
}

#[test]
fn events_measure_and_streams_of_other_devices_are_refused() {
    let Some(emulator) = Emulator::with(DEVICES) else { return };
    let backends = emulator.backends();
    let stream = backends[0].stream().unwrap();
    let (begin, end) = (backends[0].event().unwrap(), backends[0].event().unwrap());
    begin.record(&stream).unwrap();
    end.record(&stream).unwrap();
    assert!(begin.elapsed_ms(&end).unwrap() >= 0.0);
    assert!(matches!(backends[1].synchronize(&stream), Err(Error::Device { .. })));
    assert!(matches!(backends[1].alloc(8, &stream), Err(Error::Device { .. })));
}

#[test]
fn launches_are_timed_one_by_one_and_leave_their_answer() {
    let Some(emulator) = Emulator::with(DEVICES) else { return };
    for backend in emulator.backends() {
        let stream = backend.stream().unwrap();
        let mut tensors = Tensors::new(&backend, &stream, (1, 100), 7);
        let options = AttentionOptions::new().num_partitions(2);
        let problem = tensors.problem(&options);
        let times = omniflash_core::measure::time_on_device(&backend, &problem, &stream, 3).unwrap();
        drop(problem);
        let times = times.expect("the device has a clock");
        assert!(times.len() == 3 && times.iter().all(|time| *time >= 0.0), "{times:?}");
        tensors.assert_right(&backend, &stream, 7, &options);
    }
}

#[test]
fn a_bad_page_is_found_and_named() {
    let Some(emulator) = Emulator::with(DEVICES) else { return };
    for backend in emulator.backends() {
        let stream = backend.stream().unwrap();
        let pages = Tensor::zeros(&backend, DType::BF16, &[6, 16, 2, DIM], &stream).unwrap();
        let q = Tensor::zeros(&backend, DType::BF16, &[2, 1, 4, DIM], &stream).unwrap();
        let mut out = Tensor::zeros(&backend, DType::BF16, &[2, 1, 4, DIM], &stream).unwrap();
        let lengths = Tensor::from_slice(&backend, &[20i32, 40], &[2], &stream).unwrap();
        for (table, expected) in
            [([0i32, 1, 0, 2, 3, 4], None), ([0, 1, 0, 2, 6, 4], Some("page_table[1, 1]"))]
        {
            let table = Tensor::from_slice(&backend, &table, &[2, 3], &stream).unwrap();
            let kv = KvCache::Paged {
                k: pages.view(),
                v: pages.view(),
                page_table: table.view(),
                lengths: lengths.view(),
                max_seqlen: None,
            };
            let query = Query::padded(q.view());
            let problem =
                AttentionProblem::new(query, kv, out.view_mut(), None, &AttentionOptions::new()).unwrap();
            // SAFETY: tables and lengths are written.
            let checked = unsafe { backend.verify_page_table(&problem, &stream) };
            match (checked, expected) {
                (Ok(()), None) => {}
                (Err(error), Some(name)) => assert!(error.to_string().contains(name), "{error}"),
                (checked, expected) => panic!("{checked:?}, expected {expected:?}"),
            }
        }
    }
}

#[test]
fn appended_rows_land_where_the_reference_puts_them() {
    let devices = Architecture::ALL.map(Architecture::name).join(",");
    let Some(emulator) = Emulator::with(&devices) else { return };
    for (device, backend) in emulator.backends().iter().enumerate() {
        // Every form on one device of each matrix unit, some on the others: the kernel is the same.
        let is_whole = DEVICES.split(',').any(|arch| arch == backend.info().arch);
        let appends = append::appends().into_iter().enumerate();
        for (_, append) in appends.filter(|(i, _)| is_whole || i % 7 == device) {
            assert!(append::agrees(backend, &append).unwrap(), "{append:?} on {}", backend.info().arch);
        }
    }
}

#[test]
fn what_no_device_holds_is_out_of_memory_and_the_backend_goes_on() {
    let Some(emulator) = Emulator::with(DEVICES) else { return };
    for backend in emulator.backends() {
        let stream = backend.stream().unwrap();
        let bytes = 1 << 50;
        let error = backend.alloc(bytes, &stream).unwrap_err();
        assert_eq!(error, Error::OutOfMemory { device: backend.info().device.to_string(), bytes });
        let values = values(9, 0);
        let tensor = Tensor::from_slice(&backend, &values, &[9], &stream).unwrap();
        assert_eq!(tensor.to_vec::<f32>(&backend, &stream).unwrap(), values);
    }
}

#[test]
fn empty_problems_launch_nothing_and_wide_heads_are_refused_with_what_works() {
    let Some(emulator) = Emulator::with("gfx1201") else { return };
    let backend = &emulator.backends()[0];
    let stream = backend.stream().unwrap();
    let mut tensors = Tensors::new(backend, &stream, (0, 16), 0);
    let options = AttentionOptions::new();
    run(backend, &tensors.problem(&options), &stream).unwrap();
    let zeros = |dim: usize| Tensor::zeros(backend, DType::F16, &[1, 2, 1, dim], &stream).unwrap();
    let (q, mut out) = (zeros(300), zeros(300));
    let kv = KvCache::dense(q.view(), q.view());
    let problem = AttentionProblem::new(Query::padded(q.view()), kv, out.view_mut(), None, &options).unwrap();
    let Support::No(error) = backend.supports(&problem) else { panic!("300 columns are too many") };
    assert!(error.to_string().contains("algorithm naive"), "{error}");
    assert_eq!(backend.plan(&problem).unwrap_err(), error);
}
