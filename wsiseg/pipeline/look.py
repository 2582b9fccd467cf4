"""Measure of one picture what a run measures of a slide: how it looks, and what the network finds on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wsiseg.config import RunConfig
from wsiseg.pipeline.image import find_nuclei
from wsiseg.read import ArraySlide, slide_look, survey_slide

if TYPE_CHECKING:
    from wsiseg.predict import Model

__all__ = ["network_look", "picture_look"]


def picture_look(
    rgb: NDArray[np.uint8], mpp: float, model: Model, config: RunConfig, found: dict[str, float] | None = None
) -> dict[str, float]:
    """Return the traits of ``wsiseg.summarize.TRAITS`` of one picture uint8 (H, W, 3), without what cannot be measured.

    ``found`` is the result of ``network_look`` where it is known.
    """
    slide = ArraySlide(np.ascontiguousarray(rgb), mpp=mpp)
    survey = survey_slide(slide)
    out = slide_look(slide, survey, survey.tissue)
    found = dict(found or network_look(rgb, mpp, model, config))
    n = found.pop("n_nuclei")
    if out["colored_mm2"]:
        out["nuclei_per_colored_mm2"] = n / out["colored_mm2"]
    return out | found


def network_look(rgb: NDArray[np.uint8], mpp: float, model: Model, config: RunConfig) -> dict[str, float]:
    """Return what the network finds on a picture: ``n_nuclei``, and of these their median area and mean probabilities."""
    batch, working_mpp = find_nuclei(rgb, mpp, model, config)
    found = batch.columns
    n = len(found["area_wpx"])
    if not n:
        return {"n_nuclei": 0.0}
    means = {f"{name}_mean": float(np.mean(found[name])) / 255 for name in ("center_prob", "material_prob")}
    return {"n_nuclei": float(n), "area_p50_um2": float(np.median(found["area_wpx"])) * working_mpp**2, **means}
