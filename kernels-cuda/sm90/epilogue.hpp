// The end of a tile of rows: sums, lse, and the output on its way to memory.
#pragma once

#include "sm90/rows.hpp"
#include "sm90/softmax.hpp"

namespace omniflash {

// What a finished row is divided by, and its lse.
struct FinishedRows {
  float offset[2], scale[2], lse[2];

  OMNIFLASH_DEVICE FinishedRows(const WarpRows& rows, const SoftmaxRow (&softmax)[2]) {
    const bool has_sinks = static_cast<SinkForm>(rows.parameters.sink_form) != SinkForm::Absent;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = quad_sum(softmax[half].sum);
      offset[half] = softmax[half].offset(rows.factor());
      scale[half] = sum == 0.0f ? 0.0f : reciprocal(sum);
      lse[half] = (offset[half] + log2(sum)) * kLn2;
      if (has_sinks) {
        const int head = rows.rows.head(rows.row(half));
        const SoftmaxResult result = finalize(offset[half], sum, sink_log2(rows.parameters, head));
        scale[half] = result.scale;
        lse[half] = result.lse;
      }
    }
  }
};

OMNIFLASH_DEVICE void write_lse(const WarpRows& rows, const float (&lse)[2]) {
  const AttentionParameters& parameters = rows.parameters;
  const bool wants_lse = static_cast<LseForm>(parameters.lse_form) == LseForm::Written;
  if (!wants_lse || lane_index() % 4 != 0) return;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = rows.row(half);
    float* to = rows.sequence.row<float>(parameters.lse, is_ragged(parameters), rows.rows.query(row), rows.rows.head(row));
    if (rows.is_valid(half)) *to = lse[half];
  }
}

// Whether some value of the warp's rows is not finite, where a hidden key's may have made it so.
OMNIFLASH_DEVICE bool has_met_nonfinite(const WarpRows& rows, const Output& o) {
  if constexpr (kHides) {
    float probe[2] = {0.0f, 0.0f};  // stays 0 while everything is finite
#pragma unroll
    for (int i = 0; i < kValueDim / 2; ++i) probe[i / 2 % 2] = fused_multiply_add(o[i], 0.0f, probe[i / 2 % 2]);
    return warp_any((probe[0] != 0.0f && rows.is_valid(0)) || (probe[1] != 0.0f && rows.is_valid(1)));
  }
  return false;
}

// The rows of a warp again, by the definition, where the product met a value that is not finite: hidden keys have weight 0
// there, and 0 times Inf or NaN is NaN. Offsets and sums are right already. Rare, and slow.
OMNIFLASH_DEVICE void write_rows_by_definition(const WarpRows& at_rows, const float (&offset)[2], const float (&scale)[2]) {
  constexpr int kColumns = (kValueDim + 31) / 32;
  const AttentionParameters& parameters = at_rows.parameters;
  const int lane = lane_index(), kv_len = at_rows.sequence.kv_len;
  const int head_dim = parameters.head_dim, value_dim = parameters.value_dim;
  const StridedKeys keys(parameters, at_rows.sequence, at_rows.rows.first_head / static_cast<int>(parameters.group_size));
#pragma unroll 1
  for (int i = 0; i < 16 && at_rows.first_row + i < at_rows.rows.num_rows; ++i) {
    const float row_offset = shuffle(i < 8 ? offset[0] : offset[1], i % 8 * 4);
    const float row_scale = shuffle(i < 8 ? scale[0] : scale[1], i % 8 * 4);
    ScoreIndex at = at_rows.index(at_rows.first_row + i);
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

// Rounds a warp's 16 rows from `row` of the tile on, lays them in its place of shared memory, and sends them on their way.
OMNIFLASH_DEVICE void send_output(const WarpRows& rows, const HopperParameters& hopper, const OutputTile& tile, int row,
                                  const Output& o, const float (&scale)[2]) {
  const int lane = lane_index();
#pragma unroll
  for (int step = 0; step < kValueDim / 16; ++step) {
    const float* x = &o[8 * step];
    const unsigned words[4] = {pack<Element>(x[0] * scale[0], x[1] * scale[0]),
                               pack<Element>(x[2] * scale[1], x[3] * scale[1]),
                               pack<Element>(x[4] * scale[0], x[5] * scale[0]),
                               pack<Element>(x[6] * scale[1], x[7] * scale[1])};
    store_matrices(tile.chunk(row + lane % 16, 2 * step + lane / 16), words);
  }
  fence_async_proxy();
  __syncwarp();
  if (lane == 0) {
    const RowsOfSequence to = query_rows(rows.parameters, rows.sequence, hopper.out_batch_rows);
    const int heads = rows.rows.heads;
#pragma unroll
    for (int i = 0; i < kValueSlabs; ++i) {
      const int at[5] = {i * kSlabColumns, 0, to.row(rows.first_row / heads), to.shift(), rows.rows.first_head / heads};
      store_box(hopper.out, tile.slab(i) + row * kSlabRowBytes, at);
    }
  }
}

}  // namespace omniflash
