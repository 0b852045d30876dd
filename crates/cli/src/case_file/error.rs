//! What can be wrong with a case.

use std::fmt;
use std::io;

/// A case that cannot be used: the file, and what is wrong with it.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {fault}")]
pub struct CaseError {
    /// The file's path, as it was given.
    pub file: String,
    /// What is wrong.
    pub fault: Fault,
}

/// What is wrong with a file of a case.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// It cannot be read or written.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is not what its kind of file must be, or names something unknown.
    #[error("{0}")]
    Malformed(String),
    /// A key or tensor, or one of its elements, has a value it cannot have.
    #[error("{key} is {value}, expected {expected}")]
    Value {
        /// The key or tensor, with the index of the element.
        key: String,
        /// What it is.
        value: String,
        /// What it may be.
        expected: String,
    },
    /// Its tensors do not fit together, or the backend cannot compute it.
    #[error("{0}")]
    Attention(#[from] omniflash::Error),
}

impl Fault {
    /// A [`Fault::Malformed`].
    pub(crate) fn malformed(message: impl Into<String>) -> Self {
        Fault::Malformed(message.into())
    }

    /// A [`Fault::Value`].
    pub(crate) fn value(
        key: impl Into<String>,
        value: impl fmt::Display,
        expected: impl Into<String>,
    ) -> Self {
        Fault::Value { key: key.into(), value: value.to_string(), expected: expected.into() }
    }

    /// Says which file it is about.
    pub fn in_file(self, file: impl Into<String>) -> CaseError {
        CaseError { file: file.into(), fault: self }
    }
}

/// Text from a file as an error message may show it: printable, on one line and not long.
pub(crate) fn shown(text: &str) -> String {
    const LONGEST: usize = 60;
    let escaped = text.escape_debug().to_string();
    match escaped.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("`{}...`", &escaped[..end]),
        None => format!("`{escaped}`"),
    }
}
