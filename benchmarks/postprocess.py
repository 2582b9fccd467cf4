"""Markers, flood, tracing and measuring of one 4000x4000 tile beside scikit-image on the same maps: CPU seconds of one thread.

Run ``python -m benchmarks.postprocess [--quick]``; writes ``benchmarks/results/postprocess.json``. Truth is known (synthetic
tiles), so speed stands beside accuracy. Every figure is ``time.process_time``, the median of the repetitions; scikit-image
runs once a tile.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy is imported

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage as ndi
from skimage.feature import peak_local_max
from skimage.measure import find_contours, regionprops, regionprops_table
from skimage.segmentation import watershed

from benchmarks._machine import machine
from benchmarks.synthetic import SyntheticTile, synthetic_tile
from wsiseg.config import SeparateConfig
from wsiseg.separate import SeparateParams, _cpu, _cpu_flood, distance_table, resolve_params, separate
from wsiseg.types import Box
from wsiseg.vectorize import _cpu as _cpu_rings
from wsiseg.vectorize import rasterize, tile_stats, vectorize

DRAWN = {6000: 6980, 8000: 9680, 9600: 12060}  # nuclei wanted: nuclei drawn before those too close are left out
PROPERTIES = (
    "label",
    "area",
    "centroid",
    "axis_major_length",
    "axis_minor_length",
    "orientation",
    "perimeter_crofton",
    "mean_intensity",
)


def timed(function: Callable[[], Any], repeats: int = 1) -> tuple[Any, float]:
    """Return the last result and the median of the CPU seconds."""
    seconds = []
    for _ in range(repeats):
        begin = time.process_time()
        result = function()
        seconds.append(time.process_time() - begin)
    return result, statistics.median(seconds)


def accuracy(labels: np.ndarray, anchors: np.ndarray, tile: SyntheticTile) -> dict[str, float]:
    """Share of pixels, labelled in both, that belong to the nucleus of their marker; and nuclei hit by exactly one marker."""
    truth_of = np.concatenate([[0], tile.truth[anchors[:, 1], anchors[:, 0]]])
    both = (labels > 0) & (tile.truth > 0)
    hits = np.bincount(truth_of[1:], minlength=len(tile.centers) + 1)[1:]
    return {
        "n_found": len(anchors),
        "right_pixels": round(float((truth_of[labels] == tile.truth)[both].mean()), 5),
        "hit_once": round(float((hits == 1).sum() / len(np.unique(tile.truth[tile.truth > 0]))), 5),
    }


def ours(tile: SyntheticTile, params: SeparateParams, repeats: int) -> dict[str, Any]:
    """Time the doors, then the stages behind them."""
    prob, (h, w) = tile.prob, tile.truth.shape
    box = Box(0, 0, w, h)
    found, t_separate = timed(lambda: separate(prob, params), repeats)
    batch, t_vectorize = timed(lambda: vectorize(found, prob, box, box), repeats)
    _, t_stats = timed(lambda: tile_stats(prob, found, box, box), repeats)
    painted, t_rasterize = timed(lambda: rasterize(batch, box), repeats)
    limits = (params.min_area_px, params.max_area_px, params.min_material)
    (m16, markers, runs), t_markers = timed(lambda: _cpu.prepare(prob[0], prob[1], params), repeats)
    table, labels = distance_table(params.compactness_q256), np.zeros((h, w), np.int32)
    _, t_paint = timed(lambda: _cpu_flood.paint_single(labels, runs), repeats)
    _, t_flood = timed(lambda: _cpu_flood.flood_shared(labels, m16, markers, runs, table), repeats)
    _, t_limit = timed(lambda: _cpu_flood.limit_sizes(labels, prob[1], markers.size, runs, *limits))
    (first, _, _), t_scan = timed(lambda: _cpu_rings.scan_labels(found.labels, prob[1], len(found.anchors)), repeats)
    _, t_trace = timed(lambda: _cpu_rings.trace_rings(found.labels, first, np.arange(len(found.anchors)), 0, 0), repeats)
    stages = {
        "smooth, mask, components, markers": t_markers,
        "paint one-marker components": t_paint,
        "flood the others": t_flood,
        "size limits": t_limit,
        "label sums": t_scan,
        "trace rings with moments": t_trace,
    }
    shared = (_cpu_flood.owners(runs.component, runs.root.size) < 0)[runs.root]
    lengths = runs.rx1 - runs.rx0
    return {
        "total_s": t_separate + t_vectorize,
        "separate_s": t_separate,
        "vectorize_s": t_vectorize,
        "stages_s": stages,
        "beside_s": {"tile_stats": t_stats, "rasterize": t_rasterize},
        "mask_px": int(lengths.sum()),
        "flooded_px": int(lengths[shared].sum()),
        "vertices_per_nucleus": round(len(batch.xy) / len(batch), 1),
        "holes_px": int((painted != found.labels).sum()),
        **accuracy(found.labels, found.anchors, tile),
    }


def rival(tile: SyntheticTile, params: SeparateParams) -> dict[str, Any]:
    """scikit-image's own chain on the same maps and thresholds."""
    center, material = tile.prob
    stages: dict[str, float] = {}
    maps = ((center.astype(np.float32), 1.0), (material.astype(np.float32), 0.7))
    smooth, stages["gaussian_filter"] = timed(lambda: [ndi.gaussian_filter(image, sigma) for image, sigma in maps])
    mask = smooth[1] >= params.material_threshold / 16
    least = params.center_threshold / 256
    yx, stages["peak_local_max"] = timed(
        lambda: peak_local_max(smooth[0], min_distance=params.marker_radius_px, threshold_abs=least, labels=mask, p_norm=np.inf)
    )
    seeds = np.zeros(mask.shape, np.int32)
    seeds[yx[:, 0], yx[:, 1]] = np.arange(1, len(yx) + 1)
    labels, stages["watershed"] = timed(lambda: watershed(-smooth[1], seeds, mask=mask))
    _, stages["regionprops_table"] = timed(lambda: regionprops_table(labels, material, properties=PROPERTIES))
    _, stages["find_contours"] = timed(lambda: [find_contours(np.pad(r.image_filled, 1), 0.5) for r in regionprops(labels)])
    return {"total_s": sum(stages.values()), "stages_s": stages, **accuracy(labels, yx[:, ::-1], tile)}


