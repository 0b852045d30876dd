// The built-in score modifications; they see scores already multiplied by softmax_scale.
#pragma once

#include "omniflash/score_tensor.hpp"

namespace omniflash {

struct Identity {
  OMNIFLASH_DEVICE float apply(float score, const ScoreIndex&) const { return score; }
};

struct Softcap {
  float cap;
  OMNIFLASH_DEVICE float apply(float score, const ScoreIndex&) const {
    return cap * tanh_of(score * reciprocal(cap));
  }
};

// With the default slopes: a geometric sequence from 2^(-8 / P), P the largest power of two up to num_heads, then every
// second slope of 2 P heads.
struct Alibi {
  int num_heads;
  OMNIFLASH_DEVICE float slope(int head) const {
    const int power = 1 << (31 - leading_zeros(num_heads));
    const float numerator = head < power ? -8.0f * (head + 1) : -4.0f * (2 * (head - power) + 1);
    return exp2(numerator / power);
  }
  OMNIFLASH_DEVICE float apply(float score, const ScoreIndex& at) const {
    return score + slope(at.head) * (at.k - at.q);
  }
};

template <class T>
struct AlibiSlopes {
  const T* slopes;
  long long stride;
  OMNIFLASH_DEVICE float apply(float score, const ScoreIndex& at) const {
    return score + to_float(slopes[at.head * stride]) * (at.k - at.q);
  }
};

template <class T, int kRun = 1>
struct Bias {
  ScoreTensor<T, kRun> values;
  OMNIFLASH_DEVICE float apply(float score, const ScoreIndex& at) const { return score + values.value(at); }
  OMNIFLASH_DEVICE void apply_pair(float& first, float& second, const ScoreIndex& at, int last) const {
    const PairOfValues added = values.pair(at, last);
    first += added.first;
    second += added.second;
  }
};

template <class A, class B>
struct Then {
  alignas(16) A first;
  alignas(16) B second;
  OMNIFLASH_DEVICE float apply(float score, const ScoreIndex& at) const {
    return second.apply(first.apply(score, at), at);
  }
  OMNIFLASH_DEVICE void apply_pair(float& even, float& odd, const ScoreIndex& at, int last) const {
    apply_to_pair(first, even, odd, at, last);
    apply_to_pair(second, even, odd, at, last);
  }
};

// Whether a score modification can hide a key by a score of -inf: a functor that does not say it cannot, may.
template <class ScoreMod>
constexpr bool hides_by_score = true;
template <>
inline constexpr bool hides_by_score<Identity> = false;
template <>
inline constexpr bool hides_by_score<Softcap> = false;
template <>
inline constexpr bool hides_by_score<Alibi> = false;
template <class T>
inline constexpr bool hides_by_score<AlibiSlopes<T>> = false;
template <class A, class B>
inline constexpr bool hides_by_score<Then<A, B>> = hides_by_score<A> || hides_by_score<B>;

template <class ScoreMod>
constexpr bool is_identity = false;
template <>
inline constexpr bool is_identity<Identity> = true;

}  // namespace omniflash
