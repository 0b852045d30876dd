// What a device can do at most, for benchmarks to be measured against: matrix products whose operands never leave the
// multiprocessor, and what omniflash/peak.hpp has for both vendors.
//
// The instance chooses kWork, and where it is a product kOperand. A warp has 8 independent 16 x 8 accumulators (mma.sync);
// on sm_90a a group of four warps has one of 64 x 128, with operands in shared memory (wgmma). f32 is TF32.

#include "omniflash/peak.hpp"
#include "instance.hpp"

namespace omniflash {

constexpr int kThreads = 256;
constexpr PeakWork kWork = static_cast<PeakWork>(instance::kWork);
constexpr PeakOperand kOperand = static_cast<PeakOperand>(instance::kOperand);

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// A matrix of 16-byte by 8-row pieces in shared memory without swizzle: 128 bytes from piece to piece along k, 256 along
// the other axis.
OMNIFLASH_DEVICE unsigned long long descriptor(unsigned address) {
  return (static_cast<unsigned long long>(address & 0x3ffff) >> 4) | (8ull << 16) | (16ull << 32);
}

#define OMNIFLASH_WGMMA(SHAPE, TRANSPOSED)                                                                       \
  asm volatile(                                                                                                  \
      "wgmma.mma_async.sync.aligned." SHAPE " {"                                                                 \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                 \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                       \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                       \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"                         \
      "}, %64, %65, 1, 1, 1" TRANSPOSED ";"                                                                      \
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3]),\
        "+f"(sum[4]), "+f"(sum[5]), "+f"(sum[6]), "+f"(sum[7]),\
        "+f"(sum[8]), "+f"(sum[9]), "+f"(sum[10]), "+f"(sum[11]),\
        "+f"(sum[12]), "+f"(sum[13]), "+f"(sum[14]), "+f"(sum[15]),\
        "+f"(sum[16]), "+f"(sum[17]), "+f"(sum[18]), "+f"(sum[19]),\
        "+f"(sum[20]), "+f"(sum[21]), "+f"(sum[22]), "+f"(sum[23]),\
        "+f"(sum[24]), "+f"(sum[25]), "+f"(sum[26]), "+f"(sum[27]),\
        "+f"(sum[28]), "+f"(sum[29]), "+f"(sum[30]), "+f"(sum[31]),\
        "+f"(sum[32]), "+f"(sum[33]), "+f"(sum[34]), "+f"(sum[35]),\
        "+f"(sum[36]), "+f"(sum[37]), "+f"(sum[38]), "+f"(sum[39]),\
        "+f"(sum[40]), "+f"(sum[41]), "+f"(sum[42]), "+f"(sum[43]),\
        "+f"(sum[44]), "+f"(sum[45]), "+f"(sum[46]), "+f"(sum[47]),\
        "+f"(sum[48]), "+f"(sum[49]), "+f"(sum[50]), "+f"(sum[51]),\
        "+f"(sum[52]), "+f"(sum[53]), "+f"(sum[54]), "+f"(sum[55]),\
        "+f"(sum[56]), "+f"(sum[57]), "+f"(sum[58]), "+f"(sum[59]),\
        "+f"(sum[60]), "+f"(sum[61]), "+f"(sum[62]), "+f"(sum[63])\
      : "l"(a), "l"(b))

OMNIFLASH_DEVICE void product(float (&sum)[64], unsigned long long a, unsigned long long b) {
  if constexpr (kOperand == PeakOperand::BFloat16) {
    OMNIFLASH_WGMMA("m64n128k16.f32.bf16.bf16", ", 0, 0");
  } else if constexpr (kOperand == PeakOperand::Float16) {
    OMNIFLASH_WGMMA("m64n128k16.f32.f16.f16", ", 0, 0");
  } else {
    OMNIFLASH_WGMMA("m64n128k8.f32.tf32.tf32", "");
  }
}

OMNIFLASH_DEVICE float products(int rounds) {
  // Four steps of k: 64 rows of A for each group of four warps, then 128 rows of B, of 32 bytes each.
  constexpr int kSteps = 4, kOfA = 64 * 32, kOfB = 128 * 32;
  __shared__ __align__(128) unsigned operands[kSteps * (2 * kOfA + kOfB) / 4];
  for (int i = threadIdx.x; i < kSteps * (2 * kOfA + kOfB) / 4; i += kThreads) operands[i] = operand_bits<kOperand>(i);
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  const unsigned base = static_cast<unsigned>(__cvta_generic_to_shared(operands));
  const unsigned of_a = base + threadIdx.x / 128 * kSteps * kOfA, of_b = base + 2 * kSteps * kOfA;
  float sum[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) sum[i] = 0.0f;
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
  for (int round = 0; round < rounds; ++round) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      product(sum, descriptor(of_a + step * kOfA), descriptor(of_b + step * kOfB));
    }
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
  }
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  float all = 0.0f;
#pragma unroll
  for (int i = 0; i < 64; ++i) all += sum[i];
  return all;
}

#else

OMNIFLASH_DEVICE void product(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#define OMNIFLASH_MMA(SHAPE)                                                                                     \
  asm volatile("mma.sync.aligned." SHAPE " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"      \
               : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])                                          \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
  if constexpr (kOperand == PeakOperand::BFloat16) {
    OMNIFLASH_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
  } else if constexpr (kOperand == PeakOperand::Float16) {
    OMNIFLASH_MMA("m16n8k16.row.col.f32.f16.f16.f32");
  } else {
    OMNIFLASH_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
  }
}

OMNIFLASH_DEVICE float products(int rounds) {
  constexpr int kTiles = 8;
  unsigned a[4], b[kTiles][2];
#pragma unroll
  for (int i = 0; i < 4; ++i) a[i] = operand_bits<kOperand>(threadIdx.x * 4 + i);
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    b[tile][0] = operand_bits<kOperand>(threadIdx.x * 64 + tile);
    b[tile][1] = operand_bits<kOperand>(threadIdx.x * 64 + tile + 32);
  }
  float sum[kTiles][4] = {};
  for (int round = 0; round < rounds; ++round) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) product(sum[tile], a, b[tile]);
  }
  float all = 0.0f;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) all += sum[tile][0] + sum[tile][1] + sum[tile][2] + sum[tile][3];
  return all;
}

#endif

}  // namespace omniflash

OMNIFLASH_KERNEL(omniflash::kThreads) omniflash_peak(OMNIFLASH_PARAMETER omniflash::PeakParameters parameters) {
  using namespace omniflash;
  unsigned answer;
  if constexpr (kWork == PeakWork::Product) {
    answer = __float_as_uint(products(parameters.rounds));
  } else if constexpr (kWork == PeakWork::MultiplyAdd) {
    answer = __float_as_uint(multiply_adds(parameters.rounds));
  } else {
    answer = stream<kWork, kThreads>(parameters);
  }
  if (answer == parameters.never) parameters.target[thread_index()].words[0] = answer;
}
