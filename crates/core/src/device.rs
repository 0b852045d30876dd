//! Devices, their memory and their queues of work.

use std::any::Any;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use memmap2::MmapMut;

use crate::error::{Error, Result};

/// A device that holds tensors and runs attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum DeviceId {
    /// The host's processor and its memory.
    Cpu,
    /// An NVIDIA GPU, by CUDA ordinal.
    Cuda(u32),
    /// An AMD GPU, by HIP ordinal.
    Hip(u32),
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceId::Cpu => f.write_str("cpu"),
            DeviceId::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            DeviceId::Hip(ordinal) => write!(f, "hip:{ordinal}"),
        }
    }
}

impl FromStr for DeviceId {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let unknown = || Error::value("device", name, "cpu, cuda, cuda:N, hip or hip:N");
        let (kind, ordinal) = match name.split_once(':') {
            Some((kind, ordinal)) => (kind, Some(ordinal.parse::<u32>().map_err(|_| unknown())?)),
            None => (name, None),
        };
        match (kind, ordinal) {
            ("cpu", None) => Ok(DeviceId::Cpu),
            ("cuda", ordinal) => Ok(DeviceId::Cuda(ordinal.unwrap_or(0))),
            ("hip", ordinal) => Ok(DeviceId::Hip(ordinal.unwrap_or(0))),
            _ => Err(unknown()),
        }
    }
}

/// Owned memory on a device, freed on drop.
pub struct Buffer {
    pointer: *mut u8,
    bytes: usize,
    device: DeviceId,
    /// Frees the memory when dropped.
    _owner: Box<dyn Any + Send + Sync>,
}

// SAFETY: a buffer is exclusive memory; the pointer is only an address, and the owner is Send + Sync.
unsafe impl Send for Buffer {}
// SAFETY: as above; shared access reads the address only.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Zeroed host memory, aligned to 64 bytes.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn host(bytes: usize) -> Result<Self> {
        let mut memory = HostMemory::zeroed(bytes)?;
        Ok(Buffer { pointer: memory.as_mut_ptr(), bytes, device: DeviceId::Cpu, _owner: Box::new(memory) })
    }

    /// Wraps memory of a device; dropping `owner` frees it.
    ///
    /// # Safety
    /// - `address..address + bytes` is memory of `device`, and nothing else uses it while `owner` lives.
    pub unsafe fn from_owner(
        address: u64,
        bytes: usize,
        device: DeviceId,
        owner: Box<dyn Any + Send + Sync>,
    ) -> Self {
        let pointer = std::ptr::with_exposed_provenance_mut(address as usize);
        Buffer { pointer, bytes, device, _owner: owner }
    }

    /// The first byte; a host pointer only when [`device`](Buffer::device) is [`DeviceId::Cpu`].
    pub fn as_ptr(&self) -> *mut u8 {
        self.pointer
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where the memory is.
    pub fn device(&self) -> DeviceId {
        self.device
    }

    /// The bytes, if they are in host memory.
    pub fn as_host_bytes(&self) -> Option<&[u8]> {
        // SAFETY: host buffers own `bytes` initialised bytes, and `&self` excludes writers.
        (self.device == DeviceId::Cpu)
            .then(|| unsafe { std::slice::from_raw_parts(self.pointer, self.bytes) })
    }

    /// The bytes to write, if they are in host memory.
    pub fn as_host_bytes_mut(&mut self) -> Option<&mut [u8]> {
        // SAFETY: host buffers own `bytes` initialised bytes, and `&mut self` is exclusive.
        (self.device == DeviceId::Cpu)
            .then(|| unsafe { std::slice::from_raw_parts_mut(self.pointer, self.bytes) })
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes on {})", self.bytes, self.device)
    }
}

/// Zeroed memory of the host, aligned to cache lines.
enum HostMemory {
    Allocated {
        pointer: *mut u8,
        layout: std::alloc::Layout,
    },
    /// Pages of its own, huge where the system has them: attention visits a tensor row by row, each on another small
    /// page, and walking the page tables then takes a few percent of its time.
    Mapped(MmapMut),
}

/// From this size on memory is mapped: two huge pages of common systems.
const MAPPED_BYTES: usize = 4 << 20;

