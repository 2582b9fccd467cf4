"""Finish a slide whose tiles are all decided: make its table and statistics, then remove its part files."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wsiseg import __version__
from wsiseg.decode import encode
from wsiseg.errors import FormatError, SlideOpenError, plain_text
from wsiseg.fetch import is_address, shown
from wsiseg.read import working_size
from wsiseg.read.slide import content_digest, fingerprint
from wsiseg.results.folder import RunFolder
from wsiseg.results.locate import fetch_root, local_path
from wsiseg.results.manifest import SlideInput
from wsiseg.results.maps import make_maps
from wsiseg.results.reopen import other_content
from wsiseg.results.slide_record import FileFacts, SlideRecord, slide_or_none, write_slide
from wsiseg.rows import ErrorRow, SlideRow
from wsiseg.run.context import WorkerContext
from wsiseg.run.foreign import with_look
from wsiseg.run.job import SlideJob, load_job, outside_tiles, part_path, slide_arguments, tiles_of, valid_part
from wsiseg.run.outside import with_outside, write_mask_picture
from wsiseg.run.suspect import suspicion
from wsiseg.run.tile_features import finish_features
from wsiseg.schema import FINISHED_STATUSES, SCHEMA_VERSION
from wsiseg.summarize import SlideWork, failed_row, summarize_slide
from wsiseg.types import Tile, TileOutcome, TileStats
from wsiseg.write import PartHeader, write_nuclei_table

if TYPE_CHECKING:
    from wsiseg.predict import Model

__all__ = ["done_before", "file_sha256", "finish_slide", "finished_row", "record_failed_slide", "tiles_to_do"]


def finished_row(folder: RunFolder, slide: SlideInput, digest: str) -> SlideRow | None:
    """Return the statistics row of a slide that an earlier run completed under the same digest, mpp and mask, else None."""
    slide_id = slide.slide_id
    record = slide_or_none(folder, slide_id)
    if record is None or record.digest != digest or record.row.status not in FINISHED_STATUSES:
        return None
    if not folder.table(slide_id).is_file() or (record.file is not None and not _same_file(record.file, slide)):
        return None
    return record.row if record.asked in (None, slide_arguments(slide)) else None


def _same_file(file: FileFacts, slide: SlideInput) -> bool:
    """Return whether a slide is still the file that was segmented; a moved, missing or copied file counts as the same.

    Nothing is fetched: an object at an address counts as changed if the manifest states another MD5 than before.
    """
    path = slide.path
    if is_address(path):
        return not slide.md5 or file.md5 in (slide.md5, "")
    try:
        return fingerprint(path) == (file.size_bytes, file.mtime_ns) or not other_content(file, path)
    except SlideOpenError:
        return True


def tiles_to_do(job: SlideJob, context: WorkerContext) -> tuple[list[Tile], list[TileOutcome]]:
    """Return a slide's tiles that are still to do, and the outcomes of those done; both include sampled windows."""
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
    """Return the outcome of a tile that has a part file of this run, else None."""
    header = _valid_header(context, tile)
    if header is None:
        return None
    return TileOutcome(tile.slide_id, tile.tile_id, "done", header.n_nuclei, dict(header.seconds))


def _valid_header(context: WorkerContext, tile: Tile) -> PartHeader | None:
    header = valid_part(part_path(context.folder, tile), context.digest)
    lacks = header is not None and context.config.write.features and not tile.outside and not header.densities
    return None if lacks else header


def finish_slide(slide_id: str, failed: Sequence[TileOutcome], context: WorkerContext) -> SlideRow:
    """Write the slide's table, statistics and JSON from its part files; return the statistics row.

    Raises
    ------
    FormatError
        A tile with tissue that is not in ``failed`` has no part file, so its nuclei would be missing.
    SlideOpenError
        The slide's file changed since its first tile was read, so the table would mix two versions.
    """
    start = time.perf_counter()
    job = load_job(context.folder, slide_id)
    _check_unchanged(job, context)
    n_tiles = len(tiles := tiles_of(job, context.config))
    bad = {o.tile_id: o for o in failed if o.tile_id < n_tiles}
    headers, n_empty = _headers(tiles, bad, context)
    stats = sum((h.stats for h in headers), TileStats())
    seconds = _summed_seconds(headers)
    table = context.folder.table(slide_id)
    parts = [context.folder.part(slide_id, h.tile_id) for h in headers]
    summary = write_nuclei_table(parts, table, job.meta, job.scale, _table_facts(job, context), context.config.write)
    make_maps(context.folder, slide_id, job.tissue)
    seconds["write"] = seconds.get("write", 0.0) + time.perf_counter() - start
    if context.config.write.features:
        start = time.perf_counter()
        finish_features(job, tiles, parts, context)
        seconds["features"] = seconds.get("features", 0.0) + time.perf_counter() - start
    work = SlideWork(
        done=len(headers),
        empty=n_empty,
        failed=len(bad),
        seconds=seconds,
        stain=f"{job.stain.method} {list(job.stain.params)}" if job.stain.params else job.stain.method,
        events=_summed_events(headers),
    )
    doubt = "" if summary.n_nuclei or bad else suspicion(job, context.config)
    table_name = f"nuclei/{slide_id}.parquet"
    row = summarize_slide(table, stats, job.meta, job.scale, work, table_name=table_name, suspicion=doubt)
    row = dataclasses.replace(row, precision=context.config.predict.precision, precision_choice=_choice_of(context.folder))
    outside = [(tile, weight, _valid_header(context, tile)) for tile, weight in outside_tiles(job, context.config)]
    row, counts = with_outside(row, job, outside, context.folder)
    drawn = write_mask_picture(job, [tile for tile, _, _ in outside], counts, context.folder)
    row = with_look(row, job, context.model.card)
    row = dataclasses.replace(row, seconds_features=seconds["features"] if context.config.write.features else None)
    record = SlideRecord(
        context.digest,
        row,
        _error_rows(tiles, bad, job.scale),
        asked=job.asked,
        file=_object_of(job, context),
        table_bytes=summary.n_bytes,
        table_sha256=file_sha256(table),
        n_nuclei_of_tiles=sum(h.n_nuclei for h in headers),
        n_tiles=n_tiles,
        mask_jpg=drawn,
        stain=job.stain,
        tissue_png=f"slides/{slide_id}.tissue.png",
        tissue_sha256=file_sha256(context.folder.tissue_png(slide_id)),
        level_downsamples=job.meta.level_downsamples,
        objective_power=job.meta.objective_power,
    )
    write_slide(context.folder, record)
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


