// The thread that copies queries, keys and values.
#pragma once

#include "sm90/messages.hpp"
#include "sm90/rows.hpp"

namespace omniflash {

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
OMNIFLASH_DEVICE void load_tile_in_pair(const Tile& tile, const TensorMap& map, unsigned full, unsigned awaited,
                                        unsigned parity, const RowsOfSequence& rows, int first_row, int head) {
  static_assert(kSlabs > 1, "each block copies a part of every tile, or one could be told of two empty slots at once");
  const int block = block_index_x() % 2;
  mbarrier_arrive_expecting(full, kSlabs * Tile::kSlabBytes);
  mbarrier_arrive_cluster(cluster_address(awaited, block ^ 1));
  mbarrier_wait(awaited, parity);
  const int first = (first_row / kBlockN + block) % 2;
#pragma unroll
  for (int i = 0; i < (kSlabs + 1) / 2; ++i) {
    const int slab = 2 * i + first;
    if (kSlabs % 2 == 1 && slab >= kSlabs) break;
    const int at[5] = {slab * kSlabColumns, 0, rows.row(first_row), rows.shift(), head};
    load_box_to_all(tile.slab(slab), map, full, at, kEvictLast, 0b11);
  }
}

// Copies what the scheduler's messages name, in the order in which the consumers take it.
struct Producer {
  const AttentionParameters& parameters;
  const HopperParameters& hopper;
  SharedMemory shared;
  RingPosition<kQueryTiles> query;
  RingPosition<kSlots> key, value;
  RingPosition<kMessages> message;

  OMNIFLASH_DEVICE Message receive() {
    mbarrier_wait(shared.message_full(message.slot), message.parity);
    const Message received = Message::read<false>(shared.message(message.slot));
    mbarrier_arrive(shared.message_empty(message.slot));
    message.advance();
    return received;
  }
  OMNIFLASH_DEVICE void load_query(const RowsOfSequence& rows, const RowTile& tile) {
    mbarrier_wait(shared.query_empty(query.slot), query.parity ^ 1);
    load_tile<kHeadSlabs>(shared.query(query.slot), hopper.q, shared.query_full(query.slot), rows,
                          tile.query(tile.first_row), quotient(tile.first_head, tile.by_heads), kEvictFirst);
    query.advance();
  }
  OMNIFLASH_DEVICE void load_key(const RowsOfSequence& rows, int tile, int head) {
    mbarrier_wait(shared.key_empty(key.slot), key.parity ^ 1);
    if constexpr (kHasPairs) {
      load_tile_in_pair<kHeadSlabs>(shared.key(key.slot), hopper.k, shared.key_full(key.slot),
                                    shared.key_awaited(key.slot), key.parity, rows, tile * kBlockN, head);
    } else {
      load_tile<kHeadSlabs>(shared.key(key.slot), hopper.k, shared.key_full(key.slot), rows, tile * kBlockN, head,
                            kEvictLast);
    }
    key.advance();
  }
  OMNIFLASH_DEVICE void load_value(const RowsOfSequence& rows, int tile, int head) {
    mbarrier_wait(shared.value_empty(value.slot), value.parity ^ 1);
    if constexpr (kHasPairs) {
      load_tile_in_pair<kValueSlabs>(shared.value(value.slot), hopper.v, shared.value_full(value.slot),
                                     shared.value_awaited(value.slot), value.parity, rows, tile * kBlockN, head);
    } else {
      load_tile<kValueSlabs>(shared.value(value.slot), hopper.v, shared.value_full(value.slot), rows, tile * kBlockN,
                             head, kEvictLast);
    }
    value.advance();
  }

  // Copies all of one tile of rows, in the order in which the consumers take it.
  OMNIFLASH_DEVICE void produce(const Message& first) {
    const Work& work = first.work;
    const RowTile tile_of_rows(parameters, work, first.sequence, kBlockM);
    const int head = quotient(work.first_head, parameters.by_group_size);
    const RowsOfSequence q = query_rows(parameters, first.sequence, hopper.q_batch_rows);
    const RowsOfSequence k = key_rows(parameters, first.sequence, hopper.k_batch_rows);
    const RowsOfSequence v = key_rows(parameters, first.sequence, hopper.v_batch_rows);
    KeyWindow window = first.window;
    // One Q tile alone is empty late: the first keys do not wait for it.
    if (kQueryTiles > 1 || window.present == 0) load_query(q, tile_of_rows);
    bool query_is_due = kQueryTiles == 1 && window.present != 0, has_wished = false;
    int behind = -1;  // the tile whose values are due
    while (true) {
      for (unsigned left = window.present; left != 0; left &= left - 1) {
        const int tile = window.first_tile - (__ffs(left) - 1);
        if (!has_wished && window.is_last && __popc(left) <= kTilesAhead) {
          has_wished = true;
          mbarrier_arrive(shared.next_wanted());
        }
        load_key(k, tile, head);
        if (query_is_due) load_query(q, tile_of_rows);
        query_is_due = false;
        if (behind >= 0) load_value(v, behind, head);
        behind = tile;
      }
      if (window.is_last) break;
      window = receive().window;
    }
    if (!has_wished) mbarrier_arrive(shared.next_wanted());
    if (behind >= 0) load_value(v, behind, head);
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
