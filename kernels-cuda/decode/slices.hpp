// Where the slices of a warp lie, and which come next.
#pragma once

#include "decode/block.hpp"

namespace omniflash {

OMNIFLASH_DEVICE int first_key_of(int tile) { return tile * kBlockN + warp_index() * kSlice; }

// Where one slice of keys or of values lies, in elements from the tensor's first, with the stride between its vectors.
struct Vectors {
  long long first, stride;
};

// The first tile of this block from `tile` on: the blocks of a cluster take tiles in turns.
OMNIFLASH_DEVICE int first_of_block(int tile) { return tile + (block_rank() + kStep - tile % kStep) % kStep; }

// Whether the pages of many slices are read at a time. Where lanes make addresses of them and go from item to item, that
// costs more than it saves.
constexpr bool kReadsMany = kWarps > 4 || kWholeItems || kBoxes;

// What a segment begins with: a tile of an item, and how long its sequence is. Without one the batch is -1.
struct Start {
  int batch = -1, head_tile = 0, tile = 0, kv_len = 0;
};

// What a warp asks of the page table before it knows any length: pages of the tiles that a segment may begin with.
template <class Keys>
struct FirstPages {
  FirstPages() = default;
  OMNIFLASH_DEVICE FirstPages(const AttentionParameters&, int /*batch*/, int /*tile*/) {}
  OMNIFLASH_DEVICE FirstPages of(int /*batch*/) const { return {}; }
};

template <>
struct FirstPages<PagedKeys> {
  int batch = 0, tile = 0;
  unsigned num_read = 0;
  int pages = 0;  // of this warp's slices of 32 tiles of the block from `tile` on, one a lane
  int in_page = 0;  // where in its page the lane's slice begins

  FirstPages() = default;
  // Entries that the table has are read, also those past a sequence's end: which these are is not known.
  OMNIFLASH_DEVICE FirstPages(const AttentionParameters& parameters, int batch, int tile) : batch(batch), tile(tile) {
    if constexpr (kReadsMany) {
      const int j = first_key_of(tile + lane_index() * kStep), index = quotient(j, parameters.by_page_size);
      const Table& table = parameters.block_table;
      num_read = 32;
      in_page = j - index * static_cast<int>(parameters.page_size);
      if (j < static_cast<int>(parameters.seqlen_k)) {
        pages = static_cast<const int*>(table.data)[batch * table.row_stride + index * table.column_stride];
      }
    }
  }
  // These, if they are of that sequence.
  OMNIFLASH_DEVICE FirstPages of(int batch) const { return batch == this->batch ? *this : FirstPages(); }
};

// Where the slices of a warp are found. In pages the table is read one slice before it is needed, or many.
template <class Keys>
struct Slices;

template <>
struct Slices<StridedKeys> {
  const StridedKeys& keys;
  int first_key;

  OMNIFLASH_DEVICE Slices(const StridedKeys& keys, const FirstPages<StridedKeys>&) : keys(keys), first_key(0) {}
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
  int page, in_page;  // of the slice, or where slices cross pages of the key first + lane % 16
  // Pages of this warp's slices of its tiles from `at` on, a tile a lane, and of 32 more, and how many of both are read.
  int pages, later = 0, at;
  unsigned num_read;

  OMNIFLASH_DEVICE Slices(const PagedKeys& keys, const FirstPages<PagedKeys>& first)
      : keys(keys), page(0), in_page(0), pages(first.pages), at(first.tile), num_read(first.num_read) {}

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
  OMNIFLASH_DEVICE int index_of(int j) const { return quotient(j, keys.by_page_size); }
  OMNIFLASH_DEVICE int read(int j, int kv_len) const {
    return j < kv_len ? keys.table[index_of(j) * keys.table_stride] : 0;
  }
  // A copy waits for the table once in 32 tiles at most: the next ones are asked for long before.
  OMNIFLASH_DEVICE int page_of_slice(int first, int kv_len) {
    constexpr int kApart = kStep * kBlockN;  // keys from a tile of this block to the next
    unsigned ahead = static_cast<unsigned>(first / kBlockN - at) / kStep;
    if (ahead >= minimum(num_read, 32u)) {
      if (ahead < num_read) {
        pages = later;
        at += 32 * kStep;
        ahead -= 32;
      } else {
        pages = read(first + lane_index() * kApart, kv_len);
        at = first / kBlockN;
        ahead = 0;
      }
      num_read = 32;
    }
    if (num_read == 32) {
      later = read(first + (32 - static_cast<int>(ahead) + lane_index()) * kApart, kv_len);
      num_read = 64;
    }
    return static_cast<int>(from_lane(static_cast<unsigned>(pages), static_cast<int>(ahead)));
  }
};

OMNIFLASH_DEVICE int next_turn(int slot) { return slot == kSlots - kSlicesOfTurn ? 0 : slot + kSlicesOfTurn; }

// Which slices of a warp come next, in the order of tiles.
struct Ahead {
  const Block& block;
  Tiles tiles;  // of the segment
  Slices<Keys> slices;
  int tile;

  // The first tiles of the segment may be asked for already.
  OMNIFLASH_DEVICE Ahead(const Block& block, const Keys& keys, const Tiles& tiles, const FirstPages<Keys>& pages, int begun)
      : block(block), tiles(tiles), slices(keys, pages) {
    advance(tiles.begin + begun * kStep);
  }
  OMNIFLASH_DEVICE bool is_any() const { return tile < tiles.end; }
  OMNIFLASH_DEVICE int first_key() const { return first_key_of(tile); }
  OMNIFLASH_DEVICE void advance(int from) {
    TileStatus status;
    tile = tiles.next(from, status, kStep);
    if (is_any()) slices.look_up(first_key(), block.sequence.kv_len);
  }
};

}  // namespace omniflash
