//! What a launch of a kernel needs.

/// Blocks, threads and dynamic shared memory of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Launch {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block_threads: u32,
    /// Bytes of dynamic shared memory of a block.
    pub shared_memory_bytes: usize,
}

/// Bytes that a launch keeps parts of what it computes in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Workspace {
    /// Partial outputs.
    pub partial_out: usize,
    /// Partial sums, after them.
    pub partial_lse: usize,
    /// Counters of parts, zero before and after each launch.
    pub counters: usize,
}

impl Workspace {
    /// Bytes of partial outputs and sums.
    pub fn partial_bytes(&self) -> usize {
        self.partial_out + self.partial_lse
    }
}
