"""``wsiseg segment``: segment slides into a run folder."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed import CancelledError, Client
from distributed.comm import CommClosedError

from wsiseg import __version__
from wsiseg.cluster.connect import connect
from wsiseg.cluster.devices import compute_device, on_device
from wsiseg.cluster.placement import place
from wsiseg.cluster.remote import answer_of, dashboard_link, fitting_workers
from wsiseg.config import RunConfig
from wsiseg.decode import encode
from wsiseg.errors import DuplicateSlideError, InputError, OutputMismatchError, SchedulerLostError, one_line, plain_text
from wsiseg.fetch import is_address, shown
from wsiseg.log import log
from wsiseg.results.arithmetic import precision_text
from wsiseg.results.folder import RunFolder
from wsiseg.results.locate import absolute_inputs
from wsiseg.results.manifest import SlideInput, require_plain_names
from wsiseg.results.records import read_inputs
from wsiseg.results.run_record import RunNote
from wsiseg.results.slide_record import read_slide
from wsiseg.rows import ErrorRow, SlideRow
from wsiseg.run.drive import Drive, Progress
from wsiseg.run.facts import WorkerFacts, WorkerReport
from wsiseg.run.resolve import Resolved, resolve, with_device, with_stored_choices
from wsiseg.run.scratch import temporary_files
from wsiseg.run.shards import Shard, merge_if_last, write_tables
from wsiseg.run.suspect import all_good
from wsiseg.run.tasks import worker_facts
from wsiseg.run.watch import Watch
from wsiseg.run.worker import RunRequirements, WorkerSetup
from wsiseg.run.worker_pool import ANSWER_S, WorkerPool
from wsiseg.tables import sweep_partials

__all__ = ["Progress", "RunSummary", "segment"]

MAX_ASKED = 8
"""Maximum number of workers, each on another host, from which facts are requested until one answers."""

RECONNECT_S = 600.0
"""How long a client waits for a lost scheduler, s: long enough for the restart of a machine."""


@dataclass(frozen=True, slots=True)
class RunSummary:
    """Result of a run.

    Attributes
    ----------
    rows
        Statistics rows of all slides named (of a shard: its own), including those finished by earlier runs.
    hosts_aside
        Hosts that were excluded for a time, and why.
    left_out
        Lines of text about files next to the slides that were not used, and notes on the slides.
    precision
        Arithmetic of the network, and who chose it.
    """

    out: Path
    rows: list[SlideRow]
    errors: list[ErrorRow]
    seconds: float
    mm2_done: float
    digest: str
    weights: str
    hosts_aside: dict[str, str] = dataclasses.field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    kernels_s: float = 0.0
    precision: str = ""

    @property
    def ok(self) -> bool:
        """Whether every slide is done or is blank glass."""
        return all_good(self.rows)


def segment(
    slides: Sequence[SlideInput],
    out: Path,
    config: RunConfig,
    *,
    shard: Shard | None = None,
    note: RunNote | None = None,
    left_out: tuple[Sequence[str], Sequence[str]] = ((), ()),
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> RunSummary:
    """Segment slides into a run folder, resuming what an earlier run left there.

    Parameters
    ----------
    slides
        From ``wsiseg.results.manifest.collect_slides``.
    out
        Run folder; made if missing, resumed if it contains a run with the same result-changing settings.
    shard
        Segment only this share of the slides. Shards may use the folder at the same time; the last one writes the tables of
        the whole run.
    note
        Facts recorded in ``run.json`` (command line, time of start).
    left_out
        Lines about other files in the folders of slides, grouped by reason, and notes on the slides' names, for log and
        summary.
    on_progress
        Called with running totals after every task.

    Raises
    ------
    OutputMismatchError, OutputInUseError
        The folder belongs to a run with other settings, or to one that is still running.
    DuplicateSlideError
        The folder holds one of the slides under another id, so its nuclei would be counted twice.
    WeightsError, WorkersLostError
        The network cannot be loaded, or worker processes end repeatedly while loading it.
    SchedulerLostError
        The Dask scheduler is gone and did not return. Finished tiles are kept, and the same call resumes.
    DeviceBrokenError
        Every GPU stopped computing. Finished tiles are kept, and the same call resumes.
    OSError
        The disk is full. Finished tiles are kept, and the same call resumes.
    """
    start = time.perf_counter()
    folder = RunFolder(out.absolute())
    require_plain_names(slides)
    _require_text(folder.root)
    every, remote = absolute_inputs(slides, config)
    if config.schedule.remote:
        config = remote
    else:
        config = on_device(config, place(config).device)
    own = shard.take(every) if shard else every
    note = note or RunNote()
    noted = dataclasses.replace(note, command=tuple(shown(a) for a in note.command))
    config = _staged_apart(config, folder, shard, any(is_address(s.path) for s in own))
    progress = Progress(slides=len(own))
    with folder.exclusive(shard.name if shard else ""), temporary_files(folder.root):
        folder.create()
        _sweep(folder, own if shard else None)
        if shard:
            shard.enter(folder, every)
        _refuse_renamed(folder, every)
        with Watch(folder, config, own, progress, shard.name if shard else "") as watch:
            for event, lines in zip(("left_out", "note"), left_out, strict=True):
                for line in lines:
                    watch.event(event, text=line)
            rows, digest, weights = _rows(own, folder, config, noted, progress, on_progress, watch)
            ordered = [rows[s.slide_id] for s in own]
            errors = _collect_errors(folder, [s.slide_id for s in own])
            if not shard:
                write_tables(folder, ordered, errors)
    if shard:
        merge_if_last(folder)
    seconds = time.perf_counter() - start
    notices = (*(f"left out   {line}" for line in left_out[0]), *(f"note       {line}" for line in left_out[1]))
    done = (progress.mm2_done, digest, weights, watch.hosts_aside, notices, progress.kernels_s)
    precision = precision_text(folder.read_run())
    return RunSummary(folder.root, ordered, errors, seconds, *done, precision)


def _rows(
    slides: Sequence[SlideInput],
    folder: RunFolder,
    config: RunConfig,
    note: RunNote,
    progress: Progress,
    on_progress: Callable[[Progress], None],
    watch: Watch,
) -> tuple[dict[str, SlideRow], str, str]:
    """Run all slides, reconnecting if the scheduler is lost; return their rows by id, the digest, and the weights' name."""
    rows: dict[str, SlideRow] = {}
    give_up = 0.0  # set while waiting for a lost scheduler
    while True:
        try:
            with connect(config) as client:
                if config.schedule.remote:
                    link = dashboard_link(client)
                    watch.event("connected", scheduler=client.scheduler.address, dashboard=link)
                    progress.message = f"dashboard  {link}" if link else ""
                    on_progress(progress)
                resolved = _claimed(client, folder, config, note)
                facts, pinned = resolved.facts, resolved.config
                requirements = RunRequirements(__version__, resolved.digest, facts.model, facts.machine)
                setup = WorkerSetup(str(folder.root), pinned, requirements, pinned.schedule.device)
                callbacks = _pool_callbacks(progress, on_progress, watch)
                pool = WorkerPool(client, setup, *callbacks, remote=config.schedule.remote)
                pool.join()
                give_up = 0.0
                drive = Drive(pool, folder, resolved, progress, on_progress, watch, rows)
                drive.run([s for s in slides if s.slide_id not in rows])
                pool.leave()
                return rows, resolved.digest, f"{facts.model.weights}: {facts.licence}"
        except (SchedulerLostError, CancelledError, CommClosedError, InputError, TimeoutError) as err:
            lost = not isinstance(err, InputError)
            if not config.schedule.remote or not (lost or give_up):
                raise
            if give_up and time.monotonic() > give_up:
                raise SchedulerLostError(
                    f"The Dask scheduler was lost and did not come back within {RECONNECT_S:g} s. Finished tiles are kept: "
                    "start a scheduler and run the same command again."
                ) from err
            if not give_up:
                log.warning("the scheduler is lost (%s); waiting for it. Ctrl-C stops; the same command resumes", one_line(err))
                watch.counts["reconnects"] += 1
            give_up = give_up or time.monotonic() + RECONNECT_S
            progress.tiles, progress.mm2 = progress.tiles_done, progress.mm2_done
            progress.nuclei = sum(r.n_nuclei or 0 for r in rows.values())
            time.sleep(1.0)


