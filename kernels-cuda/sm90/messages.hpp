// What the scheduler of a block tells the warps that copy and those that compute.
#pragma once

#include "sm90/block.hpp"

namespace omniflash {

// What the rows of one warpgroup see of the keys of a window.
struct OwnKeys {
  int begin, end;  // tiles; outside of them the mask hides all
  int last_key;    // the end of the keys that it may show
  unsigned full;   // bit i: the mask need not be asked for tile first_tile - i
};

// Up to 32 tiles of keys, the i-th being `first_tile - i`, and which of them some row of the block sees.
struct KeyWindow {
  int first_tile;
  unsigned present;
  bool is_last;  // no tiles of these rows come after it

  // Equal tiles: tile, tile - 1, ...
  struct Run {
    int tile, count;
    bool is_partial;
    OMNIFLASH_DEVICE bool step() {
      --tile;
      return --count > 0;
    }
  };
  OMNIFLASH_DEVICE Run take(unsigned full) {
    const int at = __ffs(present) - 1;
    const bool is_full = full >> at & 1;
    const unsigned alike = (present & (is_full ? full : ~full)) >> at;
    const int count = alike == ~0u ? 32 : __ffs(~alike) - 1;
    present &= count == 32 ? 0u : ~(low_bits(count) << at);
    return Run{first_tile - at, count, !is_full};
  }
};

// Rows to compute with their first window; later windows of the same rows come in messages of their own.
struct Message {
  Work work;  // row_tile is -1 after the last rows
  Sequence sequence;
  KeyWindow window;

  OMNIFLASH_DEVICE void write(unsigned to) const {
    const unsigned long long base = sequence.q_base;
    const unsigned ints[3][4] = {
        {unsigned(work.batch), unsigned(work.first_head), unsigned(work.row_tile), unsigned(sequence.q_len)},
        {unsigned(sequence.kv_len), unsigned(sequence.start), unsigned(base), unsigned(base >> 32)},
        {unsigned(window.first_tile), window.present, window.is_last, 0u}};
#pragma unroll
    for (int i = 0; i < 3; ++i) store_shared_16(to + 16 * i, ints[i]);
  }
  OMNIFLASH_DEVICE static void write(unsigned to, int warpgroup, const OwnKeys& own) {
    store_shared_16(to + 48 + 16 * warpgroup,
                    {unsigned(own.begin), unsigned(own.end), unsigned(own.last_key), own.full});
  }
  // By whole warps, or by one lane.
  template <bool kIsWarp>
  OMNIFLASH_DEVICE static Message read(unsigned from) {
    const auto same = [](unsigned value) { return kIsWarp ? uniform(value) : int(value); };
    unsigned ints[3][4];
#pragma unroll
    for (int i = 0; i < 3; ++i) load_shared_16(ints[i], from + 16 * i);
    Message message;
    message.work = Work{int(ints[0][0]), int(ints[0][1]), same(ints[0][2])};
    message.sequence.batch = message.work.batch;
    message.sequence.q_len = ints[0][3];
    message.sequence.kv_len = ints[1][0];
    message.sequence.start = ints[1][1];
    message.sequence.q_base = static_cast<long long>(ints[1][2] | static_cast<unsigned long long>(ints[1][3]) << 32);
    message.window = KeyWindow{same(ints[2][0]), unsigned(same(ints[2][1])), same(ints[2][2]) != 0};
    return message;
  }
  OMNIFLASH_DEVICE static OwnKeys read(unsigned from, int warpgroup) {
    unsigned ints[4];
    load_shared_16(ints, from + 48 + 16 * warpgroup);
    return OwnKeys{uniform(ints[0]), uniform(ints[1]), uniform(ints[2]), unsigned(uniform(ints[3]))};
  }
};

}  // namespace omniflash
