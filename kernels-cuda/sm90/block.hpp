// A block of the Hopper forward kernel: its tiles, what its threads hold in registers, its shared memory, its launch.
#pragma once

#include "omniflash/keys.hpp"
#include "omniflash/masks.hpp"
#include "omniflash/schedule.hpp"
#include "omniflash/score_mods.hpp"
#include "sm80.hpp"
#include "sm90/cluster.hpp"
#include "sm90/mbarrier.hpp"
#include "sm90/slabs.hpp"
#include "sm90/tma.hpp"
#include "sm90/warpgroup.hpp"
#include "instance.hpp"

namespace omniflash {

using namespace instance;

constexpr int kMessages = 4;
// Who copies: one thread, but for keys in pages, which come in many copies, the lanes of a warp; their values the lanes of another.
constexpr int kProducers = Keys::kOneStride ? 1 : 2, kProducerLanes = Keys::kOneStride ? 1 : 32;
constexpr int kBlockM = 64 * kConsumers, kThreads = 128 * (kConsumers + 1);
static_assert(kHeadDim % 16 == 0 && kValueDim % 16 == 0, "a step of a product is 16 deep");
static_assert(kBlockN % 32 == 0, "masks answer for 32 keys at a time");

using QueryTile = SlabTile<kBlockM, maximum(kHeadDim, kValueDim)>;
// The output leaves from the place of its Q, or, where that is the only one, in passes of so many columns from a place of
// its own: the next Q then arrives under the last product.
constexpr bool kHasOutputTile = kOutputColumns > 0;
constexpr int kPassColumns = kHasOutputTile ? kOutputColumns : (kValueDim + kSlabColumns - 1) / kSlabColumns * kSlabColumns;
using OutputTile = SlabTile<kBlockM, kPassColumns>;
using KeyTile = SlabTile<kBlockN, kHeadDim>;
using ValueTile = SlabTile<kBlockN, kValueDim>;
constexpr int kHeadSlabs = KeyTile::kSlabs, kValueSlabs = ValueTile::kSlabs;

// A mask that hides something, or a score that does: then a value that is not finite may have weight 0.
constexpr bool kHides = !hides_nothing<MaskType> || hides_by_score<ScoreModType>;

// What a warpgroup may see of its first tile: all, or, where the mask has a range that may end there, the first half of the keys.
constexpr int kHalfTile = kHides && has_range<MaskType> && kBlockN > 64 && kBlockN % 64 == 0 ? kBlockN / 2 : kBlockN;

// Whether tiles of keys are taken in halves: scores of the next half and the output of the one before are computed while one
// becomes weights. It begins and ends slowly and takes registers, and a mask may branch, which nothing must meanwhile.
constexpr bool kHasHalves = hides_nothing<MaskType> && is_identity<ScoreModType> && kConsumers == 2 && kBlockN == 128 &&
                            kHeadDim <= 128 && kValueDim <= 128 && kQueryTiles == 2;
constexpr int kHalfKeys = kBlockN / 2;

// Whether warpgroups issue products in turn, so that one's softmax runs under another's products: worth it where there is
// a mask, and for narrow heads, whose softmax takes as long as their products (measured; products of 256 columns leave
// nothing to hide). With more slots they come apart by themselves, and what one does between tiles of rows runs under the
// others' products too.
constexpr bool kTakesTurns = (kHides || kHeadDim <= 64) && kHeadDim <= 128 && kSlots == 2 && !kHasHalves;

// Whether warpgroups change places from one tile of rows to the next. Under a mask those of the last rows see more keys than
// the others: where slots let warpgroups come tiles apart, that evens out. An output in a place of its own is waited for by the
// warps that sent it, which then have to stay.
constexpr bool kChangesPlaces = kHides && kSlots > 2 && !kHasOutputTile;

// The two blocks of a pair take neighbouring tiles of rows of one sequence and key head, and see the same keys: each copies half of
// every tile of keys and values into the shared memory of both.
constexpr bool kHasPairs = kClusterBlocks == 2;
static_assert(kClusterBlocks == 1 || (kHasPairs && hides_nothing<MaskType> && Keys::kOneStride), "both blocks of a pair walk through the same tiles");

// So many tiles of keys before the end of its rows a block takes the next ones: late enough that nobody else could begin
// them sooner, early enough that their keys arrive in time.
constexpr int kTilesAhead = 4;

// Registers of a thread before and after they are shared out: (producer + kConsumers * consumer) threads must not have more
// than the launch gave the block, or the consumers wait for ever.
constexpr int kAccumulators = kBlockN / 2 + kBlockN / 4 + kValueDim / 2;
struct Registers {
  int producer, consumer, all;  // of the launch
};
constexpr Registers kRegisters = kConsumers == 4       ? Registers{32, 112, 480}
                                 : kConsumers == 3     ? (kAccumulators > 120 ? Registers{32, 160, 512} : Registers{56, 152, 512})
                                 : kAccumulators > 160 ? Registers{40, 232, 504}
                                                       : Registers{56, 224, 504};
constexpr int kProducerRegisters = kRegisters.producer, kConsumerRegisters = kRegisters.consumer;
static_assert(kProducerRegisters + kConsumers * kConsumerRegisters <= kRegisters.all);

// Scores stay unscaled, and softmax_scale (positive: the plan sees to it) is folded into the exponential, where nothing looks
// at them in between.
constexpr bool kFolded = is_identity<ScoreModType> && !has_add<MaskType>;

template <int kKeys>
using ScoresOf = float[kKeys / 2];  // word 4 n + 2 half + i: row lane / 4 + 8 half, key 8 n + lane % 4 * 2 + i
using Scores = ScoresOf<kBlockN>;
using Weights = unsigned[kBlockN / 4];  // the same in pairs, rounded
using Output = float[kValueDim / 2];

// What the launch adds to the parameters that all kernels have.
struct HopperParameters {
  TensorMap k, v, q, out;  // (column, head of the tile or page, row, shift, head tile), see RowsOfSequence and KeySource
  unsigned* counter;       // 0 before the launch, and after it
  unsigned num_tiles;      // tiles of rows
  unsigned q_batch_rows, k_batch_rows, v_batch_rows, out_batch_rows;  // rows between sequences
  unsigned box_rows;       // of k and v in pages
};
static_assert(sizeof(HopperParameters) == kParameterBytes);
OMNIFLASH_CHECK_OFFSET(HopperParameters, counter, kCounterOffset);
OMNIFLASH_CHECK_OFFSET(HopperParameters, q_batch_rows, kBatchRowsOffset);
OMNIFLASH_CHECK_OFFSET(HopperParameters, box_rows, kBoxRowsOffset);

constexpr unsigned kKeyOffset = kQueryTiles * QueryTile::kBytes;
constexpr unsigned kValueOffset = kKeyOffset + kSlots * KeyTile::kBytes;
constexpr unsigned kOutputOffset = kValueOffset + kSlots * ValueTile::kBytes;
constexpr unsigned kBarrierOffset = kOutputOffset + (kHasOutputTile ? OutputTile::kBytes : 0);
constexpr int kBarriers = 2 * (kQueryTiles + 2 * kSlots + kMessages) + 1;
constexpr int kPairBarriers = kHasPairs ? 2 * kSlots : 0;
constexpr unsigned kMessageOffset = (kBarrierOffset + 8 * (kBarriers + kPairBarriers) + 15) / 16 * 16;
constexpr unsigned kMessageBytes = 48 + 16 * kConsumers;
static_assert(kSwizzleBytes + kMessageOffset + kMessages * kMessageBytes <= kSharedBytes);

// A position in a ring of slots, with the parity of the pass: the parity to wait for on a barrier that says a slot is
// full, and its complement on one that says it is empty.
template <int kSlots>
struct RingPosition {
  int slot = 0;
  unsigned parity = 0;

