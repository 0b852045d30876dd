// Attention by tiles with an online softmax (Dao 2023, "FlashAttention-2"), transposed, for CDNA 2 to 4 and RDNA 3 and 4.
//
//                          rows: kTile for each wave (32 on CDNA, 16 on RDNA), one a lane and its partner
//                      wave 0    wave 1    ...
//                    +---------+---------+-----+
//    keys: tiles of  |   Full  |         |     |    A block has kBlockM rows of one sequence and key head. A row is a
//    kBlockN that    |         |         |     |    query and a head: heads of a group may be interleaved.
//    the mask does   +---------+---------+-----+
//    not skip, in    | Partial |  Full   |     |    S^T = K Q^T puts all scores of a row into two lanes, so that the
//    order           |         |         |     |    softmax is made in registers; what it leaves there is an operand of
//                    +---------+---------+-----+    O^T = V^T P^T.
//
//                 blockIdx.y cuts the tiles of keys into partitions; combine.hpp joins their results.
//
// Threads: kWarps waves, all alike. Each holds its rows of Q, S and O in registers; all copy tiles.
// Shared memory: [ K | V ], with direct copies twice; with one stage [ K or V ].
// With two stages both tiles of n + 1 are on their way to registers, or to the other half of shared memory, during all of
// n; with one, V(n) during Q K(n)^T and K(n + 1) during P V(n).
// Hidden values that are not finite make sums that are not (0 times Inf is NaN): a wave whose sums come out so sums its
// rows again by the definition.
//
// The instance chooses Element, Product, Keys, MaskType, ScoreModType, kHeadDim, kValueDim, kBlockM, kBlockN, kWarps,
// kStages, kVectorLoads and kDirectCopies.

#include "omniflash/keys.hpp"
#include "omniflash/masks.hpp"
#include "omniflash/online_softmax.hpp"
#include "omniflash/schedule.hpp"
#include "omniflash/score_mods.hpp"
#include "direct_tile.hpp"
#include "product.hpp"
#include "instance.hpp"

