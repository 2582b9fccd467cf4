"""Finish a slide whose tiles are all decided: make its table and statistics, then remove its part files."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from wsiseg import __version__
from wsiseg.errors import FormatError, SlideOpenError, plain_text
from wsiseg.fetch import is_address, shown
from wsiseg.read import working_size
from wsiseg.read.slide import content_digest, fingerprint
from wsiseg.results.folder import RunFolder
from wsiseg.results.locate import fetch_root, local_path
from wsiseg.results.manifest import SlideInput
from wsiseg.results.maps import make_maps
from wsiseg.results.reopen import other_content
from wsiseg.run.context import WorkerContext
from wsiseg.run.foreign import foreign_facts
from wsiseg.run.job import SlideJob, asked_of, load_job, outside_tiles, part_path, tiles_of
from wsiseg.run.outside import outside_facts, write_mask_picture
from wsiseg.run.suspect import suspicion
from wsiseg.schema import FINISHED_STATUSES, SCHEMA_VERSION
from wsiseg.summarize import failed_row, summarize_slide
from wsiseg.tables import atomic_write_bytes
from wsiseg.types import Tile, TileOutcome, TileStats
from wsiseg.write import PartHeader, read_part_header, write_nuclei_table

__all__ = ["done_before", "file_sha256", "finish_slide", "finished_row", "record_failed_slide", "tiles_to_do"]


def finished_row(folder: RunFolder, slide: SlideInput, digest: str) -> dict[str, Any] | None:
    """Return the statistics row of a slide that an earlier run completed under the same digest, mpp and mask, else None."""
    slide_id = slide.slide_id
    try:
        record = json.loads(folder.slide_json(slide_id).read_text(encoding="utf-8"))
        row: dict[str, Any] = record["row"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    complete = record.get("digest") == digest and row.get("status") in FINISHED_STATUSES and folder.table(slide_id).is_file()
    if not complete or (record.get("file") and not _same_file(record["file"], slide)):
        return None
    asked = asked_of(slide)
    return row if record.get("asked", asked) == asked else None


def _same_file(file: dict[str, Any], slide: SlideInput) -> bool:
    """Return whether a slide is still the file that was segmented; a file that was moved away or copied counts as the same.

    Nothing is fetched: an object at an address is another one if the manifest states another MD5 than before.
    """
    path = slide.path
    if is_address(path):
        return not slide.md5 or file.get("md5", slide.md5) in (slide.md5, "")
    try:
        return fingerprint(path) == (file.get("size_bytes"), file.get("mtime_ns")) or not other_content(file, path)
    except SlideOpenError:
        return True


def tiles_to_do(job: SlideJob, context: WorkerContext) -> tuple[list[Tile], list[TileOutcome]]:
    """Split a slide's tiles into those still to do, sampled windows among them, and the outcomes of those already decided."""
    todo: list[Tile] = []
    decided: list[TileOutcome] = []
    floor = context.config.read.tissue_min_frac
    for tile in tiles_of(job, context.config):
        if tile.tissue_frac <= floor:
            decided.append(TileOutcome(tile.slide_id, tile.tile_id, "empty"))
            continue
        outcome = done_before(tile, context)
        if outcome is None:
            todo.append(tile)
        else:
            decided.append(outcome)
    todo += [tile for tile, _ in outside_tiles(job, context.config) if _valid_header(context, tile) is None]
    return todo, decided


def done_before(tile: Tile, context: WorkerContext) -> TileOutcome | None:
    """Return the outcome of a tile whose part file is there and of this run, else None."""
    header = _valid_header(context, tile)
    if header is None:
        return None
    return TileOutcome(tile.slide_id, tile.tile_id, "done", header.n_nuclei, dict(header.seconds))


def _valid_header(context: WorkerContext, tile: Tile) -> PartHeader | None:
    try:
        header = read_part_header(part_path(context.folder, tile))
    except FormatError:
        return None  # a tile with a damaged part file is computed again
    return header if header is not None and header.digest == context.digest else None