def _summed_seconds(headers: Sequence[PartHeader]) -> dict[str, float]:
    seconds: dict[str, float] = {}
    for header in headers:
        for stage, s in header.seconds.items():
            seconds[stage] = seconds.get(stage, 0.0) + s
    return seconds


def _summed_events(headers: Sequence[PartHeader]) -> dict[str, int]:
    events: dict[str, int] = {}
    for header in headers:
        for name, n in header.events.items():
            events[name] = max(events.get(name, 0), n) if name.endswith("_bytes") else events.get(name, 0) + n
    return events


def _check_unchanged(job: SlideJob, context: WorkerContext) -> None:
    if job.source:
        return  # the version is compared at every opening
    path = local_path(job.meta.path, context.config.schedule.path_map)
    file = _file_of(job)
    now = FileFacts(job.meta.path, *fingerprint(path), content_digest(path))
    if now != file:
        pairs = ((f.name, getattr(file, f.name), getattr(now, f.name)) for f in dataclasses.fields(file))
        changed = ", ".join(f"{name} was {old}, is {new}" for name, old, new in pairs if new != old)
        raise SlideOpenError(
            f"Slide {job.meta.slide_id}: {path} changed during the run ({changed}). Its tiles may be from two versions of the "
            "file, so no table is written. Run the same command again: the slide is then started again."
        )


def _file_of(job: SlideJob) -> FileFacts:
    return FileFacts(job.meta.path, job.meta.size_bytes, job.meta.mtime_ns, job.content)


def _object_of(job: SlideJob, context: WorkerContext) -> FileFacts:
    """Return the facts of the slide's file; for a fetched slide with its version, and its path if it is kept."""
    file = _file_of(job)
    if job.source is None:
        return file
    kept = str(fetch_root(context.config) / job.meta.slide_id / job.meta.file) if context.config.schedule.keep_staged else ""
    return dataclasses.replace(file, md5=job.source.md5, version=job.source.version, staged=kept)


def _table_facts(job: SlideJob, context: WorkerContext) -> dict[str, object]:
    width_wpx, height_wpx = working_size(job.meta, job.scale)
    return {
        "wsiseg": __version__,
        "schema": SCHEMA_VERSION,
        "digest": context.digest,
        "model": {**encode(context.facts()), **_of_model(context.model)},
        "stain": {"method": job.stain.method, "params": list(job.stain.params)},
        "frame": "level-0 px, origin at the top-left corner of pixel (0, 0), x right, y down",
        "bounds_frame": "subtract bounds_x, bounds_y for coordinates relative to the scanned area",
        "working_width_px": width_wpx,
        "working_height_px": height_wpx,
    }


def _choice_of(folder: RunFolder) -> str:
    run = folder.read_run()
    return run.precision_choice if run is not None else ""


def _of_model(model: Model) -> dict[str, str]:
    return {"precision": model.precision, "engine": model.engine, "licence": model.licence}


def _error_rows(tiles: Sequence[Tile], bad: dict[int, TileOutcome], scale: float) -> tuple[ErrorRow, ...]:
    found = ((t, bad[t.tile_id]) for t in tiles if t.tile_id in bad)
    return tuple(
        ErrorRow(t.slide_id, t.tile_id, round(t.core.x / scale), round(t.core.y / scale), o.error, o.attempts, o.host, o.worker)
        for t, o in found
    )


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def record_failed_slide(
    folder: RunFolder, slide: SlideInput, digest: str, error: str, attempts: int = 1, at: tuple[str, str] = ("", "")
) -> SlideRow:
    """Record a slide that could not be used at all; return its statistics row (status ``failed``).

    ``attempts`` is how often it was tried, ``at`` the host and the worker of the last try.
    """
    slide_id, error = slide.slide_id, plain_text(error)
    row = failed_row(slide_id, shown(slide.path), slide.cohort, error)
    write_slide(folder, SlideRecord(digest, row, (ErrorRow(slide_id, -1, 0, 0, error, attempts, *at),)))
    return row
