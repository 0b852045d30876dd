// The decode kernel of decode_forward.cu whose keys and values come as boxes of tensor maps: sm_90, 16 bits, head_dim and
// value_dim of whole slabs, pages of whole slices.
//
// Shared memory as there, but that slots hold slabs (sm90/slabs.hpp) without padding, and behind all lie the barriers of each
// warp, one a turn.

#include "decode/boxes.hpp"
#include "decode/forward.hpp"

OMNIFLASH_RESIDENT_KERNEL(omniflash::kThreads, omniflash::kResidentBlocks) OMNIFLASH_CLUSTER(omniflash::instance::kCluster)
omniflash_decode(OMNIFLASH_PARAMETER omniflash::AttentionParameters parameters,
                 OMNIFLASH_PARAMETER omniflash::Functors<omniflash::MaskType, omniflash::ScoreModType> functors,
                 OMNIFLASH_PARAMETER omniflash::KeyMaps maps) {
  omniflash::BoxCopies copies(maps);
  omniflash::decode(parameters, functors, copies);
}
