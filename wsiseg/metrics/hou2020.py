"""The validation protocol of Hou et al. 2020 (Scientific Data 7:185, doi 10.1038/s41597-020-0528-1, tables 3 and 4).

Patches of 256 x 256 px at 40x are scored on their central 226 x 226 px, so that nuclei cut by the border weigh less:

* *Dice* (pixels) and *Instance-Dice* (DICE_2, see ``Scores.dice2`` for its weakness): means over patches, each weighted by its
true
  plus its predicted count.
* *count correlation*: Pearson's r of predicted and true counts over patches; *MAE%*: 100 mean|predicted - true| / mean true.
* Rows: the WSI groups, which are the grades of their visual quality control (``WSI_GROUPS``; all but the last are
  "acceptable"), the cancer types, and one annotator against another instead of prediction against truth.

Images larger than a patch are cut into whole patches. A nucleus is counted if it has a pixel in the center: the paper does not
state how nuclei on the center's edge were counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.errors import FormatError
from wsiseg.metrics.agreement import CountAgreement, count_agreement
from wsiseg.metrics.scores import instance_scores

__all__ = [
    "WSI_GROUPS",
    "HouPatch",
    "HouRow",
    "HouScores",
    "hou_cells",
    "hou_patches",
    "hou_rows",
    "hou_scores",
    "hou_summary",
    "label_patches",
]

HOU_PATCH_PX = 256
HOU_CENTER_PX = 226
WSI_GROUPS: tuple[str, ...] = ("best", "good", "adequate", "problematic", "unacceptable")
"""Grades of a slide by its share of badly segmented patches; ``wsiseg qc grade`` gives the same."""


@dataclass(frozen=True, slots=True)
class HouPatch:
    """One scored patch center; ``dice`` and ``instance_dice`` are nan if neither map has a nucleus."""

    image: str
    n_truth: int
    n_pred: int
    dice: float
    instance_dice: float
    cancer_type: str = ""
    wsi_group: str = ""


@dataclass(frozen=True, slots=True)
class HouScores:
    """Scores over ``n_patches`` patch centers, as in tables 3 and 4."""

    n_patches: int
    dice: float
    instance_dice: float
    counts: CountAgreement


@dataclass(frozen=True, slots=True)
class HouRow:
    """A row of table 3 or 4: ``table`` is ``wsi group``, ``cancer type``, ``all`` or ``annotators``, ``row`` one of these."""

    table: str
    row: str
    n_patches: int
    dice: float
    instance_dice: float
    n_truth: int
    n_pred: int
    pearson_r: float
    mae_percent: float


def label_patches(labels: npt.NDArray[Any], side_px: int = HOU_PATCH_PX) -> Iterator[npt.NDArray[Any]]:
    """Yield the complete ``side_px`` squares of a label map, row-major; incomplete squares at the edges are left out."""
    for y in range(0, labels.shape[-2] - side_px + 1, side_px):
        for x in range(0, labels.shape[-1] - side_px + 1, side_px):
            yield labels[..., y : y + side_px, x : x + side_px]


def hou_patches(
    pred: npt.NDArray[Any],
    truth: npt.NDArray[Any],
    image: str = "",
    cancer_type: str = "",
    wsi_group: str = "",
    *,
    layered: bool = False,
) -> list[HouPatch]:
    """Score the whole patches of one image.

    Parameters
    ----------
    pred, truth : integer (H, W)
        Label maps of the same shape at 40x; with ``layered`` also (L, H, W), see ``contingency``.
    image, cancer_type, wsi_group
        Values by which patches are grouped into the rows of the tables; ``""``: unknown.

    Returns
    -------
    list of HouPatch
        Empty if the image is smaller than a patch.

    Raises
    ------
    FormatError
        ``wsi_group`` is none of ``WSI_GROUPS``.
    """
    if wsi_group and wsi_group not in WSI_GROUPS:
        raise FormatError(f"{image or 'patch'}: expected a WSI group of {', '.join(WSI_GROUPS)}, got {wsi_group!r}.")
    pairs = zip(label_patches(pred), label_patches(truth), strict=True)
    return [_scored(p, t, image, cancer_type, wsi_group, HOU_CENTER_PX, layered) for p, t in pairs]


def hou_summary(patches: Sequence[HouPatch]) -> HouScores:
    """Return weighted Dice and Instance-Dice and the count agreement of scored patches (see the module docstring)."""
    seen = [p for p in patches if p.n_truth + p.n_pred > 0]
    weights = [p.n_truth + p.n_pred for p in seen]
    dice = float(np.average([p.dice for p in seen], weights=weights)) if seen else math.nan
    instance_dice = float(np.average([p.instance_dice for p in seen], weights=weights)) if seen else math.nan
    counts = count_agreement([p.n_pred for p in patches], [p.n_truth for p in patches])
    return HouScores(len(patches), dice, instance_dice, counts)


def hou_scores(pairs: Iterable[tuple[npt.NDArray[Any], npt.NDArray[Any]]], center_px: int = HOU_CENTER_PX) -> HouScores:
    """Score (pred, truth) patches of any side of at least ``center_px`` by the protocol.

    Raises
    ------
    FormatError
        A patch is smaller than its center.
    """
    return hou_summary([_scored(pred, truth, "", "", "", center_px) for pred, truth in pairs])


def hou_rows(patches: Sequence[HouPatch], annotators: dict[str, Sequence[HouPatch]] | None = None) -> list[HouRow]:
    """Return the rows of tables 3 and 4: WSI groups, acceptable slides, cancer types, all patches, annotator pairs.

    Parameters
    ----------
    patches
        Prediction against truth.
    annotators
        Patches of one annotator against another; keys are the names of the pairs.

    Returns
    -------
    list of HouRow
        Rows without a patch are left out; so is the table of WSI groups if no group is known.
    """
    rows = []
    groups = [(group, [p for p in patches if p.wsi_group == group]) for group in WSI_GROUPS]
    groups.insert(-1, ("all acceptable", [p for p in patches if p.wsi_group in WSI_GROUPS[:-1]]))
    rows += [_row("wsi group", name, mine) for name, mine in groups if mine]
    for cancer in sorted({p.cancer_type for p in patches} - {""}):
        rows.append(_row("cancer type", cancer, [p for p in patches if p.cancer_type == cancer]))
    rows.append(_row("all", "all patches", patches))
    rows += [_row("annotators", name, mine) for name, mine in (annotators or {}).items()]
    return rows


def hou_cells(rows: Sequence[HouRow]) -> tuple[list[str], list[list[str]]]:
    """Return headings and text cells of ``hou_rows`` for the screen."""
    headings = ["table", "row", "patches", "Dice", "Instance-Dice", "count r", "MAE%"]
    digits = {"dice": 3, "instance_dice": 3, "pearson_r": 3, "mae_percent": 1}
    cells = []
    for r in rows:
        scores = [(getattr(r, name), d) for name, d in digits.items()]
        cells.append([r.table, r.row, str(r.n_patches), *("-" if math.isnan(v) else f"{v:.{d}f}" for v, d in scores)])
    return headings, cells


def _row(table: str, name: str, patches: Sequence[HouPatch]) -> HouRow:
    s = hou_summary(patches)
    n_truth, n_pred = sum(p.n_truth for p in patches), sum(p.n_pred for p in patches)
    agreed = (s.counts.pearson_r, s.counts.mae_percent)
    return HouRow(table, name, s.n_patches, s.dice, s.instance_dice, n_truth, n_pred, *agreed)


def _scored(
    pred: npt.NDArray[Any],
    truth: npt.NDArray[Any],
    image: str,
    cancer_type: str,
    wsi_group: str,
    center_px: int,
    layered: bool = False,
) -> HouPatch:
    scores = instance_scores(_center(pred, center_px), _center(truth, center_px), layered=layered)
    return HouPatch(image, scores.n_truth, scores.n_pred, scores.dice, scores.dice2, cancer_type, wsi_group)


def _center(labels: npt.NDArray[Any], side_px: int) -> npt.NDArray[Any]:
    height, width = labels.shape[-2:]
    if min(height, width) < side_px:
        raise FormatError(f"evaluate: a patch of {width} x {height} px has no center of {side_px} px.")
    y, x = (height - side_px) // 2, (width - side_px) // 2
    return labels[..., y : y + side_px, x : x + side_px]
