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
  int first_row;   // of the warp, in the sequence
  int queries[2];  // of this lane's two rows

  OMNIFLASH_DEVICE WarpRows(const AttentionParameters& parameters, const Functors<MaskType, ScoreModType>& functors,
                            const Sequence& sequence, const RowTile& rows, int first_row)
      : parameters(parameters), functors(functors), sequence(sequence), rows(rows), first_row(first_row) {
#pragma unroll
    for (int half = 0; half < 2; ++half) queries[half] = rows.query(row(half));
  }

  OMNIFLASH_DEVICE bool is_valid(int half) const { return first_row + lane_index() / 4 + 8 * half < rows.num_rows; }
  // Row of an accumulator's half in the sequence; past the end, the last.
  OMNIFLASH_DEVICE int row(int half) const {
    return minimum(first_row + lane_index() / 4 + 8 * half, rows.num_rows - 1);
  }
  OMNIFLASH_DEVICE int head(int half) const { return rows.first_head + row(half) - queries[half] * rows.heads; }
  OMNIFLASH_DEVICE ScoreIndex index(int half) const {
    return ScoreIndex{sequence.batch, head(half), queries[half], sequence.start + queries[half], 0};
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
      ScoreIndex at = at_rows.index(half);
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
    ScoreIndex at = at_rows.index(half);
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

// Takes the largest scores into the rows' offsets; false where no row of the warp needs that, as in most tiles: then the four
// lanes of a row do not even speak of it. What was summed before has to be multiplied by `rescale`.
//
// The branch also says where a product is waited for: ptxas puts a wait that follows right behind it, not before the maxima.
template <int kWords>
OMNIFLASH_DEVICE bool raise_offsets(float factor, SoftmaxRow (&softmax)[2], const float (&s)[kWords],
                                    float (&rescale)[2]) {
  float largest[2];  // of this lane's keys
  bool is_fine = true;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float most = maximum(s[2 * half], s[2 * half + 1]);
#pragma unroll
    for (int n = 1; n < kWords / 4; ++n) most = maximum(most, maximum(s[4 * n + 2 * half], s[4 * n + 2 * half + 1]));
    largest[half] = most;
    is_fine = is_fine && (most - softmax[half].max) * factor <= kSlack;
    rescale[half] = 1.0f;
  }
  if (!warp_any(!is_fine)) return false;
#pragma unroll
  for (int half = 0; half < 2; ++half) rescale[half] = softmax[half].raise(quad_max(largest[half]), factor);
  return true;
}

// Scores become weights; sums stay per thread until the end.
template <int kWords>
OMNIFLASH_DEVICE void exponentials(float factor, SoftmaxRow (&softmax)[2], float (&s)[kWords]) {
  const float offset[2] = {softmax[0].offset(factor), softmax[1].offset(factor)};
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

OMNIFLASH_DEVICE void rescale_output(Output& o, const float (&rescale)[2]) {
#pragma unroll
  for (int i = 0; i < kValueDim / 2; ++i) o[i] *= rescale[i / 2 % 2];
}

}  // namespace omniflash
