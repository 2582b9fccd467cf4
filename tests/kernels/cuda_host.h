// Runs CUDA kernels on the host, so that their text is tested where there is no GPU.
//
// A CUDA thread is a fiber: a stack of its own and a switch of six registers. A block is a ring of fibers that run one after
// another; a barrier switches to the next, and the block goes on when all live fibers have arrived. The order of blocks, and of
// threads after every barrier, is a permutation drawn from a seed, so a result that depends on the schedule shows itself. Blocks
// may be spread over OS threads, so atomics and concurrent writes are real. A barrier that only some live threads reach aborts.
// Not modelled: what warps exchange (our kernels use no warp intrinsics; CuPy's use __syncwarp, a barrier of 32 threads), the GPU's
// weaker memory order, a barrier missing between two threads whose order happens not to matter (races.cpp finds those).
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#define __global__
#define __device__
#define __shared__ static thread_local

#if defined(FIND_RACES)  // see races.cpp
extern "C" void race_thread_is(unsigned number, const char* stack, unsigned long stack_size);
extern "C" void race_begin();
extern "C" void race_block();
extern "C" void race_barrier();
extern "C" void race_note(const void* address);
#define UNWATCHED __attribute__((no_sanitize("thread")))
#define RACE_BEGIN() race_begin()
#define RACE_THREAD(n, stack, size) race_thread_is(n, stack, size)
#define RACE_BLOCK() race_block()
#define RACE_BARRIER() race_barrier()
#define RACE_NOTE(address) race_note(address)
#else
#define UNWATCHED
#define RACE_BEGIN()
#define RACE_THREAD(n, stack, size)
#define RACE_BLOCK()
#define RACE_BARRIER()
#define RACE_NOTE(address)
#endif

struct Index3 {
  unsigned x, y, z;
};

namespace host {

inline thread_local Index3 thread_index, block_index, block_size, grid_size;

#if defined(__x86_64__)
// System V: save what a callee must keep, exchange stacks, restore.
extern "C" void fiber_switch(void** save, void* load);
asm(R"(.text
.weak fiber_switch
fiber_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
using Context = void*;
inline void switch_to(Context& save, Context& load) { fiber_switch(&save, load); }
inline void prepare(Context& context, char* stack, size_t size, void (*entry)()) {
  void** top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(stack) + size) & ~uintptr_t{15});
  *--top = nullptr;  // entry finds the stack as after a call
  *--top = reinterpret_cast<void*>(entry);
  for (int k = 0; k < 6; k++) *--top = nullptr;
  context = top;
}
#else
using Context = ucontext_t;
inline void switch_to(Context& save, Context& load) { swapcontext(&save, &load); }
inline void prepare(Context& context, char* stack, size_t size, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = size;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}
#endif

constexpr size_t STACK = 32 * 1024;
constexpr unsigned WARP = 32;

enum State { READY, AT_WARP, AT_BLOCK, DONE };

struct Fiber {
  Context context;
  std::unique_ptr<char[]> stack;
  Index3 index;
  State state;
};

inline thread_local std::vector<Fiber> fibers;
inline thread_local Context scheduler;
inline thread_local Fiber* running = nullptr;
inline thread_local const std::function<void()>* body;
inline thread_local bool any_now, any_last;

UNWATCHED inline void fiber_main() {
  (*body)();
  running->state = DONE;
  switch_to(running->context, scheduler);
  std::abort();
}

UNWATCHED inline void stop_at(State state) {
  if (!running) {
    std::fprintf(stderr, "barrier in a kernel that was registered without fibers\n");
    std::abort();
  }
  running->state = state;
  switch_to(running->context, scheduler);
}

UNWATCHED inline bool barrier(bool flag) {
  any_now |= flag;
  stop_at(AT_BLOCK);
  return any_last;
}

inline Index3 unfold(unsigned k, const Index3& size) {
  return {k % size.x, k / size.x % size.y, k / (size.x * size.y)};
}

// Let those go on whose barrier is complete; false: none are left.
inline bool release(unsigned n) {
  unsigned live = 0, at_block = 0, ready = 0;
  for (unsigned warp = 0; warp < n; warp += WARP) {
    const unsigned end = std::min(warp + WARP, n);
    unsigned alive = 0, waiting = 0;
    for (unsigned k = warp; k < end; k++) {
      alive += fibers[k].state != DONE;
      waiting += fibers[k].state == AT_WARP;
      at_block += fibers[k].state == AT_BLOCK;
    }
    live += alive;
    if (waiting == 0 || waiting != alive) continue;
    for (unsigned k = warp; k < end; k++)
      if (fibers[k].state == AT_WARP) fibers[k].state = READY, ready++;
  }
  if (ready || !live) return live;
  if (at_block != live) {
    std::fprintf(stderr, "divergent barrier: %u of %u live threads\n", at_block, live);
    std::abort();
  }
  for (unsigned k = 0; k < n; k++)
    if (fibers[k].state == AT_BLOCK) fibers[k].state = READY;
  any_last = any_now;
  any_now = false;
  RACE_BARRIER();
  return true;
}

