// Writes new keys and values into a cache: one thread a unit of one vector of each.
#pragma once

#include "omniflash/sequence.hpp"

namespace omniflash {

// The new rows of one sequence, and where the first one goes.
struct NewRows {
  long long first;  // in the tensor of new rows, which has a batch axis unless it is ragged
  int count, start;

  OMNIFLASH_DEVICE NewRows(const KvAppendParameters& parameters, int b) : first(0), count(parameters.new_rows) {
    switch (static_cast<QueryForm>(parameters.new_form)) {
      case QueryForm::Ragged: {
        const int begin = index_at(parameters.new_lengths, b), end = index_at(parameters.new_lengths, b + 1);
        // Offsets that are out of range name no rows.
        const bool inside = 0 <= begin && begin <= end && end <= static_cast<int>(parameters.total_rows);
        first = inside ? begin : 0;
        count = inside ? minimum(end - begin, count) : 0;
        break;
      }
      case QueryForm::PaddedLengths: count = clamp(index_at(parameters.new_lengths, b), parameters.new_rows); break;
      default: break;
    }
    const int position = index_at(parameters.positions, b);
    start = static_cast<AppendForm>(parameters.append_form) == AppendForm::End ? position - count : position;
  }
};

// Unit `unit` of vector `head` of new row `row` of sequence `b`; nothing where that row has no place.
template <class Unit>
OMNIFLASH_DEVICE void append_unit(const KvAppendParameters& parameters, int b, int row, int head, int unit) {
  const NewRows rows(parameters, b);
  const int position = rows.start + row;
  if (row >= rows.count || position < 0 || position >= static_cast<int>(parameters.capacity)) return;
  long long block = b, in_block = position;
  const int* table = static_cast<const int*>(parameters.block_table.data) + b * parameters.block_table.row_stride;
  switch (static_cast<KeyForm>(parameters.key_form)) {
    case KeyForm::Continuous: block = table[0]; break;
    case KeyForm::Paged: {
      const int page_size = parameters.page_size, index = position / page_size;
      block = table[index * parameters.block_table.column_stride];
      in_block = position - index * page_size;
      break;
    }
    default: break;
  }
  if (block < 0 || block >= static_cast<long long>(parameters.num_blocks)) return;
  const auto copy = [&](const Rows& from, const Rows& to) {
    const bool ragged = static_cast<QueryForm>(parameters.new_form) == QueryForm::Ragged;
    const long long source = ragged ? (rows.first + row) * from.row_stride : b * from.batch_stride + row * from.row_stride;
    static_cast<Unit*>(to.data)[block * to.batch_stride + in_block * to.row_stride + head * to.head_stride + unit] =
        static_cast<const Unit*>(from.data)[source + head * from.head_stride + unit];
  };
  if (unit < static_cast<int>(parameters.key_units)) copy(parameters.new_k, parameters.k);
  if (unit < static_cast<int>(parameters.value_units)) copy(parameters.new_v, parameters.v);
}

// What thread i of all threads does: units of a vector lie beside each other, then heads, rows, sequences.
template <class Unit>
OMNIFLASH_DEVICE void append_by_thread(const KvAppendParameters& parameters, long long i) {
  const unsigned units = maximum(parameters.key_units, parameters.value_units), heads = parameters.num_kv_heads;
  const long long vector = i / units, row = vector / heads;
  const int b = static_cast<int>(row / parameters.new_rows);
  if (b >= static_cast<int>(parameters.batch)) return;
  append_unit<Unit>(parameters, b, static_cast<int>(row % parameters.new_rows), static_cast<int>(vector % heads),
                    static_cast<int>(i % units));
}

}  // namespace omniflash
