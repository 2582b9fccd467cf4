"""``wsiseg rank``: train on each set alone, test on the unified set, rank, fuse the best, compare stains (NucFuseRank).

Every trained network has a folder of label images of the unified test tiles, ``predictions/<network>/<trained on>/``. Label
images of other programs are given in the same layout and scored by the same code.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from wsiseg.config import PredictConfig, RunConfig
from wsiseg.datasets import Sample, list_samples, load_sample
from wsiseg.datasets.samples import MODEL_MPP
from wsiseg.errors import FormatError
from wsiseg.evaluation import instance_files, load_instances, null_for_nan
from wsiseg.evaluation.scoring import this_machine
from wsiseg.labels import write_labels
from wsiseg.metrics import paired_test
from wsiseg.papers.rank_figure import draw_ranking
from wsiseg.papers.rank_scores import PAPER_SCORES, RankedSet, TileScore, cross_matrix, mean_of, paper_scores, rank_sets
from wsiseg.papers.unified import UnifyOptions, claim_plan, unify
from wsiseg.pipeline import segment_image
from wsiseg.predict import load_model, load_weights, save_weights
from wsiseg.tables import atomic_write_bytes
from wsiseg.train.presets import MODELS, separation_by_size
from wsiseg.train.training import TrainConfig, train_samples
from wsiseg.train.validation import fit_separation, predict_samples

__all__ = ["RankOptions", "Ranking", "rank_datasets"]

AS_GIVEN = "as given"
"""Name of the training set of another program's network, if its folder does not state it."""

_STAIN_MARK = "+macenko"
_THRESHOLD_TILES = 8

LineCallback = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class RankOptions:
    """Which networks are trained and ranked, and for how many steps.

    Attributes
    ----------
    networks
        Networks of ``wsiseg.predict`` or published models (``run.presets``); none: only ``predictions`` are ranked.
    predictions
        (name, folder) of label images by others, with the layout of ``test/``: ``<folder>/<trained on>/<set>/<tile>.*``; or
        ``<folder>/<set>/<tile>.*`` of a network that was not trained on these sets: it is scored but not ranked.
    macenko
        Train and test each network once more on stain-normalized tiles.
    best
        Fuse up to this many of the best sets; 0: all, 1: none.
    least_px
        Objects with fewer px are ignored in both maps.
    """

    networks: tuple[str, ...] = ("lean",)
    predictions: tuple[tuple[str, Path], ...] = ()
    macenko: bool = False
    best: int = 0
    least_px: int = 16
    steps: int = 4000
    batch: int = 8
    patch_px: int = 256
    learning_rate: float = 2e-3
    device: str = "cpu"
    seed: int = 0


@dataclass(frozen=True, slots=True)
class NetworkScore:
    """Mean scores of a network on the unified test set."""

    network: str
    trained_on: str
    pq: float
    aji: float
    dice: float


@dataclass(frozen=True, slots=True)
class FusionPoint:
    """PQ of a network that was trained on the k best sets."""

    k: int
    sets: tuple[str, ...]
    pq: float


@dataclass(frozen=True, slots=True)
class StainRow:
    """PQ without and with stain normalization, and their paired test over ``n`` tiles (two-sided Wilcoxon)."""

    network: str
    trained_on: str
    plain: float
    macenko: float
    n: int
    mean_difference: float
    p_value: float


@dataclass(frozen=True, slots=True)
class RankingTables:
    """The numbers of a ranking.

    ``sets`` has the tiles and nuclei of each unified set, ``cross`` the PQ by network, what it was trained on, and test set,
    ``fusion`` what each network reaches on more and more of the best sets.
    """

    sets: Mapping[str, Mapping[str, int]]
    ranking: Sequence[RankedSet]
    models: Sequence[NetworkScore]
    cross: Mapping[str, Mapping[str, Mapping[str, float]]]
    fusion: Mapping[str, Sequence[FusionPoint]]
    stain: Sequence[StainRow]


@dataclass(frozen=True, slots=True)
class Ranking:
    """A finished ranking: its folder, its numbers, and the same as Markdown."""

    folder: Path
    tables: RankingTables
    markdown: str


