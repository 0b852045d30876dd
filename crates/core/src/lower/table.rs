//! A user's closure as data: statuses of blocks, and bits of those that are neither skipped nor full.

use rayon::prelude::*;

use crate::mask::{MaskFunction, Tile, TileStatus};

use super::functors::{Member, bytes_of};

/// Rows and keys of a block of a [`MaskTable`].
pub const TABLE_BLOCK: usize = 64;

/// Words of 32 keys that a partial block takes.
const WORDS: usize = TABLE_BLOCK * TABLE_BLOCK / 32;

const SKIP: i32 = -2;
const FULL: i32 = -1;

/// The positions that a [`MaskTable`] answers for.
///
/// A launch meets the global positions `kv_len - q_len` to `kv_len - 1` of each sequence. Where only bounds of the
/// lengths are known on the host, these are `-seqlen_q` to `seqlen_k - 1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TableExtent {
    /// Sequences.
    pub batch: usize,
    /// Query heads.
    pub heads: usize,
    /// The first query position.
    pub q_begin: i64,
    /// One past the last query position.
    pub q_end: i64,
    /// One past the last key.
    pub k_end: i64,
}

/// A mask evaluated on the host, in blocks of [`TABLE_BLOCK`] rows and keys.
///
/// The closure's own [`tile_status`](MaskFunction::tile_status) is asked first; only blocks that it calls partial or
/// does not know are evaluated, 32 keys to a word. Equal planes (pairs of sequence and head) are stored once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MaskTable {
    extent: TableExtent,
    q_blocks: usize,
    k_blocks: usize,
    /// The plane of each pair of sequence and head.
    planes: Vec<u32>,
    /// For each plane and block: SKIP, FULL, or the index of its words in units of WORDS.
    blocks: Vec<i32>,
    words: Vec<u32>,
}

/// One row of blocks of one plane.
#[derive(Clone, PartialEq, Eq)]
struct BlockRow {
    blocks: Vec<Block>,
}

#[derive(Clone, PartialEq, Eq)]
enum Block {
    Skip,
    Full,
    Partial(Box<[u32; WORDS]>),
}

impl MaskTable {
    /// The members of `TableMask` before the table's address is known.
    pub(super) const MEMBERS: [Member; 7] = [
        Member::Address(0),
        Member::Address(0),
        Member::Address(0),
        Member::I32(0),
        Member::I32(0),
        Member::I32(0),
        Member::I32(0),
    ];

    /// Evaluates a closure, in parallel over rows of blocks.
    pub fn build(function: &dyn MaskFunction, extent: &TableExtent) -> Self {
        let q_blocks = blocks_of(extent.q_end - extent.q_begin);
        let k_blocks = blocks_of(extent.k_end);
        let batches = if function.varies_by_batch() { extent.batch } else { extent.batch.min(1) };
        let heads = if function.varies_by_head() { extent.heads } else { extent.heads.min(1) };
        let rows: Vec<BlockRow> = (0..batches * heads * q_blocks)
            .into_par_iter()
            .map(|i| {
                let (plane, q_block) = (i / q_blocks, i % q_blocks);
                block_row(function, extent, plane / heads, plane % heads, q_block, k_blocks)
            })
            .collect();

        let mut table = MaskTable {
            extent: *extent,
            q_blocks,
            k_blocks,
            planes: Vec::new(),
            blocks: Vec::new(),
            words: Vec::new(),
        };
        let mut distinct: Vec<&[BlockRow]> = Vec::new();
        let plane_of: Vec<u32> = (0..batches * heads)
            .map(|plane| {
                let rows = &rows[plane * q_blocks..(plane + 1) * q_blocks];
                let known = distinct.iter().position(|other| *other == rows);
                let index = known.unwrap_or(distinct.len());
                if known.is_none() {
                    distinct.push(rows);
                }
                index as u32
            })
            .collect();
        for row in distinct.into_iter().flatten() {
            table.append(row);
        }
        for batch in 0..extent.batch {
            for head in 0..extent.heads {
                table.planes.push(plane_of[batch.min(batches - 1) * heads + head.min(heads - 1)]);
            }
        }
        table
    }

