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
// tiles, and of its first one the second half, that the mask hides from all of these. With many slots they change places from
// tile to tile of rows, since the mask hides more of the first ones.
//
// Shared memory, in slabs of 64 columns with the 128-byte swizzle (sm90/slabs.hpp):
//   [ Q tile 0 .. kQueryTiles - 1 | K slot 0 .. kSlots - 1 | V slot 0 .. kSlots - 1 | output | mbarriers | messages ]
// With two Q tiles the output of a tile replaces its own Q (a warpgroup reads and writes only its own rows of both), and the
// next one's rows and keys arrive, and the last one's output leaves, while this one is computed. With one Q tile the output
// leaves from a place of its own, kOutputColumns at a time, and the next Q arrives once the last S is there; where there is
// no room for that, it replaces Q too.
//
// Order: S(n) = Q K(n)^T and O += P(n + 1) V(n + 1) are issued together, and then S(n) becomes P(n). Where there is a mask and
// few slots, warpgroups take turns at issuing. Without a mask, two warpgroups take tiles of 128 keys in halves: S of the half
// after and O of the half before are computed while S of one becomes P.
//
// The instance chooses Element, Keys, MaskType, ScoreModType, kHeadDim, kValueDim, kBlockN, kConsumers, kQueryTiles, kSlots and
// kOutputColumns.

#include "sm90/epilogue.hpp"
#include "sm90/messages.hpp"
#include "sm90/producer.hpp"
#include "sm90/scheduler.hpp"
#include "sm90/softmax.hpp"
#include "sm90/wgmma.hpp"

namespace omniflash {

template <int kWords>
OMNIFLASH_DEVICE void issue_scores(float (&s)[kWords], unsigned long long q, unsigned long long k) {
#pragma unroll
  for (int step = 0; step < kHeadDim / 16; ++step) {
    MatrixProduct<Element, 2 * kWords>::from_shared(s, q + QueryTile::deeper(step), k + KeyTile::deeper(step), step > 0);
  }
  product_commit();
}
template <int kPairs>
OMNIFLASH_DEVICE void issue_output(Output& o, const unsigned (&p)[kPairs], unsigned long long v) {
#pragma unroll
  for (int step = 0; step < kPairs / 4; ++step) {
    MatrixProduct<Element, kValueDim>::from_registers(o, &p[4 * step], v + ValueTile::rows_deeper(step));
  }
  product_commit();
}

struct Consumer {
  const AttentionParameters& parameters;
  const Functors<MaskType, ScoreModType>& functors;
  const HopperParameters& hopper;
  SharedMemory shared;
  int warpgroup, warp, lane;
  int place = warpgroup;  // of its rows in the tile
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
    own = Message::read(shared.message(message.slot), place);
    // Every lane for itself: racecheck credits nobody with what another lane has arrived for.
    mbarrier_arrive(shared.message_empty(message.slot));
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

  OMNIFLASH_DEVICE void clear_output() {
#pragma unroll
    for (int i = 0; i < kValueDim / 2; ++i) o[i] = 0.0f;
  }

  // The first tile: nothing to overlap with.
  template <int kKeys>
  OMNIFLASH_DEVICE void first_tile(const WarpRows& rows, unsigned long long q, int tile, bool is_partial, Weights& p) {
    ScoresOf<kKeys> s;
    mbarrier_wait(shared.key_full(key.slot), key.parity);
    pin(s);
    product_fence();
    issue_scores(s, q, shared.key(key.slot).rows_descriptor(0));
    clear_output();
    pin(o);
    product_wait<0>();
    pin(s);
    release(shared.key_empty(key.slot));
    key.advance();
    modify<false>(rows, tile * kBlockN, s);
    if (is_partial) hide(rows, functors.mask, tile * kBlockN, s);
    begin_weights(rows.factor(), softmax, s, p);
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
    modify<!kIsPartial>(rows, tile * kBlockN, s);
    if constexpr (kIsPartial) hide(rows, functors.mask, tile * kBlockN, s);
    product_wait<0>();
    pin(o);
    pin(p);
    release(shared.value_empty(value.slot));
    value.advance();
    float rescale[2];
    if (next_weights(rows.factor(), softmax, s, p, rescale)) rescale_output(o, rescale);
  }

