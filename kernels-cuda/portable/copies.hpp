// Which tiles come next, and how a block brings them to shared memory.
#pragma once

#include "portable/block.hpp"

namespace omniflash {

// ---- copies of whole tiles
//
// What stands before a product delays it: copies there cost the latency of their addresses, one behind the other. Between
// the steps of a product they cost their issue alone.

// Whether the output takes half of the register file: addresses that stay are then for the inner loop alone.
constexpr bool kIsCrowded = kFragments * kV >= 32;

// Whether the scores of one tile carry the copies of the next.
constexpr bool kCarriesCopies = kStages == 1 || kHides || !kIsCrowded;

// A thread's copies of whole tiles of keys or of values, in passes. What a pass needs to know of a tile is its cursor.
template <class Tile, class Walker>
struct Copies;

template <class Tile>
struct Copies<Tile, StridedKeys::Walker<Element>> {
  using Filler = TileFiller<kThreads, kBlockN, Tile>;
  using Cursor = const Element*;  // of the next pass
  static constexpr int kPasses = Filler::kPasses;
  Filler filler;
  const Element* first;  // of the first pass in tile 0
  long long stride;

  OMNIFLASH_DEVICE Copies(int thread, int columns, const StridedKeys::Walker<Element>& from)
      : filler(thread, columns), first(filler.first_chunk(from.vector, from.stride)), stride(from.stride) {}

  OMNIFLASH_DEVICE Cursor of_tile(int tile) const { return first + static_cast<long long>(tile * kBlockN) * stride; }
  // A pass, the next one after `from`.
  OMNIFLASH_DEVICE void copy(const Tile& to, int pass, Cursor& from) const { filler.copy(to, pass, from, stride); }
  OMNIFLASH_DEVICE void copy_to(unsigned first, int pass, Cursor& from, bool is_there) const {
    filler.copy_to(first, pass, from, stride, is_there);
  }
};

template <class Tile>
struct Copies<Tile, PagedKeys::Walker<Element>> {
  using Filler = TileFiller<kThreads, kBlockN, Tile>;
  using Cursor = long long;  // where the row of a warp's that this lane has looked up begins, in elements
  static constexpr int kPasses = Filler::kPasses, kRowsOfStep = 32 / Filler::kBand;  // of a warp
  Filler filler;
  PagedKeys::Walker<Element> rows;

  OMNIFLASH_DEVICE Copies(int thread, int columns, const PagedKeys::Walker<Element>& rows) : filler(thread, columns), rows(rows) {}

  OMNIFLASH_DEVICE Cursor of_tile(int tile) const {
    const int mine = lane_index() % kRowsOfWarp, warp = thread_index() / 32;
    const int row = mine / kRowsOfStep * Filler::kStep + warp * kRowsOfStep + mine % kRowsOfStep;
    return rows.offset_of(tile * kBlockN + row);
  }
  OMNIFLASH_DEVICE void copy(const Tile& to, int pass, const Cursor& from) const {
    copy_to(to.address + filler.offset, pass, from, true);
  }
  OMNIFLASH_DEVICE void copy_to(unsigned first, int pass, const Cursor& from, bool is_there) const {
    const int lane = pass / Filler::kBands * kRowsOfStep + lane_index() / Filler::kBand;
    const unsigned low = from_lane(static_cast<unsigned>(from), lane), high = from_lane(static_cast<unsigned>(from >> 32), lane);
    const Element* row = rows.base + (static_cast<long long>(high) << 32 | low) + filler.column;
    filler.copy_to(first, pass, row, 0, is_there);
  }
};

struct TileCopies {
  const Block& block;
  Copies<RowsOfHeadDim, Keys::Walker<Element>> keys;
  Copies<RowsOfValueDim, Keys::Walker<Element>> values;

  OMNIFLASH_DEVICE TileCopies(const Block& block, int thread)
      : block(block),
        keys(thread, block.parameters.head_dim, block.keys.template keys_from<Element>(0)),
        values(thread, block.parameters.value_dim, block.keys.template values_from<Element>(0)) {}

