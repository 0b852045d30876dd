//! Borrowed views of memory: an address, a dtype, a layout and a device.

use std::marker::PhantomData;

use crate::device::{Buffer, DeviceId};
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::layout::Layout;

/// A tensor that is read.
///
/// Host slices enter safely through [`from_slice`](TensorRef::from_slice) and
/// [`with_layout`](TensorRef::with_layout), which check that every element lies inside the slice; memory of other
/// libraries and devices enters through the unsafe [`from_raw`](TensorRef::from_raw).
///
/// ```
/// use omniflash_core::{Layout, TensorRef};
/// let data = vec![0.0f32; 2 * 5 * 4 * 8];
/// let q = TensorRef::from_slice(&data, &[2, 5, 4, 8])?;                       // B x S x H x D in memory
/// let k = TensorRef::with_layout(&data, Layout::bhsd(2, 5, 4, 8)?, 0)?;       // B x H x S x D in memory
/// assert_eq!(q.shape(), k.shape());
/// # Ok::<(), omniflash_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct TensorRef<'a> {
    pointer: *const u8,
    dtype: DType,
    layout: Layout,
    device: DeviceId,
    memory: PhantomData<&'a [u8]>,
}

// SAFETY: a TensorRef is a shared borrow of plain memory, as `&[u8]` is.
unsafe impl Send for TensorRef<'_> {}
// SAFETY: as above.
unsafe impl Sync for TensorRef<'_> {}

impl<'a> TensorRef<'a> {
    /// Views a host slice row-major.
    ///
    /// # Errors
    /// [`Error::Shape`] when the slice's length is not the product of `shape`.
    pub fn from_slice<T: Element>(data: &'a [T], shape: &[usize]) -> Result<Self> {
        let layout = Layout::contiguous(shape)?;
        if layout.num_elements() != data.len() {
            return Err(length_mismatch(shape, layout.num_elements(), data.len()));
        }
        TensorRef::with_layout(data, layout, 0)
    }

    /// Views a host slice with any layout, element 0 of the layout at `data[offset]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when some element would lie outside the slice.
    pub fn with_layout<T: Element>(data: &'a [T], layout: Layout, offset: usize) -> Result<Self> {
        check_inside(&layout, offset, data.len())?;
        let pointer = data.as_ptr().wrapping_add(offset).cast();
        Ok(TensorRef { pointer, dtype: T::DTYPE, layout, device: DeviceId::Cpu, memory: PhantomData })
    }

    /// Views memory that this crate does not know, such as another library's device allocation.
    ///
    /// # Safety
    /// - Every element of `layout` from `address` on lies in one allocation of `device` that lives for `'a`.
    /// - On [`DeviceId::Cpu`] those elements are initialised, aligned to their type, and not written during `'a`.
    pub unsafe fn from_raw(address: u64, dtype: DType, layout: Layout, device: DeviceId) -> Self {
        let pointer = std::ptr::with_exposed_provenance(address as usize);
        TensorRef { pointer, dtype, layout, device, memory: PhantomData }
    }

    /// Views a buffer row-major from its first byte.
    ///
    /// # Errors
    /// [`Error::Shape`] when the buffer is too small.
    pub fn from_buffer(buffer: &'a Buffer, dtype: DType, layout: Layout) -> Result<Self> {
        check_inside(&layout, 0, buffer.bytes() / dtype.size())?;
        Ok(TensorRef {
            pointer: buffer.as_ptr(),
            dtype,
            layout,
            device: buffer.device(),
            memory: PhantomData,
        })
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

    /// Strides in elements, outermost axis first.
    pub fn strides(&self) -> &[i64] {
        self.layout.strides()
    }

    /// Where the memory is.
    pub fn device(&self) -> DeviceId {
        self.device
    }

    /// The address of element 0; may be dereferenced only for tensors on [`DeviceId::Cpu`].
    pub fn as_ptr(&self) -> *const u8 {
        self.pointer
    }

    /// The address of element 0 as an integer, as drivers take it.
    pub fn address(&self) -> u64 {
        self.pointer.expose_provenance() as u64
    }

    /// The same memory with another layout that addresses no element outside the present ones' span.
    ///
    /// # Errors
    /// [`Error::Shape`] when the layout reaches outside.
    pub fn reshape(&self, layout: Layout) -> Result<TensorRef<'a>> {
        let (low, high) = self.layout.span().unwrap_or((0, -1));
        if let Some((new_low, new_high)) = layout.span()
            && (new_low < low || new_high > high)
        {
            return Err(Error::shape("layout", format!("{layout:?} reaches outside {:?}", self.layout)));
        }
        Ok(TensorRef { layout, ..self.clone() })
    }

