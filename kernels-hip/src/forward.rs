//! Instances of the forward kernel.

use std::fmt;

use omniflash_core::lower::FunctorSpec;
use omniflash_core::{DType, Error, Result};
use omniflash_device::TranslationUnit;
use omniflash_device::parameters::AttentionParameters;

use crate::{Architecture, FORWARD, LIBRARY, element_type};

/// The largest head_dim and value_dim of the forward kernel.
pub const MAX_HEAD_DIM: usize = 256;

/// Work items of a launch are counted in 32 bits along x, and blocks in 16 along y.
const MAX_ITEMS_X: u64 = u32::MAX as u64;
const MAX_GRID_Y: u64 = 65_535;

/// How products are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// f16 or bf16 on the matrix unit, accumulated in f32.
    Half,
    /// f32: on CDNA by the f32 instructions of the matrix unit, on RDNA by fused multiply-add.
    Exact,
}

impl Arithmetic {
    fn cpp_type(self, dtype: DType) -> String {
        match self {
            Arithmetic::Half => format!("MatrixProduct<{}>", element_type(dtype)),
            Arithmetic::Exact => "FloatProduct".into(),
        }
    }
}

/// The choices that make one instance of `forward.hip`, beside mask and score modification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ForwardConfig {
    /// The processor.
    pub architecture: Architecture,
    /// Type of q, k, v and out.
    pub dtype: DType,
    /// How products are computed; [`Arithmetic::Half`] iff dtype has 16 bits.
    pub arithmetic: Arithmetic,
    /// head_dim, rounded up to a multiple of 16.
    pub head_dim: usize,
    /// value_dim, rounded up to a multiple of 16.
    pub value_dim: usize,
    /// Query rows of a tile: [`Architecture::wave_rows`] for each wave.
    pub block_m: usize,
    /// Keys of a tile: a multiple of 32.
    pub block_n: usize,
    /// Waves of a block.
    pub warps: usize,
    /// With 1 keys and values take turns in shared memory, with 2 whole tiles are prefetched: see
    /// [`copies_directly`](ForwardConfig::copies_directly).
    pub stages: usize,
    /// Whether keys lie in pages.
    pub paged: bool,
    /// Whether all rows of q, k, v and out begin at multiples of 16 bytes and have a multiple of 16 bytes.
    pub vector_loads: bool,
}

impl ForwardConfig {
    /// The default tile of an architecture for these dimensions.
    ///
    /// # Errors
    /// [`Error::Unsupported`], in the name of `backend`, for dimensions above [`MAX_HEAD_DIM`].
    pub fn new(
        architecture: Architecture,
        dtype: DType,
        head_dim: usize,
        value_dim: usize,
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
        let (block_n, warps, stages) = match (architecture.is_cdna(), dtype.size(), wide) {
            (true, 2, ..=64) => (64, 4, 2),
            // Two waves a SIMD, so that one computes weights while the other multiplies.
            (true, 2, ..=128) => (64, 8, 2),
            (true, 2, _) => (32, 4, 2),
            (true, _, ..=64) => (64, 4, 2),
            (true, _, ..=128) => (32, 4, 2),
            (true, ..) => (32, 4, 1),
            (false, 2, ..=96) => (64, 8, 2),
            (false, 2, ..=128) => (32, 8, 2),
            (false, 2, _) => (32, 8, 1),
            (false, _, ..=64) => (32, 8, 2),
            (false, _, ..=128) => (32, 8, 1),
            // With more threads each holds less of the next tile.
            (false, ..) => (32, 16, 1),
        };
        Ok(ForwardConfig {
            architecture,
            dtype,
            arithmetic: if dtype.size() == 2 { Arithmetic::Half } else { Arithmetic::Exact },
            head_dim: head_dim.next_multiple_of(16),
            value_dim: value_dim.next_multiple_of(16),
            block_m: warps * architecture.wave_rows(),
            block_n,
            warps,
            stages,
            paged: false,
            vector_loads: true,
        })
    }

