"""``wsiseg qc report``: write a run's report, one HTML file with thumbnails of the slides that need checking."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.errors import InputError, WsisegError
from wsiseg.log import log
from wsiseg.qc.agreement import Agreement
from wsiseg.qc.decisions import decisions_csv
from wsiseg.qc.grades import SlideGrade
from wsiseg.qc.marks import PATCH_MARKS, decide, read_all_marks
from wsiseg.qc.patches import read_picture
from wsiseg.qc.prediction import stored_prediction
from wsiseg.qc.report import ReportData, ShownPatch, Thumbnail, data_uri, density_picture, render_report, worst_first
from wsiseg.qc.review_run import jpeg
from wsiseg.qc.rows import FlagRow, PatchRow, stored_rows
from wsiseg.qc.runs import QcRun, grade_run, open_row_slide, size_and_mpp
from wsiseg.qc.shown_paths import Row, shorten_paths, shorten_row_paths
from wsiseg.read import TissueMask
from wsiseg.rows import ErrorRow, SlideRow
from wsiseg.tables import atomic_write_bytes, read_nuclei

__all__ = ["write_report"]

THUMBNAIL_PX = 300
SHOW_ALL_SLIDES = 36
"""Runs of up to this many slides have a picture of every slide, larger runs only of slides that need checking."""
PATCH_QUALITY = 80
MASK_RGB = (0, 110, 60)
"""Green, a hue that hematoxylin, eosin and DAB do not have."""


def write_report(run: QcRun, out: Path | None = None, *, max_thumbnails: int = 200, max_patches: int = 60) -> Path:
    """Write the report of a run and return its path. The report names QC steps that have not been run yet.

    The table of all decisions is written next to it, under the same name with the suffix ``.decisions.csv``. Both may be read
    on other machines, so paths of this machine are reduced to file names (``wsiseg.qc.shown_paths``).

    Parameters
    ----------
    out
        HTML file; ``None``: ``RUN/qc/report.html``.
    max_thumbnails, max_patches
        Limits on the number of pictures, which make up most of the file's size.

    Raises
    ------
    FormatError
        A table or marks file is damaged or of another run.
    """
    index = stored_rows(PatchRow, run.qc / "patches.parquet")
    grades, agreement, comments = _grades(run, index)
    prediction = stored_prediction(run)
    estimates = {} if prediction is None else prediction.slides
    fail_prob = {} if prediction is None else prediction.fail_prob
    place = {r.slide_id: r.path for r in run.rows}

    def shown(rows: Sequence[Row]) -> list[Row]:
        return [shorten_row_paths(r, run.folder.root, place.get(r.slide_id, "")) for r in rows]

    rows, outliers = shown(run.rows), shown(stored_rows(FlagRow, run.qc / "outliers.parquet"))
    grades = [
        dataclasses.replace(g, reason=shorten_paths(g.reason, run.folder.root, (place.get(g.slide_id, ""),))) for g in grades
    ]
    order = worst_first(rows, outliers, grades, estimates)
    if len(run.rows) <= SHOW_ALL_SLIDES:
        order += [r.slide_id for r in run.rows if r.slide_id not in set(order)]
    pictures = {slide_id: _thumbnail(run, run.row(slide_id)) for slide_id in order[:max_thumbnails]}
    path = out if out is not None else run.qc / "report.html"
    table = path.with_suffix(".decisions.csv")
    marks = (read_all_marks(run.marks, run.digest, "slides"), read_all_marks(run.marks, run.digest, "patches"))
    decisions = decisions_csv(rows, outliers, grades, shown(index), (estimates, fail_prob), marks)
    data = ReportData(
        title=f"Segmentation report: {run.folder.root.resolve().name}",
        subtitle=_subtitle(run),
        rows=rows,
        outliers=outliers,
        grades=grades,
        comments=comments,
        agreement=agreement,
        pictures=pictures,
        patches=_patches(run, index, max_patches, fail_prob),
        n_patches=len(index),
        errors=shown(stored_rows(ErrorRow, run.folder.root / "errors.parquet", "failures")),
        provenance=_provenance(run),
        estimates=estimates,
        corrected={} if prediction is None else prediction.cohorts,
        predictor={} if prediction is None else _predictor(run, prediction.facts),
        review=f"http://127.0.0.1:{run.review_port}",
        decisions_file=table.name,
        decisions=decisions,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(table, decisions)
    atomic_write_bytes(path, render_report(data))
    return path


def _subtitle(run: QcRun) -> str:
    created = (run.record.created or "")[:16].replace("T", " ")
    of_when = f" of {created}" if created else ""
    return f"{len(run.rows):,} slides · wsiseg {run.record.wsiseg or '?'} · run {run.digest}{of_when}"


def _predictor(run: QcRun, facts: Mapping[str, Any]) -> dict[str, Any]:
    return {**facts, "notes": [shorten_paths(note, run.folder.root) for note in facts.get("notes", ())]}


def _grades(run: QcRun, index: Sequence[PatchRow]) -> tuple[list[SlideGrade], list[Agreement], dict[str, str]]:
    """Return grades (empty if nothing was judged), agreement of reviewers, and their comments by slide id."""
    slide_marks = read_all_marks(run.marks, run.digest, "slides")
    comments = {item: m.comment for by_item in slide_marks.values() for item, m in by_item.items() if m.comment}
    judged = any(slide_marks.values()) or any(read_all_marks(run.marks, run.digest, "patches").values())
    if not judged or not index:
        return [], [], comments
    summary = grade_run(run, write=False)
    return summary.grades, summary.agreement, comments


def _thumbnail(run: QcRun, row: SlideRow) -> Thumbnail:
    """Return a slide's pictures. The thumbnail is stored, so that the report can be made again without the slide file."""
    from PIL import Image

    slide_id = row.slide_id
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
            thumb = image.convert("RGB")
        size, mpp = size_and_mpp(row)
    except (WsisegError, OSError) as err:
        reason = shorten_paths(str(err), run.folder.root, (row.path,))
        return Thumbnail(error=f"No picture: {reason}")
    mask = _mask_picture(run, slide_id, thumb, size)
    found = Thumbnail(data_uri(data, "image/jpeg"), width_mm=size[0] * mpp / 1000, mask=mask)
    table = run.folder.table(slide_id)
    if not row.n_nuclei or not table.is_file():
        return found
    nuclei = read_nuclei(table, columns=["cx", "cy"])
    shape = (thumb.height, thumb.width)
    density, top = density_picture(np.asarray(nuclei["cx"]), np.asarray(nuclei["cy"]), size, mpp, shape)
    return dataclasses.replace(found, density=data_uri(density, "image/png"), density_max=top)


