// The built-in masks, and the joins that masks are composed with.
//
// Members lie as core's lowering packs them; joins align each leaf to 16 bytes.
#pragma once

#include "omniflash/score_tensor.hpp"

namespace omniflash {

struct NoMask {
  static constexpr bool kHeadInvariant = true;
  static constexpr bool kSeesEveryTile = true;
  OMNIFLASH_DEVICE bool keep(const ScoreIndex&) const { return true; }
  OMNIFLASH_DEVICE TileStatus status(const TileRect&) const { return TileStatus::Full; }
  OMNIFLASH_DEVICE unsigned bits(const ScoreIndex&) const { return ~0u; }
  OMNIFLASH_DEVICE int begin(int, int) const { return 0; }
  OMNIFLASH_DEVICE int end(int, int) const { return kNoLastKey; }
};

// Whether a mask hides no key before a sequence's end.
template <class Mask>
constexpr bool hides_nothing = false;
template <>
inline constexpr bool hides_nothing<NoMask> = true;

// A mask under which a query sees the keys begin(batch, q)..end(batch, q), both never falling as q grows.
template <class Mask>
struct IntervalMask {
  static constexpr bool kHeadInvariant = true;

  OMNIFLASH_DEVICE bool keep(const ScoreIndex& at) const {
    return self().begin(at.batch, at.q) <= at.k && at.k < self().end(at.batch, at.q);
  }
  OMNIFLASH_DEVICE TileStatus status(const TileRect& tile) const {
    const int first = tile.q_begin, last = tile.q_end - 1;
    if (tile.k_end <= self().begin(tile.batch, first) || self().end(tile.batch, last) <= tile.k_begin) {
      return TileStatus::Skip;
    }
    const bool full = self().begin(tile.batch, last) <= tile.k_begin && tile.k_end <= self().end(tile.batch, first);
    return full ? TileStatus::Full : TileStatus::Partial;
  }
  OMNIFLASH_DEVICE void range(const RowRange& rows, KeyRange& keys) const {
    keys.begin = maximum(keys.begin, self().begin(rows.batch, rows.q_begin));
    keys.end = minimum(keys.end, self().end(rows.batch, rows.q_end - 1));
  }
  OMNIFLASH_DEVICE unsigned bits(const ScoreIndex& at) const {
    return band_bits(self().begin(at.batch, at.q), self().end(at.batch, at.q), at.k);
  }

 private:
  OMNIFLASH_DEVICE const Mask& self() const { return static_cast<const Mask&>(*this); }
};

struct Causal : IntervalMask<Causal> {
  static constexpr bool kSeesEveryTile = true;
  OMNIFLASH_DEVICE int begin(int, int) const { return 0; }
  OMNIFLASH_DEVICE int end(int, int q) const { return q + 1; }
};

struct SlidingWindow : IntervalMask<SlidingWindow> {
  int left, right;
  OMNIFLASH_DEVICE int begin(int, int q) const { return q - left; }
  OMNIFLASH_DEVICE int end(int, int q) const { return q + right + 1; }
};

struct Chunked : IntervalMask<Chunked> {
  int size;
  OMNIFLASH_DEVICE int begin(int, int q) const { return floor_divide(q, size) * size; }
  OMNIFLASH_DEVICE int end(int batch, int q) const { return begin(batch, q) + size; }
};

struct PrefixLm : IntervalMask<PrefixLm> {
  const int* prefix_len;
  long long stride;
  OMNIFLASH_DEVICE int begin(int, int) const { return 0; }
  OMNIFLASH_DEVICE int end(int batch, int q) const { return maximum(prefix_len[batch * stride], q + 1); }
};

struct Document {
  static constexpr bool kHeadInvariant = true;
  static constexpr bool kStatusReads = true;
  const int* ids;
  long long batch_stride, stride;
  int columns;
  OMNIFLASH_DEVICE bool keep(const ScoreIndex& at) const {
    if (at.q < 0 || at.q >= columns || at.k >= columns) return false;
    const int* row = ids + at.batch * batch_stride;
    return row[at.q * stride] == row[at.k * stride];
  }
  // Exact where both ranges lie in whole documents, whatever the order of ids.
  OMNIFLASH_DEVICE TileStatus status(const TileRect& tile) const {
    const int q_begin = maximum(tile.q_begin, 0), q_end = minimum(tile.q_end, columns);
    const int k_end = minimum(tile.k_end, columns);
    if (q_begin >= q_end || tile.k_begin >= k_end) return TileStatus::Skip;
    const int* row = ids + tile.batch * batch_stride;
    const Ids keys = ids_of(row, tile.k_begin, k_end), queries = ids_of(row, q_begin, q_end);
    if (keys.most < queries.least || queries.most < keys.least) return TileStatus::Skip;
    const bool one = keys.least == keys.most && queries.least == queries.most;
    return one && q_begin == tile.q_begin && q_end == tile.q_end && k_end == tile.k_end ? TileStatus::Full
                                                                                       : TileStatus::Partial;
  }

