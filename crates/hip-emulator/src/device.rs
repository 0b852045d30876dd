//! One imitated device: memory, modules, kernels and what they did.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::code_object::{Argument, KernelDescriptor};
use crate::configuration::Configuration;
use crate::counters::Counters;
use crate::fault::{Fault, LaunchError, LoadError};
use crate::memory::{Memory, Origin, host_pointer};
use crate::program::{Code, Program};
use crate::target::Target;
use crate::workgroup::{Launch, Worker};

/// A device of one target.
///
/// # Example
/// ```
/// use omniflash_hip_emulator::{Configuration, Device, Target};
///
/// let mut device = Device::new(Target::Gfx942, Configuration::default());
/// let buffer = device.allocate(1024).unwrap();
/// device.write(buffer, &[1, 2, 3]).unwrap();
/// assert_eq!(device.read(buffer, 3).unwrap(), [1, 2, 3]);
/// device.free(buffer).unwrap();
/// assert_eq!(device.live_allocations(), 0);
/// ```
pub struct Device {
    target: Target,
    configuration: Configuration,
    pub(crate) memory: Memory,
    pub(crate) counters: Counters,
}

/// A code object that a device has loaded.
#[derive(Clone)]
pub struct Module {
    pub(crate) program: Arc<Program>,
}

/// The shape of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dimensions {
    /// Workgroups along x, y and z.
    pub grid: [u32; 3],
    /// Work items of a workgroup along x, y and z.
    pub block: [u32; 3],
    /// LDS beyond what the kernel declares, in bytes.
    pub dynamic_lds_bytes: u32,
}

impl Dimensions {
    /// A launch without dynamic LDS.
    pub fn new(grid: [u32; 3], block: [u32; 3]) -> Dimensions {
        Dimensions { grid, block, dynamic_lds_bytes: 0 }
    }
}

/// Memory that is not what the caller takes it for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The host has no memory left.
    #[error("out of memory")]
    OutOfMemory,
    /// An address that was not allocated, or was freed.
    #[error("{0:#x} is not an allocation")]
    Unknown(u64),
    /// A range that leaves its allocation.
    #[error("{bytes} bytes at {address:#x} are not inside one allocation")]
    OutOfBounds {
        /// The first address.
        address: u64,
        /// The length of the range.
        bytes: usize,
    },
    /// Host code wrote next to the allocation.
    #[error("the guard zone of {0:#x} was overwritten")]
    GuardOverwritten(u64),
}

impl Device {
    /// A device with no memory in use.
    pub fn new(target: Target, configuration: Configuration) -> Device {
        Device { target, configuration, memory: Memory::default(), counters: Counters::default() }
    }

    /// What the device imitates.
    pub fn target(&self) -> Target {
        self.target
    }

    /// How the device executes kernels.
    pub fn configuration(&self) -> Configuration {
        self.configuration
    }

    /// Changes how the device executes kernels from now on.
    pub fn configure(&mut self, configuration: Configuration) {
        self.configuration = configuration;
    }

    /// What kernels did since the last reset.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Sets every counter to zero.
    pub fn reset_counters(&mut self) {
        self.counters = Counters::default();
    }

    /// Allocates device memory filled with NaN; the address is aligned to 256 bytes.
    ///
    /// # Errors
    /// [`MemoryError::OutOfMemory`].
    pub fn allocate(&mut self, bytes: usize) -> Result<u64, MemoryError> {
        self.memory.allocate(bytes, Origin::Device).ok_or(MemoryError::OutOfMemory)
    }

    /// Frees an allocation and checks its guard zones.
    ///
    /// # Errors
    /// [`MemoryError::Unknown`], [`MemoryError::GuardOverwritten`].
    pub fn free(&mut self, address: u64) -> Result<(), MemoryError> {
        self.memory.free(address, Origin::Device).map_err(|error| match error {
            crate::memory::FreeError::Unknown => MemoryError::Unknown(address),
            crate::memory::FreeError::GuardOverwritten => MemoryError::GuardOverwritten(address),
        })
    }

    /// Allocations that have not been freed.
    pub fn live_allocations(&self) -> usize {
        self.memory.live().0
    }

    /// Copies to device memory.
    ///
    /// # Errors
    /// [`MemoryError::OutOfBounds`].
    pub fn write(&mut self, address: u64, data: &[u8]) -> Result<(), MemoryError> {
        let pointer = self.resolve(address, data.len())?;
        // SAFETY: the range lies in a live allocation, which no host slice overlaps.
        unsafe { pointer.copy_from_nonoverlapping(data.as_ptr(), data.len()) };
        Ok(())
    }

    /// Copies from device memory.
    ///
    /// # Errors
    /// [`MemoryError::OutOfBounds`].
    pub fn read(&self, address: u64, bytes: usize) -> Result<Vec<u8>, MemoryError> {
        let pointer = self.resolve(address, bytes)?;
        // SAFETY: the range lies in a live allocation, and no kernel runs while the device is borrowed.
        Ok(unsafe { std::slice::from_raw_parts(pointer, bytes) }.to_vec())
    }

