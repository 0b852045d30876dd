// A block of the decode kernel: its tiles, its shared memory, the rows that it works on.
#pragma once

#include "omniflash/keys.hpp"
#include "omniflash/masks.hpp"
#include "omniflash/schedule.hpp"
#include "fragments.hpp"
#include "instance.hpp"
#include "sm90/slabs.hpp"

namespace omniflash {

using namespace instance;

constexpr int kThreads = 32 * kWarps;
// Left to itself, the compiler spares registers of narrow blocks in clusters, and where boxes come, and spills.
constexpr int kResidentBlocks = kBoxes || (kCluster > 1 && kWarps <= 4) ? 1 : 0;
constexpr int kFragments = kBlockM / 16;
constexpr int kSlice = 16, kBlockN = kSlice * kWarps;
constexpr int kN = kSlice / 8, kV = kValueDim / 8;
static_assert(kBlockM % 16 == 0 && kSlots >= 3, "whole fragments, and a slot to fill while another is read");

// A warp takes keys and values of a tile in one turn, or where slots are odd in number in two: of few slots it then has more
// on their way, and passes a barrier more.
constexpr int kSlicesOfTurn = kSlots % 2 == 0 ? 2 : 1, kTurnsAhead = kSlots / kSlicesOfTurn;

// Fewer tiles than this are not worth a block of their own.
constexpr unsigned kLeastTiles = 2;

// The blocks of a cluster take tiles in turns: what they begin with then depends on no length, so that its pages can be asked
// for first of all. Only where lanes copy to few slots, and there are no pages, each was faster with a run of its own.
constexpr int kStep = Keys::kOneStride && kSlicesOfTurn == 1 && !kBoxes ? 1 : kCluster;

// Keys and values are read once. Where all of them are a few times what the second-level cache holds, it is told to keep
// what others left there instead, which saves it writing that back; with more of them that costs more than it saves.
constexpr unsigned kTilesLeaving = (160u << 20) / (kBlockN * (kHeadDim + kValueDim) * static_cast<unsigned>(sizeof(Element)));

// A slice as boxes of tensor maps leave it.
template <class Element, int kColumns>
struct BoxedSlice {
  static constexpr int kElements = kColumns, kChunkElements = 16 / sizeof(Element), kChunks = kColumns / kChunkElements;
  static constexpr int kRowBytes = kSlabRowBytes;
  using Slabs = SlabTile<kSlice, kColumns>;

  unsigned address;

  OMNIFLASH_DEVICE unsigned chunk(int row, int chunk) const { return Slabs{address}.chunk(row, chunk); }
  OMNIFLASH_DEVICE static constexpr unsigned right_of(unsigned chunk, int chunks) { return Slabs::further(chunk, chunks); }
  OMNIFLASH_DEVICE unsigned element(int row, int column) const {
    return chunk(row, column / kChunkElements) + column % kChunkElements * sizeof(Element);
  }
};

using Queries = PaddedTile<Element, kHeadDim>;
template <bool kBoxed, int kColumns>
struct SliceOf {
  using Type = PaddedTile<Element, kColumns>;
  static constexpr unsigned kBytes = kSlice * Type::kPitchBytes;
};
template <int kColumns>
struct SliceOf<true, kColumns> {
  using Type = BoxedSlice<Element, kColumns>;
  static constexpr unsigned kBytes = Type::Slabs::kBytes;
};
using KeySlice = SliceOf<kBoxes, kHeadDim>::Type;
using ValueSlice = SliceOf<kBoxes, kValueDim>::Type;
using Scores = float[kFragments][kN][4];
using Output = float[kFragments][kV][4];
using Softmax = SoftmaxRow[kFragments][2];

// Boxes lie at whole patterns of the swizzle.
constexpr unsigned kAlignment = kBoxes ? kSwizzleBytes : 16;
constexpr unsigned kQueryBytes = (kBlockM * Queries::kPitchBytes + kAlignment - 1) / kAlignment * kAlignment;
constexpr unsigned kSlotBytes = maximum(SliceOf<kBoxes, kHeadDim>::kBytes, SliceOf<kBoxes, kValueDim>::kBytes);

// Rows of sums are apart by eight banks.
constexpr int kPitch = kValueDim + 8, kQuads = kValueDim / 4;
constexpr unsigned kStates = 4 * kWarps * kBlockM * kPitch;

// What the blocks of a cluster send to this one lies behind all that this one writes: no copy and no sum is ever there.
constexpr unsigned kReceived =
    maximum(kQueryBytes + kWarps * kSlots * kSlotBytes, kStates + 8 * kWarps * static_cast<unsigned>(kBlockM));
constexpr int kShare = kBlockM * kQuads / kCluster;  // quads of sums that each block of a cluster joins, at most
constexpr unsigned kReceivedBytes = kCluster == 1 ? 0 : kCluster * (16 * kShare + 8 * kBlockM);

OMNIFLASH_DEVICE int warp_index() { return thread_index() / 32; }
// Which of its cluster a block is.
OMNIFLASH_DEVICE int block_rank() { return block_index_x() % kCluster; }
OMNIFLASH_DEVICE Queries query_tile() { return {shared_memory()}; }
OMNIFLASH_DEVICE unsigned slot_address(int slot) {
  return shared_memory() + kQueryBytes + (slot * kWarps + warp_index()) * kSlotBytes;
}

OMNIFLASH_DEVICE unsigned sum_address(int warp, int row, int column) {
  return shared_memory() + 4 * ((warp * kBlockM + row) * kPitch + column);
}
OMNIFLASH_DEVICE unsigned state_address(int warp, int row) {
  return shared_memory() + kStates + 8 * (warp * kBlockM + row);
}
// Of the part of one of the cluster's blocks: quad i of its sums, which block i % kCluster joins, and the state of a row.
OMNIFLASH_DEVICE unsigned received_quad(int part, int i) {
  return shared_memory() + kReceived + 16 * (part * kShare + i / kCluster);
}
OMNIFLASH_DEVICE unsigned received_state(int part, int row) {
  return shared_memory() + kReceived + 16 * kCluster * kShare + 8 * (part * kBlockM + row);
}

constexpr bool kFoldable = is_identity<ScoreModType> && !has_add<MaskType>;

using Tiles = KeyTiles<MaskType>;

// Which key head the heads of a tile share.
OMNIFLASH_DEVICE int key_head_of(const AttentionParameters& parameters, int head_tile) {
  return quotient(head_tile * static_cast<int>(parameters.heads_per_tile), parameters.by_group_size);
}

// What one block works on: all rows of a sequence that share a key head.
struct Block {
  const AttentionParameters& parameters;
  const Functors<MaskType, ScoreModType>& functors;
  Sequence sequence;
  int head_tile;
  RowTile rows;
  float per_head;  // 1 / heads
  float scale;   // of scores before mask and modification; 1 where it is folded
  float factor;  // of scores in the exponential

