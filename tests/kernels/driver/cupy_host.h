// What CuPy's own kernels need besides cuda_host.h, and how a launch becomes work that is done later.
#pragma once
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
