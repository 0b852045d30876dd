// Division by numbers that are the same in a whole launch, as a product with what the host passes for them.
#pragma once

#include "omniflash/parameters.hpp"

namespace omniflash {

// A number below 2^31, divided and rounded down.
OMNIFLASH_DEVICE int quotient(unsigned dividend, const Divisor& by) {
  const unsigned high = static_cast<unsigned long long>(2 * dividend) * by.multiplier >> 32;
  return static_cast<int>(high >> by.shift);
}

}  // namespace omniflash
