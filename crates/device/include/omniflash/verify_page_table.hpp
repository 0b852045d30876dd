// Checks the lengths of sequences, and every entry of their page or lookup table that a launch would read.
//
// One block a sequence; threads share its entries. The report keeps the first of each kind: an entry outside the pool
// as batch index << 32 | page index, and the batch index of a length out of range.

#include "omniflash/functor.hpp"
#include "omniflash/parameters.hpp"
#include "instance.hpp"

namespace omniflash {

constexpr int kThreads = 128;

}  // namespace omniflash

OMNIFLASH_KERNEL(omniflash::kThreads)
omniflash_verify_page_table(OMNIFLASH_PARAMETER omniflash::VerifyParameters parameters) {
  using namespace omniflash;
  const long long batch = block_index_x();
  auto* report = static_cast<unsigned long long*>(parameters.report);
  const int length = static_cast<const int*>(parameters.key_lengths.data)[batch * parameters.key_lengths.stride];
  if (length < 0 || static_cast<unsigned>(length) > parameters.seqlen_k) {
    if (thread_index() == 0) atomic_min(report + 1, static_cast<unsigned long long>(batch));
    return;
  }
  const bool paged = static_cast<KeyForm>(parameters.key_form) == KeyForm::Paged;
  const long long page_size = parameters.page_size;
  const long long used = paged ? (length + page_size - 1) / maximum(page_size, 1ll) : length > 0 ? 1 : 0;
  const int* entries = static_cast<const int*>(parameters.block_table.data) + batch * parameters.block_table.row_stride;
  for (long long i = thread_index(); i < used; i += kThreads) {
    const int id = entries[i * parameters.block_table.column_stride];
    if (id < 0 || static_cast<unsigned>(id) >= parameters.num_blocks) {
      atomic_min(report, static_cast<unsigned long long>(batch) << 32 | static_cast<unsigned long long>(i));
    }
  }
}
