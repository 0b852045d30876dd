// What becomes of sums: warps, blocks of a cluster and parts in the workspace are joined, and results written.
#pragma once

#include "decode/line.hpp"
#include "sm90/cluster.hpp"

namespace omniflash {

struct alignas(16) Quad {
  float values[4];
};

// A row so far, or what a warp or a block has of it: the sum of exp2(score * factor - offset) over its keys. Without keys
// the offset is -inf.
struct alignas(8) RowState {
  float offset, sum;
};

// exp2(offset - largest), 0 for offset -inf whatever the largest.
OMNIFLASH_DEVICE float weight_of(float offset, float largest) {
  return exp2(offset - (largest == -kInfinity ? 0.0f : largest));
}

OMNIFLASH_DEVICE Quad load_shared_quad(unsigned from) {
  unsigned words[4];
  load_shared_16(words, from);
  Quad quad;
#pragma unroll
  for (int i = 0; i < 4; ++i) quad.values[i] = __builtin_bit_cast(float, words[i]);
  return quad;
}
OMNIFLASH_DEVICE RowState load_shared_state(unsigned from) {
  return {__builtin_bit_cast(float, load_shared_4(from)), __builtin_bit_cast(float, load_shared_4(from + 4))};
}
OMNIFLASH_DEVICE void store_shared_state(unsigned to, const RowState& state) {
  store_shared_8(to, __builtin_bit_cast(unsigned, state.offset), __builtin_bit_cast(unsigned, state.sum));
}

// Writes four neighbours of a row of the output, and with the first of them the row's lse.
OMNIFLASH_DEVICE void store_result(const Block& block, int row, int column, const Quad& quad, float lse) {
  const bool ragged = is_ragged(block.parameters);
  const int query = block.query(row), head = block.head(row), columns = block.parameters.value_dim;
  Element* out = block.sequence.template row<Element>(block.parameters.out, ragged, query, head) + column;
  if constexpr (kVectorLoads) {
    struct alignas(4 * sizeof(Element)) Four {
      Element elements[4];
    } four;
#pragma unroll
    for (int i = 0; i < 4; ++i) four.elements[i] = from_float<Element>(quad.values[i]);
    if (column < columns) *reinterpret_cast<Four*>(out) = four;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (column + i < columns) out[i] = from_float<Element>(quad.values[i]);
    }
  }
  if (column == 0 && static_cast<LseForm>(block.parameters.lse_form) == LseForm::Written) {
    *block.sequence.template row<float>(block.parameters.lse, ragged, query, head) = lse;
  }
}

// Parts in the workspace. Of a cluster's part each block keeps the rows' states beside its share of the quads.
OMNIFLASH_DEVICE RowState* partial_state(const Block& block, int slot, int row) {
  return static_cast<RowState*>(block.parameters.partial_lse) +
         ((static_cast<long long>(slot) * kCluster + block_rank()) * kBlockM + row);
}
OMNIFLASH_DEVICE Quad* partial_quad(const Block& block, int slot, int row, int quad) {
  return static_cast<Quad*>(block.parameters.partial_out) +
         ((static_cast<long long>(slot) * kBlockM + row) * kQuads + quad);
}

// Leaves each warp's sums in shared memory, where all can read them.
OMNIFLASH_DEVICE void publish(const Block& block, const Softmax& softmax, const Output& o) {
  barrier();  // the sums lie over what all warps have copied and read until now
#pragma unroll
  for (int m = 0; m < kFragments; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = 16 * m + 8 * half + lane_index() / 4;
      const SoftmaxRow& state = softmax[m][half];
      const float sum = quad_sum(state.sum);
      if (row >= block.rows.num_rows) continue;
      if (lane_index() % 4 == 0) {
        store_shared_state(state_address(warp_index(), row),
                           {state.max == -kInfinity ? -kInfinity : state.offset(block.factor), sum});
      }
#pragma unroll
      for (int n = 0; n < kV; ++n) {
        store_shared_8(sum_address(warp_index(), row, 8 * n + lane_index() % 4 * 2),
                       __builtin_bit_cast(unsigned, o[m][n][2 * half]), __builtin_bit_cast(unsigned, o[m][n][2 * half + 1]));
      }
    }
  }
  barrier();
}

// A sum of quads with weights, and what they are weighed by.
struct Joined {
  RowState state{-kInfinity, 0.0f};
  Quad total{};

