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
// Threads: kWarps warps, all alike. Each owns its rows of S = Q K^T and of O in registers, or with the warp at its side 32 rows
// of which each has half of S and half of O; all copy tiles.
// Shared memory: [ Q | K slot 0 .. kStages - 1 | V slot 0 .. kStages - 1 | exchange ], the output tile over the same from the
// start.
// Tiles of which all is visible have a loop of their own, in which nothing of the mask is left.
// With one slot V(n) is copied during Q K(n)^T and K(n + 1) during P V(n); with two, both of n + 1 during all of n. Copies of
// whole tiles are issued between the steps of Q K(n)^T.
// Hidden values that are not finite make sums that are not (0 times Inf is NaN): a warp whose sums come out so sums its
// rows again by the definition.
//
// The instance chooses Element, Product, Keys, MaskType, ScoreModType, kHeadDim, kValueDim, kBlockM, kBlockN, kWarps,
// kWarpsAcross, kStages and kVectorLoads.

#include "omniflash/keys.hpp"
#include "omniflash/masks.hpp"
#include "omniflash/schedule.hpp"
#include "fragments.hpp"
#include "instance.hpp"

namespace omniflash {

using namespace instance;

constexpr int kThreads = 32 * kWarps;
constexpr int kFragments = kBlockM / (16 * kWarps / kWarpsAcross);
constexpr int kN = kBlockN / kWarpsAcross / 8, kV = kValueDim / kWarpsAcross / 8;
static_assert(kFragments * 16 * kWarps == kBlockM * kWarpsAcross && kFragments >= 1, "a warp has whole fragments of 16 rows");
static_assert(kWarpsAcross == 1 || (kWarpsAcross == 2 && kStages == 1 && sizeof(Element) == 2 && kV % 8 == 0),
              "two warps side by side split rows of whole permutations");
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
OMNIFLASH_DEVICE unsigned exchange_area() { return shared_memory() + kQueryBytes + kStages * (kKeyBytes + kValueBytes); }

// Scores stay unscaled, and softmax_scale is folded into the exponential, where nothing looks at them in between.
constexpr bool kFoldable = is_identity<ScoreModType> && !has_add<MaskType>;

// Copies of pages' rows are unrolled; element by element, or of the last tile alone, the code would grow too long.
constexpr int kCopyUnroll = kVectorLoads && !Keys::kOneStride ? 8 : 1;

// Whether a warp's rows of the queries stay in registers: where they take few, each tile loads a fifth less.
constexpr bool kKeepsQueries = sizeof(Element) == 2 && kFragments * (kHeadDim / 4) <= 32;

// Whether any key before a sequence's end can be hidden.
constexpr bool kHides = !hides_nothing<MaskType> || hides_by_score<ScoreModType>;

// Whether a warp asks what the mask does to its own rows of a tile: where it has half of the block's or all, that takes more
// than it saves.
constexpr bool kAsksForOwnRows = kWarps / kWarpsAcross > 2 && !status_reads<MaskType>;

// Whether the lanes of a warp find its rows of a tile in their pages, each one row, and tell each other: neighbouring lanes copy
// one row, and would else all look it up. A warp has whole rows of every step.
constexpr int kRowsOfWarp = kBlockN / kWarps;
template <class Tile>
constexpr bool kHasWholeSteps = kBlockN % TileFiller<kThreads, kBlockN, Tile>::kStep == 0;
constexpr bool kLooksUpRows =
    !Keys::kOneStride && kRowsOfWarp <= 32 && kHasWholeSteps<RowsOfHeadDim> && kHasWholeSteps<RowsOfValueDim>;

// Whether tiles of keys of which none is missing are copied by constant steps.
constexpr bool kCopiesWholeTiles = kVectorLoads && (Keys::kOneStride || kLooksUpRows);

// What one block works on.
struct Block {
  const AttentionParameters& parameters;
  const Functors<MaskType, ScoreModType>& functors;
  Sequence sequence;
  RowTile rows;
  Keys keys;
  int warp_row;     // first row of this warp in the tile
  int place;        // of this warp among those that share its rows
  float scale;      // of scores before mask and modification; 1 where it is folded
  float factor;     // of scores in the exponential
  bool is_folded;   // whether scores stay unscaled, or the modification scales them

  OMNIFLASH_DEVICE Block(const AttentionParameters& parameters, const Functors<MaskType, ScoreModType>& functors,
                         const Work& work)
      : parameters(parameters),
        functors(functors),
        sequence(parameters, work.batch),
        rows(parameters, work, sequence, kBlockM),
        keys(parameters, sequence, quotient(work.first_head, parameters.by_group_size)),
        warp_row(thread_index() / (32 * kWarpsAcross) * 16 * kFragments),
        place(kWarpsAcross == 1 ? 0 : thread_index() / 32 % kWarpsAcross) {
    // The largest score is the largest product only under a positive factor.
    const bool folded = kFoldable && parameters.softmax_scale > 0.0f;
    scale = folded ? 1.0f : parameters.softmax_scale;
    factor = folded ? parameters.softmax_scale * kLog2E : kLog2E;
    is_folded = !kFoldable || folded;
  }

