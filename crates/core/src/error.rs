//! The one error type of omniflash.

use std::fmt;

use crate::dtype::DType;

/// A `Result` with omniflash's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, with the argument, its value and what was expected.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor's rank, shape or strides do not fit the others.
    #[error("{argument}: {message}")]
    Shape {
        /// The tensor's name as in the API: `q`, `k`, `page_table`, ...
        argument: String,
        /// What was found and what was expected.
        message: String,
    },
    /// A tensor has a dtype that this argument cannot have.
    #[error("{argument} is {found}, expected {expected}")]
    Dtype {
        /// The tensor's name.
        argument: String,
        /// The dtype it has.
        found: DType,
        /// The dtypes it may have.
        expected: String,
    },
    /// A number, length, offset, id or name is outside its range.
    #[error("{argument} is {value}, expected {expected}")]
    Value {
        /// The argument, with its index where it is one of many: `kv_lengths[3]`.
        argument: String,
        /// The value found.
        value: String,
        /// The values possible.
        expected: String,
    },
    /// A tensor lies in the memory of a device other than the one that should use it.
    #[error("{argument} is on {found}, expected {expected}")]
    Device {
        /// The tensor's name.
        argument: String,
        /// Where it is.
        found: String,
        /// Where it should be.
        expected: String,
    },
    /// The output overlaps itself or an input.
    #[error("{argument} overlaps {with}: each output element needs memory of its own")]
    Overlap {
        /// The tensor written.
        argument: String,
        /// The tensor whose memory it shares, or itself.
        with: String,
    },
    /// The request is valid, but this backend cannot do it.
    #[error("{backend} does not support {what}: {why}; {nearest}")]
    Unsupported {
        /// The backend asked.
        backend: String,
        /// The feature.
        what: String,
        /// The reason.
        why: String,
        /// The nearest thing that works.
        nearest: String,
    },
    /// No compiled kernel for this request could be found or built.
    #[error("no kernel {id} for {arch}: {hint}")]
    NoKernel {
        /// The architecture the kernel is for.
        arch: String,
        /// The kernel's id.
        id: String,
        /// What the user can do about it.
        hint: String,
    },
    /// A backend cannot be used on this machine.
    #[error("backend {backend} is absent: {reason}")]
    Absent {
        /// The backend's name.
        backend: String,
        /// Why.
        reason: String,
    },
    /// An allocation failed.
    #[error("out of memory on {device}: {bytes} bytes could not be allocated")]
    OutOfMemory {
        /// The device.
        device: String,
        /// The size of the failed allocation.
        bytes: usize,
    },
    /// A vendor's driver or run-time compiler reported an error.
    #[error("{api} failed with {code}: {text}")]
    Driver {
        /// The driver function.
        api: String,
        /// The driver's error code.
        code: i64,
        /// The driver's or compiler's message.
        text: String,
    },
}

impl Error {
    /// An [`Error::Shape`].
    pub fn shape(argument: impl Into<String>, message: impl Into<String>) -> Self {
        Error::Shape { argument: argument.into(), message: message.into() }
    }

    /// An [`Error::Value`].
    pub fn value(argument: impl Into<String>, value: impl fmt::Display, expected: impl Into<String>) -> Self {
        Error::Value { argument: argument.into(), value: value.to_string(), expected: expected.into() }
    }

    /// An [`Error::Dtype`].
    pub fn dtype(argument: impl Into<String>, found: DType, expected: impl Into<String>) -> Self {
        Error::Dtype { argument: argument.into(), found, expected: expected.into() }
    }

    /// An [`Error::Unsupported`].
    pub fn unsupported(
        backend: impl Into<String>,
        what: impl Into<String>,
        why: impl Into<String>,
        nearest: impl Into<String>,
    ) -> Self {
        Error::Unsupported {
            backend: backend.into(),
            what: what.into(),
            why: why.into(),
            nearest: nearest.into(),
        }
    }
}
