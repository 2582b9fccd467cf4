// Probability maps -> labels: the steps of wsiseg.separate, under the names that its definition uses.
#include "grid.h"

#define STEP_BITS 18
#define STEP_LAST ((1u << STEP_BITS) - 1u)
#define NO_STATE 0xffffffffu
#define WALL 0xffff            // height of pixels that are not flooded
#define MATERIAL_MAX 4080
#define REACH 32               // distances to the nearest marker are cut here
#define SIDE 32                // of the blocks in which the flood proceeds

// Step 1. K5 = (1 4 6 4 1) x (1 4 6 4 1) over the center map, K3 = (1 2 1) x (1 2 1) over the material map.
KERNEL smooth(const u8* center, const u8* material, int W, int H, u16* c, u16* m) {
  const int x = column(), y = row();
  if (x >= W || y >= H) return;
  const int w5[5] = {1, 4, 6, 4, 1}, w3[3] = {1, 2, 1};
  int sum_c = 0, sum_m = 0;
  for (int dy = -2; dy <= 2; dy++) {
    const int base = clamped(y + dy, 0, H - 1) * W;
    int line = 0;
    for (int dx = -2; dx <= 2; dx++) line += w5[dx + 2] * center[base + clamped(x + dx, 0, W - 1)];
    sum_c += w5[dy + 2] * line;
  }
  for (int dy = -1; dy <= 1; dy++) {
    const int base = clamped(y + dy, 0, H - 1) * W;
    int line = 0;
    for (int dx = -1; dx <= 1; dx++) line += w3[dx + 1] * material[base + clamped(x + dx, 0, W - 1)];
    sum_m += w3[dy + 1] * line;
  }
  c[y * W + x] = (u16)sum_c;
  m[y * W + x] = (u16)sum_m;
}

// Step 3: first greatest pixel of its square. The nearest rows are searched first: they turn away nearly all.
__device__ inline bool is_peak(const u16* c, int W, int H, int x, int y, int radius) {
  const int v = c[y * W + x];
  for (int k = 0; k <= 2 * radius; k++) {
    const int yy = y + (k % 2 ? (k + 1) / 2 : -k / 2);
    if (yy < 0 || yy >= H) continue;
    const int x1 = x + radius < W - 1 ? x + radius : W - 1;
    for (int xx = x - radius > 0 ? x - radius : 0; xx <= x1; xx++) {
      const int u = c[yy * W + xx];
      if (u > v || (u == v && (yy < y || (yy == y && xx < x)))) return false;
    }
  }
  return true;
}

// peak = whether a pixel is one; list[0..length) = the peaks in any order.
KERNEL find_peaks(const u16* c, const u16* m, int W, int H, int center_threshold, int material_threshold, int radius, u8* peak,
                  int* list, int* length) {
  const int x = column(), y = row();
  if (x >= W || y >= H) return;
  const int i = y * W + x;
  const bool found = c[i] >= center_threshold && m[i] >= material_threshold && is_peak(c, W, H, x, y, radius);
  peak[i] = found;
  if (found) list[atomicAdd(length, 1)] = i;
}

// Step 4, one line: whether the least c from p to q is above the level that separates p.
__device__ inline bool shallow(const u16* c, int W, int px, int py, int dx, int dy, int n, int level) {
  for (int k = 1; k <= n; k++) {
    const int y = py + floor_div(2 * k * dy + n, 2 * n), x = px + floor_div(2 * k * dx + n, 2 * n);
    if (c[y * W + x] <= level) return false;
  }
  return true;
}

// Step 4: dropped[k] = whether a greater neighbour takes over peak list[k]. A thread is a peak and a row of its surroundings. Reads
// `peak`, which stays as it is: dropped peaks still take over.
KERNEL merge_peaks(const u16* c, const u8* peak, const int* list, const int* length, int W, int H, int depth, int share_q256,
                   int reach, int* dropped) {
  const int span = 2 * reach + 1;
  for (i64 t = element(); t < (i64)*length * span; t += (i64)gridDim.x * blockDim.x) {
    const int k = (int)(t / span), i = list[k], x = i % W, y = i / W, yy = y + (int)(t % span) - reach;
    if (yy < 0 || yy >= H) continue;
    const int part = c[i] * share_q256 / 256, level = c[i] - (depth > part ? depth : part);
    const int x0 = x - reach > 0 ? x - reach : 0, x1 = x + reach < W - 1 ? x + reach : W - 1;
    for (int xx = x0; xx <= x1; xx++) {
      const int j = yy * W + xx;
      if (!peak[j] || j == i || !(c[j] > c[i] || (c[j] == c[i] && j < i))) continue;
      const int dx = xx - x, dy = yy - y, ax = dx < 0 ? -dx : dx, ay = dy < 0 ? -dy : dy;
      if (!shallow(c, W, x, y, dx, dy, ax > ay ? ax : ay, level)) continue;
      atomicExch(&dropped[k], 1);
      break;
    }
  }
}

