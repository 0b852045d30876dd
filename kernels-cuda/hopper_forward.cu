// Attention by tiles with warps that specialise (Shah et al. 2024, "FlashAttention-3"), on tensor copies and asynchronous
// matrix products: sm_90a, elements of 16 bits.
//
//               keys: tiles of kBlockN that the mask does not skip, right to left
//             +---------+---------+---------+
//     rows    |         |         | Par-    |   warpgroup 1: rows 0..63      A block runs through many tiles of rows, of one
//             |  Full   |  Full   |   tial  |                                sequence and key head each; the next comes from
//     kBlockM |         |         | - - - - |                                a counter. A row is a query and a head: heads of
//             |         |         | Partial |   warpgroup 2: rows 64..127    a group may be interleaved.
//             +---------+---------+---------+   ...
//
// Threads: warpgroup 0 gives its registers to the others. Its warp 0, the producer, copies Q, K and V; warp 1, the
// scheduler, walks through the tiles of rows, asks the mask for the statuses of their keys (32 tiles at a time, one a
// lane), and tells the others. Warpgroups 1 .. kConsumers each own 64 rows of S = Q K^T and of O in registers, and leave out
// tiles, and of its first one the second half, that the mask hides from all of these.
//
// Shared memory, in slabs of 64 columns with the 128-byte swizzle (sm90/slabs.hpp):
//   [ Q tile 0 .. kQueryTiles - 1 | K slot 0, 1 | V slot 0, 1 | mbarriers | messages ]
// The output of a tile replaces its own Q: a warpgroup reads and writes only its own rows of both. With two Q tiles the next
// one's rows and keys arrive, and the last one's output leaves, while this one is computed.
//
// Order: S(n) = Q K(n)^T and O += P(n + 1) V(n + 1) are issued together, and the softmax of n runs under the second. Where
// there is a mask, warpgroups take turns at issuing.
//
// The instance chooses Element, MaskType, ScoreModType, kHeadDim, kValueDim, kBlockN, kConsumers and kQueryTiles.

#include "omniflash/keys.hpp"
#include "omniflash/masks.hpp"
#include "omniflash/online_softmax.hpp"
#include "omniflash/schedule.hpp"
#include "omniflash/score_mods.hpp"
#include "sm80.hpp"
#include "sm90/mbarrier.hpp"
#include "sm90/slabs.hpp"
#include "sm90/tma.hpp"
#include "sm90/warpgroup.hpp"
#include "sm90/wgmma.hpp"
#include "instance.hpp"

namespace omniflash {

using namespace instance;

constexpr int kSlots = 2, kMessages = 4;
constexpr int kBlockM = 64 * kConsumers, kThreads = 128 * (kConsumers + 1);
static_assert(kHeadDim % 16 == 0 && kValueDim % 16 == 0, "a step of a product is 16 deep");
static_assert(kBlockN % 32 == 0, "masks answer for 32 keys at a time");

using QueryTile = SlabTile<kBlockM, maximum(kHeadDim, kValueDim)>;
using OutputTile = QueryTile;
using KeyTile = SlabTile<kBlockN, kHeadDim>;
using ValueTile = SlabTile<kBlockN, kValueDim>;
constexpr int kHeadSlabs = KeyTile::kSlabs, kValueSlabs = ValueTile::kSlabs;

// A mask that hides something, or a score that does: then a value that is not finite may have weight 0.
template <class Mask>
constexpr bool hides_nothing = false;
template <>
inline constexpr bool hides_nothing<NoMask> = true;
constexpr bool kHides = !hides_nothing<MaskType> || hides_by_score<ScoreModType>;

// What a warpgroup may see of its first tile: all, or the first half of the keys.
constexpr int kHalfTile = kHides && kBlockN > 64 && kBlockN % 64 == 0 ? kBlockN / 2 : kBlockN;

// Whether warpgroups issue products in turn, so that one's softmax runs under another's products: worth it where there is
// a mask (measured; products of 256 columns leave nothing to hide).
constexpr bool kTakesTurns = kHides && kHeadDim <= 128;

// So many tiles of keys before the end of its rows a block takes the next ones: late enough that nobody else could begin
// them sooner, early enough that their keys arrive in time.
constexpr int kTilesAhead = 4;

// Registers of a thread before and after they are shared out: (producer + kConsumers * consumer) threads must not have more
// than the launch gave the block, or the consumers wait for ever.
constexpr int kAccumulators = kBlockN / 2 + kBlockN / 4 + kValueDim / 2;
constexpr int kProducerRegisters = kConsumers == 3 ? 32 : kAccumulators > 160 ? 40 : 56;
constexpr int kConsumerRegisters = kConsumers == 3 ? 160 : kAccumulators > 160 ? 232 : 224;
static_assert(kProducerRegisters + kConsumers * kConsumerRegisters <= (kConsumers == 3 ? 512 : 504));

// Scores stay unscaled, and softmax_scale (positive: the plan sees to it) is folded into the exponential, where nothing looks
// at them in between.
constexpr bool kFolded = is_identity<ScoreModType> && !has_add<MaskType>;

template <int kKeys>
using ScoresOf = float[kKeys / 2];  // word 4 n + 2 half + i: row lane / 4 + 8 half, key 8 n + lane % 4 * 2 + i
using Scores = ScoresOf<kBlockN>;
using Weights = unsigned[kBlockN / 4];  // the same in pairs, rounded
using Output = float[kValueDim / 2];

// What the launch adds to the parameters that all kernels have.
struct HopperParameters {
  TensorMap q, k, v, out;  // (column, head of the tile, row, shift, head tile), see HopperBlock::rows_at
  unsigned* counter;       // 0 before the launch, and after it
  unsigned num_tiles;      // tiles of rows
  unsigned q_batch_rows, k_batch_rows, v_batch_rows, out_batch_rows;  // rows between sequences
};
static_assert(sizeof(HopperParameters) == kParameterBytes);
OMNIFLASH_CHECK_OFFSET(HopperParameters, counter, kCounterOffset);
OMNIFLASH_CHECK_OFFSET(HopperParameters, q_batch_rows, kBatchRowsOffset);

// ---- shared memory

constexpr unsigned kKeyOffset = kQueryTiles * QueryTile::kBytes;
constexpr unsigned kValueOffset = kKeyOffset + kSlots * KeyTile::kBytes;
constexpr unsigned kBarrierOffset = kValueOffset + kSlots * ValueTile::kBytes;
constexpr int kBarriers = 2 * (kQueryTiles + 2 * kSlots + kMessages) + 1;
constexpr unsigned kMessageOffset = (kBarrierOffset + 8 * kBarriers + 15) / 16 * 16;
constexpr unsigned kMessageBytes = 48 + 16 * kConsumers;
static_assert(kSwizzleBytes + kMessageOffset + kMessages * kMessageBytes <= kSharedBytes);

// Everything in shared memory, by its address. A slot is full when its copies have landed, empty when all warps have left it.
struct SharedMemory {
  unsigned address;

