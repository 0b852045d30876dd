//! Instances of the kernel for few query rows.

use std::fmt;

use omniflash_core::lower::FunctorSpec;
use omniflash_core::{DType, Error, Result};
use omniflash_device::parameters::AttentionParameters;
use omniflash_device::{Launch, TranslationUnit, Workspace};

use crate::{Arithmetic, DECODE_BOXES, DECODE_FORWARD, LIBRARY, MAX_HEAD_DIM, SLAB_COLUMNS, element_type};

/// Keys of a tile that one warp takes.
pub const SLICE: usize = 16;

/// Slots of a warp, whole tiles of them, the most first.
const MANY_SLOTS: &[usize] = &[16, 14, 12, 10, 8, 6];

/// Bytes of slots of a multiprocessor from which on more of them gain nothing.
const ENOUGH_BYTES: usize = 96 << 10;

/// Shared memory that the system takes of each block.
const RESERVED_BYTES: usize = 1024;

/// The choices that make one instance of `decode_forward.cu`, beside mask and score modification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DecodeConfig {
    /// Type of q, k, v and out.
    pub dtype: DType,
    /// How products are computed; [`Arithmetic::Half`] iff dtype has 16 bits.
    pub arithmetic: Arithmetic,
    /// head_dim, rounded up to a multiple of 16.
    pub head_dim: usize,
    /// value_dim, rounded up to a multiple of 16.
    pub value_dim: usize,
    /// Rows of a tile, all of a sequence and key head: 16 or 32.
    pub block_m: usize,
    /// Warps of a block; each takes 16 keys of a tile.
    pub warps: usize,
    /// Slots of each warp, which slices of keys and of values take in turns. Of an even
    /// number a warp takes both slices of a tile at once, of an odd one after the other: of few slots more are then to fill.
    pub slots: usize,
    /// Whether keys lie in pages.
    pub paged: bool,
    /// Blocks of a cluster, which share what it does of an item and join that from their shared memory; 1 for none.
    pub cluster: usize,
    /// Whether a cluster does one whole item; otherwise clusters share the keys of all items evenly. Not for blocks
    /// by themselves.
    pub whole_items: bool,
    /// Tiles that an item counts beside its own where all are shared evenly: what it costs a block to begin and to end one.
    pub tiles_of_item: usize,
    /// Whether all rows of q, k, v and out begin at multiples of 16 bytes and have a multiple of 16 bytes.
    pub vector_loads: bool,
    /// Whether keys and values come as boxes of tensor maps, on sm_90 ([`Self::with_boxes`]).
    pub boxes: bool,
}

impl DecodeConfig {
    /// [`Self::tiles_of_item`] where blocks go from item to item.
    pub const TILES_OF_ITEM: usize = 2;

    /// The default for at most `rows` rows of a sequence and key head, on a device whose blocks have at most
    /// `shared_memory_limit` bytes of shared memory; `None` where this kernel has no tile.
    pub fn new(
        dtype: DType,
        head_dim: usize,
        value_dim: usize,
        rows: usize,
        shared_memory_limit: usize,
    ) -> Option<Self> {
        let wide = head_dim.max(value_dim);
        // Outputs of 32 rows and 256 columns do not fit the registers of a warp.
        let most_rows = if wide > 128 { 16 } else { 32 };
        if wide > MAX_HEAD_DIM || rows > most_rows {
            return None;
        }
        let config = DecodeConfig {
            dtype,
            arithmetic: if dtype.size() == 2 { Arithmetic::Half } else { Arithmetic::Tf32x3 },
            head_dim: head_dim.next_multiple_of(16),
            value_dim: value_dim.next_multiple_of(16),
            block_m: rows.next_multiple_of(16).max(16),
            warps: 4,
            slots: 6,
            paged: false,
            cluster: 1,
            whole_items: false,
            tiles_of_item: 0,
            vector_loads: true,
            boxes: false,
        };
        config.narrow(shared_memory_limit)
    }

