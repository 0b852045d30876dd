// Copies of whole tiles into shared memory, from rows that lie at one stride and from pages.
#pragma once

#include "sm90/messages.hpp"
#include "sm90/rows.hpp"

namespace omniflash {

// A place for a tile: the barrier that its bytes are counted by and, in a pair, the one that says that both places are empty.
template <class Tile>
struct Slot {
  Tile tile;
  unsigned full, awaited, parity;
};

// A tile of rows that lie at one stride: a box for each slab.
template <int kSlabs, class Tile>
OMNIFLASH_DEVICE void load_tile(const Tile& tile, const TensorMap& map, unsigned full, const RowsOfSequence& rows,
                                int first_row, int head, unsigned long long cache_policy) {
  mbarrier_arrive_expecting(full, kSlabs * Tile::kSlabBytes);
#pragma unroll
  for (int i = 0; i < kSlabs; ++i) {
    const int at[5] = {i * kSlabColumns, 0, rows.row(first_row), rows.shift(), head};
    load_box(tile.slab(i), map, full, at, cache_policy);
  }
}

// A tile that both blocks of a pair read, into the same place of each: half of its slabs by one, half by the other, in turn where
// their number is odd. Nobody copies before both places are empty.
template <int kSlabs, class Tile>
OMNIFLASH_DEVICE void load_tile_in_pair(const Slot<Tile>& slot, const TensorMap& map, const RowsOfSequence& rows,
                                        int first_row, int head) {
  static_assert(kSlabs > 1, "each block copies a part of every tile, or one could be told of two empty slots at once");
  const int block = block_index_x() % 2;
  mbarrier_arrive_expecting(slot.full, kSlabs * Tile::kSlabBytes);
  mbarrier_arrive_cluster(cluster_address(slot.awaited, block ^ 1));
  mbarrier_wait(slot.awaited, slot.parity);
  const int first = (first_row / kBlockN + block) % 2;
#pragma unroll
  for (int i = 0; i < (kSlabs + 1) / 2; ++i) {
    const int slab = 2 * i + first;
    if (kSlabs % 2 == 1 && slab >= kSlabs) break;
    const int at[5] = {slab * kSlabColumns, 0, rows.row(first_row), rows.shift(), head};
    load_box_to_all(slot.tile.slab(slab), map, slot.full, at, kEvictLast, 0b11);
  }
}

// Where the tiles of keys and values of a sequence lie, and how they are copied.
template <class Keys>
struct KeySource;

// At one stride: one thread asks for everything.
template <>
struct KeySource<StridedKeys> {
  struct Place {};
  RowsOfSequence k, v;
  int head;

  OMNIFLASH_DEVICE KeySource(const AttentionParameters& parameters, const HopperParameters& hopper,
                             const Sequence& sequence, int head)
      : k(key_rows(parameters, sequence, hopper.k_batch_rows)),
        v(key_rows(parameters, sequence, hopper.v_batch_rows)),
        head(head) {}
  OMNIFLASH_DEVICE Place find(int /*tile*/) const { return {}; }
  OMNIFLASH_DEVICE void load_keys(const Slot<KeyTile>& to, const TensorMap& map, int tile, const Place&) const {
    load<kHeadSlabs>(to, map, k, tile);
  }
  OMNIFLASH_DEVICE void load_values(const Slot<ValueTile>& to, const TensorMap& map, int tile, const Place&) const {
    load<kValueSlabs>(to, map, v, tile);
  }

 private:
  template <int kSlabs, class Tile>
  OMNIFLASH_DEVICE void load(const Slot<Tile>& to, const TensorMap& map, const RowsOfSequence& rows, int tile) const {
    if constexpr (kHasPairs) {
      load_tile_in_pair<kSlabs>(to, map, rows, tile * kBlockN, head);
    } else {
      load_tile<kSlabs>(to.tile, map, to.full, rows, tile * kBlockN, head, kEvictLast);
    }
  }
};

// In pages: a box for each slab of as many rows as lie in one page, whatever the tile. A warp asks for them, each lane for those of
// its own page. The axis of rows ends with the sequence, as that of RowsOfSequence does, and what lies behind it in its last page
// comes as zeros. Boxes of which no row exists are not asked for (an H200 reported illegal addresses for some): the lanes write
// zeros in their place.
template <>
struct KeySource<PagedKeys> {
  struct Place {
    int page, row;
  };
  const AttentionParameters& parameters;
  int batch, box_rows, kv_len, head;

  OMNIFLASH_DEVICE KeySource(const AttentionParameters& parameters, const HopperParameters& hopper,
                             const Sequence& sequence, int head)
      : parameters(parameters),
        batch(sequence.batch),
        box_rows(hopper.box_rows),
        kv_len(sequence.kv_len),
        head(head) {}
  // Where this lane's boxes of a tile lie: read from memory, so before a slot is waited for.
  OMNIFLASH_DEVICE Place find(int tile) const {
    const int key = tile * kBlockN + lane_index() * box_rows;
    if (key >= kv_len) return {0, 0};
    const Table& table = parameters.block_table;
    const int index = quotient(key, parameters.by_page_size);
    const int page = static_cast<const int*>(table.data)[batch * table.row_stride + index * table.column_stride];
    return {page, key - index * static_cast<int>(parameters.page_size)};
  }
  OMNIFLASH_DEVICE void load_keys(const Slot<KeyTile>& to, const TensorMap& map, int tile, const Place& place) const {
    load<kHeadSlabs>(to, map, tile, place);
  }
  OMNIFLASH_DEVICE void load_values(const Slot<ValueTile>& to, const TensorMap& map, int tile, const Place& place) const {
    load<kValueSlabs>(to, map, tile, place);
  }

 private:
  template <int kSlabs, class Tile>
  OMNIFLASH_DEVICE void load(const Slot<Tile>& to, const TensorMap& map, int tile, const Place& place) const {
    const int left = kv_len - tile * kBlockN;
    int num_rows = kBlockN;
    if (left < kBlockN) {
      num_rows = ceil_divide(left, box_rows) * box_rows;
      clear<kSlabs>(to.tile, num_rows);
    }
    if (elect_lane()) mbarrier_arrive_expecting(to.full, kSlabs * num_rows * kSlabRowBytes);
    const int first_row = lane_index() * box_rows;
    if (first_row < num_rows) {
      const int page_size = parameters.page_size;
      const int length = minimum(left - first_row + place.row, page_size);  // keys of the sequence in the page
#pragma unroll
      for (int slab = 0; slab < kSlabs; ++slab) {
        const int at[5] = {slab * kSlabColumns, place.page, page_size - length + place.row, length, head};
        load_box(to.tile.slab(slab) + first_row * kSlabRowBytes, map, to.full, at, kEvictLast);
      }
    }
    warp_barrier();
  }
  template <int kSlabs, class Tile>
  OMNIFLASH_DEVICE static void clear(const Tile& tile, int first_row) {
    const unsigned zeros[4] = {};
#pragma unroll 1
    for (unsigned byte = first_row * kSlabRowBytes + 16 * lane_index(); byte < Tile::kSlabBytes; byte += 16 * 32) {
#pragma unroll
      for (int slab = 0; slab < kSlabs; ++slab) store_shared_16(tile.slab(slab) + byte, zeros);
    }
    fence_async_proxy();
    warp_barrier();
  }
};

}  // namespace omniflash
