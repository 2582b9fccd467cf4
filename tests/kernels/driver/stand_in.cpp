// A stand-in for NVIDIA's driver under the real CuPy: one GPU whose memory is the host's and whose kernels are compiled by g++.
//
// Work is put off as long as a driver may put it off: a launch or a copy waits in its stream until somebody waits for it, and what
// streams have no order between them runs in an order drawn from a seed. So whoever reads too early reads rubbish, and memory that
// is handed on too early is overwritten. Fresh memory holds 0xCD, freed memory 0xEE and is never handed out again.
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace {

constexpr int OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, NOT_FOUND = 500, NOT_READY = 600;
using Work = std::function<void()>;

std::recursive_mutex mutex;
using Lock = std::lock_guard<std::recursive_mutex>;
std::mt19937 chance(1);
std::vector<std::string> events_log;
std::atomic<long> used{0};
constexpr long limit = 8L << 30;

void note(const char* text, uint64_t a = 0, uint64_t b = 0) {
  char line[256];
  snprintf(line, sizeof line, "%s %llu %llu", text, (unsigned long long)a, (unsigned long long)b);
  events_log.push_back(line);
}

double now_ms() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
}

// Streams --------------------------------------------------------------------------------------------------------------------

struct Stream;
using Until = std::pair<Stream*, uint64_t>;  // all of a stream up to a number

struct Op {
  Work work;
  std::vector<Until> after;
};

struct Stream {
  uint64_t number = 0, put = 0, done = 0;
  bool non_blocking = false;
  std::deque<Op> ops;
};

std::vector<std::unique_ptr<Stream>> streams;  // never removed: a destroyed stream still finishes
uint64_t n_streams = 0;

Stream* add_stream(bool non_blocking) {
  streams.push_back(std::make_unique<Stream>());
  streams.back()->number = n_streams++;
  streams.back()->non_blocking = non_blocking;
  return streams.back().get();
}

Stream* of(void* handle) {
  static Stream* legacy = add_stream(false);
  return handle == nullptr || handle == (void*)1 || handle == (void*)2 ? legacy : (Stream*)handle;
}

void run_until(Stream* stream, uint64_t number) {
  while (stream->done < number) {
    Op op = std::move(stream->ops.front());
    stream->ops.pop_front();
    for (auto& [other, until] : op.after) run_until(other, until);
    op.work();
    stream->done++;
  }
}

void run_all() {
  std::vector<Stream*> all;
  for (auto& s : streams) all.push_back(s.get());
  std::shuffle(all.begin(), all.end(), chance);
  for (Stream* s : all) run_until(s, s->put);
}

uint64_t put(Stream* stream, Work work, std::vector<Until> after = {}) {
  // the default stream and streams that block on it wait for each other
  if (stream == of(nullptr)) {
    for (auto& s : streams)
      if (s.get() != stream && !s->non_blocking) after.push_back({s.get(), s->put});
  } else if (!stream->non_blocking) {
    after.push_back({of(nullptr), of(nullptr)->put});
  }
  stream->ops.push_back({std::move(work), std::move(after)});
  return ++stream->put;
}

// Memory ---------------------------------------------------------------------------------------------------------------------

std::map<uintptr_t, size_t> on_device, pinned;

bool within(const std::map<uintptr_t, size_t>& blocks, const void* pointer) {
  auto next = blocks.upper_bound((uintptr_t)pointer);
  if (next == blocks.begin()) return false;
  --next;
  return (uintptr_t)pointer < next->first + next->second;
}

int copied(void* to, const void* from, size_t n, Stream* stream, bool wait) {
  const bool from_pageable = !within(on_device, from) && !within(pinned, from);
  const bool to_pageable = !within(on_device, to) && !within(pinned, to);
  uint64_t number;
  if (from_pageable) {  // the driver takes its copy before it returns
    auto held = std::make_shared<std::vector<char>>((const char*)from, (const char*)from + n);
    number = put(stream, [=] { memcpy(to, held->data(), n); });
  } else {
    number = put(stream, [=] { memmove(to, from, n); });
  }
  if (wait || to_pageable) run_until(stream, number);
  return OK;
}

