// What a block of the decode kernel does: its segments, one after the other, however their keys are copied.
#pragma once

#include "decode/join.hpp"
#include "decode/line.hpp"
#include "decode/slices.hpp"

namespace omniflash {

OMNIFLASH_DEVICE void clear(Scores& s) {
#pragma unroll
  for (int i = 0; i < kFragments * kN * 4; ++i) s[i / (kN * 4)][i / 4 % kN][i % 4] = 0.0f;
}

// This warp's keys of a segment. The queries come with the first copies, unless they are under way. `meanwhile` is called
// while those are.
template <class Copies, class Meanwhile>
OMNIFLASH_DEVICE void attend(const Block& block, const Keys& keys, Tiles tiles, const FirstPages<Keys>& pages, Copies& copies,
                             unsigned long long policy, bool has_queries, Softmax& softmax, Output& o,
                             const Meanwhile& meanwhile) {
  typename Copies::Pipeline pipeline(copies, block, keys, tiles, pages, policy);
  TileStatus status;
  Scores s;
  int tile = tiles.next(tiles.begin, status, kStep), filled = pipeline.begun();
  bool is_value = false;  // of a turn with one slice: whether it is one of values
#pragma unroll 1
  while (true) {
    pipeline.copy((filled & 1) != 0);
    if (!has_queries) block.copy_queries();
    has_queries = true;
    copy_commit();
    if (++filled < kTurnsAhead) continue;
    if (filled == kTurnsAhead) meanwhile();
    pipeline.settle(filled == kTurnsAhead);
    if (!is_value && tile >= tiles.end) break;
    pipeline.land();

    const int first_key = first_key_of(tile), num_valid = block.sequence.kv_len - first_key;
    const bool touched = status != TileStatus::Full, is_needed = num_valid > 0;
    if (is_needed && !is_value) {
      clear(s);
      Copies::scores(s, KeySlice{slot_address(pipeline.slot)});
      modify(block, first_key, s);
      if (touched || num_valid < kSlice) hide(block, block.functors.mask, first_key, touched, s);
      online_softmax(block.factor, softmax, s, o);
    }
    if (kSlicesOfTurn == 2 || is_value) {
      if (is_needed) {
        const ValueSlice values{slot_address(pipeline.slot + kSlicesOfTurn - 1)};
        pipeline.clear_missing(values, num_valid);
        if ((touched || hides_by_score<ScoreModType>) && warp_any(has_non_finite<32, kSlice>(values))) {
          add_non_finite(values, s, o);
          warp_barrier();
          clear_non_finite<32, kSlice>(values);
          warp_barrier();
        }
        Product::values(o, s, values);
      }
      tile = tiles.next(tile + kStep, status, kStep);
    }
    pipeline.release(touched || hides_by_score<ScoreModType> || num_valid < kSlice);
    if constexpr (kSlicesOfTurn == 1) is_value = !is_value;
  }
  pipeline.finish();
}

// The tiles from..to of an item, the worker's first or a later one; in_parts() says where the parts of it lie, if they are
// not all. begin_next() is called when all copies have landed and been read.
template <class Copies, class InParts, class BeginNext>
OMNIFLASH_DEVICE void run_segment(const Block& block, int from, int to, bool is_first, const FirstPages<Keys>& pages,
                                  Copies& copies, unsigned long long policy, const InParts& in_parts,
                                  const BeginNext& begin_next) {
  if constexpr (kCluster > 1) {
    // Others may send when all have begun, and have read what was sent before.
    if (is_first) {
      cluster_arrive_relaxed();
    } else {
      cluster_arrive();
    }
  }
  if constexpr (kStep < kCluster) {
    const int run = ceil_divide(to - from, kCluster);
    from = minimum(from + block_rank() * run, to);
    to = minimum(from + run, to);
  }
  const Keys keys(block.parameters, block.sequence, block.key_head());
  Tiles tiles = block.key_tiles();
  tiles.end = minimum(tiles.end, to);
  tiles.begin = minimum(maximum(tiles.begin, from), tiles.end);
  tiles.begin = first_of_block(tiles.begin);

  Output o = {};
  Softmax softmax;
#pragma unroll
  for (int i = 0; i < 2 * kFragments; ++i) {
    softmax[i / 2][i % 2].max = -kInfinity;
    softmax[i / 2][i % 2].sum = 0.0f;
  }
  Parts parts;
  attend(block, keys, tiles, pages, copies, policy, kWholeItems && Copies::kBegins, softmax, o, [&] { parts = in_parts(); });
  begin_next();
  publish(block, softmax, o);
  if constexpr (kCluster > 1) cluster_wait();
  join_warps(block, parts);
  if constexpr (kCluster > 1) {
    cluster_arrive();
    cluster_wait();
    join_parts(block, kCluster, ClusterParts{},
               [&](Joined& joined, int row, int quad) { joined.finish(block, parts, row, quad); });
  }
  if constexpr (kWholeItems) return;
  if (parts.count > 1 && is_last(block, parts)) {
    join_parts(block, parts.count, WorkspaceParts{block, parts},
               [&](Joined& joined, int row, int quad) { joined.store(block, row, quad); });
  }
  copies.order_writes();
  barrier();  // the next segment copies over the sums
}

// What a worker of the line begins with if all sequences are as long as they can be.
OMNIFLASH_DEVICE Start guess_start(const AttentionParameters& parameters, unsigned head_tiles, unsigned worker) {
  const unsigned tiles = (parameters.seqlen_k + kBlockN - 1) / kBlockN, count = maximum(tiles, 1u) + kTilesOfItem;
  const Line line(parameters.batch * head_tiles * count, parameters.num_workers);
  const unsigned at = line.begin(worker), item = at / count, batch = quotient(item, parameters.by_head_tiles);
  if (batch >= parameters.batch) return {};
  return {static_cast<int>(batch), static_cast<int>(item - batch * head_tiles), first_of_block(at - item * count),
          static_cast<int>(parameters.seqlen_k)};
}

// Brings all lengths into the second-level cache, a lane a line of 32: they are counted 32 at a time, one group after the other.
OMNIFLASH_DEVICE void prefetch_lengths(const AttentionParameters& parameters) {
  const unsigned first = 32 * thread_index();
  if (first >= parameters.batch) return;
  if (static_cast<KeyForm>(parameters.key_form) != KeyForm::Dense) prefetch_line(address_of(parameters.key_lengths, first));
  if (static_cast<QueryForm>(parameters.query_form) != QueryForm::Padded) {
    prefetch_line(address_of(parameters.query_lengths, first));
  }
}

template <class Copies>
OMNIFLASH_DEVICE void decode(const AttentionParameters& parameters, const Functors<MaskType, ScoreModType>& functors,
                             Copies& copies) {
  if constexpr (kWholeItems) {
    const int batch = block_index_y();
    const FirstPages<Keys> pages(parameters, batch, first_of_block(0));
    const Sequence sequence(parameters, batch);  // its lengths are on their way while barriers are made
    copies.prepare();
    const Block block(parameters, functors, sequence, block_index_x() / kCluster);
    if (!block.is_ours()) return;
    const unsigned long long policy = cache_policy(true);
    if constexpr (Copies::kBegins) {
      copies.begin(parameters, Start{batch, block.head_tile, first_of_block(0), sequence.kv_len}, 1, pages, policy);
      block.copy_queries();
    }
    const Extent extent(block);
    run_segment(block, extent.begin, extent.begin + extent.count, true, pages, copies, policy,
                [] { return Parts{1, 0, 0, 0, 0, 0}; }, [] {});
    return;
  }
  const unsigned head_tiles = parameters.head_tiles;
  const bool is_line = parameters.num_workers > 0;
  // In a line the worker's run, and where the group of sequences begins; else the item and which partition of it.
  const unsigned worker = block_index_x() / kCluster, cut = block_index_x(), partition = block_index_y();
  unsigned total = 0, at = 0, end = 0, origin = 0;
  bool is_first = true;  // segment of this worker
  prefetch_lengths(parameters);
  const Start guess = is_line ? guess_start(parameters, head_tiles, worker) : Start{};
  // All that can be asked of the page table before lengths are known.
  FirstPages<Keys> pages = guess.batch >= 0 ? FirstPages<Keys>(parameters, guess.batch, guess.tile) : FirstPages<Keys>();
  copies.prepare();
  if constexpr (Copies::kBeginsNext) {
    const bool is_certain = static_cast<KeyForm>(parameters.key_form) == KeyForm::Dense;
    if (is_certain && guess.batch >= 0 && guess.tile * kBlockN < guess.kv_len) {
      const unsigned tiles = parameters.batch * head_tiles * ceil_divide(guess.kv_len, kBlockN);
      copies.begin(parameters, guess, 1, pages, cache_policy(tiles <= kTilesLeaving));
    }
  }
  unsigned long long policy = cache_policy(false);
  Line line;
  int first = is_line ? 0 : quotient(cut, parameters.by_head_tiles);
#pragma unroll 1
  for (bool is_counting = is_line;;) {
    const Group group(parameters, functors, head_tiles, first, is_line ? parameters.batch - first : 1);
    if (is_counting) {
      total += group.all;
      first += 32;
      if (first < static_cast<int>(parameters.batch)) continue;
      line = Line(total, parameters.num_workers);
      policy = cache_policy(total <= kTilesLeaving);
      if (total == 0 || worker >= line.workers) {
        copies.drop();
        return;
      }
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
        head_tile = cut - first * head_tiles;
        const unsigned run = quotient(count + parameters.num_partitions - 1, parameters.by_num_partitions);
        from = minimum(partition * run, count);
        to = minimum(from + run, count);
      }
      const Block block(parameters, functors, extent.sequence, head_tile);
      const FirstPages<Keys> known =
          is_first || Copies::kBeginsNext ? pages.of(extent.sequence.batch) : FirstPages<Keys>();
      at = item + to;
      Start next;
      int next_tiles = 0;
      const auto in_parts = [&] {
        if constexpr (Copies::kBeginsNext) {
          if (is_line && at < minimum(end, origin + group.all)) {
            const int next_lane = first_lane(at < origin + group.until);
            const Extent extent = group.extent.of_lane(next_lane);
            const unsigned first_item = origin + from_lane(group.until, next_lane) - head_tiles * extent.count;
            next = {extent.sequence.batch, static_cast<int>((at - first_item) / extent.count), extent.begin,
                    extent.sequence.kv_len};
            const int keys = next.kv_len - next.tile * kBlockN;
            next_tiles = minimum(Copies::kTilesOfStart, minimum(static_cast<int>(end - at), ceil_divide(keys, kBlockN)));
            pages = FirstPages<Keys>(parameters, next.batch, next.tile);
          }
        }
        return is_line ? line.parts(worker, item, count, from, to) : partition_of(parameters, cut, partition);
      };
      const auto begin_next = [&] {
        if constexpr (Copies::kBeginsNext) {
          if (next_tiles > 0) copies.begin(parameters, next, next_tiles, pages, policy);
        }
      };
      run_segment(block, extent.begin + from, extent.begin + to, is_first, known, copies, policy, in_parts, begin_next);
      is_first = false;
    } while (at < end);
    if (at >= end) return;
    origin += group.all;
    first += 32;
  }
}

}  // namespace omniflash
