// One wave computes D = A B^T from bf16 rows of A and B, for every matrix instruction of the target.
#include "device.h"

#if CDNA
template <int SIZE> INLINE int row_of(int register_index, int lane) {
#ifdef WRONG_LANES
  return SIZE == 32 ? 16 * (lane >> 5) + register_index : 4 * (register_index) + (lane >> 4);
#endif
  return SIZE == 32 ? 8 * (register_index >> 2) + 4 * (lane >> 5) + (register_index & 3)
                    : 4 * (lane >> 4) + register_index;
}

KERNEL(64) tile_32(const u16* a, const u16* b, float* d, int depth) {
  const int lane = item(), row = lane & 31, group = lane >> 5;
  f32x16 sums = {};
  for (int k = 0; k < depth; k += 8) {
    s16x4 x = *(const s16x4*)(a + row * depth + k + group * 4);
    s16x4 y = *(const s16x4*)(b + row * depth + k + group * 4);
    sums = __builtin_amdgcn_mfma_f32_32x32x8bf16_1k(x, y, sums, 0, 0, 0);
  }
  for (int i = 0; i < 16; i++) d[row_of<32>(i, lane) * 32 + row] = sums[i];
}

KERNEL(64) tile_16(const u16* a, const u16* b, float* d, int depth) {
  const int lane = item(), row = lane & 15, group = lane >> 4;
  f32x4 sums = {};
  for (int k = 0; k < depth; k += 16) {
    s16x4 x = *(const s16x4*)(a + row * depth + k + group * 4);
    s16x4 y = *(const s16x4*)(b + row * depth + k + group * 4);
    sums = __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(x, y, sums, 0, 0, 0);
  }
  for (int i = 0; i < 4; i++) d[row_of<16>(i, lane) * 16 + row] = sums[i];
}

#if defined(__gfx950__)
KERNEL(64) wide_tile_32(const u16* a, const u16* b, float* d, int depth) {
  const int lane = item(), row = lane & 31, group = lane >> 5;
  f32x16 sums = {};
  for (int k = 0; k < depth; k += 16) {
    bf16x8 x = *(const bf16x8*)(a + row * depth + k + group * 8);
    bf16x8 y = *(const bf16x8*)(b + row * depth + k + group * 8);
    sums = __builtin_amdgcn_mfma_f32_32x32x16_bf16(x, y, sums, 0, 0, 0);
  }
  for (int i = 0; i < 16; i++) d[row_of<32>(i, lane) * 32 + row] = sums[i];
}

KERNEL(64) wide_tile_16(const u16* a, const u16* b, float* d, int depth) {
  const int lane = item(), row = lane & 15, group = lane >> 4;
  f32x4 sums = {};
  for (int k = 0; k < depth; k += 32) {
    bf16x8 x = *(const bf16x8*)(a + row * depth + k + group * 8);
    bf16x8 y = *(const bf16x8*)(b + row * depth + k + group * 8);
    sums = __builtin_amdgcn_mfma_f32_16x16x32_bf16(x, y, sums, 0, 0, 0);
  }
  for (int i = 0; i < 4; i++) d[row_of<16>(i, lane) * 16 + row] = sums[i];
}
#endif

#elif RDNA3
// A and B rows are held twice, once in each half-wave.
KERNEL(32) tile_16(const u16* a, const u16* b, float* d, int depth) {
  const int lane = item(), row = lane & 15, group = lane >> 4;
  f32x8 sums = {};
  for (int k = 0; k < depth; k += 16) {
    s16x16 x = *(const s16x16*)(a + row * depth + k);
    s16x16 y = *(const s16x16*)(b + row * depth + k);
    sums = __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32(x, y, sums);
  }
#ifdef WRONG_LANES
  for (int i = 0; i < 8; i++) d[(8 * group + i) * 16 + row] = sums[i];
#else
  for (int i = 0; i < 8; i++) d[(2 * i + group) * 16 + row] = sums[i];
#endif
}
#else
// Half-wave g holds eight of the sixteen k.
KERNEL(32) tile_16(const u16* a, const u16* b, float* d, int depth) {
  const int lane = item(), row = lane & 15, group = lane >> 4;
  f32x8 sums = {};
  for (int k = 0; k < depth; k += 16) {
    s16x8 x = *(const s16x8*)(a + row * depth + k + group * 8);
    s16x8 y = *(const s16x8*)(b + row * depth + k + group * 8);
    sums = __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32_gfx12(x, y, sums);
  }
#ifdef WRONG_LANES
  for (int i = 0; i < 8; i++) d[(2 * i + group) * 16 + row] = sums[i];
#else
  for (int i = 0; i < 8; i++) d[(8 * group + i) * 16 + row] = sums[i];
#endif
}
#endif
