// Macenko's normalization of a pixel: sums of optical-density shares by table, and the sum's color by table. Integers throughout.
#include "grid.h"

// rgb, out: (n, 3); table: (3 out, 3 in, 256); back: size entries.
KERNEL mix_densities(const u8* rgb, int n, const int* table, const u8* back, int size, u8* out) {
  const int i = element();
  if (i >= n) return;
  const int r = rgb[3 * (i64)i], g = rgb[3 * (i64)i + 1], b = rgb[3 * (i64)i + 2];
  for (int k = 0; k < 3; k++) {
    const int* share = table + k * 768;
    out[3 * (i64)i + k] = back[clamped(share[r] + share[256 + g] + share[512 + b], 0, size - 1)];
  }
}
