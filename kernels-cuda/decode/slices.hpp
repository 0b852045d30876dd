// Where the slices of a warp lie, and which come next.
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

OMNIFLASH_DEVICE int next_turn(int slot) { return slot == kSlots - kSlicesOfTurn ? 0 : slot + kSlicesOfTurn; }
OMNIFLASH_DEVICE int first_key_of(int tile) { return tile * kBlockN + warp_index() * kSlice; }

// Which slices of a warp come next, in the order of tiles.
struct Ahead {
  const Block& block;
  Tiles tiles;  // of the segment
  Slices<Keys> slices;
  int tile;

  OMNIFLASH_DEVICE Ahead(const Block& block, const Keys& keys, const Tiles& tiles) : block(block), tiles(tiles), slices(keys) {
    advance(tiles.begin);
  }
  OMNIFLASH_DEVICE bool is_any() const { return tile < tiles.end; }
  OMNIFLASH_DEVICE int first_key() const { return first_key_of(tile); }
  OMNIFLASH_DEVICE void advance(int from) {
    TileStatus status;
    tile = tiles.next(from, status);
    if (is_any()) slices.look_up(first_key(), block.sequence.kv_len);
  }
};

}  // namespace omniflash
