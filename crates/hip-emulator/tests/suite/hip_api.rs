//! The HIP C API as a backend uses it. The functions share one process-wide state, so these tests take turns.

use std::ffi::{c_int, c_void};
use std::ptr::null_mut;
use std::sync::{Mutex, MutexGuard, PoisonError};

use omniflash_hip_emulator::hip_api::{
    self, call::*, control::*, device::*, event::*, graph::*, launch::*, memory::*, module::*, stream::*,
};
use omniflash_hip_emulator::{Configuration, Target};

use crate::support::{compile, compiler_is_missing};

static TURN: Mutex<()> = Mutex::new(());

/// A fresh process state with these devices.
fn begin(targets: &[Target]) -> MutexGuard<'static, ()> {
    let guard = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    hip_api::set_devices(targets, Configuration::default());
    hip_api::inject("");
    guard
}

/// Calls a HIP function and gives its code.
macro_rules! code {
    ($call:expr) => {{
        // SAFETY: every pointer in these tests is valid or deliberately null.
        unsafe { $call }
    }};
}

/// Calls a HIP function that must succeed.
macro_rules! ok {
    ($call:expr) => {
        assert_eq!(code!($call), 0, stringify!($call))
    };
}

fn allocate(bytes: usize) -> *mut c_void {
    let mut pointer = null_mut();
    ok!(hipMalloc(&mut pointer, bytes));
    pointer
}

fn upload(values: &[u32]) -> *mut c_void {
    let pointer = allocate(size_of_val(values));
    ok!(hipMemcpy(pointer, values.as_ptr().cast(), size_of_val(values), 1));
    pointer
}

fn download(pointer: *mut c_void, count: usize) -> Vec<u32> {
    let mut values = vec![0u32; count];
    ok!(hipMemcpy(values.as_mut_ptr().cast(), pointer, 4 * count, 2));
    values
}

fn stream() -> *mut c_void {
    let mut stream = null_mut();
    ok!(hipStreamCreateWithFlags(&mut stream, 1));
    stream
}

fn event() -> *mut c_void {
    let mut event = null_mut();
    ok!(hipEventCreateWithFlags(&mut event, 0));
    event
}

/// A module of `basics.hip` and one of its kernels.
fn kernel(target: Target, name: &std::ffi::CStr) -> (*mut c_void, *mut c_void) {
    let image = compile("basics", target, &[]);
    let (mut module, mut function) = (null_mut(), null_mut());
    ok!(hipModuleLoadData(&mut module, image.as_ptr().cast()));
    ok!(hipModuleGetFunction(&mut function, module, name.as_ptr()));
    (module, function)
}

fn launch(function: *mut c_void, stream: *mut c_void, parameters: &mut [*mut c_void]) -> c_int {
    code!(hipModuleLaunchKernel(function, 1, 1, 1, 32, 1, 1, 0, stream, parameters.as_mut_ptr(), null_mut()))
}

/// Launches `copy_shifted(a, b, shift)` of `basics.hip` with one pointer an argument.
fn copy_shifted(
    function: *mut c_void,
    stream: *mut c_void,
    a: *mut c_void,
    b: *mut c_void,
    shift: i32,
) -> c_int {
    let (mut a, mut b, mut shift) = (a, b, shift);
    let mut parameters = [(&raw mut a).cast(), (&raw mut b).cast(), (&raw mut shift).cast()];
    launch(function, stream, &mut parameters)
}

#[test]
fn a_machine_without_a_device_says_so() {
    let _turn = begin(&[]);
    let mut count = 7;
    assert_eq!((code!(hipInit(0)), code!(hipGetDeviceCount(&mut count)), count), (100, 100, 0));
    let mut pointer = null_mut();
    assert_eq!(code!(hipMalloc(&mut pointer, 4)), 100);
    assert_eq!((hipGetLastError(), hipGetLastError()), (100, 0));
}

