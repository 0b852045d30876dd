// Keys and values on their way: where the slices of a warp lie, and the pipeline that copies them ahead.
#pragma once

#include "decode/block.hpp"

namespace omniflash {

// Where one slice of keys or of values lies, in elements from the tensor's first, with the stride between its vectors.
struct Vectors {
  long long first, stride;
};

// Where the slices of a warp are found. In pages the table is read one slice before it is needed, or many.
template <class Keys>
struct Slices;

template <>
struct Slices<StridedKeys> {
  const StridedKeys& keys;
  int first_key;

  OMNIFLASH_DEVICE explicit Slices(const StridedKeys& keys) : keys(keys), first_key(0) {}
  OMNIFLASH_DEVICE void look_up(int first, int) { first_key = first; }
  OMNIFLASH_DEVICE bool is_strided() const { return true; }
  OMNIFLASH_DEVICE Vectors vectors(bool is_value) const {
    const long long base = is_value ? keys.v_base : keys.k_base, stride = is_value ? keys.v_stride : keys.k_stride;
    return {base + first_key * stride, stride};
  }
  OMNIFLASH_DEVICE long long mine() const { return 0; }
};

template <>
struct Slices<PagedKeys> {
  const PagedKeys& keys;
  // Many slices' pages at a time: measured to gain in wide blocks, and to cost where blocks go from item to item.
  static constexpr bool kReadsMany = kWarps > 4;
  int page, in_page;         // of the slice, or where slices cross pages of the key first + lane % 16
  int pages, later, at = 0;  // pages of this warp's slices of the tiles from `at` on, a tile a lane, and of 32 more
  bool is_read = false;      // whether those are

  OMNIFLASH_DEVICE explicit Slices(const PagedKeys& keys) : keys(keys), page(0), in_page(0) {}

  // Entries of keys that do not exist are not read; their rows are not either.
  OMNIFLASH_DEVICE void look_up(int first, int kv_len) {
    const int j = is_strided() ? first : first + lane_index() % kSlice;
    page = kReadsMany && is_strided() ? page_of_slice(first, kv_len) : read(j, kv_len);
    in_page = j - index_of(j) * keys.page_size;
  }
  // Whether a slice never crosses pages.
  OMNIFLASH_DEVICE bool is_strided() const { return keys.page_size % kSlice == 0; }
  OMNIFLASH_DEVICE Vectors vectors(bool is_value) const {
    const long long base = is_value ? keys.v_base : keys.k_base, stride = is_value ? keys.v_stride : keys.k_stride;
    const long long page_stride = is_value ? keys.v_page_stride : keys.k_page_stride;
    return {base + page * page_stride + in_page * stride, stride};
  }
  // This lane's vector where slices do cross pages: lanes 0 to 15 have the keys, the others the values.
  OMNIFLASH_DEVICE long long mine() const {
    return lane_index() < kSlice ? keys.k_base + page * keys.k_page_stride + in_page * keys.k_stride
                                 : keys.v_base + page * keys.v_page_stride + in_page * keys.v_stride;
  }

