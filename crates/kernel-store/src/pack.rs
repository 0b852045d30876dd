//! Compiled kernels of one architecture in one file, for machines that have no compiler.
//!
//! A readable manifest with a hash of itself, then the images end to end in its order, each with a hash of its own: the
//! manifest alone is read to know what is there, an image when it is asked for.
//!
//! ```text
//! omniflash kernels 1
//! hash 0123...                 of the manifest after this line
//! version 0.1.0                of omniflash
//! arch sm_90a
//! kernel 30720 4567... fwd-bf16-d128-causal-sm_90a-89ab.cubin
//! ...
//!
//! <images>
//! ```

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::cache::DiskCache;
use crate::kernel::tag_of;

const MAGIC: &str = "omniflash kernels 1";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// A longer manifest is no manifest: some ten thousand kernels.
const MOST_MANIFEST_BYTES: u64 = 4 << 20;

/// How the files are named: `omniflash-0.1.0-sm_90a.kernels`.
pub(crate) const PACK_EXTENSION: &str = "kernels";

/// Why a pack of kernels cannot be made or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file is something else.
    #[error("{} is no pack of omniflash kernels", path.display())]
    NotAPack {
        /// The file.
        path: PathBuf,
    },
    /// A byte has changed, or some are missing or too many.
    #[error("{} is damaged: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Which part of it.
        what: String,
    },
    /// The kernels are those of another version, whose launches differ.
    #[error("{} is of omniflash {found}, this is {VERSION}: make or download the pack of {VERSION}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// The version of the pack.
        found: String,
    },
    /// A kernel or a pack is for another architecture.
    #[error("{} is for {found}, expected {expected}", path.display())]
    Arch {
        /// The file.
        path: PathBuf,
        /// What it is for.
        found: String,
        /// What was asked for.
        expected: String,
    },
    /// There is nothing to pack.
    #[error("{} has no compiled kernels", path.display())]
    Empty {
        /// The folder.
        path: PathBuf,
    },
}

/// The manifest of a pack, checked; its images are read and checked one by one.
#[derive(Clone, Debug)]
pub struct KernelPack {
    path: PathBuf,
    version: String,
    arch: String,
    kernels: Vec<PackedKernel>,
}

/// A kernel of a pack.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PackedKernel {
    /// As [`prebuilt_name`](crate::prebuilt_name) has it.
    name: String,
    /// Where its image begins in the file.
    offset: u64,
    bytes: usize,
    hash: String,
}

