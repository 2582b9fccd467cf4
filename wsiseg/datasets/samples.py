"""Load annotated images from disk as samples, with fixed splits into training and validation.

The unified layout is a folder per set: ``<id>.png`` (RGB), ``<id>.labels.png`` or ``.labels.tif`` (one integer per nucleus, 0
background) and ``INFO.json`` (licence, mpp, organs, groups); or the same as patches in one Zarr store (``train.patches``).
Splits are by patient or group and fixed here, so that scores of different networks can be compared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsiseg.datasets.patches import PATCH_PX, is_patch_store, read_patched, stored_info, write_patch_set, writing_store
from wsiseg.errors import FormatError
from wsiseg.labels import read_labels

__all__ = ["VALIDATION_GROUPS", "Sample", "group_of", "list_samples", "load_sample", "magnification", "sets_folder",
           "store_patches"]  # fmt: skip

MODEL_MPP = 0.25
MAX_MPP_SPREAD = 1.1  # of a stated range of mpp, highest over lowest

# Held out, never trained on. monuseg: seven patients, one per organ class, three of them from the different-organ test of
# Kumar et al. 2017. tnbc: three of eleven patients. consep: five images from sparse to dense. dsb2018_he has no patients:
# images of like color, contrast and nucleus size form a group, and whole groups are held out.
VALIDATION_GROUPS: dict[str, frozenset[str]] = {
    "monuseg": frozenset({"21-5786", "A7-A13F", "B0-5710", "G9-6336", "NH-A8F7", "DK-A2I6", "KB-A93J"}),
    "tnbc": frozenset({"03", "06", "09"}),
    "consep": frozenset({"3", "11", "17", "22", "23"}),
    "dsb2018_he": frozenset(
        {
            "1d02c4b5921e",
            "2246874c8b5b",
            "3934a094e853",
            "3bfa8b3b01fd",
            "55f98f43c152",
            "57bd029b19c1",
            "5c6eb9a47852",
            "65c8527c16a0",
            "6c67b78e8164",
            "708eb41a3fc8",
            "87ea72894f65",
            "9fb32aba1c2f",
            "a0325cb7aa59",
            "ad473063dab4",
            "ae570a676961",
            "cbca32daaae3",
            "cbff60361ded",
            "f4b7c24baf69",
            "f952cc653760",
        }
    ),
}


_TCGA = re.compile(r"TCGA[-_](\w{2})[-_](\w{4})")
_LABELS = (".labels.png", ".labels.tif")


@dataclass(frozen=True, slots=True)
class Sample:
    """One annotated image; ``store`` is the path of the patch store that contains it, empty for images in files.

    ``weight`` is how much more or less often than others of its set the image is drawn (synthetic ones: ``train.synth``).
    """

    image_id: str
    dataset: str
    group: str
    image_path: str
    labels_path: str
    mpp: float | None
    validation: bool
    organ: str = ""
    store: str = ""
    weight: float = 1.0


def group_of(dataset: str, image_id: str, info: Mapping[str, Any] | None = None) -> str:
    """Return the group of an image, which a split must keep together: the patient, or the closest to it that is known.

    Parameters
    ----------
    info
        The set's ``INFO.json``; its ``group_per_image`` takes precedence over the id. A TCGA barcode in either is reduced to
        site and patient (``A7-A13F``), so that a patient is the same group in every set. If nothing is known, each image is a
        separate group.

    Raises
    ------
    FormatError
        The image id does not follow the naming of its set.
    """
    stated = str((info or {}).get("group_per_image", {}).get(image_id) or "")
    if barcode := _TCGA.search(stated or image_id):
        return "-".join(barcode.groups())
    if stated or dataset not in VALIDATION_GROUPS:
        return stated or image_id
    parts = image_id.replace("-", "_").split("_")
    if dataset == "monuseg" or (dataset == "tnbc" and len(parts) < 2):
        raise FormatError(f"Set {dataset}: the id {image_id!r} does not name a patient.")
    return parts[1] if dataset == "tnbc" else parts[-1]


def sets_folder(root: str | Path) -> Path:
    """Return the folder of sets: ``root``, or ``root/nuclei`` if there are no sets in ``root`` itself.

    ``WSISEG_DATA`` can thus name one folder for tests, training and benchmarks. A patch store is returned unchanged.
    """
    folders = Path(root), Path(root) / "nuclei"
    return next((f for f in folders if any(next(p.parent.glob("*.labels.*"), None) for p in f.glob("*/INFO.json"))), folders[0])


def list_samples(root: str | Path, datasets: tuple[str, ...]) -> list[Sample]:
    """Return the images of several sets in a fixed order (set, then id), from a folder of sets or a patch store of them.

    ``root`` may also be the parent of the folder ``nuclei`` that contains the sets (``sets_folder``).

    Raises
    ------
    FormatError
        A set, its ``INFO.json`` or an image's labels are missing.
    """
    root = sets_folder(root)
    samples: list[Sample] = []
    for dataset in datasets:
        if is_patch_store(root):
            info, ids = stored_info(root, dataset)
            samples += [_sample(dataset, info, image_id, str(root), str(root), str(root)) for image_id in ids]
            continue
        folder = root / dataset
        info = _read_info(folder)
        found = [(p, p.name.removesuffix(ending)) for ending in _LABELS for p in folder.glob(f"*{ending}")]
        for labels, image_id in sorted(found, key=lambda f: f[0].name):
            image = folder / f"{image_id}.png"
            if not image.exists():
                raise FormatError(f"Set {dataset}: {labels.name} has no image {image.name} in the same folder.")
            samples.append(_sample(dataset, info, image_id, str(image), str(labels)))
    if not samples:
        raise FormatError(f"No annotated image in {root} for the sets {list(datasets)}: expected <id>.png and <id>.labels.png.")
    twice = {(s.dataset, s.image_id) for s in samples}
    if len(twice) != len(samples):
        raise FormatError(f"{root}: at least one image has both .labels.png and .labels.tif. Keep one of them.")
    return samples


def load_sample(sample: Sample) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Return RGB uint8 (H, W, 3) and labels int32 (H, W); ``FormatError`` when the two differ in size."""
    if sample.store:
        return read_patched(Path(sample.store), sample.dataset, sample.image_id)
    with Image.open(sample.image_path) as image:
        rgb = np.array(image.convert("RGB"))
    if sample.labels_path.endswith(".tif"):
        labels = read_labels(sample.labels_path)
    else:
        with Image.open(sample.labels_path) as image:
            labels = np.array(image).astype(np.int32)
    if rgb.shape[:2] != labels.shape:
        raise FormatError(f"{sample.image_id}: image is {rgb.shape[:2]}, its labels are {labels.shape} (height, width).")
    return rgb, labels


