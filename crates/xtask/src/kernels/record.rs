//! What a built kernel takes of its machine, as a line that `omniflash report` reads.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Mutex;

use anyhow::Context as _;
use serde::Serialize;

/// Resources of one kernel, whoever made the GPU.
#[derive(Debug, Serialize)]
pub(super) struct Record<'a> {
    pub(super) kernel: &'a str,
    pub(super) arch: &'a str,
    /// Of a block.
    pub(super) threads: u32,
    /// Of a thread.
    pub(super) registers: u32,
    /// Registers of a thread that go to memory.
    pub(super) spilled_bytes: u32,
    /// Of a block, static and dynamic.
    pub(super) shared_bytes: usize,
    pub(super) image_bytes: u64,
}

/// The file of records, if one was asked for.
pub(super) struct Records(Option<Mutex<File>>);

impl Records {
    /// Writes from here on to `path`, whose earlier content is gone.
    pub(super) fn create(path: Option<&Path>) -> anyhow::Result<Self> {
        let create = |path: &Path| File::create(path).with_context(|| format!("writing {}", path.display()));
        Ok(Records(path.map(create).transpose()?.map(Mutex::new)))
    }

    pub(super) fn add(&self, record: &Record<'_>) -> anyhow::Result<()> {
        let Some(file) = &self.0 else { return Ok(()) };
        let line = serde_json::to_string(record)?;
        writeln!(file.lock().expect("no thread panics while it writes a line"), "{line}")
            .context("writing a record")
    }
}