    /// The same whose keys and values come as boxes of tensor maps; `None` for dimensions that are no whole slabs of them.
    pub fn with_boxes(&self) -> Option<Self> {
        let are_slabs =
            self.head_dim.is_multiple_of(SLAB_COLUMNS) && self.value_dim.is_multiple_of(SLAB_COLUMNS);
        let can = are_slabs && self.dtype.size() == 2 && self.vector_loads;
        can.then_some(DecodeConfig { boxes: true, ..*self })
    }

    /// The same with as many slots as gain something in blocks of four warps, or two where four do not fit.
    pub fn narrow(&self, shared_memory_limit: usize) -> Option<Self> {
        let half = (shared_memory_limit + RESERVED_BYTES) / 2 - RESERVED_BYTES;
        // Two blocks of a multiprocessor, so that one loads where the other begins or ends an item.
        let is_enough =
            |config: &Self| config.slots > 6 && (config.slots - 2) * config.slot_bytes() >= ENOUGH_BYTES;
        let few: &[usize] = if self.cluster > 1 { &[5] } else { &[] };
        let two = DecodeConfig { warps: 4, ..*self };
        two.with_slots(MANY_SLOTS, half)
            .find(|config| !is_enough(config))
            .or_else(|| two.with_slots(few, half).next())
            .or_else(|| two.with_slots(&[8, 6, 4], shared_memory_limit).next())
            .or_else(|| DecodeConfig { warps: 2, ..two }.with_slots(&[6, 4], shared_memory_limit).next())
            .filter(Self::can_fill)
    }

    /// The same for a block that has a multiprocessor to itself: twice the warps, so that half as many blocks share an item
    /// and half as many parts are joined. `None` where too few slots would fit.
    pub fn wide(&self, shared_memory_limit: usize) -> Option<Self> {
        let wide = DecodeConfig { warps: 8, ..*self };
        let many = wide.with_slots(MANY_SLOTS, shared_memory_limit).next();
        many.or_else(|| wide.with_slots(&[5, 3], shared_memory_limit).next())
    }

    /// The same with no more slots than hold as many tiles, where a warp takes both slices of a tile at once.
    #[must_use]
    pub fn with_slots_for(&self, tiles: usize) -> Self {
        let slots =
            if self.slots.is_multiple_of(2) { self.slots.min((2 * tiles).max(4)) } else { self.slots };
        DecodeConfig { slots, ..*self }
    }

    /// Those of these numbers of slots that fit into `bytes`, in their order.
    fn with_slots(self, slots: &[usize], bytes: usize) -> impl Iterator<Item = Self> {
        let configs = slots.iter().map(move |&slots| DecodeConfig { slots, ..self });
        configs.filter(move |config| config.shared_memory_bytes() <= bytes)
    }

    /// Turns in which a warp takes its slots.
    fn turns(&self) -> usize {
        if self.slots.is_multiple_of(2) { self.slots / 2 } else { self.slots }
    }

    /// Checks that such an instance can be built.
    ///
    /// # Errors
    /// [`Error::Value`] that says what is possible.
    pub fn check(&self) -> Result<()> {
        let value = |name: &str, value: usize, expected: &str| {
            Err(Error::value(format!("config.{name}"), value, expected))
        };
        if self.block_m != 16 && self.block_m != 32 {
            return value("block_m", self.block_m, "16 or 32");
        }
        if self.warps == 0 || self.warps > 8 || !self.can_fill() {
            return value("warps", self.warps, "1 to 8, enough to copy a row at once");
        }
        if !(3..=16).contains(&self.slots) {
            return value("num_pipeline_stages", self.slots, "3 to 16 slots");
        }
        if ![1, 2, 4, 8, 16].contains(&self.cluster) {
            return value("cluster", self.cluster, "a power of two to 16");
        }
        if self.boxes && self.with_boxes().is_none() {
            return value("head_dim", self.head_dim, "whole slabs of 64 columns of 16 bits for boxes");
        }
        if self.cluster == 1 && self.whole_items {
            return value("cluster", self.cluster, "more than one block for whole items");
        }
        Ok(())
    }

    /// Whether a row of queries has at most as many chunks as a block threads.
    fn can_fill(&self) -> bool {
        self.head_dim * self.dtype.size() / 16 <= 32 * self.warps
    }

