// The kernels as a shared library: host_launch(name, ...) takes pointers to the arguments, as cuLaunchKernel does.
#include <cstring>
#include <utility>

#include "cuda_host.h"
#include "label.cu"
#include "watershed.cu"
#include "measure.cu"
#include "contour.cu"
#include "stain.cu"

template <class... A, size_t... I>
void call(void (*kernel)(A...), void** args, std::index_sequence<I...>) {
  kernel(*static_cast<A*>(args[I])...);
}

template <class... A>
void go(void (*kernel)(A...), const unsigned* size, bool fibers, unsigned seed, int os_threads, void** args) {
  host::launch({size[0], size[1], size[2]}, {size[3], size[4], size[5]}, fibers, seed, os_threads,
               [=] { call(kernel, args, std::index_sequence_for<A...>{}); });
}

#define CASE(kernel, fibers) \
  if (!std::strcmp(name, #kernel)) return go(kernel, size, fibers, seed, os_threads, args), 0;

extern "C" int host_launch(const char* name, const unsigned* size, unsigned seed, int os_threads, void** args) {
  CASE(label_start, false)
  CASE(label_join, false)
  CASE(label_flatten, false)
  CASE(smooth, false)
  CASE(find_peaks, false)
  CASE(merge_peaks, false)
  CASE(drop_peaks, false)
  CASE(component_facts, false)
  CASE(best_seed, false)
  CASE(place_seeds, false)
  CASE(component_owner, false)
  CASE(marker_rows, false)
  CASE(landscape, false)
  CASE(flood_start, false)
  CASE(flood_round, true)
  CASE(descend, false)
  CASE(label_sums, false)
  CASE(within_limits, false)
  CASE(renumber, false)
  CASE(kept_anchors, false)
  CASE(row_sums, false)
  CASE(ring_sums, false)
  CASE(ring_corners, false)
  CASE(mix_densities, false)
  CASE(transfer_log_lms, false)
  return 1;
}
