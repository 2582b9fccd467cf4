"""``wsiseg features``: finished slides -> features of nuclei that need pixels or neighbors, in tables beside their own.

They are only computed on request, so that the main run is fast and its tables are small. The slide is read again at working
resolution, window by window; the rings of a window are drawn into it, and each pixel is added to the sums of its nucleus. One
window and about 200 bytes per nucleus are in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from wsiseg.errors import InputError, SlideOpenError, WsisegError
from wsiseg.labels import rasterize_rings
from wsiseg.normalize import fit_stain
from wsiseg.read import TissueMask, fit_tissue, read_working, stain_sample, working_size
from wsiseg.read.slide import Slide
from wsiseg.results.folder import RunFolder
from wsiseg.results.records import slide_record
from wsiseg.results.reopen import reopen_slide
from wsiseg.summarize import RUIFROK_JOHNSTON, neighbors, od_features, od_tables, solidity, sum_od
from wsiseg.summarize.features import NEIGHBOR_UM
from wsiseg.tables import open_nuclei, read_nuclei, read_table_meta, wkb_rings
from wsiseg.tables.features import features_path, table_fingerprint
from wsiseg.types import Box
from wsiseg.write import write_features_table

__all__ = ["FeatureOptions", "measure_features", "measure_run"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class FeatureOptions:
    """Options of feature measurement.

    Attributes
    ----------
    stain
        ``ruifrok``: the published hematoxylin and eosin vectors, the same for all slides; ``macenko``: fitted to each slide.
    pixels
        Measure optical densities. If False, the slide files are not needed.
    tile_wpx
        Side of the windows read, working px. Results do not depend on it.
    path_map
        As ``schedule.path_map``: where slides that were moved are now.
    workers
        Processes, one slide each.
    overwrite
        Measure slides again even if their features fit their table.
    """

    stain: Literal["ruifrok", "macenko"] = "ruifrok"
    pixels: bool = True
    tile_wpx: int = 2048
    path_map: tuple[str, ...] = ()
    workers: int = 1
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        if not 64 <= self.tile_wpx <= 16384:
            raise InputError(f"Expected windows of 64 to 16384 working px, got {self.tile_wpx}.")


def measure_run(
    run: Path, options: FeatureOptions | None = None, slide_ids: Sequence[str] = ()
) -> Iterator[tuple[str, int | str]]:
    """Measure the slides of a run (default: all that have a table); yield (slide_id, nuclei), or (slide_id, why) on failure.

    Slides that already have features of their current table are skipped.

    Raises
    ------
    InputError
        No such slide, or the run has no table.
    """
    options = options or FeatureOptions()
    folder = RunFolder(run)
    known = sorted(p.stem for p in (run / "nuclei").glob("*.parquet"))
    if not known:
        raise InputError(f"{run}: expected a run folder with nuclei/*.parquet.")
    unknown = sorted(set(slide_ids) - set(known))
    if unknown:
        raise InputError(f"{run}: no slide {unknown[0]!r} in this run. It has: {', '.join(known[:20])}.")
    todo = [s for s in (slide_ids or known) if options.overwrite or not _has_features(folder.table(s), options)]
    if options.workers <= 1 or len(todo) <= 1:
        for slide_id in todo:
            yield slide_id, _measured(run, slide_id, options)
        return
    # spawn: a forked child would share open slides and thread pools of this process
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        yield from zip(todo, pool.map(_measured, [run] * len(todo), todo, [options] * len(todo)), strict=True)


def _measured(run: Path, slide_id: str, options: FeatureOptions) -> int | str:
    try:
        return measure_features(run, slide_id, options)
    except (WsisegError, OSError) as err:
        return str(err)


def _has_features(table: Path, options: FeatureOptions) -> bool:
    path = features_path(table)
    if not path.is_file():
        return False
    facts = read_table_meta(path)
    return facts.get("of") == table_fingerprint(table) and facts.get("stain") == (options.stain if options.pixels else "none")


def measure_features(run: Path, slide_id: str, options: FeatureOptions | None = None) -> int:
    """Measure one slide's nuclei and write ``RUN/features/<slide_id>.parquet``; return how many there are.

    Raises
    ------
    InputError
        No such slide, or its file is not where it was (``options.path_map``, or ``pixels=False``).
    FormatError
        The table cannot be read.
    """
    options = options or FeatureOptions()
    folder = RunFolder(run)
    table = folder.table(slide_id)
    source = open_nuclei(table)
    found = read_nuclei(table, columns=["nucleus_id", "cx", "cy"])
    xy_um = np.stack([found[c].to_numpy().astype(np.float64) for c in ("cx", "cy")], axis=1) * source.mpp
    ids: npt.NDArray[np.int64] = found["nucleus_id"].to_numpy()
    columns: dict[str, Array] = {"nucleus_id": ids, **neighbors(xy_um)}
    facts: dict[str, object] = {
        "slide_id": slide_id,
        "stain": "none",
        "neighbor_radius_um": NEIGHBOR_UM,
        "od": "-log10((v + 1) / 256)",
    }
    if options.pixels:
        sums, vectors = _pixel_sums(folder, slide_id, ids, options)
        columns |= od_features(sums)
        facts |= {"stain": options.stain, "stain_vectors_rgb": vectors}
    else:
        columns |= dict.fromkeys(od_features(np.zeros((0, 5), np.int64)), np.full(len(ids), np.nan, np.float32))
    write_features_table(table, _groups(table, columns), facts)
    return len(ids)


def _groups(table: Path, columns: dict[str, Array]) -> Iterator[dict[str, Array]]:
    """Yield the columns in the table's row groups, with what is measured on their polygons."""
    import pyarrow.parquet as pq

    first = 0
    with pq.ParquetFile(str(table)) as file:
        for group in range(file.num_row_groups):
            wkb = file.read_row_group(group, columns=["geometry"])["geometry"]
            rows = slice(first, first + len(wkb))
            yield {**{name: values[rows] for name, values in columns.items()}, "solidity": solidity(wkb)}
            first += len(wkb)


