// Integer sums per label, and what is decided by them: size limits, numbers, anchors.
#include "grid.h"

// first (initially NO_PIXEL), area and, if with_material, material sum of every label; one thread sums up to SEGMENT pixels.
KERNEL label_sums(const int* labels, const u8* material, int with_material, int W, int H, int* first, int* area, u64* total) {
  const int x = column(), y = row();
  if (x >= W || y >= H) return;
  const int* line = labels + (i64)y * W;
  const int k = line[x];
  if (k == 0 || !begins_segment(line, x)) return;
  const int end = segment_end(line, x, W);
  atomicAdd(&area[k], end - x);
  if (y == 0 || line[x - W] != k) atomicMin(&first[k], y * W + x);
  if (!with_material) return;
  u64 sum = 0;
  for (int j = x; j < end; j++) sum += material[(i64)y * W + j];
  atomicAdd(&total[k], sum);
}

// Step 10 of wsiseg.separate: keep[k] = whether the area inside label k's outer ring lies within the limits and its mean material
// reaches least_material / 16; keep[0] = 0.
KERNEL within_limits(const int* labels, int W, int H, const int* first, const int* area, const u64* total, int n, int least,
                     int most, int least_material, int* keep) {
  const int k = element();
  if (k > n) return;
  keep[k] = 0;
  if (k == 0 || area[k] == 0 || area[k] > most || 16 * total[k] < (u64)least_material * (u64)area[k]) return;
  const int x0 = first[k] % W, y0 = first[k] / W;
  Walker w = {x0, y0, 0};
  i64 filled = 0;
  do {
    const int y = w.y;
    step_ahead(w);
    filled += (i64)(w.y - y) * w.x;
    turn(w, labels, W, H, k);
  } while (w.x != x0 || w.y != y0 || w.heading != 0);
  keep[k] = least <= filled && filled <= most;
}

// Kept labels become their running number, others background.
KERNEL renumber(int* labels, int n, const int* keep, const int* number) {
  const int i = element();
  if (i < n && labels[i]) labels[i] = keep[labels[i]] ? number[labels[i]] : 0;
}

// (x, y) of the kept markers; label k + 1 is marker k.
KERNEL kept_anchors(const int* markers, int n, int W, const int* keep, const int* number, int* anchors) {
  const int k = element();
  if (k >= n || !keep[k + 1]) return;
  const int at = 2 * (number[k + 1] - 1);
  anchors[at] = markers[k] % W;
  anchors[at + 1] = markers[k] / W;
}

// Per row: sums of both maps and labelled pixels, (H, 3). A thread sums SEGMENT pixels.
KERNEL row_sums(const u8* center, const u8* material, const int* labels, int W, int H, u64* sums) {
  const int x = column() * SEGMENT, y = row();
  if (x >= W || y >= H) return;
  u64 a = 0, b = 0, c = 0;
  const int end = x + SEGMENT < W ? x + SEGMENT : W;
  for (i64 i = (i64)y * W + x; i < (i64)y * W + end; i++) {
    a += center[i];
    b += material[i];
    c += labels[i] != 0;
  }
  atomicAdd(&sums[3 * (i64)y], a);
  atomicAdd(&sums[3 * (i64)y + 1], b);
  atomicAdd(&sums[3 * (i64)y + 2], c);
}