    fn append(&mut self, row: &BlockRow) {
        for block in &row.blocks {
            self.blocks.push(match block {
                Block::Skip => SKIP,
                Block::Full => FULL,
                Block::Partial(words) => {
                    self.words.extend_from_slice(&words[..]);
                    (self.words.len() / WORDS - 1) as i32
                }
            });
        }
    }

    /// Whether a key is visible, as the device reads it from the table; hidden outside the extent.
    pub fn visible(&self, batch: usize, head: usize, q: i64, k: i64) -> bool {
        let (row, block) = (q - self.extent.q_begin, TABLE_BLOCK as i64);
        if row < 0 || q >= self.extent.q_end || k < 0 || k >= self.extent.k_end {
            return false;
        }
        let plane = self.planes[batch * self.extent.heads + head] as usize;
        let at = (plane * self.q_blocks + (row / block) as usize) * self.k_blocks + (k / block) as usize;
        match self.blocks[at] {
            SKIP => false,
            FULL => true,
            index => {
                let bit = (row % block) as usize * TABLE_BLOCK + (k % block) as usize;
                self.words[index as usize * WORDS + bit / 32] >> (bit % 32) & 1 == 1
            }
        }
    }

    /// The 32-bit words to copy to the device: planes, blocks, words.
    pub fn data(&self) -> Vec<u32> {
        let blocks = self.blocks.iter().map(|&block| block as u32);
        self.planes.iter().copied().chain(blocks).chain(self.words.iter().copied()).collect()
    }

    /// The members of `TableMask` for data at `address`.
    pub(super) fn parameters(&self, address: u64) -> Vec<u8> {
        let blocks = address + 4 * self.planes.len() as u64;
        let words = blocks + 4 * self.blocks.len() as u64;
        let members = [
            Member::Address(address),
            Member::Address(blocks),
            Member::Address(words),
            Member::I32(self.extent.q_begin as i32),
            Member::I32(self.q_blocks as i32),
            Member::I32(self.k_blocks as i32),
            Member::I32(self.extent.heads as i32),
        ];
        bytes_of(&members)
    }
}

fn blocks_of(positions: i64) -> usize {
    (positions.max(0) as usize).div_ceil(TABLE_BLOCK)
}

fn block_row(
    function: &dyn MaskFunction,
    extent: &TableExtent,
    batch: usize,
    head: usize,
    q_block: usize,
    k_blocks: usize,
) -> BlockRow {
    let q_begin = extent.q_begin + (q_block * TABLE_BLOCK) as i64;
    let q_end = (q_begin + TABLE_BLOCK as i64).min(extent.q_end);
    let blocks = (0..k_blocks)
        .map(|k_block| {
            let k_begin = (k_block * TABLE_BLOCK) as i64;
            let k_end = (k_begin + TABLE_BLOCK as i64).min(extent.k_end);
            let tile = Tile { batch, head, q_begin, q_end, k_begin, k_end };
            match function.tile_status(&tile) {
                TileStatus::Skip => Block::Skip,
                TileStatus::Full => Block::Full,
                TileStatus::Partial | TileStatus::Unknown => evaluated(function, &tile),
            }
        })
        .collect();
    BlockRow { blocks }
}

fn evaluated(function: &dyn MaskFunction, tile: &Tile) -> Block {
    let mut words = Box::new([0u32; WORDS]);
    let (mut visible, mut hidden) = (false, false);
    for (row, q) in (tile.q_begin..tile.q_end).enumerate() {
        for (column, k) in (tile.k_begin..tile.k_end).enumerate() {
            if function.visible(tile.batch, tile.head, q, k) {
                let bit = row * TABLE_BLOCK + column;
                words[bit / 32] |= 1 << (bit % 32);
                visible = true;
            } else {
                hidden = true;
            }
        }
    }
    match (visible, hidden) {
        (false, _) => Block::Skip,
        (true, false) => Block::Full,
        (true, true) => Block::Partial(words),
    }
}
