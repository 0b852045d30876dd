// Flash attention forward, correctness first: one source for MFMA (CDNA 2, 3, 4) and WMMA (RDNA 3, 4).
// Layout [head][seq][64] bf16. S^T = K Q^T so that each lane owns ONE query column of the accumulator:
//  - softmax max/sum: in-lane over the accumulator + ONE half-wave exchange
//  - the rescale factor is a per-lane scalar
//  - P^T accumulator registers are already the B operand of O^T = V^T P^T (no LDS round trip)
#include "device.h"
#define D 64
#if CDNA
#define TQ 32
#define TK 32
typedef f32x16 acc_t;
#define NACC 16
#else
#define TQ 16
#define TK 16
typedef f32x8 acc_t;
#define NACC 8
#endif
#define NW 4
#define LDSP (D + 8)          // padded row, in bf16 elements

INLINE float xhalf(float x) {   // value of the partner lane in the other half-wave
#if defined(__gfx950__)
  auto r = __builtin_amdgcn_permlane32_swap(__builtin_bit_cast(u32, x), __builtin_bit_cast(u32, x), false, false);
  return __builtin_bit_cast(float, (item() & 32) ? r[0] : r[1]);
#elif CDNA
  return __builtin_bit_cast(float, __builtin_amdgcn_ds_bpermute((int)(((item() & 63) ^ 32) << 2), __builtin_bit_cast(int, x)));
#else
  u32 u = __builtin_bit_cast(u32, x);
  return __builtin_bit_cast(float, __builtin_amdgcn_permlanex16(u, u, 0x76543210, 0xfedcba98, false, false));
#endif
}
// kv row (inside the tile) of accumulator register i in half/group g
INLINE int arow(int i, int g) {
#if CDNA
  return 8 * (i >> 2) + 4 * g + (i & 3);
#elif RDNA3
  return 2 * i + g;
#else
  return 8 * g + i;
#endif
}
INLINE acc_t qk(const u16* krow, const u16* qf, acc_t acc, int kk, int g) {
#if defined(__gfx950__)
  return __builtin_amdgcn_mfma_f32_32x32x16_bf16(*(const bf16x8*)(krow + kk * 16 + 8 * g), *(const bf16x8*)(qf + kk * 8), acc, 0, 0, 0);
#elif CDNA
  return __builtin_amdgcn_mfma_f32_32x32x8bf16_1k(*(const s16x4*)(krow + kk * 8 + 4 * g), *(const s16x4*)(qf + kk * 4), acc, 0, 0, 0);
#elif RDNA3
  return __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32(*(const s16x16*)(krow + kk * 16), *(const s16x16*)(qf + kk * 16), acc);
#else
  return __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32_gfx12(*(const s16x8*)(krow + kk * 16 + 8 * g), *(const s16x8*)(qf + kk * 8), acc);
#endif
}
#if defined(__gfx950__)
#define KSTEP 16
#define QPL 8
#elif CDNA
#define KSTEP 8
#define QPL 4
#elif RDNA3
#define KSTEP 16
#define QPL 16
#else
#define KSTEP 16
#define QPL 8
#endif

// Rows behind the end are masked later; they are read from the last row so that nothing outside is touched.
INLINE int clamp_row(int row, int rows) {
#ifdef WITHOUT_TAIL_CLAMP
  return row;
#else
  return row < rows ? row : rows - 1;
#endif
}

// The barrier that keeps a wave from overwriting a tile that another still reads.
INLINE void loop_barrier() {
#ifndef WITHOUT_LOOP_BARRIER
  barrier();
#endif
}

