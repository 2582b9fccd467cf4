"""The config of one training run: the options of a training TOML file."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from wsiseg.errors import ConfigError
from wsiseg.train.augment import AugmentConfig
from wsiseg.train.loop import LoopConfig
from wsiseg.train.losses import LossConfig
from wsiseg.train.presets import with_model
from wsiseg.train.targets import CenterKind

__all__ = ["AugmentOn", "TrainConfig", "plain_config"]

AugmentOn = Literal["auto", "patch", "batch"]
StainChoice = Literal["none", "macenko"]
ReferenceChoice = Literal["published", "automatic"]
SeparationChoice = Literal["unseen", "nucleus-size", "hou43"]


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
        Folder of the sets in the unified layout, or of ``nuclei`` with them; empty: the environment variable ``WSISEG_DATA``.
    sets
        Sets and the share of patches that each gives.
    fit_sets
        Annotated sets that are not trained on, for fitting thresholds: each counts the same. None: the thresholds that were
        measured to suit unseen tissue (``run.validation.OPERATING_POINT``).
    licence
        Licence of the resulting weights, and why.
    augment_on
        ``patch``: patches are augmented one by one on the host; ``batch``: all of a batch at once, on the device that trains;
        ``auto``: the second on a GPU, in several processes and where stains are mixed, the first otherwise. Each draws its own
        random numbers.
    stain, stain_reference
        ``macenko``: training images are normalized, and so will be every slide that the weights segment: to the reference of
        the ``published`` code, or to the training image that Mahbod et al. 2019 would choose (``automatic``).
    separation
        Thresholds of the weights: ``unseen``, those for tissue of sets not trained on (``fit_sets``); ``nucleus-size``, set by
        the mean nucleus of training images (``separation_by_size``); ``hou43``, those of Hou et al. 2020.
    init
        Weights to start from: a name that ships, or a .safetensors path relative to the config file; empty: random weights.
    teacher, teacher_share
        Weights (as for ``init``) towards whose maps, averaged over eight orientations, the targets are moved, and the share of
        it.
    """

    name: str
    sets: dict[str, float]
    licence: str
    out: str = "run"
    data_root: str = ""
    fit_sets: Sequence[str] = ()
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
    stain_reference: ReferenceChoice = "published"
    separation: SeparationChoice = "unseen"
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        """Refuse an unknown stain or separation."""
        for name, kind in (
            ("stain", StainChoice),
            ("stain_reference", ReferenceChoice),
            ("separation", SeparationChoice),
        ):
            if getattr(self, name) not in get_args(kind):
                raise ConfigError(
                    f"training config: expected {name} to be one of {get_args(kind)}, got {getattr(self, name)!r}."
                )
        if isinstance(self.fit_sets, str) or (self.fit_sets and self.separation != "unseen"):
            raise ConfigError(
                f'training config: expected fit_sets to be a list of sets beside separation = "unseen", got '
                f"{self.fit_sets!r} beside {self.separation!r}."
            )
        if seen := sorted(set(self.fit_sets) & set(self.sets)):
            raise ConfigError(
                f"training config: fit_sets names {seen}, which are trained on. Thresholds fitted there are too high for other "
                "tissue; name sets that are not in [sets], or none."
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


def plain_config(config: TrainConfig) -> dict[str, Any]:
    """Return the config as plain values, without paths of this machine."""
    tree = dataclasses.asdict(config)
    for name in ("data_root", "out", "licence"):
        tree.pop(name)
    tree |= {"init": Path(config.init).name, "teacher": Path(config.teacher).name}
    return tree


def _built(kind: Any, options: dict[str, Any], where: str) -> Any:
    known = {f.name for f in dataclasses.fields(kind)}
    unknown = sorted(set(options) - known)
    if unknown:
        raise ConfigError(f"training config, {where}: there is no option {unknown[0]!r}. Options are {sorted(known)}.")
    try:
        return kind(**options)
    except TypeError as err:
        raise ConfigError(f"training config, {where}: {err}") from err
