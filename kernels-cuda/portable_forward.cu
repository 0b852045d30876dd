// Attention by tiles with an online softmax (Dao 2023, "FlashAttention-2"), on mma.sync and cp.async: sm_80 and later.
//
//               keys: tiles of kBlockN that the mask does not skip, left to right
//             +---------+---------+---------+
//    rows     |         |         |  Partial|   warp 0: 16 kFragments rows     A block has kBlockM rows of one sequence
//    kBlockM  |  Full   |  Full   |   \     |   warp 1                         and key head. A row is a query and a head:
//             |         |         |     \   |   ...                            heads of a group may be interleaved.
//             +---------+---------+---------+
//                 blockIdx.y cuts the tiles of keys into partitions; combine.hpp joins their results.
//
// Threads: kWarps warps, all alike. Each owns its rows of S = Q K^T and of O in registers; all copy tiles.
// Shared memory: [ Q | K slot 0 .. kStages - 1 | V slot 0 .. kStages - 1 ], the output tile over the same from the start.
// Tiles of which all is visible have a loop of their own, in which nothing of the mask is left.
// With one slot V(n) is copied during Q K(n)^T and K(n + 1) during P V(n); with two, both of n + 1 during all of n.
//
// The instance chooses Element, Product, Keys, MaskType, ScoreModType, kHeadDim, kValueDim, kBlockM, kBlockN, kWarps,
// kStages and kVectorLoads.

#include "omniflash/keys.hpp"
#include "omniflash/masks.hpp"
#include "omniflash/schedule.hpp"
#include "fragments.hpp"
#include "instance.hpp"

namespace omniflash {

using namespace instance;

constexpr int kThreads = 32 * kWarps;
constexpr int kFragments = kBlockM / (16 * kWarps);
constexpr int kN = kBlockN / 8, kV = kValueDim / 8;
static_assert(kFragments * 16 * kWarps == kBlockM && kFragments >= 1, "a warp has whole fragments of 16 rows");
static_assert(kBlockN % 32 == 0, "masks answer for 32 keys at a time");
static_assert(kStages == 1 || kStages == 2, "one slot or two");

using RowsOfHeadDim = SharedTile<Element, kHeadDim>;
using RowsOfValueDim = SharedTile<Element, kValueDim>;
using Scores = float[kFragments][kN][4];
using Output = float[kFragments][kV][4];
using Softmax = SoftmaxRow[kFragments][2];

constexpr unsigned kQueryBytes = kBlockM * RowsOfHeadDim::kRowBytes;
constexpr unsigned kKeyBytes = kBlockN * RowsOfHeadDim::kRowBytes;
constexpr unsigned kValueBytes = kBlockN * RowsOfValueDim::kRowBytes;

OMNIFLASH_DEVICE RowsOfHeadDim query_tile() { return {shared_memory()}; }
OMNIFLASH_DEVICE RowsOfHeadDim key_tile(int slot) { return {shared_memory() + kQueryBytes + slot * kKeyBytes}; }
OMNIFLASH_DEVICE RowsOfValueDim value_tile(int slot) {
  return {shared_memory() + kQueryBytes + kStages * kKeyBytes + slot * kValueBytes};
}
OMNIFLASH_DEVICE RowsOfValueDim output_tile() { return {shared_memory()}; }

// Scores stay unscaled, and softmax_scale is folded into the exponential, where nothing looks at them in between.
constexpr bool kFoldable = is_identity<ScoreModType> && !has_add<MaskType>;

// Copies of whole rows are unrolled; element by element the code would grow too long.
constexpr int kCopyUnroll = kVectorLoads ? 8 : 1;

// Whether a warp's rows of the queries stay in registers: where they take few, each tile loads a fifth less.
constexpr bool kKeepsQueries = sizeof(Element) == 2 && kFragments * (kHeadDim / 4) <= 32;

// What one block works on.
struct Block {
  const AttentionParameters& parameters;
  const Functors<MaskType, ScoreModType>& functors;
  Sequence sequence;
  RowTile rows;
  Keys keys;
  int warp_row;     // first row of this warp in the tile
  float scale;      // of scores before mask and modification; 1 where it is folded
  float factor;     // of scores in the exponential
  bool is_folded;   // whether scores stay unscaled, or the modification scales them