  // Tiles in halves. At the end of a step the scores of a tile's second half, and the output of one half before, are under way.
  struct Halves {
    ScoresOf<kHalfKeys> s[2];
    unsigned p[2][kHalfKeys / 4];
    int tile;
    bool is_partial, has_output;
    bool is_raised;  // then O is multiplied by `rescale` before more is added
    float rescale[2];
  };
  OMNIFLASH_DEVICE void issue_half_scores(Halves& halves, int half, unsigned long long q) const {
    pin(halves.s[half]);
    product_fence();
    issue_scores(halves.s[half], q, shared.key(key.slot).rows_descriptor(half * kHalfKeys));
  }
  OMNIFLASH_DEVICE void issue_half_output(Halves& halves, int half) {
    pin(o);
    pin(halves.p[half]);
    product_fence();
    issue_output(o, halves.p[half],
                 shared.value(value.slot).columns_descriptor() + ValueTile::rows_deeper(half * kHalfKeys / 16));
  }
  OMNIFLASH_DEVICE void wait_for_halves(Halves& halves) {
    product_wait<0>();
    pin(o);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      pin(halves.s[half]);
      pin(halves.p[half]);
    }
    if (halves.is_raised) rescale_output(o, halves.rescale);
  }
  // The branch also keeps products together: without it ptxas puts exponentials between them, and they begin late.
  OMNIFLASH_DEVICE void weigh_half(const WarpRows& rows, Halves& halves, int half) {
    if (halves.is_partial) hide(rows, functors.mask, halves.tile * kBlockN + half * kHalfKeys, halves.s[half]);
    halves.is_raised = next_weights(rows.factor(), softmax, halves.s[half], halves.p[half], halves.rescale);
  }
  OMNIFLASH_DEVICE void first_halves(const WarpRows& rows, unsigned long long q, int tile, bool is_partial,
                                     Halves& halves) {
    mbarrier_wait(shared.key_full(key.slot), key.parity);
    issue_half_scores(halves, 0, q);
    clear_output();
    pin(o);
    product_wait<0>();
    pin(halves.s[0]);
    issue_half_scores(halves, 1, q);
    if (is_partial) hide(rows, functors.mask, tile * kBlockN, halves.s[0]);
    begin_weights(rows.factor(), softmax, halves.s[0], halves.p[0]);
    halves.tile = tile;
    halves.is_partial = is_partial;
    halves.has_output = false;
    halves.is_raised = false;
  }
  // The second half of the tile before: all products that read its keys, and the values of the one before it, are done.
  OMNIFLASH_DEVICE void leave_tile(Halves& halves) {
    wait_for_halves(halves);
    release(shared.key_empty(key.slot));
    key.advance();
    if (halves.has_output) {
      release(shared.value_empty(value.slot));
      value.advance();
    }
    halves.has_output = true;
  }
  OMNIFLASH_DEVICE void next_halves(const WarpRows& rows, unsigned long long q, int tile, bool is_partial,
                                    Halves& halves) {
    leave_tile(halves);
    mbarrier_wait(shared.key_full(key.slot), key.parity);
    issue_half_scores(halves, 0, q);
    mbarrier_wait(shared.value_full(value.slot), value.parity);
    issue_half_output(halves, 0);
    weigh_half(rows, halves, 1);
    wait_for_halves(halves);
    issue_half_scores(halves, 1, q);
    issue_half_output(halves, 1);
    halves.tile = tile;
    halves.is_partial = is_partial;
    weigh_half(rows, halves, 0);
  }
  OMNIFLASH_DEVICE FinishedRows last_halves(const WarpRows& rows, Halves& halves) {
    leave_tile(halves);
    mbarrier_wait(shared.value_full(value.slot), value.parity);
    issue_half_output(halves, 0);
    weigh_half(rows, halves, 1);
    wait_for_halves(halves);
    issue_half_output(halves, 1);
    const FinishedRows finished(rows, softmax);
    product_wait<0>();
    pin(o);
    pin(halves.p[1]);
    release(shared.value_empty(value.slot));
    value.advance();
    return finished;
  }

