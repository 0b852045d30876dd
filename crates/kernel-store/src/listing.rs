//! Prebuilt kernels by their tags, wherever they are: files of a directory, or in packs.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::kernel::tag_of;
use crate::pack::{KernelPack, PACK_EXTENSION};

/// What is there, and what is not used.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// What was added last comes first.
    pub(crate) places: HashMap<String, Place>,
    /// Why a pack is not used.
    pub(crate) refused: Vec<String>,
}

/// Where a kernel is.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    File(PathBuf),
    Pack(Arc<KernelPack>),
}

impl Place {
    pub(crate) fn path(&self) -> &Path {
        match self {
            Place::File(path) => path,
            Place::Pack(pack) => pack.path(),
        }
    }

    /// The image of a tag that is here.
    pub(crate) fn image(&self, tag: &str) -> Result<Vec<u8>, String> {
        match self {
            Place::File(path) => fs::read(path).map_err(|error| format!("{}: {error}", path.display())),
            Place::Pack(pack) => {
                let image = pack.image(tag).map_err(|error| error.to_string())?;
                image.ok_or_else(|| format!("{} has no kernel {tag}", pack.path().display()))
            }
        }
    }
}

impl Listing {
    /// Adds a pack, or what is in a directory and in the folders in it.
    pub(crate) fn add_all(&mut self, directory: &Path) {
        if directory.is_file() {
            return self.add(directory.into());
        }
        let (folders, files): (Vec<_>, Vec<_>) = paths(directory).into_iter().partition(|path| path.is_dir());
        files.into_iter().for_each(|file| self.add(file));
        folders.iter().flat_map(|folder| paths(folder)).for_each(|file| self.add(file));
    }

    /// Adds a pack, or a kernel by itself.
    pub(crate) fn add(&mut self, path: PathBuf) {
        if path.extension().is_none_or(|extension| extension != PACK_EXTENSION) {
            if let Some(tag) = path.file_name().and_then(|name| tag_of(name.to_str()?)) {
                self.places.insert(tag.to_owned(), Place::File(path));
            }
            return;
        }
        match KernelPack::open(path).and_then(|pack| pack.check_version().map(|()| Arc::new(pack))) {
            Ok(pack) => {
                let tags = pack.tags().map(|tag| (tag.to_owned(), Place::Pack(Arc::clone(&pack))));
                self.places.extend(tags);
            }
            Err(error) => {
                tracing::warn!(%error, "a pack of kernels is not used");
                self.refused.push(error.to_string());
            }
        }
    }
}

fn paths(folder: &Path) -> Vec<PathBuf> {
    match fs::read_dir(folder) {
        Ok(files) => files.filter_map(|file| Some(file.ok()?.path())).collect(),
        Err(error) => {
            tracing::warn!(folder = %folder.display(), %error, "prebuilt kernels cannot be listed");
            Vec::new()
        }
    }
}
