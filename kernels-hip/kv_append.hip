// Writes new keys and values into a dense, continuous or paged cache: see omniflash/kv_append.hpp.
//
// The instance chooses kUnitBytes, the bytes that a thread copies of a key and of a value: 16, 4 or 2.

#include "omniflash/kv_append.hpp"
#include "instance.hpp"

namespace omniflash {

using namespace instance;

constexpr int kThreads = 128;

template <int kBytes>
struct UnitOf;
template <>
struct UnitOf<16> {
  struct alignas(16) Type {
    unsigned words[4];
  };
};
template <>
struct UnitOf<4> {
  using Type = unsigned;
};
template <>
struct UnitOf<2> {
  using Type = unsigned short;
};

}  // namespace omniflash

OMNIFLASH_KERNEL(omniflash::kThreads) omniflash_kv_append(OMNIFLASH_PARAMETER omniflash::KvAppendParameters parameters) {
  using namespace omniflash;
  append_by_thread<UnitOf<kUnitBytes>::Type>(parameters,
                                             static_cast<long long>(block_index_x()) * kThreads + thread_index());
}