  // The last output of these rows. What they are divided by is found under the product.
  OMNIFLASH_DEVICE FinishedRows last_output(const WarpRows& rows, Weights& p) {
    mbarrier_wait(shared.value_full(value.slot), value.parity);
    pin(o);
    pin(p);
    product_fence();
    issue_output(o, p, shared.value(value.slot).columns_descriptor());
    const FinishedRows finished(rows, softmax);
    product_wait<0>();
    pin(o);
    pin(p);
    release(shared.value_empty(value.slot));
    value.advance();
    return finished;
  }

  // Divides by the sums, sends the output on its way, and writes lse. Where it leaves from the place of Q, no product reads these
  // rows of Q any more: the last one, which all warps of the group take part in, began after their scores had come.
  OMNIFLASH_DEVICE void store(const WarpRows& rows, const FinishedRows& finished) {
    RoundedOutput words;
    round_output(words, o, finished.scale);
    if (has_met_nonfinite(words)) {
      write_rows_by_definition(rows, finished.offset, finished.scale);
    } else {
      send_output(rows, hopper, shared.output(query.slot), 64 * place + 16 * warp, words);
    }
    write_lse(rows, finished.lse);
  }

  // Gives the Q tile of this slot back once its output has left.
  OMNIFLASH_DEVICE void release_query(int slot) const {
    if (lane == 0) {
      wait_stores_read();
      mbarrier_arrive(shared.query_empty(slot));
    }
  }

  // The slot of the rows before these: their output had the first tile of these to leave.
  OMNIFLASH_DEVICE void release_left_query(int leaving) const {
    if (kQueryTiles > 1 && leaving >= 0) release_query(leaving);
  }
  // Where the output has a place of its own, Q is read for the last time before the last output.
  OMNIFLASH_DEVICE void give_query_back() const {
    if (kHasOutputTile) release(shared.query_empty(query.slot));
  }

