// The warp that plans: takes tiles of rows and says which of their keys are to be copied and computed.
#pragma once

#include "sm90/messages.hpp"

namespace omniflash {

// The tiles of a ragged batch, whose sequences differ in length: those of long sequences first, and of one sequence after
// the other; not those of sequences that are left to another kernel. Each block walks once through the sequences, 32 at a time,
// as its numbers grow.
struct RaggedTiles {
  const AttentionParameters& parameters;
  int most, least;     // rows of the sequences that have their turn: least + 1 .. most
  unsigned first = 0;  // of the 32
  unsigned passed = 0; // tiles before them

  OMNIFLASH_DEVICE explicit RaggedTiles(const AttentionParameters& parameters)
      : parameters(parameters),
        most(parameters.seqlen_q),
        least(most / 2) {}

  // The whole warp finds tile `index`, if there is one; indices never fall.
  OMNIFLASH_DEVICE bool find(unsigned index, Work& work) {
    const unsigned head_tiles = parameters.head_tiles;
    for (; most > 0; most = least, least = most / 8) {
      for (; first < parameters.batch; first += 32) {
        const unsigned batch = first + lane_index();
        int rows = 0;
        if (batch < parameters.batch) rows = Sequence(parameters, batch).q_len;
        if (rows <= least || rows > most || rows < static_cast<int>(parameters.least_q_len)) rows = 0;
        const unsigned row_tiles = ceil_divide(rows * static_cast<int>(parameters.heads_per_tile), kBlockM);
        unsigned end = row_tiles * head_tiles;
#pragma unroll
        for (int other = 1; other < 32; other *= 2) {
          const unsigned before = __shfl_up_sync(~0u, end, other);
          if (lane_index() >= other) end += before;
        }
        const unsigned total = __shfl_sync(~0u, end, 31);
        if (index < passed + total) {
          const int lane = __ffs(__ballot_sync(~0u, index < passed + end)) - 1;
          const unsigned tiles_here = __shfl_sync(~0u, row_tiles, lane);
          const unsigned within = index - passed - __shfl_sync(~0u, end - row_tiles * head_tiles, lane);
          // Heads in sections; in a section the last rows of all heads come first.
          const unsigned section = minimum(parameters.section, head_tiles), first_head = within / (tiles_here * section) * section;
          const unsigned heads_here = minimum(section, head_tiles - first_head);
          const unsigned in_section = within - first_head * tiles_here;
          work = Work{static_cast<int>(first) + lane,
                      static_cast<int>((first_head + in_section % heads_here) * parameters.heads_per_tile),
                      static_cast<int>(tiles_here - 1 - in_section / heads_here)};
          return true;
        }
        passed += total;
      }
      first = 0;
    }
    return false;
  }
};

// Takes tiles of rows, asks the mask about their keys, and tells the others.
struct Scheduler {
  const AttentionParameters& parameters;
  const Functors<MaskType, ScoreModType>& functors;
  const HopperParameters& hopper;
  SharedMemory shared;
  RingPosition<kMessages> message;
  RingPosition<1> wish;

  OMNIFLASH_DEVICE void wait_for_room() const { mbarrier_wait(shared.message_empty(message.slot), message.parity ^ 1); }
  OMNIFLASH_DEVICE void send(const Message& what) {
    if (lane_index() == 0) {
      what.write(shared.message(message.slot));
      mbarrier_arrive(shared.message_full(message.slot));
    }
    message.advance();
  }

  // The window whose first tile is `first`: each lane asks the mask for one tile, for all rows and then, where some row sees
  // it, for each warpgroup's. A status may read memory, and most tiles may be skipped.
  OMNIFLASH_DEVICE void send_window(const Work& work, const Sequence& sequence, const RowTile& rows,
                                    KeyTiles<MaskType>& tiles, int first) {
    wait_for_room();
    const int tile = first - lane_index();
    const bool is_present = tile >= tiles.begin && tiles.status(tile) != TileStatus::Skip;
    // Keys past the end of a sequence are hidden like those that a mask hides.
    const bool may_be_full = is_present && (tile + 1) * kBlockN <= sequence.kv_len;
#pragma unroll 1
    for (int warpgroup = 0; warpgroup < kConsumers; ++warpgroup) {
      RowTile own_rows = rows;
      own_rows.first_row = minimum(rows.first_row + 64 * warpgroup, rows.num_rows - 1);
      KeyTiles<MaskType> own(functors.mask, sequence, own_rows, 64, kBlockN);
      const bool is_full = may_be_full && own.status(tile) == TileStatus::Full;
      OwnKeys keys{own.begin, own.end, own.visible.end, __ballot_sync(~0u, is_full)};
      if (rows.first_row + 64 * warpgroup >= rows.num_rows) keys.end = keys.begin;
      if (lane_index() == 0) Message::write(shared.message(message.slot), warpgroup, keys);
    }
    send(Message{work, sequence, KeyWindow{first, __ballot_sync(~0u, is_present), first - 32 < tiles.begin}});
  }

  // All windows of one tile of rows; then waits until the copies of its keys come to an end. Who takes the next tile
  // earlier takes one that another block could begin sooner.
  OMNIFLASH_DEVICE void announce(const Work& work, const Sequence& sequence, const RowTile& rows) {
    KeyTiles<MaskType> tiles(functors.mask, sequence, rows, kBlockM, kBlockN);
    int first = tiles.end - 1;
    do {
      send_window(work, sequence, rows, tiles, first);
      first -= 32;
    } while (first >= tiles.begin);
    mbarrier_wait(shared.next_wanted(), wish.parity);
    wish.advance();
  }

  // Blocks take tickets for the rows that come next. Pairs, whose rows all see as many keys, take turns.
  OMNIFLASH_DEVICE void run() {
    RaggedTiles ragged(parameters);
    unsigned tile = block_index_x(), ticket = 0;
    while (true) {
      Work work;
      if (is_ragged(parameters)) {
        if (!ragged.find(tile, work)) break;
      } else {
        if (tile >= hopper.num_tiles) break;
        work = work_of_block(parameters, tile);
      }
      const Sequence sequence(parameters, work.batch);
      const RowTile rows(parameters, work, sequence, kBlockM);
      if (kHasPairs || !rows.is_empty()) announce(work, sequence, rows);
      if constexpr (kHasPairs) {
        tile += gridDim.x;
      } else {
        if (lane_index() == 0) ticket = take_ticket(hopper.counter);
        tile = gridDim.x + uniform(ticket);
      }
    }
    // As many tickets are taken as there are tiles: whoever has the last leaves the counter as it was.
    const unsigned num_tiles = is_ragged(parameters) ? ragged.passed : hopper.num_tiles;
    if (!kHasPairs && lane_index() == 0 && tile >= gridDim.x && ticket + 1 == num_tiles) *hopper.counter = 0;
    Message end = {};
    end.work.row_tile = -1;
    wait_for_room();
    send(end);
  }
};

}  // namespace omniflash
