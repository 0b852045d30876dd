//! How many waves fit a SIMD.

use omniflash_kernels_hip::{Architecture, ForwardConfig};

/// What a compute unit of CDNA, or a workgroup processor of RDNA, has; either has four SIMDs.
struct Unit {
    /// Vector registers of a SIMD for each lane of a wave, and what they are given out in.
    registers: u32,
    granule: u32,
    waves: u32,
    shared_memory: usize,
}

fn unit(architecture: Architecture) -> Unit {
    if architecture.is_cdna() {
        let shared_memory = architecture.shared_memory();
        Unit { registers: 512, granule: 8, waves: 8, shared_memory }
    } else {
        Unit { registers: 1536, granule: 24, waves: 16, shared_memory: 128 << 10 }
    }
}

/// Waves on a SIMD when as many blocks as fit run on a unit.
pub(super) fn waves(config: &ForwardConfig, registers: u32) -> f64 {
    let unit = unit(config.architecture);
    let of_simd = (unit.registers / registers.next_multiple_of(unit.granule)).min(unit.waves);
    let by_registers = 4 * of_simd as usize / config.warps;
    let by_shared_memory = unit.shared_memory / config.shared_memory_bytes();
    (by_registers.min(by_shared_memory) * config.warps) as f64 / 4.0
}

#[cfg(test)]
mod tests {
    use omniflash_core::DType;

    use super::*;

    fn config(architecture: Architecture, head_dim: usize) -> ForwardConfig {
        ForwardConfig::new(architecture, DType::BF16, head_dim, head_dim, "test").unwrap()
    }

    #[test]
    fn the_scarcer_of_registers_and_shared_memory_decides() {
        // 33 KiB a block of eight waves: one block of a CDNA unit, whatever its registers.
        let config = config(Architecture::Gfx942, 128);
        assert_eq!(waves(&config, 256), 2.0);
        assert_eq!(waves(&config, 128), 2.0);
        // One wave a SIMD is not enough for eight waves.
        assert_eq!(waves(&config, 264), 0.0);
    }

    #[test]
    fn rdna_gives_registers_out_by_24() {
        // 1536 / 240 = 6 waves of a SIMD, three blocks of eight waves, each with 17 KiB of 128.
        let config = config(Architecture::Gfx1100, 64);
        assert_eq!(waves(&config, 233), 6.0);
    }
}