  OMNIFLASH_DEVICE SharedMemory()
      : address(uniform((shared_memory() + kSwizzleBytes - 1) & ~(kSwizzleBytes - 1))) {}

  OMNIFLASH_DEVICE QueryTile query(int slot) const { return {address + slot * QueryTile::kBytes}; }
  OMNIFLASH_DEVICE KeyTile key(int slot) const { return {address + kKeyOffset + slot * KeyTile::kBytes}; }
  OMNIFLASH_DEVICE ValueTile value(int slot) const { return {address + kValueOffset + slot * ValueTile::kBytes}; }
  OMNIFLASH_DEVICE unsigned message(int slot) const { return address + kMessageOffset + slot * kMessageBytes; }

  OMNIFLASH_DEVICE unsigned barrier(int index) const { return address + kBarrierOffset + 8 * index; }
  OMNIFLASH_DEVICE unsigned query_full(int slot) const { return barrier(slot); }
  OMNIFLASH_DEVICE unsigned query_empty(int slot) const { return barrier(kQueryTiles + slot); }
  OMNIFLASH_DEVICE unsigned key_full(int slot) const { return barrier(2 * kQueryTiles + slot); }
  OMNIFLASH_DEVICE unsigned key_empty(int slot) const { return barrier(2 * kQueryTiles + kSlots + slot); }
  OMNIFLASH_DEVICE unsigned value_full(int slot) const { return barrier(2 * kQueryTiles + 2 * kSlots + slot); }
  OMNIFLASH_DEVICE unsigned value_empty(int slot) const { return barrier(2 * kQueryTiles + 3 * kSlots + slot); }
  OMNIFLASH_DEVICE unsigned message_full(int slot) const { return barrier(2 * kQueryTiles + 4 * kSlots + slot); }
  OMNIFLASH_DEVICE unsigned message_empty(int slot) const {
    return barrier(2 * kQueryTiles + 4 * kSlots + kMessages + slot);
  }

  // Complete when the producer comes to the end of a tile of rows.
  OMNIFLASH_DEVICE unsigned next_wanted() const { return barrier(kBarriers - 1); }

  OMNIFLASH_DEVICE void initialize_barriers() const {
    constexpr int kConsumerWarps = 4 * kConsumers;
    for (int i = 0; i < kBarriers; ++i) mbarrier_init(barrier(i), 1);
    for (int i = 0; i < kQueryTiles; ++i) mbarrier_init(query_empty(i), kConsumerWarps);
    for (int i = 0; i < kSlots; ++i) mbarrier_init(key_empty(i), kConsumerWarps);
    for (int i = 0; i < kSlots; ++i) mbarrier_init(value_empty(i), kConsumerWarps);
    for (int i = 0; i < kMessages; ++i) mbarrier_init(message_empty(i), kConsumerWarps + 1);
    mbarrier_init_fence();
  }
};

// ---- what the producer tells the consumers

// What the rows of one warpgroup see of the keys of a window.
struct OwnKeys {
  int begin, end;  // tiles; outside of them the mask hides all
  int last_key;    // the end of the keys that it may show
  unsigned full;   // bit i: the mask need not be asked for tile first_tile - i
};

// Up to 32 tiles of keys, the i-th being `first_tile - i`, and which of them some row of the block sees.
struct KeyWindow {
  int first_tile;
  unsigned present;
  bool is_last;  // no tiles of these rows come after it

  // Equal tiles: tile, tile - 1, ...
  struct Run {
    int tile, count;
    bool is_partial;
    OMNIFLASH_DEVICE bool step() {
      --tile;
      return --count > 0;
    }
  };
  OMNIFLASH_DEVICE Run take(unsigned full) {
    const int at = __ffs(present) - 1;
    const bool is_full = full >> at & 1;
    const unsigned alike = (present & (is_full ? full : ~full)) >> at;
    const int count = alike == ~0u ? 32 : __ffs(~alike) - 1;
    present &= count == 32 ? 0u : ~(low_bits(count) << at);
    return Run{first_tile - at, count, !is_full};
  }
};

// Rows to compute with their first window; later windows of the same rows come in messages of their own.
struct Message {
  Work work;  // row_tile is -1 after the last rows
  Sequence sequence;
  KeyWindow window;

