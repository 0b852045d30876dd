// The two products of attention on tiles, by one wave: S^T = K Q^T and O^T += V^T P^T.
//
// A wave has kTile query rows, one a lane and its partner in the other group. Scores and outputs are arrays of
// accumulators: result i of the whole array belongs to key or column result_row(i, group).
#pragma once

#include "tile.hpp"

namespace omniflash {

template <int kTiles>
OMNIFLASH_DEVICE float result(const Accumulator (&all)[kTiles], int i) {
  return all[i / kAccumulators][i % kAccumulators];
}
template <int kTiles>
OMNIFLASH_DEVICE void set_result(Accumulator (&all)[kTiles], int i, float value) {
  all[i / kAccumulators][i % kAccumulators] = value;
}

// Has a number computed here: arithmetic sinks to its use, and its operands wait in registers, whatever a scheduling
// barrier says.
OMNIFLASH_DEVICE void settle(float& value) { asm volatile("" : "+v"(value)); }

// What may pass a scheduling barrier: vector arithmetic, scalar arithmetic, stores.
constexpr int kVectorPasses = 0x2, kScalarPasses = 0x4, kStoresPass = 0x240;

// multiply(i, load(i)) for all i in order, with kDepth loads ahead. Loads and products of the matrix unit keep this order,
// so that operands take no more registers than that; where products are vector arithmetic (kStrict), that keeps it too.
template <int kCount, int kDepth, bool kStrict, class Load, class Multiply>
OMNIFLASH_DEVICE void pipelined(const Load& load, const Multiply& multiply) {
  decltype(load(0)) ahead[kDepth];
#pragma unroll
  for (int i = 0; i < kDepth && i < kCount; ++i) ahead[i] = load(i);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    multiply(i, ahead[i % kDepth]);
    if (i + kDepth < kCount) ahead[i % kDepth] = load(i + kDepth);
    __builtin_amdgcn_sched_barrier((kStrict ? 0 : kVectorPasses) | kScalarPasses | kStoresPass);
  }
}

// The query row of a lane: its group's half of the chunks, in registers or, where there are too few, read when needed.
template <class Element, int kHeadDim, bool kVector, bool kHeld>
struct QueryRow {
  static constexpr int kElements = kChunkElements<Element>;
  static constexpr int kSteps = kHeadDim / (2 * kElements);
  const Element* row;
  int columns;
  Chunk held[kHeld ? kSteps : 1];

  OMNIFLASH_DEVICE QueryRow(const Element* row, int columns) : row(row), columns(columns) {
    if constexpr (kHeld) {
#pragma unroll
      for (int step = 0; step < kSteps; ++step) held[step] = read(step);
    }
  }
  OMNIFLASH_DEVICE Chunk read(int step) const {
    const int group = lane_group() * kElements, column = 2 * step * kElements;
    // kHeadDim is head_dim rounded up to a multiple of 16. Where f32 products are a loop, this would be a branch.
    const bool may_end = sizeof(Element) == 4 || column + 2 * kElements > kHeadDim - 16;
    if (kVector && !may_end) return load_global<Chunk>(row + group + column);
    if constexpr (!kVector) return load_chunk<false>(row, column + group, columns, true);
    // Without a branch: behind one, products and their operands would wait for the last chunk of the query.
    const Chunk chunk = load_global<Chunk>(row + minimum(column + group, columns - kElements));
    return column + group < columns ? chunk : Chunk(0);
  }
  OMNIFLASH_DEVICE Chunk chunk(int step) const {
    if constexpr (kHeld) {
      return held[step];
    } else {
      return read(step);
    }
  }

  // The same row, for the products of one tile: what is not held is read anew, or the compiler would hold it after all.
  OMNIFLASH_DEVICE QueryRow of_tile() const {
    QueryRow again = *this;
    if constexpr (!kHeld) asm volatile("" : "+v"(again.row));
    return again;
  }
};

// ---- 16 bits on the matrix unit

