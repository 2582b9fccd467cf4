// What CuPy's own kernels need besides cuda_host.h, and how a launch becomes work that is done later.
#pragma once
#include <cassert>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <utility>

#include "../cuda_host.h"

#define __host__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __CUDA_ARCH__ 900

inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
// CuPy's sums: all 32 threads of a warp take part, of blocks with one dimension.
template <class T>
T from_thread(T value, unsigned other) {
  static thread_local T given[1024];
  given[threadIdx.x] = value;
  __syncwarp();
  value = given[other];
  __syncwarp();
  return value;
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask, int) {
  return from_thread(value, threadIdx.x ^ (unsigned)mask);
}
template <class T>
T __shfl_up_sync(unsigned, T value, unsigned by, int) {
  return from_thread(value, threadIdx.x % host::WARP < by ? threadIdx.x : threadIdx.x - by);
}
template <class T>
T __shfl_sync(unsigned, T value, int lane, int) {
  return from_thread(value, threadIdx.x / host::WARP * host::WARP + (unsigned)lane % host::WARP);
}
using std::max;
using std::min;

namespace host {

using Work = std::function<void()>;

// The arguments are taken at once, as the driver does; the kernel runs when its turn has come.
template <class... A, size_t... I>
Work* bound(void (*kernel)(A...), const unsigned* size, bool fibers, void** args, std::index_sequence<I...>) {
  auto held = std::make_tuple(*static_cast<std::remove_const_t<A>*>(args[I])...);
  const Index3 grid = {size[0], size[1], size[2]}, block = {size[3], size[4], size[5]};
  static unsigned turn = 0;
  return new Work([=] { launch(grid, block, fibers, ++turn, 1, [=] { std::apply(kernel, held); }); });
}

template <class... A>
Work* bind(void (*kernel)(A...), const unsigned* size, bool fibers, void** args) {
  return bound(kernel, size, fibers, args, std::index_sequence_for<A...>{});
}

}  // namespace host

#define BIND(kernel, fibers) \
  extern "C" host::Work* bind_##kernel(const unsigned* size, unsigned, void** args) { return host::bind(kernel, size, fibers, args); }
