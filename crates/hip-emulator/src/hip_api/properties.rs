//! `hipDeviceProp_t` in its two layouts, and the same facts by attribute number.

use std::ffi::c_int;

use crate::target::{Family, Target};

/// The marketing name that a card of this target has.
pub(crate) fn product_name(target: Target) -> &'static str {
    match target {
        Target::Gfx90a => "AMD Instinct MI250X (emulated)",
        Target::Gfx942 => "AMD Instinct MI300X (emulated)",
        Target::Gfx950 => "AMD Instinct MI355X (emulated)",
        Target::Gfx1100 => "AMD Radeon RX 7900 XTX (emulated)",
        Target::Gfx1200 => "AMD Radeon RX 9060 XT (emulated)",
        Target::Gfx1201 => "AMD Radeon RX 9070 XT (emulated)",
    }
}

fn clock_khz(target: Target) -> i32 {
    match target {
        Target::Gfx90a => 1_700_000,
        Target::Gfx942 => 2_100_000,
        Target::Gfx950 => 2_400_000,
        Target::Gfx1100 => 2_500_000,
        Target::Gfx1200 => 3_130_000,
        Target::Gfx1201 => 2_970_000,
    }
}

fn l2_bytes(target: Target) -> i32 {
    match target {
        Target::Gfx90a => 8 << 20,
        Target::Gfx942 | Target::Gfx950 => 4 << 20,
        Target::Gfx1100 => 6 << 20,
        Target::Gfx1200 => 4 << 20,
        Target::Gfx1201 => 8 << 20,
    }
}

fn memory_clock_khz(target: Target) -> i32 {
    if target.family() == Family::Cdna { 1_600_000 } else { 1_250_000 }
}

fn memory_bus_bits(target: Target) -> i32 {
    match target {
        Target::Gfx90a => 4096,
        Target::Gfx942 | Target::Gfx950 => 8192,
        Target::Gfx1100 => 384,
        Target::Gfx1200 => 128,
        Target::Gfx1201 => 256,
    }
}

fn threads_of_unit(target: Target) -> i32 {
    if target.family() == Family::Cdna { 2048 } else { 1024 }
}

/// An attribute of `hipDeviceAttribute_t` by its number.
pub(crate) fn attribute(target: Target, number: c_int, device: c_int) -> Option<c_int> {
    let (major, minor) = target.version();
    Some(match number {
        2 => 8,                                 // AsyncEngineCount
        5 => clock_khz(target),                 // ClockRate
        19 => l2_bytes(target),                 // L2CacheSize
        23 => major,                            // ComputeCapabilityMajor
        26..=28 => 1024,                        // MaxBlockDim
        29 => i32::MAX,                         // MaxGridDimX
        30 | 31 => 0xffff,                      // MaxGridDimY, Z
        56 => 1024,                             // MaxThreadsPerBlock
        57 => threads_of_unit(target),          // MaxThreadsPerMultiProcessor
        59 => memory_bus_bits(target),          // MemoryBusWidth
        60 => memory_clock_khz(target),         // MemoryClockRate
        61 => minor,                            // ComputeCapabilityMinor
        63 => target.compute_units() as c_int,  // MultiprocessorCount
        67 => device + 1,                       // PciBusId
        68 | 69 => 0,                           // PciDeviceId, PciDomainID
        71 | 72 => 0x10000,                     // MaxRegistersPerBlock, PerMultiprocessor
        74..=76 => target.lds_bytes() as c_int, // MaxSharedMemoryPerBlock, Optin, PerMultiprocessor
        81 | 82 => 256,                         // TextureAlignment, TexturePitchAlignment
        87 => target.wave_size() as c_int,      // WarpSize
        // CanMapHostMemory, ConcurrentKernels, StreamPrioritiesSupported, UnifiedAddressing, MemoryPoolsSupported
        3 | 8 | 78 | 85 | 88 => 1,
        // What a card may have and this one has not.
        0 | 4 | 6 | 7 | 9..=18 | 20 | 24 | 62 | 65 | 66 | 80 | 89..=91 => 0,
        10002 => target.lds_bytes() as c_int, // MaxSharedMemoryPerMultiprocessor
        _ => return None,
    })
}

