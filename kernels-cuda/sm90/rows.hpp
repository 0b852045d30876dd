// Where the rows of a sequence lie in the tensor maps.
#pragma once

#include "sm90/block.hpp"

namespace omniflash {

// Tensor maps know nothing of lengths that lie in memory, but copies have to end with the sequence: what lies after it may be
// no number at all. So rows are counted along two axes of equal stride, from kRows rows before the tensor: row r of a sequence
// of `length` rows that begins `offset` rows into the tensor is (most - length + r, length + offset), and the first axis
// ends, for every length, with the sequence.
struct RowsOfSequence {
  int most, length, offset;
  OMNIFLASH_DEVICE int row(int r) const { return most - length + r; }
  OMNIFLASH_DEVICE int shift() const { return length + offset; }
};

OMNIFLASH_DEVICE RowsOfSequence query_rows(const AttentionParameters& parameters, const Sequence& sequence,
                                           unsigned batch_rows) {
  const int offset = is_ragged(parameters) ? static_cast<int>(sequence.q_base) : sequence.batch * batch_rows;
  return {static_cast<int>(parameters.seqlen_q), sequence.q_len, offset};
}

OMNIFLASH_DEVICE RowsOfSequence key_rows(const AttentionParameters& parameters, const Sequence& sequence,
                                         unsigned batch_rows) {
  int offset = sequence.batch * batch_rows;
  const auto form = static_cast<KeyForm>(parameters.key_form);
  if (form == KeyForm::Ragged) offset = index_at(parameters.key_lengths, sequence.batch);
  if (form == KeyForm::Continuous && sequence.kv_len > 0) {
    const Table& table = parameters.block_table;
    offset = static_cast<const int*>(table.data)[sequence.batch * table.row_stride] * static_cast<int>(batch_rows);
  }
  return {static_cast<int>(parameters.seqlen_k), sequence.kv_len, offset};
}

}  // namespace omniflash
