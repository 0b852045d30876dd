// The two products of attention on tiles, by one warp: scores = q k^T and output += p v.
//
// A warp has kFragments fragments of 16 rows. An accumulator is acc[fragment][n][4]: with g = lane / 4, t = lane % 4
// it holds columns 8 n + 2 t and 8 n + 2 t + 1 of row g (elements 0, 1) and of row g + 8 (elements 2, 3).
#pragma once

#include "tile.hpp"

namespace omniflash {

OMNIFLASH_DEVICE int lane_index() { return thread_index() % 32; }

// Where a lane's row of a matrix load lies: of 16 rows from first_row on, and of 16 keys; first two chunks.
template <class Tile>
OMNIFLASH_DEVICE unsigned rows_of_lane(const Tile& tile, int lane, int first_row) {
  return tile.chunk(first_row + lane % 16, lane / 16);
}
template <class Tile>
OMNIFLASH_DEVICE unsigned keys_of_lane(const Tile& tile, int lane) {
  return tile.chunk(lane % 8 + lane / 16 * 8, lane / 8 % 2);
}

// A operand of rows first_row.. and chunks 2 step, 2 step + 1 of a row-major tile.
template <class Tile>
OMNIFLASH_DEVICE void load_rows(unsigned (&a)[4], const Tile& tile, int lane, int first_row, int step) {
  load_matrices(a, tile.chunk(first_row + lane % 16, 2 * step + lane / 16));
}

// B operands of keys first_key.. and first_key + 8.., chunks 2 step, 2 step + 1 of a tile of keys.
template <class Tile>
OMNIFLASH_DEVICE void load_keys(unsigned (&b)[4], const Tile& tile, int lane, int first_key, int step) {
  load_matrices(b, tile.chunk(first_key + lane % 8 + lane / 16 * 8, 2 * step + lane / 8 % 2));
}

// What a product may carry along: work in small parts, such as copies, one part after each of its steps.
struct NoCargo {
  OMNIFLASH_DEVICE void operator()(int /*step*/, int /*steps*/) const {}
};

// Steps of sixteen keys that weights cover, as accumulators or as operands.
template <class Weights>
constexpr int kStepsOf = 0;
template <int kFragments, int kN>
constexpr int kStepsOf<float[kFragments][kN][4]> = kN / 2;
template <int kFragments, int kSteps>
constexpr int kStepsOf<unsigned[kFragments][kSteps][4]> = kSteps;

// f16 and bf16 on tensor cores.
template <class Element>
struct HalfProduct {
  static constexpr bool kTakesCargo = true;

  // With kSums = 2 odd steps add to sums of their own, where nothing else fills the time until a sum can be added to again.
  template <int kSums = 1, int kFragments, int kN, class Queries, class Keys, class Cargo = NoCargo>
  static OMNIFLASH_DEVICE void scores(float (&acc)[kFragments][kN][4], const Queries& q, int first_row,
                                      const Keys& k, const Cargo& cargo = {}) {
    const int lane = opaque(lane_index());
    const unsigned rows = rows_of_lane(q, lane, first_row), keys = keys_of_lane(k, lane);
    float odd[kFragments][kN][4] = {};
#pragma unroll
    for (int step = 0; step < Keys::kElements / 16; ++step) {
      auto& sums = kSums == 2 && step % 2 == 1 ? odd : acc;
      unsigned a[kFragments][4];
#pragma unroll
      for (int m = 0; m < kFragments; ++m) {
        load_matrices(a[m], Queries::right_of(rows, 2 * step) + 16 * m * Queries::kRowBytes);
      }
#pragma unroll
      for (int n = 0; n < kN; n += 2) {
        unsigned b[4];
        load_matrices(b, Keys::right_of(keys, 2 * step) + 8 * n * Keys::kRowBytes);
#pragma unroll
        for (int m = 0; m < kFragments; ++m) {
          multiply_add<Element>(sums[m][n], a[m], b[0], b[1]);
          multiply_add<Element>(sums[m][n + 1], a[m], b[2], b[3]);
        }
      }
      cargo(step, Keys::kElements / 16);
    }
    if constexpr (kSums == 2) {
#pragma unroll
      for (int i = 0; i < kFragments * kN * 4; ++i) {
        acc[i / (kN * 4)][i / 4 % kN][i % 4] += odd[i / (kN * 4)][i / 4 % kN][i % 4];
      }
    }
  }

