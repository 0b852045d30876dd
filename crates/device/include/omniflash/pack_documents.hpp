// Packs the ids of documents for the kernels that follow: what each block of 64 rows and 64 keys shows.
//
//                keys: a span of 32 blocks of 64
//              +-----+-----+-----+-- ... --+       A block of threads reads the ids of one block's rows and of one span's
//    rows of   |  0  |  1  |  2  |         |       keys, and compares the least and the largest of each. Whatever the order
//    one block |     |     |     |         |       of ids, what it calls hidden is, and what it calls visible.
//              +-----+-----+-----+-- ... --+
//
// A status that reads ids itself reads those of a tile again for each tile of rows of each head.
// Rows and keys past the end of a sequence are neither read nor counted.

#include "omniflash/seen_blocks.hpp"

namespace omniflash {

constexpr int kThreads = 256;
constexpr int kKeysOfThread = MaskBlocks::kSpan / kThreads, kThreadsOfBlock = MaskBlocks::kBlock / kKeysOfThread;

// The ids of some positions: the least and the largest, and how many positions have none.
struct Ids {
  int least, most;
  int num_missing;

  // Of no position.
  static OMNIFLASH_DEVICE Ids none() { return Ids{0x7fffffff, -0x7fffffff - 1, 0}; }
  // Of a position that exists in the sequence.
  OMNIFLASH_DEVICE void add(const PackMaskParameters& packing, const int* row, int position) {
    if (position < 0 || position >= static_cast<int>(packing.columns)) {
      ++num_missing;
      return;
    }
    const int id = row[position * packing.key_stride];
    add(Ids{id, id, 0});
  }
  OMNIFLASH_DEVICE void add(const Ids& other) {
    least = minimum(least, other.least);
    most = maximum(most, other.most);
    num_missing += other.num_missing;
  }
};

// What rows show of keys.
OMNIFLASH_DEVICE unsigned found(const Ids& rows, const Ids& keys) {
  const bool is_one = rows.least == rows.most && keys.least == keys.most && rows.least == keys.least;
  return (keys.most < rows.least || rows.most < keys.least ? 0u : kShown) |
         (is_one && rows.num_missing + keys.num_missing == 0 ? 0u : kChanged);
}

}  // namespace omniflash

OMNIFLASH_KERNEL(omniflash::kThreads)
omniflash_pack_mask(OMNIFLASH_PARAMETER omniflash::AttentionParameters parameters,
                    OMNIFLASH_PARAMETER omniflash::PackMaskParameters packing) {
  using namespace omniflash;
  OMNIFLASH_SHARED Ids of_rows[MaskBlocks::kBlock], of_keys[kThreads];
  OMNIFLASH_SHARED unsigned char found_in_block[32];
  const int thread = thread_index();
  const int span = block_index_x() % packing.spans, row_block = block_index_x() / packing.spans % packing.row_blocks;
  const Sequence sequence(parameters, block_index_x() / packing.spans / packing.row_blocks);
  const int* ids = static_cast<const int*>(packing.data) + sequence.batch * packing.batch_stride;
  if (thread < MaskBlocks::kBlock) {
    const int row = row_block * MaskBlocks::kBlock + thread;
    Ids own = Ids::none();
    if (row < sequence.q_len) own.add(packing, ids, sequence.start + row);
    of_rows[thread] = own;
  }
  Ids own = Ids::none();
#pragma unroll
  for (int i = 0; i < kKeysOfThread; ++i) {
    const int key = span * MaskBlocks::kSpan + thread * kKeysOfThread + i;
    if (key < sequence.kv_len) own.add(packing, ids, key);
  }
  of_keys[thread] = own;
  barrier();
  if (thread < 32) {
    Ids rows = Ids::none(), keys = Ids::none();
    for (int i = 0; i < MaskBlocks::kBlock; ++i) rows.add(of_rows[i]);
    for (int i = 0; i < kThreadsOfBlock; ++i) keys.add(of_keys[thread * kThreadsOfBlock + i]);
    found_in_block[thread] = static_cast<unsigned char>(found(rows, keys));
  }
  barrier();
  if (thread == 0) store_seen(packing, found_in_block);
  if (block_index_x() == 0) store_starts<kThreads>(parameters, packing);
}
