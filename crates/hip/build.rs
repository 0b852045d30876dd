//! Lists the kernels to embed: the code objects of the directory that `OMNIFLASH_EMBED_HIP_KERNELS` names, if any.
//!
//! Runs no compiler and needs no network; a build without any kernel is a valid one.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

const VARIABLE: &str = "OMNIFLASH_EMBED_HIP_KERNELS";

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    let mut kernels = match env::var_os(VARIABLE) {
        Some(directory) => code_objects(Path::new(&directory))?,
        None => Vec::new(),
    };
    kernels.sort();
    let mut text = String::from("const EMBEDDED: &[(&str, &[u8])] = &[\n");
    for path in &kernels {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let path = fs::canonicalize(path)?;
        let _ = writeln!(text, "    ({name:?}, include_bytes!({:?})),", path.to_string_lossy());
    }
    text.push_str("];\n");
    let out = env::var_os("OUT_DIR").map(PathBuf::from).ok_or_else(|| io::Error::other("no OUT_DIR"))?;
    fs::write(out.join("embedded.rs"), text)
}

fn code_objects(directory: &Path) -> io::Result<Vec<PathBuf>> {
    println!("cargo::rerun-if-changed={}", directory.display());
    let mut paths = Vec::new();
    for file in fs::read_dir(directory)? {
        let path = file?.path();
        if path.extension().is_some_and(|extension| extension == "co") {
            paths.push(path);
        }
    }
    Ok(paths)
}
