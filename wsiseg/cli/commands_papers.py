"""``wsiseg rank``: experiments of papers as commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from wsiseg.cli.options import DEVICES, RenamedOption

__all__ = ["COMMANDS"]

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command(short_help="Rank annotated sets by what a network learns from each (NucFuseRank).")
@click.argument("root", type=_FOLDER)
@click.option("-o", "--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder of the ranking.")
@click.option("--sets", default="", metavar="A,B", help="Which sets of ROOT.  [all]")
@click.option(
    "--network",
    "networks",
    multiple=True,
    metavar="NAME",
    help="Network or published model to train, or none; repeatable.  [lean]",
)
@click.option(
    "--predictions",
    multiple=True,
    metavar="NAME=FOLDER",
    help="Label images of the test tiles from another program; repeatable.",
)
@click.option("--steps", type=click.IntRange(1), default=4000, show_default=True, help="Training steps for each set.")
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True, help="Patches per step.")
@click.option("--patch", "patch_px", type=click.IntRange(16, 4096), default=256, show_default=True, help="Side of a patch, px.")
@click.option("--device", type=DEVICES, default="auto", help="Where to train.  [auto: a GPU if PyTorch can use one]")
@click.option("--with-macenko", is_flag=True, help="Also train every network on images normalized by Macenko's method.")
@click.option("--stain", type=click.Choice(["none", "macenko"]), default="none", hidden=True)
@click.option("--best", type=click.IntRange(0), default=0, help="Fuse at most this many of the best sets; 1: none.  [all]")
@click.option("--test-tiles", type=click.IntRange(1), default=14, show_default=True, help="Test tiles of each set.")
@click.option("--train-tiles", type=click.IntRange(0), default=0, help="At most this many training tiles of each set.  [all]")
@click.option("--tile-px", "side", cls=RenamedOption, old_names=["--tile"], type=click.IntRange(32), default=256,
              show_default=True, help="Side of a tile, pixels of the images.")  # fmt: skip
@click.option("--min-object-px", "least_px", cls=RenamedOption, old_names=["--least"], type=click.IntRange(0), default=16,
              show_default=True, help="Objects with fewer pixels are not scored.")  # fmt: skip
@click.option(
    "--exclude", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="CSV set,image[,id]: images to leave out, or single nuclei to erase (such as macrophages).",
)  # fmt: skip
def rank(
    root: Path, out: Path, sets: str, networks: tuple[str, ...], predictions: tuple[str, ...], device: str, **options: Any
) -> None:
    """Rank the annotated sets under ROOT by what a network learns from each (NucFuseRank, Torbati et al. 2026).

    One network is trained on each set alone, and all are tested on tiles of all sets (no patient is in both training and
    test). Sets are ordered by PQ, and the best are fused. Tables and a figure are written to the folder, and the tables are
    printed; the same command resumes. To include other programs, train them on OUT/train, write their label images of
    OUT/test to FOLDER/<trained on>/<set>/<tile>.png, and give that folder with --predictions.

    \b
    wsiseg rank SETS --out ranking
    wsiseg rank SETS --out ranking --network none          (writes the tiles only)
    wsiseg rank SETS --out ranking --network lean --network two-stage --with-macenko
    wsiseg rank SETS --out ranking --network none --predictions hovernext=hn/ --predictions cellvit=cv/
    """
    from wsiseg.evaluation.scoring import annotated_sets
    from wsiseg.papers.ranking import RankOptions, rank_datasets
    from wsiseg.papers.unified import UnifyOptions
    from wsiseg.train.distributed import training_device

    others = [p.partition("=") for p in predictions]
    for name, equals, folder in others:
        if not (name and equals and folder):
            raise click.BadParameter(f"expected NAME=FOLDER, got {name + equals + folder!r}", param_hint="--predictions")
    chosen = tuple(s.strip() for s in sets.split(",") if s.strip()) or tuple(annotated_sets(root))
    tiles = UnifyOptions(chosen, **{k: options.pop(k) for k in ("test_tiles", "train_tiles", "side", "exclude")})
    stain, with_macenko = options.pop("stain"), options.pop("with_macenko")
    trained = RankOptions(
        networks=tuple(n for n in networks or ("lean",) if n != "none"),
        predictions=tuple((name, Path(folder)) for name, _, folder in others),
        macenko=with_macenko or stain == "macenko",
        device=training_device(device),
        **options,
    )
    done = rank_datasets(root, out, tiles, trained, on_line=lambda line: click.echo(line, err=True))
    click.echo(done.markdown)
    click.echo(f"folder: {done.folder}")


COMMANDS = (rank,)
