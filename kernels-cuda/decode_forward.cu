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
// Shared memory: [ Q | slots 0 .. kSlots - 1, each of all warps, which keys and values take in turns | what a cluster's blocks
// send: of each the quads that this block joins, and the offset and sum of each row ]. Where warps meet, over the same from
// the start but not where others send: [ sums of each warp, f32, kBlockM rows of kPitch | offset and sum of each of its rows ].
//
// Code that runs once costs more than the same in a loop: what stands between the start and the first copies is kept
// short, and what can wait is done while they are under way.
//
// The instance chooses Element, Product, Keys, MaskType, ScoreModType, kHeadDim, kValueDim, kBlockM, kWarps, kSlots,
// kVectorLoads, kCluster (1 before sm_90), kWholeItems and kTilesOfItem.

#include "decode/forward.hpp"
#include "decode/lanes.hpp"

OMNIFLASH_RESIDENT_KERNEL(omniflash::kThreads, omniflash::kResidentBlocks) OMNIFLASH_CLUSTER(omniflash::instance::kCluster)
omniflash_decode(OMNIFLASH_PARAMETER omniflash::AttentionParameters parameters,
                 OMNIFLASH_PARAMETER omniflash::Functors<omniflash::MaskType, omniflash::ScoreModType> functors) {
  omniflash::LaneCopies copies;
  omniflash::decode(parameters, functors, copies);
}
