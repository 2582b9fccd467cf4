"""Rows of the tables of all slides: the statistics of one slide, and one failure.

The fields are the columns of ``wsiseg.schema``, in order. ``wsiseg.decode`` reads and writes rows as JSON, ``wsiseg.summarize``
as Parquet.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from wsiseg.schema import SLIDES

__all__ = ["STAGES", "ErrorRow", "SlideRow"]

STAGES = ("read", "normalize", "predict", "separate", "vectorize", "write")
"""Stages for which a row has the seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideRow:
    """Statistics of one slide: the columns of ``wsiseg.schema.SLIDES``; None for undefined values (mean of no nuclei).

    ``other`` stores unknown columns of a newer version, so that they are kept when the record is written again.
    """

    slide_id: str
    cohort: str
    status: str
    path: str
    n_nuclei: int | None
    nuclei_per_mm2: float | None
    tissue_mm2: float | None
    area_mean_um2: float | None
    area_std_um2: float | None
    area_p05_um2: float | None
    area_p25_um2: float | None
    area_p50_um2: float | None
    area_p75_um2: float | None
    area_p95_um2: float | None
    material_frac: float | None
    center_prob_mean: float | None
    material_prob_mean: float | None
    tiles_done: int | None
    tiles_empty: int | None
    tiles_failed: int | None
    width_px: int | None
    height_px: int | None
    mpp: float | None
    mpp_source: str
    scale: float | None
    bounds_x: int | None
    bounds_y: int | None
    vendor: str
    reader: str
    reader_note: str
    stain: str
    precision: str = ""  # what has a default is lacking in tables of earlier versions
    precision_choice: str = ""
    seconds_read: float | None
    seconds_normalize: float | None
    seconds_predict: float | None
    seconds_separate: float | None
    seconds_vectorize: float | None
    seconds_write: float | None
    seconds_features: float | None = None
    tissue_mask: str = ""
    outside_windows: int | None = None
    outside_nuclei: float | None = None
    outside_nuclei_low: float | None = None
    outside_nuclei_high: float | None = None
    outside_frac: float | None = None
    ink_frac: float | None = None
    fold_frac: float | None = None
    stain_residual: float | None = None
    brown_frac: float | None = None
    od_red_frac: float | None = None
    od_blue_frac: float | None = None
    od_green_high: float | None = None
    sharpness: float | None = None
    sharpness_low: float | None = None
    unsharp_frac: float | None = None
    jpeg_blocking: float | None = None
    nuclei_per_colored_mm2: float | None = None
    foreign_score: float | None = None
    foreign_reasons: str = ""
    seconds_outside: float | None = None
    device_note: str
    table: str
    error: str
    other: Mapping[str, object] = field(default_factory=dict, compare=False)

    @property
    def seconds(self) -> dict[str, float]:
        """Return the seconds of each of ``STAGES``, summed over tiles; 0 if unknown."""
        return {stage: float(getattr(self, f"seconds_{stage}") or 0.0) for stage in STAGES}

    @property
    def columns(self) -> dict[str, Any]:
        """Return the values by column of ``wsiseg.schema.SLIDES``, in order, for Arrow, CSV or JSON."""
        return {c.name: getattr(self, c.name) for c in SLIDES}

    @classmethod
    def blank(cls, slide_id: str, status: str, **known: Any) -> SlideRow:
        """Return a row with only the given values; other texts are empty and other numbers None."""
        empty = {c.name: "" if c.arrow == "string" else None for c in SLIDES}
        return cls(**{**empty, "slide_id": slide_id, "status": status, **known})


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """One failure: the columns of ``wsiseg.schema.ERRORS``. Rows of older runs have no ``host`` and ``worker``."""

    slide_id: str
    tile_id: int
    x_px: int
    y_px: int
    error: str
    attempts: int
    host: str = ""
    worker: str = ""
    other: Mapping[str, object] = field(default_factory=dict, compare=False)

    @property
    def columns(self) -> dict[str, Any]:
        """Return the values by column of ``wsiseg.schema.ERRORS``."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "other"}