  OMNIFLASH_DEVICE void advance() {
    if (kSlots == 1 || ++slot == kSlots) {
      slot = 0;
      parity ^= 1;
    }
  }
};

// Everything in shared memory, by its address. A slot is full when its copies have landed, empty when all warps have left it.
struct SharedMemory {
  unsigned address;

  OMNIFLASH_DEVICE SharedMemory()
      : address(uniform((shared_memory() + kSwizzleBytes - 1) & ~(kSwizzleBytes - 1))) {}

  OMNIFLASH_DEVICE QueryTile query(int slot) const { return {address + slot * QueryTile::kBytes}; }
  OMNIFLASH_DEVICE KeyTile key(int slot) const { return {address + kKeyOffset + slot * KeyTile::kBytes}; }
  OMNIFLASH_DEVICE ValueTile value(int slot) const { return {address + kValueOffset + slot * ValueTile::kBytes}; }
  OMNIFLASH_DEVICE OutputTile output(int slot) const {
    return {kHasOutputTile ? address + kOutputOffset : query(slot).address};
  }
  OMNIFLASH_DEVICE unsigned message(int slot) const { return address + kMessageOffset + slot * kMessageBytes; }

  OMNIFLASH_DEVICE unsigned barrier(int index) const { return address + kBarrierOffset + 8 * index; }
  OMNIFLASH_DEVICE unsigned query_full(int slot) const { return barrier(slot); }
  OMNIFLASH_DEVICE unsigned query_empty(int slot) const { return barrier(kQueryTiles + slot); }
  OMNIFLASH_DEVICE unsigned key_full(int slot) const { return barrier(2 * kQueryTiles + slot); }
  OMNIFLASH_DEVICE unsigned key_empty(int slot) const { return barrier(2 * kQueryTiles + kSlots + slot); }
  OMNIFLASH_DEVICE unsigned value_full(int slot) const { return barrier(2 * kQueryTiles + 2 * kSlots + slot); }
  OMNIFLASH_DEVICE unsigned value_empty(int slot) const { return barrier(2 * kQueryTiles + 3 * kSlots + slot); }
  OMNIFLASH_DEVICE unsigned message_full(int slot) const { return barrier(2 * kQueryTiles + 4 * kSlots + slot); }
  OMNIFLASH_DEVICE unsigned message_empty(int slot) const {
    return barrier(2 * kQueryTiles + 4 * kSlots + kMessages + slot);
  }