  OMNIFLASH_DEVICE void write(unsigned to) const {
    const unsigned long long base = sequence.q_base;
    const unsigned ints[3][4] = {
        {unsigned(work.batch), unsigned(work.first_head), unsigned(work.row_tile), unsigned(sequence.q_len)},
        {unsigned(sequence.kv_len), unsigned(sequence.start), unsigned(base), unsigned(base >> 32)},
        {unsigned(window.first_tile), window.present, window.is_last, 0u}};
#pragma unroll
    for (int i = 0; i < 3; ++i) store_shared_16(to + 16 * i, ints[i]);
  }
  OMNIFLASH_DEVICE static void write(unsigned to, int warpgroup, const OwnKeys& own) {
    store_shared_16(to + 48 + 16 * warpgroup,
                    {unsigned(own.begin), unsigned(own.end), unsigned(own.last_key), own.full});
  }
  // By whole warps, or by one lane.
  template <bool kIsWarp>
  OMNIFLASH_DEVICE static Message read(unsigned from) {
    const auto same = [](unsigned value) { return kIsWarp ? uniform(value) : int(value); };
    unsigned ints[3][4];
#pragma unroll
    for (int i = 0; i < 3; ++i) load_shared_16(ints[i], from + 16 * i);
    Message message;
    message.work = Work{int(ints[0][0]), int(ints[0][1]), same(ints[0][2])};
    message.sequence.batch = message.work.batch;
    message.sequence.q_len = ints[0][3];
    message.sequence.kv_len = ints[1][0];
    message.sequence.start = ints[1][1];
    message.sequence.q_base = static_cast<long long>(ints[1][2] | static_cast<unsigned long long>(ints[1][3]) << 32);
    message.window = KeyWindow{same(ints[2][0]), unsigned(same(ints[2][1])), same(ints[2][2]) != 0};
    return message;
  }
  OMNIFLASH_DEVICE static OwnKeys read(unsigned from, int warpgroup) {
    unsigned ints[4];
    load_shared_16(ints, from + 48 + 16 * warpgroup);
    return OwnKeys{uniform(ints[0]), uniform(ints[1]), uniform(ints[2]), unsigned(uniform(ints[3]))};
  }
};

// ---- the warps that plan and copy

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

template <int kSlabs, class Tile>
OMNIFLASH_DEVICE void load_tile(const Tile& tile, const TensorMap& map, unsigned full, const RowsOfSequence& rows,
                                int first_row, int head, unsigned long long cache_policy) {
  mbarrier_arrive_expecting(full, kSlabs * Tile::kSlabBytes);
#pragma unroll
  for (int i = 0; i < kSlabs; ++i) {
    const int at[5] = {i * kSlabColumns, 0, rows.row(first_row), rows.shift(), head};
    load_box(tile.slab(i), map, full, at, cache_policy);
  }
}

// The tiles of a ragged batch, whose sequences differ in length: those of long sequences first, and of one sequence after
// the other. Each block walks once through the sequences, 32 at a time, as its numbers grow.
struct RaggedTiles {
  const AttentionParameters& parameters;
  unsigned head_tiles;
  int most, least;     // rows of the sequences that have their turn: least + 1 .. most
  unsigned first = 0;  // of the 32
  unsigned passed = 0; // tiles before them

  OMNIFLASH_DEVICE explicit RaggedTiles(const AttentionParameters& parameters)
      : parameters(parameters),
        head_tiles(parameters.num_heads / parameters.heads_per_tile),
        most(parameters.seqlen_q),
        least(most / 2) {}

  // The whole warp finds tile `index`, if there is one; indices never fall.
  OMNIFLASH_DEVICE bool find(unsigned index, Work& work) {
    for (; most > 0; most = least, least = most / 8) {
      for (; first < parameters.batch; first += 32) {
        const unsigned batch = first + lane_index();
        int rows = 0;
        if (batch < parameters.batch) rows = Sequence(parameters, batch).q_len;
        if (rows <= least || rows > most) rows = 0;
        const unsigned row_tiles = ceil_divide(rows * static_cast<int>(parameters.heads_per_tile), kBlockM);
        unsigned end = row_tiles * head_tiles;
#pragma unroll
        for (int other = 1; other < 32; other *= 2) {
          const unsigned before = __shfl_up_sync(~0u, end, other);
          if (lane_index() >= other) end += before;
        }
        const unsigned total = __shfl_sync(~0u, end, 31);
        if (index < passed + total) {
          const int lane = __ffs(__ballot_sync(~0u, index < passed + end)) - 1;
          const unsigned tiles_here = __shfl_sync(~0u, row_tiles, lane);
          const unsigned within = index - passed - __shfl_sync(~0u, end - row_tiles * head_tiles, lane);
          // Heads in sections; in a section the last rows of all heads come first.
          const unsigned section = minimum(parameters.section, head_tiles), first_head = within / (tiles_here * section) * section;
          const unsigned heads_here = minimum(section, head_tiles - first_head);
          const unsigned in_section = within - first_head * tiles_here;
          work = Work{static_cast<int>(first) + lane,
                      static_cast<int>((first_head + in_section % heads_here) * parameters.heads_per_tile),
                      static_cast<int>(tiles_here - 1 - in_section / heads_here)};
          return true;
        }
        passed += total;
      }
      first = 0;
    }
    return false;
  }
};

// Takes tiles of rows, asks the mask about their keys, and tells the others.
struct Scheduler {
  const AttentionParameters& parameters;
  const Functors<MaskType, ScoreModType>& functors;
  const HopperParameters& hopper;
  SharedMemory shared;
  RingPosition<kMessages> message;
  RingPosition<1> wish;

