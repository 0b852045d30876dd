// The threads that copy queries, keys and values.
#pragma once

#include "sm90/copies.hpp"

namespace omniflash {

// Copies what the scheduler's messages name, in the order in which the consumers take it: queries and keys, values, or all of it.
template <bool kCopiesKeys, bool kCopiesValues>
struct Producer {
  using Source = KeySource<Keys>;
  const AttentionParameters& parameters;
  const HopperParameters& hopper;
  SharedMemory shared;
  RingPosition<kQueryTiles> query;
  RingPosition<kSlots> key, value;
  RingPosition<kMessages> message;

  // All lanes of the warp, or one alone, which has then no other to wait for.
  static constexpr bool kIsWarp = kProducerLanes > 1;
  OMNIFLASH_DEVICE static bool is_first() { return !kIsWarp || lane_index() == 0; }

  OMNIFLASH_DEVICE Message receive() {
    mbarrier_wait(shared.message_full(message.slot), message.parity);
    const Message received = Message::read<kIsWarp>(shared.message(message.slot));
    mbarrier_arrive(shared.message_empty(message.slot));
    message.advance();
    return received;
  }
  OMNIFLASH_DEVICE void load_query(const RowsOfSequence& rows, const RowTile& tile) {
    mbarrier_wait(shared.query_empty(query.slot), query.parity ^ 1);
    if (is_first()) {
      load_tile<kHeadSlabs>(shared.query(query.slot), hopper.q, shared.query_full(query.slot), rows,
                            tile.query(tile.first_row), quotient(tile.first_head, tile.by_heads), kEvictFirst);
    }
    query.advance();
  }
  OMNIFLASH_DEVICE void load_key(const Source& source, int tile) {
    const Source::Place place = source.find(tile);
    mbarrier_wait(shared.key_empty(key.slot), key.parity ^ 1);
    const Slot<KeyTile> to{shared.key(key.slot), shared.key_full(key.slot), shared.key_awaited(key.slot), key.parity};
    source.load_keys(to, hopper.k, tile, place);
    key.advance();
  }
  OMNIFLASH_DEVICE void load_value(const Source& source, int tile) {
    const Source::Place place = source.find(tile);
    mbarrier_wait(shared.value_empty(value.slot), value.parity ^ 1);
    const Slot<ValueTile> to{shared.value(value.slot), shared.value_full(value.slot), shared.value_awaited(value.slot),
                             value.parity};
    source.load_values(to, hopper.v, tile, place);
    value.advance();
  }

  // Copies all of one tile of rows, in the order in which the consumers take it: values a tile behind the keys.
  OMNIFLASH_DEVICE void produce(const Message& first) {
    const Work& work = first.work;
    const RowTile tile_of_rows(parameters, work, first.sequence, kBlockM);
    const int head = quotient(work.first_head, parameters.by_group_size);
    const RowsOfSequence q = query_rows(parameters, first.sequence, hopper.q_batch_rows);
    const Source source(parameters, hopper, first.sequence, head);
    KeyWindow window = first.window;
    // One Q tile alone is empty late: the first keys do not wait for it.
    bool query_is_due = kCopiesKeys;
    if (query_is_due && (kQueryTiles > 1 || window.present == 0)) {
      load_query(q, tile_of_rows);
      query_is_due = false;
    }
    bool has_wished = !kCopiesKeys;
    int behind = -1;  // the tile whose values are due
    while (true) {
      for (unsigned left = window.present; left != 0; left &= left - 1) {
        const int tile = window.first_tile - (__ffs(left) - 1);
        if (!has_wished && window.is_last && __popc(left) <= kTilesAhead) wish(has_wished);
        if constexpr (kCopiesKeys) load_key(source, tile);
        if (query_is_due) load_query(q, tile_of_rows);
        query_is_due = false;
        if constexpr (kCopiesKeys && kCopiesValues) {
          if (behind >= 0) load_value(source, behind);
          behind = tile;
        } else if constexpr (kCopiesValues) {
          load_value(source, tile);
        }
      }
      if (window.is_last) break;
      window = receive().window;
    }
    if (!has_wished) wish(has_wished);
    if (behind >= 0) load_value(source, behind);
  }

  // Asks for the rows after these.
  OMNIFLASH_DEVICE void wish(bool& has_wished) const {
    has_wished = true;
    if (is_first()) mbarrier_arrive(shared.next_wanted());
  }

  OMNIFLASH_DEVICE void run() {
    if constexpr (kCopiesKeys) {
      prefetch_tensor_map(hopper.q);
      prefetch_tensor_map(hopper.k);
    }
    if constexpr (kCopiesValues) {
      prefetch_tensor_map(hopper.v);
      prefetch_tensor_map(hopper.out);
    }
    while (true) {
      const Message received = receive();
      if (received.work.row_tile < 0) break;
      produce(received);
    }
  }
};

}  // namespace omniflash
