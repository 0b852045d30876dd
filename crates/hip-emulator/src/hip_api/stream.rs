//! Streams and their capture.

use std::ffi::{c_int, c_uint, c_void};

use super::call::{hip_functions, put};
use super::device::out_handle;
use super::error::{self, HipError};
use super::graph::Capture;
use super::runtime::{Stream, handle_pointer, with};
use super::work::{HostAddress, Work};

fn create(stream: *mut *mut c_void, flags: c_uint, priority: c_int) -> Result<(), HipError> {
    if stream.is_null() || flags > 1 {
        return Err(error::INVALID_VALUE);
    }
    let handle = with(|runtime| {
        let device = runtime.current()?;
        let handle = runtime.new_handle();
        runtime.streams.insert(handle, Stream::new(device, flags, priority.clamp(-1, 1)));
        Ok(handle)
    })?;
    out_handle(stream, handle)
}

hip_functions! {
    /// Creates a stream that the null stream waits for.
    fn hipStreamCreate(stream: *mut *mut c_void) {
        create(stream, 0, 0)
    }

    /// Creates a stream; flag 1 makes it independent of the null stream.
    fn hipStreamCreateWithFlags(stream: *mut *mut c_void, flags: c_uint) {
        create(stream, flags, 0)
    }

    /// Creates a stream with a priority, which changes nothing here but can be read back.
    fn hipStreamCreateWithPriority(stream: *mut *mut c_void, flags: c_uint, priority: c_int) {
        create(stream, flags, priority)
    }

    /// Destroys a stream after its work.
    fn hipStreamDestroy(stream: *mut c_void) {
        with(|runtime| {
            let key = runtime.stream_key(stream)?;
            if key < 0x1000 {
                return Err(error::INVALID_HANDLE);
            }
            runtime.require_not_capturing(key)?;
            runtime.drain_stream(key)?;
            runtime.streams.remove(&key);
            Ok(())
        })
    }

    /// Waits for a stream's work and reports what its kernels left behind.
    fn hipStreamSynchronize(stream: *mut c_void) {
        with(|runtime| {
            let key = runtime.stream_key(stream)?;
            runtime.require_not_capturing(key)?;
            runtime.drain_stream(key)?;
            let device = runtime.streams[&key].device;
            runtime.take_error(device)
        })
    }

    /// Whether a stream's work is done; if not, some of it makes progress.
    fn hipStreamQuery(stream: *mut c_void) {
        with(|runtime| {
            let key = runtime.stream_key(stream)?;
            runtime.require_not_capturing(key)?;
            if !runtime.streams[&key].queue.is_empty() {
                runtime.step()?;
                return Err(error::NOT_READY);
            }
            let device = runtime.streams[&key].device;
            runtime.take_error(device)
        })
    }

    /// Makes a stream's later work wait for an event's last recording.
    fn hipStreamWaitEvent(stream: *mut c_void, event: *mut c_void, _flags: c_uint) {
        with(|runtime| {
            let key = runtime.stream_key(stream)?;
            let handle = event.addr() as u64;
            let event = runtime.events.get(&handle).ok_or(error::INVALID_HANDLE)?;
            let generation = event.recorded;
            match event.capture {
                Some((capture, origin)) if runtime.captures.contains_key(&capture) => runtime.join(capture, origin, key),
                _ if generation == 0 => Ok(()),
                _ => runtime.enqueue(key, Work::Wait { event: handle, generation }),
            }
        })
    }

    /// The flags that a stream was created with.
    fn hipStreamGetFlags(stream: *mut c_void, flags: *mut c_uint) {
        let found = with(|runtime| {
            let key = runtime.stream_key(stream)?;
            Ok(runtime.streams[&key].flags)
        })?;
        // SAFETY: the caller's promise.
        unsafe { put(flags, found) }
    }

    /// The priority that a stream was created with.
    fn hipStreamGetPriority(stream: *mut c_void, priority: *mut c_int) {
        let found = with(|runtime| {
            let key = runtime.stream_key(stream)?;
            Ok(runtime.streams[&key].priority)
        })?;
        // SAFETY: the caller's promise.
        unsafe { put(priority, found) }
    }

    /// The device of a stream.
    fn hipStreamGetDevice(stream: *mut c_void, device: *mut c_int) {
        let found = with(|runtime| {
            let key = runtime.stream_key(stream)?;
            Ok(runtime.streams[&key].device)
        })?;
        // SAFETY: the caller's promise.
        unsafe { put(device, found as c_int) }
    }

    /// Calls a host function in a stream's order. It must not call HIP.
    fn hipLaunchHostFunc(stream: *mut c_void, function: Option<unsafe extern "C" fn(*mut c_void)>, data: *mut c_void) {
        let function = function.ok_or(error::INVALID_VALUE)?;
        let data = HostAddress(data);
        with(|runtime| {
            let key = runtime.stream_key(stream)?;
            runtime.enqueue(key, Work::HostFunction { function, data })
        })
    }

    /// Starts recording a stream's work; modes are 0 global, 1 thread-local, 2 relaxed.
    fn hipStreamBeginCapture(stream: *mut c_void, mode: c_int) {
        with(|runtime| {
            let key = runtime.stream_key(stream)?;
            if !(0..=2).contains(&mode) {
                return Err(error::INVALID_VALUE);
            }
            // The null stream cannot be captured.
            if key < 0x800 {
                return Err(error::CAPTURE_UNSUPPORTED);
            }
            let handle = runtime.new_handle();
            let stream = runtime.streams.get_mut(&key).ok_or(error::INVALID_HANDLE)?;
            if stream.capture.is_some() {
                return Err(error::INVALID_VALUE);
            }
            stream.capture = Some(handle);
            runtime.captures.insert(handle, Capture::new(key, mode != 2));
            Ok(())
        })
    }

    /// Ends recording and gives the graph.
    fn hipStreamEndCapture(stream: *mut c_void, graph: *mut *mut c_void) {
        if graph.is_null() {
            return Err(error::INVALID_VALUE);
        }
        let handle = with(|runtime| {
            let key = runtime.stream_key(stream)?;
            runtime.end_capture(key)
        });
        match handle {
            Ok(handle) => out_handle(graph, handle),
            Err(error) => {
                // SAFETY: the caller's promise.
                unsafe { put(graph, handle_pointer(0)) }?;
                Err(error)
            }
        }
    }

    /// Whether a stream is recorded: 0 no, 1 yes, 2 yes but something invalidated it.
    fn hipStreamIsCapturing(stream: *mut c_void, status: *mut c_int) {
        let found = with(|runtime| {
            let key = runtime.stream_key(stream)?;
            let capture = runtime.streams[&key].capture.and_then(|capture| runtime.captures.get(&capture));
            Ok(capture.map_or(0, |capture| if capture.is_invalid { 2 } else { 1 }))
        })?;
        // SAFETY: the caller's promise.
        unsafe { put(status, found) }
    }
}