impl KernelPack {
    /// Reads the manifest of a pack, whatever version it is of.
    ///
    /// # Errors
    /// [`PackError::File`], [`PackError::NotAPack`], [`PackError::Damaged`].
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, PackError> {
        let path = path.into();
        let failed = |source| PackError::File { path: path.clone(), source };
        let damaged = |what: &str| PackError::Damaged { path: path.clone(), what: what.into() };
        let file = File::open(&path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        let mut reader = BufReader::new(file).take(MOST_MANIFEST_BYTES);
        let mut line = || -> Result<Option<String>, PackError> {
            let mut bytes = Vec::new();
            reader.read_until(b'\n', &mut bytes).map_err(failed)?;
            // A last line without its end is cut off.
            Ok((bytes.pop() == Some(b'\n')).then(|| String::from_utf8(bytes).ok()).flatten())
        };
        if line()?.as_deref() != Some(MAGIC) {
            return Err(PackError::NotAPack { path });
        }
        let hash = line()?.ok_or_else(|| damaged("its manifest is cut off"))?;
        let mut manifest = String::new();
        loop {
            match line()? {
                Some(text) if text.is_empty() => break,
                Some(text) => writeln!(manifest, "{text}").expect("a string takes any text"),
                None => return Err(damaged("its manifest is cut off")),
            }
        }
        if hash != hash_line(&manifest) {
            return Err(damaged("the hash of its manifest is wrong"));
        }
        let begin = MAGIC.len() + 1 + hash.len() + 1 + manifest.len() + 1;
        let (version, arch, kernels, end) =
            parse(&manifest, begin as u64).ok_or_else(|| damaged("its manifest says too little"))?;
        if length != end {
            return Err(damaged(&format!("it has {length} bytes of {end}")));
        }
        Ok(KernelPack { path, version, arch, kernels })
    }

    /// Packs the compiled kernels in a folder, those of `arch`, which `cargo xtask kernels` has named.
    ///
    /// # Errors
    /// [`PackError::Arch`] when a kernel is for another architecture, [`PackError::Empty`] without any,
    /// [`PackError::File`].
    pub fn write(folder: &Path, arch: &str, path: &Path) -> Result<Self, PackError> {
        let (mut manifest, mut images) = (format!("version {VERSION}\narch {arch}\n"), Vec::new());
        for file in kernel_files(folder)? {
            let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let built_for = arch_of(name).unwrap_or_default();
            if built_for != arch {
                let (found, expected) = (built_for.into(), arch.into());
                return Err(PackError::Arch { path: file, found, expected });
            }
            let image = fs::read(&file).map_err(|source| PackError::File { path: file.clone(), source })?;
            let hash = blake3::hash(&image).to_hex();
            writeln!(manifest, "kernel {} {hash} {name}", image.len()).expect("a string takes any text");
            images.push(image);
        }
        if images.is_empty() {
            return Err(PackError::Empty { path: folder.into() });
        }
        let head = format!("{MAGIC}\n{}\n{manifest}\n", hash_line(&manifest));
        let parts = std::iter::once(head.as_bytes()).chain(images.iter().map(Vec::as_slice));
        write_in_one_step(path, parts).map_err(|source| PackError::File { path: path.into(), source })?;
        KernelPack::open(path)
    }

    /// Copies the pack into a cache, where every store with that cache finds it; replaces one of the same architecture.
    ///
    /// # Errors
    /// [`PackError::Version`] when this version could not use its kernels, [`PackError::Damaged`] after a look at every
    /// image, [`PackError::File`].
    pub fn install(&self, cache: &DiskCache) -> Result<PathBuf, PackError> {
        self.check_version()?;
        self.verify()?;
        let path = cache.directory().join(format!("{}.{PACK_EXTENSION}", self.arch));
        let failed = |path: &Path, source| PackError::File { path: path.into(), source };
        let bytes = fs::read(&self.path).map_err(|source| failed(&self.path, source))?;
        fs::create_dir_all(cache.directory()).map_err(|source| failed(cache.directory(), source))?;
        write_in_one_step(&path, [bytes.as_slice()]).map_err(|source| failed(&path, source))?;
        Ok(path)
    }

    /// Whether this version of omniflash launches such kernels.
    ///
    /// # Errors
    /// [`PackError::Version`].
    pub fn check_version(&self) -> Result<(), PackError> {
        match self.version == VERSION {
            true => Ok(()),
            false => Err(PackError::Version { path: self.path.clone(), found: self.version.clone() }),
        }
    }

    /// Reads every image and compares its hash.
    ///
    /// # Errors
    /// [`PackError::Damaged`] with the kernel's name, [`PackError::File`].
    pub fn verify(&self) -> Result<(), PackError> {
        self.kernels.iter().try_for_each(|kernel| self.read(kernel).map(drop))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The version of omniflash that it was made by.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The architecture of all its kernels.
    pub fn arch(&self) -> &str {
        &self.arch
    }

    /// How many kernels it holds.
    pub fn len(&self) -> usize {
        self.kernels.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.kernels.is_empty()
    }

    /// Bytes of all images.
    pub fn bytes(&self) -> usize {
        self.kernels.iter().map(|kernel| kernel.bytes).sum()
    }

    /// The tags of its kernels.
    pub(crate) fn tags(&self) -> impl Iterator<Item = &str> {
        self.kernels.iter().filter_map(|kernel| tag_of(&kernel.name))
    }

    /// The image of a tag, checked; `None` when there is none.
    pub(crate) fn image(&self, tag: &str) -> Result<Option<Vec<u8>>, PackError> {
        let kernel = self.kernels.iter().find(|kernel| tag_of(&kernel.name) == Some(tag));
        kernel.map(|kernel| self.read(kernel)).transpose()
    }

    fn read(&self, kernel: &PackedKernel) -> Result<Vec<u8>, PackError> {
        let failed = |source| PackError::File { path: self.path.clone(), source };
        let mut file = File::open(&self.path).map_err(failed)?;
        file.seek(SeekFrom::Start(kernel.offset)).map_err(failed)?;
        // The length of the file was compared when it was opened; it is read by what is there, not by what is said.
        let mut image = Vec::new();
        file.take(kernel.bytes as u64).read_to_end(&mut image).map_err(failed)?;
        if blake3::hash(&image).to_hex().as_str() != kernel.hash {
            let what = format!("the hash of {} is wrong", kernel.name);
            return Err(PackError::Damaged { path: self.path.clone(), what });
        }
        Ok(image)
    }
}

fn hash_line(manifest: &str) -> String {
    format!("hash {}", blake3::hash(manifest.as_bytes()).to_hex())
}

/// Version, architecture, kernels and the end of the last image; `None` when a line is not as it should be.
fn parse(manifest: &str, begin: u64) -> Option<(String, String, Vec<PackedKernel>, u64)> {
    let mut lines = manifest.lines();
    let version = lines.next()?.strip_prefix("version ")?.to_owned();
    let arch = lines.next()?.strip_prefix("arch ")?.to_owned();
    let mut offset = begin;
    let kernels = lines
        .map(|line| {
            let mut words = line.strip_prefix("kernel ")?.splitn(3, ' ');
            let bytes: usize = words.next()?.parse().ok()?;
            let (hash, name) = (words.next()?.to_owned(), words.next()?.to_owned());
            let kernel = PackedKernel { name, offset, bytes, hash };
            offset = offset.checked_add(bytes as u64)?;
            Some(kernel)
        })
        .collect::<Option<Vec<_>>>()?;
    Some((version, arch, kernels, offset))
}

/// The architecture in the name of a prebuilt kernel: what is between the last two dashes.
fn arch_of(name: &str) -> Option<&str> {
    let (stem, _extension) = name.rsplit_once('.')?;
    let (before, _tag) = stem.rsplit_once('-')?;
    Some(before.rsplit_once('-').map_or(before, |(_, arch)| arch))
}

/// The files of a folder that are named as kernels are, in the order of their names.
fn kernel_files(folder: &Path) -> Result<Vec<PathBuf>, PackError> {
    let failed = |source| PackError::File { path: folder.into(), source };
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let is_kernel =
            ["cubin", "co"].iter().any(|kind| path.extension().is_some_and(|found| found == *kind));
        if is_kernel {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Writes under the final name in one step, so that no reader ever sees a part.
fn write_in_one_step<'p>(path: &Path, parts: impl IntoIterator<Item = &'p [u8]>) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(folder)?;
    for part in parts {
        file.write_all(part)?;
    }
    // A temporary file is its owner's alone, a pack is for whoever may read its folder.
    #[cfg(unix)]
    fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests;
