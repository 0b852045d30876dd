// Softmax of a row that arrives in pieces (Milakov and Gimelshein 2018), in units of log2.
#pragma once

#include "omniflash/numeric.hpp"

namespace omniflash {

// Scores may pass the offset by so much, in units of log2, before what was summed is rescaled: weights then reach 2^8,
// which 16-bit floats hold with the same relative error as 1. Most pieces need no rescaling then.
constexpr float kSlack = 8.0f;

// A row so far: its offset's score, at most kSlack below the largest, and the sum of exp2(score * factor - offset()).
//
// A row that has seen no key has max -inf and sum 0; its offset is then 0, so that exp2(-inf - 0) is 0 and never NaN.
struct SoftmaxRow {
  float max = -kInfinity;
  float sum = 0.0f;

  OMNIFLASH_DEVICE float offset(float factor) const { return max == -kInfinity ? 0.0f : max * factor; }

  // Takes the largest score of the next piece; what was summed before has to be multiplied by the result, often 1.
  OMNIFLASH_DEVICE float raise(float piece_max, float factor) {
    if ((piece_max - max) * factor <= kSlack) return 1.0f;
    const float before = max;
    max = maximum(max, piece_max);
    const float rescale = exp2_of(before, factor, offset(factor));
    sum *= rescale;
    return rescale;
  }

  // The same without slack: the offset becomes the largest score so far.
  OMNIFLASH_DEVICE float raise_to(float piece_max, float factor) {
    if (piece_max <= max) return 1.0f;
    const float before = max;
    max = piece_max;
    const float rescale = exp2_of(before, factor, offset(factor));
    sum *= rescale;
    return rescale;
  }
};

// What a finished row needs.
struct SoftmaxResult {
  float scale;  // of the summed values; 0 for a row without visible keys
  float lse;    // natural logarithm
};

// Joins a row with its sink (in units of log2; -inf for none): one more score that has no value.
OMNIFLASH_DEVICE SoftmaxResult finalize(float offset, float sum, float sink) {
  const bool empty = sum == 0.0f;
  const float largest = empty ? sink : maximum(offset, sink);
  if (largest == -kInfinity) return SoftmaxResult{0.0f, -kInfinity};
  const float rescale = empty ? 0.0f : exp2(offset - largest);
  const float total = sum * rescale + exp2(sink - largest);
  return SoftmaxResult{rescale / total, (largest + log2(total)) * kLn2};
}

}  // namespace omniflash