#[test]
fn each_device_reports_its_own_properties() {
    let _turn = begin(&Target::ALL);
    let mut count = 0;
    ok!(hipGetDeviceCount(&mut count));
    assert_eq!(count, 6);
    for (ordinal, target) in Target::ALL.into_iter().enumerate() {
        let mut properties = [0u8; 1472];
        ok!(hipGetDevicePropertiesR0600(properties.as_mut_ptr().cast(), ordinal as c_int));
        assert!(properties[1160..].starts_with(target.full_name().as_bytes()));
        let mut warp = 0;
        ok!(hipDeviceGetAttribute(&mut warp, 87, ordinal as c_int));
        assert_eq!(warp as usize, target.wave_size());
    }
    assert_eq!(code!(hipSetDevice(6)), 101);
}

#[test]
fn memory_is_copied_filled_and_accounted_for() {
    let _turn = begin(&[Target::Gfx942]);
    let pointer = upload(&[1, 2, 3, 4]);
    ok!(hipMemsetD32(pointer.wrapping_byte_add(4), 9, 2));
    assert_eq!(download(pointer, 4), [1, 9, 9, 4]);
    let mut statistics = Statistics::default();
    ok!(omniflash_emulator_statistics(0, &mut statistics));
    assert_eq!((statistics.live_allocations, statistics.live_bytes), (1, 16));
    // One byte too many, the wrong direction, a pointer into the middle.
    let mut host = [0u8; 17];
    assert_eq!(code!(hipMemcpy(host.as_mut_ptr().cast(), pointer, 17, 2)), 1);
    assert_eq!(code!(hipMemcpy(host.as_mut_ptr().cast(), pointer, 4, 1)), 21);
    assert_eq!(code!(hipFree(pointer.wrapping_byte_add(4))), 1);
    ok!(hipFree(pointer));
    assert_eq!(code!(hipFree(pointer)), 1);
    ok!(omniflash_emulator_statistics(0, &mut statistics));
    assert_eq!((statistics.live_allocations, statistics.peak_bytes), (0, 16));
}

#[test]
fn rows_with_a_pitch_are_copied() {
    let _turn = begin(&[Target::Gfx942]);
    let pointer = upload(&[0; 8]);
    let rows = [1u32, 2, 3, 4];
    ok!(hipMemcpy2D(pointer, 16, rows.as_ptr().cast(), 8, 8, 2, 1));
    assert_eq!(download(pointer, 8), [1, 2, 0, 0, 3, 4, 0, 0]);
    assert_eq!(code!(hipMemcpy2D(pointer, 16, rows.as_ptr().cast(), 8, 8, 3, 1)), 1);
}

#[test]
fn a_kernel_takes_packed_arguments_or_one_pointer_each() {
    let _turn = begin(&[Target::Gfx1100]);
    if compiler_is_missing() {
        return;
    }
    let (module, function) = kernel(Target::Gfx1100, c"copy_shifted");
    let (a, b) = (upload(&(0..64).collect::<Vec<u32>>()), upload(&[0; 32]));
    assert_eq!(copy_shifted(function, null_mut(), a, b, 2), 0);
    ok!(hipDeviceSynchronize());
    assert_eq!(download(b, 32)[5], 7);

    let mut packed = Vec::new();
    packed.extend((a as u64).to_le_bytes());
    packed.extend((b as u64).to_le_bytes());
    packed.extend(3i32.to_le_bytes());
    let mut size = packed.len();
    let marker = |value: usize| std::ptr::without_provenance_mut::<c_void>(value);
    let mut extra = [marker(1), packed.as_mut_ptr().cast(), marker(2), (&raw mut size).cast(), marker(3)];
    ok!(hipModuleLaunchKernel(function, 1, 1, 1, 32, 1, 1, 0, null_mut(), null_mut(), extra.as_mut_ptr()));
    assert_eq!(download(b, 32)[5], 8);
    size -= 4;
    assert_eq!(
        code!(hipModuleLaunchKernel(
            function,
            1,
            1,
            1,
            32,
            1,
            1,
            0,
            null_mut(),
            null_mut(),
            extra.as_mut_ptr()
        )),
        1
    );
    assert_eq!(
        code!(hipModuleLaunchKernel(
            function,
            0,
            1,
            1,
            32,
            1,
            1,
            0,
            null_mut(),
            null_mut(),
            extra.as_mut_ptr()
        )),
        9
    );

    assert_eq!(size, 16, "the list leads to the size, which a launch only reads");
    let mut registers = 0;
    ok!(hipFuncGetAttribute(&mut registers, 4, function));
    assert!(registers > 0);
    ok!(hipModuleUnload(module));
    assert_eq!(copy_shifted(function, null_mut(), a, b, 2), 98);
}