template <class Element>
struct MatrixProduct {
  // Operands ahead; on gfx11 they are twice as long.
  static constexpr int kDepth = sizeof(Operand) == sizeof(Chunk) ? 4 : 2;

  // Positions 16 step .. of the lane's slot in tile n.
  template <class Tile>
  static OMNIFLASH_DEVICE Operand load_operand(int base, int n, int step) {
#if defined(__GFX11__)
    return Operand{{load_shared<Chunk>(Tile::chunk_at(base, lane_column(), 0, n * kTile, 2 * step)),
                    load_shared<Chunk>(Tile::chunk_at(base, lane_column(), 0, n * kTile, 2 * step + 1))}};
#else
    return Operand{{load_shared<Chunk>(Tile::chunk_at(base, lane_column(), lane_group(), n * kTile, 2 * step))}};
#endif
  }

  template <class KeyTile, class Query, int kTiles>
  static OMNIFLASH_DEVICE void scores(Accumulator (&s)[kTiles], const Query& query, int keys) {
    Chunk next = query.chunk(0);
    Operand q;
    pipelined<Query::kSteps * kTiles, kDepth, false>(
        [&](int i) { return load_operand<KeyTile>(keys, i % kTiles, i / kTiles); },
        [&](int i, const Operand& k) {
          if (i % kTiles == 0) {
            q = operand_of(next);
            if (i / kTiles + 1 < Query::kSteps) next = query.chunk(i / kTiles + 1);
          }
          s[i % kTiles] = multiply_add<Element>(k, q, s[i % kTiles]);
        });
  }

  template <class ValueTile, int kTiles, int kOutputs>
  static OMNIFLASH_DEVICE void values(Accumulator (&o)[kOutputs], const Accumulator (&p)[kTiles], int values) {
    Operand weights;
    pipelined<kTiles * kTile / 16 * kOutputs, kDepth, false>(
        [&](int i) {
          if constexpr (kReadsTransposed) {
            return Operand{{ValueTile::column(values, i % kOutputs, i / kOutputs)}};
          } else {
            return load_operand<ValueTile>(values, i % kOutputs, i / kOutputs);
          }
        },
        [&](int i, const Operand& v) {
          if (i % kOutputs == 0) weights = operand_of(packed(p, i / kOutputs));
          o[i % kOutputs] = multiply_add<Element>(v, weights, o[i % kOutputs]);
        });
  }

 private:
  // The weights of a group at positions 16 step ..
  template <int kTiles>
  static OMNIFLASH_DEVICE Chunk packed(const Accumulator (&p)[kTiles], int step) {
    Chunk weights;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      weights[i] = pack_weights<Element>(result(p, 8 * step + 2 * i), result(p, 8 * step + 2 * i + 1));
    }
    return weights;
  }
};

// ---- 32 bits

#if OMNIFLASH_MFMA

// On the matrix unit, whose f32 products are exact to f32.
struct FloatProduct {
  template <class KeyTile, class Query, int kTiles>
  static OMNIFLASH_DEVICE void scores(Accumulator (&s)[kTiles], const Query& query, int keys) {
    pipelined<Query::kSteps * kTiles, 2, false>(
        [&](int i) {
          return load_shared<Chunk>(
              KeyTile::chunk_at(keys, lane_column(), lane_group(), i % kTiles * kTile, i / kTiles * 2));
        },
        [&](int i, const Chunk& k) {
          const Chunk q = query.chunk(i / kTiles);
          Accumulator& sum = s[i % kTiles];
#pragma unroll
          for (int j = 0; j < 4; ++j) sum = multiply_add_float(element_of<float>(k, j), element_of<float>(q, j), sum);
        });
  }