  // Where in a tile this warp's part of the keys and of the outputs' columns begins.
  OMNIFLASH_DEVICE int first_key() const { return place * 8 * kN; }
  OMNIFLASH_DEVICE int first_column() const { return place * 8 * kV; }

  // Whether this warp has any row.
  OMNIFLASH_DEVICE bool is_active() const { return rows.first_row + warp_row < rows.num_rows; }

  // What the mask does to a tile for the rows of this warp, of which there is one.
  OMNIFLASH_DEVICE TileStatus status_of_warp(int tile) const {
    RowTile own = rows;
    own.first_row += warp_row;
    return KeyTiles<MaskType>(functors.mask, sequence, own, 16 * kFragments, kBlockN).status(tile);
  }

  // Row of an accumulator's fragment and half in the sequence; past the end, where there is none, the last.
  OMNIFLASH_DEVICE bool is_row(int fragment, int half) const {
    return rows.first_row + warp_row + 16 * fragment + 8 * half + lane_index() / 4 < rows.num_rows;
  }
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
};

// ---- copies of whole tiles
//
// What stands before a product delays it: copies there cost the latency of their addresses, one behind the other. Between
// the steps of a product they cost their issue alone.

// Whether the output takes half of the register file: addresses that stay are then for the inner loop alone.
constexpr bool kIsCrowded = kFragments * kV >= 32;

// Whether the scores of one tile carry the copies of the next.
constexpr bool kCarriesCopies = kStages == 1 || kHides || !kIsCrowded;

// A thread's copies of whole tiles of keys or of values, in passes. What a pass needs to know of a tile is its cursor.
template <class Tile, class Walker>
struct Copies;

template <class Tile>
struct Copies<Tile, StridedKeys::Walker<Element>> {
  using Filler = TileFiller<kThreads, kBlockN, Tile>;
  using Cursor = const Element*;  // of the next pass
  static constexpr int kPasses = Filler::kPasses;
  Filler filler;
  const Element* first;  // of the first pass in tile 0
  long long stride;

  OMNIFLASH_DEVICE Copies(int thread, int columns, const StridedKeys::Walker<Element>& from)
      : filler(thread, columns), first(filler.first_chunk(from.vector, from.stride)), stride(from.stride) {}

  OMNIFLASH_DEVICE Cursor of_tile(int tile) const { return first + static_cast<long long>(tile * kBlockN) * stride; }
  // A pass, the next one after `from`.
  OMNIFLASH_DEVICE void copy(const Tile& to, int pass, Cursor& from) const { filler.copy(to, pass, from, stride); }
  OMNIFLASH_DEVICE void copy_to(unsigned first, int pass, Cursor& from, bool is_there) const {
    filler.copy_to(first, pass, from, stride, is_there);
  }
};

template <class Tile>
struct Copies<Tile, PagedKeys::Walker<Element>> {
  using Filler = TileFiller<kThreads, kBlockN, Tile>;
  using Cursor = long long;  // where the row of a warp's that this lane has looked up begins, in elements
  static constexpr int kPasses = Filler::kPasses, kRowsOfStep = 32 / Filler::kBand;  // of a warp
  Filler filler;
  PagedKeys::Walker<Element> rows;

  OMNIFLASH_DEVICE Copies(int thread, int columns, const PagedKeys::Walker<Element>& rows) : filler(thread, columns), rows(rows) {}

  OMNIFLASH_DEVICE Cursor of_tile(int tile) const {
    const int mine = lane_index() % kRowsOfWarp, warp = thread_index() / 32;
    const int row = mine / kRowsOfStep * Filler::kStep + warp * kRowsOfStep + mine % kRowsOfStep;
    return rows.offset_of(tile * kBlockN + row);
  }
  OMNIFLASH_DEVICE void copy(const Tile& to, int pass, const Cursor& from) const {
    copy_to(to.address + filler.offset, pass, from, true);
  }
  OMNIFLASH_DEVICE void copy_to(unsigned first, int pass, const Cursor& from, bool is_there) const {
    const int lane = pass / Filler::kBands * kRowsOfStep + lane_index() / Filler::kBand;
    const unsigned low = from_lane(static_cast<unsigned>(from), lane), high = from_lane(static_cast<unsigned>(from >> 32), lane);
    const Element* row = rows.base + (static_cast<long long>(high) << 32 | low) + filler.column;
    filler.copy_to(first, pass, row, 0, is_there);
  }
};

struct TileCopies {
  const Block& block;
  Copies<RowsOfHeadDim, Keys::Walker<Element>> keys;
  Copies<RowsOfValueDim, Keys::Walker<Element>> values;

  OMNIFLASH_DEVICE TileCopies(const Block& block, int thread)
      : block(block),
        keys(thread, block.parameters.head_dim, block.keys.template keys_from<Element>(0)),
        values(thread, block.parameters.value_dim, block.keys.template values_from<Element>(0)) {}

