"""Score files or folders against each other, and put the scores in tables."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from wsiseg.coordinates import parse_frame
from wsiseg.errors import FormatError
from wsiseg.evaluation.inputs import INSTANCE_SUFFIXES, instance_stem
from wsiseg.evaluation.pairs import Placing, load_pair
from wsiseg.labels import is_label_store, read_labels
from wsiseg.metrics.agreement import CountAgreement, PairedTest, count_agreement, paired_test
from wsiseg.metrics.hou2020 import HouPatch, HouScores, hou_patches, hou_summary
from wsiseg.metrics.scores import Scores, instance_scores, mean_scores, pooled_scores
from wsiseg.tables import atomic_write_bytes

__all__ = [
    "Evaluation",
    "PathOptions",
    "compare_runs",
    "evaluate_pairs",
    "evaluate_paths",
    "evaluation_table",
    "instance_files",
    "null_for_nan",
    "write_evaluation",
]

MAX_GB = 2.0
"""Default of the maximum memory for scoring one image, 10^9 bytes: enough for 8,770 x 8,770 px."""

TABLE_COLUMNS = ("dice", "dice2", "aji", "aji_plus", "pq", "sq", "dq", "precision", "recall", "f1", "f1_sweep_mean")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores of a set of images.

    Attributes
    ----------
    names, scores
        Name and scores of each image, in order of name.
    counts
        Agreement of the numbers of nuclei of whole images.
    hou
        Patch scores of Hou et al. over the complete 256 px squares of the images; ``None`` if no image is that large.
    unused
        Names of predictions without a truth.
    patches
        The patches behind ``hou``; ``HouPatch.image`` is one of ``names``.
    notes
        Messages for the user: what was left out of files, what was repaired, and what does not fit.
    """

    names: tuple[str, ...]
    scores: tuple[Scores, ...]
    counts: CountAgreement
    hou: HouScores | None
    unused: tuple[str, ...] = ()
    patches: tuple[HouPatch, ...] = ()
    notes: tuple[str, ...] = ()

    def rows(self) -> list[dict[str, Any]]:
        """Return one flat row per image."""
        return [{"image": name, **s.as_dict()} for name, s in zip(self.names, self.scores, strict=True)]

    def summary(self) -> dict[str, Any]:
        """Return ``mean`` (over images), ``pooled`` (over nuclei), ``counts`` and ``hou``."""
        return {
            "n_images": len(self.names),
            "mean": mean_scores(self.scores),
            "pooled": pooled_scores(self.scores).as_dict(),
            "counts": asdict(self.counts),
            "hou": asdict(self.hou) if self.hou else None,
            "unused_predictions": list(self.unused),
        }


@dataclass(frozen=True, slots=True)
class PathOptions:
    """How two sides are paired and drawn: the options of ``evaluate_paths``."""

    ignore: str | Path | None = None
    scale: float = 1.0
    origin: tuple[float, float] = (0.0, 0.0)
    vertices: Literal["auto", "edge", "center"] = "auto"
    missing: Literal["error", "empty", "skip"] = "error"
    frame: str = "auto"
    components: bool = False
    max_gb: float = MAX_GB


def evaluate_paths(
    pred: str | Path,
    truth: str | Path,
    ignore: str | Path | None = None,
    scale: float = 1.0,
    origin: tuple[float, float] = (0.0, 0.0),
    vertices: Literal["auto", "edge", "center"] = "auto",
    missing: Literal["error", "empty", "skip"] = "error",
    frame: str = "auto",
    components: bool = False,
    max_gb: float = MAX_GB,
) -> Evaluation:
    """Score PRED against TRUTH: two files, or two folders whose files are paired by name.

    Parameters
    ----------
    pred, truth
        Files or folders that ``load_instances`` reads. ``<id>.labels.png`` pairs with ``<id>.png``, ``<id>.parquet`` ...; in a
        folder with ``*.labels.*`` files, only these are used, because its other pictures are not masks.
    ignore
        Mask (or folder of masks paired the same way) of ambiguous areas: its nonzero pixels are not scored. Neither are pixels
        that are negative (not annotated) in a label image.
    scale, origin, vertices
        How polygons are drawn on the label image of the other side (see ``load_instances``).
    missing
        What to do with a truth without a prediction: raise an error, score an empty prediction, or leave the image out.
    frame
        Frame of other tools' polygons on the slide, if the other side is a table of wsiseg (``wsiseg.coordinates``).
    components
        Each connected part of a label image is a nucleus.
    max_gb
        Maximum memory for an image, 10^9 bytes.

    Returns
    -------
    Evaluation

    Raises
    ------
    FormatError
        No files pair by name, a prediction is missing, a file is unreadable, sizes differ, or an image is too large.
    """
    return evaluate_pairs(pred, truth, PathOptions(ignore, scale, origin, vertices, missing, frame, components, max_gb))


