// 4-connected components by union-find: every pixel ends with the least raster index of its component.
#include "grid.h"

// Concurrent joins move parents while we read them: each read must go to memory.
__device__ inline int find_root(const int* root, int i) {
  const volatile int* parent = root;
  int p = parent[i];
  while (p != i) {
    i = p;
    p = parent[i];
  }
  return i;
}

// The greater root is hung under the lesser. If it was no root any more, what it hung under is joined in its place.
__device__ inline void join(int* root, int a, int b) {
  for (;;) {
    a = find_root(root, a);
    b = find_root(root, b);
    if (a == b) return;
    const int high = a > b ? a : b, low = a > b ? b : a;
    const int before = atomicMin(&root[high], low);
    if (before == high) return;
    a = before;
    b = low;
  }
}

// root = own index where value >= level, else -1.
KERNEL label_start(const u16* value, int level, int n, int* root) {
  const int i = element();
  if (i < n) root[i] = value[i] >= level ? i : -1;
}

KERNEL label_join(int W, int H, int* root) {
  const int x = column(), y = row();
  if (x >= W || y >= H) return;
  const int i = y * W + x;
  if (root[i] < 0) return;
  const bool left = x > 0 && root[i - 1] >= 0;
  if (left) join(root, i, i - 1);
  // where the three others of a square are in, they and the join to the left connect this pixel upwards already
  if (y > 0 && root[i - W] >= 0 && !(left && root[i - W - 1] >= 0)) join(root, i, i - W);
}

KERNEL label_flatten(int n, int* root) {
  const int i = element();
  volatile int* flat = root;  // others walk over it meanwhile
  if (i < n && root[i] >= 0) flat[i] = find_root(root, i);
}