  // Any tile. Keys past the end become zeros: whatever lies there, it is not read.
  OMNIFLASH_DEVICE void copy_keys(int tile, int slot) const {
    if (is_whole(tile)) return copy_whole_keys(tile, slot);
    fill_tile<kThreads, kBlockN, kVectorLoads, kCopyUnroll>(key_tile(slot), block.parameters.head_dim, num_valid(tile),
                                                            block.keys.template keys_from<Element>(tile * kBlockN));
  }
  OMNIFLASH_DEVICE void copy_values(int tile, int slot) const {
    if (is_whole(tile)) return copy_whole_values(tile, slot);
    fill_tile<kThreads, kBlockN, kVectorLoads, kCopyUnroll>(value_tile(slot), block.parameters.value_dim, num_valid(tile),
                                                            block.keys.template values_from<Element>(tile * kBlockN));
  }
  // What is there before the first scores.
  OMNIFLASH_DEVICE void copy_first(int tile) const {
    copy_keys(tile, 0);
    if constexpr (kStages == 2) copy_values(tile, 0);
    copy_commit();
  }
  // What is copied beside the scores of a tile.
  OMNIFLASH_DEVICE void copy_beside(int tile, int next, bool has_next, int slot) const {
    if constexpr (kStages == 1) {
      copy_values(tile, 0);
    } else if (has_next) {
      copy_keys(next, 1 - slot);
      copy_values(next, 1 - slot);
    }
    copy_commit();
  }

  OMNIFLASH_DEVICE int num_valid(int tile) const { return block.sequence.kv_len - tile * kBlockN; }
  OMNIFLASH_DEVICE bool is_whole(int tile) const { return kCopiesWholeTiles && num_valid(tile) >= kBlockN; }

  OMNIFLASH_DEVICE void copy_whole_keys(int tile, int slot) const {
    auto from = keys.of_tile(tile);
#pragma unroll
    for (int pass = 0; pass < keys.kPasses; ++pass) keys.copy(key_tile(slot), pass, from);
  }
  OMNIFLASH_DEVICE void copy_whole_values(int tile, int slot) const {
    auto from = values.of_tile(tile);
#pragma unroll
    for (int pass = 0; pass < values.kPasses; ++pass) values.copy(value_tile(slot), pass, from);
  }
};

// What the steps of a tile's scores carry: with two slots the keys and then the values of the next tile, evenly; with one
// the tile's own values, in the first eighth of the steps, for they are waited for right after the scores.
struct ScoreCargo {
  // Copies between matrix loads cost three instructions of nothing each time, as ptxas compiles them: they go out in bursts.
  static constexpr int kStepsOfBurst = kStages == 2 ? 2 : 1;

  const TileCopies& copies;
  mutable decltype(TileCopies::keys)::Cursor keys;
  mutable decltype(TileCopies::values)::Cursor values;
  // Where this thread's first chunks go: opaque, so that all others lie at constants from there and none is found anew.
  unsigned to_keys, to_values;
  bool has_next;

  // Where no tile is next, slots are filled with zeros, which nobody reads: all copies are alike then, and none is skipped.
  OMNIFLASH_DEVICE ScoreCargo(const TileCopies& copies, int tile, int next, bool has_next, int slot)
      : copies(copies), has_next(has_next) {
    const int from = kStages == 2 && has_next ? next : tile, to = kStages == 2 ? 1 - slot : 0;
    keys = copies.keys.of_tile(from);
    values = copies.values.of_tile(from);
    if constexpr (kStages == 2) to_keys = opaque(key_tile(to).address + copies.keys.filler.offset);
    if constexpr (kStages == 2 && kHeadDim == kValueDim) {
      to_values = to_keys + kStages * kKeyBytes;
    } else {
      // Of pairs of warps left to the compiler, which has two instructions less so.
      const unsigned values_to = value_tile(to).address + copies.values.filler.offset;
      to_values = kWarpsAcross == 1 ? opaque(values_to) : values_to;
    }
  }

  OMNIFLASH_DEVICE void operator()(int step, int steps) const {
    constexpr int kKeyPasses = kStages == 2 ? decltype(copies.keys)::kPasses : 0;
    constexpr int kPasses = kKeyPasses + decltype(copies.values)::kPasses, kHaste = kStages == 2 ? 1 : 8;
    if (step % kStepsOfBurst != 0) return;
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      if (pass < kHaste * step * kPasses / steps || pass >= kHaste * (step + kStepsOfBurst) * kPasses / steps) continue;
      if (pass < kKeyPasses) {
        copies.keys.copy_to(to_keys, pass, keys, has_next);
      } else {
        copies.values.copy_to(to_values, pass - kKeyPasses, values, kStages == 1 || has_next);
      }
    }
  }
};