  // Any tile. Keys past the end become zeros: whatever lies there, it is not read.
  OMNIFLASH_DEVICE void copy_keys(int tile, int slot) const {
    if (is_whole(tile)) return copy_whole_keys(tile, slot);
    fill_tile<kThreads, kBlockN, kVectorLoads, kCopyUnroll>(key_tile(slot), block.parameters.head_dim, num_valid(tile),
                                                            block.keys.template keys_from<Element>(tile * kBlockN));
  }
  OMNIFLASH_DEVICE void copy_values(int tile, int slot) const {
    if (is_whole(tile)) return copy_whole_values(tile, slot);
    fill_tile<kThreads, kBlockN, kVectorLoads, kCopyUnroll>(value_tile(slot), block.parameters.value_dim, num_valid(tile),
                                                            block.keys.template values_from<Element>(tile * kBlockN));
  }
  // What is there before the first scores.
  OMNIFLASH_DEVICE void copy_first(int tile) const {
    copy_keys(tile, 0);
    if constexpr (kStages == 2) copy_values(tile, 0);
    copy_commit();
  }
  // What is copied beside the scores of a tile.
  OMNIFLASH_DEVICE void copy_beside(int tile, int next, bool has_next, int slot) const {
    if constexpr (kStages == 1) {
      copy_values(tile, 0);
    } else if (has_next) {
      copy_keys(next, 1 - slot);
      copy_values(next, 1 - slot);
    }
    copy_commit();
  }

  OMNIFLASH_DEVICE int num_valid(int tile) const { return block.sequence.kv_len - tile * kBlockN; }
  OMNIFLASH_DEVICE bool is_whole(int tile) const { return kCopiesWholeTiles && num_valid(tile) >= kBlockN; }

  OMNIFLASH_DEVICE void copy_whole_keys(int tile, int slot) const {
    auto from = keys.of_tile(tile);
#pragma unroll
    for (int pass = 0; pass < keys.kPasses; ++pass) keys.copy(key_tile(slot), pass, from);
  }
  OMNIFLASH_DEVICE void copy_whole_values(int tile, int slot) const {
    auto from = values.of_tile(tile);
#pragma unroll
    for (int pass = 0; pass < values.kPasses; ++pass) values.copy(value_tile(slot), pass, from);
  }
};

// What the steps of a tile's scores carry: with two slots the keys and then the values of the next tile, evenly; with one
// the tile's own values, in the first eighth of the steps, for they are waited for right after the scores.
struct ScoreCargo {
  // Copies between matrix loads cost three instructions of nothing each time, as ptxas compiles them: they go out in bursts.
  static constexpr int kStepsOfBurst = kStages == 2 ? 2 : 1;

  const TileCopies& copies;
  mutable decltype(TileCopies::keys)::Cursor keys;
  mutable decltype(TileCopies::values)::Cursor values;
  // Where this thread's first chunks go: opaque, so that all others lie at constants from there and none is found anew.
  unsigned to_keys, to_values;
  bool has_next;

  // Where no tile is next, slots are filled with zeros, which nobody reads: all copies are alike then, and none is skipped.
  OMNIFLASH_DEVICE ScoreCargo(const TileCopies& copies, int tile, int next, bool has_next, int slot)
      : copies(copies), has_next(has_next) {
    const int from = kStages == 2 && has_next ? next : tile, to = kStages == 2 ? 1 - slot : 0;
    keys = copies.keys.of_tile(from);
    values = copies.values.of_tile(from);
    if constexpr (kStages == 2) to_keys = opaque(key_tile(to).address + copies.keys.filler.offset);
    if constexpr (kStages == 2 && kHeadDim == kValueDim) {
      to_values = to_keys + kStages * kKeyBytes;
    } else {
      // Of pairs of warps left to the compiler, which has two instructions less so.
      const unsigned values_to = value_tile(to).address + copies.values.filler.offset;
      to_values = kWarpsAcross == 1 ? opaque(values_to) : values_to;
    }
  }