    /// The tile for launches that give a tile no more than `rows` query rows, decoding above all: fewer waves rather than
    /// idle ones, and blocks so small that several of a compute unit keep loads in flight.
    ///
    /// All threads copy. On RDNA, with half the lanes of a wave and 256 registers, two waves are the least, and four above
    /// 64 dimensions; long outputs and f32, which have no registers to spare, keep their waves.
    pub fn for_few_rows(self, rows: usize) -> Self {
        let needed = rows.div_ceil(self.architecture.wave_rows()).next_power_of_two();
        let wide = self.head_dim.max(self.value_dim);
        let (block_n, least_warps, stages) = match (self.architecture.is_cdna(), self.dtype.size(), wide) {
            // A wave alone; two tiles of long vectors would leave room for one block in 64 KiB of shared memory.
            (true, 2, _) if needed == 1 => (32, 1, if wide <= 128 { 2 } else { 1 }),
            (true, 2, _) | (true, _, ..=128) => (self.block_n, 1, self.stages),
            (false, 2, ..=64) => (32, 2, 2),
            (false, 2, ..=128) => (32, 4, 2),
            _ => (self.block_n, self.warps, self.stages),
        };
        let warps = needed.max(least_warps);
        if warps >= self.warps {
            return self;
        }
        let block_m = warps * self.architecture.wave_rows();
        ForwardConfig { block_m, block_n, warps, stages, ..self }
    }

    /// Checks that such an instance can be built and launched.
    ///
    /// # Errors
    /// [`Error::Value`] that says what is possible.
    pub fn check(&self) -> Result<()> {
        let value = |name: &str, value: usize, expected: &str| {
            Err(Error::value(format!("config.{name}"), value, expected))
        };
        let most_warps = 1024 / self.architecture.wave_size();
        if self.warps == 0 || self.warps > most_warps {
            return value("warps", self.warps, &format!("1 to {most_warps}"));
        }
        let rows = self.architecture.wave_rows();
        if self.block_m != rows * self.warps {
            return value("block_m", self.block_m, &format!("{rows} rows for each wave"));
        }
        if self.block_n == 0 || !self.block_n.is_multiple_of(32) || self.block_n > 256 {
            return value("block_n", self.block_n, "a multiple of 32, up to 256");
        }
        if self.stages == 0 || self.stages > 2 {
            return value("num_pipeline_stages", self.stages, "1 or 2");
        }
        for (name, dim) in [("head_dim", self.head_dim), ("value_dim", self.value_dim)] {
            if dim == 0 || dim > MAX_HEAD_DIM || !dim.is_multiple_of(16) {
                return value(name, dim, "a multiple of 16, up to 256, as the kernel pads it");
            }
        }
        let row_chunks = self.head_dim.max(self.value_columns()) * self.dtype.size() / 16;
        if row_chunks > self.block_threads() as usize {
            return value("warps", self.warps, "a thread for every 16 bytes of a row");
        }
        let limit = self.architecture.shared_memory();
        if self.shared_memory_bytes() > limit {
            let expected = format!("keys whose tiles fit {limit} bytes of shared memory");
            return value("block_n", self.block_n, &expected);
        }
        Ok(())
    }

    /// Threads of a block.
    pub fn block_threads(&self) -> u32 {
        (self.architecture.wave_size() * self.warps) as u32
    }

    /// Whether products are computed on the matrix unit.
    pub fn uses_matrix_cores(&self) -> bool {
        self.arithmetic == Arithmetic::Half || self.architecture.is_cdna()
    }

    /// value_dim, rounded up to whole tiles of the matrix unit.
    fn value_columns(&self) -> usize {
        self.value_dim.next_multiple_of(self.architecture.wave_rows())
    }