    /// [`Layout::permute`] of the view.
    ///
    /// # Errors
    /// As [`Layout::permute`].
    pub fn permute(&self, order: &[usize]) -> Result<TensorRef<'a>> {
        Ok(TensorRef { layout: self.layout.permute(order)?, ..self.clone() })
    }

    /// [`Layout::select`] of the view.
    ///
    /// # Errors
    /// As [`Layout::select`].
    pub fn select(&self, axis: usize, index: usize) -> Result<TensorRef<'a>> {
        Ok(self.moved(self.layout.select(axis, index)?))
    }

    /// [`Layout::slice`] of the view.
    ///
    /// # Errors
    /// As [`Layout::slice`].
    pub fn slice(&self, axis: usize, start: usize, end: usize) -> Result<TensorRef<'a>> {
        Ok(self.moved(self.layout.slice(axis, start, end)?))
    }

    /// [`Layout::expand`] of the view.
    ///
    /// # Errors
    /// As [`Layout::expand`].
    pub fn expand(&self, axis: usize, extent: usize) -> Result<TensorRef<'a>> {
        Ok(TensorRef { layout: self.layout.expand(axis, extent)?, ..self.clone() })
    }

    /// Typed access to the elements, if they are `T`s in host memory.
    pub fn host<T: Element>(&self) -> Option<HostView<'a, T>> {
        (self.device == DeviceId::Cpu && self.dtype == T::DTYPE).then(|| HostView {
            pointer: self.pointer.cast(),
            layout: self.layout.clone(),
            memory: PhantomData,
        })
    }

    fn moved(&self, (layout, offset): (Layout, i64)) -> TensorRef<'a> {
        let pointer = self.pointer.wrapping_offset(offset as isize * self.dtype.size() as isize);
        TensorRef { pointer, layout, ..self.clone() }
    }
}

/// Elements of type `T` in host memory.
#[derive(Clone, Debug)]
pub struct HostView<'a, T> {
    pointer: *const T,
    layout: Layout,
    memory: PhantomData<&'a [T]>,
}

// SAFETY: a shared borrow of plain memory, as `&[T]` is.
unsafe impl<T: Sync> Send for HostView<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for HostView<'_, T> {}

impl<T: bytemuck::Pod> HostView<'_, T> {
    /// The element at `index`.
    ///
    /// # Panics
    /// When the index is not inside the shape.
    #[inline]
    pub fn at(&self, index: &[usize]) -> T {
        assert_eq!(index.len(), self.layout.rank(), "rank of the index");
        for (axis, (&i, &extent)) in index.iter().zip(self.layout.shape()).enumerate() {
            assert!(i < extent, "index {i} on axis {axis} of extent {extent}");
        }
        // SAFETY: the index is inside the shape, and whoever made the TensorRef vouched for all of the shape.
        unsafe { self.pointer.wrapping_offset(self.layout.offset(index) as isize).read() }
    }

    /// Shape and strides.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }
}

/// A tensor that is written.
#[derive(Debug)]
pub struct TensorMut<'a> {
    view: TensorRef<'a>,
    memory: PhantomData<&'a mut [u8]>,
}

impl<'a> TensorMut<'a> {
    /// Views a host slice row-major.
    ///
    /// # Errors
    /// [`Error::Shape`] when the slice's length is not the product of `shape`.
    pub fn from_slice<T: Element>(data: &'a mut [T], shape: &[usize]) -> Result<Self> {
        let layout = Layout::contiguous(shape)?;
        if layout.num_elements() != data.len() {
            return Err(length_mismatch(shape, layout.num_elements(), data.len()));
        }
        TensorMut::with_layout(data, layout, 0)
    }

