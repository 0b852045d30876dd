//! `cargo xtask codegen`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

/// The root of the workspace.
pub(crate) fn workspace_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("xtask lies in crates/").to_path_buf()
}

pub(crate) fn run(check: bool) -> anyhow::Result<()> {
    let path = workspace_root().join("crates/device/include/omniflash/parameters.hpp");
    let text = omniflash_device::parameters::cpp_header();
    if fs::read_to_string(&path).is_ok_and(|current| current == text) {
        return Ok(());
    }
    if check {
        bail!("{} is not current: run `cargo xtask codegen`", path.display());
    }
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
}
