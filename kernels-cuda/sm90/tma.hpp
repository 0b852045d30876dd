// Copies of boxes between tensors and shared memory by the tensor memory accelerator (PTX ISA, "Data Movement and
// Conversion Instructions: Tensor copy"). One thread issues a copy; the tensor's shape lies in an opaque map.
#pragma once

#include "omniflash/numeric.hpp"

namespace omniflash {

// What cuTensorMapEncodeTiled writes.
struct alignas(64) TensorMap {
  unsigned long long words[16];
};

// How long the second-level cache keeps what a copy reads: encodings of createpolicy.fractional for whole tensors.
constexpr unsigned long long kEvictFirst = 0x12F0000000000000ull;
constexpr unsigned long long kEvictLast = 0x14F0000000000000ull;

// elect.sync: true in one lane of a warp. The compiler knows that it is one, and asks the copy engine without a loop over lanes.
OMNIFLASH_DEVICE bool elect_lane() {
  unsigned is_elected;
  asm volatile(
      "{\n"
      ".reg .pred is_elected;\n"
      "elect.sync _|is_elected, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, is_elected;\n"
      "}\n"
      : "=r"(is_elected));
  return is_elected != 0;
}

// prefetch.tensormap: the map is at hand when the first copy needs it.
OMNIFLASH_DEVICE void prefetch_tensor_map(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// cp.async.bulk.tensor.5d, global to shared: a box from these coordinates on; elements outside of the tensor become 0.
// Its bytes, those outside included, are counted by an mbarrier.
OMNIFLASH_DEVICE void load_box(unsigned to, const TensorMap& map, unsigned barrier, const int (&at)[5],
                               unsigned long long cache_policy) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {%3, %4, %5, %6, %7}], [%2], %8;" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4]), "l"(cache_policy)
      : "memory");
}

// The same to several blocks of the cluster, bit i of `blocks` for the i-th: the box comes to the same place in each, and is counted
// by the barrier at the same place.
OMNIFLASH_DEVICE void load_box_to_all(unsigned to, const TensorMap& map, unsigned barrier, const int (&at)[5],
                                      unsigned long long cache_policy, unsigned short blocks) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint"
      " [%0], [%1, {%3, %4, %5, %6, %7}], [%2], %8, %9;" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4]), "h"(blocks), "l"(cache_policy)
      : "memory");
}

// cp.async.bulk.tensor.5d, shared to global: elements outside of the tensor are not written.
OMNIFLASH_DEVICE void store_box(const TensorMap& map, unsigned from, const int (&at)[5]) {
  asm volatile("cp.async.bulk.tensor.5d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5, %6}], [%1];" ::"l"(&map),
               "r"(from), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4])
               : "memory");
}

// cp.async.bulk.commit_group: ends a group of this thread's stores.
OMNIFLASH_DEVICE void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// cp.async.bulk.wait_group.read: this thread's stores have read their shared memory, which may be overwritten.
OMNIFLASH_DEVICE void wait_stores_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }

// fence.proxy.async: ordinary writes to shared memory are seen by asynchronous copies and matrix products.
OMNIFLASH_DEVICE void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

}  // namespace omniflash