def evaluate_pairs(pred: str | Path, truth: str | Path, options: PathOptions) -> Evaluation:
    """Score PRED against TRUTH as ``evaluate_paths``."""
    pairs, unused = _pairs(Path(pred), Path(truth), options.missing)
    masks = instance_files(Path(options.ignore)) if options.ignore is not None else {}
    names: list[str] = []
    scores: list[Scores] = []
    patches: list[HouPatch] = []
    frame = parse_frame(options.frame)
    placing = Placing(options.scale, options.origin, options.vertices, frame, options.components, options.max_gb)
    notes: list[str] = []
    for name, pred_file, truth_file in pairs:
        pair = load_pair(pred_file, truth_file, placing)
        mask = _ignore_mask(masks, name, pair.truth.shape[-2:])
        if pair.unknown is not None:
            mask = pair.unknown if mask is None else mask | pair.unknown
        try:
            scores.append(instance_scores(pair.pred, pair.truth, mask, layered=True))
        except FormatError as err:
            raise FormatError(f"{name}: {err}") from err
        names.append(name)
        notes += [*pair.notes, *_unmet(scores[-1], name)]
        keep = 1 if mask is None else ~mask
        patches += hou_patches(pair.pred * keep, pair.truth * keep, name, layered=True)
    counts = count_agreement([s.n_pred for s in scores], [s.n_truth for s in scores])
    hou = hou_summary(patches) if patches else None
    return Evaluation(tuple(names), tuple(scores), counts, hou, unused, tuple(patches), tuple(notes))


def _unmet(scores: Scores, name: str) -> list[str]:
    """Return a warning if both sides have nuclei and none match, which is more often a wrong frame than a bad network."""
    if min(scores.n_pred, scores.n_truth) == 0 or scores.matched[0]:
        return []
    met = "no two share a pixel" if scores.both_px == 0 else f"none match, {scores.both_px:,} px are shared"
    text = f"{name}: of {scores.n_pred:,} predicted and {scores.n_truth:,} true nuclei {met}: "
    return [text + "check that both have the same image, frame and scale (--frame, --corner, --scale)."]


def compare_runs(a: Evaluation, b: Evaluation, score: str = "pq") -> PairedTest:
    """Test whether two runs on the same images differ in a score (two-sided Wilcoxon signed-rank on a - b)."""
    if a.names != b.names:
        odd = sorted(set(a.names) ^ set(b.names))
        raise FormatError(f"evaluate: the two runs have different images; only one of them has {odd[:5]}.")
    return paired_test([getattr(s, score) for s in a.scores], [getattr(s, score) for s in b.scores])


def evaluation_table(evaluation: Evaluation, images: bool = True) -> tuple[list[str], list[list[str]]]:
    """Return headings and text cells for the screen: images in order, then ``mean`` and ``pooled``."""
    headings = ["image", "truth", "pred", *TABLE_COLUMNS]
    summary = evaluation.summary()
    rows = evaluation.rows() if images else []
    rows += [{"image": "mean", **summary["mean"]}, {"image": "pooled", **summary["pooled"]}]
    cells = []
    for row in rows:
        counts = [f"{row[key]:.0f}" if not math.isnan(row[key]) else "-" for key in ("n_truth", "n_pred")]
        cells.append([str(row["image"]), *counts, *("-" if math.isnan(row[c]) else f"{row[c]:.3f}" for c in TABLE_COLUMNS)])
    return headings, cells