// The tiles of keys that the mask does not skip, one after the other. Where a status reads memory, each lane of the warp asks
// for one of 32 tiles.
struct TileWalk {
  KeyTiles<MaskType> tiles;
  int first = -64;  // of the tiles asked for last
  TileStatus own = TileStatus::Skip;  // of tile first + lane

  OMNIFLASH_DEVICE TileWalk(const Block& block)
      : tiles(block.functors.mask, block.sequence, block.rows, kBlockM, kBlockN) {
    tiles.take_partition(block.parameters, block_index_y());
  }
  OMNIFLASH_DEVICE int end() const { return tiles.end; }

  // As KeyTiles::next.
  OMNIFLASH_DEVICE int next(int tile, TileStatus& status) {
    if constexpr (!status_reads<MaskType>) {
      return tiles.next(tile, status);
    } else {
      while (tile < tiles.end) {
        if (static_cast<unsigned>(tile - first) >= 32) {
          first = tile;
          own = first + lane_index() < tiles.end ? tiles.status(first + lane_index()) : TileStatus::Skip;
        }
        const bool is_next = first + lane_index() >= tile && own != TileStatus::Skip;
        if (warp_any(is_next)) {
          const int lane = first_lane(is_next);
          status = static_cast<TileStatus>(from_lane(static_cast<unsigned>(own), lane));
          return first + lane;
        }
        tile = first + 32;
      }
      return tiles.end;
    }
  }
};

// ---- what the next block begins with

// Whether a block asks for the queries of the one that takes its place. Measured to gain at head_dim 256 without a mask alone:
// up to 192 it gains nothing, and with two slots or a mask, in other registers, it loses.
constexpr bool kPrefetchesQueries =
    sizeof(Element) == 2 && kHeadDim > 192 && kStages == 1 && hides_nothing<MaskType>;

// Brings the queries of the block that follows this one on its multiprocessor into the second-level cache. Blocks follow one
// another at a distance of all that are at work: registers allow 256 threads on each multiprocessor.
OMNIFLASH_DEVICE void prefetch_next_queries(const AttentionParameters& parameters) {
  constexpr int kLineElements = 128 / sizeof(Element), kLines = ceil_divide(kHeadDim, kLineElements);
  const unsigned next = block_index_x() + num_multiprocessors() * ceil_divide(256, kThreads);
  if (next >= parameters.num_pairs * parameters.num_row_tiles) return;
  const Work work = work_of_block(parameters, next);
  const Sequence sequence(parameters, work.batch);
  const RowTile rows(parameters, work, sequence, kBlockM);
  const int num_lines = minimum(kBlockM, rows.num_rows - rows.first_row) * kLines;
  for (int i = thread_index(); i < num_lines; i += kThreads) {
    const int row = rows.first_row + i / kLines;
    prefetch_line(sequence.template row<const Element>(parameters.q, is_ragged(parameters), rows.query(row), rows.head(row)) +
                  minimum(i % kLines * kLineElements, static_cast<int>(parameters.head_dim) - 1));
  }
}

// ---- scores; templates, because only products of 16 bits keep queries

template <class Product, class Queries>
OMNIFLASH_DEVICE void keep_queries(Queries& queries, int first_row) {
  if constexpr (kKeepsQueries) Product::load_queries(queries, query_tile(), first_row);
}

template <class Product, class Queries, class Cargo = NoCargo>
OMNIFLASH_DEVICE void add_scores(const Block& block, Scores& s, const Queries& queries, int slot, const Cargo& cargo = {}) {
  const RowsOfHeadDim keys{key_tile(slot).address + block.first_key() * RowsOfHeadDim::kRowBytes};
  if constexpr (kKeepsQueries) {
    Product::scores(s, queries, keys, cargo);
  } else if constexpr (Product::kTakesCargo) {
    Product::scores(s, query_tile(), block.warp_row, keys, cargo);
  } else {
    cargo(0, 1);
    Product::scores(s, query_tile(), block.warp_row, keys);
  }
}

// What becomes of the scores of a tile at a mask's border, or that not all keys are in.
OMNIFLASH_DEVICE void modify_and_hide(const Block& block, int tile, bool asks, bool ends, Scores& s) {
  const int first_key = tile * kBlockN + block.first_key();
  modify(block, first_key, s);
  if (asks || ends) hide(block, block.functors.mask, first_key, asks, s);
}

// ---- warps side by side
//
// Where rows are wide, a tile's products read shared memory for longer than they multiply: a warp of 16 rows reads all keys
// and values. Two warps then share 32 rows, and each reads half:
//
//                S = Q K^T                 O += P V
//            +--------+--------+      +--------+--------+
//   32 rows  | warp 0 | warp 1 |      | warp 0 | warp 1 |     Of P each gets the other's half through the exchange area:
//            +--------+--------+      +--------+--------+     [ a warp's A operands, .. | a number for each row of a warp, .. ]
//                   keys                   columns
//
// The two must agree on their rows' offsets: whether any has to be raised is asked at the barrier at which all leave the keys.

using Weights = unsigned[kFragments][kN / 2][4];

