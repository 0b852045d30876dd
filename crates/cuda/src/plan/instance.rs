//! The kernel families, as planning sees them.

use omniflash_core::lower::FunctorSpec;
use omniflash_core::{Algorithm, Result};
use omniflash_device::parameters::AttentionParameters;
use omniflash_device::{Launch, TranslationUnit, Workspace};
use omniflash_gpu::KernelInstance;
use omniflash_kernels_cuda::{DecodeConfig, ForwardConfig, HOPPER_ARCH, HopperConfig, NaiveConfig};

/// An instance of a kernel family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KernelChoice {
    /// The portable kernel.
    Forward(ForwardConfig),
    /// The kernel for few rows.
    Decode(DecodeConfig),
    /// Hopper's own.
    Hopper(HopperConfig),
    /// Attention by its definition.
    Naive(NaiveConfig),
}

impl KernelInstance for KernelChoice {
    fn id(&self, arch: &str) -> String {
        match self {
            KernelChoice::Forward(config) => format!("fwd-{arch}-{config}"),
            KernelChoice::Decode(config) => format!("dec-{arch}-{config}"),
            KernelChoice::Hopper(config) => format!("fwd-{HOPPER_ARCH}-{config}"),
            KernelChoice::Naive(config) => {
                format!("naive-{arch}-{}-{}", config.dtype, if config.paged { "paged" } else { "strided" })
            }
        }
    }

    fn arch(&self, arch: &str) -> String {
        match self {
            KernelChoice::Hopper(_) => HOPPER_ARCH.into(),
            _ => arch.into(),
        }
    }

    fn algorithm(&self) -> Algorithm {
        match self {
            KernelChoice::Forward(_) | KernelChoice::Decode(_) => Algorithm::Flash2,
            KernelChoice::Hopper(_) => Algorithm::Flash3,
            KernelChoice::Naive(_) => Algorithm::Naive,
        }
    }

    fn tile(&self) -> Option<[usize; 3]> {
        match self {
            KernelChoice::Forward(config) => Some([config.block_m, config.block_n, config.stages]),
            KernelChoice::Decode(config) => Some([config.block_m, config.block_n(), config.slots]),
            KernelChoice::Hopper(config) => Some([config.block_m, config.block_n, config.stages()]),
            KernelChoice::Naive(_) => None,
        }
    }

    fn num_row_tiles(&self, seqlen_q: usize, heads_per_tile: usize) -> u32 {
        match self {
            KernelChoice::Forward(config) => config.num_row_tiles(seqlen_q, heads_per_tile),
            KernelChoice::Decode(_) => 1,
            KernelChoice::Hopper(config) => config.num_row_tiles(seqlen_q, heads_per_tile),
            KernelChoice::Naive(_) => seqlen_q as u32,
        }
    }

    fn translation_unit(&self, functors: &FunctorSpec<'_>) -> TranslationUnit {
        match self {
            KernelChoice::Forward(config) => config.translation_unit(functors),
            KernelChoice::Decode(config) => config.translation_unit(functors),
            KernelChoice::Hopper(config) => config.translation_unit(functors),
            KernelChoice::Naive(config) => config.translation_unit(functors),
        }
    }

    fn launch(&self, sizes: &AttentionParameters, multiprocessors: usize) -> Result<Launch> {
        match self {
            KernelChoice::Forward(config) => Ok(Launch {
                grid: ForwardConfig::grid(sizes)?,
                block_threads: config.block_threads(),
                shared_memory_bytes: config.shared_memory_bytes(),
            }),
            KernelChoice::Decode(config) => config.launch(sizes),
            KernelChoice::Hopper(config) => {
                let heads = (sizes.num_heads / sizes.heads_per_tile) as usize;
                let num_tiles = sizes.num_row_tiles as usize * sizes.batch as usize * heads;
                Ok(Launch {
                    grid: [config.grid(num_tiles, multiprocessors), 1, 1],
                    block_threads: config.block_threads(),
                    shared_memory_bytes: config.shared_memory_bytes(),
                })
            }
            KernelChoice::Naive(_) => NaiveConfig::launch(sizes),
        }
    }

    fn workspace(&self, sizes: &AttentionParameters) -> Workspace {
        match self {
            KernelChoice::Forward(_) => {
                let (partial_out, partial_lse) = ForwardConfig::workspace_bytes(sizes);
                Workspace { partial_out, partial_lse, counters: 0 }
            }
            KernelChoice::Decode(config) => config.workspace(sizes),
            KernelChoice::Hopper(_) | KernelChoice::Naive(_) => Workspace::default(),
        }
    }

    /// The last block of an item does it.
    fn joins_partitions(&self) -> bool {
        matches!(self, KernelChoice::Decode(_))
    }

    /// Its blocks stay, and take one tile after another.
    fn counts_tiles(&self) -> bool {
        matches!(self, KernelChoice::Hopper(_))
    }
}
