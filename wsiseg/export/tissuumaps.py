"""Write a polygon table as a folder for TissUUmaps: slide, centers of nuclei as markers, their outlines as regions.

By the published schema of ``.tmap`` files (https://tissuumaps.github.io/TissUUmaps-docs, schema 1.0). Markers are in level-0
px, which ``coord_factor`` turns into px of the image; regions are in px of the image.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from wsiseg.errors import EmptyExportError
from wsiseg.export.classes import CLASS_RGB, shown_classes
from wsiseg.export.pyramid import Progress, Pyramid, write_pyramid
from wsiseg.export.text import concat, decimal_text, join_rings, number_text, text_bytes
from wsiseg.log import log
from wsiseg.results.reopen import slide_of_table
from wsiseg.tables import atomic_folder
from wsiseg.tables.source import Exported, NucleiFile, Selection, iter_chunks

__all__ = ["MAX_OUTLINES", "write_tissuumaps"]

MAX_OUTLINES = 200_000
"""TissUUmaps holds all regions in the browser's memory; more than this many are left out."""

NOT_MARKERS = ("geometry", "bbox", "nucleus_id", "cx", "cy", "tile_id", "class_name", "import_flags")
COLOR_BY = "area_um2"
Colors = dict[str, tuple[int, int, int]]


def write_tissuumaps(
    source: NucleiFile,
    out: Path,
    selection: Selection | None = None,
    *,
    image_mpp: float = 0.5,
    path_map: Sequence[str] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write the folder ``out``: ``project.tmap``, ``slide.tif``, ``nuclei.csv``; of up to ``MAX_OUTLINES``, ``nuclei.geojson``.

    Parameters
    ----------
    image_mpp
        um per px of the image; the slide's own where that is coarser.
    path_map
        New paths of slides that were moved.
    progress
        Called after each tile of the image.

    Raises
    ------
    EmptyExportError
        The selection has no nucleus.
    SlideOpenError
        The slide is not there, or is not the file that was segmented.
    """
    selection = selection or Selection()
    with atomic_folder(out, overwrite=overwrite) as folder:
        classes = _write_markers(source, folder / "nuclei.csv", selection)
        n = sum(classes.values())
        if n == 0:
            raise EmptyExportError(f"{source.path}: there is no nucleus to export, and TissUUmaps shows no empty markers.")
        with closing(slide_of_table(source.path, path_map)) as slide:
            image = write_pyramid(slide, folder / "slide.tif", image_mpp, progress=progress)
        colors = {c: CLASS_RGB[k % len(CLASS_RGB)] for k, c in enumerate(classes)}
        outlines = n <= MAX_OUTLINES
        if outlines:
            _write_outlines(source, folder / "nuclei.geojson", selection, image.scale, colors)
        else:
            log.warning(
                "slide %s: outlines are left out, for TissUUmaps shows at most %s, and these are %s (choose a --region)",
                source.slide_id, f"{MAX_OUTLINES:,}", f"{n:,}",
            )  # fmt: skip
        project = _project(source, image, colors, outlines)
        (folder / "project.tmap").write_text(json.dumps(project, indent=1, ensure_ascii=False), encoding="utf-8")
    return Exported(out, n)


def _write_markers(source: NucleiFile, path: Path, selection: Selection) -> dict[str, int]:
    """Write centers and measurements; return how many nuclei each class has."""
    import pyarrow as pa
    from pyarrow import csv

    names = [c for c in source.columns if c not in NOT_MARKERS]
    classes: dict[str, int] = {}
    with path.open("wb") as stream:
        stream.write((",".join(["nucleus_id", "x", "y", "class", *names]) + "\n").encode())
        for chunk in iter_chunks(source, selection, [*names, "class_name"]):
            kinds = shown_classes(chunk)
            for item in kinds.value_counts().to_pylist():
                classes[item["values"]] = classes.get(item["values"], 0) + item["counts"]
            first = [chunk.table[c] for c in ("nucleus_id", "cx", "cy")]
            table = pa.table([*first, kinds, *(chunk.table[c] for c in names)], ["nucleus_id", "x", "y", "class", *names])
            csv.write_csv(table, stream, csv.WriteOptions(include_header=False))
    return classes


def _write_outlines(source: NucleiFile, path: Path, selection: Selection, scale: float, colors: Colors) -> None:
    """Write one feature a nucleus, in px of the image."""
    import pyarrow as pa

    kinds = {c: json.dumps({"classification": {"name": c, "color": rgb}, "isLocked": False})[1:] for c, rgb in colors.items()}
    empty = True
    with path.open("wb") as stream:
        stream.write(b'{"type":"FeatureCollection","features":[')
        for chunk in iter_chunks(source, selection, ["class_name"]):
            x, y = (decimal_text(chunk.xy[:, axis] * scale, 2, trim=True) for axis in (0, 1))
            text = text_bytes(
                concat(
                    ',\n{"type":"Feature","geometry":{"type":"Polygon","coordinates":[[[',
                    join_rings(x, y, chunk.ring_offsets, ",", "],["),
                    ']]]},"properties":{"name":"',
                    number_text(chunk.table["nucleus_id"]),
                    '",',
                    pa.array([kinds[c] for c in shown_classes(chunk).to_pylist()], pa.string()),
                    "}",
                )
            )
            stream.write(text[1:] if empty else text)
            empty = False
        stream.write(b"\n]}\n")


def _project(source: NucleiFile, image: Pyramid, colors: Colors, outlines: bool) -> dict[str, Any]:
    by_class = len(colors) > 1
    hexadecimal = {c: f"#{red:02x}{green:02x}{blue:02x}" for c, (red, green, blue) in colors.items()}
    header = {
        "X": "x", "Y": "y", "gb_col": "class", "gb_name": None, "cb_cmap": "interpolateViridis", "cb_col": COLOR_BY,
        "cb_gr_dict": json.dumps(hexadecimal, ensure_ascii=False), "coord_factor": float(np.float64(image.scale)),
        "scale_factor": 1.0, "shape_fixed": "disc", "opacity": 0.8, "tooltip_fmt": "",
    }  # fmt: skip
    radios = {
        "cb_col": not by_class, "cb_gr": by_class, "cb_gr_rand": False, "cb_gr_dict": by_class, "cb_gr_key": False,
        "pie_check": False, "scale_check": False, "shape_col": False, "shape_gr": False, "shape_gr_rand": False,
        "shape_gr_dict": False, "shape_fixed": True, "opacity_check": False, "_no_outline": True,
    }  # fmt: skip
    markers = {
        "title": "Nuclei", "name": "Nuclei", "comment": f"centers, colored by {'class' if by_class else COLOR_BY}",
        "autoLoad": True, "hideSettings": True, "uid": "nuclei", "expectedHeader": header, "expectedRadios": radios,
        "path": "nuclei.csv", "settings": [],
    }  # fmt: skip
    regions = {
        "title": "Outlines of nuclei", "comment": "loads when clicked", "autoLoad": False, "path": "nuclei.geojson",
        "settings": [],
    }  # fmt: skip
    return {
        "schemaVersion": "1.0",
        "filename": source.slide_id,
        "mpp": image.mpp,
        "layers": [{"name": source.slide_id, "tileSource": "slide.tif.dzi"}],
        "layerOpacities": {"0": 1},
        "layerVisibilities": {"0": True},
        "markerFiles": [markers],
        "regionFiles": [regions] if outlines else [],
        "compositeMode": "source-over",
    }
