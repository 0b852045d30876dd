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
// block (i, p) does partition p of num_partitions equal ones of item i, whatever else is in the batch. With kCluster > 1
// the partitions of an item are the blocks of a cluster instead; each joins some of the sums, which the others write into
// its shared memory.
//
// Shared memory: [ Q | of each warp: slots 0 .. kStages - 1 of K and V ]; where warps meet, over the same from the start,
// [ sums of each warp, f32, kBlockM rows of kPitch | offset and sum of each row and warp | parts of a cluster's blocks, rows
// of kPitch: the sums of kValueDim columns, offset and sum ].
//
// Code that runs once costs more than the same in a loop: what stands between the start and the first copies is kept
// short, and what can wait is done while they are under way.
//
// The instance chooses Element, Product, Keys, MaskType, ScoreModType, kHeadDim, kValueDim, kBlockM, kWarps, kStages,
// kVectorLoads and kCluster (1 before sm_90).

#include "omniflash/keys.hpp"
#include "omniflash/masks.hpp"
#include "omniflash/schedule.hpp"
#include "fragments.hpp"
#include "sm90/cluster.hpp"
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

using RowsOfHeadDim = PaddedTile<Element, kHeadDim>;
using RowsOfValueDim = PaddedTile<Element, kValueDim>;
using Scores = float[kFragments][kN][4];
using Output = float[kFragments][kV][4];
using Softmax = SoftmaxRow[kFragments][2];

constexpr unsigned kQueryBytes = kBlockM * RowsOfHeadDim::kPitchBytes;
constexpr unsigned kKeyBytes = kSlice * RowsOfHeadDim::kPitchBytes;
constexpr unsigned kSlotBytes = kKeyBytes + kSlice * RowsOfValueDim::kPitchBytes;

// Rows of sums are apart by eight banks.
constexpr int kPitch = kValueDim + 8, kQuads = kValueDim / 4;
constexpr unsigned kStates = 4 * kWarps * kBlockM * kPitch;

OMNIFLASH_DEVICE int warp_index() { return thread_index() / 32; }
OMNIFLASH_DEVICE RowsOfHeadDim query_tile() { return {shared_memory()}; }
OMNIFLASH_DEVICE unsigned slot_address(int slot) {
  return shared_memory() + kQueryBytes + (warp_index() * kStages + slot) * kSlotBytes;
}
OMNIFLASH_DEVICE RowsOfHeadDim key_slice(int slot) { return {slot_address(slot)}; }
OMNIFLASH_DEVICE RowsOfValueDim value_slice(int slot) { return {slot_address(slot) + kKeyBytes}; }

OMNIFLASH_DEVICE unsigned sum_address(int warp, int row, int column) {
  return shared_memory() + 4 * ((warp * kBlockM + row) * kPitch + column);
}
OMNIFLASH_DEVICE unsigned state_address(int warp, int row) {
  return shared_memory() + kStates + 8 * (warp * kBlockM + row);
}
// Of a part that another block of the cluster has sent; the row's state lies after its columns.
OMNIFLASH_DEVICE unsigned sent_address(int row_of_part, int column) {
  return shared_memory() + kStates + 8 * kWarps * kBlockM + 4 * (row_of_part * kPitch + column);
}

constexpr bool kFoldable = is_identity<ScoreModType> && !has_add<MaskType>;

using Tiles = KeyTiles<MaskType>;

// What one block works on: all rows of a sequence that share a key head.
struct Block {
  const AttentionParameters& parameters;
  const Functors<MaskType, ScoreModType>& functors;
  Sequence sequence;
  int head_tile;
  RowTile rows;
  float per_head;  // 1 / heads
  float scale;   // of scores before mask and modification; 1 where it is folded
  float factor;  // of scores in the exponential

