// Tiles that memory fills without registers in between, where an instruction copies 16 bytes a lane (gfx950).
//
// The instruction puts the 16 bytes of lane i at 16 i of a place that all lanes share, so a wave fills a block of 1024
// bytes, and only between blocks can there be padding. So neighbouring slots lie in different blocks, which padding moves
// to different banks, and slots of one block are as many apart as there are blocks:
//
//     slot s is row s / kBlocks of block s % kBlocks
//
// Reads then add up what a lane brings and what is known when compiling, as with rows of one pitch.
#pragma once

#include "tile.hpp"

namespace omniflash {

// Until this wave's copies have arrived, and all else that it loads: clang must know, or it waits for the query where copies
// are on their way. And until its zeros are stored: of a wave without rows, nothing else waits for them.
OMNIFLASH_DEVICE void wait_for_copies() {
#if defined(__gfx950__)
  __builtin_amdgcn_s_waitcnt(0x0070);  // vmcnt and lgkmcnt 0
  asm volatile("" ::: "memory");
#endif
}

#if defined(__gfx950__)

// clang warns of every mention of M0, which it uses for nothing between two such statements.
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Winline-asm"
// 16 bytes for each lane that is active, to `to` plus 16 times its number, of which M0 is assumed to reach every byte of
// the 160 KiB: no manual was at hand to say so, and the last tiles of d128 lie above 64. Neither clang nor a barrier waits for it: with
// the builtin, every later read of shared memory would. The place is the same for all lanes, which clang has to be told where it
// keeps it in vector registers. Behind a write to M0 the manual wants one other instruction.
OMNIFLASH_DEVICE void copy_to_shared(int to, const void* from) {
  asm volatile("s_mov_b32 m0, %0\n\ts_nop 0\n\tglobal_load_lds_dwordx4 %1, off"
               :
               : "s"((OMNIFLASH_LOCAL unsigned char*)shared_bytes + __builtin_amdgcn_readfirstlane(to)), "v"((const OMNIFLASH_GLOBAL Chunk*)from)
               : "m0", "memory");
}
#pragma clang diagnostic pop

// kRows vectors of kColumns 16-bit elements, kPadding bytes behind every block.
template <class Element, int kRows, int kColumns, int kPadding, bool kInSlots, int kWarps>
struct DirectTile {
  static constexpr int kChunks = kColumns / kChunkElements<Element>;
  static constexpr int kBlocks = kRows * kChunks / kWarpSize, kBlockBytes = kWarpSize * 16 + kPadding;
  static constexpr int kBytes = kBlocks * kBlockBytes;
  static constexpr int kPasses = (kBlocks + kWarps - 1) / kWarps;
  static constexpr bool is_power_of_two(int number) { return number > 0 && (number & (number - 1)) == 0; }
  static_assert(is_power_of_two(kChunks) && is_power_of_two(kBlocks) && is_power_of_two(kWarps), "parts without common bits");

  static OMNIFLASH_DEVICE constexpr int place(int slot) {
    return slot % kBlocks * kBlockBytes + slot / kBlocks * kChunks * 16;
  }
  // Slot and chunk each as a part that a lane brings and a part known when compiling, without common bits.
  static OMNIFLASH_DEVICE int chunk_at(int base, int slot, int chunk, int more_slots = 0, int more_chunks = 0) {
    return base + place(slot) + chunk * 16 + place(more_slots) + more_chunks * 16;
  }

  // On its way: nothing is held but which blocks the wave copies, and which row and column of the first the lane.
  struct Stage {
    int first = warp_index();
    int row = row_of(lane_index() / kChunks * kBlocks + first), column = lane_index() % kChunks * kChunkElements<Element>;

    template <bool kVector, class Walker>
    OMNIFLASH_DEVICE void load(int, int to, Walker walker, int columns, int num_valid) const {
      static_assert(kVector, "chunks are copied whole");
      const auto copy = [&](int pass, bool is_inside) {
        const int block = first + pass * kWarps;
        if (kBlocks % kWarps != 0 && block >= kBlocks) return;
        if (is_inside) {
          Walker at = walker;
          at.advance(row_of(pass * kWarps));  // the same for all lanes
          at.advance(row);
          copy_to_shared(to + block * kBlockBytes, at.at(true) + column);
        } else {
          store_shared(to + block * kBlockBytes + lane_index() * 16, Chunk(0));
        }
      };
      if (num_valid >= kRows && columns == kColumns) {
#pragma unroll
        for (int pass = 0; pass < kPasses; ++pass) copy(pass, true);
        return;
      }
#pragma unroll
      for (int pass = 0; pass < kPasses; ++pass) {
        copy(pass, row < opaque_uniform(num_valid - row_of(pass * kWarps)) && column < columns);
      }
    }

    // It is there already.
    OMNIFLASH_DEVICE void store(int, int) const {}

   private:
    // Linear over bits.
    static OMNIFLASH_DEVICE constexpr int row_of(int slot) { return kInSlots ? slot_of(slot) : slot; }
  };
};

// Keys: consecutive slots are one chunk apart in the banks.
template <class Element, int kKeys, int kColumns, int kWarps>
using DirectKeyTile = DirectTile<Element, kKeys, kColumns, 16, true, kWarps>;

// Values, read as columns: consecutive keys are 64 bytes apart.
template <class Element, int kKeys, int kColumns, int kWarps>
struct DirectValueTile : DirectTile<Element, kKeys, kColumns, 64, false, kWarps> {
  using Tile = DirectTile<Element, kKeys, kColumns, 64, false, kWarps>;

  // Keys 16 step + 8 group .. of the column whose slot is the lane's in tile n.
  static OMNIFLASH_DEVICE Chunk column(int base, int n, int step) {
    const int at = base + Tile::place(transposing_key()) + transposing_column() * 2;
    return read_columns(at + Tile::place(16 * step) + n * kTile * 2, at + Tile::place(16 * step + 4) + n * kTile * 2);
  }
};

#endif

}  // namespace omniflash
