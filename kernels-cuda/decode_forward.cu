// Attention of few query rows over many keys, at the speed of memory: mma.sync and cp.async, sm_80 and later.
//
//   keys of one item: tiles of 16 kWarps             An item is a sequence and a key head, with all the rows of its
//   +----+----+----+----+----+----+----+----+        queries (and of the heads of the group) in one tile of kBlockM.
//   | w0 | w1 | w2 | w3 | w0 | w1 | w2 | w3 | ...    Each warp takes 16 keys of every tile, with a pipeline of its own:
//   +----+----+----+----+----+----+----+----+        warps meet only where a block ends its part of an item.
//
//   items laid end to end, cut into equal runs:      What a block does of an item is a segment. A segment that is not
//   | item 0     | item 1 | item 2              |    the whole item goes to the workspace; the last block to finish
//   | block 0 | block 1 | block 2 | block 3 | ..     with an item joins its segments, in their order.
//
// With num_workers blocks the cut is made from the lengths on the device, by every block alike; with num_workers = 0
// block (i, p) does partition p of num_partitions equal ones of item i, whatever else is in the batch.
// Shared memory: [ Q | of each warp: slots 0 .. kStages - 1 of K and V ]; where warps meet, over the same from the start,
// [ sums of each warp, f32, kBlockM rows of kPitch | offset and sum of each row and warp ].
//
// The instance chooses Element, Product, Keys, MaskType, ScoreModType, kHeadDim, kValueDim, kBlockM, kWarps, kStages and
// kVectorLoads.

#include "omniflash/keys.hpp"
#include "omniflash/masks.hpp"
#include "omniflash/schedule.hpp"
#include "fragments.hpp"
#include "instance.hpp"

namespace omniflash {

using namespace instance;

constexpr int kThreads = 32 * kWarps;
constexpr int kFragments = kBlockM / 16;
constexpr int kSlice = 16, kBlockN = kSlice * kWarps;
constexpr int kN = kSlice / 8, kV = kValueDim / 8;
static_assert(kBlockM % 16 == 0 && kStages >= 2, "whole fragments, and a slot to fill while another is read");

// Fewer tiles than this are not worth a block of their own.
constexpr unsigned kLeastTiles = 2;

using RowsOfHeadDim = SharedTile<Element, kHeadDim>;
using RowsOfValueDim = SharedTile<Element, kValueDim>;
using Scores = float[kFragments][kN][4];
using Output = float[kFragments][kV][4];
using Softmax = SoftmaxRow[kFragments][2];

constexpr unsigned kQueryBytes = kBlockM * RowsOfHeadDim::kRowBytes;
constexpr unsigned kKeyBytes = kSlice * RowsOfHeadDim::kRowBytes;
constexpr unsigned kSlotBytes = kKeyBytes + kSlice * RowsOfValueDim::kRowBytes;

OMNIFLASH_DEVICE int warp_index() { return thread_index() / 32; }
OMNIFLASH_DEVICE RowsOfHeadDim query_tile() { return {shared_memory()}; }
OMNIFLASH_DEVICE unsigned slot_address(int slot) {
  return shared_memory() + kQueryBytes + (warp_index() * kStages + slot) * kSlotBytes;
}
OMNIFLASH_DEVICE RowsOfHeadDim key_slice(int slot) { return {slot_address(slot)}; }
OMNIFLASH_DEVICE RowsOfValueDim value_slice(int slot) { return {slot_address(slot) + kKeyBytes}; }

// Rows of sums are apart by eight banks.
constexpr int kPitch = kValueDim + 8;
OMNIFLASH_DEVICE unsigned sum_address(int warp, int row, int column) {
  return shared_memory() + 4 * ((warp * kBlockM + row) * kPitch + column);
}
OMNIFLASH_DEVICE unsigned state_address(int warp, int row) {
  return shared_memory() + 4 * (kWarps * kBlockM * kPitch) + 8 * (warp * kBlockM + row);
}

constexpr bool kFoldable = is_identity<ScoreModType> && !has_add<MaskType>;

using Tiles = KeyTiles<MaskType>;

// What one block works on: all rows of a sequence that share a key head.
struct Block {
  const AttentionParameters& parameters;
  const Functors<MaskType, ScoreModType>& functors;
  Sequence sequence;
  RowTile rows;
  float scale;   // of scores before mask and modification; 1 where it is folded
  float factor;  // of scores in the exponential

