"""Write the CPU's answers that a machine with a GPU, but without Numba, compares its own with.

Run ``python -m benchmarks.gpu_expectations [--small]`` here; writes ``carry/gpu_expectations.npz`` (ignored by git, some MB):
small adversarial maps under three sets of options, a tile of tissue of 1000 px, and one of 4000 px (not with ``--small``).
"""

from __future__ import annotations

import sys

import numpy as np

from benchmarks.gpu_stages import EXPECTATIONS
from benchmarks.synthetic import synthetic_tile
from tests.kernels.parity import ALL_PARAMS, core_of
from tests.oracles.maps import adversarial
from wsiseg.config import PredictConfig, SeparateConfig
from wsiseg.normalize import normalize
from wsiseg.predict import load_model
from wsiseg.separate import SeparateParams, resolve_params, separate
from wsiseg.types import Box, Stain
from wsiseg.vectorize import tile_stats, vectorize

OUT = EXPECTATIONS
STAIN = (0.65, 0.70, 0.29, 0.07, 0.99, 0.11, 1.4, 0.7)
REINHARD = (-0.45, -0.06, 0.018, 0.25, 0.06, 0.011)
STAT_FIELDS = ("core_px", "tissue_px", "material_px", "sum_center_u8", "sum_material_u8")


def answers(prob: np.ndarray, params: SeparateParams) -> dict[str, np.ndarray]:
    """Return maps, options and all results of one window."""
    found = separate(prob, params)
    read = Box(70_000, 90_000, prob.shape[2], prob.shape[1])
    core = core_of(read)
    batch = vectorize(found, prob, read, core)
    stats = tile_stats(prob, found, read, core)
    return {
        "prob": prob,
        "params": np.array([getattr(params, name) for name in SeparateParams.__slots__], np.int64),
        "boxes": np.array([[b.x, b.y, b.w, b.h] for b in (read, core)], np.int64),
        "labels": found.labels,
        "anchors": found.anchors,
        "xy": batch.xy,
        "ring_offsets": batch.ring_offsets,
        **{f"column:{name}": values for name, values in batch.columns.items()},
        "stats": np.array([getattr(stats, name) for name in STAT_FIELDS], np.int64),
    }


def network_answers(side: int) -> dict[str, np.ndarray]:
    """Return pixels of the demo slide and the shipped network's maps of them, fp32 on the CPU."""
    from wsiseg.predict import predict
    from wsiseg.read import open_slide
    from wsiseg.run.doctor import demo_slide

    model = load_model(PredictConfig(weights="open", precision="fp32", engine="eager"))
    box = Box(0, 0, side, side)
    window = model.input_box(box)
    slide = open_slide(demo_slide(), reader="openslide")
    rgb = slide.read_level(0, 700, 900, window.w, window.h)
    slide.close()
    return {"network|rgb": rgb, "network|maps": predict(model, rgb, window, box)}


def main() -> None:
    """Write the file."""
    default = resolve_params(SeparateConfig(), {}, 0.25)
    cases = {f"{m}/{p}": answers(prob, params) for m, prob in adversarial().items() for p, params in ALL_PARAMS.items()}
    tiles = {"tissue_1000": (600, 1000)} if "--small" in sys.argv else {"tissue_1000": (600, 1000), "tissue_4000": (9680, 4000)}
    for name, (nuclei, size) in tiles.items():
        cases[name] = answers(synthetic_tile(nuclei, size, seed=8000).prob, default)
    rgb = np.random.default_rng(0).integers(0, 256, (300, 400, 3)).astype(np.uint8)
    flat = {f"{case}|{name}": values for case, parts in cases.items() for name, values in parts.items()}
    flat |= {"stain|rgb": rgb, "stain|params": np.array(STAIN), "stain|out": normalize(rgb, Stain("macenko", STAIN))}
    flat |= {"stain|reinhard": np.array(REINHARD), "stain|reinhard_out": normalize(rgb, Stain("reinhard", REINHARD))}
    flat |= network_answers(480 if "--small" in sys.argv else 640)
    OUT.parent.mkdir(exist_ok=True)
    np.savez_compressed(OUT, **flat)
    print(f"{OUT}: {len(cases)} cases, {OUT.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
