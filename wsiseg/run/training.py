"""``wsiseg train config.toml``: data, network, loop, thresholds, scores and export in one run folder."""

from __future__ import annotations

import dataclasses
import json
import os
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from wsiseg import __version__
from wsiseg.config import PredictConfig
from wsiseg.errors import ConfigError
from wsiseg.log import log
from wsiseg.normalize import fit_stain
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
from wsiseg.run.presets import HOU_SEPARATION, separation_by_size, with_model
from wsiseg.run.validation import (
    fit_separation,
    in_reference_stain,
    predict_image,
    predict_recolored,
    predict_samples,
    score_table,
)
from wsiseg.train import (
    AugmentConfig,
    CenterKind,
    LoopConfig,
    LossConfig,
    PatchSource,
    Sample,
    StainStatistics,
    choose_reference,
    fit,
    list_samples,
    load_sample,
)
from wsiseg.train.curves import draw_curves
from wsiseg.train.data import MODEL_MPP
from wsiseg.train.distributed import own_device, rank_and_size

__all__ = ["TrainConfig", "export_weights", "plain_config", "train_from_toml", "train_samples", "training_samples"]

AugmentOn = Literal["auto", "patch", "batch"]
StainChoice = Literal["none", "macenko"]
SeparationChoice = Literal["fitted", "nucleus-size", "hou43"]

DATA_ROOT_ENV = "WSISEG_DATA"
_THRESHOLD_IMAGES = 12  # per set


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """One training run.

    Attributes
    ----------
    name
        Name of the weights (``open``, ``research``, ...).
    out
        Run folder, relative to the config file.
    data_root
        Folder of the sets in the unified layout; empty: the environment variable ``WSISEG_DATA``.
    sets
        Sets and the share of patches that each gives; also their weight when thresholds are fitted.
    licence
        Licence of the resulting weights, and why.
    augment_on
        ``patch``: patches are augmented one by one on the host; ``batch``: all of a batch at once, on the device that trains;
        ``auto``: the second on a GPU, in several processes and where stains are mixed, the first otherwise. Each draws its own
        random numbers.
    stain
        ``macenko``: training images are normalized, and so will be every slide that the weights segment.
    separation
        Thresholds of the weights: ``fitted`` on training images, or set by the mean nucleus (``separation_by_size``): either
        needs held-out images, without any the fallback thresholds stand. ``hou43``: those of Hou et al. 2020.
    init
        Weights to go on from: a name that ships, or a .safetensors path relative to the config file; empty: from the seed.
    teacher, teacher_share
        Weights (as for ``init``) whose maps, averaged over eight orientations, the targets are drawn towards, and how far.
    """

    name: str
    sets: dict[str, float]
    licence: str
    out: str = "run"
    data_root: str = ""
    net: str = "lean"
    init: str = ""
    teacher: str = ""
    teacher_share: float = 0.5
    center: CenterKind = "ellipse"
    border_weight: float = 3.0
    touching: float = 0.65
    patch_px: int = 256
    validate: bool = True
    augment_on: AugmentOn = "auto"
    stain: StainChoice = "none"
    separation: SeparationChoice = "fitted"
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        """Refuse an unknown stain or separation."""
        for name, kind in (("stain", StainChoice), ("separation", SeparationChoice)):
            if getattr(self, name) not in get_args(kind):
                raise ConfigError(
                    f"training config: expected {name} to be one of {get_args(kind)}, got {getattr(self, name)!r}."
                )
        if not 0 <= self.teacher_share <= 1:
            raise ConfigError(f"training config: expected teacher_share to be 0 to 1, got {self.teacher_share}.")

    @classmethod
    def from_toml(cls, path: Path, model: str = "") -> TrainConfig:
        """Read a TOML file, with the options of a published model (``run.presets``) over its own.

        ``ConfigError`` for broken TOML, unknown or missing options.
        """
        try:
            tree = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as err:
            raise ConfigError(f"training config {path}: {err}") from err
        return cls.from_tree(tree, model)

    @classmethod
    def from_tree(cls, tree: dict[str, Any], model: str = "") -> TrainConfig:
        """Build from the tree of a TOML file, as ``from_toml``."""
        tree = with_model(tree, model) if model else dict(tree)
        loop = dict(tree.pop("loop", {}))
        loss = _built(LossConfig, tree.pop("loss", {}), "loss")
        return _built(
            cls,
            {
                **tree,
                "augment": _built(AugmentConfig, tree.pop("augment", {}), "augment"),
                "loop": _built(LoopConfig, {**loop, "loss": loss}, "loop"),
            },
            "top level",
        )


