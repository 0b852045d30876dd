// A block of the portable forward kernel: its tiles, its shared memory, the rows that it works on.
#pragma once

#include "omniflash/keys.hpp"
#include "omniflash/masks.hpp"
#include "omniflash/schedule.hpp"
#include "fragments.hpp"
#include "instance.hpp"

namespace omniflash {

using namespace instance;

constexpr int kThreads = 32 * kWarps;
constexpr int kFragments = kBlockM / (16 * kWarps / kWarpsAcross);
constexpr int kN = kBlockN / kWarpsAcross / 8, kV = kValueDim / kWarpsAcross / 8;
static_assert(kFragments * 16 * kWarps == kBlockM * kWarpsAcross && kFragments >= 1, "a warp has whole fragments of 16 rows");
static_assert(kWarpsAcross == 1 || (kWarpsAcross == 2 && kStages == 1 && sizeof(Element) == 2 && kV % 8 == 0),
              "two warps side by side split rows of whole permutations");
static_assert(kBlockN % 32 == 0, "masks answer for 32 keys at a time");
static_assert(kStages == 1 || kStages == 2, "one slot or two");

using RowsOfHeadDim = SharedTile<Element, kHeadDim>;
using RowsOfValueDim = SharedTile<Element, kValueDim>;
using Scores = float[kFragments][kN][4];
using Output = float[kFragments][kV][4];
using Softmax = SoftmaxRow[kFragments][2];

constexpr unsigned kQueryBytes = kBlockM * RowsOfHeadDim::kRowBytes;
constexpr unsigned kKeyBytes = kBlockN * RowsOfHeadDim::kRowBytes;
constexpr unsigned kValueBytes = kBlockN * RowsOfValueDim::kRowBytes;

OMNIFLASH_DEVICE RowsOfHeadDim query_tile() { return {shared_memory()}; }
OMNIFLASH_DEVICE RowsOfHeadDim key_tile(int slot) { return {shared_memory() + kQueryBytes + slot * kKeyBytes}; }
OMNIFLASH_DEVICE RowsOfValueDim value_tile(int slot) {
  return {shared_memory() + kQueryBytes + kStages * kKeyBytes + slot * kValueBytes};
}
OMNIFLASH_DEVICE RowsOfValueDim output_tile() { return {shared_memory()}; }
OMNIFLASH_DEVICE unsigned exchange_area() { return shared_memory() + kQueryBytes + kStages * (kKeyBytes + kValueBytes); }

// Scores stay unscaled, and softmax_scale is folded into the exponential, where nothing looks at them in between.
constexpr bool kFoldable = is_identity<ScoreModType> && !has_add<MaskType>;

// Copies of pages' rows are unrolled; element by element, or of the last tile alone, the code would grow too long.
constexpr int kCopyUnroll = kVectorLoads && !Keys::kOneStride ? 8 : 1;

// Whether a warp's rows of the queries stay in registers: where they take few, each tile loads a fifth less.
constexpr bool kKeepsQueries = sizeof(Element) == 2 && kFragments * (kHeadDim / 4) <= 32;

// Whether any key before a sequence's end can be hidden.
constexpr bool kHides = !hides_nothing<MaskType> || hides_by_score<ScoreModType>;

// Whether a warp asks what the mask does to its own rows of a tile: where it has all of the block's, that takes more than it saves,
// and where it has half, unless rows see keys between two borders.
constexpr bool kHasHalfOfRows = kWarps / kWarpsAcross == 2 && kWarpsAcross == 2;
constexpr bool kAsksForOwnRows = (kWarps / kWarpsAcross > 2 || (kHasHalfOfRows && !sees_every_tile<MaskType>)) && !status_reads<MaskType>;

// Whether the lanes of a warp find its rows of a tile in their pages, each one row, and tell each other: neighbouring lanes copy
// one row, and would else all look it up. A warp has whole rows of every step.
constexpr int kRowsOfWarp = kBlockN / kWarps;
template <class Tile>
constexpr bool kHasWholeSteps = kBlockN % TileFiller<kThreads, kBlockN, Tile>::kStep == 0;
constexpr bool kLooksUpRows =
    !Keys::kOneStride && kRowsOfWarp <= 32 && kHasWholeSteps<RowsOfHeadDim> && kHasWholeSteps<RowsOfValueDim>;

// Whether tiles of keys of which none is missing are copied by constant steps.
constexpr bool kCopiesWholeTiles = kVectorLoads && (Keys::kOneStride || kLooksUpRows);

// What one block works on.
struct Block {
  const AttentionParameters& parameters;
  const Functors<MaskType, ScoreModType>& functors;
  Sequence sequence;
  RowTile rows;
  Keys keys;
  int warp_row;     // first row of this warp in the tile
  int place;        // of this warp among those that share its rows
  float scale;      // of scores before mask and modification; 1 where it is folded
  float factor;     // of scores in the exponential
  bool is_folded;   // whether scores stay unscaled, or the modification scales them

