//! Instances of the portable forward kernel.

use std::fmt;

use omniflash_core::lower::FunctorSpec;
use omniflash_core::{DType, Error, Result};
use omniflash_device::TranslationUnit;
use omniflash_device::parameters::AttentionParameters;

use crate::{LIBRARY, PORTABLE_FORWARD, element_type};

/// The largest head_dim and value_dim of the portable forward kernel.
pub const MAX_HEAD_DIM: usize = 256;

/// Shared memory that the system takes of each block.
pub const RESERVED_SHARED_BYTES: usize = 1024;

/// Blocks of a launch are counted in 31 bits along x.
const MAX_GRID_X: u64 = (1 << 31) - 1;
const MAX_GRID_Y: u64 = 65_535;

/// How products are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// f16 or bf16 on tensor cores, accumulated in f32.
    Half,
    /// f32 as the sum of two tf32 on tensor cores: three products, an error near that of f32.
    Tf32x3,
    /// f32 rounded to tf32 on tensor cores: ten bits of mantissa.
    Tf32,
    /// f32 by fused multiply-add.
    Exact,
}

impl Arithmetic {
    pub(crate) fn cpp_type(self, dtype: DType) -> String {
        match self {
            Arithmetic::Half => format!("HalfProduct<{}>", element_type(dtype)),
            Arithmetic::Tf32x3 => "Tf32Product<3>".into(),
            Arithmetic::Tf32 => "Tf32Product<1>".into(),
            Arithmetic::Exact => "ExactProduct".into(),
        }
    }

    /// What a name says of it after the dtype: nothing of the defaults.
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Arithmetic::Half | Arithmetic::Tf32x3 => "",
            Arithmetic::Tf32 => "-tf32",
            Arithmetic::Exact => "-exact",
        }
    }
}

/// The choices that make one instance of `portable_forward.cu`, beside mask and score modification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ForwardConfig {
    /// Type of q, k, v and out.
    pub dtype: DType,
    /// How products are computed; [`Arithmetic::Half`] iff dtype has 16 bits.
    pub arithmetic: Arithmetic,
    /// head_dim, rounded up to a multiple of 16.
    pub head_dim: usize,
    /// value_dim, rounded up to a multiple of 16.
    pub value_dim: usize,
    /// Query rows of a tile: 16 or 32 for each warp.
    pub block_m: usize,
    /// Keys of a tile: a multiple of 32.
    pub block_n: usize,
    /// Warps of a block.
    pub warps: usize,
    /// Warps that share their rows side by side, each with a part of a tile's keys and of the output's columns: 1 or 2.
    pub warps_across: usize,
    /// Tiles of keys and values in flight: with 1 keys and values take turns, with more whole tiles are prefetched.
    pub stages: usize,
    /// Whether keys lie in pages.
    pub paged: bool,
    /// Whether all rows of q, k, v and out begin at multiples of 16 bytes and have a multiple of 16 bytes.
    pub vector_loads: bool,
}