namespace omniflash {

using namespace instance;

constexpr int kThreads = kWarpSize * kWarps;
constexpr int kKeyTiles = kBlockN / kTile;
constexpr int kOutputTiles = (kValueDim + kTile - 1) / kTile;
constexpr int kValueColumns = kOutputTiles * kTile;
constexpr int kScores = kKeyTiles * kAccumulators, kOutputs = kOutputTiles * kAccumulators;
static_assert(kBlockM == kTile * kWarps, "a wave has one tile of rows");
static_assert(kBlockN % 32 == 0, "masks answer for 32 keys at a time");
static_assert(kHeadDim % 16 == 0 && kValueDim % 16 == 0, "dimensions are padded");
static_assert(kStages == 1 || kStages == 2, "one tile or two");
static_assert(!kDirectCopies || kStages == 2, "tiles of their own for keys and values");

constexpr int kKeyChunks = kHeadDim / kChunkElements<Element>;
template <class T, bool kDirect>
struct Tiles {
  using Key = LinearTile<T, kBlockN, kHeadDim, kKeyChunks | 1, true, kThreads>;
  using Value = HalfValueTile<T, kBlockN, kValueColumns, kThreads>;
};
template <>
struct Tiles<float, false> {
  using Key = LinearTile<float, kBlockN, kHeadDim, kKeyChunks | 1, true, kThreads>;
  using Value = LinearTile<float, kBlockN, kValueColumns, kValueColumns / 4, false, kThreads>;
};
#if defined(__gfx950__)
template <class T>
struct Tiles<T, true> {
  using Key = DirectKeyTile<T, kBlockN, kHeadDim, kWarps>;
  using Value = DirectValueTile<T, kBlockN, kValueColumns, kWarps>;
};
#endif
using KeyTile = Tiles<Element, kDirectCopies>::Key;
using ValueTile = Tiles<Element, kDirectCopies>::Value;

// Shared memory that is in use at a time; with direct copies there is as much again, for the next tiles.
constexpr int kLongerBytes = KeyTile::kBytes < ValueTile::kBytes ? ValueTile::kBytes : KeyTile::kBytes;
constexpr int kValuesAt = kStages == 2 ? KeyTile::kBytes : 0;
constexpr int kTileBytes = kStages == 2 ? KeyTile::kBytes + ValueTile::kBytes : kLongerBytes;

// On RDNA a long output leaves no registers for a long query, and the products of f32 are a loop over its chunks.
#if OMNIFLASH_MFMA
constexpr bool kHoldQuery = true;
#else
constexpr bool kHoldQuery = sizeof(Element) == 2 && kHeadDim <= 128;
#endif
// Behind one branch with the products, a score modification takes more registers than gfx11 has.
constexpr bool kSplitsBranch = !OMNIFLASH_MFMA && kStages == 2 && !is_identity<ScoreModType>;
using Query = QueryRow<Element, kHeadDim, kVectorLoads, kHoldQuery>;
using Scores = Accumulator[kKeyTiles];
using Output = Accumulator[kOutputTiles];

// Addresses of pages take many registers.
constexpr bool kFewRegisters = !Keys::kOneStride;

// Scores stay unscaled, and softmax_scale is folded into the exponential, where nothing looks at them in between.
constexpr bool kFoldable = is_identity<ScoreModType> && !has_add<MaskType>;

// Whether any key before a sequence's end can be hidden.
constexpr bool kHides = !hides_nothing<MaskType> || hides_by_score<ScoreModType>;

// Compute dies are given blocks in turn; one that works on neighbouring blocks finds their keys in its own cache.
#if defined(__gfx942__) || defined(__gfx950__)
constexpr unsigned kDies = 8;
#else
constexpr unsigned kDies = 1;
#endif
OMNIFLASH_DEVICE unsigned block_of_die(const AttentionParameters& parameters, unsigned block) {
  if constexpr (kDies == 1) return block;
  const unsigned blocks = parameters.num_pairs * parameters.num_row_tiles;
  const unsigned die = block % kDies, most = blocks / kDies, longer = blocks % kDies;
  return die * most + minimum(die, longer) + block / kDies;
}

// The kernel's first argument, read anew: otherwise all of it would stay in registers until the end.
OMNIFLASH_DEVICE const AttentionParameters& parameters_again() {
  auto* arguments = __builtin_amdgcn_kernarg_segment_ptr();
  asm volatile("" : "+s"(arguments));
  return *(const AttentionParameters*)arguments;
}

// The thread, when it copies. Where registers are scarce its addresses are computed anew for each tile.
OMNIFLASH_DEVICE int copying_thread() { return kFewRegisters ? opaque(thread_index()) : thread_index(); }

// What one block works on, and which row a lane.
struct Block {
  const AttentionParameters& parameters;
  const Functors<MaskType, ScoreModType>& functors;
  Sequence sequence;
  RowTile rows;
  Keys keys;
  int warp_row;   // first row of this wave in the tile
  bool is_valid;  // whether the lane's row exists; otherwise it stands for the last
  ScoreIndex at;  // of the lane's row
  float scale;    // of scores before mask and modification; 1 where it is folded
  float factor;   // of scores in the exponential

  OMNIFLASH_DEVICE Block(const AttentionParameters& parameters, const Functors<MaskType, ScoreModType>& functors,
                         const Work& work)
      : parameters(parameters),
        functors(functors),
        sequence(parameters, work.batch),
        rows(parameters, work, sequence, kBlockM),
        keys(parameters, sequence, quotient(work.first_head, parameters.by_group_size)),
        warp_row(warp_index() * kTile) {
    const int row = rows.first_row + warp_row + lane_column();
    is_valid = row < rows.num_rows;
    const int existing = minimum(row, rows.num_rows - 1);
    const int query = rows.query(existing);
    at = ScoreIndex{sequence.batch, rows.head(existing), query, sequence.start + query, 0};
    // The largest score is the largest product only under a positive factor.
    const bool folded = kFoldable && parameters.softmax_scale > 0.0f;
    scale = folded ? 1.0f : parameters.softmax_scale;
    factor = folded ? parameters.softmax_scale * kLog2E : kLog2E;
  }