  OMNIFLASH_DEVICE Block(const AttentionParameters& parameters, const Functors<MaskType, ScoreModType>& functors,
                         const Work& work)
      : parameters(parameters),
        functors(functors),
        sequence(parameters, work.batch),
        rows(parameters, work, sequence, kBlockM),
        keys(parameters, sequence, work.first_head / parameters.group_size),
        warp_row(thread_index() / 32 * 16 * kFragments) {
    // The largest score is the largest product only under a positive factor.
    const bool folded = kFoldable && parameters.softmax_scale > 0.0f;
    scale = folded ? 1.0f : parameters.softmax_scale;
    factor = folded ? parameters.softmax_scale * kLog2E : kLog2E;
    is_folded = !kFoldable || folded;
  }

  // Whether this warp has any row.
  OMNIFLASH_DEVICE bool is_active() const { return rows.first_row + warp_row < rows.num_rows; }

  // Row of an accumulator's fragment and half in the sequence; past the end, the last.
  OMNIFLASH_DEVICE int row(int fragment, int half) const {
    return minimum(rows.first_row + warp_row + 16 * fragment + 8 * half + lane_index() / 4, rows.num_rows - 1);
  }
  OMNIFLASH_DEVICE ScoreIndex index(int row) const {
    const int query = rows.query(row);
    return ScoreIndex{sequence.batch, rows.head(row), query, sequence.start + query, 0};
  }

  // Steps through rows, which are interleaved heads of queries.
  struct QueryWalker {
    const Block& block;
    int row;
    OMNIFLASH_DEVICE void advance(int rows) { row += rows; }
    OMNIFLASH_DEVICE const Element* at(bool valid) const {
      const int i = valid ? row : block.rows.first_row;
      return block.sequence.template row<const Element>(block.parameters.q, is_ragged(block.parameters),
                                                        block.rows.query(i), block.rows.head(i));
    }
  };
  OMNIFLASH_DEVICE void copy_queries() const {
    const int num_valid = rows.num_rows - rows.first_row;
    if (kVectorLoads && rows.heads == 1 && num_valid >= kBlockM) {
      fill_whole_tile<kThreads, kBlockM>(query_tile(), parameters.head_dim,
                                         sequence.template row<const Element>(parameters.q, is_ragged(parameters),
                                                                              rows.first_row, rows.first_head),
                                         parameters.q.row_stride);
    } else {
      fill_tile<kThreads, kBlockM, kVectorLoads, 1>(query_tile(), parameters.head_dim, num_valid,
                                                    QueryWalker{*this, rows.first_row});
    }
  }
  // Keys past the end become zeros: whatever lies there, it is not read.
  OMNIFLASH_DEVICE void copy_keys(int tile, int slot) const {
    copy(key_tile(slot), parameters.head_dim, keys.template keys_from<Element>(tile * kBlockN), tile);
  }
  OMNIFLASH_DEVICE void copy_values(int tile, int slot) const {
    copy(value_tile(slot), parameters.value_dim, keys.template values_from<Element>(tile * kBlockN), tile);
  }
  template <class Tile, class Walker>
  OMNIFLASH_DEVICE void copy(const Tile& to, int columns, const Walker& from, int tile) const {
    const int num_valid = sequence.kv_len - tile * kBlockN;
    if constexpr (kVectorLoads && Keys::kOneStride) {
      if (num_valid >= kBlockN) {
        fill_whole_tile<kThreads, kBlockN>(to, columns, from.vector, from.stride);
      } else {
        fill_tile<kThreads, kBlockN, kVectorLoads, 1>(to, columns, num_valid, from);
      }
    } else {
      fill_tile<kThreads, kBlockN, kVectorLoads, kCopyUnroll>(to, columns, num_valid, from);
    }
  }
};

// ---- scores; templates, because only products of 16 bits keep queries

template <class Product, class Queries>
OMNIFLASH_DEVICE void keep_queries(Queries& queries, int first_row) {
  if constexpr (kKeepsQueries) Product::load_queries(queries, query_tile(), first_row);
}

template <class Product, class Queries>
OMNIFLASH_DEVICE void add_scores(Scores& s, const Queries& queries, int first_row, int slot) {
  if constexpr (kKeepsQueries) {
    Product::scores(s, queries, key_tile(slot));
  } else {
    Product::scores(s, query_tile(), first_row, key_tile(slot));
  }
}

// ---- results

// Rounds the tile's rows, turns them in shared memory and writes whole chunks.
OMNIFLASH_DEVICE void store_output(const Block& block, const Output& o) {
  const RowsOfValueDim out = output_tile();
  barrier();  // the tile lies over those of the loop
#pragma unroll
  for (int m = 0; m < kFragments; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = block.warp_row + 16 * m + 8 * half + lane_index() / 4;
#pragma unroll
      for (int n = 0; n < kV; ++n) {
        const unsigned to = out.element(row, 8 * n + lane_index() % 4 * 2);
        const float low = o[m][n][2 * half], high = o[m][n][2 * half + 1];
        store_pair<Element>(to, low, high);
      }
    }
  }
  barrier();
  struct alignas(16) Chunk {
    unsigned words[4];
  };
  constexpr int kElements = RowsOfValueDim::kChunkElements, kChunks = RowsOfValueDim::kChunks;
  const bool ragged = is_ragged(block.parameters);
  const int columns = block.parameters.value_dim;
  if (kVectorLoads && kThreads % kChunks == 0 && block.rows.heads == 1) {
    // Rows of one stride: a thread keeps its column of chunks.
    constexpr int kStep = kThreads / kChunks;
    const int first = thread_index() / kChunks, chunk = thread_index() % kChunks;
    const int num_rows = block.rows.num_rows - block.rows.first_row;
    if (chunk * kElements >= columns) return;
    const long long stride = block.parameters.out.row_stride;
    Element* to = block.sequence.row<Element>(block.parameters.out, ragged, block.rows.first_row, block.rows.first_head) +
                  first * stride + chunk * kElements;
#pragma unroll 4
    for (int row = first; row < kBlockM; row += kStep, to += kStep * stride) {
      Chunk words;
      load_shared_16(words.words, out.chunk(row, chunk));
      if (row < num_rows) *reinterpret_cast<Chunk*>(to) = words;
    }
    return;
  }
#pragma unroll 1
  for (int i = thread_index(); i < kBlockM * kChunks; i += kThreads) {
    const int row = block.rows.first_row + i / kChunks, column = i % kChunks * kElements;
    if (row >= block.rows.num_rows || column >= columns) continue;
    Element* to = block.sequence.row<Element>(block.parameters.out, ragged, block.rows.query(row), block.rows.head(row)) +
                  column;
    Chunk chunk;
    load_shared_16(chunk.words, out.chunk(i / kChunks, i % kChunks));
    if constexpr (kVectorLoads) {
      *reinterpret_cast<Chunk*>(to) = chunk;
    } else {
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        if (column + e < columns) to[e] = element_of<Element>(chunk.words, e);
      }
    }
  }
}

