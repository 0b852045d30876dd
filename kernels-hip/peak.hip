// What a device can do at most, for benchmarks to be measured against: matrix products whose operands never leave their
// registers, and what omniflash/peak.hpp has for both vendors.
//
// The instance chooses kWork, and where it is a product kOperand. A wave has kChains independent accumulators, as many
// registers of them on every matrix unit. f32 products are there on CDNA only.

#include "omniflash/peak.hpp"
#include "instance.hpp"
#include "matrix.hpp"

namespace omniflash {

constexpr int kThreads = 256;
constexpr PeakWork kWork = static_cast<PeakWork>(instance::kWork);
constexpr PeakOperand kOperand = static_cast<PeakOperand>(instance::kOperand);

constexpr int kChains = 64 / kAccumulators;

OMNIFLASH_DEVICE Operand operand(unsigned seed) {
  constexpr int kChunks = sizeof(Operand) / sizeof(Chunk);
  Operand operand;
#pragma unroll
  for (int i = 0; i < 4 * kChunks; ++i) operand.chunks[i / 4][i % 4] = operand_bits<kOperand>(seed + i);
  return operand;
}

OMNIFLASH_DEVICE float products(int rounds) {
  Accumulator sums[kChains] = {};
  if constexpr (kOperand != PeakOperand::Float) {
    // gfx11 asks for the same row in both groups of lanes.
    const unsigned seed = (warp_index() * kTile + lane_column()) * 16;
    const Operand a = operand(seed);
    Operand b[kChains];
#pragma unroll
    for (int i = 0; i < kChains; ++i) b[i] = operand(seed + (i + 1) * 4096);
    using Element = decltype([] {
      if constexpr (kOperand == PeakOperand::Float16) return float16{}; else return bfloat16{};
    }());
    for (int round = 0; round < rounds; ++round) {
#pragma unroll
      for (int i = 0; i < kChains; ++i) sums[i] = multiply_add<Element>(a, b[i], sums[i]);
    }
  }
#if OMNIFLASH_MFMA
  else {
    const float a = __builtin_bit_cast(float, operand_bits<kOperand>(thread_index()));
    float b[kChains];
#pragma unroll
    for (int i = 0; i < kChains; ++i) {
      b[i] = __builtin_bit_cast(float, operand_bits<kOperand>(thread_index() + (i + 1) * 4096));
    }
    for (int round = 0; round < rounds; ++round) {
#pragma unroll
      for (int i = 0; i < kChains; ++i) sums[i] = multiply_add_float(a, b[i], sums[i]);
    }
  }
#endif
  float all = 0.0f;
#pragma unroll
  for (int i = 0; i < kChains * kAccumulators; ++i) all += sums[i / kAccumulators][i % kAccumulators];
  return all;
}

}  // namespace omniflash

OMNIFLASH_KERNEL(omniflash::kThreads) omniflash_peak(OMNIFLASH_PARAMETER omniflash::PeakParameters parameters) {
  using namespace omniflash;
  unsigned answer;
  if constexpr (kWork == PeakWork::Product) {
    answer = __builtin_bit_cast(unsigned, products(parameters.rounds));
  } else if constexpr (kWork == PeakWork::MultiplyAdd) {
    answer = __builtin_bit_cast(unsigned, multiply_adds(parameters.rounds));
  } else {
    answer = stream<kWork, kThreads>(parameters);
  }
  if (answer == parameters.never) parameters.target[thread_index()].words[0] = answer;
}
