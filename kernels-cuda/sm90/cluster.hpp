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

// barrier.cluster: all threads of the cluster meet; what they wrote to shared memory before, all see after.
OMNIFLASH_DEVICE void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

// mapa: where an address of this block's shared memory lies in that of another block of the cluster.
OMNIFLASH_DEVICE unsigned cluster_address(unsigned address, int block) {
  unsigned there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(block));
  return there;
}

// ld.shared::cluster.
OMNIFLASH_DEVICE void load_cluster_8(unsigned (&words)[2], unsigned from) {
  asm volatile("ld.shared::cluster.v2.b32 {%0, %1}, [%2];" : "=r"(words[0]), "=r"(words[1]) : "r"(from) : "memory");
}
OMNIFLASH_DEVICE void load_cluster_16(unsigned (&words)[4], unsigned from) {
  asm volatile("ld.shared::cluster.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(from)
               : "memory");
}

}  // namespace omniflash