 private:
  struct Ids {
    int least, most;
    OMNIFLASH_DEVICE void add(int smaller, int larger) {
      least = minimum(least, smaller);
      most = maximum(most, larger);
    }
  };
  struct alignas(16) Four {
    int ids[4];
  };

  // The least and the largest id of the positions begin..end, of which there is one. Lanes ask for different tiles, so each
  // of their loads is a line of its own: four ids at a time where they lie together.
  OMNIFLASH_DEVICE Ids ids_of(const int* row, int begin, int end) const {
    Ids ids{row[begin * stride], row[begin * stride]};
    int i = begin;
    if (stride == 1 && reinterpret_cast<unsigned long long>(row + begin) % sizeof(Four) == 0) {
#pragma unroll 2
      for (; i + 4 <= end; i += 4) {
        const Four four = *reinterpret_cast<const Four*>(row + i);
        ids.add(minimum(minimum(four.ids[0], four.ids[1]), minimum(four.ids[2], four.ids[3])),
                maximum(maximum(four.ids[0], four.ids[1]), maximum(four.ids[2], four.ids[3])));
      }
    }
#pragma unroll 1
    for (; i < end; ++i) ids.add(row[i * stride], row[i * stride]);
    return ids;
  }
};

struct DenseMask {
  const unsigned char* data;
  long long batch_stride, head_stride, row_stride, key_stride;
  OMNIFLASH_DEVICE bool keep(const ScoreIndex& at) const {
    return data[at.batch * batch_stride + at.head * head_stride + at.row * row_stride + at.k * key_stride] != 0;
  }
};

template <class T, int kRun = 1>
struct AdditiveMask {
  ScoreTensor<T, kRun> values;
  OMNIFLASH_DEVICE bool keep(const ScoreIndex&) const { return true; }
  OMNIFLASH_DEVICE float add(const ScoreIndex& at) const { return values.value(at); }
  OMNIFLASH_DEVICE PairOfValues add_pair(const ScoreIndex& at, int last) const { return values.pair(at, last); }
};

// Of 32 blocks of keys, for one block of rows: which show any key, and where the mask does anything to one.
struct alignas(8) SeenBlocks {
  unsigned shown, changed;
};

// What pack_mask.hpp has found out about a mask tensor, or pack_documents.hpp about ids of documents, in blocks of 64 rows and 64 keys. Rows are those of their sequence,
// so the table begins with the position of each sequence's first; where the tensor repeats itself, a step is 0.
struct MaskBlocks {
  static constexpr int kBlock = 64, kSpan = 32 * kBlock;
  const SeenBlocks* blocks;  // [batch][head][row block][span of keys]
  const int* starts;         // of each sequence
  int batch_step, head_step, row_step, zero;

  // The first and the last block of these rows.
  struct RowBlocks {
    const SeenBlocks* plane;
    int first, last, step;
    // What all of them say of one span of keys.
    OMNIFLASH_DEVICE SeenBlocks of_span(int span) const {
      SeenBlocks seen{0, 0};
      for (int block = first; block <= last; ++block) {
        const SeenBlocks own = plane[block * step + span];
        seen.shown |= own.shown;
        seen.changed |= own.changed;
      }
      return seen;
    }
  };
  OMNIFLASH_DEVICE RowBlocks row_blocks(int batch, int head, int q_begin, int q_end) const {
    const int start = starts[batch];
    const int first = (q_begin - start) / kBlock, last = (q_end - 1 - start) / kBlock;
    return RowBlocks{blocks + batch * batch_step + head * head_step, first, row_step == 0 ? first : last, row_step};
  }
  // Bits of the blocks that hold keys of begin..end, of a span.
  static OMNIFLASH_DEVICE unsigned bits_of(int begin, int end, int span) {
    return band_bits(begin / kBlock, ceil_divide(end, kBlock), 32 * span);
  }

