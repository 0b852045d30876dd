//! The processors that kernels are built for.

use std::fmt;
use std::str::FromStr;

use omniflash_core::{Error, Result};

/// How clang compiles a unit for a [`Architecture`], beside `--offload-arch`, the input and the output: freestanding, one code
/// object of version 5, which every ROCm from 5 on loads. hipRTC needs only the language's version of these.
pub const COMPILER_OPTIONS: &[&str] = &[
    "-x",
    "hip",
    "--cuda-device-only",
    "--no-gpu-bundle-output",
    "-nogpuinc",
    "-nogpulib",
    "-mcode-object-version=5",
    "-std=c++20",
    "-O3",
];

/// A processor that kernels are built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Architecture {
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

impl Architecture {
    /// Every architecture, in the order of their numbers.
    pub const ALL: [Architecture; 6] = [
        Architecture::Gfx90a,
        Architecture::Gfx942,
        Architecture::Gfx950,
        Architecture::Gfx1100,
        Architecture::Gfx1200,
        Architecture::Gfx1201,
    ];

    /// The name that compilers take; a device reports it as the part of `gcnArchName` before the first colon.
    pub fn name(self) -> &'static str {
        match self {
            Architecture::Gfx90a => "gfx90a",
            Architecture::Gfx942 => "gfx942",
            Architecture::Gfx950 => "gfx950",
            Architecture::Gfx1100 => "gfx1100",
            Architecture::Gfx1200 => "gfx1200",
            Architecture::Gfx1201 => "gfx1201",
        }
    }

    /// Whether its matrix instructions are MFMA on waves of 64, as on CDNA; on RDNA they are WMMA on waves of 32.
    pub fn is_cdna(self) -> bool {
        matches!(self, Architecture::Gfx90a | Architecture::Gfx942 | Architecture::Gfx950)
    }

    /// Threads of a wave.
    pub fn wave_size(self) -> usize {
        if self.is_cdna() { 64 } else { 32 }
    }

    /// Query rows of a wave: the columns of a matrix instruction.
    pub fn wave_rows(self) -> usize {
        if self.is_cdna() { 32 } else { 16 }
    }

    /// The most shared memory (LDS) of a block, in bytes.
    pub fn shared_memory(self) -> usize {
        if self == Architecture::Gfx950 { 160 << 10 } else { 64 << 10 }
    }

    /// Whether shared memory can be read as columns of 16-bit numbers, so that values lie in it as rows.
    pub fn reads_transposed(self) -> bool {
        self == Architecture::Gfx950
    }

    /// Whether an instruction copies 16 bytes a lane from memory to shared memory; where it is 4, or none, tiles go by way of
    /// registers.
    pub fn copies_directly(self) -> bool {
        self == Architecture::Gfx950
    }

    /// The most vector registers that a thread of a block of so many threads can have, accumulators among them.
    pub fn registers(self, block_threads: u32) -> u32 {
        // Four SIMDs of 512 registers a lane on CDNA; on RDNA no instruction reaches more than 256.
        let waves_of_simd = block_threads.div_ceil(4 * self.wave_size() as u32);
        if self.is_cdna() { 512 / waves_of_simd.max(1) } else { 256 }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Architecture {
    type Err = Error;

    /// Takes `gfx942` and what devices report, `gfx942:sramecc+:xnack-`.
    fn from_str(text: &str) -> Result<Self> {
        let name = text.split(':').next().unwrap_or_default();
        Architecture::ALL.into_iter().find(|architecture| architecture.name() == name).ok_or_else(|| {
            Error::value("architecture", text, "gfx90a, gfx942, gfx950, gfx1100, gfx1200 or gfx1201")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices_are_read_up_to_their_features() {
        assert_eq!("gfx942:sramecc+:xnack-".parse::<Architecture>().unwrap(), Architecture::Gfx942);
        assert_eq!("gfx1201".parse::<Architecture>().unwrap(), Architecture::Gfx1201);
        assert!("gfx94".parse::<Architecture>().is_err());
        assert!("sm_90".parse::<Architecture>().is_err());
    }
}
