"""At which thresholds do maps become nuclei on tissue that the network has not seen: fixed, per slide, or per nucleus?

    python -m benchmarks.operating_point --data SETS --state STATE [--steps 600] [--left-out tnbc ...]

Thresholds are chosen on pairs (network, set) of which the network has seen no image of the set: ``research`` on cpm16, ``open``
on cpm16 and monuseg. The score is the mean over sets, each with the same weight, of the mean of PQ and AJI
(``wsiseg.train.validation.set_means``). Maps are predicted once, as ``wsiseg segment`` predicts them, and kept in STATE; all
the rest is separation of them. ``left_out`` is a check that had no part in the choice: short trainings, each without one set
(--left-out), and what levels of the threshold do on that set's held-out patients.

The three kinds of rule that are compared (markers and watershed are the same):

* ``fixed``: one threshold of the smoothed material.
* ``slide``: the threshold at which the thresholded area of the slide (here of the image) is RATIO times the sum of its
  probabilities: where borders are unsure it is lower.
* ``nucleus``: a floor for the watershed, then of each nucleus what exceeds SHARE of its own 90th percentile, and of that the
  part with its marker.

Two maxima of the center map are one nucleus if the saddle between them is shallow: by a fixed depth (``saddle of``), or by a
share of the lower one (``saddle of a share of``).

``chosen`` is one choice for both networks, and the default of training. ``own`` are the thresholds of each card: those of
``research`` are the chosen ones, those of ``open`` are fitted to cpm16 and to the patients of monuseg that are not held out
(``fit_sets``), because it takes more for nuclear that is not (``shift``). ``walk`` is what the fit finds: for both networks
(``all``), and for ``open`` alone.

``held_out`` shows what its own thresholds (``after``) and the ``chosen`` ones do to the held-out patients of the sets that a
network was trained on, beside those that were fitted on training images (``before``). ``shift`` says why: by pair, what the
network takes for nuclear over what is, and how often pixels of each probability are nuclear. Writes
``results/operating_point.json``.
"""

# ruff: noqa: E402 - thread limits must be set before NumPy is loaded
from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage
from skimage.measure import label

from benchmarks._machine import RESULTS, save
from wsiseg.config import PredictConfig, SeparateConfig
from wsiseg.datasets import list_samples, load_sample
from wsiseg.metrics import Scores, instance_scores, paired_test
from wsiseg.pipeline import ImageMaps
from wsiseg.predict import load_model, load_weights
from wsiseg.separate import resolve_params, separate
from wsiseg.train.training import TrainConfig, train_samples
from wsiseg.train.validation import (
    OPERATING_POINT,
    Judged,
    Thresholds,
    fit_separation,
    predict_samples,
    separated,
    set_means,
)
from wsiseg.types import Box

TRAINED = ("monuseg", "tnbc", "dsb2018_he", "consep")
UNSEEN = (("research", "cpm16"), ("open", "cpm16"), ("open", "monuseg"))
BEFORE = {
    "research": dict(zip(OPERATING_POINT, (0.2, 0.46, 4, 1.0, 0.15, 0.0, 4.0, 0.64), strict=True)),
    "open": dict(zip(OPERATING_POINT, (0.15, 0.46, 1, 0.5, 0.25, 0.0, 3.0, 0.64), strict=True)),
}
"""Thresholds that the cards held while they were fitted on training images."""
LEVELS = (0.22, 0.26, 0.30, 0.34, 0.36, 0.38, 0.42, 0.46, 0.50)
LEAST = (0.5, 0.56, 0.6, 0.62, 0.64)
DEPTHS = (0.1, 0.15, 0.2, 0.3)
SHARES = (0.2, 0.3, 0.35, 0.4, 0.5)
FLOOR = 0.2
Rule = Callable[[ImageMaps], np.ndarray]
NetworkRules = Mapping[str, Rule]
"""A rule a network."""


def loso_config(left_out: str, data: Path, steps: int) -> TrainConfig:
    """Return a short training on all sets but one, in equal shares."""
    return TrainConfig.from_tree(
        {
            "name": f"no_{left_out}",
            "licence": "a benchmark's weights, not for use",
            "data_root": str(data),
            "sets": {s: 1.0 for s in TRAINED if s != left_out},
            "validate": False,
            "augment": {"stain_gain": 0.5, "stain_offset": 0.25, "hue_mix": 0.12, "gamma": 0.35, "restain_p": 0.5},
            "loop": {"steps": steps, "learning_rate": 2e-3, "warmup_steps": 100, "ema_decay": 0.99, "seed": 5},
        }
    )


