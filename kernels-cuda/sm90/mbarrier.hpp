// Barriers in shared memory that count arrivals and bytes (PTX ISA, "Parallel Synchronization and Communication
// Instructions: mbarrier"). A barrier has eight bytes of shared memory and is named by their address.
#pragma once

#include "sm80.hpp"

namespace omniflash {

// mbarrier.init: a phase of the barrier is complete after so many arrivals, and all bytes expected.
OMNIFLASH_DEVICE void mbarrier_init(unsigned barrier, unsigned arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// fence.mbarrier_init: what was initialised is seen by asynchronous copies too.
OMNIFLASH_DEVICE void mbarrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// mbarrier.arrive: one arrival; what this thread wrote before is seen by those that wait.
OMNIFLASH_DEVICE void mbarrier_arrive(unsigned barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// mbarrier.arrive.expect_tx: one arrival, and the phase also waits for so many bytes of asynchronous copies.
OMNIFLASH_DEVICE void mbarrier_arrive_expecting(unsigned barrier, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// The same at a barrier of another block of the cluster, by its cluster_address. It says only that the thread has got there: what it
// wrote is seen by its own block alone.
OMNIFLASH_DEVICE void mbarrier_arrive_cluster(unsigned barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// mbarrier.try_wait.parity, again until the phase of this parity is complete.
OMNIFLASH_DEVICE void mbarrier_wait(unsigned barrier, unsigned parity) {
  asm volatile(
      "{\n"
      ".reg .pred complete;\n"
      "TRY:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 complete, [%0], %1;\n"
      "@complete bra DONE;\n"
      "bra TRY;\n"
      "DONE:\n"
      "}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

}  // namespace omniflash