constexpr unsigned kWeightBytes = sizeof(Weights) * 32;

// The barrier of the two warps of the same rows; number 0 is that of all.
OMNIFLASH_DEVICE void pair_barrier() { named_barrier(1 + thread_index() / 64, 64); }

// Gives a number of each row to the warp at one's side, and gets its. Between two calls both pass a barrier.
OMNIFLASH_DEVICE void exchange(float (&of_rows)[kFragments][2]) {
  constexpr unsigned kBytes = 4 * 16 * kFragments;  // of a warp's rows
  const int warp = thread_index() / 32;
  const unsigned numbers = exchange_area() + kWarps * kWeightBytes + lane_index() / 4 * 4;
#pragma unroll
  for (int i = 0; i < 2 * kFragments; ++i) {
    const unsigned bits = __builtin_bit_cast(unsigned, of_rows[i / 2][i % 2]);
    if (lane_index() % 4 == 0) store_shared_4(numbers + warp * kBytes + 8 * 4 * i, bits);
  }
  pair_barrier();
#pragma unroll
  for (int i = 0; i < 2 * kFragments; ++i) {
    of_rows[i / 2][i % 2] = __builtin_bit_cast(float, load_shared_4(numbers + (warp ^ 1) * kBytes + 8 * 4 * i));
  }
}

// The largest scores of a tile's rows, and what they ask for.
struct Maxima {
  float largest[kFragments][2];
  bool passes = false;  // whether an offset must be raised

  OMNIFLASH_DEVICE void find(const Block& block, const Softmax& softmax, const Scores& s) {
    passes = find_largest(block.factor, softmax, s, largest);
  }
  // The barrier at which all warps leave the keys.
  OMNIFLASH_DEVICE void meet() {
    if constexpr (kWarpsAcross == 1) {
      barrier();
    } else {
      passes = barrier_any(passes);
    }
  }
  OMNIFLASH_DEVICE void make_weights(const Block& block, Softmax& softmax, Scores& s, Output& o) {
    if constexpr (kWarpsAcross == 1) {
      online_softmax(block.factor, softmax, s, o);
    } else {
      if (passes) {
        float beside[kFragments][2];
#pragma unroll
        for (int i = 0; i < 2 * kFragments; ++i) beside[i / 2][i % 2] = quad_max(largest[i / 2][i % 2]);
        exchange(beside);
#pragma unroll
        for (int i = 0; i < 2 * kFragments; ++i) {
          largest[i / 2][i % 2] = maximum(largest[i / 2][i % 2], beside[i / 2][i % 2]);
        }
        raise(block.factor, softmax, largest, o);
      }
      weigh(block.factor, softmax, s);
    }
  }
};

// Output += weights times values, over all keys of the tile: first over one's own, while the others' weights are on their way.
template <class Product>
OMNIFLASH_DEVICE void add_values(const Block& block, Output& o, const Scores& s, int slot) {
  if constexpr (kWarpsAcross == 1) {
    Product::values(o, s, value_tile(slot));
  } else {
    constexpr int kSteps = kN / 2;
    constexpr unsigned kHalf = 8 * kN * RowsOfValueDim::kRowBytes;
    const unsigned columns = value_tile(slot).address + block.first_column() * sizeof(Element);
    const unsigned operands = exchange_area() + 16 * lane_index(), warp = thread_index() / 32;
    Weights weights;
#pragma unroll
    for (int i = 0; i < kFragments * kSteps; ++i) {
      unsigned(&operand)[4] = weights[i / kSteps][i % kSteps];
      Product::operand(operand, s[i / kSteps], i % kSteps);
      store_shared_16(operands + warp * kWeightBytes + 512 * i, operand);
    }
    Product::values(o, weights, RowsOfValueDim{columns + block.place * kHalf});
    pair_barrier();
#pragma unroll
    for (int i = 0; i < kFragments * kSteps; ++i) {
      load_shared_16(weights[i / kSteps][i % kSteps], operands + (warp ^ 1) * kWeightBytes + 512 * i);
    }
    Product::values(o, weights, RowsOfValueDim{columns + (1 - block.place) * kHalf});
  }
}

// Sums of weights over the keys of both warps: one lane of a row adds what is beside.
OMNIFLASH_DEVICE void add_sums_beside(Softmax& softmax) {
  float beside[kFragments][2];
#pragma unroll
  for (int i = 0; i < 2 * kFragments; ++i) beside[i / 2][i % 2] = quad_sum(softmax[i / 2][i % 2].sum);
  exchange(beside);
#pragma unroll
  for (int i = 0; i < 2 * kFragments; ++i) {
    if (lane_index() % 4 == 0) softmax[i / 2][i % 2].sum += beside[i / 2][i % 2];
  }
}

// ---- hidden values that are not finite