impl ForwardConfig {
    /// The default tile for these dimensions in at most `shared_memory_limit` bytes of shared memory a block.
    ///
    /// # Errors
    /// [`Error::Unsupported`], in the name of `backend`, for dimensions above [`MAX_HEAD_DIM`].
    pub fn new(
        dtype: DType,
        head_dim: usize,
        value_dim: usize,
        shared_memory_limit: usize,
        backend: &str,
    ) -> Result<Self> {
        if head_dim.max(value_dim) > MAX_HEAD_DIM {
            return Err(Error::unsupported(
                backend,
                format!("head_dim {head_dim} with value_dim {value_dim}"),
                format!("tiles of more than {MAX_HEAD_DIM} columns do not fit"),
                "use algorithm naive, or the CPU backend",
            ));
        }
        let wide = head_dim.max(value_dim);
        let tiles: &[(usize, usize, usize, usize)] = match (dtype.size(), wide) {
            // block_m, block_n, warps, stages: the best first.
            (2, ..=64) => &[(128, 64, 4, 2), (64, 64, 4, 1)],
            (2, ..=128) => &[(128, 64, 4, 2), (128, 64, 4, 1), (64, 32, 4, 1)],
            (2, ..=192) => &[(128, 64, 8, 2), (128, 32, 8, 2), (64, 32, 4, 1)],
            // Two blocks a multiprocessor hide more than a second stage.
            (2, _) => &[(64, 64, 4, 1), (64, 32, 4, 1)],
            (_, ..=64) => &[(64, 64, 4, 2), (64, 32, 4, 1)],
            (_, ..=128) => &[(64, 32, 4, 2), (64, 32, 4, 1)],
            _ => &[(64, 32, 4, 1), (32, 32, 2, 1)],
        };
        let arithmetic = if dtype.size() == 2 { Arithmetic::Half } else { Arithmetic::Tf32x3 };
        let config = |&(block_m, block_n, warps, stages): &(usize, usize, usize, usize)| ForwardConfig {
            dtype,
            arithmetic,
            head_dim: head_dim.next_multiple_of(16),
            value_dim: value_dim.next_multiple_of(16),
            block_m,
            block_n,
            warps,
            warps_across: 1,
            stages,
            paged: false,
            vector_loads: true,
        };
        // As for 256 columns, and rows of 96 keys take fewer steps.
        let in_two_blocks = config(&(64, 96, 4, 1));
        if dtype.size() == 2
            && (129..=192).contains(&wide)
            && value_dim > 128
            && in_two_blocks.blocks_by_memory(shared_memory_limit) >= 2
        {
            return Ok(in_two_blocks);
        }
        tiles
            .iter()
            .map(config)
            .find(|config| config.shared_memory_bytes() <= shared_memory_limit)
            .map(|config| config.side_by_side(shared_memory_limit))
            .ok_or_else(|| {
                Error::unsupported(
                    backend,
                    format!("head_dim {head_dim} with value_dim {value_dim} in {dtype}"),
                    format!("no tile fits {shared_memory_limit} bytes of shared memory"),
                    "use algorithm naive",
                )
            })
    }

    /// The same with two warps side by side, where rows are so wide that shared memory is read for longer than what is read is
    /// multiplied: a warp then reads half of a tile, for twice the rows. Itself where that does not fit as often.
    fn side_by_side(self, shared_memory_limit: usize) -> Self {
        let across = ForwardConfig { warps_across: 2, ..self };
        let is_wide = self.dtype.size() == 2 && self.value_dim == MAX_HEAD_DIM;
        let blocks = |config: &ForwardConfig| config.blocks_by_memory(shared_memory_limit);
        if is_wide && across.check().is_ok() && blocks(&across) >= blocks(&self) { across } else { self }
    }

    /// The same under a causal mask over `keys` keys, where they are so few that many tiles lie at its border: in half tiles, or in
    /// warps of which none waits for the one at its side. `None` where this was not measured to be faster, and where a
    /// multiprocessor of `shared_memory_limit` bytes a block has fewer warps so.
    pub fn for_causal(self, keys: usize, shared_memory_limit: usize) -> Option<Self> {
        match self.head_dim.max(self.value_dim) {
            64 if keys <= 2048 => self.in_half_tiles(2, shared_memory_limit),
            128 if keys <= 1024 && !self.paged => self.in_half_tiles(1, shared_memory_limit),
            256 if keys <= 512 && self.warps_across == 2 => Some(ForwardConfig { warps_across: 1, ..self }),
            _ => None,
        }
    }

    /// The same under a sliding window, which has a border on either side. `None` as for [`Self::for_causal`].
    pub fn for_window(self, shared_memory_limit: usize) -> Option<Self> {
        match self.head_dim.max(self.value_dim) {
            64 if !self.paged => self.in_half_tiles(2, shared_memory_limit),
            96 | 128 if !self.paged => self.in_half_tiles(1, shared_memory_limit),
            _ => None,
        }
    }

    /// The same under a mask in a table, of a closure or a packed tensor, whose border may be anywhere, over `keys` keys. `None` as
    /// for [`Self::for_causal`].
    pub fn for_table(self, keys: usize, shared_memory_limit: usize) -> Option<Self> {
        match self.head_dim.max(self.value_dim) {
            128 if keys <= 2048 && !self.paged => self.in_half_tiles(1, shared_memory_limit),
            _ => None,
        }
    }

