// A tensor with a value for each score: of additive masks and biases.
#pragma once

#include "omniflash/functor.hpp"

namespace omniflash {

// Of kRun keys side by side values are loaded at once. With 2 the host has seen that keys lie at stride 1 and are even in
// number, and that every pair from an even key on begins at a multiple of its size.
template <class T, int kRun>
struct ScoreTensor {
  const T* data;
  long long batch_stride, head_stride, row_stride, key_stride;

  OMNIFLASH_DEVICE const T* row(const ScoreIndex& at) const {
    return data + (at.batch * batch_stride + at.head * head_stride + at.row * row_stride);
  }
  OMNIFLASH_DEVICE float value(const ScoreIndex& at) const { return to_float(row(at)[at.k * key_stride]); }

  // Of key at.k, which is even, and of the next one. Past `last` they are anything.
  OMNIFLASH_DEVICE PairOfValues pair(const ScoreIndex& at, int last) const {
    if constexpr (kRun == 2) {
      struct alignas(2 * sizeof(T)) Values {
        T first, second;
      };
      // By the element, so that keys a constant apart are at constant offsets.
      const Values values = *reinterpret_cast<const Values*>(row(at) + minimum(at.k, last & ~1));
      return PairOfValues{to_float(values.first), to_float(values.second)};
    } else {
      const T* values = row(at);
      return PairOfValues{to_float(values[minimum(at.k, last) * key_stride]),
                          to_float(values[minimum(at.k + 1, last) * key_stride])};
    }
  }
};

}  // namespace omniflash