  OMNIFLASH_DEVICE void wait_for_room() const { mbarrier_wait(shared.message_empty(message.slot), message.parity ^ 1); }
  OMNIFLASH_DEVICE void send(const Message& what) {
    if (lane_index() == 0) {
      what.write(shared.message(message.slot));
      mbarrier_arrive(shared.message_full(message.slot));
    }
    message.advance();
  }

  // The window whose first tile is `first`: each lane asks the mask for one tile, for all rows and for each warpgroup's.
  OMNIFLASH_DEVICE void send_window(const Work& work, const Sequence& sequence, const RowTile& rows,
                                    KeyTiles<MaskType>& tiles, int first) {
    wait_for_room();
    const int tile = first - lane_index();
    const bool exists = tile >= tiles.begin;
    // Keys past the end of a sequence are hidden like those that a mask hides.
    const bool is_whole = (tile + 1) * kBlockN <= sequence.kv_len;
#pragma unroll 1
    for (int warpgroup = 0; warpgroup < kConsumers; ++warpgroup) {
      RowTile own_rows = rows;
      own_rows.first_row = minimum(rows.first_row + 64 * warpgroup, rows.num_rows - 1);
      KeyTiles<MaskType> own(functors.mask, sequence, own_rows, 64, kBlockN);
      const bool is_full = exists && is_whole && own.status(tile) == TileStatus::Full;
      OwnKeys keys{own.begin, own.end, own.visible.end, __ballot_sync(~0u, is_full)};
      if (rows.first_row + 64 * warpgroup >= rows.num_rows) keys.end = keys.begin;
      if (lane_index() == 0) Message::write(shared.message(message.slot), warpgroup, keys);
    }
    const bool is_present = exists && tiles.status(tile) != TileStatus::Skip;
    send(Message{work, sequence, KeyWindow{first, __ballot_sync(~0u, is_present), first - 32 < tiles.begin}});
  }

  // All windows of one tile of rows; then waits until the copies of its keys come to an end. Who takes the next tile
  // earlier takes one that another block could begin sooner.
  OMNIFLASH_DEVICE void announce(const Work& work, const Sequence& sequence, const RowTile& rows) {
    KeyTiles<MaskType> tiles(functors.mask, sequence, rows, kBlockM, kBlockN);
    int first = tiles.end - 1;
    do {
      send_window(work, sequence, rows, tiles, first);
      first -= 32;
    } while (first >= tiles.begin);
    mbarrier_wait(shared.next_wanted(), wish.parity);
    wish.advance();
  }

  OMNIFLASH_DEVICE void run() {
    RaggedTiles ragged(parameters);
    unsigned tile = block_index_x(), ticket = 0;
    while (true) {
      Work work;
      if (is_ragged(parameters)) {
        if (!ragged.find(tile, work)) break;
      } else {
        if (tile >= hopper.num_tiles) break;
        work = work_of_block(parameters, tile);
      }
      const Sequence sequence(parameters, work.batch);
      const RowTile rows(parameters, work, sequence, kBlockM);
      if (!rows.is_empty()) announce(work, sequence, rows);
      if (lane_index() == 0) ticket = take_ticket(hopper.counter);
      tile = gridDim.x + uniform(ticket);
    }
    // As many tickets are taken as there are tiles: whoever has the last leaves the counter as it was.
    const unsigned num_tiles = is_ragged(parameters) ? ragged.passed : hopper.num_tiles;
    if (lane_index() == 0 && tile >= gridDim.x && ticket + 1 == num_tiles) *hopper.counter = 0;
    Message end = {};
    end.work.row_tile = -1;
    wait_for_room();
    send(end);
  }
};

struct Producer {
  const AttentionParameters& parameters;
  const HopperParameters& hopper;
  SharedMemory shared;
  RingPosition<kQueryTiles> query;
  RingPosition<kSlots> key, value;
  RingPosition<kMessages> message;

  OMNIFLASH_DEVICE Message receive() {
    mbarrier_wait(shared.message_full(message.slot), message.parity);
    const Message received = Message::read<false>(shared.message(message.slot));
    mbarrier_arrive(shared.message_empty(message.slot));
    message.advance();
    return received;
  }
  OMNIFLASH_DEVICE void load_query(const RowsOfSequence& rows, const RowTile& tile) {
    mbarrier_wait(shared.query_empty(query.slot), query.parity ^ 1);
    const int heads = tile.heads;
    load_tile<kHeadSlabs>(shared.query(query.slot), hopper.q, shared.query_full(query.slot), rows,
                          tile.first_row / heads, tile.first_head / heads, kEvictFirst);
    query.advance();
  }
  OMNIFLASH_DEVICE void load_key(const RowsOfSequence& rows, int tile, int head) {
    mbarrier_wait(shared.key_empty(key.slot), key.parity ^ 1);
    load_tile<kHeadSlabs>(shared.key(key.slot), hopper.k, shared.key_full(key.slot), rows, tile * kBlockN, head,
                          kEvictLast);
    key.advance();
  }
  OMNIFLASH_DEVICE void load_value(const RowsOfSequence& rows, int tile, int head) {
    mbarrier_wait(shared.value_empty(value.slot), value.parity ^ 1);
    load_tile<kValueSlabs>(shared.value(value.slot), hopper.v, shared.value_full(value.slot), rows, tile * kBlockN,
                           head, kEvictLast);
    value.advance();
  }