// Writes a partition's part in f32; combine.hpp does not read rows whose lse is -inf.
OMNIFLASH_DEVICE void store_partial_row(const Block& block, int row, const float lse, const float (&o)[kV][4], int half) {
  const long long at = block_index_y() * block.parameters.total_q * block.parameters.num_heads +
                       block.sequence.workspace_row(block.parameters, block.rows.query(row), block.rows.head(row));
  if (lane_index() % 4 == 0) static_cast<float*>(block.parameters.partial_lse)[at] = lse;
  if (lse == -kInfinity) return;
  float* out = static_cast<float*>(block.parameters.partial_out) + at * block.parameters.value_dim;
#pragma unroll
  for (int n = 0; n < kV; ++n) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int column = 8 * n + lane_index() % 4 * 2 + i;
      if (column < static_cast<int>(block.parameters.value_dim)) out[column] = o[n][2 * half + i];
    }
  }
}

OMNIFLASH_DEVICE void store(const Block& block, Softmax& softmax, Output& o) {
  const bool partitioned = block.parameters.num_partitions > 1;
  const bool wants_lse = static_cast<LseForm>(block.parameters.lse_form) == LseForm::Written;
#pragma unroll
  for (int m = 0; m < kFragments; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int in_tile = block.warp_row + 16 * m + 8 * half + lane_index() / 4;
      const bool valid = block.rows.first_row + in_tile < block.rows.num_rows;
      const int row = block.row(m, half), head = block.rows.head(row);
      // A sink counts once: where the sequence is cut, in combine.hpp.
      const float sink = partitioned ? -kInfinity : sink_log2(block.parameters, head);
      const SoftmaxRow& state = softmax[m][half];
      const SoftmaxResult result = finalize(state.offset(block.factor), quad_sum(state.sum), sink);
#pragma unroll
      for (int n = 0; n < kV; ++n) {
        o[m][n][2 * half] *= result.scale;
        o[m][n][2 * half + 1] *= result.scale;
      }
      if (!valid) continue;
      if (partitioned) {
        store_partial_row(block, row, result.lse, o[m], half);
      } else if (wants_lse && lane_index() % 4 == 0) {
        *block.sequence.row<float>(block.parameters.lse, is_ragged(block.parameters), block.rows.query(row), head) =
            result.lse;
      }
    }
  }
  if (!partitioned) store_output(block, o);
}

}  // namespace omniflash