    /// Views a host slice with any layout, element 0 of the layout at `data[offset]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when some element would lie outside the slice.
    pub fn with_layout<T: Element>(data: &'a mut [T], layout: Layout, offset: usize) -> Result<Self> {
        check_inside(&layout, offset, data.len())?;
        let pointer = data.as_mut_ptr().wrapping_add(offset).cast_const().cast();
        let view = TensorRef { pointer, dtype: T::DTYPE, layout, device: DeviceId::Cpu, memory: PhantomData };
        Ok(TensorMut { view, memory: PhantomData })
    }

    /// Views memory that this crate does not know, such as another library's device allocation.
    ///
    /// # Safety
    /// - Every element of `layout` from `address` on lies in one allocation of `device` that lives for `'a`.
    /// - On [`DeviceId::Cpu`] those elements are initialised and aligned to their type.
    /// - Nothing else reads or writes them during `'a`.
    pub unsafe fn from_raw(address: u64, dtype: DType, layout: Layout, device: DeviceId) -> Self {
        // SAFETY: the caller's duties include those of `TensorRef::from_raw`.
        let view = unsafe { TensorRef::from_raw(address, dtype, layout, device) };
        TensorMut { view, memory: PhantomData }
    }

    /// Views a buffer from its first byte.
    ///
    /// # Errors
    /// [`Error::Shape`] when the buffer is too small.
    pub fn from_buffer(buffer: &'a mut Buffer, dtype: DType, layout: Layout) -> Result<Self> {
        Ok(TensorMut { view: TensorRef::from_buffer(buffer, dtype, layout)?, memory: PhantomData })
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.view.dtype
    }

    /// Shape and strides.
    pub fn layout(&self) -> &Layout {
        &self.view.layout
    }

    /// Extents, outermost axis first.
    pub fn shape(&self) -> &[usize] {
        self.view.shape()
    }

    /// Strides in elements, outermost axis first.
    pub fn strides(&self) -> &[i64] {
        self.view.strides()
    }

    /// Where the memory is.
    pub fn device(&self) -> DeviceId {
        self.view.device
    }

    /// The address of element 0; may be dereferenced only for tensors on [`DeviceId::Cpu`].
    ///
    /// Takes `&self` because kernels write disjoint parts from several threads; whoever writes through it answers
    /// for exclusiveness.
    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.view.pointer.cast_mut()
    }

    /// The address of element 0 as an integer, as drivers take it.
    pub fn address(&self) -> u64 {
        self.view.address()
    }

    /// Reads what is written here.
    pub fn as_view(&self) -> &TensorRef<'_> {
        &self.view
    }

    /// Lends the tensor for a shorter time.
    pub fn reborrow(&mut self) -> TensorMut<'_> {
        TensorMut { view: TensorRef { memory: PhantomData, ..self.view.clone() }, memory: PhantomData }
    }

    /// [`Layout::permute`] of the view.
    ///
    /// # Errors
    /// As [`Layout::permute`].
    pub fn permute(self, order: &[usize]) -> Result<TensorMut<'a>> {
        Ok(TensorMut { view: self.view.permute(order)?, memory: PhantomData })
    }

    /// [`Layout::select`] of the view.
    ///
    /// # Errors
    /// As [`Layout::select`].
    pub fn select(self, axis: usize, index: usize) -> Result<TensorMut<'a>> {
        Ok(TensorMut { view: self.view.select(axis, index)?, memory: PhantomData })
    }

    /// [`Layout::slice`] of the view.
    ///
    /// # Errors
    /// As [`Layout::slice`].
    pub fn slice(self, axis: usize, start: usize, end: usize) -> Result<TensorMut<'a>> {
        Ok(TensorMut { view: self.view.slice(axis, start, end)?, memory: PhantomData })
    }

    /// Writes one element.
    ///
    /// # Errors
    /// [`Error::Dtype`] or [`Error::Device`] when the elements are not `T`s in host memory.
    ///
    /// # Panics
    /// When the index is not inside the shape.
    pub fn set<T: Element>(&mut self, index: &[usize], value: T) -> Result<()> {
        if self.device() != DeviceId::Cpu {
            return Err(Error::Device {
                argument: "tensor".into(),
                found: self.device().to_string(),
                expected: DeviceId::Cpu.to_string(),
            });
        }
        if self.dtype() != T::DTYPE {
            return Err(Error::dtype("tensor", self.dtype(), T::DTYPE.name()));
        }
        assert!(index.len() == self.layout().rank() && index.iter().zip(self.shape()).all(|(i, n)| i < n));
        let element = self.as_mut_ptr().cast::<T>().wrapping_offset(self.layout().offset(index) as isize);
        // SAFETY: the index is inside the shape, whoever made the view vouched for it, and `&mut self` is exclusive.
        unsafe { element.write(value) };
        Ok(())
    }
}

