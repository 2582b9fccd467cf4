"""``wsiseg synth``: make and refine a synthetic set from an annotated reference and pictures without annotations."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsiseg.datasets import Sample, list_samples, load_sample
from wsiseg.datasets.formats.layout import AnnotatedImage, Conversion, read_rgb, write_dataset
from wsiseg.errors import ConfigError, FormatError, InputError
from wsiseg.predict import load_weights
from wsiseg.tables import atomic_write_bytes, open_nuclei, rasterize_region, read_nuclei
from wsiseg.train.loop import TrainingRun
from wsiseg.train.synth.paint import in_paint, rough_nuclei
from wsiseg.train.synth.place import place_nuclei
from wsiseg.train.synth.refine import RefineConfig, refine_and_weigh, train_refiner
from wsiseg.train.synth.shapes import ShapeStatistics, fit_shapes
from wsiseg.types import Box

__all__ = ["Picture", "RefineConfig", "SynthConfig", "make_synthetic", "read_cohort", "reference_shapes", "refine_synthetic"]

_PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_DRAWS = 100  # tries to find a patch with both nuclei and background
_REGION_PX = 8192  # side of the region of a segmented slide: thousands of nuclei, and one image in memory


@dataclass(frozen=True, slots=True)
class SynthConfig:
    """Options of the synthetic images.

    Attributes
    ----------
    images, patch_px
        Number of patches, and their side.
    overlap_max
        As in ``place_nuclei``.
    seed
        Image k depends only on the seed and k.
    """

    images: int = 200
    patch_px: int = 256
    overlap_max: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        if self.images < 1 or self.patch_px < 64 or not 0 <= self.overlap_max <= 0.5:
            raise ConfigError(f"synth: expected images >= 1, patch_px >= 64 and overlap_max in 0 to 0.5, got {self}.")


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A picture of the target cohort, uint8 (H, W, 3), without annotations."""

    name: str
    rgb: NDArray[np.uint8]
    mpp: float | None = None
    organ: str = ""
    group: str = ""


def read_cohort(folder: Path) -> list[Picture]:
    """Return the pictures of the target cohort.

    From a set in the unified layout: its images without labels, except the validation images. From any other folder: its PNG,
    JPEG and TIFF pictures. Raises ``FormatError`` if there are none or one is unreadable.
    """
    if (folder / "INFO.json").is_file():
        samples = [s for s in list_samples(folder.parent, (folder.name,)) if not s.validation]
        return [Picture(s.image_id, read_rgb(Path(s.image_path)), s.mpp, s.organ, s.group) for s in samples]
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in _PICTURES and ".labels." not in p.name)
    if not paths:
        raise FormatError(f"{folder}: expected pictures ({', '.join(_PICTURES)}) in this folder, found none.")
    return [Picture(p.stem, read_rgb(p)) for p in paths]


