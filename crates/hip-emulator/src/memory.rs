//! Device memory: allocations with guard zones, and the bounds check of every access.
//!
//! A device address is its host address plus [`DEVICE_OFFSET`], outside what a user process can map: host code that
//! dereferences a device pointer faults at once, as it would with a real card. Pinned host memory, code
//! and kernel arguments keep their host addresses, as in a unified address space.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use crate::fault::Violation;

/// What is added to a host address to make a device address.
pub(crate) const DEVICE_OFFSET: u64 = 1 << 47;
/// Bytes on each side of an allocation that belong to nobody.
const GUARD: usize = 256;
const GUARD_FILL: u8 = 0xfd;
/// NaN in every float type, so that a value that was never written shows.
const FRESH_FILL: u8 = 0xff;
const ALIGNMENT: usize = 256;
/// Freed allocations that an error message can still name.
const REMEMBERED: usize = 64;

/// Where an allocation came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Device,
    Pinned,
    Image,
}

/// A zone of memory between two guard zones.
struct Block {
    base: NonNull<u8>,
    layout: Layout,
    bytes: usize,
}

// SAFETY: a block owns its memory; nothing in it is tied to the thread that made it.
unsafe impl Send for Block {}

impl Block {
    fn new(bytes: usize) -> Option<Block> {
        let layout = Layout::from_size_align(bytes.checked_add(2 * GUARD)?, ALIGNMENT).ok()?;
        // SAFETY: the layout has at least the guard zones' size, which is not zero.
        let base = unsafe { alloc(layout) };
        let Some(base) = NonNull::new(base) else { handle_alloc_error(layout) };
        let block = Block { base, layout, bytes };
        // SAFETY: the block has `layout.size()` bytes and nobody else knows them yet.
        unsafe {
            base.as_ptr().write_bytes(GUARD_FILL, layout.size());
            block.start().write_bytes(FRESH_FILL, bytes);
        }
        Some(block)
    }

    fn start(&self) -> *mut u8 {
        // SAFETY: the block begins with a guard zone, so this stays inside it.
        unsafe { self.base.as_ptr().add(GUARD) }
    }

    fn guards_are_intact(&self) -> bool {
        // SAFETY: both zones lie in the block; only a host write out of bounds could touch them meanwhile.
        let (front, back) = unsafe {
            let back = self.start().add(self.bytes);
            (std::slice::from_raw_parts(self.base.as_ptr(), GUARD), std::slice::from_raw_parts(back, GUARD))
        };
        front.iter().chain(back).all(|&byte| byte == GUARD_FILL)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `new` and freed only here.
        unsafe { dealloc(self.base.as_ptr(), self.layout) }
    }
}

struct Allocation {
    block: Block,
    serial: u64,
    origin: Origin,
}

/// The allocations of one device.
#[derive(Default)]
pub(crate) struct Memory {
    allocations: BTreeMap<u64, Allocation>,
    freed: Vec<Range>,
    next_serial: u64,
    bytes_in_use: u64,
    peak_bytes: u64,
}

/// Why memory could not be freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FreeError {
    Unknown,
    GuardOverwritten,
}

impl Memory {
    /// Allocates; the result is the address that the device and the API use.
    pub(crate) fn allocate(&mut self, bytes: usize, origin: Origin) -> Option<u64> {
        let block = Block::new(bytes)?;
        let host = block.start() as u64;
        // gfx12 sign-extends the program counter from 48 bits, so code cannot lie at a device address.
        let address = if origin == Origin::Device { host + DEVICE_OFFSET } else { host };
        self.next_serial += 1;
        if origin != Origin::Image {
            self.bytes_in_use += bytes as u64;
            self.peak_bytes = self.peak_bytes.max(self.bytes_in_use);
        }
        self.allocations.insert(address, Allocation { block, serial: self.next_serial, origin });
        Some(address)
    }

    /// Frees an allocation by its first address.
    pub(crate) fn free(&mut self, address: u64, origin: Origin) -> Result<(), FreeError> {
        if self.allocations.get(&address).is_none_or(|allocation| allocation.origin != origin) {
            return Err(FreeError::Unknown);
        }
        let allocation = self.allocations.remove(&address).ok_or(FreeError::Unknown)?;
        if origin != Origin::Image {
            self.bytes_in_use -= allocation.block.bytes as u64;
        }
        if self.freed.len() == REMEMBERED {
            self.freed.remove(0);
        }
        self.freed.push(Range::of(address, &allocation));
        if allocation.block.guards_are_intact() { Ok(()) } else { Err(FreeError::GuardOverwritten) }
    }

    /// Allocations that are neither freed nor a module's image, and their bytes.
    pub(crate) fn live(&self) -> (usize, u64) {
        let count = self.allocations.values().filter(|allocation| allocation.origin != Origin::Image).count();
        (count, self.bytes_in_use)
    }

    /// The most bytes that were allocated at once.
    pub(crate) fn peak_bytes(&self) -> u64 {
        self.peak_bytes
    }