KERNEL(NW * WAVE) attention(const u16* Q, const u16* K, const u16* V, u16* O, float* LSE,
            int Sq, int Sk, int hq_per_kv, float scale_log2, int causal) {
  __shared__ __attribute__((aligned(16))) u16 kt[TK * LDSP];
  __shared__ __attribute__((aligned(16))) u16 vt[TK * LDSP];
  const int tid = item(), lane = tid & (WAVE - 1), wave = tid / WAVE, c = lane % TQ, g = lane / TQ;
  const int h = group_y(), q0 = (group_x() * NW + wave) * TQ, q = q0 + c;
  const u16* Kh = K + (u64)(h / hq_per_kv) * Sk * D;
  const u16* Vh = V + (u64)(h / hq_per_kv) * Sk * D;
  __attribute__((aligned(16))) u16 qf[D / KSTEP * QPL];
  {
    const u16* qr = Q + ((u64)h * Sq + (q < Sq ? q : Sq - 1)) * D;
#if RDNA3
    for (int j = 0; j < D; j++) qf[j] = qr[j];
#else
    for (int kk = 0; kk < D / KSTEP; kk++) for (int j = 0; j < QPL; j++) qf[kk * QPL + j] = qr[kk * KSTEP + QPL * g + j];
#endif
  }
  acc_t o[D / TK] = {};
  float m = -1e30f, lsum = 0.f;
  const int off = Sk - Sq;
  const int qmax = (group_x() + 1) * NW * TQ - 1;
  int kend = causal ? (qmax + off + 1 < Sk ? qmax + off + 1 : Sk) : Sk;
  for (int k0 = 0; k0 < kend; k0 += TK) {
    loop_barrier();
    for (int e = tid * 8; e < TK * D; e += NW * WAVE * 8) {
      int r = e / D, cc = e % D, rr = clamp_row(k0 + r, Sk);
      *(s16x8*)(kt + r * LDSP + cc) = *(const s16x8*)(Kh + (u64)rr * D + cc);
      *(s16x8*)(vt + r * LDSP + cc) = *(const s16x8*)(Vh + (u64)rr * D + cc);
    }
    barrier();
    acc_t s = {};
#pragma unroll
    for (int kk = 0; kk < D / KSTEP; kk++) s = qk(kt + c * LDSP, qf, s, kk, g);
    float mx = m;
#pragma unroll
    for (int i = 0; i < NACC; i++) {
      int kv = k0 + arow(i, g);
      s[i] = (kv < Sk && (!causal || kv <= q + off)) ? s[i] * scale_log2 : -1e30f;
      mx = __builtin_fmaxf(mx, s[i]);
    }
    mx = __builtin_fmaxf(mx, xhalf(mx));
    float alpha = __builtin_amdgcn_exp2f(m - mx), ps = 0.f;
    m = mx;
#pragma unroll
    for (int i = 0; i < NACC; i++) { s[i] = s[i] > -1e29f ? __builtin_amdgcn_exp2f(s[i] - mx) : 0.f; ps += s[i]; }
    lsum = lsum * alpha + ps + xhalf(ps);
    u16 pb[NACC];
#pragma unroll
    for (int i = 0; i < NACC; i++) pb[i] = to_bf16(s[i]);
#pragma unroll
    for (int t = 0; t < D / TK; t++) {
      o[t] *= alpha;
      const u16* vc = vt + t * TK + c;
#if defined(__gfx950__)
#pragma unroll
      for (int b = 0; b < 2; b++) {
        s16x8 a, p;
        for (int j = 0; j < 8; j++) { a[j] = vc[arow(8 * b + j, g) * LDSP]; p[j] = pb[8 * b + j]; }
        o[t] = __builtin_amdgcn_mfma_f32_32x32x16_bf16(__builtin_bit_cast(bf16x8, a), __builtin_bit_cast(bf16x8, p), o[t], 0, 0, 0);
      }
#elif CDNA
#pragma unroll
      for (int b = 0; b < 4; b++) {
        s16x4 a, p;
        for (int j = 0; j < 4; j++) { a[j] = vc[arow(4 * b + j, g) * LDSP]; p[j] = pb[4 * b + j]; }
        o[t] = __builtin_amdgcn_mfma_f32_32x32x8bf16_1k(a, p, o[t], 0, 0, 0);
      }
#elif RDNA3
      s16x16 a, p;      // gfx11: the B operand wants all 16 k in every lane: swap halves
#pragma unroll
      for (int i = 0; i < 8; i++) {
        u32 own = pb[i], oth = __builtin_amdgcn_permlanex16(own, own, 0x76543210, 0xfedcba98, false, false);
        p[2 * i] = (short)(g ? oth : own); p[2 * i + 1] = (short)(g ? own : oth);
      }
#pragma unroll
      for (int j = 0; j < 16; j++) a[j] = vc[j * LDSP];
      o[t] = __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32(a, p, o[t]);
#else
      s16x8 a, p;
#pragma unroll
      for (int j = 0; j < 8; j++) { a[j] = vc[(8 * g + j) * LDSP]; p[j] = pb[j]; }
      o[t] = __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32_gfx12(a, p, o[t]);
#endif
    }
  }
  if (q < Sq) {
    float inv = lsum > 0.f ? __builtin_amdgcn_rcpf(lsum) : 0.f;
    u16* Or = O + ((u64)h * Sq + q) * D;
#pragma unroll
    for (int t = 0; t < D / TK; t++)
#pragma unroll
      for (int i = 0; i < NACC; i++) Or[t * TK + arow(i, g)] = to_bf16(o[t][i] * inv);
    if (g == 0) LSE[(u64)h * Sq + q] = lsum > 0.f ? (m + __builtin_amdgcn_logf(lsum)) * 0.6931471805599453f : -__builtin_inff();
  }
}