fn length_mismatch(shape: &[usize], expected: usize, found: usize) -> Error {
    Error::shape("data", format!("{found} elements, expected {expected} for shape {shape:?}"))
}

fn check_inside(layout: &Layout, offset: usize, len: usize) -> Result<()> {
    let Some((low, high)) = layout.span() else {
        return Ok(());
    };
    let outside =
        || Error::shape("data", format!("{layout:?} from element {offset} reaches outside {len} elements"));
    let first = i64::try_from(offset).ok().and_then(|offset| offset.checked_add(low)).ok_or_else(outside)?;
    let last = i64::try_from(offset).ok().and_then(|offset| offset.checked_add(high)).ok_or_else(outside)?;
    if first < 0 || last >= i64::try_from(len).unwrap_or(i64::MAX) {
        return Err(outside());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_reads_what_its_layout_says() {
        let data: Vec<f32> = (0..24).map(|i| i as f32).collect();
        let view = TensorRef::from_slice(&data, &[2, 3, 4]).unwrap();
        let turned = view.permute(&[2, 0, 1]).unwrap().select(0, 3).unwrap().slice(1, 1, 3).unwrap();
        assert_eq!(turned.shape(), [2, 2]);
        let host = turned.host::<f32>().unwrap();
        assert_eq!([host.at(&[0, 0]), host.at(&[0, 1]), host.at(&[1, 1])], [7.0, 11.0, 23.0]);
    }

    #[test]
    fn negative_strides_read_backwards() {
        let data = [1i32, 2, 3, 4];
        let view = TensorRef::with_layout(&data, Layout::new(&[4], &[-1]).unwrap(), 3).unwrap();
        let host = view.host::<i32>().unwrap();
        assert_eq!((0..4).map(|i| host.at(&[i])).collect::<Vec<_>>(), [4, 3, 2, 1]);
    }

    #[test]
    fn views_outside_the_slice_are_refused() {
        let data = [0.0f32; 12];
        assert!(TensorRef::from_slice(&data, &[3, 5]).is_err());
        assert!(TensorRef::with_layout(&data, Layout::contiguous(&[3, 4]).unwrap(), 1).is_err());
        assert!(TensorRef::with_layout(&data, Layout::new(&[2], &[-1]).unwrap(), 0).is_err());
        assert!(TensorRef::with_layout(&data, Layout::new(&[2], &[1]).unwrap(), usize::MAX).is_err());
        assert!(TensorRef::with_layout(&data, Layout::contiguous(&[0, 4]).unwrap(), 99).is_ok());
    }

    #[test]
    fn the_wrong_element_type_gives_no_view() {
        let data = [1u32, 2];
        let view = TensorRef::from_slice(&data, &[2]).unwrap();
        assert!(view.host::<i32>().is_none());
        assert_eq!(view.host::<u32>().unwrap().at(&[1]), 2);
    }

    #[test]
    fn a_reshape_stays_inside_the_memory() {
        let data = [0u8; 6];
        let view = TensorRef::from_slice(&data, &[2, 3]).unwrap();
        assert!(view.reshape(Layout::contiguous(&[3, 2]).unwrap()).is_ok());
        assert!(view.reshape(Layout::contiguous(&[7]).unwrap()).is_err());
    }

    #[test]
    fn writes_land_where_reads_find_them() {
        let mut data = [0.0f32; 6];
        let mut view = TensorMut::from_slice(&mut data, &[2, 3]).unwrap();
        view.set(&[1, 2], 5.0f32).unwrap();
        assert!(view.set(&[0, 0], 1i32).is_err());
        assert_eq!(view.as_view().host::<f32>().unwrap().at(&[1, 2]), 5.0);
        assert_eq!(data[5], 5.0);
    }
}
