// Outer rings of labels along pixel edges, one thread a label: first their sums and number of corners, then the corners.
#include "grid.h"

#define ROW 15  // numbers per label in `rows`: see wsiseg/vectorize/_cuda.py

// Exact moments of the filled region by Green's theorem: a vertical edge adds (south) or takes away (north) its row's pixels
// from the first pixel's column up to the edge. Divisions are exact, also below zero.
KERNEL ring_sums(
    const int* labels, const u8* center, int W, int H, const int* first, const int* area, const u64* total, const int* anchors,
    int n, int core_x0, int core_y0, int core_x1, int core_y1, i64* rows, i64* vertices) {
  const int m = element();
  if (m >= n) return;
  const int k = m + 1, ax = anchors[2 * m], ay = anchors[2 * m + 1];
  const bool owned = ax >= core_x0 && ay >= core_y0 && ax < core_x1 && ay < core_y1;
  i64* out = rows + (i64)ROW * m;
  for (int j = 0; j < 8; j++) out[j] = 0;
  out[8] = area[k];
  out[9] = (i64)total[k];
  out[10] = first[k] == NO_PIXEL ? -1 : first[k];
  out[11] = center[(i64)ay * W + ax];
  out[12] = owned;
  out[13] = ax;
  out[14] = ay;
  vertices[m] = 0;
  if (!owned || first[k] == NO_PIXEL) return;
  const int x0 = first[k] % W, y0 = first[k] / W;
  Walker w = {x0, y0, 0};
  int previous = -1;
  i64 pixels = 0, si = 0, sj = 0, sii = 0, sij = 0, sjj = 0, edges = 0, corners = 0;
  do {
    corners += w.heading != previous;
    previous = w.heading;
    edges++;
    if (w.heading & 1) {
      const i64 sign = w.heading == 1 ? 1 : -1, j = w.heading == 1 ? w.y - y0 : w.y - 1 - y0, c = w.x - x0;
      const i64 c1 = c * (c - 1) / 2, c2 = c1 * (2 * c - 1) / 3;
      pixels += sign * c;
      si += sign * c1;
      sii += sign * c2;
      sj += sign * j * c;
      sij += sign * j * c1;
      sjj += sign * j * j * c;
    }
    step_ahead(w);
    turn(w, labels, W, H, k);
  } while (w.x != x0 || w.y != y0 || w.heading != 0);
  out[0] = pixels;
  out[1] = si;
  out[2] = sj;
  out[3] = sii;
  out[4] = sij;
  out[5] = sjj;
  out[6] = edges;
  out[7] = corners;
  vertices[m] = corners + 1;
}

// Corners (x, y), shifted by (ox, oy), the first repeated at the end; ring m ends before row ends[m].
KERNEL ring_corners(
    const int* labels, int W, int H, const int* first, const i64* vertices, const i64* ends, int n, int ox, int oy, int* xy) {
  const int m = element();
  if (m >= n || vertices[m] == 0) return;
  const int k = m + 1, x0 = first[k] % W, y0 = first[k] / W;
  int* out = xy + 2 * (ends[m] - vertices[m]);
  Walker w = {x0, y0, 0};
  int previous = -1;
  do {
    if (w.heading != previous) {
      *out++ = w.x + ox;
      *out++ = w.y + oy;
      previous = w.heading;
    }
    step_ahead(w);
    turn(w, labels, W, H, k);
  } while (w.x != x0 || w.y != y0 || w.heading != 0);
  *out++ = x0 + ox;
  *out++ = y0 + oy;
}
