"""``wsiseg evaluate --data``: segment annotated sets by the same code as slides, and score them by set, patient and image."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wsiseg import __version__
from wsiseg.cluster.devices import compute_device
from wsiseg.config import RunConfig
from wsiseg.datasets import VALIDATION_GROUPS, Sample, list_samples, load_sample, sets_folder
from wsiseg.errors import FormatError
from wsiseg.evaluation.gallery import Crop
from wsiseg.labels import write_labels
from wsiseg.metrics import (
    HouPatch,
    HouScores,
    PairedTest,
    Scores,
    contingency,
    failures,
    hou_patches,
    hou_summary,
    mean_scores,
    paired_test,
    pooled_scores,
    scores_of,
    worst_windows,
)
from wsiseg.pipeline import mpp_to_segment_at, segment_image
from wsiseg.predict import Model, load_model, tune_malloc
from wsiseg.separate import SeparateParams, resolve_params

__all__ = [
    "ImageResult",
    "Machine",
    "ScoredModel",
    "SetScores",
    "SetTest",
    "Summary",
    "annotated_sets",
    "choose_samples",
    "compare_weights",
    "patient_interval",
    "score_model",
    "scored_model",
    "summarize_images",
    "this_machine",
]

Split = Literal["validation", "train", "all"]
MppSource = Literal["stated", "given", "estimated", "unknown"]


@dataclass(frozen=True, slots=True)
class ImageResult:
    """One scored image: its scores and failures, and the CPU seconds from its file to its instances.

    ``mpp`` is what it was segmented at, um/px, and ``mpp_source`` where that comes from.
    """

    sample: Sample
    mpp: float
    mpp_source: MppSource
    scores: Scores
    patches: tuple[HouPatch, ...]
    kinds: dict[str, int]
    mpx: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class ScoredModel:
    """What identifies a network and its arithmetic in a report."""

    weights: str
    sha256: str
    licence: str
    trained_on: tuple[str, ...]
    precision: str
    engine: str
    device: str
    tta: int
    separate: SeparateParams
    wsiseg_version: str


@dataclass(frozen=True, slots=True)
class Machine:
    """Processor, usable cores, and versions of Python and libraries, for reports of speed."""

    cpu: str
    cores: int | None
    system: str
    python: str
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Summary:
    """Scores of some images: means over images, pooled scores, Hou et al.'s counts, failures, patients and speed.

    ``pq_interval`` is the 95 % percentile bootstrap interval of the mean PQ (2,000 draws, fixed seed). Whole patients are drawn
    with replacement, because images of one patient are not independent.
    """

    images: int
    patients: int
    nuclei: int
    found: int
    mean: Mapping[str, float]
    pq_interval: tuple[float, float]
    pooled: Mapping[str, float]
    hou2020: HouScores
    failures: Mapping[str, int]
    mpx: float
    cpu_s: float
    mpx_per_cpu_s: float


@dataclass(frozen=True, slots=True)
class SetTest:
    """Paired test of two networks on the images of a set (``all images``: of all), by a score."""

    set: str
    score: str
    test: PairedTest


@dataclass(frozen=True, slots=True)
class SetScores:
    """Results of one network on all images, in order, and crops of its worst windows, each with its PQ and set."""

    model: ScoredModel
    images: tuple[ImageResult, ...]
    crops: list[tuple[float, str, Crop]] = field(default_factory=list)

    def sets(self) -> dict[str, list[ImageResult]]:
        """Return the results by set, sets in order of appearance."""
        out: dict[str, list[ImageResult]] = {}
        for image in self.images:
            out.setdefault(image.sample.dataset, []).append(image)
        return out


def annotated_sets(root: Path) -> list[str]:
    """Return the names of the sets in a folder (with INFO.json and label images). Raises ``FormatError`` if there are none."""
    found = sorted(p.parent.name for p in sets_folder(root).glob("*/INFO.json") if next(p.parent.glob("*.labels.png"), None))
    if not found:
        raise FormatError(
            f"{root}: no annotated set found. Expected folders with INFO.json, <id>.png and <id>.labels.png; "
            "'wsiseg datasets convert' makes them."
        )
    return found


def choose_samples(root: Path, sets: Sequence[str], split: Split, limit: int = 0) -> list[Sample]:
    """Return the images of a split; images of a set without held-out patients belong to every split.

    Parameters
    ----------
    root
        Folder of the sets.
    sets
        Names of sets; empty: all.
    split
        Which images of each set.
    limit
        Maximum number of images per set; 0: all.

    Raises
    ------
    FormatError
        A set does not exist, or no image is left.
    """
    known = annotated_sets(root)
    for name in sets:
        if name not in known:
            raise FormatError(f"{root}: no set {name!r}. It has: {', '.join(known)}.")
    chosen: list[Sample] = []
    for name in sets or known:
        own = [
            s
            for s in list_samples(root, (name,))
            if split == "all" or name not in VALIDATION_GROUPS or s.validation == (split == "validation")
        ]
        chosen += own[:limit] if limit else own
    if not chosen:
        raise FormatError(
            f"{root}: split {split!r} of {', '.join(sets or known)} has no image. Choose another --split or other --sets."
        )
    return chosen


def score_model(
    samples: Sequence[Sample],
    config: RunConfig,
    *,
    mpp: float | None = None,
    labels_out: Path | None = None,
    crop_side: int = 0,
    on_image: Callable[[Sample], None] = lambda sample: None,
) -> SetScores:
    """Segment and score images with one network.

    Parameters
    ----------
    mpp
        Microns per px of images whose set states none; ``None``: estimated for each from its nuclei, and images
        with too few nuclei for that (``mpp_to_segment_at``) are used at their native pixels.
    labels_out
        Folder that receives the instances as ``<set>/<id>.labels.png``.
    crop_side
        Side of the worst windows kept for a gallery, px; 0: none.

    Raises
    ------
    WeightsError
        The weights cannot be loaded.
    FormatError
        An image cannot be read.
    """
    tune_malloc()
    model = load_model(config.predict, compute_device(config))
    rgb, _ = load_sample(samples[0])
    segment_image(rgb[:256, :256], model.mpp, model, config)  # compile first, so that this time is not added to an image
    images: list[ImageResult] = []
    crops: list[tuple[float, str, Crop]] = []
    for sample in samples:
        on_image(sample)
        start = time.process_time()
        rgb, truth = load_sample(sample)
        used_mpp, source = _mpp_of(sample, rgb, mpp, model, config)
        labels = segment_image(rgb, used_mpp, model, config, sample.image_id)
        spent = time.process_time() - start
        table = contingency(labels, truth)
        patches = hou_patches(labels, truth, sample.image_id)
        kinds = failures(table).counts()
        images.append(ImageResult(sample, used_mpp, source, scores_of(table), tuple(patches), kinds, truth.size / 1e6, spent))
        if labels_out is not None:
            folder = labels_out / sample.dataset
            folder.mkdir(parents=True, exist_ok=True)
            write_labels(folder / f"{sample.image_id}.labels.png", labels)
        crops += list(_worst_crops(sample, rgb, truth, labels, crop_side)) if crop_side else []
    return SetScores(scored_model(model, config), tuple(images), crops)


def _mpp_of(
    sample: Sample, rgb: NDArray[np.uint8], given: float | None, model: Model, config: RunConfig
) -> tuple[float, MppSource]:
    if sample.mpp:
        return sample.mpp, "stated"
    if given:
        return given, "given"
    estimate = mpp_to_segment_at(rgb, model, config)
    return (model.mpp, "unknown") if estimate is None else (estimate, "estimated")


def _worst_crops(
    sample: Sample, rgb: NDArray[np.uint8], truth: NDArray[np.int32], labels: NDArray[np.int32], side: int
) -> Iterator[tuple[float, str, Crop]]:
    for w in worst_windows(labels, truth, side):
        window = (slice(w.y, w.y + w.side), slice(w.x, w.x + w.side))
        title = f"{sample.dataset}  {sample.image_id}  x {w.x} y {w.y}"
        yield w.pq, sample.dataset, Crop(title, rgb[window].copy(), truth[window].copy(), labels[window].copy())


def summarize_images(images: Sequence[ImageResult]) -> Summary:
    """Return the summary of some images."""
    scores = [i.scores for i in images]
    mpx, cpu_s = sum(i.mpx for i in images), sum(i.cpu_s for i in images)
    return Summary(
        images=len(images),
        patients=len({(i.sample.dataset, i.sample.group) for i in images}),
        nuclei=sum(s.n_truth for s in scores),
        found=sum(s.n_pred for s in scores),
        mean=mean_scores(scores),
        pq_interval=patient_interval([s.pq for s in scores], [i.sample.group for i in images]),
        pooled=pooled_scores(scores).as_dict(),
        hou2020=hou_summary([p for i in images for p in i.patches]),
        failures={k: sum(i.kinds[k] for i in images) for k in images[0].kinds},
        mpx=mpx,
        cpu_s=cpu_s,
        mpx_per_cpu_s=mpx / cpu_s if cpu_s else math.nan,
    )


def patient_interval(values: Sequence[float], groups: Sequence[str], draws: int = 2000) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of a mean, drawing whole patients; NaN if there are fewer than two."""
    kept = [(v, g) for v, g in zip(values, groups, strict=True) if not math.isnan(v)]
    names = sorted({g for _, g in kept})
    if len(names) < 2:
        return math.nan, math.nan
    sums = np.array([sum(v for v, g in kept if g == n) for n in names])
    sizes = np.array([sum(g == n for _, g in kept) for n in names])
    drawn = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), draws)
    low, high = np.quantile((drawn @ sums) / (drawn @ sizes), (0.025, 0.975))
    return float(low), float(high)


