"""Read the state of a run and its failures from its folder, on any machine that can read it, also during the run."""

from __future__ import annotations

import json
import re
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path

from wsiseg.decode import decode
from wsiseg.errors import FormatError
from wsiseg.results.arithmetic import precision_text
from wsiseg.results.folder import RunFolder
from wsiseg.results.records import read_inputs
from wsiseg.results.slide_record import slide_records
from wsiseg.rows import SlideRow
from wsiseg.run.presence import WorkerRecord, read_workers
from wsiseg.run.watch import COUNTS, ClientRecord
from wsiseg.schema import SLIDE_STATUSES

__all__ = ["ErrorGroup", "RunStatus", "group_errors", "run_status"]

SILENT_S = 60.0
"""A client that has not updated its progress file for this long is considered silent, s; it is updated every few seconds."""


@dataclass(frozen=True, slots=True)
class RunStatus:
    """The state of a run.

    Attributes
    ----------
    state
        ``running``, ``finished``, ``interrupted``, ``failed``, ``silent`` (no update for a minute or more), or ``unknown``.
    slides
        Number of slides by status: those of ``wsiseg.schema.SLIDE_STATUSES``, ``in_work`` and ``waiting``.
    tiles_done, tiles_failed
        Tiles of all slides, including those in progress.
    nuclei, tissue_mm2
        Totals of finished tables.
    mm2_per_s, slides_per_h, eta_s
        Rates, and seconds to the end, of the clients that are running or ended last; None if there are no data yet.
    precision
        Arithmetic of the network, and whether the user chose it.
    counts
        Numbers of retries, worker deaths, hangs and reconnects.
    clients, workers
        Last report of each; ``age_s`` is its age by this machine's clock.
    rows
        The statistics rows of the slides, by id.
    """

    state: str
    slides: dict[str, int]
    tiles_done: int
    tiles_failed: int
    nuclei: int
    tissue_mm2: float
    mm2_per_s: float | None
    slides_per_h: float | None
    eta_s: float | None
    counts: dict[str, int]
    clients: tuple[ClientRecord, ...]
    workers: tuple[WorkerRecord, ...]
    rows: dict[str, SlideRow] = field(repr=False, default_factory=dict)
    precision: str = ""


def run_status(root: Path) -> RunStatus:
    """Return the state of the run in a folder.

    Raises
    ------
    FormatError
        The folder contains no run.
    """
    folder = RunFolder(root)
    inputs = read_inputs(folder)
    record = folder.read_run()
    if not inputs and record is None:
        raise FormatError(f"{root} contains no wsiseg run (no run.json). Name the folder given to wsiseg segment as --out.")
    rows = {slide_id: record.row for slide_id, record in slide_records(folder) if not isinstance(record, FormatError)}
    begun = {p.name: sum(1 for _ in p.glob("*.parquet")) for p in (root / "parts").glob("*") if p.is_dir()}
    in_work = {name for name in begun if name not in rows or rows[name].status == "partial"}
    clients = _clients(folder)
    live = any(c.state == "running" and c.age_s < SILENT_S for c in clients)
    slides = Counter(row.status for row in rows.values())
    slides["in_work"] = sum(name not in rows for name in in_work)
    slides["waiting"] = len(set(inputs) - set(rows) - in_work)
    rate, slides_per_h = _rates(clients)
    return RunStatus(
        state=_state(clients, live),
        slides={name: slides[name] for name in (*SLIDE_STATUSES, "in_work", "waiting")},
        tiles_done=sum(r.tiles_done or 0 for r in rows.values()) + sum(begun[n] for n in in_work if n not in rows),
        tiles_failed=sum(r.tiles_failed or 0 for r in rows.values()),
        nuclei=sum(r.n_nuclei or 0 for r in rows.values()),
        tissue_mm2=sum(r.tissue_mm2 or 0.0 for r in rows.values()),
        mm2_per_s=rate,
        slides_per_h=slides_per_h,
        eta_s=_eta_s(clients, rows, rate) if live else None,
        counts={k: sum(getattr(c, k) for c in clients) for k in COUNTS},
        clients=tuple(clients),
        workers=tuple(replace(w, age_s=_age_s(folder.workers / f"{w.id}.json")) for w in read_workers(folder.workers)),
        rows=rows,
        precision=precision_text(record),
    )


def _clients(folder: RunFolder) -> list[ClientRecord]:
    found = []
    for path in sorted((folder.root / "progress").glob("*.json")):
        try:
            record = decode(ClientRecord, json.loads(path.read_text(encoding="utf-8")), str(path))
        except (OSError, ValueError, RecursionError, FormatError):
            continue  # removed meanwhile, written by another version, or damaged
        found.append(replace(record, client=path.stem, age_s=_age_s(path)))
    return found


def _age_s(path: Path) -> float:
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except OSError:
        return 0.0


def _state(clients: list[ClientRecord], live: bool) -> str:
    if live:
        return "running"
    states = {c.state for c in clients}
    if "running" in states:
        return "silent"
    return next((s for s in ("failed", "interrupted", "finished") if s in states), "unknown")


