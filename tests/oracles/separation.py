"""The definition of ``wsiseg.separate`` in the plainest form: loops, a heap, whole-image scans. Slow on purpose."""

from __future__ import annotations

import heapq
import math
import random

import numpy as np
from scipy import ndimage as ndi

FOUR = ((-1, 0), (0, -1), (0, 1), (1, 0))  # up, left, right, down: the order of ties
STEP_LAST = 2**18 - 1


def smooth(image: np.ndarray, weights: tuple[int, ...]) -> np.ndarray:
    r = len(weights) // 2
    padded = np.pad(image.astype(np.int64), r, mode="edge")
    H, W = image.shape
    out = np.zeros((H, W), np.int64)
    for a, wy in enumerate(weights):
        for b, wx in enumerate(weights):
            out += wy * wx * padded[a : a + H, b : b + W]
    return out


def peaks(c, m, params):
    H, W = c.shape
    r = params.marker_radius_px
    found = []
    for y in range(H):
        for x in range(W):
            if m[y, x] < params.material_threshold or c[y, x] < params.center_threshold:
                continue
            rivals = [
                (-c[yy, xx], yy, xx)
                for yy in range(max(0, y - r), min(H, y + r + 1))
                for xx in range(max(0, x - r), min(W, x + r + 1))
            ]
            if min(rivals) == (-c[y, x], y, x):
                found.append((y, x))
    return found


def merge(c, found, params, reach):
    kept = []
    for p in found:
        for q in found:
            dy, dx = q[0] - p[0], q[1] - p[1]
            n = max(abs(dy), abs(dx))
            if n == 0 or n > reach or (-c[q], *q) > (-c[p], *p):
                continue
            ks = range(n + 1)
            line = [(p[0] + math.floor((2 * k * dy + n) / (2 * n)), p[1] + math.floor((2 * k * dx + n) / (2 * n))) for k in ks]
            fall = max(params.merge_depth, int(c[p]) * params.merge_share_q256 // 256)
            if min(c[s] for s in line) > c[p] - fall:
                break
        else:
            kept.append(p)
    return kept


def recall(m, mask, found, params):
    components, n = ndi.label(mask)
    seeded = {components[p] for p in found}
    out = []
    for k in range(1, n + 1):
        where = np.argwhere(components == k)
        if k not in seeded and len(where) >= params.min_area_px:
            out.append(min((-m[y, x], y, x) for y, x in where)[1:])
    return [(int(y), int(x)) for y, x in out]


def landscape(m, markers, compactness_q256):
    H, W = m.shape
    f = np.zeros((H, W), np.int64)
    for y in range(H):
        for x in range(W):
            d2 = min([(y - a) ** 2 + (x - b) ** 2 for a, b in markers], default=1024)
            d2 = min(d2, 1024)
            f[y, x] = 4080 - m[y, x] + math.floor(math.isqrt(compactness_q256**2 * d2) / 16 + 0.5)
    return f


def extend(state, height):
    v, d = state
    if height > v:
        return (height, 0)
    return (v, d + 1) if d < STEP_LAST else None


def neighbours(y, x, mask):
    for dy, dx in FOUR:
        if 0 <= y + dy < mask.shape[0] and 0 <= x + dx < mask.shape[1] and mask[y + dy, x + dx]:
            yield y + dy, x + dx


def states_by_heap(f, mask, markers):
    """Dijkstra: the least state of every pixel that a marker reaches."""
    best = {p: (int(f[p]), 0) for p in markers}
    heap = [(s, p) for p, s in best.items()]
    heapq.heapify(heap)
    while heap:
        s, p = heapq.heappop(heap)
        if best[p] != s:
            continue
        for q in neighbours(*p, mask):
            t = extend(s, int(f[q]))
            if t is not None and (q not in best or t < best[q]):
                best[q] = t
                heapq.heappush(heap, (t, q))
    return best


def states_by_relaxation(f, mask, markers, seed):
    """The same fixed point by relaxing pixels in random order until nothing changes, as a parallel machine would."""
    rng = random.Random(seed)
    best = {p: (int(f[p]), 0) for p in markers}
    pixels = [tuple(p) for p in np.argwhere(mask).tolist()]
    changed = True
    while changed:
        changed = False
        rng.shuffle(pixels)
        for p in pixels:
            for q in neighbours(*p, mask):
                t = extend(best[q], int(f[p])) if q in best else None
                if t is not None and (p not in best or t < best[p]):
                    best[p] = t
                    changed = True
    return best


def descend(states, mask, markers):
    """Label every reached pixel by walking to the neighbour with the least state until a marker."""
    number = {p: k for k, p in enumerate(markers, 1)}
    labels = np.zeros(mask.shape, np.int32)
    for p in states:
        trail = []
        while p not in number:
            trail.append(p)
            p = min(
                (q for q in neighbours(*p, mask) if q in states), key=states.__getitem__
            )  # min keeps the first among equals
        for q in (*trail, p):
            number.setdefault(q, number[p])
            labels[q] = number[q]
    return labels


def limit(labels, markers, params, material):
    out = np.zeros_like(labels)
    kept = []
    for k, p in enumerate(markers, 1):
        region = labels == k
        sure = 16 * int(material[region].astype(np.int64).sum()) >= params.min_material * int(region.sum())
        if sure and params.min_area_px <= ndi.binary_fill_holes(region).sum() <= params.max_area_px:
            kept.append(p)
            out[region] = len(kept)
    return out, kept


def markers_of(prob, params, reach=24):
    c, m = smooth(prob[0], (1, 4, 6, 4, 1)), smooth(prob[1], (1, 2, 1))
    found = peaks(c, m, params)
    if params.merge_depth or params.merge_share_q256:
        found = merge(c, found, params, reach)
    mask = m >= params.material_threshold
    if params.seed_recall:
        found = found + recall(m, mask, found, params)
    return m, mask, sorted(found)


def separate(prob, params):
    """Return labels int32 (H, W) and the kept markers as a list of (y, x)."""
    m, mask, markers = markers_of(prob, params)
    f = landscape(m, markers, params.compactness_q256)
    labels = descend(states_by_heap(f, mask, markers), mask, markers)
    return limit(labels, markers, params, prob[1])
