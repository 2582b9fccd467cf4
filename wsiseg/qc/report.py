"""Render rows, flags, grades and pictures of a run as one HTML file that opens offline.

The file contains its script, style and data, and a content security policy that forbids it to fetch anything. Table rows are
created while the user scrolls, and only slides that need checking have pictures, up to a limit, so that a report of 5,000
slides has only a few megabytes.
"""

from __future__ import annotations

import base64
import dataclasses
import gzip
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.qc.agreement import Agreement
from wsiseg.qc.estimate import ShareEstimate
from wsiseg.qc.grades import GRADES, SlideGrade
from wsiseg.qc.rows import FlagRow
from wsiseg.rows import STAGES, ErrorRow, SlideRow

__all__ = ["ReportData", "ShownPatch", "Thumbnail", "data_uri", "density_picture", "render_report", "worst_first"]

ROW_COLUMNS = (
    "slide_id",
    "cohort",
    "status",
    "n_nuclei",
    "nuclei_per_mm2",
    "tissue_mm2",
    "area_mean_um2",
    "area_std_um2",
    "tissue_mask",
    "outside_frac",
    "outside_nuclei",
    "outside_nuclei_low",
    "outside_nuclei_high",
    "foreign_score",
    "foreign_reasons",
    "error",
)

SUSPECT_FRAC = 0.2
"""A slide with a larger share of bad patches is Unacceptable; it needs checking if the whole interval of its estimate is
above this."""

MAX_DECISIONS_BYTES = 1_000_000
"""Maximum compressed size of a table of decisions that is included in the page: about 2,000 slides with 15 patches each."""

DENSITY_RGB = np.array([[255, 255, 255], [253, 219, 160], [240, 120, 90], [170, 40, 110], [50, 10, 80]], np.float64)
"""Color scale from pale to dark, monotone in lightness so that it is also readable when printed in gray."""


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A slide's pictures for the report as data URIs, or in ``error`` why there are none; ``mask`` shows the tissue mask."""

    thumb: str = ""
    density: str = ""
    density_max: float = 0.0
    width_mm: float = 0.0
    error: str = ""
    mask: str = ""


@dataclass(frozen=True, slots=True)
class ShownPatch:
    """A patch in the report: what was decided (``word``; empty: nothing) or predicted, and its pictures as data URIs."""

    slide_id: str
    word: str
    n_nuclei: int | None
    fail_prob: float | None
    tissue: str
    layer: str


@dataclass(frozen=True, slots=True)
class ReportData:
    """Everything that a report shows.

    Attributes
    ----------
    rows
        The slide table.
    outliers
        Rows of ``qc/outliers.parquet``; empty if `wsiseg qc outliers` has not been run.
    grades
        Grades of slides; empty if nothing is graded yet.
    comments
        Reviewers' comments on slides, by slide id.
    agreement
        Agreement of each pair of reviewers who judged common patches.
    pictures
        Thumbnails by slide id.
    patches
        The patches shown; the run has ``n_patches`` in all.
    estimates, corrected
        Estimated share of bad patches of slides, and of cohorts after a suspects-first review; empty if nothing is predicted.
    predictor
        Description and calibration of the quality model (see ``wsiseg.qc.predict_quality``).
    errors
        Rows of the error table.
    provenance
        (what, value) in the order shown.
    review
        URL of the run's review page, to which the cards link; empty: no links.
    decisions_file, decisions
        File name of the table of all decisions, and its bytes, which are included in the page up to ``MAX_DECISIONS_BYTES``.
    """

    title: str
    subtitle: str
    rows: Sequence[SlideRow]
    outliers: Sequence[FlagRow] = ()
    grades: Sequence[SlideGrade] = ()
    comments: Mapping[str, str] = field(default_factory=dict)
    agreement: Sequence[Agreement] = ()
    pictures: Mapping[str, Thumbnail] = field(default_factory=dict)
    patches: Sequence[ShownPatch] = ()
    n_patches: int = 0
    errors: Sequence[ErrorRow] = ()
    provenance: Sequence[tuple[str, Any]] = ()
    estimates: Mapping[str, ShareEstimate] = field(default_factory=dict)
    corrected: Mapping[str, ShareEstimate] = field(default_factory=dict)
    predictor: Mapping[str, Any] = field(default_factory=dict)
    review: str = ""
    decisions_file: str = ""
    decisions: bytes = b""


