"""Options that several commands share, and how they become a RunConfig."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from wsiseg.config import RunConfig

__all__ = ["COMPONENTS_HELP", "FRAME_HELP", "build_config", "cluster_options", "segment_options", "slide_options"]

FRAME_HELP = (
    "Where {} lie on the slide: auto|slide|bounds, then px|um|mpp=UM|down=N. bounds: counted from the scanned area, as QuPath "
    "does.  [auto: bounds for QuPath's objects, else slide]"
)
COMPONENTS_HELP = "Each connected part of a label image is a nucleus (masks of classes)."

F = TypeVar("F", bound=Callable[..., Any])

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
    "retries": ("schedule", "retries"),
    "tile_timeout": ("schedule", "tile_timeout_s"),
    "any_processor": ("schedule", "any_processor"),
    "metrics_file": ("schedule", "metrics_file"),
    "keep_parts": ("write", "keep_parts"),
}


def slide_options(function: F) -> F:
    """Add the options that say what a slide is."""
    for option in (
        click.option(
            "--mpp", type=click.FloatRange(0.01, 100), help="Microns per level-0 pixel of slides whose file states none."
        ),
        click.option("--cohort", default="", help="Cohort (cancer type) of all slides; a manifest column wins."),
        click.option(
            "--tissue-mask",
            default="",
            metavar="PATH",
            help="Tissue mask (PNG or GeoJSON), or a folder of <slide_id>.png / .geojson.",
        ),
        click.option("--frame", default="", metavar="FRAME", help=FRAME_HELP.format("the tissue mask's coordinates")),
        click.option(
            "--reader",
            type=click.Choice(["auto", "cucim", "cucim-gpu", "openslide"]),
            default=None,
            help="What decodes pixels.  [auto: the fastest of those with equal pixels; cucim-gpu's differ a little]",
        ),
    ):
        function = option(function)
    return function


def segment_options(function: F) -> F:
    """Add the options of the main job."""
    for option in (
        click.option(
            "--config",
            "config_file",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="TOML file with any option of any stage; options on the command line win.",
        ),
        click.option("--tile", type=int, default=None, help="Side of a tile, pixels at the model's resolution.  [4000]"),
        click.option(
            "--stain",
            type=click.Choice(["auto", "none", "reinhard", "macenko"]),
            default=None,
            help="Stain normalization.  [auto: what the weights were trained for]",
        ),
        click.option("--weights", default=None, help="default, open, research, or a .safetensors file.  [default]"),
        click.option(
            "--engine",
            type=click.Choice(["auto", "eager", "inductor", "graph"]),
            default=None,
            help="How torch runs the network on the CPU.  [auto: compiled where the processor has AMX]",
        ),
        click.option(
            "--precision",
            type=click.Choice(["auto", "fp32", "bf16", "int8"]),
            default=None,
            help="Arithmetic of the network. int8 gives the same results on every x86 CPU: 10 Mpx/s a core with VNNI, but "
            "0.4 to 0.8 with AVX2 alone; fp32 on every one with AVX2: 1.1 to 1.7; bf16 on processors of one kind.  "
            "[auto: int8 with VNNI or AMX, else bf16 where native, else fp32; see run.json]",
        ),
        click.option(
            "--tta", type=click.Choice(["1", "8"]), default=None, help="Test-time augmentation: 8 flips and rotations."
        ),
        click.option("--min-area-um2", type=click.FloatRange(0), default=None, help="Smallest nucleus kept."),
        click.option(
            "--min-material",
            type=click.FloatRange(0, 1),
            default=None,
            help="Least mean material of a nucleus (column material_prob / 255).  [fitted: 0.6 to 0.7]",
        ),
        click.option("--max-area-um2", type=click.FloatRange(0), default=None, help="Largest nucleus kept.  [1000]"),
        click.option(
            "--device",
            type=click.Choice(["auto", "cpu", "cuda"]),
            default=None,
            help="Where tiles are computed.  [auto: a GPU where PyTorch and CuPy can use one, see wsiseg doctor]",
        ),
        click.option("--gpus", default=None, metavar="0,1", help="Numbers of the GPUs to use.  [all]"),
        click.option("--workers-per-gpu", type=click.IntRange(1, 16), default=None, help="Worker processes on each GPU.  [1]"),
        click.option(
            "--threads-per-worker",
            type=click.IntRange(0, 64),
            default=None,
            help="Tiles in work at once in a worker process.  [1 on the CPU; on a GPU its share of the cores, 16 at most]",
        ),
        click.option("--workers", type=click.IntRange(0), default=None, help="Worker processes.  [one per core]"),
    ):
        function = option(function)
    return function


def cluster_options(function: F) -> F:
    """Add the options of a run on more than this machine."""
    pem = click.Path(exists=True, dir_okay=False)
    for option in (
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
            help="Slides, masks, weights and run folder that begin with FROM here begin with TO on the workers. Repeatable.",
        ),
        click.option(
            "--any-processor",
            is_flag=True,
            default=None,
            help="Let machines whose processor computes other last bits work on one run too (bf16); else they are refused.",
        ),
        click.option(
            "--stage",
            type=click.Path(file_okay=False),
            help="Folder on the workers' own disk: slides are copied there, once a host, for their time in work.",
        ),
        click.option(
            "--stage-gb", type=click.FloatRange(0, min_open=True), default=None, help="Most that --stage holds.  [100]"
        ),
    ):
        function = option(function)
    return function


def build_config(config_file: Path | None, options: dict[str, Any], base: RunConfig | None = None) -> RunConfig:
    """Return the config of a TOML file (else ``base``, else the defaults) with the given command-line options laid over it.

    Raises
    ------
    ConfigError
        An option of the file is unknown or impossible.
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
