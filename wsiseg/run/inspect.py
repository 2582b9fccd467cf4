"""``wsiseg info``: the facts of one slide."""

from __future__ import annotations

import dataclasses
from typing import Any

from wsiseg.errors import InputError, TileReadError
from wsiseg.fetch import is_address, shown
from wsiseg.read import fit_tissue, open_slide, scale_for, tissue_frac, working_size
from wsiseg.read.slide import layout_words
from wsiseg.types import Box

__all__ = ["slide_info"]


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
