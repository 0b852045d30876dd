// What happens to scores between the two products, on a warp's fragments: scale, score modification, mask, online softmax;
// and values that are not finite.
//
// A Block says what a kernel's block works on: parameters, functors, sequence, scale, row(fragment, half) and
// index(row). Accumulators lie as product.hpp says.
#pragma once

#include "omniflash/functor.hpp"
#include "omniflash/online_softmax.hpp"
#include "omniflash/score_mods.hpp"
#include "product.hpp"
#include "quad.hpp"

namespace omniflash {

// Scale and score modification.
template <class Block, int kFragments, int kN>
OMNIFLASH_DEVICE void modify(const Block& block, int first_key, float (&s)[kFragments][kN][4]) {
  if constexpr (is_identity<decltype(block.functors.score_mod)>) {
    if (block.scale == 1.0f) return;
#pragma unroll
    for (int i = 0; i < kFragments * kN * 4; ++i) s[i / (kN * 4)][i / 4 % kN][i % 4] *= block.scale;
  } else {
#pragma unroll
    for (int m = 0; m < kFragments; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        ScoreIndex at = block.index(block.row(m, half));
#pragma unroll
        for (int n = 0; n < kN; ++n) {
          at.k = first_key + 8 * n + lane_index() % 4 * 2;
          float &even = s[m][n][2 * half], &odd = s[m][n][2 * half + 1];
          even *= block.scale;
          odd *= block.scale;
          apply_to_pair(block.functors.score_mod, even, odd, at, block.sequence.kv_len - 1);
        }
      }
    }
  }
}

// Half of a fragment's rows after a mask without bits, in pairs of keys from first_key on. Branches are outside, so that
// all loads of a row are in flight together.
template <class Mask, int kN>
OMNIFLASH_DEVICE void mask_row(const Mask& mask, ScoreIndex at, int first_key, int last, int half, float (&s)[kN][4]) {
#pragma unroll
  for (int n = 0; n < kN; ++n) {
    at.k = first_key + 8 * n;
    mask_pair(mask, s[n][2 * half], s[n][2 * half + 1], at, last);
  }
}

// What a mask that loads something for each score hides, and keys past the last, from a lane's first key on. Eight keys of all
// rows after the other, a bit for each score: all at once would need more registers than there are.
template <class Block, class Mask, int kFragments, int kN>
OMNIFLASH_DEVICE void hide_by_loads(const Block& block, const Mask& mask, int first_key, int last, float (&s)[kFragments][kN][4]) {
  constexpr int kRows = 2 * kFragments, kKeys = minimum(8, 2 * kN);
  static_assert(2 * kN <= 32, "a bit for each key of a lane's");
  ScoreIndex at[kRows];
  unsigned shown[kRows];
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    at[row] = block.index(block.row(row / 2, row % 2));
    shown[row] = 0;
  }
#pragma unroll 1
  for (int begin = 0; begin < 2 * kN; begin += kKeys) {
#pragma unroll
    for (int i = 0; i < kKeys; ++i) {
      const int key = first_key + 4 * begin + 8 * (i / 2) + i % 2;
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        at[row].k = minimum(key, last);
        const bool is_shown = mask.keep(at[row]) && key <= last;
        shown[row] = shown[row] >> 1 | (is_shown ? 1u << 31 : 0u);
      }
    }
  }
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
#pragma unroll
    for (int i = 0; i < 2 * kN; ++i) {
      if (!(shown[row] >> (32 - 2 * kN + i) & 1)) s[row / 2][i / 2][row % 2 * 2 + i % 2] = -kInfinity;
    }
  }
}

