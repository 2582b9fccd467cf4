"""Compute a slide's row of ``wsiseg.schema.SLIDES``. Values that do not exist, such as the mean of no nuclei, are None."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.errors import plain_text
from wsiseg.rows import STAGES, SlideRow
from wsiseg.tables import read_nuclei
from wsiseg.types import SlideMeta, TileStats

__all__ = ["SlideWork", "failed_row", "nuclei_statistics", "summarize_slide"]

SUMMARIZED_COLUMNS = ("area_um2", "center_prob", "material_prob")
"""Columns that are read from a slide's table: about 6 bytes per nucleus."""

AREA_QUANTILES = {"area_p05_um2": 0.05, "area_p25_um2": 0.25, "area_p50_um2": 0.5, "area_p75_um2": 0.75, "area_p95_um2": 0.95}

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class SlideWork:
    """What was done with a slide's tiles.

    Attributes
    ----------
    done, empty, failed
        How many tiles.
    seconds
        Wall seconds by stage, summed over tiles; stages not named took 0.
    stain
        Stain normalization and its fitted numbers, as text.
    events
        Counts of fallbacks because GPU memory was full, by name (see ``wsiseg.write.PartHeader``).
    """

    done: int = 0
    empty: int = 0
    failed: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    stain: str = ""
    events: Mapping[str, int] = field(default_factory=dict)


def summarize_slide(
    table: str | Path | Mapping[str, Array],
    stats: TileStats,
    meta: SlideMeta,
    scale: float,
    work: SlideWork,
    *,
    table_name: str,
    suspicion: str = "",
) -> SlideRow:
    """Return a slide's statistics row.

    Parameters
    ----------
    table
        The slide's polygon table, or its columns ``area_um2``, ``center_prob`` and ``material_prob`` as arrays (N,).
    stats
        Sum over the slide's tiles.
    meta, scale
        The slide, and working px per level-0 px.
    work
        What was done with its tiles.
    table_name
        The table's path relative to the run folder.
    suspicion
        Why a slide without nuclei should have some, in one line; empty: it is blank. Ignored if there are nuclei.

    Returns
    -------
    SlideRow
        The columns of ``wsiseg.schema.SLIDES``: plain numbers, None where a value does not exist (mean of
        no nuclei, density of no tissue). ``status`` is ``done``; ``empty`` without nuclei, or ``suspect`` for the reason given;
        ``partial`` if some tiles failed; ``failed`` if all that had tissue did. Standard deviation is the population's;
        quantiles interpolate linearly.

    Raises
    ------
    FormatError
        The table cannot be read.
    """
    columns = _columns(table)
    area = columns["area_um2"].astype(np.float64)
    n_done, n_failed = work.done, work.failed
    um = meta.mpp / scale
    tissue_mm2 = stats.tissue_px * um**2 * 1e-6
    nothing = "suspect" if suspicion else "empty"
    status = "partial" if n_failed and n_done else "failed" if n_failed else "done" if len(area) else nothing
    error = f"{n_failed} of {n_done + n_failed} tiles with tissue failed: see errors.parquet" if n_failed else ""
    return SlideRow.blank(
        meta.slide_id,
        status,
        cohort=meta.cohort,
        path=plain_text(meta.path),
        n_nuclei=len(area),
        nuclei_per_mm2=len(area) / tissue_mm2 if tissue_mm2 else None,
        tissue_mm2=tissue_mm2,
        material_frac=stats.material_px / stats.tissue_px if stats.tissue_px else None,
        tiles_done=n_done,
        tiles_empty=work.empty,
        tiles_failed=n_failed,
        width_px=meta.width_px,
        height_px=meta.height_px,
        mpp=meta.mpp,
        mpp_source=meta.mpp_source,
        scale=scale,
        bounds_x=meta.bounds_x,
        bounds_y=meta.bounds_y,
        vendor=meta.vendor,
        reader=meta.reader,
        reader_note=meta.reader_note,
        stain=work.stain,
        device_note=_device_note(work.events),
        table=table_name,
        error=suspicion if status == "suspect" else error,
        **{f"seconds_{stage}": float(work.seconds.get(stage, 0.0)) for stage in STAGES},
        **nuclei_statistics(area, columns["center_prob"], columns["material_prob"]),
    )


def failed_row(slide_id: str, path: str, cohort: str, error: str) -> SlideRow:
    """Return the statistics row of a slide that could not be used at all; ``error`` is the reason in one line."""
    return SlideRow.blank(slide_id, "failed", cohort=cohort, n_nuclei=0, path=plain_text(path), error=plain_text(error))


def _device_note(events: Mapping[str, int]) -> str:
    parts = [f"{name.replace('_', ' ')} {n}" for name, n in sorted(events.items()) if not name.endswith("_bytes")]
    if "device_peak_bytes" in events:
        parts.insert(0, f"at most {events['device_peak_bytes'] / 2**30:.1f} GiB")
    return ", ".join(parts)


def _columns(table: str | Path | Mapping[str, Array]) -> dict[str, Array]:
    if isinstance(table, Mapping):
        return {name: np.asarray(table[name]) for name in SUMMARIZED_COLUMNS}
    read = read_nuclei(table, columns=SUMMARIZED_COLUMNS)
    return {name: read[name].to_numpy() for name in SUMMARIZED_COLUMNS}


def nuclei_statistics(area: npt.NDArray[np.float64], center_prob: Array, material_prob: Array) -> dict[str, float]:
    """Return the columns of ``wsiseg.schema.SLIDES`` that are statistics over nuclei; empty if there are no nuclei.

    Parameters
    ----------
    area : float64 (N,)
        um^2.
    center_prob, material_prob : (N,)
        1/255.
    """
    if not len(area):
        return {}
    quantiles = np.quantile(area, list(AREA_QUANTILES.values())).tolist()
    return {
        "area_mean_um2": float(area.mean()),
        "area_std_um2": float(area.std()),
        **dict(zip(AREA_QUANTILES, quantiles, strict=True)),
        "center_prob_mean": float(center_prob.mean(dtype=np.float64)) / 255,
        "material_prob_mean": float(material_prob.mean(dtype=np.float64)) / 255,
    }
