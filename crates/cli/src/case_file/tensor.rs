//! Tensors of a file as tensors of the library, in host memory.

use half::{bf16, f16};
use omniflash::{DType, Element, Layout, ReferenceBackend, Stream, Tensor};
use safetensors::Dtype;

use super::container::{RawTensor, dtype_name};
use super::error::Fault;

/// q, k or v.
pub(super) fn vectors(raw: &RawTensor<'_>) -> Result<Tensor, Fault> {
    let dtype = match raw.dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        other => return Err(Fault::value(&raw.name, dtype_name(other), "f32, f16 or bf16")),
    };
    as_stored(raw, dtype)
}

/// A mask: one byte an element, or numbers.
pub(super) fn mask(raw: &RawTensor<'_>) -> Result<Tensor, Fault> {
    match raw.dtype {
        Dtype::BOOL | Dtype::U8 => as_stored(raw, DType::Bool),
        _ => float(raw, "bool, u8, f32, f16, bf16 or f64"),
    }
}

/// Numbers; f64 is rounded to f32.
pub(super) fn float(raw: &RawTensor<'_>, expected: &str) -> Result<Tensor, Fault> {
    match raw.dtype {
        Dtype::F32 => as_stored(raw, DType::F32),
        Dtype::F16 => as_stored(raw, DType::F16),
        Dtype::BF16 => as_stored(raw, DType::BF16),
        Dtype::F64 => from_elements(&converted(raw, |bytes| f64::from_le_bytes(bytes) as f32)?, &raw.shape),
        other => Err(Fault::value(&raw.name, dtype_name(other), expected)),
    }
}

/// The elements of an integer tensor, whatever their width.
pub(super) fn integers(raw: &RawTensor<'_>) -> Result<Vec<i128>, Fault> {
    match raw.dtype {
        Dtype::I32 => converted(raw, |bytes| i128::from(i32::from_le_bytes(bytes))),
        Dtype::U32 => converted(raw, |bytes| i128::from(u32::from_le_bytes(bytes))),
        Dtype::I64 => converted(raw, |bytes| i128::from(i64::from_le_bytes(bytes))),
        Dtype::U64 => converted(raw, |bytes| i128::from(u64::from_le_bytes(bytes))),
        other => Err(Fault::value(&raw.name, dtype_name(other), "i32, i64, u32 or u64")),
    }
}

/// Integers as i32; those that `is_used` excludes may be anything.
pub(super) fn narrowed(
    raw: &RawTensor<'_>,
    values: &[i128],
    is_used: impl Fn(usize) -> bool,
) -> Result<Tensor, Fault> {
    let mut narrow = reserved(values.len())?;
    for (i, &value) in values.iter().enumerate() {
        narrow.push(match i32::try_from(value) {
            Ok(value) => value,
            Err(_) if !is_used(i) => -1,
            Err(_) => {
                let expected = format!("{} to {}", i32::MIN, i32::MAX);
                return Err(Fault::value(element_name(raw, i), value, expected));
            }
        });
    }
    from_elements(&narrow, &raw.shape)
}

/// The name of an element, as in `page_table[1, 3]`.
fn element_name(raw: &RawTensor<'_>, flat: usize) -> String {
    let mut index = vec![0; raw.shape.len()];
    let mut rest = flat;
    for (i, extent) in index.iter_mut().zip(&raw.shape).rev() {
        *i = rest % extent.max(&1);
        rest /= extent.max(&1);
    }
    let index: Vec<String> = index.iter().map(usize::to_string).collect();
    format!("{}[{}]", raw.name, index.join(", "))
}

fn as_stored(raw: &RawTensor<'_>, dtype: DType) -> Result<Tensor, Fault> {
    let layout = Layout::contiguous(&raw.shape).map_err(|error| with_name(error, raw))?;
    Ok(Tensor::from_memory(&ReferenceBackend::new(), raw.bytes, dtype, layout, &Stream::host())?)
}

fn from_elements<T: Element>(elements: &[T], shape: &[usize]) -> Result<Tensor, Fault> {
    Ok(Tensor::from_slice(&ReferenceBackend::new(), elements, shape, &Stream::host())?)
}

/// A layout's error names the tensor.
fn with_name(error: omniflash::Error, raw: &RawTensor<'_>) -> Fault {
    match error {
        omniflash::Error::Shape { message, .. } => {
            Fault::Attention(omniflash::Error::shape(raw.name.clone(), message))
        }
        other => Fault::Attention(other),
    }
}

fn converted<const SIZE: usize, T>(
    raw: &RawTensor<'_>,
    convert: impl Fn([u8; SIZE]) -> T,
) -> Result<Vec<T>, Fault> {
    Layout::contiguous(&raw.shape).map_err(|error| with_name(error, raw))?;
    let (elements, _) = raw.bytes.as_chunks::<SIZE>();
    let mut values = reserved(elements.len())?;
    values.extend(elements.iter().map(|&bytes| convert(bytes)));
    Ok(values)
}

fn reserved<T>(len: usize) -> Result<Vec<T>, Fault> {
    let mut values = Vec::new();
    values.try_reserve_exact(len).map_err(|_| {
        Fault::Attention(omniflash::Error::OutOfMemory {
            device: "cpu".into(),
            bytes: len.saturating_mul(size_of::<T>()),
        })
    })?;
    Ok(values)
}

/// The elements of a row-major host tensor, widened.
pub(super) fn widened(tensor: &Tensor) -> Result<Vec<f32>, omniflash::Error> {
    let (backend, stream) = (ReferenceBackend::new(), Stream::host());
    Ok(match tensor.dtype() {
        DType::F16 => tensor.to_vec::<f16>(&backend, &stream)?.into_iter().map(f16::to_f32).collect(),
        DType::BF16 => tensor.to_vec::<bf16>(&backend, &stream)?.into_iter().map(bf16::to_f32).collect(),
        _ => tensor.to_vec::<f32>(&backend, &stream)?,
    })
}
