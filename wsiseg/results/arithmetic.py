"""Compare the processors that compute a run: one that gives other maps than the first is refused, or recorded if allowed.

``run.json`` lists the run's ``processors``; all others are compared with the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from wsiseg.errors import OutputMismatchError, first_names
from wsiseg.results.run_record import RunRecord
from wsiseg.types import Processor

__all__ = ["mixed_precision_note", "precision_text", "with_processor"]

MEASURED = "benchmarks/results/precision.json"


def same_maps(a: Processor, b: Processor) -> bool:
    """Return whether two processors (see ``wsiseg.predict.arithmetic_of``) give the same maps.

    GPUs of the same name and library version count as equal, because a GPU library may choose kernels by the free memory.
    """
    one_gpu = a.processor == b.processor and a.device == b.device == "cuda"
    return a.digest == b.digest or one_gpu


def with_processor(known: Sequence[Processor], here: Processor, precision: str, *, accept: bool) -> tuple[Processor, ...]:
    """Return the processors of a run, with this one added.

    Raises
    ------
    OutputMismatchError
        The maps of this processor differ from those of the run, and ``accept`` is not set; the message names both processors.
    """
    if any(same_maps(here, processor) for processor in known):
        return tuple(known)
    if not known or accept:
        return (*known, here)
    run, advice = known[0], "Use machines of one kind"
    if precision != "int8":
        advice += "; or start a new --out with --precision int8, which is equal on every x86 processor"
    raise OutputMismatchError(
        f"In {precision} this processor gives other maps than the run's, so tiles would depend on the processor.\n"
        f"  run:  {_named(run)}\n  here: {_named(here)}\n{advice}; or accept it with --any-processor, which run.json records."
    )


def precision_text(record: RunRecord | None) -> str:
    """Return in one line the precision of a run (``run.json``), whether the user chose it, and whether tiles may differ."""
    if record is None or not record.precision:
        return ""
    precision, choice = record.precision, record.precision_choice
    text = f"{precision}, {choice}" if choice else precision
    if choice == "automatic":
        text += f" for this processor; other processors may use another, unless --precision {precision} is given"
    if len(record.processors) > 1:
        names = "; ".join(_named(p) for p in record.processors)
        text += f". Tiles differ in their last bits between processors (--any-processor): {names}"
    return text


def mixed_precision_note(records: Mapping[str, RunRecord | None]) -> str:
    """Return a note on how combined runs (``run.json`` by name) differ in precision; empty if they do not.

    The figures are those of ``benchmarks/precision.py``: validation images of four sets, both weights.
    """
    by_precision: dict[str, list[str]] = {}
    for name, record in records.items():
        if record is not None and record.precision:
            by_precision.setdefault(record.precision, []).append(name)
    if len(by_precision) < 2:
        return ""
    parts = " and ".join(f"{precision} ({first_names(names, 3)})" for precision, names in sorted(by_precision.items()))
    return (
        f"these runs were computed in {parts}. Measured against fp32 on annotated images ({MEASURED}): "
        f"bf16 {DIFFERENCES['bf16']}; int8 {DIFFERENCES['int8']}. For equal results segment all with one --precision."
    )


DIFFERENCES = {
    "bf16": "counts within 0.4 % in each set, mean area within 0.4 %, PQ within 0.003",
    "int8": "counts within 1.9 % in each set (0.5 % more in all), mean area within 0.7 %, PQ within 0.002",
}
"""Measured differences of counts, areas and PQ from fp32."""


def _named(processor: Processor) -> str:
    return f"{processor.processor} on {processor.host} (maps {processor.digest})"
