//! Writing case files and results.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use omniflash::{DType, Element};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::error::Fault;

/// A tensor to write.
#[derive(Clone, Debug)]
pub struct NamedTensor {
    /// Its name.
    pub name: String,
    /// Its type.
    pub dtype: Dtype,
    /// Its extents.
    pub shape: Vec<usize>,
    /// Its elements, row-major and little-endian.
    pub bytes: Vec<u8>,
}

impl NamedTensor {
    /// A tensor from its elements.
    pub fn new<T: Element>(name: &str, shape: &[usize], elements: &[T]) -> Self {
        let bytes = bytemuck::must_cast_slice(elements).to_vec();
        NamedTensor::from_bytes(name, T::DTYPE, shape, bytes)
    }

    /// A tensor from its elements' bytes.
    pub fn from_bytes(name: &str, dtype: DType, shape: &[usize], bytes: Vec<u8>) -> Self {
        let dtype = match dtype {
            DType::F16 => Dtype::F16,
            DType::BF16 => Dtype::BF16,
            DType::Bool => Dtype::BOOL,
            DType::I32 => Dtype::I32,
            DType::U32 => Dtype::U32,
            _ => Dtype::F32,
        };
        NamedTensor { name: name.into(), dtype, shape: shape.to_vec(), bytes }
    }
}

/// The bytes of a safetensors file with these tensors.
///
/// # Errors
/// [`Fault::Malformed`] when a tensor's bytes do not fill its shape.
pub fn to_bytes(tensors: &[NamedTensor]) -> Result<Vec<u8>, Fault> {
    let views = tensors.iter().map(|tensor| {
        let view = TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes)
            .map_err(|error| Fault::malformed(format!("tensor {}: {error}", tensor.name)))?;
        Ok((tensor.name.as_str(), view))
    });
    safetensors::serialize(views.collect::<Result<Vec<_>, Fault>>()?, None)
        .map_err(|error| Fault::malformed(error.to_string()))
}

/// Writes a file whole or not at all: into a temporary file beside it, which then takes its name.
///
/// What is no regular file, such as a pipe, is written in place.
///
/// # Errors
/// [`Fault::Io`].
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), Fault> {
    // The file that a link leads to is replaced, not the link.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    if fs::metadata(&target).is_ok_and(|metadata| !metadata.is_file()) {
        return Ok(fs::OpenOptions::new().write(true).open(&target)?.write_all(bytes)?);
    }
    let folder = match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".omniflash-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // As any new file: the process's mask takes its share.
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    // The error of a temporary file would name that file, which the user has never heard of.
    let plain = |error: io::Error| io::Error::new(error.kind(), error.kind().to_string());
    let mut file = builder.tempfile_in(folder).map_err(plain)?;
    file.write_all(bytes)?;
    file.persist(&target).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_and_nothing_is_left_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.safetensors");
        for bytes in [&b"first"[..], b"second"] {
            write_atomically(&path, bytes).unwrap();
            assert_eq!(fs::read(&path).unwrap(), bytes);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn bytes_that_do_not_fill_a_shape_are_refused() {
        let tensor = NamedTensor::new("q", &[2, 3], &[1.0f32; 5]);
        assert!(matches!(to_bytes(&[tensor]), Err(Fault::Malformed(_))));
    }
}
