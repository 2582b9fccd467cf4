"""Auxiliary masks of a label image, as in CryoNuSeg (Mahbod et al. 2021): targets or loss weights for training.

Folder names, value ranges and file types are those of the published set, so that programs written for it can read these.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from wsiseg.datasets.formats.convert import FORMATS, detect_format
from wsiseg.datasets.samples import list_samples, load_sample
from wsiseg.errors import FormatError
from wsiseg.labels import LABEL_SUFFIXES, compact_labels, read_labels, write_labels
from wsiseg.tables import atomic_path

__all__ = ["AuxiliaryMasks", "auxiliary_masks", "border_weights", "write_masks"]

_NEGLIGIBLE = 1e-7  # of the border term's peak: beyond the distance where it falls under this, it is 0
_CROSS = ndimage.generate_binary_structure(2, 1)  # MATLAB's disk of radius 1


@dataclass(frozen=True, slots=True, eq=False)
class AuxiliaryMasks:
    """Masks of one image, each (H, W).

    Attributes
    ----------
    label : int32
        1..N; 0 is background.
    binary, border_removed, eroded : bool
        Nucleus; nucleus without the pixels that touch another nucleus (8 neighbors); the same eroded by a disk of radius 1.
    distance : float32
        Distance to the nearest pixel outside the nucleus, px, over the image's maximum: 0..1.
    weight, weight_eroded : float32
        ``border_weights`` of the border-removed and of the eroded mask.
    """

    label: NDArray[np.int32]
    binary: NDArray[np.bool_]
    border_removed: NDArray[np.bool_]
    eroded: NDArray[np.bool_]
    distance: NDArray[np.float32]
    weight: NDArray[np.float32]
    weight_eroded: NDArray[np.float32]


def auxiliary_masks(labels: NDArray[Any], w0: float = 10.0, sigma2_px2: float = 25.0) -> AuxiliaryMasks:
    """Return the masks of one label image (H, W), 0 background; see ``border_weights`` for ``w0`` and ``sigma2_px2``."""
    label = compact_labels(labels)
    binary = label > 0
    lowest = ndimage.minimum_filter(np.where(binary, label, np.iinfo(np.int32).max), 3)
    free = binary & (ndimage.maximum_filter(label, 3) == lowest)
    eroded = ndimage.binary_erosion(free, _CROSS, border_value=1)
    distance = np.zeros(label.shape, np.float32)
    for rows, columns, own in _nuclei(label, 1):
        part = distance[rows, columns]
        depth = 1.0 if own.all() else ndimage.distance_transform_edt(own)  # a nucleus that fills the image has no outside
        np.maximum(part, depth, out=part, where=own)
    peak = float(distance.max()) if distance.size else 0.0
    return AuxiliaryMasks(
        label,
        binary,
        free,
        eroded,
        distance / np.float32(peak) if peak else distance,
        border_weights(np.where(free, label, 0), w0, sigma2_px2),
        border_weights(np.where(eroded, label, 0), w0, sigma2_px2),
    )


def border_weights(labels: NDArray[np.int32], w0: float = 10.0, sigma2_px2: float = 25.0) -> NDArray[np.float32]:
    """Return the weight map of the U-Net paper (Ronneberger et al. 2015, equation 2).

    w(x) = w_c(x) + w0 exp(-(d1 + d2)^2 / (2 sigma^2)), the second term on background only and where there are two nuclei;
    d1 and d2 are the distances to the nearest two nuclei. w_c balances the classes: the rarer of nucleus and background weighs
    1, the other the ratio of their areas (as CryoNuSeg's own script has it).

    Parameters
    ----------
    labels : int32 (H, W)
        0 background, 1..N.
    w0
        Height of the border term.
    sigma2_px2
        Variance sigma^2, px^2.

    Returns
    -------
    float32 (H, W)
        Greater than 0, at most 1 + w0.
    """
    inside = labels > 0
    n_in = int(inside.sum())
    n_out = inside.size - n_in
    rarer = min(n for n in (n_in, n_out) if n) if inside.size else 1
    weight = np.where(inside, rarer / max(1, n_in), rarer / max(1, n_out)).astype(np.float32)
    reach = math.ceil(math.sqrt(-2 * sigma2_px2 * math.log(_NEGLIGIBLE)))
    nearest = np.full((2, *labels.shape), np.inf, np.float32)
    for rows, columns, own in _nuclei(labels, reach):
        part = nearest[:, rows, columns]
        away = ndimage.distance_transform_edt(~own).astype(np.float32)
        part[1] = np.minimum(part[1], np.maximum(part[0], away))
        part[0] = np.minimum(part[0], away)
    border = w0 * np.exp(-(nearest.sum(0) ** 2) / (2 * sigma2_px2))
    return np.asarray(weight + np.where(inside, 0, border), np.float32)


def write_masks(source: Path, out: Path, w0: float = 10.0, sigma2_px2: float = 25.0) -> int:
    """Write the masks of every image of a set into CryoNuSeg's folders and return the number of images.

    ``label masks modify/<id>.tif`` uint16 (uint32 above 65535 nuclei); ``mask binary``, ``mask binary without border`` and
    ``mask binary without border erode`` PNG of 0 and 255; ``distance maps`` PNG, 255 the image's maximum; ``weighted_maps`` and
    ``weighted_maps_erode`` PNG, 255 the image's maximum, and the weights as float32 ``.tif`` in the same folders.

    Parameters
    ----------
    source
        A set in the unified layout, in any published format that ``wsiseg datasets convert`` reads (also ImageJ ROI zips with
        their ``tissue images``), or a folder of label images.

    Raises
    ------
    FormatError
        ``source`` has no such files, or a file is damaged.
    """
    import tifffile

    done: set[str] = set()
    for name, labels in _label_images(source):
        if name in done:
            raise FormatError(f"{source}: several label images are named {name!r}. Rename them.")
        done.add(name)
        masks = auxiliary_masks(labels, w0, sigma2_px2)
        pictures = {
            "mask binary": masks.binary,
            "mask binary without border": masks.border_removed,
            "mask binary without border erode": masks.eroded,
            "distance maps": masks.distance,
            "weighted_maps": masks.weight / max(float(masks.weight.max()), 1e-6),
            "weighted_maps_erode": masks.weight_eroded / max(float(masks.weight_eroded.max()), 1e-6),
        }
        for folder, values in pictures.items():
            _write_png(out / folder / f"{name}.png", np.round(255 * values.astype(np.float32)).astype(np.uint8))
        for folder, weight in (("weighted_maps", masks.weight), ("weighted_maps_erode", masks.weight_eroded)):
            with atomic_path(out / folder / f"{name}.tif") as partial:
                tifffile.imwrite(partial, weight, compression="zlib")
        (out / "label masks modify").mkdir(exist_ok=True)
        _write_ids(out / "label masks modify" / f"{name}.tif", masks.label)
    return len(done)


def _label_images(source: Path) -> Iterator[tuple[str, NDArray[np.int32]]]:
    if (source / "INFO.json").is_file():
        for sample in list_samples(source.parent, (source.name,)):
            yield sample.image_id, load_sample(sample)[1]
        return
    try:
        published = FORMATS[detect_format(source)]
    except FormatError:
        plain = sorted(p for p in source.iterdir() if p.suffix.lower() in LABEL_SUFFIXES)
        if not plain:
            raise
        yield from ((p.name.removesuffix(p.suffix).removesuffix(".labels"), read_labels(p)) for p in plain)
        return
    for image in published.read(source):
        yield image.image_id, image.labels


def _nuclei(labels: NDArray[np.int32], margin_px: int) -> Iterator[tuple[slice, slice, NDArray[np.bool_]]]:
    """Yield (rows, columns, mask) of each nucleus: its bounding box grown by a margin within the image."""
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is not None:
            rows, columns = (slice(max(side.start - margin_px, 0), side.stop + margin_px) for side in box)
            yield rows, columns, labels[rows, columns] == number


def _write_ids(path: Path, labels: NDArray[np.int32]) -> None:
    import tifffile

    if labels.max(initial=0) > 0xFFFF:
        write_labels(path, labels)
        return
    with atomic_path(path) as partial:
        tifffile.imwrite(partial, labels.astype(np.uint16), compression="zlib")


def _write_png(path: Path, picture: NDArray[np.uint8]) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial:
        Image.fromarray(picture).save(partial, format="PNG")
