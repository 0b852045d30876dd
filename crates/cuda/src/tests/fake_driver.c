// A driver without a device, for tests: host memory in the place of device memory, and a record of what was asked.
// -DVERSION=, -DDEVICES=, -DMAJOR=, -DUNITS= and -DINIT= make others; -DcuX=omitted_cuX leaves a function out;
// -DQUIET does nothing at all in most calls.
// An image `emulated:PATH` names a library with a kernel for the host, which launches then run.
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifndef VERSION
#define VERSION 13000
#endif
#ifndef DEVICES
#define DEVICES 1
#endif
#ifndef MAJOR
#define MAJOR 9
#endif
#ifndef UNITS
#define UNITS 132
#endif
#ifndef INIT
#define INIT 0
#endif

typedef struct {
  char entry[64];
  unsigned grid[3], block, shared;
  uint64_t stream;
  unsigned char parameters[1024];
  unsigned char functor[64];
  unsigned char hopper[576];
} FakeLaunch;

typedef int (*Emulate)(unsigned, unsigned, unsigned, int, size_t, const void *, const void *, const void *, _Bool);
typedef struct { Emulate emulate; size_t functor_bytes, beside_bytes; unsigned cluster; } Module;
typedef struct { char name[64]; int shared_limit; Module module; } Function;
typedef struct { char name[64]; unsigned long count; int failure; } Counter;

static Counter counters[96];
static FakeLaunch launches[256];
static size_t launch_count, parameter_bytes, functor_bytes, hopper_bytes, live_bytes, memory_limit = (size_t)1 << 32;
static long live_objects, context_depth;
static int capturing, last_warp_first;
static void *current;
static char primary;

static Counter *counter(const char *name) {
  for (size_t i = 0; i < 96; i++) {
    if (!strcmp(counters[i].name, name)) return &counters[i];
    if (!counters[i].name[0]) { strncpy(counters[i].name, name, 63); return &counters[i]; }
  }
  abort();
}

static int called(const char *name) {
  Counter *c = counter(name);
  int failure = c->failure;
  c->count++;
  c->failure = 0;
  return failure;
}

#ifdef QUIET  // counts and records nothing: what is timed is the caller
#define CALL
#else
#define CALL do { int failure = called(__func__); if (failure) return failure; } while (0)
#endif
#define NOT_CAPTURED do { if (capturing) return 900; } while (0)
#define NEED_CONTEXT do { if (!current) return 201; } while (0)

unsigned long fake_calls(const char *name) { return counter(name)->count; }
void fake_fail(const char *name, int code) { counter(name)->failure = code; }
size_t fake_launch_count(void) { return launch_count; }
void fake_launch(size_t i, FakeLaunch *launch) { *launch = launches[i]; }
void fake_sizes(size_t parameters, size_t functor) { parameter_bytes = parameters; functor_bytes = functor; }
void fake_hopper_size(size_t bytes) { hopper_bytes = bytes; }
void fake_memory_limit(size_t bytes) { memory_limit = bytes; }
size_t fake_live_bytes(void) { return live_bytes; }
long fake_live_objects(void) { return live_objects; }
long fake_context_depth(void) { return context_depth; }