// SAFETY: exclusive ownership of plain memory.
unsafe impl Send for HostMemory {}
// SAFETY: no interior mutability is offered through a shared reference.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    fn zeroed(bytes: usize) -> Result<Self> {
        let out_of_memory = || Error::OutOfMemory { device: DeviceId::Cpu.to_string(), bytes };
        if bytes >= MAPPED_BYTES && cfg!(target_os = "linux") {
            let map = MmapMut::map_anon(bytes).map_err(|_| out_of_memory())?;
            #[cfg(target_os = "linux")]
            // A system without huge pages refuses; the memory is as good then, only slower.
            let _ = map.advise(memmap2::Advice::HugePage);
            return Ok(HostMemory::Mapped(map));
        }
        let layout = std::alloc::Layout::from_size_align(bytes.max(1), 64).map_err(|_| out_of_memory())?;
        // SAFETY: the layout's size is at least 1.
        let pointer = unsafe { std::alloc::alloc_zeroed(layout) };
        if pointer.is_null() {
            return Err(out_of_memory());
        }
        Ok(HostMemory::Allocated { pointer, layout })
    }

    fn as_mut_ptr(&mut self) -> *mut u8 {
        match self {
            HostMemory::Allocated { pointer, .. } => *pointer,
            HostMemory::Mapped(map) => map.as_mut_ptr(),
        }
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        if let HostMemory::Allocated { pointer, layout } = self {
            // SAFETY: allocated in `zeroed` with this layout and freed only here.
            unsafe { std::alloc::dealloc(*pointer, *layout) }
        }
    }
}

/// A vector of `len` equal elements.
///
/// # Errors
/// [`Error::OutOfMemory`], where `vec!` would abort the process.
pub(crate) fn filled<T: Clone>(element: T, len: usize) -> Result<Vec<T>> {
    let mut elements = Vec::new();
    elements.try_reserve_exact(len).map_err(|_| Error::OutOfMemory {
        device: DeviceId::Cpu.to_string(),
        bytes: len.saturating_mul(size_of::<T>()),
    })?;
    elements.resize(len, element);
    Ok(elements)
}

/// An ordered queue of work on a device.
///
/// On the CPU work is done by the time a call returns, and a stream is only a name.
#[derive(Clone)]
pub struct Stream {
    device: DeviceId,
    raw: u64,
    /// Destroys the stream when the last clone is dropped; absent for foreign streams.
    _owner: Option<Arc<dyn Any + Send + Sync>>,
}

impl Stream {
    /// The host's stream: work is complete when a call returns.
    pub fn host() -> Self {
        Stream { device: DeviceId::Cpu, raw: 0, _owner: None }
    }

    /// Borrows a stream made elsewhere: a `CUstream` or `hipStream_t` as an integer, 0 for the default stream.
    ///
    /// # Safety
    /// - `raw` is a stream of `device` and outlives the result and its clones.
    pub unsafe fn from_raw(device: DeviceId, raw: u64) -> Self {
        Stream { device, raw, _owner: None }
    }

    /// Wraps a stream that `owner` destroys when it is dropped.
    ///
    /// # Safety
    /// - `raw` is a stream of `device` and lives as long as `owner`.
    pub unsafe fn from_owner(device: DeviceId, raw: u64, owner: Arc<dyn Any + Send + Sync>) -> Self {
        Stream { device, raw, _owner: Some(owner) }
    }

    /// The device the stream belongs to.
    pub fn device(&self) -> DeviceId {
        self.device
    }

    /// The vendor's handle as an integer.
    pub fn raw(&self) -> u64 {
        self.raw
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stream({}, {:#x})", self.device, self.raw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_device_name_parses_back() {
        for device in [DeviceId::Cpu, DeviceId::Cuda(3), DeviceId::Hip(0)] {
            assert_eq!(device.to_string().parse::<DeviceId>().unwrap(), device);
        }
        assert_eq!("cuda".parse::<DeviceId>().unwrap(), DeviceId::Cuda(0));
        for name in ["", "cpu:0", "cuda:", "cuda:-1", "metal", "hip:x"] {
            assert!(name.parse::<DeviceId>().is_err(), "{name}");
        }
    }

    #[test]
    fn host_buffers_are_zeroed_and_aligned() {
        let mut buffer = Buffer::host(100).unwrap();
        assert_eq!(buffer.as_ptr() as usize % 64, 0);
        assert!(buffer.as_host_bytes().unwrap().iter().all(|&byte| byte == 0));
        buffer.as_host_bytes_mut().unwrap()[99] = 7;
        assert_eq!(buffer.as_host_bytes().unwrap()[99], 7);
        assert_eq!(Buffer::host(0).unwrap().as_host_bytes().unwrap(), &[] as &[u8]);
    }

    #[test]
    fn mapped_memory_is_zeroed_aligned_and_writable() {
        let mut buffer = Buffer::host(MAPPED_BYTES + 3).unwrap();
        let bytes = buffer.as_host_bytes_mut().unwrap();
        assert!(bytes.len() == MAPPED_BYTES + 3 && bytes.iter().all(|&byte| byte == 0));
        assert_eq!(bytes.as_ptr() as usize % 64, 0);
        bytes.fill(7);
    }

    #[test]
    fn an_impossible_allocation_is_an_error() {
        assert!(matches!(Buffer::host(isize::MAX as usize), Err(Error::OutOfMemory { .. })));
        assert!(matches!(filled(0.0f64, usize::MAX), Err(Error::OutOfMemory { .. })));
        assert_eq!(filled(7u8, 3), Ok(vec![7; 3]));
    }
}