  // A sink is a score before all others to which no value belongs; one of a row's four lanes counts it.
  OMNIFLASH_DEVICE void begin_softmax(const WarpRows& rows) {
    const bool has_sinks = static_cast<SinkForm>(parameters.sink_form) != SinkForm::Absent;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      softmax[half] = SoftmaxRow{};
      if (has_sinks) {
        softmax[half].max = sink_log2(parameters, rows.head(half)) / rows.factor();
        softmax[half].sum = lane % 4 == 0 && softmax[half].max != -kInfinity ? 1.0f : 0.0f;
      }
    }
  }

  // All keys of some rows, a tile at a time.
  OMNIFLASH_DEVICE FinishedRows compute_tiles(const WarpRows& rows, unsigned long long q, KeyWindow& window, OwnKeys& own,
                                              int leaving) {
    Scores s;
    Weights p;
    KeyWindow::Run run;
    bool is_due = next(window, own, run);
    bool has_skipped = false;
    while (is_due && (run.tile >= own.end || own.begin >= own.end)) {
      skip_tile(has_skipped);
      has_skipped = true;
      is_due = run.step() || next(window, own, run);
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
    } else {
      clear_output();
    }
    release_left_query(leaving);
    if (!is_due) {
      give_query_back();
      if (has_skipped) skip_value();
      return FinishedRows(rows, softmax);
    }
    do {
      int count = minimum(run.count, run.tile + 1 - own.begin);
      run.count -= maximum(count, 0);
      if (never_full<MaskType> || run.is_partial) {
        for (; count > 0; --count) next_tile<true>(rows, q, run.tile--, s, p);
      } else {
        for (; count > 0; --count) next_tile<false>(rows, q, run.tile--, s, p);
      }
    } while (run.count == 0 && next(window, own, run));
    give_query_back();
    const FinishedRows finished = last_output(rows, p);
    while (run.count > 0 || next(window, own, run)) {
      skip_tile(true);
      run.step();
    }
    return finished;
  }

  // The same in halves of tiles. Without a mask a warpgroup sees all of them, or has no rows.
  OMNIFLASH_DEVICE FinishedRows compute_halves(const WarpRows& rows, unsigned long long q, KeyWindow& window, OwnKeys& own,
                                               int leaving) {
    KeyWindow::Run run;
    bool is_due = next(window, own, run), has_skipped = false;
    if (!is_due || own.begin >= own.end) {
      for (; is_due; is_due = run.step() || next(window, own, run)) {
        skip_tile(has_skipped);
        has_skipped = true;
      }
      if (has_skipped) skip_value();
      clear_output();
      release_left_query(leaving);
      return FinishedRows(rows, softmax);
    }
    Halves halves;
    first_halves(rows, q, run.tile, run.is_partial, halves);
    run.step();
    release_left_query(leaving);
    do {
      for (; run.count > 0; --run.count) next_halves(rows, q, run.tile--, run.is_partial, halves);
    } while (next(window, own, run));
    return last_halves(rows, halves);
  }

  OMNIFLASH_DEVICE void run() {
    if (warpgroup == kConsumers - 1) pass_turn();  // the first is warpgroup 0's
    int leaving = -1;  // the slot whose output is on its way
    while (true) {
      OwnKeys own;
      Message received = receive(own);
      if (received.work.row_tile < 0) break;
      const RowTile tile(parameters, received.work, received.sequence, kBlockM);
      const WarpRows rows(parameters, functors, received.sequence, tile, tile.first_row + 64 * place + 16 * warp);
      const QueryTile queries{unsigned(uniform(shared.query(query.slot).address))};
      const unsigned long long q = queries.rows_descriptor(64 * place);
      begin_softmax(rows);
      mbarrier_wait(shared.query_full(query.slot), query.parity);
      const FinishedRows finished = kHasHalves ? compute_halves(rows, q, received.window, own, leaving)
                                               : compute_tiles(rows, q, received.window, own, leaving);
      store(rows, finished);
      leaving = query.slot;
      if (kChangesPlaces) place = place + 1 == kConsumers ? 0 : place + 1;
      if (kQueryTiles == 1 && !kHasOutputTile) release_query(leaving);
      query.advance();
    }
    if (lane == 0) wait_stores_read();  // the block's shared memory must outlive them
  }
};

}  // namespace omniflash

OMNIFLASH_RESIDENT_KERNEL(omniflash::kThreads, 1) OMNIFLASH_CLUSTER(omniflash::instance::kClusterBlocks)
    omniflash_forward(OMNIFLASH_PARAMETER omniflash::AttentionParameters parameters,
                      OMNIFLASH_PARAMETER omniflash::Functors<omniflash::MaskType, omniflash::ScoreModType> functors,
                      OMNIFLASH_PARAMETER omniflash::HopperParameters hopper) {
  using namespace omniflash;
  const SharedMemory shared;
  if (thread_index() == 0) shared.initialize_barriers();
  if constexpr (kHasPairs) {
    cluster_arrive();
    cluster_wait();
  } else {
    barrier();
  }
  const int group = uniform(thread_index() / 128);
  if (group == 0) {
    give_registers_back<kProducerRegisters>();
    const int warp = uniform(thread_index() / 32);
    if (warp == 0) {
      if (lane_index() < kProducerLanes) Producer<true, kProducers == 1>{parameters, hopper, shared}.run();
    } else if (warp == 1) {
      Scheduler{parameters, functors, hopper, shared}.run();
    } else if (warp == 2 && kProducers == 2) {
      Producer<false, true>{parameters, hopper, shared}.run();
    }
  } else {
    take_registers<kConsumerRegisters>();
    const int warp = uniform(thread_index() / 32 % 4);
    Consumer{parameters, functors, hopper, shared, group - 1, warp, lane_index()}.run();
  }
  // Copies into the other block may still be under way.
  if constexpr (kHasPairs) {
    cluster_arrive_relaxed();
    cluster_wait();
  }
}