#[test]
fn a_wrong_or_broken_image_is_refused() {
    let _turn = begin(&[Target::Gfx950]);
    if compiler_is_missing() {
        return;
    }
    let image = compile("basics", Target::Gfx942, &[]);
    let mut module = null_mut();
    assert_eq!(code!(hipModuleLoadData(&mut module, image.as_ptr().cast())), 209);
    assert_eq!(code!(hipModuleLoadData(&mut module, [0u8; 64].as_ptr().cast())), 200);
    assert_eq!(code!(hipModuleLoad(&mut module, c"/nonexistent".as_ptr())), 301);
}

#[test]
fn an_offload_bundle_gives_the_devices_object() {
    let _turn = begin(&[Target::Gfx942]);
    if compiler_is_missing() {
        return;
    }
    let objects = [Target::Gfx90a, Target::Gfx942].map(|target| (target, compile("basics", target, &[])));
    let mut bundle = b"__CLANG_OFFLOAD_BUNDLE__".to_vec();
    bundle.extend(2u64.to_le_bytes());
    let mut offset = 4096u64;
    for (target, object) in &objects {
        let id = format!("hipv4-amdgcn-amd-amdhsa--{target}");
        bundle.extend(
            [offset, object.len() as u64, id.len() as u64].iter().flat_map(|field| field.to_le_bytes()),
        );
        bundle.extend(id.as_bytes());
        offset += object.len() as u64;
    }
    bundle.resize(4096, 0);
    objects.iter().for_each(|(_, object)| bundle.extend(object.iter()));
    let (mut module, mut function) = (null_mut(), null_mut());
    ok!(hipModuleLoadData(&mut module, bundle.as_ptr().cast()));
    ok!(hipModuleGetFunction(&mut function, module, c"add".as_ptr()));
    assert_eq!(code!(hipModuleGetFunction(&mut function, module, c"subtract".as_ptr())), 500);
    let (mut table, mut bytes) = (null_mut(), 0);
    ok!(hipModuleGetGlobal(&mut table, &mut bytes, module, c"factors".as_ptr()));
    assert_eq!((download(table, 2)[1], bytes), (2.0f32.to_bits(), 16));
}

#[test]
fn streams_run_late_and_events_order_them() {
    let _turn = begin(&[Target::Gfx942]);
    let (first, second, done) = (stream(), stream(), event());
    let pointer = upload(&[0]);
    ok!(hipMemsetD32Async(pointer, 1, 1, first));
    ok!(hipEventRecord(done, first));
    ok!(hipStreamWaitEvent(second, done, 0));
    ok!(hipMemsetD32Async(pointer, 2, 1, second));
    assert_eq!(code!(hipEventQuery(done)), 600);
    ok!(hipStreamSynchronize(second));
    assert_eq!(code!(hipEventQuery(done)), 0);
    assert_eq!(download(pointer, 1), [2]);
    let (start, stop) = (event(), event());
    ok!(hipEventRecord(start, first));
    ok!(hipEventRecord(stop, first));
    let mut elapsed = -1.0;
    assert_eq!(code!(hipEventElapsedTime(&mut elapsed, start, stop)), 600);
    ok!(hipEventSynchronize(stop));
    ok!(hipEventElapsedTime(&mut elapsed, start, stop));
    assert!(elapsed >= 0.0);
    ok!(hipStreamDestroy(first));
    assert_eq!(code!(hipStreamSynchronize(first)), 400);
}

#[test]
fn without_an_event_some_seed_shows_the_missing_order() {
    let results: Vec<u32> = (0..16)
        .map(|seed| {
            let _turn = begin(&[]);
            hip_api::set_devices(&[Target::Gfx942], Configuration { seed, ..Configuration::default() });
            let (first, second) = (stream(), stream());
            let pointer = upload(&[0]);
            ok!(hipMemsetD32Async(pointer, 1, 1, first));
            ok!(hipMemsetD32Async(pointer, 2, 1, second));
            ok!(hipDeviceSynchronize());
            download(pointer, 1)[0]
        })
        .collect();
    assert!(results.contains(&1) && results.contains(&2), "{results:?}");
}

