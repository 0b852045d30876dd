//! Choices that were measured to be the fastest, kept in a file of the user's cache.
//!
//! An entry holds for problems of one kind (sizes, types, mask) on devices of one name, and only while the kernel that
//! it chooses is compiled from the same source.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use omniflash_core::{AttentionConfig, Error, Result};
use omniflash_kernel_store::DiskCache;
use serde::{Deserialize, Serialize};

use crate::plan::PlanKey;
use crate::stream_state::lock;

const FILE_NAME: &str = "tuned.json";

/// Of the file; one of another format is left out, and replaced when something is kept.
const FORMAT: u32 = 1;

/// What the file holds.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TunedFile {
    format: u32,
    choices: Vec<KeptChoice>,
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KeptChoice {
    device: String,
    pub(crate) kind: String,
    /// Of the source that the chosen kernel is compiled from.
    pub(crate) source_tag: String,
    algorithm: String,
    block_m: Option<usize>,
    block_n: Option<usize>,
    num_pipeline_stages: Option<usize>,
}

impl KeptChoice {
    /// The configuration of `key`, for problems of its kind.
    pub(crate) fn new(device: &str, key: &PlanKey, source_tag: String) -> Self {
        let config = &key.config;
        KeptChoice {
            device: device.into(),
            kind: kind(key),
            source_tag,
            algorithm: config.algorithm.to_string(),
            block_m: config.block_m,
            block_n: config.block_n,
            num_pipeline_stages: config.num_pipeline_stages,
        }
    }

    /// What it says to fix.
    ///
    /// # Errors
    /// [`Error::Value`] for an algorithm that this version does not know.
    pub(crate) fn config(&self) -> Result<AttentionConfig> {
        Ok(AttentionConfig {
            algorithm: self.algorithm.parse()?,
            block_m: self.block_m,
            block_n: self.block_n,
            num_pipeline_stages: self.num_pipeline_stages,
            ..AttentionConfig::default()
        })
    }
}

/// All of a problem that its time depends on, in words.
fn kind(key: &PlanKey) -> String {
    let shape = &key.shape;
    format!(
        "{} batch {} heads {}/{} dims {}/{} lengths {}/{} rows {} {:?}{}{} {}",
        shape.dtype,
        shape.batch,
        shape.num_heads,
        shape.num_kv_heads,
        shape.head_dim,
        shape.value_dim,
        shape.seqlen_q,
        shape.seqlen_k,
        shape.total_q,
        shape.kv_kind,
        if shape.ragged_q { " ragged" } else { "" },
        if key.is_aligned { "" } else { " unaligned" },
        key.functor(),
    )
}

/// The entries of a file, read when first asked for.
#[derive(Debug)]
pub(crate) struct TunedChoices {
    path: Option<PathBuf>,
    /// By device and kind.
    choices: Mutex<Option<HashMap<(String, String), KeptChoice>>>,
}

impl TunedChoices {
    /// Those beside the kernels of a cache; none where there is no cache.
    pub(crate) fn in_cache(cache: Option<&DiskCache>) -> Self {
        TunedChoices { path: cache.map(|cache| cache.directory().join(FILE_NAME)), choices: Mutex::default() }
    }

    /// What is kept for problems like that of `key`.
    pub(crate) fn find(&self, device: &str, key: &PlanKey) -> Option<KeptChoice> {
        let path = self.path.as_ref()?;
        let mut choices = lock(&self.choices);
        let choices = choices.get_or_insert_with(|| read(path));
        if choices.is_empty() {
            return None;
        }
        choices.get(&(device.to_owned(), kind(key))).cloned()
    }

    /// Adds an entry, in the place of one of the same kind, and answers with the file.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where there is no cache, or it cannot be written.
    pub(crate) fn keep(&self, choice: KeptChoice, backend: &str) -> Result<PathBuf> {
        let unsupported =
            |why: String, nearest: &str| Error::unsupported(backend, "keeping a configuration", why, nearest);
        let Some(path) = &self.path else {
            return Err(unsupported("there is no cache".into(), "name a directory with OMNIFLASH_CACHE"));
        };
        let mut choices = lock(&self.choices);
        // What other processes have written since is kept.
        let mut all = read(path);
        all.insert((choice.device.clone(), choice.kind.clone()), choice);
        write(path, &all).map_err(|error| {
            unsupported(format!("{}: {error}", path.display()), "name another directory with OMNIFLASH_CACHE")
        })?;
        *choices = Some(all);
        Ok(path.clone())
    }
}

/// The entries of a file; none, with a warning, where it cannot be understood.
fn read(path: &Path) -> HashMap<(String, String), KeptChoice> {
    let found = match fs::read(path) {
        Ok(bytes) => serde_json::from_slice::<TunedFile>(&bytes).map_err(|error| error.to_string()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return HashMap::new(),
        Err(error) => Err(error.to_string()),
    };
    let file = found.and_then(|file| match file.format {
        FORMAT => Ok(file),
        other => Err(format!("its format is {other}, expected {FORMAT}")),
    });
    match file {
        Ok(file) => file
            .choices
            .into_iter()
            .map(|choice| ((choice.device.clone(), choice.kind.clone()), choice))
            .collect(),
        Err(reason) => {
            tracing::warn!(path = %path.display(), reason, "tuned choices are left out; tune again");
            HashMap::new()
        }
    }
}

/// Replaces the file at once, so that no reader sees half of it.
fn write(path: &Path, choices: &HashMap<(String, String), KeptChoice>) -> io::Result<()> {
    let mut choices: Vec<KeptChoice> = choices.values().cloned().collect();
    choices.sort_by(|a, b| (&a.device, &a.kind).cmp(&(&b.device, &b.kind)));
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    serde_json::to_writer_pretty(&mut file, &TunedFile { format: FORMAT, choices })?;
    file.flush()?;
    file.persist(path)?;
    Ok(())
}
