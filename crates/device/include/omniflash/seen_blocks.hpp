// What the kernels that pack masks have in common: how a block of threads writes what it has found.
#pragma once

#include "omniflash/masks.hpp"
#include "omniflash/sequence.hpp"

namespace omniflash {

// Bits of a block of 64 rows and 64 keys: whether some key may be visible, and whether the mask does something to one.
constexpr unsigned kShown = 1, kChanged = 2;

// Writes the words of a block of rows and a span of keys, of whose 32 blocks these are the bits; for one thread.
OMNIFLASH_DEVICE void store_seen(const PackMaskParameters& packing, const unsigned char (&found)[32]) {
  SeenBlocks seen{0, 0};
  for (int i = 0; i < 32; ++i) {
    seen.shown |= (found[i] & kShown) << i;
    seen.changed |= (found[i] / kChanged & 1u) << i;
  }
  static_cast<SeenBlocks*>(packing.blocks)[block_index_x()] = seen;
}

// Writes where sequences begin; for the threads of one block.
template <int kThreads>
OMNIFLASH_DEVICE void store_starts(const AttentionParameters& parameters, const PackMaskParameters& packing) {
  for (int b = thread_index(); b < static_cast<int>(parameters.batch); b += kThreads) {
    static_cast<int*>(packing.starts)[b] = Sequence(parameters, b).start;
  }
}

}  // namespace omniflash