  // Whether this wave has any row.
  OMNIFLASH_DEVICE bool is_active() const { return rows.first_row + warp_row < rows.num_rows; }

  template <class T>
  OMNIFLASH_DEVICE T* row(const Rows& tensor) const {
    return sequence.template row<T>(tensor, is_ragged(parameters), at.row, at.head);
  }

  OMNIFLASH_DEVICE int keys_from(int tile) const { return sequence.kv_len - tile * kBlockN; }
  // Keys past the end become zeros: whatever lies there, it is not read.
  OMNIFLASH_DEVICE void load_keys(KeyTile::Stage& stage, int to, int tile) const {
    stage.template load<kVectorLoads>(copying_thread(), to, keys.template keys_from<Element>(tile * kBlockN),
                                      opaque_uniform(parameters.head_dim), keys_from(tile));
  }
  OMNIFLASH_DEVICE void load_values(ValueTile::Stage& stage, int to, int tile) const {
    stage.template load<kVectorLoads>(copying_thread(), to + kValuesAt, keys.template values_from<Element>(tile * kBlockN),
                                      opaque_uniform(parameters.value_dim), keys_from(tile));
  }
};

// The tiles of keys that the mask does not skip, in the block's partition.
OMNIFLASH_DEVICE KeyTiles<MaskType> tiles_of(const Block& block) {
  KeyTiles<MaskType> tiles(block.functors.mask, block.sequence, block.rows, kBlockM, kBlockN);
  tiles.take_partition(block.parameters, block_index_y());
  return tiles;
}

// ---- scores

// Scores of the tile of keys in shared memory.
OMNIFLASH_DEVICE void multiply_keys(Scores& s, const Query& query, int keys_at) {
#pragma unroll
  for (int n = 0; n < kKeyTiles; ++n) s[n] = 0.0f;
  Product::scores<KeyTile>(s, query.of_tile(), keys_at);
}

// Scale and score modification.
OMNIFLASH_DEVICE void modify(const Block& block, int tile, Scores& s) {
  if constexpr (is_identity<ScoreModType>) {
    if (opaque_uniform(block.scale == 1.0f)) return;
#pragma unroll
    for (int n = 0; n < kKeyTiles; ++n) s[n] *= block.scale;
  } else {
    ScoreIndex at = block.at;
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      at.k = minimum(tile * kBlockN + result_row(i, lane_group()), block.sequence.kv_len - 1);
      set_result(s, i, block.functors.score_mod.apply(result(s, i) * block.scale, at));
    }
  }
}

constexpr unsigned kMinusInfinityBits = 0xff800000;

// Hides what the mask hides, if it has to be asked, and keys past the end.
template <class Mask>
OMNIFLASH_DEVICE void hide(const Block& block, const Mask& mask, int tile, bool ask, Scores& s) {
  const int kv_len = block.sequence.kv_len;
  ScoreIndex at = block.at;
  if constexpr (has_bits<Mask> && !has_add<Mask>) {
#pragma unroll
    for (int word = 0; word < kBlockN / 32; ++word) {
      at.k = tile * kBlockN + 32 * word;
      unsigned bits = band_bits(0, kv_len, at.k);
      if (ask) bits &= mask.bits(at);
      bits >>= 8 * lane_group();
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        // All ones where visible: comparisons would each hold a register pair until they are used.
        const unsigned visible = __builtin_amdgcn_sbfe(bits, result_row(i, 0), 1);
        const unsigned score = __builtin_bit_cast(unsigned, result(s, 16 * word + i));
        set_result(s, 16 * word + i, __builtin_bit_cast(float, (score & visible) | (kMinusInfinityBits & ~visible)));
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      at.k = tile * kBlockN + result_row(i, lane_group());
      if (at.k >= kv_len) {
        set_result(s, i, -kInfinity);
      } else if (ask) {
        set_result(s, i, masked(mask, result(s, i), at));
      }
    }
  }
}