    /// Whether tiles are copied to shared memory without registers in between, which then holds two of keys and two of
    /// values; otherwise the next ones wait in registers.
    ///
    /// Decoding goes by way of registers: there one wave has several times as many loads on the way as its share of shared
    /// memory could take.
    pub fn copies_directly(&self) -> bool {
        let is_possible = self.architecture.copies_directly() && self.dtype.size() == 2 && self.vector_loads;
        // A wave copies whole rows, as many as each other, and neighbours apart.
        let dimensions = [self.head_dim, self.value_columns(), self.block_n, self.warps];
        is_possible
            && self.stages == 2
            && self.warps >= 4
            && dimensions.into_iter().all(usize::is_power_of_two)
            && self.direct_bytes() <= self.architecture.shared_memory()
    }

    /// Dynamic shared memory of a block: the tile of keys, the tile of values over or behind it; twice where
    /// tiles are copied directly.
    pub fn shared_memory_bytes(&self) -> usize {
        if self.copies_directly() {
            return self.direct_bytes();
        }
        let size = self.dtype.size();
        // An odd number of chunks of 16 bytes keeps neighbouring rows in different banks.
        let keys = self.block_n * 16 * ((self.head_dim * size / 16) | 1);
        let value_bytes = if self.architecture.reads_transposed() && size == 2 {
            // An odd number of 64 bytes, likewise.
            64 * ((self.value_columns() / 32) | 1)
        } else {
            self.value_columns() * size
        };
        let values = self.block_n * value_bytes;
        if self.stages == 1 { keys.max(values) } else { keys + values }
    }

    /// Each kilobyte that a wave copies at once is followed by padding, 16 bytes among keys and 64 among values.
    fn direct_bytes(&self) -> usize {
        let kilobytes = |columns: usize| self.block_n * columns * self.dtype.size() / 1024;
        let keys = kilobytes(self.head_dim) * (1024 + 16);
        let values = kilobytes(self.value_columns()) * (1024 + 64);
        2 * (keys + values)
    }

    /// Tiles of rows of the longest sequence: `num_row_tiles` of the parameters.
    pub fn num_row_tiles(&self, seqlen_q: usize, heads_per_tile: usize) -> u32 {
        (seqlen_q * heads_per_tile).div_ceil(self.block_m) as u32
    }

