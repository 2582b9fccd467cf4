"""``wsiseg info``: the facts of one slide, and an estimate of its microns per pixel."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from wsiseg.cluster.devices import compute_device
from wsiseg.config import PredictConfig, RunConfig
from wsiseg.errors import InputError, TileReadError
from wsiseg.fetch import is_address, shown
from wsiseg.pipeline import MppEstimate, estimate_mpp
from wsiseg.read import fit_tissue, open_slide, read_working, scale_for, tissue_frac, working_size
from wsiseg.read.slide import layout_words
from wsiseg.types import Box

if TYPE_CHECKING:  # imports torch, which the facts of a slide do not need
    from wsiseg.predict import Model

__all__ = ["estimate_slide_mpp", "slide_info"]

WINDOW_PX = 512
MAX_WINDOWS = 8
MIN_TISSUE_FRAC = 0.7


def slide_info(path: str, mpp: float | None, mpp_model: float, tolerance_frac: float) -> dict[str, Any]:
    """Return the facts of one slide as ``wsiseg info`` prints them, including the fraction of its area that is tissue."""
    if is_address(path):
        raise InputError(f"{shown(path)}: `wsiseg info` needs a file on this machine; `segment` and `plan` accept URLs too.")
    slide = open_slide(path, mpp=mpp)
    try:
        facts = dataclasses.asdict(slide.meta)
        facts["layout"] = slide.meta.layout or layout_words(path)
        scale = scale_for(slide.meta.mpp, mpp_model, tolerance_frac)
        facts["scale"] = scale
        facts["working_size_px"] = working_size(slide.meta, scale)
        facts["area_mm2"] = slide.meta.width_px * slide.meta.height_px * slide.meta.mpp**2 * 1e-6
        try:
            whole = Box(0, 0, slide.meta.width_px, slide.meta.height_px)
            facts["tissue_frac"] = round(tissue_frac(fit_tissue(slide), whole), 4)
        except TileReadError as err:
            facts["tissue_frac"] = f"unknown: {err}"
        return facts
    finally:
        slide.close()


@functools.lru_cache(maxsize=1)
def _loaded(predict: PredictConfig, device: str) -> Model:
    """Return the network, which is cached, because `wsiseg info` may show many slides."""
    from wsiseg.predict import load_model

    return load_model(predict, device)


def estimate_slide_mpp(path: str, config: RunConfig) -> MppEstimate | None:
    """Estimate the microns per level-0 px of a slide from its nuclei; what the file states is not used.

    Up to eight windows of 512 px at least 70 % tissue are read, spread evenly over those of a grid.

    Raises
    ------
    InputError
        The slide cannot be opened.
    TileReadError
        Its pixels cannot be decoded.
    WeightsError
        The weights cannot be loaded.
    """
    model = _loaded(config.predict, compute_device(config))
    slide = open_slide(path, mpp=model.mpp)
    try:
        tissue = fit_tissue(slide)
        across, down = (max(1, n // WINDOW_PX) for n in (slide.meta.width_px, slide.meta.height_px))
        size = min(WINDOW_PX, slide.meta.width_px), min(WINDOW_PX, slide.meta.height_px)
        grid = [Box(x * WINDOW_PX, y * WINDOW_PX, *size) for y in range(down) for x in range(across)]
        filled = [box for box in grid if tissue_frac(tissue, box) >= MIN_TISSUE_FRAC]
        chosen = np.unique(np.linspace(0, len(filled) - 1, min(MAX_WINDOWS, len(filled))).round().astype(int)) if filled else ()
        return estimate_mpp([read_working(slide, filled[i], 1.0) for i in chosen], model, config)
    finally:
        slide.close()