  OMNIFLASH_DEVICE Block(const AttentionParameters& parameters, const Functors<MaskType, ScoreModType>& functors, int batch,
                         int head_tile)
      : parameters(parameters),
        functors(functors),
        sequence(parameters, batch),
        rows(parameters, Work{batch, head_tile * static_cast<int>(parameters.heads_per_tile), 0}, sequence, kBlockM) {
    // The largest score is the largest product only under a positive factor.
    const bool folded = kFoldable && parameters.softmax_scale > 0.0f;
    scale = folded ? 1.0f : parameters.softmax_scale;
    factor = folded ? parameters.softmax_scale * kLog2E : kLog2E;
  }

  // Longer sequences are another launch's.
  OMNIFLASH_DEVICE bool is_ours() const { return rows.num_rows > 0 && rows.num_rows <= kBlockM; }
  OMNIFLASH_DEVICE Tiles key_tiles() const {
    const RowRange queries{sequence.batch, rows.first_head, sequence.start, sequence.start + sequence.q_len};
    return Tiles(functors.mask, sequence, queries, rows.heads, kBlockN);
  }

  // Row of an accumulator's fragment and half in the sequence; past the end, the last.
  OMNIFLASH_DEVICE int row(int fragment, int half) const {
    return minimum(16 * fragment + 8 * half + lane_index() / 4, rows.num_rows - 1);
  }
  OMNIFLASH_DEVICE ScoreIndex index(int row) const {
    const int query = rows.query(row);
    return ScoreIndex{sequence.batch, rows.head(row), query, sequence.start + query, 0};
  }

  struct QueryWalker {
    const Block& block;
    int row;
    OMNIFLASH_DEVICE void advance(int rows) { row += rows; }
    OMNIFLASH_DEVICE const Element* at(bool valid) const {
      const int i = valid ? row : 0;
      return block.sequence.template row<const Element>(block.parameters.q, is_ragged(block.parameters),
                                                        block.rows.query(i), block.rows.head(i));
    }
  };
  OMNIFLASH_DEVICE void copy_queries() const {
    fill_tile<kThreads, kBlockM, kVectorLoads, 1>(query_tile(), parameters.head_dim, rows.num_rows, QueryWalker{*this, 0});
  }
};

// ---- the line of items, and who does what of it

// The sum over the lanes up to this one.
OMNIFLASH_DEVICE unsigned warp_scan(unsigned word) {
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const unsigned before = from_lane(word, maximum(lane_index() - distance, 0));
    if (lane_index() >= distance) word += before;
  }
  return word;
}

// The tiles of keys that every item of a sequence counts as, and where they begin. A sequence whose rows see no key counts
// one, for its rows are written; one without rows here counts none.
struct Extent {
  int begin, count;

  OMNIFLASH_DEVICE explicit Extent(const Block& block) : begin(0), count(0) {
    if (!block.is_ours()) return;
    if constexpr (head_invariant<MaskType>) {
      const Tiles tiles = block.key_tiles();
      begin = tiles.begin;
      count = tiles.end - tiles.begin;
    } else {
      count = ceil_divide(block.sequence.kv_len, kBlockN);
    }
    count = maximum(count, 1);
  }
};

// Where the parts of a cut item lie in the workspace, and who counts them.
struct Parts {
  int count;          // 1: the item is whole
  int mine;           // this segment's slot
  int first, second;  // slots of the first two parts
  int step;           // from the second on
  int counter;

  OMNIFLASH_DEVICE int slot(int part) const { return part == 0 ? first : second + (part - 1) * step; }
};

struct Segment {
  int begin, end;  // tiles, from the item's first
  Parts parts;
};

// The line of all items cut into runs of equal length, one a worker.
struct Line {
  unsigned total, workers, run, longer;  // the first `longer` runs have one tile more

