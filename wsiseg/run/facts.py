"""What a worker reports to the client: what it would compute with, and how its preparation went."""

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
    """What a run computes with in addition to its config: part of its digest and of ``results`` in ``run.json``.

    ``separate`` are the parameters at the model's resolution. ``stain_aim`` are the numbers of the target stain (empty: the
    default of the method). ``quantization`` names the rule by which the weights were quantized to int8 (empty: not int8).
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
        """Return the stain to which slides are normalized."""
        return Stain(self.stain_method, self.stain_aim)

    def digest(self, config: RunConfig) -> str:
        """Return the digest of a run with this config and these facts."""
        return config.digest(**encode(self))


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What a worker would compute with: the model, the resolved values of ``auto``, and the machine.

    ``licence`` is the licence of the weights, ``machine`` identifies the machine and its boot (``wsiseg.predict.machine_id``).
    """

    model: ModelFacts
    precision: Literal["fp32", "bf16", "int8"]
    engine: Literal["eager", "inductor", "graph"]
    licence: str
    processor: Processor
    machine: str


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """Result of the setup of a worker, sent through Dask events as plain values, because versions of wsiseg may differ.

    Attributes
    ----------
    worker, name, host
        Address of the worker, its Dask name, and its machine.
    refused
        Why the worker must not work for the run; empty if it may.
    preparing
        True while the worker is not ready yet.
    broken
        True if its GPU does not compute.
    role
        ``tile`` or ``slide`` once it is ready.
    seconds, compiled, loaded, folder
        As in ``wsiseg.run.kernels.Prepared``.
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
