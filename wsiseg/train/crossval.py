"""``wsiseg train CONFIG --cv``: one training run per fold, and a table of the scores on each fold's held-out images."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsiseg.datasets import Fold, FoldKind, make_folds
from wsiseg.decode import encode
from wsiseg.errors import ConfigError, FormatError
from wsiseg.tables import atomic_write_bytes
from wsiseg.train.distributed import rank_and_size
from wsiseg.train.loop import CurveLine
from wsiseg.train.training import TrainConfig, plain_config, train_samples, training_samples

__all__ = ["CrossValidation", "cross_validate"]

_METRICS = ("dice", "aji", "aji_plus", "pq", "sq", "dq")


@dataclass(frozen=True, slots=True)
class FoldScores:
    """Scores on the held-out images of a fold: ``scores.json`` of its folder.

    Means over images of all sets; ``sets`` has those of each set, ``thresholds`` are those of separation.
    """

    fold: str
    images: int
    nuclei: int
    dice: float
    aji: float
    aji_plus: float
    pq: float
    sq: float
    dq: float
    sets: Mapping[str, Mapping[str, float]]
    thresholds: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class CrossValidation:
    """Result of a cross-validation: its folder, and the scores of each fold."""

    folder: Path
    rows: tuple[FoldScores, ...]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return headings and rows to print; the last row is the mean over folds and their standard deviation (n - 1)."""
        shown = [
            [row.fold, str(row.images), str(row.nuclei), *(f"{getattr(row, m):.4f}" for m in _METRICS)] for row in self.rows
        ]
        values = np.array([[getattr(row, m) for m in _METRICS] for row in self.rows])
        spread = values.std(0, ddof=1) if len(values) > 1 else np.zeros(len(_METRICS))
        totals = (sum(row.images for row in self.rows), sum(row.nuclei for row in self.rows))
        last = ["mean ± sd", *map(str, totals), *(f"{m:.4f} ± {s:.4f}" for m, s in zip(values.mean(0), spread, strict=True))]
        return ["fold", "images", "nuclei", *_METRICS], [*shown, last]


def cross_validate(
    path: Path, by: FoldKind, folds: int = 0, *, model: str = "", on_line: Callable[[CurveLine], None] | None = None
) -> CrossValidation:
    """Train and score every fold; finished folds are skipped, and interrupted ones are resumed.

    ``model`` names a published recipe (``wsiseg.train.presets``).

    The folder ``<out>/cv-<by>`` receives ``folds.json`` (config and members), a run folder per fold with ``scores.json``, and
    ``table.json``. Thresholds are fitted to the config's ``fit_sets``, or are ``OPERATING_POINT``, never to images of a fold.

    Raises
    ------
    ConfigError
        The config is unusable, folds cannot be made, or the folder holds another cross-validation.
    FormatError
        The data are not in the unified layout.
    """
    if rank_and_size()[1] > 1:
        raise ConfigError("Cross-validation trains in one process: start it without torchrun.")
    config = TrainConfig.from_toml(path, model)
    made = make_folds(training_samples(config), by, folds)
    folder = path.parent / config.out / f"cv-{by}"
    _claim(folder, config, made)
    rows = []
    for fold in made:
        where = folder / fold.name
        if not (where / "scores.json").is_file():
            card = train_samples(config, list(fold.samples), where, base=path.parent, resume=True, on_line=on_line)
            _write(where / "scores.json", encode(_pooled(fold.name, card["scores"], card["separate_defaults"])))
        rows.append(_read_scores(where / "scores.json"))
    done = CrossValidation(folder, tuple(rows))
    headings, shown = done.table()
    _write(folder / "table.json", {"by": by, "headings": headings, "rows": shown})
    return done


def _claim(folder: Path, config: TrainConfig, made: list[Fold]) -> None:
    plan = {
        "config": plain_config(config),
        "folds": {f.name: [f"{s.dataset}/{s.image_id}" for s in f.samples if s.validation] for f in made},
    }
    note = folder / "folds.json"
    if note.is_file():
        if json.loads(note.read_text(encoding="utf-8")) != json.loads(json.dumps(plan)):
            raise ConfigError(f"{folder} holds a cross-validation of another config or other folds. Choose another out.")
        return
    folder.mkdir(parents=True, exist_ok=True)
    _write(note, plan)


def _pooled(fold: str, sets: Mapping[str, Mapping[str, float]], thresholds: Mapping[str, float]) -> FoldScores:
    """Return means over the images of all sets, from the means of each."""
    images = [int(row["images"]) for row in sets.values()]
    means = {m: round(float(np.average([row[m] for row in sets.values()], weights=images)), 4) for m in _METRICS}
    nuclei = sum(int(row["nuclei"]) for row in sets.values())
    return FoldScores(fold=fold, images=sum(images), nuclei=nuclei, **means, sets=sets, thresholds=thresholds)


def _read_scores(path: Path) -> FoldScores:
    try:
        return FoldScores(**json.loads(path.read_text(encoding="utf-8")))  # means of images without a nucleus are nan
    except (OSError, ValueError, TypeError) as err:
        raise FormatError(f"{path}: not the scores of a fold ({err}). Remove it to train the fold again.") from err


def _write(path: Path, content: Mapping[str, object]) -> None:
    atomic_write_bytes(path, (json.dumps(content, indent=1) + "\n").encode())
