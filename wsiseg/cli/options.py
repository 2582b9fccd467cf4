"""Options shared by several commands, and their conversion to a RunConfig."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from wsiseg.config import RunConfig

__all__ = [
    "COMPONENTS_HELP",
    "DEVICES",
    "FRAME_HELP",
    "FolderOrAddress",
    "RenamedOption",
    "build_config",
    "cluster_only_options",
    "cluster_options",
    "default_of",
    "segment_options",
    "slide_options",
]

DEVICES = click.Choice(["auto", "cpu", "cuda"])


FRAME_HELP = (
    "Origin (auto|slide|bounds) and unit (px|um|mpp=UM|down=N) of {}, separated by a comma, e.g. bounds,um. "
    "bounds is the corner of the scanned area, as in QuPath.  [auto: bounds for QuPath's objects, else slide; px]"
)
COMPONENTS_HELP = "Each connected part of a label image is a nucleus (masks of classes)."

F = TypeVar("F", bound=Callable[..., Any])


class RenamedOption(click.Option):
    """An option that also accepts its names in earlier versions (``old_names``), which the help does not show."""

    def __init__(self, declarations: Sequence[str], *, old_names: Sequence[str], **attributes: Any) -> None:
        super().__init__([*declarations, *old_names], **attributes)
        self._old_names = frozenset(old_names)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the option and its help, without the old names."""
        every, self.opts = self.opts, [name for name in self.opts if name not in self._old_names]
        try:
            return super().get_help_record(ctx)
        finally:
            self.opts = every


