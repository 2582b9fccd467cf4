"""Resolve ``auto`` in the options of a run from the facts of a machine, into one frozen value.

``segment`` uses the facts of a worker, since the client may lack PyTorch and have another device; ``plan`` and ``doctor`` use
those of this process. All of them use this module, so they give the same result.
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
        The options with the device, precision and engine that are used.
    facts
        What the workers compute with.
    precision_choice
        How the precision was chosen: ``automatic`` (by the processor) or ``chosen`` (by the user).
    placement
        Devices and threads of the workers on this machine; None: a scheduler has the workers.
    """

    config: RunConfig
    facts: WorkerFacts
    precision_choice: Literal["automatic", "chosen"]
    placement: Placement | None = None

    @property
    def digest(self) -> str:
        """Digest of everything that changes results."""
        return self.facts.model.digest(self.config)

    @property
    def record(self) -> ResolvedRecord:
        """Return the record for ``run.json``."""
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
    """Return the config with each precision or engine of ``auto`` replaced by that of the run in the folder."""
    for name in ("precision", "engine"):
        if stored is not None and getattr(config.predict, name) == "auto":
            value: Any = stored.results.get(f"predict.{name}", "auto")
            config = dataclasses.replace(config, predict=dataclasses.replace(config.predict, **{name: value}))
    return config


def with_device(config: RunConfig, device: Literal["cpu", "cuda"]) -> RunConfig:
    """Return the config with the device of a scheduler's worker."""
    return dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, device=device))


def resolve(asked: RunConfig, config: RunConfig, facts: WorkerFacts, placement: Placement | None) -> Resolved:
    """Return what a run computes with.

    Parameters
    ----------
    asked
        The options as the user gave them.
    config
        The options with the device that was found and the folder's choices, for which ``facts`` were determined.
    facts
        Facts of a machine that computes.
    """
    predict = dataclasses.replace(config.predict, precision=facts.precision, engine=facts.engine)
    choice: Literal["automatic", "chosen"] = "automatic" if asked.predict.precision == "auto" else "chosen"
    return Resolved(dataclasses.replace(config, predict=predict), facts, choice, placement)


def resolve_here(asked: RunConfig) -> Resolved:
    """Return what a new run on this machine would compute with; this loads the network."""
    placement = place(asked)
    config = on_device(asked, placement.device)
    with TemporaryDirectory(prefix="wsiseg-resolve-") as scratch:
        context = WorkerContext(RunFolder(Path(scratch)), config, "", placement.device, readers=0)
        try:
            return resolve(asked, config, context.worker_facts(""), placement)
        finally:
            context.close()