def store_patches(root: str | Path, out: Path, datasets: tuple[str, ...] = (), patch_px: int = PATCH_PX) -> dict[str, int]:
    """Write sets of the unified layout as one patch store, which ``list_samples`` reads in place of the folder.

    Parameters
    ----------
    datasets
        Folders of ``root``; none: every one that has an ``INFO.json``.

    Returns
    -------
    dict
        Patches of each set.

    Raises
    ------
    FormatError
        ``out`` already exists, there is no set in ``root``, or a set is damaged.
    """
    names = datasets or tuple(sorted(p.parent.name for p in sets_folder(root).glob("*/INFO.json")))
    by_set = {name: list_samples(root, (name,)) for name in names}
    if not by_set:
        raise FormatError(f"{root}: contains no set (a folder with INFO.json).")
    if any(s.store for samples in by_set.values() for s in samples):
        raise FormatError(f"{root} is already a patch store. Give a folder of sets.")
    counts: dict[str, int] = {}

    def fill(group: Any) -> None:
        for name, samples in by_set.items():
            pictures = ((s.image_id, *load_sample(s)) for s in samples)
            counts[name] = write_patch_set(group, name, _read_info(Path(root) / name), pictures, [_size(s) for s in samples])

    writing_store(out, fill, patch_px)
    return counts


def _size(sample: Sample) -> tuple[int, int]:
    with Image.open(sample.image_path) as image:
        return image.height, image.width


def magnification(sample: Sample, labels: NDArray[np.int32]) -> float:
    """Return the factor by which to enlarge an image so that it is near the model's 0.25 um/px, for training patches only.

    If the set does not state mpp, the median annotated nucleus becomes 26 px (6.5 um) wide, within a factor of two; images that
    are segmented are brought to a like scale by ``pipeline.mpp_to_segment_at``.
    """
    if sample.mpp is not None:
        return 1.0 if abs(sample.mpp / MODEL_MPP - 1) < 0.1 else sample.mpp / MODEL_MPP
    areas = np.bincount(labels.ravel())[1:]
    areas = areas[areas > 0]
    if len(areas) == 0:
        return 1.0
    diameter = 2 * float(np.sqrt(np.median(areas) / np.pi))
    return float(np.clip(26 / diameter, 0.5, 2.0))


def _sample(dataset: str, info: dict[str, Any], image_id: str, image: str, labels: str, store: str = "") -> Sample:
    group = group_of(dataset, image_id, info)
    mpp = info.get("mpp_per_image", {}).get(image_id)
    organs = [str(o) for o in info.get("organs") or []]
    organ = str(info.get("organ_per_image", {}).get(image_id) or (organs[0] if len(organs) == 1 else ""))
    return Sample(
        image_id,
        dataset,
        group,
        image,
        labels,
        _number(info.get("mpp") if mpp is None else mpp),
        group in VALIDATION_GROUPS.get(dataset, frozenset()),
        "" if organ == "not stated" else organ,
        store,
        _weight(info.get("weight_per_image", {}).get(image_id, 1.0), dataset, image_id),
    )


def _weight(stated: object, dataset: str, image_id: str) -> float:
    if isinstance(stated, int | float) and 0 <= stated < float("inf"):
        return float(stated)
    raise FormatError(f"Set {dataset}: weight_per_image of {image_id} is {stated!r}; expected a number of 0 or more.")


def _read_info(folder: Path) -> dict[str, Any]:
    try:
        info = json.loads((folder / "INFO.json").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as err:
        raise FormatError(f"{folder / 'INFO.json'}: {err}. Every set needs one (licence, mpp).") from err
    if not isinstance(info, dict):
        raise FormatError(f"{folder / 'INFO.json'}: expected an object, got {type(info).__name__}.")
    return info


def _number(text: object) -> float | None:
    """Return the number in "0.25", 0.25 or "0.25 nominal", the middle of a narrow range; None for anything else."""
    span = re.match(r"([0-9.]+) ?- ?([0-9.]+)\b", str(text))
    if span:
        low, high = (_number(end) for end in span.groups())
        return (low + high) / 2 if low and high and low <= high <= MAX_MPP_SPREAD * low else None
    try:
        return float(str(text).split()[0])
    except (ValueError, IndexError):
        return None
