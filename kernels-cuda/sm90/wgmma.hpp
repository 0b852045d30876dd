// Asynchronous matrix products of a warpgroup (PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions").
//
// A product takes 64 rows of A, 16 from each warp, and all of B; its f32 results, and A where it comes from registers,
// lie as those of mma.sync: with g = lane / 4 and t = lane % 4, word 4 n + 2 half + i is row g + 8 half, column 8 n + 2 t + i.
#pragma once

#include "omniflash/numeric.hpp"

namespace omniflash {

// wgmma.fence: products issued after it see the registers written before it.
OMNIFLASH_DEVICE void product_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// wgmma.commit_group: ends a group of products.
OMNIFLASH_DEVICE void product_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// wgmma.wait_group: at most kPending groups are under way.
template <int kPending>
OMNIFLASH_DEVICE void product_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps ordinary uses of registers on their side of a product's issue or wait; emits nothing.
template <int kCount>
OMNIFLASH_DEVICE void pin(float (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}
template <int kCount>
OMNIFLASH_DEVICE void pin(unsigned (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(registers[i])::"memory");
}

OMNIFLASH_DEVICE void pin(unsigned& value) { asm volatile("" : "+r"(value)::"memory"); }

// One step of a product, 16 deep and kColumns wide, on elements of 16 bits:
//   from_shared:    d[64, n] (+)= A[64, 16] B[n, 16]^T    both in shared memory, rows of 16 (Q K^T)
//   from_registers: d[64, n] +=   A[64, 16] B[16, n]      B in shared memory, 16 rows of n (P V, V as it is stored)
template <class Element, int kColumns>
struct MatrixProduct;

// wgmma.mma_async, spelled for every width: %0 .. are the results, then the operands.

#define OMNIFLASH_NAMES_1 "%0, %1, %2, %3, %4, %5, %6, %7"
#define OMNIFLASH_NAMES_2 OMNIFLASH_NAMES_1 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define OMNIFLASH_NAMES_3 OMNIFLASH_NAMES_2 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define OMNIFLASH_NAMES_4 OMNIFLASH_NAMES_3 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define OMNIFLASH_NAMES_5 OMNIFLASH_NAMES_4 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define OMNIFLASH_NAMES_6 OMNIFLASH_NAMES_5 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define OMNIFLASH_NAMES_7 OMNIFLASH_NAMES_6 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define OMNIFLASH_NAMES_8 OMNIFLASH_NAMES_7 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define OMNIFLASH_NAMES_9 OMNIFLASH_NAMES_8 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define OMNIFLASH_NAMES_10 OMNIFLASH_NAMES_9 ", %72, %73, %74, %75, %76, %77, %78, %79"
#define OMNIFLASH_NAMES_11 OMNIFLASH_NAMES_10 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define OMNIFLASH_NAMES_12 OMNIFLASH_NAMES_11 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define OMNIFLASH_NAMES_13 OMNIFLASH_NAMES_12 ", %96, %97, %98, %99, %100, %101, %102, %103"
#define OMNIFLASH_NAMES_14 OMNIFLASH_NAMES_13 ", %104, %105, %106, %107, %108, %109, %110, %111"
#define OMNIFLASH_NAMES_15 OMNIFLASH_NAMES_14 ", %112, %113, %114, %115, %116, %117, %118, %119"
#define OMNIFLASH_NAMES_16 OMNIFLASH_NAMES_15 ", %120, %121, %122, %123, %124, %125, %126, %127"
#define OMNIFLASH_EIGHT(i) \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define OMNIFLASH_REGISTERS_1 OMNIFLASH_EIGHT(0)
#define OMNIFLASH_REGISTERS_2 OMNIFLASH_REGISTERS_1, OMNIFLASH_EIGHT(8)
#define OMNIFLASH_REGISTERS_3 OMNIFLASH_REGISTERS_2, OMNIFLASH_EIGHT(16)
#define OMNIFLASH_REGISTERS_4 OMNIFLASH_REGISTERS_3, OMNIFLASH_EIGHT(24)
#define OMNIFLASH_REGISTERS_5 OMNIFLASH_REGISTERS_4, OMNIFLASH_EIGHT(32)
#define OMNIFLASH_REGISTERS_6 OMNIFLASH_REGISTERS_5, OMNIFLASH_EIGHT(40)
#define OMNIFLASH_REGISTERS_7 OMNIFLASH_REGISTERS_6, OMNIFLASH_EIGHT(48)
#define OMNIFLASH_REGISTERS_8 OMNIFLASH_REGISTERS_7, OMNIFLASH_EIGHT(56)
#define OMNIFLASH_REGISTERS_9 OMNIFLASH_REGISTERS_8, OMNIFLASH_EIGHT(64)
#define OMNIFLASH_REGISTERS_10 OMNIFLASH_REGISTERS_9, OMNIFLASH_EIGHT(72)
#define OMNIFLASH_REGISTERS_11 OMNIFLASH_REGISTERS_10, OMNIFLASH_EIGHT(80)
#define OMNIFLASH_REGISTERS_12 OMNIFLASH_REGISTERS_11, OMNIFLASH_EIGHT(88)
#define OMNIFLASH_REGISTERS_13 OMNIFLASH_REGISTERS_12, OMNIFLASH_EIGHT(96)
#define OMNIFLASH_REGISTERS_14 OMNIFLASH_REGISTERS_13, OMNIFLASH_EIGHT(104)
#define OMNIFLASH_REGISTERS_15 OMNIFLASH_REGISTERS_14, OMNIFLASH_EIGHT(112)
#define OMNIFLASH_REGISTERS_16 OMNIFLASH_REGISTERS_15, OMNIFLASH_EIGHT(120)

#define OMNIFLASH_PRODUCT(element, type, n, g, i0, i1, i2, i3, i4)                                                    \
  template <>                                                                                                         \
  struct MatrixProduct<element, n> {                                                                                  \
    OMNIFLASH_DEVICE static void from_shared(float (&d)[n / 2], unsigned long long a, unsigned long long b,           \
                                             int accumulate) {                                                        \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #i2 ", 0;\n"                                                  \
                   "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" OMNIFLASH_NAMES_##g           \
                   "}, %" #i0 ", %" #i1 ", p, 1, 1, 0, 0;\n}\n"                                                       \
                   : OMNIFLASH_REGISTERS_##g                                                                          \
                   : "l"(a), "l"(b), "r"(accumulate));                                                                \
    }                                                                                                                 \
    OMNIFLASH_DEVICE static void from_registers(float (&d)[n / 2], const unsigned* a, unsigned long long b) {         \
      asm volatile("{\n.reg .pred p;\nsetp.eq.u32 p, 0, 0;\n"                                                        \
                   "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" OMNIFLASH_NAMES_##g           \
                   "}, {%" #i0 ", %" #i1 ", %" #i2 ", %" #i3 "}, %" #i4 ", p, 1, 1, 1;\n}\n"                          \
                   : OMNIFLASH_REGISTERS_##g                                                                          \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                             \
    }                                                                                                                 \
  };
#define OMNIFLASH_PRODUCTS(n, g, ...)                                 \
  OMNIFLASH_PRODUCT(float16, "f16", n, g, __VA_ARGS__)                \
  OMNIFLASH_PRODUCT(bfloat16, "bf16", n, g, __VA_ARGS__)

OMNIFLASH_PRODUCTS(16, 1, 8, 9, 10, 11, 12)
OMNIFLASH_PRODUCTS(32, 2, 16, 17, 18, 19, 20)
OMNIFLASH_PRODUCTS(48, 3, 24, 25, 26, 27, 28)
OMNIFLASH_PRODUCTS(64, 4, 32, 33, 34, 35, 36)
OMNIFLASH_PRODUCTS(80, 5, 40, 41, 42, 43, 44)
OMNIFLASH_PRODUCTS(96, 6, 48, 49, 50, 51, 52)
OMNIFLASH_PRODUCTS(112, 7, 56, 57, 58, 59, 60)
OMNIFLASH_PRODUCTS(128, 8, 64, 65, 66, 67, 68)
OMNIFLASH_PRODUCTS(144, 9, 72, 73, 74, 75, 76)
OMNIFLASH_PRODUCTS(160, 10, 80, 81, 82, 83, 84)
OMNIFLASH_PRODUCTS(176, 11, 88, 89, 90, 91, 92)
OMNIFLASH_PRODUCTS(192, 12, 96, 97, 98, 99, 100)
OMNIFLASH_PRODUCTS(208, 13, 104, 105, 106, 107, 108)
OMNIFLASH_PRODUCTS(224, 14, 112, 113, 114, 115, 116)
OMNIFLASH_PRODUCTS(240, 15, 120, 121, 122, 123, 124)
OMNIFLASH_PRODUCTS(256, 16, 128, 129, 130, 131, 132)

}  // namespace omniflash