inline void run_block(std::vector<unsigned>& order, std::mt19937* random) {
  while (fibers.size() < order.size()) fibers.push_back({{}, std::make_unique<char[]>(STACK), {}, DONE});
  for (unsigned k = 0; k < order.size(); k++) {
    prepare(fibers[k].context, fibers[k].stack.get(), STACK, fiber_main);
    fibers[k].index = unfold(k, block_size);
    fibers[k].state = READY;
  }
  any_now = false;
  RACE_BLOCK();
  do {
    for (unsigned k : order) {
      if (fibers[k].state != READY) continue;
      running = &fibers[k];
      thread_index = running->index;
      RACE_THREAD(k + 1, fibers[k].stack.get(), STACK);
      switch_to(scheduler, running->context);
      RACE_THREAD(0, nullptr, 0);
    }
    running = nullptr;
    if (random) std::shuffle(order.begin(), order.end(), *random);
  } while (release((unsigned)order.size()));
}

inline void launch(Index3 grid, Index3 block, bool with_fibers, unsigned seed, int os_threads, const std::function<void()>& kernel) {
  RACE_BEGIN();
  std::vector<unsigned> blocks(grid.x * grid.y * grid.z);
  std::iota(blocks.begin(), blocks.end(), 0u);
  if (seed) {
    std::mt19937 random(seed);
    std::shuffle(blocks.begin(), blocks.end(), random);
  }
#pragma omp parallel num_threads(os_threads) if (os_threads > 1)
  {
    grid_size = grid;
    block_size = block;
    body = &kernel;
    std::vector<unsigned> order(block.x * block.y * block.z);
#pragma omp for schedule(dynamic, 1)
    for (long b = 0; b < (long)blocks.size(); b++) {
      block_index = unfold(blocks[b], grid);
      std::iota(order.begin(), order.end(), 0u);
      std::mt19937 random(seed * 7919u + (unsigned)b);
      if (seed) std::shuffle(order.begin(), order.end(), random);
      if (with_fibers) {
        run_block(order, seed ? &random : nullptr);
      } else {
        for (unsigned k : order) {
          thread_index = unfold(k, block);
          RACE_THREAD(blocks[b] * (unsigned)order.size() + k + 1, nullptr, 0);
          kernel();
          RACE_THREAD(0, nullptr, 0);
        }
      }
    }
  }
}

}  // namespace host

#define threadIdx host::thread_index
#define blockIdx host::block_index
#define blockDim host::block_size
#define gridDim host::grid_size

inline void __syncthreads() { host::barrier(false); }
inline int __syncthreads_or(int flag) { return host::barrier(flag != 0); }
inline void __syncwarp() { host::stop_at(host::AT_WARP); }

template <class T>
UNWATCHED T atomicAdd(T* at, T value) {
  RACE_NOTE(at);
  return __atomic_fetch_add(at, value, __ATOMIC_RELAXED);
}
template <class T>
UNWATCHED T atomicOr(T* at, T value) {
  RACE_NOTE(at);
  return __atomic_fetch_or(at, value, __ATOMIC_RELAXED);
}
template <class T>
UNWATCHED T atomicExch(T* at, T value) {
  RACE_NOTE(at);
  return __atomic_exchange_n(at, value, __ATOMIC_RELAXED);
}
template <class T>
UNWATCHED T atomicCAS(T* at, T expected, T value) {
  RACE_NOTE(at);
  __atomic_compare_exchange_n(at, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}
template <class T>
UNWATCHED T atomicMin(T* at, T value) {
  RACE_NOTE(at);
  T old = __atomic_load_n(at, __ATOMIC_RELAXED);
  while (value < old && !__atomic_compare_exchange_n(at, &old, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}
template <class T>
UNWATCHED T atomicMax(T* at, T value) {
  RACE_NOTE(at);
  T old = __atomic_load_n(at, __ATOMIC_RELAXED);
  while (value > old && !__atomic_compare_exchange_n(at, &old, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}
