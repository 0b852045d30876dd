//! Compiled kernels on a device, and their launch.

use std::ffi::{CString, c_int, c_void};
use std::ptr;
use std::sync::Arc;

use omniflash_core::{Error, Result, Stream};

use super::api::{HipFunction, HipModule, constant};
use super::{Context, stream};

/// The most parameters of a kernel: the struct and the functors.
const MOST_PARAMETERS: usize = 2;

/// One kernel of a loaded code object.
#[derive(Debug)]
pub(crate) struct Module {
    context: Arc<Context>,
    raw: HipModule,
    function: HipFunction,
    /// The driver may go on reading the image that it was given.
    _image: Arc<[u8]>,
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
    /// Loads a code object and finds a kernel in it.
    ///
    /// # Errors
    /// [`Error::Value`] for what is no ELF file, [`Error::Driver`].
    pub(crate) fn load(context: &Arc<Context>, image: &Arc<[u8]>, kernel: &str) -> Result<Self> {
        check_image(image)?;
        let name =
            CString::new(kernel).map_err(|_| Error::value("kernel", kernel, "a name without zeros"))?;
        let _entered = context.enter()?;
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` is writable, and the image is an ELF file, whose own headers say how long it is.
        unsafe { context.api().hipModuleLoadData(&raw mut raw, image.as_ptr().cast()) }?;
        let mut module = Module {
            context: Arc::clone(context),
            raw,
            function: ptr::null_mut(),
            _image: Arc::clone(image),
        };
        // SAFETY: the function is writable, the module loaded, the name zero-terminated.
        unsafe { context.api().hipModuleGetFunction(&raw mut module.function, raw, name.as_ptr()) }?;
        Ok(module)
    }

    /// Blocks of the kernel that fit on one compute unit at a time.
    pub(crate) fn blocks_per_multiprocessor(&self, launch: &Launch) -> Result<usize> {
        let _entered = self.context.enter()?;
        let mut blocks = 0;
        // SAFETY: `blocks` is writable and the function is loaded.
        unsafe {
            self.context.api().hipModuleOccupancyMaxActiveBlocksPerMultiprocessor(
                &raw mut blocks,
                self.function,
                launch.block_threads as c_int,
                launch.shared_memory_bytes,
            )
        }?;
        Ok(usize::try_from(blocks).unwrap_or(0))
    }

    /// Vector registers of a thread, and its bytes of scratch memory: what a kernel spills.
    pub(crate) fn registers_and_local_bytes(&self) -> Result<(usize, usize)> {
        let _entered = self.context.enter()?;
        let attribute = |attribute: u32| -> Result<usize> {
            let mut value = 0;
            // SAFETY: `value` is writable and the function is loaded.
            unsafe { self.context.api().hipFuncGetAttribute(&raw mut value, attribute, self.function) }?;
            Ok(usize::try_from(value).unwrap_or(0))
        };
        Ok((attribute(constant::FUNCTION_REGISTERS)?, attribute(constant::FUNCTION_LOCAL_BYTES)?))
    }

    /// Enqueues the kernel; the driver copies the parameters before the call returns.
    ///
    /// # Errors
    /// [`Error::Driver`].
    ///
    /// # Safety
    /// - Each of `parameters`, at most two, is the bytes of the kernel's parameter at its place, at least as long.
    /// - What those bytes address is valid until the stream has passed the launch, and used by nothing else in a
    ///   way that conflicts.
    pub(crate) unsafe fn launch(&self, launch: &Launch, parameters: &[&[u8]], on: &Stream) -> Result<()> {
        let _entered = self.context.enter()?;
        let mut pointers = [ptr::null_mut::<c_void>(); MOST_PARAMETERS];
        for (pointer, parameter) in pointers[..parameters.len()].iter_mut().zip(parameters) {
            *pointer = parameter.as_ptr().cast_mut().cast();
        }
        let [x, y, z] = launch.grid;
        // SAFETY: the function is loaded, the parameters are the caller's duty, and the driver only reads them.
        unsafe {
            self.context.api().hipModuleLaunchKernel(
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
        self.context.release("a module", |api| {
            // Kernels of the module may still be running.
            // SAFETY: takes nothing.
            let waited = unsafe { api.hipDeviceSynchronize() };
            // Even after a fault, which ends the work too.
            // SAFETY: loaded in `load`, unloaded only here, and no kernel of it is running any more.
            unsafe { api.hipModuleUnload(self.raw) }.and(waited)
        });
    }
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
