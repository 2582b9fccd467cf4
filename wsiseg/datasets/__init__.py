"""Annotated sets of images: published layouts converted to one, samples by patient, splits, patch stores, auxiliary masks.

Input: folders of published sets. Output: ``Sample`` (an image and its label image), folds, Zarr patch stores.
"""

from __future__ import annotations

from wsiseg.datasets.samples import VALIDATION_GROUPS, Sample, group_of, list_samples, load_sample, sets_folder, store_patches
from wsiseg.datasets.splits import Fold, FoldKind, make_folds

__all__ = [
    "Fold",
    "FoldKind",
    "Sample",
    "VALIDATION_GROUPS",
    "group_of",
    "list_samples",
    "load_sample",
    "make_folds",
    "sets_folder",
    "store_patches",
]