  // Copies all of one tile of rows, in the order in which the consumers take it.
  OMNIFLASH_DEVICE void produce(const Message& first) {
    const Work& work = first.work;
    const RowTile tile_of_rows(parameters, work, first.sequence, kBlockM);
    const int head = work.first_head / static_cast<int>(parameters.group_size);
    const RowsOfSequence q = query_rows(parameters, first.sequence, hopper.q_batch_rows);
    const RowsOfSequence k = key_rows(parameters, first.sequence, hopper.k_batch_rows);
    const RowsOfSequence v = key_rows(parameters, first.sequence, hopper.v_batch_rows);
    KeyWindow window = first.window;
    // One Q tile alone is empty late: the first keys do not wait for it.
    if (kQueryTiles > 1 || window.present == 0) load_query(q, tile_of_rows);
    bool query_is_due = kQueryTiles == 1 && window.present != 0, has_wished = false;
    int behind = -1;  // the tile whose values are due
    while (true) {
      for (unsigned left = window.present; left != 0; left &= left - 1) {
        const int tile = window.first_tile - (__ffs(left) - 1);
        if (!has_wished && window.is_last && __popc(left) <= kTilesAhead) {
          has_wished = true;
          mbarrier_arrive(shared.next_wanted());
        }
        load_key(k, tile, head);
        if (query_is_due) load_query(q, tile_of_rows);
        query_is_due = false;
        if (behind >= 0) load_value(v, behind, head);
        behind = tile;
      }
      if (window.is_last) break;
      window = receive().window;
    }
    if (!has_wished) mbarrier_arrive(shared.next_wanted());
    if (behind >= 0) load_value(v, behind, head);
  }

  OMNIFLASH_DEVICE void run() {
    prefetch_tensor_map(hopper.q);
    prefetch_tensor_map(hopper.k);
    prefetch_tensor_map(hopper.v);
    prefetch_tensor_map(hopper.out);
    while (true) {
      const Message received = receive();
      if (received.work.row_tile < 0) break;
      produce(received);
    }
  }
};

// ---- the consumers

// What one warp works on.
struct WarpRows {
  const AttentionParameters& parameters;
  const Functors<MaskType, ScoreModType>& functors;
  Sequence sequence;
  RowTile rows;
  int first_row;  // of the warp, in the sequence

  OMNIFLASH_DEVICE bool is_valid(int half) const { return first_row + lane_index() / 4 + 8 * half < rows.num_rows; }
  // Row of an accumulator's half in the sequence; past the end, the last.
  OMNIFLASH_DEVICE int row(int half) const {
    return minimum(first_row + lane_index() / 4 + 8 * half, rows.num_rows - 1);
  }
  OMNIFLASH_DEVICE ScoreIndex index(int row) const {
    const int query = rows.query(row);
    return ScoreIndex{sequence.batch, rows.head(row), query, sequence.start + query, 0};
  }
  // Of scores before mask and modification.
  OMNIFLASH_DEVICE float scale() const { return kFolded ? 1.0f : parameters.softmax_scale; }
  // Of scores in the exponential.
  OMNIFLASH_DEVICE float factor() const { return kFolded ? parameters.softmax_scale * kLog2E : kLog2E; }
};

// Scale and score modification.
template <int kWords>
OMNIFLASH_DEVICE void modify(const WarpRows& at_rows, int tile, float (&s)[kWords]) {
  if constexpr (is_identity<ScoreModType>) {
    if constexpr (!kFolded) {
#pragma unroll
      for (int i = 0; i < kWords; ++i) s[i] *= at_rows.scale();
    }
  } else {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      ScoreIndex at = at_rows.index(at_rows.row(half));
#pragma unroll
      for (int n = 0; n < kWords / 4; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          at.k = minimum(tile * kBlockN + 8 * n + lane_index() % 4 * 2 + i, at_rows.sequence.kv_len - 1);
          float& score = s[4 * n + 2 * half + i];
          score = at_rows.functors.score_mod.apply(score * at_rows.scale(), at);
        }
      }
    }
  }
}

// Hides what the mask hides, and keys past the end.
template <class Mask, int kWords>
OMNIFLASH_DEVICE void hide(const WarpRows& at_rows, const Mask& mask, int tile, float (&s)[kWords]) {
  const int kv_len = at_rows.sequence.kv_len, column = lane_index() % 4 * 2;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    ScoreIndex at = at_rows.index(at_rows.row(half));
    if constexpr (has_bits<Mask> && !has_add<Mask>) {
#pragma unroll
      for (int word = 0; word < kWords / 16; ++word) {
        at.k = tile * kBlockN + 32 * word;
        const unsigned bits = (band_bits(0, kv_len, at.k) & mask.bits(at)) >> column;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          if (!(bits >> (i / 2 * 8 + i % 2) & 1)) s[16 * word + 4 * (i / 2) + 2 * half + i % 2] = -kInfinity;
        }
      }
    } else {
#pragma unroll
      for (int n = 0; n < kWords / 4; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          at.k = tile * kBlockN + 8 * n + column + i;
          float& score = s[4 * n + 2 * half + i];
          score = at.k < kv_len ? masked(mask, score, at) : -kInfinity;
        }
      }
    }
  }
}

OMNIFLASH_DEVICE float quad_max(float x) {
  x = maximum(x, shuffle_xor(x, 1));
  return maximum(x, shuffle_xor(x, 2));
}
OMNIFLASH_DEVICE float quad_sum(float x) {
  x += shuffle_xor(x, 1);
  return x + shuffle_xor(x, 2);
}

