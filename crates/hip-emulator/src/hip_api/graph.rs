//! Graphs: the work of a stream, recorded once and launched many times.

use std::collections::HashMap;
use std::ffi::{c_char, c_uint, c_ulonglong, c_void};

use super::call::{hip_functions, put};
use super::device::out_handle;
use super::error::{self, HipError};
use super::runtime::{Runtime, with};
use super::work::Work;

/// Recorded work in an order that respects every dependency.
#[derive(Clone, Default)]
pub(crate) struct Graph {
    pub(crate) nodes: Vec<Work>,
}

/// A recording in progress.
pub(crate) struct Capture {
    /// The stream that began it.
    origin: u64,
    graph: Graph,
    /// Streams that take part, and whether each has work that no other stream waits for.
    streams: HashMap<u64, bool>,
    pub(crate) is_invalid: bool,
    /// Calls that would wait are forbidden meanwhile.
    pub(crate) is_global: bool,
}

impl Capture {
    pub(crate) fn new(origin: u64, is_global: bool) -> Capture {
        let streams = HashMap::from([(origin, false)]);
        Capture { origin, graph: Graph::default(), streams, is_invalid: false, is_global }
    }
}

impl Runtime {
    /// Records work of a stream that takes part in a capture.
    pub(crate) fn capture(&mut self, capture: u64, stream: u64, work: Work) -> Result<(), HipError> {
        let capture = self.captures.get_mut(&capture).ok_or(error::CAPTURE_INVALIDATED)?;
        if capture.is_invalid {
            return Err(error::CAPTURE_INVALIDATED);
        }
        if matches!(work, Work::Wait { .. } | Work::Free { .. }) {
            // A wait for work outside the capture cannot be part of the graph.
            capture.is_invalid = true;
            return Err(error::CAPTURE_UNSUPPORTED);
        }
        capture.streams.insert(stream, true);
        capture.graph.nodes.push(work);
        Ok(())
    }

    /// A stream waits for an event of a capture and becomes part of it.
    pub(crate) fn join(&mut self, handle: u64, waited_for: u64, stream: u64) -> Result<(), HipError> {
        let capture = self.captures.get_mut(&handle).ok_or(error::CAPTURE_INVALIDATED)?;
        let joined = self.streams.get_mut(&stream).ok_or(error::INVALID_HANDLE)?;
        match joined.capture {
            Some(other) if other != handle => return Err(error::CAPTURE_MERGE),
            Some(_) => {}
            None => {
                joined.capture = Some(handle);
                capture.streams.insert(stream, true);
            }
        }
        if let Some(is_unjoined) = capture.streams.get_mut(&waited_for) {
            *is_unjoined = false;
        }
        Ok(())
    }

    /// Ends a capture on the stream that began it.
    pub(crate) fn end_capture(&mut self, stream: u64) -> Result<u64, HipError> {
        let handle =
            self.streams.get(&stream).and_then(|stream| stream.capture).ok_or(error::INVALID_VALUE)?;
        if self.captures.get(&handle).is_some_and(|capture| capture.origin != stream) {
            return Err(error::CAPTURE_UNMATCHED);
        }
        let capture = self.captures.remove(&handle).ok_or(error::CAPTURE_INVALIDATED)?;
        for stream in self.streams.values_mut().filter(|stream| stream.capture == Some(handle)) {
            stream.capture = None;
        }
        if capture.is_invalid {
            return Err(error::CAPTURE_INVALIDATED);
        }
        if capture.streams.iter().any(|(&member, &is_unjoined)| member != stream && is_unjoined) {
            return Err(error::CAPTURE_UNJOINED);
        }
        let graph = self.new_handle();
        self.graphs.insert(graph, capture.graph);
        Ok(graph)
    }
}

fn instantiate(executable: *mut *mut c_void, graph: *mut c_void) -> Result<(), HipError> {
    let handle = with(|runtime| {
        let graph = runtime.graphs.get(&(graph.addr() as u64)).cloned().ok_or(error::INVALID_VALUE)?;
        let handle = runtime.new_handle();
        runtime.executables.insert(handle, graph);
        Ok(handle)
    })?;
    out_handle(executable, handle)
}