  OMNIFLASH_DEVICE TileStatus status(const TileRect& tile) const {
    const RowBlocks rows = row_blocks(tile.batch, tile.head, tile.q_begin, tile.q_end);
    unsigned shown = 0, changed = 0;
    for (int span = tile.k_begin / kSpan; span <= (tile.k_end - 1) / kSpan; ++span) {
      const SeenBlocks seen = rows.of_span(span);
      const unsigned bits = bits_of(tile.k_begin, tile.k_end, span);
      shown |= seen.shown & bits;
      changed |= seen.changed & bits;
    }
    return shown == 0 ? TileStatus::Skip : changed == 0 ? TileStatus::Full : TileStatus::Partial;
  }
  OMNIFLASH_DEVICE void range(const RowRange& queries, KeyRange& keys) const {
    if (keys.begin >= keys.end) return;
    const RowBlocks rows = row_blocks(queries.batch, queries.head, queries.q_begin, queries.q_end);
    int begin = keys.end, end = keys.begin;
#pragma unroll 4
    for (int span = keys.begin / kSpan; span <= (keys.end - 1) / kSpan; ++span) {
      const unsigned shown = rows.of_span(span).shown & bits_of(keys.begin, keys.end, span);
      if (shown == 0) continue;
      const int first = 32 * span + 31 - leading_zeros(shown & (0u - shown)), last = 32 * span + 31 - leading_zeros(shown);
      begin = minimum(begin, first * kBlock);
      end = (last + 1) * kBlock;
    }
    keys.begin = maximum(keys.begin, begin);
    keys.end = minimum(keys.end, end);
  }
};

// A tensor of bools that pack_mask.hpp has turned into bits.
struct PackedMask {
  static constexpr bool kStatusReads = true;
  MaskBlocks blocks;
  const unsigned* words;  // [batch][head][row][keys / 32]
  long long batch_step, head_step, row_step;
  OMNIFLASH_DEVICE unsigned bits(const ScoreIndex& at) const {
    return words[at.batch * batch_step + at.head * head_step + at.row * row_step + at.k / 32];
  }
  OMNIFLASH_DEVICE bool keep(const ScoreIndex& at) const { return bits(at) >> at.k % 32 & 1; }
  OMNIFLASH_DEVICE TileStatus status(const TileRect& tile) const { return blocks.status(tile); }
  OMNIFLASH_DEVICE void range(const RowRange& rows, KeyRange& keys) const { blocks.range(rows, keys); }
};

// Documents, of which pack_documents.hpp has found out which blocks of rows and keys may share one. Their ids lie side by side, and
// every key has one: nothing is asked between loads.
struct PackedDocument {
  static constexpr bool kHeadInvariant = true;
  static constexpr bool kStatusReads = true;
  MaskBlocks blocks;
  Document document;
  OMNIFLASH_DEVICE bool keep(const ScoreIndex& at) const {
    const int* row = document.ids + at.batch * document.batch_stride;
    const bool has_id = at.q >= 0 && at.q < document.columns;
    const int own = row[has_id ? at.q : 0];
    return row[at.k] == own && has_id;
  }
  OMNIFLASH_DEVICE TileStatus status(const TileRect& tile) const { return blocks.status(tile); }
  OMNIFLASH_DEVICE void range(const RowRange& rows, KeyRange& keys) const { blocks.range(rows, keys); }
};

// A tensor of values, of which pack_mask.hpp has found out where all are -inf and where all are 0.
template <class T, int kRun = 1>
struct PackedAdditive {
  static constexpr bool kStatusReads = true;
  MaskBlocks blocks;
  ScoreTensor<T, kRun> values;
  OMNIFLASH_DEVICE bool keep(const ScoreIndex&) const { return true; }
  OMNIFLASH_DEVICE float add(const ScoreIndex& at) const { return values.value(at); }
  OMNIFLASH_DEVICE PairOfValues add_pair(const ScoreIndex& at, int last) const { return values.pair(at, last); }
  OMNIFLASH_DEVICE TileStatus status(const TileRect& tile) const { return blocks.status(tile); }
  OMNIFLASH_DEVICE void range(const RowRange& rows, KeyRange& keys) const { blocks.range(rows, keys); }
};

// A mask that the host has evaluated: a status for every block of 64 rows and 64 keys, and for partial blocks a row
// of two words for each query. Hidden outside of the table.
struct TableMask {
  static constexpr bool kStatusReads = true;
  static constexpr int kBlock = 64, kSkip = -2, kFull = -1;
  const int* planes;        // of each sequence and head
  const int* blocks;        // [plane][q block][k block]: kSkip, kFull, or which words
  const unsigned* words;    // [partial block][row][2]
  int q_begin, q_blocks, k_blocks, heads;

