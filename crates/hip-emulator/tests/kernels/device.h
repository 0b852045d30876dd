// What the emulator's test kernels need of HIP, with no header of ROCm.
#pragma once
#define __global__ __attribute__((global))
#define __device__ __attribute__((device))
#define __shared__ __attribute__((shared))
#define __constant__ __attribute__((constant))
// clang ignores launch_bounds on amdgcn and then assumes 1024 work items, which halves the registers.
#define BLOCK_SIZE(n) __attribute__((amdgpu_flat_work_group_size(1, n)))
#define KERNEL(n) extern "C" __global__ BLOCK_SIZE(n) void
#define INLINE static __device__ __attribute__((always_inline))

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef float f32x2 __attribute__((ext_vector_type(2)));
typedef float f32x4 __attribute__((ext_vector_type(4)));
typedef float f32x8 __attribute__((ext_vector_type(8)));
typedef float f32x16 __attribute__((ext_vector_type(16)));
typedef short s16x4 __attribute__((ext_vector_type(4)));
typedef short s16x8 __attribute__((ext_vector_type(8)));
typedef short s16x16 __attribute__((ext_vector_type(16)));
typedef int i32x4 __attribute__((ext_vector_type(4)));
typedef _Float16 f16x4 __attribute__((ext_vector_type(4)));
typedef _Float16 f16x8 __attribute__((ext_vector_type(8)));
typedef _Float16 f16x16 __attribute__((ext_vector_type(16)));

#if defined(__gfx90a__) || defined(__gfx942__) || defined(__gfx950__)
#define CDNA 1
#define WAVE 64
#elif defined(__GFX11__)
#define RDNA3 1
#define WAVE 32
#elif defined(__GFX12__)
#define RDNA4 1
#define WAVE 32
#endif
#if defined(__gfx950__)
typedef __bf16 bf16x8 __attribute__((ext_vector_type(8)));
#endif

INLINE u32 item() { return __builtin_amdgcn_workitem_id_x(); }
INLINE u32 group_x() { return __builtin_amdgcn_workgroup_id_x(); }
INLINE u32 group_y() { return __builtin_amdgcn_workgroup_id_y(); }

INLINE void barrier() {
#ifndef WITHOUT_BARRIER
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
  __builtin_amdgcn_s_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
#endif
}

INLINE u16 to_bf16(float value) {
  u32 bits = __builtin_bit_cast(u32, value);
  return (u16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