    /// The blocks of a launch: row tiles of all pairs of sequence and head tile along x, partitions along y.
    ///
    /// # Errors
    /// [`Error::Value`] when there are more than a launch can have.
    pub fn grid(&self, parameters: &AttentionParameters) -> Result<[u32; 3]> {
        let pairs =
            u64::from(parameters.batch) * u64::from(parameters.num_heads / parameters.heads_per_tile.max(1));
        let x = pairs * u64::from(parameters.num_row_tiles);
        let most = MAX_ITEMS_X / u64::from(self.block_threads());
        if x > most {
            return Err(Error::value("q", format!("{x} tiles of rows"), format!("at most {most}")));
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
        TranslationUnit::new(FORWARD, LIBRARY, "omniflash_forward")
            .with_functors(functors)
            .with_type("Element", element_type(self.dtype))
            .with_type("Product", self.arithmetic.cpp_type(self.dtype))
            .with_type("Keys", if self.paged { "PagedKeys" } else { "StridedKeys" })
            .with_constant("kHeadDim", self.head_dim as i64)
            .with_constant("kValueDim", self.value_dim as i64)
            .with_constant("kBlockM", self.block_m as i64)
            .with_constant("kBlockN", self.block_n as i64)
            .with_constant("kWarps", self.warps as i64)
            .with_constant("kStages", self.stages as i64)
            .with_constant("kVectorLoads", self.vector_loads)
            .with_constant("kDirectCopies", self.copies_directly())
    }
}

impl fmt::Display for ForwardConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-d{}", self.dtype, self.head_dim)?;
        if self.value_dim != self.head_dim {
            write!(f, "v{}", self.value_dim)?;
        }
        write!(f, "-m{}n{}w{}s{}", self.block_m, self.block_n, self.warps, self.stages)?;
        write!(f, "-{}", if self.paged { "paged" } else { "strided" })?;
        f.write_str(if self.vector_loads { "" } else { "-unaligned" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dimension_has_a_tile_on_every_architecture() {
        for architecture in Architecture::ALL {
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                for (head_dim, value_dim) in
                    (8..=256).step_by(8).map(|d| (d, d)).chain([(192, 128), (64, 256)])
                {
                    let config =
                        ForwardConfig::new(architecture, dtype, head_dim, value_dim, "test").unwrap();
                    assert!(config.check().is_ok(), "{architecture} {config}: {:?}", config.check());
                }
            }
            assert!(ForwardConfig::new(architecture, DType::F16, 264, 64, "test").is_err());
        }
    }

    #[test]
    fn few_rows_get_a_smaller_tile_that_holds_them() {
        for architecture in Architecture::ALL {
            for (dtype, dim) in
                [DType::F32, DType::BF16].into_iter().flat_map(|d| [(d, 64), (d, 128), (d, 256)])
            {
                let base = ForwardConfig::new(architecture, dtype, dim, dim, "test").unwrap();
                for rows in [1, 8, 40, 1000] {
                    let few = base.for_few_rows(rows);
                    assert!(few.check().is_ok(), "{architecture} {few}: {:?}", few.check());
                    assert!(
                        few == base || few.block_m >= rows && few.warps < base.warps,
                        "{architecture} {few}"
                    );
                    assert!(few.shared_memory_bytes() <= base.shared_memory_bytes());
                }
                assert_eq!(base.for_few_rows(1000), base);
            }
        }
        let base = ForwardConfig::new(Architecture::Gfx942, DType::BF16, 128, 128, "test").unwrap();
        let alone = base.for_few_rows(8);
        assert_eq!((alone.block_m, alone.block_n, alone.warps, alone.stages), (32, 32, 1, 2));
    }

    #[test]
    fn direct_copies_are_made_of_whole_rows_where_two_tiles_fit() {
        let of =
            |architecture, dtype, dim| ForwardConfig::new(architecture, dtype, dim, dim, "test").unwrap();
        let config = of(Architecture::Gfx950, DType::BF16, 128);
        assert!(config.copies_directly());
        // 16 kilobytes of keys and of values.
        assert_eq!(config.shared_memory_bytes(), 2 * (16 * (1024 + 16) + 16 * (1024 + 64)));
        assert!(!ForwardConfig { vector_loads: false, ..config }.copies_directly());
        assert!(!ForwardConfig { stages: 1, ..config }.copies_directly());
        assert!(!ForwardConfig { block_n: 96, ..config }.copies_directly());
        let wide = ForwardConfig { block_n: 128, ..of(Architecture::Gfx950, DType::BF16, 256) };
        assert!(!wide.copies_directly(), "272 KiB");
        assert!(wide.check().is_ok());
        assert!(!config.for_few_rows(8).copies_directly());
        assert!(!of(Architecture::Gfx950, DType::BF16, 96).copies_directly());
        assert!(!of(Architecture::Gfx950, DType::F32, 128).copies_directly());
        assert!(!of(Architecture::Gfx942, DType::BF16, 128).copies_directly());
    }

    #[test]
    fn impossible_tiles_are_refused_with_what_is_possible() {
        for architecture in Architecture::ALL {
            let config = ForwardConfig::new(architecture, DType::F16, 128, 128, "test").unwrap();
            assert!(ForwardConfig { block_m: config.block_m + 16, ..config }.check().is_err());
            assert!(ForwardConfig { block_n: 48, ..config }.check().is_err());
            assert!(ForwardConfig { block_n: 256, head_dim: 256, ..config }.check().is_err());
            assert!(ForwardConfig { stages: 0, ..config }.check().is_err());
            assert!(ForwardConfig { head_dim: 72, ..config }.check().is_err());
        }
    }
}