/// Bytes of a structure, filled in by offset.
struct Layout<const N: usize>([u8; N]);

impl<const N: usize> Layout<N> {
    fn text(&mut self, offset: usize, text: &str) {
        self.0[offset..offset + text.len()].copy_from_slice(text.as_bytes());
    }

    fn int(&mut self, offset: usize, value: i32) {
        self.0[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    }

    fn size(&mut self, offset: usize, value: u64) {
        self.0[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
    }

    fn ints<const C: usize>(&mut self, offset: usize, values: [i32; C]) {
        for (at, value) in values.into_iter().enumerate() {
            self.int(offset + 4 * at, value);
        }
    }
}

/// The layout of ROCm 6 and later.
pub(crate) fn r0600(target: Target, device: c_int) -> [u8; 1472] {
    let mut p = Layout([0; 1472]);
    let lds = target.lds_bytes() as u64;
    let (major, minor) = target.version();
    p.text(0, product_name(target));
    p.size(288, target.memory_bytes());
    p.size(296, lds);
    p.int(304, 0x10000);
    p.int(308, target.wave_size() as i32);
    p.size(312, i32::MAX as u64);
    p.ints(320, [1024, 1024, 1024, 1024, i32::MAX, 0xffff, 0xffff, clock_khz(target)]);
    p.size(352, i32::MAX as u64);
    p.ints(360, [major, minor]);
    p.size(368, 256);
    p.size(376, 256);
    p.int(388, target.compute_units() as i32);
    p.int(400, 1);
    p.ints(576, [1, 0, device + 1, 0, 0, 0, 8, 1]);
    p.ints(608, [memory_clock_khz(target), memory_bus_bits(target), l2_bytes(target)]);
    p.ints(624, [threads_of_unit(target), 1]);
    p.size(640, lds);
    p.int(648, 0x10000);
    p.size(696, lds);
    p.int(712, threads_of_unit(target) / target.wave_size() as i32);
    p.int(744, 1);
    p.text(1160, target.full_name());
    p.size(1416, lds);
    p.int(1424, 100_000);
    p.0
}

/// The layout before ROCm 6.
pub(crate) fn r0000(target: Target, device: c_int) -> [u8; 792] {
    let mut p = Layout([0; 792]);
    let lds = target.lds_bytes() as u64;
    let (major, minor) = target.version();
    p.text(0, product_name(target));
    p.size(256, target.memory_bytes());
    p.size(264, lds);
    p.ints(272, [0x10000, target.wave_size() as i32, 1024, 1024, 1024, 1024, i32::MAX, 0xffff, 0xffff]);
    p.ints(308, [clock_khz(target), memory_clock_khz(target), memory_bus_bits(target)]);
    p.size(320, i32::MAX as u64);
    p.ints(328, [major, minor, target.compute_units() as i32, l2_bytes(target), threads_of_unit(target)]);
    p.ints(352, [100_000, 0, 1, 0, device + 1, 0]);
    p.size(376, lds);
    p.int(388, 1);
    p.text(396, target.full_name());
    p.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_offsets_hold_what_they_should() {
        let properties = r0600(Target::Gfx942, 0);
        let int = |at: usize| i32::from_le_bytes(properties[at..at + 4].try_into().unwrap());
        assert_eq!((int(308), int(388)), (64, 304));
        assert!(properties[1160..].starts_with(b"gfx942:sramecc+:xnack-\0"));
        let old = r0000(Target::Gfx1100, 0);
        assert!(old[396..].starts_with(b"gfx1100\0"));
        assert_eq!(attribute(Target::Gfx1100, 87, 0), Some(32));
        assert_eq!(attribute(Target::Gfx950, 74, 0), Some(160 << 10));
        assert_eq!(attribute(Target::Gfx950, 4242, 0), None);
    }
}
