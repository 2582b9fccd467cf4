"""Record a run while it is running: its log, progress and counters, as files that any machine can read.

::

    RUN/inputs.jsonl              every slide ever requested, one line each, for status and --retry-failed
    RUN/log.jsonl                 events, one JSON object per line
    RUN/progress/run.json         totals, updated every few seconds; with shards one file for each

These files do not control the run: it continues if they cannot be written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

from wsiseg.config import RunConfig
from wsiseg.decode import OMITTED, encode
from wsiseg.fetch import absolute_place, shown
from wsiseg.log import EventLog, log
from wsiseg.results.folder import RunFolder
from wsiseg.results.manifest import SlideInput
from wsiseg.results.records import read_inputs
from wsiseg.results.slide_input import absolute_mask
from wsiseg.run.presence import Death, deaths, sweep_workers
from wsiseg.tables import atomic_write_bytes

__all__ = ["COUNTS", "ClientRecord", "Totals", "Watch"]

PROGRESS_INTERVAL_S = 5.0
"""Interval at which the progress file is rewritten, s."""


@dataclass(frozen=True, slots=True)
class ClientRecord:
    """``RUN/progress/<client>.json``: a client's running totals, counters and state.

    ``client`` and ``age_s`` are not in the file but set by the reader: the file's name, and the seconds since it was written.
    Raises ``ValueError`` for negative or non-finite amounts.
    """

    state: str
    elapsed_s: float
    slides: int
    slides_done: int
    mm2: float
    mm2_done: float
    tiles: int = 0
    tiles_done: int = 0
    tiles_failed: int = 0
    nuclei: int = 0
    retries: int = 0
    worker_deaths: int = 0
    hangs: int = 0
    reconnects: int = 0
    host: str = ""
    pid: int = 0
    hosts_aside: Mapping[str, str] = field(default_factory=dict)
    client: str = field(default="", metadata=OMITTED)
    age_s: float = field(default=0.0, metadata=OMITTED)
    other: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for impossible amounts, which a damaged file may hold."""
        amounts = {name: getattr(self, name) for name in ("elapsed_s", *_TOTALS, *COUNTS)}
        wrong = [name for name, value in amounts.items() if not 0 <= value < 1e15]
        if wrong:
            raise ValueError(f"{wrong[0]} is {amounts[wrong[0]]}")


class Totals(Protocol):
    """A run's running totals (``wsiseg.run.segment.Progress``)."""

    slides: int
    slides_done: int
    tiles: int
    tiles_done: int
    tiles_failed: int
    nuclei: int
    mm2: float
    mm2_done: float


class Watch:
    """Records one run; use it as a context manager around the run.

    Parameters
    ----------
    slides
        All slides of this client; they are added to ``inputs.jsonl``.
    totals
        Running totals, read whenever progress is written.
    shard
        Name of this client's share of the run, such as ``3-of-8``; empty: all of it.
    """

    def __init__(
        self, folder: RunFolder, config: RunConfig, slides: Sequence[SlideInput], totals: Totals, shard: str = ""
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.hosts_aside: dict[str, str] = {}
        """Hosts that were excluded for a time, and why."""
        self._folder, self._config, self._slides, self._totals = folder, config, slides, totals
        self._name = shard or "run"
        self._log = EventLog(folder.root / (f"log-{shard}.jsonl" if shard else "log.jsonl"))
        self._start = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write_progress_regularly, name="wsiseg progress", daemon=True)
        self._shared = bool(shard)

    def __enter__(self) -> Watch:
        """Start recording."""
        with contextlib.suppress(OSError):
            (self._folder.root / "progress").mkdir(parents=True, exist_ok=True)
            if not self._shared:
                sweep_workers(self._folder.workers)
                for stale in (self._folder.root / "progress").glob("*.json"):
                    stale.unlink(missing_ok=True)
            _add_inputs(self._folder, self._slides)
        log.addHandler(self._log)
        self.event("run_started", slides=len(self._slides), host=platform.node(), pid=os.getpid())
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None) -> None:
        """Record how the run ended."""
        self._ended.set()
        self._thread.join()
        stopped = kind is not None and issubclass(kind, (KeyboardInterrupt, SystemExit))  # by Ctrl-C, by SIGTERM
        end = "finished" if kind is None else "interrupted" if stopped else "failed"
        record = self._write(end)
        amounts = {name: getattr(record, name) for name in (*_TOTALS, *COUNTS)}
        self.event("run_ended", end=end, error="" if err is None else str(err), **amounts)
        log.removeHandler(self._log)

    def event(self, event: str, **fields: Any) -> None:
        """Add a line to the log."""
        self._log.event(event, **fields)

    def deaths_at(self, task: str) -> list[Death]:
        """Return what the workers of a task were doing when they ended unexpectedly; count and log each."""
        found = deaths(self._folder.workers, task)
        for death in found:
            kind = "hangs" if death.reason.startswith("TileTimeout") else "worker_deaths"
            self.counts[kind] += 1
            self.event(kind.removesuffix("s"), level="error", **dataclasses.asdict(death))
        return found

    def _write_progress_regularly(self) -> None:
        while not self._ended.wait(PROGRESS_INTERVAL_S):
            self._write("running")

    def _write(self, state: str) -> ClientRecord:
        """Write the client's record, and the metrics file if one is wanted; return the record."""
        elapsed_s = time.monotonic() - self._start
        totals, counts = self._totals, self.counts
        record = ClientRecord(
            state=state,
            elapsed_s=round(elapsed_s, 3),
            slides=totals.slides,
            slides_done=totals.slides_done,
            mm2=totals.mm2,
            mm2_done=totals.mm2_done,
            tiles=totals.tiles,
            tiles_done=totals.tiles_done,
            tiles_failed=totals.tiles_failed,
            nuclei=totals.nuclei,
            retries=counts["retries"],
            worker_deaths=counts["worker_deaths"],
            hangs=counts["hangs"],
            reconnects=counts["reconnects"],
            host=platform.node(),
            pid=os.getpid(),
            hosts_aside=dict(self.hosts_aside),
        )
        with contextlib.suppress(OSError):
            text = json.dumps(encode(record), indent=1)
            atomic_write_bytes(self._folder.root / "progress" / f"{self._name}.json", text.encode())
        if self._config.schedule.metrics_file:
            with contextlib.suppress(OSError):
                text = _prometheus(record, elapsed_s, str(self._folder.root), self._name)
                atomic_write_bytes(self._config.schedule.metrics_file, text.encode())
        return record


