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
// With num_workers the cut is made from the lengths on the device, by every block alike; with num_workers = 0 block (i, p)
// does partition p of num_partitions equal ones of item i, whatever else is in the batch. With kCluster > 1 a worker is a
// cluster, whose blocks share each segment equally; with kWholeItems its segment is an item, found without the lengths of
// others. Each block of a cluster joins a share of the quads of sums, which the others write into its shared memory; of a
// segment that is not the whole item that share goes to the workspace, and the last block with the same share joins those.
//
// Shared memory: [ Q | of each warp: slots 0 .. kSlots - 1, which keys and values take in turns | what a cluster's blocks
// send: of each the quads that this block joins, and the offset and sum of each row ]. Where warps meet, over the same from
// the start but not where others send: [ sums of each warp, f32, kBlockM rows of kPitch | offset and sum of each row and warp ].
//
// Code that runs once costs more than the same in a loop: what stands between the start and the first copies is kept
// short, and what can wait is done while they are under way.
//
// The instance chooses Element, Product, Keys, MaskType, ScoreModType, kHeadDim, kValueDim, kBlockM, kWarps, kSlots,
// kVectorLoads, kCluster (1 before sm_90) and kWholeItems.

#include "decode/block.hpp"
#include "decode/join.hpp"
#include "decode/line.hpp"
#include "decode/slices.hpp"

namespace omniflash {

OMNIFLASH_DEVICE void clear(Scores& s) {
#pragma unroll
  for (int i = 0; i < kFragments * kN * 4; ++i) s[i / (kN * 4)][i / 4 % kN][i % 4] = 0.0f;
}

// This warp's keys of a segment. The queries come with the first copies. `meanwhile` is called while those are under way.
template <class Meanwhile>
OMNIFLASH_DEVICE void attend(const Block& block, const Keys& keys, Tiles tiles, unsigned long long policy, Softmax& softmax,
                             Output& o, const Meanwhile& meanwhile) {
  Pipeline pipeline(block, keys, tiles, policy);
  TileStatus status;
  Scores s;
  int tile = tiles.next(tiles.begin, status), filled = 0, slot = 0;
  bool is_value = false;  // of a turn with one slice: whether it is one of values
#pragma unroll 1
  while (true) {
    pipeline.copy((filled & 1) != 0);
    if (filled == 0) block.copy_queries();
    copy_commit();
    if (++filled < kTurnsAhead) continue;
    if (filled == kTurnsAhead) meanwhile();
    copy_wait<kTurnsAhead - 1>();
    // This turn's slices have landed, and with the first all warps' shares of the queries.
    if (filled == kTurnsAhead) {
      barrier();
    } else {
      warp_barrier();
    }
    if (!is_value && tile >= tiles.end) break;

    const int first_key = Pipeline::first_key(tile);
    const bool touched = status != TileStatus::Full, is_needed = first_key < block.sequence.kv_len;
    if (is_needed && !is_value) {
      clear(s);
      Product::scores(s, query_tile(), 0, RowsOfHeadDim{slot_address(slot)});
      modify(block, first_key, s);
      if (touched || first_key + kSlice > block.sequence.kv_len) hide(block, block.functors.mask, first_key, touched, s);
      online_softmax(block.factor, softmax, s, o);
    }
    if (kSlicesOfTurn == 2 || is_value) {
      if (is_needed) {
        const RowsOfValueDim values{slot_address(slot + kSlicesOfTurn - 1)};
        if ((touched || hides_by_score<ScoreModType>) && warp_any(has_non_finite<32, kSlice>(values))) {
          add_non_finite(values, s, o);
          warp_barrier();
          clear_non_finite<32, kSlice>(values);
          warp_barrier();
        }
        Product::values(o, s, values);
      }
      tile = tiles.next(tile + 1, status);
    }
    warp_barrier();  // all lanes have left the slots
    slot = next_turn(slot);
    if constexpr (kSlicesOfTurn == 1) is_value = !is_value;
  }
  copy_wait<0>();
}

// The tiles from..to of an item, the worker's first or a later one; in_parts() says where the parts of it lie, if they are not all.
template <class InParts>
OMNIFLASH_DEVICE void run_segment(const Block& block, int from, int to, bool is_first, unsigned long long policy,
                                  const InParts& in_parts) {
  if constexpr (kCluster > 1) {
    // Others may send when all have begun, and have read what was sent before.
    if (is_first) {
      cluster_arrive_relaxed();
    } else {
      cluster_arrive();
    }
    const int run = ceil_divide(to - from, kCluster);
    from = minimum(from + block_rank() * run, to);
    to = minimum(from + run, to);
  }
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
  attend(block, keys, tiles, policy, softmax, o, [&] { parts = in_parts(); });
  publish(block, softmax, o);
  if constexpr (kCluster > 1) cluster_wait();
  join_warps(block, parts);
  if constexpr (kCluster > 1) {
    cluster_arrive();
    cluster_wait();
    join_parts(block, kCluster, ClusterParts{},
               [&](Joined& joined, int row, int quad) { joined.finish(block, parts, row, quad); });
  }
  if (parts.count > 1 && is_last(block, parts)) {
    join_parts(block, parts.count, WorkspaceParts{block, parts},
               [&](Joined& joined, int row, int quad) { joined.store(block, row, quad); });
  }
  barrier();  // the next segment copies over the sums
}

}  // namespace omniflash

OMNIFLASH_KERNEL(omniflash::kThreads) OMNIFLASH_CLUSTER(omniflash::instance::kCluster)
omniflash_decode(OMNIFLASH_PARAMETER omniflash::AttentionParameters parameters,
                 OMNIFLASH_PARAMETER omniflash::Functors<omniflash::MaskType, omniflash::ScoreModType> functors) {
  using namespace omniflash;
  if constexpr (kWholeItems) {
    const Sequence sequence(parameters, block_index_y());
    const Block block(parameters, functors, sequence, block_index_x() / kCluster);
    const Extent extent(block);
    if (extent.count == 0) return;
    const unsigned long long policy = cache_policy(true);
    run_segment(block, extent.begin, extent.begin + extent.count, true, policy, [] { return Parts{1, 0, 0, 0, 0, 0}; });
    return;
  }
  const unsigned head_tiles =
      parameters.heads_per_tile == 1 ? parameters.num_heads : parameters.num_heads / parameters.heads_per_tile;
  const bool is_line = parameters.num_workers > 0;
  // In a line the worker's run, and where the group of sequences begins; else the item and which partition of it.
  const unsigned worker = block_index_x() / kCluster, cut = block_index_x(), partition = block_index_y();
  unsigned total = 0, at = 0, end = 0, origin = 0;
  bool is_first = true;  // segment of this worker
  unsigned long long policy = cache_policy(false);
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
      policy = cache_policy(total <= kTilesLeaving);
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
      run_segment(block, extent.begin + from, extent.begin + to, is_first, policy, [&] {
        return is_line ? line.parts(worker, item, count, from, to) : partition_of(parameters, cut, partition);
      });
      at = item + to;
      is_first = false;
    } while (at < end);
    if (at >= end) return;
    origin += group.all;
    first += 32;
  }
}
