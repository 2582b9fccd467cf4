"""``wsiseg train CONFIG --cv``: one training run per fold, and a table of the scores on each fold's held-out images."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsiseg.datasets import Fold, FoldKind, make_folds
from wsiseg.errors import ConfigError
from wsiseg.tables import atomic_write_bytes
from wsiseg.train.distributed import rank_and_size
from wsiseg.train.training import TrainConfig, plain_config, train_samples, training_samples

__all__ = ["CrossValidation", "cross_validate"]

_METRICS = ("dice", "aji", "aji_plus", "pq", "sq", "dq")


@dataclass(frozen=True, slots=True)
class CrossValidation:
    """Result of a cross-validation: its folder, and one row per fold with images, nuclei and the mean of each metric."""

    folder: Path
    rows: tuple[dict[str, Any], ...]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return headings and rows to print; the last row is the mean over folds and their standard deviation (n - 1)."""
        shown = [
            [str(row["fold"]), str(row["images"]), str(row["nuclei"]), *(f"{row[m]:.4f}" for m in _METRICS)]
            for row in self.rows
        ]
        values = np.array([[row[m] for m in _METRICS] for row in self.rows])
        spread = values.std(0, ddof=1) if len(values) > 1 else np.zeros(len(_METRICS))
        totals = (sum(row[name] for row in self.rows) for name in ("images", "nuclei"))
        last = ["mean ± sd", *map(str, totals), *(f"{m:.4f} ± {s:.4f}" for m, s in zip(values.mean(0), spread, strict=True))]
        return ["fold", "images", "nuclei", *_METRICS], [*shown, last]


def cross_validate(
    path: Path, by: FoldKind, folds: int = 0, *, model: str = "", on_line: Callable[[dict[str, Any]], None] | None = None
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
            row = {
                "fold": fold.name,
                **_pooled(card["scores"]),
                "sets": card["scores"],
                "thresholds": card["separate_defaults"],
            }
            _write(where / "scores.json", row)
        rows.append(json.loads((where / "scores.json").read_text(encoding="utf-8")))
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


def _pooled(scores: dict[str, dict[str, float]]) -> dict[str, float]:
    """Return the means over the images of all sets, from the means of each set."""
    images = [int(row["images"]) for row in scores.values()]
    means = {m: round(float(np.average([row[m] for row in scores.values()], weights=images)), 4) for m in _METRICS}
    return {"images": sum(images), "nuclei": sum(int(row["nuclei"]) for row in scores.values()), **means}


def _write(path: Path, content: dict[str, Any]) -> None:
    atomic_write_bytes(path, (json.dumps(content, indent=1) + "\n").encode())
