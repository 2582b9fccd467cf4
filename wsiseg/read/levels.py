"""Choose the instances of a DICOM series that a run reads; the others need not be fetched."""

from __future__ import annotations

import math
from collections.abc import Iterable

from wsiseg.errors import SlideOpenError
from wsiseg.read._thumbnail import thumbnail_plan
from wsiseg.read.dicom import DicomFile, slide_series
from wsiseg.read.tissue import MAX_SIDE_PX, MIN_SIDE_PX, THUMBNAIL_UM

__all__ = ["needed_levels"]


def needed_levels(files: Iterable[DicomFile], mpp_model: float) -> list[str]:
    """Return the paths of the instances of one series that a run reads: level 0, that of the tissue mask, that of the tiles.

    Labels, overviews, thumbnails and levels between are not needed. Near the model's resolution two levels are taken, because
    the header states the resolution with few digits.

    Parameters
    ----------
    mpp_model
        um per px of the network.

    Raises
    ------
    SlideOpenError
        The files belong to several series, or to none.
    """
    series = slide_series(files)
    if len(series) != 1:
        found = "no whole slide" if not series else f"{len(series)} series"
        raise SlideOpenError(f"Expected the instances of one DICOM series, got {found}.")
    levels = [f for f in next(iter(series.values())) if f.is_volume]
    whole = levels[0]
    sizes = sorted({(f.columns_px, f.rows_px) for f in levels}, reverse=True)
    wanted = {sizes[0]}
    if whole.width_mm > 0:
        mpp = whole.width_mm * 1000 / whole.columns_px
        for factor in (0.98, 1.02):
            side_px = min(MAX_SIDE_PX, max(MIN_SIDE_PX, math.ceil(factor * max(sizes[0]) * mpp / THUMBNAIL_UM)))
            wanted.add(sizes[thumbnail_plan(tuple(sizes), side_px)[0]])
        finer = [s for s in sizes if sizes[0][0] / s[0] <= 1.05 * mpp_model / mpp]
        wanted |= set(finer[-2:])
    else:
        wanted = set(sizes)
    return [f.path for f in levels if (f.columns_px, f.rows_px) in wanted]