// Whether a sum is not finite: a hidden value that is not, times weight 0, or what the row does see.
OMNIFLASH_DEVICE bool has_non_finite(const Output& o) {
  float zero[4] = {};
#pragma unroll
  for (int i = 0; i < kFragments * kV * 4; ++i) {
    zero[i % 4] = fused_multiply_add(o[i / (kV * 4)][i / 4 % kV][i % 4], 0.0f, zero[i % 4]);
  }
  const float sum = zero[0] + zero[1] + (zero[2] + zero[3]);
  return !(sum == 0.0f);
}

// What a finished row is made of: its weights' offset, what its sums are multiplied by, and its lse.
struct FinishedRow {
  float offset, scale, lse;
};
using FinishedRows = FinishedRow[kFragments][2];

// Where a partition's part of a row lies, in f32.
OMNIFLASH_DEVICE long long row_of_partition(const Block& block, int row) {
  return block_index_y() * block.parameters.total_q * block.parameters.num_heads +
         block.sequence.workspace_row(block.parameters, block.rows.query(row), block.rows.head(row));
}
OMNIFLASH_DEVICE float* part_of_row(const Block& block, int row) {
  return static_cast<float*>(block.parameters.partial_out) + row_of_partition(block, row) * block.parameters.value_dim;
}

// Writes two neighbours of a part, where the row has so many columns left. Rows that are not aligned may have an odd number.
OMNIFLASH_DEVICE void store_sums(float* to, int columns_left, float low, float high) {
  struct alignas(8) Pair {
    float low, high;
  };
  if (columns_left <= 0) return;
  if constexpr (kVectorLoads) {
    *reinterpret_cast<Pair*>(to) = Pair{low, high};
  } else {
    to[0] = low;
    if (columns_left > 1) to[1] = high;
  }
}

// The rows of a warp by the definition, which leaves hidden values out, in place of sums that met one. Offsets and sums of
// weights are right already. A lane has pairs of columns. Rare, and slow.
OMNIFLASH_DEVICE void write_rows_by_definition(const Block& block, const FinishedRows& finished, bool is_part) {
  constexpr int kPairs = (8 * kV + 63) / 64;
  const KeyTiles<MaskType> tiles = TileWalk(block).tiles;
  const int last = minimum(tiles.end * kBlockN, block.sequence.kv_len);
  const int head_dim = block.parameters.head_dim, value_dim = block.parameters.value_dim, lane = lane_index();
  const int first_column = block.first_column() + 2 * lane;
#pragma unroll 1
  for (int i = 0; i < 16 * kFragments; ++i) {
    const int row = block.rows.first_row + block.warp_row + i;
    if (row >= block.rows.num_rows) break;
    float offset = 0.0f, scale = 0.0f;
#pragma unroll
    for (int half = 0; half < 2 * kFragments; ++half) {
      const FinishedRow own = finished[half / 2][half % 2];
      offset = half == i / 8 ? own.offset : offset;
      scale = half == i / 8 ? own.scale : scale;
    }
    offset = shuffle(offset, i % 8 * 4);
    scale = shuffle(scale, i % 8 * 4);
    ScoreIndex at = block.index(row);
    const Element* q =
        block.sequence.template row<const Element>(block.parameters.q, is_ragged(block.parameters), at.row, at.head);
    float sum[kPairs][2] = {};
#pragma unroll 1
    for (at.k = tiles.begin * kBlockN; at.k < last; ++at.k) {
      const Element* k = block.keys.template keys_from<Element>(at.k).at(true);
      float score = 0.0f;
#pragma unroll 1
      for (int column = lane; column < head_dim; column += 32) score += to_float(q[column]) * to_float(k[column]);
#pragma unroll
      for (int other = 16; other > 0; other /= 2) score += shuffle_xor(score, other);
      score = block.functors.score_mod.apply(score * block.scale, at);
      const float weight = exp2_of(masked(block.functors.mask, score, at), block.factor, offset);
      if (weight == 0.0f) continue;
      const Element* v = block.keys.template values_from<Element>(at.k).at(true);
#pragma unroll
      for (int pair = 0; pair < kPairs; ++pair) {
        const int column = 64 * pair + first_column;
#pragma unroll
        for (int odd = 0; odd < 2; ++odd) {
          if (column + odd < value_dim) sum[pair][odd] += weight * to_float(v[column + odd]);
        }
      }
    }
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      const int column = 64 * pair + first_column;
      const float low = sum[pair][0] * scale, high = sum[pair][1] * scale;
      if (is_part) {
        store_sums(part_of_row(block, row) + column, value_dim - column, low, high);
      } else if (column < value_dim) {
        store_pair<Element>(output_tile().element(block.warp_row + i, column), low, high);
      }
    }
  }
}

// ---- results

