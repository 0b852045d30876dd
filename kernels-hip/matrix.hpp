// What differs between AMD's matrix units, one function each.
//
// A matrix instruction of one wave multiplies a tile A of kTile rows with a tile B of kTile columns. CDNA (gfx90a, gfx942,
// gfx950): MFMA, 64 lanes, 32 x 32. RDNA (gfx11, gfx12): WMMA, 32 lanes, 16 x 16. On all of them a lane holds parts of
// row `lane % kTile` of A and of column `lane % kTile` of B, and kAccumulators results of that same column; two groups of
// lanes share a column, each with its half of the results.
//
// Which results those are differs. So rows of A are handed to the instruction in an order of our own, slot_of(row), after
// which everywhere: result i of group g belongs to row 16 (i / 8) + 8 g + i % 8. Eight neighbours are one chunk of a
// B operand of 16-bit numbers, so that S^T = K Q^T becomes the operand of O^T = V^T P^T without leaving its registers.
#pragma once

#include "omniflash/numeric.hpp"

namespace omniflash {

#if defined(__gfx90a__) || defined(__gfx942__) || defined(__gfx950__)
#define OMNIFLASH_MFMA 1
constexpr int kTile = 32;
#else
#define OMNIFLASH_MFMA 0
constexpr int kTile = 16;
#endif

constexpr int kAccumulators = kTile * kTile / kWarpSize;
using Accumulator = float __attribute__((ext_vector_type(kAccumulators)));

// 16 bytes: four registers, one access of memory.
using Chunk = unsigned __attribute__((ext_vector_type(4)));
template <class Element>
constexpr int kChunkElements = 16 / sizeof(Element);

// Hides where a number that all lanes share comes from: loops that ask about it are not duplicated for each answer.
OMNIFLASH_DEVICE int opaque_uniform(int value) {
  value = __builtin_amdgcn_readfirstlane(value);
  asm volatile("" : "+s"(value));
  return value;
}

OMNIFLASH_DEVICE int lane_index() { return thread_index() % kWarpSize; }
// The same for all lanes, and known to be.
OMNIFLASH_DEVICE int warp_index() { return __builtin_amdgcn_readfirstlane(thread_index() / kWarpSize); }
OMNIFLASH_DEVICE int lane_column() { return thread_index() % kTile; }
OMNIFLASH_DEVICE int lane_group() { return thread_index() / kTile % 2; }

// The row of a tile that result i of a group belongs to; also for results of tiles one after the other.
OMNIFLASH_DEVICE constexpr int result_row(int i, int group) { return i / 8 * 16 + 8 * group + i % 8; }

// The row of A in which the instruction takes row `row`.
OMNIFLASH_DEVICE constexpr int slot_of(int row) {
#if OMNIFLASH_MFMA
  return (row & ~12) | (row & 4) << 1 | (row & 8) >> 1;
#elif defined(__GFX11__)
  return (row & ~15) | (row & 7) << 1 | (row & 8) >> 3;
#else
  return row;
#endif
}

// Where a slot of eight chunks lies among the others, and a permutation of its chunks: chunks of the same number in
// consecutive slots, and those of rows that are eight apart, then lie in different banks. Eight chunks cover the banks once,
// on gfx950 sixteen. Both are linear over bits.
OMNIFLASH_DEVICE constexpr int slot_place(int slot) {
#if defined(__gfx950__)
  return (slot & ~5) | (slot & 1) << 2 | (slot & 4) >> 2;
#else
  return slot;
#endif
}
OMNIFLASH_DEVICE constexpr int chunk_permutation(int slot) {
#if defined(__gfx950__)
  return ((slot ^ slot >> 6) & 1) | ((slot ^ slot >> 3) & 2) | ((slot >> 1 ^ slot >> 3) & 4);
#elif OMNIFLASH_MFMA
  return (slot & 7) ^ (slot >> 4 & 3);
#elif defined(__GFX11__)
  return (slot & 7) ^ (slot >> 4 & 3) << 1;
#else
  return (slot & 7) ^ (slot >> 3 & 7);
#endif
}
// The same where a slot has four chunks.
OMNIFLASH_DEVICE constexpr int short_chunk_permutation(int slot) {
#if defined(__gfx950__)
  return slot >> 2 & 3;
#else
  return slot >> 1 & 3;
#endif
}

// The same register of the lane that shares this one's column.
OMNIFLASH_DEVICE unsigned of_other_group(unsigned value) {
#if defined(__gfx950__)
  const auto swapped = __builtin_amdgcn_permlane32_swap(value, value, false, false);
  return lane_group() != 0 ? swapped[0] : swapped[1];
#elif OMNIFLASH_MFMA
  return __builtin_amdgcn_ds_bpermute((lane_index() ^ kTile) << 2, static_cast<int>(value));
#else
  return __builtin_amdgcn_permlanex16(value, value, 0x76543210, 0xfedcba98, false, false);
#endif
}
OMNIFLASH_DEVICE float of_other_group(float value) {
  return __builtin_bit_cast(float, of_other_group(__builtin_bit_cast(unsigned, value)));
}

// What one lane gives to a product of 16-bit numbers over 16 positions: on gfx11 all of its row or column, elsewhere the
// eight of its group.
#if defined(__GFX11__)
struct Operand {
  Chunk chunks[2];
};
#else
struct Operand {
  Chunk chunks[1];
};
#endif

// From the chunk of the lane's own group.
OMNIFLASH_DEVICE Operand operand_of(Chunk own) {
#if defined(__GFX11__)
  Operand operand;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const unsigned other = of_other_group(own[i]);
    operand.chunks[0][i] = lane_group() == 0 ? own[i] : other;
    operand.chunks[1][i] = lane_group() == 0 ? other : own[i];
  }
  return operand;
#else
  return Operand{{own}};
#endif
}