OMNIFLASH_KERNEL(omniflash::kThreads)
omniflash_forward(OMNIFLASH_PARAMETER omniflash::AttentionParameters parameters,
                  OMNIFLASH_PARAMETER omniflash::Functors<omniflash::MaskType, omniflash::ScoreModType> functors) {
  using namespace omniflash;
  const Block block(parameters, functors, work_of_block(parameters, block_index_x()));
  if (block.rows.is_empty() || block.sequence.q_len < static_cast<int>(parameters.least_q_len)) return;

  KeyTiles<MaskType> tiles(functors.mask, block.sequence, block.rows, kBlockM, kBlockN);
  tiles.take_partition(block_index_y(), parameters.num_partitions);
  TileStatus status, next_status;
  int tile = tiles.next(tiles.begin, status);

  Output o = {};
  // Member by member: with the default constructor alone, rows of the second half came out as if max had begun at 0
  // (NVRTC on an H200; seen in results, not traced in the machine code).
  Softmax softmax;
#pragma unroll
  for (int i = 0; i < 2 * kFragments; ++i) {
    softmax[i / 2][i % 2].max = -kInfinity;
    softmax[i / 2][i % 2].sum = 0.0f;
  }
  const bool active = block.is_active();
  if (tile < tiles.end) {
    block.copy_queries();
    block.copy_keys(tile, 0);
    if constexpr (kStages == 2) block.copy_values(tile, 0);
    copy_commit();
  }
  unsigned queries[kFragments][kKeepsQueries ? kHeadDim / 16 : 1][4];
  if (kKeepsQueries && tile < tiles.end) {
    copy_wait<0>();
    barrier();
    keep_queries<Product>(queries, block.warp_row);
  }
  for (int slot = 0; tile < tiles.end;) {
    // Most tiles: all scores are visible, and nothing is asked. Warps without rows compute on zeros.
    while (!hides_by_score<ScoreModType> && tile < tiles.end && status == TileStatus::Full && block.is_folded &&
           (tile + 1) * kBlockN <= block.sequence.kv_len) {
      const int next = tiles.next(tile + 1, next_status);
      copy_wait<0>();
      barrier();  // this tile has landed, and all warps have left the slots of the last one
      if constexpr (kStages == 1) {
        block.copy_values(tile, 0);
      } else if (next < tiles.end) {
        block.copy_keys(next, 1 - slot);
        block.copy_values(next, 1 - slot);
      }
      copy_commit();
      Scores s = {};
      add_scores<Product>(s, queries, block.warp_row, slot);
      if constexpr (kStages == 1) {
        copy_wait<0>();
        barrier();  // the values have landed, and all warps have left the keys
        if (next < tiles.end) block.copy_keys(next, 0);
        copy_commit();
      }
      if constexpr (!kFoldable) modify(block, tile * kBlockN, s);
      online_softmax(block.factor, softmax, s, o);
      Product::values(o, s, value_tile(slot));
      tile = next;
      status = next_status;
      slot = (slot + 1) % kStages;
    }
    if (tile >= tiles.end) break;

    // The others: at the mask's border, at the end of the keys, or with a scale or scores that may hide.
    const int next = tiles.next(tile + 1, next_status);
    const bool touched = status != TileStatus::Full;
    const bool hides = touched || hides_by_score<ScoreModType>;

    copy_wait<0>();
    barrier();
    if constexpr (kStages == 1) {
      block.copy_values(tile, 0);
    } else if (next < tiles.end) {
      block.copy_keys(next, 1 - slot);
      block.copy_values(next, 1 - slot);
    }
    copy_commit();

    Scores s = {};
    if (active) add_scores<Product>(s, queries, block.warp_row, slot);
    if constexpr (kStages == 1) {
      copy_wait<0>();
      barrier();
      if (next < tiles.end) block.copy_keys(next, 0);
      copy_commit();
    }
    if (active) {
      modify(block, tile * kBlockN, s);
      if (touched || (tile + 1) * kBlockN > block.sequence.kv_len) hide(block, functors.mask, tile * kBlockN, touched, s);
      online_softmax(block.factor, softmax, s, o);
    }
    if (hides && barrier_any(has_non_finite<kThreads, kBlockN>(value_tile(slot)))) {
      if (active) add_non_finite(value_tile(slot), s, o);
      barrier();
      clear_non_finite<kThreads, kBlockN>(value_tile(slot));
      barrier();
    }
    if (active) Product::values(o, s, value_tile(slot));
    tile = next;
    status = next_status;
    slot = (slot + 1) % kStages;
  }
  // Made again, so that the loop's registers need not hold what only results need.
  store(Block(parameters, functors, work_of_block(parameters, opaque(block_index_x()))), softmax, o);
}