  OMNIFLASH_DEVICE Line(unsigned total, unsigned num_workers) : total(total) {
    workers = maximum(minimum(num_workers, total / kLeastTiles), 1u);
    run = total / workers;
    longer = total % workers;
  }
  OMNIFLASH_DEVICE unsigned begin(unsigned worker) const { return worker * run + minimum(worker, longer); }
  OMNIFLASH_DEVICE unsigned worker_of(unsigned tile) const {
    const unsigned in_longer = longer * (run + 1);
    return tile < in_longer ? tile / (run + 1) : longer + (tile - in_longer) / run;
  }
  // Of an item that occupies item..item + count, what worker does from `from` to `to`.
  OMNIFLASH_DEVICE Segment segment(unsigned worker, unsigned item, unsigned count, unsigned from, unsigned to) const {
    Segment segment{static_cast<int>(from - item), static_cast<int>(to - item), Parts{1, 0, 0, 0, 2, 0}};
    if (segment.begin == 0 && to - item == count) return segment;
    // A worker cuts at most two items: it continues one (slot 2 w), and begins one (slot 2 w + 1).
    const unsigned first = worker_of(item), last = worker_of(item + count - 1);
    segment.parts = Parts{static_cast<int>(last - first + 1), static_cast<int>(2 * worker + (from == item)),
                          static_cast<int>(2 * first + 1),    static_cast<int>(2 * first + 2),
                          2,                                  static_cast<int>(first)};
    return segment;
  }
};

// Partition block_index_y() of item block_index_x().
OMNIFLASH_DEVICE Segment partition_of(int count, int partitions) {
  const int item = block_index_x(), partition = block_index_y(), run = ceil_divide(count, partitions);
  const int begin = minimum(partition * run, count), slot = item * partitions;
  return Segment{begin, minimum(begin + run, count), Parts{partitions, slot + partition, slot, slot + 1, 1, item}};
}

// ---- keys and values on their way

// Where the 16 vectors of a slice begin, in elements from the tensor's first. In pages each lane looks one up, of keys
// (lanes 0 to 15) or of values, one slice before it is needed.
template <class Keys>
struct SliceAddresses;

template <>
struct SliceAddresses<StridedKeys> {
  const StridedKeys& keys;
  int first_key;

  OMNIFLASH_DEVICE explicit SliceAddresses(const StridedKeys& keys) : keys(keys), first_key(0) {}
  OMNIFLASH_DEVICE void look_up(int first, int) { first_key = first; }
  OMNIFLASH_DEVICE long long mine() const { return 0; }
  OMNIFLASH_DEVICE long long key(long long, int row) const { return keys.k_base + (first_key + row) * keys.k_stride; }
  OMNIFLASH_DEVICE long long value(long long, int row) const { return keys.v_base + (first_key + row) * keys.v_stride; }
};

template <>
struct SliceAddresses<PagedKeys> {
  const PagedKeys& keys;
  int page, in_page;

  OMNIFLASH_DEVICE explicit SliceAddresses(const PagedKeys& keys) : keys(keys), page(0), in_page(0) {}
  // Entries of keys that do not exist are not read; their rows are not either.
  OMNIFLASH_DEVICE void look_up(int first, int kv_len) {
    const int j = first + lane_index() % kSlice;
    const int index = keys.page_shift >= 0 ? j >> keys.page_shift : j / keys.page_size;
    page = j < kv_len ? keys.table[index * keys.table_stride] : 0;
    in_page = j - index * keys.page_size;
  }
  OMNIFLASH_DEVICE long long mine() const {
    return lane_index() < kSlice ? keys.k_base + page * keys.k_page_stride + in_page * keys.k_stride
                                 : keys.v_base + page * keys.v_page_stride + in_page * keys.v_stride;
  }
  OMNIFLASH_DEVICE static long long of_lane(long long mine, int lane) {
    const unsigned high = from_lane(static_cast<unsigned>(mine >> 32), lane);
    const unsigned low = from_lane(static_cast<unsigned>(mine), lane);
    return static_cast<long long>(static_cast<unsigned long long>(high) << 32 | low);
  }
  OMNIFLASH_DEVICE long long key(long long mine, int row) const { return of_lane(mine, row); }
  OMNIFLASH_DEVICE long long value(long long mine, int row) const { return of_lane(mine, kSlice + row); }
};