def _rates(clients: list[ClientRecord]) -> tuple[float | None, float | None]:
    """Return mm2 per second and slides per hour, summed over clients that have done something."""
    worked = [c for c in clients if c.mm2_done and c.elapsed_s]
    if not worked:
        return None, None
    rate = sum(c.mm2_done / c.elapsed_s for c in worked)
    return rate, sum(3600 * c.slides_done / c.elapsed_s for c in worked)


def _eta_s(clients: list[ClientRecord], rows: dict[str, SlideRow], rate: float | None) -> float | None:
    """Return the estimated seconds to the end; slides not opened yet count with the mean tissue area of the others."""
    if not rate:
        return None
    live = [c for c in clients if c.state == "running" and c.age_s < SILENT_S]
    known = sum(max(0.0, c.mm2 - c.mm2_done) for c in live)
    done = [r.tissue_mm2 for r in rows.values() if r.tissue_mm2]
    if not done:
        return None if sum(c.slides for c in live) > 1 else known / rate
    left = sum(c.slides - c.slides_done for c in live)
    mean = sum(done) / len(done)
    return max(known, left * mean) / rate


@dataclass(frozen=True, slots=True)
class ErrorGroup:
    """Failures whose messages differ only in numbers and paths; ``hosts`` are the hosts of the last tries, most first."""

    kind: str
    message: str
    tiles: int
    slides: tuple[str, ...]
    advice: str
    hosts: tuple[str, ...] = ()


_ADVICE = {
    "MissingMppError": "Give --mpp, or a manifest with a column mpp; then --retry-failed.",
    "ImplausibleMppError": "Give the true --mpp for these slides, even if it equals that of the file; then --retry-failed.",
    "AnisotropicMppError": "Give the right --mpp for these slides; then --retry-failed.",
    "SlideOpenError": "Check that the files exist and are complete, or copy them again from their source; then --retry-failed.",
    "TileReadError": "These regions cannot be decoded: copy the files again from their source; then --retry-failed.",
    "FormatError": "A file of the run or a tissue mask is damaged: see the message; then --retry-failed.",
    "TileTimeout": "Reading or computing hung: check the storage, or give a longer --tile-timeout; then --retry-failed.",
    "WorkerDied": "The worker process crashed or was killed each time. If memory ran out, use fewer --workers. If the file is "
    "damaged, which may crash a decoder, copy it again; then --retry-failed.",
    "MemoryError": "Use fewer --workers, then --retry-failed.",
    "OutOfMemoryError": "Use fewer --workers-per-gpu, then --retry-failed.",
    "OSError": "Check the disk and the network mount; then --retry-failed.",
    "Suspect": "Check in a viewer that these are H&E slides, that the scale is right (--mpp) and that the mask fits "
    "(--tissue-mask). The same command with the right values segments these slides again.",
    "KilledWorker": "Worker processes ended during these tiles: see WorkerDied in RUN/log.jsonl; then --retry-failed.",
}
_OTHERWISE = "See RUN/log.jsonl; then --retry-failed. If it fails again, it is a bug in wsiseg: report it with this message."


def group_errors(root: Path) -> list[ErrorGroup]:
    """Return the failures and suspect slides of a run, grouped by message, most slides first.

    Raises
    ------
    FormatError
        The folder contains no run.
    """
    folder = RunFolder(root)
    if folder.read_run() is None:
        raise FormatError(f"{root} contains no wsiseg run (no run.json). Name the folder given to wsiseg segment as --out.")
    groups: dict[tuple[str, str], list[tuple[str, int, str]]] = {}
    hosts: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for slide_id, record in slide_records(folder):
        if isinstance(record, FormatError):
            text = f"FormatError: the slide's JSON cannot be read: {record}"
            groups.setdefault(("FormatError", _shape(text)), []).append((slide_id, -1, text))
            continue
        told = [(e.error, e.tile_id, e.host) for e in record.errors]
        if record.row.status == "suspect":
            told.append((f"Suspect: {record.row.error}", -1, ""))
        for text, tile_id, host in told:
            kind = text.partition(":")[0].strip()
            groups.setdefault((kind, _shape(text)), []).append((slide_id, tile_id, text))
            hosts[kind, _shape(text)].update([host] if host else [])
    found = [
        ErrorGroup(
            kind=kind,
            message=members[0][2],
            tiles=sum(tile_id >= 0 for _, tile_id, _ in members),
            slides=tuple(dict.fromkeys(slide_id for slide_id, _, _ in members)),
            advice=_ADVICE.get(kind, _OTHERWISE),
            hosts=tuple(f"{host} ({n})" for host, n in hosts[kind, shape].most_common(5)),
        )
        for (kind, shape), members in groups.items()
    ]
    return sorted(found, key=lambda g: (-len(g.slides), -g.tiles, g.kind, g.message))


def _shape(text: str) -> str:
    """Return a message without the parts that differ between slides: paths, slide ids, numbers."""
    text = re.sub(r"(?i)\b(slide|image|part) \S+", r"\1 #", text)
    return re.sub(r"[-+]?\d[\w.]*", "#", re.sub(r"\S*/\S*", "/#", text))
