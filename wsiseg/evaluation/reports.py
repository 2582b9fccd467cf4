"""``wsiseg evaluate`` and ``wsiseg datasets``: make tables of scores, and of facts about data sets, from the user's files."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsiseg.config import RunConfig
from wsiseg.errors import FormatError
from wsiseg.evaluation.choices import HouProtocol, SetChoice, SetOutputs
from wsiseg.evaluation.gallery import Crop, draw_gallery
from wsiseg.evaluation.paths import (
    Evaluation,
    PathOptions,
    compare_runs,
    evaluate_pairs,
    evaluation_table,
    null_for_nan,
    write_evaluation,
)
from wsiseg.metrics import HouPatch, PairedTest, hou_cells, hou_rows
from wsiseg.tables import atomic_write_bytes

if TYPE_CHECKING:  # imports torch, which scoring files does not need
    from wsiseg.evaluation.scoring import ImageResult, SetScores, SetTest, Summary

__all__ = [
    "Report",
    "TableText",
    "convert_dataset",
    "dataset_table",
    "organs_of",
    "paired_cells",
    "score_files",
    "score_sets",
    "write_json",
]

_CARD_SCORES = ("dice", "aji", "aji_plus", "pq", "sq", "dq", "precision", "recall", "f1")
CROP_SIDE_PX = 160
MAX_NOTES = 40


@dataclass(frozen=True, slots=True)
class TableText:
    """A table to print: title, headings and text cells."""

    title: str
    headings: list[str]
    rows: list[list[str]]


@dataclass(slots=True)
class Report:
    """The output of a command: tables, then lines of text."""

    tables: list[TableText] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


def score_files(
    pred: Path,
    truth: Path,
    options: PathOptions,
    protocol: HouProtocol | None = None,
    *,
    out: Path | None,
    compare: Path | None,
    images: bool,
) -> Report:
    """Score PRED against TRUTH, by all scores or by a protocol.

    Parameters
    ----------
    compare
        Another run's predictions for a paired test on PQ.

    Raises
    ------
    FormatError
        No files pair by name, a file is unreadable, or sizes differ.
    """
    scores = evaluate_pairs(pred, truth, options)
    report = Report()
    if protocol is not None:
        some = dataclasses.replace(options, missing="skip")
        others = {f"{p.name} - {truth.name}": evaluate_pairs(p, truth, some) for p in protocol.annotators}
        report.tables.append(_hou_report(scores, _image_facts(protocol.groups, [truth]), others, out))
    else:
        report.tables.append(TableText("", *evaluation_table(scores, images)))
        if out is not None:
            write_evaluation(scores, out)
    report.lines += [f"note: {note}" for note in scores.notes[:MAX_NOTES]]
    if len(scores.notes) > MAX_NOTES:
        report.lines.append(f"note: and {len(scores.notes) - MAX_NOTES:,} more notes")
    if compare is not None:
        test = compare_runs(scores, evaluate_pairs(compare, truth, options))
        report.lines.append(
            f"PQ of {pred} minus {compare}: mean {test.mean_difference:+.4f}, median {test.median_difference:+.4f} over "
            f"{test.n} images; two-sided Wilcoxon signed-rank p = {test.p_value:.3g}"
        )
    return report


def score_sets(
    root: Path,
    config: RunConfig,
    choice: SetChoice,
    outputs: SetOutputs,
    *,
    on_line: Callable[[str], None] = lambda line: None,
) -> Report:
    """Segment and score annotated sets with the network of a config: ``wsiseg evaluate --data``.

    Raises
    ------
    FormatError, WeightsError
        There is no such set, or there are no such weights.
    """
    from wsiseg.evaluation.scoring import choose_samples, compare_weights, score_model, this_machine

    samples = choose_samples(root, choice.sets, choice.split, choice.limit)
    done = score_model(
        samples, config, mpp=choice.mpp, labels_out=outputs.labels_out, crop_side=CROP_SIDE_PX if outputs.gallery else 0,
        on_image=lambda sample: on_line(f"{sample.dataset} {sample.image_id}"),
    )  # fmt: skip
    report = Report()
    tree: dict[str, Any] = {
        "command": _command(config, choice),
        "machine": dataclasses.asdict(this_machine()),
        "model": dataclasses.asdict(done.model),
        "split": choice.split,
        **_results_tree(done),
    }
    if choice.protocol is not None:
        facts = _image_facts(choice.protocol.groups, [root / name for name in done.sets()])
        patches = _with_facts([p for i in done.images for p in i.patches], facts)
        rows = hou_rows(patches)
        tree.update(hou2020=[dataclasses.asdict(r) for r in rows], patches=[dataclasses.asdict(p) for p in patches])
        report.tables.append(TableText("Hou et al. 2020", *hou_cells(rows)))
    else:
        report.tables.append(_set_table(done, choice.split, choice.by))
    report.lines += _notes(done)
    if choice.against:
        weights = dataclasses.replace(config.predict, weights=choice.against)
        other = score_model(samples, dataclasses.replace(config, predict=weights))
        tests = compare_weights(done, other)
        stated = [{"set": t.set, "score": t.score, **dataclasses.asdict(t.test)} for t in tests]
        tree["against"] = {"model": dataclasses.asdict(other.model), **_results_tree(other), "tests": stated}
        report.tables += [_set_table(other, choice.split, choice.by), _test_table(done, other, tests)]
    if outputs.gallery is not None:
        drawn = draw_gallery(_worst_of_each(done.crops, outputs.crops), outputs.gallery)
        report.lines.append(f"worst windows: {drawn}")
    if outputs.out is not None:
        write_json(outputs.out, tree)
        report.lines.append(f"scores: {outputs.out}")
    return report


def write_json(path: Path, tree: dict[str, Any]) -> None:
    """Write nested values as JSON, NaN as null, complete or not at all. Raises ``FormatError`` if not named ``.json``."""
    if path.suffix.lower() != ".json":
        raise FormatError(f"{path}: these scores are written as .json, not {path.suffix!r}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, (json.dumps(null_for_nan(tree), indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def dataset_table(root: Path) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of facts about the annotated sets in a folder. Raises ``FormatError`` if there is none."""
    from wsiseg.datasets.formats import SetStats, dataset_stats

    rows = [[str(value) for value in dataclasses.astuple(row)] for row in dataset_stats(root)]
    return [f.name for f in dataclasses.fields(SetStats)], rows


