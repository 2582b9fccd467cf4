"""Sets whose truth is an image file: NucFuseRank, DSB2018, PCNS, TNBC."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from wsiseg.datasets.formats.layout import AnnotatedImage, read_rgb
from wsiseg.errors import FormatError
from wsiseg.labels import compact_labels, read_labels, split_components

__all__ = ["has_dsb2018", "has_nucfuse", "has_pcns", "has_tnbc", "read_dsb2018", "read_nucfuse", "read_pcns", "read_tnbc"]

_PCNS_MASK = "_labeled_mask_corrected.png"


def has_nucfuse(source: Path) -> bool:
    """Whether there are ``.tif`` pictures and ``.npy`` label maps of the same stems."""
    stems = {p.stem for p in source.rglob("*.npy")}
    return bool(stems) and any(p.stem in stems for p in source.rglob("*.tif"))


def read_nucfuse(source: Path) -> Iterator[AnnotatedImage]:
    """Read NucFuseRank's sets: ``<stem>.tif`` RGB with ``<stem>.npy`` (H, W) instance ids, in any folders.

    Where a stem occurs in several folders (splits), picture and labels pair by the longest common path, and the ids carry
    the folder.
    """
    pictures: dict[str, list[Path]] = {}
    for path in sorted(source.rglob("*.tif")):
        pictures.setdefault(path.stem, []).append(path)
    for labels in sorted(source.rglob("*.npy")):
        found = pictures.get(labels.stem)
        if not found:
            raise FormatError(f"{labels}: no picture {labels.stem}.tif under {source}.")
        picture = max(found, key=lambda p: sum(a == b for a, b in zip(p.parts, labels.parts, strict=False)))
        image_id = labels.stem if len(found) == 1 else "_".join([*labels.parent.relative_to(source).parts, labels.stem])
        yield AnnotatedImage(image_id.replace(" ", "_"), read_rgb(picture), read_labels(labels))


def has_dsb2018(source: Path) -> bool:
    """Return whether a folder contains ``<id>/images/<id>.png`` and ``<id>/masks/``."""
    return next((p for p in source.glob("**/images/*.png") if (p.parent.parent / "masks").is_dir()), None) is not None


def read_dsb2018(source: Path) -> Iterator[AnnotatedImage]:
    """Read Data Science Bowl 2018: a folder per image, a binary ``masks/*.png`` per nucleus; the later one gets overlaps."""
    for folder in sorted(p.parent for p in source.glob("**/masks") if (p.parent / "images").is_dir()):
        picture = _only(sorted((folder / "images").glob("*.png")), folder / "images")
        rgb = read_rgb(picture)
        labels = np.zeros(rgb.shape[:2], np.int32)
        for number, mask in enumerate(sorted((folder / "masks").glob("*.png")), start=1):
            nucleus = read_rgb(mask)[:, :, 0] > 0
            if nucleus.shape != labels.shape:
                raise FormatError(f"{mask}: the mask is {nucleus.shape}, its picture {labels.shape} (height, width).")
            labels[nucleus] = number
        yield AnnotatedImage(picture.stem, rgb, labels)


def has_pcns(source: Path) -> bool:
    """Whether there are ``<n>_labeled_mask_corrected.png``."""
    return next(source.rglob(f"*{_PCNS_MASK}"), None) is not None


def read_pcns(source: Path) -> Iterator[AnnotatedImage]:
    """Read Hou et al.'s manual patches (TCIA Pan-Cancer-Nuclei-Seg): ``<n>_crop.png`` with ``<n>_labeled_mask_corrected.png``.

    The masks hold ids. The cancer type comes from the crosswalk table (``Patch-ID``, ``CancerType``; comma or tab separated)
    from its place in the folder, else from the name of the folder. Patches are 40x: 0.25 um/px as published.
    """
    cancers = _pcns_crosswalk(source)
    for mask in sorted(source.rglob(f"*{_PCNS_MASK}")):
        stem = mask.name.removesuffix(_PCNS_MASK)
        picture = mask.with_name(f"{stem}_crop.png")
        if not picture.is_file():
            raise FormatError(f"{mask}: no picture {picture.name} beside it.")
        folder = mask.parent.name.lower()
        cancer = cancers.get(stem, folder if re.fullmatch(r"[a-z]{3,4}", folder) and mask.parent != source else "")
        image_id = stem if not stem.isdigit() else f"pcns_{int(stem):04d}"
        yield AnnotatedImage(image_id, read_rgb(picture), read_labels(mask), mpp=0.25, organ=cancer)


def _pcns_crosswalk(source: Path) -> dict[str, str]:
    for path in sorted([*source.glob("*.txt"), *source.glob("*.csv"), *source.glob("*.tsv")]):
        text = path.read_text(encoding="utf-8", errors="replace")
        header = text.splitlines()[0] if text else ""
        if "Patch-ID" in header and "CancerType" in header:
            delimiter = "\t" if "\t" in header else ","
            rows = csv.DictReader(text.splitlines(), delimiter=delimiter, skipinitialspace=True)
            return {str(row["Patch-ID"]).strip(): str(row["CancerType"]).strip().lower() for row in rows}
    return {}


def has_tnbc(source: Path) -> bool:
    """Return whether a folder contains folders ``Slide_XX`` and ``GT_XX``."""
    return any((p.parent / p.name.replace("Slide_", "GT_")).is_dir() for p in source.glob("**/Slide_*"))


def read_tnbc(source: Path) -> Iterator[AnnotatedImage]:
    """Read TNBC (Naylor et al. 2018): ``Slide_XX/XX_n.png`` with binary ``GT_XX/XX_n.png``; 40x, 0.25 um/px nominal.

    The masks have no ids: 8-connected parts are the nuclei (neighbors are drawn apart). ``XX`` is the patient.
    """
    for picture in sorted(source.glob("**/Slide_*/*.png")):
        patient = picture.parent.name.removeprefix("Slide_")
        mask = picture.parent.parent / f"GT_{patient}" / picture.name
        if not mask.is_file():
            raise FormatError(f"{picture}: no mask {mask.parent.name}/{mask.name}.")
        truth = read_labels(mask)
        labels = split_components(truth) if len(np.unique(truth)) == 2 else compact_labels(truth)
        yield AnnotatedImage(f"tnbc_{picture.stem}", read_rgb(picture), labels, mpp=0.25, organ="breast", group=patient)


def _only(paths: list[Path], where: Path) -> Path:
    if len(paths) != 1:
        raise FormatError(f"{where}: expected one picture, got {len(paths)}.")
    return paths[0]
