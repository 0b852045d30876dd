//! How a backend will compute a problem: decided on the host, from sizes only.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use crate::config::Algorithm;

/// How a backend will compute a problem: pure data, cacheable, and printable in one line.
///
/// A plan depends on the sizes, dtypes, mask and configuration of a problem, never on the contents of its tensors;
/// it serves every problem of the same kind.
#[derive(Clone)]
pub struct AttentionPlan {
    /// The kernel: `fwd-{arch}-{dtype}-d{head_dim}-{mask}-{score}-{kv}`.
    pub kernel_id: Arc<str>,
    /// The algorithm.
    pub algorithm: Algorithm,
    /// Blocks of the launch; tasks on a CPU.
    pub grid: [u32; 3],
    /// Threads of a block; worker threads on a CPU.
    pub block_threads: u32,
    /// Query rows of a tile.
    pub block_m: usize,
    /// Keys of a tile.
    pub block_n: usize,
    /// Tiles in flight; 1 where there is no pipeline.
    pub num_pipeline_stages: usize,
    /// Shared memory of a block; scratch of a worker on a CPU.
    pub shared_memory_bytes: usize,
    /// Memory for partial results.
    pub workspace_bytes: usize,
    /// Pieces into which keys are split; 1 for none.
    pub num_partitions: usize,
    /// Why these numbers.
    pub reason: Arc<str>,
    /// What the backend keeps for itself.
    pub detail: Option<Arc<dyn Any + Send + Sync>>,
}

impl fmt::Display for AttentionPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [x, y, z] = self.grid;
        write!(
            f,
            "{} {} grid {x}x{y}x{z} threads {} tile {}x{} stages {} shared {} B workspace {} B partitions {}: {}",
            self.kernel_id,
            self.algorithm,
            self.block_threads,
            self.block_m,
            self.block_n,
            self.num_pipeline_stages,
            self.shared_memory_bytes,
            self.workspace_bytes,
            self.num_partitions,
            self.reason
        )
    }
}

impl fmt::Debug for AttentionPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AttentionPlan({self})")
    }
}