struct Event {
  Stream* stream = nullptr;
  uint64_t number = 0;
  double at_ms = -1;
};

thread_local int last_error = OK;
int told(int code) { return code == OK ? OK : (last_error = code); }

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default"))) int

// CUDA runtime: CuPy holds it as a static library, whose functions `rehearsal.py` makes jump to those here -------------------------

EXPORT cudaDriverGetVersion(int* v) { return *v = 13000, OK; }
EXPORT cudaRuntimeGetVersion(int* v) { return *v = 13000, OK; }
EXPORT cudaGetLastError() { return std::exchange(last_error, OK); }
EXPORT cudaPeekAtLastError() { return last_error; }
EXPORT cudaGetDeviceCount(int* n) { return *n = 1, OK; }
EXPORT cudaGetDevice(int* d) { return *d = 0, OK; }
EXPORT cudaSetDevice(int d) { return told(d == 0 ? OK : INVALID_DEVICE); }
EXPORT cudaDeviceCanAccessPeer(int* v, int, int) { return *v = 0, OK; }
EXPORT cudaDeviceGetAttribute(int* v, int which, int) {
  // numbers of cuda.h: threads of a block, grid, shared memory, warp, multiprocessors, compute capability 9.0
  static const std::map<int, int> known = {{1, 1024}, {2, 1024}, {3, 1024}, {4, 64}, {5, 2147483647}, {6, 65535}, {7, 65535},
                                           {8, 49152}, {9, 65536}, {10, 32}, {12, 65536}, {16, 132}, {31, 1}, {39, 2048},
                                           {41, 1}, {75, 9}, {76, 0}, {81, 233472}, {82, 65536}, {97, 232448}, {106, 32}};
  auto at = known.find(which);
  return *v = at == known.end() ? 0 : at->second, OK;
}
EXPORT cudaGetDeviceProperties(char* out, int d) {  // the name comes first; 700 bytes are less than any version of the structure
  if (d) return told(INVALID_DEVICE);
  memset(out, 0, 700);
  strcpy(out, "Stand-in for an H200");
  *(int*)(out + 308) = 32;  // warpSize: behind name, uuid, luid, mask, and the sizes of memory
  return OK;
}
EXPORT cudaDeviceSynchronize() {
  Lock lock(mutex);
  note("synchronize device");
  run_all();
  return OK;
}

// Memory
EXPORT cudaMemGetInfo(size_t* free_bytes, size_t* total) { return *total = limit, *free_bytes = limit - used, OK; }
EXPORT cudaMalloc(void** out, size_t n) {
  Lock lock(mutex);
  if (used + (long)n > limit) return OUT_OF_MEMORY;
  *out = aligned_alloc(512, (n + 1023) / 512 * 512);
  memset(*out, 0xCD, n);
  on_device[(uintptr_t)*out] = n;
  used += n;
  note("allocate", (uint64_t)*out, n);
  return OK;
}
EXPORT cudaFree(void* p) {
  Lock lock(mutex);
  if (!p) return OK;
  run_all();  // as the driver does
  auto at = on_device.find((uintptr_t)p);
  if (at == on_device.end()) return INVALID_VALUE;
  memset(p, 0xEE, at->second);
  note("free", (uint64_t)p, at->second);
  used -= at->second;
  on_device.erase(at);
  return OK;
}
EXPORT cudaHostAlloc(void** out, size_t n, unsigned) {
  Lock lock(mutex);
  *out = aligned_alloc(512, (n + 1023) / 512 * 512);
  memset(*out, 0xCD, n);
  pinned[(uintptr_t)*out] = n;
  note("pin", (uint64_t)*out, n);
  return OK;
}
EXPORT cudaMallocHost(void** out, size_t n) { return cudaHostAlloc(out, n, 0); }
EXPORT cudaFreeHost(void* p) {
  Lock lock(mutex);
  run_all();
  memset(p, 0xEE, pinned[(uintptr_t)p]);
  pinned.erase((uintptr_t)p);
  return OK;
}
EXPORT cudaPointerGetAttributes(void* out, void* p) {
  Lock lock(mutex);
  struct {
    int type, device;
    void *device_pointer, *host_pointer;
  } found = {0, 0, nullptr, nullptr};
  if (within(on_device, p)) found = {2, 0, p, nullptr};
  if (within(pinned, p)) found = {1, 0, p, p};
  memcpy(out, &found, sizeof found);
  return OK;
}
EXPORT cudaMemcpyAsync(void* to, void* from, size_t n, int, void* s) {
  Lock lock(mutex);
  return copied(to, from, n, of(s), false);
}
EXPORT cudaMemcpy(void* to, void* from, size_t n, int) {
  Lock lock(mutex);
  return copied(to, from, n, of(nullptr), true);
}
EXPORT cudaMemsetAsync(void* p, int v, size_t n, void* s) {
  Lock lock(mutex);
  put(of(s), [=] { memset(p, v, n); });
  return OK;
}
EXPORT cudaMemset(void* p, int v, size_t n) { return cudaMemsetAsync(p, v, n, nullptr); }

