//! The memory of an emulated device, and what of the host lies where in it.

use omniflash_device::parameters::{AttentionParameters, DeviceAddress};
use omniflash_hip_emulator::{Configuration, Device, Dimensions};
use omniflash_kernels_hip::{Architecture, Launch};

use super::module::Module;

pub(crate) struct Memory {
    device: Device,
    /// Host address, bytes, device address.
    regions: Vec<(u64, usize, u64)>,
    allocations: Vec<u64>,
}

fn address_of<T>(values: &[T]) -> u64 {
    values.as_ptr().expose_provenance() as u64
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

    pub(crate) fn upload<T>(&mut self, values: &[T]) -> u64 {
        // SAFETY: numbers without padding, read as bytes.
        let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) };
        self.upload_bytes(bytes)
    }

    pub(crate) fn upload_bytes(&mut self, bytes: &[u8]) -> u64 {
        let address = self.allocate(bytes.len());
        self.device.write(address, bytes).unwrap();
        self.regions.push((address_of(bytes), bytes.len(), address));
        address
    }

    /// Fills what was uploaded from here.
    pub(crate) fn download<T>(&self, values: &mut [T]) {
        let Some(address) = self.find(address_of(values)) else { return };
        let bytes = self.device.read(address, size_of_val(values)).unwrap();
        // SAFETY: as many bytes of numbers, any of which are valid.
        unsafe { values.as_mut_ptr().cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    fn find(&self, address: u64) -> Option<u64> {
        let inside = |&&(host, bytes, _): &&(u64, usize, u64)| (host..host + bytes as u64).contains(&address);
        self.regions.iter().find(inside).map(|(host, _, device)| device + (address - host))
    }

    /// Addresses of the host become those of the device.
    pub(crate) fn translate(&self, p: &mut AttentionParameters) {
        for address in [
            &mut p.q.data,
            &mut p.k.data,
            &mut p.v.data,
            &mut p.out.data,
            &mut p.lse.data,
            &mut p.query_lengths.data,
            &mut p.key_lengths.data,
            &mut p.block_table.data,
            &mut p.sinks.data,
        ] {
            *address = DeviceAddress(self.find(address.0).unwrap_or(0));
        }
    }

    /// The same for every word of packed parameters that is an address.
    pub(crate) fn translate_words(&self, bytes: &mut [u8]) {
        for word in bytes.as_chunks_mut::<8>().0 {
            if let Some(address) = self.find(u64::from_ne_bytes(*word)) {
                *word = address.to_ne_bytes();
            }
        }
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

    /// Frees everything, and with it checks that nothing was written beside it.
    pub(crate) fn free(mut self) {
        for address in std::mem::take(&mut self.allocations) {
            self.device.free(address).unwrap();
        }
    }
}
