"""Score how unlike the training images a slide is, from its pixels and the network's results, as columns of its row."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from wsiseg.rows import SlideRow
from wsiseg.run.job import SlideJob
from wsiseg.schema import TRUST
from wsiseg.summarize import foreign_look

__all__ = ["with_look"]

NETWORK = ("area_p50_um2", "center_prob_mean", "material_prob_mean")
"""Columns of a slide's row that are compared with the training images in addition to ``SlideJob.look``."""


def with_look(row: SlideRow, job: SlideJob, card: Mapping[str, Any]) -> SlideRow:
    """Return a slide's row with its columns of ``wsiseg.schema.TRUST`` about its look.

    They are empty for weights whose card has no ``look``, which ``scripts/measure_look.py`` measures.
    """
    look = {**job.look, **{name: getattr(row, name) for name in NETWORK}}
    n_nuclei = row.n_nuclei or 0
    if job.look.get("colored_mm2"):
        look["nuclei_per_colored_mm2"] = n_nuclei / job.look["colored_mm2"]
    measured: dict[str, Any] = {c.name: float(look[c.name]) for c in TRUST if look.get(c.name) is not None}
    row = dataclasses.replace(row, **measured)
    reference = card.get("look", {}).get("percentiles_5_50_95")
    found = foreign_look(look, reference) if reference and n_nuclei else None
    if found is None:
        return row
    return dataclasses.replace(row, foreign_score=round(found.score, 3), foreign_reasons="; ".join(found.reasons))
