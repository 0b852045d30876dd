// What becomes of a finished row: outputs, parts, lse, and sums that met a value that is not finite.
#pragma once

#include "portable/products.hpp"

namespace omniflash {

// ---- hidden values that are not finite

// Whether a sum is not finite: a hidden value that is not, times weight 0, or what the row does see.
OMNIFLASH_DEVICE bool has_non_finite(const Output& o) {
  float zero[4] = {};
#pragma unroll
  for (int i = 0; i < kFragments * kV * 4; ++i) {
    zero[i % 4] = fused_multiply_add(o[i / (kV * 4)][i / 4 % kV][i % 4], 0.0f, zero[i % 4]);
  }
  const float sum = zero[0] + zero[1] + (zero[2] + zero[3]);
  return !(sum == 0.0f);
}

// What a finished row is made of: its weights' offset, what its sums are multiplied by, and its lse.
struct FinishedRow {
  float offset, scale, lse;
};
using FinishedRows = FinishedRow[kFragments][2];

// Where a partition's part of a row lies, in f32.
OMNIFLASH_DEVICE long long row_of_partition(const Block& block, int row) {
  return block_index_y() * block.parameters.total_q * block.parameters.num_heads +
         block.sequence.workspace_row(block.parameters, block.rows.query(row), block.rows.head(row));
}
OMNIFLASH_DEVICE float* part_of_row(const Block& block, int row) {
  return static_cast<float*>(block.parameters.partial_out) + row_of_partition(block, row) * block.parameters.value_dim;
}

// Writes two neighbours of a part, where the row has so many columns left. Rows that are not aligned may have an odd number.
OMNIFLASH_DEVICE void store_sums(float* to, int columns_left, float low, float high) {
  struct alignas(8) Pair {
    float low, high;
  };
  if (columns_left <= 0) return;
  if constexpr (kVectorLoads) {
    *reinterpret_cast<Pair*>(to) = Pair{low, high};
  } else {
    to[0] = low;
    if (columns_left > 1) to[1] = high;
  }
}

// The rows of a warp by the definition, which leaves hidden values out, in place of sums that met one. Offsets and sums of
// weights are right already. A lane has pairs of columns. Rare, and slow.
OMNIFLASH_DEVICE void write_rows_by_definition(const Block& block, const FinishedRows& finished, bool is_part) {
  constexpr int kPairs = (8 * kV + 63) / 64;
  const KeyTiles<MaskType> tiles = TileWalk(block).tiles;
  const int last = minimum(tiles.end * kBlockN, block.sequence.kv_len);
  const int head_dim = block.parameters.head_dim, value_dim = block.parameters.value_dim, lane = lane_index();
  const int first_column = block.first_column() + 2 * lane;
#pragma unroll 1
  for (int i = 0; i < 16 * kFragments; ++i) {
    const int row = block.rows.first_row + block.warp_row + i;
    if (row >= block.rows.num_rows) break;
    float offset = 0.0f, scale = 0.0f;
#pragma unroll
    for (int half = 0; half < 2 * kFragments; ++half) {
      const FinishedRow own = finished[half / 2][half % 2];
      offset = half == i / 8 ? own.offset : offset;
      scale = half == i / 8 ? own.scale : scale;
    }
    offset = shuffle(offset, i % 8 * 4);
    scale = shuffle(scale, i % 8 * 4);
    ScoreIndex at = block.index(row);
    const Element* q =
        block.sequence.template row<const Element>(block.parameters.q, is_ragged(block.parameters), at.row, at.head);
    float sum[kPairs][2] = {};
#pragma unroll 1
    for (at.k = tiles.begin * kBlockN; at.k < last; ++at.k) {
      const Element* k = block.keys.template keys_from<Element>(at.k).at(true);
      float score = 0.0f;
#pragma unroll 1
      for (int column = lane; column < head_dim; column += 32) score += to_float(q[column]) * to_float(k[column]);
#pragma unroll
      for (int other = 16; other > 0; other /= 2) score += shuffle_xor(score, other);
      score = block.functors.score_mod.apply(score * block.scale, at);
      const float weight = exp2_of(masked(block.functors.mask, score, at), block.factor, offset);
      if (weight == 0.0f) continue;
      const Element* v = block.keys.template values_from<Element>(at.k).at(true);
#pragma unroll
      for (int pair = 0; pair < kPairs; ++pair) {
        const int column = 64 * pair + first_column;
#pragma unroll
        for (int odd = 0; odd < 2; ++odd) {
          if (column + odd < value_dim) sum[pair][odd] += weight * to_float(v[column + odd]);
        }
      }
    }
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      const int column = 64 * pair + first_column;
      const float low = sum[pair][0] * scale, high = sum[pair][1] * scale;
      if (is_part) {
        store_sums(part_of_row(block, row) + column, value_dim - column, low, high);
      } else if (column < value_dim) {
        store_pair<Element>(output_tile().element(block.warp_row + i, column), low, high);
      }
    }
  }
}

// ---- results

// Rounds a warp's rows into their place of the tile of outputs.
OMNIFLASH_DEVICE void place_output(const Block& block, const Output& o) {
  // Rows 8 apart are permuted alike: one address, and an offset for each pair.
  const int lane = opaque(lane_index()), kChunksOfColumns = 8 / RowsOfValueDim::kChunkElements;
  const unsigned to = output_tile().element(block.warp_row + lane / 4, block.first_column() + lane % 4 * 2);
#pragma unroll
  for (int n = 0; n < kV; ++n) {
    const unsigned columns = RowsOfValueDim::right_of(to, kChunksOfColumns * n);
#pragma unroll
    for (int i = 0; i < 2 * kFragments; ++i) {
      const float(&sums)[4] = o[i / 2][n];
      store_pair<Element>(columns + 8 * i * RowsOfValueDim::kRowBytes, sums[i % 2 * 2], sums[i % 2 * 2 + 1]);
    }
  }
}