// Streams and events
EXPORT cudaStreamCreateWithFlags(void** s, unsigned flags) {
  Lock lock(mutex);
  of(nullptr);
  *s = add_stream(flags & 1);
  return OK;
}
EXPORT cudaStreamCreate(void** s) { return cudaStreamCreateWithFlags(s, 0); }
EXPORT cudaStreamCreateWithPriority(void** s, unsigned flags, int) { return cudaStreamCreateWithFlags(s, flags); }
EXPORT cudaStreamDestroy(void*) { return OK; }
EXPORT cudaStreamGetFlags(void* s, unsigned* f) { return *f = of(s)->non_blocking, OK; }
EXPORT cudaStreamGetPriority(void*, int* p) { return *p = 0, OK; }
EXPORT cudaStreamIsCapturing(void*, int* c) { return *c = 0, OK; }
EXPORT cudaStreamSynchronize(void* s) {
  Lock lock(mutex);
  note("synchronize stream", of(s)->number);
  run_until(of(s), of(s)->put);
  return OK;
}
EXPORT cudaStreamQuery(void* s) {
  Lock lock(mutex);
  if (of(s)->done < of(s)->put) run_until(of(s), of(s)->done + 1);  // who asks again and again gets on
  return of(s)->done < of(s)->put ? NOT_READY : OK;
}
EXPORT cudaStreamWaitEvent(void* s, void* e, unsigned) {
  Lock lock(mutex);
  Event* event = (Event*)e;
  if (event->stream) put(of(s), [] {}, {{event->stream, event->number}});
  note("wait for event", of(s)->number, event->stream ? event->stream->number : 0);
  return OK;
}
EXPORT cudaEventCreate(void** e) { return *e = new Event, OK; }
EXPORT cudaEventCreateWithFlags(void** e, unsigned) { return *e = new Event, OK; }
EXPORT cudaEventDestroy(void* e) {
  Lock lock(mutex);
  Event* event = (Event*)e;
  if (event->stream) run_until(event->stream, event->number);
  delete event;
  return OK;
}
EXPORT cudaEventRecord(void* e, void* s) {
  Lock lock(mutex);
  Event* event = (Event*)e;
  event->stream = of(s);
  event->at_ms = -1;
  note("record event", of(s)->number);
  event->number = put(of(s), [=] { event->at_ms = now_ms(); });
  return OK;
}
EXPORT cudaEventRecordWithFlags(void* e, void* s, unsigned) { return cudaEventRecord(e, s); }
EXPORT cudaEventSynchronize(void* e) {
  Lock lock(mutex);
  Event* event = (Event*)e;
  note("synchronize event");
  if (event->stream) run_until(event->stream, event->number);
  return OK;
}
EXPORT cudaEventQuery(void* e) { return ((Event*)e)->stream && ((Event*)e)->at_ms < 0 ? NOT_READY : OK; }
EXPORT cudaEventElapsedTime(float* ms, void* a, void* b) {
  if (((Event*)a)->at_ms < 0 || ((Event*)b)->at_ms < 0) return NOT_READY;
  return *ms = (float)(((Event*)b)->at_ms - ((Event*)a)->at_ms), OK;
}

