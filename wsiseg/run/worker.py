"""Set up a Dask worker that joins a run: check that it computes the same results as the others, and create its context."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import dataclasses
import gc
import hashlib
import platform
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed import Status, Worker, WorkerPlugin, get_worker

from wsiseg import __version__
from wsiseg.backend import device_fault
from wsiseg.cluster.devices import device_label
from wsiseg.cluster.remote import is_reader
from wsiseg.config import RunConfig
from wsiseg.decode import encode
from wsiseg.errors import WsisegError, one_line
from wsiseg.log import log
from wsiseg.results.folder import RunFolder
from wsiseg.results.locate import local_config, local_path
from wsiseg.run.context import WorkerContext
from wsiseg.run.facts import ModelFacts, WorkerReport
from wsiseg.run.kernels import prepare_kernels, probe_device
from wsiseg.run.presence import Presence

__all__ = ["RunRequirements", "WorkerSetup", "at_work", "end_broken", "objections", "processor_objections", "report_of"]

UNLIMITED = 1e9
"""Amount of each Dask resource granted to a worker. Resources determine where a task may run; threads limit how many run."""


@dataclass(frozen=True, slots=True)
class RunRequirements:
    """What a worker must have to join a run: version of wsiseg, model facts, and the digest of these and the config.

    ``machine`` is a machine whose processor is known to match the run's (``wsiseg.predict.machine_id``).
    """

    wsiseg: str
    digest: str
    facts: ModelFacts
    machine: str = ""


def objections(requirements: RunRequirements, folder: RunFolder, config: RunConfig) -> list[str]:
    """Return the reasons why this process must not work for a run; each states what the run has and what this process has.

    Parameters
    ----------
    requirements
        What the client and the run's first worker have.
    folder
        The run folder under its path on this machine.
    config
        The config of the client.
    """
    found = []
    if requirements.wsiseg != __version__:
        found.append(f"wsiseg version: the run has {requirements.wsiseg}, this worker {__version__}")
    wanted = requirements.facts.weights_sha256
    try:
        from wsiseg.predict import weights_path

        sha256 = hashlib.sha256(weights_path(local_config(config).predict.weights).read_bytes()).hexdigest()
        if sha256 != wanted:
            found.append(f"weights sha256: the run has {wanted[:16]}, this worker {sha256[:16]}")
    except (OSError, WsisegError) as err:
        found.append(f"weights sha256: the run has {wanted[:16]}, this worker none ({one_line(err)})")
    if not found:  # otherwise the digest differs anyway
        digest = requirements.facts.digest(config)
        if digest != requirements.digest:
            found.append(f"config digest: the run has {requirements.digest}, this worker {digest}")
    try:
        record = folder.read_run()
    except WsisegError as err:
        return [*found, one_line(err)]
    if record is None or record.digest != requirements.digest:
        there = "no run" if record is None else f"the run {record.digest}"
        found.append(
            f"run folder: the run's is {requirements.digest}, this worker finds {there} in {folder.root} (see --path-map)"
        )
    return found


def processor_objections(requirements: RunRequirements, context: WorkerContext) -> list[str]:
    """Return the reasons why this process must not compute tiles of a run: it cannot load the network, or gets other maps.

    If other maps are accepted (``schedule.any_processor``), the processor is recorded in ``run.json`` instead.
    """
    from wsiseg.predict import machine_id

    try:
        if machine_id(context.device) != requirements.machine or not requirements.machine:
            context.folder.add_processor(context.arithmetic(), accept=context.config.schedule.any_processor)
    except (WsisegError, OSError, RuntimeError) as err:
        return [one_line(err)]
    return []


class WorkerSetup(WorkerPlugin):
    """Checks every worker, also those that are restarted or join later, and gives it the context of this run or refuses it.

    An accepted worker prepares its kernels and then gets Dask resources named after this run, and every task of the run
    requires one of them: ``tile`` is given to workers that compute, ``slide`` to workers that only read and write (started with
    ``--resources CPU=1`` in a cluster that also has ``GPU=1``), ``any`` to both. So a refused worker gets no task of this run
    but may work for another. The name is unique, so that several runs may share a cluster.
    """

    def __init__(self, folder: str, config: RunConfig, requirements: RunRequirements, device: str) -> None:
        self.name = f"wsiseg-{uuid.uuid4().hex}"
        self._args = (folder, config, requirements, device)
        self.report: WorkerReport | None = None
        """Result of the setup on this worker; None until it is known."""
        self.context: WorkerContext | None = None
        self.presence: Presence | None = None
        self._preparing: asyncio.Task[None] | None = None
        self._gpu = ""

    def resource(self, role: str) -> str:
        """Return the name of the resource for a role (``tile``, ``slide``, ``any``)."""
        return f"{self.name}-{role}"

    async def setup(self, worker: Worker) -> None:
        """Check the worker, report to the client, and start the preparation of its kernels.

        The preparation runs in the background, since Dask waits for the setup of all workers.
        """
        # Python collects garbage once more at exit, which takes half a second over torch's objects. On a busy machine Dask
        # would time out and kill the worker.
        atexit.register(gc.freeze)
        folder_name, config, requirements, _ = self._args
        folder = RunFolder(Path(local_path(folder_name, config.schedule.path_map)))
        reasons = await asyncio.to_thread(objections, requirements, folder, config)
        if reasons:
            await self._report(worker, refused="; ".join(reasons))
            return
        await self._report(worker, preparing=True)
        self._preparing = asyncio.create_task(self._get_ready(worker, folder))

    async def _get_ready(self, worker: Worker, folder: RunFolder) -> None:
        """Prepare the kernels, create the context, and start to accept tasks."""
        _, config, requirements, device = self._args
        declared = set(worker.state.total_resources)
        role = "slide" if is_reader(declared) else "tile"
        own_device = device if role == "tile" else "cpu"
        work = asyncio.ensure_future(asyncio.to_thread(prepare_kernels, own_device, features=config.write.features))
        await asyncio.wait({work})  # does not raise; an error is reported below as a refusal
        err = work.exception()
        if err is not None:
            await self._report(worker, refused=f"its CPU kernels cannot be compiled: {one_line(err)}")
            return
        context = WorkerContext(folder, local_config(config), requirements.digest, own_device)
        self._gpu = device_label(own_device)
        probe = asyncio.ensure_future(asyncio.to_thread(probe_device, context)) if self._gpu else None
        if probe is not None:
            await asyncio.wait({probe})
        fault = probe.exception() if probe is not None else None
        reasons = [f"{self._gpu} does not compute: {device_fault(fault) or one_line(fault)}"] if fault is not None else []
        if not reasons and role == "tile":
            reasons = await asyncio.to_thread(processor_objections, requirements, context)
        if reasons:
            context.close()
            await self._report(worker, refused="; ".join(reasons), broken=fault is not None)
            return
        self.context = context
        # without a nanny nothing would restart an ended worker, and a worker in a thread would end its whole process
        timeout_s = config.schedule.tile_timeout_s if worker.nanny else 0.0
        self.presence = Presence(folder.workers, worker.id, timeout_s, worker.address)
        await worker.set_resources(**{self.resource(r): UNLIMITED for r in (role, "any")})
        _wake(worker)
        await self._report(worker, role=role, **dataclasses.asdict(work.result()))

    async def _report(self, worker: Worker, **found: Any) -> None:
        name = str(worker.name)
        label = name if "://" not in name else ""
        self.report = WorkerReport(worker.address, label, platform.node(), gpu=self._gpu, **found)
        await worker.scheduler.log_event(topic=self.name, msg=encode(self.report))

    async def teardown(self, worker: Worker) -> None:
        """Close handles when the worker leaves or the run ends."""
        if self._preparing is not None:
            self._preparing.cancel()
        if self.presence is not None:
            self.presence.close()
            self.presence = None
        if self.context is not None:
            self.context.close()
            self.context = None
            if worker.status == Status.running:
                await worker.set_resources(**{self.resource(r): 0 for r in ("tile", "slide", "any")})


def report_of(setup: str, dask_worker: Worker) -> dict[str, object]:
    """Return the report of the named setup on a worker (``WorkerReport`` as plain values); empty if it is not known yet.

    The client calls this on the worker.
    """
    report: WorkerReport | None = getattr(dask_worker.plugins.get(setup), "report", None)
    return encode(report) if report is not None else {}


def _wake(worker: Worker) -> None:
    """Make the scheduler assign waiting tasks again.

    It does so when a worker joins or resumes after a pause, but not when a worker gets resources. A restarted worker joins
    before it gets its resources, so tasks submitted in between would otherwise wait forever.
    """
    if worker.status == Status.running:
        worker.status = Status.paused
        worker.status = Status.running


def end_broken(setup: str, reason: str) -> None:
    """End this worker, whose GPU stopped computing, from within a task; its nanny starts another with a new CUDA context.

    A worker without a nanny leaves the cluster instead, because its process may belong to a user's program.
    """
    worker = get_worker()
    presence: Presence | None = getattr(worker.plugins.get(setup), "presence", None)
    log.error("worker %s ends: its GPU stopped computing (%s)", worker.address, reason)
    if worker.nanny and presence is not None:
        presence.end_process(reason)
    worker.loop.add_callback(worker.close)


Busy = Callable[[str, str, int], contextlib.AbstractContextManager[None]]


def at_work(setup: str) -> tuple[WorkerContext, Busy]:
    """Return this worker's context for the run of the named ``WorkerSetup``, and a function ``busy`` that records its work.

    Call it within a task. ``with busy(kind, slide_id, tile_id):`` records the work while the block runs, with a deadline.
    """
    worker = get_worker()
    plugin: Any = worker.plugins[setup]
    context: WorkerContext | None = plugin.context
    presence: Presence | None = plugin.presence
    if context is None or presence is None:
        raise RuntimeError(f"worker setup {setup} is gone")
    task = str(worker.get_current_task())
    return context, lambda kind, slide_id, tile_id=-1: presence.busy(task, kind, slide_id, tile_id)