  OMNIFLASH_DEVICE void operator()(int step, int steps) const {
    constexpr int kKeyPasses = kStages == 2 ? decltype(copies.keys)::kPasses : 0;
    constexpr int kPasses = kKeyPasses + decltype(copies.values)::kPasses, kHaste = kStages == 2 ? 1 : 8;
    if (step % kStepsOfBurst != 0) return;
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      if (pass < kHaste * step * kPasses / steps || pass >= kHaste * (step + kStepsOfBurst) * kPasses / steps) continue;
      if (pass < kKeyPasses) {
        copies.keys.copy_to(to_keys, pass, keys, has_next);
      } else {
        copies.values.copy_to(to_values, pass - kKeyPasses, values, kStages == 1 || has_next);
      }
    }
  }
};

// The tiles of keys that the mask does not skip, one after the other. Where a status reads memory, each lane of a warp asks for
// one of 32 tiles, apart from where tiles are taken: the loop of full tiles then is as short as under a mask without tables.
struct TileWalk {
  static constexpr bool kAsksApart = status_reads<MaskType>;
  KeyTiles<MaskType> tiles;
  int first;                       // of the tiles asked for last
  unsigned present = 0, full = 0;  // bit i: tile first + i is not skipped, and not yet taken; the mask hides nothing of it

  OMNIFLASH_DEVICE TileWalk(const Block& block)
      : tiles(block.functors.mask, block.sequence, block.rows, kBlockM, kBlockN) {
    tiles.take_partition(block.parameters, block_index_y());
    first = tiles.begin - 32;
  }
  OMNIFLASH_DEVICE int end() const { return tiles.end; }

  // Whether the next tile can be taken; if not, others have to be asked for.
  OMNIFLASH_DEVICE bool has_asked() const { return !kAsksApart || present != 0 || first + 32 >= tiles.end; }
  OMNIFLASH_DEVICE void ask() {
    while (!has_asked()) {
      first += 32;
      const int tile = first + lane_index();
      const TileStatus own = tile < tiles.end ? tiles.status(tile) : TileStatus::Skip;
      present = __ballot_sync(~0u, own != TileStatus::Skip);
      full = __ballot_sync(~0u, own == TileStatus::Full);
    }
  }

  // The next tile from `tile` on and its status, or the end.
  OMNIFLASH_DEVICE int take(int tile, TileStatus& status) {
    if constexpr (!kAsksApart) return tiles.next(tile, status);
    if (present == 0) return tiles.end;
    const int at = __ffs(present) - 1;
    present &= present - 1;
    status = full >> at & 1 ? TileStatus::Full : TileStatus::Partial;
    return first + at;
  }
};

// ---- what the next block begins with

// Whether a block asks for the queries of the one that takes its place. Measured to gain at head_dim 256 without a mask alone:
// up to 192 it gains nothing, and with two slots or a mask, in other registers, it loses.
constexpr bool kPrefetchesQueries =
    sizeof(Element) == 2 && kHeadDim > 192 && kStages == 1 && hides_nothing<MaskType>;

// Brings the queries of the block that follows this one on its multiprocessor into the second-level cache. Blocks follow one
// another at a distance of all that are at work: registers allow 256 threads on each multiprocessor.
OMNIFLASH_DEVICE void prefetch_next_queries(const AttentionParameters& parameters) {
  constexpr int kLineElements = 128 / sizeof(Element), kLines = ceil_divide(kHeadDim, kLineElements);
  const unsigned next = block_index_x() + num_multiprocessors() * ceil_divide(256, kThreads);
  if (next >= parameters.num_pairs * parameters.num_row_tiles) return;
  const Work work = work_of_block(parameters, next);
  const Sequence sequence(parameters, work.batch);
  const RowTile rows(parameters, work, sequence, kBlockM);
  const int num_lines = minimum(kBlockM, rows.num_rows - rows.first_row) * kLines;
  for (int i = thread_index(); i < num_lines; i += kThreads) {
    const int row = rows.first_row + i / kLines;
    prefetch_line(sequence.template row<const Element>(parameters.q, is_ragged(parameters), rows.query(row), rows.head(row)) +
                  minimum(i % kLines * kLineElements, static_cast<int>(parameters.head_dim) - 1));
  }
}

}  // namespace omniflash
