// Where one sequence of the batch begins and ends.
#pragma once

#include "omniflash/numeric.hpp"
#include "omniflash/parameters.hpp"

namespace omniflash {

OMNIFLASH_DEVICE int index_at(const Indices& indices, long long i) {
  return static_cast<const int*>(indices.data)[i * indices.stride];
}

OMNIFLASH_DEVICE int clamp(int value, unsigned most) {
  return minimum(maximum(value, 0), static_cast<int>(most));
}

struct Sequence {
  int batch;
  int q_len;
  int kv_len;
  int start;         // global position of row 0
  long long q_base;  // first row of the flat query tensor

  // All still to be set.
  OMNIFLASH_DEVICE Sequence() {}
  OMNIFLASH_DEVICE Sequence(const AttentionParameters& parameters, int b) : batch(b) {
    const auto query_form = static_cast<QueryForm>(parameters.query_form);
    if (query_form == QueryForm::Ragged) {
      const int begin = index_at(parameters.query_lengths, b);
      q_base = begin;
      q_len = clamp(index_at(parameters.query_lengths, b + 1) - begin, parameters.seqlen_q);
    } else {
      q_base = static_cast<long long>(b) * parameters.seqlen_q;
      q_len = query_form == QueryForm::Padded ? static_cast<int>(parameters.seqlen_q)
                                              : clamp(index_at(parameters.query_lengths, b), parameters.seqlen_q);
    }
    const auto key_form = static_cast<KeyForm>(parameters.key_form);
    if (key_form == KeyForm::Dense) {
      kv_len = static_cast<int>(parameters.seqlen_k);
    } else if (key_form == KeyForm::Ragged) {
      kv_len = clamp(index_at(parameters.key_lengths, b + 1) - index_at(parameters.key_lengths, b), parameters.seqlen_k);
    } else {
      kv_len = clamp(index_at(parameters.key_lengths, b), parameters.seqlen_k);
    }
    start = static_cast<StartForm>(parameters.start_form) == StartForm::Given ? index_at(parameters.query_start, b)
                                                                              : kv_len - q_len;
  }

  // Row of a tensor of queries or outputs: padded tensors have a batch axis, ragged ones do not.
  template <class Element>
  OMNIFLASH_DEVICE Element* row(const Rows& rows, bool ragged, int i, int head) const {
    const long long at = ragged ? (q_base + i) * rows.row_stride : batch * rows.batch_stride + i * rows.row_stride;
    return static_cast<Element*>(rows.data) + at + head * rows.head_stride;
  }

  // Row of the workspace: [total_q][num_heads].
  OMNIFLASH_DEVICE long long workspace_row(const AttentionParameters& parameters, int i, int head) const {
    return (q_base + i) * parameters.num_heads + head;
  }
};

OMNIFLASH_DEVICE bool is_ragged(const AttentionParameters& parameters) {
  return static_cast<QueryForm>(parameters.query_form) == QueryForm::Ragged;
}

// The sink of a head in units of log2, -inf without sinks.
OMNIFLASH_DEVICE float sink_log2(const AttentionParameters& parameters, int head) {
  const long long at = head * parameters.sinks.stride;
  const void* data = parameters.sinks.data;
  switch (static_cast<SinkForm>(parameters.sink_form)) {
    case SinkForm::F32: return static_cast<const float*>(data)[at] * kLog2E;
    case SinkForm::F16: return to_float(static_cast<const float16*>(data)[at]) * kLog2E;
    case SinkForm::BF16: return to_float(static_cast<const bfloat16*>(data)[at]) * kLog2E;
    default: return -kInfinity;
  }
}

}  // namespace omniflash
