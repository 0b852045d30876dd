//! What is found out about a mask tensor, or about ids of documents, on the device before a launch reads them: what each
//! block of rows and keys shows, and the bits of a bool tensor.

use crate::dtype::DType;
use crate::problem::ProblemShape;
use crate::tensor::TensorRef;

use super::functors::Member;
use super::table::TABLE_BLOCK;

/// Keys that one word of block bits covers.
const SPAN: usize = 32 * TABLE_BLOCK;

/// Two words: which of 32 blocks show any key, and which of them do something to one.
const SEEN_BYTES: usize = 8;

/// The sizes of a packed mask: a pure function of a tensor's shape and strides and of the problem's sizes.
///
/// What a tensor repeats, by an extent of 1 or a stride of 0, is packed once. In memory lie, one after another, the words
/// of blocks `[batches, heads, row blocks, spans]`, the bits `[batches, heads, rows, keys / 32]` of a bool tensor, and the
/// position of row 0 of each sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MaskPacking {
    /// Sequences of the problem.
    pub sequences: usize,
    /// Different sequences of the tensor: 1 or `sequences`.
    pub batches: usize,
    /// Different heads: 1 or the problem's.
    pub heads: usize,
    /// Different rows: 1 or `seqlen_q`.
    pub rows: usize,
    /// Keys of a row.
    pub keys: usize,
    /// Whether keys are packed into bits: of bools.
    pub has_bits: bool,
}

impl MaskPacking {
    /// The packing of a `[batch, (heads,) rows, keys]` tensor, or of `[batch, columns]` ids, which are integers, for problems
    /// of `shape`.
    pub fn new(tensor: &TensorRef<'_>, shape: &ProblemShape) -> Self {
        if matches!(tensor.dtype(), DType::I32 | DType::U32) {
            // Sequences that share their ids may begin at different positions.
            let (batches, rows) = (shape.batch, shape.seqlen_q);
            return MaskPacking {
                sequences: batches,
                batches,
                heads: 1,
                rows,
                keys: shape.seqlen_k,
                has_bits: false,
            };
        }
        let [batch, head, row, _] = super::functors::dense_strides(tensor);
        let different = |stride: i64, extent: usize| if stride == 0 { extent.min(1) } else { extent };
        MaskPacking {
            sequences: shape.batch,
            batches: different(batch, shape.batch),
            heads: different(head, shape.num_heads),
            rows: different(row, shape.seqlen_q),
            keys: shape.seqlen_k,
            has_bits: tensor.dtype() == DType::Bool,
        }
    }

    /// Blocks of rows.
    pub fn row_blocks(&self) -> usize {
        self.rows.div_ceil(TABLE_BLOCK)
    }

    /// Words of block bits of a block of rows.
    pub fn spans(&self) -> usize {
        self.keys.div_ceil(SPAN)
    }

    /// Words of bits of a row.
    pub fn row_words(&self) -> usize {
        if self.has_bits { self.keys.div_ceil(32) } else { 0 }
    }

    /// Pairs of a different sequence and head.
    pub fn planes(&self) -> usize {
        self.batches * self.heads
    }

    /// Bytes before the bits.
    pub fn bits_offset(&self) -> usize {
        self.planes() * self.row_blocks() * self.spans() * SEEN_BYTES
    }

    /// Bytes before the positions of rows 0.
    pub fn starts_offset(&self) -> usize {
        self.bits_offset() + self.planes() * self.rows * self.row_words() * 4
    }

    /// All bytes.
    pub fn bytes(&self) -> usize {
        self.starts_offset() + self.sequences * 4
    }

    /// The members of `MaskBlocks`, and of `PackedMask` those that come after them, for a packed mask at `address`.
    pub(super) fn members(&self, address: u64) -> Vec<Member> {
        let step = |extent: usize, size: usize| if extent > 1 { size } else { 0 };
        let block_step = |extent: usize, size: usize| Member::I32(step(extent, size) as i32);
        let (plane_blocks, plane_words) = (self.row_blocks() * self.spans(), self.rows * self.row_words());
        let mut members = vec![
            Member::Address(address),
            Member::Address(address + self.starts_offset() as u64),
            block_step(self.batches, self.heads * plane_blocks),
            block_step(self.heads, plane_blocks),
            block_step(self.row_blocks(), self.spans()),
            Member::I32(0),
        ];
        if self.has_bits {
            let word_step = |extent: usize, size: usize| Member::I64(step(extent, size) as i64);
            members.extend([
                Member::Address(address + self.bits_offset() as u64),
                word_step(self.batches, self.heads * plane_words),
                word_step(self.heads, plane_words),
                word_step(self.rows, self.row_words()),
            ]);
        }
        members
    }
}
