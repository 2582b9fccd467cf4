"""``wsiseg train config.toml``: data, network, loop, thresholds, scores and export in one run folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from wsiseg import __version__
from wsiseg.config import PredictConfig, RunConfig
from wsiseg.datasets import Sample, list_samples, load_sample
from wsiseg.datasets.samples import MODEL_MPP
from wsiseg.errors import ConfigError
from wsiseg.log import log
from wsiseg.normalize import fit_stain
from wsiseg.pipeline import map_image
from wsiseg.predict import (
    UNet,
    activation_ranges,
    as_stored,
    build_net,
    is_quantizable,
    load_model,
    load_weights,
    model_from_net,
    save_weights,
)
from wsiseg.train.augment_batch import StainStatistics
from wsiseg.train.batches import ImageSteps, PatchSource, TargetOptions, Teacher
from wsiseg.train.config import AugmentOn, TrainConfig, plain_config
from wsiseg.train.curves import draw_curves
from wsiseg.train.distributed import own_device, rank_and_size
from wsiseg.train.loop import CurveLine, TrainingRun, fit
from wsiseg.train.presets import HOU_SEPARATION, separation_by_size
from wsiseg.train.reference import choose_reference
from wsiseg.train.validation import OPERATING_POINT, fit_separation, in_reference_stain, predict_samples, score_table
from wsiseg.types import Stain

__all__ = [
    "TrainConfig",
    "begun_net",
    "export_weights",
    "load_teacher",
    "patch_source",
    "plain_config",
    "train_from_toml",
    "train_samples",
    "training_samples",
]

DATA_ROOT_ENV = "WSISEG_DATA"


def train_from_toml(
    path: Path, *, model: str = "", resume: bool = False, on_line: Callable[[CurveLine], None] | None = None
) -> Path:
    """Train by a config file and return the run folder; ``model`` names a published recipe (``wsiseg.train.presets``).

    The folder receives the curve, checkpoints, ``scores.json`` and ``weights/<name>.safetensors`` with its card.

    Raises
    ------
    ConfigError
        The config is unusable, or the folder already contains a run and ``resume`` is not set.
    FormatError
        The data are not in the unified layout.
    """
    config = TrainConfig.from_toml(path, model)
    run_dir = path.parent / config.out
    train_samples(config, training_samples(config), run_dir, base=path.parent, resume=resume, on_line=on_line)
    return run_dir


def training_samples(config: TrainConfig) -> list[Sample]:
    """Return all images of a config's sets. Raises ``ConfigError`` if their folder is not set."""
    return list_samples(_data_root(config), tuple(config.sets))


def train_samples(
    config: TrainConfig,
    samples: list[Sample],
    run_dir: Path,
    *,
    base: Path = Path(),
    resume: bool = False,
    on_line: Callable[[CurveLine], None] | None = None,
) -> dict[str, Any]:
    """Train on the images, score those marked ``validation``, and return the card of the weights.

    ``base`` is the folder of the config file, to which ``init`` and ``teacher`` are relative. With several processes (torchrun)
    rank 0 scores and writes; the others return an empty card.

    Raises
    ------
    ConfigError
        As for ``train_from_toml``.
    """
    seen = [s for s in samples if not s.validation]
    held_out = [s for s in samples if s.validation] if config.validate else []
    if config.fit_sets:
        _fitting_samples(config)  # to know before the training that there are images
    source, aim = patch_source(config, seen, base)
    net = begun_net(config, base)
    rank, ranks = rank_and_size()

    def validate(candidate: torch.nn.Module, step: int) -> dict[str, float]:
        return _quick_scores(candidate, held_out, config, aim, step)

    best = fit(
        net,
        lambda step: source.batch(ranks * config.loop.batch, config.loop.seed, step, rank, ranks),
        config.loop,
        TrainingRun(run_dir, resume),
        validate=validate if held_out else None,
        on_line=on_line,
    )
    if rank > 0:
        return {}
    draw_curves(run_dir / "curve.jsonl", run_dir / "curve.png")
    return export_weights(best, config, [*seen, *held_out], run_dir / "weights")


