"""Write and read the format of the QuIP / TCIA release (Hou et al. 2020): one CSV and one JSON for every 4000 px tile.

``<slide file>/<x>_<y>_<w>_<h>_<mpp>_<scale>-features.csv`` has rows ``AreaInPixels,PhysicalSize,Polygon``; a polygon is
``[x0:y0:x1:y1:...]`` in level-0 px of the whole slide, one decimal, not closed. The file ``-algmeta.json`` of the same name
describes the analysis.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wsiseg.errors import FormatError, InputError
from wsiseg.export.incoming import Flag, Incoming, Provenance, Source, closed
from wsiseg.export.text import concat, decimal_text, join_rings, text_bytes
from wsiseg.tables import atomic_folder
from wsiseg.tables.outlines import MAX_COORDINATE_PX
from wsiseg.tables.source import Chunk, Exported, NucleiFile, Selection, iter_chunks

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["QuipTile", "parse_tile_name", "read_quip", "write_quip"]

HEADER = b"AreaInPixels,PhysicalSize,Polygon\n"
SUFFIX = "-features.csv"
DATE = "%Y-%m-%d_%H:%M:%S"

FIXED_ON = datetime.datetime(2019, 12, 7)
"""Until this day the QuIP pipeline scaled tiles that are not square wrongly (``fix_old_data/one_pass_fix.py`` in its
repository)."""

TILE_MARGIN_PX = 2.0
"""The old pipeline segmented tile by tile, so a polygon that extends further beyond its tile than this has wrong
coordinates."""


@dataclass(frozen=True, slots=True)
class QuipTile:
    """The numbers in the name of a tile's files: origin and size in level-0 px, um per px, and the factor of resizing."""

    x: int
    y: int
    w: int
    h: int
    mpp: float
    scale: float

    @property
    def stem(self) -> str:
        """File name without ``-features.csv``."""
        return f"{self.x}_{self.y}_{self.w}_{self.h}_{self.mpp:.6g}_{self.scale:g}"


def parse_tile_name(path: Path) -> QuipTile:
    """Return the numbers of a file name. Raises ``FormatError`` if it is not six numbers joined by ``_``."""
    fields = path.name.removesuffix(SUFFIX).split("_")
    try:
        x, y, w, h = (int(f) for f in fields[:4])
        mpp, scale = (float(f) for f in fields[4:])
        if w <= 0 or h <= 0 or x < 0 or y < 0 or not 0 < mpp < 100 or not 0 < scale < 100:
            raise ValueError("a number is out of its range")
    except ValueError as err:
        raise FormatError(f"{path}: expected a name <x>_<y>_<w>_<h>_<mpp>_<scale>{SUFFIX} ({err}).") from err
    return QuipTile(x, y, w, h, mpp, scale)


