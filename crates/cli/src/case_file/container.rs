//! Safetensors files as lists of named tensors.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use serde::Deserializer;
use serde::de::{IgnoredAny, MapAccess, Visitor};

use super::error::{Fault, shown};

/// A tensor as the file holds it: row-major, little-endian, not aligned.
#[derive(Clone, Debug)]
pub struct RawTensor<'f> {
    /// Its name.
    pub name: String,
    /// Its type.
    pub dtype: Dtype,
    /// Its extents, outermost axis first.
    pub shape: Vec<usize>,
    /// Its elements.
    pub bytes: &'f [u8],
}

/// Reads a regular file whole.
pub(super) fn read_file(path: &Path) -> Result<Vec<u8>, Fault> {
    let mut file = File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(Fault::malformed("not a regular file"));
    }
    let mut bytes = Vec::new();
    let size = usize::try_from(metadata.len()).unwrap_or(usize::MAX);
    bytes
        .try_reserve_exact(size)
        .map_err(|_| Fault::malformed(format!("{size} bytes do not fit in memory")))?;
    // A file that grows meanwhile is cut where it ended.
    file.by_ref().take(metadata.len()).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The tensors of a safetensors file, in the order of their names.
///
/// # Errors
/// [`Fault::Malformed`] for anything that is not a whole and consistent safetensors file.
pub fn parse(bytes: &[u8]) -> Result<Vec<RawTensor<'_>>, Fault> {
    let not_safetensors = |error: &dyn fmt::Display| {
        Fault::malformed(format!("not a valid safetensors file: {}", plain(&error.to_string())))
    };
    let file = SafeTensors::deserialize(bytes).map_err(|error| not_safetensors(&error))?;
    check_names(header(bytes)).map_err(|error| not_safetensors(&error))?;
    let mut tensors: Vec<RawTensor<'_>> = file
        .tensors()
        .into_iter()
        .map(|(name, view)| RawTensor {
            name,
            dtype: view.dtype(),
            shape: view.shape().to_vec(),
            bytes: view.data(),
        })
        .collect();
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tensors)
}

/// The JSON of a file that has been read successfully.
fn header(bytes: &[u8]) -> &[u8] {
    let (length, rest) = bytes.split_first_chunk::<8>().expect("a valid file has a header");
    &rest[..u64::from_le_bytes(*length) as usize]
}

/// Refuses a name that occurs twice, of which a reader would silently take one.
fn check_names(header: &[u8]) -> serde_json::Result<()> {
    struct Names;
    impl<'de> Visitor<'de> for Names {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map of tensors")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
            let mut seen = BTreeSet::new();
            while let Some((name, _)) = map.next_entry::<String, IgnoredAny>()? {
                if seen.contains(&name) {
                    return Err(serde::de::Error::custom(format!("tensor {} occurs twice", shown(&name))));
                }
                seen.insert(name);
            }
            Ok(())
        }
    }
    serde_json::Deserializer::from_slice(header).deserialize_map(Names)
}

/// A library's message without control characters, and not longer than a line should be.
fn plain(message: &str) -> String {
    message.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect()
}

/// A type as error messages name it.
pub(super) fn dtype_name(dtype: Dtype) -> String {
    match dtype {
        Dtype::BOOL => "bool".into(),
        other => format!("{other:?}").to_lowercase(),
    }
}
