"""The unified layout of an annotated set, and its facts.

A set is a folder: ``<id>.png`` (RGB uint8), ``<id>.labels.png`` (uint16 ids, 0 background; ``.labels.tif`` uint32 where more
than 65535 nuclei are in one image) and ``INFO.json`` with the licence, microns per pixel, organs and groups. Images keep
their own pixels: mixed magnification is a fact of the image (``mpp_per_image``), and training resamples by it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from wsiseg.datasets.samples import sets_folder
from wsiseg.errors import FormatError
from wsiseg.labels import compact_labels, read_labels, write_labels
from wsiseg.tables import atomic_path, atomic_write_bytes

__all__ = ["AnnotatedImage", "Conversion", "SetStats", "dataset_stats", "read_rgb", "write_dataset"]


@dataclass(frozen=True, slots=True)
class SetStats:
    """A row of ``dataset_stats``: the columns of table 1 of NucFuseRank, and further ones.

    A fact that is not stated is ``"unknown"``.
    """

    dataset: str
    images: int
    nuclei: int
    nuclei_per_image: float
    tile_size: str
    magnification: str
    mpp: str
    organs: int | Literal["unknown"]
    groups: int | Literal["unknown"]
    licence: str


@dataclass(frozen=True, slots=True, eq=False)
class AnnotatedImage:
    """One picture with its nuclei, as a reader yields it.

    Attributes
    ----------
    image_id
        Unique in its set; becomes the file name.
    rgb : uint8 (H, W, 3)
    labels : int32 (H, W)
        0 background.
    mpp
        Microns per pixel as stated by the file or the set's publication; ``None``: not stated.
    organ, group
        Organ and group, if known; images of one group (a patient) must not be in different parts of a split.
    notes
        Repairs made while reading.
    """

    image_id: str
    rgb: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int32]
    mpp: float | None = None
    organ: str = ""
    group: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Conversion:
    """Result of a conversion."""

    format: str
    out: str
    n_images: int
    n_nuclei: int
    empty_images: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())


def read_rgb(path: Path) -> npt.NDArray[np.uint8]:
    """Read a picture as RGB uint8 (H, W, 3): alpha dropped, gray tripled; 16-bit and multi-page files raise ``FormatError``."""
    try:
        if path.suffix.lower() in {".tif", ".tiff"}:
            import tifffile

            array = np.asarray(tifffile.imread(path))
        else:
            from PIL import Image

            with Image.open(path) as image:
                array = np.asarray(image.convert("RGB"))
    except (OSError, ValueError) as err:
        raise FormatError(f"{path}: could not be read as a picture: {err}") from err
    if array.ndim == 2:
        array = np.repeat(array[:, :, None], 3, axis=2)
    if array.ndim != 3 or array.shape[2] not in (3, 4) or array.dtype != np.uint8:
        raise FormatError(f"{path}: expected an RGB uint8 picture, got {array.dtype} {array.shape}.")
    return np.ascontiguousarray(array[:, :, :3])


def write_dataset(
    images: Iterable[AnnotatedImage], out: Path, format_name: str, facts: dict[str, Any] | None = None
) -> Conversion:
    """Write images in the unified layout.

    ``INFO.json`` is written last, so that a folder that has one is complete. ``facts`` (name, licence, magnification ...) are
    added to it.

    Raises
    ------
    FormatError
        An id is not unique, a label map and its picture differ in size, ``out`` already has a set, or there are no images.
    """
    if (out / "INFO.json").exists():
        raise FormatError(f"{out} already contains a converted set (INFO.json). Give an empty folder.")
    out.mkdir(parents=True, exist_ok=True)
    per_image: dict[str, _Written] = {}
    notes: list[str] = []
    for image in images:
        if image.image_id in per_image:
            raise FormatError(f"{format_name}: two images have the id {image.image_id!r}; ids must be unique within a set.")
        if image.rgb.shape[:2] != image.labels.shape:
            raise FormatError(
                f"{format_name}, {image.image_id}: the picture is {image.rgb.shape[:2]}, its labels {image.labels.shape} "
                "(height, width)."
            )
        labels = compact_labels(image.labels)
        n_nuclei = int(labels.max()) if labels.size else 0
        _write_png(out / f"{image.image_id}.png", image.rgb)
        write_labels(out / f"{image.image_id}.labels.{'png' if n_nuclei <= 0xFFFF else 'tif'}", labels)
        per_image[image.image_id] = _Written(n_nuclei, image.mpp, image.organ, image.group)
        notes += [f"{image.image_id}: {note}" for note in image.notes]
    if not per_image:
        raise FormatError(f"{format_name}: no annotated image found; nothing was written to {out}.")
    info = _info(per_image, notes, {"name": out.name, "format": format_name, **(facts or {})})
    atomic_write_bytes(out / "INFO.json", (json.dumps(info, indent=1, ensure_ascii=False) + "\n").encode())
    empty = tuple(k for k, v in per_image.items() if v.nuclei == 0)
    return Conversion(format_name, str(out), len(per_image), sum(v.nuclei for v in per_image.values()), empty, tuple(notes))


def dataset_stats(root: str | Path) -> list[SetStats]:
    """Return the row of a set, or of each set in a folder of sets.

    Counts are from the label images, other facts from ``INFO.json``.

    Raises
    ------
    FormatError
        There is no set, or a set is damaged.
    """
    root = sets_folder(root)
    folders = [root] if (root / "INFO.json").is_file() else sorted(p.parent for p in root.glob("*/INFO.json"))
    if not folders:
        raise FormatError(f"{root}: no INFO.json here or one folder below; expected sets as 'wsiseg datasets convert' writes.")
    return [_stats_row(folder) for folder in folders]


def _stats_row(folder: Path) -> SetStats:
    try:
        info = json.loads((folder / "INFO.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise FormatError(f"{folder / 'INFO.json'}: {err}") from err
    if not isinstance(info, dict):
        raise FormatError(f"{folder / 'INFO.json'}: expected an object, got {type(info).__name__}.")
    sizes: Counter[tuple[int, int]] = Counter()
    nuclei = images = 0
    for path in sorted(folder.glob("*.labels.*")):
        labels = read_labels(path)
        sizes[labels.shape] += 1
        values = np.unique(labels)
        nuclei += int((values != 0).sum())
        images += 1
    per_image = [v for v in info.get("mpp_per_image", {}).values() if v is not None]
    organs = info.get("organs") or []
    return SetStats(
        dataset=info.get("name", folder.name),
        images=images,
        nuclei=nuclei,
        nuclei_per_image=round(nuclei / images, 1) if images else 0.0,
        tile_size=", ".join(f"{w}x{h}" for (h, w), _ in sizes.most_common(3)) + (" ..." if len(sizes) > 3 else ""),
        magnification=str(info.get("magnification") or "unknown"),
        mpp=_span([float(v) for v in per_image]) if per_image else str(info.get("mpp") or "unknown"),
        organs=len(organs) if organs and organs != ["not stated"] else "unknown",
        groups=len(set(info.get("group_per_image", {}).values()) - {""}) or "unknown",
        licence=str(info.get("license") or info.get("licence") or "unknown"),
    )


def _span(values: list[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


@dataclass(frozen=True, slots=True)
class _Written:
    """An image that was written."""

    nuclei: int
    mpp: float | None
    organ: str
    group: str


def _info(per_image: dict[str, _Written], notes: list[str], facts: dict[str, Any]) -> dict[str, Any]:
    mpps = {k: v.mpp for k, v in per_image.items()}
    stated = {v for v in mpps.values() if v is not None}
    return {
        **facts,
        "mpp": stated.pop() if len(stated) == 1 and None not in mpps.values() else None,
        "mpp_per_image": mpps,
        "organs": sorted({v.organ for v in per_image.values()} - {""}),
        "organ_per_image": {k: v.organ for k, v in per_image.items() if v.organ},
        "group_per_image": {k: v.group for k, v in per_image.items() if v.group},
        "n_images": len(per_image),
        "n_nuclei": sum(v.nuclei for v in per_image.values()),
        "nuclei_per_image": {k: v.nuclei for k, v in per_image.items()},
        "notes": notes,
    }


def _write_png(path: Path, rgb: npt.NDArray[np.uint8]) -> None:
    from PIL import Image

    with atomic_path(path) as partial:
        Image.fromarray(rgb).save(partial, format="PNG")
