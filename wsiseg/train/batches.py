"""Draw training batches that depend only on seed and step, so that a resumed run gives the same result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from wsiseg.datasets.samples import Sample, load_sample, magnification
from wsiseg.errors import ConfigError
from wsiseg.train.augment import AugmentConfig, Look, augment_color, cut_patch, degrade, look_of, restain
from wsiseg.train.augment_batch import PixelBank, StainStatistics, augment_batch
from wsiseg.train.targets import CenterKind, make_targets

__all__ = ["Batch", "ImageSteps", "PatchSource", "TargetOptions", "Teacher"]

Teacher = Callable[[NDArray[np.uint8], float], NDArray[np.uint8]]
"""From a whole image, uint8 (H, W, 3), and its magnification to working px, to the maps of a network at the image's own px,
uint8 (2, H, W)."""

_PLAIN = AugmentConfig(
    scale_min=1, scale_max=1, elastic_px=0, free_rotation_p=0, stain_gain=0, stain_offset=0, hue_mix=0, gamma=0, blur_p=0,
    low_resolution_p=0, jpeg_p=0, noise_p=0,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Batch:
    """``rgb`` float32 (N, 3, H, W), -1 to 1; ``target`` float32 (N, 2, H, W), 0 to 1; ``weight`` float32 (N, 1, H, W)."""

    rgb: torch.Tensor
    target: torch.Tensor
    weight: torch.Tensor


@dataclass(frozen=True, slots=True)
class TargetOptions:
    """How targets are made of labels (``wsiseg.train.targets.make_targets``)."""

    center: CenterKind
    border_weight: float = 3.0
    touching: float = 0.65
    small_weight: float = 1.0


@dataclass(frozen=True, slots=True)
class ImageSteps:
    """What is done with each whole image before patches are drawn.

    Attributes
    ----------
    prepare
        Applied to the image first (stain normalization).
    stain_of
        Gives its stain, where stains are mixed.
    teacher, teacher_share
        Another network; targets are moved towards its maps by this share (distillation, Hinton et al. 2015), so that missing
        or inaccurate annotations have less weight.
    """

    prepare: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None
    stain_of: Callable[[NDArray[np.uint8]], StainStatistics] | None = None
    teacher: Teacher | None = None
    teacher_share: float = 0.5


class PatchSource:
    """All images of a split in memory, with their targets, from which batches of patches are drawn.

    Patches are augmented one by one on the host, or a whole batch at once on a device (``batched_on``). Both depend only on
    seed and step, but give different patches.
    """

    def __init__(
        self,
        samples: list[Sample],
        set_share: dict[str, float],
        targets: TargetOptions,
        augment: AugmentConfig | None,
        patch_px: int,
        *,
        batched_on: torch.device | None = None,
        steps: ImageSteps = ImageSteps(),
    ) -> None:
        missing = sorted({s.dataset for s in samples} - set(set_share))
        if missing or not samples:
            raise ConfigError(f"Expected a share for each training set, got none for {missing or samples}.")
        self.patch_px, self.augment = patch_px, augment
        self._stacks: list[torch.Tensor] = []
        magnify: list[float] = []
        self._unknown = np.array([s.mpp is None for s in samples])
        self._looks: list[Look] = []
        self._stains: list[StainStatistics] = []
        weight = np.zeros(len(samples))
        for i, sample in enumerate(samples):
            rgb, labels = load_sample(sample)
            aims = make_targets(labels, targets.center, targets.border_weight, targets.touching, targets.small_weight)
            magnify.append(magnification(sample, labels))
            if steps.teacher is not None:
                seen = steps.teacher(rgb, magnify[-1])
                aims[:2] = np.round(aims[:2] + steps.teacher_share * (seen - aims[:2].astype(np.float32)))
            rgb = rgb if steps.prepare is None else steps.prepare(rgb)
            aims[2] -= 64  # stored as the excess over 1, so that 0 outside the image is a plain weight
            stack = np.concatenate([255 - rgb.transpose(2, 0, 1), aims])
            self._stacks.append(torch.from_numpy(stack))
            if steps.stain_of is not None:
                self._stains.append(steps.stain_of(rgb))
            self._looks.append(look_of(rgb))
            weight[i] = labels.size
        for name in {s.dataset for s in samples}:
            mine = np.array([s.dataset == name for s in samples])
            weight[mine] *= set_share[name] / weight[mine].sum()
        weight *= [
            s.weight for s in samples
        ]  # after the shares, so that a set of images with low weights is drawn less often as a whole
        if not weight.any():
            raise ConfigError(
                "Every training image has the weight 0. Check weight_per_image in INFO.json and the shares of the sets."
            )
        self._chance = weight / weight.sum()
        self._magnify = np.array(magnify)
        self._bank: PixelBank | None = None
        if batched_on is not None:
            looks = self._looks if (augment or _PLAIN).restain_p else ()
            self._bank = PixelBank(self._stacks, batched_on, self._stains, looks)
            self._stacks = []

    def batch(self, n: int, seed: int, step: int, rank: int = 0, ranks: int = 1) -> Batch:
        """Return the patches of process ``rank`` of the n patches of a step; they depend only on the arguments.

        The patches of all ranks together equal the batch of a single process.
        """
        rng = np.random.default_rng([seed, step])
        chosen = rng.choice(len(self._magnify), n, p=self._chance)
        part = slice(rank * n // ranks, (rank + 1) * n // ranks)
        if self._bank is None:
            patches = torch.stack([self._patch(int(i), rng) for i in chosen[: part.stop]][part.start :])
        else:
            config = self.augment or _PLAIN
            patches = augment_batch(self._bank, chosen, self._drawn_magnify(chosen, rng), self.patch_px, rng, config, part)
        weight = 1 + patches[:, 5:6] * (1 / 64)
        return Batch(patches[:, :3] * (2 / 255) - 1, patches[:, 3:5] * (1 / 255), weight)

    def _drawn_magnify(self, chosen: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float64]:
        """Return the magnification of images, varied where the scale is unknown."""
        magnify, limit = self._magnify[chosen], (self.augment or _PLAIN).unknown_scale
        if limit <= 1:
            return magnify
        return magnify * np.where(self._unknown[chosen], limit ** rng.uniform(-1, 1, len(chosen)), 1.0)

    def _patch(self, i: int, rng: np.random.Generator) -> torch.Tensor:
        config = self.augment
        (magnify,) = self._drawn_magnify(np.array([i]), rng).tolist()
        patch = cut_patch(self._stacks[i], self.patch_px, rng, config or _PLAIN, magnify)
        rgb = 255 - patch[:3]
        if config is not None:
            if config.restain_p and rng.random() < config.restain_p:
                other = self._looks[int(rng.choice(len(self._looks), p=self._chance))]
                rgb = restain(rgb, self._looks[i], other, float(rng.uniform(0.4, 1.3)))
            rgb = degrade(augment_color(rgb, rng, config), rng, config)
        patch[:3] = rgb
        return patch