    fn resolve(&self, address: u64, bytes: usize) -> Result<*mut u8, MemoryError> {
        self.memory.resolve(address, bytes).ok_or(MemoryError::OutOfBounds { address, bytes })
    }

    /// Loads an ELF code object or an offload bundle.
    ///
    /// # Errors
    /// [`LoadError`] if it is malformed, for another target, or cannot be disassembled.
    pub fn load(&mut self, image: &[u8]) -> Result<Module, LoadError> {
        let code = Code::load(image, self.target)?;
        let base = self
            .memory
            .allocate(code.image.len() + 4096, Origin::Image)
            .ok_or_else(|| LoadError::Malformed("an image larger than memory".into()))?;
        let pointer = host_pointer(base);
        // SAFETY: the allocation was just made and is longer than the image.
        unsafe {
            pointer.write_bytes(0, code.image.len() + 4096);
            pointer.copy_from_nonoverlapping(code.image.as_ptr(), code.image.len());
        }
        Ok(Module { program: Arc::new(Program { target: self.target, base, code }) })
    }

    /// Frees a module's image; its kernels can no longer be launched.
    pub fn unload(&mut self, module: Module) -> Result<(), MemoryError> {
        let base = module.program.base;
        self.memory.free(base, Origin::Image).map_err(|_| MemoryError::Unknown(base))
    }

    /// Runs a kernel with its arguments packed as the kernel reads them.
    ///
    /// # Errors
    /// [`LaunchError::Invalid`] for an unknown kernel, an impossible shape or arguments of the wrong size,
    /// [`LaunchError::Fault`] when a checker stops the kernel.
    pub fn launch(
        &mut self,
        module: &Module,
        kernel: &str,
        dimensions: Dimensions,
        arguments: &[u8],
    ) -> Result<(), LaunchError> {
        let invalid = |text: String| Err(LaunchError::Invalid(text));
        let Some(descriptor) = module.program.code.kernels.get(kernel) else {
            return invalid(format!("no kernel {kernel} in the module"));
        };
        self.check(kernel, descriptor, dimensions)?;
        let lds_bytes = descriptor.lds_bytes as usize + dimensions.dynamic_lds_bytes as usize;
        let mut kernarg = Aligned::zeroed(descriptor.kernarg_bytes as usize);
        let explicit = explicit_bytes(descriptor);
        if arguments.len() < explicit || arguments.len() > kernarg.bytes().len() {
            return invalid(format!(
                "{kernel} takes {explicit} bytes of arguments, {} were given",
                arguments.len()
            ));
        }
        kernarg.bytes_mut()[..arguments.len()].copy_from_slice(arguments);
        if arguments.len() < kernarg.bytes().len() {
            fill_hidden(kernarg.bytes_mut(), &descriptor.metadata.arguments, dimensions);
        }
        let packet = dispatch_packet(dimensions, descriptor, lds_bytes);
        let ranges = [kernarg.range(), packet.range()];
        let view = self.memory.view(&ranges);
        let launch = Launch {
            name: kernel,
            program: &module.program,
            kernel: descriptor,
            grid: dimensions.grid,
            block: dimensions.block,
            kernarg: ranges[0].0,
            packet: ranges[1].0,
            lds_bytes,
            memory: &view,
            checks: self.configuration.checks,
            seed: self.configuration.seed,
        };
        let (counters, result) = run(&launch, self.configuration.threads);
        self.counters += counters;
        self.counters.launches += 1;
        result.map_err(LaunchError::Fault)
    }

    pub(crate) fn check(
        &self,
        kernel: &str,
        descriptor: &KernelDescriptor,
        dimensions: Dimensions,
    ) -> Result<(), LaunchError> {
        let invalid = |text: String| Err(LaunchError::Invalid(text));
        let items = dimensions.block.iter().try_fold(1u32, |product, &axis| product.checked_mul(axis));
        let limit = match descriptor.metadata.max_workgroup_size {
            0 => 1024,
            limit => limit.min(1024),
        };
        if items.is_none_or(|items| items == 0 || items > limit) {
            return invalid(format!(
                "{kernel} takes blocks of 1 to {limit} work items, not {:?}",
                dimensions.block
            ));
        }
        if dimensions.grid.contains(&0) || dimensions.grid[1] > 0xffff || dimensions.grid[2] > 0xffff {
            return invalid(format!("impossible grid {:?}", dimensions.grid));
        }
        let lds_bytes = descriptor.lds_bytes as usize + dimensions.dynamic_lds_bytes as usize;
        if lds_bytes > self.target.lds_bytes() {
            return invalid(format!(
                "{kernel} wants {lds_bytes} bytes of LDS; {} has {}",
                self.target,
                self.target.lds_bytes()
            ));
        }
        Ok(())
    }
}

