"""Train the two-head network on annotated images: data, targets, augmentation, losses and the loop.

Input: images with instance labels (folders, or one Zarr store of patches) and an initialized network. Output: its averaged
weights and a run folder with curves. ``wsiseg.train.training`` combines this with prediction, separation and scores.
"""

from __future__ import annotations

from wsiseg.train.augment import AugmentConfig
from wsiseg.train.augment_batch import StainStatistics
from wsiseg.train.batches import Batch, ImageSteps, PatchSource, TargetOptions
from wsiseg.train.loop import LoopConfig, TrainingRun, fit, learning_rate_factor
from wsiseg.train.losses import LossConfig, two_head_loss
from wsiseg.train.reference import choose_reference, histogram_difference
from wsiseg.train.targets import CenterKind, make_targets

__all__ = [
    "AugmentConfig",
    "Batch",
    "CenterKind",
    "ImageSteps",
    "LoopConfig",
    "LossConfig",
    "PatchSource",
    "StainStatistics",
    "TargetOptions",
    "TrainingRun",
    "choose_reference",
    "fit",
    "histogram_difference",
    "learning_rate_factor",
    "make_targets",
    "two_head_loss",
]