#[test]
fn memory_freed_in_stream_order_lives_until_then() {
    let _turn = begin(&[Target::Gfx942]);
    let stream = stream();
    let mut pointer = null_mut();
    ok!(hipMallocAsync(&mut pointer, 4, stream));
    ok!(hipMemsetD32Async(pointer, 5, 1, stream));
    let mut host = 0u32;
    ok!(hipMemcpyAsync((&raw mut host).cast(), pointer, 4, 2, stream));
    assert_eq!(host, 5);
    ok!(hipFreeAsync(pointer, stream));
    // Enqueued behind the free: caught when it runs.
    ok!(hipMemsetD32Async(pointer, 6, 1, stream));
    assert_eq!(code!(hipStreamSynchronize(stream)), 1);
    let mut statistics = Statistics::default();
    ok!(omniflash_emulator_statistics(0, &mut statistics));
    assert_eq!(statistics.live_allocations, 0);
}

#[test]
fn a_captured_graph_replays_its_work() {
    let _turn = begin(&[Target::Gfx1200]);
    if compiler_is_missing() {
        return;
    }
    let (_, function) = kernel(Target::Gfx1200, c"copy_shifted");
    let (a, b) = (upload(&(0..64).collect::<Vec<u32>>()), upload(&[0; 32]));
    let (main, side, fork, join) = (stream(), stream(), event(), event());
    let (mut graph, mut executable) = (null_mut(), null_mut());
    ok!(hipStreamBeginCapture(main, 0));
    ok!(hipEventRecord(fork, main));
    ok!(hipStreamWaitEvent(side, fork, 0));
    assert_eq!(copy_shifted(function, side, a, b, 1), 0);
    ok!(hipEventRecord(join, side));
    ok!(hipStreamWaitEvent(main, join, 0));
    ok!(hipMemsetD32Async(b, 77, 1, main));
    ok!(hipStreamEndCapture(main, &mut graph));
    let mut nodes = 0;
    ok!(hipGraphGetNodes(graph, null_mut(), &mut nodes));
    assert_eq!(nodes, 2);
    // Nothing has run yet.
    assert_eq!(download(b, 2), [0, 0]);
    ok!(hipGraphInstantiate(&mut executable, graph, null_mut(), null_mut(), 0));
    ok!(hipGraphDestroy(graph));
    for _ in 0..2 {
        ok!(hipMemsetD32Async(b, 0, 32, main));
        ok!(hipGraphLaunch(executable, main));
        ok!(hipStreamSynchronize(main));
        assert_eq!(download(b, 3), [77, 2, 3]);
    }
    ok!(hipGraphExecDestroy(executable));
}

#[test]
fn what_a_capture_forbids_is_an_error() {
    let _turn = begin(&[Target::Gfx942]);
    let (main, side, fork) = (stream(), stream(), event());
    let pointer = upload(&[0]);
    let mut graph = null_mut();
    ok!(hipStreamBeginCapture(main, 0));
    let mut other = null_mut();
    assert_eq!(code!(hipMalloc(&mut other, 4)), 900);
    assert_eq!(code!(hipStreamEndCapture(main, &mut graph)), 901);

    ok!(hipStreamBeginCapture(main, 0));
    assert_eq!(code!(hipStreamSynchronize(main)), 900);
    let mut status = 0;
    ok!(hipStreamIsCapturing(main, &mut status));
    assert_eq!(status, 2);
    assert_eq!(code!(hipStreamEndCapture(main, &mut graph)), 901);

    ok!(hipStreamBeginCapture(main, 0));
    ok!(hipEventRecord(fork, main));
    ok!(hipStreamWaitEvent(side, fork, 0));
    ok!(hipMemsetD32Async(pointer, 1, 1, side));
    assert_eq!(code!(hipStreamEndCapture(side, &mut graph)), 903);
    assert_eq!(code!(hipStreamEndCapture(main, &mut graph)), 904);
    assert_eq!(code!(hipStreamBeginCapture(null_mut(), 0)), 900);
}

