//! Where kernels under test run.

/// The memory that kernels under test work on.
pub trait KernelDevice {
    /// Copies host bytes to where kernels see them; the address there.
    fn upload(&mut self, bytes: &[u8]) -> u64;

    /// Brings back what kernels wrote in place of bytes that were uploaded from here.
    fn download(&mut self, bytes: &mut [u8]);

    /// Every word that is an address in bytes that were uploaded becomes theirs on the device.
    fn translate(&self, words: &mut [u8]);
}

/// Kernels that run on the host, in its own memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostMemory;

impl KernelDevice for HostMemory {
    fn upload(&mut self, bytes: &[u8]) -> u64 {
        bytes.as_ptr().expose_provenance() as u64
    }

    fn download(&mut self, bytes: &mut [u8]) {
        // What a kernel wrote through an address that was exposed is there already.
        std::hint::black_box(bytes);
    }

    fn translate(&self, _words: &mut [u8]) {}
}