def weights_of(network: str, args: argparse.Namespace) -> str:
    """Return the name or file of a network's weights; a short training that is not there is made."""
    if not network.startswith("no_"):
        return network
    file = args.state / network / "weights" / f"{network}.safetensors"
    if not file.is_file():
        config = loso_config(network.removeprefix("no_"), args.data, args.steps)
        train_samples(config, list_samples(args.data, tuple(config.sets)), args.state / network, resume=True, on_line=print)
    return str(file)


def maps_of(network: str, dataset: str, args: argparse.Namespace, *, held_out_only: bool = False) -> list[Judged]:
    """Return the maps of a set's images, or of its held-out patients, predicted once and kept."""
    judged, model = [], None
    folder = args.state / "maps" / network / dataset
    for sample in list_samples(args.data, (dataset,)):
        if held_out_only and not sample.validation:
            continue
        _, truth = load_sample(sample)
        file = folder / f"{sample.image_id}.npz"
        if not file.is_file():
            model = model or load_model(PredictConfig(weights=weights_of(network, args)))
            maps = predict_samples(model, [sample])[0].maps
            folder.mkdir(parents=True, exist_ok=True)
            facts = {k: v for k, v in dataclasses.asdict(maps).items() if k != "prob"}
            np.savez_compressed(file, prob=maps.prob, facts=np.array(json.dumps(facts)))
        judged.append(Judged(sample, read_maps(file), truth))
    return judged


def read_maps(file: Path) -> ImageMaps:
    """Return kept maps."""
    with np.load(file) as held:
        facts = json.loads(str(held["facts"]))
        return ImageMaps(held["prob"], Box(**facts.pop("core")), shape=tuple(facts.pop("shape")), **facts)


def fixed(thresholds: Mapping[str, Any]) -> Rule:
    """One set of thresholds for all."""
    return lambda maps: separated(maps, thresholds)


def per_slide(thresholds: Mapping[str, Any], ratio: float) -> Rule:
    """The threshold at which the area is ``ratio`` times the sum of probabilities, within 0.14 and 0.6."""

    def rule(maps: ImageMaps) -> np.ndarray:
        counts = np.bincount(maps.inner[1].ravel(), minlength=256)
        area, wanted = counts[::-1].cumsum()[::-1], ratio * (counts * np.arange(256)).sum() / 255
        level = float(np.clip(np.abs(area - wanted).argmin() / 255, 0.14, 0.6))
        return fixed({**thresholds, "material_threshold_frac": level})(maps)

    return rule


def per_nucleus(thresholds: Mapping[str, Any], share: float) -> Rule:
    """Of each nucleus over a floor, what exceeds ``share`` of its 90th percentile and hangs together with its marker."""

    def rule(maps: ImageMaps) -> np.ndarray:
        low = {**thresholds, "material_threshold_frac": FLOOR, "min_material_frac": 0.0}
        params = resolve_params(SeparateConfig(), low, maps.mpp)
        found = separate(maps.prob, params)
        material = ndimage.convolve(maps.prob[1].astype(np.float32), np.outer((1, 2, 1), (1, 2, 1)) / 16, mode="nearest")
        n, halo = len(found.anchors), maps.halo_wpx
        top = np.array(ndimage.labeled_comprehension(material, found.labels, np.arange(1, n + 1), top_tenth, float, 0.0))
        kept = np.where((found.labels > 0) & (material >= share * np.r_[np.inf, top][found.labels]), found.labels, 0)
        kept = with_marker(kept, found.anchors)
        area = np.bincount(kept.ravel(), minlength=n + 1)
        mean = np.bincount(kept.ravel(), maps.prob[1].ravel(), minlength=n + 1) / np.maximum(area, 1)
        x, y = found.anchors.T - halo
        good = np.r_[False, (x >= 0) & (y >= 0) & (x < maps.core.w) & (y < maps.core.h)]
        good &= (area >= params.min_area_px) & (mean >= 255 * thresholds["min_material_frac"])
        labels = np.where(good[kept], kept, 0)[halo : halo + maps.core.h, halo : halo + maps.core.w]
        rows, columns = (np.minimum(((np.arange(k) + 0.5) * maps.scale).astype(int), m - 1)
                         for k, m in zip(maps.shape, labels.shape, strict=True))  # fmt: skip
        return labels[np.ix_(rows, columns)].astype(np.int32)

    return rule