def rank_datasets(
    root: Path, out: Path, tiles: UnifyOptions, options: RankOptions, *, on_line: LineCallback = lambda line: None
) -> Ranking:
    """Rank the sets under ``root``; what is finished in ``out`` is kept, so the same command resumes.

    ``out`` receives ``train/`` and ``test/`` (``run.unified``), ``models/``, ``predictions/``, and ``ranking.json``, ``.md``,
    ``.png`` and ``scores.csv``.

    Raises
    ------
    ConfigError
        A network is unknown, or ``out`` contains another ranking.
    FormatError
        A set or a folder of predictions that cannot be used.
    """
    made = unify(root, out, tiles)
    ranking_folder = _RankingFolder(out, tuple(made), tuple(list_samples(out / "test", tuple(made))), options, on_line)
    own = list(options.networks) + [n + _STAIN_MARK for n in options.networks if options.macenko]
    scores = [s for network in own for name in made for s in ranking_folder.trained(network, (name,))]
    for network, folder in options.predictions:
        scores += ranking_folder.given(network, folder)
    networks = [n for n in dict.fromkeys(s.predictor for s in scores) if _is_ranked(n, scores, made)]
    ranked = rank_sets({n: {d: mean_of(_of(scores, n, d), "pq") for d in made} for n in networks})
    order = [r.name for r in ranked]
    most = min(options.best or len(order), len(order))
    scores += [s for n in options.networks for k in range(2, most + 1) for s in ranking_folder.trained(n, order[:k])]
    curves = {n: _curve(scores, n, order[:most]) for n in networks}
    tables = _tables(made, ranked, curves, scores)
    head = {
        "machine": asdict(this_machine()),
        "tiles": {**asdict(tiles), "exclude": tiles.exclude.name if tiles.exclude else None},
        "options": {**asdict(options), "predictions": [name for name, _ in options.predictions]},
        "metrics": {"pq": "IoU > 0.5", "aji": "Kumar et al. 2017", "dice": "Ensemble Dice (DICE_2)",
                    "mean": "over tiles; AJI and Dice are 0 where DQ is 0"},
    }  # fmt: skip
    _write(out / "ranking.json", null_for_nan({**head, **asdict(tables)}))
    return _written(out, tables, curves, scores)


