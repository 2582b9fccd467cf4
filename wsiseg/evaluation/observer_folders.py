"""``wsiseg evaluate observers``: report the agreement of several people's annotations, each in a folder."""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsiseg.errors import FormatError
from wsiseg.evaluation.inputs import holds_labels, load_instances
from wsiseg.evaluation.observers import Reading, compare_observers, observer_cells, observer_rows, observer_tests
from wsiseg.evaluation.paths import instance_files
from wsiseg.evaluation.reports import Report, TableText, organs_of, paired_cells, write_json

__all__ = ["observer_report"]

_CRYONUSEG_NAME = re.compile(r"Human_([A-Za-z]+)_\d+", re.IGNORECASE)
_ROI_FOLDER_ENDS = ("_roiset", "_rois", "")


def observer_report(
    readings: Sequence[str], *, images: Path | None = None, organs: Path | None = None, out: Path | None = None
) -> Report:
    """Compare readings of the same images with one another.

    Parameters
    ----------
    readings
        ``FOLDER`` or ``NAME=FOLDER``; two folders with the same name are two readings by one person (intra-observer). A folder
        contains label images (also in the unified layout), polygon files, ImageJ ROI zips ``<id>.zip`` or folders of ``.roi``.
    images
        Folder of the pictures; needed if no reading is a label image, because ROIs do not state the size of their image.
    organs
        CSV ``image,organ``; default: from the ``INFO.json`` of a folder, else from names like CryoNuSeg's
        ``Human_<Organ>_<n>``.
    out
        JSON file for all rows, tests and scores per image.

    Raises
    ------
    FormatError
        A folder has no readable file, the size of an image is unknown, or two readings have no image in common.
    """
    named = [_named(text) for text in readings]
    files = [_reading_files(folder) for _, folder in named]
    wanted = {image for mine in files for image in mine if sum(image in f for f in files) > 1}
    shapes = _shapes(files, wanted, images)
    read: list[Reading] = []
    for (name, _), mine in zip(named, files, strict=True):
        again = sum(r.observer == name for r in read)
        labels = {image: _labels(path, shapes.get(image), image) for image, path in mine.items() if image in wanted}
        read.append(Reading(name, f"{name} ({again + 1})" if again else name, labels))
    facts = _organs(organs, [folder for _, folder in named], wanted)
    pairs = compare_observers(read, facts)
    tests = observer_tests(pairs)
    report = Report([TableText("agreement of observers, mean ± sd over images", *observer_cells(pairs))])
    if tests:
        headings = ["score", "pair", "against", "images", "mean", "median", "p"]
        rows = [paired_cells(t.test, (t.score, t.first, t.second)) for t in tests]
        report.tables.append(TableText("two-sided Wilcoxon signed-rank between pairs, image by image", headings, rows))
    if out is not None:
        scores = [
            {"pair": p.name, "kind": p.kind, "image": i, "organ": o, **s.as_dict()}
            for p in pairs
            for i, o, s in zip(p.images, p.organs, p.scores, strict=True)
        ]
        rows_of_pairs = [dataclasses.asdict(r) for p in pairs for r in observer_rows(p)]
        stated = [{"score": t.score, "first": t.first, "second": t.second, **dataclasses.asdict(t.test)} for t in tests]
        write_json(out, {"rows": rows_of_pairs, "tests": stated, "images": scores})
        report.lines.append(f"scores: {out}")
    return report


def _named(text: str) -> tuple[str, Path]:
    """Split ``NAME=FOLDER`` into name and folder, unless a folder exists under the whole text."""
    name, found, rest = text.partition("=")
    path = Path(text) if Path(text).exists() or not found else Path(rest)
    if not path.is_dir():
        raise FormatError(f"evaluate observers: no folder {path}. Expected FOLDER or NAME=FOLDER.")
    return (name if found and path == Path(rest) else path.name), path


def _reading_files(folder: Path) -> dict[str, Path]:
    """Return the file (or folder of ROIs) of each image of a reading."""
    found = dict(instance_files(folder))
    found.pop("", None)
    for path in sorted(folder.iterdir()):
        stem = path.stem
        if path.is_dir() and next(path.glob("*.roi"), None):
            stem = next(path.name.removesuffix(end) for end in _ROI_FOLDER_ENDS if path.name.endswith(end))
        elif path.suffix.lower() != ".zip":
            continue
        found.setdefault(stem, path)
    if not found:
        raise FormatError(f"{folder}: no label image, polygon file, ROI zip or folder of .roi files.")
    return found


def _is_roi(path: Path) -> bool:
    return path.is_dir() or path.suffix.lower() == ".zip"


def _shapes(files: Sequence[Mapping[str, Path]], wanted: set[str], pictures: Path | None) -> dict[str, tuple[int, int]]:
    """Return (H, W) by image: of the picture, else of a reading that is a label image."""
    shapes: dict[str, tuple[int, int]] = {}
    beside = {p.stem: p for p in sorted(pictures.iterdir()) if p.suffix.lower() in {".png", ".tif", ".jpg"}} if pictures else {}
    for image in wanted:
        if image in beside:
            with Image.open(beside[image]) as picture:
                shapes[image] = (picture.height, picture.width)
            continue
        maps = [mine[image] for mine in files if image in mine and holds_labels(mine[image])]
        if maps:
            height, width = load_instances(maps[0]).shape
            shapes[image] = (height, width)
    return shapes


def _labels(path: Path, shape: tuple[int, int] | None, image: str) -> NDArray[np.int32]:
    if holds_labels(path):
        return load_instances(path)
    if shape is None:
        raise FormatError(
            f"{path}: outlines do not state the size of image {image}. Give the folder of pictures: --images FOLDER."
        )
    if _is_roi(path):
        from wsiseg.datasets.formats import roi_labels

        return roi_labels(path, shape)
    return load_instances(path, shape)


def _organs(table: Path | None, folders: Sequence[Path], images: set[str]) -> dict[str, str]:
    if table is not None:
        try:
            with table.open(newline="", encoding="utf-8-sig") as file:
                return {row["image"]: row["organ"] for row in csv.DictReader(file)}
        except (OSError, UnicodeDecodeError, csv.Error, KeyError) as err:
            raise FormatError(f"{table}: expected a CSV with columns image and organ ({err}).") from err
    stated = {image: organ for folder in folders for image, organ in organs_of(folder).items()}
    for image in images - set(stated):
        match = _CRYONUSEG_NAME.match(image)
        if match:
            stated[image] = match.group(1)
    return stated