// Writes the tile of outputs to memory in whole chunks.
OMNIFLASH_DEVICE void store_output(const Block& block) {
  const RowsOfValueDim out = output_tile();
  struct alignas(16) Chunk {
    unsigned words[4];
  };
  constexpr int kElements = RowsOfValueDim::kChunkElements, kChunks = RowsOfValueDim::kChunks;
  const bool ragged = is_ragged(block.parameters);
  const int columns = block.parameters.value_dim;
  if (kVectorLoads && kThreads % kChunks == 0 && block.rows.heads == 1) {
    // Rows of one stride: a thread keeps its column of chunks.
    constexpr int kStep = kThreads / kChunks;
    const int first = thread_index() / kChunks, chunk = thread_index() % kChunks;
    const int num_rows = block.rows.num_rows - block.rows.first_row;
    if (chunk * kElements >= columns) return;
    const long long stride = block.parameters.out.row_stride;
    Element* to = block.sequence.row<Element>(block.parameters.out, ragged, block.rows.first_row, block.rows.first_head) +
                  first * stride + chunk * kElements;
#pragma unroll 4
    for (int row = first; row < kBlockM; row += kStep, to += kStep * stride) {
      Chunk words;
      load_shared_16(words.words, out.chunk(row, chunk));
      if (row < num_rows) *reinterpret_cast<Chunk*>(to) = words;
    }
    return;
  }
#pragma unroll 1
  for (int i = thread_index(); i < kBlockM * kChunks; i += kThreads) {
    const int row = block.rows.first_row + i / kChunks, column = i % kChunks * kElements;
    if (row >= block.rows.num_rows || column >= columns) continue;
    Element* to = block.sequence.row<Element>(block.parameters.out, ragged, block.rows.query(row), block.rows.head(row)) + column;
    Chunk chunk;
    load_shared_16(chunk.words, out.chunk(i / kChunks, i % kChunks));
    if constexpr (kVectorLoads) {
      *reinterpret_cast<Chunk*>(to) = chunk;
    } else {
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        if (column + e < columns) to[e] = element_of<Element>(chunk.words, e);
      }
    }
  }
}

// Writes the parts of a warp's rows; combine.hpp does not read rows whose lse is -inf.
OMNIFLASH_DEVICE void store_parts(const Block& block, const FinishedRows& finished, const Output& o) {
  const int column = block.first_column() + lane_index() % 4 * 2, value_dim = block.parameters.value_dim;
#pragma unroll
  for (int m = 0; m < kFragments; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (!block.is_row(m, half) || finished[m][half].lse == -kInfinity) continue;
      float* part = part_of_row(block, block.row(m, half)) + column;
#pragma unroll
      for (int n = 0; n < kV; ++n) {
        store_sums(part + 8 * n, value_dim - column - 8 * n, o[m][n][2 * half], o[m][n][2 * half + 1]);
      }
    }
  }
}

OMNIFLASH_DEVICE void store(const Block& block, bool has_hidden, Softmax& softmax, Output& o) {
  const bool by_definition = kHides && has_hidden && warp_any(has_non_finite(o));
  const bool is_part = block.parameters.num_partitions > 1;
  // A sink counts once: where the sequence is cut, in combine.hpp.
  const bool has_sinks = !is_part && static_cast<SinkForm>(block.parameters.sink_form) != SinkForm::Absent;
  if constexpr (kWarpsAcross > 1) add_sums_beside(softmax);
  FinishedRows finished;
#pragma unroll
  for (int m = 0; m < kFragments; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sink = has_sinks ? sink_log2(block.parameters, block.rows.head(block.row(m, half))) : -kInfinity;
      const float offset = softmax[m][half].offset(block.factor);
      const SoftmaxResult result = finalize(offset, quad_sum(softmax[m][half].sum), sink);
      finished[m][half] = FinishedRow{offset, result.scale, result.lse};
#pragma unroll
      for (int n = 0; n < kV; ++n) {
        o[m][n][2 * half] *= result.scale;
        o[m][n][2 * half + 1] *= result.scale;
      }
    }
  }
  copy_wait<0>();
  if (!is_part) barrier();  // the tile of outputs lies over those of the loop
  if (by_definition) {
    write_rows_by_definition(block, finished, is_part);
  } else if (is_part) {
    store_parts(block, finished, o);
  } else {
    place_output(block, o);
  }
  if (!is_part) {
    barrier();
    store_output(block);
  }
  if (!is_part && static_cast<LseForm>(block.parameters.lse_form) != LseForm::Written) return;
#pragma unroll
  for (int m = 0; m < kFragments; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (block.place != 0 || lane_index() % 4 != 0 || !block.is_row(m, half)) continue;
      const int row = block.row(m, half);
      float* lse = is_part ? static_cast<float*>(block.parameters.partial_lse) + row_of_partition(block, row)
                           : block.sequence.row<float>(block.parameters.lse, is_ragged(block.parameters), block.rows.query(row),
                                                       block.rows.head(row));
      *lse = finished[m][half].lse;
    }
  }
}

}  // namespace omniflash
