// In place of asynchronous matrix products: they happen when they are waited for, and read then what their descriptors and
// registers name, so that a wait that is missing, and a slot that is given back before it, show.
#pragma once

#include "sm80.hpp"

namespace omniflash {

namespace emulator {

// One step of a product. A comes from shared memory by a descriptor, or from registers.
struct Product {
  void (*run)(const Product&);
  float* d;
  const unsigned* a;
  unsigned long long a_descriptor, b_descriptor;
  bool accumulates;
};
void issue(const Product& product);
void commit_products();
void wait_for_products(int pending);

// Bytes of shared memory where a descriptor's matrix has an element: eight rows of 128 bytes, permuted, are a pattern.
struct Descriptor {
  unsigned start, leading, stride;

  explicit Descriptor(unsigned long long words)
      : start((words & 0x3fff) << 4), leading((words >> 16 & 0x3fff) << 4), stride((words >> 32 & 0x3fff) << 4) {}
  static float read(unsigned address, bool is_half) {
    const unsigned char* bytes = shared_bytes((address ^ (address >> 7 & 7) << 4) & ~1u, 2);
    unsigned short half;
    __builtin_memcpy(&half, bytes, 2);
    return is_half ? half_to_float(half) : as_float(static_cast<unsigned>(half) << 16);
  }
  // Each row a run of the depth.
  float row(int row, int depth, bool is_half) const {
    return read(start + row / 8 * stride + row % 8 * 128 + 2 * depth, is_half);
  }
  // Rows are steps of the depth.
  float column(int depth, int column, bool is_half) const {
    return read(start + column / 64 * leading + depth / 8 * stride + depth % 8 * 128 + column % 64 * 2, is_half);
  }
};

// What the lanes of a quad gave.
inline void of_quad(const void* own, const unsigned* (&all)[4]) {
  unsigned words[2], results[8];
  __builtin_memcpy(words, &own, 8);
  collective(words, 2, results, 8, [](const unsigned(*all)[16], unsigned(*results)[16]) {
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 4; ++i) {
        for (int word = 0; word < 2; ++word) results[lane][2 * i + word] = all[lane / 4 * 4 + i][word];
      }
    }
  });
  __builtin_memcpy(all, results, 32);
}

template <class Element, int kColumns>
void multiply_tile(const Product& product) {
  constexpr bool kIsHalf = __is_same(Element, float16);
  const int lane = thread_index() % 32, warp = thread_index() / 32 % 4;
  const Descriptor b(product.b_descriptor);
  float a[2][16];
  if (product.a == nullptr) {
    const Descriptor rows(product.a_descriptor);
    for (int half = 0; half < 2; ++half) {
      for (int k = 0; k < 16; ++k) a[half][k] = rows.row(16 * warp + lane / 4 + 8 * half, k, kIsHalf);
    }
  } else {
    const unsigned* words[4];
    of_quad(product.a, words);
    for (int half = 0; half < 2; ++half) {
      for (int k = 0; k < 16; ++k) a[half][k] = half_at<Element>(words[k % 8 / 2][half + k / 8 * 2], k % 2);
    }
  }
  for (int n = 0; n < kColumns / 8; ++n) {
    for (int i = 0; i < 2; ++i) {
      const int column = 8 * n + lane % 4 * 2 + i;
      float terms[16];
      for (int k = 0; k < 16; ++k) {
        terms[k] = product.a == nullptr ? b.row(column, k, kIsHalf) : b.column(k, column, kIsHalf);
      }
      for (int half = 0; half < 2; ++half) {
        double sum = product.accumulates ? product.d[4 * n + 2 * half + i] : 0.0;
        for (int k = 0; k < 16; ++k) sum += static_cast<double>(a[half][k]) * terms[k];
        product.d[4 * n + 2 * half + i] = static_cast<float>(sum);
      }
    }
  }
}

}  // namespace emulator

inline void product_fence() {}
inline void product_commit() { emulator::commit_products(); }
template <int kPending>
void product_wait() {
  emulator::wait_for_products(kPending);
}

template <int kCount>
void pin(float (&)[kCount]) {
  asm volatile("" ::: "memory");
}
template <int kCount>
void pin(unsigned (&)[kCount]) {
  asm volatile("" ::: "memory");
}
inline void pin(unsigned&) {}

template <class Element, int kColumns>
struct MatrixProduct {
  static void from_shared(float (&d)[kColumns / 2], unsigned long long a, unsigned long long b, int accumulate) {
    emulator::issue({emulator::multiply_tile<Element, kColumns>, d, nullptr, a, b, accumulate != 0});
  }
  static void from_registers(float (&d)[kColumns / 2], const unsigned* a, unsigned long long b) {
    emulator::issue({emulator::multiply_tile<Element, kColumns>, d, a, 0, b, true});
  }
};

}  // namespace omniflash
