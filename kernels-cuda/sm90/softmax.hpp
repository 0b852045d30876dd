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
OMNIFLASH_DEVICE void modify(const WarpRows& at_rows, int first_key, float (&s)[kWords]) {
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
        at.k = first_key + 8 * n + lane_index() % 4 * 2;
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

// What a mask that loads something for each score hides, and keys past the last, from a lane's first key on. Eight keys of both
// rows after the other, a bit for each score: all at once would need more registers than there are.
template <class Mask, int kWords>
OMNIFLASH_DEVICE void hide_by_loads(const WarpRows& at_rows, const Mask& mask, int first_key, int last, float (&s)[kWords]) {
  ScoreIndex at[2] = {at_rows.index(0), at_rows.index(1)};
#pragma unroll
  for (int first = 0; first < kWords / 2; first += 32) {
    constexpr int kMost = 32;
    const int count = minimum(kMost, kWords / 2 - first);
    unsigned shown[2] = {0, 0};
#pragma unroll 1
    for (int begin = first; begin < first + count; begin += 8) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int key = first_key + 4 * begin + 8 * (i / 2) + i % 2;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          at[half].k = minimum(key, last);
          const bool is_shown = mask.keep(at[half]) && key <= last;
          shown[half] = shown[half] >> 1 | (is_shown ? 1u << 31 : 0u);
        }
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < kMost; ++i) {
        if (i < count && !(shown[half] >> (32 - count + i) & 1)) {
          s[4 * ((first + i) / 2) + 2 * half + i % 2] = -kInfinity;
        }
      }
    }
  }
}

// Hides what the mask hides, and keys past the end.
template <class Mask, int kWords>
OMNIFLASH_DEVICE void hide(const WarpRows& at_rows, const Mask& mask, int first_key, float (&s)[kWords]) {
  const int kv_len = at_rows.sequence.kv_len, column = lane_index() % 4 * 2;
  if constexpr (status_reads<Mask> && !has_bits<Mask> && !has_add<Mask>) {
    return hide_by_loads(at_rows, mask, first_key + column, kv_len - 1, s);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    ScoreIndex at = at_rows.index(half);
    if constexpr (is_interval<Mask> && !has_add<Mask>) {
      const SeenInterval<Mask> seen(mask, at, first_key + column, kv_len);
#pragma unroll
      for (int i = 0; i < kWords / 2; ++i) {
        if (!seen.contains(8 * (i / 2) + i % 2)) s[4 * (i / 2) + 2 * half + i % 2] = -kInfinity;
      }
    } else if constexpr (has_bits<Mask> && !has_add<Mask>) {
#pragma unroll
      for (int word = 0; word < kWords / 16; ++word) {
        at.k = first_key + 32 * word;
        const unsigned bits = (band_bits(0, kv_len, at.k) & mask.bits(at)) >> column;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          if (!(bits >> (i / 2 * 8 + i % 2) & 1)) s[16 * word + 4 * (i / 2) + 2 * half + i % 2] = -kInfinity;
        }
      }
    } else if (has_add<Mask> && first_key + 2 * kWords <= kv_len) {
      mask_row(mask, at, first_key + column, kNoLastKey, half, s);
    } else {
      mask_row(mask, at, first_key + column, kv_len - 1, half, s);
    }
  }
}

// A lane's weights of a row and a tile may sum to so much before the row's offset is raised: 16-bit floats hold such weights
// with the same relative error as 1.
constexpr float kMostWeight = 256.0f;

// Scores become rounded weights by the offsets that the rows have. Weights of keys without scores are 0.
template <int kWords, int kPairs>
OMNIFLASH_DEVICE void round_weights(float factor, const SoftmaxRow (&softmax)[2], const float (&s)[kWords],
                                    unsigned (&p)[kPairs], float (&sum)[2]) {
  const float offset[2] = {softmax[0].offset(factor), softmax[1].offset(factor)};
  sum[0] = sum[1] = 0.0f;
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    if (i >= kWords / 2) {
      p[i] = 0u;
      continue;
    }
    const float even = exp2_of(s[2 * i], factor, offset[i % 2]), odd = exp2_of(s[2 * i + 1], factor, offset[i % 2]);
    sum[i % 2] += even + odd;
    p[i] = pack<Element>(even, odd);
  }
}

// Raises the offsets of the rows to their largest scores. What was summed before has to be multiplied by `rescale`.
template <int kWords>
OMNIFLASH_DEVICE void raise_offsets(float factor, SoftmaxRow (&softmax)[2], const float (&s)[kWords],
                                    float (&rescale)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float most = maximum(s[2 * half], s[2 * half + 1]);
#pragma unroll
    for (int n = 1; n < kWords / 4; ++n) most = maximum(most, maximum(s[4 * n + 2 * half], s[4 * n + 2 * half + 1]));
    rescale[half] = softmax[half].raise_to(quad_max(most), factor);
  }
}

// The first weights of some rows.
template <int kWords, int kPairs>
OMNIFLASH_DEVICE void begin_weights(float factor, SoftmaxRow (&softmax)[2], const float (&s)[kWords],
                                    unsigned (&p)[kPairs]) {
  float rescale[2], sum[2];
  raise_offsets(factor, softmax, s, rescale);
  round_weights(factor, softmax, s, p, sum);
#pragma unroll
  for (int half = 0; half < 2; ++half) softmax[half].sum += sum[half];
}

// The next ones, by the offsets that the rows have: nobody looks for a maximum. The sums, which are needed anyway, say whether a
// weight became too large, or a row has seen no key yet; as rarely as that is, offsets are raised and scores weighed again.
// Sums stay per lane until the end.
template <int kWords, int kPairs>
OMNIFLASH_DEVICE bool next_weights(float factor, SoftmaxRow (&softmax)[2], const float (&s)[kWords],
                                   unsigned (&p)[kPairs], float (&rescale)[2]) {
  float sum[2];
  round_weights(factor, softmax, s, p, sum);
  bool is_fine = true;
#pragma unroll
  for (int half = 0; half < 2; ++half) is_fine = is_fine && softmax[half].max != -kInfinity && sum[half] <= kMostWeight;
  const bool is_raised = warp_any(!is_fine);
  if (is_raised) {
    raise_offsets(factor, softmax, s, rescale);
    round_weights(factor, softmax, s, p, sum);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) softmax[half].sum += sum[half];
  return is_raised;
}

OMNIFLASH_DEVICE void rescale_output(Output& o, const float (&rescale)[2]) {
#pragma unroll
  for (int i = 0; i < kValueDim / 2; ++i) o[i] *= rescale[i / 2 % 2];
}

}  // namespace omniflash