def top_tenth(values: np.ndarray) -> float:
    return float(np.quantile(values, 0.9))


def with_marker(labels: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """Return labels without what does not hang together (4-connected) with the marker."""
    parts = label(labels, connectivity=1, background=0)  # of equal labels
    own = parts[anchors[:, 1], anchors[:, 0]]
    return np.where(np.isin(parts, own[own > 0]), labels, 0)


def scored(judged: list[Judged], rule: Rule) -> list[Scores]:
    return [instance_scores(rule(j.maps), j.truth) for j in judged]


def row_of(pairs: Mapping[str, list[Judged]], rule: Rule | NetworkRules) -> dict[str, Any]:
    """Return PQ and AJI by pair, their means over sets, and the score that is maximized."""
    rows: dict[str, dict[str, float]] = {}
    everything: list[Judged] = []
    scores: list[Scores] = []
    for name, judged in pairs.items():
        own = scored(judged, rule[name.split(" on ")[0]] if isinstance(rule, Mapping) else rule)
        rows[name] = {k: float(np.nanmean([getattr(s, k) for s in own])) for k in ("pq", "aji")}
        rows[name]["found_frac"] = sum(s.n_pred for s in own) / sum(s.n_truth for s in own)
        everything, scores = everything + judged, scores + own
    means = set_means(everything, scores)
    sets = sorted({name.split(" on ")[1] for name in pairs})
    of_set = {k: [np.mean([r[k] for n, r in rows.items() if n.endswith(f" on {s}")]) for s in sets] for k in ("pq", "aji")}
    return {"score": sum(means.values()) / len(means), **{k: float(np.mean(v)) for k, v in of_set.items()}, "pairs": rows}


def shift_of(judged: list[Judged]) -> dict[str, Any]:
    """Return the predicted over the true foreground, and the share of nuclear pixels by tenth of predicted probability."""
    hits, counts, total = np.zeros(10), np.zeros(10), np.zeros(10)
    for j in judged:
        if j.maps.scale != 1.0:
            continue
        p, nuclear = j.maps.inner[1].ravel(), j.truth.ravel() > 0
        tenth = np.minimum(p.astype(int) * 10 // 255, 9)
        counts += np.bincount(tenth, minlength=10)
        hits += np.bincount(tenth, nuclear, minlength=10)
        total += np.bincount(tenth, p / 255, minlength=10)
    return {
        "foreground_ratio": total.sum() / hits.sum(),
        "predicted": list(total / np.maximum(counts, 1)),
        "nuclear": list(hits / np.maximum(counts, 1)),
        "calibration_error": float((np.abs(total - hits)).sum() / counts.sum()),
    }


def held_out(args: argparse.Namespace, own: Mapping[str, Thresholds]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what its own thresholds do, a network, to held-out patients of the sets trained on, and to cpm16."""
    for network, thresholds in own.items():
        rows: dict[str, Any] = {}
        for dataset in (*TRAINED, "cpm16"):
            judged = maps_of(network, dataset, args, held_out_only=dataset in TRAINED)
            by_time = {"before": BEFORE[network], "chosen": OPERATING_POINT, "after": thresholds}
            scores = {when: scored(judged, fixed(t)) for when, t in by_time.items()}
            rows[dataset] = {
                **{
                    f"{k}_{w}": float(np.nanmean([getattr(s, k) for s in of]))
                    for w, of in scores.items()
                    for k in ("pq", "aji")
                },
                **{f"found_frac_{w}": sum(s.n_pred for s in of) / sum(s.n_truth for s in of) for w, of in scores.items()},
                "wilcoxon_p_pq": paired_test([s.pq for s in scores["after"]], [s.pq for s in scores["before"]]).p_value,
            }
        means = {f"mean_pq_{w}": float(np.mean([r[f"pq_{w}"] for r in rows.values()])) for w in scores}
        yield network, {"sets": rows, **means, "mean_pq_gain": means["mean_pq_after"] - means["mean_pq_before"]}


def rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(v) for v in value]
    return round(float(value), 4) if isinstance(value, float | np.floating) else value


def rules_on(
    pairs: Mapping[str, list[Judged]], chosen: Mapping[str, Any], own: Mapping[str, Thresholds] | None = None
) -> dict[str, Any]:
    """Return a row a rule; without ``own``: thresholds before and chosen, and levels of one threshold alone."""
    short = own is None
    rules: dict[str, Rule | NetworkRules] = {f"before, thresholds of {name}": fixed(t) for name, t in BEFORE.items()}
    rules["chosen"] = fixed(chosen)
    if own:
        rules["own"] = {network: fixed(thresholds) for network, thresholds in own.items()}
    for level in LEVELS:
        for least in (chosen["min_material_frac"],) if short else LEAST:
            changed = {**chosen, "material_threshold_frac": level, "min_material_frac": least}
            rules[f"fixed {level:.2f}, least mean {least:.2f}"] = fixed(changed)
    depths = {f"saddle of {d:.2f}": fixed({**chosen, "merge_depth_frac": d, "merge_share_frac": 0.0}) for d in DEPTHS}
    rules |= depths | {f"saddle of a share of {s:.2f}": fixed({**chosen, "merge_share_frac": s}) for s in SHARES}
    if not short:
        rules |= {f"slide {ratio:.2f}": per_slide(chosen, ratio) for ratio in (1.0, 1.05, 1.1, 1.15, 1.2)}
        rules |= {f"nucleus {share:.2f}": per_nucleus(chosen, share) for share in (0.25, 0.3, 0.35, 0.4, 0.45, 0.5)}
    table = {}
    for name, rule in rules.items():
        table[name] = row_of(pairs, rule)
        print(name, *(round(table[name][k], 4) for k in ("score", "pq", "aji")), flush=True)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("WSISEG_DATA"), required="WSISEG_DATA" not in os.environ)
    parser.add_argument("--state", type=Path, required=True, help="folder of short trainings and maps; what is there is kept")
    parser.add_argument("--steps", type=int, default=600, help="of a short training")
    parser.add_argument("--left-out", nargs="*", choices=TRAINED[1:], default=TRAINED[1:], help="sets to leave out in turn")
    parser.add_argument("--only-left-out", action="store_true", help="the other sections stay as the results file has them")
    args = parser.parse_args()
    args.data, args.state = Path(args.data), args.state.resolve()
    chosen = dict(OPERATING_POINT)
    left_out = {f"no_{s} on {s}": maps_of(f"no_{s}", s, args, held_out_only=True) for s in args.left_out}
    result: dict[str, Any] = {}
    if args.only_left_out:
        result = json.loads((RESULTS / "operating_point.json").read_text(encoding="utf-8"))
    else:
        pairs = {f"{network} on {dataset}": maps_of(network, dataset, args) for network, dataset in UNSEEN}
        own = {n: card_of(n, args)["separate_defaults"] for n in ("research", "open")}
        of_open = [j for name, judged in pairs.items() if name.startswith("open ") for j in judged if not j.sample.validation]
        fits = {"all": [j for judged in pairs.values() for j in judged], "open": of_open}
        result = {
            "score": "mean over sets (equal weight) of the mean of PQ and AJI, on pairs of network and set not trained on",
            "chosen": chosen,
            "own": own,
            "walk": {n: dict(zip(("thresholds", "score"), fit_separation(judged), strict=True)) for n, judged in fits.items()},
            "rules": rules_on(pairs, chosen, own),
            "shift": {name: shift_of(judged) for name, judged in pairs.items()},
            "held_out": dict(held_out(args, own)),
            "networks": {n: facts_of(n, args) for n in ("research", "open")},
        }
    result["left_out"] = rules_on(left_out, chosen) if left_out else {}
    result["shift"] |= {name: shift_of(judged) for name, judged in left_out.items()}
    result["networks"] |= {f"no_{s}": facts_of(f"no_{s}", args) for s in args.left_out}
    named = f" --left-out {' '.join(args.left_out)} --steps {args.steps}"
    command = {"command": "python -m benchmarks.operating_point --data SETS --state STATE" + named}
    save("operating_point", rounded({**command, **{k: v for k, v in result.items() if k not in ("machine", "command")}}))


def card_of(network: str, args: argparse.Namespace) -> dict[str, Any]:
    return load_weights(weights_of(network, args))[1]


def facts_of(network: str, args: argparse.Namespace) -> dict[str, Any]:
    card = card_of(network, args)
    return {"sha256": card["sha256"], "trained_on": card["data"]["sets"], "steps": card["training"]["loop"]["steps"]}


if __name__ == "__main__":
    main()
