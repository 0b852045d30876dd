//! Where the compiler and the disassembler are.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

/// The programs that build and look into kernels.
pub(super) struct Toolkit {
    pub(super) nvcc: PathBuf,
    nvdisasm: PathBuf,
}

impl Toolkit {
    /// Looks on PATH, in `CUDA_HOME` and `CUDA_PATH`, and in the wheels that `ci/install-nvcc` installs.
    pub(super) fn find(root: &Path) -> anyhow::Result<Self> {
        let folders = folders(root);
        let find =
            |name: &str| {
                folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file()).with_context(
                    || format!("no {name} on PATH, in CUDA_HOME or in .venv: run ci/install-nvcc"),
                )
            };
        Ok(Toolkit { nvcc: find("nvcc")?, nvdisasm: find("nvdisasm")? })
    }

    pub(super) fn disassemble(&self, cubin: &Path) -> anyhow::Result<String> {
        let output = Command::new(&self.nvdisasm)
            .arg("-c")
            .arg(cubin)
            .output()
            .with_context(|| format!("starting {}", self.nvdisasm.display()))?;
        if !output.status.success() {
            bail!("nvdisasm: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

fn folders(root: &Path) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = env::var_os("PATH").iter().flat_map(env::split_paths).collect();
    folders.extend(
        ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(env::var_os).map(|home| PathBuf::from(home).join("bin")),
    );
    let pythons = fs::read_dir(root.join(".venv/lib")).into_iter().flatten().flatten();
    folders.extend(pythons.map(|python| python.path().join("site-packages/nvidia/cu13/bin")));
    folders
}
