// What differs between compilers: the only file of the shared headers that knows a vendor.
//
// NVIDIA (nvcc, clang, NVRTC), AMD (hipcc, clang, hipRTC), and the host, where the functors are tested and where an
// emulator may define the functions that are only declared.
#pragma once

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define OMNIFLASH_CUDA 1
#elif defined(__HIP__) || defined(__HIPCC_RTC__)
#define OMNIFLASH_HIP 1
#else
#define OMNIFLASH_HOST 1
#endif

#if OMNIFLASH_CUDA
#define OMNIFLASH_DEVICE __device__ __forceinline__
#define OMNIFLASH_KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads)
// The same whose registers are to suffice for so many blocks a multiprocessor; 0 leaves that to the compiler.
#define OMNIFLASH_RESIDENT_KERNEL(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks)
#define OMNIFLASH_SHARED __shared__
#elif OMNIFLASH_HIP
// Attributes, not the words of a header that may not be there. clang ignores __launch_bounds__ for AMD, and would leave
// a kernel a quarter of its registers.
#define OMNIFLASH_DEVICE __attribute__((device)) inline __attribute__((always_inline))
#define OMNIFLASH_KERNEL(threads) \
  extern "C" __attribute__((global)) __attribute__((amdgpu_flat_work_group_size(threads, threads))) void
#define OMNIFLASH_SHARED __attribute__((shared))
#else
#define OMNIFLASH_DEVICE inline
#define OMNIFLASH_KERNEL(threads) extern "C" void
#define OMNIFLASH_RESIDENT_KERNEL(threads, blocks) OMNIFLASH_KERNEL(threads)
#define OMNIFLASH_SHARED static
#endif

#if OMNIFLASH_CUDA
// A parameter that stays in constant memory though its address is taken.
#define OMNIFLASH_PARAMETER const __grid_constant__
#else
#define OMNIFLASH_PARAMETER const
#endif

// NVRTC has no offsetof without a header; nvcc checks the same text.
#if !defined(__CUDACC_RTC__)
#define OMNIFLASH_CHECK_OFFSET(type, member, offset) static_assert(__builtin_offsetof(type, member) == offset)
#else
#define OMNIFLASH_CHECK_OFFSET(type, member, offset) static_assert(true)
#endif

namespace omniflash {

#if OMNIFLASH_HIP && defined(__GFX9__)
constexpr int kWarpSize = 64;
#else
constexpr int kWarpSize = 32;
#endif

#if OMNIFLASH_CUDA

OMNIFLASH_DEVICE int thread_index() { return threadIdx.x; }
OMNIFLASH_DEVICE unsigned block_index_x() { return blockIdx.x; }
OMNIFLASH_DEVICE unsigned block_index_y() { return blockIdx.y; }
OMNIFLASH_DEVICE void barrier() { __syncthreads(); }
OMNIFLASH_DEVICE bool barrier_any(bool value) { return __syncthreads_or(value) != 0; }
OMNIFLASH_DEVICE float shuffle_xor(float value, int lane_mask) {
  return __shfl_xor_sync(0xffffffffu, value, lane_mask);
}
OMNIFLASH_DEVICE float shuffle(float value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }
OMNIFLASH_DEVICE bool warp_any(bool value) { return __any_sync(0xffffffffu, value) != 0; }
OMNIFLASH_DEVICE void atomic_min(unsigned long long* address, unsigned long long value) {
  atomicMin(address, value);
}

OMNIFLASH_DEVICE float fused_multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }
OMNIFLASH_DEVICE float float_max(float a, float b) { return fmaxf(a, b); }
OMNIFLASH_DEVICE int leading_zeros(unsigned value) { return __clz(value); }

