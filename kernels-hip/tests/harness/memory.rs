//! The memory of an emulated device, and what of the host lies where in it.

use omniflash_device::{PeakKernel, PeakParameters};
use omniflash_hip_emulator::{Configuration, Counters, Device, Dimensions};
use omniflash_kernels_hip::{Architecture, Launch};
use omniflash_testkit::kernel::KernelDevice;

use super::module::Module;

pub(crate) struct Memory {
    device: Device,
    /// Host address, bytes, device address.
    regions: Vec<(u64, usize, u64)>,
    allocations: Vec<u64>,
}

fn address_of(bytes: &[u8]) -> u64 {
    bytes.as_ptr().expose_provenance() as u64
}

impl Memory {
    pub(crate) fn new(architecture: Architecture) -> Self {
        let device = Device::new(architecture.name().parse().unwrap(), Configuration::default());
        Memory { device, regions: Vec::new(), allocations: Vec::new() }
    }

    pub(crate) fn allocate(&mut self, bytes: usize) -> u64 {
        let address = self.device.allocate(bytes).unwrap();
        self.allocations.push(address);
        address
    }

    /// Runs a peak kernel, and says what that took.
    pub(crate) fn run_peak(
        &mut self,
        kernel: &PeakKernel,
        blocks: u32,
        parameters: &PeakParameters,
    ) -> Counters {
        let module = Module::build(kernel.arch.parse().unwrap(), &kernel.unit);
        let launch =
            Launch { grid: [blocks, 1, 1], block_threads: kernel.block_threads, shared_memory_bytes: 0 };
        self.device.reset_counters();
        self.run(&module, launch, bytemuck::bytes_of(parameters), &[]);
        self.device.counters()
    }

    fn find(&self, address: u64) -> Option<u64> {
        let inside = |&&(host, bytes, _): &&(u64, usize, u64)| (host..host + bytes as u64).contains(&address);
        self.regions.iter().find(inside).map(|(host, _, device)| device + (address - host))
    }

    pub(crate) fn run(&mut self, module: &Module, launch: Launch, parameters: &[u8], functors: &[u8]) {
        let mut arguments = parameters.to_vec();
        if !functors.is_empty() {
            arguments.resize(arguments.len().next_multiple_of(16), 0);
            arguments.extend(functors);
        }
        let loaded = self.device.load(&module.code_object).unwrap();
        let dimensions = Dimensions {
            grid: launch.grid,
            block: [launch.block_threads, 1, 1],
            dynamic_lds_bytes: launch.shared_memory_bytes as u32,
        };
        self.device
            .launch(&loaded, module.entry, dimensions, &arguments)
            .unwrap_or_else(|error| panic!("{}: {error}", self.device.target()));
        self.device.unload(loaded).unwrap();
    }
}

impl KernelDevice for Memory {
    fn upload(&mut self, bytes: &[u8]) -> u64 {
        let address = self.allocate(bytes.len());
        self.device.write(address, bytes).unwrap();
        self.regions.push((address_of(bytes), bytes.len(), address));
        address
    }

    fn download(&mut self, bytes: &mut [u8]) {
        if let Some(address) = self.find(address_of(bytes)) {
            bytes.copy_from_slice(&self.device.read(address, bytes.len()).unwrap());
        }
    }

    fn translate(&self, words: &mut [u8]) {
        for word in words.as_chunks_mut::<8>().0 {
            if let Some(address) = self.find(u64::from_ne_bytes(*word)) {
                *word = address.to_ne_bytes();
            }
        }
    }
}

/// Frees everything, and with it checks that nothing was written beside it.
impl Drop for Memory {
    fn drop(&mut self) {
        for address in std::mem::take(&mut self.allocations) {
            let freed = self.device.free(address);
            assert!(freed.is_ok() || std::thread::panicking(), "{freed:?}");
        }
    }
}
