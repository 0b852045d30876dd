// Joins the partitions of a split sequence: out = sum_p w_p out_p with w_p = exp(lse_p - lse).
//
// One warp a row (a query and a head); lanes share the columns. Adds the sink, once. Rows that no sequence has are not
// written. The order of partitions is fixed, so that equal inputs give equal bits. The instance chooses Element.

#include "omniflash/functor.hpp"
#include "omniflash/online_softmax.hpp"
#include "omniflash/sequence.hpp"
#include "instance.hpp"

namespace omniflash {

using namespace instance;

constexpr int kThreads = 128;

// Whether a row of the flat tensor of queries is one of a sequence's.
OMNIFLASH_DEVICE bool is_valid_row(const AttentionParameters& parameters, long long row) {
  switch (static_cast<QueryForm>(parameters.query_form)) {
    case QueryForm::Ragged:
      return row >= index_at(parameters.query_lengths, 0) && row < index_at(parameters.query_lengths, parameters.batch);
    case QueryForm::PaddedLengths:
      return row % parameters.seqlen_q < index_at(parameters.query_lengths, row / parameters.seqlen_q);
    default: return true;
  }
}

template <class T>
OMNIFLASH_DEVICE T* row_of(const AttentionParameters& parameters, const Rows& rows, long long row, int head) {
  const long long at = is_ragged(parameters)
                           ? row * rows.row_stride
                           : row / parameters.seqlen_q * rows.batch_stride + row % parameters.seqlen_q * rows.row_stride;
  return static_cast<T*>(rows.data) + at + head * rows.head_stride;
}

}  // namespace omniflash

OMNIFLASH_KERNEL(omniflash::kThreads) omniflash_combine(OMNIFLASH_PARAMETER omniflash::AttentionParameters parameters) {
  using namespace omniflash;
  constexpr int kLanes = kWarpSize;
  const int lane = thread_index() % kLanes, partitions = parameters.num_partitions;
  const long long rows = parameters.total_q * parameters.num_heads;
  const long long i = static_cast<long long>(block_index_x()) * (kThreads / kLanes) + thread_index() / kLanes;
  if (i >= rows) return;
  const long long row = i / parameters.num_heads;
  const int head = i % parameters.num_heads;
  if (!is_valid_row(parameters, row)) return;

  const float* lse = static_cast<const float*>(parameters.partial_lse) + i;
  float largest = -kInfinity;
  for (int p = 0; p < partitions; ++p) largest = maximum(largest, lse[p * rows]);
  const float offset = largest == -kInfinity ? 0.0f : largest * kLog2E;
  float sum = 0.0f;
  for (int p = 0; p < partitions; ++p) sum += exp2_of(lse[p * rows], kLog2E, offset);
  const SoftmaxResult result = finalize(offset, sum, sink_log2(parameters, head));

  Element* out = row_of<Element>(parameters, parameters.out, row, head);
  const int columns = parameters.value_dim;
  for (int column = lane; column < columns; column += kLanes) {
    float value = 0.0f;
    for (int p = 0; p < partitions; ++p) {
      const float partial_lse = lse[p * rows];
      if (partial_lse == -kInfinity) continue;
      const float* partial = static_cast<const float*>(parameters.partial_out) + (p * rows + i) * columns;
      value += exp2_of(partial_lse, kLog2E, offset) * partial[column];
    }
    out[column] = from_float<Element>(value * result.scale);
  }
  if (static_cast<LseForm>(parameters.lse_form) == LseForm::Written && lane == 0) {
    *row_of<float>(parameters, parameters.lse, row, head) = result.lse;
  }
}
