"""The options of a training run, read from a TOML file."""

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
    """Options of a training run.

    Attributes
    ----------
    name
        Name of the weights (``open``, ``research``, ...).
    out
        Run folder, relative to the config file.
    data_root
        Folder of the sets in the unified layout, or of ``nuclei`` with them; empty: the environment variable ``WSISEG_DATA``.
    sets
        Training sets, each with its share of the patches.
    fit_sets
        Annotated sets that are not trained on, to whose images (those not held out) thresholds are fitted, each set with equal
        weight. Empty: the thresholds that were measured to suit unseen tissue (``wsiseg.train.validation.OPERATING_POINT``).
    licence
        Licence of the resulting weights, with the reason.
    augment_on
        ``patch``: patches are augmented one by one on the host. ``batch``: a batch is augmented at once on the training device.
        ``auto``: ``batch`` on a GPU, with several processes, or if stains are mixed, else ``patch``. The two give different
        patches.
    stain, stain_reference
        ``macenko``: training images are normalized, and later every slide that is segmented with the weights. The reference is
        that of the ``published`` code, or the training image that the rule of Mahbod et al. 2019 selects (``automatic``).
    separation
        Thresholds of the weights: ``unseen``: for tissue of sets not trained on (``fit_sets``); ``nucleus-size``: from the mean
        nucleus of training images (``separation_by_size``); ``hou43``: those of Hou et al. 2020.
    border_weight, small_weight, touching
        Weights of pixels and material of touching nuclei in the targets (``wsiseg.train.targets.make_targets``).
    init
        Initial weights: a name of installed weights, or a .safetensors path relative to the config file; empty: random.
    teacher, teacher_share
        Weights (as for ``init``) of a teacher network, and its share in the targets, 0 to 1: targets are mixed with its maps,
        averaged over eight orientations.
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
    small_weight: float = 1.0
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
        """Raise ``ConfigError`` for unknown or contradictory options."""
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
                f'training config: expected fit_sets to be a list of sets, with separation = "unseen", got '
                f"{self.fit_sets!r} with {self.separation!r}."
            )
        if seen := sorted(set(self.fit_sets) & set(self.sets)):
            raise ConfigError(
                f"training config: fit_sets names the training sets {seen}. Thresholds fitted to these are too high for other "
                "tissue; name sets that are not in [sets], or none."
            )
        if not 0 <= self.teacher_share <= 1:
            raise ConfigError(f"training config: expected teacher_share to be 0 to 1, got {self.teacher_share}.")

    @classmethod
    def from_toml(cls, path: Path, model: str = "") -> TrainConfig:
        """Read a TOML file; the options of a published model (``wsiseg.train.presets``) replace its own.

        A file may name another as ``base`` (a path relative to its own folder), whose options hold where it states none;
        ``[augment]``, ``[loss]`` and ``[loop]`` are completed option by option, ``[sets]`` is taken as a whole. Paths in a
        base (``out``, ``init``, ``teacher``) are relative to the file that is read, not to the base.

        Raises ``ConfigError`` for invalid TOML, for unknown or missing options, and for files that are based on each other.
        """
        return cls.from_tree(_tree_of(path, ()), model)

    @classmethod
    def from_tree(cls, tree: dict[str, Any], model: str = "") -> TrainConfig:
        """Return the options from the parsed content of a TOML file, as ``from_toml`` does."""
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


def _tree_of(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """Return the content of a TOML file over that of its base."""
    if path.resolve() in above:
        raise ConfigError(f"training config {path}: it is its own base, by way of {[p.name for p in above]}.")
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as err:
        raise ConfigError(f"training config {path}: {err}") from err
    base = tree.pop("base", "")
    if not isinstance(base, str):
        raise ConfigError(f"training config {path}: expected base to be the path of another config, got {base!r}.")
    if not base:
        return tree
    under = _tree_of(path.parent / base, (*above, path.resolve()))
    both = [k for k in ("augment", "loss", "loop") if isinstance(under.get(k), dict) and isinstance(tree.get(k), dict)]
    return {**under, **tree, **{k: {**under[k], **tree[k]} for k in both}}


def plain_config(config: TrainConfig) -> dict[str, Any]:
    """Return the options as plain values, without local paths."""
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
