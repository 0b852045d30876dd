//! Host memory whose unused elements are poison, and views of it.

use half::{bf16, f16};
use omniflash_core::backend::copy_to_host_buffer;
use omniflash_core::{Buffer, DType, Error, Layout, Result};

/// What memory holds before anything meaningful is written to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poison {
    /// NaN, or an id far out of range: whoever reads it shows it in the output.
    Unread,
    /// A NaN of a bit pattern that no arithmetic makes: whoever fails to write it, or writes where nothing should
    /// be written, is found by the bits.
    Unwritten,
}

impl Poison {
    /// The little-endian bytes of one poisoned element.
    pub fn pattern(self, dtype: DType) -> Vec<u8> {
        match (self, dtype) {
            (Poison::Unread, DType::F32) => 0x7FC0_0000u32.to_le_bytes().to_vec(),
            (Poison::Unread, DType::F16) => 0x7E00u16.to_le_bytes().to_vec(),
            (Poison::Unread, DType::BF16) => 0x7FC0u16.to_le_bytes().to_vec(),
            (Poison::Unwritten, DType::F32) => 0x7FED_CAFEu32.to_le_bytes().to_vec(),
            (Poison::Unwritten, DType::F16) => 0x7EDAu16.to_le_bytes().to_vec(),
            (Poison::Unwritten, DType::BF16) => 0x7FDAu16.to_le_bytes().to_vec(),
            (_, DType::Bool) => vec![0x7F],
            (_, DType::I32) => (-1i32).to_le_bytes().to_vec(),
            _ => u32::MAX.to_le_bytes().to_vec(),
        }
    }
}

/// Where one tensor of a case lies: a memory, an element offset and a layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Index of the memory in its case.
    pub memory: usize,
    /// Type of the elements.
    pub dtype: DType,
    /// Shape and strides.
    pub layout: Layout,
    /// Element of the memory at which element 0 of the layout lies.
    pub offset: usize,
}

impl View {
    /// The byte at which the element at `index` starts.
    pub fn byte(&self, index: &[usize]) -> usize {
        let element = self.offset as i64 + self.layout.offset(index);
        usize::try_from(element).expect("a view lies inside its memory") * self.dtype.size()
    }

    /// The bytes it needs, or an error when it would start before its memory.
    pub(crate) fn bytes_needed(&self) -> Result<usize> {
        let Some((low, high)) = self.layout.span() else { return Ok(0) };
        let (first, last) = (self.offset as i64 + low, self.offset as i64 + high);
        usize::try_from(first)
            .and_then(|_| usize::try_from(last + 1))
            .map(|elements| elements * self.dtype.size())
            .map_err(|_| {
                Error::shape("view", format!("{:?} from {} starts before 0", self.layout, self.offset))
            })
    }
}

/// The memories of a case, on the host.
#[derive(Debug, Default)]
pub struct Memories(Vec<Buffer>);

impl Memories {
    /// Adds a memory of poisoned elements and returns its index.
    ///
    /// # Panics
    /// When the host has no memory left: a test cannot go on then.
    pub(crate) fn add(&mut self, dtype: DType, elements: usize, poison: Poison) -> usize {
        let pattern = poison.pattern(dtype);
        let mut buffer = Buffer::host(elements * pattern.len()).expect("the host has memory for a test case");
        let bytes = buffer.as_host_bytes_mut().expect("made on the host");
        bytes.copy_from_slice(&pattern.repeat(elements));
        self.0.push(buffer);
        self.0.len() - 1
    }

    /// A view of a new memory that is just large enough for a row-major tensor.
    pub(crate) fn add_contiguous(&mut self, dtype: DType, shape: &[usize], poison: Poison) -> View {
        let layout = Layout::contiguous(shape).expect("test shapes are small");
        let memory = self.add(dtype, layout.num_elements(), poison);
        View { memory, dtype, layout, offset: 0 }
    }

    /// Writes one element, rounded to its type.
    pub(crate) fn set(&mut self, view: &View, index: &[usize], value: f32) {
        let at = view.byte(index);
        let bytes = self.0[view.memory].as_host_bytes_mut().expect("made on the host");
        write_float(bytes, at, view.dtype, value);
    }

    /// Writes the elements of the last axis from `index` on, each rounded to its type.
    pub(crate) fn set_vector(&mut self, view: &View, index: &[usize], values: impl Iterator<Item = f32>) {
        let mut values = values.peekable();
        if values.peek().is_none() {
            return;
        }
        let stride = view.layout.strides().last().copied().unwrap_or(0) * view.dtype.size() as i64;
        let first = view.byte(index);
        let places = (0..).map(|i| first.wrapping_add_signed((i * stride) as isize));
        let bytes = self.0[view.memory].as_host_bytes_mut().expect("made on the host");
        for (at, value) in places.zip(values) {
            write_float(bytes, at, view.dtype, value);
        }
    }

    /// Writes one integer element; negative values wrap in an unsigned tensor, as in memory.
    pub(crate) fn set_integer(&mut self, view: &View, index: &[usize], value: i64) {
        let at = view.byte(index);
        let bytes = self.0[view.memory].as_host_bytes_mut().expect("made on the host");
        bytes[at..at + 4].copy_from_slice(&(value as i32).to_le_bytes());
    }

    /// Number of memories.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes of one memory.
    pub fn bytes(&self, memory: usize) -> &[u8] {
        self.0[memory].as_host_bytes().expect("made on the host")
    }

    /// Copies that may be written.
    pub(crate) fn duplicate(&self) -> Result<Vec<Buffer>> {
        self.0
            .iter()
            .map(|buffer| {
                let mut copy = Buffer::host(buffer.bytes())?;
                copy_to_host_buffer(buffer.as_host_bytes().expect("made on the host"), &mut copy)?;
                Ok(copy)
            })
            .collect()
    }

    /// Takes over memories, such as those of a golden file.
    pub(crate) fn push_bytes(&mut self, bytes: &[u8]) -> usize {
        let mut buffer = Buffer::host(bytes.len()).expect("the host has memory for a test case");
        copy_to_host_buffer(bytes, &mut buffer).expect("as large as its source");
        self.0.push(buffer);
        self.0.len() - 1
    }
}

/// Rounds a number to a type and writes it at a byte.
#[inline]
fn write_float(bytes: &mut [u8], at: usize, dtype: DType, value: f32) {
    match dtype {
        DType::F32 => bytes[at..at + 4].copy_from_slice(&value.to_le_bytes()),
        DType::F16 => bytes[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes()),
        DType::BF16 => bytes[at..at + 2].copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
        DType::Bool => bytes[at] = u8::from(value != 0.0),
        _ => unreachable!("integers are written by set_integer"),
    }
}

/// One float element of raw bytes, widened.
pub(crate) fn float_at(bytes: &[u8], view: &View, index: &[usize]) -> f32 {
    let at = view.byte(index);
    match view.dtype {
        DType::F32 => f32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]),
        DType::F16 => f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32(),
        DType::BF16 => bf16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32(),
        _ => unreachable!("only floats are compared"),
    }
}
