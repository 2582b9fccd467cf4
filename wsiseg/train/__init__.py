"""Annotated images -> a trained two-head network: data, targets, augmentation, losses and the loop.

Comes in: images with instance labels (folders, or one Zarr store of patches), and a network made elsewhere. Goes out: its
averaged weights and a run folder with curves. ``wsiseg.run.training`` joins this with prediction, separation and scores.
"""

from __future__ import annotations

from wsiseg.train.augment import AugmentConfig
from wsiseg.train.augment_batch import StainStatistics
from wsiseg.train.batches import Batch, PatchSource
from wsiseg.train.data import VALIDATION_GROUPS, Sample, group_of, list_samples, load_sample, store_patches
from wsiseg.train.loop import LoopConfig, fit, learning_rate_factor
from wsiseg.train.losses import LossConfig, two_head_loss
from wsiseg.train.reference import choose_reference, histogram_difference
from wsiseg.train.splits import Fold, FoldKind, make_folds
from wsiseg.train.targets import CenterKind, make_targets

__all__ = [
    "AugmentConfig",
    "Batch",
    "CenterKind",
    "Fold",
    "FoldKind",
    "LoopConfig",
    "LossConfig",
    "PatchSource",
    "Sample",
    "StainStatistics",
    "VALIDATION_GROUPS",
    "choose_reference",
    "fit",
    "group_of",
    "histogram_difference",
    "learning_rate_factor",
    "list_samples",
    "load_sample",
    "make_folds",
    "make_targets",
    "store_patches",
    "two_head_loss",
]