// 2^x, log2(x), 1 / x with a relative error of about 2^-22; subnormal numbers are taken as 0.
OMNIFLASH_DEVICE float exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
OMNIFLASH_DEVICE float log2(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
OMNIFLASH_DEVICE float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

OMNIFLASH_DEVICE float half_to_float(unsigned short bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}
OMNIFLASH_DEVICE unsigned short float_to_half(float value) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}
OMNIFLASH_DEVICE unsigned short float_to_bfloat(float value) {
  unsigned short bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}
// Two values in one word, the first in the lower half.
OMNIFLASH_DEVICE unsigned pack_half(float low, float high) {
  unsigned bits;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}
OMNIFLASH_DEVICE unsigned pack_bfloat(float low, float high) {
  unsigned bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}

#elif OMNIFLASH_HIP

OMNIFLASH_DEVICE int thread_index() { return __builtin_amdgcn_workitem_id_x(); }
OMNIFLASH_DEVICE unsigned block_index_x() { return __builtin_amdgcn_workgroup_id_x(); }
OMNIFLASH_DEVICE unsigned block_index_y() { return __builtin_amdgcn_workgroup_id_y(); }

// Orders shared memory only: loads from global memory stay in flight.
OMNIFLASH_DEVICE void barrier() {
#if __clang_major__ >= 20
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup", "local");
  __builtin_amdgcn_s_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup", "local");
#else
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
  __builtin_amdgcn_s_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
#endif
}
OMNIFLASH_DEVICE float shuffle(float value, int lane) {
  return __builtin_bit_cast(float, __builtin_amdgcn_ds_bpermute(lane << 2, __builtin_bit_cast(int, value)));
}
OMNIFLASH_DEVICE float shuffle_xor(float value, int lane_mask) {
  const int lane = __builtin_amdgcn_mbcnt_hi(~0u, __builtin_amdgcn_mbcnt_lo(~0u, 0u));
  return shuffle(value, lane ^ lane_mask);
}
OMNIFLASH_DEVICE bool warp_any(bool value) {
#if defined(__GFX9__) && __clang_major__ < 17
  return __builtin_amdgcn_uicmp(value, 0, 33) != 0;  // 33: not equal
#elif defined(__GFX9__)
  return __builtin_amdgcn_ballot_w64(value) != 0;
#else
  return __builtin_amdgcn_ballot_w32(value) != 0;
#endif
}
OMNIFLASH_DEVICE bool barrier_any(bool value) {
  OMNIFLASH_SHARED unsigned any;
  if (thread_index() == 0) any = 0;
  barrier();
  if (value) __hip_atomic_fetch_or(&any, 1u, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_WORKGROUP);
  barrier();
  const bool result = any != 0;
  barrier();  // the next call begins with a store
  return result;
}
OMNIFLASH_DEVICE void atomic_min(unsigned long long* address, unsigned long long value) {
  __hip_atomic_fetch_min(address, value, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
}

#if __clang_major__ < 17
// There these are the instructions themselves.
OMNIFLASH_DEVICE float exp2(float x) { return __builtin_exp2f(x); }
OMNIFLASH_DEVICE float log2(float x) { return __builtin_log2f(x); }
#else
OMNIFLASH_DEVICE float exp2(float x) { return __builtin_amdgcn_exp2f(x); }
OMNIFLASH_DEVICE float log2(float x) { return __builtin_amdgcn_logf(x); }
#endif
OMNIFLASH_DEVICE float reciprocal(float x) { return __builtin_amdgcn_rcpf(x); }

OMNIFLASH_DEVICE float half_to_float(unsigned short bits) {
  return static_cast<float>(__builtin_bit_cast(_Float16, bits));
}
OMNIFLASH_DEVICE unsigned short float_to_half(float value) {
  return __builtin_bit_cast(unsigned short, static_cast<_Float16>(value));
}

#else

// Defined by whoever emulates a grid.
int thread_index();
unsigned block_index_x();
unsigned block_index_y();
void barrier();
bool barrier_any(bool value);
float shuffle_xor(float value, int lane_mask);
float shuffle(float value, int lane);
bool warp_any(bool value);

inline void atomic_min(unsigned long long* address, unsigned long long value) {
  if (value < *address) *address = value;
}

inline float exp2(float x) { return __builtin_exp2f(x); }
inline float log2(float x) { return __builtin_log2f(x); }
inline float reciprocal(float x) { return 1.0f / x; }

inline float half_to_float(unsigned short bits) {
  const unsigned sign = static_cast<unsigned>(bits & 0x8000) << 16, exponent = bits >> 10 & 31, mantissa = bits & 1023;
  if (exponent == 31) return __builtin_bit_cast(float, sign | 0x7f800000u | mantissa << 13);
  if (exponent != 0) return __builtin_bit_cast(float, sign | (exponent + 112) << 23 | mantissa << 13);
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return sign != 0 ? -magnitude : magnitude;
}
inline unsigned short float_to_half(float value) {
  const unsigned bits = __builtin_bit_cast(unsigned, value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return static_cast<unsigned short>(sign | 0x7e00);
  if (magnitude >= 0x477ff000) return static_cast<unsigned short>(sign | 0x7c00);
  if (magnitude < 0x38800000) {
    // Subnormal: adding 2^-1 leaves the rounded multiple of 2^-24 in the low bits.
    const float shifted = __builtin_bit_cast(float, magnitude) + 0.5f;
    return static_cast<unsigned short>(sign | (__builtin_bit_cast(unsigned, shifted) - 0x3f000000));
  }
  const unsigned rounded = magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1);
  return static_cast<unsigned short>(sign | rounded >> 13);
}

#endif

// Hides where a number comes from: what is computed from it is computed again rather than kept in registers.
OMNIFLASH_DEVICE int opaque(int value) {
#if OMNIFLASH_HIP
  asm volatile("" : "+v"(value));
#else
  asm volatile("" : "+r"(value));
#endif
  return value;
}

#if !OMNIFLASH_CUDA

OMNIFLASH_DEVICE float fused_multiply_add(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
OMNIFLASH_DEVICE float float_max(float a, float b) { return __builtin_fmaxf(a, b); }
OMNIFLASH_DEVICE int leading_zeros(unsigned value) { return value == 0 ? 32 : __builtin_clz(value); }

OMNIFLASH_DEVICE unsigned short float_to_bfloat(float value) {
  const unsigned bits = __builtin_bit_cast(unsigned, value);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<unsigned short>(bits >> 16 | 0x40);
  return static_cast<unsigned short>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
OMNIFLASH_DEVICE unsigned pack_half(float low, float high) {
  return float_to_half(low) | static_cast<unsigned>(float_to_half(high)) << 16;
}
#if OMNIFLASH_HIP && defined(__gfx950__)
OMNIFLASH_DEVICE unsigned pack_bfloat(float low, float high) {
  using Floats = float __attribute__((ext_vector_type(2)));
  using Bfloats = __bf16 __attribute__((ext_vector_type(2)));
  return __builtin_bit_cast(unsigned, __builtin_convertvector((Floats{low, high}), Bfloats));
}
#elif OMNIFLASH_HIP
// Rounded in the upper half, where no half of a register is needed: gfx11 has those for half of its registers only.
OMNIFLASH_DEVICE unsigned rounded_to_bfloat(float value) {
  const unsigned bits = __builtin_bit_cast(unsigned, value);
  // Both before the choice, or each number gets branches of its own.
  const unsigned rounded = bits + 0x7fff + (bits >> 16 & 1), quiet = bits | 0x400000;
  return value == value ? rounded : quiet;
}
OMNIFLASH_DEVICE unsigned pack_bfloat(float low, float high) {
  return __builtin_amdgcn_perm(rounded_to_bfloat(high), rounded_to_bfloat(low), 0x07060302);
}
#else
OMNIFLASH_DEVICE unsigned pack_bfloat(float low, float high) {
  return float_to_bfloat(low) | static_cast<unsigned>(float_to_bfloat(high)) << 16;
}
#endif

#endif

}  // namespace omniflash
