"""Rows of the tables that questions write."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RegionRow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionRow:
    """A region, or all regions of a class: a row of ``wsiseg.schema.REGIONS``. None where a value does not exist."""

    slide_id: str
    cohort: str
    kind: str
    region: int
    class_name: str
    name: str
    n_regions: int
    area_mm2: float
    outside_frac: float | None
    tissue_mm2: float | None
    tissue_frac: float | None
    n_nuclei: int
    nuclei_per_region_mm2: float | None
    nuclei_per_tissue_mm2: float | None
    nuclear_area_frac: float | None
    area_mean_um2: float | None = None
    area_std_um2: float | None = None
    area_p05_um2: float | None = None
    area_p25_um2: float | None = None
    area_p50_um2: float | None = None
    area_p75_um2: float | None = None
    area_p95_um2: float | None = None
    center_prob_mean: float | None = None
    material_prob_mean: float | None = None
    belongs: str
    area_frac: float | None
    annotation: str
    geometry: bytes