hip_functions! {
    /// Creates a graph without nodes.
    fn hipGraphCreate(graph: *mut *mut c_void, _flags: c_uint) {
        let handle = with(|runtime| {
            let handle = runtime.new_handle();
            runtime.graphs.insert(handle, Graph::default());
            Ok(handle)
        })?;
        out_handle(graph, handle)
    }

    /// Makes a graph executable. There is never an error node or a log.
    fn hipGraphInstantiate(executable: *mut *mut c_void, graph: *mut c_void, error_node: *mut *mut c_void, _log: *mut c_char, _log_bytes: usize) {
        if !error_node.is_null() {
            // SAFETY: the caller's promise.
            unsafe { put(error_node, std::ptr::null_mut()) }?;
        }
        instantiate(executable, graph)
    }

    /// Makes a graph executable.
    fn hipGraphInstantiateWithFlags(executable: *mut *mut c_void, graph: *mut c_void, _flags: c_ulonglong) {
        instantiate(executable, graph)
    }

    /// Enqueues a graph's work in a stream's order.
    fn hipGraphLaunch(executable: *mut c_void, stream: *mut c_void) {
        with(|runtime| {
            let key = runtime.stream_key(stream)?;
            let graph = runtime.executables.get(&(executable.addr() as u64)).cloned().ok_or(error::INVALID_VALUE)?;
            graph.nodes.into_iter().try_for_each(|work| runtime.enqueue(key, work))
        })
    }

    /// Prepares a launch, which needs nothing.
    fn hipGraphUpload(executable: *mut c_void, stream: *mut c_void) {
        with(|runtime| {
            runtime.stream_key(stream)?;
            runtime.executables.get(&(executable.addr() as u64)).map(drop).ok_or(error::INVALID_VALUE)
        })
    }

    /// Replaces an executable's work by that of a graph with as many nodes; the result is 0 if it fits, else 1.
    fn hipGraphExecUpdate(executable: *mut c_void, graph: *mut c_void, error_node: *mut *mut c_void, result: *mut c_uint) {
        let fits = with(|runtime| {
            let graph = runtime.graphs.get(&(graph.addr() as u64)).cloned().ok_or(error::INVALID_VALUE)?;
            let executable = runtime.executables.get_mut(&(executable.addr() as u64)).ok_or(error::INVALID_VALUE)?;
            let same = |(a, b): (&Work, &Work)| std::mem::discriminant(a) == std::mem::discriminant(b);
            let fits = executable.nodes.len() == graph.nodes.len() && executable.nodes.iter().zip(&graph.nodes).all(same);
            if fits {
                *executable = graph;
            }
            Ok(fits)
        })?;
        // SAFETY: the caller's promise.
        unsafe {
            if !error_node.is_null() {
                put(error_node, std::ptr::null_mut())?;
            }
            put(result, c_uint::from(!fits))?;
        }
        // hipErrorGraphExecUpdateFailure
        if fits { Ok(()) } else { Err(HipError(910)) }
    }

    /// The number of a graph's nodes; the nodes themselves have no handles, so `nodes` must be null.
    fn hipGraphGetNodes(graph: *mut c_void, nodes: *mut *mut c_void, count: *mut usize) {
        if !nodes.is_null() {
            return Err(error::NOT_SUPPORTED);
        }
        let found = with(|runtime| {
            runtime.graphs.get(&(graph.addr() as u64)).map(|graph| graph.nodes.len()).ok_or(error::INVALID_VALUE)
        })?;
        // SAFETY: the caller's promise.
        unsafe { put(count, found) }
    }

    /// Destroys a graph; its executables live on.
    fn hipGraphDestroy(graph: *mut c_void) {
        with(|runtime| runtime.graphs.remove(&(graph.addr() as u64)).map(drop).ok_or(error::INVALID_VALUE))
    }

    /// Destroys an executable graph.
    fn hipGraphExecDestroy(executable: *mut c_void) {
        with(|runtime| runtime.executables.remove(&(executable.addr() as u64)).map(drop).ok_or(error::INVALID_VALUE))
    }
}
