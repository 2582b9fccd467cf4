"""Score how unlike the training images a slide is, from its pixels and the network's results, as columns of its row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wsiseg.run.job import SlideJob
from wsiseg.schema import TRUST
from wsiseg.summarize import foreign_look

__all__ = ["foreign_facts"]

NETWORK = ("area_p50_um2", "center_prob_mean", "material_prob_mean")
"""Columns of a slide's row that are compared with the training images in addition to ``SlideJob.look``."""


def foreign_facts(job: SlideJob, row: Mapping[str, Any], card: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of ``wsiseg.schema.TRUST`` about how unlike the training images a slide is.

    They are empty for weights whose card has no ``look``, which ``scripts/measure_look.py`` measures.
    """
    look: dict[str, Any] = {**job.look, **{name: row[name] for name in NETWORK}}
    if job.look.get("colored_mm2"):
        look["nuclei_per_colored_mm2"] = row["n_nuclei"] / job.look["colored_mm2"]
    facts: dict[str, Any] = {c.name: float(look[c.name]) for c in TRUST if look.get(c.name) is not None}
    reference = card.get("look", {}).get("percentiles_5_50_95")
    found = foreign_look(look, reference) if reference and row["n_nuclei"] else None
    if found is None:
        return facts
    return facts | {"foreign_score": round(found.score, 3), "foreign_reasons": "; ".join(found.reasons)}
