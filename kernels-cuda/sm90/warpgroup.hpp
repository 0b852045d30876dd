// What four warps do together: registers, barriers among some of a block's threads, rows to shared memory.
#pragma once

#include "omniflash/numeric.hpp"

namespace omniflash {

OMNIFLASH_DEVICE int lane_index() { return thread_index() % 32; }

// A number that is the same in all lanes, so that the compiler knows it: it can then lie in a uniform register.
OMNIFLASH_DEVICE int uniform(int value) { return __shfl_sync(0xffffffffu, value, 0); }

// setmaxnreg (PTX ISA, "Miscellaneous Instructions"): all four warps of a warpgroup give registers back, or wait until so
// many are free. More than the launch gave the block never are.
template <int kRegisters>
OMNIFLASH_DEVICE void give_registers_back() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
OMNIFLASH_DEVICE void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// bar.arrive: counts as one of the threads of a named barrier, but does not wait.
OMNIFLASH_DEVICE void named_arrive(int name, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(name), "r"(threads) : "memory");
}

// stmatrix (PTX ISA, "Warp-level Matrix Instructions"): four matrices of 8 x 8 numbers of 16 bits; lane l gives the
// address of row l % 8 of matrix l / 8, and the words of row l / 4, columns 2 (l % 4) and the next, of each.
OMNIFLASH_DEVICE void store_matrices(unsigned row, const unsigned (&words)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(words[0]),
               "r"(words[1]), "r"(words[2]), "r"(words[3])
               : "memory");
}

// fma.rn.f16x2, fma.rn.bf16x2: 0 x + y of both numbers in a word; NaN where one in x is not finite.
template <class Element>
OMNIFLASH_DEVICE unsigned add_zero_times(unsigned x, unsigned y);
template <>
OMNIFLASH_DEVICE unsigned add_zero_times<float16>(unsigned x, unsigned y) {
  unsigned sum;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(x), "r"(0u), "r"(y));
  return sum;
}
template <>
OMNIFLASH_DEVICE unsigned add_zero_times<bfloat16>(unsigned x, unsigned y) {
  unsigned sum;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(x), "r"(0u), "r"(y));
  return sum;
}

// atom.global.add: the next number of a counter that all blocks share.
OMNIFLASH_DEVICE unsigned take_ticket(unsigned* counter) { return atomicAdd(counter, 1u); }

}  // namespace omniflash