// Rounds a warp's rows into their place of the tile of outputs.
OMNIFLASH_DEVICE void place_output(const Block& block, const Output& o) {
  // Rows 8 apart are permuted alike: one address, and an offset for each pair.
  const int lane = opaque(lane_index()), kChunksOfColumns = 8 / RowsOfValueDim::kChunkElements;
  const unsigned to = output_tile().element(block.warp_row + lane / 4, block.first_column() + lane % 4 * 2);
#pragma unroll
  for (int n = 0; n < kV; ++n) {
    const unsigned columns = RowsOfValueDim::right_of(to, kChunksOfColumns * n);
#pragma unroll
    for (int i = 0; i < 2 * kFragments; ++i) {
      const float(&sums)[4] = o[i / 2][n];
      store_pair<Element>(columns + 8 * i * RowsOfValueDim::kRowBytes, sums[i % 2 * 2], sums[i % 2 * 2 + 1]);
    }
  }
}

// Writes the tile of outputs to memory in whole chunks.
OMNIFLASH_DEVICE void store_output(const Block& block) {
  const RowsOfValueDim out = output_tile();
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
    Element* to = block.sequence.row<Element>(block.parameters.out, ragged, block.rows.query(row), block.rows.head(row)) + column;
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

// Writes the parts of a warp's rows; combine.hpp does not read rows whose lse is -inf.
OMNIFLASH_DEVICE void store_parts(const Block& block, const FinishedRows& finished, const Output& o) {
  const int column = block.first_column() + lane_index() % 4 * 2, value_dim = block.parameters.value_dim;
#pragma unroll
  for (int m = 0; m < kFragments; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (!block.is_row(m, half) || finished[m][half].lse == -kInfinity) continue;
      float* part = part_of_row(block, block.row(m, half)) + column;
#pragma unroll
      for (int n = 0; n < kV; ++n) {
        store_sums(part + 8 * n, value_dim - column - 8 * n, o[m][n][2 * half], o[m][n][2 * half + 1]);
      }
    }
  }
}

OMNIFLASH_DEVICE void store(const Block& block, bool has_hidden, Softmax& softmax, Output& o) {
  const bool by_definition = kHides && has_hidden && warp_any(has_non_finite(o));
  const bool is_part = block.parameters.num_partitions > 1;
  // A sink counts once: where the sequence is cut, in combine.hpp.
  const bool has_sinks = !is_part && static_cast<SinkForm>(block.parameters.sink_form) != SinkForm::Absent;
  if constexpr (kWarpsAcross > 1) add_sums_beside(softmax);
  FinishedRows finished;
#pragma unroll
  for (int m = 0; m < kFragments; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sink = has_sinks ? sink_log2(block.parameters, block.rows.head(block.row(m, half))) : -kInfinity;
      const float offset = softmax[m][half].offset(block.factor);
      const SoftmaxResult result = finalize(offset, quad_sum(softmax[m][half].sum), sink);
      finished[m][half] = FinishedRow{offset, result.scale, result.lse};
#pragma unroll
      for (int n = 0; n < kV; ++n) {
        o[m][n][2 * half] *= result.scale;
        o[m][n][2 * half + 1] *= result.scale;
      }
    }
  }
  copy_wait<0>();
  if (!is_part) barrier();  // the tile of outputs lies over those of the loop
  if (by_definition) {
    write_rows_by_definition(block, finished, is_part);
  } else if (is_part) {
    store_parts(block, finished, o);
  } else {
    place_output(block, o);
  }
  if (!is_part) {
    barrier();
    store_output(block);
  }
  if (!is_part && static_cast<LseForm>(block.parameters.lse_form) != LseForm::Written) return;
#pragma unroll
  for (int m = 0; m < kFragments; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (block.place != 0 || lane_index() % 4 != 0 || !block.is_row(m, half)) continue;
      const int row = block.row(m, half);
      float* lse = is_part ? static_cast<float*>(block.parameters.partial_lse) + row_of_partition(block, row)
                           : block.sequence.row<float>(block.parameters.lse, is_ragged(block.parameters), block.rows.query(row),
                                                       block.rows.head(row));
      *lse = finished[m][half].lse;
    }
  }
}

}  // namespace omniflash