COUNTS = ("retries", "worker_deaths", "hangs", "reconnects")
"""Counters of a client in addition to its progress."""

_TOTALS = ("slides", "slides_done", "tiles", "tiles_done", "tiles_failed", "nuclei", "mm2", "mm2_done")

_METRICS = {
    "slides": ("gauge", "Slides requested"),
    "slides_done": ("counter", "Slides done or failed"),
    "tiles": ("gauge", "Tiles with tissue found so far"),
    "tiles_done": ("counter", "Tiles done or failed"),
    "tiles_failed": ("counter", "Tiles given up"),
    "nuclei": ("counter", "Nuclei found"),
    "mm2": ("gauge", "Tissue found so far, square millimetres"),
    "mm2_done": ("counter", "Tissue segmented, square millimetres"),
    "retries": ("counter", "Tiles and slides tried again"),
    "worker_deaths": ("counter", "Worker processes that ended unexpectedly during a task"),
    "hangs": ("counter", "Workers ended because a task took longer than --tile-timeout"),
    "reconnects": ("counter", "Times that the scheduler was lost and the client connected again"),
}


def _prometheus(record: ClientRecord, elapsed_s: float, run: str, name: str) -> str:
    """Return totals and counters in the Prometheus text format 0.0.4."""
    labels = ",".join(f'{k}="{_escaped(v)}"' for k, v in (("run", run), ("client", name)))
    lines = []
    for key, (kind, meaning) in _METRICS.items():
        metric = f"wsiseg_{key}_total" if kind == "counter" else f"wsiseg_{key}"
        lines += [f"# HELP {metric} {meaning}.", f"# TYPE {metric} {kind}", f"{metric}{{{labels}}} {getattr(record, key):.10g}"]
    for metric, meaning, value in (
        ("wsiseg_elapsed_seconds", "Time since this client started.", f"{elapsed_s:.3f}"),
        ("wsiseg_running", "1 during the run, 0 after its end.", str(int(record.state == "running"))),
    ):
        lines += [f"# HELP {metric} {meaning}", f"# TYPE {metric} gauge", f"{metric}{{{labels}}} {value}"]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _add_inputs(folder: RunFolder, slides: Sequence[SlideInput]) -> None:
    known = read_inputs(folder)
    lines = [json.dumps(dataclasses.asdict(_absolute(s))) + "\n" for s in slides if known.get(s.slide_id) != _absolute(s)]
    if not lines:
        return
    handle = os.open(folder.inputs, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(handle, ("\n" + "".join(lines)).encode())  # the newline ends an older line that was cut short
    finally:
        os.close(handle)


def _absolute(slide: SlideInput) -> SlideInput:
    """Return a slide for storage in the run folder: with absolute paths, and without secrets in its address."""
    return dataclasses.replace(slide, path=shown(absolute_place(slide.path)), tissue_mask=absolute_mask(slide.tissue_mask))
