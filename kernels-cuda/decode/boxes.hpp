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

// Where a slice lies in the maps: the row of its first key, in what the fourth axis counts.
struct Place {
  int row, outer;
};
template <class Keys>
struct Places;

template <>
struct Places<StridedKeys> {
  int first, outer;

  // Of the sequence that is named.
  OMNIFLASH_DEVICE Places(const AttentionParameters& parameters, const Start& start) : first(0), outer(start.batch) {
    const auto form = static_cast<KeyForm>(parameters.key_form);
    if (form == KeyForm::Ragged) {
      first = index_at(parameters.key_lengths, start.batch);
      outer = 0;
    }
    if (form == KeyForm::Continuous && start.kv_len > 0) {
      const Table& table = parameters.block_table;
      outer = static_cast<const int*>(table.data)[start.batch * table.row_stride];
    }
  }
  OMNIFLASH_DEVICE Place of(const Slices<StridedKeys>& slices) const { return {first + slices.first_key, outer}; }
  // Of a segment's tile that is so many after the first.
  OMNIFLASH_DEVICE Place of(const FirstPages<StridedKeys>&, int first_key, int /*tile*/) const {
    return {first + first_key, outer};
  }
};

template <>
struct Places<PagedKeys> {
  OMNIFLASH_DEVICE Places(const AttentionParameters&, const Start&) {}
  OMNIFLASH_DEVICE Place of(const Slices<PagedKeys>& slices) const { return {slices.in_page, slices.page}; }
  OMNIFLASH_DEVICE Place of(const FirstPages<PagedKeys>& pages, int /*first_key*/, int tile) const {
    return {static_cast<int>(from_lane(static_cast<unsigned>(pages.in_page), tile)),
            static_cast<int>(from_lane(static_cast<unsigned>(pages.pages), tile))};
  }
};

// The barriers of a warp lie behind all else, one a turn. They live as long as the kernel, and so does where the warp is in
// its ring of slots.
struct BoxCopies {
  struct Pipeline;
  // Tiles that are asked for before the segment begins that they are of: the first of a whole item, as soon as its length and
  // page are there, and of a line before items are counted where lengths are all the same; the next segment's of a line before
  // this one's sums are joined, which may lie over the slots of the first turn then. Not under masks that may leave a tile out.
  static constexpr int kTilesOfStart = kWholeItems ? 1 : (kTurnsAhead - 1) * kSlicesOfTurn / 2;
  static constexpr bool kSumsFit = kStates + 8 * kWarps * kBlockM <= kQueryBytes + kSlicesOfTurn * kWarps * kSlotBytes;
  static constexpr bool kBegins = kWholeItems && sees_every_tile<MaskType>;
  static constexpr bool kBeginsNext = !kWholeItems && kCluster == 1 && kSumsFit && sees_every_tile<MaskType>;
  const KeyMaps& maps;
  Start start;
  int num_begun = 0;  // tiles
  int slot = 0;
  unsigned phases = 0;  // of each turn, the parity of the phase that comes next

  OMNIFLASH_DEVICE explicit BoxCopies(const KeyMaps& maps) : maps(maps) {}