def patch_source(config: TrainConfig, seen: list[Sample], base: Path = Path()) -> tuple[PatchSource, Stain]:
    """Return the patches of a config's training images, and the stain that these are normalized to.

    ``base`` is the folder of the config file. Raises ``ConfigError`` as ``train_samples`` does.
    """
    aim, _ = _stain_aim(config, seen)
    steps = ImageSteps(
        stain_of=_stain_statistics if _mixes_stains(config) else None,
        prepare=None if config.stain == "none" else lambda rgb: in_reference_stain(rgb, aim),
        teacher=load_teacher(_weights_from(config.teacher, base)) if config.teacher else None,
        teacher_share=config.teacher_share,
    )
    targets = TargetOptions(config.center, config.border_weight, config.touching, config.small_weight)
    device = own_device(config.loop.device) if _batched(config) else None
    return PatchSource(seen, config.sets, targets, config.augment, config.patch_px, batched_on=device, steps=steps), aim


def begun_net(config: TrainConfig, base: Path) -> UNet:
    """Return the network that a run begins with: random by the config's seed, or its ``init``.

    ``base`` is the folder of the config file. Raises ``ConfigError`` if ``init`` is of another network.
    """
    torch.manual_seed(config.loop.seed)
    net = build_net(config.net)
    if config.init:
        held, card = load_weights(_weights_from(config.init, base))
        if card["net"] != config.net:
            raise ConfigError(
                f"training {config.name}: expected init to be a {config.net!r} network (net), got {config.init!r}, which is "
                f"{card['net']!r}."
            )
        net.load_state_dict(held.state_dict())
    return net


def export_weights(net: torch.nn.Module, config: TrainConfig, samples: list[Sample], folder: Path) -> dict[str, Any]:
    """Measure the int8 ranges, fit thresholds, score, and write weights and card; return the card.

    Thresholds are for tissue that the network has not seen: fitted to ``config.fit_sets``, or ``OPERATING_POINT``. Scores are
    on the held-out images, which are used neither for training nor for thresholds; without such images there are no scores.
    Held-out images of ``config.fit_sets`` are not fitted to either.
    """
    assert isinstance(net, UNet)
    held_out, seen = [s for s in samples if s.validation], [s for s in samples if not s.validation]
    aim, reference = _stain_aim(config, seen)
    card: dict[str, Any] = {
        "name": config.name,
        "mpp": MODEL_MPP,
        "stain_method": config.stain,
        "licence": config.licence,
        "data": {"sets": sorted(config.sets), "validation_images": [s.image_id for s in held_out]},
        "separate_defaults": HOU_SEPARATION if config.separation == "hou43" else dict(OPERATING_POINT),
        "scores": {},
        "training": plain_config(config),
        "wsiseg_version": __version__,
    }
    stored = as_stored(net)
    if reference:
        card["stain_reference"] = reference
    if is_quantizable(stored.spec):
        stored.ranges = activation_ranges(stored.eval(), _calibration_images(seen, aim))
    if held_out or config.fit_sets or config.separation == "nucleus-size":
        state = {name: tensor.clone() for name, tensor in stored.state_dict().items()}
        model = model_from_net(stored, {**card, "sha256": ""}, PredictConfig())  # modifies the network that is passed
        if config.fit_sets:
            judged = predict_samples(model, _fitting_samples(config))
            card["separate_defaults"], reached = fit_separation(judged)
            log.info("thresholds %s: mean of PQ and AJI %.4f", card["separate_defaults"], reached)
        elif config.separation == "nucleus-size":
            by_size = separation_by_size(predict_samples(model, _spread(seen)), MODEL_MPP)
            card["separate_defaults"], card["mean_nucleus_diameter_px"] = by_size
        if held_out:
            card["scores"] = score_table(predict_samples(model, held_out), card["separate_defaults"])
            card["scored_in"] = model.precision
        ranges, stored = stored.ranges, build_net(config.net)
        stored.load_state_dict(state)
        stored.ranges = ranges
    return save_weights(stored, config.net, card, folder / f"{config.name}.safetensors")


def load_teacher(weights: str) -> Teacher:
    """Return a teacher from weights (a name, or a .safetensors path).

    Images are predicted at the network's resolution, in eight orientations whose maps are averaged.
    """
    model = load_model(PredictConfig(weights=weights, tta=8))

    def maps_of(rgb: NDArray[np.uint8], magnify: float) -> NDArray[np.uint8]:
        maps = map_image(rgb, model.mpp * magnify, model, RunConfig()).inner
        if maps.shape[1:] == rgb.shape[:2]:
            return maps
        levels = torch.from_numpy(maps)[None].float()
        same_px = functional.interpolate(levels, rgb.shape[:2], mode="bilinear", antialias=True)
        return same_px[0].round().to(torch.uint8).numpy()

    return maps_of


def _weights_from(stated: str, folder: Path) -> str:
    """Return the name of installed weights unchanged; make a path relative to the config file's folder absolute."""
    return str(folder / stated) if stated.endswith(".safetensors") else stated