  OMNIFLASH_DEVICE Block(const AttentionParameters& parameters, const Functors<MaskType, ScoreModType>& functors,
                         const Sequence& sequence, int head_tile)
      : parameters(parameters),
        functors(functors),
        sequence(sequence),
        head_tile(head_tile),
        rows(parameters, Work{sequence.batch, head_tile * static_cast<int>(parameters.heads_per_tile), 0}, sequence,
             kBlockM),
        per_head(reciprocal(static_cast<float>(rows.heads))) {
    // The largest score is the largest product only under a positive factor.
    const bool folded = kFoldable && parameters.softmax_scale > 0.0f;
    scale = folded ? 1.0f : parameters.softmax_scale;
    factor = folded ? parameters.softmax_scale * kLog2E : kLog2E;
  }

  OMNIFLASH_DEVICE int key_head() const { return key_head_of(parameters, head_tile); }
  // Longer sequences are another launch's.
  OMNIFLASH_DEVICE bool is_ours() const { return rows.num_rows > 0 && rows.num_rows <= kBlockM; }
  OMNIFLASH_DEVICE Tiles key_tiles() const {
    const RowRange queries{sequence.batch, rows.first_head, sequence.start, sequence.start + sequence.q_len};
    return Tiles(functors.mask, sequence, queries, rows.heads, kBlockN);
  }

  // Query and head of a row, without a division: rows are few.
  OMNIFLASH_DEVICE int query(int row) const { return static_cast<int>((static_cast<float>(row) + 0.5f) * per_head); }
  OMNIFLASH_DEVICE int head(int row) const { return rows.first_head + row - query(row) * rows.heads; }

  // Row of an accumulator's fragment and half in the sequence; past the end, the last.
  OMNIFLASH_DEVICE int row(int fragment, int half) const {
    return minimum(16 * fragment + 8 * half + lane_index() / 4, rows.num_rows - 1);
  }
  OMNIFLASH_DEVICE ScoreIndex index(int row) const {
    const int query = this->query(row);
    return ScoreIndex{sequence.batch, head(row), query, sequence.start + query, 0};
  }

  OMNIFLASH_DEVICE void copy_queries() const {
    constexpr int kChunks = Queries::kChunks, kElements = Queries::kChunkElements;
#pragma unroll 1
    for (int i = thread_index(); i < kBlockM * kChunks; i += kThreads) {
      const int row = i / kChunks, chunk = i % kChunks;
      const bool valid = row < rows.num_rows;
      const int some = valid ? row : 0;
      const Element* from = sequence.template row<const Element>(parameters.q, is_ragged(parameters), query(some), head(some));
      fill_chunk<kVectorLoads>(query_tile().chunk(row, chunk), from, chunk * kElements, static_cast<int>(parameters.head_dim),
                               valid);
    }
  }
};

}  // namespace omniflash
