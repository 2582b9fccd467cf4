"""Annotated images on disk -> memory, and who may judge whom.

The unified layout is a folder per set: ``<id>.png`` (RGB), ``<id>.labels.png`` (one integer per nucleus, 0 background) and
``INFO.json`` (licence, mpp). Splits are by patient or group and fixed here, so that a score means the same everywhere.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsiseg.errors import FormatError

__all__ = ["VALIDATION_GROUPS", "Sample", "group_of", "list_samples", "load_sample", "magnification"]

MODEL_MPP = 0.25

# Held out, never trained on. monuseg: seven patients, one per organ class, three of them from the different-organ test of
# Kumar et al. 2017. tnbc: three of eleven patients. consep: five images from sparse to dense. dsb2018_he has no patients:
# images of like color, contrast and nucleus size form a group, and whole groups are held out.
VALIDATION_GROUPS: dict[str, frozenset[str]] = {
    "monuseg": frozenset({"21-5786", "A7-A13F", "B0-5710", "G9-6336", "NH-A8F7", "DK-A2I6", "KB-A93J"}),
    "tnbc": frozenset({"03", "06", "09"}),
    "consep": frozenset({"3", "11", "17", "22", "23"}),
    "dsb2018_he": frozenset({
        "1d02c4b5921e", "2246874c8b5b", "3934a094e853", "3bfa8b3b01fd", "55f98f43c152", "57bd029b19c1",
        "5c6eb9a47852", "65c8527c16a0", "6c67b78e8164", "708eb41a3fc8", "87ea72894f65", "9fb32aba1c2f",
        "a0325cb7aa59", "ad473063dab4", "ae570a676961", "cbca32daaae3", "cbff60361ded", "f4b7c24baf69",
        "f952cc653760",
    }),
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One annotated image."""

    image_id: str
    dataset: str
    group: str
    image_path: str
    labels_path: str
    mpp: float | None
    validation: bool


def group_of(dataset: str, image_id: str) -> str:
    """Return what must not be torn apart by a split: the patient, or the nearest thing to one that is known.

    Raises
    ------
    FormatError
        For an image id that the set's naming does not explain.
    """
    parts = image_id.replace("-", "_").split("_")
    try:
        if dataset == "monuseg":  # a TCGA barcode: project, site, patient
            return f"{parts[1]}-{parts[2]}"
        if dataset == "tnbc":
            return parts[1]
    except IndexError as err:
        raise FormatError(f"Set {dataset}: the id {image_id!r} does not name a patient.") from err
    return parts[-1]


def list_samples(root: str | Path, datasets: tuple[str, ...]) -> list[Sample]:
    """Return the images of several sets in a fixed order (set, then id).

    Raises
    ------
    FormatError
        When a set's folder, its ``INFO.json`` or an image's labels are missing.
    """
    samples: list[Sample] = []
    for dataset in datasets:
        folder = Path(root) / dataset
        info = _read_info(folder)
        per_image: dict[str, str] = info.get("mpp_per_image", {})
        held_out = VALIDATION_GROUPS.get(dataset, frozenset())
        for labels in sorted(folder.glob("*.labels.png")):
            image_id = labels.name.removesuffix(".labels.png")
            image = folder / f"{image_id}.png"
            if not image.exists():
                raise FormatError(f"Set {dataset}: {labels.name} has no image {image.name} beside it.")
            group = group_of(dataset, image_id)
            mpp = _number(per_image.get(image_id, info.get("mpp")))
            samples.append(Sample(image_id, dataset, group, str(image), str(labels), mpp, group in held_out))
    if not samples:
        raise FormatError(f"No annotated image in {root} for the sets {list(datasets)}: expected <id>.png and <id>.labels.png.")
    return samples


def load_sample(sample: Sample) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Return RGB uint8 (H, W, 3) and labels int32 (H, W); ``FormatError`` when the two differ in size."""
    with Image.open(sample.image_path) as image:
        rgb = np.array(image.convert("RGB"))
    with Image.open(sample.labels_path) as image:
        labels = np.array(image).astype(np.int32)
    if rgb.shape[:2] != labels.shape:
        raise FormatError(f"{sample.image_id}: image is {rgb.shape[:2]}, its labels are {labels.shape} (height, width).")
    return rgb, labels


def magnification(sample: Sample, labels: NDArray[np.int32]) -> float:
    """Return the factor that brings an image near to the model's 0.25 um/px, for training patches only.

    Where the set states no mpp, the median nucleus says it: half of the way (in logarithms) to a diameter of 26 px (6.5 um),
    so that true differences in size are not taken away.
    """
    if sample.mpp is not None:
        return 1.0 if abs(sample.mpp / MODEL_MPP - 1) < 0.1 else sample.mpp / MODEL_MPP
    areas = np.bincount(labels.ravel())[1:]
    areas = areas[areas > 0]
    if len(areas) == 0:
        return 1.0
    diameter = 2 * float(np.sqrt(np.median(areas) / np.pi))
    return float(np.clip((26 / diameter) ** 0.5, 0.6, 1.6))


def _read_info(folder: Path) -> dict[str, Any]:
    try:
        info = json.loads((folder / "INFO.json").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as err:
        raise FormatError(f"{folder / 'INFO.json'}: {err}. Every set needs one (licence, mpp).") from err
    if not isinstance(info, dict):
        raise FormatError(f"{folder / 'INFO.json'}: expected an object, got {type(info).__name__}.")
    return info


def _number(text: object) -> float | None:
    """Read "0.25", 0.25 or "0.25 nominal"; anything else states no mpp."""
    try:
        return float(str(text).split()[0])
    except (ValueError, IndexError):
        return None