    /// The allocation that contains `address`: its first address, bytes and origin.
    pub(crate) fn find(&self, address: u64) -> Option<(u64, usize, Origin)> {
        let (&start, allocation) = self.allocations.range(..=address).next_back()?;
        let contains = address - start < allocation.block.bytes.max(1) as u64;
        contains.then_some((start, allocation.block.bytes, allocation.origin))
    }

    /// A host pointer to `bytes` bytes at a device address, if they lie in one allocation.
    pub(crate) fn resolve(&self, address: u64, bytes: usize) -> Option<*mut u8> {
        let (start, size, _) = self.find(address)?;
        let is_inside = (address - start) as usize + bytes <= size;
        is_inside.then(|| host_pointer(address))
    }

    /// The allocations as a kernel sees them, with `extra` read-only ranges (kernel arguments).
    pub(crate) fn view(&self, extra: &[(u64, u64)]) -> View {
        let mut ranges: Vec<Range> =
            self.allocations.iter().map(|(&address, allocation)| Range::of(address, allocation)).collect();
        ranges.extend(extra.iter().map(|&(start, bytes)| Range { start, bytes, serial: 0 }));
        ranges.sort_unstable_by_key(|range| range.start);
        View { ranges, freed: self.freed.clone() }
    }
}

/// The host pointer behind an address.
pub(crate) fn host_pointer(address: u64) -> *mut u8 {
    std::ptr::with_exposed_provenance_mut((address & (DEVICE_OFFSET - 1)) as usize)
}

#[derive(Clone, Copy, Debug)]
struct Range {
    start: u64,
    bytes: u64,
    serial: u64,
}

impl Range {
    fn of(address: u64, allocation: &Allocation) -> Range {
        Range { start: address, bytes: allocation.block.bytes as u64, serial: allocation.serial }
    }

    fn contains(&self, first: u64, end: u64) -> bool {
        first >= self.start && end >= first && end <= self.start + self.bytes
    }
}

/// The memory that one launch may touch. Nothing is freed while a launch runs.
pub(crate) struct View {
    ranges: Vec<Range>,
    freed: Vec<Range>,
}

impl View {
    /// Checks that `[first, end)` lies in one allocation; `recent` is the index that matched last.
    #[inline]
    pub(crate) fn contains(&self, recent: &mut usize, first: u64, end: u64) -> bool {
        if self.ranges.get(*recent).is_some_and(|range| range.contains(first, end)) {
            return true;
        }
        let at = self.ranges.partition_point(|range| range.start <= first);
        if at > 0 && self.ranges[at - 1].contains(first, end) {
            *recent = at - 1;
            return true;
        }
        false
    }

    /// Says which allocation an address misses and by how much.
    #[cold]
    pub(crate) fn describe(&self, what: &str, lane: usize, address: u64, bytes: u64) -> Violation {
        let near = |ranges: &[Range]| {
            let distance = |range: &Range| {
                if address < range.start { range.start - address } else { address - range.start.min(address) }
            };
            ranges.iter().filter(|range| range.serial != 0).min_by_key(|range| distance(range)).copied()
        };
        let freed = self.freed.iter().rev().find(|range| range.contains(address, address + bytes));
        let place = if let Some(range) = freed {
            format!("inside allocation #{} ({} bytes), which was freed", range.serial, range.bytes)
        } else if let Some(range) = near(&self.ranges) {
            let end = range.start + range.bytes;
            let name = format!("allocation #{} ({} bytes)", range.serial, range.bytes);
            if address >= end {
                format!("{} bytes past the end of {name}", address - end)
            } else if address < range.start {
                format!("{} bytes before {name}", range.start - address)
            } else {
                format!("across the end of {name}, at its byte {}", address - range.start)
            }
        } else {
            "no allocation exists".to_string()
        };
        Violation::OutOfBounds(format!("{what} of {bytes} bytes at {address:#x} by lane {lane}: {place}"))
    }
}

/// Reads `N` dwords at an address that a [`View`] has checked.
///
/// # Safety
/// The bytes must lie in a live allocation.
#[inline]
pub(crate) unsafe fn read_dword(address: u64) -> u32 {
    let pointer = host_pointer(address);
    if address & 3 == 0 {
        // SAFETY: live memory by the caller's promise, aligned by the test; other workgroups may write it at the
        // same time, hence the atomic.
        unsafe { AtomicU32::from_ptr(pointer.cast()) }.load(Ordering::Relaxed)
    } else {
        let byte = |i: usize| {
            // SAFETY: live memory by the caller's promise; bytes are always aligned.
            u32::from(unsafe { AtomicU8::from_ptr(pointer.add(i)) }.load(Ordering::Relaxed))
        };
        byte(0) | byte(1) << 8 | byte(2) << 16 | byte(3) << 24
    }
}