def main() -> None:
    """Run all densities and write the table."""
    quick = "--quick" in sys.argv
    params = resolve_params(SeparateConfig(), {}, 0.25)
    warm = synthetic_tile(60, 300)
    begin = time.process_time()
    vectorize(separate(warm.prob, params), warm.prob, Box(0, 0, 300, 300), Box(0, 0, 300, 300))
    result: dict[str, Any] = {
        "command": "python -m benchmarks.postprocess",
        "machine": machine(),
        "unit": "CPU seconds, one thread, per 4000x4000 tile",
        "first_call_s": round(time.process_time() - begin, 2),
        "tiles": [],
    }
    for wanted, drawn in list(DRAWN.items())[1:2] if quick else DRAWN.items():
        tile = synthetic_tile(drawn, 4000, seed=wanted)
        a = ours(tile, params, 3 if quick else 9)
        b = rival(tile, params)
        ratio = b["total_s"] / a["total_s"]
        result["tiles"].append({"nuclei": len(tile.centers), "wsiseg": a, "scikit_image": b, "ratio": round(ratio, 1)})
        print(f"{len(tile.centers)} nuclei: wsiseg {a['total_s']:.3f} s, scikit-image {b['total_s']:.2f} s, {ratio:.1f} times")
        for name, part in (("wsiseg", a), ("scikit-image", b)):
            print(
                f"  {name}: right pixels {part['right_pixels']:.4f}, hit once {part['hit_once']:.4f}, found {part['n_found']}"
            )
            for stage, seconds in part["stages_s"].items():
                print(f"    {stage:36s} {seconds * 1e3:9.1f} ms")
    if not quick:
        out = Path(__file__).parent / "results" / "postprocess.json"
        out.parent.mkdir(exist_ok=True)
        rounded = json.loads(json.dumps(result), parse_float=lambda t: round(float(t), 5))
        out.write_text(json.dumps(rounded, indent=1) + "\n")


if __name__ == "__main__":
    main()