// Scores become weights; sums stay per thread until the end. What was summed before has to be multiplied by `rescale`.
template <int kWords>
OMNIFLASH_DEVICE void online_softmax(float factor, SoftmaxRow (&softmax)[2], float (&s)[kWords], float (&rescale)[2]) {
  float offset[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float row_max = maximum(s[2 * half], s[2 * half + 1]);
#pragma unroll
    for (int n = 1; n < kWords / 4; ++n) row_max = maximum(row_max, maximum(s[4 * n + 2 * half], s[4 * n + 2 * half + 1]));
    rescale[half] = softmax[half].raise(quad_max(row_max), factor);
    offset[half] = softmax[half].offset(factor);
  }
#pragma unroll
  for (int i = 0; i < kWords; ++i) s[i] = exp2_of(s[i], factor, offset[i / 2 % 2]);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float row_sum = s[2 * half] + s[2 * half + 1];
#pragma unroll
    for (int n = 1; n < kWords / 4; ++n) row_sum += s[4 * n + 2 * half] + s[4 * n + 2 * half + 1];
    softmax[half].sum += row_sum;
  }
}

// Weights of keys without scores are 0.
template <int kWords>
OMNIFLASH_DEVICE void round_weights(Weights& p, const float (&s)[kWords]) {
#pragma unroll
  for (int i = 0; i < kBlockN / 4; ++i) p[i] = i < kWords / 2 ? pack<Element>(s[2 * i], s[2 * i + 1]) : 0u;
}

// Most tiles raise no row's offset by enough: then there is nothing to do for the whole warp.
OMNIFLASH_DEVICE void rescale_output(Output& o, const float (&rescale)[2]) {
  if (!warp_any(rescale[0] != 1.0f || rescale[1] != 1.0f)) return;
#pragma unroll
  for (int i = 0; i < kValueDim / 2; ++i) o[i] *= rescale[i / 2 % 2];
}

template <int kWords>
OMNIFLASH_DEVICE void issue_scores(float (&s)[kWords], unsigned long long q, unsigned long long k) {
#pragma unroll
  for (int step = 0; step < kHeadDim / 16; ++step) {
    MatrixProduct<Element, 2 * kWords>::from_shared(s, q + QueryTile::deeper(step), k + KeyTile::deeper(step), step > 0);
  }
  product_commit();
}
OMNIFLASH_DEVICE void issue_output(Output& o, const Weights& p, unsigned long long v) {
#pragma unroll
  for (int step = 0; step < kBlockN / 16; ++step) {
    MatrixProduct<Element, kValueDim>::from_registers(o, &p[4 * step], v + ValueTile::rows_deeper(step));
  }
  product_commit();
}

// The rows of a warp again, by the definition, where the product met a value that is not finite: hidden keys have weight 0
// there, and 0 times Inf or NaN is NaN. Offsets and sums are right already. Rare, and slow.
OMNIFLASH_DEVICE void write_rows_by_definition(const WarpRows& at_rows, const float (&offset)[2], const float (&scale)[2]) {
  constexpr int kColumns = (kValueDim + 31) / 32;
  const AttentionParameters& parameters = at_rows.parameters;
  const int lane = lane_index(), kv_len = at_rows.sequence.kv_len;
  const int head_dim = parameters.head_dim, value_dim = parameters.value_dim;
  const StridedKeys keys(parameters, at_rows.sequence, at_rows.rows.first_head / static_cast<int>(parameters.group_size));
#pragma unroll 1
  for (int i = 0; i < 16 && at_rows.first_row + i < at_rows.rows.num_rows; ++i) {
    const float row_offset = shuffle(i < 8 ? offset[0] : offset[1], i % 8 * 4);
    const float row_scale = shuffle(i < 8 ? scale[0] : scale[1], i % 8 * 4);
    ScoreIndex at = at_rows.index(at_rows.first_row + i);
    const Element* q =
        at_rows.sequence.template row<const Element>(parameters.q, is_ragged(parameters), at.row, at.head);
    float sum[kColumns] = {};
#pragma unroll 1
    for (at.k = 0; at.k < kv_len; ++at.k) {
      const Element* k = keys.template keys_from<Element>(at.k).at(true);
      float score = 0.0f;
      for (int column = lane; column < head_dim; column += 32) score += to_float(q[column]) * to_float(k[column]);
#pragma unroll
      for (int other = 16; other > 0; other /= 2) score += shuffle_xor(score, other);
      score = masked(at_rows.functors.mask, at_rows.functors.score_mod.apply(score * at_rows.scale(), at), at);
      const float weight = exp2_of(score, at_rows.factor(), row_offset);
      if (weight == 0.0f) continue;
      const Element* v = keys.template values_from<Element>(at.k).at(true);
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        if (lane + 32 * c < value_dim) sum[c] += weight * to_float(v[lane + 32 * c]);
      }
    }
    Element* out = at_rows.sequence.template row<Element>(parameters.out, is_ragged(parameters), at.row, at.head);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      if (lane + 32 * c < value_dim) out[lane + 32 * c] = from_float<Element>(sum[c] * row_scale);
    }
  }
}

struct Consumer {
  const AttentionParameters& parameters;
  const Functors<MaskType, ScoreModType>& functors;
  const HopperParameters& hopper;
  SharedMemory shared;
  int warpgroup, warp, lane;
  RingPosition<kQueryTiles> query;
  RingPosition<kSlots> key, value;
  RingPosition<kMessages> message;
  Output o;
  SoftmaxRow softmax[2];

  OMNIFLASH_DEVICE void release(unsigned empty) const {
    if (lane == 0) mbarrier_arrive(empty);
  }
  OMNIFLASH_DEVICE Message receive(OwnKeys& own) {
    mbarrier_wait(shared.message_full(message.slot), message.parity);
    const Message received = Message::read<true>(shared.message(message.slot));
    own = Message::read(shared.message(message.slot), warpgroup);
    __syncwarp();
    release(shared.message_empty(message.slot));
    message.advance();
    return received;
  }
  // The next run of tiles of these rows, if there is one.
  OMNIFLASH_DEVICE bool next(KeyWindow& window, OwnKeys& own, KeyWindow::Run& run) {
    while (window.present == 0) {
      if (window.is_last) return false;
      window = receive(own).window;
    }
    run = window.take(own.full);
    return true;
  }