def _pixel_sums(
    folder: RunFolder, slide_id: str, ids: npt.NDArray[np.int64], options: FeatureOptions
) -> tuple[npt.NDArray[np.int64], list[list[float]]]:
    """Return optical density sums int64 (N, 5) in the order of ``ids``, and the stain vectors used."""
    record = slide_record(folder, slide_id)
    try:
        slide = reopen_slide(folder, slide_id, record, options.path_map)
    except SlideOpenError as err:
        raise SlideOpenError(f"{err} Its pixels are needed for optical densities; --no-pixels omits these.") from err
    sums = np.zeros((len(ids), 5), np.int64)
    order = np.argsort(ids, kind="stable")
    in_order = ids[order]
    try:
        table = folder.table(slide_id)
        scale = float(read_table_meta(table)["scale"])
        vectors = _stain_vectors(slide, folder.tissue_png(slide_id), scale, options.stain)
        shares = od_tables(vectors)
        for box in _windows(table, slide, scale, options.tile_wpx):
            own, labels = _draw(table, box, scale)
            if own.size:
                sum_od(sums, order[np.searchsorted(in_order, own)], labels, read_working(slide, box, scale), shares)
    finally:
        slide.close()
    return sums, [list(v) for v in vectors]


def _stain_vectors(slide: Slide, tissue_png: Path, scale: float, stain: str) -> Sequence[Sequence[float]]:
    if stain == "ruifrok":
        return RUIFROK_JOHNSTON
    tissue = TissueMask.load(tissue_png) if tissue_png.is_file() else fit_tissue(slide)
    fitted = fit_stain("macenko", *stain_sample(slide, tissue, scale))
    if fitted.method == "none":
        raise InputError(
            f"Slide {slide.meta.slide_id}: Macenko's method finds no two distinct stains. Use --stain-vectors ruifrok."
        )
    return fitted.params[:3], fitted.params[3:6]


def _windows(table: Path, slide: Slide, scale: float, side: int) -> Iterator[Box]:
    """Yield the windows of a grid over the slide that some nucleus's bounding box meets."""
    width, height = working_size(slide.meta, scale)
    shape = (-(-height // side), -(-width // side))
    boxes = read_nuclei(table, columns=["bbox"])["bbox"].combine_chunks()
    if len(boxes) == 0:
        return
    ends = []
    for axis, n in (("y", shape[0]), ("x", shape[1])):
        low, high = (np.asarray(boxes.field(axis + end), np.float64) * scale / side for end in ("min", "max"))
        first = np.clip(np.floor(low), 0, n - 1).astype(np.int64)
        ends.append((first, np.clip(np.floor(high), first, n - 1).astype(np.int64) + 1))
    (y0, y1), (x0, x1) = ends
    corners = np.zeros((shape[0] + 1, shape[1] + 1), np.int64)
    for y, x, step in ((y0, x0, 1), (y1, x0, -1), (y0, x1, -1), (y1, x1, 1)):
        np.add.at(corners, (y, x), step)
    met = corners.cumsum(axis=0).cumsum(axis=1)[:-1, :-1] > 0
    for row, column in np.argwhere(met).tolist():
        left, above = int(column) * side, int(row) * side
        yield Box(left, above, min(side, width - left), min(side, height - above))


def _draw(table: Path, box: Box, scale: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Return the ids of nuclei that intersect a window (working px), and the window's labels: k + 1 for ids[k], 0 elsewhere.

    A pixel in two nuclei belongs to the smaller one, or to the smaller id if their areas are equal. Coordinates are not shifted
    before drawing, so that rounding is the same in every window.
    """
    region = [math.floor(box.x / scale), math.floor(box.y / scale), math.ceil(box.x1 / scale), math.ceil(box.y1 / scale)]
    found = read_nuclei(
        table, Box(region[0], region[1], region[2] - region[0], region[3] - region[1]), ["nucleus_id", "geometry", "area_px"]
    )
    ids: npt.NDArray[np.int64] = found["nucleus_id"].to_numpy()
    if not ids.size:
        return ids, np.zeros((box.h, box.w), np.int32)
    xy, offsets = wkb_rings(found["geometry"])
    order = np.lexsort((-ids, -found["area_px"].to_numpy()))
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    labels = rasterize_rings(xy * scale, offsets, (box.h, box.w), ids=order + 1, ring_polygons=rank, origin=(box.x, box.y))
    return ids, labels
