// Stain normalization of a pixel. Macenko's: sums of optical-density shares by table, and the sum's color by table, in integers.
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

// Reinhard's transfer of a pixel, blended by the darkest channel's weight: LMS in 16 bits -> logarithm -> affine -> power -> RGB.
// Single-precision products, sums and table look-ups in a written order, never fused: IEEE 754 leaves nothing to choose.
// rgb, out: (n, 3); mix: (3, 3); log_of: 65536; affine: (3, 4), row k = three factors and what is added; power_of: size;
// to_rgb: (3, 3); weight: 256.
KERNEL transfer_log_lms(
    const u8* rgb, int n, const i64* mix, const float* log_of, const float* affine, const float* power_of, int size,
    const float* to_rgb, const float* weight, u8* out) {
  const int i = element();
  if (i >= n) return;
  const u8* pixel = rgb + 3 * (i64)i;
  const i64 r = pixel[0], g = pixel[1], b = pixel[2];
  const float w = weight[r < g ? (r < b ? r : b) : (g < b ? g : b)];
  if (w == 0.0f) {
    for (int k = 0; k < 3; k++) out[3 * (i64)i + k] = pixel[k];
    return;
  }
  float l[3], p[3];
  for (int k = 0; k < 3; k++) {
    l[k] = log_of[(mix[3 * k] * (r + 1) + mix[3 * k + 1] * (g + 1) + mix[3 * k + 2] * (b + 1) + 128) >> 8];
  }
  for (int k = 0; k < 3; k++) {
    const float* a = affine + 4 * k;
    const i64 step = (i64)(a[0] * l[0] + a[1] * l[1] + a[2] * l[2] + a[3]);
    p[k] = power_of[step < 0 ? 0 : (step < size ? step : size - 1)];
  }
  for (int k = 0; k < 3; k++) {
    const float* a = to_rgb + 3 * k;
    float wanted = a[0] * p[0] + a[1] * p[1] + a[2] * p[2] - 1.0f;
    wanted = wanted < 0.0f ? 0.0f : (wanted > 255.0f ? 255.0f : wanted);
    const float old = (float)pixel[k];
    out[3 * (i64)i + k] = (u8)(old + w * (wanted - old) + 0.5f);
  }
}