    /// Keys of a tile.
    pub fn block_n(&self) -> usize {
        SLICE * self.warps
    }

    /// Threads of a block.
    pub fn block_threads(&self) -> u32 {
        32 * self.warps as u32
    }

    /// Bytes of so many elements of a row in shared memory, where rows are apart by 16 bytes more than they have.
    fn row_bytes(&self, elements: usize) -> usize {
        self.dtype.size() * elements + 16
    }

    /// Bytes of one slot of all warps. Rows of boxes are permuted, not padded.
    fn slot_bytes(&self) -> usize {
        let wide = self.head_dim.max(self.value_dim);
        self.block_n() * if self.boxes { self.dtype.size() * wide } else { self.row_bytes(wide) }
    }

    /// Bytes of the queries. Boxes begin at multiples of the bytes after which the permutation begins again.
    fn query_bytes(&self) -> usize {
        (self.block_m * self.row_bytes(self.head_dim)).next_multiple_of(if self.boxes { 1024 } else { 16 })
    }

    /// Of each warp, a barrier for every turn that is on its way.
    fn barrier_bytes(&self) -> usize {
        if self.boxes { 8 * self.warps * self.turns() } else { 0 }
    }

    /// Sums of all warps, and the offset and sum of their rows.
    fn sums_bytes(&self) -> usize {
        self.warps * self.block_m * (4 * (self.value_dim + 8) + 8)
    }

    /// What the blocks of a cluster send to one of them: its share of all sums of each, the offsets and sums of all rows.
    fn received_bytes(&self) -> usize {
        if self.cluster == 1 { 0 } else { self.block_m * (4 * self.value_dim + 8 * self.cluster) }
    }

    /// Dynamic shared memory of a block: queries and slots, or the sums of all warps; beside them what others send, and
    /// barriers.
    pub fn shared_memory_bytes(&self) -> usize {
        let inputs = self.query_bytes() + self.slots * self.slot_bytes();
        inputs.max(self.sums_bytes()) + self.received_bytes() + self.barrier_bytes()
    }

    /// The blocks of a launch: those of `num_workers` clusters, or with 0 items along x and partitions along y; of clusters
    /// with whole items, those of a sequence along x.
    ///
    /// # Errors
    /// [`Error::Value`] when there are more than a launch can have.
    pub fn launch(&self, parameters: &AttentionParameters) -> Result<Launch> {
        let items = items(parameters);
        let along_x = |blocks: usize| u32::try_from(blocks).unwrap_or(u32::MAX);
        let grid = if parameters.num_workers > 0 {
            [along_x(parameters.num_workers as usize * self.cluster), 1, 1]
        } else if self.whole_items {
            let batch = parameters.batch.max(1);
            [along_x(items / batch as usize * self.cluster), batch, 1]
        } else {
            [along_x(items), parameters.num_partitions, 1]
        };
        if items * self.cluster > i32::MAX as usize {
            return Err(Error::value("q", format!("{items} items"), format!("at most {}", i32::MAX)));
        }
        Ok(Launch {
            grid,
            block_threads: self.block_threads(),
            shared_memory_bytes: self.shared_memory_bytes(),
        })
    }

    /// What the segments of cut items need.
    pub fn workspace(&self, parameters: &AttentionParameters) -> Workspace {
        let (slots, counters) = match (parameters.num_workers as usize, parameters.num_partitions as usize) {
            (0, 0 | 1) => (0, 0),
            (0, _) if self.whole_items => (0, 0),
            (0, partitions) => (partitions * items(parameters), items(parameters)),
            // A worker continues one item and begins one.
            (workers, _) => (2 * workers, workers),
        };
        Workspace {
            partial_out: 4 * slots * self.block_m * self.value_dim,
            // Each block of a cluster has its own.
            partial_lse: 8 * slots * self.block_m * self.cluster,
            counters: 4 * counters * self.cluster,
        }
    }