#[test]
fn a_kernels_fault_is_reported_by_the_next_synchronisation() {
    let _turn = begin(&[Target::Gfx90a]);
    if compiler_is_missing() {
        return;
    }
    let (_, function) = kernel(Target::Gfx90a, c"copy_shifted");
    let (a, b) = (upload(&[1; 32]), upload(&[0; 32]));
    assert_eq!(copy_shifted(function, null_mut(), a, b, 1), 0);
    assert_eq!(code!(hipDeviceSynchronize()), 719);
    let mut message = [0u8; 512];
    let length = code!(omniflash_emulator_message(message.as_mut_ptr().cast(), message.len()));
    let text = String::from_utf8_lossy(&message[..length.min(511)]);
    assert!(text.contains("copy_shifted") && text.contains("out-of-bounds read of 4 bytes"), "{text}");
    ok!(hipDeviceSynchronize());
}

#[test]
fn every_kind_of_call_can_be_made_to_fail() {
    let _turn = begin(&[Target::Gfx942]);
    hip_api::inject("hipMalloc:2,hipMemcpy:1=719,hipStreamCreateWithFlags:*,hipDeviceSynchronize:1");
    let pointer = allocate(4);
    let mut other = null_mut();
    assert_eq!(code!(hipMalloc(&mut other, 4)), 2);
    assert!(other.is_null());
    let mut word = 0u32;
    assert_eq!(code!(hipMemcpy((&raw mut word).cast(), pointer, 4, 2)), 719);
    ok!(hipMemcpy((&raw mut word).cast(), pointer, 4, 2));
    assert_eq!(code!(hipStreamCreateWithFlags(&mut other, 0)), 2);
    assert_eq!(code!(hipStreamCreateWithFlags(&mut other, 0)), 2);
    assert_eq!(code!(hipDeviceSynchronize()), 719);
    assert_eq!(hipPeekAtLastError(), 719);
    ok!(hipDeviceSynchronize());
}

#[test]
fn pinned_memory_has_one_address_and_is_read_late() {
    let _turn = begin(&[Target::Gfx942]);
    let mut host = null_mut();
    ok!(hipHostMalloc(&mut host, 4, 0));
    let pointer = upload(&[0]);
    let stream = stream();
    // SAFETY: four live bytes of pinned memory.
    unsafe { host.cast::<u32>().write(1) };
    ok!(hipMemcpyAsync(pointer, host, 4, 1, stream));
    // SAFETY: as above; the copy has not run, so it will see this value: a real race made visible.
    unsafe { host.cast::<u32>().write(2) };
    ok!(hipStreamSynchronize(stream));
    assert_eq!(download(pointer, 1), [2]);
    ok!(hipHostFree(host));
}

#[test]
fn the_shared_library_exports_the_api() {
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    let names = ["libomniflash_hip_emulator.so", "../libomniflash_hip_emulator.so"];
    let Some(path) = names.into_iter().map(|name| path.join(name)).find(|path| path.exists()) else {
        eprintln!("skipped: the shared library was not built");
        return;
    };
    // SAFETY: the library's initialisers do nothing.
    let library = unsafe { libloading::Library::new(path) }.unwrap();
    type SetDevices = unsafe extern "C" fn(*const std::ffi::c_char) -> c_int;
    type Count = unsafe extern "C" fn(*mut c_int) -> c_int;
    // SAFETY: the types are those of the exported functions.
    let (set_devices, count) = unsafe {
        (
            library.get::<SetDevices>(b"omniflash_emulator_set_devices\0").unwrap(),
            library.get::<Count>(b"hipGetDeviceCount\0").unwrap(),
        )
    };
    let mut devices = 0;
    // SAFETY: valid pointers.
    let codes = unsafe { (set_devices(c"gfx942,gfx1201".as_ptr()), count(&mut devices)) };
    assert_eq!((codes, devices), ((0, 0), 2));
    for name in ["hipModuleLaunchKernel", "hipGraphLaunch", "hipMallocAsync", "hipGetDevicePropertiesR0600"] {
        // SAFETY: the symbol is only looked up.
        assert!(unsafe { library.get::<unsafe extern "C" fn()>(name.as_bytes()) }.is_ok(), "{name}");
    }
}