  // The A operands of all steps, for rows that stay.
  template <int kFragments, int kSteps, class Tile>
  static OMNIFLASH_DEVICE void load_queries(unsigned (&a)[kFragments][kSteps][4], const Tile& q,
                                            int first_row) {
#pragma unroll
    for (int i = 0; i < kFragments * kSteps; ++i) {
      load_rows(a[i / kSteps][i % kSteps], q, lane_index(), first_row + 16 * (i / kSteps), i % kSteps);
    }
  }
  template <int kFragments, int kN, int kSteps, class Tile, class Cargo = NoCargo>
  static OMNIFLASH_DEVICE void scores(float (&acc)[kFragments][kN][4], const unsigned (&a)[kFragments][kSteps][4],
                                      const Tile& k, const Cargo& cargo = {}) {
    const unsigned keys = keys_of_lane(k, opaque(lane_index()));
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int n = 0; n < kN; n += 2) {
        unsigned b[4];
        load_matrices(b, Tile::right_of(keys, 2 * step) + 8 * n * Tile::kRowBytes);
#pragma unroll
        for (int m = 0; m < kFragments; ++m) {
          multiply_add<Element>(acc[m][n], a[m][step], b[0], b[1]);
          multiply_add<Element>(acc[m][n + 1], a[m][step], b[2], b[3]);
        }
      }
      cargo(step, kSteps);
    }
  }

  // The weights of one step and fragment as an A operand: two accumulators of eight columns are one of sixteen.
  template <int kN>
  static OMNIFLASH_DEVICE void operand(unsigned (&a)[4], const float (&p)[kN][4], int step) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float(&pair)[4] = p[2 * step + i / 2];
      a[i] = pack<Element>(pair[i % 2 * 2], pair[i % 2 * 2 + 1]);
    }
  }
  // Weights that are operands already.
  template <int kSteps>
  static OMNIFLASH_DEVICE void operand(unsigned (&a)[4], const unsigned (&p)[kSteps][4], int step) {
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = p[step][i];
  }

  // Weights are accumulators, p[fragment][n][4], or operands, p[fragment][step][4].
  template <int kFragments, int kV, class Weights, class Tile>
  static OMNIFLASH_DEVICE void values(float (&acc)[kFragments][kV][4], const Weights& p, const Tile& v) {
    const int lane = opaque(lane_index());
    const unsigned rows = rows_of_lane(v, lane, 0);
    constexpr int kSteps = kStepsOf<Weights>;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      unsigned a[kFragments][4];
#pragma unroll
      for (int m = 0; m < kFragments; ++m) operand(a[m], p[m], step);
#pragma unroll
      for (int n = 0; n < kV; n += 2) {
        unsigned b[4];
        load_matrices_transposed(b, Tile::right_of(rows, n) + 16 * step * Tile::kRowBytes);
#pragma unroll
        for (int m = 0; m < kFragments; ++m) {
          multiply_add<Element>(acc[m][n], a[m], b[0], b[1]);
          multiply_add<Element>(acc[m][n + 1], a[m], b[2], b[3]);
        }
      }
    }
  }
};

// f32 on tensor cores: each number is the sum of a tf32 and a small rest, and of the products of the parts kTerms
// count: 1 rounds to tf32, 3 leaves out only the product of the rests.
template <int kTerms>
struct Tf32Product {
  static constexpr bool kTakesCargo = false;
  static_assert(kTerms == 1 || kTerms == 3);

  struct Parts {
    unsigned big, rest;
    OMNIFLASH_DEVICE explicit Parts(unsigned bits) {
      if constexpr (kTerms == 1) {
        big = round_to_tf32(bits);
      } else {
        big = bits & 0xffffe000;
        rest = __builtin_bit_cast(unsigned, __builtin_bit_cast(float, bits) - __builtin_bit_cast(float, big));
      }
    }
    Parts() = default;
  };

  static OMNIFLASH_DEVICE void add(float (&c)[4], const Parts (&a)[4], Parts b0, Parts b1) {
    const unsigned big[4] = {a[0].big, a[1].big, a[2].big, a[3].big};
    if constexpr (kTerms == 3) {
      const unsigned rest[4] = {a[0].rest, a[1].rest, a[2].rest, a[3].rest};
      multiply_add_tf32(c, rest, b0.big, b1.big);
      multiply_add_tf32(c, big, b0.rest, b1.rest);
    }
    multiply_add_tf32(c, big, b0.big, b1.big);
  }

  template <int kFragments, int kN, class Tile>
  static OMNIFLASH_DEVICE void scores(float (&acc)[kFragments][kN][4], const Tile& q, int first_row,
                                      const Tile& k) {
    const int lane = opaque(lane_index());
#pragma unroll 2
    for (int step = 0; step < Tile::kElements / 8; ++step) {
      Parts a[kFragments][4];
#pragma unroll
      for (int m = 0; m < kFragments; ++m) {
        unsigned words[4];
        load_rows(words, q, lane, first_row + 16 * m, step);
#pragma unroll
        for (int i = 0; i < 4; ++i) a[m][i] = Parts(words[i]);
      }
#pragma unroll
      for (int n = 0; n < kN; n += 2) {
        unsigned words[4];
        load_keys(words, k, lane, 8 * n, step);
#pragma unroll
        for (int m = 0; m < kFragments; ++m) {
          add(acc[m][n], a[m], Parts(words[0]), Parts(words[1]));
          add(acc[m][n + 1], a[m], Parts(words[2]), Parts(words[3]));
        }
      }
    }
  }