def reference_shapes(reference: Path, patch_px: int) -> tuple[ShapeStatistics, float | None]:
    """Return the shapes of a reference, and its microns per px if stated.

    Parameters
    ----------
    reference
        A set in the unified layout (without its validation images), or the polygon table of a segmented slide
        (``RUN/nuclei/<slide>.parquet``); at most a square of 8192 px around the median nucleus is used.
    patch_px
        Side of the squares in which density is counted, px.

    Raises
    ------
    FormatError
        The reference is neither.
    InputError
        There are too few nuclei.
    """
    if reference.is_dir():
        samples = [s for s in list_samples(reference.parent, (reference.name,)) if not s.validation]
        mpps = {s.mpp for s in samples}
        return fit_shapes((load_sample(s)[1] for s in samples), patch_px), mpps.pop() if len(mpps) == 1 else None
    source = open_nuclei(reference)
    center = read_nuclei(source.path, None, ["cx", "cy"])
    if center.num_rows == 0:
        raise InputError(f"{reference}: expected a reference with nuclei, got none.")
    cx, cy = (int(np.median(center[name].to_numpy())) for name in ("cx", "cy"))
    x, y = max(0, cx - _REGION_PX // 2), max(0, cy - _REGION_PX // 2)
    region = Box(x, y, min(_REGION_PX, source.width_px - x), min(_REGION_PX, source.height_px - y))
    return fit_shapes([rasterize_region(source, region)], patch_px), source.mpp


def make_synthetic(reference: Path, cohort: Path, out: Path, config: SynthConfig) -> Conversion:
    """Write a synthetic set with nuclei of the reference's shapes in tissue of the cohort's appearance.

    The same call resumes after an interruption. Nuclei are scaled by microns per px if reference and cohort state them.

    Raises
    ------
    ConfigError
        ``out`` holds images made with other settings.
    FormatError, InputError
        Reference or cohort cannot be read, ``out`` holds a finished set, or no patch of the cohort has nuclei and background.
    """
    shapes, mpp = reference_shapes(reference, config.patch_px)
    pictures = [p for p in read_cohort(cohort) if min(p.rgb.shape[:2]) >= config.patch_px]
    if not pictures:
        raise InputError(f"{cohort}: no picture of at least {config.patch_px} px per side. Lower the patch size.")
    settings = {
        "method": "Hou et al. 2019: random polygons, textures of real patches",
        **dataclasses.asdict(config),
        "reference": reference.name,
        "cohort": cohort.name,
        "licence": f"shapes: {_licence(reference)}; pictures: {_licence(cohort)}",
    }
    _claim(out, settings)
    masks: dict[str, NDArray[np.bool_]] = {}

    def images() -> Iterator[AnnotatedImage]:
        for k in range(config.images):
            image_id = f"synth_{k:05d}"
            rng = np.random.default_rng([config.seed, k])
            picture, part, nuclear = _patch(pictures, masks, config.patch_px, rng)
            done = _finished(out, image_id)
            if done is None:
                fitting = _rescaled(shapes, mpp, picture.mpp)
                labels = place_nuclei(fitting, config.patch_px, rng, config.overlap_max).labels
                done = in_paint(picture.rgb[part], nuclear, labels, rng)[0], labels
            yield AnnotatedImage(image_id, *done, picture.mpp, picture.organ, picture.group or picture.name)

    return write_dataset(images(), out, "synthetic", {"name": out.name, "licence": settings["licence"], "synthetic": settings})


def refine_synthetic(
    synthetic: Path,
    cohort: Path,
    out: Path,
    config: RefineConfig,
    *,
    task: str = "",
    resume: bool = False,
    on_line: Callable[[dict[str, float]], None] | None = None,
) -> tuple[Conversion, dict[str, float]]:
    """Train a refiner on a synthetic set and the cohort, and write the refined set with a weight per image.

    Parameters
    ----------
    task
        Weights (an installed name, or a .safetensors path) of the task network for the hard-example term; empty: no such term.
    on_line
        Called with every line of the refiner's curve.

    Returns
    -------
    (Conversion, dict)
        What was written, and minimum, mean and maximum of the weights.

    Raises
    ------
    ConfigError, FormatError, InputError
        As for ``train_refiner``, or ``out`` holds a finished set.
    """
    if (out / "INFO.json").exists():
        raise FormatError(f"{out} already contains a set (INFO.json). Give an empty folder.")
    samples = list_samples(synthetic.parent, (synthetic.name,))
    loaded = [load_sample(s) for s in samples]
    real = [p.rgb for p in read_cohort(cohort) if min(p.rgb.shape[:2]) >= config.crop_px]
    net = load_weights(task)[0] if task else None
    nets = train_refiner(loaded, real, config, TrainingRun(out / "refiner", resume), task=net, on_line=on_line)
    weights: dict[str, float] = {}

    def images() -> Iterator[AnnotatedImage]:
        for sample, (rgb, labels) in zip(samples, loaded, strict=True):
            refined, weight = refine_and_weigh(*nets, rgb)
            weights[sample.image_id] = round(weight, 4)
            yield AnnotatedImage(sample.image_id, refined, labels, sample.mpp, sample.organ, sample.group)

    info = json.loads((synthetic / "INFO.json").read_text(encoding="utf-8"))
    facts = {name: info[name] for name in ("licence", "synthetic") if name in info}
    facts |= {"name": out.name, "refined": {**dataclasses.asdict(config), "task": Path(task).name}, "weight_per_image": weights}
    made = write_dataset(images(), out, "synthetic, refined", facts)
    values = np.array(list(weights.values()))
    return made, {"least": values.min(), "mean": float(values.mean()), "greatest": values.max()}


def _patch(
    pictures: list[Picture], masks: dict[str, NDArray[np.bool_]], side: int, rng: np.random.Generator
) -> tuple[Picture, tuple[slice, slice], NDArray[np.bool_]]:
    """Draw a patch with both nuclei and background; the mask of nuclei is computed once per picture."""
    for _ in range(_DRAWS):
        picture = pictures[int(rng.integers(len(pictures)))]
        h, w = picture.rgb.shape[:2]
        y, x = int(rng.integers(h - side + 1)), int(rng.integers(w - side + 1))
        part = slice(y, y + side), slice(x, x + side)
        if picture.name not in masks:
            masks[picture.name] = rough_nuclei(picture.rgb)
        nuclear = masks[picture.name][part]
        if 0.01 < nuclear.mean() < 0.6:
            return picture, part, nuclear
    raise InputError(
        f"No patch of {side} px has nuclei and background, in {_DRAWS} draws. Check that the cohort is H&E tissue."
    )


def _rescaled(shapes: ShapeStatistics, from_mpp: float | None, to_mpp: float | None) -> ShapeStatistics:
    if from_mpp is None or to_mpp is None or from_mpp == to_mpp:
        return shapes
    factor = (from_mpp / to_mpp) ** 2
    return dataclasses.replace(shapes, nuclei=shapes.nuclei * (factor, 1, 1), per_mpx=shapes.per_mpx / factor)


def _finished(out: Path, image_id: str) -> tuple[NDArray[np.uint8], NDArray[np.int32]] | None:
    """Return an image that an earlier call completed, else None (labels are written last)."""
    for ending in (".labels.png", ".labels.tif"):
        if (out / f"{image_id}{ending}").exists():
            image, labels = out / f"{image_id}.png", out / f"{image_id}{ending}"
            return load_sample(Sample(image_id, out.name, "", str(image), str(labels), None, validation=False))
    return None


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Record the settings in the folder, or raise ``ConfigError`` if the recorded ones differ."""
    out.mkdir(parents=True, exist_ok=True)
    path, text = out / "synth.json", json.dumps(settings, indent=1) + "\n"
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise ConfigError(f"{out} holds images made with other settings (synth.json). Use those, or choose another folder.")
    atomic_write_bytes(path, text.encode())


def _licence(source: Path) -> str:
    if not (source / "INFO.json").is_file():
        return "not stated"
    info = json.loads((source / "INFO.json").read_text(encoding="utf-8"))
    return str(info.get("license") or info.get("licence") or "not stated")