  // A turn at issuing products. Every tile of keys but the first of some rows takes one, whether it is computed or not.
  OMNIFLASH_DEVICE void take_turn() const {
    if (kTakesTurns) named_barrier(1 + kConsumers + warpgroup, 256);
  }
  OMNIFLASH_DEVICE void pass_turn() const {
    if (kTakesTurns) named_arrive(1 + kConsumers + (warpgroup + 1 == kConsumers ? 0 : warpgroup + 1), 256);
  }
  OMNIFLASH_DEVICE void skip_turn() const {
    take_turn();
    pass_turn();
  }

  // A tile that only rows of other warpgroups see, and the values of one: those of a tile come after the next one's keys.
  OMNIFLASH_DEVICE void skip_tile(bool skips_value) {
    if (skips_value) skip_turn();
    mbarrier_wait(shared.key_full(key.slot), key.parity);
    release(shared.key_empty(key.slot));
    key.advance();
    if (skips_value) skip_value();
  }
  OMNIFLASH_DEVICE void skip_value() {
    mbarrier_wait(shared.value_full(value.slot), value.parity);
    release(shared.value_empty(value.slot));
    value.advance();
  }

  // The first tile: nothing to overlap with.
  template <int kKeys>
  OMNIFLASH_DEVICE void first_tile(const WarpRows& rows, unsigned long long q, int tile, bool is_partial, Weights& p) {
    ScoresOf<kKeys> s;
    mbarrier_wait(shared.key_full(key.slot), key.parity);
    pin(s);
    product_fence();
    issue_scores(s, q, shared.key(key.slot).rows_descriptor(0));
    product_wait<0>();
    pin(s);
    release(shared.key_empty(key.slot));
    key.advance();
    modify(rows, tile, s);
    if (is_partial) hide(rows, functors.mask, tile, s);
    float rescale[2];
    online_softmax(rows.factor(), softmax, s, rescale);
    round_weights(p, s);
  }

  // Scores of a tile and output of the one before, in flight together.
  template <bool kIsPartial>
  OMNIFLASH_DEVICE void next_tile(const WarpRows& rows, unsigned long long q, int tile, Scores& s, Weights& p) {
    mbarrier_wait(shared.key_full(key.slot), key.parity);
    pin(o);
    pin(p);
    pin(s);
    take_turn();
    product_fence();
    issue_scores(s, q, shared.key(key.slot).rows_descriptor(0));
    mbarrier_wait(shared.value_full(value.slot), value.parity);
    product_fence();
    issue_output(o, p, shared.value(value.slot).columns_descriptor());
    pass_turn();
    // What a mask does may branch, which nothing must while products are in flight.
    product_wait<kIsPartial ? 0 : 1>();
    pin(s);
    if constexpr (kIsPartial) {
      pin(o);
      pin(p);
    }
    release(shared.key_empty(key.slot));
    key.advance();
    modify(rows, tile, s);
    if constexpr (kIsPartial) hide(rows, functors.mask, tile, s);
    float rescale[2];
    online_softmax(rows.factor(), softmax, s, rescale);
    compute_before(softmax[0].sum + softmax[1].sum);  // never negative
    product_wait<0>();
    pin(o);
    pin(p);
    release(shared.value_empty(value.slot));
    value.advance();
    round_weights(p, s);
    rescale_output(o, rescale);
  }

  // The last output of these rows: nothing to overlap with.
  OMNIFLASH_DEVICE void last_output(Weights& p) {
    mbarrier_wait(shared.value_full(value.slot), value.parity);
    pin(o);
    pin(p);
    product_fence();
    issue_output(o, p, shared.value(value.slot).columns_descriptor());
    product_wait<0>();
    pin(o);
    pin(p);
    release(shared.value_empty(value.slot));
    value.advance();
  }

