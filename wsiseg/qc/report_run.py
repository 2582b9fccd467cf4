"""``wsiseg qc report``: a run folder -> one HTML file, with thumbnails of the slides that give cause to look."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsiseg.errors import InputError, WsisegError
from wsiseg.qc.agreement import Agreement
from wsiseg.qc.grades import SlideGrade
from wsiseg.qc.marks import PATCH_MARKS, decide, read_all_marks
from wsiseg.qc.patches import read_picture
from wsiseg.qc.prediction import stored_prediction
from wsiseg.qc.release import read_rows
from wsiseg.qc.report import ReportData, Thumbnail, data_uri, density_picture, render_report, worst_first
from wsiseg.qc.review_run import jpeg
from wsiseg.qc.runs import QcRun, grade_run, open_row_slide
from wsiseg.tables import atomic_write_bytes, read_nuclei

__all__ = ["write_report"]

THUMBNAIL_PX = 300
SHOW_ALL_SLIDES = 24
"""A run of up to this many slides is shown with all slides, else only those with a reason to look."""
PATCH_QUALITY = 80


def write_report(run: QcRun, out: Path | None = None, *, max_thumbnails: int = 200, max_patches: int = 60) -> Path:
    """Write the report of a run and return its path. Whatever QC has not been done yet is left out and said.

    Parameters
    ----------
    out
        HTML file; ``None``: ``RUN/qc/report.html``.
    max_thumbnails, max_patches
        Caps on pictures, which make up the file's size.

    Raises
    ------
    FormatError
        A table or marks file is damaged or of another run.
    """
    outliers = read_rows(run.qc / "outliers.parquet")
    index = read_rows(run.qc / "patches.parquet")
    grades, agreement, comments = _grades(run, index)
    prediction = stored_prediction(run)
    estimates = {} if prediction is None else prediction.slides
    order = worst_first(run.rows, outliers, grades, estimates)
    if len(run.rows) <= SHOW_ALL_SLIDES:
        order += [r["slide_id"] for r in run.rows if r["slide_id"] not in set(order)]
    rows = {r["slide_id"]: r for r in run.rows}
    pictures = {slide_id: _thumbnail(run, rows[slide_id]) for slide_id in order[:max_thumbnails] if slide_id in rows}
    created = run.record.get("created") or ""
    data = ReportData(
        title=f"Segmentation report: {run.folder.root.resolve().name}",
        subtitle=f"{len(run.rows):,} slides · wsiseg {run.record.get('wsiseg', '?')} · run {run.digest}"
        + (f" of {str(created)[:16].replace('T', ' ')}" if created else ""),
        rows=run.rows,
        outliers=outliers,
        grades=grades,
        comments=comments,
        agreement=agreement,
        pictures=pictures,
        patches=_patches(run, index, max_patches, {} if prediction is None else prediction.fail_prob),
        n_patches=len(index),
        errors=read_rows(run.folder.root / "errors.parquet"),
        provenance=_provenance(run),
        estimates=estimates,
        corrected={} if prediction is None else prediction.cohorts,
        predictor={} if prediction is None else prediction.facts,
    )
    path = out if out is not None else run.qc / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, render_report(data))
    return path


def _grades(run: QcRun, index: Sequence[dict[str, Any]]) -> tuple[list[SlideGrade], list[Agreement], dict[str, str]]:
    """Return grades (none where nobody has judged anything), agreement of reviewers, and what they wrote about slides."""
    slide_marks = read_all_marks(run.marks, run.digest, "slides")
    comments = {item: m.comment for by_item in slide_marks.values() for item, m in by_item.items() if m.comment}
    judged = any(slide_marks.values()) or any(read_all_marks(run.marks, run.digest, "patches").values())
    if not judged or not index:
        return [], [], comments
    summary = grade_run(run, write=False)
    return summary.grades, summary.agreement, comments


def _thumbnail(run: QcRun, row: dict[str, Any]) -> Thumbnail:
    """Return a slide's thumbnail and density map; the thumbnail is kept, so the report can be made again without the slide."""
    from PIL import Image

    slide_id = row["slide_id"]
    kept = run.qc / "thumbs" / f"{slide_id}.jpg"
    try:
        if not kept.is_file():
            slide = open_row_slide(run, row)
            try:
                rgb = slide.thumbnail(2 * THUMBNAIL_PX)
            finally:
                slide.close()
            picture = Image.fromarray(rgb)
            picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
            kept.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_bytes(kept, jpeg(picture, PATCH_QUALITY))
        data = kept.read_bytes()
        with Image.open(kept) as image:
            width, height = image.size
    except (WsisegError, OSError) as err:
        return Thumbnail(error=f"No picture: {err}")
    size = (row["width_px"], row["height_px"])
    thumb = Thumbnail(thumb=data_uri(data, "image/jpeg"), width_mm=size[0] * row["mpp"] / 1000)
    table = run.folder.table(slide_id)
    if not row.get("n_nuclei") or not table.is_file():
        return thumb
    found = read_nuclei(table, columns=["cx", "cy"])
    density, top = density_picture(np.asarray(found["cx"]), np.asarray(found["cy"]), size, row["mpp"], (height, width))
    return Thumbnail(thumb.thumb, data_uri(density, "image/png"), top, thumb.width_mm)


def _patches(run: QcRun, index: Sequence[dict[str, Any]], limit: int, fail_prob: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return the patches shown: not adequate, unsure, then a sample of the rest (the order of blinded names is random)."""
    words = decide(read_all_marks(run.marks, run.digest, "patches"), PATCH_MARKS[0], PATCH_MARKS[1])
    rank = {"not_adequate": 0, "unsure": 1}
    shown = sorted((e for e in index if e["file"]), key=lambda e: (rank.get(words.get(e["patch_id"], ""), 2), e["patch_id"]))
    out = []
    for e in shown[:limit]:
        try:
            tissue = read_picture(run.qc, e["file"], f"{e['patch_id']}.png")
            layer = read_picture(run.qc, e["file"], f"{e['patch_id']}.contours.png")
        except InputError:
            continue
        out.append({
            "slide_id": e["slide_id"],
            "word": words.get(e["patch_id"], ""),
            "n_nuclei": e["n_nuclei"],
            "fail_prob": fail_prob.get(e["patch_id"]),
            "tissue": data_uri(_as_jpeg(tissue), "image/jpeg"),
            "layer": data_uri(layer, "image/png"),
        })  # fmt: skip
    return out


def _as_jpeg(png: bytes) -> bytes:
    import io

    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        return jpeg(image.convert("RGB"), PATCH_QUALITY)


def _provenance(run: QcRun) -> list[tuple[str, Any]]:
    record = run.record
    facts: list[tuple[str, Any]] = [
        ("run folder", str(run.folder.root.resolve())),
        ("run digest", run.digest),
        ("wsiseg", record.get("wsiseg", "")),
        ("created", record.get("created", "")),
        ("host", ", ".join(str(v) for v in (record.get("host") or {}).values())),
    ]
    facts += [
        (str(k), json.dumps(v) if isinstance(v, dict | list) else "" if v is None else v)
        for k, v in sorted((record.get("results") or {}).items())
    ]
    table = run.folder.root / "slides.parquet"
    facts.append(("slides.parquet sha256", hashlib.sha256(table.read_bytes()).hexdigest()))
    index_json = run.qc / "patches.json"
    if index_json.is_file():
        facts.append(("patch sample", index_json.read_text(encoding="utf-8")))
    facts.append(("report made", datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")))
    return facts