    /// Tiles of half the rows, of which fewer scores are hidden, in blocks of half the threads. `None` where a multiprocessor
    /// of `shared_memory_limit` bytes a block has fewer warps so.
    fn in_half_tiles(self, stages: usize, shared_memory_limit: usize) -> Option<Self> {
        let half = ForwardConfig { block_m: 64, warps: 2, stages, ..self };
        let is_default = (self.dtype.size(), self.block_m, self.warps) == (2, 128, 4);
        (is_default && half.blocks_by_memory(shared_memory_limit) >= 4).then_some(half)
    }

    /// Blocks that a multiprocessor's shared memory holds, where one may have `limit` bytes.
    pub fn blocks_by_memory(&self, limit: usize) -> usize {
        (limit + RESERVED_SHARED_BYTES) / (self.shared_memory_bytes() + RESERVED_SHARED_BYTES)
    }

    /// Checks that such an instance can be built.
    ///
    /// # Errors
    /// [`Error::Value`] that says what is possible.
    pub fn check(&self) -> Result<()> {
        let value = |name: &str, value: usize, expected: &str| {
            Err(Error::value(format!("config.{name}"), value, expected))
        };
        if self.warps == 0 || self.warps > 16 {
            return value("warps", self.warps, "1 to 16");
        }
        if ![16, 32].contains(&self.warp_m())
            || self.block_m * self.warps_across != self.warp_m() * self.warps
        {
            return value("block_m", self.block_m, "16 or 32 rows for each warp");
        }
        if self.block_n == 0 || !self.block_n.is_multiple_of(32) || self.block_n > 256 {
            return value("block_n", self.block_n, "a multiple of 32, up to 256");
        }
        if self.stages == 0 || self.stages > 2 {
            return value("num_pipeline_stages", self.stages, "1 or 2");
        }
        let splits = self.stages == 1
            && self.dtype.size() == 2
            && self.warps.is_multiple_of(2)
            && self.value_dim.is_multiple_of(128);
        if self.warps_across != 1 && !(self.warps_across == 2 && splits) {
            let expected = "block_n, or half of it with 1 stage, an even number of warps and a value_dim of 128 or 256 in 16 bits";
            return value("warp_n", self.block_n / self.warps_across.max(1), expected);
        }
        for (name, dim) in [("head_dim", self.head_dim), ("value_dim", self.value_dim)] {
            if dim == 0 || dim > MAX_HEAD_DIM || !dim.is_multiple_of(16) {
                return value(name, dim, "a multiple of 16, up to 256, as the kernel pads it");
            }
        }
        Ok(())
    }

    /// Rows of a warp.
    pub fn warp_m(&self) -> usize {
        self.block_m * self.warps_across / self.warps
    }

    /// Threads of a block.
    pub fn block_threads(&self) -> u32 {
        32 * self.warps as u32
    }

    /// Dynamic shared memory of a block: the query tile, then `stages` tiles of keys, then `stages` of values, then what
    /// warps side by side exchange. The output tile reuses it from the start.
    pub fn shared_memory_bytes(&self) -> usize {
        let inputs =
            self.block_m * self.head_dim + self.stages * self.block_n * (self.head_dim + self.value_dim);
        self.dtype.size() * inputs.max(self.block_m * self.value_dim) + self.exchange_bytes()
    }

    /// Shared memory through which warps of the same rows exchange weights, two bytes each, and a number for each row.
    fn exchange_bytes(&self) -> usize {
        match self.warps_across {
            1 => 0,
            across => self.block_m * self.block_n * 2 + 4 * self.block_m * across,
        }
    }

    /// Tiles of rows of the longest sequence: `num_row_tiles` of the parameters.
    pub fn num_row_tiles(&self, seqlen_q: usize, heads_per_tile: usize) -> u32 {
        (seqlen_q * heads_per_tile).div_ceil(self.block_m) as u32
    }