def compare_weights(a: SetScores, b: SetScores) -> list[SetTest]:
    """Test two networks on the same images (two-sided Wilcoxon signed-rank test of a - b).

    Returns one row for each set and score, then one for each score over all sets.
    """
    rows = []
    of_b = {(i.sample.dataset, i.sample.image_id): i.scores for i in b.images}
    groups = {**a.sets(), "all images": list(a.images)}
    for name, images in groups.items():
        for score in ("pq", "aji", "dice"):
            first = [getattr(i.scores, score) for i in images]
            second = [getattr(of_b[i.sample.dataset, i.sample.image_id], score) for i in images]
            rows.append(SetTest(name, score, paired_test(first, second)))
    return rows


def scored_model(model: Model, config: RunConfig) -> ScoredModel:
    """Return what identifies the network and its arithmetic."""
    return ScoredModel(
        model.name,
        model.sha256,
        model.licence,
        tuple(model.card.get("data", {}).get("sets", [])),
        model.precision,
        model.engine,
        model.device,
        model.tta,
        resolve_params(config.separate, model.separate_defaults, model.mpp),
        __version__,
    )


def this_machine() -> Machine:
    """Return the machine as it is now."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "torch", "numba")}
    return Machine(cpu, cores, platform.system(), platform.python_version(), versions)