int cuGetErrorName(int code, const char **name) { *name = code == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS" : "CUDA_ERROR_OTHER"; return 0; }
int cuGetErrorString(int code, const char **text) { *text = code == 700 ? "an illegal memory access was encountered" : "another error"; return 0; }
int cuDriverGetVersion(int *version) { *version = VERSION; return 0; }
int cuInit(unsigned flags) { (void)flags; CALL; return INIT; }
int cuDeviceGetCount(int *count) { CALL; *count = DEVICES; return 0; }
int cuDeviceGet(int *device, int ordinal) { CALL; *device = ordinal; return 0; }
int cuDeviceGetName(char *name, int length, int device) { (void)device; CALL; strncpy(name, "Fake GPU", length); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { (void)device; CALL; *bytes = (size_t)80 << 30; return 0; }
int cuDeviceGetAttribute(int *value, unsigned attribute, int device) {
  (void)device; CALL;
  switch (attribute) {
    case 75: *value = MAJOR; break;
    case 76: *value = 0; break;
    case 16: *value = UNITS; break;
    case 97: *value = 227 << 10; break;
    case 38: *value = 50 << 20; break;
    case 115: *value = 1; break;
    default: return 1;
  }
  return 0;
}
int cuDeviceGetDefaultMemPool(void **pool, int device) { (void)device; CALL; *pool = &primary; return 0; }
int cuMemPoolSetAttribute(void *pool, unsigned attribute, void *value) { (void)pool; CALL; return attribute == 4 && *(uint64_t *)value == UINT64_MAX ? 0 : 1; }
int cuDevicePrimaryCtxRetain(void **context, int device) { (void)device; CALL; *context = &primary; live_objects++; return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { (void)device; CALL; live_objects--; return 0; }
int cuCtxGetCurrent(void **context) { CALL; *context = current; return 0; }
int cuCtxPushCurrent_v2(void *context) { CALL; current = context; context_depth++; return 0; }
int cuCtxPopCurrent_v2(void **context) { CALL; *context = current; current = NULL; context_depth--; return 0; }
int cuCtxSynchronize(void) { CALL; NEED_CONTEXT; NOT_CAPTURED; return 0; }
int cuStreamCreate(uint64_t **stream, unsigned flags) {
  CALL; NEED_CONTEXT;
  static uint64_t next = 100;
  *stream = malloc(8); **stream = next++; live_objects++;
  return flags == 1 ? 0 : 1;
}
int cuStreamDestroy_v2(uint64_t *stream) { CALL; NEED_CONTEXT; free(stream); live_objects--; return 0; }
int cuStreamSynchronize(uint64_t *stream) { (void)stream; CALL; NEED_CONTEXT; NOT_CAPTURED; return 0; }
int cuStreamIsCapturing(uint64_t *stream, unsigned *status) { (void)stream; CALL; *status = capturing; return 0; }
int cuStreamGetId(uint64_t *stream, uint64_t *id) { CALL; NEED_CONTEXT; NOT_CAPTURED; *id = stream ? *stream : 1; return 0; }
int cuStreamBeginCapture_v2(uint64_t *stream, unsigned mode) { (void)stream; CALL; NOT_CAPTURED; capturing = 1; return mode == 1 ? 0 : 1; }
int cuStreamEndCapture(uint64_t *stream, void **graph) { (void)stream; CALL; capturing = 0; *graph = malloc(1); live_objects++; return 0; }
int cuGraphInstantiateWithFlags(void **exec, void *graph, unsigned long long flags) { (void)graph; (void)flags; CALL; *exec = malloc(1); live_objects++; return 0; }
int cuGraphLaunch(void *exec, void *stream) { (void)exec; (void)stream; CALL; return 0; }
int cuGraphExecDestroy(void *exec) { CALL; free(exec); live_objects--; return 0; }
int cuGraphDestroy(void *graph) { CALL; free(graph); live_objects--; return 0; }
int cuEventCreate(void **event, unsigned flags) { (void)flags; CALL; NEED_CONTEXT; *event = malloc(1); live_objects++; return 0; }
int cuEventRecord(void *event, void *stream) { (void)event; (void)stream; CALL; return 0; }
int cuEventSynchronize(void *event) { (void)event; CALL; return 0; }
int cuEventElapsedTime(float *ms, void *start, void *end) { (void)start; (void)end; CALL; *ms = 1.5f; return 0; }
int cuEventDestroy_v2(void *event) { CALL; free(event); live_objects--; return 0; }

static int allocate(uint64_t *pointer, size_t bytes) {
  if (live_bytes + bytes > memory_limit) return 2;
  size_t *memory = malloc(bytes + 16);
  memory[0] = bytes;
  live_bytes += bytes;
  *pointer = (uint64_t)(memory + 2);
  return 0;
}
static void release(uint64_t pointer) {
  size_t *memory = (size_t *)pointer - 2;
  live_bytes -= memory[0];
  free(memory);
}
int cuMemAlloc_v2(uint64_t *pointer, size_t bytes) { CALL; NEED_CONTEXT; NOT_CAPTURED; return allocate(pointer, bytes); }
int cuMemFree_v2(uint64_t pointer) { CALL; NEED_CONTEXT; NOT_CAPTURED; release(pointer); return 0; }
int cuMemAllocAsync(uint64_t *pointer, size_t bytes, void *stream) { (void)stream; CALL; NEED_CONTEXT; NOT_CAPTURED; return allocate(pointer, bytes); }
int cuMemFreeAsync(uint64_t pointer, void *stream) { (void)stream; CALL; NEED_CONTEXT; release(pointer); return 0; }
int cuMemsetD8Async(uint64_t pointer, unsigned char value, size_t bytes, void *stream) { (void)stream; CALL; memset((void *)pointer, value, bytes); return 0; }
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) { (void)stream; CALL; NOT_CAPTURED; memcpy((void *)to, from, bytes); return 0; }
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) { (void)stream; CALL; NOT_CAPTURED; memcpy(to, (void *)from, bytes); return 0; }

int cuModuleLoadDataEx(Module **module, const char *image, unsigned count, const unsigned *options, void **values) {
  CALL; NEED_CONTEXT; NOT_CAPTURED;
  if (!strcmp(image, "damaged")) {
    if (count == 2 && options[0] == 5 && options[1] == 6) strncpy(values[0], "ptxas fatal: no such thing", (size_t)values[1]);
    return 218;
  }
  *module = calloc(1, sizeof(Module)); live_objects++;
  if (!strncmp(image, "emulated:", 9)) {
    void *library = dlopen(image + 9, RTLD_NOW | RTLD_LOCAL);
    if (!library) return 209;
    (*module)->emulate = (Emulate)dlsym(library, "emulate");
    (*module)->functor_bytes = ((size_t(*)(void))dlsym(library, "functor_bytes"))();
    (*module)->beside_bytes = ((size_t(*)(void))dlsym(library, "beside_bytes"))();
    (*module)->cluster = ((unsigned (*)(void))dlsym(library, "cluster_blocks"))();
  }
  return 0;
}
int cuTensorMapEncodeTiled(void *map, unsigned element, unsigned rank, void *address, const uint64_t *extents,
                           const uint64_t *strides, const unsigned *sizes, const unsigned *steps, unsigned interleave,
                           unsigned swizzle, unsigned promotion, unsigned outside) {
  (void)promotion; CALL; NEED_CONTEXT;
  if ((uintptr_t)map % 64 || element < 6 || rank != 5 || (uintptr_t)address % 16 || interleave || swizzle != 3 || outside) return 1;
  for (unsigned i = 0; i < rank; i++)
    if (!extents[i] || extents[i] >> 32 || !sizes[i] || sizes[i] > 256 || steps[i] != 1) return 1;
  for (unsigned i = 0; i + 1 < rank; i++)
    if (strides[i] % 16 || strides[i] >> 40) return 1;
  memset(map, 0, 128);
  // As the emulator reads it.
  uint64_t *words = map;
  words[0] = (uint64_t)address;
  memcpy(words + 1, extents, 5 * sizeof *words);
  memcpy(words + 6, strides, 4 * sizeof *words);
  memcpy(words + 10, sizes, 5 * sizeof *sizes);
  return 0;
}
void fake_last_warp_first(int value) { last_warp_first = value; }
int cuModuleUnload(void *module) { CALL; NEED_CONTEXT; free(module); live_objects--; return 0; }
int cuModuleGetFunction(Function **function, Module *module, const char *name) {
  CALL;
  static Function functions[64];
  static size_t count;
  *function = &functions[count++ % 64];
  strncpy((*function)->name, name, 63);
  (*function)->shared_limit = 48 << 10;
  (*function)->module = *module;
  return 0;
}
int cuFuncSetAttribute(Function *function, unsigned attribute, int value) { CALL; if (attribute != 8) return 1; function->shared_limit = value; return 0; }
int cuFuncGetAttribute(int *value, unsigned attribute, Function *function) { (void)function; CALL; *value = attribute == 4 ? 168 : 0; return 0; }
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, Function *function, int threads, size_t shared) { (void)function; (void)threads; (void)shared; CALL; *blocks = 2; return 0; }
int cuLaunchKernel(Function *function, unsigned x, unsigned y, unsigned z, unsigned block, unsigned block_y, unsigned block_z,
                   unsigned shared, uint64_t *stream, void **parameters, void **extra) {
  (void)extra;
  CALL; NEED_CONTEXT;
  if (!x || !y || !z || block_y != 1 || block_z != 1 || (int)shared > function->shared_limit) return 1;
#ifdef QUIET
  return 0;
#endif
  FakeLaunch *launch = &launches[launch_count++ % 256];
  memset(launch, 0, sizeof *launch);
  strcpy(launch->entry, function->name);
  launch->grid[0] = x; launch->grid[1] = y; launch->grid[2] = z;
  launch->block = block; launch->shared = shared; launch->stream = (uint64_t)stream;
  memcpy(launch->parameters, parameters[0], parameter_bytes);
  if (strcmp(function->name, "omniflash_combine") && functor_bytes) memcpy(launch->functor, parameters[1], functor_bytes);
  if (hopper_bytes) memcpy(launch->hopper, parameters[2], hopper_bytes);
  if (!function->module.emulate) return 0;
  static _Alignas(16) unsigned char functor[1024];
  static _Alignas(64) unsigned char beside[1024];
  if (function->module.functor_bytes) memcpy(functor, parameters[1], function->module.functor_bytes);
  if (function->module.beside_bytes) memcpy(beside, parameters[2], function->module.beside_bytes);
  // A kernel that the emulator finds at fault: CUDA_ERROR_LAUNCH_FAILED.
  return function->module.emulate(x, y, function->module.cluster, block, shared, parameters[0], functor, beside, last_warp_first) ? 719 : 0;
}