class FolderOrAddress(click.Path):
    """A local folder, or an address (``s3://bucket/run``), which is returned as text."""

    def __init__(self) -> None:
        super().__init__(exists=True, file_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the address, or the path of the folder, which must exist."""
        return value if "://" in str(value) else super().convert(value, param, ctx)


_FIELDS = {
    "tile": ("read", "tile_wpx"),
    "mpp": ("read", "mpp"),
    "reader": ("read", "reader"),
    "stain": ("normalize", "method"),
    "weights": ("predict", "weights"),
    "precision": ("predict", "precision"),
    "engine": ("predict", "engine"),
    "tta": ("predict", "tta"),
    "min_area_um2": ("separate", "min_area_um2"),
    "max_area_um2": ("separate", "max_area_um2"),
    "min_material": ("separate", "min_material_frac"),
    "device": ("schedule", "device"),
    "gpus": ("schedule", "gpus"),
    "workers_per_gpu": ("schedule", "workers_per_gpu"),
    "threads_per_worker": ("schedule", "threads_per_worker"),
    "workers": ("schedule", "workers"),
    "scheduler": ("schedule", "scheduler"),
    "scheduler_file": ("schedule", "scheduler_file"),
    "tls_ca": ("schedule", "tls_ca"),
    "tls_cert": ("schedule", "tls_cert"),
    "tls_key": ("schedule", "tls_key"),
    "path_map": ("schedule", "path_map"),
    "stage": ("schedule", "stage"),
    "stage_gb": ("schedule", "stage_gb"),
    "keep_staged": ("schedule", "keep_staged"),
    "fetch_connections": ("schedule", "fetch_connections"),
    "gdc_token_file": ("schedule", "gdc_token_file"),
    "retries": ("schedule", "retries"),
    "tile_timeout": ("schedule", "tile_timeout_s"),
    "any_processor": ("schedule", "any_processor"),
    "metrics_file": ("schedule", "metrics_file"),
    "keep_parts": ("write", "keep_parts"),
    "features": ("write", "features"),
}
_DEFAULTS = RunConfig()


def default_of(option: str) -> str:
    """Return the default of a command-line option, its value in ``RunConfig``, as text for the help."""
    stage, field = _FIELDS[option]
    value = getattr(getattr(_DEFAULTS, stage), field)
    return f"{value:g}" if isinstance(value, float) else str(value)


def slide_options(function: F) -> F:
    """Add the options that describe slides: microns per pixel, cohort, tissue mask, reader."""
    for option in reversed(
        (
            click.option(
                "--mpp", type=click.FloatRange(0.01, 100), help="Microns per level-0 pixel of slides whose file states none."
            ),
            click.option(
                "--cohort",
                default="",
                metavar="NAME",
                help="Cohort (cancer type) of all slides; a manifest column overrides it.",
            ),
            click.option(
                "--tissue-mask",
                default="",
                metavar="PATH|all",
                help="Tissue mask (PNG or GeoJSON), a folder of <slide_id>.png / .geojson, or all (no mask: the whole slide).  "
                "[detected on the slide]",
            ),
            click.option("--frame", default="", metavar="FRAME", help=FRAME_HELP.format("the tissue mask's coordinates")),
            click.option(
                "--reader",
                type=click.Choice(["auto", "cucim", "openslide"]),
                default=None,
                help=f"Library that decodes pixels.  [{default_of('reader')}: the fastest whose pixels equal OpenSlide's]",
            ),
        )
    ):
        function = option(function)
    return function


def segment_options(function: F) -> F:
    """Add the options of the main job."""
    return _result_options(_size_options(_compute_options(function)))


def _result_options(function: F) -> F:
    for option in reversed(
        (
            click.option(
                "--config",
                "config_file",
                type=click.Path(exists=True, dir_okay=False, path_type=Path),
                help="TOML file with any option of any stage; options on the command line override it.",
            ),
            click.option(
                "--tile",
                type=int,
                default=None,
                help=f"Side of a tile, pixels at the model's resolution.  [{default_of('tile')}]",
            ),
            click.option(
                "--stain",
                type=click.Choice(["auto", "none", "reinhard", "macenko"]),
                default=None,
                help=f"Stain normalization.  [{default_of('stain')}: as the weights were trained]",
            ),
            click.option(
                "--weights",
                default=None,
                metavar="WEIGHTS",
                help=f"default, open, research, or a .safetensors file.  [{default_of('weights')}]",
            ),
            click.option(
                "--engine",
                type=click.Choice(["auto", "eager", "inductor", "graph"]),
                default=None,
                help=f"How PyTorch runs the network on the CPU.  [{default_of('engine')}: compiled if the processor has AMX]",
            ),
            click.option(
                "--precision",
                type=click.Choice(["auto", "fp32", "bf16", "int8"]),
                default=None,
                help="Arithmetic of the network. int8 gives equal results on every x86 CPU, at 10 Mpx/s per core with VNNI but "
                "0.4 to 0.8 with only AVX2; fp32 on every CPU with AVX2, at 1.1 to 1.7; bf16 on processors of one kind.  "
                f"[{default_of('precision')}: int8 with VNNI or AMX, else bf16 where native, else fp32; see run.json]",
            ),
            click.option(
                "--tta",
                type=click.Choice(["1", "8"]),
                default=None,
                help=f"Test-time augmentation: mean over 8 flips and rotations.  [{default_of('tta')}: none]",
            ),
        )
    ):
        function = option(function)
    return function


def _size_options(function: F) -> F:
    for option in reversed(
        (
            click.option(
                "--min-area-um2",
                type=click.FloatRange(0),
                default=None,
                help="Minimum area of a nucleus.  [fitted for the weights]",
            ),
            click.option(
                "--min-material",
                type=click.FloatRange(0, 1),
                default=None,
                help="Minimum mean material probability (material_prob / 255) of a nucleus.  [fitted for the weights]",
            ),
            click.option(
                "--max-area-um2",
                type=click.FloatRange(0),
                default=None,
                help=f"Maximum area of a nucleus.  [{default_of('max_area_um2')}]",
            ),
        )
    ):
        function = option(function)
    return function


def _compute_options(function: F) -> F:
    for option in reversed(
        (
            click.option(
                "--device",
                type=DEVICES,
                default=None,
                help=f"Where tiles are computed.  [{default_of('device')}: a GPU if usable, see wsiseg doctor]",
            ),
            click.option("--gpus", default=None, metavar="0,1", help="Numbers of the GPUs to use.  [all]"),
            click.option(
                "--workers-per-gpu",
                type=click.IntRange(0, 16),
                default=None,
                help="Worker processes on each GPU.  [0: up to 3, by its memory and the cores]",
            ),
            click.option(
                "--threads-per-worker",
                type=click.IntRange(0, 64),
                default=None,
                help="Tiles that a worker process computes at once.  [1 on the CPU; on a GPU its share of cores, at most 16]",
            ),
            click.option("--workers", type=click.IntRange(0), default=None, help="Worker processes.  [one per core]"),
        )
    ):
        function = option(function)
    return function


def cluster_only_options(function: F) -> F:
    """Add the options that select an existing Dask scheduler."""
    pem = click.Path(exists=True, dir_okay=False)
    for option in reversed(
        (
            click.option(
                "--scheduler", default="", metavar="ADDRESS", help="Dask scheduler, tcp:// or tls://host:8786.  [this machine]"
            ),
            click.option(
                "--scheduler-file",
                type=click.Path(dir_okay=False),
                help="JSON file that 'dask scheduler --scheduler-file' wrote, instead of an address.",
            ),
            click.option("--tls-ca", type=pem, help="Certificate of the authority, for tls://.  [Dask's configuration]"),
            click.option("--tls-cert", type=pem, help="This client's certificate, for tls://."),
            click.option("--tls-key", type=pem, help="This client's key, for tls://."),
            click.option(
                "--path-map",
                multiple=True,
                metavar="FROM=TO",
                help="Paths that start with FROM here (slides, masks, weights, run) start with TO on workers; repeatable.",
            ),
        )
    ):
        function = option(function)
    return function


def cluster_options(function: F) -> F:
    """Add the options of a run on several machines."""
    for option in reversed(
        (
            click.option(
                "--any-processor",
                is_flag=True,
                default=None,
                help="Allow machines whose processors compute slightly different maps (bf16) in one run.  [refused]",
            ),
            click.option(
                "--stage",
                type=click.Path(file_okay=False),
                help="Folder on each worker's own disk; slides are copied or fetched there while they are processed.  "
                "[slides at addresses: RUN/staged]",
            ),
            click.option(
                "--stage-gb",
                type=click.FloatRange(0, min_open=True),
                default=None,
                help=f"Size limit of the --stage folder, GB.  [{default_of('stage_gb')}]",
            ),
            click.option("--keep-staged", is_flag=True, default=None, help="Keep staged slides after they are finished."),
            click.option(
                "--fetch-connections",
                type=click.IntRange(1, 64),
                default=None,
                help=f"Number of byte ranges of a slide that are fetched in parallel.  [{default_of('fetch_connections')}]",
            ),
            click.option(
                "--gdc-token-file",
                type=click.Path(exists=True, dir_okay=False),
                help="File with the token for controlled files of the GDC; or GDC_TOKEN_FILE in the environment.",
            ),
        )
    ):
        function = option(function)
    return cluster_only_options(function)


def build_config(config_file: Path | None, options: dict[str, Any], base: RunConfig | None = None) -> RunConfig:
    """Return the config of a TOML file (else ``base``, else the defaults), overridden by the given command-line options.

    Raises
    ------
    ConfigError
        An option in the file is unknown or has an impossible value.
    """
    config = RunConfig.from_toml(config_file) if config_file else base or RunConfig()
    given: dict[str, dict[str, Any]] = {}
    for name, value in options.items():
        if value is None or value in ("", ()) or name not in _FIELDS:
            continue
        stage, field = _FIELDS[name]
        given.setdefault(stage, {})[field] = int(value) if name == "tta" else value
    parts = {stage: dataclasses.replace(getattr(config, stage), **fields) for stage, fields in given.items()}
    return dataclasses.replace(config, **parts)
