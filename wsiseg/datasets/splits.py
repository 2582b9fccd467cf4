"""Folds of a cross-validation, which keep the images of a patient together or hold out whole organs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from wsiseg.datasets.samples import Sample
from wsiseg.errors import ConfigError

__all__ = ["Fold", "FoldKind", "make_folds"]

FoldKind = Literal["organ", "patient"]


@dataclass(frozen=True, slots=True)
class Fold:
    """One fold: all images; those with ``validation`` are held out."""

    name: str
    samples: tuple[Sample, ...]


def make_folds(samples: Sequence[Sample], by: FoldKind, folds: int = 0) -> list[Fold]:
    """Split all images, including those of ``VALIDATION_GROUPS``, into folds.

    Parameters
    ----------
    by
        ``organ``: every fold holds out whole organs; ``patient``: whole groups (``Sample.group``), distributed so that each
        fold has its share of every set. No image of a held-out group is used for training in that fold, whatever its set or
        organ.
    folds
        Number of folds; 0: one per organ, or 5 for patients.

    Returns
    -------
    list of Fold
        They depend on the set of samples only, not on their order.

    Raises
    ------
    ConfigError
        Fewer organs or groups than folds, an unknown kind, or (by organ) an image whose organ is not stated.
    """
    if by not in get_args(FoldKind):
        raise ConfigError(f"Expected cross-validation by one of {get_args(FoldKind)}, got {by!r}.")
    ordered = sorted(samples, key=lambda s: (s.dataset, s.image_id))
    if by == "organ":
        silent = sorted({s.dataset for s in ordered if not s.organ})
        if silent:
            raise ConfigError(
                f"The sets {silent} do not state the organ of all images: leave them out, or add organ_per_image."
            )
    key: Callable[[Sample], str] = (lambda s: s.organ) if by == "organ" else _owner
    units = sorted({key(s) for s in ordered})
    folds = folds or (len(units) if by == "organ" else 5)
    if not 2 <= folds <= len(units):
        raise ConfigError(f"Expected 2 to {len(units)} folds (there are {len(units)} {by}s), got {folds}.")
    place = _spread(ordered, key, folds)
    made: list[Fold] = []
    for k in range(folds):
        mine = sorted(unit for unit in units if place[unit] == k)
        out = {_owner(s) for s in ordered if place[key(s)] == k}
        name = "+".join(unit.replace(" ", "_").replace("/", "_") for unit in mine) if by == "organ" else f"fold_{k + 1}"
        held = [replace(s, validation=place[key(s)] == k) for s in ordered]
        made.append(Fold(name, tuple(s for s in held if s.validation or _owner(s) not in out)))
    return made


def _owner(sample: Sample) -> str:
    """Return a group's name over all sets: a TCGA patient is the same group in every set, other groups belong to one set."""
    parts = sample.group.split("-")
    tcga = len(parts) == 2 and len(parts[0]) == 2 and len(parts[1]) == 4 and "TCGA" in sample.image_id
    return sample.group if tcga else f"{sample.dataset}/{sample.group}"


def _spread(samples: Sequence[Sample], key: Callable[[Sample], str], folds: int) -> dict[str, int]:
    """Return a fold for each unit: largest first, to the fold with the fewest images of its sets, then the fewest in all."""
    of_unit: dict[str, Counter[str]] = {}
    for sample in samples:
        of_unit.setdefault(key(sample), Counter())[sample.dataset] += 1
    filled: list[Counter[str]] = [Counter() for _ in range(folds)]
    place: dict[str, int] = {}
    for unit in sorted(of_unit, key=lambda u: (-of_unit[u].total(), u)):
        k = min(range(folds), key=lambda f: (sum(filled[f][d] for d in of_unit[unit]), filled[f].total(), f))
        place[unit] = k
        filled[k] += of_unit[unit]
    return place