  // Divides by the sums, writes lse, and sends the output on its way from the place of Q.
  OMNIFLASH_DEVICE void store(const WarpRows& rows, const Work& work) {
    const bool has_sinks = static_cast<SinkForm>(parameters.sink_form) != SinkForm::Absent;
    const bool wants_lse = static_cast<LseForm>(parameters.lse_form) == LseForm::Written;
    float scale[2], offset[2], lse[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = quad_sum(softmax[half].sum);
      offset[half] = softmax[half].offset(rows.factor());
      scale[half] = sum == 0.0f ? 0.0f : reciprocal(sum);
      lse[half] = (offset[half] + log2(sum)) * kLn2;
      if (has_sinks) {
        const int head = rows.rows.head(rows.row(half));
        const SoftmaxResult result = finalize(offset[half], sum, sink_log2(parameters, head));
        scale[half] = result.scale;
        lse[half] = result.lse;
      }
    }
    if (wants_lse && lane % 4 == 0) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = rows.row(half);
        float* to = rows.sequence.row<float>(parameters.lse, is_ragged(parameters), rows.rows.query(row), rows.rows.head(row));
        if (rows.is_valid(half)) *to = lse[half];
      }
    }
    named_barrier(1 + warpgroup, 128);  // all warps of the group have left Q
    bool by_definition = false;
    if constexpr (kHides) {
      float probe[2] = {0.0f, 0.0f};  // stays 0 while everything is finite
#pragma unroll
      for (int i = 0; i < kValueDim / 2; ++i) probe[i / 2 % 2] = fused_multiply_add(o[i], 0.0f, probe[i / 2 % 2]);
      by_definition = warp_any((probe[0] != 0.0f && rows.is_valid(0)) || (probe[1] != 0.0f && rows.is_valid(1)));
      if (by_definition) write_rows_by_definition(rows, offset, scale);
    }
    const OutputTile tile = shared.query(query.slot);
    const int row = 64 * warpgroup + 16 * warp;
    if (!by_definition) {
#pragma unroll
      for (int step = 0; step < kValueDim / 16; ++step) {
        const float* x = &o[8 * step];
        const unsigned words[4] = {pack<Element>(x[0] * scale[0], x[1] * scale[0]),
                                   pack<Element>(x[2] * scale[1], x[3] * scale[1]),
                                   pack<Element>(x[4] * scale[0], x[5] * scale[0]),
                                   pack<Element>(x[6] * scale[1], x[7] * scale[1])};
        store_matrices(tile.chunk(row + lane % 16, 2 * step + lane / 16), words);
      }
      fence_async_proxy();
      __syncwarp();
      if (lane == 0) {
        const RowsOfSequence to = query_rows(parameters, rows.sequence, hopper.out_batch_rows);
        const int heads = rows.rows.heads;
#pragma unroll
        for (int i = 0; i < kValueSlabs; ++i) {
          const int at[5] = {i * kSlabColumns, 0, to.row(rows.first_row / heads), to.shift(), work.first_head / heads};
          store_box(hopper.out, tile.slab(i) + row * kSlabRowBytes, at);
        }
      }
    }
    if (lane == 0) commit_stores();
  }

  // Gives the Q tile of this slot back once its output has left.
  OMNIFLASH_DEVICE void release_query(int slot) const {
    if (lane == 0) {
      wait_stores_read();
      mbarrier_arrive(shared.query_empty(slot));
    }
  }

  OMNIFLASH_DEVICE void run() {
    if (warpgroup == kConsumers - 1) pass_turn();  // the first is warpgroup 0's
    int leaving = -1;  // the slot whose output is on its way
    while (true) {
      OwnKeys own;
      Message received = receive(own);
      if (received.work.row_tile < 0) break;
      const RowTile tile(parameters, received.work, received.sequence, kBlockM);
      const WarpRows rows{parameters, functors, received.sequence, tile, tile.first_row + 64 * warpgroup + 16 * warp};
      const QueryTile queries{unsigned(uniform(shared.query(query.slot).address))};
      const unsigned long long q = queries.rows_descriptor(64 * warpgroup);
      Scores s;
      Weights p;
#pragma unroll
      for (int i = 0; i < kValueDim / 2; ++i) o[i] = 0.0f;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        softmax[half].max = -kInfinity;
        softmax[half].sum = 0.0f;
      }
      mbarrier_wait(shared.query_full(query.slot), query.parity);
      KeyWindow::Run run;
      bool is_due = next(received.window, own, run);
      bool has_skipped = false;
      while (is_due && (run.tile >= own.end || own.begin >= own.end)) {
        skip_tile(has_skipped);
        has_skipped = true;
        is_due = run.step() || next(received.window, own, run);
      }
      if (is_due) {
        if (has_skipped) skip_turn();
        if (kHalfTile < kBlockN && own.last_key <= run.tile * kBlockN + kHalfTile) {
          first_tile<kHalfTile>(rows, q, run.tile, run.is_partial, p);
        } else {
          first_tile<kBlockN>(rows, q, run.tile, run.is_partial, p);
        }
        if (has_skipped) skip_value();
        run.step();
      }
      if (kQueryTiles > 1 && leaving >= 0) release_query(leaving);
      if (is_due) {
        do {
          int count = minimum(run.count, run.tile + 1 - own.begin);
          run.count -= maximum(count, 0);
          if (run.is_partial) {
            for (; count > 0; --count) next_tile<true>(rows, q, run.tile--, s, p);
          } else {
            for (; count > 0; --count) next_tile<false>(rows, q, run.tile--, s, p);
          }
        } while (run.count == 0 && next(received.window, own, run));
        last_output(p);
        while (run.count > 0 || next(received.window, own, run)) {
          skip_tile(true);
          run.step();
        }
      } else if (has_skipped) {
        skip_value();
      }
      store(rows, received.work);
      leaving = query.slot;
      if (kQueryTiles == 1) release_query(leaving);
      query.advance();
    }
    if (lane == 0) wait_stores_read();  // the block's shared memory must outlive them
  }
};

}  // namespace omniflash

extern "C" __global__ void __launch_bounds__(omniflash::kThreads, 1)
    omniflash_forward(OMNIFLASH_PARAMETER omniflash::AttentionParameters parameters,
                      OMNIFLASH_PARAMETER omniflash::Functors<omniflash::MaskType, omniflash::ScoreModType> functors,
                      OMNIFLASH_PARAMETER omniflash::HopperParameters hopper) {
  using namespace omniflash;
  const SharedMemory shared;
  if (thread_index() == 0) shared.initialize_barriers();
  barrier();
  const int group = uniform(thread_index() / 128);
  if (group == 0) {
    give_registers_back<kProducerRegisters>();
    const int warp = uniform(thread_index() / 32);
    if (warp == 0 && lane_index() == 0) Producer{parameters, hopper, shared}.run();
    if (warp == 1) Scheduler{parameters, functors, hopper, shared}.run();
  } else {
    take_registers<kConsumerRegisters>();
    const int warp = uniform(thread_index() / 32 % 4);
    Consumer{parameters, functors, hopper, shared, group - 1, warp, lane_index()}.run();
  }
}