  template <class ValueTile, int kTiles, int kOutputs>
  static OMNIFLASH_DEVICE void values(Accumulator (&o)[kOutputs], const Accumulator (&p)[kTiles], int values) {
    // The column whose slot is the lane's: swapping two bits is its own inverse.
    const int column = slot_of(lane_column()) * 4;
    pipelined<kTiles * kAccumulators * kOutputs, 4, false>(
        [&](int i) {
          const int row = ValueTile::chunk_at(values, 8 * lane_group(), 0, result_row(i / kOutputs, 0));
          return load_shared<float>(row + column + i % kOutputs * kTile * 4);
        },
        [&](int i, float v) {
          o[i % kOutputs] = multiply_add_float(v, result(p, i / kOutputs), o[i % kOutputs]);
        });
  }
};

#else

// By fused multiply-add: RDNA has no f32 matrix instruction. The two groups of a row share out the dimensions of a score,
// and then the columns of the output.
struct FloatProduct {
  template <class KeyTile, class Query, int kTiles>
  static OMNIFLASH_DEVICE void scores(Accumulator (&s)[kTiles], const Query& query, int keys) {
    float part[kTiles][kTile] = {};
#pragma unroll 2
    for (int step = 0; step < Query::kSteps; ++step) {
      const Chunk q = query.chunk(step);
      // Two keys at a time, whose additions do not wait for each other.
      struct Pair {
        Chunk keys[2];
      };
      pipelined<kTiles * kTile / 2, 2, true>(
          [&](int pair) {
            const auto key = [&](int i) {
              return load_shared<Chunk>(
                  KeyTile::chunk_at(keys, 0, lane_group(), slot_of(2 * pair + i), 2 * step));
            };
            return Pair{{key(0), key(1)}};
          },
          [&](int pair, const Pair& k) {
            float* sums = &part[pair * 2 / kTile][pair * 2 % kTile];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              const float number = element_of<float>(q, j);
#pragma unroll
              for (int i = 0; i < 2; ++i) sums[i] = fused_multiply_add(element_of<float>(k.keys[i], j), number, sums[i]);
            }
            settle(sums[0]);
            settle(sums[1]);
          });
    }
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const bool first = lane_group() == 0;
        const float own = first ? part[n][i] : part[n][8 + i], others = first ? part[n][8 + i] : part[n][i];
        s[n][i] = own + of_other_group(others);
      }
    }
  }

  template <class ValueTile, int kTiles, int kOutputs>
  static OMNIFLASH_DEVICE void values(Accumulator (&o)[kOutputs], const Accumulator (&p)[kTiles], int values) {
    // A loop, or the code of a long output outgrows the instruction cache; so the weights move, and the first is taken.
    constexpr int kWeights = kTiles * kAccumulators;
    float weights[kWeights];
#pragma unroll
    for (int i = 0; i < kWeights; ++i) weights[i] = result(p, i);
#pragma unroll 1
    for (int i = 0; i < kWeights; ++i) {
      const float own = weights[0];
#pragma unroll
      for (int j = 0; j + 1 < kWeights; ++j) weights[j] = weights[j + 1];
      add<ValueTile>(o, own, ValueTile::chunk_at(values, result_row(i, lane_group()), 2 * lane_group()));
      add<ValueTile>(o, of_other_group(own),
                     ValueTile::chunk_at(values, result_row(i, 1 - lane_group()), 2 * lane_group()));
    }
  }

 private:
  // One value of every column; `row` is where the group's columns begin.
  template <class ValueTile, int kOutputs>
  static OMNIFLASH_DEVICE void add(Accumulator (&o)[kOutputs], float weight, int row) {
    pipelined<2 * kOutputs, 4, true>([&](int i) { return load_shared<Chunk>(row + i / 2 * kTile * 4 + i % 2 * 16); },
                               [&](int i, const Chunk& v) {
#pragma unroll
                                 for (int j = 0; j < 4; ++j) {
                                   float sum = o[i / 2][i % 2 * 4 + j];
                                   sum = fused_multiply_add(weight, element_of<float>(v, j), sum);
                                   o[i / 2][i % 2 * 4 + j] = sum;
                                 }
                               });
  }
};

#endif

}  // namespace omniflash