impl Module {
    /// The names of the module's kernels.
    pub fn kernels(&self) -> impl Iterator<Item = &str> {
        self.program.code.kernels.keys().map(String::as_str)
    }
}

/// Bytes up to the end of the last argument that the caller passes.
pub(crate) fn explicit_bytes(descriptor: &KernelDescriptor) -> usize {
    let arguments = &descriptor.metadata.arguments;
    arguments
        .iter()
        .filter(|argument| !argument.is_hidden())
        .map(|argument| argument.offset + argument.bytes)
        .max()
        .unwrap_or(0)
}

/// What the runtime passes to a kernel behind its own arguments.
fn fill_hidden(kernarg: &mut [u8], arguments: &[Argument], dimensions: Dimensions) {
    let Dimensions { grid, block, dynamic_lds_bytes } = dimensions;
    let rank = 1 + (1..3).filter(|&axis| grid[axis] > 1 || block[axis] > 1).max().unwrap_or(0) as u64;
    for argument in arguments.iter().filter(|argument| argument.is_hidden()) {
        let axis = match argument.kind.bytes().last() {
            Some(b'y') => 1,
            Some(b'z') => 2,
            _ => 0,
        };
        let value = match argument.kind.trim_end_matches("_x").trim_end_matches("_y").trim_end_matches("_z") {
            "hidden_block_count" => u64::from(grid[axis]),
            "hidden_group_size" => u64::from(block[axis]),
            "hidden_grid_dims" => rank,
            "hidden_dynamic_lds_size" => u64::from(dynamic_lds_bytes),
            // Remainders and global offsets are zero: grids are whole workgroups.
            _ => 0,
        };
        if let Some(slot) = kernarg.get_mut(argument.offset..argument.offset + argument.bytes) {
            let length = slot.len().min(8);
            slot[..length].copy_from_slice(&value.to_le_bytes()[..length]);
        }
    }
}

/// The packet that `__builtin_amdgcn_dispatch_ptr` points to.
fn dispatch_packet(dimensions: Dimensions, descriptor: &KernelDescriptor, lds_bytes: usize) -> Aligned {
    let mut packet = Aligned::zeroed(64);
    let bytes = packet.bytes_mut();
    for axis in 0..3 {
        let block = dimensions.block[axis];
        bytes[4 + 2 * axis..6 + 2 * axis].copy_from_slice(&(block as u16).to_le_bytes());
        let items = dimensions.grid[axis].wrapping_mul(block);
        bytes[12 + 4 * axis..16 + 4 * axis].copy_from_slice(&items.to_le_bytes());
    }
    bytes[24..28].copy_from_slice(&descriptor.scratch_bytes.to_le_bytes());
    bytes[28..32].copy_from_slice(&(lds_bytes as u32).to_le_bytes());
    packet
}

/// Bytes aligned to eight, as kernel arguments must be.
struct Aligned {
    words: Vec<u64>,
    length: usize,
}

impl Aligned {
    fn zeroed(length: usize) -> Aligned {
        Aligned { words: vec![0; length.div_ceil(8).max(1)], length }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: the words are at least `length` bytes long and any bytes are valid.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast(), self.length) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, with the words borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.words.as_mut_ptr().cast(), self.length) }
    }

    /// The address and the bytes, rounded up: a scalar load may fetch whole dwords.
    fn range(&self) -> (u64, u64) {
        (self.words.as_ptr().expose_provenance() as u64, 8 * self.words.len() as u64)
    }
}

/// Runs every workgroup. Of several faults the one of the lowest workgroup is reported, whatever the timing.
fn run(launch: &Launch<'_>, threads: usize) -> (Counters, Result<(), Fault>) {
    let total = launch.grid.iter().map(|&axis| u64::from(axis)).product::<u64>();
    let next = AtomicU64::new(0);
    let has_failed = AtomicBool::new(false);
    let work = || {
        let mut worker = Worker::new(launch);
        let mut fault = None;
        while !has_failed.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= total {
                break;
            }
            if let Err(error) = worker.run(index) {
                has_failed.store(true, Ordering::Relaxed);
                fault = Some((index, error));
            }
        }
        (worker.counters, fault)
    };
    // Own threads, not a shared pool: a pool's worker that waits here could steal a job that calls back into HIP.
    let threads = threads.min(total as usize).max(1);
    let results: Vec<_> = if threads == 1 {
        vec![work()]
    } else {
        std::thread::scope(|scope| {
            let handles: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            handles
                .into_iter()
                .map(|handle| handle.join().expect("an emulator thread does not panic"))
                .collect()
        })
    };
    let mut counters = Counters::default();
    let mut first: Option<(u64, Fault)> = None;
    for (counted, fault) in results {
        counters += counted;
        if let Some((index, fault)) = fault
            && first.as_ref().is_none_or(|(lowest, _)| index < *lowest)
        {
            first = Some((index, fault));
        }
    }
    (counters, first.map_or(Ok(()), |(_, fault)| Err(fault)))
}