  // The order of keys within a product is free: slot t takes key 2 t and slot t + 4 key 2 t + 1, so that an accumulator
  // is an A operand as it is.
  template <int kFragments, int kN, int kV, class Tile>
  static OMNIFLASH_DEVICE void values(float (&acc)[kFragments][kV][4], const float (&p)[kFragments][kN][4],
                                      const Tile& v) {
    const int lane = opaque(lane_index()), column = lane / 4, key = lane % 4 * 2;
#pragma unroll
    for (int step = 0; step < kN; ++step) {
      Parts a[kFragments][4];
#pragma unroll
      for (int m = 0; m < kFragments; ++m) {
        const float(&scores)[4] = p[m][step];
        a[m][0] = Parts(__builtin_bit_cast(unsigned, scores[0]));
        a[m][1] = Parts(__builtin_bit_cast(unsigned, scores[2]));
        a[m][2] = Parts(__builtin_bit_cast(unsigned, scores[1]));
        a[m][3] = Parts(__builtin_bit_cast(unsigned, scores[3]));
      }
#pragma unroll
      for (int n = 0; n < kV; ++n) {
        const Parts b0(load_shared_4(v.element(8 * step + key, 8 * n + column)));
        const Parts b1(load_shared_4(v.element(8 * step + key + 1, 8 * n + column)));
#pragma unroll
        for (int m = 0; m < kFragments; ++m) add(acc[m][n], a[m], b0, b1);
      }
    }
  }
};

// f32 by fused multiply-add.
struct ExactProduct {
  static constexpr bool kTakesCargo = false;

  template <int kFragments, int kN, class Tile>
  static OMNIFLASH_DEVICE void scores(float (&acc)[kFragments][kN][4], const Tile& q, int first_row,
                                      const Tile& k) {
    const int lane = opaque(lane_index()), row = first_row + lane / 4, key = lane % 4 * 2;
#pragma unroll 1
    for (int chunk = 0; chunk < Tile::kElements / 4; ++chunk) {
      unsigned a[kFragments][2][4];
#pragma unroll
      for (int m = 0; m < kFragments; ++m) {
        load_shared_16(a[m][0], q.chunk(row + 16 * m, chunk));
        load_shared_16(a[m][1], q.chunk(row + 16 * m + 8, chunk));
      }
#pragma unroll
      for (int n = 0; n < kN; ++n) {
        unsigned b[2][4];
        load_shared_16(b[0], k.chunk(8 * n + key, chunk));
        load_shared_16(b[1], k.chunk(8 * n + key + 1, chunk));
#pragma unroll
        for (int m = 0; m < kFragments; ++m) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
#pragma unroll
            for (int d = 0; d < 4; ++d) {
              acc[m][n][i] = fused_multiply_add(__builtin_bit_cast(float, a[m][i / 2][d]),
                                            __builtin_bit_cast(float, b[i % 2][d]), acc[m][n][i]);
            }
          }
        }
      }
    }
  }

  // The four lanes of a row hold its eight weights of a step, two each.
  template <int kFragments, int kN, int kV, class Tile>
  static OMNIFLASH_DEVICE void values(float (&acc)[kFragments][kV][4], const float (&p)[kFragments][kN][4],
                                      const Tile& v) {
    const int lane = opaque(lane_index()), column = lane % 4 * 2;
#pragma unroll
    for (int step = 0; step < kN; ++step) {
#pragma unroll
      for (int key = 0; key < 8; ++key) {
        float weight[kFragments][2];
#pragma unroll
        for (int m = 0; m < kFragments; ++m) {
          weight[m][0] = shuffle(p[m][step][key % 2], lane / 4 * 4 + key / 2);
          weight[m][1] = shuffle(p[m][step][key % 2 + 2], lane / 4 * 4 + key / 2);
        }
#pragma unroll
        for (int n = 0; n < kV; ++n) {
          const unsigned from = v.element(8 * step + key, 8 * n + column);
          const float v0 = __builtin_bit_cast(float, load_shared_4(from));
          const float v1 = __builtin_bit_cast(float, load_shared_4(from + 4));
#pragma unroll
          for (int m = 0; m < kFragments; ++m) {
            acc[m][n][0] = fused_multiply_add(weight[m][0], v0, acc[m][n][0]);
            acc[m][n][1] = fused_multiply_add(weight[m][0], v1, acc[m][n][1]);
            acc[m][n][2] = fused_multiply_add(weight[m][1], v0, acc[m][n][2]);
            acc[m][n][3] = fused_multiply_add(weight[m][1], v1, acc[m][n][3]);
          }
        }
      }
    }
  }
};

}  // namespace omniflash
