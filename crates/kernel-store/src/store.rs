//! The store itself: where a kernel is looked for, and how it comes to be.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use omniflash_core::{Error, Result};

use crate::cache::DiskCache;
use crate::compiler::{CompileError, Compiler};
use crate::kernel::{Kernel, KernelSource, Key, Origin, tag_of};
use crate::listing::Listing;

/// Names a directory of prebuilt kernels.
pub const KERNELS_VARIABLE: &str = "OMNIFLASH_KERNELS";

/// Where a store looks for kernels, in the order of the fields.
#[derive(Debug, Default)]
pub struct StoreOptions {
    /// A pack of prebuilt kernels, or a directory of packs and kernels and of folders with them; kernels are named by
    /// [`prebuilt_name`](crate::prebuilt_name), packs end in `.kernels`.
    pub directory: Option<PathBuf>,
    /// Names and images of kernels in the program.
    pub embedded: &'static [(&'static str, &'static [u8])],
    /// The user's cache; packs installed there come before what was compiled.
    pub cache: Option<DiskCache>,
    /// The compilers to try.
    pub compilers: Vec<Box<dyn Compiler>>,
    /// What a user can do when nothing gives a kernel; ends the error's hint.
    pub advice: String,
}

/// Answers kernel sources with compiled kernels. Cheap to share: all methods take `&self`.
#[derive(Debug)]
pub struct KernelStore {
    directory: Option<PathBuf>,
    /// What the directory and the cache hold of prebuilt kernels, listed once.
    listing: OnceLock<Listing>,
    embedded: &'static [(&'static str, &'static [u8])],
    cache: Option<DiskCache>,
    compilers: Vec<FoundCompiler>,
    advice: String,
    flights: Mutex<HashMap<Key, Arc<Flight>>>,
}

/// A compiler and its version, or why it cannot be used; asked once.
#[derive(Debug)]
struct FoundCompiler {
    compiler: Box<dyn Compiler>,
    version: OnceLock<Result<String, String>>,
}

impl FoundCompiler {
    fn version(&self) -> Result<&str, &str> {
        self.version.get_or_init(|| self.compiler.version()).as_deref().map_err(String::as_str)
    }
}

/// One kernel, being looked for or found.
#[derive(Debug, Default)]
struct Flight {
    /// Counts the failures, so that whoever waited for one shares it instead of failing anew.
    failures: AtomicU64,
    outcome: Mutex<Outcome>,
}

#[derive(Debug, Default)]
struct Outcome {
    kernel: Option<Kernel>,
    last_error: Option<Error>,
}

impl KernelStore {
    /// A store that looks where `options` say.
    pub fn new(options: StoreOptions) -> Self {
        KernelStore {
            directory: options.directory,
            listing: OnceLock::new(),
            embedded: options.embedded,
            cache: options.cache,
            compilers: options
                .compilers
                .into_iter()
                .map(|compiler| FoundCompiler { compiler, version: OnceLock::new() })
                .collect(),
            advice: options.advice,
            flights: Mutex::default(),
        }
    }

    /// The user's cache, if there is one.
    pub fn cache(&self) -> Option<&DiskCache> {
        self.cache.as_ref()
    }

    /// The compilers with their versions, or why they cannot be used.
    pub fn compilers(&self) -> Vec<(&str, Result<&str, &str>)> {
        self.compilers.iter().map(|found| (found.compiler.name(), found.version())).collect()
    }

