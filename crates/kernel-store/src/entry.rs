//! The files of a cache: a readable head, then the image, all of it hashed.
//!
//! ```text
//! omniflash kernel 1
//! hash 0123...                 of all bytes after this line
//! key 4567...
//! bytes 30720
//! id fwd-sm_90-bf16-d128-causal-identity-dense
//! arch sm_90
//! compiler nvrtc 13.0
//!
//! <image>
//! ```

use std::path::PathBuf;

use crate::kernel::{KernelSource, Key};

const MAGIC: &str = "omniflash kernel 1\n";

/// What a cache file says of its kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheEntry {
    /// The kernel's id.
    pub id: String,
    /// The architecture compiled for.
    pub arch: String,
    /// The compiler and its version.
    pub compiler: String,
    /// Size of the image in bytes.
    pub bytes: usize,
    /// The file.
    pub path: PathBuf,
}

/// The bytes of a cache file.
pub(crate) fn encode(source: &KernelSource<'_>, key: &Key, compiler: &str, image: &[u8]) -> Vec<u8> {
    let line = |text: &str| text.replace(['\n', '\r'], " ");
    let head = format!(
        "key {}\nbytes {}\nid {}\narch {}\ncompiler {}\n\n",
        key.to_hex(),
        image.len(),
        line(source.id),
        line(source.arch),
        line(compiler),
    );
    let hash = blake3::Hasher::new().update(head.as_bytes()).update(image).finalize();
    [format!("{MAGIC}hash {}\n", hash.to_hex()).as_bytes(), head.as_bytes(), image].concat()
}

/// The image in the bytes of a cache file, after every check.
///
/// # Errors
/// What is wrong with the file.
pub(crate) fn decode<'f>(file: &'f [u8], key: &Key) -> Result<&'f [u8], String> {
    let (head, image) = split(file)?;
    if head.value("key") != Some(key.to_hex().as_str()) {
        return Err("it holds another kernel".into());
    }
    Ok(image)
}

/// What the bytes of a cache file say of their kernel, after every check but the key's.
///
/// # Errors
/// What is wrong with the file.
pub(crate) fn describe(file: &[u8], path: PathBuf) -> Result<CacheEntry, String> {
    let (head, image) = split(file)?;
    let value = |name| head.value(name).map(String::from).ok_or_else(|| format!("it has no {name}"));
    Ok(CacheEntry {
        id: value("id")?,
        arch: value("arch")?,
        compiler: value("compiler")?,
        bytes: image.len(),
        path,
    })
}

/// The image in the bytes of a cache file, after every check but the key's.
///
/// # Errors
/// What is wrong with the file.
pub(crate) fn verified(file: &[u8]) -> Result<&[u8], String> {
    split(file).map(|(_, image)| image)
}

struct Head<'f>(&'f str);

impl<'f> Head<'f> {
    fn value(&self, name: &str) -> Option<&'f str> {
        self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
    }
}

fn split(file: &[u8]) -> Result<(Head<'_>, &[u8]), String> {
    let rest = file.strip_prefix(MAGIC.as_bytes()).ok_or("it is no kernel of this version")?;
    let line_end = rest.iter().position(|&byte| byte == b'\n').ok_or("it is cut off")?;
    let (hash, body) = (&rest[..line_end], &rest[line_end + 1..]);
    let expected = format!("hash {}", blake3::hash(body).to_hex());
    if hash != expected.as_bytes() {
        return Err("its hash is wrong".into());
    }
    let head_end = body.windows(2).position(|pair| pair == b"\n\n").ok_or("it has no head")?;
    let head = Head(std::str::from_utf8(&body[..head_end]).map_err(|_| "its head is no text")?);
    let image = &body[head_end + 2..];
    if head.value("bytes") != Some(image.len().to_string().as_str()) {
        return Err("its length is wrong".into());
    }
    Ok((head, image))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: KernelSource<'_> = KernelSource {
        id: "fwd\nsm_90",
        arch: "sm_90",
        functor: "",
        source: "",
        options: &[],
        prebuilt_tags: &[],
    };

    #[test]
    fn a_file_gives_back_its_image_and_its_facts() {
        let key = SOURCE.key_with("nvrtc", "13.0");
        let image = b"\n\nimage\n\nwith blank lines";
        let file = encode(&SOURCE, &key, "nvrtc 13.0", image);
        assert_eq!(decode(&file, &key).unwrap(), image);
        let entry = describe(&file, "p".into()).unwrap();
        assert_eq!((entry.id.as_str(), entry.bytes), ("fwd sm_90", image.len()));
        assert_eq!(entry.compiler, "nvrtc 13.0");
    }

    #[test]
    fn any_changed_or_missing_byte_is_found() {
        let key = SOURCE.key();
        let file = encode(&SOURCE, &key, "nvrtc", b"image");
        for i in 0..file.len() {
            let mut changed = file.clone();
            changed[i] ^= 1;
            assert!(decode(&changed, &key).is_err(), "byte {i} changed");
            assert!(decode(&file[..i], &key).is_err(), "cut after {i} bytes");
        }
        assert!(decode(&[file.as_slice(), b"x"].concat(), &key).is_err(), "longer");
        assert!(decode(&file, &SOURCE.key_with("nvcc", "1")).is_err(), "another kernel's file");
    }
}
