// Instructions of sm_80 and later, one function each: asynchronous copies, matrix loads, matrix products.
//
// Shared memory is addressed by 32-bit offsets of its window. An emulator replaces this file.
#pragma once

#include "omniflash/numeric.hpp"

namespace omniflash {

// The first byte of dynamic shared memory, a multiple of 1024.
OMNIFLASH_DEVICE unsigned shared_memory() {
  extern __shared__ __align__(1024) unsigned char dynamic_shared_memory[];
  return static_cast<unsigned>(__cvta_generic_to_shared(dynamic_shared_memory));
}

// Copies 16 bytes from global to shared memory, or writes zeros; the source is not read then.
OMNIFLASH_DEVICE void copy_async_16(unsigned to, const void* from, bool valid) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
// How the second-level cache ranks lines that a copy brings: as first to leave it, or unchanged by it.
OMNIFLASH_DEVICE unsigned long long cache_policy(bool leaves_first) {
  unsigned long long first, unchanged;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(first));
  asm("createpolicy.fractional.L2::evict_unchanged.b64 %0, 1.0;" : "=l"(unchanged));
  return leaves_first ? first : unchanged;
}
OMNIFLASH_DEVICE void copy_async_16(unsigned to, const void* from, bool valid, unsigned long long policy) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], 16, %2, %3;" ::"r"(to), "l"(from), "r"(bytes),
               "l"(policy)
               : "memory");
}
OMNIFLASH_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most kPending of this thread's groups are under way.
template <int kPending>
OMNIFLASH_DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Asks for the line of 128 bytes around an address to be brought into the second-level cache.
OMNIFLASH_DEVICE void prefetch_line(const void* address) { asm volatile("prefetch.global.L2 [%0];" ::"l"(address)); }
// Multiprocessors of the device; perhaps a few more than there are.
OMNIFLASH_DEVICE unsigned num_multiprocessors() {
  unsigned number;
  asm("mov.u32 %0, %%nsmid;" : "=r"(number));
  return number;
}

OMNIFLASH_DEVICE void store_shared_16(unsigned to, const unsigned (&words)[4]) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(words[0]), "r"(words[1]), "r"(words[2]),
               "r"(words[3])
               : "memory");
}
OMNIFLASH_DEVICE void store_shared_8(unsigned to, unsigned low, unsigned high) {
  asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(to), "r"(low), "r"(high) : "memory");
}
OMNIFLASH_DEVICE void store_shared_4(unsigned to, unsigned word) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(word) : "memory");
}
OMNIFLASH_DEVICE void load_shared_16(unsigned (&words)[4], unsigned from) {
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(from)
               : "memory");
}
OMNIFLASH_DEVICE unsigned load_shared_4(unsigned from) {
  unsigned word;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(word) : "r"(from) : "memory");
  return word;
}

// bar.sync (PTX ISA, "Parallel Synchronization and Communication Instructions: bar"): waits for so many threads at one
// of the block's sixteen named barriers; 0 is that of the whole block.
OMNIFLASH_DEVICE void named_barrier(int name, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(name), "r"(threads) : "memory");
}
// The lanes of a warp meet; what one has written to shared memory before, the others see after.
OMNIFLASH_DEVICE void warp_barrier() { __syncwarp(); }
// The word of a lane.
OMNIFLASH_DEVICE unsigned from_lane(unsigned word, int lane) { return __shfl_sync(0xffffffffu, word, lane); }
// The first lane for which it is true; one there must be.
OMNIFLASH_DEVICE int first_lane(bool value) { return __ffs(__ballot_sync(0xffffffffu, value)) - 1; }

// What a thread has written to global memory before, other blocks that read it fresh see before what it writes after.
OMNIFLASH_DEVICE void device_fence() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }
OMNIFLASH_DEVICE unsigned atomic_add(unsigned* address, unsigned value) { return atomicAdd(address, value); }
// Reads what other blocks may have written since the kernel began: not from the multiprocessor's own cache.
OMNIFLASH_DEVICE float load_fresh(const float* address) {
  float value;
  asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(value) : "l"(address) : "memory");
  return value;
}
OMNIFLASH_DEVICE unsigned long long load_fresh_8(const void* address) {
  unsigned long long word;
  asm volatile("ld.global.cg.b64 %0, [%1];" : "=l"(word) : "l"(address) : "memory");
  return word;
}
OMNIFLASH_DEVICE void load_fresh_16(float (&values)[4], const float* address) {
  asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(values[0]), "=f"(values[1]), "=f"(values[2]), "=f"(values[3])
               : "l"(address)
               : "memory");
}

// Four matrices of 8 rows of 16 bytes; lane l gives the address of row l % 8 of matrix l / 8, and gets the word
// l % 4 of row l / 4 of each.
OMNIFLASH_DEVICE void load_matrices(unsigned (&words)[4], unsigned row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(row)
               : "memory");
}
// As above, each matrix transposed as 8 x 8 numbers of 16 bits.
OMNIFLASH_DEVICE void load_matrices_transposed(unsigned (&words)[4], unsigned row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(row)
               : "memory");
}

// c += a b, 16 x 16 times 16 x 8. With g = lane / 4 and t = lane % 4:
//   a: words of (row, columns) (g, 2t..), (g + 8, 2t..), (g, 2t + 8..), (g + 8, 2t + 8..)
//   b: words of (rows, column) (2t.., g), (2t + 8.., g)
//   c: (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)
template <class Element>
OMNIFLASH_DEVICE void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1);
template <>
OMNIFLASH_DEVICE void multiply_add<float16>(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
OMNIFLASH_DEVICE void multiply_add<bfloat16>(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

OMNIFLASH_DEVICE unsigned round_to_tf32(unsigned bits) {
  unsigned rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__builtin_bit_cast(float, bits)));
  return rounded;
}

// c += a b, 16 x 8 times 8 x 8, operands f32 of which the upper 19 bits count:
//   a: (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4)    b: (t, g), (t + 4, g)    c: as above
OMNIFLASH_DEVICE void multiply_add_tf32(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace omniflash
