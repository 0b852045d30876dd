// In place of what four warps do together, and of the words of CUDA that only Hopper's kernels use.
#pragma once

#include "sm80.hpp"

namespace omniflash {

namespace emulator {
void arrive_at_name(int name, int threads);
unsigned grid_width();

struct GridWidth {
  unsigned x;
};
}  // namespace emulator
#define gridDim (emulator::GridWidth{emulator::grid_width()})

inline int lane_index() { return thread_index() % 32; }
inline int uniform(int value) { return static_cast<int>(from_lane(static_cast<unsigned>(value), 0)); }

inline int __popc(unsigned word) { return __builtin_popcount(word); }
inline unsigned __shfl_sync(unsigned, unsigned word, int lane) { return from_lane(word, lane); }
inline unsigned __shfl_up_sync(unsigned, unsigned word, int lanes) {
  const int lane = lane_index();
  return from_lane(word, lane < lanes ? lane : lane - lanes);
}

template <int kRegisters>
void give_registers_back() {}
template <int kRegisters>
void take_registers() {}

inline void named_arrive(int name, int threads) { emulator::arrive_at_name(name, threads); }

inline void store_matrices(unsigned row, const unsigned (&words)[4]) {
  const unsigned all[5] = {row, words[0], words[1], words[2], words[3]};
  unsigned result;
  emulator::collective(all, 5, &result, 1, [](const unsigned(*all)[16], unsigned(*)[16]) {
    for (int lane = 0; lane < 32; ++lane) {
      for (int matrix = 0; matrix < 4; ++matrix) {
        unsigned char* row = emulator::shared_bytes(all[8 * matrix + lane / 4][0], 16);
        __builtin_memcpy(row + lane % 4 * 4, &all[lane][1 + matrix], 4);
      }
    }
  });
}

template <class Element>
unsigned add_zero_times(unsigned x, unsigned y) {
  for (int i = 0; i < 2; ++i) {
    const float value = emulator::half_at<Element>(x, i);
    if (value - value != 0.0f) y |= 0x7fffu << 16 * i;
  }
  return y;
}

inline unsigned take_ticket(unsigned* counter) { return atomic_add(counter, 1); }

}  // namespace omniflash