// Scores become weights; what was summed before is rescaled. The sum stays apart for each group until the end.
OMNIFLASH_DEVICE void online_softmax(float factor, SoftmaxRow& row, Scores& s, Output& o) {
  float largest = result(s, 0);
#pragma unroll
  for (int i = 1; i < kScores; ++i) largest = maximum(largest, result(s, i));
  const float rescale = row.raise(maximum(largest, of_other_group(largest)), factor);
  const float offset = row.offset(factor);
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kScores; ++i) {
    const float weight = exp2_of(result(s, i), factor, offset);
    set_result(s, i, weight);
    sum += weight;
  }
  row.sum += sum;
  if (!warp_any(rescale != 1.0f)) return;
#pragma unroll
  for (int n = 0; n < kOutputTiles; ++n) o[n] *= rescale;
}

// Whether the row of values can end before the columns of result `first`: kValueDim is value_dim rounded up to a multiple
// of 16.
OMNIFLASH_DEVICE constexpr bool may_end(int first) { return result_row(first, 0) + 32 > kValueDim; }

// ---- values that are not finite

// Whether a result of the lane's row is not finite.
OMNIFLASH_DEVICE bool has_non_finite(const Output& o) {
  float zero[4] = {};  // as long as all are finite
#pragma unroll
  for (int i = 0; i < kOutputs; ++i) zero[i % 4] = fused_multiply_add(result(o, i), 0.0f, zero[i % 4]);
  const float sum = zero[0] + zero[1] + (zero[2] + zero[3]);
  return !(sum == 0.0f);
}

// What the lane's row is made of: its weights' offset, what its sums are multiplied by, and its lse.
struct FinishedRow {
  float offset, scale, lse;

  OMNIFLASH_DEVICE FinishedRow(const Block& block, const SoftmaxRow& row) : offset(row.offset(block.factor)) {
    // A sink counts once: where the sequence is cut, in combine.hpp.
    const bool is_part = block.parameters.num_partitions > 1;
    const float sink = is_part ? -kInfinity : sink_log2(block.parameters, block.at.head);
    const SoftmaxResult result = finalize(offset, row.sum + of_other_group(row.sum), sink);
    scale = result.scale;
    lse = result.lse;
  }
};

// Where a partition's part of a row lies among all of them, in f32.
OMNIFLASH_DEVICE long long row_of_partition(const Block& block, int row, int head) {
  const AttentionParameters& parameters = block.parameters;
  return block_index_y() * parameters.total_q * parameters.num_heads +
         block.sequence.workspace_row(parameters, row, head);
}
OMNIFLASH_DEVICE float* part_of_row(const Block& block, long long row) {
  return static_cast<float*>(block.parameters.partial_out) + row * block.parameters.value_dim;
}