  OMNIFLASH_DEVICE Block(const AttentionParameters& parameters, const Functors<MaskType, ScoreModType>& functors,
                         const Sequence& sequence, int head_tile)
      : parameters(parameters),
        functors(functors),
        sequence(sequence),
        head_tile(head_tile),
        rows(parameters, Work{sequence.batch, head_tile * static_cast<int>(parameters.heads_per_tile), 0}, sequence,
             kBlockM),
        per_head(reciprocal(static_cast<float>(rows.heads))) {
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

  // Query and head of a row, without a division: rows are few.
  OMNIFLASH_DEVICE int query(int row) const { return static_cast<int>((static_cast<float>(row) + 0.5f) * per_head); }
  OMNIFLASH_DEVICE int head(int row) const { return rows.first_head + row - query(row) * rows.heads; }

  // Row of an accumulator's fragment and half in the sequence; past the end, the last.
  OMNIFLASH_DEVICE int row(int fragment, int half) const {
    return minimum(16 * fragment + 8 * half + lane_index() / 4, rows.num_rows - 1);
  }
  OMNIFLASH_DEVICE ScoreIndex index(int row) const {
    const int query = this->query(row);
    return ScoreIndex{sequence.batch, head(row), query, sequence.start + query, 0};
  }

  OMNIFLASH_DEVICE void copy_queries() const {
    constexpr int kChunks = RowsOfHeadDim::kChunks, kElements = RowsOfHeadDim::kChunkElements;
#pragma unroll 1
    for (int i = thread_index(); i < kBlockM * kChunks; i += kThreads) {
      const int row = i / kChunks, chunk = i % kChunks;
      const bool valid = row < rows.num_rows;
      const int some = valid ? row : 0;
      const Element* from = sequence.template row<const Element>(parameters.q, is_ragged(parameters), query(some), head(some));
      fill_chunk<kVectorLoads>(query_tile().chunk(row, chunk), from, chunk * kElements, static_cast<int>(parameters.head_dim),
                               valid);
    }
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

// A sequence with the tiles of keys that every item of it counts as, and where they begin. A sequence whose rows see no
// key counts one, for its rows are written; one without rows here counts none.
struct Extent {
  Sequence sequence;
  int begin, count;

  Extent() = default;
  OMNIFLASH_DEVICE explicit Extent(const Block& block) : sequence(block.sequence), begin(0), count(0) {
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
  // That of a lane.
  OMNIFLASH_DEVICE Extent of_lane(int lane) const {
    const auto word = [&](int mine) { return static_cast<int>(from_lane(static_cast<unsigned>(mine), lane)); };
    Extent extent;
    extent.sequence.batch = word(sequence.batch);
    extent.sequence.q_len = word(sequence.q_len);
    extent.sequence.kv_len = word(sequence.kv_len);
    extent.sequence.start = word(sequence.start);
    // Only ragged rows are found by it, and there it is one of the offsets.
    extent.sequence.q_base = word(static_cast<int>(sequence.q_base));
    extent.begin = word(begin);
    extent.count = word(count);
    return extent;
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

// The line of all items cut into runs of equal length, one a worker.
struct Line {
  unsigned workers, run, longer;  // the first `longer` runs have one tile more

  Line() = default;
  OMNIFLASH_DEVICE Line(unsigned total, unsigned num_workers) {
    workers = maximum(minimum(num_workers, total / kLeastTiles), 1u);
    run = total / workers;
    longer = total - run * workers;
  }
  OMNIFLASH_DEVICE unsigned begin(unsigned worker) const { return worker * run + minimum(worker, longer); }
  OMNIFLASH_DEVICE unsigned worker_of(unsigned tile) const {
    const unsigned in_longer = longer * (run + 1);
    return tile < in_longer ? tile / (run + 1) : longer + (tile - in_longer) / run;
  }
  // Of an item that begins at tile `item` and has `count`, what worker does from its tile `from` to `to`.
  OMNIFLASH_DEVICE Parts parts(unsigned worker, unsigned item, unsigned count, unsigned from, unsigned to) const {
    const bool begins = from == 0, ends = to == count;
    if (begins && ends) return Parts{1, 0, 0, 0, 2, 0};
    // A worker cuts at most two items: it continues one (slot 2 w), and begins one (slot 2 w + 1).
    const unsigned first = begins ? worker : worker_of(item), last = ends ? worker : worker_of(item + count - 1);
    return Parts{static_cast<int>(last - first + 1), static_cast<int>(2 * worker + begins),
                 static_cast<int>(2 * first + 1),    static_cast<int>(2 * first + 2),
                 2,                                  static_cast<int>(first)};
  }
};

// Of an item that is cut into equal partitions.
OMNIFLASH_DEVICE Parts partition_of(const AttentionParameters& parameters, int item, int partition) {
  const int count = parameters.num_partitions, slot = item * count;
  return Parts{count, slot + partition, slot, slot + 1, 1, item};
}

// Up to 32 sequences from `first` on, one a lane, and the tiles of all their items.
struct Group {
  Extent extent;
  unsigned until, all;  // tiles up to this lane's sequence, and of the group

  OMNIFLASH_DEVICE Group(const AttentionParameters& parameters, const Functors<MaskType, ScoreModType>& functors,
                         unsigned head_tiles, int first, int sequences)
      : extent(Block(parameters, functors, Sequence(parameters, first + minimum(lane_index(), sequences - 1)), 0)) {
    until = head_tiles * extent.count;
    if (sequences > 1) until = warp_scan(lane_index() < sequences ? until : 0);
    all = from_lane(until, 31);
  }
};

// ---- keys and values on their way

// Where one slice of keys and of values lies, in elements from the tensor's first, with the stride between its vectors.
struct Vectors {
  long long k, v;
  long long k_stride, v_stride;
};

// Where the slices of a warp are found. In pages the table is read one slice before it is needed.
template <class Keys>
struct Slices;

template <>
struct Slices<StridedKeys> {
  const StridedKeys& keys;
  int first_key;

  OMNIFLASH_DEVICE explicit Slices(const StridedKeys& keys) : keys(keys), first_key(0) {}
  OMNIFLASH_DEVICE void look_up(int first, int) { first_key = first; }
  OMNIFLASH_DEVICE bool is_strided() const { return true; }
  OMNIFLASH_DEVICE Vectors vectors() const {
    return {keys.k_base + first_key * keys.k_stride, keys.v_base + first_key * keys.v_stride, keys.k_stride, keys.v_stride};
  }
  OMNIFLASH_DEVICE long long mine() const { return 0; }
};

template <>
struct Slices<PagedKeys> {
  const PagedKeys& keys;
  int page, in_page;  // of the key first + lane % 16

  OMNIFLASH_DEVICE explicit Slices(const PagedKeys& keys) : keys(keys), page(0), in_page(0) {}
  // Entries of keys that do not exist are not read; their rows are not either.
  OMNIFLASH_DEVICE void look_up(int first, int kv_len) {
    const int j = is_strided() ? first : first + lane_index() % kSlice;
    const int index = keys.page_shift >= 0 ? j >> keys.page_shift : j / keys.page_size;
    page = j < kv_len ? keys.table[index * keys.table_stride] : 0;
    in_page = j - index * keys.page_size;
  }
  // Whether a slice never crosses pages.
  OMNIFLASH_DEVICE bool is_strided() const { return keys.page_size % kSlice == 0; }
  OMNIFLASH_DEVICE Vectors vectors() const {
    return {keys.k_base + page * keys.k_page_stride + in_page * keys.k_stride,
            keys.v_base + page * keys.v_page_stride + in_page * keys.v_stride, keys.k_stride, keys.v_stride};
  }
  // This lane's vector where slices do cross pages: lanes 0 to 15 have the keys, the others the values.
  OMNIFLASH_DEVICE long long mine() const {
    return lane_index() < kSlice ? keys.k_base + page * keys.k_page_stride + in_page * keys.k_stride
                                 : keys.v_base + page * keys.v_page_stride + in_page * keys.v_stride;
  }
};

// The word pair of a lane.
OMNIFLASH_DEVICE long long offset_from_lane(long long mine, int lane) {
  const unsigned high = from_lane(static_cast<unsigned>(mine >> 32), lane);
  const unsigned low = from_lane(static_cast<unsigned>(mine), lane);
  return static_cast<long long>(static_cast<unsigned long long>(high) << 32 | low);
}

// How the lanes of a warp share a slice: kLanes neighbours take a row together, kRows rows at a time.
template <int kChunks>
struct Lanes {
  static constexpr int kLanes = minimum(kChunks & -kChunks, 32), kRows = 32 / kLanes, kPasses = kChunks / kLanes;
};

// Fills one slice with the lanes of a warp; rows from num_valid on become zeros, whatever lies there. The vector of a row is
// `first` + row * stride, or with kGather where the lane first_lane + row says.
template <bool kGather, int kColumns>
OMNIFLASH_DEVICE void fill_slice(const PaddedTile<Element, kColumns>& slice, const void* data, long long first,
                                 long long stride, int first_lane, int columns, int num_valid) {
  using Tile = PaddedTile<Element, kColumns>;
  using Split = Lanes<Tile::kChunks>;
  const int first_row = lane_index() / Split::kLanes, first_chunk = lane_index() % Split::kLanes;
  const Element* vector = static_cast<const Element*>(data) + first_chunk * Tile::kChunkElements;
  if constexpr (!kGather) vector += first + first_row * stride;
  const unsigned to = slice.chunk(first_row, first_chunk);
#pragma unroll
  for (int row = 0; row < kSlice; row += Split::kRows) {
    const Element* from = vector;
    if constexpr (kGather) from += offset_from_lane(first, first_lane + first_row + row);
#pragma unroll
    for (int pass = 0; pass < Split::kPasses; ++pass) {
      const int chunk = pass * Split::kLanes, column = (first_chunk + chunk) * Tile::kChunkElements;
      const unsigned at = to + row * Tile::kPitchBytes + 16 * chunk;
      const Element* start = from + chunk * Tile::kChunkElements - column;  // fill_chunk adds it again
      fill_chunk<kVectorLoads>(at, start, column, columns, first_row + row < num_valid);
    }
    if constexpr (!kGather) vector += Split::kRows * stride;
  }
}

// The slices of one warp, in the order of tiles, as far ahead as there are slots.
struct Pipeline {
  const Block& block;
  const Keys& keys;
  Tiles tiles;  // of the segment
  Slices<Keys> slices;
  int ahead;  // the tile to be copied next

  OMNIFLASH_DEVICE Pipeline(const Block& block, const Keys& keys, const Tiles& tiles)
      : block(block), keys(keys), tiles(tiles), slices(keys) {
    advance(tiles.begin);
  }

  OMNIFLASH_DEVICE static int first_key(int tile) { return tile * kBlockN + warp_index() * kSlice; }
  OMNIFLASH_DEVICE void advance(int from) {
    TileStatus status;
    ahead = tiles.next(from, status);
    if (ahead < tiles.end) slices.look_up(first_key(ahead), block.sequence.kv_len);
  }
  OMNIFLASH_DEVICE void copy(int slot) {
    if (ahead < tiles.end) {
      const int num_valid = block.sequence.kv_len - first_key(ahead);
      const int head_dim = block.parameters.head_dim, value_dim = block.parameters.value_dim;
      if (slices.is_strided()) {
        const Vectors vectors = slices.vectors();
        fill_slice<false>(key_slice(slot), keys.k, vectors.k, vectors.k_stride, 0, head_dim, num_valid);
        fill_slice<false>(value_slice(slot), keys.v, vectors.v, vectors.v_stride, 0, value_dim, num_valid);
      } else {
        const long long mine = slices.mine();
        fill_slice<true>(key_slice(slot), keys.k, mine, 0, 0, head_dim, num_valid);
        fill_slice<true>(value_slice(slot), keys.v, mine, 0, kSlice, value_dim, num_valid);
      }
      advance(ahead + 1);
    }
  }
};

OMNIFLASH_DEVICE int next_slot(int slot) { return slot == kStages - 1 ? 0 : slot + 1; }

// This warp's keys of a segment. The queries come with the first slice. `meanwhile` is called while the first copies are
// under way.
template <class Meanwhile>
OMNIFLASH_DEVICE void attend(const Block& block, const Keys& keys, Tiles tiles, Softmax& softmax, Output& o,
                             const Meanwhile& meanwhile) {
  Pipeline pipeline(block, keys, tiles);
  TileStatus status;
  int tile = tiles.next(tiles.begin, status), filled = 0;
#pragma unroll 1
  for (int slot = 0, to_fill = 0;;) {
    pipeline.copy(to_fill);
    if (filled == 0) block.copy_queries();
    copy_commit();
    to_fill = next_slot(to_fill);
    if (++filled < kStages) continue;
    if (filled == kStages) meanwhile();
    copy_wait<kStages - 1>();
    // This slice has landed, and with the first one all warps' shares of the queries.
    if (filled == kStages) {
      barrier();
    } else {
      warp_barrier();
    }
    if (tile >= tiles.end) break;

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

// Parts in the workspace.
OMNIFLASH_DEVICE RowState* partial_state(const Block& block, int slot, int row) {
  return static_cast<RowState*>(block.parameters.partial_lse) + (static_cast<long long>(slot) * kBlockM + row);
}
OMNIFLASH_DEVICE Quad* partial_quad(const Block& block, int slot, int row, int quad) {
  return static_cast<Quad*>(block.parameters.partial_out) +
         ((static_cast<long long>(slot) * kBlockM + row) * kQuads + quad);
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
  // Writes the quad of the whole row, with its sink.
  OMNIFLASH_DEVICE void store(const Block& block, int row, int quad) {
    const SoftmaxResult result =
        finalize(state.offset, state.sum, sink_log2(block.parameters, block.head(row)));
#pragma unroll
    for (int e = 0; e < 4; ++e) total.values[e] *= result.scale;
    store_result(block, row, 4 * quad, total, result.lse);
  }
};

// The blocks of a cluster that join a quad.
OMNIFLASH_DEVICE int block_of(int i) { return i % kCluster; }

// Sends a quad of this block's part to the block that joins it, and the row's state to all of them.
OMNIFLASH_DEVICE void send(const Block& block, const Joined& joined, int row, int quad) {
  const int there = block_index_x() % kCluster * block.rows.num_rows + row;
  unsigned words[4];
#pragma unroll
  for (int e = 0; e < 4; ++e) words[e] = __builtin_bit_cast(unsigned, joined.total.values[e]);
  store_cluster_16(cluster_address(sent_address(there, 4 * quad), block_of(row * kQuads + quad)), words);
#pragma unroll 1
  for (int to = quad; to < kCluster; to += kQuads) {
    store_cluster_8(cluster_address(sent_address(there, kValueDim), to), __builtin_bit_cast(unsigned, joined.state.offset),
                    __builtin_bit_cast(unsigned, joined.state.sum));
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
      send(block, joined, row, quad);
    } else if (parts.count > 1) {
      *partial_quad(block, parts.mine, row, quad) = joined.total;
      if (quad == 0) *partial_state(block, parts.mine, row) = joined.state;
    } else {
      joined.store(block, row, quad);
    }
  }
}

// Whether this block is the last to finish with an item: all parts can be read then. Leaves the counter as it was.
OMNIFLASH_DEVICE bool is_last(const Block& block, const Parts& parts) {
  barrier();
  bool last = false;
  if (thread_index() == 0) {
    unsigned* counter = static_cast<unsigned*>(block.parameters.counters) + parts.counter;
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
  const Block& block;
  OMNIFLASH_DEVICE RowState state(int part, int row) const {
    return load_shared_state(sent_address(part * block.rows.num_rows + row, kValueDim));
  }
  OMNIFLASH_DEVICE Quad quad(int part, int row, int quad) const {
    return load_shared_quad(sent_address(part * block.rows.num_rows + row, 4 * quad));
  }
};

// Joins the parts of an item in their order, and writes the quads first, first + step, ... of its rows.
template <class Source>
OMNIFLASH_DEVICE void join_parts(const Block& block, int count, int first, int step, const Source& source) {
  constexpr int kAtOnce = 8;
#pragma unroll 1
  for (int i = first; i < block.rows.num_rows * kQuads; i += step) {
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
    joined.store(block, row, quad);
  }
}

// The tiles from..to of an item; in_parts() says where the parts of it lie, if they are not all.
template <class InParts>
OMNIFLASH_DEVICE void run_segment(const Block& block, int from, int to, const InParts& in_parts) {
  const int heads = block.rows.heads, group = block.parameters.group_size;
  const int key_head = heads == group ? block.head_tile : block.rows.first_head / group;
  const Keys keys(block.parameters, block.sequence, key_head);
  Tiles tiles = block.key_tiles();
  tiles.end = minimum(tiles.end, to);
  tiles.begin = minimum(maximum(tiles.begin, from), tiles.end);

  Output o = {};
  Softmax softmax;
#pragma unroll
  for (int i = 0; i < 2 * kFragments; ++i) {
    softmax[i / 2][i % 2].max = -kInfinity;
    softmax[i / 2][i % 2].sum = 0.0f;
  }
  Parts parts;
  attend(block, keys, tiles, softmax, o, [&] { parts = in_parts(); });
  if constexpr (kCluster > 1) cluster_arrive();  // others may write where this block's slices have been until now
  publish(block, softmax, o);
  if constexpr (kCluster > 1) cluster_wait();
  join_warps(block, parts);
  if constexpr (kCluster > 1) {
    cluster_arrive();
    cluster_wait();
    join_parts(block, kCluster, block_index_x() % kCluster + kCluster * thread_index(), kCluster * kThreads,
               ClusterParts{block});
  } else {
    if (parts.count > 1 && is_last(block, parts)) {
      join_parts(block, parts.count, thread_index(), kThreads, WorkspaceParts{block, parts});
    }
    barrier();  // the next segment copies over the sums
  }
}

}  // namespace omniflash

OMNIFLASH_KERNEL(omniflash::kThreads) OMNIFLASH_CLUSTER(omniflash::instance::kCluster)
omniflash_decode(OMNIFLASH_PARAMETER omniflash::AttentionParameters parameters,
                 OMNIFLASH_PARAMETER omniflash::Functors<omniflash::MaskType, omniflash::ScoreModType> functors) {
  using namespace omniflash;
  if constexpr (kCluster > 1) {
    const Sequence sequence(parameters, block_index_y());
    const Block block(parameters, functors, sequence, block_index_x() / kCluster);
    const Extent extent(block);
    if (extent.count == 0) return;
    const int run = ceil_divide(extent.count, kCluster);
    const int from = minimum(static_cast<int>(block_index_x() % kCluster) * run, extent.count);
    run_segment(block, extent.begin + from, extent.begin + minimum(from + run, extent.count), [] { return Parts{}; });
    return;
  }
  const unsigned head_tiles =
      parameters.heads_per_tile == 1 ? parameters.num_heads : parameters.num_heads / parameters.heads_per_tile;
  const bool is_line = parameters.num_workers > 0;
  // In a line the worker's run, and where the group of sequences begins; else the item and which partition of it.
  const unsigned worker = block_index_x(), cut = block_index_x(), partition = block_index_y();
  unsigned total = 0, at = 0, end = 0, origin = 0;
  Line line;
  int first = is_line ? 0 : cut / head_tiles;
#pragma unroll 1
  for (bool is_counting = is_line;;) {
    const Group group(parameters, functors, head_tiles, first, is_line ? parameters.batch - first : 1);
    if (is_counting) {
      total += group.all;
      first += 32;
      if (first < static_cast<int>(parameters.batch)) continue;
      line = Line(total, parameters.num_workers);
      if (total == 0 || worker >= line.workers) return;
      at = line.begin(worker);
      end = line.begin(worker + 1);
      is_counting = false;
      first = 0;
      if (parameters.batch > 32) continue;
    }
#pragma unroll 1
    do {
      if (is_line ? at >= origin + group.all : group.all == 0) break;
      const int lane = is_line ? first_lane(at < origin + group.until) : 0;
      const Extent extent = group.extent.of_lane(lane);
      const unsigned count = extent.count;
      unsigned head_tile, item = 0, from, to;
      if (is_line) {
        item = origin + from_lane(group.until, lane) - head_tiles * count;
        head_tile = (at - item) / count;
        item += head_tile * count;
        from = at - item;
        to = minimum(count, end - item);
      } else {
        head_tile = cut % head_tiles;
        const unsigned run = (count + parameters.num_partitions - 1) / parameters.num_partitions;
        from = minimum(partition * run, count);
        to = minimum(from + run, count);
      }
      const Block block(parameters, functors, extent.sequence, head_tile);
      run_segment(block, extent.begin + from, extent.begin + to, [&] {
        return is_line ? line.parts(worker, item, count, from, to) : partition_of(parameters, cut, partition);
      });
      at = item + to;
    } while (at < end);
    if (at >= end) return;
    origin += group.all;
    first += 32;
  }
}