  OMNIFLASH_DEVICE int block(int batch, int head, int q_block, int k_block) const {
    if (q_block < 0 || q_block >= q_blocks || k_block >= k_blocks) return kSkip;
    const long long plane = planes[batch * heads + head];
    return blocks[(plane * q_blocks + q_block) * k_blocks + k_block];
  }
  OMNIFLASH_DEVICE unsigned bits(const ScoreIndex& at) const {
    const int row = at.q - q_begin;
    const int index = block(at.batch, at.head, floor_divide(row, kBlock), at.k / kBlock);
    if (index < 0) return index == kFull ? ~0u : 0u;
    return words[(static_cast<long long>(index) * kBlock + row % kBlock) * 2 + at.k % kBlock / 32];
  }
  OMNIFLASH_DEVICE bool keep(const ScoreIndex& at) const { return bits(at) >> at.k % 32 & 1; }
  OMNIFLASH_DEVICE TileStatus status(const TileRect& tile) const {
    const int first = floor_divide(tile.q_begin - q_begin, kBlock), last = floor_divide(tile.q_end - 1 - q_begin, kBlock);
    bool skip = true, full = true;
    for (int q_block = first; q_block <= last; ++q_block) {
      for (int k_block = tile.k_begin / kBlock; k_block <= (tile.k_end - 1) / kBlock; ++k_block) {
        const int index = block(tile.batch, tile.head, q_block, k_block);
        skip = skip && index == kSkip;
        full = full && index == kFull;
      }
    }
    return skip ? TileStatus::Skip : full ? TileStatus::Full : TileStatus::Partial;
  }
};

template <class A, class B>
struct And {
  static constexpr bool kHeadInvariant = head_invariant<A> && head_invariant<B>;
  static constexpr bool kStatusReads = status_reads<A> || status_reads<B>;
  static constexpr bool kNeverFull = never_full<A> || never_full<B>;
  alignas(16) A a;
  alignas(16) B b;
  OMNIFLASH_DEVICE bool keep(const ScoreIndex& at) const { return a.keep(at) && b.keep(at); }
  OMNIFLASH_DEVICE TileStatus status(const TileRect& tile) const {
    return both(status_of(a, tile), status_of(b, tile));
  }
  OMNIFLASH_DEVICE void range(const RowRange& rows, KeyRange& keys) const {
    shrink_range(a, rows, keys);
    shrink_range(b, rows, keys);
  }
  OMNIFLASH_DEVICE unsigned bits(const ScoreIndex& at) const requires(has_bits<A> && has_bits<B>) {
    return a.bits(at) & b.bits(at);
  }
  OMNIFLASH_DEVICE int begin(int batch, int q) const requires(is_interval<A> && is_interval<B>) {
    return maximum(a.begin(batch, q), b.begin(batch, q));
  }
  OMNIFLASH_DEVICE int end(int batch, int q) const requires(is_interval<A> && is_interval<B>) {
    return minimum(a.end(batch, q), b.end(batch, q));
  }
  OMNIFLASH_DEVICE float add(const ScoreIndex& at) const requires(has_add<A> || has_add<B>) {
    return added_by(a, at) + added_by(b, at);
  }
  OMNIFLASH_DEVICE PairOfValues add_pair(const ScoreIndex& at, int last) const requires(has_add<A> || has_add<B>) {
    const PairOfValues by_a = added_to_pair(a, at, last), by_b = added_to_pair(b, at, last);
    return PairOfValues{by_a.first + by_b.first, by_a.second + by_b.second};
  }
};

template <class A, class B>
struct Or {
  static constexpr bool kHeadInvariant = head_invariant<A> && head_invariant<B>;
  static constexpr bool kStatusReads = status_reads<A> || status_reads<B>;
  static constexpr bool kNeverFull = never_full<A> && never_full<B>;
  alignas(16) A a;
  alignas(16) B b;
  OMNIFLASH_DEVICE bool keep(const ScoreIndex& at) const { return a.keep(at) || b.keep(at); }
  OMNIFLASH_DEVICE TileStatus status(const TileRect& tile) const {
    return either(status_of(a, tile), status_of(b, tile));
  }
  OMNIFLASH_DEVICE void range(const RowRange& rows, KeyRange& keys) const {
    KeyRange by_a = keys, by_b = keys;
    shrink_range(a, rows, by_a);
    shrink_range(b, rows, by_b);
    const bool none_by_a = by_a.begin >= by_a.end, none_by_b = by_b.begin >= by_b.end;
    keys = none_by_a   ? by_b
           : none_by_b ? by_a
                       : KeyRange{minimum(by_a.begin, by_b.begin), maximum(by_a.end, by_b.end)};
  }
  OMNIFLASH_DEVICE unsigned bits(const ScoreIndex& at) const requires(has_bits<A> && has_bits<B>) {
    return a.bits(at) | b.bits(at);
  }
};

template <class A>
struct Not {
  static constexpr bool kHeadInvariant = head_invariant<A>;
  static constexpr bool kStatusReads = status_reads<A>;
  static constexpr bool kNeverFull = !has_status<A>;
  alignas(16) A a;
  OMNIFLASH_DEVICE bool keep(const ScoreIndex& at) const { return !a.keep(at); }
  OMNIFLASH_DEVICE TileStatus status(const TileRect& tile) const { return opposite(status_of(a, tile)); }
  OMNIFLASH_DEVICE unsigned bits(const ScoreIndex& at) const requires has_bits<A> { return ~a.bits(at); }
};

}  // namespace omniflash
