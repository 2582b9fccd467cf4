"""Sets whose truth is an array file: CoNSeP and CPM (MATLAB), PanNuke (NumPy)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from wsiseg.datasets.formats.layout import AnnotatedImage, read_rgb
from wsiseg.errors import FormatError
from wsiseg.labels import compact_labels, read_labels

__all__ = ["has_mat", "has_pannuke", "read_mat", "read_pannuke"]

_N_CLASSES = 5  # PanNuke: neoplastic, inflammatory, connective, dead, epithelial; channel 5 is background


def has_mat(source: Path) -> bool:
    """Return whether a folder contains ``Labels/*.mat`` and ``Images/``."""
    return next((p for p in source.glob("**/Labels/*.mat") if (p.parent.parent / "Images").is_dir()), None) is not None


def read_mat(source: Path) -> Iterator[AnnotatedImage]:
    """Read CoNSeP, CPM-15, CPM-17: ``<split>/Images/<stem>.png`` with ``<split>/Labels/<stem>.mat`` holding ``inst_map``.

    CoNSeP is the one with a ``type_map``: 40x colon, 0.25 um/px as published. CPM mixes magnifications without stating them.
    """
    from scipy.io import whosmat

    for mat in sorted(source.glob("**/Labels/*.mat")):
        split = mat.parent.parent
        pictures = [p for p in sorted((split / "Images").glob(f"{mat.stem}.*")) if p.suffix.lower() in {".png", ".tif"}]
        if len(pictures) != 1:
            raise FormatError(f"{mat}: expected one picture Images/{mat.stem}.png, got {len(pictures)}.")
        labels = read_labels(mat)
        consep = any(name == "type_map" for name, *_ in whosmat(mat))
        image_id = f"{split.name.lower()}_{mat.stem}" if split != source and split.name.lower() not in mat.stem else mat.stem
        yield AnnotatedImage(
            f"consep_{image_id}" if consep else image_id,
            read_rgb(pictures[0]),
            labels,
            mpp=0.25 if consep else None,
            organ="colon" if consep else "",
        )


def has_pannuke(source: Path) -> bool:
    """Whether there are ``images.npy`` and ``masks.npy``."""
    return any(source.glob("**/images.npy")) and any(source.glob("**/masks.npy"))


def read_pannuke(source: Path) -> Iterator[AnnotatedImage]:
    """Read PanNuke folds: ``images/foldN/{images,types}.npy``, ``masks/foldN/masks.npy`` (K, 256, 256, 6); 0.25 um/px.

    Channels 0 to 4 are the ids of one class each, channel 5 is the background. Ids of different channels are kept apart; where
    channels overlap, the later one owns the pixel. ``types.npy`` names the organ.
    """
    masks_by_fold = {_fold_of(p): p for p in sorted(source.glob("**/masks.npy"))}
    for path in sorted(source.glob("**/images.npy")):
        fold = _fold_of(path)
        if fold not in masks_by_fold:
            raise FormatError(f"{path}: no masks.npy for {fold!r}; found {sorted(masks_by_fold)}.")
        images, masks = _load(path), _load(masks_by_fold[fold])
        if images.ndim != 4 or masks.ndim != 4 or len(images) != len(masks) or masks.shape[3] < _N_CLASSES:
            raise FormatError(f"{path}: expected (K, H, W, 3) and masks (K, H, W, 6), got {images.shape} and {masks.shape}.")
        types = _types(path.with_name("types.npy"), len(images))
        for k in range(len(images)):
            yield AnnotatedImage(
                f"pannuke_{fold}_{k:04d}",
                np.clip(np.rint(images[k]), 0, 255).astype(np.uint8),
                _merge_classes(np.asarray(masks[k])),
                mpp=0.25,
                organ=types[k],
                group=fold,
            )


def _merge_classes(mask: np.ndarray) -> np.ndarray:
    labels = np.zeros(mask.shape[:2], np.int32)
    offset = 0
    for channel in range(_N_CLASSES):
        ids = compact_labels(np.rint(mask[:, :, channel]).astype(np.int64))
        labels = np.where(ids > 0, ids + offset, labels).astype(np.int32)
        offset += int(ids.max())
    return labels


def _fold_of(path: Path) -> str:
    names = [part.lower().replace(" ", "") for part in path.parts if part.lower().startswith("fold")]
    return names[-1] if names else "fold"


def _load(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as err:
        raise FormatError(f"{path}: not a NumPy array: {err}") from err


def _types(path: Path, n: int) -> list[str]:
    if not path.is_file():
        return [""] * n
    types = [str(t).lower() for t in _load(path)]
    if len(types) != n:
        raise FormatError(f"{path}: {len(types)} organ names for {n} images.")
    return types
