//! The devices that can be imitated and what differs between them.

use std::fmt;
use std::str::FromStr;

/// A processor whose machine code the emulator executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// CDNA 2: MI210, MI250.
    Gfx90a,
    /// CDNA 3: MI300, MI325.
    Gfx942,
    /// CDNA 4: MI350, MI355.
    Gfx950,
    /// RDNA 3: RX 7900.
    Gfx1100,
    /// RDNA 4: RX 9060.
    Gfx1200,
    /// RDNA 4: RX 9070, R9700.
    Gfx1201,
}

/// How a target counts outstanding memory operations, encodes modifiers and lays out matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    Cdna,
    Rdna3,
    Rdna4,
}

impl Target {
    /// Every target, in the order of their numbers.
    pub const ALL: [Target; 6] =
        [Target::Gfx90a, Target::Gfx942, Target::Gfx950, Target::Gfx1100, Target::Gfx1200, Target::Gfx1201];

    /// The processor's name as LLVM and the HIP runtime spell it.
    pub fn name(self) -> &'static str {
        match self {
            Target::Gfx90a => "gfx90a",
            Target::Gfx942 => "gfx942",
            Target::Gfx950 => "gfx950",
            Target::Gfx1100 => "gfx1100",
            Target::Gfx1200 => "gfx1200",
            Target::Gfx1201 => "gfx1201",
        }
    }

    /// The name with the feature settings that a HIP device reports in `gcnArchName`.
    pub fn full_name(self) -> &'static str {
        match self {
            Target::Gfx90a => "gfx90a:sramecc+:xnack-",
            Target::Gfx942 => "gfx942:sramecc+:xnack-",
            Target::Gfx950 => "gfx950:sramecc+:xnack-",
            Target::Gfx1100 => "gfx1100",
            Target::Gfx1200 => "gfx1200",
            Target::Gfx1201 => "gfx1201",
        }
    }

    /// Lanes in a wave: 64 on CDNA, 32 on RDNA.
    pub fn wave_size(self) -> usize {
        match self.family() {
            Family::Cdna => 64,
            Family::Rdna3 | Family::Rdna4 => 32,
        }
    }

    /// The most LDS that a workgroup may use, in bytes.
    pub fn lds_bytes(self) -> usize {
        if self == Target::Gfx950 { 160 << 10 } else { 64 << 10 }
    }

    /// The bits of M0 that are the LDS address of a direct load: as many as the largest LDS needs.
    pub(crate) fn direct_load_mask(self) -> u32 {
        self.lds_bytes().next_power_of_two() as u32 - 1
    }

    /// Compute units (multiprocessors) that the device reports.
    pub fn compute_units(self) -> u32 {
        match self {
            Target::Gfx90a => 110,
            Target::Gfx942 => 304,
            Target::Gfx950 => 256,
            Target::Gfx1100 => 48,
            Target::Gfx1200 => 16,
            Target::Gfx1201 => 32,
        }
    }

    /// Memory that the device reports, in bytes.
    pub fn memory_bytes(self) -> u64 {
        match self {
            Target::Gfx90a => 64 << 30,
            Target::Gfx942 => 192 << 30,
            Target::Gfx950 => 288 << 30,
            Target::Gfx1100 => 24 << 30,
            Target::Gfx1200 | Target::Gfx1201 => 16 << 30,
        }
    }

    /// LDS banks of four bytes that one compute unit serves in one cycle.
    pub(crate) fn lds_banks(self) -> usize {
        if self == Target::Gfx950 { 64 } else { 32 }
    }

    pub(crate) fn family(self) -> Family {
        match self {
            Target::Gfx90a | Target::Gfx942 | Target::Gfx950 => Family::Cdna,
            Target::Gfx1100 => Family::Rdna3,
            Target::Gfx1200 | Target::Gfx1201 => Family::Rdna4,
        }
    }

    /// Major and minor number of the instruction set, as `hipDeviceProp_t` splits the name.
    pub(crate) fn version(self) -> (i32, i32) {
        match self {
            Target::Gfx90a => (9, 0),
            Target::Gfx942 => (9, 4),
            Target::Gfx950 => (9, 5),
            Target::Gfx1100 => (11, 0),
            Target::Gfx1200 | Target::Gfx1201 => (12, 0),
        }
    }

    /// The target of an ELF header's `EF_AMDGPU_MACH` value.
    pub(crate) fn from_machine(machine: u32) -> Option<Target> {
        Some(match machine {
            0x3f => Target::Gfx90a,
            0x4c => Target::Gfx942,
            0x4f => Target::Gfx950,
            0x41 => Target::Gfx1100,
            0x48 => Target::Gfx1200,
            0x4e => Target::Gfx1201,
            _ => return None,
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A device name that is not one of [`Target::ALL`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a target of the emulator; it knows gfx90a, gfx942, gfx950, gfx1100, gfx1200 and gfx1201"
)]
pub struct UnknownTarget(pub String);

impl FromStr for Target {
    type Err = UnknownTarget;

    fn from_str(text: &str) -> Result<Target, UnknownTarget> {
        let name = text.split(':').next().unwrap_or_default();
        Target::ALL
            .into_iter()
            .find(|target| target.name() == name)
            .ok_or_else(|| UnknownTarget(text.to_string()))
    }
}
