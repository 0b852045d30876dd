//! Element types of tensors.

use std::fmt;
use std::str::FromStr;

use half::{bf16, f16};

use crate::error::{Error, Result};

/// The type of a tensor's elements.
///
/// Queries, keys, values and outputs are [`F32`](DType::F32), [`F16`](DType::F16) or [`BF16`](DType::BF16);
/// the others serve masks ([`Bool`](DType::Bool)) and lengths, offsets, tables and ids
/// ([`I32`](DType::I32), [`U32`](DType::U32)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16: the upper half of a binary32.
    BF16,
    /// One byte; any value but 0 is true.
    Bool,
    /// Signed 32-bit integer; negative values are out of range wherever an index is expected.
    I32,
    /// Unsigned 32-bit integer; values above `i32::MAX` are out of range wherever an index is expected.
    U32,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            DType::F32 | DType::I32 | DType::U32 => 4,
            DType::F16 | DType::BF16 => 2,
            DType::Bool => 1,
        }
    }

    /// The name used by case files, plans and error messages.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::Bool => "bool",
            DType::I32 => "i32",
            DType::U32 => "u32",
        }
    }

    /// Whether queries, keys, values and outputs may have this type.
    pub const fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F16 | DType::BF16)
    }

    /// Whether lengths, offsets, tables and ids may have this type.
    pub const fn is_index(self) -> bool {
        matches!(self, DType::I32 | DType::U32)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DType {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Ok(match name {
            "f32" | "float32" => DType::F32,
            "f16" | "float16" => DType::F16,
            "bf16" | "bfloat16" => DType::BF16,
            "bool" => DType::Bool,
            "i32" | "int32" => DType::I32,
            "u32" | "uint32" => DType::U32,
            _ => return Err(Error::value("dtype", name, "one of f32, f16, bf16, bool, i32, u32")),
        })
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A Rust type that is the element of some [`DType`].
///
/// Sealed: the set of element types is the set of dtypes.
pub trait Element: sealed::Sealed + bytemuck::NoUninit + Send + Sync + 'static {
    /// The dtype whose elements have this type.
    const DTYPE: DType;
}

/// An [`Element`] that queries, keys, values and outputs can have.
pub trait Float: Element + bytemuck::Pod {
    /// Rounds to nearest, ties to even.
    fn from_f32(value: f32) -> Self;
    /// Rounds to nearest, ties to even, once: never through `f32` where that would round twice.
    fn from_f64(value: f64) -> Self;
    /// Exact.
    fn to_f32(self) -> f32;
}

/// An [`Element`] that lengths, offsets, tables and ids can have.
pub trait Index: Element + bytemuck::Pod {}

macro_rules! element {
    ($($type:ty => $dtype:ident),*) => {$(
        impl sealed::Sealed for $type {}
        impl Element for $type {
            const DTYPE: DType = DType::$dtype;
        }
    )*};
}
element!(f32 => F32, f16 => F16, bf16 => BF16, bool => Bool, u8 => Bool, i32 => I32, u32 => U32);

impl Index for i32 {}
impl Index for u32 {}

impl Float for f32 {
    fn from_f32(value: f32) -> Self {
        value
    }
    fn from_f64(value: f64) -> Self {
        value as f32
    }
    fn to_f32(self) -> f32 {
        self
    }
}

impl Float for f16 {
    fn from_f32(value: f32) -> Self {
        f16::from_f32(value)
    }
    fn from_f64(value: f64) -> Self {
        f16::from_f64(value)
    }
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
}

impl Float for bf16 {
    fn from_f32(value: f32) -> Self {
        bf16::from_f32(value)
    }
    fn from_f64(value: f64) -> Self {
        bf16::from_f64(value)
    }
    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_parses_back_to_its_dtype() {
        for dtype in [DType::F32, DType::F16, DType::BF16, DType::Bool, DType::I32, DType::U32] {
            assert_eq!(dtype.name().parse::<DType>().unwrap(), dtype);
        }
        assert!("f64".parse::<DType>().is_err());
    }

    #[test]
    fn element_sizes_match_their_dtype() {
        fn check<T: Element>() {
            assert_eq!(size_of::<T>(), T::DTYPE.size());
        }
        check::<f32>();
        check::<f16>();
        check::<bf16>();
        check::<bool>();
        check::<u8>();
        check::<i32>();
        check::<u32>();
    }
}
