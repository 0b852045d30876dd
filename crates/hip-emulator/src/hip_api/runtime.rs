//! The process-wide state behind the C API: devices, handles, and streams that execute as late as they may.
//!
//! Work that a caller enqueues runs when somebody waits for it, and independent streams take turns in an order drawn
//! from the seed. A missing synchronisation therefore shows, as it might on a busy device.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::ffi::c_void;
use std::io::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::error::{self, HipError};
use super::graph::{Capture, Graph};
use super::work::{self, Source, Work};
use crate::configuration::{self, Configuration};
use crate::device::{Device, Module};
use crate::fault::LaunchError;
use crate::memory::{DEVICE_OFFSET, Origin};
use crate::target::Target;

/// The null stream's handle, which every device has its own stream for.
pub(crate) const NULL_STREAM: u64 = 0;

thread_local! {
    static CURRENT_DEVICE: Cell<usize> = const { Cell::new(0) };
}

static RUNTIME: Mutex<Option<Runtime>> = Mutex::new(None);

/// Everything that handles refer to.
pub(crate) struct Runtime {
    pub(crate) devices: Vec<Device>,
    pub(crate) modules: HashMap<u64, (usize, Module)>,
    pub(crate) functions: HashMap<u64, Function>,
    pub(crate) streams: HashMap<u64, Stream>,
    pub(crate) events: HashMap<u64, Event>,
    pub(crate) graphs: HashMap<u64, Graph>,
    pub(crate) executables: HashMap<u64, Graph>,
    pub(crate) captures: HashMap<u64, Capture>,
    /// What a kernel left behind per device; the next call that synchronises reports it.
    pub(crate) pending_error: Vec<Option<HipError>>,
    /// The text of the last fault.
    pub(crate) message: String,
    next_handle: u64,
    random: ChaCha8Rng,
    is_quiet: bool,
}

/// A kernel of a loaded module.
#[derive(Clone)]
pub(crate) struct Function {
    pub(crate) module: u64,
    pub(crate) name: String,
}

/// A queue of work on one device.
pub(crate) struct Stream {
    pub(crate) device: usize,
    pub(crate) flags: u32,
    pub(crate) priority: i32,
    pub(crate) queue: VecDeque<Work>,
    /// The capture that records this stream's work.
    pub(crate) capture: Option<u64>,
}

impl Stream {
    pub(crate) fn new(device: usize, flags: u32, priority: i32) -> Stream {
        Stream { device, flags, priority, queue: VecDeque::new(), capture: None }
    }

    /// Whether the null stream waits for this one and it for the null stream.
    fn is_blocking(&self) -> bool {
        self.flags & 1 == 0
    }
}

/// A point in a stream's work.
#[derive(Default)]
pub(crate) struct Event {
    pub(crate) flags: u32,
    /// How often the event was recorded, and the last recording that has been reached.
    pub(crate) recorded: u64,
    pub(crate) reached: u64,
    pub(crate) time: Option<Instant>,
    /// The capture that recorded it, and the stream there.
    pub(crate) capture: Option<(u64, u64)>,
}

/// The handle as the opaque pointer that C code holds.
pub(crate) fn handle_pointer(handle: u64) -> *mut c_void {
    std::ptr::without_provenance_mut(handle as usize)
}

/// Runs `body` on the process's runtime, which the first call creates from the environment.
pub(crate) fn with<R>(body: impl FnOnce(&mut Runtime) -> Result<R, HipError>) -> Result<R, HipError> {
    let mut guard = lock();
    if guard.is_none() {
        *guard = Some(Runtime::from_environment()?);
    }
    match guard.as_mut() {
        Some(runtime) => body(runtime),
        None => Err(error::NOT_INITIALIZED),
    }
}

fn lock() -> MutexGuard<'static, Option<Runtime>> {
    RUNTIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Replaces the runtime; every handle of the old one is gone.
pub(crate) fn replace(targets: &[Target], configuration: Configuration) {
    *lock() = Some(Runtime::new(targets, configuration));
}

impl Runtime {
    fn from_environment() -> Result<Runtime, HipError> {
        let describe = |error: configuration::ConfigurationError| {
            // Nobody can be asked; the variable is named so that the mistake is found.
            let _ = writeln!(std::io::stderr(), "omniflash-hip-emulator: {error}");
            error::NOT_INITIALIZED
        };
        let targets = configuration::devices_from_environment().map_err(describe)?;
        let configuration = Configuration::from_environment().map_err(describe)?;
        Ok(Runtime::new(&targets, configuration))
    }

    pub(crate) fn new(targets: &[Target], configuration: Configuration) -> Runtime {
        Runtime {
            devices: targets.iter().map(|&target| Device::new(target, configuration)).collect(),
            modules: HashMap::new(),
            functions: HashMap::new(),
            streams: HashMap::new(),
            events: HashMap::new(),
            graphs: HashMap::new(),
            executables: HashMap::new(),
            captures: HashMap::new(),
            pending_error: vec![None; targets.len()],
            message: String::new(),
            next_handle: 0x1000,
            random: ChaCha8Rng::seed_from_u64(configuration.seed),
            is_quiet: std::env::var_os(configuration::QUIET).is_some(),
        }
    }

