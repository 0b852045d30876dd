// In place of the instructions of sm_80: the same functions on a host, for one thread of a grid that grid.hpp runs.
//
// Copies are as late as the program allows: they happen when a wait demands them, so that a wait that is missing shows.
#pragma once

#include "omniflash/numeric.hpp"

namespace omniflash {

namespace emulator {

struct Copy {
  unsigned to;
  const void* from;
};

// In an address of a cluster the block stands above the address in it.
constexpr int kBlockShift = 20;

unsigned char* shared_bytes(unsigned address, unsigned size);
void enqueue(const Copy& copy);
void commit();
void wait(int pending);
// Gives this lane's words to the warp, and back what `compute` makes of all lanes' words.
void collective(const unsigned* words, int count, unsigned* results, int result_count,
                void (*compute)(const unsigned (*words)[16], unsigned (*results)[16]));

inline float as_float(unsigned bits) { return __builtin_bit_cast(float, bits); }
inline unsigned as_bits(float value) { return __builtin_bit_cast(unsigned, value); }

// The word `t` of row `g` of each of four matrices; with `transposed` the numbers (2t, g) and (2t + 1, g).
template <bool kTransposed>
void read_matrices(const unsigned (*rows)[16], unsigned (*results)[16]) {
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int matrix = 0; matrix < 4; ++matrix) {
      if (kTransposed) {
        unsigned short halves[2];
        for (int i = 0; i < 2; ++i) {
          __builtin_memcpy(&halves[i], shared_bytes(rows[8 * matrix + 2 * t + i][0], 16) + 2 * g, 2);
        }
        results[lane][matrix] = halves[0] | static_cast<unsigned>(halves[1]) << 16;
      } else {
        __builtin_memcpy(&results[lane][matrix], shared_bytes(rows[8 * matrix + g][0], 16) + 4 * t, 4);
      }
    }
  }
}

template <class Element>
float half_at(unsigned word, int i) {
  return to_float(Element{static_cast<unsigned short>(word >> 16 * i)});
}

// D = A B + C from the definition of the fragments: words 0-3 are a, 4 and 5 b, 6-9 c.
template <class Element>
void multiply(const unsigned (*words)[16], unsigned (*results)[16]) {
  constexpr bool kTf32 = sizeof(Element) == 4;
  constexpr int kDepth = kTf32 ? 8 : 16;
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) {
      const int row = g + i % 2 * 8;
      if constexpr (kTf32) {
        a[row][t + i / 2 * 4] = as_float(words[lane][i] & 0xffffe000);
      } else {
        for (int e = 0; e < 2; ++e) a[row][2 * t + e + i / 2 * 8] = half_at<Element>(words[lane][i], e);
      }
    }
    for (int i = 0; i < 2; ++i) {
      if constexpr (kTf32) {
        b[t + 4 * i][g] = as_float(words[lane][4 + i] & 0xffffe000);
      } else {
        for (int e = 0; e < 2; ++e) b[2 * t + e + 8 * i][g] = half_at<Element>(words[lane][4 + i], e);
      }
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      double sum = as_float(words[lane][6 + i]);
      for (int k = 0; k < kDepth; ++k) sum += static_cast<double>(a[row][k]) * b[k][column];
      results[lane][i] = as_bits(static_cast<float>(sum));
    }
  }
}

template <class Element>
void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  const unsigned words[10] = {a[0], a[1], a[2], a[3], b0, b1, as_bits(c[0]), as_bits(c[1]), as_bits(c[2]), as_bits(c[3])};
  unsigned results[4];
  collective(words, 10, results, 4, multiply<Element>);
  for (int i = 0; i < 4; ++i) c[i] = as_float(results[i]);
}

}  // namespace emulator

inline unsigned shared_memory() { return 0; }

inline void copy_async_16(unsigned to, const void* from, bool valid) {
  emulator::enqueue({to, valid ? from : nullptr});
}
inline unsigned long long cache_policy(bool) { return 0; }
inline void copy_async_16(unsigned to, const void* from, bool valid, unsigned long long) { copy_async_16(to, from, valid); }
// Reads a byte, so that an address of nothing is found out; and so few that blocks have others behind them.
inline void prefetch_line(const void* address) { (void)*static_cast<const volatile unsigned char*>(address); }
inline unsigned num_multiprocessors() { return 1; }
inline void copy_commit() { emulator::commit(); }
template <int kPending>
void copy_wait() {
  emulator::wait(kPending);
}

inline void store_shared_16(unsigned to, const unsigned (&words)[4]) {
  __builtin_memcpy(emulator::shared_bytes(to, 16), words, 16);
}
inline void store_shared_8(unsigned to, unsigned low, unsigned high) {
  const unsigned words[2] = {low, high};
  __builtin_memcpy(emulator::shared_bytes(to, 8), words, 8);
}
inline void store_shared_4(unsigned to, unsigned word) {
  __builtin_memcpy(emulator::shared_bytes(to, 4), &word, 4);
}
inline void load_shared_16(unsigned (&words)[4], unsigned from) {
  __builtin_memcpy(words, emulator::shared_bytes(from, 16), 16);
}
inline unsigned load_shared_4(unsigned from) {
  unsigned word;
  __builtin_memcpy(&word, emulator::shared_bytes(from, 4), 4);
  return word;
}

inline unsigned from_lane(unsigned word, int lane) {
  const unsigned words[2] = {word, static_cast<unsigned>(lane)};
  unsigned result;
  emulator::collective(words, 2, &result, 1, [](const unsigned(*all)[16], unsigned(*results)[16]) {
    for (int i = 0; i < 32; ++i) results[i][0] = all[all[i][1] % 32][0];
  });
  return result;
}
void named_barrier(int name, int threads);
inline void warp_barrier() { from_lane(0, 0); }
inline int __ffs(unsigned word) { return __builtin_ffs(static_cast<int>(word)); }
inline unsigned __ballot_sync(unsigned, bool value) {
  const unsigned word = value;
  unsigned result;
  emulator::collective(&word, 1, &result, 1, [](const unsigned(*all)[16], unsigned(*results)[16]) {
    unsigned bits = 0;
    for (int i = 0; i < 32; ++i) bits |= all[i][0] << i;
    for (int i = 0; i < 32; ++i) results[i][0] = bits;
  });
  return result;
}
inline int first_lane(bool value) { return __ffs(__ballot_sync(~0u, value)) - 1; }

// Blocks run one after another.
inline void device_fence() {}
inline unsigned atomic_add(unsigned* address, unsigned value) {
  const unsigned before = *address;
  *address += value;
  return before;
}
inline float load_fresh(const float* address) { return *address; }
inline unsigned long long load_fresh_8(const void* address) {
  unsigned long long word;
  __builtin_memcpy(&word, address, 8);
  return word;
}
inline void load_fresh_16(float (&values)[4], const float* address) { __builtin_memcpy(values, address, 16); }

inline void load_matrices(unsigned (&words)[4], unsigned row) {
  emulator::collective(&row, 1, words, 4, emulator::read_matrices<false>);
}
inline void load_matrices_transposed(unsigned (&words)[4], unsigned row) {
  emulator::collective(&row, 1, words, 4, emulator::read_matrices<true>);
}

template <class Element>
void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  emulator::multiply_add<Element>(c, a, b0, b1);
}
inline void multiply_add_tf32(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  emulator::multiply_add<float>(c, a, b0, b1);
}

inline unsigned round_to_tf32(unsigned bits) {
  const bool finite = (bits & 0x7f800000) != 0x7f800000;
  return (finite ? bits + 0x1000 : bits) & 0xffffe000;
}

}  // namespace omniflash
