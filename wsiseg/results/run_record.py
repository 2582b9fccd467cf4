"""``RUN/run.json``: the options of a run and what it computed with. Only this module reads and writes it."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from wsiseg.decode import OMITTED, read_record
from wsiseg.errors import FormatError
from wsiseg.types import Processor

__all__ = ["Host", "ResolvedRecord", "RunNote", "RunRecord", "differing_results", "read_run_record"]


@dataclass(frozen=True, slots=True)
class RunNote:
    """Who started a run, when, and by which command."""

    command: tuple[str, ...] = field(default=(), metadata=OMITTED)
    created: str = field(default="", metadata=OMITTED)
    user: str | None = field(default=None, metadata=OMITTED)
    note: str = field(default="", metadata=OMITTED)


@dataclass(frozen=True, slots=True)
class Host:
    """The client's machine."""

    name: str = ""
    platform: str = ""
    python: str = ""
    other: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def here(cls) -> Host:
        """Return this machine."""
        return cls(platform.node(), platform.platform(), platform.python_version())


@dataclass(frozen=True, slots=True)
class ResolvedRecord:
    """What a run computes with, after every ``auto`` was resolved.

    ``reader`` may be ``auto``, because it is chosen for each slide and recorded in the slide's row. ``workers`` and
    ``threads_per_worker`` are None if a scheduler has the workers.
    """

    device: str
    precision: str
    engine: str
    weights: str
    tile_wpx: int
    halo_wpx: int
    reader: str
    workers: int | None = None
    threads_per_worker: int | None = None
    other: Mapping[str, object] = field(default_factory=dict)

    @property
    def words(self) -> str:
        """Return the record as one line of text."""
        where = "the scheduler's workers" if self.workers is None else f"{self.workers} workers"
        at_once = f", {self.threads_per_worker} tiles at once in each" if (self.threads_per_worker or 1) > 1 else ""
        how = f"{self.precision} ({self.engine}), weights {self.weights}, tiles of {self.tile_wpx} px"
        return f"{self.device}, {where}{at_once}, {how}"


@dataclass(frozen=True, slots=True)
class RunRecord:
    """The record of a run in its folder.

    Attributes
    ----------
    results
        ``{"stage.field": value}`` of everything that changes results, including the network (weights, their SHA-256,
        resolution, ...). They must be equal when the run is resumed.
    config
        All options, by stage; another version of wsiseg may have written options that this version does not have.
    processors
        Processors that computed the run's maps; all others are compared with the first.
    resolved
        What the last client that wrote this record computed with; None: written by an earlier version, or imported.
    precision_choice
        ``automatic`` or ``chosen``; empty: not recorded.
    other
        Fields of a newer version, which are kept when the record is written again.
    """

    results: Mapping[str, object]
    digest: str = ""
    wsiseg: str = ""
    config: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    host: Host = field(default_factory=Host)
    processors: tuple[Processor, ...] = ()
    precision_choice: str = ""
    resolved: ResolvedRecord | None = field(default=None, metadata=OMITTED)
    command: tuple[str, ...] = field(default=(), metadata=OMITTED)
    created: str | None = field(default=None, metadata=OMITTED)
    user: str | None = field(default=None, metadata=OMITTED)
    note: str = field(default="", metadata=OMITTED)
    other: Mapping[str, object] = field(default_factory=dict)

    @property
    def precision(self) -> str:
        """Arithmetic of the network; empty if it is not recorded or the run was imported."""
        return str(self.results.get("predict.precision", ""))

    @property
    def weights(self) -> str:
        """Name of the weights; empty for an import."""
        return str(self.results.get("weights", ""))

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of the file of the weights; empty for an import."""
        return str(self.results.get("weights_sha256", ""))

    @property
    def tile_wpx(self) -> int:
        """Side of a tile's core, working px. Raises ``FormatError`` if it is not recorded."""
        side = self.results.get("read.tile_wpx")
        if not isinstance(side, int) or side <= 0:
            raise FormatError(f"run.json: expected results.read.tile_wpx to be a number of working px, got {side!r}.")
        return side


def read_run_record(path: Path) -> RunRecord | None:
    """Return a run's record, or None if there is none. Raises ``FormatError`` if it is damaged or not of wsiseg."""
    try:
        return read_record(RunRecord, path, "run record", "Choose another --out, or move the file away to start again.")
    except FileNotFoundError:
        return None


def differing_results(old: RunRecord, results: Mapping[str, object]) -> list[str]:
    """Return one line for each setting that changes results and differs between a folder and a run."""
    both = sorted(set(old.results) | set(results))
    return [
        f"  {k}: folder has {old.results.get(k)!r}, this run has {results.get(k)!r}"
        for k in both
        if old.results.get(k) != results.get(k)
    ]
