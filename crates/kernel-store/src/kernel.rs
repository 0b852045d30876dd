//! What a kernel is made from, and what it becomes.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// What one kernel is compiled from: all that its machine code depends on, but the compiler.
#[derive(Clone, Copy, Debug)]
pub struct KernelSource<'a> {
    /// The kernel's id, for people: `fwd-sm_90-bf16-d128-causal-identity-dense`.
    pub id: &'a str,
    /// The architecture compiled for: `sm_90`, `gfx942`.
    pub arch: &'a str,
    /// The functor type that the kernel is instantiated with.
    pub functor: &'a str,
    /// One source text that includes no file.
    pub source: &'a str,
    /// Compiler options beside the architecture.
    pub options: &'a [&'static str],
    /// Tags of prebuilt kernels that may stand for this one, the best first; see [`prebuilt_tag`].
    pub prebuilt_tags: &'a [String],
}

/// What a prebuilt kernel is found by: a hash of its architecture and source, so that a kernel built from another
/// version of the source is never taken for this one.
pub fn prebuilt_tag(arch: &str, source: &str) -> String {
    let mut hasher = Hasher::new();
    hasher.field(arch).field(source);
    hasher.finish().to_hex()[..16].to_owned()
}

/// The file of a prebuilt kernel: a name for people, the architecture, then the tag, which alone is looked for.
///
/// ```
/// use omniflash_kernel_store::{prebuilt_name, prebuilt_tag};
/// let (tag, name) = (prebuilt_tag("sm_90", "text"), prebuilt_name("combine-bf16", "sm_90", "text", "cubin"));
/// assert_eq!(name, format!("combine-bf16-sm_90-{tag}.cubin"));
/// ```
pub fn prebuilt_name(id: &str, arch: &str, source: &str, extension: &str) -> String {
    format!("{id}-{arch}-{}.{extension}", prebuilt_tag(arch, source))
}

/// The tag in the name of a prebuilt kernel.
pub(crate) fn tag_of(name: &str) -> Option<&str> {
    let (stem, _extension) = name.rsplit_once('.')?;
    Some(stem.rsplit_once('-')?.1)
}

/// A hash of everything that a kernel's machine code depends on.
pub(crate) type Key = blake3::Hash;

impl KernelSource<'_> {
    /// The key, the compiler left out.
    pub(crate) fn key(&self) -> Key {
        let mut hasher = Hasher::new();
        hasher.field(self.id).field(self.arch).field(self.functor).field(self.source);
        for option in self.options {
            hasher.field(option);
        }
        hasher.finish()
    }

    /// The key, a compiler's version included.
    pub(crate) fn key_with(&self, compiler: &str, version: &str) -> Key {
        let mut hasher = Hasher::new();
        hasher.field(self.key().to_hex().as_str()).field(compiler).field(version);
        hasher.finish()
    }
}

/// Hashes fields with their lengths, so that no two lists of fields look alike.
struct Hasher(blake3::Hasher);

impl Hasher {
    fn new() -> Self {
        Hasher(blake3::Hasher::new())
    }

    fn field(&mut self, field: &str) -> &mut Self {
        self.0.update(&(field.len() as u64).to_le_bytes()).update(field.as_bytes());
        self
    }

    fn finish(&self) -> Key {
        self.0.finalize()
    }
}

/// A compiled kernel.
#[derive(Clone)]
pub struct Kernel {
    /// The image that a driver loads.
    pub image: Arc<[u8]>,
    /// Where it came from.
    pub origin: Origin,
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kernel({} bytes, {})", self.image.len(), self.origin)
    }
}

/// Where a kernel came from.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Origin {
    /// A file of a directory of prebuilt kernels.
    Prebuilt(PathBuf),
    /// The program itself.
    Embedded,
    /// A file of the cache.
    Cache(PathBuf),
    /// A compiler, just now.
    Compiled {
        /// The compiler's name.
        compiler: String,
        /// How long it took.
        seconds: f64,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Prebuilt(path) => write!(f, "prebuilt {}", path.display()),
            Origin::Embedded => f.write_str("embedded"),
            Origin::Cache(path) => write!(f, "cached {}", path.display()),
            Origin::Compiled { compiler, seconds } => write!(f, "compiled by {compiler} in {seconds:.2} s"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source<'a>(source: &'a str, functor: &'a str, options: &'a [&'static str]) -> KernelSource<'a> {
        KernelSource { id: "k", arch: "sm_90", functor, source, options, prebuilt_tags: &[] }
    }

    #[test]
    fn everything_that_machine_code_depends_on_changes_the_key() {
        let base = source("text", "Causal", &["-O3"]);
        let others = [
            source("text2", "Causal", &["-O3"]),
            source("text", "Full", &["-O3"]),
            source("text", "Causal", &[]),
            source("tex", "tCausal", &["-O3"]),
            KernelSource { arch: "sm_80", ..base },
            KernelSource { id: "k2", ..base },
        ];
        for other in others {
            assert_ne!(other.key(), base.key(), "{other:?}");
        }
        assert_ne!(base.key_with("nvrtc", "13.0"), base.key_with("nvrtc", "13.1"));
        assert_ne!(base.key_with("nvrtc", "13.0"), base.key_with("nvcc", "13.0"));
        assert_eq!(base.key(), source("text", "Causal", &["-O3"]).key());
    }
}