def render_report(data: ReportData) -> bytes:
    """Return the report as UTF-8 HTML."""
    folder = files("wsiseg.qc").joinpath("report_page")
    # "</" or "<!--" in the data could end the script element early, so every "<" is escaped.
    text = json.dumps(_plain(_facts(data)), ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    page = folder.joinpath("report.html").read_text(encoding="utf-8")
    parts = {
        "@@TITLE@@": html.escape(data.title),
        "@@CSS@@": folder.joinpath("report.css").read_text(encoding="utf-8"),
        "@@JS@@": folder.joinpath("report.js").read_text(encoding="utf-8"),
        "@@DATA@@": text,
    }
    for key, value in parts.items():
        page = page.replace(key, value, 1)
    return page.encode()


def _facts(data: ReportData) -> dict[str, Any]:
    flags = {r.slide_id: r for r in data.outliers}
    grades = {g.slide_id: g for g in data.grades}
    columns: dict[str, list[Any]] = {name: [getattr(r, name) for r in data.rows] for name in ROW_COLUMNS}
    columns["seconds"] = [_seconds(r) for r in data.rows]
    ids = columns["slide_id"]
    for name in ("round", "tails", "reasons", "note"):
        columns[name] = [getattr(flags.get(i), name, None) for i in ids]
    graded = [grades.get(i) for i in ids]
    of_grade = {"grade": "grade", "n_bad": "n_bad", "n_judged": "n_judged", "n_sampled": "n_patches"}
    of_grade |= {"verdict": "slide_verdict", "bad_frac": "bad_frac", "low": "bad_frac_low", "high": "bad_frac_high"}
    for name, attribute in of_grade.items():
        columns[name] = [None if g is None else getattr(g, attribute) for g in graded]
    estimated = [data.estimates.get(i) for i in ids]
    for name, attribute in (("estimate", "share"), ("estimate_low", "low"), ("estimate_high", "high")):
        columns[name] = [None if e is None else getattr(e, attribute) for e in estimated]
    columns["comment"] = [data.comments.get(i, "") for i in ids]
    names = Thumbnail.__slots__
    return {
        "title": data.title,
        "subtitle": data.subtitle,
        "rows": columns,
        "has_outliers": bool(data.outliers),
        "has_grades": bool(data.grades),
        "agreement": [dataclasses.asdict(a) for a in data.agreement],
        "has_estimates": bool(data.estimates),
        "corrected": {k: [e.share, e.low, e.high, e.n_judged, e.n_patches] for k, e in data.corrected.items()},
        "predictor": dict(data.predictor),
        "pictures": {k: {n: getattr(t, n) for n in names if getattr(t, n)} for k, t in data.pictures.items()},
        "n_pictures": len(data.pictures),
        "patches": [dataclasses.asdict(p) for p in data.patches],
        "n_patches": data.n_patches,
        "errors": [e.columns for e in data.errors],
        "seconds": {s: sum(r.seconds[s] for r in data.rows) for s in STAGES},
        "provenance": [[k, v] for k, v in data.provenance],
        "review": data.review,
        "decisions_file": data.decisions_file,
        "decisions": _packed(data.decisions),
    }


def _packed(data: bytes) -> str:
    """Return the data for the page as base64 of gzip; empty if longer than ``MAX_DECISIONS_BYTES`` compressed."""
    packed = gzip.compress(data, 9, mtime=0) if data else b""
    return base64.b64encode(packed).decode() if len(packed) <= MAX_DECISIONS_BYTES else ""


def _seconds(row: SlideRow) -> float | None:
    known = [getattr(row, f"seconds_{s}") for s in STAGES]
    return round(sum(v for v in known if v is not None), 2) if any(v is not None for v in known) else None


def _plain(value: Any) -> Any:
    """Return the value in a form that JSON can store: NaN and infinity as None, floats rounded to six digits."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    return value


def worst_first(
    rows: Sequence[SlideRow],
    outliers: Sequence[FlagRow],
    grades: Sequence[SlideGrade],
    estimates: Mapping[str, ShareEstimate] | None = None,
) -> list[str]:
    """Return the ids of slides that need checking, worst first; slides get pictures in this order until the limit is reached.

    Slides are sorted by, in this order: failed; judged unacceptable; graded Problematic or Unacceptable, then by share of bad
    patches; partly failed or suspect; whole interval of the estimated share above ``SUSPECT_FRAC``; flagged as outlier, by
    round and number of reasons; slide id. A slide without any of these is left out.
    """
    suspects = {s for s, e in (estimates or {}).items() if e.low > SUSPECT_FRAC}
    flags = {r.slide_id: r for r in outliers}
    graded = {g.slide_id: g for g in grades}
    ranked = []
    for row in rows:
        slide_id = row.slide_id
        flag, grade = flags.get(slide_id), graded.get(slide_id)
        group = GRADES.index(grade.grade) if grade is not None and grade.grade in GRADES else 0
        bad_frac = 0.0 if grade is None or math.isnan(grade.bad_frac) else grade.bad_frac
        verdict = grade is not None and grade.slide_verdict == "unacceptable"
        round_ = {0: 0, 1: 2, 2: 1}[0 if flag is None else flag.round]
        unsure = row.status in ("partial", "suspect")
        key = (
            row.status == "failed",
            verdict,
            group,
            bad_frac,
            unsure,
            slide_id in suspects,
            round_,
            0 if flag is None else len(flag.tails.split()),
        )
        causes = (row.status == "failed", verdict, group >= GRADES.index("Problematic"), unsure)
        if any(causes) or slide_id in suspects or round_:
            ranked.append((tuple(-float(v) for v in key), slide_id))
    return [slide_id for _, slide_id in sorted(ranked)]


def data_uri(data: bytes, kind: str) -> str:
    """Return bytes as a base64 data URI; ``kind`` is the media type, such as ``image/png``."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def density_picture(
    cx: npt.NDArray[np.floating[Any]],
    cy: npt.NDArray[np.floating[Any]],
    slide_size_px: tuple[int, int],
    mpp: float,
    shape: tuple[int, int],
) -> tuple[bytes, float]:
    """Return a map of nuclei per mm2 as PNG bytes, and the nuclei per mm2 of its darkest color.

    Parameters
    ----------
    cx, cy : float (N,)
        Centroids, level-0 px.
    slide_size_px
        (width, height), level-0 px.
    shape
        (height, width) of the picture, px. Nuclei are counted in cells of 4 by 4 px; the scale ends at the 99.5th percentile of
        the cells that are not empty.
    """
    from PIL import Image

    height, width = shape
    rows, columns = max(1, height // 4), max(1, width // 4)
    counts, _, _ = np.histogram2d(cy, cx, (rows, columns), ((0, slide_size_px[1]), (0, slide_size_px[0])))
    cell_mm2 = (slide_size_px[0] / columns) * (slide_size_px[1] / rows) * mpp * mpp * 1e-6
    density = counts / cell_mm2
    top = float(np.percentile(density[counts > 0], 99.5)) if counts.any() else 1.0
    place = np.clip(density / top, 0, 1) * (len(DENSITY_RGB) - 1)
    low = np.minimum(place.astype(np.int64), len(DENSITY_RGB) - 2)
    rgb = DENSITY_RGB[low] + (DENSITY_RGB[low + 1] - DENSITY_RGB[low]) * (place - low)[..., None]
    picture = Image.fromarray(np.rint(rgb).astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.quantize(64).save(buffer, "PNG", optimize=True)
    return buffer.getvalue(), top
