// Four neighbouring lanes, which hold a row of an accumulator's fragment between them (PTX ISA, "mma", "wgmma").
#pragma once

#include "omniflash/online_softmax.hpp"

namespace omniflash {

OMNIFLASH_DEVICE float quad_max(float x) {
  x = maximum(x, shuffle_xor(x, 1));
  return maximum(x, shuffle_xor(x, 2));
}
OMNIFLASH_DEVICE float quad_sum(float x) {
  x += shuffle_xor(x, 1);
  return x + shuffle_xor(x, 2);
}

}  // namespace omniflash