// Fills one slice with the lanes of a warp; rows from num_valid on become zeros, whatever lies there.
template <int kColumns, class OffsetOf>
OMNIFLASH_DEVICE void fill_slice(const SharedTile<Element, kColumns>& slice, const void* data, int columns, int num_valid,
                                 const OffsetOf& offset_of) {
  using Tile = SharedTile<Element, kColumns>;
  // Opaque, so that addresses are made here and do not stay in registers, of which there are too few.
  const int lane = opaque(lane_index());
#pragma unroll 4
  for (int pass = 0; pass < kSlice * Tile::kChunks / 32; ++pass) {
    const int i = 32 * pass + lane, row = i / Tile::kChunks, chunk = i % Tile::kChunks;
    const Element* vector = static_cast<const Element*>(data) + offset_of(row);
    fill_chunk<kVectorLoads>(slice.chunk(row, chunk), vector, chunk * Tile::kChunkElements, columns, row < num_valid);
  }
}

// The slices of one warp, in the order of tiles, as far ahead as there are slots.
struct Pipeline {
  const Block& block;
  const Keys& keys;
  Tiles tiles;  // of the segment
  SliceAddresses<Keys> addresses;
  int ahead;  // the tile to be copied next

  OMNIFLASH_DEVICE Pipeline(const Block& block, const Keys& keys, const Tiles& tiles)
      : block(block), keys(keys), tiles(tiles), addresses(keys) {
    advance(tiles.begin);
  }

  OMNIFLASH_DEVICE static int first_key(int tile) { return tile * kBlockN + warp_index() * kSlice; }
  OMNIFLASH_DEVICE void advance(int from) {
    TileStatus status;
    ahead = tiles.next(from, status);
    if (ahead < tiles.end) addresses.look_up(first_key(ahead), block.sequence.kv_len);
  }
  OMNIFLASH_DEVICE void copy(int slot) {
    if (ahead < tiles.end) {
      const int num_valid = block.sequence.kv_len - first_key(ahead);
      const long long mine = addresses.mine();
      fill_slice(key_slice(slot), keys.k, block.parameters.head_dim, num_valid,
                 [&](int row) { return addresses.key(mine, row); });
      fill_slice(value_slice(slot), keys.v, block.parameters.value_dim, num_valid,
                 [&](int row) { return addresses.value(mine, row); });
      advance(ahead + 1);
    }
    copy_commit();
  }
};

OMNIFLASH_DEVICE int next_slot(int slot) { return slot == kStages - 1 ? 0 : slot + 1; }

// This warp's keys of a segment.
OMNIFLASH_DEVICE void attend(const Block& block, const Keys& keys, Tiles tiles, Softmax& softmax, Output& o) {
  block.copy_queries();
  copy_commit();
  Pipeline pipeline(block, keys, tiles);
  TileStatus status;
  int tile = tiles.next(tiles.begin, status), filled = 0;
#pragma unroll 1
  for (int slot = 0, to_fill = 0; tile < tiles.end;) {
    pipeline.copy(to_fill);
    to_fill = next_slot(to_fill);
    if (++filled < kStages) continue;
    copy_wait<kStages - 1>();
    // This slice has landed; with the first one, the queries of all warps have.
    if (filled == kStages) {
      barrier();
    } else {
      warp_barrier();
    }

    const int first_key = Pipeline::first_key(tile);
    if (first_key < block.sequence.kv_len) {
      const RowsOfValueDim values = value_slice(slot);
      const bool touched = status != TileStatus::Full;
      Scores s = {};
      Product::scores(s, query_tile(), 0, key_slice(slot));
      modify(block, first_key, s);
      if (touched || first_key + kSlice > block.sequence.kv_len) hide(block, block.functors.mask, first_key, touched, s);
      online_softmax(block.factor, softmax, s, o);
      if ((touched || hides_by_score<ScoreModType>) && warp_any(has_non_finite<32, kSlice>(values))) {
        add_non_finite(values, s, o);
        warp_barrier();
        clear_non_finite<32, kSlice>(values);
        warp_barrier();
      }
      Product::values(o, s, values);
    }
    warp_barrier();  // all lanes have left the slot
    slot = next_slot(slot);
    tile = tiles.next(tile + 1, status);
  }
  copy_wait<0>();
}

// ---- results

struct alignas(16) Quad {
  float values[4];
};

