//! Compiled kernels in a context, and their launch.

use std::ffi::{CString, c_int, c_void};
use std::ptr;
use std::sync::Arc;

use cudarc::driver::sys::{CUfunction, CUfunction_attribute, CUjit_option, CUmodule};
use omniflash_core::{Error, Result, Stream};

use super::{Context, stream};

/// Room for what the driver says when it cannot load a module.
const LOG_BYTES: usize = 16 * 1024;

/// One kernel of a loaded cubin, fatbin or PTX.
#[derive(Debug)]
pub(crate) struct Module {
    context: Arc<Context>,
    raw: CUmodule,
    function: CUfunction,
}

// SAFETY: modules and functions may be used from any thread; the handles are only addresses.
unsafe impl Send for Module {}
// SAFETY: as above; the driver locks what it shares.
unsafe impl Sync for Module {}

/// The shape of one launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Launch {
    pub(crate) grid: [u32; 3],
    pub(crate) block_threads: u32,
    pub(crate) shared_memory_bytes: usize,
}

impl Module {
    /// Loads an image and finds a kernel in it, with `shared_memory_bytes` of dynamic shared memory allowed.
    ///
    /// # Errors
    /// [`Error::Driver`], with the log of the driver's own compiler where it has one.
    pub(crate) fn load(
        context: &Arc<Context>,
        image: &[u8],
        kernel: &str,
        shared_memory_bytes: usize,
    ) -> Result<Self> {
        let _entered = context.enter()?;
        let raw = load_image(context, image)?;
        let mut module = Module { context: Arc::clone(context), raw, function: ptr::null_mut() };
        let name =
            CString::new(kernel).map_err(|_| Error::value("kernel", kernel, "a name without zeros"))?;
        // SAFETY: the function is writable, the module loaded, the name zero-terminated.
        unsafe { context.api().cuModuleGetFunction(&raw mut module.function, raw, name.as_ptr()) }?;
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as u32;
        // SAFETY: the function is loaded.
        unsafe {
            context.api().cuFuncSetAttribute(module.function, attribute, shared_memory_bytes as c_int)
        }?;
        Ok(module)
    }

    /// Blocks of the kernel that fit on one multiprocessor at a time.
    pub(crate) fn blocks_per_multiprocessor(&self, launch: &Launch) -> Result<usize> {
        let _entered = self.context.enter()?;
        let mut blocks = 0;
        // SAFETY: `blocks` is writable and the function is loaded.
        unsafe {
            self.context.api().cuOccupancyMaxActiveBlocksPerMultiprocessor(
                &raw mut blocks,
                self.function,
                launch.block_threads as c_int,
                launch.shared_memory_bytes,
            )
        }?;
        Ok(usize::try_from(blocks).unwrap_or(0))
    }

    /// Registers of a thread, and its bytes of local memory: what a kernel spills.
    pub(crate) fn registers_and_local_bytes(&self) -> Result<(usize, usize)> {
        let _entered = self.context.enter()?;
        let attribute = |attribute: CUfunction_attribute| -> Result<usize> {
            let mut value = 0;
            // SAFETY: `value` is writable and the function is loaded.
            unsafe {
                self.context.api().cuFuncGetAttribute(&raw mut value, attribute as u32, self.function)
            }?;
            Ok(usize::try_from(value).unwrap_or(0))
        };
        Ok((
            attribute(CUfunction_attribute::CU_FUNC_ATTRIBUTE_NUM_REGS)?,
            attribute(CUfunction_attribute::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?,
        ))
    }

    /// Enqueues the kernel; the driver copies the parameters before the call returns.
    ///
    /// # Errors
    /// [`Error::Driver`].
    ///
    /// # Safety
    /// - Each of `parameters` is the bytes of the kernel's parameter at its place, at least as long and as aligned.
    /// - What those bytes address is valid until the stream has passed the launch, and used by nothing else in a
    ///   way that conflicts.
    pub(crate) unsafe fn launch(&self, launch: &Launch, parameters: &[&[u8]], on: &Stream) -> Result<()> {
        let _entered = self.context.enter()?;
        let mut pointers = [ptr::null_mut::<c_void>(); 8];
        for (pointer, parameter) in pointers[..parameters.len()].iter_mut().zip(parameters) {
            *pointer = parameter.as_ptr().cast_mut().cast();
        }
        let [x, y, z] = launch.grid;
        // SAFETY: the function is loaded, the parameters are the caller's duty, and the driver only reads them.
        unsafe {
            self.context.api().cuLaunchKernel(
                self.function,
                x,
                y,
                z,
                launch.block_threads,
                1,
                1,
                launch.shared_memory_bytes as u32,
                stream::handle(on),
                pointers.as_mut_ptr(),
                ptr::null_mut(),
            )
        }
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        let unloaded = self.context.enter().and_then(|_entered| {
            // Kernels of the module may still be running.
            // SAFETY: the context is current.
            unsafe { self.context.api().cuCtxSynchronize() }?;
            // SAFETY: loaded in `load`, unloaded only here, and no kernel of it is running any more.
            unsafe { self.context.api().cuModuleUnload(self.raw) }
        });
        if let Err(error) = unloaded {
            tracing::debug!(%error, "unloading a module");
        }
    }
}

fn load_image(context: &Context, image: &[u8]) -> Result<CUmodule> {
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
    // SAFETY: the image outlives the call and is zero-terminated; the options and their values have equal length and
    // describe the log's memory.
    let loaded = unsafe {
        context.api().cuModuleLoadDataEx(
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
            let log =
                String::from_utf8_lossy(log.split(|&byte| byte == 0).next().unwrap_or_default()).into_owned();
            let text = if log.trim().is_empty() { text } else { format!("{text}\n{}", log.trim()) };
            Err(Error::Driver { api, code, text })
        }
        Err(error) => Err(error),
    }
}