    /// The compiled kernel of a source; found or compiled once, then from memory.
    ///
    /// Callers that want the same kernel at the same time wait for one of them.
    ///
    /// # Errors
    /// [`Error::NoKernel`] with what was tried and what can be done, [`Error::Driver`] with a compiler's log.
    pub fn kernel(&self, source: &KernelSource<'_>) -> Result<Kernel> {
        let flight = self.flight(source);
        let failures = flight.failures.load(Ordering::Acquire);
        let mut outcome = flight.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernel) = &outcome.kernel {
            return Ok(kernel.clone());
        }
        if let Some(error) = outcome.last_error.as_ref()
            && flight.failures.load(Ordering::Acquire) != failures
        {
            return Err(error.clone());
        }
        let found = self.find(source);
        match &found {
            Ok(kernel) => {
                tracing::debug!(id = source.id, origin = %kernel.origin, bytes = kernel.image.len(), "kernel");
                outcome.kernel = Some(kernel.clone());
            }
            Err(error) => {
                outcome.last_error = Some(error.clone());
                flight.failures.fetch_add(1, Ordering::Release);
            }
        }
        found
    }

    /// Compiles those of the sources that are nowhere yet, by the first compiler that is present and several in one start
    /// of it, and keeps them for [`KernelStore::kernel`]. Says how many it compiled.
    ///
    /// What does not compile is left out: whoever asks for that kernel is told why. Other processes are not waited for.
    pub fn prepare(&self, sources: &[KernelSource<'_>]) -> usize {
        let present = self.compilers.iter().find_map(|found| Some((found, found.version().ok()?)));
        let Some((found, version)) = present else { return 0 };
        let compiler = found.compiler.as_ref();
        let is_missing = |source: &&KernelSource<'_>| {
            let flight = self.flight(source);
            let outcome = flight.outcome.lock().unwrap_or_else(PoisonError::into_inner);
            outcome.kernel.is_none()
                && self.prebuilt(source).is_none()
                && self.cached(source, &[(compiler, version)]).is_none()
        };
        let missing: Vec<KernelSource<'_>> = sources.iter().filter(is_missing).copied().collect();
        let begin = Instant::now();
        let images = compiler.compile_all(&missing);
        let seconds = begin.elapsed().as_secs_f64() / missing.len().max(1) as f64;
        let compiled: Vec<(KernelSource<'_>, Vec<u8>)> = missing
            .into_iter()
            .zip(images)
            .filter_map(|(source, image)| Some((source, image.ok()?)))
            .collect();
        for (source, image) in &compiled {
            self.save(source, compiler.name(), version, image);
            let origin = Origin::Compiled { compiler: compiler.name().into(), seconds };
            let flight = self.flight(source);
            let mut outcome = flight.outcome.lock().unwrap_or_else(PoisonError::into_inner);
            outcome.kernel = Some(Kernel { image: image.as_slice().into(), origin });
        }
        compiled.len()
    }

    fn flight(&self, source: &KernelSource<'_>) -> Arc<Flight> {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(flights.entry(source.key()).or_default())
    }

    fn find(&self, source: &KernelSource<'_>) -> Result<Kernel> {
        if let Some(kernel) = self.prebuilt(source) {
            return Ok(kernel);
        }
        let mut absent = Vec::new();
        let mut present = Vec::new();
        for found in &self.compilers {
            match found.version() {
                Ok(version) => present.push((found.compiler.as_ref(), version)),
                Err(reason) => absent.push(format!("{}: {reason}", found.compiler.name())),
            }
        }
        if let Some(kernel) = self.cached(source, &present) {
            return Ok(kernel);
        }
        for (compiler, version) in present {
            match self.compile(source, compiler, version) {
                Ok(kernel) => return Ok(kernel),
                Err(CompileError::Source { code, log }) => {
                    let api = format!("{} compiling {}", compiler.name(), source.id);
                    return Err(Error::Driver { api, code, text: log });
                }
                Err(CompileError::Unusable(reason)) => absent.push(format!("{}: {reason}", compiler.name())),
            }
        }
        Err(Error::NoKernel { arch: source.arch.into(), id: source.id.into(), hint: self.hint(&absent) })
    }

    /// What is prebuilt: first in the directory, then in packs that were installed.
    fn listing(&self) -> &Listing {
        self.listing.get_or_init(|| {
            let mut listing = Listing::default();
            if let Some(cache) = &self.cache {
                cache.pack_files().into_iter().for_each(|path| listing.add(path));
            }
            if let Some(directory) = &self.directory {
                listing.add_all(directory);
            }
            listing
        })
    }

    /// A kernel of the directory, of a pack or of the program.
    fn prebuilt(&self, source: &KernelSource<'_>) -> Option<Kernel> {
        let listing = self.listing();
        let in_file = |tag: &String| {
            let place = listing.places.get(tag)?;
            match place.image(tag) {
                Ok(image) => {
                    Some(Kernel { image: image.into(), origin: Origin::Prebuilt(place.path().into()) })
                }
                Err(reason) => {
                    tracing::warn!(reason, "a prebuilt kernel cannot be read");
                    None
                }
            }
        };
        let in_program = |tag: &String| {
            let (_, image) = self.embedded.iter().find(|(name, _)| tag_of(name) == Some(tag))?;
            Some(Kernel { image: (*image).into(), origin: Origin::Embedded })
        };
        let tags = source.prebuilt_tags;
        tags.iter().find_map(in_file).or_else(|| tags.iter().find_map(in_program))
    }

    /// A kernel of the cache, by a compiler of this machine; by any, when it has none.
    fn cached(&self, source: &KernelSource<'_>, present: &[(&dyn Compiler, &str)]) -> Option<Kernel> {
        let cache = self.cache.as_ref()?;
        let loaded = if present.is_empty() {
            cache.load_any(source)
        } else {
            present.iter().find_map(|(compiler, version)| {
                cache.load(source, &source.key_with(compiler.name(), version))
            })
        };
        loaded.map(|(image, path)| Kernel { image: image.into(), origin: Origin::Cache(path) })
    }

    /// Compiles, unless another process has done so while this one waited for its turn.
    fn compile(
        &self,
        source: &KernelSource<'_>,
        compiler: &dyn Compiler,
        version: &str,
    ) -> Result<Kernel, CompileError> {
        let compile = || {
            let begin = Instant::now();
            let image = compiler.compile(source)?;
            let origin =
                Origin::Compiled { compiler: compiler.name().into(), seconds: begin.elapsed().as_secs_f64() };
            Ok(Kernel { image: image.into(), origin })
        };
        let Some(cache) = &self.cache else {
            return compile();
        };
        let key = source.key_with(compiler.name(), version);
        cache.locked(&key, || {
            if let Some((image, path)) = cache.load(source, &key) {
                return Ok(Kernel { image: image.into(), origin: Origin::Cache(path) });
            }
            let kernel = compile()?;
            self.save(source, compiler.name(), version, &kernel.image);
            Ok(kernel)
        })
    }

    /// Writes what a compiler made into the cache, if there is one.
    fn save(&self, source: &KernelSource<'_>, compiler: &str, version: &str, image: &[u8]) {
        let Some(cache) = &self.cache else { return };
        let key = source.key_with(compiler, version);
        if let Err(error) = cache.save(source, &key, &format!("{compiler} {version}"), image) {
            let directory = cache.directory().display();
            tracing::warn!(%directory, %error, "a compiled kernel cannot be cached and stays in memory");
        }
    }

    fn hint(&self, absent: &[String]) -> String {
        let directory = match &self.directory {
            Some(directory) => format!("it is not in {} (this version of it)", directory.display()),
            None => format!("{KERNELS_VARIABLE} is not set"),
        };
        let cache = match &self.cache {
            Some(cache) => format!("it is not in the cache {}", cache.directory().display()),
            None => "there is no cache".into(),
        };
        let mut tried = vec![directory, cache];
        tried.extend(self.listing().refused.iter().cloned());
        tried.extend(absent.iter().cloned());
        format!("{}; {}", tried.join("; "), self.advice)
    }
}

#[cfg(test)]
mod tests;
