"""``wsiseg rank``: experiments of papers as commands."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["COMMANDS"]

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.argument("root", type=_FOLDER)
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder of the ranking.")
@click.option("--sets", default="", metavar="A,B", help="Which sets of ROOT.  [all]")
@click.option("--network", "networks", multiple=True, help="Network or published model to train; several, or 'none'.  [lean]")
@click.option(
    "--predictions", multiple=True, metavar="NAME=FOLDER", help="Label images by another program, for the test tiles."
)
@click.option("--steps", type=click.IntRange(1), default=4000, show_default=True, help="Training steps for each set.")
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True, help="Patches a step.")
@click.option("--patch", type=click.IntRange(16, 4096), default=256, show_default=True, help="Side of a patch, px.")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda, for training.")
@click.option("--stain", type=click.Choice(["none", "macenko"]), default="none", help="Train all once more, normalized.")
@click.option("--best", type=click.IntRange(0), default=0, help="Fuse up to so many of the best sets; 1: none.  [all]")
@click.option("--test-tiles", type=click.IntRange(1), default=14, show_default=True, help="Test tiles of each set.")
@click.option("--train-tiles", type=click.IntRange(0), default=0, help="Training tiles of each set at most.  [all]")
@click.option("--tile", type=click.IntRange(32), default=256, show_default=True, help="Side of a tile, px.")
@click.option("--least", type=click.IntRange(0), default=16, show_default=True, help="Objects with fewer px do not count.")
@click.option(
    "--exclude", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="CSV set,image[,id]: images to leave out, or single nuclei to erase (such as macrophages).",
)  # fmt: skip
def rank(
    root: Path, out: Path, sets: str, networks: tuple[str, ...], predictions: tuple[str, ...], steps: int, batch: int,
    patch: int, device: str, stain: str, best: int, test_tiles: int, train_tiles: int, tile: int, least: int,
    exclude: Path | None,
) -> None:  # fmt: skip
    """Rank the annotated sets under ROOT by what a network learns from each (NucFuseRank, Torbati et al. 2026).

    One network is trained on each set alone, all are tested on tiles of all sets (no patient is in training and test), sets
    are ordered by PQ, and the best are fused. Tables and a figure go to the folder and to the screen; the same command goes
    on where it was stopped. OUT/train and OUT/test are for other programs too: train them, write their label images to
    FOLDER/<trained on>/<set>/<tile>.png, and name that folder.

    \b
    wsiseg rank SETS --out ranking
    wsiseg rank SETS --out ranking --network none          (writes the tiles only)
    wsiseg rank SETS --out ranking --network lean --network two-stage --stain macenko
    wsiseg rank SETS --out ranking --network none --predictions hovernext=hn/ --predictions cellvit=cv/
    """
    from wsiseg.evaluation.scoring import annotated_sets
    from wsiseg.papers.ranking import RankOptions, rank_datasets
    from wsiseg.papers.unified import UnifyOptions

    others = [p.partition("=") for p in predictions]
    for name, equals, folder in others:
        if not (name and equals and folder):
            raise click.BadParameter(f"expected NAME=FOLDER, got {name + equals + folder!r}", param_hint="--predictions")
    tiles = UnifyOptions(
        tuple(s.strip() for s in sets.split(",") if s.strip()) or tuple(annotated_sets(root)),
        test_tiles, train_tiles, tile, exclude,
    )  # fmt: skip
    options = RankOptions(
        networks=tuple(n for n in networks or ("lean",) if n != "none"),
        predictions=tuple((name, Path(folder)) for name, _, folder in others),
        macenko=stain == "macenko", best=best, least_px=least, steps=steps, batch=batch, patch_px=patch, device=device,
    )  # fmt: skip
    done = rank_datasets(root, out, tiles, options, on_line=lambda line: click.echo(line, err=True))
    click.echo(done.markdown)
    click.echo(f"folder: {done.folder}")


COMMANDS = (rank,)