  // Complete when the producer comes to the end of a tile of rows.
  OMNIFLASH_DEVICE unsigned next_wanted() const { return barrier(kBarriers - 1); }

  // Complete when the other block of a pair may copy into a slot: it is empty, and this block awaits the bytes. A block is told
  // so by the other, at its own barrier.
  OMNIFLASH_DEVICE unsigned key_awaited(int slot) const { return barrier(kBarriers + slot); }
  OMNIFLASH_DEVICE unsigned value_awaited(int slot) const { return barrier(kBarriers + kSlots + slot); }

  OMNIFLASH_DEVICE void initialize_barriers() const {
    constexpr int kConsumerWarps = 4 * kConsumers;
    for (int i = 0; i < kBarriers + kPairBarriers; ++i) mbarrier_init(barrier(i), 1);
    for (int i = 0; i < kQueryTiles; ++i) mbarrier_init(query_empty(i), kConsumerWarps);
    for (int i = 0; i < kSlots; ++i) mbarrier_init(key_empty(i), kConsumerWarps);
    for (int i = 0; i < kSlots; ++i) mbarrier_init(value_empty(i), kConsumerWarps);
    constexpr int kReaders = 32 * kConsumerWarps + kProducers * kProducerLanes;
    for (int i = 0; i < kMessages; ++i) mbarrier_init(message_empty(i), kReaders);
    mbarrier_init_fence();
  }
};

}  // namespace omniflash