    /// A handle that no other object has.
    pub(crate) fn new_handle(&mut self) -> u64 {
        self.next_handle += 0x10;
        self.next_handle
    }

    /// This thread's device.
    pub(crate) fn current(&self) -> Result<usize, HipError> {
        if self.devices.is_empty() {
            return Err(error::NO_DEVICE);
        }
        Ok(CURRENT_DEVICE.get().min(self.devices.len() - 1))
    }

    pub(crate) fn set_current(&self, device: i32) -> Result<(), HipError> {
        let index = self.device_index(device)?;
        CURRENT_DEVICE.set(index);
        Ok(())
    }

    pub(crate) fn device_index(&self, device: i32) -> Result<usize, HipError> {
        if self.devices.is_empty() {
            return Err(error::NO_DEVICE);
        }
        usize::try_from(device).ok().filter(|&index| index < self.devices.len()).ok_or(error::INVALID_DEVICE)
    }

    pub(crate) fn current_device(&mut self) -> Result<&mut Device, HipError> {
        let index = self.current()?;
        Ok(&mut self.devices[index])
    }

    /// The stream that a caller's handle means: the null stream is created when it is first used.
    pub(crate) fn stream_key(&mut self, handle: *mut c_void) -> Result<u64, HipError> {
        let device = self.current()?;
        let key = match handle.addr() as u64 {
            // hipStreamLegacy is 1, hipStreamPerThread 2; the latter is one more stream here.
            NULL_STREAM | 1 => device as u64,
            2 => 0x800 + device as u64,
            handle if self.streams.contains_key(&handle) => handle,
            _ => return Err(error::INVALID_HANDLE),
        };
        self.streams.entry(key).or_insert_with(|| Stream::new(device, 0, 0));
        Ok(key)
    }

    fn is_null_stream(key: u64) -> bool {
        key < 0x800
    }

    /// Adds work to a stream, or to the graph that captures it.
    pub(crate) fn enqueue(&mut self, key: u64, work: Work) -> Result<(), HipError> {
        let stream = self.streams.get_mut(&key).ok_or(error::INVALID_HANDLE)?;
        if let Some(capture) = stream.capture {
            return self.capture(capture, key, work);
        }
        let device = stream.device;
        if Runtime::is_null_stream(key) {
            if self.streams.values().any(|s| s.capture.is_some() && s.is_blocking() && s.device == device) {
                return Err(error::CAPTURE_IMPLICIT);
            }
            // The null stream starts after all blocking streams.
            self.drain(|stream| stream.device == device && stream.is_blocking())?;
        } else if stream.is_blocking() {
            self.drain_stream(device as u64)?;
        }
        let stream = self.streams.get_mut(&key).ok_or(error::INVALID_HANDLE)?;
        stream.queue.push_back(work);
        Ok(())
    }

    /// Fails if this stream is being captured: the call would wait for work that does not run.
    pub(crate) fn require_not_capturing(&mut self, key: u64) -> Result<(), HipError> {
        let Some(capture) = self.streams.get(&key).and_then(|stream| stream.capture) else { return Ok(()) };
        if let Some(capture) = self.captures.get_mut(&capture) {
            capture.is_invalid = true;
        }
        Err(error::CAPTURE_UNSUPPORTED)
    }

    /// Fails while any stream is captured: the call is not allowed then.
    pub(crate) fn require_no_capture(&mut self) -> Result<(), HipError> {
        if self.captures.values().all(|capture| !capture.is_global) {
            return Ok(());
        }
        self.captures
            .values_mut()
            .filter(|capture| capture.is_global)
            .for_each(|capture| capture.is_invalid = true);
        Err(error::CAPTURE_UNSUPPORTED)
    }

    /// Executes until one stream is empty.
    pub(crate) fn drain_stream(&mut self, key: u64) -> Result<(), HipError> {
        while self.streams.get(&key).is_some_and(|stream| !stream.queue.is_empty()) {
            self.step()?;
        }
        Ok(())
    }

    /// Executes until the streams that `selects` are empty.
    pub(crate) fn drain(&mut self, selects: impl Fn(&Stream) -> bool) -> Result<(), HipError> {
        while self.streams.values().any(|stream| selects(stream) && !stream.queue.is_empty()) {
            self.step()?;
        }
        Ok(())
    }

    /// Executes until an event's last recording is reached.
    pub(crate) fn drain_event(&mut self, event: u64) -> Result<(), HipError> {
        while self.events.get(&event).is_some_and(|event| event.reached < event.recorded) {
            self.step()?;
        }
        Ok(())
    }

    /// Waits for a device and reports what its kernels left behind.
    pub(crate) fn synchronize(&mut self, device: usize) -> Result<(), HipError> {
        self.drain(|stream| stream.device == device)?;
        self.take_error(device)
    }

    /// The error that a kernel left behind.
    pub(crate) fn take_error(&mut self, device: usize) -> Result<(), HipError> {
        self.pending_error[device].take().map_or(Ok(()), Err)
    }