def convert_dataset(source: Path, out: Path, format_name: str, mpp: float | None, licence: str, name: str) -> list[str]:
    """Convert a public set to the unified layout; return a report in lines of text.

    Raises
    ------
    FormatError
        The format of the source is not known, or a file is damaged.
    """
    from wsiseg.datasets.formats import convert

    done = convert(format_name, source, out, mpp=mpp, licence=licence, name=name)
    lines = [f"{done.format}: {done.n_images} images, {done.n_nuclei} nuclei -> {done.out}"]
    if done.empty_images:
        lines.append(f"without nuclei: {done.empty_images}")
    return lines + [str(note) for note in done.notes]


def _command(config: RunConfig, choice: SetChoice) -> str:
    """Return the command that repeats a scoring, without this machine's paths."""
    protocol = choice.protocol
    predict = config.predict
    words = ["wsiseg evaluate --data ROOT", f"--weights {Path(predict.weights).name}", f"--split {choice.split}"]
    optional = {
        "sets": ",".join(choice.sets),
        "tta": predict.tta if predict.tta != 1 else "",
        "precision": predict.precision if predict.precision != "auto" else "",
        "limit": choice.limit,
        "mpp": choice.mpp,
        "against": Path(choice.against).name if choice.against else "",
        "protocol": "hou2020" if protocol is not None else "",
        "groups": protocol.groups.name if protocol is not None and protocol.groups else "",
    }
    return " ".join([*words, *(f"--{name} {value}" for name, value in optional.items() if value)])


