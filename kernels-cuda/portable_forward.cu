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

#include "portable/results.hpp"

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
  tiles.ask();
  int tile = tiles.take(tiles.tiles.begin, status);

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
  bool is_due = TileWalk::kAsksApart;  // the next tile has to be asked for
  int next = is_due ? tile : tiles.take(tile + 1, next_status);
  for (int slot = 0; tile < tiles.end();) {
    if (is_due) {
      tiles.ask();
      next = tiles.take(next + 1, next_status);
      is_due = false;
    }
    // Most tiles: all scores are visible, and nothing is asked. Warps without rows compute on zeros.
    while (!hides_by_score<ScoreModType> && !never_full<MaskType> && tile < tiles.end() && status == TileStatus::Full &&
           block.is_folded && !is_due && tile < whole_tiles && (!kCopiesWholeTiles || next >= tiles.end() || next < whole_tiles)) {
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
      is_due = !tiles.has_asked();
      if (!is_due) next = tiles.take(next + 1, next_status);
      slot = (slot + 1) % kStages;
    }
    if (tile >= tiles.end()) break;
    if (is_due) continue;

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
    is_due = !tiles.has_asked();
    if (!is_due) next = tiles.take(next + 1, next_status);
    slot = (slot + 1) % kStages;
  }
  store(Block(parameters, functors, Work{later[0], later[1], later[2]}), has_hidden, softmax, o);
}
