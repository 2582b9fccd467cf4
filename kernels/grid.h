// What all kernels share: integer types, thread numbering, and one step along a label's outline.
//
// One text for three compilers: NVRTC (CuPy), nvcc, and g++ behind the tests' shim. Everything is integer arithmetic on global
// memory; where threads meet in a word, they do so by an atomic whose result does not depend on their order.
#ifndef WSISEG_GRID_H
#define WSISEG_GRID_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

#define KERNEL extern "C" __global__ void

#define NO_PIXEL 0x7fffffff  // "first pixel" of a label that has none
#define SEGMENT 32           // longest run that one thread sums up

// Number of this thread in a one-dimensional launch.
__device__ inline int element() { return (int)(blockIdx.x * blockDim.x + threadIdx.x); }

__device__ inline int column() { return (int)(blockIdx.x * blockDim.x + threadIdx.x); }

__device__ inline int row() { return (int)(blockIdx.y * blockDim.y + threadIdx.y); }

__device__ inline int clamped(int v, int low, int high) { return v < low ? low : (v > high ? high : v); }

// floor(a / b) for b > 0: C rounds towards zero.
__device__ inline int floor_div(int a, int b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

// Whether pixel x of `line` begins a run of equal values, or the next SEGMENT of a longer one.
__device__ inline bool begins_segment(const int* line, int x) { return x % SEGMENT == 0 || line[x - 1] != line[x]; }

// End (exclusive) of the segment that begins at x.
__device__ inline int segment_end(const int* line, int x, int W) {
  const int last = (x / SEGMENT + 1) * SEGMENT < W ? (x / SEGMENT + 1) * SEGMENT : W;
  int end = x + 1;
  while (end < last && line[end] == line[x]) end++;
  return end;
}

// Outline of a label along pixel edges, the label on the right. Headings: 0 east, 1 south, 2 west, 3 north.
struct Walker {
  int x, y, heading;
};

__device__ inline bool has_label(const int* labels, int W, int H, int y, int x, int label) {
  return y >= 0 && x >= 0 && y < H && x < W && labels[(i64)y * W + x] == label;
}

__device__ inline void step_ahead(Walker& w) {
  w.x += (w.heading == 0) - (w.heading == 2);
  w.y += (w.heading == 1) - (w.heading == 3);
}

// The turn rule: left if the pixel ahead on the left has the label, else straight on if the one on the right has it, else right.
__device__ inline void turn(Walker& w, const int* labels, int W, int H, int label) {
  const int right_y = w.y - (w.heading >= 2), right_x = w.x - (w.heading == 1 || w.heading == 2);
  const int left_y = w.y - (w.heading == 0 || w.heading == 3), left_x = w.x - (w.heading >= 2);
  if (has_label(labels, W, H, left_y, left_x, label)) {
    w.heading = (w.heading + 3) & 3;
  } else if (!has_label(labels, W, H, right_y, right_x, label)) {
    w.heading = (w.heading + 1) & 3;
  }
}

#endif
