// The end of a tile of rows: sums, lse, and the output on its way to memory.
#pragma once

#include "sm90/rows.hpp"
#include "sm90/softmax.hpp"
#include "sm90/wgmma.hpp"

namespace omniflash {

// What a finished row is divided by, and its lse. Without a branch: it is found while a product is in flight.
struct FinishedRows {
  float offset[2], scale[2], lse[2];

  FinishedRows() = default;
  OMNIFLASH_DEVICE FinishedRows(const WarpRows& rows, const SoftmaxRow (&softmax)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = quad_sum(softmax[half].sum);
      offset[half] = softmax[half].offset(rows.factor());
      scale[half] = sum == 0.0f ? 0.0f : reciprocal(sum);
      lse[half] = (offset[half] + log2(sum)) * kLn2;
    }
  }
};

// The first two of the four lanes that share two rows write one each.
OMNIFLASH_DEVICE void write_lse(const WarpRows& rows, const float (&lse)[2]) {
  const AttentionParameters& parameters = rows.parameters;
  const int half = lane_index() % 4;
  if (static_cast<LseForm>(parameters.lse_form) != LseForm::Written || half > 1 || !rows.is_valid(half)) return;
  const int query = half == 0 ? rows.queries[0] : rows.queries[1];
  const int head = rows.rows.first_head + rows.row(half) - query * rows.rows.heads;
  *rows.sequence.row<float>(parameters.lse, is_ragged(parameters), query, head) = half == 0 ? lse[0] : lse[1];
}

// The rows of a warp again, by the definition, where the product met a value that is not finite: hidden keys have weight 0
// there, and 0 times Inf or NaN is NaN. Offsets and sums are right already. Rare, and slow.
OMNIFLASH_DEVICE void write_rows_by_definition(const WarpRows& at_rows, const float (&offset)[2], const float (&scale)[2]) {
  constexpr int kColumns = (kValueDim + 31) / 32;
  const AttentionParameters& parameters = at_rows.parameters;
  const int lane = lane_index(), kv_len = at_rows.sequence.kv_len;
  const int head_dim = parameters.head_dim, value_dim = parameters.value_dim;
  const Keys keys(parameters, at_rows.sequence, quotient(at_rows.rows.first_head, parameters.by_group_size));
#pragma unroll 1
  for (int i = 0; i < 16 && at_rows.first_row + i < at_rows.rows.num_rows; ++i) {
    const float row_offset = shuffle(i < 8 ? offset[0] : offset[1], i % 8 * 4);
    const float row_scale = shuffle(i < 8 ? scale[0] : scale[1], i % 8 * 4);
    const int row = at_rows.first_row + i, query = at_rows.rows.query(row);
    ScoreIndex at{at_rows.sequence.batch, at_rows.rows.head(row), query, at_rows.sequence.start + query, 0};
    const Element* q =
        at_rows.sequence.template row<const Element>(parameters.q, is_ragged(parameters), at.row, at.head);
    float sum[kColumns] = {};
#pragma unroll 1
    for (at.k = 0; at.k < kv_len; ++at.k) {
      const Element* k = keys.template keys_from<Element>(at.k).at(true);
      float score = 0.0f;
      for (int column = lane; column < head_dim; column += 32) score += to_float(q[column]) * to_float(k[column]);
#pragma unroll
      for (int other = 16; other > 0; other /= 2) score += shuffle_xor(score, other);
      score = masked(at_rows.functors.mask, at_rows.functors.score_mod.apply(score * at_rows.scale(), at), at);
      const float weight = exp2_of(score, at_rows.factor(), row_offset);
      if (weight == 0.0f) continue;
      const Element* v = keys.template values_from<Element>(at.k).at(true);
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        if (lane + 32 * c < value_dim) sum[c] += weight * to_float(v[lane + 32 * c]);
      }
    }
    Element* out = at_rows.sequence.template row<Element>(parameters.out, is_ragged(parameters), at.row, at.head);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      if (lane + 32 * c < value_dim) out[lane + 32 * c] = from_float<Element>(sum[c] * row_scale);
    }
  }
}

// The output of a warp's 16 rows, divided and rounded: word 4 step + i as store_matrices takes them.
using RoundedOutput = unsigned[kValueDim / 4];

OMNIFLASH_DEVICE void round_output(RoundedOutput& words, const Output& o, const float (&scale)[2]) {
#pragma unroll
  for (int i = 0; i < kValueDim / 4; ++i) {
    words[i] = pack<Element>(o[2 * i] * scale[i % 2], o[2 * i + 1] * scale[i % 2]);
  }
}

// Whether some value of the warp's rows is not finite, where a hidden key's may have made it so.
OMNIFLASH_DEVICE bool has_met_nonfinite(const RoundedOutput& words) {
  if constexpr (kHides) {
    unsigned probe[4] = {};  // stays 0 while everything is finite
#pragma unroll
    for (int i = 0; i < kValueDim / 4; ++i) probe[i % 4] = add_zero_times<Element>(words[i], probe[i % 4]);
    return warp_any((probe[0] | probe[1] | probe[2] | probe[3]) != 0);
  }
  return false;
}

// Lays a warp's 16 rows in its place of shared memory, from `row` of the tile on, and sends them on their way. A pass waits
// until the one before has left that place.
OMNIFLASH_DEVICE void send_output(const WarpRows& rows, const HopperParameters& hopper, const OutputTile& tile, int row,
                                  const RoundedOutput& words) {
  const int lane = lane_index();
  unsigned to = tile.chunk(row + lane % 16, lane / 16);
  pin(to);  // or all eight addresses are kept in registers
#pragma unroll
  for (int column = 0; column < kValueDim; column += kPassColumns) {
    if (kHasOutputTile) {
      if (lane == 0) wait_stores_read();
      warp_barrier();
    }
#pragma unroll
    for (int step = 0; step < kPassColumns / 16; ++step) {
      const int word = 4 * step + column / 4;
      if (word >= kValueDim / 4) break;
      store_matrices(OutputTile::further(to, 2 * step), {words[word], words[word + 1], words[word + 2], words[word + 3]});
    }
    fence_async_proxy();
    warp_barrier();
    if (lane == 0) {
      const RowsOfSequence place = query_rows(rows.parameters, rows.sequence, hopper.out_batch_rows);
      const int first = place.row(rows.rows.query(rows.first_row)), head_tile = quotient(rows.rows.first_head, rows.rows.by_heads);
#pragma unroll
      for (int i = 0; i < OutputTile::kSlabs; ++i) {
        if (column + i * kSlabColumns >= kValueDim) break;
        const int at[5] = {column + i * kSlabColumns, 0, first, place.shift(), head_tile};
        store_box(hopper.out, tile.slab(i) + row * kSlabRowBytes, at);
      }
      commit_stores();
    }
  }
}

}  // namespace omniflash
