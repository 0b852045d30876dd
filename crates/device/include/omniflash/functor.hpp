// What a kernel asks of a mask and a score modification, and what it assumes where a functor does not answer.
//
// A mask has keep(ScoreIndex); optional are status(TileRect), range(RowRange, KeyRange&), bits(ScoreIndex),
// begin(batch, q) with end(batch, q), add(ScoreIndex), kHeadInvariant, kSeesEveryTile and kStatusReads. A score modification has apply(score, ScoreIndex). See the README.
#pragma once

#include "omniflash/numeric.hpp"

namespace omniflash {

// One score. Positions are global; row is the query's row in its sequence.
struct ScoreIndex {
  int batch, head, row, q, k;
};

// A rectangle of scores of one head: half-open ranges of positions, neither empty.
struct TileRect {
  int batch, head, q_begin, q_end, k_begin, k_end;
};

// Rows of one head: a half-open range of positions, not empty.
struct RowRange {
  int batch, head, q_begin, q_end;
};

// A half-open range of keys; empty where begin >= end.
struct KeyRange {
  int begin, end;
};

enum class TileStatus : int {
  Skip,     // no score is visible
  Full,     // all are
  Partial,  // some are, or nothing is known
};

// ---- joins of statuses

OMNIFLASH_DEVICE TileStatus both(TileStatus a, TileStatus b) {
  if (a == TileStatus::Skip || b == TileStatus::Skip) return TileStatus::Skip;
  return a == TileStatus::Full ? b : b == TileStatus::Full ? a : TileStatus::Partial;
}
OMNIFLASH_DEVICE TileStatus opposite(TileStatus status) {
  return status == TileStatus::Skip ? TileStatus::Full : status == TileStatus::Full ? TileStatus::Skip : status;
}
OMNIFLASH_DEVICE TileStatus either(TileStatus a, TileStatus b) { return opposite(both(opposite(a), opposite(b))); }
// Of two tiles side by side.
OMNIFLASH_DEVICE TileStatus across(TileStatus a, TileStatus b) { return a == b ? a : TileStatus::Partial; }

// ---- what a mask offers

template <class Mask>
constexpr bool has_bits = requires(const Mask& mask, const ScoreIndex& at) { mask.bits(at); };

// Whether a row sees the keys begin(batch, q)..end(batch, q), those that exist, and no others.
template <class Mask>
constexpr bool is_interval = requires(const Mask& mask) {
  mask.begin(0, 0);
  mask.end(0, 0);
};

template <class Mask>
constexpr bool has_add = requires(const Mask& mask, const ScoreIndex& at) { mask.add(at); };

template <class Mask>
constexpr bool head_invariant = requires { requires Mask::kHeadInvariant; };

// Whether a status reads memory: a warp then does well to ask for 32 tiles at a time.
template <class Mask>
constexpr bool status_reads = requires { requires Mask::kStatusReads; };

// Whether rows see keys from the first on, and of every tile up to the last that any of them sees: which tiles come first is
// known without asking.
template <class Mask>
constexpr bool sees_every_tile = requires { requires Mask::kSeesEveryTile; };

template <class Mask>
constexpr bool has_status = requires(const Mask& mask, const TileRect& tile) { mask.status(tile); };

// Whether no status can be Full: without one, and where a join has to know one that is missing.
template <class Mask>
constexpr bool never_full = !has_status<Mask> || requires { requires Mask::kNeverFull; };

template <class Mask>
OMNIFLASH_DEVICE TileStatus status_of(const Mask& mask, const TileRect& tile) {
  if constexpr (has_status<Mask>) {
    return mask.status(tile);
  } else {
    return TileStatus::Partial;
  }
}

template <class Mask>
constexpr bool has_range = requires(const Mask& mask, const RowRange& rows, KeyRange& keys) { mask.range(rows, keys); };

template <class Mask>
OMNIFLASH_DEVICE void shrink_range(const Mask& mask, const RowRange& rows, KeyRange& keys) {
  if constexpr (has_range<Mask>) mask.range(rows, keys);
}

template <class Mask>
OMNIFLASH_DEVICE float added_by(const Mask& mask, const ScoreIndex& at) {
  if constexpr (has_add<Mask>) {
    return mask.add(at);
  } else {
    return 0.0f;
  }
}

// ---- bits of 32 keys

// The lowest count bits, 0 <= count.
OMNIFLASH_DEVICE unsigned low_bits(int count) { return count >= 32 ? ~0u : (1u << count) - 1; }

// Of the 32 keys from k on, those in begin..end.
OMNIFLASH_DEVICE unsigned band_bits(int begin, int end, int k) {
  const unsigned below_end = end <= k ? 0u : low_bits(end - k);
  return begin <= k ? below_end : below_end & ~low_bits(begin - k);
}

// The keys that a row sees under a mask that shows an interval, of kv_len keys, counted from `first` on: a lane's own are then
// compared with constants.
template <class Mask>
struct SeenInterval {
  int begin, end;
  OMNIFLASH_DEVICE SeenInterval(int first, int kv_len) : begin(-first), end(kv_len - first) {}  // all of them
  OMNIFLASH_DEVICE SeenInterval(const Mask& mask, const ScoreIndex& at, int first, int kv_len)
      : begin(sees_every_tile<Mask> ? -first : mask.begin(at.batch, at.q) - first),
        end(minimum(mask.end(at.batch, at.q), kv_len) - first) {}
  OMNIFLASH_DEVICE bool contains(int key) const { return (sees_every_tile<Mask> || begin <= key) && key < end; }
};

// A kernel's second argument: what the host packs.
template <class Mask, class ScoreMod>
struct Functors {
  alignas(16) Mask mask;
  alignas(16) ScoreMod score_mod;
};

// The score after the mask.
template <class Mask>
OMNIFLASH_DEVICE float masked(const Mask& mask, float score, const ScoreIndex& at) {
  if (!mask.keep(at)) return -kInfinity;
  if constexpr (has_add<Mask>) {
    const float added = mask.add(at);
    // Not a sum: a hidden key may have a score of NaN.
    return added == -kInfinity ? added : score + added;
  }
  return score;
}

// ---- scores of two keys side by side, at.k even and the next one; `last` is the last key that exists

// For tiles of which every key exists: nothing is compared with it.
constexpr int kNoLastKey = 0x7fffffff;

// After the score modification. Past the last key a score becomes anything.
template <class ScoreMod>
OMNIFLASH_DEVICE void apply_to_pair(const ScoreMod& score_mod, float& first, float& second, ScoreIndex at, int last) {
  if constexpr (requires { score_mod.apply_pair(first, second, at, last); }) {
    score_mod.apply_pair(first, second, at, last);
  } else {
    const int k = at.k;
    at.k = minimum(k, last);
    first = score_mod.apply(first, at);
    at.k = minimum(k + 1, last);
    second = score_mod.apply(second, at);
  }
}

// What a mask adds to the scores of a pair.
struct PairOfValues {
  float first, second;
};
template <class Mask>
OMNIFLASH_DEVICE PairOfValues added_to_pair(const Mask& mask, ScoreIndex at, int last) {
  if constexpr (requires { mask.add_pair(at, last); }) {
    return mask.add_pair(at, last);
  } else {
    const int k = at.k;
    at.k = minimum(k, last);
    const float first = added_by(mask, at);
    at.k = minimum(k + 1, last);
    return PairOfValues{first, added_by(mask, at)};
  }
}

// After the mask; past the last key a score is -inf.
template <class Mask>
OMNIFLASH_DEVICE void mask_pair(const Mask& mask, float& first, float& second, ScoreIndex at, int last) {
  PairOfValues added{};
  if constexpr (has_add<Mask>) added = added_to_pair(mask, at, last);
  const auto masked = [&](float score, float added, int k) {
    at.k = minimum(k, last);
    const bool shown = k <= last && mask.keep(at);
    if constexpr (!has_add<Mask>) return shown ? score : -kInfinity;
    return !shown || added == -kInfinity ? -kInfinity : score + added;
  };
  const int k = at.k;
  first = masked(first, added.first, k);
  second = masked(second, added.second, k + 1);
}

}  // namespace omniflash