@dataclass(frozen=True, slots=True)
class _RankingFolder:
    """The folder of a ranking: the unified sets, and the networks trained and predictions made so far."""

    out: Path
    sets: tuple[str, ...]
    tiles: tuple[Sample, ...]
    options: RankOptions
    tell: LineCallback

    def trained(self, network: str, sets: Sequence[str]) -> list[TileScore]:
        """Return the scores of a network trained on some sets, after training and segmenting if that is not done yet."""
        key = _key(sets)
        folder = self.out / "predictions" / network / key
        if not (folder / "done.json").is_file():
            weights = self._weights(network, sets)
            self.tell(f"{network} on {key}: segmenting {len(self.tiles)} tiles")
            model = load_model(PredictConfig(weights=str(weights), engine="eager"))
            for tile in self.tiles:
                labels = segment_image(load_sample(tile)[0], tile.mpp or model.mpp, model, RunConfig(), tile.image_id)
                (folder / tile.dataset).mkdir(parents=True, exist_ok=True)
                write_labels(folder / tile.dataset / f"{tile.image_id}.labels.png", labels)
            _write(folder / "done.json", {"tiles": len(self.tiles)})
        return self._scores(network, key, folder)

    def given(self, network: str, folder: Path) -> list[TileScore]:
        """Return the scores of label images made by other programs."""
        parts = sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
        if not parts:
            raise FormatError(f"{folder}: no folder of predictions. Expected {folder.name}/<trained on>/<set>/<tile>.png.")
        nested = any(p.is_dir() for p in parts[0].iterdir())
        where = {_key(p.name.split("+")): p for p in parts} if nested else {AS_GIVEN: folder}
        return [s for key, part in where.items() for s in self._scores(network, key, part)]

    def _scores(self, network: str, key: str, folder: Path) -> list[TileScore]:
        files = {(d, stem): file for d in self.sets for stem, file in instance_files(folder / d).items()}
        out = []
        for tile in self.tiles:
            file = files.get((tile.dataset, tile.image_id))
            if file is None:
                raise FormatError(
                    f"{folder / tile.dataset}: there is no label image for test tile {tile.image_id!r}. If it has no nucleus, "
                    "give a label image of zeros."
                )
            truth = load_sample(tile)[1]
            found = paper_scores(load_instances(file, (truth.shape[0], truth.shape[1])), truth, self.options.least_px)
            out.append(TileScore(network, key, tile.dataset, tile.image_id, **found))
        return out

    def _weights(self, network: str, sets: Sequence[str]) -> Path:
        key, options = _key(sets), self.options
        folder = self.out / "models" / network / key
        weights = folder / "weights" / f"{key}.safetensors"
        plan = {"steps": options.steps, "batch": options.batch, "patch_px": options.patch_px, "seed": options.seed,
                "learning_rate": options.learning_rate}  # fmt: skip
        if not claim_plan(folder / "done.json", plan):
            return weights
        self.tell(f"{network} on {key}: training {options.steps} steps")
        samples = list_samples(self.out / "train", tuple(sorted(sets)))
        config = _config(network, key, samples, options)
        train_samples(config, samples, folder, resume=True)
        model = load_model(PredictConfig(weights=str(weights), engine="eager"))
        judged = predict_samples(model, samples[:: max(1, len(samples) // _THRESHOLD_TILES)][:_THRESHOLD_TILES])
        if config.separation == "nucleus-size":
            thresholds, _ = separation_by_size(judged, MODEL_MPP)
        else:
            thresholds, _ = fit_separation(judged, rounds=1)
        net, card = load_weights(str(weights))
        save_weights(net, card["net"], {**card, "separate_defaults": thresholds}, weights)
        _write(folder / "done.json", plan)
        return weights


def _config(network: str, key: str, samples: Sequence[Sample], options: RankOptions) -> TrainConfig:
    """Return the config of one training: each set is drawn in proportion to its tiles, as if all were in one folder."""
    name = network.removesuffix(_STAIN_MARK)
    tree: dict[str, Any] = {
        "name": key,
        "licence": "those of the sets trained on",
        "sets": {d: float(sum(s.dataset == d for s in samples)) for d in dict.fromkeys(s.dataset for s in samples)},
        "net": name,
        "patch_px": options.patch_px,
        "validate": False,
        "stain": "macenko" if network != name else "none",
        "loop": {
            "steps": options.steps,
            "batch": options.batch,
            "learning_rate": options.learning_rate,
            "warmup_steps": min(100, options.steps // 10 + 1),
            "report_every": max(1, options.steps // 20),
            "device": options.device,
            "seed": options.seed,
        },
    }
    return TrainConfig.from_tree(tree, name if name in MODELS else "")


def _is_ranked(network: str, scores: Sequence[TileScore], sets: Collection[str]) -> bool:
    """Whether a network was trained on each set alone; a stain experiment is compared, not ranked."""
    return not network.endswith(_STAIN_MARK) and set(sets) <= {s.trained_on for s in scores if s.predictor == network}


def _of(scores: Sequence[TileScore], network: str, trained_on: str | None = None) -> list[TileScore]:
    return [s for s in scores if s.predictor == network and trained_on in (None, s.trained_on)]


def _key(sets: Sequence[str]) -> str:
    return "+".join(sorted(sets))


def _curve(scores: Sequence[TileScore], network: str, order: Sequence[str]) -> list[tuple[int, float]]:
    """Return (k, mean PQ) of the networks trained on the k best sets, without those that were not trained."""
    points = [(k, mean_of(_of(scores, network, _key(order[:k])), "pq")) for k in range(1, len(order) + 1)]
    return [(k, v) for k, v in points if not math.isnan(v)]


def _tables(
    made: dict[str, dict[str, int]], ranked: Sequence[RankedSet], curves: dict[str, list[tuple[int, float]]],
    scores: Sequence[TileScore],
) -> RankingTables:  # fmt: skip
    order = [r.name for r in ranked]
    pairs = list(dict.fromkeys((s.predictor, s.trained_on) for s in scores))
    cross: dict[str, dict[str, dict[str, float]]] = {}
    for n, trained in pairs:
        own = _of(scores, n, trained)
        cross.setdefault(n, {})[trained] = {d: mean_of([s for s in own if s.dataset == d], "pq") for d in made}
    return RankingTables(
        sets=made,
        ranking=ranked,
        models=[NetworkScore(n, t, *(mean_of(_of(scores, n, t), m) for m in PAPER_SCORES)) for n, t in pairs],
        cross=cross,
        fusion={n: [FusionPoint(k, tuple(order[:k]), v) for k, v in points] for n, points in curves.items()},
        stain=list(_stain_rows(scores, list(made))),
    )


def _stain_rows(scores: Sequence[TileScore], sets: Sequence[str]) -> Iterator[StainRow]:
    for marked in dict.fromkeys(s.predictor for s in scores if s.predictor.endswith(_STAIN_MARK)):
        network = marked.removesuffix(_STAIN_MARK)
        for trained in sets:
            with_it, without = _of(scores, marked, trained), _of(scores, network, trained)
            test = paired_test([s.pq for s in with_it], [s.pq for s in without])
            means = mean_of(without, "pq"), mean_of(with_it, "pq")
            yield StainRow(network, trained, *means, test.n, test.mean_difference, test.p_value)


def _written(
    out: Path, tables: RankingTables, curves: dict[str, list[tuple[int, float]]], scores: Sequence[TileScore]
) -> Ranking:
    ranked = tables.ranking
    names = [r.name for r in ranked]
    matrices = {
        n: np.column_stack([
            cross_matrix(_of(scores, n), names, names),
            [mean_of(_of(scores, n, trained), "pq") for trained in names],
        ])
        for n in (ranked[0].pq if ranked else {})
    }  # fmt: skip
    if ranked:
        draw_ranking(ranked, matrices, curves, out / "ranking.png")
    text = _markdown(tables)
    rows = io.StringIO()
    table = csv.DictWriter(rows, [f.name for f in fields(TileScore)], lineterminator="\n")
    table.writeheader()
    table.writerows(asdict(s) for s in scores)
    atomic_write_bytes(out / "scores.csv", rows.getvalue().encode())
    atomic_write_bytes(out / "ranking.md", text.encode())
    return Ranking(out, tables, text)


def _markdown(made: RankingTables) -> str:
    """Return the tables of a ranking, PQ, AJI and Dice in percent."""
    columns = ("train_tiles", "train_nuclei", "test_tiles", "test_nuclei")
    networks = made.ranking[0].pq if made.ranking else ()
    tables = [
        ("Unified sets", ["set", *(c.replace("_", " ") for c in columns)],
         [[name, *(str(row[c]) for c in columns)] for name, row in made.sets.items()]),
        ("Ranking of sets by mean PQ over networks",
         ["place", "set", "mean PQ", "mean rank", *(f"PQ (rank) of {n}" for n in networks)],
         [[str(i), r.name, _percent(r.mean_pq), f"{r.mean_rank:.1f}",
           *(f"{_percent(v)} ({r.rank[n]:g})" for n, v in r.pq.items())] for i, r in enumerate(made.ranking, 1)]),
        ("Networks on the unified test set", ["network", "trained on", "PQ", "AJI", "Dice (DICE_2)"],
         [[m.network, m.trained_on, *(_percent(v) for v in (m.pq, m.aji, m.dice))] for m in made.models]),
        ("PQ by test set", ["network", "trained on", *made.sets],
         [[n, t, *(_percent(v) for v in row.values())] for n, rows in made.cross.items() for t, row in rows.items()]),
        ("Fusion of the best sets", ["network", "k", "sets", "PQ"],
         [[n, str(p.k), ", ".join(p.sets), _percent(p.pq)] for n, points in made.fusion.items() for p in points]),
        ("Stain normalization (Macenko)", ["network", "trained on", "PQ without", "PQ with", "p"],
         [[r.network, r.trained_on, _percent(r.plain), _percent(r.macenko), f"{r.p_value:.3g}"] for r in made.stain]),
    ]  # fmt: skip
    parts = []
    for title, headings, rows in tables:
        if rows:
            lines = [headings, ["---"] * len(headings), *rows]
            parts.append(f"### {title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines))
    return "\n\n".join(parts) + "\n"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.2f}"


def _write(path: Path, tree: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, (json.dumps(tree, indent=1, ensure_ascii=False) + "\n").encode())