    /// The source of the instance.
    pub fn translation_unit(&self, functors: &FunctorSpec<'_>) -> TranslationUnit {
        let file = if self.boxes { DECODE_BOXES } else { DECODE_FORWARD };
        TranslationUnit::new(file, LIBRARY, "omniflash_decode")
            .with_functors(functors)
            .with_type("Element", element_type(self.dtype))
            .with_type("Product", self.arithmetic.cpp_type(self.dtype))
            .with_type("Keys", if self.paged { "PagedKeys" } else { "StridedKeys" })
            .with_constant("kHeadDim", self.head_dim as i64)
            .with_constant("kValueDim", self.value_dim as i64)
            .with_constant("kBlockM", self.block_m as i64)
            .with_constant("kWarps", self.warps as i64)
            .with_constant("kSlots", self.slots as i64)
            .with_constant("kCluster", self.cluster as i64)
            .with_constant("kWholeItems", self.whole_items)
            .with_constant("kTilesOfItem", self.tiles_of_item as i64)
            .with_constant("kVectorLoads", self.vector_loads)
            .with_constant("kBoxes", self.boxes)
    }
}

/// Pairs of sequence and head tile.
fn items(parameters: &AttentionParameters) -> usize {
    parameters.batch as usize * (parameters.num_heads / parameters.heads_per_tile.max(1)) as usize
}

impl fmt::Display for DecodeConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}-d{}", self.dtype, self.arithmetic.suffix(), self.head_dim)?;
        if self.value_dim != self.head_dim {
            write!(f, "v{}", self.value_dim)?;
        }
        write!(f, "-m{}n{}w{}s{}", self.block_m, self.block_n(), self.warps, self.slots)?;
        write!(f, "-{}", if self.paged { "paged" } else { "strided" })?;
        if self.cluster > 1 {
            write!(f, "-{}{}", if self.whole_items { "cluster" } else { "line" }, self.cluster)?;
        }
        if self.tiles_of_item > 0 {
            write!(f, "-item{}", self.tiles_of_item)?;
        }
        f.write_str(match (self.boxes, self.vector_loads) {
            (true, _) => "-boxes",
            (false, true) => "",
            (false, false) => "-unaligned",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dimension_has_a_tile_but_wide_f32_where_shared_memory_is_scarce() {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for (head_dim, value_dim) in (8..=256).step_by(8).map(|d| (d, d)).chain([(192, 128), (64, 256)]) {
                for limit in [99 << 10, 163 << 10, 227 << 10] {
                    let Some(config) = DecodeConfig::new(dtype, head_dim, value_dim, 16, limit) else {
                        assert!(
                            dtype == DType::F32 && head_dim.max(value_dim) > 160 && limit == 99 << 10,
                            "d{head_dim}"
                        );
                        continue;
                    };
                    assert!(config.check().is_ok() && config.shared_memory_bytes() <= limit, "{config}");
                }
            }
        }
        assert_eq!(DecodeConfig::new(DType::BF16, 256, 256, 17, 227 << 10), None);
        assert_eq!(DecodeConfig::new(DType::BF16, 128, 128, 33, 227 << 10), None);
    }

    #[test]
    fn wide_blocks_take_a_multiprocessor_and_fit_where_three_slots_do() {
        let limit = 227 << 10;
        for (dim, slots) in [(64, 12), (80, 8), (96, 8), (128, 6), (192, 3), (256, 3)] {
            let config = DecodeConfig::new(DType::BF16, dim, dim, 16, limit).unwrap();
            for cluster in [1, 2, 8, 16] {
                let wide = DecodeConfig { cluster, ..config }.wide(limit).unwrap();
                assert!(wide.check().is_ok() && wide.shared_memory_bytes() <= limit);
                assert!(wide.slots == slots || dim == 80 && cluster == 1 && wide.slots == 10, "{wide}");
            }
        }
    }

    #[test]
    fn a_multiprocessor_of_a_h100_has_64_kib_under_way() {
        for (dim, dtype) in [(64, DType::BF16), (128, DType::BF16), (256, DType::F16), (128, DType::F32)] {
            let config = DecodeConfig::new(dtype, dim, dim, 8, 227 << 10).unwrap();
            let blocks = (228 << 10) / (config.shared_memory_bytes() + 1024);
            assert!(blocks * (config.slots - 1) * config.slot_bytes() >= 64 << 10, "{config}");
        }
    }
}