def finish_slide(slide_id: str, failed: Sequence[TileOutcome], context: WorkerContext) -> dict[str, Any]:
    """Write the slide's table, statistics and JSON from its part files; return the statistics row.

    Raises
    ------
    FormatError
        A tile has no part file, although it has tissue and is not in ``failed``: its nuclei would be missing.
    SlideOpenError
        The slide's file changed since its first tile was read: the table would mix two files.
    """
    start = time.perf_counter()
    job = load_job(context.folder, slide_id)
    _check_unchanged(job, context)
    n_tiles = len(tiles := tiles_of(job, context.config))
    bad = {o.tile_id: o for o in failed if o.tile_id < n_tiles}
    headers, n_empty = _headers(tiles, bad, context)
    stats = sum((h.stats for h in headers), TileStats())
    seconds: dict[str, float] = {}
    for h in headers:
        for stage, s in h.seconds.items():
            seconds[stage] = seconds.get(stage, 0.0) + s
    table = context.folder.table(slide_id)
    parts = [context.folder.part(slide_id, h.tile_id) for h in headers]
    summary = write_nuclei_table(parts, table, job.meta, job.scale, _table_facts(job, context), context.config.write)
    make_maps(context.folder, slide_id, job.tissue)
    seconds["write"] = seconds.get("write", 0.0) + time.perf_counter() - start
    row = summarize_slide(
        table,
        stats,
        job.meta,
        job.scale,
        tiles=(len(headers), n_empty, len(bad)),
        seconds=seconds,
        stain=f"{job.stain.method} {list(job.stain.params)}" if job.stain.params else job.stain.method,
        table_name=f"nuclei/{slide_id}.parquet",
        events=_summed_events(headers),
        suspicion="" if summary.n_nuclei or bad else suspicion(job, context.config),
    ) | _precision_of(context)
    facts, drawn = _mask_facts(job, context, summary.n_nuclei)
    row |= facts | foreign_facts(job, row, context.model.card)
    record = {
        "digest": context.digest,
        "row": row,
        "errors": _error_rows(tiles, bad, job.scale),
        "asked": job.asked,
        "file": {"path": job.meta.path, **_file_of(job), **_object_of(job, context)},
        "table_bytes": summary.n_bytes,
        "table_sha256": file_sha256(table),
        "n_nuclei_of_tiles": sum(h.n_nuclei for h in headers),
        "n_tiles": n_tiles,
        "mask_jpg": drawn,
        "stain": {"method": job.stain.method, "params": list(job.stain.params)},
        "tissue_png": f"slides/{slide_id}.tissue.png",
        "tissue_sha256": file_sha256(context.folder.tissue_png(slide_id)),
        "level_downsamples": list(job.meta.level_downsamples),
        "objective_power": job.meta.objective_power,
    }
    atomic_write_bytes(context.folder.slide_json(slide_id), json.dumps(record, indent=1, sort_keys=True).encode())
    if not bad and not context.config.write.keep_parts:
        shutil.rmtree(context.folder.parts(slide_id), ignore_errors=True)
    return row


def _headers(tiles: Sequence[Tile], bad: Collection[int], context: WorkerContext) -> tuple[list[PartHeader], int]:
    """Return the headers of a slide's finished tiles and how many are empty; raise ``FormatError`` for a missing one."""
    headers: list[PartHeader] = []
    n_empty = 0
    for tile in tiles:
        if tile.tissue_frac <= context.config.read.tissue_min_frac:
            n_empty += 1
        elif tile.tile_id not in bad:
            header = _valid_header(context, tile)
            if header is None:
                where = f"Slide {tile.slide_id}, tile {tile.tile_id}"
                raise FormatError(f"{where}: its part file is missing. Run the same command again.")
            headers.append(header)
    return headers, n_empty


def _mask_facts(job: SlideJob, context: WorkerContext, n_nuclei: int) -> tuple[dict[str, Any], str]:
    """Return the columns about the tissue mask, and the path of its picture, which is drawn."""
    outside = [(tile, weight, _valid_header(context, tile)) for tile, weight in outside_tiles(job, context.config)]
    facts, counts = outside_facts(job, outside, context.folder, n_nuclei)
    return facts, write_mask_picture(job, [tile for tile, _, _ in outside], counts, context.folder)


