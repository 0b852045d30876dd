//! Tensors that own their memory.

use crate::backend::Backend;
use crate::device::{Buffer, Stream};
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::tensor::{TensorMut, TensorRef};

/// A tensor that owns memory of a backend's device.
///
/// ```no_run
/// # fn example(backend: &dyn omniflash_core::Backend) -> omniflash_core::Result<()> {
/// use omniflash_core::Tensor;
/// let stream = backend.stream()?;
/// let q = Tensor::from_slice(backend, &[0.5f32; 64], &[1, 2, 4, 8], &stream)?;
/// assert_eq!(q.to_vec::<f32>(backend, &stream)?.len(), 64);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Tensor {
    buffer: Buffer,
    dtype: DType,
    layout: Layout,
}

impl Tensor {
    /// A zeroed row-major tensor.
    ///
    /// # Errors
    /// [`Error::Shape`] for impossible shapes, and those of [`Backend::alloc`].
    pub fn zeros(backend: &dyn Backend, dtype: DType, shape: &[usize], stream: &Stream) -> Result<Self> {
        let layout = Layout::contiguous(shape)?;
        let buffer = backend.alloc(layout.num_elements() * dtype.size(), stream)?;
        Ok(Tensor { buffer, dtype, layout })
    }

    /// Copies a host slice to the device, row-major.
    ///
    /// # Errors
    /// [`Error::Shape`] when the slice's length is not the product of `shape`, and those of the backend.
    pub fn from_slice<T: Element>(
        backend: &dyn Backend,
        data: &[T],
        shape: &[usize],
        stream: &Stream,
    ) -> Result<Self> {
        let layout = Layout::contiguous(shape)?;
        if layout.num_elements() != data.len() {
            return Err(Error::shape(
                "data",
                format!("{} elements, expected {} for shape {shape:?}", data.len(), layout.num_elements()),
            ));
        }
        Tensor::from_memory(backend, bytemuck::must_cast_slice(data), T::DTYPE, layout, stream)
    }

    /// Copies host bytes to the device and views them with any layout that stays inside and starts at byte 0.
    ///
    /// # Errors
    /// [`Error::Shape`] when the layout leaves the bytes, and those of the backend.
    pub fn from_memory(
        backend: &dyn Backend,
        bytes: &[u8],
        dtype: DType,
        layout: Layout,
        stream: &Stream,
    ) -> Result<Self> {
        let mut buffer = backend.alloc(bytes.len(), stream)?;
        backend.copy_to_device(bytes, &mut buffer, stream)?;
        TensorRef::from_buffer(&buffer, dtype, layout.clone())?;
        Ok(Tensor { buffer, dtype, layout })
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Shape and strides.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Extents, outermost axis first.
    pub fn shape(&self) -> &[usize] {
        self.layout.shape()
    }

    /// Reads the tensor.
    pub fn view(&self) -> TensorRef<'_> {
        TensorRef::from_buffer(&self.buffer, self.dtype, self.layout.clone())
            .expect("checked when the tensor was made")
    }

    /// Writes the tensor.
    pub fn view_mut(&mut self) -> TensorMut<'_> {
        TensorMut::from_buffer(&mut self.buffer, self.dtype, self.layout.clone())
            .expect("checked when the tensor was made")
    }

    /// The whole memory, gaps of the layout included, copied to the host after all work on the stream.
    ///
    /// # Errors
    /// Those of [`Backend::copy_to_host`].
    pub fn to_memory(&self, backend: &dyn Backend, stream: &Stream) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.buffer.bytes()];
        backend.copy_to_host(&self.buffer, &mut bytes, stream)?;
        Ok(bytes)
    }

    /// The elements of a row-major tensor, copied to the host after all work on the stream.
    ///
    /// # Errors
    /// [`Error::Dtype`] when the elements are not `T`s, [`Error::Shape`] when the tensor is not row-major, and those
    /// of [`Backend::copy_to_host`].
    pub fn to_vec<T: Element + bytemuck::Pod>(
        &self,
        backend: &dyn Backend,
        stream: &Stream,
    ) -> Result<Vec<T>> {
        if self.dtype != T::DTYPE {
            return Err(Error::dtype("tensor", self.dtype, T::DTYPE.name()));
        }
        if !self.layout.is_contiguous() {
            return Err(Error::shape("tensor", format!("{:?}, expected a row-major layout", self.layout)));
        }
        let mut elements = vec![T::zeroed(); self.layout.num_elements()];
        backend.copy_to_host(&self.buffer, bytemuck::must_cast_slice_mut(&mut elements), stream)?;
        Ok(elements)
    }
}