// Hides what the mask hides, if it has to be asked, and keys past the end. The first key is a multiple of 32, or of 16
// where there are 16 keys.
template <class Block, class Mask, int kFragments, int kN>
OMNIFLASH_DEVICE void hide(const Block& block, const Mask& mask, int first_key, bool ask, float (&s)[kFragments][kN][4]) {
  const int kv_len = block.sequence.kv_len, column = lane_index() % 4 * 2;
  if constexpr (status_reads<Mask> && !has_bits<Mask> && !has_add<Mask>) {
    if (ask) return hide_by_loads(block, mask, first_key + column, kv_len - 1, s);
  }
#pragma unroll
  for (int m = 0; m < kFragments; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      ScoreIndex at = block.index(block.row(m, half));
      if constexpr (is_interval<Mask> && !has_add<Mask>) {
        using Seen = SeenInterval<Mask>;
        const int first = first_key + column;
        const Seen seen = ask ? Seen(mask, at, first, kv_len) : Seen(first, kv_len);
#pragma unroll
        for (int n = 0; n < kN; ++n) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            if (!seen.contains(8 * n + i)) s[m][n][2 * half + i] = -kInfinity;
          }
        }
      } else if constexpr (has_bits<Mask> && !has_add<Mask>) {
#pragma unroll
        for (int word = 0; word < (kN + 3) / 4; ++word) {
          // Masks answer for 32 keys from a multiple of 32 on; half a word of keys may be its upper half.
          at.k = kN < 4 ? first_key & ~31 : first_key + 32 * word;
          unsigned bits = band_bits(0, kv_len, at.k);
          if (ask) bits &= mask.bits(at);
          bits >>= kN < 4 ? column + (first_key & 31) : column;
#pragma unroll
          for (int i = 0; i < minimum(8, 2 * kN); ++i) {
            float& score = s[m][4 * word + i / 2][2 * half + i % 2];
            if (!(bits >> (i / 2 * 8 + i % 2) & 1)) score = -kInfinity;
          }
        }
      } else if (has_add<Mask> && ask && first_key + 8 * kN <= kv_len) {
        mask_row(mask, at, first_key + column, kNoLastKey, half, s[m]);
      } else if (ask) {
        mask_row(mask, at, first_key + column, kv_len - 1, half, s[m]);
      } else {
#pragma unroll
        for (int n = 0; n < kN; ++n) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            if (first_key + 8 * n + column + i >= kv_len) s[m][n][2 * half + i] = -kInfinity;
          }
        }
      }
    }
  }
}

// ---- online softmax, in three steps
//
// In most tiles no score passes its row's offset by more than the slack: then the lanes of a row need not speak of it.

// The largest score of each row among this lane's; whether one passes its row's offset by more than the slack.
template <int kFragments, int kN>
OMNIFLASH_DEVICE bool find_largest(float factor, const SoftmaxRow (&softmax)[kFragments][2],
                                   const float (&s)[kFragments][kN][4], float (&largest)[kFragments][2]) {
  bool is_fine = true;
#pragma unroll
  for (int m = 0; m < kFragments; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float even = s[m][0][2 * half], odd = s[m][0][2 * half + 1];
#pragma unroll
      for (int n = 1; n < kN; ++n) {
        even = maximum(even, s[m][n][2 * half]);
        odd = maximum(odd, s[m][n][2 * half + 1]);
      }
      largest[m][half] = maximum(even, odd);
      is_fine = is_fine && (largest[m][half] - softmax[m][half].max) * factor <= kSlack;
    }
  }
  return !is_fine;
}

// Raises offsets to the largest scores that the lanes of a row have found, and rescales what was summed before.
template <int kFragments, int kV>
OMNIFLASH_DEVICE void raise(float factor, SoftmaxRow (&softmax)[kFragments][2], const float (&largest)[kFragments][2],
                            float (&o)[kFragments][kV][4]) {
  float rescale[kFragments][2];
#pragma unroll
  for (int m = 0; m < kFragments; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      rescale[m][half] = softmax[m][half].raise(quad_max(largest[m][half]), factor);
    }
  }
#pragma unroll
  for (int i = 0; i < kFragments * kV * 4; ++i) {
    o[i / (kV * 4)][i / 4 % kV][i % 4] *= rescale[i / (kV * 4)][i % 4 / 2];
  }
}

// Scores become weights. Sums stay per thread until the end.
template <int kFragments, int kN>
OMNIFLASH_DEVICE void weigh(float factor, SoftmaxRow (&softmax)[kFragments][2], float (&s)[kFragments][kN][4]) {
#pragma unroll
  for (int m = 0; m < kFragments; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      SoftmaxRow& row = softmax[m][half];
      const float offset = row.offset(factor);
      float even = 0.0f, odd = 0.0f;
#pragma unroll
      for (int n = 0; n < kN; ++n) {
        even += s[m][n][2 * half] = exp2_of(s[m][n][2 * half], factor, offset);
        odd += s[m][n][2 * half + 1] = exp2_of(s[m][n][2 * half + 1], factor, offset);
      }
      row.sum += even + odd;
    }
  }
}

