//! The user's cache directory: verified files, written atomically, one writer a kernel.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fd_lock::RwLock;

use crate::entry::{self, CacheEntry};
use crate::kernel::{KernelSource, Key};
use crate::pack::{KernelPack, PACK_EXTENSION, PackError};

/// Names another cache directory; empty for none.
pub const CACHE_VARIABLE: &str = "OMNIFLASH_CACHE";

const EXTENSION: &str = "kernel";

/// How long a process waits for another that compiles the same kernel, before it compiles too: a stopped process
/// must not stop the others, and the rename at the end is safe without the lock.
const LOCK_PATIENCE: Duration = Duration::from_secs(120);
const LOCK_POLL: Duration = Duration::from_millis(10);

/// A directory of compiled kernels, shared by all processes of a user.
#[derive(Clone, Debug)]
pub struct DiskCache {
    directory: PathBuf,
}

impl DiskCache {
    /// A cache in a directory, which is made when the first kernel is written.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        DiskCache { directory: directory.into() }
    }

    /// The user's cache for the kernels of `vendor`: below [`CACHE_VARIABLE`], else where the system keeps caches;
    /// `None` when the variable is empty or there is no such place.
    pub fn of_user(vendor: &str) -> Option<Self> {
        let root = match std::env::var_os(CACHE_VARIABLE) {
            Some(path) if path.is_empty() => return None,
            Some(path) => PathBuf::from(path),
            None => directories::ProjectDirs::from("", "", "omniflash")?.cache_dir().join("kernels"),
        };
        Some(DiskCache::new(root.join(vendor)))
    }

    /// Where the files are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The kernels held, by id; damaged files are left out.
    ///
    /// # Errors
    /// Those of reading the directory; a directory that does not exist holds nothing.
    pub fn entries(&self) -> io::Result<Vec<CacheEntry>> {
        let mut entries: Vec<CacheEntry> = self
            .files(EXTENSION)?
            .into_iter()
            .filter_map(|path| entry::describe(&fs::read(&path).ok()?, path).ok())
            .collect();
        entries.sort_by(|a, b| (&a.id, &a.path).cmp(&(&b.id, &b.path)));
        Ok(entries)
    }

    /// The packs installed, or what is wrong with one.
    ///
    /// # Errors
    /// Those of reading the directory.
    pub fn packs(&self) -> io::Result<Vec<Result<KernelPack, PackError>>> {
        Ok(self.files(PACK_EXTENSION)?.into_iter().map(KernelPack::open).collect())
    }

    /// The files of the packs installed; none where the directory cannot be read.
    pub(crate) fn pack_files(&self) -> Vec<PathBuf> {
        self.files(PACK_EXTENSION).unwrap_or_default()
    }

    /// Removes every kernel and every pack, damaged ones too, and says how many files there were.
    ///
    /// # Errors
    /// Those of reading the directory and removing its files.
    pub fn clear(&self) -> io::Result<usize> {
        let mut files = self.files(EXTENSION)?;
        files.extend(self.files(PACK_EXTENSION)?);
        for path in &files {
            remove(path)?;
        }
        Ok(files.len())
    }

    /// The files of a kind, in the order of their names.
    fn files(&self, kind: &str) -> io::Result<Vec<PathBuf>> {
        let listing = match fs::read_dir(&self.directory) {
            Ok(listing) => listing,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut files = Vec::new();
        for file in listing {
            let path = file?.path();
            if path.extension().is_some_and(|extension| extension == kind) {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    }

    /// The file of a kernel: the key without the compiler, then the key with it.
    fn path(&self, source: &KernelSource<'_>, key: &Key) -> PathBuf {
        let (base, key) = (source.key().to_hex(), key.to_hex());
        self.directory.join(format!("{}-{}.{EXTENSION}", &base[..32], &key[..32]))
    }

    /// A verified image; a damaged file is removed, and then there is none.
    pub(crate) fn load(&self, source: &KernelSource<'_>, key: &Key) -> Option<(Vec<u8>, PathBuf)> {
        let path = self.path(source, key);
        let file = match fs::read(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a cached kernel cannot be read");
                return None;
            }
        };
        match entry::decode(&file, key) {
            Ok(image) => Some((image.to_vec(), path)),
            Err(reason) => {
                tracing::warn!(path = %path.display(), reason, "a cached kernel is damaged and will be rebuilt");
                // It may be gone already, or not ours to remove; the rename that follows a rebuild replaces it.
                let _ = remove(&path);
                None
            }
        }
    }

    /// A verified image from any compiler: for machines that have none now.
    pub(crate) fn load_any(&self, source: &KernelSource<'_>) -> Option<(Vec<u8>, PathBuf)> {
        let prefix = source.key().to_hex()[..32].to_owned();
        self.files(EXTENSION).ok()?.into_iter().find_map(|path| {
            if !path.file_name()?.to_str()?.starts_with(&prefix) {
                return None;
            }
            let file = fs::read(&path).ok()?;
            let image = entry::verified(&file).ok()?;
            Some((image.to_vec(), path))
        })
    }

    /// Writes an image under its final name in one step, so that no reader ever sees a part of it.
    pub(crate) fn save(
        &self,
        source: &KernelSource<'_>,
        key: &Key,
        compiler: &str,
        image: &[u8],
    ) -> io::Result<PathBuf> {
        fs::create_dir_all(&self.directory)?;
        let path = self.path(source, key);
        let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(&self.directory)?;
        file.write_all(&entry::encode(source, key, compiler, image))?;
        file.persist(&path)?;
        Ok(path)
    }

    /// Runs `build` while no other process builds a kernel of the same lock; without a lock where there can be none.
    pub(crate) fn locked<T>(&self, key: &Key, build: impl FnOnce() -> T) -> T {
        let mut lock = match self.lock_file(key) {
            Ok(file) => RwLock::new(file),
            Err(error) => {
                tracing::debug!(directory = %self.directory.display(), %error, "no lock among processes");
                return build();
            }
        };
        let begin = Instant::now();
        let guard = loop {
            match lock.try_write() {
                Ok(guard) => break Some(guard),
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => break None,
                Err(_) if begin.elapsed() > LOCK_PATIENCE => break None,
                Err(_) => std::thread::sleep(LOCK_POLL),
            }
        };
        let built = build();
        drop(guard);
        built
    }

    /// One of 256 lock files: they are never removed, since removing a lock that another process opens breaks it.
    fn lock_file(&self, key: &Key) -> io::Result<File> {
        fs::create_dir_all(&self.directory)?;
        let path = self.directory.join(format!("{:02x}.lock", key.as_bytes()[0]));
        OpenOptions::new().create(true).truncate(false).write(true).open(path)
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
