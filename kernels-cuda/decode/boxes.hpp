// Slices as boxes of tensor maps, sm_90: one lane of a warp asks for a slice, and the copy engine does the rest. It reads
// memory faster than copies of lanes do, and finds rows of pages by itself.
#pragma once

#include "decode/slices.hpp"
#include "sm90/mbarrier.hpp"
#include "sm90/tma.hpp"

namespace omniflash {

// What the launch adds: maps of keys and values, (column of a slab, head, row, sequence or block or page, slab), boxes of
// kSlice rows of all slabs.
struct KeyMaps {
  TensorMap k, v;
};

// Where the slices of a warp lie in the maps: the row of the first key, in what the fourth axis counts.
template <class Keys>
struct Places;

template <>
struct Places<StridedKeys> {
  int first, outer;

  OMNIFLASH_DEVICE Places(const AttentionParameters& parameters, const Sequence& sequence) : first(0), outer(sequence.batch) {
    const auto form = static_cast<KeyForm>(parameters.key_form);
    if (form == KeyForm::Ragged) {
      first = index_at(parameters.key_lengths, sequence.batch);
      outer = 0;
    }
    if (form == KeyForm::Continuous && sequence.kv_len > 0) {
      const Table& table = parameters.block_table;
      outer = static_cast<const int*>(table.data)[sequence.batch * table.row_stride];
    }
  }
  OMNIFLASH_DEVICE int row(const Slices<StridedKeys>& slices) const { return first + slices.first_key; }
  OMNIFLASH_DEVICE int block(const Slices<StridedKeys>&) const { return outer; }
};

template <>
struct Places<PagedKeys> {
  OMNIFLASH_DEVICE Places(const AttentionParameters&, const Sequence&) {}
  OMNIFLASH_DEVICE int row(const Slices<PagedKeys>& slices) const { return slices.in_page; }
  OMNIFLASH_DEVICE int block(const Slices<PagedKeys>& slices) const { return slices.page; }
};

// The barriers of a warp lie behind all else, one a turn. They live as long as the kernel, and so does where the warp is in
// its ring of slots.
struct BoxCopies {
  struct Pipeline;
  const KeyMaps& maps;
  int slot = 0;
  unsigned parity = 0;

  OMNIFLASH_DEVICE explicit BoxCopies(const KeyMaps& maps) : maps(maps) {
    if (lane_index() == 0) {
      prefetch_tensor_map(maps.k);
      prefetch_tensor_map(maps.v);
#pragma unroll
      for (int turn = 0; turn < kTurnsAhead; ++turn) mbarrier_init(full(turn * kSlicesOfTurn), 1);
      mbarrier_init_fence();
    }
    warp_barrier();
  }
  OMNIFLASH_DEVICE static unsigned full(int slot) {
    return shared_memory() + kReceived + kReceivedBytes + 8 * (warp_index() * kTurnsAhead + slot / kSlicesOfTurn);
  }
  // The copy engine does not see by itself what threads have written to shared memory.
  OMNIFLASH_DEVICE void order_writes() const { fence_async_proxy(); }
  // Where lanes copy, two sums gained nothing; of 32 rows there are as many without.
  OMNIFLASH_DEVICE static void scores(Scores& s, const KeySlice& keys) {
    Product::scores<kFragments == 1 ? 2 : 1>(s, query_tile(), 0, keys);
  }
};

struct BoxCopies::Pipeline {
  BoxCopies& copies;
  const Block& block;
  unsigned long long policy;
  Ahead ahead;
  Places<Keys> places;
  int key_head, to_fill, slot;
  unsigned parity;

  OMNIFLASH_DEVICE Pipeline(BoxCopies& copies, const Block& block, const Keys& keys, const Tiles& tiles,
                            const FirstPages<Keys>& pages, unsigned long long policy)
      : copies(copies),
        block(block),
        policy(policy),
        ahead(block, keys, tiles, pages),
        places(block.parameters, block.sequence),
        key_head(block.key_head()),
        to_fill(copies.slot),
        slot(copies.slot),
        parity(copies.parity) {}

  // Keys past the end have no page, and are not asked for.
  OMNIFLASH_DEVICE void copy(bool is_value) {
    if (!ahead.is_any()) return;
    if (lane_index() == 0) {
      const bool is_there = ahead.first_key() < block.sequence.kv_len;
      constexpr unsigned kKeyBytes = KeySlice::Slabs::kBytes, kValueBytes = ValueSlice::Slabs::kBytes;
      const unsigned bytes = kSlicesOfTurn == 2 ? kKeyBytes + kValueBytes : is_value ? kValueBytes : kKeyBytes;
      mbarrier_arrive_expecting(full(to_fill), is_there ? bytes : 0);
      if (is_there) {
        if (kSlicesOfTurn == 2 || !is_value) load(copies.maps.k, to_fill);
        if (kSlicesOfTurn == 2 || is_value) load(copies.maps.v, to_fill + kSlicesOfTurn - 1);
      }
    }
    if (kSlicesOfTurn == 2 || is_value) ahead.advance(ahead.tile + kStep);
    to_fill = next_turn(to_fill);
  }
  // All warps' shares of the queries have landed.
  OMNIFLASH_DEVICE void settle(bool is_first) const {
    if (!is_first) return;
    copy_wait<0>();
    barrier();
  }
  OMNIFLASH_DEVICE void land() const { mbarrier_wait(full(slot), parity); }
  // What lies behind the sequence may be no number; that of keys is hidden, but nothing times NaN is NaN.
  OMNIFLASH_DEVICE void clear_missing(const ValueSlice& values, int num_valid) const {
    if (num_valid >= kSlice) return;
    const unsigned zeros[4] = {};
#pragma unroll 1
    for (int i = lane_index(); i < kSlice * ValueSlice::kChunks; i += 32) {
      const int row = i / ValueSlice::kChunks;
      if (row >= num_valid) store_shared_16(values.chunk(row, i % ValueSlice::kChunks), zeros);
    }
    warp_barrier();
  }
  OMNIFLASH_DEVICE void release(bool is_written) {
    if (is_written) fence_async_proxy();
    warp_barrier();
    slot = next_turn(slot);
    if (slot == 0) parity ^= 1;
  }
  OMNIFLASH_DEVICE void finish() const {
    copies.slot = slot;
    copies.parity = parity;
  }

 private:
  OMNIFLASH_DEVICE void load(const TensorMap& map, int slot) const {
    const int row = places.row(ahead.slices), outer = places.block(ahead.slices);
    load_box(slot_address(slot), map, full(to_fill), {0, key_head, row, outer, 0}, policy);
  }
};

}  // namespace omniflash
