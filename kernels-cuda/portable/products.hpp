// Scores, weights and outputs of a tile, by warps alone or side by side.
#pragma once

#include "portable/copies.hpp"

namespace omniflash {

// ---- scores; templates, because only products of 16 bits keep queries

template <class Product, class Queries>
OMNIFLASH_DEVICE void keep_queries(Queries& queries, int first_row) {
  if constexpr (kKeepsQueries) Product::load_queries(queries, query_tile(), first_row);
}

template <class Product, class Queries, class Cargo = NoCargo>
OMNIFLASH_DEVICE void add_scores(const Block& block, Scores& s, const Queries& queries, int slot, const Cargo& cargo = {}) {
  const RowsOfHeadDim keys{key_tile(slot).address + block.first_key() * RowsOfHeadDim::kRowBytes};
  if constexpr (kKeepsQueries) {
    Product::scores(s, queries, keys, cargo);
  } else if constexpr (Product::kTakesCargo) {
    Product::scores(s, query_tile(), block.warp_row, keys, cargo);
  } else {
    cargo(0, 1);
    Product::scores(s, query_tile(), block.warp_row, keys);
  }
}

// What becomes of the scores of a tile at a mask's border, or that not all keys are in.
OMNIFLASH_DEVICE void modify_and_hide(const Block& block, int tile, bool asks, bool ends, Scores& s) {
  const int first_key = tile * kBlockN + block.first_key();
  modify(block, first_key, s);
  if (asks || ends) hide(block, block.functors.mask, first_key, asks, s);
}

// ---- warps side by side
//
// Where rows are wide, a tile's products read shared memory for longer than they multiply: a warp of 16 rows reads all keys
// and values. Two warps then share 32 rows, and each reads half:
//
//                S = Q K^T                 O += P V
//            +--------+--------+      +--------+--------+
//   32 rows  | warp 0 | warp 1 |      | warp 0 | warp 1 |     Of P each gets the other's half through the exchange area:
//            +--------+--------+      +--------+--------+     [ a warp's A operands, .. | a number for each row of a warp, .. ]
//                   keys                   columns
//
// The two must agree on their rows' offsets: whether any has to be raised is asked at the barrier at which all leave the keys.

using Weights = unsigned[kFragments][kN / 2][4];

constexpr unsigned kWeightBytes = sizeof(Weights) * 32;

// The barrier of the two warps of the same rows; number 0 is that of all.
OMNIFLASH_DEVICE void pair_barrier() { named_barrier(1 + thread_index() / 64, 64); }

// Gives a number of each row to the warp at one's side, and gets its. Between two calls both pass a barrier.
OMNIFLASH_DEVICE void exchange(float (&of_rows)[kFragments][2]) {
  constexpr unsigned kBytes = 4 * 16 * kFragments;  // of a warp's rows
  const int warp = thread_index() / 32;
  const unsigned numbers = exchange_area() + kWarps * kWeightBytes + lane_index() / 4 * 4;
#pragma unroll
  for (int i = 0; i < 2 * kFragments; ++i) {
    const unsigned bits = __builtin_bit_cast(unsigned, of_rows[i / 2][i % 2]);
    if (lane_index() % 4 == 0) store_shared_4(numbers + warp * kBytes + 8 * 4 * i, bits);
  }
  pair_barrier();
#pragma unroll
  for (int i = 0; i < 2 * kFragments; ++i) {
    of_rows[i / 2][i % 2] = __builtin_bit_cast(float, load_shared_4(numbers + (warp ^ 1) * kBytes + 8 * 4 * i));
  }
}

// The largest scores of a tile's rows, and what they ask for.
struct Maxima {
  float largest[kFragments][2];
  bool passes = false;  // whether an offset must be raised

  OMNIFLASH_DEVICE void find(const Block& block, const Softmax& softmax, const Scores& s) {
    passes = find_largest(block.factor, softmax, s, largest);
  }
  // The barrier at which all warps leave the keys.
  OMNIFLASH_DEVICE void meet() {
    if constexpr (kWarpsAcross == 1) {
      barrier();
    } else {
      passes = barrier_any(passes);
    }
  }
  OMNIFLASH_DEVICE void make_weights(const Block& block, Softmax& softmax, Scores& s, Output& o) {
    if constexpr (kWarpsAcross == 1) {
      online_softmax(block.factor, softmax, s, o);
    } else {
      if (passes) {
        float beside[kFragments][2];
#pragma unroll
        for (int i = 0; i < 2 * kFragments; ++i) beside[i / 2][i % 2] = quad_max(largest[i / 2][i % 2]);
        exchange(beside);
#pragma unroll
        for (int i = 0; i < 2 * kFragments; ++i) {
          largest[i / 2][i % 2] = maximum(largest[i / 2][i % 2], beside[i / 2][i % 2]);
        }
        raise(block.factor, softmax, largest, o);
      }
      weigh(block.factor, softmax, s);
    }
  }
};

// Output += weights times values, over all keys of the tile: first over one's own, while the others' weights are on their way.
template <class Product>
OMNIFLASH_DEVICE void add_values(const Block& block, Output& o, const Scores& s, int slot) {
  if constexpr (kWarpsAcross == 1) {
    Product::values(o, s, value_tile(slot));
  } else {
    constexpr int kSteps = kN / 2;
    constexpr unsigned kHalf = 8 * kN * RowsOfValueDim::kRowBytes;
    const unsigned columns = value_tile(slot).address + block.first_column() * sizeof(Element);
    const unsigned operands = exchange_area() + 16 * lane_index(), warp = thread_index() / 32;
    Weights weights;
#pragma unroll
    for (int i = 0; i < kFragments * kSteps; ++i) {
      unsigned(&operand)[4] = weights[i / kSteps][i % kSteps];
      Product::operand(operand, s[i / kSteps], i % kSteps);
      store_shared_16(operands + warp * kWeightBytes + 512 * i, operand);
    }
    Product::values(o, weights, RowsOfValueDim{columns + block.place * kHalf});
    pair_barrier();
#pragma unroll
    for (int i = 0; i < kFragments * kSteps; ++i) {
      load_shared_16(weights[i / kSteps][i % kSteps], operands + (warp ^ 1) * kWeightBytes + 512 * i);
    }
    Product::values(o, weights, RowsOfValueDim{columns + (1 - block.place) * kHalf});
  }
}

// Sums of weights over the keys of both warps: one lane of a row adds what is beside.
OMNIFLASH_DEVICE void add_sums_beside(Softmax& softmax) {
  float beside[kFragments][2];
#pragma unroll
  for (int i = 0; i < 2 * kFragments; ++i) beside[i / 2][i % 2] = quad_sum(softmax[i / 2][i % 2].sum);
  exchange(beside);
#pragma unroll
  for (int i = 0; i < 2 * kFragments; ++i) {
    if (lane_index() % 4 == 0) softmax[i / 2][i % 2].sum += beside[i / 2][i % 2];
  }
}

}  // namespace omniflash
