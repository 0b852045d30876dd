// The threads that copy queries, keys and values.
#pragma once

#include "sm90/copies.hpp"

namespace omniflash {

// Copies what the scheduler's messages name, in the order in which the consumers take it.
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
  OMNIFLASH_DEVICE void load_key(const Source& source, int tile, const Source::Place& place) {
    mbarrier_wait(shared.key_empty(key.slot), key.parity ^ 1);
    const Slot<KeyTile> to{shared.key(key.slot), shared.key_full(key.slot), shared.key_awaited(key.slot), key.parity};
    source.load_keys(to, hopper.k, tile, place);
    key.advance();
  }
  OMNIFLASH_DEVICE void load_value(const Source& source, int tile, const Source::Place& place) {
    mbarrier_wait(shared.value_empty(value.slot), value.parity ^ 1);
    const Slot<ValueTile> to{shared.value(value.slot), shared.value_full(value.slot), shared.value_awaited(value.slot),
                             value.parity};
    source.load_values(to, hopper.v, tile, place);
    value.advance();
  }

  // Copies all of one tile of rows, in the order in which the consumers take it.
  OMNIFLASH_DEVICE void produce(const Message& first) {
    const Work& work = first.work;
    const RowTile tile_of_rows(parameters, work, first.sequence, kBlockM);
    const int head = quotient(work.first_head, parameters.by_group_size);
    const RowsOfSequence q = query_rows(parameters, first.sequence, hopper.q_batch_rows);
    const Source source(parameters, hopper, first.sequence, head);
    KeyWindow window = first.window;
    // One Q tile alone is empty late: the first keys do not wait for it.
    if (kQueryTiles > 1 || window.present == 0) load_query(q, tile_of_rows);
    bool query_is_due = kQueryTiles == 1 && window.present != 0, has_wished = false;
    int behind = -1;  // the tile whose values are due
    Source::Place place_behind;
    while (true) {
      for (unsigned left = window.present; left != 0; left &= left - 1) {
        const int tile = window.first_tile - (__ffs(left) - 1);
        if (!has_wished && window.is_last && __popc(left) <= kTilesAhead) {
          has_wished = true;
          if (is_first()) mbarrier_arrive(shared.next_wanted());
        }
        const Source::Place place = source.find(tile);
        load_key(source, tile, place);
        if (query_is_due) load_query(q, tile_of_rows);
        query_is_due = false;
        if (behind >= 0) load_value(source, behind, place_behind);
        behind = tile;
        place_behind = place;
      }
      if (window.is_last) break;
      window = receive().window;
    }
    if (!has_wished && is_first()) mbarrier_arrive(shared.next_wanted());
    if (behind >= 0) load_value(source, behind, place_behind);
  }

  OMNIFLASH_DEVICE void run() {
    prefetch_tensor_map(hopper.q);
    prefetch_tensor_map(hopper.k);
    prefetch_tensor_map(hopper.v);
    prefetch_tensor_map(hopper.out);
    while (true) {
      const Message received = receive();
      if (received.work.row_tile < 0) break;
      produce(received);
    }
  }
};

}  // namespace omniflash
