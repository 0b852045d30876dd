// Attention by its definition, as an independent check: algorithm naive. Two passes, no tiles, f32 arithmetic.
//
// One block a row (a query and a head); threads share the keys. The first pass finds the largest score, the second
// sums weights and weighted values, the values in as many rounds as kThreads columns need. Any head_dim, value_dim and
// alignment. The instance chooses Element, Keys, MaskType, ScoreModType and kThreads.

#include "omniflash/keys.hpp"
#include "omniflash/masks.hpp"
#include "omniflash/online_softmax.hpp"
#include "omniflash/score_mods.hpp"
#include "instance.hpp"

namespace omniflash {

using namespace instance;

// The scores of one row.
struct Row {
  const AttentionParameters& parameters;
  const Functors<MaskType, ScoreModType>& functors;
  const Sequence& sequence;
  const Keys& keys;
  const Element* q;
  ScoreIndex at;

  // In natural units; -inf where hidden. A hidden key is not read.
  OMNIFLASH_DEVICE float score(int j) const {
    ScoreIndex index = at;
    index.k = j;
    if (!functors.mask.keep(index)) return -kInfinity;
    const Element* k = keys.template keys_from<Element>(j).at(true);
    float dot = 0.0f;
    for (unsigned d = 0; d < parameters.head_dim; ++d) dot = fused_multiply_add(to_float(q[d]), to_float(k[d]), dot);
    return masked(functors.mask, functors.score_mod.apply(dot * parameters.softmax_scale, index), index);
  }
};

// The same on all threads: every thread reads all of shared memory's floats in order.
template <class Join>
OMNIFLASH_DEVICE float reduce(float* shared, float mine, const Join& join) {
  barrier();
  shared[thread_index()] = mine;
  barrier();
  float all = shared[0];
  for (int i = 1; i < kThreads; ++i) all = join(all, shared[i]);
  return all;
}

}  // namespace omniflash

OMNIFLASH_KERNEL(omniflash::kThreads)
omniflash_naive(OMNIFLASH_PARAMETER omniflash::AttentionParameters parameters,
                OMNIFLASH_PARAMETER omniflash::Functors<omniflash::MaskType, omniflash::ScoreModType> functors) {
  using namespace omniflash;
  OMNIFLASH_SHARED float shared[kThreads];
  const unsigned head = block_index_x() % parameters.num_heads, rows = block_index_x() / parameters.num_heads;
  const int i = rows % parameters.seqlen_q, batch = rows / parameters.seqlen_q;
  const Sequence sequence(parameters, batch);
  if (i >= sequence.q_len) return;
  const Keys keys(parameters, sequence, quotient(head, parameters.by_group_size));
  const bool ragged = is_ragged(parameters);
  const Row row{parameters,
                functors,
                sequence,
                keys,
                sequence.row<const Element>(parameters.q, ragged, i, head),
                ScoreIndex{batch, static_cast<int>(head), i, sequence.start + i, 0}};

  float largest = -kInfinity;
  for (int j = thread_index(); j < sequence.kv_len; j += kThreads) largest = maximum(largest, row.score(j));
  largest = reduce(shared, largest, [](float a, float b) { return maximum(a, b); });
  const float offset = largest == -kInfinity ? 0.0f : largest * kLog2E;

  float sum = 0.0f;
  for (int j = thread_index(); j < sequence.kv_len; j += kThreads) sum += exp2_of(row.score(j), kLog2E, offset);
  sum = reduce(shared, sum, [](float a, float b) { return a + b; });
  const SoftmaxResult result = finalize(offset, sum, sink_log2(parameters, head));

  Element* out = sequence.row<Element>(parameters.out, ragged, i, head);
  for (unsigned first = 0; first < parameters.value_dim; first += kThreads) {
    const unsigned column = first + thread_index();
    float value = 0.0f;
    for (int tile = 0; tile < sequence.kv_len; tile += kThreads) {
      const int j = tile + thread_index();
      barrier();
      shared[thread_index()] = j < sequence.kv_len ? exp2_of(row.score(j), kLog2E, offset) : 0.0f;
      barrier();
      for (int k = 0; k < kThreads && tile + k < sequence.kv_len && column < parameters.value_dim; ++k) {
        // A hidden value is not read: it may be NaN.
        const float weight = shared[k];
        if (weight != 0.0f) {
          const Element* v = keys.template values_from<Element>(tile + k).at(true);
          value = fused_multiply_add(weight, to_float(v[column]), value);
        }
      }
    }
    if (column < parameters.value_dim) out[column] = from_float<Element>(value * result.scale);
  }
  if (static_cast<LseForm>(parameters.lse_form) == LseForm::Written && thread_index() == 0) {
    *sequence.row<float>(parameters.lse, ragged, i, head) = result.lse;
  }
}