def _worst_of_each(crops: Sequence[tuple[float, str, Crop]], n: int) -> list[Crop]:
    """Return the worst crop of each set, then the second worst of each, so that one difficult set does not fill the picture."""
    ranked = []
    for name in dict.fromkeys(name for _, name, _ in crops):
        own = sorted((c for c in crops if c[1] == name), key=lambda c: c[0])
        ranked += [(place, pq, crop) for place, (pq, _, crop) in enumerate(own)]
    return [crop for _, _, crop in sorted(ranked, key=lambda c: c[:2])[:n]]


def _results_tree(done: SetScores) -> dict[str, Any]:
    from wsiseg.evaluation.scoring import summarize_images

    by_set = done.sets()
    patients = {
        name: {
            group: summarize_images([i for i in images if i.sample.group == group]).mean
            for group in sorted({i.sample.group for i in images})
        }
        for name, images in by_set.items()
    }
    rows = [
        {
            "set": i.sample.dataset,
            "patient": i.sample.group,
            "image": i.sample.image_id,
            "mpp": i.mpp,
            "mpp_source": i.mpp_source,
            **i.scores.as_dict(),
            **i.kinds,
        }
        for i in done.images
    ]
    summaries = {name: dataclasses.asdict(summarize_images(images)) for name, images in by_set.items()}
    return {"sets": summaries, "patients": patients, "images": rows}


def _set_table(done: SetScores, split: str, by: str) -> TableText:
    """Return one row per set (or patient, or image), then the mean of the sets' rows."""
    from wsiseg.evaluation.scoring import summarize_images

    headings = ["set", "images", "patients", "nuclei", "found", "Dice", "AJI", "AJI+", "PQ", "PQ 95 %", "SQ", "DQ", "precision",
                "recall", "F1", "count r", "MAE%", "Mpx/CPU s"]  # fmt: skip
    sets = done.sets()
    parts: dict[str, list[ImageResult]] = dict(sets)
    if by != "set":
        parts = {}
        for image in done.images:
            key = image.sample.group if by == "patient" else image.sample.image_id
            parts.setdefault(f"{image.sample.dataset} {key}", []).append(image)
    rows = [_summary_cells(name, summarize_images(images)) for name, images in parts.items()]
    if len(sets) > 1:
        each = [summarize_images(images).mean for images in sets.values()]
        means = {k: sum(e[k] for e in each) / len(each) for k in _CARD_SCORES}
        cells = {h: f"{means[k]:.3f}" for h, k in zip([h for h in headings[5:15] if h != "PQ 95 %"], _CARD_SCORES, strict=True)}
        rows.append(["mean of sets", *(cells.get(h, "") for h in headings[1:])])
    model = done.model
    title = f"{model.weights} ({model.sha256[:12]}, {model.precision}, tta {model.tta}), {split} images"
    return TableText(title, headings, rows)


def _summary_cells(name: str, s: Summary) -> list[str]:
    def cell(value: float, digits: int = 3) -> str:
        return "-" if math.isnan(value) else f"{value:.{digits}f}"

    low, high = s.pq_interval
    scores = {k: cell(s.mean[k]) for k in _CARD_SCORES}
    interval = "-" if math.isnan(low) else f"{low:.2f}-{high:.2f}"
    counts = s.hou2020.counts
    texts = [*(scores[k] for k in _CARD_SCORES[:4]), interval, *(scores[k] for k in _CARD_SCORES[4:])]
    return [
        name, str(s.images), str(s.patients), str(s.nuclei), str(s.found), *texts,
        cell(counts.pearson_r), cell(counts.mae_percent, 1), cell(s.mpx_per_cpu_s, 2),
    ]  # fmt: skip


def _notes(done: SetScores) -> list[str]:
    """Return notes that a reader of the table needs: licence, training images among the scored, images of unknown scale."""
    lines = [f"weights {done.model.weights}: {done.model.licence}"]
    trained = set(done.model.trained_on)
    for name, images in done.sets().items():
        learned = sum(not i.sample.validation for i in images) if name in trained else 0
        if learned:
            lines.append(f"{name}: the weights were trained on {learned} of {len(images)} images: not a score on unseen tissue")
        elif name not in trained:
            lines.append(f"{name}: these weights were not trained on this set")
        lines += [f"{name}: {note}" for note in _mpp_notes(images)]
    return lines