    /// Executes one unit of work of some stream that can proceed.
    pub(crate) fn step(&mut self) -> Result<(), HipError> {
        let mut ready: Vec<u64> =
            self.streams.iter().filter(|(_, stream)| self.can_proceed(stream)).map(|(&key, _)| key).collect();
        if ready.is_empty() {
            // Every head waits for an event that nothing will record.
            return Err(error::UNKNOWN);
        }
        // The map's order differs from run to run; the seed must not.
        ready.sort_unstable();
        let key = ready[self.random.random_range(0..ready.len())];
        let Some(stream) = self.streams.get_mut(&key) else { return Ok(()) };
        let device = stream.device;
        if let Some(work) = stream.queue.pop_front() {
            self.execute(device, &work);
        }
        Ok(())
    }

    fn can_proceed(&self, stream: &Stream) -> bool {
        match stream.queue.front() {
            None => false,
            Some(Work::Wait { event, generation }) => {
                self.events.get(event).is_none_or(|event| event.reached >= *generation)
            }
            Some(_) => true,
        }
    }

    fn execute(&mut self, device: usize, work: &Work) {
        let result = match work {
            Work::Kernel { module, name, dimensions, arguments } => {
                match self.devices[device].launch(module, name, *dimensions, arguments) {
                    Ok(()) => Ok(()),
                    Err(LaunchError::Fault(fault)) => Err((error::LAUNCH_FAILURE, fault.to_string())),
                    Err(other) => Err((error::INVALID_VALUE, other.to_string())),
                }
            }
            Work::Copy { destination, source, row_bytes, rows, destination_pitch, source_pitch } => self
                .execute_copy(*destination, source, *row_bytes, *rows, (*destination_pitch, *source_pitch)),
            Work::Fill { address, value, element_bytes, count } => {
                match self.check_range(*address, element_bytes * count) {
                    Ok(()) => {
                        // SAFETY: the range was just found in a live allocation.
                        unsafe { work::fill(*address, *value, *element_bytes, *count) };
                        Ok(())
                    }
                    Err(error) => Err((error, format!("memset of freed or foreign memory at {address:#x}"))),
                }
            }
            Work::Record { event, generation } => {
                if let Some(event) = self.events.get_mut(event) {
                    event.reached = event.reached.max(*generation);
                    event.time = Some(Instant::now());
                }
                Ok(())
            }
            Work::Wait { .. } => Ok(()),
            Work::Free { address } => match self.devices[device].memory.free(*address, Origin::Device) {
                Ok(()) => Ok(()),
                Err(reason) => {
                    Err((error::INVALID_VALUE, format!("hipFreeAsync of {address:#x}: {reason:?}")))
                }
            },
            Work::HostFunction { function, data } => {
                // SAFETY: the caller of hipLaunchHostFunc promised that the function may be called with its data.
                unsafe { function(data.0) };
                Ok(())
            }
        };
        if let Err((error, message)) = result {
            self.pending_error[device].get_or_insert(error);
            self.report(message);
        }
    }

    fn execute_copy(
        &mut self,
        destination: u64,
        source: &Source,
        row_bytes: usize,
        rows: usize,
        pitches: (usize, usize),
    ) -> Result<(), (HipError, String)> {
        let failure =
            |error| (error, format!("copy of {rows} x {row_bytes} bytes to {destination:#x} out of bounds"));
        let bytes = work::span(row_bytes, rows, pitches.0).map_err(failure)?;
        self.check_range(destination, bytes).map_err(failure)?;
        if let Source::Address(address) = source {
            let bytes = work::span(row_bytes, rows, pitches.1).map_err(failure)?;
            self.check_range(*address, bytes).map_err(failure)?;
        }
        // SAFETY: device ranges were just found in live allocations; host ranges are the caller's promise.
        unsafe { work::copy_rows(destination, source, row_bytes, rows, pitches) };
        Ok(())
    }

    /// Remembers a fault's text and prints it, unless asked to be quiet.
    pub(crate) fn report(&mut self, message: String) {
        if !self.is_quiet {
            let _ = writeln!(std::io::stderr(), "omniflash-hip-emulator: {message}");
        }
        self.message = message;
    }

    /// Accepts host memory as it comes; device memory must lie in one allocation.
    pub(crate) fn check_range(&self, address: u64, bytes: usize) -> Result<(), HipError> {
        let owner = self.devices.iter().find_map(|device| device.memory.find(address));
        match owner {
            Some((start, size, _)) if (address - start) as usize + bytes <= size => Ok(()),
            Some(_) => Err(error::INVALID_VALUE),
            None if address >= DEVICE_OFFSET && bytes > 0 => Err(error::INVALID_VALUE),
            None => Ok(()),
        }
    }

    /// Whether an address is pinned host memory.
    pub(crate) fn is_pinned(&self, address: u64) -> bool {
        self.devices.iter().any(|device| matches!(device.memory.find(address), Some((_, _, Origin::Pinned))))
    }
}
