// Runs a grid on the host: every thread of a cluster of blocks is a coroutine, and one cluster runs after another.
//
// A warp runs as far as it can before another gets a turn, so that a barrier that is missing shows; `last_warp_first`
// turns the order of warps round. Shared memory begins as NaN. Errors are counted, not thrown.

#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <vector>

#include <ucontext.h>

namespace omniflash {
namespace emulator {

constexpr size_t kStackBytes = 256 << 10;
constexpr int kMaxThreads = 4096, kNames = 16;

enum class State { Ready, AtCollective, AtBarrier, AtNamedBarrier, AtCountingBarrier, AtClusterBarrier, Done };

struct Warp {
  int arrived = 0;
  unsigned words[32][16], results[32][16];
};

// A box of a tensor map on its way to shared memory.
struct Box {
  unsigned to;
  const TensorMap* map;
  int at[5];
};

// Counts arrivals and bytes.
struct CountingBarrier {
  int arrivals = 0, left = 0;  // of a phase
  long bytes = 0;              // still to come
  unsigned phase = 0;
  std::vector<Box> boxes;      // that are late
};

struct Thread {
  int index;  // in the cluster
  State state;
  bool started;
  int arrived, waited;  // at the cluster's barrier, so many times
  int name;             // of the named barrier at which it waits
  unsigned address, parity;  // of the counting barrier, and the phase
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  jmp_buf resume;
  ucontext_t context;
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> groups;
  std::vector<Product> products;
  std::deque<std::vector<Product>> product_groups;
  std::vector<Box> stores;
};

struct Grid {
  std::deque<Thread> threads;
  Warp warps[kMaxThreads / 32];
  int num_threads, num_blocks;  // of a block, of the cluster
  unsigned width;               // of the grid
  unsigned block_x, block_y;    // of the cluster's first block
  bool is_late;                 // boxes come as late as they can
  std::map<unsigned, CountingBarrier> counting_barriers;
  int named[kMaxThreads / 32][kNames];  // arrivals of a block
  std::vector<unsigned char> shared;  // of all blocks, one after another
  Thread* running;
  jmp_buf scheduler;
  bool any[kMaxThreads], any_result[kMaxThreads];  // of a block
  void (*body)();
  int errors;
};

inline Grid& grid() {
  static Grid instance;
  return instance;
}

inline void fail(const char* what) {
  if (grid().errors++ < 5) std::fprintf(stderr, "emulator: thread %d: %s\n", grid().running->index, what);
}

inline void yield() {
  Grid& g = grid();
  if (_setjmp(g.running->resume) == 0) _longjmp(g.scheduler, 1);
}

inline void thread_main() {
  grid().body();
  grid().running->state = State::Done;
  _longjmp(grid().scheduler, 1);
}

inline void run(Thread& thread) {
  Grid& g = grid();
  g.running = &thread;
  if (_setjmp(g.scheduler) != 0) return;
  if (thread.started) _longjmp(thread.resume, 1);
  thread.started = true;
  getcontext(&thread.context);
  thread.context.uc_stack.ss_sp = thread.stack.get();
  thread.context.uc_stack.ss_size = kStackBytes;
  thread.context.uc_link = nullptr;
  makecontext(&thread.context, thread_main, 0);
  setcontext(&thread.context);
}

inline int block_of_running() { return grid().running->index / grid().num_threads; }

inline unsigned char* shared_bytes_of(int block, unsigned address, unsigned size) {
  static unsigned char outside[16];
  Grid& g = grid();
  const size_t of_block = g.shared.size() / g.num_blocks;
  if (address % size != 0) fail("misaligned address in shared memory");
  if (address + size > of_block || block >= g.num_blocks) {
    fail("address outside of shared memory");
    return outside;
  }
  return &g.shared[block * of_block + address];
}
inline unsigned char* shared_bytes(unsigned address, unsigned size) {
  return shared_bytes_of(block_of_running(), address, size);
}

inline void enqueue(const Copy& copy) {
  if (reinterpret_cast<unsigned long>(copy.from) % 16 != 0) fail("misaligned source of a copy");
  grid().running->open.push_back(copy);
}
inline void commit() {
  Thread& thread = *grid().running;
  thread.groups.push_back(std::move(thread.open));
  thread.open.clear();
}
inline void wait(int pending) {
  Thread& thread = *grid().running;
  while (static_cast<int>(thread.groups.size()) > pending) {
    for (const Copy& copy : thread.groups.front()) {
      unsigned char* to = shared_bytes(copy.to, 16);
      if (copy.from == nullptr) {
        std::memset(to, 0, 16);
      } else {
        std::memcpy(to, copy.from, 16);
      }
    }
    thread.groups.pop_front();
  }
}

inline void collective(const unsigned* words, int count, unsigned* results, int result_count,
                       void (*compute)(const unsigned (*)[16], unsigned (*)[16])) {
  Grid& g = grid();
  Warp& warp = g.warps[g.running->index / 32];
  const int lane = g.running->index % 32;
  std::memcpy(warp.words[lane], words, 4 * count);
  if (++warp.arrived == 32) {
    compute(warp.words, warp.results);
    warp.arrived = 0;
    for (int i = 0; i < 32; ++i) g.threads[g.running->index / 32 * 32 + i].state = State::Ready;
  } else {
    g.running->state = State::AtCollective;
    yield();
  }
  // The next collective cannot overwrite results before this lane has arrived there.
  std::memcpy(results, warp.results[lane], 4 * result_count);
}

inline unsigned barrier_key(int block, unsigned address) { return address | static_cast<unsigned>(block) << kBlockShift; }
inline CountingBarrier& counting_barrier(int block, unsigned address) {
  CountingBarrier& barrier = grid().counting_barriers[barrier_key(block, address)];
  if (barrier.arrivals == 0) fail("a barrier that was not initialised");
  return barrier;
}
inline void set_counting_barrier(unsigned address, int arrivals) {
  shared_bytes(address, 8);
  CountingBarrier& barrier = grid().counting_barriers[barrier_key(block_of_running(), address)];
  barrier.arrivals = barrier.left = arrivals;
}
inline void complete_if_all_came(int block, unsigned address, CountingBarrier& barrier) {
  Grid& g = grid();
  if (barrier.left < 0) fail("an arrival too many at a barrier");
  if (barrier.left > 0 || barrier.bytes != 0) return;
  barrier.left = barrier.arrivals;
  ++barrier.phase;
  for (int i = 0; i < g.num_threads; ++i) {
    Thread& thread = g.threads[block * g.num_threads + i];
    if (thread.state == State::AtCountingBarrier && thread.address == address && barrier.phase % 2 != thread.parity) {
      thread.state = State::Ready;
    }
  }
}
inline void arrive(int block, unsigned address, long bytes) {
  CountingBarrier& barrier = counting_barrier(block, address);
  --barrier.left;
  barrier.bytes += bytes;
  complete_if_all_came(block, address, barrier);
}

// Calls with each run of 128 bytes of a box: where it lies in memory, nowhere outside of the tensor, where in shared memory, and how
// many of its bytes the tensor has.
template <class Move>
long for_each_run(const Box& box, Move move) {
  const TensorMap& map = *box.map;
  if (box.to % 128 != 0) fail("a box that begins within a row of shared memory");
  if (map.size(0) != 64) fail("a box whose rows are not as long as the pattern");
  long runs = 0;
  unsigned index[5] = {};
  for (index[4] = 0; index[4] < map.size(4); ++index[4]) {
    for (index[3] = 0; index[3] < map.size(3); ++index[3]) {
      for (index[2] = 0; index[2] < map.size(2); ++index[2]) {
        for (index[1] = 0; index[1] < map.size(1); ++index[1]) {
          bool is_inside = true;
          unsigned long long from = map.address();
          for (int axis = 0; axis < 5; ++axis) {
            const long long at = static_cast<long long>(box.at[axis]) + index[axis];
            const long long extent = static_cast<long long>(map.extent(axis));
            is_inside = is_inside && at >= 0 && at < extent;
            from += at * map.stride(axis);
          }
          const long long left = 2 * (static_cast<long long>(map.extent(0)) - box.at[0]);
          const unsigned bytes = !is_inside || left <= 0 ? 0 : static_cast<unsigned>(std::min<long long>(left, 128));
          move(reinterpret_cast<unsigned char*>(from), static_cast<unsigned>(box.to + 128 * runs), bytes);
          ++runs;
        }
      }
    }
  }
  return runs;
}
// The sixteen bytes of a run from the chunk on, where the pattern has them.
inline unsigned char* chunk_of_run(int block, unsigned run, unsigned chunk) {
  return shared_bytes_of(block, run + ((chunk ^ run / 128 % 8) << 4), 16);
}

inline void land(int block, const Box& box, CountingBarrier& barrier) {
  const long runs = for_each_run(box, [&](const unsigned char* from, unsigned to, unsigned bytes) {
    for (unsigned chunk = 0; chunk < 8; ++chunk) {
      unsigned char* place = chunk_of_run(block, to, chunk);
      std::memset(place, 0, 16);
      if (16 * chunk < bytes) std::memcpy(place, from + 16 * chunk, std::min(16u, bytes - 16 * chunk));
    }
  });
  barrier.bytes -= 128 * runs;
}
inline void load_box(int block, unsigned to, const TensorMap& map, unsigned address, const int (&at)[5]) {
  CountingBarrier& barrier = counting_barrier(block, address);
  const Box box{to, &map, {at[0], at[1], at[2], at[3], at[4]}};
  if (grid().is_late) {
    barrier.boxes.push_back(box);
    return;
  }
  land(block, box, barrier);
  complete_if_all_came(block, address, barrier);
}
inline void wait_for_phase(unsigned address, unsigned parity) {
  Thread& thread = *grid().running;
  if (counting_barrier(block_of_running(), address).phase % 2 != parity) return;
  thread.state = State::AtCountingBarrier;
  thread.address = address;
  thread.parity = parity;
  yield();
}
// Boxes that are late come when nobody can go on without them; whether there were any.
inline bool land_late_boxes() {
  bool landed = false;
  for (auto& [key, barrier] : grid().counting_barriers) {
    const int block = key >> kBlockShift;
    const unsigned address = key & ((1u << kBlockShift) - 1);
    landed = landed || !barrier.boxes.empty();
    for (const Box& box : barrier.boxes) land(block, box, barrier);
    barrier.boxes.clear();
    complete_if_all_came(block, address, barrier);
  }
  return landed;
}

inline void store_box(const TensorMap& map, unsigned from, const int (&at)[5]) {
  grid().running->stores.push_back(Box{from, &map, {at[0], at[1], at[2], at[3], at[4]}});
}
inline void commit_stores() {}
inline void wait_stores_read() {
  const int block = block_of_running();
  for (const Box& box : grid().running->stores) {
    for_each_run(box, [&](unsigned char* to, unsigned from, unsigned bytes) {
      for (unsigned chunk = 0; 16 * chunk < bytes; ++chunk) {
        std::memcpy(to + 16 * chunk, chunk_of_run(block, from, chunk), std::min(16u, bytes - 16 * chunk));
      }
    });
  }
  grid().running->stores.clear();
}

inline void issue(const Product& product) { grid().running->products.push_back(product); }
inline void commit_products() {
  Thread& thread = *grid().running;
  thread.product_groups.push_back(std::move(thread.products));
  thread.products.clear();
}
inline void wait_for_products(int pending) {
  Thread& thread = *grid().running;
  warp_barrier();
  while (static_cast<int>(thread.product_groups.size()) > pending) {
    for (const Product& product : thread.product_groups.front()) product.run(product);
    thread.product_groups.pop_front();
  }
  // Nobody goes on, and gives slots back, before all have read.
  warp_barrier();
}

// Lets those on whom nobody is waited for any more go on from their barriers; whether there are any.
inline bool release() {
  Grid& g = grid();
  bool released = false;
  int least = 1 << 30;  // arrivals at the cluster's barrier; who is done has arrived at all
  for (int i = 0; i < g.num_threads * g.num_blocks; ++i) {
    if (g.threads[i].state != State::Done && g.threads[i].arrived < least) least = g.threads[i].arrived;
  }
  for (int block = 0; block < g.num_blocks; ++block) {
    const auto threads = g.threads.begin() + block * g.num_threads;
    bool met = true;
    for (int i = 0; i < g.num_threads; ++i) {
      released = released || threads[i].state == State::Ready;
      met = met && (threads[i].state == State::AtBarrier || threads[i].state == State::Done);
    }
    if (met) {
      g.any_result[block] = g.any[block];
      g.any[block] = false;
    }
    for (int i = 0; i < g.num_threads; ++i) {
      Thread& thread = threads[i];
      const bool goes_on = (thread.state == State::AtBarrier && met) ||
                           (thread.state == State::AtClusterBarrier && thread.waited <= least);
      if (!goes_on) continue;
      thread.state = State::Ready;
      released = true;
    }
  }
  return released;
}

inline void run_cluster(bool last_warp_first) {
  Grid& g = grid();
  const int num_threads = g.num_threads * g.num_blocks;
  while (static_cast<int>(g.threads.size()) < num_threads) g.threads.emplace_back();
  g.counting_barriers.clear();
  std::memset(g.named, 0, sizeof g.named);
  for (int i = 0; i < num_threads; ++i) {
    Thread& thread = g.threads[i];
    thread.index = i;
    thread.state = State::Ready;
    thread.started = false;
    thread.arrived = thread.waited = 0;
    thread.open.clear();
    thread.groups.clear();
    thread.products.clear();
    thread.product_groups.clear();
    thread.stores.clear();
  }
  for (Warp& warp : g.warps) warp.arrived = 0;
  std::memset(g.shared.data(), 0xff, g.shared.size());
  for (bool& any : g.any) any = false;
  const int num_warps = num_threads / 32;
  for (;;) {
    for (int i = 0; i < num_warps; ++i) {
      const int warp = last_warp_first ? num_warps - 1 - i : i;
      long passes = 0;
      for (bool ready = true; ready;) {
        ready = false;
        if (++passes > 10'000'000) {
          std::fprintf(stderr, "emulator: warp %d waits for lanes that have left\n", warp);
          std::abort();
        }
        for (int lane = 0; lane < 32; ++lane) {
          Thread& thread = g.threads[32 * warp + lane];
          if (thread.state != State::Ready) continue;
          run(thread);
          ready = ready || thread.state == State::Ready;
        }
      }
    }
    bool done = true;
    for (int i = 0; i < num_threads; ++i) done = done && g.threads[i].state == State::Done;
    if (done) {
      for (int i = 0; i < num_threads; ++i) {
        g.running = &g.threads[i];
        if (!g.running->stores.empty()) fail("has left before its stores have read shared memory");
        if (!g.running->products.empty() || !g.running->product_groups.empty()) fail("has left before its products");
      }
      return;
    }
    if (!release() && !land_late_boxes()) {
      std::fprintf(stderr, "emulator: all threads wait for others\n");
      std::abort();
    }
  }
}

inline void cluster_arrive() { ++grid().running->arrived; }
inline void cluster_wait() {
  Thread& thread = *grid().running;
  ++thread.waited;
  thread.state = State::AtClusterBarrier;
  yield();
}

}  // namespace emulator

int thread_index() { return emulator::grid().running->index % emulator::grid().num_threads; }
unsigned block_index_x() { return emulator::grid().block_x + emulator::block_of_running(); }
unsigned block_index_y() { return emulator::grid().block_y; }
void barrier() { barrier_any(false); }
bool barrier_any(bool value) {
  emulator::Grid& g = emulator::grid();
  const int block = emulator::block_of_running();
  g.any[block] = g.any[block] || value;
  g.running->state = emulator::State::AtBarrier;
  emulator::yield();
  return g.any_result[block];
}
namespace emulator {
inline unsigned grid_width() { return grid().width; }
// An arrival at a named barrier; the last one lets those who wait go on.
inline void arrive_at_name(int name, int threads) {
  Grid& g = grid();
  const int block = block_of_running();
  if (++g.named[block][name] < threads) return;
  g.named[block][name] = 0;
  for (int i = 0; i < g.num_threads; ++i) {
    Thread& thread = g.threads[block * g.num_threads + i];
    if (thread.state == State::AtNamedBarrier && thread.name == name) thread.state = State::Ready;
  }
}
}  // namespace emulator
void named_barrier(int name, int threads) {
  emulator::Thread& thread = *emulator::grid().running;
  thread.state = emulator::State::AtNamedBarrier;
  thread.name = name;
  emulator::arrive_at_name(name, threads);
  if (thread.state == emulator::State::AtNamedBarrier) emulator::yield();
}
float shuffle(float value, int lane) {
  const unsigned words[2] = {emulator::as_bits(value), static_cast<unsigned>(lane)};
  unsigned result;
  emulator::collective(words, 2, &result, 1, [](const unsigned(*all)[16], unsigned(*results)[16]) {
    for (int i = 0; i < 32; ++i) results[i][0] = all[all[i][1] % 32][0];
  });
  return emulator::as_float(result);
}
bool warp_any(bool value) {
  const unsigned word = value;
  unsigned result;
  emulator::collective(&word, 1, &result, 1, [](const unsigned(*all)[16], unsigned(*results)[16]) {
    unsigned any = 0;
    for (int i = 0; i < 32; ++i) any |= all[i][0];
    for (int i = 0; i < 32; ++i) results[i][0] = any;
  });
  return result != 0;
}
float shuffle_xor(float value, int lane_mask) { return shuffle(value, (thread_index() % 32) ^ lane_mask); }

}  // namespace omniflash

// The arguments, as the device would have them in constant memory.
static const void *argument_0, *argument_1, *argument_2;
static void call_entry();

// Runs a grid, `cluster` neighbouring blocks at a time; the number of errors.
extern "C" __attribute__((visibility("default"))) int emulate(unsigned grid_x, unsigned grid_y, unsigned cluster, int num_threads,
                       size_t shared_bytes, const void* parameters, const void* functors, const void* beside, bool last_warp_first) {
  auto& grid = omniflash::emulator::grid();
  grid.num_threads = num_threads;
  grid.num_blocks = cluster;
  if (num_threads * cluster > omniflash::emulator::kMaxThreads || grid_x % cluster != 0) return -1;
  grid.shared.assign(shared_bytes * cluster, 0);
  grid.body = call_entry;
  grid.errors = 0;
  argument_0 = parameters;
  argument_1 = functors;
  argument_2 = beside;
  grid.width = grid_x;
  grid.is_late = last_warp_first;
  for (grid.block_y = 0; grid.block_y < grid_y; ++grid.block_y) {
    for (grid.block_x = 0; grid.block_x < grid_x; grid.block_x += cluster) {
      omniflash::emulator::run_cluster(last_warp_first);
    }
  }
  return grid.errors;
}