    /// The blocks of a launch: row tiles of all pairs of sequence and head tile along x, partitions along y.
    ///
    /// # Errors
    /// [`Error::Value`] when there are more than a launch can have.
    pub fn grid(parameters: &AttentionParameters) -> Result<[u32; 3]> {
        let pairs =
            u64::from(parameters.batch) * u64::from(parameters.num_heads / parameters.heads_per_tile.max(1));
        let x = pairs * u64::from(parameters.num_row_tiles);
        if x > MAX_GRID_X {
            return Err(Error::value("q", format!("{x} tiles of rows"), format!("at most {MAX_GRID_X}")));
        }
        if u64::from(parameters.num_partitions) > MAX_GRID_Y {
            return Err(Error::value(
                "config.num_partitions",
                parameters.num_partitions,
                format!("at most {MAX_GRID_Y}"),
            ));
        }
        Ok([x as u32, parameters.num_partitions, 1])
    }

    /// Bytes of `partial_out` and of `partial_lse`; both 0 without partitions.
    pub fn workspace_bytes(parameters: &AttentionParameters) -> (usize, usize) {
        if parameters.num_partitions <= 1 {
            return (0, 0);
        }
        let rows =
            parameters.num_partitions as usize * parameters.total_q as usize * parameters.num_heads as usize;
        (4 * rows * parameters.value_dim as usize, 4 * rows)
    }

    /// The source of the instance.
    pub fn translation_unit(&self, functors: &FunctorSpec<'_>) -> TranslationUnit {
        TranslationUnit::new(PORTABLE_FORWARD, LIBRARY, "omniflash_forward")
            .with_functors(functors)
            .with_type("Element", element_type(self.dtype))
            .with_type("Product", self.arithmetic.cpp_type(self.dtype))
            .with_type("Keys", if self.paged { "PagedKeys" } else { "StridedKeys" })
            .with_constant("kHeadDim", self.head_dim as i64)
            .with_constant("kValueDim", self.value_dim as i64)
            .with_constant("kBlockM", self.block_m as i64)
            .with_constant("kBlockN", self.block_n as i64)
            .with_constant("kWarps", self.warps as i64)
            .with_constant("kWarpsAcross", self.warps_across as i64)
            .with_constant("kStages", self.stages as i64)
            .with_constant("kVectorLoads", self.vector_loads)
    }
}

impl fmt::Display for ForwardConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}-d{}", self.dtype, self.arithmetic.suffix(), self.head_dim)?;
        if self.value_dim != self.head_dim {
            write!(f, "v{}", self.value_dim)?;
        }
        write!(f, "-m{}n{}w", self.block_m, self.block_n)?;
        match self.warps_across {
            1 => write!(f, "{}", self.warps)?,
            across => write!(f, "{}x{across}", self.warps / across)?,
        }
        write!(f, "s{}", self.stages)?;
        write!(f, "-{}", if self.paged { "paged" } else { "strided" })?;
        f.write_str(if self.vector_loads { "" } else { "-unaligned" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dimension_has_a_tile_on_every_architecture() {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for (head_dim, value_dim) in (8..=256).step_by(8).map(|d| (d, d)).chain([(192, 128), (64, 256)]) {
                for limit in [99 << 10, 163 << 10, 227 << 10] {
                    let config = ForwardConfig::new(dtype, head_dim, value_dim, limit, "test").unwrap();
                    assert!(config.check().is_ok() && config.shared_memory_bytes() <= limit, "{config}");
                }
            }
        }
        assert!(ForwardConfig::new(DType::F16, 264, 64, 227 << 10, "test").is_err());
    }

    #[test]
    fn impossible_tiles_are_refused_with_what_is_possible() {
        let config = ForwardConfig::new(DType::F16, 64, 64, 99 << 10, "test").unwrap();
        assert!(ForwardConfig { block_m: 48, ..config }.check().is_err());
        assert!(ForwardConfig { block_n: 48, ..config }.check().is_err());
        assert!(ForwardConfig { stages: 0, ..config }.check().is_err());
        assert!(ForwardConfig { head_dim: 72, ..config }.check().is_err());
    }
}
