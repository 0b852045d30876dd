//! Instances of the Hopper forward kernel.

use std::fmt;

use bytemuck::{Pod, Zeroable};
use omniflash_core::lower::FunctorSpec;
use omniflash_core::{DType, Error, Result};
use omniflash_device::TranslationUnit;

use crate::{HOPPER_FORWARD, LIBRARY, element_type};

/// The architecture that the kernel is compiled for: its instructions are of sm_90 alone.
pub const HOPPER_ARCH: &str = "sm_90a";

/// The largest head_dim and value_dim of the Hopper forward kernel.
pub const MAX_HOPPER_HEAD_DIM: usize = 256;

/// Columns of a slab: 128 bytes of 16-bit elements, the width of the swizzle and of a copy's box.
pub const SLAB_COLUMNS: usize = 64;

/// Rows of a warp, and of the boxes that its output is stored in.
pub const WARP_ROWS: usize = 16;

const SLAB_ROW_BYTES: usize = 2 * SLAB_COLUMNS;
/// Slots for tiles of keys, and as many for those of values: of small tiles so many that warpgroups may lie tiles apart.
const STAGES: usize = 2;
const STAGES_OF_SMALL_TILES: usize = 4;
const MOST_KEYS_OF_SMALL_TILES: usize = 64;
/// Shared memory of a block on the one compute capability that runs the kernel.
const SHARED_MEMORY_BYTES: usize = 227 << 10;
/// Room to begin at a whole pattern of the swizzle, barriers and messages.
const REST_BYTES: usize = 1024 + 1024;

/// Rows after which the pattern of the swizzle begins again.
const PATTERN_ROWS: usize = 8;

/// A map of a tensor as the driver writes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(64))]
pub struct TensorMap(pub [u64; 16]);

/// What a launch of the Hopper kernel is given beside the parameters that all kernels have: its third argument. The decode
/// kernel with boxes takes the first two maps alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct HopperParameters {
    /// Map of the keys; boxes of [`HopperConfig::block_n`] rows, of the decode kernel [`SLICE`](crate::SLICE).
    pub k: TensorMap,
    /// Map of the values; boxes of as many rows.
    pub v: TensorMap,
    /// Map of the queries; boxes of [`HopperConfig::block_m`] rows.
    pub q: TensorMap,
    /// Map of the output; boxes of [`WARP_ROWS`] rows.
    pub out: TensorMap,
    /// Address of a u32 that is 0 before the launch, and after it.
    pub counter: u64,
    /// Tiles of rows of all pairs of sequence and head tile.
    pub num_tiles: u32,
    /// Rows from one sequence to the next in the queries' memory; 0 for ragged tensors.
    pub q_batch_rows: u32,
    /// The same of the keys; for a continuous cache from one block to the next.
    pub k_batch_rows: u32,
    /// The same of the values.
    pub v_batch_rows: u32,
    /// The same of the output.
    pub out_batch_rows: u32,
    /// Rows of a box of keys or values in pages, see [`HopperConfig::box_rows`]; 0 for other caches.
    pub box_rows: u32,
    /// Zero.
    pub reserved: [u32; 8],
}

/// The choices that make one instance of `hopper_forward.cu`, beside mask and score modification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HopperConfig {
    /// Type of q, k, v and out: f16 or bf16.
    pub dtype: DType,
    /// head_dim, rounded up to a multiple of 16.
    pub head_dim: usize,
    /// value_dim, rounded up to a multiple of 16.
    pub value_dim: usize,
    /// Query rows of a tile: 128, 192 or 256, 64 for each warpgroup that computes.
    pub block_m: usize,
    /// Keys of a tile: a multiple of 32.
    pub block_n: usize,
    /// Tiles of queries: with 2, the next one arrives and the last one's output leaves under the work on this one.
    pub query_tiles: usize,
    /// Blocks of a cluster: 1, or 2 that copy keys and values for each other, where a mask shows both the same.
    pub cluster: usize,
    /// Whether keys and values lie in pages.
    pub paged: bool,
}

impl HopperConfig {
    /// Whether such an element type has instances.
    pub fn has_dtype(dtype: DType) -> bool {
        matches!(dtype, DType::F16 | DType::BF16)
    }