def write_quip(
    source: NucleiFile,
    out: Path,
    selection: Selection | None = None,
    *,
    tile_px: int = 4000,
    executed: datetime.datetime | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write ``out/<slide file>/`` in the format of the QuIP release; a nucleus is in the tile that contains its centroid.

    Parameters
    ----------
    out
        Folder in which the folder of the slide is made.
    tile_px
        Side of a tile, level-0 px; the grid begins at (0, 0).
    executed
        Time of the analysis, for the JSON; default: the time at which the table was written.
    overwrite
        Replace the slide's folder if it exists.

    Notes
    -----
    Vertices are pixel corners, whereas the release has pixel centers (contours of OpenCV); areas are pixel counts in both.
    ``PhysicalSize`` counts pixels at the resolution that was segmented. Tiles without nuclei have no file.
    """
    if tile_px < 1:
        raise InputError(f"Expected a tile side of at least 1 px, got {tile_px}.")
    when = executed or datetime.datetime.fromtimestamp(source.path.stat().st_mtime)
    factor = max(1, round(source.scale))
    done = 0
    tiles: set[QuipTile] = set()
    with atomic_folder(out / source.file, overwrite=overwrite) as folder:
        for chunk in iter_chunks(source, selection or Selection(), ["area_px"]):
            cells = _cells(chunk, source, tile_px)
            order = np.argsort(cells[:, 1] * 2**31 + cells[:, 0], kind="stable")
            rows = _rows(chunk, factor).take(order)
            ends = np.flatnonzero(np.any(np.diff(cells[order], axis=0) != 0, axis=1)) + 1
            for part in np.split(np.arange(len(order)), ends):
                cx, cy = (int(v) for v in cells[order[part[0]]])
                tile = _tile(cx, cy, source, tile_px, factor)
                with (folder / f"{tile.stem}{SUFFIX}").open("ab") as stream:
                    if tile not in tiles:
                        stream.write(HEADER)
                        tiles.add(tile)
                    stream.write(text_bytes(rows.slice(int(part[0]), len(part))))
            done += len(chunk)
        for tile in tiles:
            (folder / f"{tile.stem}-algmeta.json").write_text(json.dumps(_algmeta(tile, source, when)), encoding="utf-8")
    return Exported(out / source.file, done, n_files=2 * len(tiles))


def read_quip(source: Source, provenance: Provenance) -> Iterator[Incoming]:
    """Yield the nuclei of one ``-features.csv``, or of all such files in a slide's folder, one chunk per file.

    Polygons are unchanged, except that rings are closed and made counter-clockwise. Polygons from non-square tiles written
    before 7 December 2019 get ``Flag.EDGE_TILE_SUSPECT``, and ``EDGE_TILE_PROVEN`` if one extends beyond its tile, unless the
    rings in the file are closed, which shows that the pipeline's repair script was applied. ``source.fix_edge_tiles`` applies
    the same repair. Outlines with fewer than three points are left out and counted.

    Raises
    ------
    FormatError
        A file name, column, number or polygon is not in the format of the release; the message gives file and line.
    """
    paths = sorted(source.path.glob(f"*{SUFFIX}")) if source.path.is_dir() else [source.path]
    if not paths:
        raise FormatError(f"{source.path}: expected a folder with *{SUFFIX} files of one slide, found none.")
    provenance.slide_name = (source.path if source.path.is_dir() else source.path.parent).name
    provenance.missing += ["center_prob"]
    fixed: list[str] = []
    for path in paths:
        tile = parse_tile_name(path)
        meta = _read_algmeta(path, provenance)
        if provenance.mpp is None:
            provenance.mpp = tile.mpp
        elif not math.isclose(provenance.mpp, tile.mpp, rel_tol=1e-3):
            raise FormatError(f"{path}: expected {provenance.mpp} um/px as in the other tiles of the slide, got {tile.mpp}.")
        xy, offsets = _read_csv(path, provenance)
        if len(offsets) == 1:
            continue
        suspect = _suspect(tile, xy, offsets, meta)
        flags = np.zeros(len(offsets) - 1, np.uint8)
        if suspect and source.fix_edge_tiles:
            origin, stretch = np.array([tile.x, tile.y]), np.array([tile.w / tile.h, tile.h / tile.w])
            xy = (xy - origin) * stretch + origin
            fixed.append(path.name)
        elif suspect:
            beyond = (xy < (tile.x - TILE_MARGIN_PX, tile.y - TILE_MARGIN_PX)) | (
                xy > (tile.x + tile.w + TILE_MARGIN_PX, tile.y + tile.h + TILE_MARGIN_PX)
            )
            flags[:] = Flag.EDGE_TILE_SUSPECT
            flags[np.logical_or.reduceat(beyond.any(axis=1), offsets[:-1])] |= np.uint8(Flag.EDGE_TILE_PROVEN)
        xy = xy / source.scale + np.array([source.dx, source.dy])
        yield Incoming(*closed(xy, offsets), flags)
    if fixed:
        provenance.notes.append(f"rescaled as one_pass_fix.py does: {len(fixed)} tiles, first {fixed[0]}")


def _cells(chunk: Chunk, source: NucleiFile, tile_px: int) -> npt.NDArray[np.int64]:
    """Return column and row of the tile of each centroid, int64 (N, 2); centroids beyond the slide belong to the last tile."""
    ends = [max(1, source.width_px), max(1, source.height_px)]
    return np.stack(
        [np.clip(chunk.column(c), 0, end - 1).astype(np.int64) // tile_px for c, end in zip(("cx", "cy"), ends, strict=True)],
        axis=1,
    )


def _tile(cx: int, cy: int, source: NucleiFile, tile_px: int, factor: int) -> QuipTile:
    x, y = cx * tile_px, cy * tile_px
    return QuipTile(x, y, min(tile_px, source.width_px - x), min(tile_px, source.height_px - y), source.mpp, factor)


def _rows(chunk: Chunk, factor: int) -> pa.StringArray:
    import pyarrow as pa
    import pyarrow.compute as pc

    area = chunk.column("area_px").astype(np.float64)
    last = np.zeros(len(chunk.xy), np.bool_)
    last[chunk.ring_offsets[1:] - 1] = True  # the release does not repeat the first vertex
    x, y = (decimal_text(chunk.xy[~last, axis], 1, trim=False) for axis in (0, 1))
    counts = [pc.cast(pa.array(np.rint(a).astype(np.int64)), pa.string()) for a in (area, area * factor**2)]
    rings = join_rings(x, y, chunk.ring_offsets - np.arange(len(chunk.ring_offsets)), ":", ":")
    return concat(counts[0], ",", counts[1], ",[", rings, "]\n")


def _algmeta(tile: QuipTile, source: NucleiFile, when: datetime.datetime) -> dict[str, Any]:
    model = source.facts.get("model") or {}
    separate = model.get("separate") or {}
    area = 1.0 / source.mpp**2
    low, high = (round(float(separate.get(k) or 0) * area) for k in ("min_area_um2", "max_area_um2"))
    thresholds = [separate.get(k) or 0 for k in ("material_threshold_frac", "center_threshold_frac")]
    case = source.file.split(".")[0]
    return {
        "input_type": "wsi", "otsu_ratio": 0.0, "curvature_weight": 0.0, "min_size": low, "max_size": high, "ms_kernel": 0,
        "declump_type": 0, "levelset_num_iters": 0, "mpp": source.mpp, "image_width": source.width_px,
        "image_height": source.height_px, "tile_minx": tile.x, "tile_miny": tile.y, "tile_width": tile.w, "tile_height": tile.h,
        "patch_minx": tile.x, "patch_miny": tile.y, "patch_width": tile.w, "patch_height": tile.h, "output_level": "mask",
        "out_file_prefix": tile.stem, "subject_id": case, "case_id": case, "analysis_id": "wsiseg",
        "analysis_execution_date": when.strftime(DATE),
        "version": {
            "git_remote": "", "git_branch": "", "git_commit": "", "model_path": str(model.get("weights") or ""),
            "model_hash": str(model.get("weights_sha256") or ""), "model_url": "",
            "model_ver": str(source.facts.get("wsiseg") or ""),
        },
        "analysis_desc": f"wsiseg_{thresholds[0]}_{thresholds[1]}_{tile.w}_{low}_{high}",
    }  # fmt: skip


def _read_algmeta(path: Path, provenance: Provenance) -> dict[str, Any]:
    """Return the JSON that belongs to a CSV, or {} if there is none; store the slide's size in ``provenance``."""
    file = path.with_name(path.name.removesuffix(SUFFIX) + "-algmeta.json")
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(meta, dict):
            raise TypeError("not an object")
        width, height = int(meta["image_width"]), int(meta["image_height"])
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError) as err:
        raise FormatError(f"{file}: expected the JSON of a QuIP tile ({err!r}).") from err
    provenance.width_px, provenance.height_px = width, height
    return meta