def _pool_callbacks(
    progress: Progress, on_progress: Callable[[Progress], None], watch: Watch
) -> tuple[Callable[[str], None], Callable[[WorkerReport], None]]:
    """Return two callbacks for a worker pool: for messages to the user, and for workers that become ready."""

    def report(text: str) -> None:
        progress.message = text
        on_progress(progress)

    def ready(worker: WorkerReport) -> None:
        names = ("worker", "host", "seconds", "compiled", "loaded", "folder")
        watch.event("worker_ready", **{name: getattr(worker, name) for name in names})
        progress.kernels_s = max(progress.kernels_s, worker.seconds)
        if worker.compiled:
            kept = f"kept in {worker.folder}" if worker.folder else "compiled again by every worker: no folder is writable"
            took = f"compiled on {worker.host} in {worker.seconds:.1f} s"
            report(f"prepared   {worker.compiled} CPU kernels {took}, {kept}")

    return report, ready


def _claimed(client: Client, folder: RunFolder, asked: RunConfig, note: RunNote) -> Resolved:
    """Resolve what ``auto`` means, claim the folder, and return what the run computes with."""
    resolved = _resolve(client, folder, asked)
    try:
        _claim(folder, resolved, note)
    except OutputMismatchError:
        # another shard, on another kind of machine, has claimed the folder first, so its choice applies
        again = _resolve(client, folder, asked)
        if again.config == resolved.config:
            raise
        resolved = again
        _claim(folder, resolved, note)
    return resolved


