//! HIP's calls, as the host that all GPU backends share asks for them.

use std::ffi::{CStr, c_int, c_void};
use std::ptr;

use omniflash_core::{DeviceId, Error, Result, Stream};
use omniflash_device::Launch;
use omniflash_gpu::Driver;

use super::Context;
use super::api::{
    HipEvent, HipFunction, HipGraph, HipGraphExec, HipModule, HipStream, OUT_OF_MEMORY, constant,
};
use super::context::Entered;

// SAFETY: HIP's handles may be used from any thread, and it locks what it shares.
unsafe impl Driver for Context {
    type Event = HipEvent;
    type CapturedGraph = HipGraph;
    type Graph = HipGraphExec;
    type Module = HipModule;
    type Function = HipFunction;
    type Entered<'d> = Entered<'d>;

    const PREPARE: &'static str = "HipBackend::prepare";
    const OUT_OF_MEMORY: i64 = OUT_OF_MEMORY;

    fn enter(&self) -> Result<Entered<'_>> {
        Context::enter(self)
    }

    fn has_memory_pools(&self) -> bool {
        self.facts().has_memory_pools
    }

    fn synchronize_device(&self) -> Result<()> {
        // SAFETY: takes nothing.
        unsafe { self.api().hipDeviceSynchronize() }
    }

    fn create_stream(&self) -> Result<u64> {
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` is writable.
        unsafe { self.api().hipStreamCreateWithFlags(&raw mut raw, constant::STREAM_NON_BLOCKING) }?;
        Ok(raw.expose_provenance() as u64)
    }

    unsafe fn destroy_stream(&self, stream: u64) -> Result<()> {
        // SAFETY: the caller's duty.
        unsafe { self.api().hipStreamDestroy(ptr::with_exposed_provenance_mut(stream as usize)) }
    }

    /// Faults of earlier launches are reported here.
    fn synchronize(&self, stream: &Stream) -> Result<()> {
        // SAFETY: whoever made the stream vouched for its handle.
        unsafe { self.api().hipStreamSynchronize(handle(stream)) }
    }

    fn is_capturing(&self, stream: &Stream) -> Result<bool> {
        let mut status = 0;
        // SAFETY: `status` is writable; whoever made the stream vouched for its handle.
        unsafe { self.api().hipStreamIsCapturing(handle(stream), &raw mut status) }?;
        Ok(status != 0)
    }

    /// Of a library without ids the handle, which a later stream can have again.
    fn stream_id(&self, stream: &Stream) -> Result<u64> {
        /// No address has this bit, and no count of streams reaches it: 0 names no stream, and ids are no handles.
        const HANDLE: u64 = 1 << 63;
        // SAFETY: whoever made the stream vouched for its handle.
        let id = unsafe { self.api().stream_id(handle(stream)) }?;
        Ok(match id {
            Some(id) => id + 1,
            None => stream.raw() | HANDLE,
        })
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        let mut address = 0;
        // SAFETY: `address` is writable.
        unsafe { self.api().hipMalloc(&raw mut address, bytes) }?;
        Ok(address)
    }

    fn allocate_on(&self, bytes: usize, stream: &Stream) -> Result<u64> {
        let mut address = 0;
        // SAFETY: `address` is writable; whoever made the stream vouched for its handle.
        unsafe { self.api().hipMallocAsync(&raw mut address, bytes, handle(stream)) }?;
        Ok(address)
    }

    unsafe fn free(&self, address: u64) -> Result<()> {
        // SAFETY: the caller's duty; the function itself waits for the device's work.
        unsafe { self.api().hipFree(address) }
    }

    unsafe fn free_on(&self, address: u64, stream: &Stream) -> Result<()> {
        // SAFETY: the caller's duty.
        unsafe { self.api().hipFreeAsync(address, handle(stream)) }
    }

    unsafe fn zero(&self, address: u64, bytes: usize, stream: &Stream) -> Result<()> {
        // SAFETY: the caller's duty.
        unsafe { self.api().hipMemsetD8Async(address, 0, bytes, handle(stream)) }
    }

    unsafe fn copy_to_device(&self, source: &[u8], target: u64, stream: &Stream) -> Result<()> {
        let (from, bytes) = (source.as_ptr().cast(), source.len());
        // SAFETY: the caller's duty.
        unsafe { self.api().hipMemcpyHtoDAsync(target, from, bytes, handle(stream)) }
    }

    unsafe fn copy_to_host(&self, source: u64, target: &mut [u8], stream: &Stream) -> Result<()> {
        let (to, bytes) = (target.as_mut_ptr().cast(), target.len());
        // SAFETY: the caller's duty.
        unsafe { self.api().hipMemcpyDtoHAsync(to, source, bytes, handle(stream)) }
    }

    fn create_event(&self) -> Result<HipEvent> {
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` is writable.
        unsafe { self.api().hipEventCreateWithFlags(&raw mut raw, 0) }?;
        Ok(raw)
    }

    unsafe fn destroy_event(&self, event: HipEvent) -> Result<()> {
        // SAFETY: the caller's duty.
        unsafe { self.api().hipEventDestroy(event) }
    }

    unsafe fn record_event(&self, event: HipEvent, stream: &Stream) -> Result<()> {
        // SAFETY: the caller's duty; whoever made the stream vouched for its handle.
        unsafe { self.api().hipEventRecord(event, handle(stream)) }
    }

    unsafe fn synchronize_event(&self, event: HipEvent) -> Result<()> {
        // SAFETY: the caller's duty.
        unsafe { self.api().hipEventSynchronize(event) }
    }

    unsafe fn elapsed_ms(&self, begin: HipEvent, end: HipEvent) -> Result<f32> {
        let mut elapsed_ms = 0.0;
        // SAFETY: `elapsed_ms` is writable, the events are the caller's duty.
        unsafe { self.api().hipEventElapsedTime(&raw mut elapsed_ms, begin, end) }?;
        Ok(elapsed_ms)
    }

    fn begin_capture(&self, stream: &Stream) -> Result<()> {
        let mode = constant::CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: whoever made the stream vouched for its handle.
        unsafe { self.api().hipStreamBeginCapture(handle(stream), mode) }
    }

    fn end_capture(&self, stream: &Stream) -> Result<HipGraph> {
        let mut graph = ptr::null_mut();
        // SAFETY: `graph` is writable; whoever made the stream vouched for its handle.
        unsafe { self.api().hipStreamEndCapture(handle(stream), &raw mut graph) }?;
        Ok(graph)
    }

    unsafe fn instantiate_graph(&self, captured: HipGraph) -> Result<HipGraphExec> {
        let mut raw = ptr::null_mut();
        let (no_node, no_log) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: `raw` is writable, the graph is the caller's duty; neither the failing node nor a log is asked for.
        unsafe { self.api().hipGraphInstantiate(&raw mut raw, captured, no_node, no_log, 0) }?;
        Ok(raw)
    }

    unsafe fn destroy_captured_graph(&self, captured: HipGraph) -> Result<()> {
        // SAFETY: the caller's duty.
        unsafe { self.api().hipGraphDestroy(captured) }
    }

    unsafe fn launch_graph(&self, graph: HipGraphExec, stream: &Stream) -> Result<()> {
        // SAFETY: the caller's duty.
        unsafe { self.api().hipGraphLaunch(graph, handle(stream)) }
    }

    unsafe fn destroy_graph(&self, graph: HipGraphExec) -> Result<()> {
        // SAFETY: the caller's duty.
        unsafe { self.api().hipGraphExecDestroy(graph) }
    }

    fn load_module(&self, image: &[u8]) -> Result<HipModule> {
        check_image(image)?;
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` is writable, and the image is an ELF file, whose own headers say how long it is.
        unsafe { self.api().hipModuleLoadData(&raw mut raw, image.as_ptr().cast()) }?;
        Ok(raw)
    }

    unsafe fn unload_module(&self, module: HipModule) -> Result<()> {
        // SAFETY: the caller's duty.
        unsafe { self.api().hipModuleUnload(module) }
    }

    /// HIP asks for no leave to use shared memory: a block can have what the device has.
    unsafe fn function(
        &self,
        module: HipModule,
        name: &CStr,
        _shared_memory_bytes: usize,
    ) -> Result<HipFunction> {
        let mut function = ptr::null_mut();
        // SAFETY: `function` is writable, the name zero-terminated, the module the caller's duty.
        unsafe { self.api().hipModuleGetFunction(&raw mut function, module, name.as_ptr()) }?;
        Ok(function)
    }

    unsafe fn blocks_per_multiprocessor(&self, function: HipFunction, launch: &Launch) -> Result<usize> {
        let mut blocks = 0;
        // SAFETY: `blocks` is writable, the function the caller's duty.
        unsafe {
            self.api().hipModuleOccupancyMaxActiveBlocksPerMultiprocessor(
                &raw mut blocks,
                function,
                launch.block_threads as c_int,
                launch.shared_memory_bytes,
            )
        }?;
        Ok(usize::try_from(blocks).unwrap_or(0))
    }

    unsafe fn registers_and_local_bytes(&self, function: HipFunction) -> Result<(usize, usize)> {
        let attribute = |attribute: u32| -> Result<usize> {
            let mut value = 0;
            // SAFETY: `value` is writable, the function the caller's duty.
            unsafe { self.api().hipFuncGetAttribute(&raw mut value, attribute, function) }?;
            Ok(usize::try_from(value).unwrap_or(0))
        };
        Ok((attribute(constant::FUNCTION_REGISTERS)?, attribute(constant::FUNCTION_LOCAL_BYTES)?))
    }

    unsafe fn launch(
        &self,
        function: HipFunction,
        launch: &Launch,
        parameters: &mut [*mut c_void],
        stream: &Stream,
    ) -> Result<()> {
        let [x, y, z] = launch.grid;
        // SAFETY: function and parameters are the caller's duty, and HIP only reads them.
        unsafe {
            self.api().hipModuleLaunchKernel(
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

/// HIP's handle of a stream.
fn handle(stream: &Stream) -> HipStream {
    debug_assert!(matches!(stream.device(), DeviceId::Hip(_)), "{stream:?} is no stream of this backend");
    ptr::with_exposed_provenance_mut(stream.raw() as usize)
}

/// The driver takes an address and reads as far as the headers there tell it to: what it is given must be a code
/// object, and whole.
fn check_image(image: &[u8]) -> Result<()> {
    let field = |at: usize, bytes: usize| -> Option<u64> {
        let mut value = [0; 8];
        value[..bytes].copy_from_slice(image.get(at..at + bytes)?);
        Some(u64::from_le_bytes(value))
    };
    // The section headers of a 64-bit ELF file come last: where, how long each, how many.
    let end = (|| field(0x28, 8)?.checked_add(field(0x3a, 2)? * field(0x3c, 2)?))();
    let is_whole = image.starts_with(b"\x7fELF\x02\x01") && end.is_some_and(|end| end <= image.len() as u64);
    if is_whole { Ok(()) } else { Err(Error::value("kernel", "a damaged image", "a whole AMD code object")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_image_never_reaches_the_driver() {
        let mut image = vec![0; 128];
        image[..6].copy_from_slice(b"\x7fELF\x02\x01");
        image[0x28] = 64;
        image[0x3a] = 64;
        image[0x3c] = 1;
        assert!(check_image(&image).is_ok());
        for cut in [0, 5, 63, 127] {
            assert!(check_image(&image[..cut]).is_err(), "{cut}");
        }
        assert!(
            check_image(b"no code object, but long enough to have the fields of a header that is one")
                .is_err()
        );
    }
}