def _suspect(tile: QuipTile, xy: npt.NDArray[np.float64], offsets: npt.NDArray[np.int64], meta: dict[str, Any]) -> bool:
    """Return whether a tile may be scaled wrongly: not square, not repaired, and not known to be written after the fix."""
    if tile.w == tile.h or (xy[offsets[:-1]] == xy[offsets[1:] - 1]).all():
        return False
    try:
        return datetime.datetime.strptime(str(meta["analysis_execution_date"]), DATE) < FIXED_ON
    except (KeyError, ValueError):
        return True  # the old pipeline wrote no date


def _read_csv(path: Path, provenance: Provenance) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return the rings of the file that have at least three points."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import csv

    kinds = {"AreaInPixels": pa.float64(), "PhysicalSize": pa.float64(), "Polygon": pa.string()}
    try:
        size = path.stat().st_size
        if size == 0:
            raise FormatError(f"{path}: expected the header {HEADER.decode().strip()!r}, got an empty file.")
        table = csv.read_csv(
            str(path),
            read_options=csv.ReadOptions(use_threads=False, block_size=min(max(size + 1, 1 << 16), 2**31 - 1)),
            convert_options=csv.ConvertOptions(column_types=kinds, include_columns=list(kinds), strings_can_be_null=False),
        )
        text = pc.utf8_trim_whitespace(table["Polygon"].combine_chunks())
    except (pa.ArrowException, KeyError) as err:
        raise FormatError(f"{path}: expected the columns {list(kinds)} of a QuIP features CSV ({err}).") from err
    if table.num_rows == 0:
        return np.empty((0, 2)), np.zeros(1, np.int64)
    framed = pc.and_(pc.starts_with(text, "["), pc.ends_with(text, "]"))
    lists = pc.split_pattern(pc.utf8_slice_codeunits(text, 1, -1), ":")
    counts = pc.list_value_length(lists).to_numpy()
    good = framed.to_numpy(zero_copy_only=False) & (counts % 2 == 0)
    try:
        numbers = pc.cast(lists.flatten(), pa.float64()).to_numpy() if good.all() else np.empty(0)
    except pa.ArrowInvalid:
        numbers = np.empty(0)
    if len(numbers) != counts.sum() or not (np.abs(numbers) < MAX_COORDINATE_PX).all():
        row = _first_bad(text)
        got = text[row].as_py()[:60]
        raise FormatError(f"{path}, line {row + 2}: expected a polygon [x0:y0:x1:y1:...] of finite numbers, got {got!r}.")
    n_points = counts // 2
    offsets = np.concatenate([[0], np.cumsum(n_points)]).astype(np.int64)
    xy = numbers.reshape(-1, 2)
    short = n_points < 3
    if short.any():
        provenance.skip("outlines of fewer than three points", int(short.sum()))
        xy = xy[~np.repeat(short, n_points)]
        offsets = np.concatenate([[0], np.cumsum(n_points[~short])]).astype(np.int64)
    return xy, offsets


def _first_bad(text: pa.StringArray) -> int:
    """Return the number of the first row that is not a polygon; only called for an error message."""
    for row, value in enumerate(text.to_pylist()):
        try:
            numbers = [float(v) for v in value.removeprefix("[").removesuffix("]").split(":")]
        except ValueError:
            return row
        framed = value.startswith("[") and value.endswith("]")
        if not framed or len(numbers) % 2 or not all(abs(v) < MAX_COORDINATE_PX for v in numbers):
            return row
    return 0
