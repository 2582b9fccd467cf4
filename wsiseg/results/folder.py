"""The run folder: the only state of a run.

::

    RUN/run.json                     versions, config, weights, host; checked when a run is resumed
    RUN/nuclei/<slide_id>.parquet    one GeoParquet table per slide
    RUN/maps/<slide_id>.zarr         density, mean area, material and tissue fraction as an OME-Zarr pyramid
    RUN/features/<slide_id>.parquet  of ``segment --features`` or ``wsiseg features``, with the rows of the table
    RUN/cells/<slide_id>.parquet     cells from ``wsiseg cells``, with the rows of the table
    RUN/slides/<slide_id>.json       slide facts, constants (stain), statistics, errors
    RUN/slides/<slide_id>.tissue.png tissue mask as used
    RUN/slides/<slide_id>.mask.jpg   the slide with the mask's outline, pen marks, and the windows sampled outside
    RUN/slides.parquet, slides.csv   one row per slide
    RUN/errors.parquet               failures with their reasons
    RUN/parts/<slide_id>/            tiles done so far; removed when the slide is complete
    RUN/workers/                     what each worker is doing (see ``wsiseg.run.presence``)
    RUN/inputs.jsonl, log.jsonl, progress/   log and progress of the run (see ``wsiseg.run.watch``)
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from wsiseg import __version__
from wsiseg.config import RunConfig
from wsiseg.decode import encode
from wsiseg.errors import InputError, OutputInUseError, OutputMismatchError
from wsiseg.results.arithmetic import with_processor
from wsiseg.results.run_record import Host, ResolvedRecord, RunNote, RunRecord, differing_results, read_run_record
from wsiseg.tables import atomic_create_bytes, atomic_write_bytes
from wsiseg.types import Processor

__all__ = ["RunFolder"]


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of one run, its record, and its locks."""

    root: Path

    def table(self, slide_id: str) -> Path:
        """Return the path of the polygon table of a slide."""
        return self.root / "nuclei" / f"{slide_id}.parquet"

    def slide_json(self, slide_id: str) -> Path:
        """Return the path of the JSON with a slide's facts and statistics."""
        return self.root / "slides" / f"{slide_id}.json"

    def job_json(self, slide_id: str) -> Path:
        """Return the path of the JSON with a slide's constants while it is in progress."""
        return self.parts(slide_id) / "job.json"

    def tissue_png(self, slide_id: str) -> Path:
        """Return the path of the tissue mask as used."""
        return self.root / "slides" / f"{slide_id}.tissue.png"

    def mask_jpg(self, slide_id: str) -> Path:
        """Return the path of the picture of the slide with its tissue mask drawn on it."""
        return self.root / "slides" / f"{slide_id}.mask.jpg"

    def parts(self, slide_id: str) -> Path:
        """Return the path of the folder of a slide's finished tiles."""
        return self.root / "parts" / slide_id

    def part(self, slide_id: str, tile_id: int) -> Path:
        """Return the path of the part file of one tile."""
        return self.parts(slide_id) / f"{tile_id:06d}.parquet"

    def outside_part(self, slide_id: str, tile_id: int) -> Path:
        """Return the path of the part file of one window sampled outside the tissue mask."""
        return self.parts(slide_id) / "outside" / f"{tile_id:06d}.parquet"

    def thumbnail_png(self, slide_id: str) -> Path:
        """Return the path of the thumbnail on which the mask will be drawn, while a slide is in progress."""
        return self.parts(slide_id) / "thumbnail.png"

    @property
    def workers(self) -> Path:
        """Path of the folder in which workers record what they are doing."""
        return self.root / "workers"

    @property
    def inputs(self) -> Path:
        """Path of the list of all slides that were requested for this run."""
        return self.root / "inputs.jsonl"

    @property
    def run_json(self) -> Path:
        """Path of the run record."""
        return self.root / "run.json"

    def create(self) -> None:
        """Make the folders."""
        for name in ("nuclei", "slides", "parts"):
            (self.root / name).mkdir(parents=True, exist_ok=True)

    def read_run(self) -> RunRecord | None:
        """Return the run record, or None if there is none. Raises ``FormatError`` if it is damaged."""
        return read_run_record(self.run_json)

    def claim(
        self,
        config: RunConfig,
        facts: Mapping[str, object],
        note: RunNote,
        arithmetic: Processor | None = None,
        precision_choice: str = "",
        resolved: ResolvedRecord | None = None,
    ) -> str:
        """Record the settings that change results, or check them against those in the folder; return the digest.

        Parameters
        ----------
        facts
            What the run computes with in addition to its config, as plain values.
        arithmetic
            Processor that computes, from ``wsiseg.predict.arithmetic_of``.
        precision_choice
            ``automatic`` or ``chosen``; not changed if the folder has a record.

        Raises
        ------
        OutputMismatchError
            The folder was written with settings that give other results, or by a processor that gives other maps; the message
            states the differences.
        """
        with self._record_held():
            digest = self._claimed(config, facts, note, arithmetic, precision_choice, resolved)
        return digest or self.claim(config, facts, note, arithmetic, precision_choice, resolved)

    def add_processor(self, arithmetic: Processor, *, accept: bool) -> None:
        """Record a processor that joins the run. Raises ``OutputMismatchError`` if it gives other maps and not ``accept``."""
        with self._record_held():
            record = self.read_run()
            if record is None:
                return
            now = with_processor(record.processors, arithmetic, record.precision, accept=accept)
            if now != record.processors:
                atomic_write_bytes(self.run_json, _text_of(dataclasses.replace(record, processors=now)))

    @contextlib.contextmanager
    def _record_held(self) -> Iterator[None]:
        """Lock ``run.json`` for a change, because several shards and workers may change it at the same time."""
        with (self.root / ".run-json.lock").open("a") as handle:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _claimed(
        self,
        config: RunConfig,
        facts: Mapping[str, object],
        note: RunNote,
        arithmetic: Processor | None,
        precision_choice: str,
        resolved: ResolvedRecord | None,
    ) -> str:
        """Claim the folder under its lock, see ``claim``; return "" if another shard claimed it first: its settings apply."""
        results = json.loads(json.dumps({**config.result_fields(), **facts}, sort_keys=True))
        digest = config.digest(**facts)
        old = self.read_run()
        if old is not None and old.results != results:
            raise OutputMismatchError(
                f"Output folder {self.root} was made with settings that give other results:\n"
                + "\n".join(differing_results(old, results))
                + "\nRun with the folder's settings to resume it, or choose another --out."
            )
        processors = old.processors if old is not None else ()
        if arithmetic is not None:
            accept = config.schedule.any_processor
            processors = with_processor(processors, arithmetic, config.predict.precision, accept=accept)
        record = RunRecord(
            results=results,
            digest=digest,
            wsiseg=__version__,
            config=config.as_dict(),
            host=Host.here(),
            processors=processors,
            precision_choice=precision_choice,
            resolved=resolved,
            command=note.command,
            created=note.created or None,
            user=note.user,
            note=note.note,
        )
        if old is None:
            return digest if atomic_create_bytes(self.run_json, _text_of(record)) else ""
        created, choice = old.created or record.created, old.precision_choice or precision_choice
        record = dataclasses.replace(record, created=created, precision_choice=choice, other=old.other)
        atomic_write_bytes(self.run_json, _text_of(record))
        return digest

    @contextlib.contextmanager
    def exclusive(self, shard: str = "") -> Iterator[None]:
        """Lock the folder for one client.

        Shards (``shard``, such as ``3-of-8``) share the lock of the folder, and each locks its own name; a run without shards,
        or a merge, gets the folder only if no shard runs. These are advisory locks on open files, which the kernel releases
        when the process ends, so that a killed run leaves no stale lock.

        Raises
        ------
        OutputInUseError
            Another client has locked the folder.
        InputError
            The folder cannot be written to.
        """
        with contextlib.ExitStack() as held:
            held.enter_context(self._locked(".in-use", fcntl.LOCK_SH if shard else fcntl.LOCK_EX))
            if shard:
                held.enter_context(self._locked(f".in-use-{shard}", fcntl.LOCK_EX))
            yield

    @contextlib.contextmanager
    def _locked(self, name: str, kind: int) -> Iterator[None]:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            handle = _open_lock(self.root / name)
        except OSError as err:
            raise InputError(
                f"Run folder {self.root} cannot be written to: {err.strerror or err}. Choose another --out."
            ) from err
        try:
            try:
                fcntl.flock(handle, kind | fcntl.LOCK_NB)
            except BlockingIOError as err:
                raise OutputInUseError(
                    f"Another wsiseg run is writing to {self.root}. Wait for it, stop it, or choose another --out."
                ) from err
            except OSError:
                pass  # no locks on some network mounts; sharing is safe, because parts are atomic and deterministic
            yield
        finally:
            os.close(handle)


def _text_of(record: RunRecord) -> bytes:
    return json.dumps(encode(record), indent=1, sort_keys=True, default=str).encode()


def _open_lock(path: Path) -> int:
    """Open a lock file; its permissions follow the umask, so that members of a group can resume each other's runs.

    A lock file of another user that is not writable is opened for reading, which is enough for locking.
    """
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:
        return os.open(path, os.O_RDONLY)
