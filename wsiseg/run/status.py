"""The state of a run and its failures, from its folder alone: on any machine that sees the folder, during the run too."""

from __future__ import annotations

import json
import math
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsiseg.errors import FormatError
from wsiseg.results.arithmetic import precision_text
from wsiseg.results.folder import RunFolder
from wsiseg.results.records import read_inputs
from wsiseg.run.presence import read_workers
from wsiseg.run.watch import COUNTS
from wsiseg.schema import ERRORS, SLIDE_STATUSES, SLIDES

__all__ = ["ErrorGroup", "RunStatus", "group_errors", "run_status", "slide_records"]

SILENT_S = 60.0
"""A client rewrites its progress file every few seconds; after this time without an update it is considered dead, s."""

TIMED_STAGES = ("read", "normalize", "predict", "separate", "vectorize", "write")


@dataclass(frozen=True, slots=True)
class RunStatus:
    """The state of a run.

    Attributes
    ----------
    state
        ``running``, ``finished``, ``interrupted``, ``failed``, ``silent`` (no update for a minute or more), or ``unknown``.
    slides
        Number of slides by ``wsiseg.schema.SLIDE_STATUSES``, ``in_work`` and ``waiting``.
    tiles_done, tiles_failed
        Of all slides, including those in progress.
    nuclei, tissue_mm2
        In finished tables.
    mm2_per_s, slides_per_h, eta_s
        Of the clients that run or ended last, by their own monotonic clocks; None if there are no data yet.
    precision
        Arithmetic of the network, and whether it was chosen by the user.
    counts
        Retries, worker deaths, hangs and reconnects.
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
    clients: list[dict[str, Any]]
    workers: list[dict[str, Any]]
    rows: dict[str, dict[str, Any]] = field(repr=False, default_factory=dict)
    precision: str = ""


def slide_records(folder: RunFolder) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Yield (slide id, its JSON) of every slide that was decided; None in place of one that cannot be read."""
    for path in sorted((folder.root / "slides").glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            yield path.stem, record if _is_record(record) else None
        except (OSError, ValueError):
            yield path.stem, None


def _is_record(record: Any) -> bool:
    """Return whether a slide's JSON has the shape of one: the row's fields, numbers where numbers belong, errors as a list."""
    if not isinstance(record, dict) or not isinstance(record.get("row"), dict) or not isinstance(record.get("errors"), list):
        return False
    row, errors = record["row"], record["errors"]
    numbers = [row.get(c.name) for c in SLIDES if c.arrow != "string"]
    used = {"status", "n_nuclei", "tissue_mm2", "tiles_done", "tiles_failed", *(f"seconds_{s}" for s in TIMED_STAGES)}
    return (
        used <= set(row)
        and all(v is None or (isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)) for v in numbers)
        and all(isinstance(e, dict) and {c.name for c in ERRORS} - {"host", "worker"} <= set(e) for e in errors)
        and all(type(e["tile_id"]) is int and isinstance(e["error"], str) for e in errors)
    )


def run_status(root: Path) -> RunStatus:
    """Return the state of the run in a folder.

    Raises
    ------
    FormatError
        The folder holds no run.
    """
    folder = RunFolder(root)
    inputs = read_inputs(folder)
    record = folder.read_run()
    if not inputs and record is None:
        raise FormatError(f"{root} holds no wsiseg run (no run.json). Name the folder given to wsiseg segment as --out.")
    rows = {slide_id: record["row"] for slide_id, record in slide_records(folder) if record is not None}
    begun = {p.name: sum(1 for _ in p.glob("*.parquet")) for p in (root / "parts").glob("*") if p.is_dir()}
    in_work = {name for name in begun if name not in rows or rows[name]["status"] == "partial"}
    clients = _clients(folder)
    live = any(c["state"] == "running" and c["age_s"] < SILENT_S for c in clients)
    slides = Counter(str(row["status"]) for row in rows.values())
    slides["in_work"] = sum(name not in rows for name in in_work)
    slides["waiting"] = len(set(inputs) - set(rows) - in_work)
    rate, slides_per_h = _rates(clients)
    return RunStatus(
        state=_state(clients, live),
        slides={name: slides[name] for name in (*SLIDE_STATUSES, "in_work", "waiting")},
        tiles_done=sum(int(r["tiles_done"] or 0) for r in rows.values()) + sum(begun[n] for n in in_work if n not in rows),
        tiles_failed=sum(int(r["tiles_failed"] or 0) for r in rows.values()),
        nuclei=sum(int(r["n_nuclei"] or 0) for r in rows.values()),
        tissue_mm2=sum(float(r["tissue_mm2"] or 0) for r in rows.values()),
        mm2_per_s=rate,
        slides_per_h=slides_per_h,
        eta_s=_eta_s(clients, rows, rate) if live else None,
        counts={k: sum(int(c.get(k, 0)) for c in clients) for k in COUNTS},
        clients=clients,
        workers=[{**w, "age_s": _age_s(folder.workers / f"{w['id']}.json")} for w in read_workers(folder.workers)],
        rows=rows,
        precision=precision_text(record or {}),
    )


