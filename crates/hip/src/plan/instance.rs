//! The kernel families, as planning sees them.

use omniflash_core::lower::FunctorSpec;
use omniflash_core::{Algorithm, Result};
use omniflash_device::parameters::AttentionParameters;
use omniflash_device::{Launch, TranslationUnit, Workspace};
use omniflash_gpu::KernelInstance;
use omniflash_kernels_hip::{ForwardConfig, NaiveConfig};

/// An instance of a kernel family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KernelChoice {
    /// The kernel of tiles.
    Forward(ForwardConfig),
    /// Attention by its definition.
    Naive(NaiveConfig),
}

impl KernelInstance for KernelChoice {
    fn id(&self, arch: &str) -> String {
        match self {
            KernelChoice::Forward(config) => format!("fwd-{arch}-{config}"),
            KernelChoice::Naive(config) => {
                format!("naive-{arch}-{}-{}", config.dtype, if config.paged { "paged" } else { "strided" })
            }
        }
    }

    fn algorithm(&self) -> Algorithm {
        match self {
            KernelChoice::Forward(_) => Algorithm::Flash2,
            KernelChoice::Naive(_) => Algorithm::Naive,
        }
    }

    fn tile(&self) -> Option<[usize; 3]> {
        match self {
            KernelChoice::Forward(config) => Some([config.block_m, config.block_n, config.stages]),
            KernelChoice::Naive(_) => None,
        }
    }

    fn num_row_tiles(&self, seqlen_q: usize, heads_per_tile: usize) -> u32 {
        match self {
            KernelChoice::Forward(config) => config.num_row_tiles(seqlen_q, heads_per_tile),
            KernelChoice::Naive(_) => seqlen_q as u32,
        }
    }

    fn translation_unit(&self, functors: &FunctorSpec<'_>) -> TranslationUnit {
        match self {
            KernelChoice::Forward(config) => config.translation_unit(functors),
            KernelChoice::Naive(config) => config.translation_unit(functors),
        }
    }

    fn launch(&self, sizes: &AttentionParameters, _multiprocessors: usize) -> Result<Launch> {
        match self {
            KernelChoice::Forward(config) => Ok(Launch {
                grid: config.grid(sizes)?,
                block_threads: config.block_threads(),
                shared_memory_bytes: config.shared_memory_bytes(),
            }),
            KernelChoice::Naive(_) => NaiveConfig::launch(sizes),
        }
    }

    fn workspace(&self, sizes: &AttentionParameters) -> Workspace {
        match self {
            KernelChoice::Forward(_) => {
                let (partial_out, partial_lse) = ForwardConfig::workspace_bytes(sizes);
                Workspace { partial_out, partial_lse, counters: 0 }
            }
            KernelChoice::Naive(_) => Workspace::default(),
        }
    }
}