def _precision_of(context: WorkerContext) -> dict[str, str]:
    choice = str((context.folder.read_run() or {}).get("precision_choice", ""))
    return {"precision": context.config.predict.precision, "precision_choice": choice}


def _summed_events(headers: Sequence[PartHeader]) -> dict[str, int]:
    events: dict[str, int] = {}
    for header in headers:
        for name, n in header.events.items():
            events[name] = max(events.get(name, 0), n) if name.endswith("_bytes") else events.get(name, 0) + n
    return events


def _check_unchanged(job: SlideJob, context: WorkerContext) -> None:
    if job.source:
        return  # every opening has compared the version
    path = local_path(job.meta.path, context.config.schedule.path_map)
    file = _file_of(job)
    now = {**dict(zip(("size_bytes", "mtime_ns"), fingerprint(path), strict=True)), "content": content_digest(path)}
    if now != file:
        changed = ", ".join(f"{name} was {old}, is {now[name]}" for name, old in file.items() if now[name] != old)
        raise SlideOpenError(
            f"Slide {job.meta.slide_id}: {path} changed during the run ({changed}). Its tiles may be from two versions of the "
            "file, so no table is written. Run the same command again: the slide is then started again."
        )


def _file_of(job: SlideJob) -> dict[str, Any]:
    return {"size_bytes": job.meta.size_bytes, "mtime_ns": job.meta.mtime_ns, "content": job.content}


def _object_of(job: SlideJob, context: WorkerContext) -> dict[str, Any]:
    """Return what tells the version of a slide that was fetched, and where it is kept if it is."""
    if not job.source:
        return {}
    schedule = context.config.schedule
    kept = {"staged": str(fetch_root(context.config) / job.meta.slide_id / job.meta.file)} if schedule.keep_staged else {}
    return {"md5": job.source["md5"], "version": job.source["version"], **kept}


def _table_facts(job: SlideJob, context: WorkerContext) -> dict[str, object]:
    width_wpx, height_wpx = working_size(job.meta, job.scale)
    return {
        "wsiseg": __version__,
        "schema": SCHEMA_VERSION,
        "digest": context.digest,
        "model": {**context.facts(), "licence": context.model.licence},
        "stain": {"method": job.stain.method, "params": list(job.stain.params)},
        "frame": "level-0 px, origin at the top-left corner of pixel (0, 0), x right, y down",
        "bounds_frame": "subtract bounds_x, bounds_y for coordinates relative to the scanned area",
        "working_width_px": width_wpx,
        "working_height_px": height_wpx,
    }


def _error_rows(tiles: Sequence[Tile], bad: dict[int, TileOutcome], scale: float) -> list[dict[str, Any]]:
    return [
        {
            "slide_id": t.slide_id,
            "tile_id": t.tile_id,
            "x_px": round(t.core.x / scale),
            "y_px": round(t.core.y / scale),
            "error": bad[t.tile_id].error,
            "attempts": bad[t.tile_id].attempts,
            "host": bad[t.tile_id].host,
            "worker": bad[t.tile_id].worker,
        }
        for t in tiles
        if t.tile_id in bad
    ]


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def record_failed_slide(
    folder: RunFolder, slide: SlideInput, digest: str, error: str, attempts: int = 1, at: tuple[str, str] = ("", "")
) -> dict[str, Any]:
    """Record a slide that could not be used at all; return its statistics row (status ``failed``).

    ``attempts`` is how often it was tried, ``at`` the host and the worker of the last try.
    """
    slide_id, error = slide.slide_id, plain_text(error)
    row = failed_row(slide_id, shown(slide.path), slide.cohort, error)
    entry = {"slide_id": slide_id, "tile_id": -1, "x_px": 0, "y_px": 0, "error": error, "attempts": attempts}
    entry |= {"host": at[0], "worker": at[1]}
    record = {"digest": digest, "row": row, "errors": [entry]}
    atomic_write_bytes(folder.slide_json(slide_id), json.dumps(record, indent=1, sort_keys=True).encode())
    return row
