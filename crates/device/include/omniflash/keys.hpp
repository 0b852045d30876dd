// Where the key and value vectors of one sequence and key head are. All offsets have 64 bits.
#pragma once

#include "omniflash/sequence.hpp"

namespace omniflash {

// Dense, ragged and continuous: one stride between keys.
struct StridedKeys {
  static constexpr bool kOneStride = true;
  const void *k, *v;
  long long k_stride, v_stride;
  long long k_base, v_base;

  OMNIFLASH_DEVICE StridedKeys(const AttentionParameters& parameters, const Sequence& sequence, int kv_head)
      : k(parameters.k.data),
        v(parameters.v.data),
        k_stride(parameters.k.row_stride),
        v_stride(parameters.v.row_stride),
        k_base(kv_head * parameters.k.head_stride),
        v_base(kv_head * parameters.v.head_stride) {
    long long block = sequence.batch, first = 0;
    switch (static_cast<KeyForm>(parameters.key_form)) {
      case KeyForm::Ragged:
        block = 0;
        first = index_at(parameters.key_lengths, sequence.batch);
        break;
      case KeyForm::Continuous:
        // An empty sequence has no block, and its id may be anything.
        block = sequence.kv_len == 0
                    ? 0
                    : static_cast<const int*>(parameters.block_table.data)[sequence.batch *
                                                                           parameters.block_table.row_stride];
        break;
      default: break;
    }
    k_base += block * parameters.k.batch_stride + first * k_stride;
    v_base += block * parameters.v.batch_stride + first * v_stride;
  }

  // Stands at one vector and steps to later ones.
  template <class Element>
  struct Walker {
    const Element* vector;
    long long stride;
    OMNIFLASH_DEVICE void advance(int keys) { vector += keys * stride; }
    OMNIFLASH_DEVICE const Element* at(bool) const { return vector; }
  };
  template <class Element>
  OMNIFLASH_DEVICE Walker<Element> keys_from(int j) const {
    return {static_cast<const Element*>(k) + (k_base + j * k_stride), k_stride};
  }
  template <class Element>
  OMNIFLASH_DEVICE Walker<Element> values_from(int j) const {
    return {static_cast<const Element*>(v) + (v_base + j * v_stride), v_stride};
  }
};

// Paged: a table of pages of any size. Only entries of keys that exist are read.
struct PagedKeys {
  static constexpr bool kOneStride = false;
  const void *k, *v;
  const int* table;
  long long table_stride;
  long long k_page_stride, k_stride, k_base, v_page_stride, v_stride, v_base;
  int page_size;
  Divisor by_page_size;

  OMNIFLASH_DEVICE PagedKeys(const AttentionParameters& parameters, const Sequence& sequence, int kv_head)
      : k(parameters.k.data),
        v(parameters.v.data),
        table(static_cast<const int*>(parameters.block_table.data) +
              sequence.batch * parameters.block_table.row_stride),
        table_stride(parameters.block_table.column_stride),
        k_page_stride(parameters.k.batch_stride),
        k_stride(parameters.k.row_stride),
        k_base(kv_head * parameters.k.head_stride),
        v_page_stride(parameters.v.batch_stride),
        v_stride(parameters.v.row_stride),
        v_base(kv_head * parameters.v.head_stride),
        page_size(parameters.page_size),
        by_page_size(parameters.by_page_size) {}

  // Stands at one vector and steps to later ones; the table is read where the vector is asked for and exists.
  template <class Element>
  struct Walker {
    const PagedKeys& keys;
    const Element* base;
    long long page_stride, stride;
    int j;
    OMNIFLASH_DEVICE void advance(int keys) { j += keys; }
    OMNIFLASH_DEVICE const Element* at(bool valid) const { return valid ? base + offset_of(j) : base; }
    // Of a key that exists, from base.
    OMNIFLASH_DEVICE long long offset_of(int j) const {
      const int index = quotient(j, keys.by_page_size);
      const long long page = keys.table[index * keys.table_stride];
      return page * page_stride + (j - index * keys.page_size) * stride;
    }
  };
  template <class Element>
  OMNIFLASH_DEVICE Walker<Element> keys_from(int j) const {
    return {*this, static_cast<const Element*>(k) + k_base, k_page_stride, k_stride, j};
  }
  template <class Element>
  OMNIFLASH_DEVICE Walker<Element> values_from(int j) const {
    return {*this, static_cast<const Element*>(v) + v_base, v_page_stride, v_stride, j};
  }
};

}  // namespace omniflash
