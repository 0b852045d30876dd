//! Mask tensors and ids of documents that a launch packs on the device before its kernel reads them: which ones, how, and where
//! they go.

use omniflash_core::lower::{MaskPacking, PackedSlot, dense_strides};
use omniflash_core::{Algorithm, AttentionConfig, DType, ProblemShape, TensorRef};
use omniflash_device::parameters::{DeviceAddress, PackMaskParameters};

use crate::plan::typical_rows;

/// Fewer rows than a block of the packed form has are as soon read as they are.
const LEAST_ROWS: usize = 64;

/// With no more scores than this a packed mask gains less (4 ps each on an H200) than the kernel before it costs there.
const FEW_SCORES: usize = 1 << 21;

/// Values that are added are packed where each is read for so many scores: most are then worth reading once more to
/// find what may be left out. A plane for each head is mostly a bias, which leaves nothing out. Ids are read once a head.
const LEAST_READERS: usize = 4;

/// Blocks of threads that a launch can have for both vendors, and far more than any tensor needs.
const MOST_BLOCKS: usize = 1 << 23;

/// Packed masks begin at a multiple of so many bytes.
const ALIGNMENT: usize = 256;

/// How one tensor is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Packing {
    /// The sizes.
    pub sizes: MaskPacking,
    /// Type of the tensor; i32 of ids, which are only compared, with a sign or without.
    pub dtype: DType,
    /// Bytes that the kernel loads at once.
    pub unit_bytes: usize,
}

impl Packing {
    /// How a slot's tensor is packed.
    pub(crate) fn new(slot: &PackedSlot<'_>) -> Self {
        let dtype = if is_of_ids(slot.tensor) { DType::I32 } else { slot.tensor.dtype() };
        Packing { sizes: slot.packing, dtype, unit_bytes: unit_of(slot.tensor) }
    }

    /// Whether a kernel made for this packs that as well.
    pub(crate) fn serves(&self, other: &Packing) -> bool {
        self.sizes == other.sizes
            && self.dtype == other.dtype
            && other.unit_bytes.is_multiple_of(self.unit_bytes)
    }

    /// Bytes of its place among packed masks.
    pub(crate) fn bytes(&self) -> usize {
        self.sizes.bytes().next_multiple_of(ALIGNMENT)
    }

    /// What a launch does not know before it: neither the tensor nor where its packed form goes.
    pub(crate) fn grid_parameters(&self) -> PackMaskParameters {
        let sizes = &self.sizes;
        PackMaskParameters {
            batches: sizes.batches as u32,
            heads: sizes.heads as u32,
            rows: sizes.rows as u32,
            keys: sizes.keys as u32,
            row_blocks: sizes.row_blocks() as u32,
            spans: sizes.spans() as u32,
            row_words: sizes.row_words() as u32,
            ..PackMaskParameters::default()
        }
    }
}

/// What the kernel is given for a slot whose packed form goes to `address`.
pub(crate) fn parameters(slot: &PackedSlot<'_>, address: u64) -> PackMaskParameters {
    let [batch_stride, head_stride, row_stride, key_stride] = dense_strides(slot.tensor);
    PackMaskParameters {
        data: DeviceAddress(slot.tensor.address()),
        batch_stride,
        head_stride,
        row_stride,
        key_stride,
        columns: columns_of(slot.tensor),
        blocks: DeviceAddress(address),
        bits: DeviceAddress(address + slot.packing.bits_offset() as u64),
        starts: DeviceAddress(address + slot.packing.starts_offset() as u64),
        ..Packing::new(slot).grid_parameters()
    }
}

/// The sizes of a tensor's packed form, where packing it is worth while.
///
/// Kernels read a packed mask a bit a score, and leave out tiles of keys that it hides; read as it is, a tensor costs each
/// score of each head a load. Packing reads every different element once. Which tiles documents hide, kernels else find by reading
/// all ids again for each tile of rows of each head.
pub fn packing(
    tensor: &TensorRef<'_>,
    shape: &ProblemShape,
    config: &AttentionConfig,
) -> Option<MaskPacking> {
    let sizes = MaskPacking::new(tensor, shape);
    // An independent check of the other kernels.
    let reads_itself = config.algorithm == Algorithm::Naive;
    let rows = shape.total_q.saturating_mul(shape.num_heads);
    let can = !is_of_ids(tensor) || has_ids_side_by_side(tensor, shape.seqlen_k);
    (!reads_itself && can && pays(&sizes, typical_rows(shape), rows)).then_some(sizes)
}

/// Whether packing pays for `rows` rows of all heads, `rows_of_sequence` of them one head's of a typical sequence.
fn pays(sizes: &MaskPacking, rows_of_sequence: usize, rows: usize) -> bool {
    let readers = rows / (sizes.planes() * sizes.rows).max(1);
    let blocks = sizes.planes().saturating_mul(sizes.row_blocks()).saturating_mul(sizes.spans());
    rows_of_sequence >= LEAST_ROWS
        && rows.saturating_mul(sizes.keys) > FEW_SCORES
        && (sizes.has_bits || readers >= LEAST_READERS)
        && blocks <= MOST_BLOCKS
}