    /// Checks that such an instance can be built.
    ///
    /// # Errors
    /// [`Error::Value`] that says what is possible.
    pub fn check(&self, shared_memory_limit: usize) -> Result<()> {
        let value = |name: &str, value: usize, expected: String| {
            Err(Error::value(format!("config.{name}"), value, expected))
        };
        if ![128, 192, 256].contains(&self.block_m) {
            return value("block_m", self.block_m, "128, 192 or 256, 64 rows for each warpgroup".into());
        }
        if self.block_n == 0 || !self.block_n.is_multiple_of(32) || self.block_n > 256 {
            return value("block_n", self.block_n, "a multiple of 32, up to 256".into());
        }
        let accumulators = self.accumulators();
        let most = match self.block_m {
            256 => 80,
            192 => 128,
            _ => 192,
        };
        if accumulators > most {
            return value(
                "block_n",
                self.block_n,
                format!(
                    "keys whose scores and weights fit in registers beside {} columns of output",
                    self.value_dim
                ),
            );
        }
        if self.shared_memory_bytes() > shared_memory_limit {
            return value(
                "block_n",
                self.block_n,
                format!(
                    "a tile of at most {shared_memory_limit} bytes of shared memory, this one has {}",
                    self.shared_memory_bytes()
                ),
            );
        }
        Ok(())
    }

    /// Registers of a thread that hold scores, weights and outputs.
    fn accumulators(&self) -> usize {
        self.block_n / 2 + self.block_n / 4 + self.value_dim / 2
    }

    /// Rows that a copy brings from pages of so many keys: those of a tile that lie in one page, whatever the tile. `None` for
    /// pages whose rows do not fill whole patterns of the swizzle.
    pub fn box_rows(&self, page_size: usize) -> Option<usize> {
        Self::has_page_boxes(page_size).then(|| gcd(page_size, self.block_n))
    }

    /// Whether copies bring keys from pages of so many.
    pub fn has_page_boxes(page_size: usize) -> bool {
        page_size > 0 && page_size.is_multiple_of(PATTERN_ROWS)
    }

    /// Warpgroups that compute.
    pub fn consumers(&self) -> usize {
        self.block_m / 64
    }

    /// Blocks of a launch: as many as run at once, in whole clusters.
    pub fn grid(&self, num_tiles: usize, multiprocessors: usize) -> u32 {
        let blocks = num_tiles.min(multiprocessors);
        (blocks - blocks % self.cluster) as u32
    }

    /// Threads of a block: a warpgroup copies, the others compute.
    pub fn block_threads(&self) -> u32 {
        128 * (self.consumers() as u32 + 1)
    }

    /// Tiles of keys and of values in flight.
    pub fn stages(&self) -> usize {
        let is_small = self.block_n <= MOST_KEYS_OF_SMALL_TILES;
        if is_small && self.shared_memory_with(STAGES_OF_SMALL_TILES) <= SHARED_MEMORY_BYTES {
            STAGES_OF_SMALL_TILES
        } else {
            STAGES
        }
    }

    /// Dynamic shared memory of a block: tiles of queries, then of keys, then of values, output, barriers and messages.
    pub fn shared_memory_bytes(&self) -> usize {
        self.shared_memory_with(self.stages()) + self.output_columns() * 2 * self.block_m
    }

    fn shared_memory_with(&self, stages: usize) -> usize {
        let slabs = |columns: usize| columns.div_ceil(SLAB_COLUMNS) * SLAB_ROW_BYTES;
        let (head, value) = (slabs(self.head_dim), slabs(self.value_dim));
        self.query_tiles * self.block_m * head.max(value)
            + stages * self.block_n * (head + value)
            + REST_BYTES
    }

    /// Columns of the output that leave at a time from a place of their own, where there is one tile of queries and room
    /// beside it; with 0 the output leaves from the place of its queries.
    fn output_columns(&self) -> usize {
        if self.query_tiles > 1 {
            return 0;
        }
        let room = SHARED_MEMORY_BYTES.saturating_sub(self.shared_memory_with(self.stages()));
        let slabs = room / (self.block_m * SLAB_ROW_BYTES);
        SLAB_COLUMNS * slabs.min(self.value_dim.div_ceil(SLAB_COLUMNS))
    }

    /// Tiles of rows of the longest sequence: `num_row_tiles` of the parameters.
    pub fn num_row_tiles(&self, seqlen_q: usize, heads_per_tile: usize) -> u32 {
        (seqlen_q * heads_per_tile).div_ceil(self.block_m) as u32
    }

    /// Whether the heads of such a group can be packed into one tile: the boxes of a warp then hold whole queries.
    pub fn can_pack(group_size: usize) -> bool {
        group_size > 1 && WARP_ROWS.is_multiple_of(group_size)
    }

