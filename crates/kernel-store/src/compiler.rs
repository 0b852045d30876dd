//! What compiles kernels.

use std::fmt;

use crate::kernel::KernelSource;

/// A compiler of device code that may be present on this machine.
pub trait Compiler: Send + Sync + fmt::Debug {
    /// Its name in messages and cache entries: `nvrtc`.
    fn name(&self) -> &str;

    /// Its version, with everything else that its output depends on; asked for once.
    ///
    /// # Errors
    /// Why it cannot be used here.
    fn version(&self) -> Result<String, String>;

    /// Compiles to an image that a driver loads.
    ///
    /// # Errors
    /// [`CompileError`].
    fn compile(&self, source: &KernelSource<'_>) -> Result<Vec<u8>, CompileError>;

    /// Compiles several sources, which a compiler that takes long to start may do at once; what came of each, in their
    /// order.
    fn compile_all(&self, sources: &[KernelSource<'_>]) -> Vec<Result<Vec<u8>, CompileError>> {
        sources.iter().map(|source| self.compile(source)).collect()
    }
}

/// Why a compilation gave no kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CompileError {
    /// The compiler refused the source: no other compiler is asked.
    Source {
        /// The compiler's code.
        code: i64,
        /// The compiler's log.
        log: String,
    },
    /// The compiler could not run: the next one is asked.
    Unusable(String),
}