 private:
  OMNIFLASH_DEVICE int index_of(int j) const { return keys.page_shift >= 0 ? j >> keys.page_shift : j / keys.page_size; }
  OMNIFLASH_DEVICE int read(int j, int kv_len) const {
    return j < kv_len ? keys.table[index_of(j) * keys.table_stride] : 0;
  }
  // A copy waits for the table once in 32 tiles at most: the next ones are asked for long before.
  OMNIFLASH_DEVICE int page_of_slice(int first, int kv_len) {
    int ahead = first / kBlockN - at;
    if (!is_read || ahead >= 32) {
      const int mine = first + lane_index() * kBlockN;
      if (is_read && ahead < 64) {
        pages = later;
        at += 32;
        ahead -= 32;
      } else {
        pages = read(mine, kv_len);
        at += ahead;
        ahead = 0;
      }
      later = read(mine + (32 - ahead) * kBlockN, kv_len);
      is_read = true;
    }
    return static_cast<int>(from_lane(static_cast<unsigned>(pages), ahead));
  }
};

// The word pair of a lane.
OMNIFLASH_DEVICE long long offset_from_lane(long long mine, int lane) {
  const unsigned high = from_lane(static_cast<unsigned>(mine >> 32), lane);
  const unsigned low = from_lane(static_cast<unsigned>(mine), lane);
  return static_cast<long long>(static_cast<unsigned long long>(high) << 32 | low);
}

// How the lanes of a warp share a slice: kLanes neighbours take a row together, kRows rows at a time.
template <int kChunks>
struct Lanes {
  static constexpr int kLanes = minimum(kChunks & -kChunks, 32), kRows = 32 / kLanes, kPasses = kChunks / kLanes;
};

// Fills one slice with the lanes of a warp; rows from num_valid on become zeros, whatever lies there. The vector of a row is
// `first` + row * stride, or with kGather where the lane first_lane + row says.
template <bool kGather, int kColumns>
OMNIFLASH_DEVICE void fill_slice(const PaddedTile<Element, kColumns>& slice, const void* data, long long first,
                                 long long stride, int first_lane, int columns, int num_valid, unsigned long long policy) {
  using Tile = PaddedTile<Element, kColumns>;
  using Split = Lanes<Tile::kChunks>;
  const int first_row = lane_index() / Split::kLanes, first_chunk = lane_index() % Split::kLanes;
  const Element* vector = static_cast<const Element*>(data) + first_chunk * Tile::kChunkElements;
  if constexpr (!kGather) vector += first + first_row * stride;
  const unsigned to = slice.chunk(first_row, first_chunk);
#pragma unroll
  for (int row = 0; row < kSlice; row += Split::kRows) {
    const Element* from = vector;
    if constexpr (kGather) from += offset_from_lane(first, first_lane + first_row + row);
#pragma unroll
    for (int pass = 0; pass < Split::kPasses; ++pass) {
      const int chunk = pass * Split::kLanes, column = (first_chunk + chunk) * Tile::kChunkElements;
      const unsigned at = to + row * Tile::kPitchBytes + 16 * chunk;
      const Element* start = from + chunk * Tile::kChunkElements;
      const bool valid = first_row + row < num_valid;
      if constexpr (kVectorLoads) {
        copy_async_16(at, start, valid && column < columns, policy);
      } else {
        fill_chunk<false>(at, start - column, column, columns, valid);
      }
    }
    if constexpr (!kGather) vector += Split::kRows * stride;
  }
}

OMNIFLASH_DEVICE int next_turn(int slot) { return slot == kSlots - kSlicesOfTurn ? 0 : slot + kSlicesOfTurn; }

// The slices of one warp in the order of tiles, keys before values, as far ahead as there are slots.
struct Pipeline {
  const Block& block;
  const Keys& keys;
  Tiles tiles;  // of the segment
  unsigned long long policy;
  Slices<Keys> slices;
  int ahead;     // the tile to be copied next
  int slot = 0;  // where its next slice goes

  OMNIFLASH_DEVICE Pipeline(const Block& block, const Keys& keys, const Tiles& tiles, unsigned long long policy)
      : block(block), keys(keys), tiles(tiles), policy(policy), slices(keys) {
    advance(tiles.begin);
  }

  OMNIFLASH_DEVICE static int first_key(int tile) { return tile * kBlockN + warp_index() * kSlice; }
  OMNIFLASH_DEVICE void advance(int from) {
    TileStatus status;
    ahead = tiles.next(from, status);
    if (ahead < tiles.end) slices.look_up(first_key(ahead), block.sequence.kv_len);
  }
  // Copies the slices of a turn: keys and values of a tile, or where turns have one slice its keys and then its values.
  OMNIFLASH_DEVICE void copy(bool is_value) {
    if (ahead < tiles.end) {
      if (slices.is_strided()) {
        fill_turn<false>(is_value);
      } else {
        fill_turn<true>(is_value);
      }
      if (kSlicesOfTurn == 2 || is_value) advance(ahead + 1);
    }
    slot = next_turn(slot);
  }

 private:
  template <bool kGather>
  OMNIFLASH_DEVICE void fill_turn(bool is_value) {
    if constexpr (kSlicesOfTurn == 2) {
      fill<kGather, RowsOfHeadDim>(slot, false);
      fill<kGather, RowsOfValueDim>(slot + 1, true);
    } else if constexpr (kHeadDim == kValueDim) {
      fill<kGather, RowsOfHeadDim>(slot, is_value);
    } else if (is_value) {
      fill<kGather, RowsOfValueDim>(slot, true);
    } else {
      fill<kGather, RowsOfHeadDim>(slot, false);
    }
  }
  template <bool kGather, class Rows>
  OMNIFLASH_DEVICE void fill(int slot, bool is_value) {
    const Rows slice{slot_address(slot)};
    const void* data = is_value ? keys.v : keys.k;
    const int columns = static_cast<int>(is_value ? block.parameters.value_dim : block.parameters.head_dim);
    const int num_valid = block.sequence.kv_len - first_key(ahead);
    if constexpr (kGather) {
      fill_slice<true>(slice, data, slices.mine(), 0, is_value ? kSlice : 0, columns, num_valid, policy);
    } else {
      const Vectors vectors = slices.vectors(is_value);
      fill_slice<false>(slice, data, vectors.first, vectors.stride, 0, columns, num_valid, policy);
    }
  }
};

}  // namespace omniflash