def train_from_toml(
    path: Path, *, model: str = "", resume: bool = False, on_line: Callable[[dict[str, Any]], None] | None = None
) -> Path:
    """Train as a config file says and return the run folder; ``model`` names a published recipe (``run.presets``).

    The folder receives the curve, checkpoints, ``scores.json`` and ``weights/<name>.safetensors`` with its card.

    Raises
    ------
    ConfigError
        For an unusable config, or a folder that holds a run already when ``resume`` is not set.
    FormatError
        When the data are not in the unified layout.
    """
    config = TrainConfig.from_toml(path, model)
    run_dir = path.parent / config.out
    train_samples(config, training_samples(config), run_dir, base=path.parent, resume=resume, on_line=on_line)
    return run_dir


def training_samples(config: TrainConfig) -> list[Sample]:
    """Return all images of a config's sets; ``ConfigError`` where it is not said where they are."""
    return list_samples(_data_root(config), tuple(config.sets))


def train_samples(
    config: TrainConfig,
    samples: list[Sample],
    run_dir: Path,
    *,
    base: Path = Path(),
    resume: bool = False,
    on_line: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Train on some images, judge by those of them with ``validation``, and return the card of the weights.

    ``base`` is the folder of the config file, from which a relative ``init`` counts. Of several processes (torchrun) the first
    scores and writes; the others return an empty card.

    Raises
    ------
    ConfigError
        As ``train_from_toml``.
    """
    seen = [s for s in samples if not s.validation]
    held_out = [s for s in samples if s.validation] if config.validate else []
    source = PatchSource(
        seen,
        config.sets,
        config.center,
        config.augment,
        config.patch_px,
        config.border_weight,
        config.touching,
        batched_on=own_device(config.loop.device) if _batched(config) else None,
        stain_of=_stain_statistics if _mixes_stains(config) else None,
        prepare=None if config.stain == "none" else lambda rgb: in_reference_stain(rgb, config.stain),
        teacher=_teacher(config, base),
        teacher_share=config.teacher_share,
    )
    net = _begun(config, base)
    rank, ranks = rank_and_size()

    def validate(candidate: torch.nn.Module, step: int) -> dict[str, float]:
        return _quick_scores(candidate, held_out, config, step)

    best = fit(
        net,
        lambda step: source.batch(ranks * config.loop.batch, config.loop.seed, step, rank, ranks),
        config.loop,
        run_dir,
        validate=validate if held_out else None,
        resume=resume,
        on_line=on_line,
    )
    if rank > 0:
        return {}
    draw_curves(run_dir / "curve.jsonl", run_dir / "curve.png")
    return export_weights(best, config, [*seen, *held_out], run_dir / "weights")


def export_weights(net: torch.nn.Module, config: TrainConfig, samples: list[Sample], folder: Path) -> dict[str, Any]:
    """Measure the int8 ranges, fit thresholds, score, and write weights and card; return the card.

    Thresholds are fitted on training images (a network this small knows them no better than others) in each other's colors,
    so that they suit slides to come; scores are those of the held-out images, none of which has a part in what it judges.
    Without held-out images there are neither.
    """
    assert isinstance(net, UNet)
    held_out = [s for s in samples if s.validation]
    card: dict[str, Any] = {
        "name": config.name,
        "mpp": MODEL_MPP,
        "stain_method": config.stain,
        "licence": config.licence,
        "data": {"sets": sorted(config.sets), "validation_images": [s.image_id for s in held_out]},
        "separate_defaults": HOU_SEPARATION if config.separation == "hou43" else {},
        "scores": {},
        "training": plain_config(config),
        "wsiseg_version": __version__,
    }
    stored = as_stored(net)
    if config.stain != "none":
        card["stain_reference"] = _reference_facts([s for s in samples if not s.validation])
    if is_quantizable(stored.spec):
        stored.ranges = activation_ranges(stored.eval(), _calibration_images(samples, config.stain))
    if held_out:
        state = {name: tensor.clone() for name, tensor in stored.state_dict().items()}
        model = model_from_net(stored, {**card, "sha256": ""}, PredictConfig())  # folds the network that it is given
        fitted_on = _spread([s for s in samples if not s.validation])
        if config.separation == "fitted":
            card["separate_defaults"], reached = fit_separation(predict_recolored(model, fitted_on), config.sets, MODEL_MPP)
            log.info("thresholds %s reach a mean PQ of %.4f", card["separate_defaults"], reached)
        elif config.separation == "nucleus-size":
            by_size = separation_by_size(predict_samples(model, fitted_on), MODEL_MPP)
            card["separate_defaults"], card["mean_nucleus_diameter_px"] = by_size
        card["scores"] = score_table(predict_samples(model, held_out), card["separate_defaults"], MODEL_MPP)
        card["scored_in"] = model.precision
        ranges, stored = stored.ranges, build_net(config.net)
        stored.load_state_dict(state)
        stored.ranges = ranges
    return save_weights(stored, config.net, card, folder / f"{config.name}.safetensors")


def _begun(config: TrainConfig, folder: Path) -> UNet:
    torch.manual_seed(config.loop.seed)
    net = build_net(config.net)
    if config.init:
        held, card = load_weights(_weights_from(config.init, folder))
        if card["net"] != config.net:
            raise ConfigError(
                f"training {config.name}: init {config.init!r} is a {card['net']!r} network, net is {config.net!r}."
            )
        net.load_state_dict(held.state_dict())
    return net


def _teacher(config: TrainConfig, folder: Path) -> Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None:
    if not config.teacher:
        return None
    model = load_model(PredictConfig(weights=_weights_from(config.teacher, folder), tta=8))
    return lambda rgb: predict_image(model, rgb)


def _weights_from(stated: str, folder: Path) -> str:
    """Return a name that ships as it is, and a path as counted from the config file's folder."""
    return str(folder / stated) if stated.endswith(".safetensors") else stated


def _spread(samples: list[Sample]) -> list[Sample]:
    """Return some images of each set, evenly over its list: enough for thresholds."""
    chosen: list[Sample] = []
    for dataset in dict.fromkeys(s.dataset for s in samples):
        mine = [s for s in samples if s.dataset == dataset]
        chosen += mine[:: max(1, len(mine) // _THRESHOLD_IMAGES)][:_THRESHOLD_IMAGES]
    return chosen


def _data_root(config: TrainConfig) -> str:
    root = config.data_root or os.environ.get(DATA_ROOT_ENV, "")
    if not root:
        raise ConfigError(
            f"training {config.name}: no data. Set data_root in its config or the environment variable {DATA_ROOT_ENV}."
        )
    return root


def _calibration_images(samples: list[Sample], stain: str) -> Iterator[NDArray[np.uint8]]:
    """Yield crops of two dozen training images, evenly over the sets' lists."""
    seen = [s for s in samples if not s.validation]
    for sample in seen[:: max(1, len(seen) // 24)]:
        yield in_reference_stain(load_sample(sample)[0], stain)[:512, :512]


def _reference_facts(seen: list[Sample]) -> dict[str, Any]:
    """Say what the normalization aims at, and which training image Mahbod et al. 2019 would have aimed at."""
    chosen, difference = choose_reference(seen)
    image = {"set": chosen.dataset, "image": chosen.image_id, "histogram_difference": round(difference, 4)}
    return {"aims_at": "HERef and maxCRef of Macenko et al.'s published code", "automatic_choice": image}


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


def _quick_scores(net: torch.nn.Module, held_out: list[Sample], config: TrainConfig, step: int) -> dict[str, float]:
    """Mean PQ per set at the fallback thresholds: enough to see a curve, too little to choose thresholds by."""
    assert isinstance(net, UNet)
    copy = build_net(config.net)
    copy.load_state_dict(net.state_dict())
    card = {
        "name": config.name,
        "sha256": "",
        "mpp": MODEL_MPP,
        "stain_method": config.stain,
        "licence": "",
        "separate_defaults": {},
    }
    table = score_table(predict_samples(model_from_net(copy, card, PredictConfig()), held_out), {}, MODEL_MPP)
    log.info("step %d: %s", step, json.dumps({name: row["pq"] for name, row in table.items()}))
    return {f"pq_{name}": row["pq"] for name, row in table.items()}


def _built(kind: Any, options: dict[str, Any], where: str) -> Any:
    known = {f.name for f in dataclasses.fields(kind)}
    unknown = sorted(set(options) - known)
    if unknown:
        raise ConfigError(f"training config, {where}: no option {unknown[0]!r}. Expected some of {sorted(known)}.")
    try:
        return kind(**options)
    except TypeError as err:
        raise ConfigError(f"training config, {where}: {err}") from err


def plain_config(config: TrainConfig) -> dict[str, Any]:
    """Return the config without what only this machine knows."""
    tree = dataclasses.asdict(config)
    for name in ("data_root", "out", "licence"):
        tree.pop(name)
    tree |= {"init": Path(config.init).name, "teacher": Path(config.teacher).name}
    return tree
