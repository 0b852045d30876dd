// Numbers: 16-bit floats, the constants of exponentials, small integer helpers.
#pragma once

#include "omniflash/arch.hpp"

namespace omniflash {

// Memory images; arithmetic is done in float.
struct float16 {
  unsigned short bits;
};
struct bfloat16 {
  unsigned short bits;
};

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;
constexpr float kInfinity = __builtin_bit_cast(float, 0x7f800000u);

OMNIFLASH_DEVICE float to_float(float value) { return value; }
OMNIFLASH_DEVICE float to_float(float16 value) { return half_to_float(value.bits); }
OMNIFLASH_DEVICE float to_float(bfloat16 value) {
  return __builtin_bit_cast(float, static_cast<unsigned>(value.bits) << 16);
}

template <class T>
OMNIFLASH_DEVICE T from_float(float value);
template <>
OMNIFLASH_DEVICE float from_float<float>(float value) {
  return value;
}
template <>
OMNIFLASH_DEVICE float16 from_float<float16>(float value) {
  return float16{float_to_half(value)};
}
template <>
OMNIFLASH_DEVICE bfloat16 from_float<bfloat16>(float value) {
  return bfloat16{float_to_bfloat(value)};
}

// The exponent's bits of a number; all are set in those that are not finite.
template <class T>
constexpr unsigned exponent_bits = 0x7f800000u;
template <>
inline constexpr unsigned exponent_bits<float16> = 0x7c00u;
template <>
inline constexpr unsigned exponent_bits<bfloat16> = 0x7f80u;

// Two 16-bit values in one word, the first in the lower half.
template <class T>
OMNIFLASH_DEVICE unsigned pack(float low, float high);
template <>
OMNIFLASH_DEVICE unsigned pack<float16>(float low, float high) {
  return pack_half(low, high);
}
template <>
OMNIFLASH_DEVICE unsigned pack<bfloat16>(float low, float high) {
  return pack_bfloat(low, high);
}

template <class T>
OMNIFLASH_DEVICE constexpr T minimum(T a, T b) {
  return b < a ? b : a;
}
template <class T>
OMNIFLASH_DEVICE constexpr T maximum(T a, T b) {
  return a < b ? b : a;
}
// The larger number; the other where one is NaN.
OMNIFLASH_DEVICE float maximum(float a, float b) { return float_max(a, b); }

OMNIFLASH_DEVICE constexpr int ceil_divide(int dividend, int divisor) { return (dividend + divisor - 1) / divisor; }

// Rounds toward negative infinity.
OMNIFLASH_DEVICE int floor_divide(int dividend, int divisor) {
  return dividend >= 0 ? dividend / divisor : -1 - (-1 - dividend) / divisor;
}

// exp2(score * factor - offset) and tanh without a library.
OMNIFLASH_DEVICE float exp2_of(float score, float factor, float offset) {
  return exp2(fused_multiply_add(score, factor, -offset));
}
// Absolute error about 2^-22; saturates at both ends.
OMNIFLASH_DEVICE float tanh_of(float x) { return 1.0f - 2.0f * reciprocal(1.0f + exp2(x * (2.0f * kLog2E))); }

}  // namespace omniflash