// Step 4: dropped peaks are peaks no more.
KERNEL drop_peaks(const int* list, const int* length, const int* dropped, u8* peak) {
  for (int k = element(); k < *length; k += (int)(gridDim.x * blockDim.x)) {
    if (dropped[k]) peak[list[k]] = 0;
  }
}

// Step 5, first half. facts[root] = area of the component, its highest bit set if it holds a peak.
KERNEL component_facts(const int* root, const u8* marker, int W, int H, u32* facts) {
  const int x = column(), y = row();
  if (x >= W || y >= H) return;
  const int* line = root + (i64)y * W;
  if (line[x] < 0 || !begins_segment(line, x)) return;
  const int end = segment_end(line, x, W);
  bool peak = false;
  for (int k = x; k < end; k++) peak |= marker[(i64)y * W + k] != 0;
  atomicAdd(&facts[line[x]], (u32)(end - x));
  if (peak) atomicOr(&facts[line[x]], 0x80000000u);
}

// Step 5, second half. best[root] = greatest (m, first in raster order) of a component of min_area and more without a peak.
KERNEL best_seed(const int* root, const u16* m, const u32* facts, int min_area, int W, int H, u64* best) {
  const int x = column(), y = row();
  if (x >= W || y >= H) return;
  const int* line = root + (i64)y * W;
  if (line[x] < 0 || !begins_segment(line, x)) return;
  const u32 fact = facts[line[x]];
  if ((fact >> 31) || fact < (u32)min_area) return;
  const int end = segment_end(line, x, W);
  u64 top = 0;
  for (int k = x; k < end; k++) {
    const u64 key = (u64)m[(i64)y * W + k] << 32 | (0xffffffffu - (u32)(y * W + k));
    if (key > top) top = key;
  }
  atomicMax(&best[line[x]], top);
}

KERNEL place_seeds(const u64* best, int n, u8* marker) {
  const int i = element();
  if (i < n && best[i]) marker[0xffffffffu - (u32)best[i]] = 1;
}

// owner[root] = label of the component's only marker, 0 without one, -1 with several.
KERNEL component_owner(const int* markers, int n, const int* root, int* owner) {
  const int k = element();
  if (k >= n) return;
  const int r = root[markers[k]];
  if (atomicCAS(&owner[r], 0, k + 1) != 0) atomicExch(&owner[r], -1);
}

// Step 7, columns: rows to the nearest marker above or below, cut at REACH. A thread is one marker and one row near it.
KERNEL marker_rows(const int* markers, int n, int W, int H, int* rows) {
  const int t = element(), span = 2 * REACH - 1;
  if (t >= n * span) return;
  const int i = markers[t / span], dy = t % span - (REACH - 1), y = i / W + dy;
  if (y >= 0 && y < H) atomicMin(&rows[i + dy * W], dy < 0 ? -dy : dy);
}

// Step 7 where several markers share a component; elsewhere the label is known and the flood meets a wall.
KERNEL landscape(
    const u16* m, const int* root, const int* owner, const int* rows, const u16* table, int W, int H, u16* f, u32* state, int* label) {
  const int x = column(), y = row();
  if (x >= W || y >= H) return;
  const int i = y * W + x, k = root[i] < 0 ? 0 : owner[root[i]];
  state[i] = NO_STATE;
  label[i] = k > 0 ? k : 0;
  f[i] = WALL;
  if (k >= 0) return;
  int nearest = REACH * REACH;
  if (table[REACH * REACH]) {
    const int x1 = x + REACH < W ? x + REACH : W;
    for (int xx = x - REACH + 1 > 0 ? x - REACH + 1 : 0; xx < x1; xx++) {
      const int dy = rows[y * W + xx], d = (xx - x) * (xx - x) + dy * dy;
      if (d < nearest) nearest = d;
    }
  }
  f[i] = (u16)(MATERIAL_MAX - m[i] + table[nearest]);
}

// Put block (bx, by) on the list of round `stamp`, once.
__device__ inline void queue(int bx, int by, int across, int stamp, int* queued, int* list, int* length) {
  const int b = by * across + bx;
  if (atomicExch(&queued[b], stamp) != stamp) list[atomicAdd(length, 1)] = b;
}

// Queue the blocks that border on pixel (x, y) from outside.
__device__ inline void queue_beside(int x, int y, int W, int H, int stamp, int* queued, int* list, int* length) {
  const int across = (W + SIDE - 1) / SIDE, down = (H + SIDE - 1) / SIDE, bx = x / SIDE, by = y / SIDE;
  if (x % SIDE == 0 && bx > 0) queue(bx - 1, by, across, stamp, queued, list, length);
  if (x % SIDE == SIDE - 1 && bx + 1 < across) queue(bx + 1, by, across, stamp, queued, list, length);
  if (y % SIDE == 0 && by > 0) queue(bx, by - 1, across, stamp, queued, list, length);
  if (y % SIDE == SIDE - 1 && by + 1 < down) queue(bx, by + 1, across, stamp, queued, list, length);
}

