"""What a worker says of itself: what it would compute with, and how its preparation went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from wsiseg.config import RunConfig
from wsiseg.decode import OMITTED, encode
from wsiseg.separate import SeparateParams
from wsiseg.types import Processor, Stain, StainMethod

__all__ = ["ModelFacts", "WorkerFacts", "WorkerReport"]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a run computes with beside its config: part of its digest, and of ``results`` in ``run.json``.

    ``separate`` are the parameters at the model's resolution, ``stain_aim`` the numbers that slides are normalized to (none:
    those of the method), ``quantization`` the rule by which a network in int8 was made.
    """

    weights: str
    weights_sha256: str
    mpp_model: float
    stain_method: StainMethod
    separate: SeparateParams
    stain_aim: tuple[float, ...] = field(default=(), metadata=OMITTED)
    quantization: str = field(default="", metadata=OMITTED)

    @property
    def aim(self) -> Stain:
        """Return what slides are normalized to."""
        return Stain(self.stain_method, self.stain_aim)

    def digest(self, config: RunConfig) -> str:
        """Return the digest of a run with this config that computes with this."""
        return config.digest(**encode(self))


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What a worker would compute with: the model, what ``auto`` means there, and who it is.

    ``licence`` is that of the weights, ``machine`` names the machine as it runs now (``wsiseg.predict.machine_id``).
    """

    model: ModelFacts
    precision: Literal["fp32", "bf16", "int8"]
    engine: Literal["eager", "inductor", "graph"]
    licence: str
    processor: Processor
    machine: str


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """What the setup of a worker found, as it travels through Dask's events (as plain values: versions may differ).

    Attributes
    ----------
    worker, name, host
        Its address, the name that it was given, and its machine.
    refused
        Why it must not work for the run; empty: it may.
    preparing
        It is not ready yet.
    broken
        Its GPU does not compute.
    role
        ``tile`` or ``slide``, where it is ready.
    seconds, compiled, loaded, folder
        How its kernels were prepared (``wsiseg.run.kernels.Prepared``).
    """

    worker: str
    name: str
    host: str
    refused: str = ""
    preparing: bool = False
    broken: bool = False
    role: str = ""
    gpu: str = ""
    seconds: float = 0.0
    compiled: int = 0
    loaded: int = 0
    folder: str = ""
    other: Mapping[str, object] = field(default_factory=dict)