def _clients(folder: RunFolder) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for path in sorted((folder.root / "progress").glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # gone meanwhile
        if _is_progress(record):  # else of another version, or damaged
            aside = record.get("hosts_aside")
            reasons = {str(k): str(v) for k, v in aside.items()} if isinstance(aside, dict) else {}
            found.append({**record, "client": path.stem, "age_s": _age_s(path), "hosts_aside": reasons})
    return found


def _is_progress(record: Any) -> bool:
    """Return whether a client's progress file has the shape of one: a state, and numbers where numbers belong."""
    if not isinstance(record, dict) or not isinstance(record.get("state"), str):
        return False
    needed = [record.get(name) for name in ("slides", "slides_done", "mm2", "mm2_done", "elapsed_s")]
    return all(_is_amount(v) for v in needed) and all(_is_amount(record.get(name, 0)) for name in COUNTS)


def _is_amount(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e15


def _age_s(path: Path) -> float:
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except OSError:
        return 0.0


def _state(clients: list[dict[str, Any]], live: bool) -> str:
    if live:
        return "running"
    states = {str(c["state"]) for c in clients}
    if "running" in states:
        return "silent"
    return next((s for s in ("failed", "interrupted", "finished") if s in states), "unknown")


def _rates(clients: list[dict[str, Any]]) -> tuple[float | None, float | None]:
    """Return mm2 a second and slides an hour, summed over clients that have done something."""
    worked = [c for c in clients if c.get("mm2_done") and c.get("elapsed_s")]
    if not worked:
        return None, None
    rate = sum(float(c["mm2_done"]) / float(c["elapsed_s"]) for c in worked)
    return rate, sum(3600 * int(c["slides_done"]) / float(c["elapsed_s"]) for c in worked)


def _eta_s(clients: list[dict[str, Any]], rows: dict[str, dict[str, Any]], rate: float | None) -> float | None:
    """Return seconds to the end: known tissue that is left, and for slides not opened yet the mean of those that were."""
    if not rate:
        return None
    live = [c for c in clients if c["state"] == "running" and c["age_s"] < SILENT_S]
    known = sum(max(0.0, float(c["mm2"]) - float(c["mm2_done"])) for c in live)
    done = [float(r["tissue_mm2"]) for r in rows.values() if r["tissue_mm2"]]
    if not done:
        return None if sum(int(c["slides"]) for c in live) > 1 else known / rate
    left = sum(int(c["slides"]) - int(c["slides_done"]) for c in live)
    mean = sum(done) / len(done)
    return max(known, left * mean) / rate


@dataclass(frozen=True, slots=True)
class ErrorGroup:
    """Failures whose messages differ only in numbers and paths; ``hosts`` are those of the last tries, most failures first."""

    kind: str
    message: str
    tiles: int
    slides: tuple[str, ...]
    advice: str
    hosts: tuple[str, ...] = ()


_ADVICE = {
    "MissingMppError": "Give --mpp, or a manifest with a column mpp; then --retry-failed.",
    "ImplausibleMppError": "Give the true --mpp for these slides, or confirm the file's with it; then --retry-failed.",
    "AnisotropicMppError": "Give the right --mpp for these slides; then --retry-failed.",
    "SlideOpenError": "Are the files there, readable and complete? Copy them again from their source; then --retry-failed.",
    "TileReadError": "These regions cannot be decoded: copy the files again from their source; then --retry-failed.",
    "FormatError": "A file of the run or a tissue mask is damaged: see the message; then --retry-failed.",
    "TileTimeout": "Reading or computing hung: check the storage, or give a longer --tile-timeout; then --retry-failed.",
    "WorkerDied": "The worker crashed or was killed at them each time. Out of memory: fewer --workers. A damaged file may "
    "crash a decoder: copy it again; then --retry-failed.",
    "MemoryError": "Fewer --workers, then --retry-failed.",
    "OutOfMemoryError": "Fewer --workers-per-gpu, then --retry-failed.",
    "OSError": "Check the disk and the network mount; then --retry-failed.",
    "Suspect": "Look at the slides. Is the scale right (--mpp)? Does the mask fit (--tissue-mask)? Is it H&E? The same command "
    "with the right ones segments these slides again.",
    "KilledWorker": "Workers died at these tiles: see WorkerDied in RUN/log.jsonl; then --retry-failed.",
}
_OTHERWISE = "See RUN/log.jsonl; then --retry-failed. If it stays, it is a defect of wsiseg: report it with this message."


def group_errors(root: Path) -> list[ErrorGroup]:
    """Return what failed or is suspect in a run, grouped by message, most slides first.

    Raises
    ------
    FormatError
        The folder holds no run.
    """
    folder = RunFolder(root)
    if folder.read_run() is None:
        raise FormatError(f"{root} holds no wsiseg run (no run.json). Name the folder given to wsiseg segment as --out.")
    groups: dict[tuple[str, str], list[tuple[str, int, str]]] = {}
    hosts: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for slide_id, record in slide_records(folder):
        if record is None:
            text = "FormatError: the slide's JSON cannot be read"
            groups.setdefault(("FormatError", text), []).append((slide_id, -1, text))
            continue
        row = record["row"]
        suspect = [{"error": f"Suspect: {row.get('error')}", "tile_id": -1}] if row["status"] == "suspect" else []
        for error in record.get("errors", []) + suspect:
            text = str(error["error"])
            kind = text.partition(":")[0].strip()
            groups.setdefault((kind, _shape(text)), []).append((slide_id, int(error["tile_id"]), text))
            hosts[kind, _shape(text)].update([str(error["host"])] if error.get("host") else [])
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
    """Return a message without what differs between slides: paths, the words after ``slide``, numbers."""
    text = re.sub(r"(?i)\b(slide|image|part) \S+", r"\1 #", text)
    return re.sub(r"[-+]?\d[\w.]*", "#", re.sub(r"\S*/\S*", "/#", text))
