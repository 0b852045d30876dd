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

// The query row of a lane: its group's half of the chunks, in registers or, where there are too few, read when needed.
template <class Element, int kHeadDim, bool kVector, bool kHeld>
struct QueryRow {
  static constexpr int kSteps = kHeadDim / (2 * kChunkElements<Element>);
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
    return load_chunk<kVector>(row, (2 * step + lane_group()) * kChunkElements<Element>, columns, true);
  }
  OMNIFLASH_DEVICE Chunk chunk(int step) const {
    if constexpr (kHeld) {
      return held[step];
    } else {
      return read(step);
    }
  }
};

// ---- 16 bits on the matrix unit

template <class Element>
struct MatrixProduct {
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
#pragma unroll
    for (int step = 0; step < Query::kSteps; ++step) {
      const Operand q = operand_of(query.chunk(step));
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        s[n] = multiply_add<Element>(load_operand<KeyTile>(keys, n, step), q, s[n]);
      }
    }
  }

  template <class ValueTile, int kTiles, int kOutputs>
  static OMNIFLASH_DEVICE void values(Accumulator (&o)[kOutputs], const Accumulator (&p)[kTiles], int values) {
#pragma unroll
    for (int step = 0; step < kTiles * kTile / 16; ++step) {
      Chunk weights;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        weights[i] = pack_weights<Element>(result(p, 8 * step + 2 * i), result(p, 8 * step + 2 * i + 1));
      }
      const Operand b = operand_of(weights);
#pragma unroll
      for (int n = 0; n < kOutputs; ++n) {
        o[n] = multiply_add<Element>(load_operand<ValueTile>(values, n, step), b, o[n]);
      }
    }
  }
};

// ---- 32 bits

#if OMNIFLASH_MFMA

// On the matrix unit, whose f32 products are exact to f32.
struct FloatProduct {
  template <class KeyTile, class Query, int kTiles>
  static OMNIFLASH_DEVICE void scores(Accumulator (&s)[kTiles], const Query& query, int keys) {
#pragma unroll
    for (int step = 0; step < Query::kSteps; ++step) {
      const Chunk q = query.chunk(step);
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        const Chunk k = load_shared<Chunk>(KeyTile::chunk_at(keys, lane_column(), lane_group(), n * kTile, 2 * step));
#pragma unroll
        for (int i = 0; i < 4; ++i) s[n] = multiply_add_float(element_of<float>(k, i), element_of<float>(q, i), s[n]);
      }
    }
  }

  template <class ValueTile, int kTiles, int kOutputs>
  static OMNIFLASH_DEVICE void values(Accumulator (&o)[kOutputs], const Accumulator (&p)[kTiles], int values) {
    // The column whose slot is the lane's: swapping two bits is its own inverse.
    const int column = slot_of(lane_column());
#pragma unroll
    for (int i = 0; i < kTiles * kAccumulators; ++i) {
      const int row = ValueTile::chunk_at(values, result_row(i, lane_group()), 0);
#pragma unroll
      for (int n = 0; n < kOutputs; ++n) {
        o[n] = multiply_add_float(load_shared<float>(row + (n * kTile + column) * 4), result(p, i), o[n]);
      }
    }
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
#pragma unroll
      for (int key = 0; key < kTiles * kTile; ++key) {
        const Chunk k = load_shared<Chunk>(KeyTile::chunk_at(keys, 0, lane_group(), slot_of(key), 2 * step));
        float& sum = part[key / kTile][key % kTile];
#pragma unroll
        for (int i = 0; i < 4; ++i) sum = fused_multiply_add(element_of<float>(k, i), element_of<float>(q, i), sum);
      }
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
#pragma unroll
    for (int i = 0; i < kTiles * kAccumulators; ++i) {
      const float own = result(p, i);
      add<ValueTile>(o, own, ValueTile::chunk_at(values, result_row(i, lane_group()), 2 * lane_group()));
      add<ValueTile>(o, of_other_group(own),
                     ValueTile::chunk_at(values, result_row(i, 1 - lane_group()), 2 * lane_group()));
    }
  }

 private:
  // One value of every column; `row` is where the group's columns begin.
  template <class ValueTile, int kOutputs>
  static OMNIFLASH_DEVICE void add(Accumulator (&o)[kOutputs], float weight, int row) {
#pragma unroll
    for (int n = 0; n < kOutputs; ++n) {
      const Chunk low = load_shared<Chunk>(row + n * kTile * 4), high = load_shared<Chunk>(row + n * kTile * 4 + 16);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        o[n][i] = fused_multiply_add(weight, element_of<float>(low, i), o[n][i]);
        o[n][4 + i] = fused_multiply_add(weight, element_of<float>(high, i), o[n][4 + i]);
      }
    }
  }
};

#endif

}  // namespace omniflash
