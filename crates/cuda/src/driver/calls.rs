//! The driver's calls, as the host that all GPU backends share asks for them.

use std::ffi::{CStr, c_int, c_void};
use std::ptr;

use cudarc::driver::sys::{
    CUevent, CUfunction, CUfunction_attribute, CUgraph, CUgraphExec, CUjit_option, CUmodule, CUstream,
    CUstream_flags, CUstreamCaptureMode,
};
use omniflash_core::{DeviceId, Error, Result, Stream};
use omniflash_device::Launch;
use omniflash_gpu::Driver;

use super::Context;
use super::api::OUT_OF_MEMORY;
use super::context::Entered;

/// Blocks of a cluster that every device with clusters can run; wider ones must be asked for.
const PORTABLE_CLUSTER: c_int = 8;

/// Room for what the driver says when it cannot load a module.
const LOG_BYTES: usize = 16 * 1024;

// SAFETY: the driver's handles may be used from any thread, and it locks what it shares.
unsafe impl Driver for Context {
    type Event = CUevent;
    type CapturedGraph = CUgraph;
    type Graph = CUgraphExec;
    type Module = CUmodule;
    type Function = CUfunction;
    type Entered<'d> = Entered<'d>;

    const PREPARE: &'static str = "CudaBackend::prepare";
    const OUT_OF_MEMORY: i64 = OUT_OF_MEMORY;