/// Positions that have ids, where the tensor is one of ids.
fn columns_of(tensor: &TensorRef<'_>) -> u32 {
    if is_of_ids(tensor) { i32::try_from(tensor.shape()[1]).unwrap_or(i32::MAX) as u32 } else { 0 }
}

/// Whether every key has an id, and its neighbours' lie beside it.
fn has_ids_side_by_side(tensor: &TensorRef<'_>, keys: usize) -> bool {
    tensor.strides()[1] == 1 && tensor.shape()[1] >= keys
}

fn is_of_ids(tensor: &TensorRef<'_>) -> bool {
    matches!(tensor.dtype(), DType::I32 | DType::U32)
}

/// The bytes that can be loaded at once wherever a chunk of keys begins: 16, 4, or an element; of ids always one.
fn unit_of(tensor: &TensorRef<'_>) -> usize {
    let size = tensor.dtype().size();
    if is_of_ids(tensor) {
        return size;
    }
    let [outer @ .., key_stride] = dense_strides(tensor);
    let divides = |unit: usize| {
        tensor.address().is_multiple_of(unit as u64)
            && outer.iter().all(|stride| stride * size as i64 % unit as i64 == 0)
    };
    match key_stride {
        1 => [16, 4].into_iter().find(|&unit| divides(unit)).unwrap_or(size),
        _ => size,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use omniflash_core::Layout;

    #[test]
    fn tensors_are_packed_where_rows_are_many_and_values_are_shared() {
        let forms = [
            ("bool [B,H,S,S]", DType::Bool, [true, true, true]),
            ("bool [B,1,S,S]", DType::Bool, [true, false, true]),
            ("f32 [1,1,S,S]", DType::F32, [false, false, true]),
            ("f32 [B,1,1,S]", DType::F32, [true, false, false]),
            ("f32 [B,H,S,S]", DType::F32, [true, true, true]),
        ];
        let problems = [
            ("decode", (8, 32), (1, 8192)),
            ("few rows", (8, 32), (63, 8192)),
            ("few scores", (1, 12), (128, 128)),
            ("an encoder", (16, 12), (512, 512)),
            ("long", (2, 16), (8192, 8192)),
        ];
        let mut lines = Vec::new();
        for (form, dtype, [by_batch, by_head, by_row]) in forms {
            for (name, (batch, heads), (seqlen_q, seqlen_k)) in problems {
                let sizes = MaskPacking {
                    sequences: batch,
                    batches: if by_batch { batch } else { 1 },
                    heads: if by_head { heads } else { 1 },
                    rows: if by_row { seqlen_q } else { 1 },
                    keys: seqlen_k,
                    has_bits: dtype == DType::Bool,
                };
                let pays = pays(&sizes, seqlen_q, batch * heads * seqlen_q);
                let answer = if pays { format!("{} bytes", sizes.bytes()) } else { "as it is".into() };
                lines.push(format!("{form}, {name}: {answer}"));
            }
        }
        insta::assert_snapshot!(lines.join("\n"), @r"
        bool [B,H,S,S], decode: as it is
        bool [B,H,S,S], few rows: as it is
        bool [B,H,S,S], few scores: as it is
        bool [B,H,S,S], an encoder: 6303808 bytes
        bool [B,H,S,S], long: 268566536 bytes
        bool [B,1,S,S], decode: as it is
        bool [B,1,S,S], few rows: as it is
        bool [B,1,S,S], few scores: as it is
        bool [B,1,S,S], an encoder: 525376 bytes
        bool [B,1,S,S], long: 16785416 bytes
        f32 [1,1,S,S], decode: as it is
        f32 [1,1,S,S], few rows: as it is
        f32 [1,1,S,S], few scores: as it is
        f32 [1,1,S,S], an encoder: 128 bytes
        f32 [1,1,S,S], long: 4104 bytes
        f32 [B,1,1,S], decode: as it is
        f32 [B,1,1,S], few rows: as it is
        f32 [B,1,1,S], few scores: as it is
        f32 [B,1,1,S], an encoder: 192 bytes
        f32 [B,1,1,S], long: 72 bytes
        f32 [B,H,S,S], decode: as it is
        f32 [B,H,S,S], few rows: as it is
        f32 [B,H,S,S], few scores: as it is
        f32 [B,H,S,S], an encoder: as it is
        f32 [B,H,S,S], long: as it is
        ");
    }

    #[test]
    fn chunks_are_loaded_by_what_divides_addresses_and_strides() {
        #[repr(align(16))]
        struct Aligned([f32; 256]);
        let data = Aligned([0.0; 256]);
        let unit = |offset: usize, shape: &[usize], strides: &[i64]| {
            let layout = Layout::new(shape, strides).unwrap();
            unit_of(&TensorRef::with_layout(&data.0, layout, offset).unwrap())
        };
        assert_eq!(unit(0, &[1, 4, 8], &[32, 8, 1]), 16);
        assert_eq!(unit(0, &[1, 4, 7], &[32, 7, 1]), 4);
        assert_eq!(unit(1, &[1, 4, 8], &[32, 8, 1]), 4);
        // A row for all, and keys that do not lie side by side.
        assert_eq!(unit(0, &[3, 4, 7], &[8, 0, 1]), 16);
        assert_eq!(unit(0, &[1, 4, 8], &[1, 1, 4]), 4);
    }
}