def _spread(samples: list[Sample]) -> list[Sample]:
    """Return up to twelve evenly spaced images of each set, which suffice for the mean size of nuclei."""
    chosen: list[Sample] = []
    for dataset in dict.fromkeys(s.dataset for s in samples):
        mine = [s for s in samples if s.dataset == dataset]
        chosen += mine[:: max(1, len(mine) // 12)][:12]
    return chosen


def _data_root(config: TrainConfig) -> str:
    root = config.data_root or os.environ.get(DATA_ROOT_ENV, "")
    if not root:
        raise ConfigError(
            f"training {config.name}: no data. Set data_root in its config or the environment variable {DATA_ROOT_ENV}."
        )
    return root


def _calibration_images(seen: list[Sample], aim: Stain) -> Iterator[NDArray[np.uint8]]:
    """Yield crops of 24 evenly spaced training images."""
    for sample in seen[:: max(1, len(seen) // 24)]:
        yield in_reference_stain(load_sample(sample)[0], aim)[:512, :512]


def _fitting_samples(config: TrainConfig) -> list[Sample]:
    """Return the images of ``fit_sets`` that are not held out. Raises ``ConfigError`` if a set has none."""
    chosen = [s for s in list_samples(_data_root(config), tuple(config.fit_sets)) if not s.validation]
    if empty := sorted(set(config.fit_sets) - {s.dataset for s in chosen}):
        raise ConfigError(
            f"training {config.name}: fit_sets names {empty}, of which every image is held out for validation. Name sets with "
            "other images."
        )
    return chosen


def _stain_aim(config: TrainConfig, seen: list[Sample]) -> tuple[Stain, dict[str, Any]]:
    """Return the target stain of normalization, and the card's entries about it (empty without normalization)."""
    if config.stain == "none":
        return Stain(), {}
    if config.stain_reference == "published":
        return Stain(config.stain), {"aims_at": "HERef and maxCRef of Macenko et al.'s published code"}
    chosen, difference = choose_reference(seen)
    rgb = load_sample(chosen)[0]
    aim = fit_stain(config.stain, rgb, np.ones(rgb.shape[:2], np.bool_))
    if not aim.params:
        raise ConfigError(
            f'The stain reference {chosen.dataset} {chosen.image_id} lacks two stains: set stain_reference = "published".'
        )
    image = {"set": chosen.dataset, "image": chosen.image_id, "histogram_difference": round(difference, 4)}
    return aim, {"aims_at": "the training image whose nuclei and background differ most in gray", **image, "params": aim.params}


def _mixes_stains(config: TrainConfig) -> bool:
    return config.augment.macenko_mix_p + config.augment.reinhard_mix_p > 0


def _batched(config: TrainConfig) -> bool:
    if config.augment_on not in get_args(AugmentOn):
        raise ConfigError(
            f"training config: expected augment_on to be one of {get_args(AugmentOn)}, got {config.augment_on!r}."
        )
    if config.augment_on == "patch" and _mixes_stains(config):
        raise ConfigError('training config: macenko_mix_p and reinhard_mix_p need augment_on = "batch" (or "auto").')
    wanted = config.loop.device.startswith("cuda") or _mixes_stains(config) or rank_and_size()[1] > 1
    return config.augment_on == "batch" or (config.augment_on == "auto" and wanted)


def _stain_statistics(rgb: NDArray[np.uint8]) -> StainStatistics:
    everywhere = np.ones(rgb.shape[:2], np.bool_)
    return StainStatistics(fit_stain("macenko", rgb, everywhere).params, fit_stain("reinhard", rgb, everywhere).params)


def _quick_scores(net: torch.nn.Module, held_out: list[Sample], config: TrainConfig, aim: Stain, step: int) -> dict[str, float]:
    """Return the mean PQ per set at ``OPERATING_POINT``, for the curve."""
    assert isinstance(net, UNet)
    copy = build_net(config.net)
    copy.load_state_dict(net.state_dict())
    card = {
        "name": config.name,
        "sha256": "",
        "mpp": MODEL_MPP,
        "stain_method": aim.method,
        "stain_reference": {"params": aim.params},
        "licence": "",
        "separate_defaults": {},
    }
    table = score_table(predict_samples(model_from_net(copy, card, PredictConfig()), held_out), OPERATING_POINT)
    log.info("step %d: %s", step, json.dumps({name: row["pq"] for name, row in table.items()}))
    return {f"pq_{name}": row["pq"] for name, row in table.items()}