def _claim(folder: RunFolder, resolved: Resolved, note: RunNote) -> None:
    facts = resolved.facts
    folder.claim(
        resolved.config, encode(facts.model), note, facts.processor, resolved.precision_choice, resolved=resolved.record
    )


def _resolve(client: Client, folder: RunFolder, asked: RunConfig) -> Resolved:
    """Resolve the options with the facts of a worker; a resumed run keeps the folder's choice."""
    remote = asked.schedule.remote
    # each GPU is tried in turn: one of several may be broken
    workers = fitting_workers(client) if remote else list(client.nthreads()) if asked.schedule.device == "cuda" else []
    config = with_device(asked, _asked(client, workers, compute_device, asked)) if remote else asked
    config = with_stored_choices(config, folder.read_run())
    facts: WorkerFacts = _asked(client, workers, worker_facts, str(folder.root), config, config.schedule.device)
    return resolve(asked, config, facts, None if remote else place(asked))


def _asked(client: Client, workers: Sequence[str], function: Callable[..., Any], *args: Any) -> Any:
    """Return the result of a function on the first of these workers (none: any) whose libraries and GPU work."""
    for address in workers[:MAX_ASKED]:
        future = client.submit(function, *args, workers=[address], pure=False)
        error: BaseException | None
        while True:
            try:
                error = future.exception(timeout=ANSWER_S)
                break
            except TimeoutError as err:
                error = err
                if address not in client.nthreads():  # it left, and no other worker can answer
                    break
        if error is None or isinstance(error, CancelledError):
            return future.result()
        log.warning("worker %s cannot report what it would compute with (%s); asking another", address, one_line(error))
    return answer_of(client, function, *args, **({"workers": list(workers)} if workers else {}))


def _staged_apart(config: RunConfig, folder: RunFolder, shard: Shard | None, fetches: bool) -> RunConfig:
    """Return the config with a staging folder for this client alone, which is the same when the run is resumed.

    Raises
    ------
    InputError
        Workers of a scheduler must fetch slides, but no folder on their disks is given.
    """
    schedule = config.schedule
    if schedule.stage:
        key = hashlib.sha256(f"{folder.root} {shard.name if shard else ''}".encode()).hexdigest()[:12]
        stage = str(Path(schedule.stage if schedule.remote else os.path.abspath(schedule.stage)) / f"wsiseg-stage-{key}")
        schedule = dataclasses.replace(schedule, stage=stage, fetch_to=stage if fetches else "")
    elif fetches and schedule.remote:
        raise InputError(
            "Slides at addresses are fetched by each host to its own disk: name a folder there with --stage, and its limit "
            "with --stage-gb."
        )
    elif fetches:
        schedule = dataclasses.replace(schedule, fetch_to=str(folder.root / ("staged" + (f"-{shard.name}" if shard else ""))))
    return dataclasses.replace(config, schedule=schedule)


def _sweep(folder: RunFolder, own: Sequence[SlideInput] | None) -> None:
    """Remove incomplete files of killed processes; a shard only those of its slides (``own``), as others are writing."""
    if own is None:
        for sub in ("nuclei", "features", "slides", "parts"):
            sweep_partials(folder.root / sub)
        return
    for slide in own:
        sweep_partials(folder.parts(slide.slide_id))
    mine = {f"{s.slide_id}{ending}" for s in own for ending in (".parquet", ".json", ".tissue.png", ".mask.jpg")}
    for sub in ("nuclei", "features", "slides"):
        for stale in (folder.root / sub).glob(".*.partial"):
            if stale.name[1:].rsplit(".", 2)[0] in mine:  # .<name>.<pid>-<random>.partial
                stale.unlink(missing_ok=True)


def _require_text(root: Path) -> None:
    """Raise ``InputError`` if the path of the run folder is not UTF-8; Parquet and Zarr libraries cannot write there."""
    if plain_text(str(root)) != str(root):
        raise InputError(f"Run folder {plain_text(str(root))}: its path holds bytes that are not UTF-8. Choose another --out.")


def _refuse_renamed(folder: RunFolder, slides: Sequence[SlideInput]) -> None:
    """Raise ``DuplicateSlideError`` if the folder has a slide under another id; its nuclei would be counted twice."""
    before = {old.path: slide_id for slide_id, old in read_inputs(folder).items() if folder.table(slide_id).is_file()}
    asked = {s.slide_id for s in slides}
    for s in slides:
        old = before.get(shown(s.path), s.slide_id)
        if old != s.slide_id and old not in asked:
            raise DuplicateSlideError(
                f"{plain_text(shown(s.path))} is slide {old!r} in {folder.root}, but {s.slide_id!r} now, perhaps because "
                f"slides of the same name were added. Give it the id {old!r} in a manifest (columns path, slide_id), or choose "
                "another --out."
            )


def _collect_errors(folder: RunFolder, slide_ids: Sequence[str]) -> list[ErrorRow]:
    return [error for slide_id in slide_ids for error in read_slide(folder, slide_id).errors]
