// The line of items, and who does what of it.
#pragma once

#include "decode/block.hpp"

namespace omniflash {

// The sum over the lanes up to this one.
OMNIFLASH_DEVICE unsigned warp_scan(unsigned word) {
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const unsigned before = from_lane(word, maximum(lane_index() - distance, 0));
    if (lane_index() >= distance) word += before;
  }
  return word;
}

// A sequence with the tiles of keys that every item of it counts as, and where they begin. A sequence whose rows see no
// key counts one, for its rows are written; one without rows here counts none.
struct Extent {
  Sequence sequence;
  int begin, count;

  Extent() = default;
  OMNIFLASH_DEVICE explicit Extent(const Block& block) : sequence(block.sequence), begin(0), count(0) {
    if (!block.is_ours()) return;
    if constexpr (head_invariant<MaskType>) {
      const Tiles tiles = block.key_tiles();
      begin = tiles.begin;
      count = tiles.end - tiles.begin;
    } else {
      count = ceil_divide(block.sequence.kv_len, kBlockN);
    }
    count = maximum(count, 1);
  }
  // That of a lane.
  OMNIFLASH_DEVICE Extent of_lane(int lane) const {
    const auto word = [&](int mine) { return static_cast<int>(from_lane(static_cast<unsigned>(mine), lane)); };
    Extent extent;
    extent.sequence.batch = word(sequence.batch);
    extent.sequence.q_len = word(sequence.q_len);
    extent.sequence.kv_len = word(sequence.kv_len);
    extent.sequence.start = word(sequence.start);
    // Only ragged rows are found by it, and there it is one of the offsets.
    extent.sequence.q_base = word(static_cast<int>(sequence.q_base));
    extent.begin = word(begin);
    extent.count = word(count);
    return extent;
  }
};

// Where the parts of a cut item lie in the workspace, and who counts them.
struct Parts {
  int count;          // 1: the item is whole
  int mine;           // this segment's slot
  int first, second;  // slots of the first two parts
  int step;           // from the second on
  int counter;

  OMNIFLASH_DEVICE int slot(int part) const { return part == 0 ? first : second + (part - 1) * step; }
};

// The line of all items cut into runs of equal length, one a worker.
struct Line {
  unsigned workers, run, longer;  // the first `longer` runs have one tile more

  Line() = default;
  OMNIFLASH_DEVICE Line(unsigned total, unsigned num_workers) {
    workers = maximum(minimum(num_workers, total / (kLeastTiles * kCluster)), 1u);
    run = total / workers;
    longer = total - run * workers;
  }
  OMNIFLASH_DEVICE unsigned begin(unsigned worker) const { return worker * run + minimum(worker, longer); }
  OMNIFLASH_DEVICE unsigned worker_of(unsigned tile) const {
    const unsigned in_longer = longer * (run + 1);
    return tile < in_longer ? tile / (run + 1) : longer + (tile - in_longer) / run;
  }
  // Of an item that begins at tile `item` and has `count`, what worker does from its tile `from` to `to`.
  OMNIFLASH_DEVICE Parts parts(unsigned worker, unsigned item, unsigned count, unsigned from, unsigned to) const {
    const bool begins = from == 0, ends = to == count;
    if (begins && ends) return Parts{1, 0, 0, 0, 2, 0};
    // A worker cuts at most two items: it continues one (slot 2 w), and begins one (slot 2 w + 1).
    const unsigned first = begins ? worker : worker_of(item), last = ends ? worker : worker_of(item + count - 1);
    return Parts{static_cast<int>(last - first + 1), static_cast<int>(2 * worker + begins),
                 static_cast<int>(2 * first + 1),    static_cast<int>(2 * first + 2),
                 2,                                  static_cast<int>(first)};
  }
};

// Of an item that is cut into equal partitions.
OMNIFLASH_DEVICE Parts partition_of(const AttentionParameters& parameters, int item, int partition) {
  const int count = parameters.num_partitions, slot = item * count;
  return Parts{count, slot + partition, slot, slot + 1, 1, item};
}

// Up to 32 sequences from `first` on, one a lane, and the tiles of all their items.
struct Group {
  Extent extent;
  unsigned until, all;  // tiles up to this lane's sequence, and of the group

  OMNIFLASH_DEVICE Group(const AttentionParameters& parameters, const Functors<MaskType, ScoreModType>& functors,
                         unsigned head_tiles, int first, int sequences)
      : extent(Block(parameters, functors, Sequence(parameters, first + minimum(lane_index(), sequences - 1)), 0)) {
    // In a line an item counts for more than its tiles. A segment beyond those has no keys.
    if (parameters.num_workers > 0 && extent.count > 0) extent.count += kTilesOfItem;
    until = head_tiles * extent.count;
    if (sequences > 1) until = warp_scan(lane_index() < sequences ? until : 0);
    all = from_lane(until, 31);
  }
};

}  // namespace omniflash