/// Reads one or two bytes.
///
/// # Safety
/// The bytes must lie in a live allocation.
#[inline]
pub(crate) unsafe fn read_small(address: u64, bytes: u32) -> u32 {
    let pointer = host_pointer(address);
    if bytes == 2 && address & 1 == 0 {
        // SAFETY: as in `read_dword`.
        return u32::from(unsafe { AtomicU16::from_ptr(pointer.cast()) }.load(Ordering::Relaxed));
    }
    (0..bytes).fold(0, |value, i| {
        // SAFETY: as in `read_dword`.
        value
            | u32::from(unsafe { AtomicU8::from_ptr(pointer.add(i as usize)) }.load(Ordering::Relaxed))
                << (8 * i)
    })
}

/// Writes a dword.
///
/// # Safety
/// The bytes must lie in a live allocation.
#[inline]
pub(crate) unsafe fn write_dword(address: u64, value: u32) {
    let pointer = host_pointer(address);
    if address & 3 == 0 {
        // SAFETY: as in `read_dword`.
        unsafe { AtomicU32::from_ptr(pointer.cast()) }.store(value, Ordering::Relaxed);
    } else {
        // SAFETY: the caller's promise is passed on.
        unsafe { write_small(address, 4, value) };
    }
}

/// Writes the low `bytes` bytes of a value.
///
/// # Safety
/// The bytes must lie in a live allocation.
#[inline]
pub(crate) unsafe fn write_small(address: u64, bytes: u32, value: u32) {
    let pointer = host_pointer(address);
    if bytes == 2 && address & 1 == 0 {
        // SAFETY: as in `read_dword`.
        unsafe { AtomicU16::from_ptr(pointer.cast()) }.store(value as u16, Ordering::Relaxed);
        return;
    }
    for i in 0..bytes {
        // SAFETY: as in `read_dword`.
        unsafe { AtomicU8::from_ptr(pointer.add(i as usize)) }
            .store((value >> (8 * i)) as u8, Ordering::Relaxed);
    }
}

/// An atomic read-modify-write of four or eight bytes; returns the value before.
///
/// # Safety
/// The bytes must lie in a live allocation and be aligned to their size.
pub(crate) unsafe fn update(address: u64, is_wide: bool, operation: impl Fn(u64) -> u64) -> u64 {
    let pointer = host_pointer(address);
    if is_wide {
        // SAFETY: live and aligned by the caller's promise.
        let cell = unsafe { AtomicU64::from_ptr(pointer.cast()) };
        let mut old = cell.load(Ordering::SeqCst);
        while let Err(now) =
            cell.compare_exchange_weak(old, operation(old), Ordering::SeqCst, Ordering::SeqCst)
        {
            old = now;
        }
        return old;
    }
    // SAFETY: live and aligned by the caller's promise.
    let cell = unsafe { AtomicU32::from_ptr(pointer.cast()) };
    let mut old = cell.load(Ordering::SeqCst);
    while let Err(now) =
        cell.compare_exchange_weak(old, operation(u64::from(old)) as u32, Ordering::SeqCst, Ordering::SeqCst)
    {
        old = now;
    }
    u64::from(old)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allocation_is_aligned_filled_with_nan_and_counted() {
        let mut memory = Memory::default();
        let address = memory.allocate(100, Origin::Device).unwrap();
        assert_eq!(address % 256, 0);
        assert_eq!(memory.live(), (1, 100));
        let pointer = memory.resolve(address, 100).unwrap();
        // SAFETY: the allocation is live and has 100 bytes.
        assert!(f32::from_bits(unsafe { pointer.cast::<u32>().read() }).is_nan());
        assert_eq!(memory.resolve(address + 1, 100), None);
        assert_eq!(memory.free(address + 4, Origin::Device), Err(FreeError::Unknown));
        assert_eq!(memory.free(address, Origin::Device), Ok(()));
        assert_eq!((memory.live(), memory.peak_bytes()), ((0, 0), 100));
    }

    #[test]
    fn an_overwritten_guard_zone_is_noticed_when_the_allocation_is_freed() {
        let mut memory = Memory::default();
        let address = memory.allocate(16, Origin::Device).unwrap();
        // SAFETY: one byte past the allocation lies in its guard zone.
        unsafe { host_pointer(address).add(16).write(0) };
        assert_eq!(memory.free(address, Origin::Device), Err(FreeError::GuardOverwritten));
    }

    #[test]
    fn a_miss_names_the_nearest_allocation() {
        let mut memory = Memory::default();
        let address = memory.allocate(64, Origin::Device).unwrap();
        let view = memory.view(&[]);
        let mut recent = 0;
        assert!(view.contains(&mut recent, address, address + 64));
        assert!(!view.contains(&mut recent, address + 60, address + 68));
        let text = view.describe("read", 3, address + 80, 16).to_string();
        assert!(text.contains("16 bytes past the end of allocation #1 (64 bytes)"), "{text}");
        memory.free(address, Origin::Device).unwrap();
        let text = memory.view(&[]).describe("read", 0, address, 4).to_string();
        assert!(text.contains("which was freed"), "{text}");
    }
}
