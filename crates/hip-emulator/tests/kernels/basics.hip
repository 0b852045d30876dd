// Small kernels, one idea each.
#include "device.h"

__constant__ float factors[4] = {1.0f, 2.0f, 4.0f, 8.0f};

KERNEL(256) add(const float* a, const float* b, float* c, int n) {
  int i = group_x() * 256 + item();
  if (i < n) c[i] = a[i] + b[i];
}

// Reads a table of the code object.
KERNEL(64) scale_by_table(const float* a, float* b) {
  int i = item();
  b[i] = a[i] * factors[i & 3];
}

KERNEL(64) divide(const float* a, const float* b, float* c) { c[item()] = a[item()] / b[item()]; }

// A sum over the workgroup through LDS; each wave must see what the others wrote.
KERNEL(256) sum(const float* a, float* total) {
  __shared__ float parts[256];
  int i = item();
  parts[i] = a[group_x() * 256 + i];
  barrier();
  for (int step = 128; step > 0; step >>= 1) {
    if (i < step) parts[i] += parts[i + step];
    barrier();
  }
  if (i == 0) total[group_x()] = parts[0];
}

KERNEL(256) histogram(const u32* values, u32* bins, int n) {
  __shared__ u32 local[16];
  int i = item();
  if (i < 16) local[i] = 0;
  barrier();
  for (int at = group_x() * 256 + i; at < n; at += 1024) __atomic_fetch_add(&local[values[at] & 15], 1u, __ATOMIC_RELAXED);
  barrier();
  if (i < 16) __atomic_fetch_add(&bins[i], local[i], __ATOMIC_RELAXED);
}

// An array that is indexed at run time lives in scratch memory.
KERNEL(64) reverse_in_scratch(const u32* a, u32* b) {
  volatile u32 copy[16];
  int i = item();
  for (int j = 0; j < 16; j++) copy[j] = a[j] + i;
  b[i] = copy[15 - (i & 15)];
}

KERNEL(64) shuffle(const u32* a, u32* b) {
  u32 i = item(), x = a[i];
#if CDNA
  b[i] = (u32)__builtin_amdgcn_ds_bpermute((int)((i ^ 32) << 2), (int)x);
#else
  b[i] = __builtin_amdgcn_permlanex16(x, x, 0x76543210, 0xfedcba98, false, false);
#endif
}

// Reads one dword past what it should when told to.
KERNEL(64) copy_shifted(const u32* a, u32* b, int shift) { b[item()] = a[item() + shift]; }

// Only some lanes initialise what all of them store.
KERNEL(64) store_uninitialised(u32* b, int limit) {
  u32 i = item(), value;
  asm volatile("v_mov_b32 %0, v200" : "=v"(value));
  b[i] = (int)i < limit ? i : value;
}

// A load by hand whose wait is missing when told to.
KERNEL(64) load_by_hand(const u32* a, u32* b) {
  u32 value;
  const u32* from = a + item();
#if CDNA
#ifdef WITHOUT_WAIT
  asm volatile("global_load_dword %0, %1, off\n\ts_nop 0\n\tv_add_u32 %0, 1, %0" : "=&v"(value) : "v"(from));
#else
  asm volatile("global_load_dword %0, %1, off\n\ts_waitcnt vmcnt(0)\n\tv_add_u32 %0, 1, %0" : "=&v"(value) : "v"(from));
#endif
#elif RDNA3
#ifdef WITHOUT_WAIT
  asm volatile("global_load_b32 %0, %1, off\n\tv_add_nc_u32 %0, 1, %0" : "=&v"(value) : "v"(from));
#else
  asm volatile("global_load_b32 %0, %1, off\n\ts_waitcnt vmcnt(0)\n\tv_add_nc_u32 %0, 1, %0" : "=&v"(value) : "v"(from));
#endif
#else
#ifdef WITHOUT_WAIT
  asm volatile("global_load_b32 %0, %1, off\n\tv_add_nc_u32 %0, 1, %0" : "=&v"(value) : "v"(from));
#else
  asm volatile("global_load_b32 %0, %1, off\n\ts_wait_loadcnt 0\n\tv_add_nc_u32 %0, 1, %0" : "=&v"(value) : "v"(from));
#endif
#endif
  b[item()] = value;
}

KERNEL(64) unknown_instruction(u32* b) {
#if CDNA
  asm volatile("v_cubeid_f32 v1, v1, v2, v3" ::: "v1");
#else
  asm volatile("v_cubeid_f32 v1, v1, v2, v3" ::: "v1");
#endif
  b[item()] = 1;
}

// A loop that one wave leaves before the barrier the others wait at.
KERNEL(256) deadlock(u32* b) {
  if (item() >= WAVE) __builtin_amdgcn_s_barrier();
  __builtin_amdgcn_s_sleep(1);
  if (item() < WAVE) { __builtin_amdgcn_s_barrier(); __builtin_amdgcn_s_barrier(); }
  b[item()] = 1;
}

// LDS whose size the launch decides.
KERNEL(64) rotate_in_dynamic_lds(const u32* a, u32* b) {
  extern __shared__ u32 dynamic[];
  dynamic[item()] = a[item()];
  barrier();
  b[item()] = dynamic[(item() + 1) & (WAVE - 1)];
}

// A raw buffer: what lies beyond its records reads as zero.
KERNEL(64) read_buffer(u32* a, u32* b, int bytes) {
  __amdgpu_buffer_rsrc_t resource = __builtin_amdgcn_make_buffer_rsrc(a, 0, bytes, 0x00027000);
  b[item()] = __builtin_amdgcn_raw_buffer_load_b32(resource, item() * 4, 0, 0);
}

// The grid's size comes from the hidden arguments.
KERNEL(64) grid_size(u32* b) {
  b[group_x()] = __builtin_amdgcn_grid_size_x();
}

#if CDNA
typedef __attribute__((address_space(3))) void* lds_pointer;
KERNEL(64) direct_to_lds(u32* a, u32* b) {
  __shared__ u32 tile[64];
  __builtin_amdgcn_global_load_lds((__attribute__((address_space(1))) void*)(a + item()), (lds_pointer)tile, 4, 0, 0);
#ifndef WITHOUT_WAIT
  __builtin_amdgcn_s_waitcnt(0);
#endif
  u32 value;
  asm volatile("ds_read_b32 %0, %1\n\ts_waitcnt lgkmcnt(0)" : "=v"(value) : "v"((63 - item()) * 4));
  b[item()] = value;
}
#endif