def _mask_picture(run: QcRun, slide_id: str, thumb: Any, slide_size_px: tuple[int, int]) -> str:
    """Return a picture of the tissue mask as a data URI: the run's own if stored, else its outline on the thumbnail."""
    from PIL import Image

    drawn, stored = run.folder.mask_jpg(slide_id), run.folder.tissue_png(slide_id)
    try:
        if drawn.is_file():
            with Image.open(drawn) as image:
                picture = image.convert("RGB")
            picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
        elif stored.is_file():
            picture = Image.fromarray(outlined(np.asarray(thumb), TissueMask.load(stored), slide_size_px))
        else:
            return ""
    except (WsisegError, OSError) as err:
        log.warning("slide %s: its tissue mask is left out of the report: %s", slide_id, err)
        return ""
    return data_uri(jpeg(picture, PATCH_QUALITY), "image/jpeg")


def outlined(rgb: npt.NDArray[np.uint8], tissue: TissueMask, slide_size_px: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Return a picture of a whole slide, uint8 (h, w, 3), with the mask's border drawn on it and its outside paled."""
    from scipy import ndimage

    h, w = rgb.shape[:2]
    x = ((np.arange(w) + 0.5) * slide_size_px[0] / w - tissue.x0) / tissue.px_w
    y = ((np.arange(h) + 0.5) * slide_size_px[1] / h - tissue.y0) / tissue.px_h
    rows, columns = np.floor(y).astype(np.int64), np.floor(x).astype(np.int64)
    there = ((rows >= 0) & (rows < tissue.mask.shape[0]))[:, None] & ((columns >= 0) & (columns < tissue.mask.shape[1]))
    inside = tissue.mask[np.clip(rows, 0, tissue.mask.shape[0] - 1)][:, np.clip(columns, 0, tissue.mask.shape[1] - 1)] > 0
    inside &= there
    border = ndimage.binary_dilation(inside) & ~ndimage.binary_erosion(inside, border_value=1)
    out = np.where(inside[..., None], rgb, 255 - (255 - rgb.astype(np.uint16)) // 2).astype(np.uint8)
    out[border] = MASK_RGB
    return out


def _patches(run: QcRun, index: Sequence[PatchRow], limit: int, fail_prob: Mapping[str, float]) -> list[ShownPatch]:
    """Return the patches to show: not adequate, then unsure, then others in the order of their names, which is random."""
    words = decide(read_all_marks(run.marks, run.digest, "patches"), PATCH_MARKS[0], PATCH_MARKS[1])
    rank = {"not_adequate": 0, "unsure": 1}
    shown = sorted((e for e in index if e.file), key=lambda e: (rank.get(words.get(e.patch_id, ""), 2), e.patch_id))
    out = []
    for e in shown[:limit]:
        try:
            tissue = data_uri(_as_jpeg(read_picture(run.qc, e.file, f"{e.patch_id}.png")), "image/jpeg")
            layer = data_uri(read_picture(run.qc, e.file, f"{e.patch_id}.contours.png"), "image/png")
        except InputError:
            continue
        word = words.get(e.patch_id, "")
        out.append(ShownPatch(e.slide_id, word, e.n_nuclei, fail_prob.get(e.patch_id), tissue, layer))
    return out


def _as_jpeg(png: bytes) -> bytes:
    import io

    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        return jpeg(image.convert("RGB"), PATCH_QUALITY)


def _provenance(run: QcRun) -> list[tuple[str, Any]]:
    record = run.record
    facts: list[tuple[str, Any]] = [
        ("run folder", run.folder.root.resolve().name),
        ("run digest", run.digest),
        ("wsiseg", record.wsiseg),
        ("created", record.created or ""),
        ("host", ", ".join(v for v in (record.host.name, record.host.platform, record.host.python) if v)),
    ]
    facts += [
        (str(k), shorten_paths(json.dumps(v) if isinstance(v, dict | list) else "" if v is None else str(v), run.folder.root))
        for k, v in sorted(record.results.items())
    ]
    table = run.folder.root / "slides.parquet"
    facts.append(("slides.parquet sha256", hashlib.sha256(table.read_bytes()).hexdigest()))
    index_json = run.qc / "patches.json"
    if index_json.is_file():
        facts.append(("patch sample", index_json.read_text(encoding="utf-8")))
    facts.append(("report made", datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")))
    return facts