// The rows of a wave by the definition, which leaves hidden values out, in place of sums that met one. Offsets and sums of
// weights are right already. A lane has every kWarpSize-th column. Rare, and slow.
OMNIFLASH_DEVICE void write_rows_by_definition(const Block& block, const FinishedRow& finished) {
  constexpr int kColumns = (kValueDim + kWarpSize - 1) / kWarpSize;
  const AttentionParameters& parameters = block.parameters;
  const Keys keys(parameters, block.sequence, quotient(block.rows.first_head, parameters.by_group_size));
  const KeyTiles<MaskType> tiles = tiles_of(block);
  const int lane = lane_index(), head_dim = parameters.head_dim, value_dim = parameters.value_dim;
  const int last = minimum(tiles.end * kBlockN, block.sequence.kv_len);
#pragma unroll 1
  for (int i = 0; i < kTile; ++i) {
    const int row = block.rows.first_row + block.warp_row + i;
    if (row >= block.rows.num_rows) break;
    const float offset = shuffle(finished.offset, i), scale = shuffle(finished.scale, i);
    const int query = block.rows.query(row);
    ScoreIndex at{block.sequence.batch, block.rows.head(row), query, block.sequence.start + query, 0};
    const bool ragged = is_ragged(parameters);
    const Element* q = block.sequence.template row<const Element>(parameters.q, ragged, at.row, at.head);
    float sum[kColumns] = {};
#pragma unroll 1
    for (at.k = tiles.begin * kBlockN; at.k < last; ++at.k) {
      const Element* k = keys.template keys_from<Element>(at.k).at(true);
      float score = 0.0f;
#pragma unroll 1
      for (int column = lane; column < head_dim; column += kWarpSize) score += to_float(q[column]) * to_float(k[column]);
#pragma unroll 1
      for (int other = kWarpSize / 2; other > 0; other /= 2) score += shuffle_xor(score, other);
      score = masked(block.functors.mask, block.functors.score_mod.apply(score * block.scale, at), at);
      const float weight = exp2_of(score, block.factor, offset);
      if (weight == 0.0f) continue;
      const Element* v = keys.template values_from<Element>(at.k).at(true);
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const int column = lane + kWarpSize * c;
        if (column < value_dim) sum[c] += weight * to_float(v[column]);
      }
    }
    const bool is_part = parameters.num_partitions > 1;
    float* part = part_of_row(block, row_of_partition(block, at.row, at.head));
    Element* out = block.sequence.template row<Element>(parameters.out, ragged, at.row, at.head);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int column = lane + kWarpSize * c;
      if (column >= value_dim) break;
      if (is_part) {
        part[column] = sum[c] * scale;
      } else {
        out[column] = from_float<Element>(sum[c] * scale);
      }
    }
  }
}

// ---- results

// Four results from `first` on that are neighbours in a row.
OMNIFLASH_DEVICE Chunk floats_of(const Output& o, int first) {
  Chunk chunk;
#pragma unroll
  for (int i = 0; i < 4; ++i) chunk[i] = __builtin_bit_cast(unsigned, result(o, first + i));
  return chunk;
}

// Writes a lane's half of a row, eight neighbouring columns at a time.
template <class T>
OMNIFLASH_DEVICE void store_row(T* to, int columns, const Output& o) {
  // Computed anew: columns of the query would be kept until here.
  const int group = opaque(thread_index()) / kTile % 2;
#pragma unroll
  for (int first = 0; first < kOutputs; first += 8) {
    const int column = result_row(first, group);
    if constexpr (!kVectorLoads) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (column + i >= columns) continue;
        if constexpr (sizeof(T) == 4) {
          store_global(to + column + i, result(o, first + i));
        } else {
          store_global(to + column + i, from_float<T>(result(o, first + i)).bits);
        }
      }
    } else if constexpr (sizeof(T) == 4) {
      if (!may_end(first) || column < columns) store_global(to + column, floats_of(o, first));
      if (!may_end(first) || column + 4 < columns) store_global(to + column + 4, floats_of(o, first + 4));
    } else if (!may_end(first) || column < columns) {
      Chunk chunk;
#pragma unroll
      for (int i = 0; i < 4; ++i) chunk[i] = pack<T>(result(o, first + 2 * i), result(o, first + 2 * i + 1));
      store_global(to + column, chunk);
    }
  }
}

OMNIFLASH_DEVICE void store(const Block& block, const FinishedRow& finished, Output& o) {
#pragma unroll
  for (int n = 0; n < kOutputTiles; ++n) o[n] *= finished.scale;
  if (!block.is_valid) return;
  const AttentionParameters& parameters = block.parameters;
  const int columns = parameters.value_dim;
  if (parameters.num_partitions == 1) {
    store_row(block.template row<Element>(parameters.out), columns, o);
  } else if (finished.lse != -kInfinity) {
    // combine.hpp does not read other rows.
    store_row(part_of_row(block, row_of_partition(block, block.at.row, block.at.head)), columns, o);
  }
}

OMNIFLASH_DEVICE void store_lse(const Block& block, float lse) {
  const AttentionParameters& parameters = block.parameters;
  if (!block.is_valid || lane_group() != 0) return;
  if (parameters.num_partitions > 1) {
    static_cast<float*>(parameters.partial_lse)[row_of_partition(block, block.at.row, block.at.head)] = lse;
  } else if (static_cast<LseForm>(parameters.lse_form) == LseForm::Written) {
    *block.template row<float>(parameters.lse) = lse;
  }
}

}  // namespace omniflash

