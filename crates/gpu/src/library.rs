//! Loading a vendor's library by the first of its names that works.

use std::error::Error as _;
use std::path::{Path, PathBuf};

use libloading::Library;

/// The path that an environment variable names; an empty one names none.
pub fn path_variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// Loads the first library of `candidates` that can be loaded, and says which it was.
///
/// # Errors
/// The names tried, with what the loader said of the first that it found, else of the first.
pub fn open_first(candidates: &[PathBuf]) -> Result<(Library, &Path), String> {
    let mut reasons = Vec::new();
    for name in candidates {
        // SAFETY: running the initialisers of the vendor's driver library is what loading it means; the user may
        // name another path, and answers for it.
        match unsafe { Library::new(name) } {
            Ok(library) => return Ok((library, name)),
            // The loader's own words are the source of the error.
            Err(error) => reasons.push(error.source().map_or_else(|| error.to_string(), ToString::to_string)),
        }
    }
    let is_found = |reason: &&String| !reason.contains("No such file");
    let reason = reasons.iter().find(is_found).or(reasons.first()).map_or("", String::as_str);
    let names: Vec<String> = candidates.iter().map(|name| name.display().to_string()).collect();
    Err(format!("none of {} can be loaded: {reason}", names.join(", ")))
}
