// What a warpgroup does with scores in registers between the two products.
#pragma once

#include "omniflash/online_softmax.hpp"
#include "quad.hpp"
#include "sm90/block.hpp"

namespace omniflash {

// What one warp works on.
struct WarpRows {
  const AttentionParameters& parameters;
  const Functors<MaskType, ScoreModType>& functors;
  Sequence sequence;
  RowTile rows;
  int first_row;  // of the warp, in the sequence

  OMNIFLASH_DEVICE bool is_valid(int half) const { return first_row + lane_index() / 4 + 8 * half < rows.num_rows; }
  // Row of an accumulator's half in the sequence; past the end, the last.
  OMNIFLASH_DEVICE int row(int half) const {
    return minimum(first_row + lane_index() / 4 + 8 * half, rows.num_rows - 1);
  }
  OMNIFLASH_DEVICE ScoreIndex index(int row) const {
    const int query = rows.query(row);
    return ScoreIndex{sequence.batch, rows.head(row), query, sequence.start + query, 0};
  }
  // Of scores before mask and modification.
  OMNIFLASH_DEVICE float scale() const { return kFolded ? 1.0f : parameters.softmax_scale; }
  // Of scores in the exponential.
  OMNIFLASH_DEVICE float factor() const { return kFolded ? parameters.softmax_scale * kLog2E : kLog2E; }
};

// Scale and score modification; of a whole tile every key exists.
template <bool kIsWhole, int kWords>
OMNIFLASH_DEVICE void modify(const WarpRows& at_rows, int tile, float (&s)[kWords]) {
  if constexpr (is_identity<ScoreModType>) {
    if constexpr (!kFolded) {
#pragma unroll
      for (int i = 0; i < kWords; ++i) s[i] *= at_rows.scale();
    }
  } else {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      ScoreIndex at = at_rows.index(at_rows.row(half));
#pragma unroll
      for (int n = 0; n < kWords / 4; ++n) {
        at.k = tile * kBlockN + 8 * n + lane_index() % 4 * 2;
        float &even = s[4 * n + 2 * half], &odd = s[4 * n + 2 * half + 1];
        even *= at_rows.scale();
        odd *= at_rows.scale();
        const int last = kIsWhole ? kNoLastKey : at_rows.sequence.kv_len - 1;
        apply_to_pair(at_rows.functors.score_mod, even, odd, at, last);
      }
    }
  }
}

// Half of a warp's rows after a mask without bits, in pairs of keys from first_key on.
template <class Mask, int kWords>
OMNIFLASH_DEVICE void mask_row(const Mask& mask, ScoreIndex at, int first_key, int last, int half, float (&s)[kWords]) {
#pragma unroll
  for (int n = 0; n < kWords / 4; ++n) {
    at.k = first_key + 8 * n;
    mask_pair(mask, s[4 * n + 2 * half], s[4 * n + 2 * half + 1], at, last);
  }
}

// Hides what the mask hides, and keys past the end.
template <class Mask, int kWords>
OMNIFLASH_DEVICE void hide(const WarpRows& at_rows, const Mask& mask, int tile, float (&s)[kWords]) {
  const int kv_len = at_rows.sequence.kv_len, column = lane_index() % 4 * 2;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    ScoreIndex at = at_rows.index(at_rows.row(half));
    if constexpr (has_bits<Mask> && !has_add<Mask>) {
#pragma unroll
      for (int word = 0; word < kWords / 16; ++word) {
        at.k = tile * kBlockN + 32 * word;
        const unsigned bits = (band_bits(0, kv_len, at.k) & mask.bits(at)) >> column;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          if (!(bits >> (i / 2 * 8 + i % 2) & 1)) s[16 * word + 4 * (i / 2) + 2 * half + i % 2] = -kInfinity;
        }
      }
    } else if (has_add<Mask> && (tile + 1) * kBlockN <= kv_len) {
      mask_row(mask, at, tile * kBlockN + column, kNoLastKey, half, s);
    } else {
      mask_row(mask, at, tile * kBlockN + column, kv_len - 1, half, s);
    }
  }
}

// Scores become weights; sums stay per thread until the end. What was summed before has to be multiplied by `rescale`.
template <int kWords>
OMNIFLASH_DEVICE void online_softmax(float factor, SoftmaxRow (&softmax)[2], float (&s)[kWords], float (&rescale)[2]) {
  float offset[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float row_max = maximum(s[2 * half], s[2 * half + 1]);
#pragma unroll
    for (int n = 1; n < kWords / 4; ++n) row_max = maximum(row_max, maximum(s[4 * n + 2 * half], s[4 * n + 2 * half + 1]));
    rescale[half] = softmax[half].raise(quad_max(row_max), factor);
    offset[half] = softmax[half].offset(factor);
  }
#pragma unroll
  for (int i = 0; i < kWords; ++i) s[i] = exp2_of(s[i], factor, offset[i / 2 % 2]);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float row_sum = s[2 * half] + s[2 * half + 1];
#pragma unroll
    for (int n = 1; n < kWords / 4; ++n) row_sum += s[4 * n + 2 * half] + s[4 * n + 2 * half + 1];
    softmax[half].sum += row_sum;
  }
}

// Weights of keys without scores are 0.
template <int kWords>
OMNIFLASH_DEVICE void round_weights(Weights& p, const float (&s)[kWords]) {
#pragma unroll
  for (int i = 0; i < kBlockN / 4; ++i) p[i] = i < kWords / 2 ? pack<Element>(s[2 * i], s[2 * i + 1]) : 0u;
}

// Most tiles raise no row's offset by enough: then there is nothing to do for the whole warp.
OMNIFLASH_DEVICE void rescale_output(Output& o, const float (&rescale)[2]) {
  if (!warp_any(rescale[0] != 1.0f || rescale[1] != 1.0f)) return;
#pragma unroll
  for (int i = 0; i < kValueDim / 2; ++i) o[i] *= rescale[i / 2 % 2];
}

}  // namespace omniflash