def write_evaluation(evaluation: Evaluation, path: str | Path) -> Path:
    """Write the scores: ``.csv`` and ``.parquet`` with one row per image, ``.json`` with rows and summary (nan as null).

    The file appears complete or not at all. Raises ``FormatError`` for another suffix.
    """
    path = Path(path)
    rows = evaluation.rows()
    suffix = path.suffix.lower()
    if suffix == ".json":
        tree = null_for_nan({"summary": evaluation.summary(), "images": rows})
        content = (json.dumps(tree, indent=1, allow_nan=False) + "\n").encode()
    elif suffix == ".csv":
        text = io.StringIO()
        table = csv.DictWriter(text, ["image", *Scores().as_dict()], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        content = text.getvalue().encode()
    elif suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        sink = pa.BufferOutputStream()
        columns = {key: [row[key] for row in rows] for key in ["image", *Scores().as_dict()]}
        pq.write_table(pa.table(columns), sink, compression="zstd")
        content = sink.getvalue().to_pybytes()
    else:
        raise FormatError(f"{path}: scores are written as .csv, .parquet or .json, not {suffix!r}.")
    atomic_write_bytes(path, content)
    return path


def null_for_nan(value: Any) -> Any:
    """Return nested dicts and lists with NaN replaced by ``None``, because JSON has no NaN."""
    if isinstance(value, dict):
        return {k: null_for_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [null_for_nan(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def instance_files(folder: Path) -> dict[str, Path]:
    """Return the files of a folder by stem, or a single file under the name ''.

    If the folder has ``*.labels.*`` files, only these are returned, because its other pictures are not masks. Raises
    ``FormatError`` if the folder does not exist or two files have the same stem.
    """
    if not folder.exists():
        raise FormatError(f"{folder}: no such file or folder.")
    if folder.is_file() or is_label_store(folder) or any(folder.glob("*-features.csv")):
        return {"": folder}
    found = [
        p
        for p in sorted(folder.iterdir())
        if (p.name.lower().endswith(INSTANCE_SUFFIXES) or (p.suffix.lower() == ".zip" and is_label_store(p)))
        and p.name != "INFO.json"
        and not p.name.startswith(".")
    ]
    found += [p for p in sorted(folder.iterdir()) if p.is_dir() and any(p.glob("*-features.csv"))]
    marked = [p for p in found if ".labels." in p.name]
    files: dict[str, Path] = {}
    for file in marked or found:
        stem = instance_stem(file)
        if stem in files:
            raise FormatError(f"{folder}: {files[stem].name} and {file.name} are both for image {stem!r}: keep one of them.")
        files[stem] = file
    return files


def _pairs(pred: Path, truth: Path, missing: str) -> tuple[list[tuple[str, Path | None, Path]], tuple[str, ...]]:
    preds, truths = instance_files(pred), instance_files(truth)
    if set(preds) == {""} and set(truths) == {""}:
        return [(instance_stem(truth), pred, truth)], ()
    if "" in preds or "" in truths:
        raise FormatError(f"evaluate: give two files or two folders, got {pred} and {truth}.")
    absent = sorted(set(truths) - set(preds))
    if not truths or len(absent) == len(truths):
        raise FormatError(
            f"evaluate: no file of {pred} pairs by name with one of {truth} ({len(preds)} and {len(truths)} files; "
            f"first names {sorted(preds)[:2]} and {sorted(truths)[:2]})."
        )
    if absent and missing == "error":
        raise FormatError(
            f"evaluate: {len(absent)} of {len(truths)} truths have no prediction in {pred}, the first is {absent[0]!r}. "
            "Add it, or choose --missing empty or --missing skip."
        )
    if missing == "skip":
        truths = {name: path for name, path in truths.items() if name in preds}
    unused = tuple(sorted(set(preds) - set(truths)))
    return [(name, preds.get(name), truths[name]) for name in sorted(truths)], unused


def _ignore_mask(masks: dict[str, Path], name: str, shape: Sequence[int]) -> npt.NDArray[np.bool_] | None:
    path = masks.get(name, masks.get(""))
    if path is None:
        return None
    mask = read_labels(path) != 0
    if mask.shape != tuple(shape):
        raise FormatError(f"{path}: the ignore mask is {mask.shape} (height, width), the truth {tuple(shape)}.")
    return mask
