// In place of copies by tensor maps. A map holds in words what the fake driver was told: address, extents, strides, sizes.
//
// Boxes arrive as soon as they are asked for where warps take turns from the first on, so that one that overwrites what is still
// read shows; and in the other order when nobody can go on without them, so that who does not wait shows.
#pragma once

#include "sm80.hpp"

namespace omniflash {

struct alignas(64) TensorMap {
  unsigned long long words[16];

  unsigned long long address() const { return words[0]; }
  unsigned long long extent(int axis) const { return words[1 + axis]; }
  // Bytes from one to the next.
  unsigned long long stride(int axis) const { return axis == 0 ? 2 : words[5 + axis]; }
  unsigned size(int axis) const { return static_cast<unsigned>(words[10 + axis / 2] >> 32 * (axis % 2)); }
};

constexpr unsigned long long kEvictFirst = 1, kEvictLast = 2;

namespace emulator {
void load_box(int block, unsigned to, const TensorMap& map, unsigned barrier, const int (&at)[5]);
void store_box(const TensorMap& map, unsigned from, const int (&at)[5]);
void commit_stores();
void wait_stores_read();
int block_of_running();
}  // namespace emulator

// All lanes have to be there.
inline bool elect_lane() {
  warp_barrier();
  return thread_index() % 32 == 0;
}
inline void prefetch_tensor_map(const TensorMap&) {}
inline void load_box(unsigned to, const TensorMap& map, unsigned barrier, const int (&at)[5], unsigned long long) {
  emulator::load_box(emulator::block_of_running(), to, map, barrier, at);
}
inline void load_box_to_all(unsigned to, const TensorMap& map, unsigned barrier, const int (&at)[5], unsigned long long,
                            unsigned short blocks) {
  for (int block = 0; block < 16; ++block) {
    if (blocks >> block & 1) emulator::load_box(block, to, map, barrier, at);
  }
}
inline void store_box(const TensorMap& map, unsigned from, const int (&at)[5]) { emulator::store_box(map, from, at); }
inline void commit_stores() { emulator::commit_stores(); }
inline void wait_stores_read() { emulator::wait_stores_read(); }
inline void fence_async_proxy() {}

}  // namespace omniflash
