// Blocks of a cluster: they run at the same time, and read each other's shared memory (PTX ISA, "barrier.cluster", "mapa").
#pragma once

#include "omniflash/numeric.hpp"

// The blocks of a cluster, for a kernel's declaration; none for 1.
#if OMNIFLASH_CUDA && (!defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900)
#define OMNIFLASH_CLUSTER(blocks) __cluster_dims__(blocks, 1, 1)
#else
#define OMNIFLASH_CLUSTER(blocks)
#endif

namespace omniflash {

// barrier.cluster: all threads of the cluster arrive, and wait for all others; what they did with shared memory before they
// arrived comes before what others do with it after they have waited.
OMNIFLASH_DEVICE void cluster_arrive() { asm volatile("barrier.cluster.arrive.release;" ::: "memory"); }
// The same where nothing has to come before: an arrival says only that the thread has got there.
OMNIFLASH_DEVICE void cluster_arrive_relaxed() { asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory"); }
OMNIFLASH_DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }

// mapa: where an address of this block's shared memory lies in that of another block of the cluster.
OMNIFLASH_DEVICE unsigned cluster_address(unsigned address, int block) {
  unsigned there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(block));
  return there;
}

// st.shared::cluster.
OMNIFLASH_DEVICE void store_cluster_8(unsigned to, unsigned low, unsigned high) {
  asm volatile("st.shared::cluster.v2.b32 [%0], {%1, %2};" ::"r"(to), "r"(low), "r"(high) : "memory");
}
OMNIFLASH_DEVICE void store_cluster_16(unsigned to, const unsigned (&words)[4]) {
  asm volatile("st.shared::cluster.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(words[0]), "r"(words[1]), "r"(words[2]),
               "r"(words[3])
               : "memory");
}

}  // namespace omniflash
