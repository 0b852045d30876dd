// Slices that the lanes of a warp copy themselves, from any strides and pages.
#pragma once

#include "decode/slices.hpp"

namespace omniflash {

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

// A warp copies as far ahead as there are slots: keys and values of a
// tile at a time, or where turns have one slice its keys and then its values.
struct LaneCopies {
  struct Pipeline;
  static constexpr bool kBegins = false, kBeginsNext = false;
  OMNIFLASH_DEVICE void prepare() const {}
  OMNIFLASH_DEVICE void drop() const {}
  // Other writes to shared memory come before the copies that a thread makes after them.
  OMNIFLASH_DEVICE void order_writes() const {}
  OMNIFLASH_DEVICE static void scores(Scores& s, const KeySlice& keys) { Product::scores(s, query_tile(), 0, keys); }
};

struct LaneCopies::Pipeline {
  const Block& block;
  const Keys& keys;
  unsigned long long policy;
  Ahead ahead;
  int to_fill = 0, slot = 0;

  OMNIFLASH_DEVICE Pipeline(LaneCopies&, const Block& block, const Keys& keys, const Tiles& tiles,
                            const FirstPages<Keys>& pages, unsigned long long policy)
      : block(block), keys(keys), policy(policy), ahead(block, keys, tiles, pages, 0) {}
  OMNIFLASH_DEVICE int begun() const { return 0; }

  OMNIFLASH_DEVICE void copy(bool is_value) {
    if (ahead.is_any()) {
      if (ahead.slices.is_strided()) {
        fill_turn<false>(is_value);
      } else {
        fill_turn<true>(is_value);
      }
      if (kSlicesOfTurn == 2 || is_value) ahead.advance(ahead.tile + kStep);
    }
    to_fill = next_turn(to_fill);
  }
  // The oldest turn's slices have landed, and with the first all warps' shares of the queries.
  OMNIFLASH_DEVICE void settle(bool is_first) const {
    copy_wait<kTurnsAhead - 1>();
    if (is_first) {
      barrier();
    } else {
      warp_barrier();
    }
  }
  OMNIFLASH_DEVICE void land() const {}
  // Rows from the sequence's end on are zeros, whatever lies there.
  OMNIFLASH_DEVICE void clear_missing(const ValueSlice&, int) const {}
  // All lanes have left the slots.
  OMNIFLASH_DEVICE void release(bool) {
    warp_barrier();
    slot = next_turn(slot);
  }
  OMNIFLASH_DEVICE void finish() const { copy_wait<0>(); }

 private:
  template <bool kGather>
  OMNIFLASH_DEVICE void fill_turn(bool is_value) {
    if constexpr (kSlicesOfTurn == 2) {
      fill<kGather, KeySlice>(to_fill, false);
      fill<kGather, ValueSlice>(to_fill + 1, true);
    } else if constexpr (kHeadDim == kValueDim) {
      fill<kGather, KeySlice>(to_fill, is_value);
    } else if (is_value) {
      fill<kGather, ValueSlice>(to_fill, true);
    } else {
      fill<kGather, KeySlice>(to_fill, false);
    }
  }
  template <bool kGather, class Rows>
  OMNIFLASH_DEVICE void fill(int slot, bool is_value) {
    const Rows slice{slot_address(slot)};
    const void* data = is_value ? keys.v : keys.k;
    const int columns = static_cast<int>(is_value ? block.parameters.value_dim : block.parameters.head_dim);
    const int num_valid = block.sequence.kv_len - ahead.first_key();
    if constexpr (kGather) {
      fill_slice<true>(slice, data, ahead.slices.mine(), 0, is_value ? kSlice : 0, columns, num_valid, policy);
    } else {
      const Vectors vectors = ahead.slices.vectors(is_value);
      fill_slice<false>(slice, data, vectors.first, vectors.stride, 0, columns, num_valid, policy);
    }
  }
};

}  // namespace omniflash