  // Adds the parts of a row, as many at a time: equal parts in equal order give equal bits.
  template <int kParts>
  OMNIFLASH_DEVICE void add(const RowState (&states)[kParts], const Quad (&quads)[kParts]) {
    float largest = state.offset;
#pragma unroll
    for (int part = 0; part < kParts; ++part) largest = maximum(largest, states[part].offset);
    const float rescale = weight_of(state.offset, largest);
    state = {largest, state.sum * rescale};
#pragma unroll
    for (int e = 0; e < 4; ++e) total.values[e] *= rescale;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const float weight = weight_of(states[part].offset, largest);
      state.sum += weight * states[part].sum;
#pragma unroll
      for (int e = 0; e < 4; ++e) total.values[e] += weight * quads[part].values[e];
    }
  }
  // Writes the quad of a whole row, with its sink.
  OMNIFLASH_DEVICE void store(const Block& block, int row, int quad) {
    const SoftmaxResult result =
        finalize(state.offset, state.sum, sink_log2(block.parameters, block.head(row)));
#pragma unroll
    for (int e = 0; e < 4; ++e) total.values[e] *= result.scale;
    store_result(block, row, 4 * quad, total, result.lse);
  }
  // Keeps the quad of a part in the workspace; the first of a row that this block has, with the row's state.
  OMNIFLASH_DEVICE void keep(const Block& block, int slot, int row, int quad) const {
    *partial_quad(block, slot, row, quad) = total;
    if (quad < kCluster) *partial_state(block, slot, row) = state;
  }
  OMNIFLASH_DEVICE void finish(const Block& block, const Parts& parts, int row, int quad) {
    if (parts.count > 1) {
      keep(block, parts.mine, row, quad);
    } else {
      store(block, row, quad);
    }
  }
};

// Sends a quad of this block's part to the block that joins it, and the row's state to all of them.
OMNIFLASH_DEVICE void send(const Joined& joined, int row, int quad) {
  const int i = row * kQuads + quad;
  unsigned words[4];
#pragma unroll
  for (int e = 0; e < 4; ++e) words[e] = __builtin_bit_cast(unsigned, joined.total.values[e]);
  store_cluster_16(cluster_address(received_quad(block_rank(), i), i % kCluster), words);
#pragma unroll 1
  for (int to = quad; to < kCluster; to += kQuads) {
    store_cluster_8(cluster_address(received_state(block_rank(), row), to),
                    __builtin_bit_cast(unsigned, joined.state.offset), __builtin_bit_cast(unsigned, joined.state.sum));
  }
}

// Joins the warps' sums in the order of warps: the result of a whole item, or a part for the workspace, or for the blocks
// of a cluster.
OMNIFLASH_DEVICE void join_warps(const Block& block, const Parts& parts) {
#pragma unroll 1
  for (int i = thread_index(); i < block.rows.num_rows * kQuads; i += kThreads) {
    const int row = i / kQuads, quad = i % kQuads;
    RowState states[kWarps];
    Quad quads[kWarps];
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) {
      states[warp] = load_shared_state(state_address(warp, row));
      quads[warp] = load_shared_quad(sum_address(warp, row, 4 * quad));
    }
    Joined joined;
    joined.add(states, quads);
    if constexpr (kCluster > 1) {
      send(joined, row, quad);
    } else {
      joined.finish(block, parts, row, quad);
    }
  }
}

// Whether this block is the last to finish with its share of an item: all parts of it can be read then. Leaves the counter
// as it was.
OMNIFLASH_DEVICE bool is_last(const Block& block, const Parts& parts) {
  barrier();
  bool last = false;
  if (thread_index() == 0) {
    unsigned* counter = static_cast<unsigned*>(block.parameters.counters) + parts.counter * kCluster + block_rank();
    device_fence();  // for all threads: the barrier has passed on to this one what they wrote
    last = atomic_add(counter, 1u) == static_cast<unsigned>(parts.count - 1);
    device_fence();
    if (last) *counter = 0;
  }
  return barrier_any(last);
}

// Parts in the workspace, and those that the cluster's blocks have sent.
struct WorkspaceParts {
  const Block& block;
  const Parts& parts;
  OMNIFLASH_DEVICE RowState state(int part, int row) const {
    const unsigned long long word = load_fresh_8(partial_state(block, parts.slot(part), row));
    return __builtin_bit_cast(RowState, word);
  }
  OMNIFLASH_DEVICE Quad quad(int part, int row, int quad) const {
    Quad result;
    load_fresh_16(result.values, partial_quad(block, parts.slot(part), row, quad)->values);
    return result;
  }
};
struct ClusterParts {
  OMNIFLASH_DEVICE RowState state(int part, int row) const { return load_shared_state(received_state(part, row)); }
  OMNIFLASH_DEVICE Quad quad(int part, int row, int quad) const {
    return load_shared_quad(received_quad(part, row * kQuads + quad));
  }
};

// Joins the parts of this block's share of an item in their order; finish() is told each of its quads.
template <class Source, class Finish>
OMNIFLASH_DEVICE void join_parts(const Block& block, int count, const Source& source, const Finish& finish) {
  constexpr int kAtOnce = 8;
#pragma unroll 1
  for (int i = block_rank() + kCluster * thread_index(); i < block.rows.num_rows * kQuads; i += kCluster * kThreads) {
    const int row = i / kQuads, quad = i % kQuads;
    Joined joined;
#pragma unroll 1
    for (int begin = 0; begin < count; begin += kAtOnce) {
      RowState states[kAtOnce];
      Quad quads[kAtOnce];
#pragma unroll
      for (int part = 0; part < kAtOnce; ++part) {
        states[part] = {-kInfinity, 0.0f};
        quads[part] = {};
        if (begin + part >= count) continue;
        states[part] = source.state(begin + part, row);
        quads[part] = source.quad(begin + part, row, quad);
      }
      joined.add(states, quads);
    }
    finish(joined, row, quad);
  }
}

}  // namespace omniflash
