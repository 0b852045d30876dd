// Where one sequence of the batch begins and ends.
#pragma once

#include "omniflash/divisor.hpp"
#include "omniflash/numeric.hpp"

namespace omniflash {

OMNIFLASH_DEVICE const int* address_of(const Indices& indices, unsigned i) {
  return static_cast<const int*>(indices.data) + i * indices.stride;
}
OMNIFLASH_DEVICE int index_at(const Indices& indices, unsigned i) { return *address_of(indices, i); }

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
    q_len = static_cast<int>(parameters.seqlen_q);
    q_base = static_cast<long long>(b) * parameters.seqlen_q;
    if (query_form != QueryForm::Padded) {
      const int* at = address_of(parameters.query_lengths, b);
      const bool is_ragged = query_form == QueryForm::Ragged;
      if (is_ragged) q_base = *at;
      q_len = clamp(is_ragged ? at[parameters.query_lengths.stride] - *at : *at, parameters.seqlen_q);
    }
    const auto key_form = static_cast<KeyForm>(parameters.key_form);
    kv_len = static_cast<int>(parameters.seqlen_k);
    if (key_form != KeyForm::Dense) {
      const int* at = address_of(parameters.key_lengths, b);
      kv_len = clamp(key_form == KeyForm::Ragged ? at[parameters.key_lengths.stride] - *at : *at, parameters.seqlen_k);
    }
    start = static_cast<StartForm>(parameters.start_form) == StartForm::Given ? index_at(parameters.query_start, b)
                                                                              : kv_len - q_len;
  }

  // Row of a tensor of queries or outputs: padded tensors have a batch axis, of ragged ones its stride is 0.
  template <class Element>
  OMNIFLASH_DEVICE Element* row(const Rows& rows, bool ragged, int i, int head) const {
    // Of 32 bits without a sign, which are cheap to multiply: offsets of ragged rows have 31.
    const unsigned row = ragged ? static_cast<unsigned>(q_base) + i : i, b = batch, h = head;
    return static_cast<Element*>(rows.data) + (row * rows.row_stride + b * rows.batch_stride + h * rows.head_stride);
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