OMNIFLASH_KERNEL(omniflash::kThreads)
omniflash_forward(OMNIFLASH_PARAMETER omniflash::AttentionParameters parameters,
                  OMNIFLASH_PARAMETER omniflash::Functors<omniflash::MaskType, omniflash::ScoreModType> functors) {
  using namespace omniflash;
  const Work work = work_of_block(parameters, block_index_x());
  const Block block(parameters, functors, work);
  // For the results: in memory, so that the loop's registers need not hold it.
  volatile int later[3] = {work.batch, work.first_head, work.row_tile};
  if (block.rows.is_empty() || block.sequence.q_len < static_cast<int>(parameters.least_q_len)) return;

  TileWalk tiles(block);
  TileStatus status = TileStatus::Skip, next_status = TileStatus::Skip;
  int tile = tiles.next(tiles.tiles.begin, status);

  Output o;
  Softmax softmax;
  if (tile < tiles.end()) {
    block.copy_queries();
    TileCopies(block, opaque(thread_index())).copy_first(tile);
  }
  if constexpr (kPrefetchesQueries) prefetch_next_queries(parameters);
  const TileCopies copies(block, thread_index());
  const bool active = block.is_active();
  const int whole_tiles = block.sequence.kv_len / kBlockN;
  unsigned queries[kFragments][kKeepsQueries ? kHeadDim / 16 : 1][4];
  if (kKeepsQueries && tile < tiles.end()) {
    copy_wait<0>();
    barrier();
    keep_queries<Product>(queries, block.warp_row);
  }

  bool has_hidden = false;
  // Member by member: with the default constructor alone, rows of the second half came out as if max had begun at 0
  // (NVRTC on an H200; seen in results, not traced in the machine code).
#pragma unroll
  for (int i = 0; i < 2 * kFragments; ++i) {
    softmax[i / 2][i % 2].max = -kInfinity;
    softmax[i / 2][i % 2].sum = 0.0f;
  }
#pragma unroll
  for (int i = 0; i < kFragments * kV * 4; ++i) o[i / (kV * 4)][i / 4 % kV][i % 4] = 0.0f;
  int next = tiles.next(tile + 1, next_status);
  for (int slot = 0; tile < tiles.end();) {
    // Most tiles: all scores are visible, and nothing is asked. Warps without rows compute on zeros.
    while (!hides_by_score<ScoreModType> && !never_full<MaskType> && tile < tiles.end() && status == TileStatus::Full &&
           block.is_folded && tile < whole_tiles && (!kCopiesWholeTiles || next >= tiles.end() || next < whole_tiles)) {
      copy_wait<0>();
      barrier();  // this tile has landed, and all warps have left the slots of the last one
      Scores s = {};
      if constexpr (kCopiesWholeTiles && kCarriesCopies) {
        add_scores<Product>(block, s, queries, slot, ScoreCargo(copies, tile, next, next < tiles.end(), slot));
        copy_commit();
      } else if constexpr (kCopiesWholeTiles) {
        if (next < tiles.end()) {
          const TileCopies anew(block, opaque(thread_index()));
          anew.copy_whole_keys(next, 1 - slot);
          anew.copy_whole_values(next, 1 - slot);
        }
        copy_commit();
        add_scores<Product>(block, s, queries, slot);
      } else {
        copies.copy_beside(tile, next, next < tiles.end(), slot);
        add_scores<Product>(block, s, queries, slot);
      }
      Maxima maxima;
      if constexpr (kWarpsAcross > 1) {
        if constexpr (!kFoldable) modify(block, tile * kBlockN + block.first_key(), s);
        maxima.find(block, softmax, s);
      }
      if constexpr (kStages == 1) {
        copy_wait<0>();
        maxima.meet();  // the values have landed, and all warps have left the keys
        if (next < tiles.end()) {
          if constexpr (kCopiesWholeTiles) {
            copies.copy_whole_keys(next, 0);
          } else {
            copies.copy_keys(next, 0);
          }
        }
        copy_commit();
      }
      if constexpr (kWarpsAcross == 1 && !kFoldable) modify(block, tile * kBlockN, s);
      maxima.make_weights(block, softmax, s, o);
      add_values<Product>(block, o, s, slot);
      tile = next;
      status = next_status;
      next = tiles.next(next + 1, next_status);
      slot = (slot + 1) % kStages;
    }
    if (tile >= tiles.end()) break;

    // The others: at the mask's border, at the end of the keys, or with a scale or scores that may hide.
    const bool touched = !hides_nothing<MaskType> && status != TileStatus::Full;
    has_hidden = has_hidden || touched || hides_by_score<ScoreModType>;

    copy_wait<0>();
    barrier();
    const TileCopies anew(block, opaque(thread_index()));
    const TileCopies& border_copies = kIsCrowded ? anew : copies;
    border_copies.copy_beside(tile, next, next < tiles.end(), slot);

    // What the warp's own rows see of the tile.
    TileStatus own = touched ? TileStatus::Partial : TileStatus::Full;
    if constexpr (kAsksForOwnRows) {
      if (touched && active) own = block.status_of_warp(tile);
    }
    const bool computes = active && own != TileStatus::Skip;

    Scores s = {};
    Maxima maxima;
    if (computes) {
      add_scores<Product>(block, s, queries, slot);
      if constexpr (kWarpsAcross > 1) {
        modify_and_hide(block, tile, own != TileStatus::Full, tile >= whole_tiles, s);
        maxima.find(block, softmax, s);
      }
    }
    if constexpr (kStages == 1) {
      copy_wait<0>();
      maxima.meet();
      if (next < tiles.end()) border_copies.copy_keys(next, 0);
      copy_commit();
    }
    if (computes) {
      if constexpr (kWarpsAcross == 1) {
        modify_and_hide(block, tile, own != TileStatus::Full, tile >= whole_tiles, s);
      }
      maxima.make_weights(block, softmax, s, o);
      add_values<Product>(block, o, s, slot);
    }
    tile = next;
    status = next_status;
    next = tiles.next(next + 1, next_status);
    slot = (slot + 1) % kStages;
  }
  store(Block(parameters, functors, Work{later[0], later[1], later[2]}), has_hidden, softmax, o);
}
