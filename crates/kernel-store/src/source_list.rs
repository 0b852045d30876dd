//! The sources of kernels that plans ask for, before anything is compiled.

use std::sync::{Arc, Mutex, PoisonError};

use crate::compiler::{CompileError, Compiler};
use crate::kernel::KernelSource;

/// Stands where a compiler does, compiles nothing, and lists the sources it is given: plans made with a store whose only
/// compiler it is say what [`KernelStore::prepare`](crate::KernelStore::prepare) of another store has to build for them.
///
/// Clones share one list.
#[derive(Clone, Debug, Default)]
pub struct SourceList(Arc<Mutex<Vec<ListedSource>>>);

/// A [`KernelSource`] that owns its parts.
#[derive(Clone, Debug)]
pub struct ListedSource {
    id: String,
    arch: String,
    functor: String,
    source: String,
    options: Vec<&'static str>,
    prebuilt_tags: Vec<String>,
}

impl SourceList {
    /// The sources since the last time, in the order in which they were asked for.
    pub fn take(&self) -> Vec<ListedSource> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ListedSource {
    /// The source as a store takes it.
    pub fn as_source(&self) -> KernelSource<'_> {
        KernelSource {
            id: &self.id,
            arch: &self.arch,
            functor: &self.functor,
            source: &self.source,
            options: &self.options,
            prebuilt_tags: &self.prebuilt_tags,
        }
    }
}

impl From<&KernelSource<'_>> for ListedSource {
    fn from(source: &KernelSource<'_>) -> Self {
        ListedSource {
            id: source.id.into(),
            arch: source.arch.into(),
            functor: source.functor.into(),
            source: source.source.into(),
            options: source.options.into(),
            prebuilt_tags: source.prebuilt_tags.into(),
        }
    }
}

impl Compiler for SourceList {
    fn name(&self) -> &str {
        "list"
    }

    fn version(&self) -> Result<String, String> {
        Ok("of sources".into())
    }

    /// An empty image, for plans that are never launched.
    fn compile(&self, source: &KernelSource<'_>) -> Result<Vec<u8>, CompileError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(source.into());
        Ok(Vec::new())
    }
}
