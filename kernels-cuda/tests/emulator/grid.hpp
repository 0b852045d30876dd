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
#include <memory>
#include <vector>

#include <ucontext.h>

namespace omniflash {
namespace emulator {

constexpr size_t kStackBytes = 256 << 10;
constexpr int kMaxThreads = 512;

enum class State { Ready, AtBarrier, AtNamedBarrier, AtClusterBarrier, Done };

struct Warp {
  int arrived = 0;
  unsigned generation = 0;
  unsigned words[32][16], results[32][16];
};

struct Thread {
  int index;  // in the cluster
  State state;
  bool started;
  int arrived, waited;  // at the cluster's barrier, so many times
  int name;             // of the named barrier at which it waits
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  jmp_buf resume;
  ucontext_t context;
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> groups;
};

struct Grid {
  Thread threads[kMaxThreads];
  Warp warps[kMaxThreads / 32];
  int num_threads, num_blocks;  // of a block, of the cluster
  unsigned block_x, block_y;    // of the cluster's first block
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
  const unsigned generation = warp.generation;
  if (++warp.arrived == 32) {
    compute(warp.words, warp.results);
    warp.arrived = 0;
    ++warp.generation;
  }
  while (warp.generation == generation) yield();
  // The next collective cannot overwrite results before this lane has arrived there.
  std::memcpy(results, warp.results[lane], 4 * result_count);
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
    Thread* threads = g.threads + block * g.num_threads;
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
  for (int i = 0; i < num_threads; ++i) {
    Thread& thread = g.threads[i];
    thread.index = i;
    thread.state = State::Ready;
    thread.started = false;
    thread.arrived = thread.waited = 0;
    thread.open.clear();
    thread.groups.clear();
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
    if (done) return;
    if (!release()) {
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
void named_barrier(int name, int threads) {
  emulator::Grid& g = emulator::grid();
  emulator::Thread* block = g.threads + emulator::block_of_running() * g.num_threads;
  g.running->state = emulator::State::AtNamedBarrier;
  g.running->name = name;
  const auto waits = [&](const emulator::Thread& thread) {
    return thread.state == emulator::State::AtNamedBarrier && thread.name == name;
  };
  if (std::count_if(block, block + g.num_threads, waits) == threads) {
    for (int i = 0; i < g.num_threads; ++i) {
      if (waits(block[i])) block[i].state = emulator::State::Ready;
    }
  }
  emulator::yield();
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
static const void *argument_0, *argument_1;
static void call_entry();

// Runs a grid, `cluster` neighbouring blocks at a time; the number of errors.
extern "C" __attribute__((visibility("default"))) int emulate(unsigned grid_x, unsigned grid_y, unsigned cluster, int num_threads,
                       size_t shared_bytes, const void* parameters, const void* functors, bool last_warp_first) {
  auto& grid = omniflash::emulator::grid();
  grid.num_threads = num_threads;
  grid.num_blocks = cluster;
  if (num_threads * cluster > omniflash::emulator::kMaxThreads || grid_x % cluster != 0) return -1;
  grid.shared.assign(shared_bytes * cluster, 0);
  grid.body = call_entry;
  grid.errors = 0;
  argument_0 = parameters;
  argument_1 = functors;
  for (grid.block_y = 0; grid.block_y < grid_y; ++grid.block_y) {
    for (grid.block_x = 0; grid.block_x < grid_x; grid.block_x += cluster) {
      omniflash::emulator::run_cluster(last_warp_first);
    }
  }
  return grid.errors;
}
