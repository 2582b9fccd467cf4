"""``wsiseg synth make`` and ``refine``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from wsiseg.cli.options import DEVICES

__all__ = ["COMMANDS"]

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_OUT = click.Path(file_okay=False, path_type=Path)


@click.group(short_help="Make synthetic training images for tissue without annotations.")
def synth() -> None:
    """Make synthetic training images for tissue without annotations (Hou et al. 2019).

    \b
    1. wsiseg synth make SETS/tnbc COHORT --out SETS/synth          draw nuclei in textures of the cohort
    2. wsiseg synth refine SETS/synth COHORT --out SETS/refined     make the images more realistic, and weight them
    3. wsiseg train CONFIG                                          with refined = 0.5 in its [sets]
    """


@synth.command()
@click.argument("reference", type=click.Path(exists=True, path_type=Path))
@click.argument("cohort", type=_FOLDER)
@click.option("-o", "--out", required=True, type=_OUT, help="Folder of the set to write; its name becomes that of the set.")
@click.option("--images", type=click.IntRange(1), default=200, show_default=True, help="Patches to draw.")
@click.option("--patch", type=click.IntRange(64, 4096), default=256, show_default=True, help="Side of a patch, px.")
@click.option(
    "--overlap-max",
    type=click.FloatRange(0, 0.5),
    default=0.2,
    show_default=True,
    help="Maximum fraction of a nucleus that overlaps another.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="The same seed gives the same images.")
def make(reference: Path, cohort: Path, out: Path, images: int, patch: int, overlap_max: float, seed: int) -> None:
    """Draw nuclei with shapes from REFERENCE into patches of COHORT.

    REFERENCE is an annotated set (a folder in the unified layout) or the polygons of a segmented slide
    (RUN/nuclei/SLIDE.parquet). COHORT is a folder of pictures at the same magnification, or a set in the unified layout, whose
    labels are not read. The same command resumes.

    \b
    Example:  wsiseg synth make nuclei/tnbc colon_tiles --out nuclei/synth_colon --images 500
    """
    from wsiseg.train.synthesis import SynthConfig, make_synthetic

    made = make_synthetic(reference, cohort, out, SynthConfig(images, patch, overlap_max, seed))
    click.echo(f"{made.n_images} images, {made.n_nuclei} nuclei -> {made.out}")


@synth.command()
@click.argument("synthetic", metavar="SET", type=_FOLDER)
@click.argument("cohort", type=_FOLDER)
@click.option("-o", "--out", required=True, type=_OUT, help="Folder of the refined set; the refiner is stored in OUT/refiner.")
@click.option("--steps", type=click.IntRange(1), default=400, show_default=True, help="Steps of each network.")
@click.option("--batch", type=click.IntRange(1), default=4, show_default=True, help="Patches per step.")
@click.option(
    "--crop", "crop_px", type=click.IntRange(8), default=96, show_default=True, help="Side of a patch in training, px."
)
@click.option("--width", type=click.IntRange(1), default=32, show_default=True, help="Channels at full resolution.")
@click.option(
    "--hard",
    "task",
    default="",
    metavar="WEIGHTS",
    help="Weights of a network; images on which it has errors are preferred.  [none]",
)
@click.option("--device", type=DEVICES, default="auto", help="Where to train.  [auto: a GPU if PyTorch can use one]")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="The same seed gives the same refiner.")
@click.option("--resume", is_flag=True, help="Continue from the refiner's last checkpoint.")
def refine(synthetic: Path, cohort: Path, out: Path, task: str, device: str, resume: bool, **options: Any) -> None:
    """Train a refiner against a discriminator of COHORT's pictures, and write the refined images of SET.

    Each image gets a weight from the discriminator's odds, clipped to 0.2 to 2 (weight_per_image in INFO.json); training draws
    images in proportion to it.

    \b
    Example:  wsiseg synth refine nuclei/synth_colon colon_tiles --out nuclei/refined_colon --steps 20000 --device cuda
    """
    from wsiseg.train.distributed import training_device
    from wsiseg.train.synthesis import RefineConfig, refine_synthetic

    config = RefineConfig(**options, device=training_device(device))
    made, weights = refine_synthetic(synthetic, cohort, out, config, task=task, resume=resume)
    click.echo(f"{made.n_images} images, weights " + ", ".join(f"{k} {v:.2f}" for k, v in weights.items()) + f" -> {made.out}")


COMMANDS = (synth,)
