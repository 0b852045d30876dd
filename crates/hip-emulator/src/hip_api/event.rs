//! Events.

use std::ffi::{c_uint, c_void};

use super::call::{hip_functions, put};
use super::device::out_handle;
use super::error::{self, HipError};
use super::runtime::{Event, with};
use super::work::Work;

/// `hipEventDisableTiming`.
const DISABLE_TIMING: u32 = 2;

fn create(event: *mut *mut c_void, flags: c_uint) -> Result<(), HipError> {
    if event.is_null() {
        return Err(error::INVALID_VALUE);
    }
    let handle = with(|runtime| {
        runtime.current()?;
        let handle = runtime.new_handle();
        runtime.events.insert(handle, Event { flags, ..Event::default() });
        Ok(handle)
    })?;
    out_handle(event, handle)
}

hip_functions! {
    /// Creates an event.
    fn hipEventCreate(event: *mut *mut c_void) {
        create(event, 0)
    }

    /// Creates an event; flag 2 makes it one without time.
    fn hipEventCreateWithFlags(event: *mut *mut c_void, flags: c_uint) {
        create(event, flags)
    }

    /// Destroys an event; recordings that are queued do nothing then.
    fn hipEventDestroy(event: *mut c_void) {
        with(|runtime| runtime.events.remove(&(event.addr() as u64)).map(drop).ok_or(error::INVALID_HANDLE))
    }

    /// Records an event in a stream's order.
    fn hipEventRecord(event: *mut c_void, stream: *mut c_void) {
        with(|runtime| {
            let key = runtime.stream_key(stream)?;
            let handle = event.addr() as u64;
            let capture = runtime.streams[&key].capture;
            let event = runtime.events.get_mut(&handle).ok_or(error::INVALID_HANDLE)?;
            if let Some(capture) = capture {
                event.capture = Some((capture, key));
                return Ok(());
            }
            event.capture = None;
            event.recorded += 1;
            let generation = event.recorded;
            runtime.enqueue(key, Work::Record { event: handle, generation })
        })
    }

    /// Waits until an event's last recording is reached.
    fn hipEventSynchronize(event: *mut c_void) {
        with(|runtime| {
            let handle = event.addr() as u64;
            let event = runtime.events.get(&handle).ok_or(error::INVALID_HANDLE)?;
            if event.capture.is_some() {
                return Err(error::CAPTURE_UNSUPPORTED);
            }
            runtime.drain_event(handle)?;
            let device = runtime.current()?;
            runtime.take_error(device)
        })
    }

    /// Whether an event's last recording is reached; if not, some work makes progress.
    fn hipEventQuery(event: *mut c_void) {
        with(|runtime| {
            let handle = event.addr() as u64;
            let event = runtime.events.get(&handle).ok_or(error::INVALID_HANDLE)?;
            if event.reached < event.recorded {
                runtime.step()?;
                return Err(error::NOT_READY);
            }
            Ok(())
        })
    }

    /// Milliseconds between two events. They measure this machine and say nothing about a device.
    fn hipEventElapsedTime(milliseconds: *mut f32, start: *mut c_void, stop: *mut c_void) {
        let elapsed = with(|runtime| {
            let mut times = [None; 2];
            for (time, handle) in times.iter_mut().zip([start, stop]) {
                let event = runtime.events.get(&(handle.addr() as u64)).ok_or(error::INVALID_HANDLE)?;
                if event.flags & DISABLE_TIMING != 0 || event.recorded == 0 {
                    return Err(error::INVALID_HANDLE);
                }
                if event.reached < event.recorded {
                    return Err(error::NOT_READY);
                }
                *time = event.time;
            }
            match times {
                [Some(start), Some(stop)] if stop >= start => Ok(stop.duration_since(start).as_secs_f32() * 1e3),
                [Some(start), Some(stop)] => Ok(-start.duration_since(stop).as_secs_f32() * 1e3),
                _ => Err(error::INVALID_HANDLE),
            }
        })?;
        // SAFETY: the caller's promise.
        unsafe { put(milliseconds, elapsed) }
    }

}