// All three, where a warp has all keys of its rows.
template <int kFragments, int kN, int kV>
OMNIFLASH_DEVICE void online_softmax(float factor, SoftmaxRow (&softmax)[kFragments][2], float (&s)[kFragments][kN][4],
                                     float (&o)[kFragments][kV][4]) {
  float largest[kFragments][2];
  // The one branch: what follows can be scheduled among the products.
  if (warp_any(find_largest(factor, softmax, s, largest))) raise(factor, softmax, largest, o);
  weigh(factor, softmax, s);
}

// ---- values that are not finite
//
// In a product a hidden value has weight 0, and 0 times Inf or NaN is NaN. So in tiles that the mask touches such
// values are taken out of the tile, and added by hand to the rows that do see them.

// The bits of a word that belong to numbers that are not finite.
template <class Element>
OMNIFLASH_DEVICE unsigned non_finite_bits(unsigned word) {
  constexpr unsigned kExponent = exponent_bits<Element>;
  if constexpr (sizeof(Element) == 4) {
    return (word & kExponent) == kExponent ? ~0u : 0u;
  } else {
    const unsigned low = (word & kExponent) == kExponent ? 0xffffu : 0u;
    return (word >> 16 & kExponent) == kExponent ? low | 0xffff0000u : low;
  }
}

// Whether this thread's part of kRows rows has any; kThreads threads share them.
template <int kThreads, int kRows, template <class, int> class Tile, class Element, int kColumns>
OMNIFLASH_DEVICE bool has_non_finite(const Tile<Element, kColumns>& values) {
  unsigned found = 0;
#pragma unroll 4
  for (int i = thread_index() % kThreads; i < kRows * values.kChunks; i += kThreads) {
    const unsigned at = values.chunk(i / values.kChunks, i % values.kChunks);
    unsigned words[4];
    load_shared_16(words, at);
#pragma unroll
    for (int i = 0; i < 4; ++i) found |= non_finite_bits<Element>(words[i]);
  }
  return found != 0;
}

template <int kThreads, int kRows, template <class, int> class Tile, class Element, int kColumns>
OMNIFLASH_DEVICE void clear_non_finite(const Tile<Element, kColumns>& values) {
#pragma unroll 1
  for (int i = thread_index() % kThreads; i < kRows * values.kChunks; i += kThreads) {
    const unsigned at = values.chunk(i / values.kChunks, i % values.kChunks);
    unsigned words[4];
    load_shared_16(words, at);
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i] &= ~non_finite_bits<Element>(words[i]);
    store_shared_16(at, words);
  }
}

template <template <class, int> class Tile, class Element, int kColumns, int kFragments, int kN, int kV>
OMNIFLASH_DEVICE void add_non_finite(const Tile<Element, kColumns>& values, const float (&p)[kFragments][kN][4],
                                     float (&o)[kFragments][kV][4]) {
  constexpr unsigned kExponent = exponent_bits<Element>, kMantissa = (kExponent & -kExponent) - 1;
  const int lane = lane_index(), column = lane % 4 * 2;
#pragma unroll 1
  for (int key = 0; key < 8 * kN; ++key) {
    float weight[kFragments][2];
#pragma unroll
    for (int m = 0; m < kFragments; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float mine = 0.0f;
#pragma unroll
        for (int n = 0; n < kN; ++n) {
          const float even = p[m][n][2 * half], odd = p[m][n][2 * half + 1];
          if (n == key / 8) mine = key % 2 == 0 ? even : odd;
        }
        weight[m][half] = shuffle(mine, lane / 4 * 4 + key % 8 / 2);
      }
    }
#pragma unroll
    for (int n = 0; n < kV; ++n) {
      unsigned words[2];
      words[0] = load_shared_4(values.element(key, 8 * n + column));
      words[1] = sizeof(Element) == 4 ? load_shared_4(values.element(key, 8 * n + column + 1)) : words[0] >> 16;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const unsigned bits = sizeof(Element) == 4 ? words[i] : words[i] & 0xffff;
        if ((bits & kExponent) != kExponent) continue;
        const bool is_nan = (bits & kMantissa) != 0;
        const bool negative = bits >> (8 * sizeof(Element) - 1) & 1;
        const float value = is_nan ? kInfinity - kInfinity : negative ? -kInfinity : kInfinity;
#pragma unroll
        for (int m = 0; m < kFragments; ++m) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            if (weight[m][half] > 0.0f) o[m][n][2 * half + i] += value;
          }
        }
      }
    }
  }
}

}  // namespace omniflash