// Step 8, start: markers have (f, 0) and their own label.
KERNEL flood_start(
    const int* markers, int n, const u16* f, int W, int H, u32* state, int* label, int* queued, int* list, int* lengths) {
  const int k = element();
  if (k >= n) return;
  const int i = markers[k];
  if (f[i] == WALL) return;
  state[i] = (u32)f[i] << STEP_BITS;
  label[i] = k + 1;
  queue(i % W / SIDE, i / W / SIDE, (W + SIDE - 1) / SIDE, 1, queued, list, lengths);
  queue_beside(i % W, i / W, W, H, 1, queued, list, lengths);
}

// Step 8: extension of state s to a pixel of height f.
__device__ inline u32 extended(u32 s, u32 f) {
  if (s == NO_STATE) return s;
  if (f > s >> STEP_BITS) return f << STEP_BITS;
  return (s & STEP_LAST) == STEP_LAST ? NO_STATE : s + 1u;
}

__device__ inline u32 lesser(u32 a, u32 b) { return a < b ? a : b; }

// Step 8, one round: the listed blocks of SIDE x SIDE pixels come to rest in themselves, one thread a pixel; where a block's rim
// changed, the block beside is listed for the next round. A neighbour's rim may be read before or after it changes in this
// round: then it lists this block. States only fall, so the rounds end, and they end in the one least fixed point.
// Round k of a sequence reads lengths[k] and counts in lengths[k + 1]; blocks beyond the list have nothing to do.
KERNEL flood_round(
    const u16* f, int W, int H, u32* state, const int* list, int* next, int* lengths, int k, int* queued, int stamp) {
  __shared__ u32 tile[SIDE + 2][SIDE + 2];
  if ((int)blockIdx.x >= lengths[k]) return;
  const int across = (W + SIDE - 1) / SIDE, b = list[blockIdx.x], x0 = b % across * SIDE, y0 = b / across * SIDE;
  const int tx = (int)threadIdx.x, ty = (int)threadIdx.y, x = x0 + tx, y = y0 + ty;
  const bool inside = x < W && y < H;
  volatile u32* now = state;
  for (int t = ty * SIDE + tx; t < (SIDE + 2) * (SIDE + 2); t += SIDE * SIDE) {
    const int yy = y0 + t / (SIDE + 2) - 1, xx = x0 + t % (SIDE + 2) - 1;
    tile[t / (SIDE + 2)][t % (SIDE + 2)] = yy >= 0 && xx >= 0 && yy < H && xx < W ? now[(i64)yy * W + xx] : NO_STATE;
  }
  const u32 height = inside ? f[(i64)y * W + x] : (u32)WALL;
  __syncthreads();
  const u32 before = tile[ty + 1][tx + 1];
  u32 least = before;
  int moved = 1;
  while (moved) {
    if (height != WALL) {
      least = lesser(least, extended(tile[ty][tx + 1], height));
      least = lesser(least, extended(tile[ty + 1][tx], height));
      least = lesser(least, extended(tile[ty + 1][tx + 2], height));
      least = lesser(least, extended(tile[ty + 2][tx + 1], height));
    }
    const int falls = least < tile[ty + 1][tx + 1];
    __syncthreads();
    if (falls) tile[ty + 1][tx + 1] = least;
    moved = __syncthreads_or(falls);
  }
  if (least < before) {
    now[(i64)y * W + x] = least;
    queue_beside(x, y, W, H, stamp, queued, next, &lengths[k + 1]);
  }
}

// Step 9: walk to the neighbour with the least state (ties: up, left, right, down) until a pixel has its label. Other threads
// may label pixels on the way meanwhile: with the label that this walk would find.
KERNEL descend(const u32* state, int W, int H, int* label) {
  const int x = column(), y = row();
  if (x >= W || y >= H) return;
  volatile int* known = label;
  const int start = y * W + x;
  if (state[start] == NO_STATE || known[start]) return;
  int i = start, cx = x, cy = y, found = 0;
  while (!found) {
    u32 least = NO_STATE;
    int dx = 0, dy = 0;
    if (cy > 0 && state[i - W] < least) least = state[i - W], dx = 0, dy = -1;
    if (cx > 0 && state[i - 1] < least) least = state[i - 1], dx = -1, dy = 0;
    if (cx < W - 1 && state[i + 1] < least) least = state[i + 1], dx = 1, dy = 0;
    if (cy < H - 1 && state[i + W] < least) least = state[i + W], dx = 0, dy = 1;
    cx += dx;
    cy += dy;
    i = cy * W + cx;
    found = known[i];
  }
  known[start] = found;
}