def _mpp_notes(images: Sequence[ImageResult]) -> list[str]:
    """Return what was done with images that state no microns per px, with numbers."""
    of = {source: [i.mpp for i in images if i.mpp_source == source] for source in ("given", "estimated", "unknown")}
    unstated = sum(len(values) for values in of.values())
    if not unstated:
        return []
    said = []
    if of["given"]:
        said.append(f"{of['given'][0]:g} um/px was taken (--mpp)")
    if of["estimated"]:
        low, middle, high = np.quantile(of["estimated"], (0, 0.5, 1))
        said.append(
            f"estimated from the nuclei of {len(of['estimated'])}: median {middle:.3f}, {low:.3f} to {high:.3f} um/px; "
            "give --mpp if you know it"
        )
    if of["unknown"]:
        said.append(f"{len(of['unknown'])} with too few nuclei for an estimate segmented without resampling")
    return [f"{unstated} of {len(images)} images state no microns per pixel: {'; '.join(said)}"]


def _test_table(a: SetScores, b: SetScores, tests: Sequence[SetTest]) -> TableText:
    title = f"{a.model.weights} minus {b.model.weights}, image by image (two-sided Wilcoxon signed-rank)"
    return TableText(
        title, ["set", "score", "images", "mean", "median", "p"], [paired_cells(t.test, (t.set, t.score)) for t in tests]
    )


def paired_cells(test: PairedTest, names: Sequence[str]) -> list[str]:
    """Return the text cells of a paired test: its names, then images, mean and median difference, p."""
    differences = (f"{v:+.4f}" for v in (test.mean_difference, test.median_difference))
    return [*names, str(test.n), *differences, f"{test.p_value:.3g}"]


def _hou_report(
    scores: Evaluation, facts: Mapping[str, tuple[str, str]], others: Mapping[str, Evaluation], out: Path | None
) -> TableText:
    rows = hou_rows(_with_facts(scores.patches, facts), {name: other.patches for name, other in others.items()})
    if out is not None:
        write_json(
            out,
            {
                "protocol": "hou2020",
                "rows": [dataclasses.asdict(r) for r in rows],
                "patches": [dataclasses.asdict(p) for p in scores.patches],
            },
        )
    return TableText("Hou et al. 2020", *hou_cells(rows))


def _with_facts(patches: Sequence[HouPatch], facts: Mapping[str, tuple[str, str]]) -> list[HouPatch]:
    return [
        dataclasses.replace(p, cancer_type=facts.get(p.image, ("", ""))[0], wsi_group=facts.get(p.image, ("", ""))[1])
        for p in patches
    ]


def _image_facts(table: Path | None, folders: Sequence[Path]) -> dict[str, tuple[str, str]]:
    """Return (cancer type, WSI group) by image, from a CSV ``image,cancer_type,wsi_group`` or the organs in ``INFO.json``."""
    if table is None:
        organs = {image: organ for folder in folders for image, organ in organs_of(folder).items()}
        return {image: (organ, "") for image, organ in organs.items()}
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as err:
        raise FormatError(f"{table}: {err}") from err
    if not rows or not {"image", "cancer_type"} <= set(rows[0]):
        raise FormatError(
            f"{table}: expected columns image, cancer_type and optionally wsi_group, got {list(rows[0]) if rows else []}."
        )
    return {r["image"]: (r["cancer_type"] or "", (r.get("wsi_group") or "").lower()) for r in rows}


def organs_of(folder: Path) -> dict[str, str]:
    """Return the organ of each image by the ``INFO.json`` of a set; empty if there is no such file."""
    info = folder / "INFO.json"
    if not info.is_file():
        return {}
    try:
        tree = json.loads(info.read_text(encoding="utf-8"))
        organs = tree.get("organs") or []
        one = organs[0] if len(organs) == 1 and organs != ["not stated"] else ""
        stated = {p.name.removesuffix(".labels.png"): one for p in folder.glob("*.labels.png")} if one else {}
        return {**stated, **{str(k): str(v) for k, v in tree.get("organ_per_image", {}).items()}}
    except (OSError, ValueError, AttributeError) as err:
        raise FormatError(f"{info}: {err}") from err