  OMNIFLASH_DEVICE Block(const AttentionParameters& parameters, const Functors<MaskType, ScoreModType>& functors,
                         const Work& work)
      : parameters(parameters),
        functors(functors),
        sequence(parameters, work.batch),
        rows(parameters, work, sequence, kBlockM),
        keys(parameters, sequence, quotient(work.first_head, parameters.by_group_size)),
        warp_row(thread_index() / (32 * kWarpsAcross) * 16 * kFragments),
        place(kWarpsAcross == 1 ? 0 : thread_index() / 32 % kWarpsAcross) {
    // The largest score is the largest product only under a positive factor.
    const bool folded = kFoldable && parameters.softmax_scale > 0.0f;
    scale = folded ? 1.0f : parameters.softmax_scale;
    factor = folded ? parameters.softmax_scale * kLog2E : kLog2E;
    is_folded = !kFoldable || folded;
  }

  // Where in a tile this warp's part of the keys and of the outputs' columns begins.
  OMNIFLASH_DEVICE int first_key() const { return place * 8 * kN; }
  OMNIFLASH_DEVICE int first_column() const { return place * 8 * kV; }

  // Whether this warp has any row.
  OMNIFLASH_DEVICE bool is_active() const { return rows.first_row + warp_row < rows.num_rows; }

  // What the mask does to a tile for the rows of this warp, of which there is one.
  OMNIFLASH_DEVICE TileStatus status_of_warp(int tile) const {
    RowTile own = rows;
    own.first_row += warp_row;
    return KeyTiles<MaskType>(functors.mask, sequence, own, 16 * kFragments, kBlockN).status(tile);
  }

  // Row of an accumulator's fragment and half in the sequence; past the end, where there is none, the last.
  OMNIFLASH_DEVICE bool is_row(int fragment, int half) const {
    return rows.first_row + warp_row + 16 * fragment + 8 * half + lane_index() / 4 < rows.num_rows;
  }
  OMNIFLASH_DEVICE int row(int fragment, int half) const {
    return minimum(rows.first_row + warp_row + 16 * fragment + 8 * half + lane_index() / 4, rows.num_rows - 1);
  }
  OMNIFLASH_DEVICE ScoreIndex index(int row) const {
    const int query = rows.query(row);
    return ScoreIndex{sequence.batch, rows.head(row), query, sequence.start + query, 0};
  }

  // Steps through rows, which are interleaved heads of queries.
  struct QueryWalker {
    const Block& block;
    int row;
    OMNIFLASH_DEVICE void advance(int rows) { row += rows; }
    OMNIFLASH_DEVICE const Element* at(bool valid) const {
      const int i = valid ? row : block.rows.first_row;
      return block.sequence.template row<const Element>(block.parameters.q, is_ragged(block.parameters),
                                                        block.rows.query(i), block.rows.head(i));
    }
  };
  OMNIFLASH_DEVICE void copy_queries() const {
    const int num_valid = rows.num_rows - rows.first_row;
    if (kVectorLoads && rows.heads == 1 && num_valid >= kBlockM) {
      fill_whole_tile<kThreads, kBlockM>(query_tile(), parameters.head_dim,
                                         sequence.template row<const Element>(parameters.q, is_ragged(parameters),
                                                                              rows.first_row, rows.first_head),
                                         parameters.q.row_stride);
    } else {
      fill_tile<kThreads, kBlockM, kVectorLoads, 1>(query_tile(), parameters.head_dim, num_valid,
                                                    QueryWalker{*this, rows.first_row});
    }
  }
};

}  // namespace omniflash