// CUDA driver: what CuPy looks up in libcuda.so.1 ------------------------------------------------------------------------------

char context_of_device;
EXPORT cuDriverGetVersion(int* v) { return *v = 13000, OK; }
EXPORT cuGetErrorString(int, const char** out) { return *out = "an error of the stand-in driver", OK; }
EXPORT cuGetErrorName(int, const char** out) { return *out = "CUDA_ERROR_OF_THE_STAND_IN", OK; }
EXPORT cuCtxGetCurrent(void** c) { return *c = &context_of_device, OK; }
EXPORT cuCtxSetCurrent(void*) { return OK; }
EXPORT cuCtxGetDevice(int* d) { return *d = 0, OK; }
EXPORT cuDevicePrimaryCtxRelease(int) { return OK; }

// Kernels: an image is the path of a shared library in which bind_NAME(grid and block, dynamic bytes, arguments) returns the work
struct Function {
  std::string name;
  Work* (*bind)(const unsigned*, unsigned, void**);
};
EXPORT cuModuleLoadData(void** m, const void* image) {
  Lock lock(mutex);
  if (strncmp((const char*)image, "host:", 5)) return 200;
  *m = dlopen((const char*)image + 5, RTLD_NOW | RTLD_LOCAL);
  if (!*m) fprintf(stderr, "stand-in driver: %s\n", dlerror());
  return *m ? OK : 200;
}
EXPORT cuModuleLoadDataEx(void** m, const void* image, unsigned, int*, void**) { return cuModuleLoadData(m, image); }
EXPORT cuModuleUnload(void*) { return OK; }
EXPORT cuModuleGetFunction(void** f, void* m, const char* name) {
  void* bind = dlsym(m, (std::string("bind_") + name).c_str());
  if (!bind) return NOT_FOUND;
  *f = new Function{name, (Work * (*)(const unsigned*, unsigned, void**)) bind};
  return OK;
}
EXPORT cuFuncGetAttribute(int* v, int which, void*) { return *v = which == 0 ? 1024 : 0, OK; }
EXPORT cuFuncSetAttribute(void*, int, int) { return OK; }
EXPORT cuLaunchKernel(void* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void* s,
                      void** params, void**) {
  Lock lock(mutex);
  Function* function = (Function*)f;
  const unsigned size[6] = {gx, gy, gz, bx, by, bz};
  std::shared_ptr<Work> work(function->bind(size, shared, params));
  note(("launch " + function->name).c_str(), of(s)->number);
  put(of(s), [=] { (*work)(); });
  return OK;
}

// For the tests
EXPORT stand_in_seed(unsigned seed) { return chance.seed(seed), OK; }
EXPORT stand_in_call(void* s, void (*function)(void*), void* argument) {
  Lock lock(mutex);
  put(of(s), [=] { function(argument); });
  note("launch host function", of(s)->number);
  return OK;
}
EXPORT stand_in_waiting() {
  Lock lock(mutex);
  int n = 0;
  for (auto& stream : streams) n += (int)stream->ops.size();
  return n;
}
EXPORT stand_in_stream(void* s) { return (int)of(s)->number; }
EXPORT stand_in_log(char* out, int size) {  // takes what was logged, as lines; the bytes it needs where `out` is too small
  Lock lock(mutex);
  std::string text;
  for (auto& line : events_log) text += line + "\n";
  if ((int)text.size() + 1 > size) return (int)text.size() + 1;
  memcpy(out, text.c_str(), text.size() + 1);
  events_log.clear();
  return 0;
}
EXPORT stand_in_missing() {  // a function of the runtime that the stand-in does not have
  Lock lock(mutex);
  note("missing function");
  return told(801);
}
