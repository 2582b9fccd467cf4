"""Separate uint8 probability maps (2, H, W) into ``Instances``: labels int32 (H, W) and one marker pixel each.

All of it is integer arithmetic with a unique result, and this text defines it completely, for kernels on any device. Arrays are
(H, W) with pixel (y, x); *raster order* is by y, then x; neighbours are 4-connected; ``C``, ``M`` are the raw center and
material maps, 0..255.

1. **Smooth.** ``c = K5 * C`` with K5 the outer product of (1 4 6 4 1) (0..65280), ``m = K3 * M`` with K3 the outer product of
   (1 2 1) (0..4080). Nothing is divided or rounded. Pixels outside the window repeat the nearest border pixel.
2. **Mask.** m >= material_threshold (of 4080).
3. **Peaks.** p in the mask with c(p) >= center_threshold (of 65280), such that every other pixel q of the (2 r + 1)^2 square
   around p (clipped to the window, mask or not) has c(q) < c(p), or c(q) == c(p) and q after p in raster order.
4. **Merge** (only if merge_depth > 0 or merge_share_q256 > 0). A peak p is dropped if some other peak q of step 3 (dropped or
   not) with max(|dx|, |dy|) <= MERGE_REACH_PX has c(q) > c(p), or c(q) == c(p) and q before p, and the least c on the line from
   p to q is > c(p) - max(merge_depth, floor(c(p) * merge_share_q256 / 256)). The line has n + 1 pixels, n = max(|dx|, |dy|);
   its k-th is p + floor((2 k (dx, dy) + n) / 2 n), floors towards minus infinity.
5. **Seed recall** (only if seed_recall). Every component of the mask with at least min_area pixels and no peak gets one marker:
   its pixel of greatest m, the first in raster order among equals.
6. **Markers** are peaks and recalled seeds in raster order: marker k has label k. Components without a marker are background.
7. **Landscape.** f(p) = 4080 - m(p) + T[min(D, 1024)] with D the squared distance to the nearest marker of the window and
   T[D] = floor((isqrt(cc^2 D) + 8) / 16), cc = compactness * 256: 16 (255 - material) + 16 compactness distance, the distance
   being cut at 32 px. f <= 12272 < 2^14.
8. **Flood.** state(p) = v << 18 | d over mask pixels: v the least, over all paths in the mask from a marker, of the highest f
   on the path; d the steps since that level was reached. A marker's state is f << 18. Extension of state s to a pixel of
   height f: f > s >> 18 ? f << 18 : s + 1, and nothing beyond d = 2^18 - 1. The states are the least fixed point; extension is
   monotone, so any order of relaxation reaches it.
9. **Label.** A marker has its own label; any other reached pixel that of its neighbour with the least state; ties: up, left,
   right, down. (In a component with a single marker every pixel has that marker's label, which is equivalent: d overflows
   only in regions that step 10 removes.)
10. **Size and certainty.** Labels whose hole-filled area is < min_area or > max_area become background; max_area < 2^18. A hole
    is a 4-connected region of pixels without the label that cannot reach the outside of the window. Labels with a low mean
    material also become background: 16 * (sum of M over the label's pixels) < min_material * (their number); in tables that
    mean is ``material_prob``. The others are numbered 1..N in raster order of markers.

Flooding with lower completion: Roerdink and Meijster, The watershed transform, Fundamenta Informaticae 41 (2000); as a parallel
fixed point: Kauffmann and Piche, A cellular automaton for ultra-fast watershed transform on GPU, ICPR 2008.
"""

from __future__ import annotations

from wsiseg.separate.expand import expand
from wsiseg.separate.instances import find_markers, separate
from wsiseg.separate.params import FALLBACK, MERGE_REACH_PX, SeparateParams, distance_table, resolve_params

__all__ = [
    "FALLBACK",
    "MERGE_REACH_PX",
    "SeparateParams",
    "distance_table",
    "expand",
    "find_markers",
    "resolve_params",
    "separate",
]
