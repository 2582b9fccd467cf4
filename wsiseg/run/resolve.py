"""What a run computes with: options and the facts of a machine -> one frozen value in which nothing is ``auto``.

``segment`` asks a worker for the facts, since the client may have no network library and another device; ``plan`` and
``doctor`` ask this process. All of them resolve here, so they say the same.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from wsiseg.cluster.devices import on_device
from wsiseg.cluster.placement import Placement, place
from wsiseg.config import RunConfig
from wsiseg.results.folder import RunFolder
from wsiseg.results.run_record import ResolvedRecord, RunRecord
from wsiseg.run.context import WorkerContext
from wsiseg.run.facts import WorkerFacts

__all__ = ["Resolved", "with_device", "resolve", "resolve_here", "with_stored_choices"]


@dataclass(frozen=True, slots=True)
class Resolved:
    """A run's settings, resolved.

    Attributes
    ----------
    config
        With the device, precision and engine that are used.
    facts
        What the workers compute with.
    precision_choice
        Who chose the precision: ``automatic`` (by the processor) or ``chosen`` (by the user).
    placement
        Of the workers on this machine; None: they are those of a scheduler.
    """

    config: RunConfig
    facts: WorkerFacts
    precision_choice: Literal["automatic", "chosen"]
    placement: Placement | None = None

    @property
    def digest(self) -> str:
        """Return the digest over everything that changes results."""
        return self.facts.model.digest(self.config)

    @property
    def record(self) -> ResolvedRecord:
        """Return what ``run.json`` says of it."""
        config, place_here = self.config, self.placement
        return ResolvedRecord(
            device=config.schedule.device,
            precision=config.predict.precision,
            engine=config.predict.engine,
            weights=self.facts.model.weights,
            tile_wpx=config.read.tile_wpx,
            halo_wpx=config.read.halo_wpx,
            reader=config.read.reader,
            workers=place_here.workers if place_here else None,
            threads_per_worker=place_here.threads_per_worker if place_here else None,
        )


def with_stored_choices(config: RunConfig, stored: RunRecord | None) -> RunConfig:
    """Return the config with the precision and engine of the folder's run where the user leaves the choice to wsiseg."""
    for name in ("precision", "engine"):
        if stored is not None and getattr(config.predict, name) == "auto":
            value: Any = stored.results.get(f"predict.{name}", "auto")
            config = dataclasses.replace(config, predict=dataclasses.replace(config.predict, **{name: value}))
    return config


def with_device(config: RunConfig, device: Literal["cpu", "cuda"]) -> RunConfig:
    """Return the config with the device that a worker of a scheduler has."""
    return dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, device=device))


def resolve(asked: RunConfig, config: RunConfig, facts: WorkerFacts, placement: Placement | None) -> Resolved:
    """Return what a run computes with.

    Parameters
    ----------
    asked
        The options as the user gave them.
    config
        The same on the device that was found, with the folder's choices: what ``facts`` were found with.
    facts
        Of a machine that computes.
    """
    predict = dataclasses.replace(config.predict, precision=facts.precision, engine=facts.engine)
    choice: Literal["automatic", "chosen"] = "automatic" if asked.predict.precision == "auto" else "chosen"
    return Resolved(dataclasses.replace(config, predict=predict), facts, choice, placement)


def resolve_here(asked: RunConfig) -> Resolved:
    """Return what a new run of this process's machine would compute with; its network is loaded for that."""
    placement = place(asked)
    config = on_device(asked, placement.device)
    with TemporaryDirectory(prefix="wsiseg-resolve-") as scratch:
        context = WorkerContext(RunFolder(Path(scratch)), config, "", placement.device, readers=0)
        try:
            return resolve(asked, config, context.worker_facts(""), placement)
        finally:
            context.close()