  OMNIFLASH_DEVICE void prepare() const {
    if (elect_lane()) {
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
  OMNIFLASH_DEVICE unsigned parity() const { return phases >> slot / kSlicesOfTurn & 1; }
  OMNIFLASH_DEVICE void pass() {
    phases ^= 1u << slot / kSlicesOfTurn;
    slot = next_turn(slot);
  }
  // Asks for the first tiles of a segment, which has as many: a lane for each, or where it is one, one lane.
  OMNIFLASH_DEVICE void begin(const AttentionParameters& parameters, const Start& start, int tiles,
                              const FirstPages<Keys>& pages, unsigned long long policy) {
    this->start = start;
    num_begun = tiles;
    slot = kSlicesOfTurn;
    const Places<Keys> places(parameters, start);
    const int key_head = key_head_of(parameters, start.head_tile);
    const int tile = kTilesOfStart == 1 ? 0 : lane_index(), to = slot + 2 * tile;
    const int first_key = first_key_of(start.tile + tile * kStep);
    const Place place = places.of(pages, first_key, tile);
    const bool is_there = first_key < start.kv_len;
    if (kTilesOfStart == 1 ? elect_lane() : tile < tiles) {
      ask(to, is_there, true, kSlicesOfTurn == 2, key_head, place, policy);
      if (kSlicesOfTurn == 1) ask(to + 1, is_there, false, true, key_head, place, policy);
    }
  }
  // Of the tiles of a segment, how many are asked for already. What was asked for in vain lands before its slots are used.
  OMNIFLASH_DEVICE int take(const Block& block, const Tiles& tiles) {
    const bool is_it = start.batch == block.sequence.batch && start.head_tile == block.head_tile &&
                       start.tile == tiles.begin && tiles.begin + (num_begun - 1) * kStep < tiles.end;
    if (!is_it) drop();
    const int tiles_begun = num_begun;
    num_begun = 0;
    return tiles_begun;
  }
  OMNIFLASH_DEVICE void drop() {
#pragma unroll 1
    for (; num_begun > 0; --num_begun) {
#pragma unroll
      for (int turn = 0; turn < 2 / kSlicesOfTurn; ++turn) {
        mbarrier_wait(full(slot), parity());
        pass();
      }
    }
  }
  // One lane asks for the slices of a turn. Keys past the end have no page, and are not asked for.
  OMNIFLASH_DEVICE void ask(int slot, bool is_there, bool of_keys, bool of_values, int key_head, const Place& place,
                            unsigned long long policy) const {
    constexpr unsigned kKeyBytes = KeySlice::Slabs::kBytes, kValueBytes = ValueSlice::Slabs::kBytes;
    const unsigned bytes = (of_keys ? kKeyBytes : 0) + (of_values ? kValueBytes : 0);
    mbarrier_arrive_expecting(full(slot), is_there ? bytes : 0);
    if (!is_there) return;
    const int at[5] = {0, key_head, place.row, place.outer, 0};
    if (of_keys) load_box(slot_address(slot), maps.k, full(slot), at, policy);
    if (of_values) load_box(slot_address(slot + kSlicesOfTurn - 1), maps.v, full(slot), at, policy);
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
  int tiles_begun;
  Ahead ahead;
  Places<Keys> places;
  int key_head, to_fill, slot;

  OMNIFLASH_DEVICE Pipeline(BoxCopies& copies, const Block& block, const Keys& keys, const Tiles& tiles,
                            const FirstPages<Keys>& pages, unsigned long long policy)
      : copies(copies),
        block(block),
        policy(policy),
        tiles_begun(kBegins || kBeginsNext ? copies.take(block, tiles) : 0),
        ahead(block, keys, tiles, pages, tiles_begun),
        places(block.parameters, Start{block.sequence.batch, 0, 0, block.sequence.kv_len}),
        key_head(block.key_head()),
        to_fill((copies.slot + 2 * tiles_begun) % kSlots),
        slot(copies.slot) {}

  // Turns of the segment that are under way already.
  OMNIFLASH_DEVICE int begun() const { return 2 / kSlicesOfTurn * tiles_begun; }
  OMNIFLASH_DEVICE void copy(bool is_value) {
    if (!ahead.is_any()) return;
    if (elect_lane()) {
      copies.ask(to_fill, ahead.first_key() < block.sequence.kv_len, kSlicesOfTurn == 2 || !is_value,
                 kSlicesOfTurn == 2 || is_value, key_head, places.of(ahead.slices), policy);
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
  OMNIFLASH_DEVICE void land() const { mbarrier_wait(full(slot), copies.parity()); }
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
    copies.pass();
    slot = copies.slot;
  }
  OMNIFLASH_DEVICE void finish() const {}
};

}  // namespace omniflash
