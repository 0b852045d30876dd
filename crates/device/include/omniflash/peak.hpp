// What the kernels that measure a device share: multiply-adds in registers, and loops that only write, read or copy memory.
// Products of the matrix unit are each vendor's own.
//
// What is computed is written where it is a number that it never is, so that no compiler can leave it out or put it off
// until it is asked for.
// Accumulators run to infinity or not: the units take the same time.
#pragma once

#include "omniflash/arch.hpp"

namespace omniflash {

enum class PeakWork { Product, MultiplyAdd, Fill, Read, Copy };
enum class PeakOperand { BFloat16, Float16, Float };

struct alignas(16) PeakVector {
  unsigned words[4];
};

// omniflash_device::PeakParameters.
struct PeakParameters {
  const PeakVector* source;
  PeakVector* target;
  long long vectors;
  int rounds;
  unsigned blocks;
  unsigned never;
  unsigned unused;
};

OMNIFLASH_DEVICE unsigned scramble(unsigned x) {
  x ^= x >> 15;
  x *= 0x85ebca6bu;
  return x ^ (x >> 13);
}

// Two 16-bit numbers, or one of 32 bits that is a TF32 too, of either sign and about 1.
template <PeakOperand kOperand>
OMNIFLASH_DEVICE unsigned operand_bits(unsigned seed) {
  constexpr bool kIsBFloat = kOperand == PeakOperand::BFloat16, kIsHalf = kOperand == PeakOperand::Float16;
  constexpr unsigned kOne = kIsBFloat ? 0x3f803f80u : kIsHalf ? 0x3c003c00u : 0x3f800000u;
  constexpr unsigned kVaried = kIsBFloat ? 0x807f807fu : kIsHalf ? 0x83ff83ffu : 0x807fe000u;
  return kOne ^ (scramble(seed * 2654435761u) & kVaried);
}

// 16 chains a thread.
OMNIFLASH_DEVICE float multiply_adds(int rounds) {
  constexpr int kChains = 16;
  const float a = 0.999f + 1e-6f * thread_index(), b = 1.0f - a;
  float sum[kChains];
#pragma unroll
  for (int i = 0; i < kChains; ++i) sum[i] = 1.0f + i;
  for (int round = 0; round < rounds; ++round) {
#pragma unroll
    for (int i = 0; i < kChains; ++i) sum[i] = fused_multiply_add(sum[i], a, b);
  }
  float all = 0.0f;
#pragma unroll
  for (int i = 0; i < kChains; ++i) all += sum[i];
  return all;
}

// Each thread takes every (number of threads)-th vector, four at a time; a rest of fewer is left.
template <PeakWork kWork, int kThreads>
OMNIFLASH_DEVICE unsigned stream(const PeakParameters& parameters) {
  constexpr int kAtOnce = 4;
  const long long threads = static_cast<long long>(parameters.blocks) * kThreads;
  const long long first = static_cast<long long>(block_index_x()) * kThreads + thread_index();
  unsigned all = 0;
  for (long long i = first; i + (kAtOnce - 1) * threads < parameters.vectors; i += kAtOnce * threads) {
    PeakVector vectors[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      if constexpr (kWork == PeakWork::Fill) {
        const unsigned at = static_cast<unsigned>(i + j * threads);
        vectors[j] = PeakVector{{scramble(at), scramble(at + 1), scramble(at + 2), scramble(at + 3)}};
      } else {
        vectors[j] = parameters.source[i + j * threads];
      }
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      if constexpr (kWork == PeakWork::Read) {
        all ^= vectors[j].words[0] ^ vectors[j].words[1] ^ vectors[j].words[2] ^ vectors[j].words[3];
      } else {
        parameters.target[i + j * threads] = vectors[j];
      }
    }
  }
  return all;
}

}  // namespace omniflash
