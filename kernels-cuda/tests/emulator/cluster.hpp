// In place of the instructions of clusters: blocks that grid.hpp runs together.
#pragma once

#include "sm80.hpp"

#define OMNIFLASH_CLUSTER(blocks)

namespace omniflash {

namespace emulator {
unsigned char* shared_bytes_of(int block, unsigned address, unsigned size);
void cluster_arrive();
void cluster_wait();
}  // namespace emulator

inline void cluster_arrive() { emulator::cluster_arrive(); }
inline void cluster_arrive_relaxed() { emulator::cluster_arrive(); }
inline void cluster_wait() { emulator::cluster_wait(); }

inline unsigned cluster_address(unsigned address, int block) { return address | block << emulator::kBlockShift; }

inline void store_cluster(unsigned to, const unsigned* words, unsigned bytes) {
  __builtin_memcpy(emulator::shared_bytes_of(to >> emulator::kBlockShift, to & ((1u << emulator::kBlockShift) - 1), bytes), words, bytes);
}
inline void store_cluster_8(unsigned to, unsigned low, unsigned high) {
  const unsigned words[2] = {low, high};
  store_cluster(to, words, 8);
}
inline void store_cluster_16(unsigned to, const unsigned (&words)[4]) { store_cluster(to, words, 16); }

}  // namespace omniflash