    fn enter(&self) -> Result<Entered<'_>> {
        Context::enter(self)
    }

    fn has_memory_pools(&self) -> bool {
        self.facts().has_memory_pools
    }

    fn synchronize_device(&self) -> Result<()> {
        // SAFETY: takes nothing.
        unsafe { self.api().cuCtxSynchronize() }
    }

    fn create_stream(&self) -> Result<u64> {
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` is writable.
        unsafe { self.api().cuStreamCreate(&raw mut raw, CUstream_flags::CU_STREAM_NON_BLOCKING as u32) }?;
        Ok(raw.expose_provenance() as u64)
    }

    unsafe fn destroy_stream(&self, stream: u64) -> Result<()> {
        // SAFETY: the caller's duty.
        unsafe { self.api().cuStreamDestroy(ptr::with_exposed_provenance_mut(stream as usize)) }
    }

    /// Faults of earlier launches are reported here.
    fn synchronize(&self, stream: &Stream) -> Result<()> {
        // SAFETY: whoever made the stream vouched for its handle.
        unsafe { self.api().cuStreamSynchronize(handle(stream)) }
    }

    fn is_capturing(&self, stream: &Stream) -> Result<bool> {
        let mut status = 0;
        // SAFETY: `status` is writable; whoever made the stream vouched for its handle.
        unsafe { self.api().cuStreamIsCapturing(handle(stream), &raw mut status) }?;
        Ok(status != 0)
    }

    fn stream_id(&self, stream: &Stream) -> Result<u64> {
        let mut id = 0;
        // SAFETY: `id` is writable; whoever made the stream vouched for its handle.
        unsafe { self.api().cuStreamGetId(handle(stream), &raw mut id) }?;
        Ok(id)
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        let mut address = 0;
        // SAFETY: `address` is writable.
        unsafe { self.api().cuMemAlloc(&raw mut address, bytes) }?;
        Ok(address)
    }

    fn allocate_on(&self, bytes: usize, stream: &Stream) -> Result<u64> {
        let mut address = 0;
        // SAFETY: `address` is writable; whoever made the stream vouched for its handle.
        unsafe { self.api().cuMemAllocAsync(&raw mut address, bytes, handle(stream)) }?;
        Ok(address)
    }

    unsafe fn free(&self, address: u64) -> Result<()> {
        // The driver frees memory of a pool at once, whoever still uses it.
        self.synchronize_device()?;
        // SAFETY: the caller's duty, and no work uses it any more.
        unsafe { self.api().cuMemFree(address) }
    }

    unsafe fn free_on(&self, address: u64, stream: &Stream) -> Result<()> {
        // SAFETY: the caller's duty.
        unsafe { self.api().cuMemFreeAsync(address, handle(stream)) }
    }

    unsafe fn zero(&self, address: u64, bytes: usize, stream: &Stream) -> Result<()> {
        // SAFETY: the caller's duty.
        unsafe { self.api().cuMemsetD8Async(address, 0, bytes, handle(stream)) }
    }

    unsafe fn copy_to_device(&self, source: &[u8], target: u64, stream: &Stream) -> Result<()> {
        let (from, bytes) = (source.as_ptr().cast(), source.len());
        // SAFETY: the caller's duty.
        unsafe { self.api().cuMemcpyHtoDAsync(target, from, bytes, handle(stream)) }
    }

    unsafe fn copy_to_host(&self, source: u64, target: &mut [u8], stream: &Stream) -> Result<()> {
        let (to, bytes) = (target.as_mut_ptr().cast(), target.len());
        // SAFETY: the caller's duty.
        unsafe { self.api().cuMemcpyDtoHAsync(to, source, bytes, handle(stream)) }
    }

    fn create_event(&self) -> Result<CUevent> {
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` is writable.
        unsafe { self.api().cuEventCreate(&raw mut raw, 0) }?;
        Ok(raw)
    }

    unsafe fn destroy_event(&self, event: CUevent) -> Result<()> {
        // SAFETY: the caller's duty.
        unsafe { self.api().cuEventDestroy(event) }
    }

    unsafe fn record_event(&self, event: CUevent, stream: &Stream) -> Result<()> {
        // SAFETY: the caller's duty; whoever made the stream vouched for its handle.
        unsafe { self.api().cuEventRecord(event, handle(stream)) }
    }

    unsafe fn synchronize_event(&self, event: CUevent) -> Result<()> {
        // SAFETY: the caller's duty.
        unsafe { self.api().cuEventSynchronize(event) }
    }

    unsafe fn elapsed_ms(&self, begin: CUevent, end: CUevent) -> Result<f32> {
        let mut elapsed_ms = 0.0;
        // SAFETY: `elapsed_ms` is writable, the events are the caller's duty.
        unsafe { self.api().cuEventElapsedTime(&raw mut elapsed_ms, begin, end) }?;
        Ok(elapsed_ms)
    }

    fn begin_capture(&self, stream: &Stream) -> Result<()> {
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL as u32;
        // SAFETY: whoever made the stream vouched for its handle.
        unsafe { self.api().cuStreamBeginCapture(handle(stream), mode) }
    }

    fn end_capture(&self, stream: &Stream) -> Result<CUgraph> {
        let mut graph = ptr::null_mut();
        // SAFETY: `graph` is writable; whoever made the stream vouched for its handle.
        unsafe { self.api().cuStreamEndCapture(handle(stream), &raw mut graph) }?;
        Ok(graph)
    }

    unsafe fn instantiate_graph(&self, captured: CUgraph) -> Result<CUgraphExec> {
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` is writable, the graph is the caller's duty.
        unsafe { self.api().cuGraphInstantiateWithFlags(&raw mut raw, captured, 0) }?;
        Ok(raw)
    }

    unsafe fn destroy_captured_graph(&self, captured: CUgraph) -> Result<()> {
        // SAFETY: the caller's duty.
        unsafe { self.api().cuGraphDestroy(captured) }
    }

    unsafe fn launch_graph(&self, graph: CUgraphExec, stream: &Stream) -> Result<()> {
        // SAFETY: the caller's duty.
        unsafe { self.api().cuGraphLaunch(graph, handle(stream)) }
    }

    unsafe fn destroy_graph(&self, graph: CUgraphExec) -> Result<()> {
        // SAFETY: the caller's duty.
        unsafe { self.api().cuGraphExecDestroy(graph) }
    }

    fn load_module(&self, image: &[u8]) -> Result<CUmodule> {
        // PTX is text and must end with a zero; binaries do not mind.
        let mut terminated = Vec::with_capacity(image.len() + 1);
        terminated.extend_from_slice(image);
        terminated.push(0);
        let mut log = vec![0u8; LOG_BYTES];
        let mut options = [
            CUjit_option::CU_JIT_ERROR_LOG_BUFFER as u32,
            CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES as u32,
        ];
        // The driver reads the second value as a number in a pointer's place, as its documentation asks.
        let mut values = [log.as_mut_ptr().cast::<c_void>(), ptr::without_provenance_mut(LOG_BYTES)];
        let mut module = ptr::null_mut();
        // SAFETY: the image outlives the call and is zero-terminated; the options and their values have equal length
        // and describe the log's memory.
        let loaded = unsafe {
            self.api().cuModuleLoadDataEx(
                &raw mut module,
                terminated.as_ptr().cast(),
                options.len() as u32,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        match loaded {
            Ok(()) => Ok(module),
            Err(Error::Driver { api, code, text }) => {
                let log = log.split(|&byte| byte == 0).next().unwrap_or_default();
                let log = String::from_utf8_lossy(log);
                let text = if log.trim().is_empty() { text } else { format!("{text}\n{}", log.trim()) };
                Err(Error::Driver { api, code, text })
            }
            Err(error) => Err(error),
        }
    }

    unsafe fn unload_module(&self, module: CUmodule) -> Result<()> {
        // SAFETY: the caller's duty.
        unsafe { self.api().cuModuleUnload(module) }
    }

    unsafe fn function(
        &self,
        module: CUmodule,
        name: &CStr,
        shared_memory_bytes: usize,
    ) -> Result<CUfunction> {
        let mut function = ptr::null_mut();
        // SAFETY: `function` is writable, the name zero-terminated, the module the caller's duty.
        unsafe { self.api().cuModuleGetFunction(&raw mut function, module, name.as_ptr()) }?;
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as u32;
        // SAFETY: the function is of a loaded module.
        unsafe { self.api().cuFuncSetAttribute(function, attribute, shared_memory_bytes as c_int) }?;
        let (mut width, attribute) =
            (0, CUfunction_attribute::CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_WIDTH as u32);
        // SAFETY: `width` is writable, the function of a loaded module.
        unsafe { self.api().cuFuncGetAttribute(&raw mut width, attribute, function) }?;
        if width > PORTABLE_CLUSTER {
            let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED as u32;
            // SAFETY: as above.
            unsafe { self.api().cuFuncSetAttribute(function, attribute, 1) }?;
        }
        Ok(function)
    }

    unsafe fn blocks_per_multiprocessor(&self, function: CUfunction, launch: &Launch) -> Result<usize> {
        let mut blocks = 0;
        // SAFETY: `blocks` is writable, the function the caller's duty.
        unsafe {
            self.api().cuOccupancyMaxActiveBlocksPerMultiprocessor(
                &raw mut blocks,
                function,
                launch.block_threads as c_int,
                launch.shared_memory_bytes,
            )
        }?;
        Ok(usize::try_from(blocks).unwrap_or(0))
    }

    unsafe fn registers_and_local_bytes(&self, function: CUfunction) -> Result<(usize, usize)> {
        let attribute = |attribute: CUfunction_attribute| -> Result<usize> {
            let mut value = 0;
            // SAFETY: `value` is writable, the function the caller's duty.
            unsafe { self.api().cuFuncGetAttribute(&raw mut value, attribute as u32, function) }?;
            Ok(usize::try_from(value).unwrap_or(0))
        };
        Ok((
            attribute(CUfunction_attribute::CU_FUNC_ATTRIBUTE_NUM_REGS)?,
            attribute(CUfunction_attribute::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?,
        ))
    }

    unsafe fn launch(
        &self,
        function: CUfunction,
        launch: &Launch,
        parameters: &mut [*mut c_void],
        stream: &Stream,
    ) -> Result<()> {
        let [x, y, z] = launch.grid;
        // SAFETY: function and parameters are the caller's duty, and the driver only reads them.
        unsafe {
            self.api().cuLaunchKernel(
                function,
                x,
                y,
                z,
                launch.block_threads,
                1,
                1,
                launch.shared_memory_bytes as u32,
                handle(stream),
                parameters.as_mut_ptr(),
                ptr::null_mut(),
            )
        }
    }
}

/// The driver's handle of a stream.
fn handle(stream: &Stream) -> CUstream {
    debug_assert!(matches!(stream.device(), DeviceId::Cuda(_)), "{stream:?} is no stream of this backend");
    ptr::with_exposed_provenance_mut(stream.raw() as usize)
}