OMNIFLASH_KERNEL(omniflash::kThreads)
omniflash_forward(OMNIFLASH_PARAMETER omniflash::AttentionParameters parameters,
                  OMNIFLASH_PARAMETER omniflash::Functors<omniflash::MaskType, omniflash::ScoreModType> functors) {
  using namespace omniflash;
  const Block block(parameters, functors, work_of_block(parameters, block_of_die(parameters, block_index_x())));
  if (block.rows.is_empty()) return;

  KeyTiles<MaskType> tiles = tiles_of(block);
  // At first there is no tile: what loads the next one stands in the loop alone, or each kernel would be a third longer.
  int tile = -1, from = tiles.begin;
  // Where the tile is in shared memory, and where the next one will be.
  int at = 0, next_at = 0;
  TileStatus status = TileStatus::Full, next_status;
  KeyTile::Stage key_stage;
  ValueTile::Stage value_stage;
  if constexpr (kDirectCopies) {
    // Before the query, for which the loop would have to wait while copies are on their way.
    tile = tiles.next(from, status);
    if (tile < tiles.end) {
      block.load_keys(key_stage, at, tile);
      block.load_values(value_stage, at, tile);
    }
    from = tile + 1, next_at = kTileBytes;
  }
  const AttentionParameters& of_query = parameters_again();
  const Query query(block.row<const Element>(of_query.q), of_query.head_dim);
  Output o = {};
  SoftmaxRow row;
  const int active = block.is_active();
  bool has_hidden = false;
  do {
    if constexpr (kDirectCopies) wait_for_copies();
    const int next = tiles.next(from, next_status);
    const bool touched = status != TileStatus::Full;
    const bool has_tile = kDirectCopies ? opaque_uniform(tile) < tiles.end : opaque_uniform(tile) >= 0;
    Scores s;
    if (has_tile) {
      if constexpr (!kDirectCopies) barrier();  // all waves have left the tiles of the last one
      key_stage.store(copying_thread(), at);
      if constexpr (kStages == 2) value_stage.store(copying_thread(), at + kValuesAt);
      barrier();
      if constexpr (kStages == 1) {
        block.load_values(value_stage, at, tile);
        if (opaque_uniform(active)) multiply_keys(s, query, at);
        barrier();  // all waves have left the keys
        value_stage.store(copying_thread(), at + kValuesAt);
        barrier();
      }
    }
    if (next < tiles.end) {
      block.load_keys(key_stage, next_at, next);
      if constexpr (kStages == 2) block.load_values(value_stage, next_at, next);
    }
    if constexpr (kSplitsBranch) {
      if (has_tile && opaque_uniform(active)) multiply_keys(s, query, at);
    }
    if (has_tile && opaque_uniform(active)) {
      if constexpr (kStages == 2 && !kSplitsBranch) multiply_keys(s, query, at);
      modify(block, tile, s);
      has_hidden = has_hidden || touched || hides_by_score<ScoreModType>;
      if (touched || (tile + 1) * kBlockN > block.sequence.kv_len) hide(block, functors.mask, tile, touched, s);
      online_softmax(block.factor, row, s, o);
      Product::values<ValueTile>(o, s, at + kValuesAt);
    }
    tile = next, from = next + 1, status = next_status;
    if constexpr (kDirectCopies) at = next_at, next_at = kTileBytes - at;
  } while (tile < tiles.end);
  if (!active) return;
  const AttentionParameters& again = parameters_again();
  const unsigned index = opaque_uniform(static_cast<int>(block_index_x()));
  const Block later(again, functors, work_of_block(again, block_of_die(again, index)));
  const FinishedRow finished(later, row);
  if (kHides && has_hidden && warp_any(has_non_finite(o))) {
    write_rows_by_definition(later, finished);
  } else {
    store(later, finished, o);
  }
  store_lse(later, finished.lse);
}