OMNIFLASH_DEVICE Quad load_shared_quad(unsigned from) {
  unsigned words[4];
  load_shared_16(words, from);
  Quad quad;
#pragma unroll
  for (int i = 0; i < 4; ++i) quad.values[i] = __builtin_bit_cast(float, words[i]);
  return quad;
}

// Writes four neighbours of a row of the output, and with the first of them the row's lse.
OMNIFLASH_DEVICE void store_result(const Block& block, int row, int column, const Quad& quad, float lse) {
  const bool ragged = is_ragged(block.parameters);
  const int query = block.rows.query(row), head = block.rows.head(row), columns = block.parameters.value_dim;
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

OMNIFLASH_DEVICE float* partial_lse(const Block& block, int slot, int row) {
  return static_cast<float*>(block.parameters.partial_lse) + (static_cast<long long>(slot) * kBlockM + row);
}
OMNIFLASH_DEVICE float* partial_out(const Block& block, int slot, int row) {
  return static_cast<float*>(block.parameters.partial_out) + (static_cast<long long>(slot) * kBlockM + row) * kValueDim;
}

// Leaves each warp's sums in shared memory, where all can read them.
OMNIFLASH_DEVICE void publish(const Block& block, const Softmax& softmax, const Output& o) {
  barrier();  // the sums lie over what all warps have read until now
#pragma unroll
  for (int m = 0; m < kFragments; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = 16 * m + 8 * half + lane_index() / 4;
      const SoftmaxRow& state = softmax[m][half];
      const float sum = quad_sum(state.sum);
      if (row >= block.rows.num_rows) continue;
      if (lane_index() % 4 == 0) {
        store_shared_8(state_address(warp_index(), row), __builtin_bit_cast(unsigned, state.offset(block.factor)),
                       __builtin_bit_cast(unsigned, sum));
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

// Joins the warps' sums in the order of warps: the result of a whole item, or a part in the workspace.
OMNIFLASH_DEVICE void join_warps(const Block& block, const Parts& parts) {
  const bool whole = parts.count == 1;
#pragma unroll 1
  for (int i = thread_index(); i < block.rows.num_rows * (kValueDim / 4); i += kThreads) {
    const int row = i / (kValueDim / 4), column = i % (kValueDim / 4) * 4;
    float offsets[kWarps], sums[kWarps], offset = -kInfinity, sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) {
      offsets[warp] = __builtin_bit_cast(float, load_shared_4(state_address(warp, row)));
      sums[warp] = __builtin_bit_cast(float, load_shared_4(state_address(warp, row) + 4));
      if (sums[warp] != 0.0f) offset = maximum(offset, offsets[warp]);
    }
    Quad total = {};
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) {
      // A warp whose rows saw no key has nothing to add, and its offset means nothing.
      if (sums[warp] == 0.0f) continue;
      const float weight = exp2(offsets[warp] - offset);
      const Quad quad = load_shared_quad(sum_address(warp, row, column));
      sum += weight * sums[warp];
#pragma unroll
      for (int e = 0; e < 4; ++e) total.values[e] += weight * quad.values[e];
    }
    // A sink counts once: where the item is cut, when its parts are joined.
    const float sink = whole ? sink_log2(block.parameters, block.rows.head(row)) : -kInfinity;
    const SoftmaxResult result = finalize(offset, sum, sink);
#pragma unroll
    for (int e = 0; e < 4; ++e) total.values[e] *= result.scale;
    if (whole) {
      store_result(block, row, column, total, result.lse);
    } else {
      *reinterpret_cast<Quad*>(partial_out(block, parts.mine, row) + column) = total;
      if (column == 0) *partial_lse(block, parts.mine, row) = result.lse;
    }
  }
}

// Whether this block is the last to finish with an item: all parts can be read then. Leaves the counter as it was.
OMNIFLASH_DEVICE bool is_last(const Block& block, const Parts& parts) {
  device_fence();
  barrier();
  bool last = false;
  if (thread_index() == 0) {
    unsigned* counter = static_cast<unsigned*>(block.parameters.counters) + parts.counter;
    last = atomic_add(counter, 1u) == static_cast<unsigned>(parts.count - 1);
    if (last) *counter = 0;
  }
  last = barrier_any(last);
  device_fence();
  return last;
}

// Joins the parts of an item in their order: out = sum_p w_p out_p with w_p = exp(lse_p - lse). Parts come through shared
// memory, as many at a time as fit: a thread copies and sums the same quads of all of them.
OMNIFLASH_DEVICE void join_parts(const Block& block, const Parts& parts) {
  constexpr int kQuads = kValueDim / 4, kGroup = 4;
  constexpr int kShared = kQueryBytes + kWarps * kStages * kSlotBytes, kLseBytes = 4096;
  const int thread = thread_index(), quads = block.rows.num_rows * kQuads;
  const int groups = minimum(ceil_divide(quads, kThreads), kGroup);
  const int most = minimum((kShared - kLseBytes) / (16 * kThreads * groups), kLseBytes / (4 * kBlockM));
  const unsigned lses = shared_memory(), copies = lses + kLseBytes;
  const auto copy_of = [&](int part, int group) { return copies + 16 * ((part * groups + group) * kThreads + thread); };
#pragma unroll 1
  for (int first = thread; first - thread < quads; first += groups * kThreads) {
    Quad total[kGroup] = {};
    float offset[kGroup], sum[kGroup];
#pragma unroll
    for (int group = 0; group < kGroup; ++group) {
      offset[group] = -kInfinity;
      sum[group] = 0.0f;
    }
#pragma unroll 1
    for (int begin = 0; begin < parts.count; begin += most) {
      const int count = minimum(most, parts.count - begin);
#pragma unroll 1
      for (int part = 0; part < count; ++part) {
        const float* partial = partial_out(block, parts.slot(begin + part), 0);
#pragma unroll 1
        for (int group = 0; group < groups; ++group) {
          const int i = first + group * kThreads;
          if (i < quads) copy_async_16(copy_of(part, group), partial + 4 * i, true);
        }
      }
      copy_commit();
#pragma unroll 1
      for (int i = thread; i < count * kBlockM; i += kThreads) {
        const int part = i / kBlockM, row = i % kBlockM;
        if (row >= block.rows.num_rows) continue;
        const float lse = load_fresh(partial_lse(block, parts.slot(begin + part), row));
        store_shared_4(lses + 4 * i, __builtin_bit_cast(unsigned, lse * kLog2E));
      }
      copy_wait<0>();
      barrier();
#pragma unroll
      for (int group = 0; group < kGroup; ++group) {
        const int i = first + group * kThreads;
        if (group >= groups || i >= quads) continue;
        const unsigned of_row = lses + 4 * (i / kQuads);
        const auto lse_of = [&](int part) {
          return __builtin_bit_cast(float, load_shared_4(of_row + 4 * kBlockM * part));
        };
        float largest = offset[group];
#pragma unroll 1
        for (int part = 0; part < count; ++part) largest = maximum(largest, lse_of(part));
        if (largest == -kInfinity) continue;
        const float rescale = exp2(offset[group] - largest);
        offset[group] = largest;
        sum[group] *= rescale;
#pragma unroll
        for (int e = 0; e < 4; ++e) total[group].values[e] *= rescale;
#pragma unroll 2
        for (int part = 0; part < count; ++part) {
          const float weight = exp2(lse_of(part) - largest);
          const Quad quad = load_shared_quad(copy_of(part, group));
          sum[group] += weight;
#pragma unroll
          for (int e = 0; e < 4; ++e) total[group].values[e] += weight * quad.values[e];
        }
      }
      barrier();  // all have read before the next ones land
    }
#pragma unroll
    for (int group = 0; group < kGroup; ++group) {
      const int i = first + group * kThreads, row = i / kQuads;
      if (group >= groups || i >= quads) continue;
      const SoftmaxResult result = finalize(offset[group], sum[group], sink_log2(block.parameters, block.rows.head(row)));
#pragma unroll
      for (int e = 0; e < 4; ++e) total[group].values[e] *= result.scale;
      store_result(block, row, i % kQuads * 4, total[group], result.lse);
    }
  }
}

OMNIFLASH_DEVICE void run_segment(const AttentionParameters& parameters,
                                  const Functors<MaskType, ScoreModType>& functors, int batch, int head_tile, int first_tile,
                                  const Segment& segment) {
  const Block block(parameters, functors, batch, head_tile);
  const Keys keys(parameters, block.sequence, block.rows.first_head / static_cast<int>(parameters.group_size));
  Tiles tiles = block.key_tiles();
  tiles.end = minimum(tiles.end, first_tile + segment.end);
  tiles.begin = minimum(maximum(tiles.begin, first_tile + segment.begin), tiles.end);

  Output o = {};
  Softmax softmax;
#pragma unroll
  for (int i = 0; i < 2 * kFragments; ++i) {
    softmax[i / 2][i % 2].max = -kInfinity;
    softmax[i / 2][i % 2].sum = 0.0f;
  }
  attend(block, keys, tiles, softmax, o);
  publish(block, softmax, o);
  join_warps(block, segment.parts);
  if (segment.parts.count > 1 && is_last(block, segment.parts)) join_parts(block, segment.parts);
  barrier();  // the next segment copies over the sums
}

// The line of all items, and in it the worker's run.
struct Run {
  unsigned total;     // tiles of the line
  unsigned at, end;   // of the run, what is left
  unsigned origin;    // where the items of `batch` begin
  int batch;

  OMNIFLASH_DEVICE Run() : total(0), at(0), end(0), origin(0), batch(0) {}
  OMNIFLASH_DEVICE Run(const AttentionParameters& parameters, const Functors<MaskType, ScoreModType>& functors,
                       unsigned head_tiles)
      : Run() {
    const int sequences = parameters.batch;
    unsigned tiles = 0, until = 0;  // of this lane's sequence, and up to it
    // Once for the sum of all, which says where the run begins, and once for the sequence that it begins in.
#pragma unroll 1
    for (int pass = 0; pass < 2; ++pass) {
#pragma unroll 1
      for (int first = 0; first < sequences; first += 32) {
        if (pass == 0 || sequences > 32) {
          const int mine = first + lane_index();
          tiles = mine < sequences ? head_tiles * Extent(Block(parameters, functors, mine, 0)).count : 0;
          until = warp_scan(tiles);
        }
        const unsigned all = from_lane(until, 31);
        if (pass == 0) {
          total += all;
        } else if (at >= origin + all) {
          origin += all;
        } else {
          const int lane = first_lane(at < origin + until);
          batch = first + lane;
          origin += from_lane(until - tiles, lane);
          return;
        }
      }
      if (total == 0) return;
      const Line line(total, parameters.num_workers);
      if (block_index_x() >= line.workers) return;
      at = line.begin(block_index_x());
      end = line.begin(block_index_x() + 1);
    }
  }
};

}  // namespace omniflash

OMNIFLASH_KERNEL(omniflash::kThreads)
omniflash_decode(OMNIFLASH_PARAMETER omniflash::AttentionParameters parameters,
                 OMNIFLASH_PARAMETER omniflash::Functors<omniflash::MaskType, omniflash::ScoreModType> functors) {
  using namespace omniflash;
  const unsigned head_tiles = parameters.num_heads / parameters.heads_per_tile;
  const bool is_shared = parameters.num_workers > 0;
  Run run = is_shared ? Run(parameters, functors, head_tiles) : Run();
  if (!is_shared) run.batch = block_index_x() / head_tiles;
#pragma unroll 1
  for (bool is_done = is_shared && run.at >= run.end; !is_done;) {
    const Extent extent(Block(parameters, functors, run.batch, 0));
    unsigned head_tile;
    Segment segment;
    if (is_shared) {
      const unsigned count = extent.count, items = head_tiles * count;
      if (run.at >= run.origin + items) {
        run.origin += items;
        ++run.batch;
        continue;
      }
      head_tile = (run.at - run.origin) / count;
      const unsigned item = run.origin + head_tile * count, to = minimum(item + count, run.end);
      segment = Line(run.total, parameters.num_workers).segment(block_index_x(), item, count, run.at, to);
      run.at = to;
      is_done = to >= run.end;
    } else {
      if (extent.count == 0) return;
      head_tile = block_index_x() % head_tiles;
      segment = partition_of(extent.count, parameters.num_partitions);
      is_done = true;
    }
    run_segment(parameters, functors, run.batch, head_tile, extent.begin, segment);
  }
}