    /// The source of the instance.
    pub fn translation_unit(&self, functors: &FunctorSpec<'_>) -> TranslationUnit {
        TranslationUnit::new(HOPPER_FORWARD, LIBRARY, "omniflash_forward")
            .with_functors(functors)
            .with_type("Element", element_type(self.dtype))
            .with_type("Keys", if self.paged { "PagedKeys" } else { "StridedKeys" })
            .with_constant("kHeadDim", self.head_dim as i64)
            .with_constant("kValueDim", self.value_dim as i64)
            .with_constant("kBlockN", self.block_n as i64)
            .with_constant("kConsumers", self.consumers() as i64)
            .with_constant("kQueryTiles", self.query_tiles as i64)
            .with_constant("kSlots", self.stages() as i64)
            .with_constant("kOutputColumns", self.output_columns() as i64)
            .with_constant("kClusterBlocks", self.cluster as i64)
            .with_constant("kParameterBytes", size_of::<HopperParameters>() as i64)
            .with_constant("kCounterOffset", std::mem::offset_of!(HopperParameters, counter) as i64)
            .with_constant("kBatchRowsOffset", std::mem::offset_of!(HopperParameters, q_batch_rows) as i64)
            .with_constant("kBoxRowsOffset", std::mem::offset_of!(HopperParameters, box_rows) as i64)
            .with_constant("kSharedBytes", self.shared_memory_bytes() as i64)
    }
}

impl fmt::Display for HopperConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-d{}", self.dtype, self.head_dim)?;
        if self.value_dim != self.head_dim {
            write!(f, "v{}", self.value_dim)?;
        }
        write!(f, "-m{}n{}q{}", self.block_m, self.block_n, self.query_tiles)?;
        if self.cluster > 1 {
            write!(f, "-pair")?;
        }
        write!(f, "-tma")?;
        if self.paged {
            write!(f, "-paged")?;
        }
        Ok(())
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parameters_have_no_padding_and_lie_as_the_kernel_asserts() {
        let map = size_of::<TensorMap>();
        assert_eq!((map, align_of::<TensorMap>()), (128, 64));
        assert_eq!(size_of::<HopperParameters>(), 4 * map + 8 + 6 * 4 + 8 * 4);
        assert_eq!(std::mem::offset_of!(HopperParameters, v), map);
        assert_eq!(std::mem::offset_of!(HopperParameters, out), 3 * map);
        assert_eq!(std::mem::offset_of!(HopperParameters, num_tiles), 4 * map + 8);
        let parameters = HopperParameters { counter: 7, out_batch_rows: 9, ..HopperParameters::default() };
        let bytes = bytemuck::bytes_of(&parameters);
        assert_eq!(bytes.len(), 576);
        assert_eq!((bytes[512], bytes[512 + 8 + 16]), (7, 9));
    }

    #[test]
    fn tiles_that_no_launch_could_have_are_refused() {
        let config = HopperConfig {
            dtype: DType::BF16,
            head_dim: 128,
            value_dim: 128,
            block_m: 128,
            block_n: 128,
            query_tiles: 2,
            cluster: 1,
            paged: false,
        };
        let limit = 227 << 10;
        config.check(limit).unwrap();
        assert_eq!(config.shared_memory_bytes(), (192 << 10) + 2048);
        let small = HopperConfig { block_m: 192, block_n: 64, ..config };
        small.check(limit).unwrap();
        assert_eq!((small.stages(), small.shared_memory_bytes()), (4, (224 << 10) + 2048));
        let wide = HopperConfig { head_dim: 256, value_dim: 256, block_n: 64, query_tiles: 1, ..config };
        assert_eq!((config.stages(), wide.stages()), (2, 2));
        assert_eq!((config.output_columns(), wide.output_columns()), (0, 128));
        assert_eq!(wide.shared_memory_bytes(), (224 << 10) + 2048);
        let full = HopperConfig { head_dim: 192, value_dim: 192, ..wide };
        assert_eq!((full.output_columns(), full.shared_memory_bytes()), (192, (192 << 10) + 2048));
        let narrow = HopperConfig { head_dim: 64, value_dim: 64, block_m: 256, block_n: 64, ..config };
        narrow.check(limit).unwrap();
        assert_eq!(
            (narrow.block_threads(), narrow.stages(), narrow.shared_memory_bytes()),
            (640, 4, (128 << 10) + 2048)
        );
        for wrong in [
            HopperConfig { block_n: 96, ..narrow },
            HopperConfig { block_m: 64, ..config },
            HopperConfig { block_n: 112, ..config },
            HopperConfig { block_n: 192, ..config },
            HopperConfig { block_m: 192, ..config },
        ] {
            assert!(wrong.check(limit).is_err(), "{wrong}");
        }
    }
}
