// In place of barriers that count arrivals and bytes. Their state is grid.hpp's; only their addresses are the device's.
#pragma once

#include "sm80.hpp"

namespace omniflash {

namespace emulator {
void set_counting_barrier(unsigned address, int arrivals);
void arrive(int block, unsigned address, long bytes);
int block_of_running();
void wait_for_phase(unsigned address, unsigned parity);
}  // namespace emulator

inline void mbarrier_init(unsigned barrier, unsigned arrivals) { emulator::set_counting_barrier(barrier, arrivals); }
inline void mbarrier_init_fence() {}
inline void mbarrier_arrive(unsigned barrier) { emulator::arrive(emulator::block_of_running(), barrier, 0); }
inline void mbarrier_arrive_expecting(unsigned barrier, unsigned bytes) {
  emulator::arrive(emulator::block_of_running(), barrier, bytes);
}
inline void mbarrier_arrive_cluster(unsigned barrier) {
  emulator::arrive(barrier >> emulator::kBlockShift, barrier & ((1u << emulator::kBlockShift) - 1), 0);
}
inline void mbarrier_wait(unsigned barrier, unsigned parity) { emulator::wait_for_phase(barrier, parity); }

}  // namespace omniflash