using Half4 = _Float16 __attribute__((ext_vector_type(4)));
using Half8 = _Float16 __attribute__((ext_vector_type(8)));
using Half16 = _Float16 __attribute__((ext_vector_type(16)));
using Short4 = short __attribute__((ext_vector_type(4)));
using Short8 = short __attribute__((ext_vector_type(8)));
using Short16 = short __attribute__((ext_vector_type(16)));

// c + a b over 16 positions.
template <class Element>
OMNIFLASH_DEVICE Accumulator multiply_add(const Operand& a, const Operand& b, Accumulator c) {
  constexpr bool is_half = __is_same(Element, float16);
#if defined(__gfx950__)
  if constexpr (is_half) {
    return __builtin_amdgcn_mfma_f32_32x32x16_f16(__builtin_bit_cast(Half8, a.chunks[0]),
                                                  __builtin_bit_cast(Half8, b.chunks[0]), c, 0, 0, 0);
  } else {
    using Bfloat8 = __bf16 __attribute__((ext_vector_type(8)));
    return __builtin_amdgcn_mfma_f32_32x32x16_bf16(__builtin_bit_cast(Bfloat8, a.chunks[0]),
                                                   __builtin_bit_cast(Bfloat8, b.chunks[0]), c, 0, 0, 0);
  }
#elif OMNIFLASH_MFMA
  // Half a chunk each: the order of positions is free as long as both operands agree.
  if constexpr (is_half) {
    const Half8 left = __builtin_bit_cast(Half8, a.chunks[0]), right = __builtin_bit_cast(Half8, b.chunks[0]);
    c = __builtin_amdgcn_mfma_f32_32x32x8f16(left.lo, right.lo, c, 0, 0, 0);
    return __builtin_amdgcn_mfma_f32_32x32x8f16(left.hi, right.hi, c, 0, 0, 0);
  } else {
    const Short8 left = __builtin_bit_cast(Short8, a.chunks[0]), right = __builtin_bit_cast(Short8, b.chunks[0]);
    c = __builtin_amdgcn_mfma_f32_32x32x8bf16_1k(left.lo, right.lo, c, 0, 0, 0);
    return __builtin_amdgcn_mfma_f32_32x32x8bf16_1k(left.hi, right.hi, c, 0, 0, 0);
  }
#elif defined(__GFX11__)
  if constexpr (is_half) {
    return __builtin_amdgcn_wmma_f32_16x16x16_f16_w32(__builtin_bit_cast(Half16, a), __builtin_bit_cast(Half16, b), c);
  } else {
    return __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32(__builtin_bit_cast(Short16, a), __builtin_bit_cast(Short16, b),
                                                       c);
  }
#else
  if constexpr (is_half) {
    return __builtin_amdgcn_wmma_f32_16x16x16_f16_w32_gfx12(__builtin_bit_cast(Half8, a), __builtin_bit_cast(Half8, b),
                                                            c);
  } else {
    return __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32_gfx12(__builtin_bit_cast(Short8, a),
                                                             __builtin_bit_cast(Short8, b), c);
  }
#endif
}

#if OMNIFLASH_MFMA
// c + a b over two positions of f32, one of each group.
OMNIFLASH_DEVICE Accumulator multiply_add_float(float a, float b, Accumulator c) {
  return __builtin_amdgcn_mfma_f32_32x32x2f32(a, b, c, 0, 0, 0);
}
#endif

// Two weights as 16-bit numbers, rounded to the nearest, the first in the lower half. A weight is not negative; NaN stays
// NaN.
template <class Element>
OMNIFLASH_DEVICE unsigned pack_weights(float low, float high) {
  if constexpr (__is_same(Element, float16)) {
    return pack<float16>(low, high);
  } else {
#if defined(__gfx950__)
    return pack<bfloat16>(low, high);
#else
    // No carry can reach a NaN's sign: those that the hardware makes have zeros in the lower half.
    unsigned a = __builtin_bit_cast(unsigned, low), b = __builtin_bit_cast(unsigned, high);
    a += 0x7fff + (a >> 16 & 1);
    b += 0x7fff + (b >> 16 & 1);
    return __builtin_amdgcn_perm(b, a, 0x07060302);
#endif
  }
}

}  // namespace omniflash
